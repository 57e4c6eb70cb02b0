//! Pairs that lead to another node: attached to the proxy that serves it, moved to its successor, detached.
//!
//! A proxy's side is in use from `Attach` to `Detached` or to the proxy's end, whatever becomes of the local endpoint in
//! between; the memory of the proxy keeps that account.

use abi::courier::{Attach, ToProxy};
use abi::limits::{SIDES_MORE, SIDES_PROXY, SIDES_SPARE_MIN};
use abi::member::{Refusal, SegmentKind};
use abi::{DcId, Endpoint, Kinds, NodeId, doorbell};

use super::effect::{Descriptor, Effect, Note};
use super::memory::{Owner, sides_bytes};
use super::pairs::Sight;
use super::state::{Asked, Far, Place, Remote, Stage, Via};
use super::{Core, Now};

/// Pairs that may wait for a side, of one node.
const OPENS_MAX: usize = 1 << 16;

impl Core {
    /// The pair of a local endpoint with one that the directory says is elsewhere.
    pub(super) fn pair_up_far(
        &mut self,
        own: Endpoint,
        to: Endpoint,
        follow: bool,
        out: &mut Vec<Effect>,
    ) -> Result<Sight, Refusal> {
        let local = self.locals.get(&own).ok_or(Refusal::NoSuchEndpoint)?;
        if let Some(far) = local.far(to) {
            return match far {
                Far { ended: true, .. } | Far { gone: true, .. } | Far { recycled: true, .. } => {
                    Err(Refusal::NoSuchEndpoint)
                }
                Far { .. } => self.sight(own, to).ok_or(Refusal::NotReady),
            };
        }
        let remote = self.dcs.get(&to.dc).and_then(|d| d.remotes.get(&to.slot));
        let alive = remote.filter(|r| r.alive && r.generation == to.generation);
        let Remote { node, private, .. } = *alive.ok_or(Refusal::NoSuchEndpoint)?;
        // It has ended for the caller, who heard of it before the directory did.
        if local.is_past(to) {
            return Err(Refusal::NoSuchEndpoint);
        }
        let allowed = self.permitted(own, to, follow)?;
        let proxy = self.plan.route(node).ok_or(Refusal::NotReady)?;
        let (memory, private) = (local.memory, local.private || private);
        let theirs = self.speaking_memory(proxy, own, private, out).ok_or(Refusal::NotReady)?;
        if !self.has_free_side(memory) || !self.has_free_side(theirs) {
            return Err(Refusal::NotReady);
        }
        self.link(own, to, Via::Remote(self.far(node, proxy, private)), allowed).ok_or(Refusal::NotReady)?;
        self.attach(own, to, out);
        self.sight(own, to).ok_or(Refusal::NotReady)
    }

    fn far(&self, node: NodeId, proxy: u16, private: bool) -> Far {
        let incarnation = self.nodes.get(&node).and_then(|n| n.incarnation);
        Far { node, incarnation, proxy, private, place: None, recycled: false, gone: false, ended: false }
    }

    /// The memory of a proxy that is up, in a DC.
    pub(super) fn proxy_memory(&self, proxy: u16, dc: DcId) -> Option<u32> {
        self.proxies.get(&proxy).filter(|p| p.is_up())?.memories.get(&dc).copied()
    }

    /// Gives the pair a side of its proxy and tells the proxy; false: it has none to give just now.
    fn attach(&mut self, own: Endpoint, remote: Endpoint, out: &mut Vec<Effect>) -> bool {
        let Some(far) = self.locals.get(&own).and_then(|l| l.far(remote)) else { return false };
        let Some(memory) = self.speaking_memory(far.proxy, own, far.private, out) else { return false };
        let Some(side) = self.take_side(memory) else { return false };
        if let Some(theirs) = self.memories.get_mut(&memory) {
            theirs.used.insert((own, remote), side);
        }
        self.with_far(own, remote, |far| far.place = Some(Place { memory, side }));
        self.say_attach(own, remote, out);
        out.push(Effect::Note(Note::Attached { local: own, remote, proxy: far.proxy }));
        self.spare_sides(far.proxy, memory, out);
        true
    }

    fn say_attach(&mut self, own: Endpoint, remote: Endpoint, out: &mut Vec<Effect>) {
        let Some(local) = self.locals.get(&own) else { return };
        let Some(link) = local.links.get(&remote) else { return };
        let Via::Remote(far) = link.via else { return };
        let Some(place) = far.place else { return };
        let attach = Attach {
            local: own,
            remote,
            node: far.node,
            own_memory: place.memory,
            own_segment: place.side.segment,
            own_side: place.side.side,
            memory: local.memory,
            segment: link.own.segment,
            side: link.own.side,
            doorbell: doorbell::of_slot(own.slot) as u32,
        };
        let fds = vec![Descriptor::Segment { memory: local.memory, segment: link.own.segment }];
        self.say_with(far.proxy, ToProxy::Attach { attach }, fds, out);
        self.say_bell(own, remote, out);
    }

    fn with_far(&mut self, own: Endpoint, remote: Endpoint, change: impl FnOnce(&mut Far)) {
        let link = self.locals.get_mut(&own).and_then(|l| l.links.get_mut(&remote));
        if let Some(Via::Remote(far)) = link.map(|l| &mut l.via) {
            change(far);
        }
    }

    /// Has more sides made before the last ones are given out.
    pub(super) fn spare_sides(&mut self, proxy: u16, memory: u32, out: &mut Vec<Effect>) {
        let Some(theirs) = self.memories.get(&memory) else { return };
        if theirs.free_sides() >= SIDES_SPARE_MIN as usize || theirs.expects_sides() || theirs.expects_pool()
        {
            return;
        }
        let is_everybodys = matches!(theirs.owner, Owner::Proxy { only: None, .. });
        let sides = if is_everybodys { SIDES_PROXY } else { SIDES_MORE };
        if self.add_segment(memory, SegmentKind::Sides, sides_bytes(sides), 0, out).is_err() {
            out.push(Effect::Note(Note::ProxyWrong { proxy, what: "has all the segments that it may have" }));
        }
    }

    /// Whether some pair of `own` leads to this memory of a proxy.
    pub(super) fn carried_from(&self, own: Endpoint, memory: u32) -> bool {
        let Some(local) = self.locals.get(&own) else { return false };
        local.links.keys().any(|peer| {
            local.far(*peer).and_then(|far| far.place).is_some_and(|place| place.memory == memory)
        })
    }

    /// A remote endpoint wants to talk to a local one.
    pub(super) fn remote_open(
        &mut self,
        proxy: u16,
        local: Endpoint,
        remote: Endpoint,
        node: NodeId,
        out: &mut Vec<Effect>,
    ) {
        let plausible = local.dc == remote.dc
            && node != self.plan.node
            && self.plan.node_of(remote.dc, remote.slot) == Some(node)
            && self.plan.route(node) == Some(proxy);
        let node_lives = self.nodes.get(&node).is_some_and(|n| !n.is_dead());
        let there = self.locals.get(&local);
        let far = there.and_then(|l| l.far(remote));
        let lives = there.is_some_and(|l| l.stage.is_visible());
        let is_past = there.is_some_and(|l| l.is_past(remote));
        let why = match far {
            _ if !plausible => {
                out.push(Effect::Note(Note::ProxyWrong {
                    proxy,
                    what: "an endpoint outside its node's slots",
                }));
                Refusal::NoSuchEndpoint
            }
            Some(Far { ended: true, .. } | Far { gone: true, .. } | Far { recycled: true, .. }) => {
                Refusal::NoSuchEndpoint
            }
            // Its `Attach` is on the way, or will be: each is said once.
            Some(_) => return,
            None if is_past => Refusal::NoSuchEndpoint,
            None if lives && node_lives && self.opens.len() >= OPENS_MAX => Refusal::LimitReached,
            None if lives && node_lives => {
                let incarnation = self.nodes.get(&node).and_then(|n| n.incarnation);
                self.opens.insert((local, remote), Asked { proxy, incarnation });
                return self.retry_open(local, remote, out);
            }
            None => Refusal::NoSuchEndpoint,
        };
        self.say(proxy, ToProxy::Refuse { local, remote, why }, out);
    }

    /// Attaches a pair that a remote endpoint asked for, once both sides can be had.
    fn retry_open(&mut self, local: Endpoint, remote: Endpoint, out: &mut Vec<Effect>) {
        let Some(Asked { proxy, .. }) = self.opens.get(&(local, remote)).copied() else { return };
        let Some(node) = self.plan.node_of(remote.dc, remote.slot) else { return };
        let Some(there) = self.locals.get(&local) else { return };
        if there.links.contains_key(&remote) {
            self.opens.remove(&(local, remote));
            return;
        }
        let next = self.dcs.get(&remote.dc).and_then(|dc| dc.remotes.get(&remote.slot));
        let is_past = next.is_some_and(|next| next.generation > remote.generation);
        // Nobody has told us yet who that is: it will be said (`apply`), or its node ends.
        let Some(allowed) = self.allowed(local, remote) else {
            if is_past {
                self.opens.remove(&(local, remote));
                self.say(proxy, ToProxy::Refuse { local, remote, why: Refusal::NoSuchEndpoint }, out);
            }
            return;
        };
        // Its own daemon has seen to it that it follows a call if it may only confirm.
        if allowed.to_peer == Kinds::NONE && allowed.from_peer == Kinds::NONE {
            self.opens.remove(&(local, remote));
            return self.say(proxy, ToProxy::Refuse { local, remote, why: Refusal::NotPermitted }, out);
        }
        let (stage, memory) = (there.stage, there.memory);
        // Of whom nothing is known yet it may turn out that it is.
        let is_it = |next: &&Remote| next.generation == remote.generation;
        let private = there.private || next.filter(is_it).is_none_or(|next| next.private);
        let Some(theirs) = self.speaking_memory(proxy, local, private, out) else { return };
        if stage != Stage::Ready || !self.has_free_side(memory) || !self.has_free_side(theirs) {
            return;
        }
        self.opens.remove(&(local, remote));
        if self.link(local, remote, Via::Remote(self.far(node, proxy, private)), allowed).is_some() {
            self.attach(local, remote, out);
            self.hint(local, remote, out);
        }
    }

    /// A local endpoint has sides again, or has become ready.
    pub(super) fn retry_opens_of(&mut self, local: Endpoint, out: &mut Vec<Effect>) {
        let waiting: Vec<_> = self.opens.keys().filter(|(l, _)| *l == local).copied().collect();
        for (local, remote) in waiting {
            self.retry_open(local, remote, out);
        }
    }

    /// It is known now who a remote endpoint is, or that its slot has another holder.
    pub(super) fn retry_opens_by(&mut self, remote: Endpoint, out: &mut Vec<Effect>) {
        let waiting: Vec<_> =
            self.opens.keys().filter(|(_, r)| (r.dc, r.slot) == (remote.dc, remote.slot)).copied().collect();
        for (local, remote) in waiting {
            self.retry_open(local, remote, out);
        }
    }

    pub(super) fn refuse_opens_of(&mut self, local: Endpoint, why: Refusal, out: &mut Vec<Effect>) {
        let waiting: Vec<_> = self.opens.keys().filter(|(l, _)| *l == local).copied().collect();
        for (local, remote) in waiting {
            if let Some(Asked { proxy, .. }) = self.opens.remove(&(local, remote)) {
                self.say(proxy, ToProxy::Refuse { local, remote, why }, out);
            }
        }
    }

    /// A proxy has sides to give in a DC: pairs that wait are carried.
    pub(super) fn carry_waiting(&mut self, proxy: u16, dc: DcId, out: &mut Vec<Effect>) {
        let mut homeless = Vec::new();
        for (own, local) in self.locals.range(first_of(dc)..) {
            if own.dc != dc {
                break;
            }
            let remotes = local.links.keys().filter(|peer| local.far(**peer).is_some_and(|f| f.wants(proxy)));
            homeless.extend(remotes.map(|remote| (*own, *remote)));
        }
        if shm::mutant!(RoutingForgetsPairs) {
            homeless.truncate(homeless.len() / 2);
        }
        let mut ended = Vec::new();
        for (own, remote) in homeless {
            // Rung first: who withdraws a message must know of the proxy that may have sent it (`dvk::core`, `withdraw`).
            self.hint(own, remote, out);
            if !self.attach(own, remote, out) {
                // A private pair waits for a memory of its endpoint's own, the others for the one of the DC.
                match self.locals.get(&own).and_then(|l| l.far(remote)) {
                    Some(Far { private: true, .. }) => continue,
                    _ => break,
                }
            }
            if self.locals.get(&own).is_some_and(|l| l.stage.is_dead()) {
                ended.push(own);
            }
        }
        ended.dedup();
        for endpoint in ended {
            self.say(proxy, ToProxy::LocalEnded { endpoint }, out);
        }
        let opens: Vec<_> = self
            .opens
            .iter()
            .filter(|((l, _), asked)| asked.proxy == proxy && l.dc == dc)
            .map(|(key, _)| *key)
            .collect();
        for (local, remote) in opens {
            self.retry_open(local, remote, out);
        }
        if let Some(memory) = self.proxy_memory(proxy, dc) {
            self.spare_sides(proxy, memory, out);
        }
    }

    /// The local end is done with an ended pair: both sides are free when the proxy has let go.
    pub(super) fn recycled_far(&mut self, own: Endpoint, remote: Endpoint, out: &mut Vec<Effect>) {
        let Some(far) = self.locals.get(&own).and_then(|l| l.far(remote)) else { return };
        if far.recycled {
            return;
        }
        if let Some(local) = self.locals.get_mut(&own) {
            let past = local.past.entry(remote.slot).or_insert(remote.generation);
            *past = remote.generation.max(*past);
        }
        if far.place.is_none() || far.gone {
            self.free_their_side(far, own, remote, out);
            return self.unlink(own, remote, out);
        }
        self.with_far(own, remote, |far| far.recycled = true);
        self.say(far.proxy, ToProxy::Detach { local: own, remote }, out);
    }

    /// A dead endpoint's pair that no proxy has anything more to do for.
    pub(super) fn release_ended(&mut self, own: Endpoint, remote: Endpoint, out: &mut Vec<Effect>) {
        let Some(far) = self.locals.get(&own).and_then(|l| l.far(remote)) else { return };
        if far.gone {
            self.free_their_side(far, own, remote, out);
        } else if far.ended && far.place.is_some() && !far.recycled {
            self.say(far.proxy, ToProxy::Detach { local: own, remote }, out);
        }
        if far.ended || far.recycled || far.gone {
            self.unlink(own, remote, out);
        }
    }

    /// A proxy has forgotten a pair; its side of it is zeroes again.
    pub(super) fn detached(
        &mut self,
        now: Now,
        proxy: u16,
        local: Endpoint,
        remote: Endpoint,
        out: &mut Vec<Effect>,
    ) {
        let there = self.locals.get(&local);
        let alive = there.is_some_and(|l| !l.stage.is_dead());
        let far = there.and_then(|l| l.far(remote)).filter(|f| f.proxy == proxy);
        if let (true, Some(Far { recycled: false, .. })) = (alive, far) {
            // The local end still reads the proxy's side; both are free when it says `Recycled`.
            return self.with_far(local, remote, |far| far.gone = true);
        }
        self.free_side_of(proxy, local, remote, out);
        if far.is_some() {
            self.unlink(local, remote, out);
            self.settle(now, local, out);
            self.retry_opens_of(local, out);
        }
        self.carry_waiting(proxy, local.dc, out);
        self.let_go(now, local.dc, out);
    }

    /// Frees the side that a proxy had for a pair it has forgotten.
    fn free_side_of(&mut self, proxy: u16, local: Endpoint, remote: Endpoint, out: &mut Vec<Effect>) {
        let private = self.private_memory_of(proxy, local);
        for memory in self.proxy_memory(proxy, local.dc).into_iter().chain(private) {
            let Some(theirs) = self.memories.get_mut(&memory) else { continue };
            if let Some(side) = theirs.used.remove(&(local, remote)) {
                theirs.give_side(side);
            }
        }
        self.drop_unused(proxy, local, out);
    }

    fn free_their_side(&mut self, far: Far, local: Endpoint, remote: Endpoint, out: &mut Vec<Effect>) {
        if far.place.is_some() {
            self.free_side_of(far.proxy, local, remote, out);
        }
    }

    /// A proxy has ended, and all its memory with it.
    pub(super) fn uncarry(&mut self, now: Now, proxy: u16, out: &mut Vec<Effect>) {
        self.opens.retain(|_, asked| asked.proxy != proxy);
        let mut carried = Vec::new();
        for (own, local) in &self.locals {
            let of_it = local.links.keys().filter(|peer| local.far(**peer).is_some_and(|f| f.proxy == proxy));
            carried.extend(of_it.map(|remote| (*own, *remote)));
        }
        for (own, remote) in carried {
            self.with_far(own, remote, |far| far.place = None);
            let Some(local) = self.locals.get(&own) else { continue };
            let Some(far) = local.far(remote) else { continue };
            let dead = local.stage.is_dead();
            if far.recycled || (dead && (far.gone || far.ended)) {
                self.unlink(own, remote, out);
            }
            if dead {
                self.settle(now, own, out);
            }
        }
    }
}

fn first_of(dc: DcId) -> Endpoint {
    Endpoint::new(dc, abi::Slot(0), abi::Generation(0))
}

impl Far {
    /// Whether a proxy should carry the pair and does not.
    pub(super) fn wants(&self, proxy: u16) -> bool {
        self.proxy == proxy && self.place.is_none() && !self.recycled && !self.gone && !self.ended
    }
}

impl super::state::Local {
    /// It was done with this remote endpoint, or with a later one of the slot.
    pub(super) fn is_past(&self, remote: Endpoint) -> bool {
        self.past.get(&remote.slot).is_some_and(|done| *done >= remote.generation)
    }

    /// The half of a pair that leads to a proxy.
    pub(super) fn far(&self, remote: Endpoint) -> Option<Far> {
        match self.links.get(&remote)?.via {
            Via::Remote(far) => Some(far),
            Via::Local => None,
        }
    }
}
