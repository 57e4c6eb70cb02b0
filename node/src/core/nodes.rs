//! Other nodes: their links, their incarnations, their deaths, and what this node hears of its own.

use abi::courier::{LinkState, ToProxy};
use abi::table::{Entry, State};
use abi::{Endpoint, Incarnation, Level, NodeId};

use super::effect::{Effect, Note};
use super::pairs::ring;
use super::privileges::Identity;
use super::state::{Closing, STALLED_AFTER};
use super::{Core, Now};

impl Core {
    pub(super) fn link_changed(
        &mut self,
        now: Now,
        proxy: u16,
        node: NodeId,
        incarnation: Incarnation,
        state: LinkState,
        out: &mut Vec<Effect>,
    ) {
        if self.plan.route(node) != Some(proxy) {
            return out
                .push(Effect::Note(Note::ProxyWrong { proxy, what: "a link to a node it does not serve" }));
        }
        if state == LinkState::Up && !self.seen(now, node, incarnation, out) {
            return;
        }
        let Some(there) = self.nodes.get_mut(&node) else { return };
        if there.state != state {
            there.since = now;
            out.push(Effect::Note(Note::Link { node, state }));
        }
        let was_up = there.state == LinkState::Up;
        there.state = state;
        if state == LinkState::Up {
            there.down_since = None;
            self.send_snapshot(now, node, out);
        } else if was_up {
            there.down_since = Some(now);
        }
    }

    /// An incarnation of a node was heard of: false if it is one whose words no longer count.
    pub(super) fn seen(
        &mut self,
        now: Now,
        node: NodeId,
        incarnation: Incarnation,
        out: &mut Vec<Effect>,
    ) -> bool {
        let Some(there) = self.nodes.get_mut(&node) else { return false };
        if there.dead >= Some(incarnation) {
            // Whoever lets it through has not been told: a proxy that was just started.
            let dead = there.dead.filter(|_| there.is_dead());
            if let (Some(proxy), Some(dead)) = (self.plan.route(node), dead) {
                self.say(proxy, ToProxy::NodeDead { node, incarnation: dead }, out);
            }
            return false;
        }
        match there.incarnation {
            Some(known) if known > incarnation => return false,
            Some(known) if known == incarnation => return true,
            Some(known) if there.dead < Some(known) => self.declare_dead(now, node, known, out),
            Some(_) | None => {}
        }
        if let Some(there) = self.nodes.get_mut(&node) {
            there.incarnation = Some(incarnation);
            there.directory_version = 0;
            there.snapshot = None;
        }
        true
    }

    /// Its proxy is told first; what that answers, or its end, makes the death known here.
    fn declare_dead(&mut self, now: Now, node: NodeId, incarnation: Incarnation, out: &mut Vec<Effect>) {
        let Some(there) = self.nodes.get_mut(&node) else { return };
        there.dead = Some(incarnation);
        there.down_since = None;
        out.push(Effect::Note(Note::NodeDead { node, incarnation }));
        let proxy = self.plan.route(node).filter(|p| self.proxies.get(p).is_some_and(|p| p.is_up()));
        match proxy {
            Some(proxy) => {
                there.closing = Some(Closing { incarnation, since: now });
                self.say(proxy, ToProxy::NodeDead { node, incarnation }, out);
            }
            None => self.bury(now, node, incarnation, out),
        }
    }

    pub(super) fn node_closed(&mut self, now: Now, proxy: u16, node: NodeId, out: &mut Vec<Effect>) {
        if self.plan.route(node) != Some(proxy) {
            return;
        }
        let Some(there) = self.nodes.get_mut(&node) else { return };
        if let Some(closing) = there.closing.take() {
            self.bury(now, node, closing.incarnation, out);
            self.send_snapshot(now, node, out);
        }
    }

    /// All that is known of a dead incarnation's endpoints ends here.
    fn bury(&mut self, now: Now, node: NodeId, incarnation: Incarnation, out: &mut Vec<Effect>) {
        let mut ended = Vec::new();
        for (id, dc) in &mut self.dcs {
            let rules = self.plan.dcs.get(id).map(|plan| &plan.rules);
            let mut gone = Vec::new();
            for (slot, remote) in &mut dc.remotes {
                if remote.node == node && remote.incarnation <= incarnation && remote.alive {
                    remote.alive = false;
                    let endpoint = Endpoint::new(*id, *slot, remote.generation);
                    gone.push((remote.name, endpoint));
                    let who = Identity { slot: *slot, name: remote.name, uid: remote.uid };
                    ended.push((endpoint, who));
                    let level = rules.map_or_else(Level::default, |rules| rules.of(&who).level);
                    let generation = remote.generation;
                    let entry = Entry { state: State::NodeDead, node, proxy: 0, generation, level };
                    out.push(Effect::SetTable { dc: *id, slot: *slot, entry });
                }
            }
            for (name, endpoint) in gone {
                dc.unname(name, endpoint);
            }
        }
        for (endpoint, who) in ended {
            self.warn_of(endpoint, &who, out);
        }
        let mut pairs = Vec::new();
        for (own, local) in &mut self.locals {
            for (peer, link) in &mut local.links {
                let super::state::Via::Remote(far) = &mut link.via else { continue };
                if far.node == node && far.incarnation.is_none_or(|i| i <= incarnation) {
                    far.ended = true;
                    pairs.push((*own, *peer));
                }
            }
        }
        for (own, peer) in pairs {
            if self.locals.get(&own).is_some_and(|l| l.stage.is_dead()) {
                self.release_ended(own, peer, out);
                self.settle(now, own, out);
            } else {
                out.push(ring(own, Some(peer.slot), false));
                self.hint(own, peer, out);
            }
        }
        // The next incarnation may have asked already: a session of its stands before its proxy says that this one is closed.
        self.opens.retain(|(_, remote), asked| {
            self.plan.node_of(remote.dc, remote.slot) != Some(node) || asked.incarnation > Some(incarnation)
        });
    }

    pub(super) fn tick_nodes(&mut self, now: Now, out: &mut Vec<Effect>) {
        let dead_after = self.plan.node_dead_after;
        let overdue: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, n)| n.deadline(dead_after, self.version).is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for node in overdue {
            let Some(there) = self.nodes.get(&node) else { continue };
            if there.closing.is_some_and(|c| c.since + STALLED_AFTER <= now) {
                if let Some(proxy) = self.plan.route(node) {
                    out.push(Effect::Note(Note::ProxyStalled { proxy }));
                    self.kill_proxy(proxy, out);
                }
                // Said once; the proxy's end does the rest.
                if let Some(there) = self.nodes.get_mut(&node) {
                    there.closing = there.closing.map(|c| Closing { since: now, ..c });
                }
            } else if there.down_since.is_some() {
                if let Some(incarnation) = there.incarnation {
                    self.declare_dead(now, node, incarnation, out);
                }
            } else {
                self.send_snapshot(now, node, out);
            }
        }
    }

    /// A proxy has ended: nothing is known of its links until the next one tells, and no node's time runs meanwhile.
    pub(super) fn links_unknown(&mut self, now: Now, proxy: u16, out: &mut Vec<Effect>) {
        let mut closed = Vec::new();
        for (id, there) in &mut self.nodes {
            if self.plan.route(*id) != Some(proxy) {
                continue;
            }
            if there.state != LinkState::Connecting {
                there.since = now;
            }
            there.state = LinkState::Connecting;
            there.down_since = None;
            there.snapshot = None;
            closed.extend(there.closing.take().map(|closing| (*id, closing.incarnation)));
        }
        for (node, incarnation) in closed {
            self.bury(now, node, incarnation, out);
        }
    }

    /// A fresh proxy learns whom it must not listen to; for nodes that had been up, the time runs again.
    pub(super) fn tell_dead_nodes(&mut self, now: Now, proxy: u16, out: &mut Vec<Effect>) {
        let mut dead = Vec::new();
        for (id, there) in &mut self.nodes {
            if self.plan.route(*id) != Some(proxy) {
                continue;
            }
            dead.extend(there.dead.map(|incarnation| (*id, incarnation)));
            if there.incarnation.is_some() && !there.is_dead() {
                there.down_since = Some(now);
            }
        }
        for (node, incarnation) in dead {
            self.say(proxy, ToProxy::NodeDead { node, incarnation }, out);
        }
    }

    /// Another node has declared this one dead: a new life begins, for everybody.
    pub(super) fn fenced(&mut self, now: Now, by: NodeId, out: &mut Vec<Effect>) {
        self.incarnation = Incarnation(self.incarnation.0.saturating_add(1));
        out.push(self.record());
        out.push(Effect::Note(Note::Fenced { by, incarnation: self.incarnation }));
        self.end_all(now, true, out);
        let indices: Vec<u16> = self.proxies.keys().copied().collect();
        for proxy in indices {
            self.kill_proxy(proxy, out);
        }
    }

    /// Rings the local endpoints that have a pair with a remote one that ended.
    pub(super) fn ring_linked(&self, peer: Endpoint, out: &mut Vec<Effect>) {
        let linked = self.locals.iter().filter(|(_, l)| !l.stage.is_dead() && l.links.contains_key(&peer));
        out.extend(linked.map(|(own, _)| ring(*own, Some(peer.slot), false)));
    }
}
