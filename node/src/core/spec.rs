//! A DC as all nodes agree on it: its description, which has a revision, and its form as words, for the wire and for the
//! file that outlives a daemon. Of two descriptions of a DC the one with the higher (revision, node) counts.
//!
//! Key types: [`DcSpec`], [`Share`]. Neighbours: `dcs` (what a node does when a description changes), `directory` (how it
//! gets to the other nodes), `plan` (what of it a node's tables need).

use std::collections::BTreeSet;

use abi::limits::{DCS_MAX, NODES_MAX, SLOTS_PER_DC, UIDS_PER_DC_MAX};
use abi::{DcId, Name, NodeId, Slot};
use serde::{Deserialize, Serialize};

use super::{DcPlan, Range, Rules};

/// Words before the shares: id, slots and flag; revision and author; the name; how many shares and users follow, and then
/// the rules.
const HEADER_WORDS: usize = 7;
const ENDED: u64 = 1 << 16;
const LEFT: u64 = 1 << 48;

/// A node's slots in a DC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Share {
    pub node: NodeId,
    pub range: Range,
    /// The node has left the DC. Its slots stay its own, should it come back: nobody else is given a slot whose former
    /// endpoints somebody may remember.
    pub left: bool,
}

/// The description of a DC.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DcSpec {
    pub id: DcId,
    pub name: Name,
    /// 0: what the cluster file says.
    pub revision: u32,
    /// The node that made this revision.
    pub by: NodeId,
    /// The DC was stopped.
    pub ended: bool,
    pub slots_per_node: u16,
    pub uids: BTreeSet<u32>,
    pub shares: Vec<Share>,
    pub rules: Rules,
}

impl DcSpec {
    /// What a cluster file says of a DC.
    pub fn of_file(id: DcId, slots_per_node: u16, plan: &DcPlan) -> DcSpec {
        let shares =
            plan.ranges.iter().map(|(node, range)| Share { node: *node, range: *range, left: false });
        DcSpec {
            id,
            name: plan.name,
            revision: 0,
            by: NodeId(0),
            ended: false,
            slots_per_node,
            uids: plan.uids.clone(),
            shares: shares.collect(),
            rules: plan.rules.clone(),
        }
    }

    /// Whether it counts more than another of the same DC.
    pub fn is_newer_than(&self, other: &DcSpec) -> bool {
        (self.revision, self.by) > (other.revision, other.by)
    }

    /// The nodes that the DC spans.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.shares.iter().filter(|s| !s.left && !self.ended).map(|s| s.node)
    }

    pub fn spans(&self, node: NodeId) -> bool {
        self.nodes().any(|n| n == node)
    }

    /// What the tables of a node of the DC need. Its rules are the cluster file's where that has any: [`super::Plan::of`].
    pub(super) fn plan(&self) -> DcPlan {
        let ranges = self.shares.iter().filter(|s| !s.left).map(|s| (s.node, s.range)).collect();
        DcPlan { name: self.name, uids: self.uids.clone(), ranges, rules: self.rules.clone() }
    }

    /// Gives a node its slots: those it once had, or the first free ones; false: there are none.
    pub fn admit(&mut self, node: NodeId) -> bool {
        if let Some(share) = self.shares.iter_mut().find(|s| s.node == node) {
            share.left = false;
            return true;
        }
        let mut taken: Vec<Range> = self.shares.iter().map(|s| s.range).collect();
        taken.sort_by_key(|r| r.first.0);
        let (mut first, count) = (0u16, self.slots_per_node);
        for range in taken {
            if range.first.0.saturating_sub(first) >= count {
                break;
            }
            first = first.max(range.first.0.saturating_add(range.count));
        }
        if count == 0 || first.saturating_add(count) > SLOTS_PER_DC {
            return false;
        }
        self.shares.push(Share { node, range: Range { first: Slot(first), count }, left: false });
        true
    }

    pub fn to_words(&self) -> Vec<u64> {
        let ended = if self.ended { ENDED } else { 0 };
        let mut words = vec![
            u64::from(self.id.0) | ended | u64::from(self.slots_per_node) << 32,
            u64::from(self.revision) | u64::from(self.by.0) << 32,
        ];
        words.extend(self.name.to_words());
        words.push(self.shares.len() as u64 | (self.uids.len() as u64) << 32);
        words.extend(self.shares.iter().map(|s| {
            let left = if s.left { LEFT } else { 0 };
            u64::from(s.node.0) | u64::from(s.range.first.0) << 16 | u64::from(s.range.count) << 32 | left
        }));
        words.extend(self.uids.iter().map(|uid| u64::from(*uid)));
        words.extend(self.rules.to_words());
        words
    }

    /// The claim of some words: `None` unless they are one whole description of a DC that can be.
    pub fn from_words(words: &[u64]) -> Option<DcSpec> {
        let (header, rest) = words.split_at_checked(HEADER_WORDS)?;
        let (shares, rest) = rest.split_at_checked((header[6] & u64::from(u32::MAX)) as usize)?;
        let (uids, rules) = rest.split_at_checked((header[6] >> 32) as usize)?;
        if uids.len() > UIDS_PER_DC_MAX {
            return None;
        }
        let spec = DcSpec {
            id: DcId(header[0] as u16),
            name: Name::from_words([header[2], header[3], header[4], header[5]])?,
            revision: header[1] as u32,
            by: NodeId((header[1] >> 32) as u16),
            ended: header[0] & ENDED != 0,
            slots_per_node: (header[0] >> 32) as u16,
            uids: uids.iter().map(|uid| u32::try_from(*uid).ok()).collect::<Option<_>>()?,
            shares: shares.iter().map(|word| share_of(*word)).collect(),
            rules: Rules::from_words(rules)?,
        };
        // What it would say itself is what was said: no bit is left over.
        (spec.is_sound() && spec.to_words() == words).then_some(spec)
    }

    fn is_sound(&self) -> bool {
        let mut nodes: Vec<NodeId> = self.shares.iter().map(|s| s.node).collect();
        nodes.sort_unstable();
        let known = |node: &NodeId| (1..=NODES_MAX).contains(&node.0);
        let mut ranges: Vec<Range> = self.shares.iter().map(|s| s.range).collect();
        ranges.sort_by_key(|r| r.first.0);
        let end = |r: &Range| u32::from(r.first.0) + u32::from(r.count);
        (1..=DCS_MAX).contains(&self.id.0)
            && !self.name.is_none()
            && (1..=SLOTS_PER_DC).contains(&self.slots_per_node)
            && nodes.iter().all(known)
            && nodes.windows(2).all(|two| two[0] != two[1])
            && ranges.iter().all(|r| r.count > 0 && end(r) <= u32::from(SLOTS_PER_DC))
            && ranges.windows(2).all(|two| end(&two[0]) <= u32::from(two[1].first.0))
            && (self.ended || self.nodes().next().is_some())
    }
}

fn share_of(word: u64) -> Share {
    let range = Range { first: Slot((word >> 16) as u16), count: (word >> 32) as u16 };
    Share { node: NodeId(word as u16), range, left: word & LEFT != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(node: u16, first: u16, count: u16) -> Share {
        Share { node: NodeId(node), range: Range { first: Slot(first), count }, left: false }
    }

    fn spec() -> DcSpec {
        DcSpec {
            id: DcId(7),
            name: Name::new("batch").unwrap(),
            revision: 3,
            by: NodeId(2),
            ended: false,
            slots_per_node: 1024,
            uids: BTreeSet::from([1000, 1001]),
            shares: vec![share(1, 0, 1024), Share { left: true, ..share(2, 1024, 1024) }],
            rules: Rules { rules: Some(Vec::new()) },
        }
    }

    #[test]
    fn a_description_survives_its_words_and_no_others_are_one() {
        let words = spec().to_words();
        assert_eq!(DcSpec::from_words(&words), Some(spec()));
        for len in 0..words.len() {
            assert_eq!(DcSpec::from_words(&words[..len]), None);
        }
        for bit in 0..words.len() * 64 {
            let mut flipped = words.clone();
            flipped[bit / 64] ^= 1 << (bit % 64);
            // Whatever is read as a description says just these words.
            assert!(DcSpec::from_words(&flipped).is_none_or(|spec| spec.to_words() == flipped));
        }
    }

    #[test]
    fn slots_of_two_nodes_that_touch_are_sound_and_that_overlap_by_one_are_not() {
        let with = |second| DcSpec { shares: vec![share(1, 0, 1024), second], ..spec() };
        let is_read = |spec: DcSpec| DcSpec::from_words(&spec.to_words()).is_some();
        assert!(is_read(with(share(2, 1024, 3072))));
        assert!(!is_read(with(share(2, 1023, 1024))));
        assert!(!is_read(with(share(2, 1024, 3073))), "one slot too many");
        assert!(!is_read(with(share(1, 1024, 1024))), "a node twice");
        assert!(!is_read(with(share(0, 1024, 1024))), "no node");
    }

    #[test]
    fn a_node_that_comes_back_has_its_slots_again_and_a_new_one_has_others() {
        let mut spec = spec();
        assert!(spec.admit(NodeId(3)) && spec.admit(NodeId(2)) && spec.admit(NodeId(4)));
        let of = |spec: &DcSpec, node| spec.plan().ranges.get(&NodeId(node)).map(|r| r.first.0);
        assert_eq!([1, 2, 3, 4].map(|node| of(&spec, node)), [Some(0), Some(1024), Some(2048), Some(3072)]);
        assert!(!spec.admit(NodeId(5)), "all slots are given");
        spec.shares[0].left = true;
        assert!(!spec.admit(NodeId(5)), "what a node has left stays its own");
    }
}
