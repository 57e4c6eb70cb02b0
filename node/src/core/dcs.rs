//! DCs while the node runs: a description that changes is kept, spread to all nodes, and made true here: the node joins
//! the DC, leaves it, or sees others come and go.
//!
//! A node that leaves ends its endpoints, as if their processes had; the DC's memory stays until their peers have read
//! what was published, or for as long as the memory of a dead endpoint is kept, and goes with the last of it.
//! Neighbours: `spec` (the description), `changes` (what operators ask for), `directory` (the way to other nodes).

use abi::courier::ToProxy;
use abi::limits::{POOL_SEGMENT_BYTES_MIN, SIDES_PROXY};
use abi::{DcId, Endpoint, Generation, NodeId, Slot, doorbell};

use super::directory::DirectoryEntry;
use super::effect::{Descriptor, Effect, Note};
use super::memory::Owner;
use super::pairs::ring;
use super::state::Dc;
use super::{Core, DcPlan, DcSpec, Now};

impl Core {
    /// Another node's word on a DC.
    pub(super) fn spec_said(&mut self, now: Now, from: NodeId, spec: Option<DcSpec>, out: &mut Vec<Effect>) {
        let knows = |node| self.plan.node_names.contains_key(&node);
        let Some(spec) = spec.filter(|s| s.revision > 0 && s.nodes().all(knows)) else {
            return out.push(Effect::Note(Note::DcRefused { node: from }));
        };
        if self.specs.get(&spec.id).is_none_or(|known| spec.is_newer_than(known)) {
            self.adopt(now, spec, Some(from), out);
        }
    }

    /// A description counts from now on. It is passed on: nodes that do not reach its author hear of it too.
    pub(super) fn adopt(&mut self, now: Now, spec: DcSpec, from: Option<NodeId>, out: &mut Vec<Effect>) {
        let dc = spec.id;
        out.push(Effect::Note(Note::DcChanged { dc, revision: spec.revision, by: spec.by }));
        self.specs.insert(dc, spec);
        self.version += 1;
        out.push(Effect::KeepDcs {
            specs: self.specs.values().filter(|s| s.revision > 0).cloned().collect(),
        });
        let up: Vec<NodeId> = self.nodes.iter().filter(|(_, n)| n.is_up()).map(|(id, _)| *id).collect();
        for node in up.into_iter().filter(|node| Some(*node) != from) {
            self.say_spec(node, dc, out);
        }
        self.realize(now, dc, out);
    }

    /// Makes true here what the description says.
    pub(super) fn realize(&mut self, now: Now, dc: DcId, out: &mut Vec<Effect>) {
        let Some(spec) = self.specs.get(&dc) else { return };
        let wanted = spec.spans(self.plan.node).then(|| self.plan.of(spec));
        match (wanted, self.dcs.get(&dc).map(|d| d.leaving)) {
            (Some(_), None) => {
                let proxies = self.proxies.keys().copied().collect();
                out.push(Effect::MakeDc { dc, proxies });
            }
            (Some(plan), Some(false)) => {
                let own = plan.ranges.get(&self.plan.node).copied();
                let same = self.plan.dcs.get(&dc).is_some_and(|p| p.name == plan.name);
                if same && own == self.plan.own_range(dc) {
                    self.reshape(now, dc, plan, out);
                } else {
                    // Another DC under this id, or other slots: it ends here before it begins.
                    self.leave(now, dc, out);
                }
            }
            // It joins again when it has left.
            (Some(_), Some(true)) | (None, Some(true) | None) => {}
            (None, Some(false)) => self.leave(now, dc, out),
        }
    }

    /// Table and doorbells of a DC are there, or are not to be had.
    pub(super) fn dc_made(&mut self, dc: DcId, made: bool, out: &mut Vec<Effect>) {
        let Some(spec) = self.specs.get(&dc).filter(|_| made) else {
            return out.push(Effect::Note(Note::DcNotMade { dc }));
        };
        if !spec.spans(self.plan.node) {
            return out.push(Effect::DropDc { dc });
        }
        self.plan.dcs.insert(dc, self.plan.of(spec));
        // Whoever remembers an endpoint of an earlier stay here remembers a lower generation.
        let generation_first = self.generation_max.saturating_add(1);
        self.dcs.insert(dc, Dc { generation_first, ..Dc::default() });
        out.push(Effect::Note(Note::DcJoined { dc }));
        self.give_to_proxies(dc, out);
    }

    /// Nodes have come or gone, users may bind or may not.
    fn reshape(&mut self, now: Now, dc: DcId, plan: DcPlan, out: &mut Vec<Effect>) {
        let Some(before) = self.plan.dcs.get(&dc).map(|p| p.ranges.clone()) else { return };
        let gone: Vec<NodeId> =
            before.iter().filter(|(n, r)| plan.ranges.get(n) != Some(r)).map(|(n, _)| *n).collect();
        let fresh: Vec<NodeId> =
            plan.ranges.iter().filter(|(n, r)| before.get(n) != Some(r)).map(|(n, _)| *n).collect();
        self.end_remotes(dc, &gone, out);
        self.plan.dcs.insert(dc, plan);
        self.opens.retain(|(_, remote), _| remote.dc != dc || self.plan.node_of(dc, remote.slot).is_some());
        self.give_to_proxies(dc, out);
        for node in fresh {
            self.send_snapshot(now, node, out);
        }
        self.let_go(now, dc, out);
    }

    /// What is known of the endpoints of nodes that have left: they are dead, as if each node had said so.
    fn end_remotes(&mut self, dc: DcId, gone: &[NodeId], out: &mut Vec<Effect>) {
        let Some(there) = self.dcs.get(&dc) else { return };
        let of_gone: Vec<_> = there
            .remotes
            .iter()
            .filter(|(_, r)| gone.contains(&r.node))
            .map(|(slot, r)| (*slot, r.node, r.incarnation, r.generation, r.name, r.uid, r.private, r.alive))
            .collect();
        for (slot, node, incarnation, generation, name, uid, private, alive) in of_gone {
            if alive {
                let endpoint = Endpoint::new(dc, slot, generation);
                let entry = DirectoryEntry { endpoint, bound: false, name, uid, private };
                self.apply(node, incarnation, &entry, out);
            }
            if let Some(there) = self.dcs.get_mut(&dc) {
                there.remotes.remove(&slot);
            }
        }
    }

    /// Ends all endpoints of this node in a DC; nobody binds in it any more.
    fn leave(&mut self, now: Now, dc: DcId, out: &mut Vec<Effect>) {
        let Some(there) = self.dcs.get_mut(&dc) else { return };
        there.leaving = true;
        let all: Vec<Endpoint> = self.locals_of(dc).filter(|(_, dead)| !dead).map(|(e, _)| e).collect();
        for endpoint in all {
            // Its process asks what there is to be pulled, and hears that there is no such DC.
            out.push(ring(endpoint, None, true));
            self.end_local(now, endpoint, out);
        }
        self.let_go(now, dc, out);
    }

    fn locals_of(&self, dc: DcId) -> impl Iterator<Item = (Endpoint, bool)> {
        let first = Endpoint::new(dc, Slot(0), Generation(0));
        let rest = self.locals.range(first..).take_while(move |(e, _)| e.dc == dc);
        rest.map(|(e, local)| (*e, local.stage.is_dead()))
    }

    /// Tells proxies of a DC in which they have somebody to carry to since just now.
    fn give_to_proxies(&mut self, dc: DcId, out: &mut Vec<Effect>) {
        let indices: Vec<u16> = self.proxies.keys().copied().collect();
        for proxy in indices {
            let lacks = self.proxies.get(&proxy).is_some_and(|p| p.is_up() && !p.memories.contains_key(&dc));
            if lacks && self.plan.dcs_of_proxy(proxy).contains(&dc) {
                self.give_dc(proxy, dc, out);
            }
        }
    }

    /// Gives a proxy a memory of its own in a DC, and the DC's pages.
    pub(super) fn give_dc(&mut self, proxy: u16, dc: DcId, out: &mut Vec<Effect>) {
        let memory = self.first_memory(
            Owner::Proxy { proxy, dc, only: None },
            SIDES_PROXY,
            POOL_SEGMENT_BYTES_MIN,
            out,
        );
        let message = ToProxy::Dc { dc, doorbell: doorbell::of_proxy(proxy) as u32, memory };
        let fds = vec![Descriptor::Table(dc), Descriptor::Doorbells(dc), Descriptor::ProxyBell { proxy, dc }];
        self.say_with(proxy, message, fds, out);
        if let Some(there) = self.proxies.get_mut(&proxy) {
            there.memories.insert(dc, memory);
        }
    }

    /// Gives back what a DC no longer needs: a proxy's memory where it has nobody to carry to, and all of it once the
    /// node has left and the last dead endpoint is forgotten.
    pub(super) fn let_go(&mut self, now: Now, dc: DcId, out: &mut Vec<Effect>) {
        let leaving = self.dcs.get(&dc).is_some_and(|d| d.leaving);
        if leaving && self.locals_of(dc).next().is_some() {
            return;
        }
        let holders: Vec<(u16, u32)> = self
            .proxies
            .iter()
            .filter_map(|(proxy, p)| Some((*proxy, *p.memories.get(&dc)?)))
            .filter(|(proxy, _)| leaving || !self.plan.dcs_of_proxy(*proxy).contains(&dc))
            .collect();
        let mut all = true;
        for (proxy, memory) in holders {
            let private: Vec<Endpoint> = self
                .proxies
                .get(&proxy)
                .map_or(Vec::new(), |p| p.private.keys().filter(|local| local.dc == dc).copied().collect());
            let mut kept = false;
            for local in private {
                self.drop_unused(proxy, local, out);
                kept |= self.private_memory_of(proxy, local).is_some();
            }
            if kept || self.memories.get(&memory).is_some_and(|m| !m.used.is_empty()) {
                all = false;
                continue;
            }
            self.say(proxy, ToProxy::DropDc { dc }, out);
            if let Some(there) = self.proxies.get_mut(&proxy) {
                there.memories.remove(&dc);
            }
            self.drop_memory(memory, out);
        }
        if leaving && all {
            self.left(now, dc, out);
        }
    }

    fn left(&mut self, now: Now, dc: DcId, out: &mut Vec<Effect>) {
        self.dcs.remove(&dc);
        self.plan.dcs.remove(&dc);
        self.opens.retain(|(local, _), _| local.dc != dc);
        for conn in self.conns.values_mut().filter(|c| c.dc == Some(dc)) {
            conn.dc = None;
            conn.homeless = true;
        }
        out.push(Effect::DropDc { dc });
        out.push(Effect::Note(Note::DcLeft { dc }));
        self.realize(now, dc, out);
    }

    /// A proxy has ended: what it held back is free.
    pub(super) fn let_go_all(&mut self, now: Now, out: &mut Vec<Effect>) {
        let leaving: Vec<DcId> = self.dcs.iter().filter(|(_, d)| d.leaving).map(|(id, _)| *id).collect();
        for dc in leaving {
            self.let_go(now, dc, out);
        }
    }

    /// Whether members may still ask for anything in a DC.
    pub(super) fn is_open(&self, dc: DcId) -> bool {
        self.dcs.get(&dc).is_some_and(|d| !d.leaving)
    }
}
