//! Introductions on one node, and what both kinds of pairs have in common: pulls, hints, recycling.

use abi::doorbell;
use abi::member::{Introduction, Refusal, Reply};
use abi::{Allowed, Endpoint, Slot};

use super::effect::{Descriptor, Effect, Note};
use super::members::{refuse, reply};
use super::memory::SidePlace;
use super::state::{Link, Local, Stage, Via};
use super::{ConnId, Core, Now};

/// A pair as one endpoint sees it, and the descriptors that go with it.
pub(super) struct Sight {
    pub introduction: Introduction,
    pub fds: Vec<Descriptor>,
}

impl Core {
    /// `follow`: for a call of its own that was passed on to `to`.
    pub(super) fn introduce(
        &mut self,
        conn: ConnId,
        own: Endpoint,
        to: Endpoint,
        follow: bool,
        out: &mut Vec<Effect>,
    ) {
        match self.pair_up(own, to, follow, out) {
            Ok(sight) => {
                if let Some(local) = self.locals.get_mut(&own) {
                    local.pulls.retain(|p| *p != to);
                }
                self.told(own, to);
                let reply = Reply::Introduced(sight.introduction);
                out.push(Effect::Reply { conn, reply, fds: sight.fds });
            }
            Err(why) => refuse(conn, why, out),
        }
    }

    fn pair_up(
        &mut self,
        own: Endpoint,
        to: Endpoint,
        follow: bool,
        out: &mut Vec<Effect>,
    ) -> Result<Sight, Refusal> {
        if own == to {
            return Err(Refusal::BadRequest);
        }
        let local = self.locals.get(&own).ok_or(Refusal::NoSuchEndpoint)?;
        if local.stage != Stage::Ready {
            return Err(Refusal::BadRequest);
        }
        if own.dc != to.dc {
            return Err(Refusal::NoSuchEndpoint);
        }
        let mine = self.plan.own_range(own.dc).is_some_and(|range| range.contains(to.slot));
        if !mine {
            return self.pair_up_far(own, to, follow, out);
        }
        if local.links.contains_key(&to) {
            // Of one that has ended too: what it had published is there.
            return self.sight(own, to).ok_or(Refusal::NoSuchEndpoint);
        }
        let peer = self.locals.get(&to).filter(|l| l.stage.is_visible()).ok_or(Refusal::NoSuchEndpoint)?;
        let allowed = self.permitted(own, to, follow)?;
        if peer.stage != Stage::Ready || !self.has_free_side(peer.memory) || !self.has_free_side(local.memory)
        {
            return Err(Refusal::NotReady);
        }
        self.link(own, to, Via::Local, allowed).ok_or(Refusal::NotReady)?;
        self.link(to, own, Via::Local, allowed.turned()).ok_or(Refusal::NotReady)?;
        out.push(Effect::Note(Note::Introduced { a: own, b: to }));
        self.hint(to, own, out);
        self.sight(own, to).ok_or(Refusal::NotReady)
    }

    /// Gives `own` a side for `peer`.
    pub(super) fn link(
        &mut self,
        own: Endpoint,
        peer: Endpoint,
        via: Via,
        allowed: Allowed,
    ) -> Option<SidePlace> {
        let memory = self.locals.get(&own)?.memory;
        let side = self.take_side(memory)?;
        let local = self.locals.get_mut(&own)?;
        local.links.insert(peer, Link { own: side, told: false, via, allowed });
        Some(side)
    }

    /// Lets an endpoint know that there is something to be pulled of `peer`.
    pub(super) fn hint(&mut self, own: Endpoint, peer: Endpoint, out: &mut Vec<Effect>) {
        let Some(local) = self.locals.get_mut(&own) else { return };
        if local.stage.is_dead() {
            return;
        }
        if !local.pulls.contains(&peer) {
            local.pulls.push_back(peer);
        }
        out.push(ring(own, None, true));
    }

    fn told(&mut self, own: Endpoint, peer: Endpoint) {
        if let Some(link) = self.locals.get_mut(&own).and_then(|l| l.links.get_mut(&peer)) {
            link.told = true;
        }
        if let Some(local) = self.locals.get_mut(&own) {
            local.bells.retain(|p| *p != peer);
        }
    }

    /// The pair as `own` sees it now; `None` while or when there is nothing at its other end.
    pub(super) fn sight(&self, own: Endpoint, peer: Endpoint) -> Option<Sight> {
        let link = self.locals.get(&own)?.links.get(&peer)?;
        let place = |memory, side: SidePlace, doorbell: usize, proxied| Introduction {
            peer,
            own_segment: link.own.segment,
            own_side: link.own.side,
            memory,
            segment: side.segment,
            side: side.side,
            doorbell: doorbell as u32,
            proxied,
            rings: self.rings(own, peer),
            allowed: link.allowed,
        };
        let bells = self.bells_of(own, peer);
        let mut sight = match link.via {
            Via::Local => {
                let there = self.locals.get(&peer)?;
                let side = there.links.get(&own)?.own;
                Sight {
                    introduction: place(there.memory, side, doorbell::of_slot(peer.slot), false),
                    fds: vec![Descriptor::Segment { memory: there.memory, segment: side.segment }],
                }
            }
            Via::Remote(far) => {
                let there = far.place.filter(|_| !far.recycled)?;
                let segment = Descriptor::Segment { memory: there.memory, segment: there.side.segment };
                Sight {
                    introduction: place(there.memory, there.side, doorbell::of_proxy(far.proxy), true),
                    fds: vec![segment, Descriptor::ProxyBell { proxy: far.proxy, dc: own.dc }],
                }
            }
        };
        sight.fds.extend(bells);
        Some(sight)
    }

    pub(super) fn pull(&mut self, conn: ConnId, own: Endpoint, out: &mut Vec<Effect>) {
        if let Some(endpoint) = self.next_warning(own) {
            return reply(conn, Reply::Warned { endpoint }, out);
        }
        loop {
            if let Some(segment) = self.locals.get_mut(&own).and_then(|l| l.spent.pop_front()) {
                return reply(conn, Reply::Spent { segment }, out);
            }
            let next = self.locals.get_mut(&own).and_then(|l| l.pulls.pop_front());
            let Some(peer) = next else { break };
            let Some(link) = self.locals.get(&own).and_then(|l| l.links.get(&peer)) else { continue };
            let told = link.told;
            if let Via::Remote(far) = link.via
                && far.ended
                && !far.recycled
            {
                if told {
                    return reply(conn, Reply::Gone { peer }, out);
                }
                self.recycled_far(own, peer, out);
                continue;
            }
            match self.sight(own, peer) {
                Some(Sight { introduction, fds }) => {
                    let moved = told && introduction.proxied;
                    let reply =
                        if moved { Reply::Moved(introduction) } else { Reply::Introduced(introduction) };
                    self.told(own, peer);
                    return out.push(Effect::Reply { conn, reply, fds });
                }
                // The peer is gone for good and its side was never seen here: it is as it was.
                None if !told && !self.locals.contains_key(&peer) && self.is_local(peer) => {
                    self.unlink(own, peer, out);
                }
                // Carried again later, and told then.
                None => {}
            }
        }
        self.pull_bells(conn, own, out);
    }

    pub(super) fn is_local(&self, endpoint: Endpoint) -> bool {
        self.plan.own_range(endpoint.dc).is_some_and(|range| range.contains(endpoint.slot))
    }

    /// Takes a pair out of `own`'s links and frees its side.
    pub(super) fn unlink(&mut self, own: Endpoint, peer: Endpoint, out: &mut Vec<Effect>) {
        let Some(local) = self.locals.get_mut(&own) else { return };
        if local.polls {
            out.push(Effect::DropBells { polls: own, by: Some(peer) });
        }
        let memory = local.memory;
        let Some(link) = local.links.remove(&peer) else { return };
        if local.private {
            return self.end_private_pair(own, peer, &link, out);
        }
        self.give_side(memory, link.own);
    }

    /// The caller has closed an ended pair and zeroed its side.
    pub(super) fn recycled(
        &mut self,
        now: Now,
        own: Endpoint,
        peer: Endpoint,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let link = self.locals.get(&own).and_then(|l| l.links.get(&peer)).ok_or(Refusal::NoSuchEndpoint)?;
        match link.via {
            Via::Remote(_) => self.recycled_far(own, peer, out),
            // The peer lives and reads this side: it may not be given to another.
            Via::Local if self.locals.get(&peer).is_some_and(|p| !p.stage.is_dead()) => {
                return Err(Refusal::BadRequest);
            }
            Via::Local => {
                self.unlink(own, peer, out);
                self.unlink(peer, own, out);
                self.settle(now, peer, out);
            }
        }
        if let Some(local) = self.locals.get_mut(&own) {
            local.pulls.retain(|p| *p != peer);
        }
        self.retry_opens_of(own, out);
        Ok(())
    }
}

/// Rings an endpoint's doorbell.
pub(super) fn ring(owner: Endpoint, source: Option<Slot>, pull: bool) -> Effect {
    Effect::Ring { dc: owner.dc, doorbell: doorbell::of_slot(owner.slot) as u32, source, pull }
}

impl Local {
    pub(super) fn is_done(&self) -> bool {
        self.stage.is_dead() && self.links.is_empty()
    }
}
