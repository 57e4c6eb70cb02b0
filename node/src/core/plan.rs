//! What the cluster file says, as far as one node's core needs it. Neighbour: `config`, which makes it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use abi::{DcId, Incarnation, Name, NodeId, Slot};
use proxy_tcp::Packing;
use serde::{Deserialize, Serialize};

use super::{DcSpec, Rules};

/// The slots of one node in a DC: `first` to `first + count - 1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Range {
    pub first: Slot,
    pub count: u16,
}

impl Range {
    pub fn contains(self, slot: Slot) -> bool {
        slot.0.checked_sub(self.first.0).is_some_and(|at| at < self.count)
    }
}

/// One DC that this node is part of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DcPlan {
    pub name: Name,
    /// Users who may bind, besides the daemon's own and root.
    pub uids: BTreeSet<u32>,
    pub ranges: BTreeMap<NodeId, Range>,
    pub rules: Rules,
}

/// One proxy of this node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProxyPlan {
    /// From 1 on.
    pub index: u16,
    pub name: String,
    pub kind: String,
    /// How payload travels to nodes that want it so too.
    pub compression: Packing,
    /// The nodes it serves from here.
    pub nodes: BTreeSet<NodeId>,
}

/// All that a core is made from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub cluster: String,
    pub node: NodeId,
    pub node_name: String,
    pub incarnation: Incarnation,
    /// The generation of the first bind of every slot.
    pub generation_first: u32,
    /// Generations below this one are written down as used: a successor begins here at the earliest.
    pub generation_reserved: u32,
    /// The user the daemon runs as.
    pub owner: u32,
    pub node_dead_after: Duration,
    /// Names of all nodes, this one included.
    pub node_names: BTreeMap<NodeId, String>,
    /// DCs that this node is part of.
    pub dcs: BTreeMap<DcId, DcPlan>,
    /// The rules of the DCs of the cluster file, by name: whatever else changes of such a DC, these are this node's own word.
    pub file_rules: BTreeMap<Name, Rules>,
    /// All DCs, as far as they are known when the node begins.
    pub specs: BTreeMap<DcId, DcSpec>,
    pub proxies: Vec<ProxyPlan>,
}

impl Plan {
    /// Descriptions of an earlier life, where they are newer than what the cluster file says; says how many name nodes
    /// that the file no longer has, and are left out.
    pub fn overlay(&mut self, kept: Vec<DcSpec>) -> usize {
        let mut strange = 0;
        for spec in kept {
            if !spec.nodes().all(|node| self.node_names.contains_key(&node)) {
                strange += 1;
            } else if self.specs.get(&spec.id).is_none_or(|known| spec.is_newer_than(known)) {
                self.specs.insert(spec.id, spec);
            }
        }
        let here = self.specs.values().filter(|s| s.spans(self.node));
        self.dcs = here.map(|s| (s.id, self.of(s))).collect();
        strange
    }

    /// What this node makes of a description: another node's word on the rules counts only where the cluster file has none.
    pub fn of(&self, spec: &DcSpec) -> DcPlan {
        let mut plan = spec.plan();
        if let Some(rules) = self.file_rules.get(&spec.name) {
            plan.rules = rules.clone();
        }
        plan
    }

    /// This node's slots in a DC.
    pub fn own_range(&self, dc: DcId) -> Option<Range> {
        self.dcs.get(&dc)?.ranges.get(&self.node).copied()
    }

    /// The node in whose range a slot is, if it is in any.
    pub fn node_of(&self, dc: DcId, slot: Slot) -> Option<NodeId> {
        let ranges = &self.dcs.get(&dc)?.ranges;
        ranges.iter().find(|(_, range)| range.contains(slot)).map(|(node, _)| *node)
    }

    /// The proxy that leads to a node.
    pub fn route(&self, node: NodeId) -> Option<u16> {
        self.proxies.iter().find(|p| p.nodes.contains(&node)).map(|p| p.index)
    }

    /// Every node but this one.
    pub fn others(&self) -> Vec<NodeId> {
        self.node_names.keys().copied().filter(|n| *n != self.node).collect()
    }

    /// DCs that this node shares with another.
    pub fn shared_with(&self, node: NodeId) -> Vec<DcId> {
        let both = self.dcs.iter().filter(|(_, dc)| dc.ranges.contains_key(&node));
        both.map(|(id, _)| *id).collect()
    }

    /// DCs in which a proxy has anybody to carry to.
    pub fn dcs_of_proxy(&self, proxy: u16) -> Vec<DcId> {
        let Some(plan) = self.proxies.iter().find(|p| p.index == proxy) else { return Vec::new() };
        let shared =
            |dc: &&DcId| self.dcs[*dc].ranges.keys().any(|n| *n != self.node && plan.nodes.contains(n));
        self.dcs.keys().filter(shared).copied().collect()
    }

    pub fn may_bind(&self, dc: DcId, uid: u32) -> bool {
        uid == 0 || uid == self.owner || self.dcs.get(&dc).is_some_and(|d| d.uids.contains(&uid))
    }
}
