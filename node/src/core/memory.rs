//! Memories of endpoints and proxies: their segments, and which sides in them are free.

use std::collections::{BTreeMap, BTreeSet};

use abi::grant::TABLE_BYTES;
use abi::limits::{COPY_BYTES_MAX, GRANTED_BYTES_MAX, POOL_BYTES_FIRST, SEGMENTS_MAX, SIDES_FIRST};
use abi::member::SegmentKind;
use abi::{DcId, Endpoint, side};
use serde::{Deserialize, Serialize};

use super::Core;
use super::effect::Effect;
use super::grants::Granted;

/// What every segment's length is a multiple of.
pub(super) const PAGE_BYTES: u64 = 4096;

/// A side in a memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) struct SidePlace {
    pub segment: u32,
    pub side: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Owner {
    Endpoint(Endpoint),
    /// `only`: the one endpoint that may read it.
    Proxy {
        proxy: u16,
        dc: DcId,
        only: Option<Endpoint>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum SegmentStage {
    Making,
    /// Its owner has it and maps it.
    Open,
    Sealing,
    Sealed,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Segment {
    pub kind: SegmentKind,
    pub len_bytes: u64,
    pub stage: SegmentStage,
    /// Of a private endpoint's pool: the one peer that may map it; `None`: nobody.
    pub peer: Option<Endpoint>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Memory {
    pub owner: Owner,
    /// A private endpoint's: each pair has segments of its own, which end with it.
    pub private: bool,
    /// By index; one that is given up is not used again.
    pub segments: BTreeMap<u32, Segment>,
    next: u32,
    /// Who may map the segments that are there to be granted.
    pub granted: BTreeMap<u32, Granted>,
    free: BTreeSet<SidePlace>,
    /// Of a proxy: the sides that stand for (local, remote).
    pub used: BTreeMap<(Endpoint, Endpoint), SidePlace>,
}

/// Why a segment was not added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NotAdded {
    /// Not whole pages, or not whole sides.
    Misshapen,
    /// Beyond the number of segments or bytes that the limits allow.
    TooMuch,
}

impl Memory {
    fn new(owner: Owner, private: bool) -> Memory {
        Memory {
            owner,
            private,
            segments: BTreeMap::new(),
            next: 0,
            granted: BTreeMap::new(),
            free: BTreeSet::new(),
            used: BTreeMap::new(),
        }
    }

    /// Checks the shape of one more segment and gives it its index.
    pub fn add(&mut self, kind: SegmentKind, len_bytes: u64, pool_bytes_max: u64) -> Result<u32, NotAdded> {
        if len_bytes == 0 || !len_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(NotAdded::Misshapen);
        }
        match kind {
            SegmentKind::Sides if !len_bytes.is_multiple_of(side::BYTES as u64) => {
                return Err(NotAdded::Misshapen);
            }
            SegmentKind::Sides if self.private && len_bytes != sides_bytes(1) => {
                return Err(NotAdded::Misshapen);
            }
            SegmentKind::Sides if len_bytes > sides_bytes(abi::limits::SIDES_PROXY) => {
                return Err(NotAdded::TooMuch);
            }
            SegmentKind::Pool
                if len_bytes > pool_bytes_max.saturating_sub(self.bytes_of(|k| k == SegmentKind::Pool)) =>
            {
                return Err(NotAdded::TooMuch);
            }
            SegmentKind::Grants if len_bytes != TABLE_BYTES as u64 => return Err(NotAdded::Misshapen),
            SegmentKind::Grants if self.bytes_of(|k| k == SegmentKind::Grants) > 0 => {
                return Err(NotAdded::TooMuch);
            }
            SegmentKind::GrantRead | SegmentKind::GrantWrite
                if len_bytes > COPY_BYTES_MAX
                    || len_bytes
                        > GRANTED_BYTES_MAX.saturating_sub(self.bytes_of(SegmentKind::is_granted)) =>
            {
                return Err(NotAdded::TooMuch);
            }
            _ => {}
        }
        let index = self.next;
        if self.segments.len() >= SEGMENTS_MAX as usize || index == u32::MAX {
            return Err(NotAdded::TooMuch);
        }
        self.next += 1;
        self.segments.insert(index, Segment { kind, len_bytes, stage: SegmentStage::Making, peer: None });
        Ok(index)
    }

    fn bytes_of(&self, kind: impl Fn(SegmentKind) -> bool) -> u64 {
        self.segments.values().filter(|s| kind(s.kind)).map(|s| s.len_bytes).sum()
    }

    pub fn any(&self, stage: SegmentStage) -> bool {
        self.segments.values().any(|s| s.stage == stage)
    }

    /// Whether a segment of sides is on its way.
    pub fn expects_sides(&self) -> bool {
        self.segments.values().any(|s| s.kind == SegmentKind::Sides && s.stage != SegmentStage::Sealed)
    }

    pub fn sealed(&self, segment: u32) -> Option<Segment> {
        self.segments.get(&segment).copied().filter(|s| s.stage == SegmentStage::Sealed)
    }

    /// Takes the open segments to be sealed: all, or the one asked for.
    pub fn seal(&mut self, only: Option<u32>) -> Vec<(u32, u64)> {
        let mut sealing = Vec::new();
        for (index, segment) in &mut self.segments {
            if segment.stage == SegmentStage::Open && only.is_none_or(|o| o == *index) {
                segment.stage = SegmentStage::Sealing;
                sealing.push((*index, segment.len_bytes));
            }
        }
        sealing
    }

    /// What was being sealed is sealed: its sides may be given out. Which segments these are.
    pub fn seal_done(&mut self) -> Vec<u32> {
        let mut sealed = Vec::new();
        for (&index, segment) in &mut self.segments {
            if segment.stage == SegmentStage::Sealing {
                segment.stage = SegmentStage::Sealed;
                sealed.push(index);
                if segment.kind == SegmentKind::Sides {
                    let sides = (segment.len_bytes / side::BYTES as u64) as u32;
                    self.free.extend((0..sides).map(|side| SidePlace { segment: index, side }));
                }
            }
        }
        sealed
    }

    /// Of a proxy's memory none is free before it has a pool: each extent that it brings, empty ones too, lies in one.
    pub fn free_sides(&self) -> usize {
        if self.expects_pool() { 0 } else { self.free.len() }
    }

    /// Whether this is a proxy's, and its first pool is on its way.
    pub fn expects_pool(&self) -> bool {
        let is_pool = |s: &Segment| s.kind == SegmentKind::Pool && s.stage == SegmentStage::Sealed;
        matches!(self.owner, Owner::Proxy { .. }) && !self.segments.values().any(is_pool)
    }

    /// How many of these are free.
    #[cfg(test)]
    pub fn free_among(&self, places: &BTreeSet<SidePlace>) -> usize {
        self.free.intersection(places).count()
    }

    pub fn take_side(&mut self) -> Option<SidePlace> {
        if self.free_sides() == 0 {
            return None;
        }
        self.free.pop_first()
    }

    pub fn give_side(&mut self, place: SidePlace) {
        self.free.insert(place);
    }
}

/// Bytes of a segment of `sides`.
pub(super) fn sides_bytes(sides: u32) -> u64 {
    sides as u64 * side::BYTES as u64
}

impl Core {
    /// A new memory, with nothing in it.
    pub(super) fn new_memory(&mut self, owner: Owner, private: bool) -> u32 {
        let id = self.memory_next;
        self.memory_next += 1;
        self.memories.insert(id, Memory::new(owner, private));
        id
    }

    /// A new memory whose first two segments (sides, pool) are being made.
    pub(super) fn first_memory(&mut self, owner: Owner, sides: u32, pool: u64, out: &mut Vec<Effect>) -> u32 {
        let id = self.new_memory(owner, false);
        for (kind, len_bytes) in [(SegmentKind::Sides, sides_bytes(sides)), (SegmentKind::Pool, pool)] {
            self.add_segment(id, kind, len_bytes, pool, out).unwrap_or_default();
        }
        id
    }

    /// The memory of a fresh endpoint.
    pub(super) fn endpoint_memory(
        &mut self,
        endpoint: Endpoint,
        private: bool,
        out: &mut Vec<Effect>,
    ) -> u32 {
        let owner = Owner::Endpoint(endpoint);
        if private {
            return self.private_memory(owner, out);
        }
        self.first_memory(owner, SIDES_FIRST, POOL_BYTES_FIRST, out)
    }

    pub(super) fn add_segment(
        &mut self,
        memory: u32,
        kind: SegmentKind,
        len_bytes: u64,
        pool_bytes_max: u64,
        out: &mut Vec<Effect>,
    ) -> Result<u32, NotAdded> {
        let Some(there) = self.memories.get_mut(&memory) else { return Err(NotAdded::TooMuch) };
        let segment = there.add(kind, len_bytes, pool_bytes_max)?;
        out.push(Effect::MakeSegment { memory, segment, kind, len_bytes });
        Ok(segment)
    }

    pub(super) fn drop_memory(&mut self, memory: u32, out: &mut Vec<Effect>) {
        self.forget_granted(memory, None, out);
        if self.memories.remove(&memory).is_some() {
            out.push(Effect::DropMemory { memory });
        }
    }

    pub(super) fn take_side(&mut self, memory: u32) -> Option<SidePlace> {
        self.memories.get_mut(&memory)?.take_side()
    }

    pub(super) fn give_side(&mut self, memory: u32, place: SidePlace) {
        if let Some(there) = self.memories.get_mut(&memory) {
            there.give_side(place);
        }
    }

    pub(super) fn has_free_side(&self, memory: u32) -> bool {
        self.memories.get(&memory).is_some_and(|m| m.free_sides() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::limits::POOL_BYTES_MAX;
    use abi::{DcId, Generation, Slot};

    fn memory() -> Memory {
        Memory::new(Owner::Endpoint(Endpoint::new(DcId(1), Slot(0), Generation(1))), false)
    }

    #[test]
    fn a_pool_may_grow_to_its_limit_and_not_one_page_beyond() {
        let mut m = memory();
        assert_eq!(m.add(SegmentKind::Pool, POOL_BYTES_MAX - PAGE_BYTES, POOL_BYTES_MAX), Ok(0));
        assert_eq!(m.add(SegmentKind::Pool, 2 * PAGE_BYTES, POOL_BYTES_MAX), Err(NotAdded::TooMuch));
        assert_eq!(m.add(SegmentKind::Pool, PAGE_BYTES, POOL_BYTES_MAX), Ok(1));
        assert_eq!(m.add(SegmentKind::Pool, u64::MAX - 4095, POOL_BYTES_MAX), Err(NotAdded::TooMuch));
    }

    #[test]
    fn segments_that_are_not_whole_pages_or_sides_are_misshapen() {
        let mut m = memory();
        assert_eq!(m.add(SegmentKind::Pool, 0, POOL_BYTES_MAX), Err(NotAdded::Misshapen));
        assert_eq!(m.add(SegmentKind::Pool, PAGE_BYTES + 1, POOL_BYTES_MAX), Err(NotAdded::Misshapen));
        assert_eq!(m.add(SegmentKind::Sides, PAGE_BYTES, POOL_BYTES_MAX), Err(NotAdded::Misshapen));
    }

    #[test]
    fn sides_are_given_out_once_they_are_sealed_and_not_before() {
        let mut m = memory();
        m.add(SegmentKind::Sides, sides_bytes(2), POOL_BYTES_MAX).unwrap();
        m.segments.get_mut(&0).unwrap().stage = SegmentStage::Open;
        assert_eq!(m.take_side(), None);
        assert_eq!(m.seal(None), [(0, sides_bytes(2))]);
        m.seal_done();
        let first = m.take_side().unwrap();
        assert!(m.take_side().is_some() && m.take_side().is_none());
        m.give_side(first);
        assert_eq!(m.take_side(), Some(first));
    }

    #[test]
    fn a_side_segment_of_a_private_memory_has_one_side() {
        let mut m = memory();
        m.private = true;
        assert_eq!(m.add(SegmentKind::Sides, sides_bytes(1), POOL_BYTES_MAX), Ok(0));
        assert_eq!(m.add(SegmentKind::Sides, sides_bytes(2), POOL_BYTES_MAX), Err(NotAdded::Misshapen));
    }

    #[test]
    fn the_number_of_segments_is_limited() {
        let mut m = memory();
        for index in 0..SEGMENTS_MAX {
            assert_eq!(m.add(SegmentKind::Pool, PAGE_BYTES, POOL_BYTES_MAX), Ok(index));
        }
        assert_eq!(m.add(SegmentKind::Pool, PAGE_BYTES, POOL_BYTES_MAX), Err(NotAdded::TooMuch));
    }
}
