//! The buddy allocator of one segment: which of its granules are out, and which free ones belong together.
//!
//! All it knows is in three arrays made with it, one entry a granule; nothing in the segment itself is
//! trusted or touched. A block is `granule << order` bytes at a multiple of its own size. What comes back is
//! kept as it is, a few blocks an order, most recent first, so that a buffer in the cache is the next to go
//! out; what falls out of that merges with its buddy at once. Key type: [`Buddy`]. Neighbour: `pool`. Source:
//! Knowlton 1965.

use std::fmt;

/// A list's end.
const NIL: u32 = u32::MAX;
/// How many returned blocks of an order stay apart for their next use.
const RECENT: usize = 8;
/// Orders there can be: 2^31 granules.
const ORDERS: usize = 32;

/// What the pool's books look like when they are wrong: a bug here, never a peer's doing. Stop and report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsound {
    /// Blocks overlap, or leave a gap, at this granule.
    Tiling { granule: u32 },
    /// A free list is broken, or holds what is not free, at this granule.
    List { granule: u32 },
    /// Free and loaned bytes do not add up to the whole.
    Sum { free_bytes: u64, loaned_bytes: u64 },
}

impl fmt::Display for Unsound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsound::Tiling { granule } => write!(f, "blocks do not tile the segment at granule {granule}"),
            Unsound::List { granule } => write!(f, "free list broken at granule {granule}"),
            Unsound::Sum { free_bytes, loaned_bytes } => {
                write!(f, "{free_bytes} bytes free and {loaned_bytes} loaned do not make the whole")
            }
        }
    }
}

impl std::error::Error for Unsound {}

/// What begins at a granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing: it is inside a block.
    Inside,
    /// A free block, in the list of its order.
    Free(u8),
    /// A returned block, kept as it is.
    Recent(u8),
    /// A loan.
    Out(u8),
}

/// The few most recently returned blocks of one order; a full one drops its oldest.
#[derive(Clone, Copy)]
struct Recents {
    granules: [u32; RECENT],
    newest: usize,
    len: usize,
}

impl Recents {
    const EMPTY: Recents = Recents { granules: [NIL; RECENT], newest: 0, len: 0 };

    fn push(&mut self, granule: u32) -> Option<u32> {
        self.newest = (self.newest + 1) % RECENT;
        let oldest = std::mem::replace(&mut self.granules[self.newest], granule);
        if self.len == RECENT {
            return Some(oldest);
        }
        self.len += 1;
        None
    }

    fn pop(&mut self) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let granule = self.granules[self.newest];
        self.newest = (self.newest + RECENT - 1) % RECENT;
        self.len -= 1;
        Some(granule)
    }
}

/// One segment's books.
pub(crate) struct Buddy {
    granule_shift: u32,
    states: Box<[State]>,
    next: Box<[u32]>,
    prev: Box<[u32]>,
    heads: [u32; ORDERS],
    recents: [Recents; ORDERS],
    top_order: u8,
    free_granules: u32,
}

impl Buddy {
    /// Books for `len_bytes`, all free; what is less than a granule at the end stays unused. Allocates nine
    /// bytes or so a granule, here and never again.
    pub(crate) fn new(len_bytes: u64, granule_bytes: u32) -> Buddy {
        assert!(granule_bytes.is_power_of_two(), "a granule is a power of two");
        let granule_shift = granule_bytes.trailing_zeros();
        let granules = u32::try_from(len_bytes >> granule_shift).expect("fewer than 2^32 granules");
        assert!(granules > 0 && granules < NIL, "a segment has at least one granule");
        let mut buddy = Buddy {
            granule_shift,
            states: vec![State::Inside; granules as usize].into(),
            next: vec![NIL; granules as usize].into(),
            prev: vec![NIL; granules as usize].into(),
            heads: [NIL; ORDERS],
            recents: [Recents::EMPTY; ORDERS],
            top_order: granules.ilog2() as u8,
            free_granules: granules,
        };
        buddy.tile(granules);
        buddy
    }

    /// Cuts the whole into the largest blocks that lie at multiples of their size, the first in front of its
    /// list.
    fn tile(&mut self, granules: u32) {
        let mut end = granules;
        while end > 0 {
            let order = end.trailing_zeros() as u8;
            end -= 1 << order;
            self.link(end, order);
        }
    }

    /// Takes a block of at least `len_bytes`; its byte offset, or nothing if no free block is large enough.
    ///
    /// Cost: constant but for splits (an order each) and, when nothing fits, merging what was kept apart
    /// (bounded).
    pub(crate) fn alloc(&mut self, len_bytes: u32, put_together: bool) -> Option<u64> {
        let order = self.order_of(len_bytes)?;
        let granule = match self.recents[usize::from(order)].pop() {
            Some(granule) => granule,
            None => match self.split_for(order) {
                Some(granule) => granule,
                None if put_together && self.put_together() => self.split_for(order)?,
                None => return None,
            },
        };
        self.states[granule as usize] = State::Out(order);
        self.free_granules -= 1 << order;
        Some(u64::from(granule) << self.granule_shift)
    }

    /// Takes back the loan at `offset_bytes` whose asked length was `len_bytes`; false: there is no such
    /// loan.
    pub(crate) fn free(&mut self, offset_bytes: u64, len_bytes: u32) -> bool {
        let (Some(granule), Some(order)) = (self.granule_at(offset_bytes), self.order_of(len_bytes)) else {
            return false;
        };
        if self.states[granule as usize] != State::Out(order) {
            return false;
        }
        self.free_granules += 1 << order;
        self.states[granule as usize] = State::Recent(order);
        if let Some(oldest) = self.recents[usize::from(order)].push(granule) {
            self.merge(oldest, order);
        }
        true
    }

    /// Merges all that was kept apart, and says whether there was anything.
    pub(crate) fn put_together(&mut self) -> bool {
        let mut any = false;
        for order in 0..=self.top_order {
            while let Some(granule) = self.recents[usize::from(order)].pop() {
                self.merge(granule, order);
                any = true;
            }
        }
        any
    }

    pub(crate) fn total_bytes(&self) -> u64 {
        (self.states.len() as u64) << self.granule_shift
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        u64::from(self.free_granules) << self.granule_shift
    }

    /// The largest free block, as long as `put_together` has just run.
    pub(crate) fn largest_free_bytes(&self) -> u64 {
        let order = (0..=self.top_order).rev().find(|&order| self.heads[usize::from(order)] != NIL);
        order.map_or(0, |order| 1 << (u32::from(order) + self.granule_shift))
    }

    /// How many loans are out, if the books are sound: blocks tile the segment, lists hold what is free, sums
    /// agree.
    pub(crate) fn audit(&self) -> Result<u32, Unsound> {
        let (mut at, mut free, mut out, mut loans) = (0u32, 0u64, 0u64, 0u32);
        let (mut listed, mut recent) = (0usize, 0usize);
        while (at as usize) < self.states.len() {
            let (order, count) = match self.states[at as usize] {
                State::Inside => return Err(Unsound::Tiling { granule: at }),
                State::Free(order) => (order, &mut free),
                State::Recent(order) => (order, &mut free),
                State::Out(order) => (order, &mut out),
            };
            *count += 1 << order;
            match self.states[at as usize] {
                State::Free(_) => listed += 1,
                State::Recent(_) => recent += 1,
                State::Out(_) | State::Inside => loans += 1,
            }
            let end = at.checked_add(1 << order).filter(|&end| end as usize <= self.states.len());
            let end = end.filter(|_| at.is_multiple_of(1 << order)).ok_or(Unsound::Tiling { granule: at })?;
            if self.states[at as usize + 1..end as usize].iter().any(|s| *s != State::Inside) {
                return Err(Unsound::Tiling { granule: at });
            }
            at = end;
        }
        self.audit_lists(listed, recent)?;
        if free != u64::from(self.free_granules) || free + out != self.states.len() as u64 {
            let (free_bytes, loaned_bytes) = (free << self.granule_shift, out << self.granule_shift);
            return Err(Unsound::Sum { free_bytes, loaned_bytes });
        }
        Ok(loans)
    }

    fn audit_lists(&self, listed: usize, recent: usize) -> Result<(), Unsound> {
        let (mut seen, mut kept) = (0, 0);
        for order in 0..=self.top_order {
            let (mut before, mut at) = (NIL, self.heads[usize::from(order)]);
            while at != NIL {
                if self.states[at as usize] != State::Free(order)
                    || self.prev[at as usize] != before
                    || seen == listed
                {
                    return Err(Unsound::List { granule: at });
                }
                seen += 1;
                (before, at) = (at, self.next[at as usize]);
            }
            let mut recents = self.recents[usize::from(order)];
            while let Some(granule) = recents.pop() {
                if self.states[granule as usize] != State::Recent(order) {
                    return Err(Unsound::List { granule });
                }
                kept += 1;
            }
        }
        if seen == listed && kept == recent { Ok(()) } else { Err(Unsound::List { granule: NIL }) }
    }

    /// The order whose blocks hold `len_bytes`; none if the segment is too small for it.
    fn order_of(&self, len_bytes: u32) -> Option<u8> {
        let granules = u64::from(len_bytes.max(1)).div_ceil(1 << self.granule_shift).next_power_of_two();
        let order = granules.ilog2() as u8;
        (order <= self.top_order).then_some(order)
    }

    fn granule_at(&self, offset_bytes: u64) -> Option<u32> {
        let granule = offset_bytes >> self.granule_shift;
        let whole = granule << self.granule_shift == offset_bytes;
        (whole && granule < self.states.len() as u64).then_some(granule as u32)
    }

    /// Takes the smallest free block of at least `order`, and puts the upper halves it does not need back.
    fn split_for(&mut self, order: u8) -> Option<u32> {
        let found = (order..=self.top_order).find(|&o| self.heads[usize::from(o)] != NIL)?;
        let granule = self.heads[usize::from(found)];
        self.unlink(granule, found);
        for half in (order..found).rev() {
            self.link(granule + (1 << half), half);
        }
        Some(granule)
    }

    /// Joins a block with its buddy as long as that is free too, and lists what came of it.
    fn merge(&mut self, granule: u32, order: u8) {
        let (mut granule, mut order) = (granule, order);
        self.states[granule as usize] = State::Inside;
        while order < self.top_order {
            let buddy = granule ^ (1 << order);
            if self.states.get(buddy as usize) != Some(&State::Free(order)) {
                break;
            }
            self.unlink(buddy, order);
            granule = granule.min(buddy);
            order += 1;
        }
        self.link(granule, order);
    }

    fn link(&mut self, granule: u32, order: u8) {
        let head = std::mem::replace(&mut self.heads[usize::from(order)], granule);
        if head != NIL {
            self.prev[head as usize] = granule;
        }
        self.next[granule as usize] = head;
        self.prev[granule as usize] = NIL;
        self.states[granule as usize] = State::Free(order);
    }

    fn unlink(&mut self, granule: u32, order: u8) {
        let (prev, next) = (self.prev[granule as usize], self.next[granule as usize]);
        match prev {
            NIL => self.heads[usize::from(order)] = next,
            prev => self.next[prev as usize] = next,
        }
        if next != NIL {
            self.prev[next as usize] = prev;
        }
        self.states[granule as usize] = State::Inside;
    }
}
