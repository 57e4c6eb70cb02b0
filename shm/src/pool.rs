//! The pool: loans cut from an owner's segments, written in place, sent by extent, taken back when credited.
//!
//! Key types: [`Pool`] (one owner, one thread at a time), [`Loan`] (a writable buffer that is either sent or
//! goes home when dropped), [`Extent`] (its name). All books are private memory made when a segment is added,
//! so nothing a peer does reaches them but through [`Pool::free`], which believes nothing. Neighbours:
//! `buddy` (one segment's books), `map`.
#![expect(unsafe_code, reason = "a loan is a slice of a mapping that the pool gave to one holder")]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::buddy::Buddy;
pub use crate::buddy::Unsound;
use crate::map::{Access, Mapping};
use crate::sync::{AtomicU64, Ordering};

/// The unit of a small segment, and the smallest block there is.
pub const GRANULE_SMALL_BYTES: u32 = 64;
/// The unit of a larger segment.
pub const GRANULE_LARGE_BYTES: u32 = 4096;
/// Up to this length a segment is small.
pub const SEGMENT_SMALL_BYTES_MAX: u64 = 1 << 20;

/// Room for this many unsent loans that are dropped between two allocations; with more alive it grows.
const DROPPED_RESERVE: usize = 256;

/// The name of a loan: which segment, where, and how long it was asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent {
    pub segment: u32,
    pub offset_bytes: u64,
    /// As asked for; the block behind it may be longer.
    pub len_bytes: u32,
}

/// The extent is not on loan: never was, has come back already, or has another length. Who gave it back twice
/// or made it up is to be condemned; the pool is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAllocated;

impl fmt::Display for NotAllocated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("extent is not on loan")
    }
}

impl std::error::Error for NotAllocated {}

/// What an audit counted; free and loaned bytes make the total, or there would be no tally.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub loans: u64,
}

struct Segment {
    index: u32,
    home: Arc<Home>,
    buddy: Buddy,
    fine: bool,
    /// How many loans of this segment could be dropped before its list would have to grow.
    reserve: usize,
}

/// What a loan keeps hold of: its segment's memory, and where it waits, when dropped, until the pool looks.
struct Home {
    map: Arc<Mapping>,
    dropped: Mutex<Vec<Extent>>,
    /// Not zero: the list has something. Spares the pool the lock where loans are sent, as they should be.
    any: AtomicU64,
}

impl Home {
    fn new(map: Arc<Mapping>) -> Home {
        Home { map, dropped: Mutex::new(Vec::with_capacity(DROPPED_RESERVE)), any: AtomicU64::new(0) }
    }

    fn take_in(&self, extent: Extent) {
        let mut dropped = self.dropped();
        dropped.push(extent);
        // Relaxed: a hint; the lock orders the list, and a pool that misses it looks again at the next
        // allocation.
        self.any.store(1, Ordering::Relaxed);
    }

    /// A list of plain values is whole whoever panicked while holding it.
    fn dropped(&self) -> MutexGuard<'_, Vec<Extent>> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Segment {
    /// Takes back the loans that were dropped unsent.
    fn settle(&mut self) {
        // Relaxed: a hint, see `Home::take_in`.
        if self.home.any.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut dropped = self.home.dropped();
        // Relaxed: under the lock under which it is set.
        self.home.any.store(0, Ordering::Relaxed);
        for extent in dropped.drain(..) {
            let freed = self.buddy.free(extent.offset_bytes, extent.len_bytes);
            debug_assert!(freed, "a loan went home that was not out");
        }
    }

    /// Another loan's hold, after making room for every live one to be dropped, so that dropping never
    /// allocates.
    fn hold(&mut self) -> Arc<Home> {
        if Arc::strong_count(&self.home) >= self.reserve {
            self.reserve *= 2;
            let mut dropped = self.home.dropped();
            let more = self.reserve - dropped.len();
            dropped.reserve_exact(more);
        }
        Arc::clone(&self.home)
    }
}

/// An owner's allocator over its segments.
pub struct Pool {
    segments: Vec<Segment>,
    limit_bytes: u64,
}

impl Pool {
    /// An empty pool whose segments may come to `limit_bytes` together.
    pub fn new(limit_bytes: u64) -> Pool {
        Pool { segments: Vec::new(), limit_bytes }
    }

    /// Adds a segment, all of it free. Its books are allocated here: a sixth of a small segment's
    /// length, a quarter of a percent of a large one's.
    ///
    /// # Panics
    /// If the mapping is read-only, the index taken, or the limit exceeded (ask [`Pool::room_bytes`]).
    pub fn add_segment(&mut self, index: u32, map: Arc<Mapping>) {
        assert!(map.access() == Access::ReadWrite, "a pool is cut from memory of one's own");
        assert!(self.segment(index).is_none(), "segment {index} is there already");
        let len_bytes = map.len_bytes() as u64;
        assert!(len_bytes <= self.room_bytes(), "the pool's limit is {} bytes", self.limit_bytes);
        let fine = len_bytes <= SEGMENT_SMALL_BYTES_MAX;
        let granule = if fine { GRANULE_SMALL_BYTES } else { GRANULE_LARGE_BYTES };
        let buddy = Buddy::new(len_bytes, granule);
        let home = Arc::new(Home::new(map));
        self.segments.push(Segment { index, home, buddy, fine, reserve: DROPPED_RESERVE });
    }

    /// How many bytes of segments may still be added.
    pub fn room_bytes(&self) -> u64 {
        let mapped: u64 = self.segments.iter().map(|s| s.home.map.len_bytes() as u64).sum();
        self.limit_bytes.saturating_sub(mapped)
    }

    /// Takes an extent of `len_bytes`, the most recently returned of its size first; nothing if no free block
    /// is large enough (add a segment, or wait for credits).
    ///
    /// Shape: a power of two of granules, at a multiple of its size. Cost: constant, no allocation, no system
    /// call.
    pub fn alloc(&mut self, len_bytes: u32) -> Option<Extent> {
        self.settle();
        // Merging what was kept apart comes last; short ones go to segments of small granules, so as not to
        // waste.
        let short = len_bytes < GRANULE_LARGE_BYTES;
        self.alloc_in(len_bytes, |s| s.fine == short, false)
            .or_else(|| self.alloc_in(len_bytes, |s| s.fine == short, true))
            .or_else(|| self.alloc_in(len_bytes, |s| s.fine != short, false))
            .or_else(|| self.alloc_in(len_bytes, |s| s.fine != short, true))
    }

    /// [`Pool::alloc`], as a buffer that can be written and goes home by itself if it is not sent.
    pub fn loan(&mut self, len_bytes: u32) -> Option<Loan> {
        let extent = self.alloc(len_bytes)?;
        let segment = self.segments.iter_mut().find(|s| s.index == extent.segment)?;
        Some(Loan::new(extent, segment.hold()))
    }

    /// Takes an extent back.
    pub fn free(&mut self, extent: Extent) -> Result<(), NotAllocated> {
        let segment = self.segments.iter_mut().find(|s| s.index == extent.segment).ok_or(NotAllocated)?;
        if segment.buddy.free(extent.offset_bytes, extent.len_bytes) { Ok(()) } else { Err(NotAllocated) }
    }

    /// All bytes that can be lent.
    pub fn total_bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.buddy.total_bytes()).sum()
    }

    /// All bytes that are not on loan, in whatever pieces; loans that were dropped count from the next call
    /// that is given the pool as its own.
    pub fn free_bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.buddy.free_bytes()).sum()
    }

    /// The longest extent that could be had now. Merges what was kept apart, so ask it when `alloc` said no.
    pub fn largest_free(&mut self) -> u64 {
        self.settle();
        let blocks = self.segments.iter_mut().map(|s| {
            s.buddy.put_together();
            s.buddy.largest_free_bytes()
        });
        blocks.max().unwrap_or(0)
    }

    /// The memory of a segment.
    pub fn map(&self, segment: u32) -> Option<&Arc<Mapping>> {
        self.segment(segment).map(|s| &s.home.map)
    }

    /// Checks that free and loaned blocks tile every segment and add up. Cost: linear in the granules; for
    /// tests and for the audit after a death. Dropped loans that the pool has not taken back yet count as
    /// loans.
    pub fn audit(&self) -> Result<Tally, Unsound> {
        let mut tally = Tally { total_bytes: self.total_bytes(), free_bytes: self.free_bytes(), loans: 0 };
        for segment in &self.segments {
            tally.loans += u64::from(segment.buddy.audit()?);
        }
        Ok(tally)
    }

    fn segment(&self, index: u32) -> Option<&Segment> {
        self.segments.iter().find(|s| s.index == index)
    }

    fn alloc_in(
        &mut self,
        len_bytes: u32,
        kind: impl Fn(&Segment) -> bool,
        put_together: bool,
    ) -> Option<Extent> {
        self.segments.iter_mut().filter(|s| kind(s)).find_map(|s| {
            let offset_bytes = s.buddy.alloc(len_bytes, put_together)?;
            Some(Extent { segment: s.index, offset_bytes, len_bytes })
        })
    }

    /// Takes back the loans that were dropped unsent. Every allocation does; before an audit it makes the
    /// count exact.
    pub fn settle(&mut self) {
        self.segments.iter_mut().for_each(Segment::settle);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} of {} bytes free)", self.free_bytes(), self.total_bytes())
    }
}

/// A buffer on loan, writable in place. Send it ([`Loan::into_extent`]) or drop it; dropped, it goes home.
pub struct Loan {
    extent: Extent,
    bytes: NonNull<u8>,
    /// Keeps its memory mapped, and is where it goes when dropped.
    home: Arc<Home>,
    sent: bool,
}

// SAFETY: 1. The bytes are this loan's alone until it is sent or dropped, whichever thread it is on.
//         2. `home` keeps them mapped, and is itself `Send` and `Sync`.
unsafe impl Send for Loan {}
// SAFETY: 1. A `&Loan` only reads the bytes, and nobody writes them without the `&mut`.
unsafe impl Sync for Loan {}

impl Loan {
    fn new(extent: Extent, home: Arc<Home>) -> Loan {
        let span = home.map.span(extent.offset_bytes as usize, extent.len_bytes as usize);
        let bytes = span.expect("the pool's books are as long as the mapping").cast();
        Loan { extent, bytes, home, sent: false }
    }

    /// Its name, which is no permission to send it: for that give the loan up.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// Gives the buffer up to be sent: from now on it comes back by [`Pool::free`] only.
    pub fn into_extent(mut self) -> Extent {
        self.sent = true;
        self.extent
    }

    /// The memory it lies in, for a copy from another mapping.
    pub fn map(&self) -> &Arc<Mapping> {
        &self.home.map
    }
}

impl Deref for Loan {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: 1. `bytes` and the length were checked against the mapping, which `home` keeps.
        //         2. The pool gave the range to this loan alone, and peers can only read it.
        //         3. Mapped memory is initialised: it began as zeroes.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr(), self.extent.len_bytes as usize) }
    }
}

impl DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: 1. to 3. as for `deref`; and 4. `&mut self` is the only way to it now.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.as_ptr(), self.extent.len_bytes as usize) }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if !self.sent {
            self.home.take_in(self.extent);
        }
    }
}

impl fmt::Debug for Loan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Loan({:?})", self.extent)
    }
}
