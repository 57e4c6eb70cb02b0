//! Which memory a fabric may touch: the table behind [`RegionKey`], for every [`crate::Fabric`] to use.
//!
//! Key type: [`Regions`]. It counts the descriptors, posted buffers and accepted extents that still use a region, so that
//! a detached one is let go with its last completion and no earlier. Neighbours: `loopback`, the proxies.

use std::collections::VecDeque;
use std::sync::Arc;

use abi::NodeId;
use abi::limits::{FRAME_BYTES_MAX, HEAD_BYTES_MAX, LOAN_BYTES_MAX, PIECES_MAX};
use shm::map::Mapping;

use crate::{Completion, Desc, Piece, RegionKey};

const INDEX_BITS: u32 = 20;
const SERIAL_MASK: u32 = (1 << (32 - INDEX_BITS)) - 1;

#[derive(Debug, Default)]
struct Region {
    serial: u32,
    map: Option<Arc<Mapping>>,
    uses: u32,
    detached: bool,
}

/// The pieces of one descriptor, by value: what a fabric keeps of a [`crate::Desc`].
#[derive(Clone, Copy, Debug)]
pub struct Pieces {
    all: [Piece; PIECES_MAX],
    count: u8,
}

impl Pieces {
    /// # Panics
    /// With more than `limits::PIECES_MAX`.
    pub fn new(pieces: &[Piece]) -> Pieces {
        assert!(pieces.len() <= PIECES_MAX, "at most {PIECES_MAX} pieces");
        let mut all = [Piece { region: RegionKey(0), offset_bytes: 0, len_bytes: 0 }; PIECES_MAX];
        all[..pieces.len()].copy_from_slice(pieces);
        Pieces { all, count: pieces.len() as u8 }
    }

    pub fn as_slice(&self) -> &[Piece] {
        &self.all[..self.count as usize]
    }

    pub fn len_bytes(&self) -> u64 {
        self.as_slice().iter().map(|p| p.len_bytes as u64).sum()
    }

    /// The parts of the pieces that hold `len_bytes` from `skip_bytes` on, none of them empty.
    pub fn part(&self, skip_bytes: u64, len_bytes: u64) -> impl Iterator<Item = Piece> + '_ {
        let (mut skip, mut left) = (skip_bytes, len_bytes);
        self.as_slice().iter().filter_map(move |piece| {
            let skipped = skip.min(piece.len_bytes as u64);
            let taken = left.min(piece.len_bytes as u64 - skipped);
            (skip, left) = (skip - skipped, left - taken);
            let offset_bytes = piece.offset_bytes + skipped;
            (taken > 0).then_some(Piece { region: piece.region, offset_bytes, len_bytes: taken as u32 })
        })
    }
}

/// The pieces of a descriptor for a fabric that takes what a frame holds, and as bulk what a loan does.
///
/// # Panics
/// If the descriptor is not as [`crate::Caps`] and [`Desc`] say.
pub fn check(desc: &Desc<'_>) -> Pieces {
    let pieces = Pieces::new(desc.pieces);
    assert!(desc.head.len() <= HEAD_BYTES_MAX, "a head of at most {HEAD_BYTES_MAX} bytes");
    let whole = desc.head.len() as u64 + pieces.len_bytes();
    assert!(desc.bulk || whole <= FRAME_BYTES_MAX as u64, "a message within caps");
    assert!(!desc.bulk || pieces.len_bytes() <= LOAN_BYTES_MAX as u64, "a bulk message within caps");
    pieces
}

/// The regions of one fabric. Keys of regions that are gone are not given out again soon.
#[derive(Debug, Default)]
pub struct Regions {
    all: Vec<Region>,
    vacant: Vec<u32>,
}

impl Regions {
    pub fn new() -> Regions {
        Regions::default()
    }

    /// # Panics
    /// With more than a million regions.
    pub fn attach(&mut self, map: &Arc<Mapping>) -> RegionKey {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.all.push(Region::default());
            self.all.len() as u32 - 1
        });
        assert!(index < 1 << INDEX_BITS, "too many regions");
        let region = &mut self.all[index as usize];
        region.map = Some(Arc::clone(map));
        RegionKey(region.serial << INDEX_BITS | index)
    }

    /// No new uses; the mapping is dropped with the last one there is.
    ///
    /// # Panics
    /// If the region is not attached.
    pub fn detach(&mut self, key: RegionKey) {
        let region = self.region_mut(key);
        assert!(!region.detached, "region detached twice");
        region.detached = true;
        self.drop_unused(key);
    }

    /// The memory of a region.
    ///
    /// # Panics
    /// If the region is not attached: keys come from the caller, never from the wire.
    pub fn map(&self, key: RegionKey) -> &Arc<Mapping> {
        let index = (key.0 & ((1 << INDEX_BITS) - 1)) as usize;
        let region = self.all.get(index).filter(|r| r.serial == key.0 >> INDEX_BITS);
        region.and_then(|r| r.map.as_ref()).expect("a region that is attached")
    }

    /// Counts one more use.
    ///
    /// # Panics
    /// If the region is not attached, or the piece is not inside it.
    pub fn hold(&mut self, piece: Piece) {
        let region = self.region_mut(piece.region);
        assert!(!region.detached, "a piece of a detached region");
        let len_bytes = region.map.as_ref().map_or(0, |map| map.len_bytes()) as u64;
        let end = piece.offset_bytes.checked_add(piece.len_bytes as u64);
        assert!(end.is_some_and(|end| end <= len_bytes), "a piece that is not inside its region");
        region.uses += 1;
    }

    /// The use is over.
    ///
    /// # Panics
    /// If the region is not attached or not in use.
    pub fn release(&mut self, piece: Piece) {
        let region = self.region_mut(piece.region);
        region.uses = region.uses.checked_sub(1).expect("a region that is in use");
        if region.detached {
            self.drop_unused(piece.region);
        }
    }

    /// Counts one more use of each piece's region, as [`Regions::hold`].
    pub fn hold_all(&mut self, pieces: &Pieces) {
        pieces.as_slice().iter().for_each(|piece| self.hold(*piece));
    }

    pub fn release_all(&mut self, pieces: &Pieces) {
        pieces.as_slice().iter().for_each(|piece| self.release(*piece));
    }

    /// Whether a region is attached, or detached and still in use.
    pub fn contains(&self, key: RegionKey) -> bool {
        let index = (key.0 & ((1 << INDEX_BITS) - 1)) as usize;
        self.all.get(index).is_some_and(|r| r.serial == key.0 >> INDEX_BITS && r.map.is_some())
    }

    /// Regions that are attached, or detached and still in use.
    pub fn len(&self) -> usize {
        self.all.len() - self.vacant.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn region_mut(&mut self, key: RegionKey) -> &mut Region {
        let index = (key.0 & ((1 << INDEX_BITS) - 1)) as usize;
        let region = self.all.get_mut(index).filter(|r| r.serial == key.0 >> INDEX_BITS && r.map.is_some());
        region.expect("a region that is attached")
    }

    fn drop_unused(&mut self, key: RegionKey) {
        let region = self.region_mut(key);
        if region.uses == 0 {
            region.map = None;
            region.detached = false;
            region.serial = (region.serial + 1) & SERIAL_MASK;
            self.vacant.push(key.0 & ((1 << INDEX_BITS) - 1));
        }
    }
}

/// Completes an answer that came after its session had ended: before the `Lost` of that session, if it is not told yet.
pub fn fail_late(ready: &mut VecDeque<Completion>, peer: NodeId, token: u64, into: Piece) {
    let lost = |c: &Completion| matches!(c, Completion::Lost { peer: of, .. } if *of == peer);
    let at = ready.iter().position(lost).unwrap_or(ready.len());
    ready.insert(at, Completion::BulkFailed { peer, token, into });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detached_region_lives_until_its_last_use_is_over() {
        let map = Mapping::heap(4096);
        let mut regions = Regions::new();
        let key = regions.attach(&map);
        let piece = Piece { region: key, offset_bytes: 0, len_bytes: 4096 };
        regions.hold(piece);
        regions.detach(key);
        assert_eq!((regions.len(), Arc::strong_count(&map)), (1, 2));
        assert!(regions.contains(key));
        regions.release(piece);
        assert!(!regions.contains(key));
        assert_eq!((regions.len(), Arc::strong_count(&map)), (0, 1));
        assert_ne!(regions.attach(&map), key, "a key is not given out twice in a row");
    }

    #[test]
    fn a_part_of_pieces_begins_and_ends_within_them() {
        let piece = |offset_bytes, len_bytes| Piece { region: RegionKey(1), offset_bytes, len_bytes };
        let pieces = Pieces::new(&[piece(100, 10), piece(0, 0), piece(500, 10)]);
        assert_eq!(pieces.len_bytes(), 20);
        assert_eq!(pieces.part(0, 20).collect::<Vec<_>>(), [piece(100, 10), piece(500, 10)]);
        assert_eq!(pieces.part(9, 2).collect::<Vec<_>>(), [piece(109, 1), piece(500, 1)]);
        assert_eq!(pieces.part(10, 3).collect::<Vec<_>>(), [piece(500, 3)]);
        assert_eq!(pieces.part(20, 0).count(), 0);
    }

    #[test]
    #[should_panic(expected = "not inside its region")]
    fn a_piece_one_byte_too_long_is_a_bug_of_the_caller() {
        let mut regions = Regions::new();
        let region = regions.attach(&Mapping::heap(4096));
        regions.hold(Piece { region, offset_bytes: 1, len_bytes: 4096 });
    }

    #[test]
    #[should_panic(expected = "a region that is attached")]
    fn a_key_of_a_region_that_is_gone_is_a_bug_of_the_caller() {
        let mut regions = Regions::new();
        let region = regions.attach(&Mapping::heap(4096));
        regions.detach(region);
        regions.hold(Piece { region, offset_bytes: 0, len_bytes: 1 });
    }
}
