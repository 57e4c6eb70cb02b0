//! Runs of shared 64-bit atomic words: what every protocol of this crate is made of.
//!
//! [`Words`] may only be read (a peer's memory), [`OwnWords`] may be written too. Both stand over a mapping, which they
//! keep alive, so that the algorithms above are safe code, the same over mapped memory, over the heap (tests, the
//! simulator) and, under loom, over its atomics.
#![cfg_attr(not(loom), expect(unsafe_code, reason = "words are cut from mapped memory here, and only here"))]

use std::fmt;

use crate::sync::{AtomicU64, Ordering};

#[cfg(not(loom))]
use crate::map::{Access, Mapping};
#[cfg(not(loom))]
use std::sync::Arc;

/// Words that another process may write at any time. Each read is a claim.
#[derive(Clone)]
pub struct Words {
    #[cfg(not(loom))]
    first: *const AtomicU64,
    #[cfg(not(loom))]
    map: Arc<Mapping>,
    #[cfg(not(loom))]
    count: usize,
    #[cfg(loom)]
    cells: std::sync::Arc<std::collections::BTreeMap<usize, AtomicU64>>,
}

/// Words that this process alone writes, or that everybody may (the doorbell page).
#[derive(Clone)]
pub struct OwnWords(Words);

/// The words do not lie within the mapping, or are not aligned: a programmer's or a daemon's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotWithin {
    pub offset_bytes: usize,
    pub words: usize,
}

impl fmt::Display for NotWithin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} words at byte {} do not lie within the mapping", self.words, self.offset_bytes)
    }
}

impl std::error::Error for NotWithin {}

#[cfg(not(loom))]
impl Words {
    /// `words` words from `offset_bytes` on.
    pub fn mapped(map: &Arc<Mapping>, offset_bytes: usize, words: usize) -> Result<Words, NotWithin> {
        let not_within = NotWithin { offset_bytes, words };
        let all = map.words();
        if !offset_bytes.is_multiple_of(8) {
            return Err(not_within);
        }
        let first = offset_bytes / 8;
        let end = first.checked_add(words).ok_or(not_within)?;
        let part = all.get(first..end).ok_or(not_within)?;
        Ok(Words { first: part.as_ptr(), map: Arc::clone(map), count: words })
    }

    /// The mapping these words are part of.
    pub fn map(&self) -> &Arc<Mapping> {
        &self.map
    }

    /// Byte offset of the first word in its mapping.
    pub fn offset_bytes(&self) -> usize {
        self.first as usize - self.map.words().as_ptr() as usize
    }

    #[inline(always)]
    fn at(&self, index: usize) -> &AtomicU64 {
        if index >= self.count {
            self.out_of_bounds(index, 1);
        }
        // SAFETY: 1. In bounds: checked against `count`, and `mapped` checked that `count` words lie in the mapping.
        let word = unsafe { self.first.add(index) };
        // SAFETY: 1. In bounds, see above.
        //         2. Alive: `self.map` keeps the mapping for as long as the returned borrow of `self`.
        //         3. Aligned and valid for any bits: an 8-byte offset in a page-aligned mapping, an atomic integer.
        unsafe { &*word }
    }
}

// SAFETY: 1. The pointer is into a mapping that is itself `Send` and kept alive by the `Arc` beside it.
//         2. All access through it is by atomics.
#[cfg(not(loom))]
unsafe impl Send for Words {}
// SAFETY: 1. As for `Send`: shared access is by atomics only.
#[cfg(not(loom))]
unsafe impl Sync for Words {}

#[cfg(loom)]
impl Words {
    #[inline]
    fn at(&self, index: usize) -> &AtomicU64 {
        self.cells.get(&index).unwrap_or_else(|| panic!("word {index} is not part of this model"))
    }
}

impl Words {
    /// Reads one word.
    #[inline]
    pub fn load(&self, index: usize, order: Ordering) -> u64 {
        self.at(index).load(order)
    }

    /// Reads `N` words in a row, each once. Cost: one check of the bounds for all of them.
    #[inline(always)]
    pub fn load_all<const N: usize>(&self, first: usize, order: Ordering) -> [u64; N] {
        let mut out = [0; N];
        self.each::<N>(first, |index, word| out[index] = word.load(order));
        out
    }

    /// Out of line, so that what is in bounds stays small enough to be inlined.
    #[cfg(not(loom))]
    #[cold]
    #[inline(never)]
    fn out_of_bounds(&self, first: usize, words: usize) -> ! {
        panic!("{words} words at {first} of {}", self.count)
    }

    #[cfg(not(loom))]
    #[inline(always)]
    fn each<const N: usize>(&self, first: usize, mut act: impl FnMut(usize, &AtomicU64)) {
        if first.checked_add(N).is_none_or(|end| end > self.count) {
            self.out_of_bounds(first, N);
        }
        for index in 0..N {
            // SAFETY: 1. In bounds: checked above, and `mapped` checked that `count` words lie in the mapping.
            let word = unsafe { self.first.add(first + index) };
            // SAFETY: as in `at`.
            act(index, unsafe { &*word });
        }
    }

    #[cfg(loom)]
    fn each<const N: usize>(&self, first: usize, mut act: impl FnMut(usize, &AtomicU64)) {
        (0..N).for_each(|index| act(index, self.at(first + index)));
    }

    /// The word as a futex: waiting and waking work through a read-only mapping too.
    #[inline]
    pub fn futex(&self, index: usize) -> &AtomicU64 {
        self.at(index)
    }
}

impl OwnWords {
    /// As [`Words::mapped`]; the mapping must be writable.
    #[cfg(not(loom))]
    pub fn mapped(map: &Arc<Mapping>, offset_bytes: usize, words: usize) -> Result<OwnWords, NotWithin> {
        assert!(matches!(map.access(), Access::ReadWrite), "own words need a writable mapping");
        Words::mapped(map, offset_bytes, words).map(OwnWords)
    }

    /// Fresh words on the heap, all zero.
    #[cfg(not(loom))]
    pub fn heap(words: usize) -> OwnWords {
        let map = Mapping::heap(words * 8);
        OwnWords(Words { first: map.words().as_ptr(), count: words, map })
    }

    /// Fresh words for the model checker: only those in `used` exist, for loom's cost grows with each.
    #[cfg(loom)]
    pub fn model(used: &[std::ops::Range<usize>]) -> OwnWords {
        let cells = used.iter().cloned().flatten().map(|i| (i, AtomicU64::new(0))).collect();
        OwnWords(Words { cells: std::sync::Arc::new(cells) })
    }

    /// The same words as a peer sees them.
    pub fn as_peer(&self) -> Words {
        self.0.clone()
    }

    #[inline]
    pub fn store(&self, index: usize, value: u64, order: Ordering) {
        self.0.at(index).store(value, order);
    }

    /// Writes `N` words in a row, in their order.
    #[inline(always)]
    pub fn store_each<const N: usize>(&self, first: usize, order: Ordering, value: impl Fn(usize) -> u64) {
        self.0.each::<N>(first, |index, word| word.store(value(index), order));
    }

    /// For words that several processes may write.
    #[inline]
    pub fn cell(&self, index: usize) -> &AtomicU64 {
        self.0.at(index)
    }
}

impl std::ops::Deref for OwnWords {
    type Target = Words;

    fn deref(&self) -> &Words {
        &self.0
    }
}
