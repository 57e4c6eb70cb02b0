//! What operators want of DCs: made, grown, shrunk, stopped. Each wish is checked against what this node knows, and
//! becomes the next revision of the DC's description.
//!
//! Key types: [`DcChange`], [`DcRefusal`]. Neighbour: `dcs`, where the description takes effect.

use std::collections::BTreeSet;
use std::fmt;

use abi::limits::{DCS_MAX, SLOTS_PER_DC, UIDS_PER_DC_MAX};
use abi::{DcId, Name, NodeId, Slot};
use serde::{Deserialize, Serialize};

use super::effect::Effect;
use super::{Core, DcSpec, Now, Rules};

/// Consecutive ids are tried from a place of the node's own on, so that two nodes seldom choose the same at one moment.
/// Odd: no two nodes begin at one place.
const ID_STRIDE: u16 = 67;
/// Endpoints that a refusal names.
const SHOWN_MAX: usize = 8;

/// One wish.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DcChange {
    /// Nodes must be up if `named`; others take part when they come up.
    Create {
        name: Name,
        nodes: Vec<NodeId>,
        named: bool,
        slots_per_node: u16,
        uids: BTreeSet<u32>,
        rules: Rules,
    },
    Grow {
        name: String,
        nodes: Vec<NodeId>,
    },
    Shrink {
        name: String,
        nodes: Vec<NodeId>,
        force: bool,
    },
    Stop {
        name: String,
        force: bool,
    },
}

/// Why a wish is not granted: what, and what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DcRefusal {
    UnknownDc {
        asked: String,
        known: String,
    },
    NameTaken {
        name: Name,
        id: DcId,
    },
    /// Every id is in use.
    LimitReached,
    TooManySlots {
        nodes: usize,
        slots_per_node: u16,
    },
    TooManyUsers,
    NoSlotsLeft {
        node: NodeId,
    },
    NotUp {
        node: NodeId,
        link: &'static str,
    },
    ThereAlready {
        node: NodeId,
    },
    NotThere {
        node: NodeId,
        nodes: String,
    },
    LastNode,
    /// Endpoints live there; the first of them by slot and name.
    Inhabited {
        place: String,
        endpoints: usize,
        which: String,
    },
    /// Who lives there is not known on this node.
    NotHere {
        nodes: String,
    },
    Stopping,
}

impl DcRefusal {
    pub fn hint(&self) -> String {
        match self {
            DcRefusal::UnknownDc { known, .. } => format!("there are: {known}"),
            DcRefusal::NameTaken { .. } => "choose another name; `dvs dc ls` shows those in use".into(),
            DcRefusal::LimitReached => "stop one with `dvs dc stop`".into(),
            DcRefusal::TooManySlots { nodes, .. } => {
                format!("use --slots {} or less, or fewer nodes", usize::from(SLOTS_PER_DC) / (*nodes).max(1))
            }
            DcRefusal::TooManyUsers => "name fewer users with --uid".into(),
            DcRefusal::NoSlotsLeft { .. } => {
                "stop the DC and create it anew with fewer --slots, or let a node that has left come back: \
                 its slots stay its own"
                    .into()
            }
            DcRefusal::NotUp { .. } => "start it with `dvs up`, then repeat".into(),
            DcRefusal::ThereAlready { .. } => "leave it out; `dvs dc ls` shows the nodes of each DC".into(),
            DcRefusal::NotThere { nodes, .. } => format!("its nodes are {nodes}"),
            DcRefusal::LastNode => "`dvs dc stop` ends the DC".into(),
            DcRefusal::Inhabited { .. } => {
                "let them end (`dvs ps` shows them), or end them with --force".into()
            }
            DcRefusal::NotHere { nodes } => format!("ask one of its nodes with --node: {nodes}"),
            DcRefusal::Stopping => "start it again with `dvs up`, then repeat".into(),
        }
    }
}

impl fmt::Display for DcRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DcRefusal::UnknownDc { asked, .. } => write!(f, "there is no DC {asked:?}"),
            DcRefusal::NameTaken { name, id } => write!(f, "the name {name} is taken: DC {id} has it"),
            DcRefusal::LimitReached => write!(f, "there are {DCS_MAX} DCs (DCS_MAX) and no id is free"),
            DcRefusal::TooManySlots { nodes, slots_per_node } => write!(
                f,
                "{nodes} nodes with {slots_per_node} slots each do not fit the {SLOTS_PER_DC} slots of a DC (SLOTS_PER_DC)"
            ),
            DcRefusal::TooManyUsers => write!(f, "more than {UIDS_PER_DC_MAX} users (UIDS_PER_DC_MAX)"),
            DcRefusal::NoSlotsLeft { node } => write!(f, "the DC has no slots left for node {node}"),
            DcRefusal::NotUp { node, link } => write!(f, "node {node} is not up: its link is {link}"),
            DcRefusal::ThereAlready { node } => write!(f, "node {node} is in the DC already"),
            DcRefusal::NotThere { node, .. } => write!(f, "node {node} is not in the DC"),
            DcRefusal::LastNode => f.write_str("that would leave the DC without a node"),
            DcRefusal::Inhabited { place, endpoints: 1, which } => {
                write!(f, "an endpoint lives {place}: {which}")
            }
            DcRefusal::Inhabited { place, endpoints, which } => {
                write!(f, "{endpoints} endpoints live {place}: {which}")
            }
            DcRefusal::NotHere { .. } => {
                f.write_str("this node is not in the DC and does not know who lives there")
            }
            DcRefusal::Stopping => f.write_str("the daemon is stopping"),
        }
    }
}

impl Core {
    /// Grants a wish, and says which description follows from it, or why there is none.
    pub fn change_dc(
        &mut self,
        now: Now,
        change: &DcChange,
        out: &mut Vec<Effect>,
    ) -> Result<DcSpec, DcRefusal> {
        if self.stopping {
            return Err(DcRefusal::Stopping);
        }
        let mut spec = match change {
            DcChange::Create { .. } => self.created(change)?,
            DcChange::Grow { name, nodes } => self.grown(name, nodes)?,
            DcChange::Shrink { name, nodes, force } => self.shrunk(name, nodes, *force)?,
            DcChange::Stop { name, force } => {
                let mut spec = self.running_dc(name)?.clone();
                if !force {
                    let nodes: Vec<NodeId> = spec.nodes().collect();
                    self.refuse_inhabited(&spec, &nodes, "in the DC".into())?;
                }
                spec.ended = true;
                spec
            }
        };
        spec.revision = spec.revision.checked_add(1).ok_or(DcRefusal::LimitReached)?;
        spec.by = self.plan.node;
        self.adopt(now, spec.clone(), None, out);
        Ok(spec)
    }

    /// The DC of a name.
    pub fn running_dc(&self, name: &str) -> Result<&DcSpec, DcRefusal> {
        let running = || self.specs.values().filter(|s| !s.ended);
        running().find(|s| s.name.as_str() == name).ok_or_else(|| DcRefusal::UnknownDc {
            asked: name.to_owned(),
            known: list(running().map(|s| s.name)),
        })
    }

    fn created(&self, change: &DcChange) -> Result<DcSpec, DcRefusal> {
        let DcChange::Create { name, nodes, named, slots_per_node, uids, rules } = change else {
            return Err(DcRefusal::LimitReached);
        };
        let (name, slots_per_node) = (*name, *slots_per_node);
        if let Some(other) = self.specs.values().find(|s| !s.ended && s.name == name) {
            return Err(DcRefusal::NameTaken { name, id: other.id });
        }
        if uids.len() > UIDS_PER_DC_MAX {
            return Err(DcRefusal::TooManyUsers);
        }
        if *named {
            self.refuse_not_up(nodes)?;
        }
        let id = self.free_id().ok_or(DcRefusal::LimitReached)?;
        let revision = self.specs.get(&id).map_or(0, |before| before.revision);
        let (by, uids, rules) = (self.plan.node, uids.clone(), rules.clone());
        let mut spec =
            DcSpec { id, name, revision, by, ended: false, slots_per_node, uids, shares: Vec::new(), rules };
        let fits = nodes.iter().all(|node| spec.admit(*node));
        if !fits || nodes.is_empty() {
            return Err(DcRefusal::TooManySlots { nodes: nodes.len(), slots_per_node });
        }
        Ok(spec)
    }

    /// An id that no DC ever had; when there is none, one whose DC was stopped and has left this node.
    fn free_id(&self) -> Option<DcId> {
        let first = self.plan.node.0.wrapping_mul(ID_STRIDE);
        let ids = || (0..DCS_MAX).map(|k| DcId(1 + first.wrapping_add(k) % DCS_MAX));
        let is_over = |id: &DcId| self.specs[id].ended && !self.dcs.contains_key(id);
        ids().find(|id| !self.specs.contains_key(id)).or_else(|| ids().find(is_over))
    }

    fn grown(&self, name: &str, nodes: &[NodeId]) -> Result<DcSpec, DcRefusal> {
        let mut spec = self.running_dc(name)?.clone();
        if let Some(node) = nodes.iter().find(|node| spec.spans(**node)) {
            return Err(DcRefusal::ThereAlready { node: *node });
        }
        self.refuse_not_up(nodes)?;
        for node in nodes {
            if !spec.admit(*node) {
                return Err(DcRefusal::NoSlotsLeft { node: *node });
            }
        }
        Ok(spec)
    }

    fn shrunk(&self, name: &str, nodes: &[NodeId], force: bool) -> Result<DcSpec, DcRefusal> {
        let mut spec = self.running_dc(name)?.clone();
        if let Some(node) = nodes.iter().find(|node| !spec.spans(**node)) {
            return Err(DcRefusal::NotThere { node: *node, nodes: list(spec.nodes()) });
        }
        if spec.nodes().all(|node| nodes.contains(&node)) {
            return Err(DcRefusal::LastNode);
        }
        if !force {
            self.refuse_inhabited(&spec, nodes, format!("on node {}", list(nodes)))?;
        }
        for share in spec.shares.iter_mut().filter(|s| nodes.contains(&s.node)) {
            share.left = true;
        }
        Ok(spec)
    }

    fn refuse_not_up(&self, nodes: &[NodeId]) -> Result<(), DcRefusal> {
        for node in nodes.iter().filter(|node| **node != self.plan.node) {
            let there = self.nodes.get(node);
            if there.is_none_or(|n| !n.is_up()) {
                let link = there.map_or("unknown here", |n| n.state.name());
                return Err(DcRefusal::NotUp { node: *node, link });
            }
        }
        Ok(())
    }

    fn refuse_inhabited(&self, spec: &DcSpec, nodes: &[NodeId], place: String) -> Result<(), DcRefusal> {
        let known: Option<Vec<_>> = nodes.iter().map(|n| self.endpoints_on(spec.id, *n)).collect();
        let there = known.ok_or_else(|| DcRefusal::NotHere { nodes: list(spec.nodes()) })?.concat();
        if there.is_empty() {
            return Ok(());
        }
        let shown = there.iter().take(SHOWN_MAX).map(|(slot, name)| match name.is_none() {
            true => format!("slot {slot}"),
            false => format!("slot {slot} ({name})"),
        });
        let more = there.len().saturating_sub(SHOWN_MAX);
        let more = (more > 0).then(|| format!("{more} more"));
        Err(DcRefusal::Inhabited { place, endpoints: there.len(), which: list(shown.chain(more)) })
    }

    /// Endpoints of a node in a DC, as far as this node can know.
    pub(super) fn endpoints_on(&self, dc: DcId, node: NodeId) -> Option<Vec<(Slot, Name)>> {
        let there = self.dcs.get(&dc).filter(|d| !d.leaving);
        if node != self.plan.node {
            let alive = there?.remotes.iter().filter(|(_, r)| r.alive && r.node == node);
            return Some(alive.map(|(slot, remote)| (*slot, remote.name)).collect());
        }
        let holders = there.into_iter().flat_map(|d| d.slots.values()).filter_map(|slot| slot.holder);
        let name = |endpoint| self.locals.get(&endpoint).map_or(Name::NONE, |local| local.name);
        Some(holders.map(|endpoint| (endpoint.slot, name(endpoint))).collect())
    }
}

fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|i| i.to_string()).collect::<Vec<_>>().join(", ")
}
