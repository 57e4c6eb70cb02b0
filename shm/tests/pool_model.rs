//! The pool against the dumbest model of one: a list of the extents that are out.

use proptest::prelude::*;
use shm::map::{Mapping, PAGE_BYTES};
use shm::pool::{
    Extent, GRANULE_LARGE_BYTES, GRANULE_SMALL_BYTES, Loan, NotAllocated, Pool, SEGMENT_SMALL_BYTES_MAX,
};

#[derive(Clone, Debug)]
enum Act {
    Alloc(u32),
    Free(usize),
    FreeTwice(usize),
    Forge(Extent),
    Loan(u32),
    DropLoan(usize),
    SendLoan(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let len = prop_oneof![0u32..200, 0u32..9000, 0u32..70_000, 1u32..3 << 20];
    let forged = (0u32..4, 0u64..3 << 20, 0u32..9000).prop_map(|(segment, offset_bytes, len_bytes)| Extent {
        segment,
        offset_bytes,
        len_bytes,
    });
    prop_oneof![
        4 => len.clone().prop_map(Act::Alloc),
        4 => any::<usize>().prop_map(Act::Free),
        1 => any::<usize>().prop_map(Act::FreeTwice),
        1 => forged.prop_map(Act::Forge),
        2 => len.prop_map(Act::Loan),
        1 => any::<usize>().prop_map(Act::DropLoan),
        1 => any::<usize>().prop_map(Act::SendLoan),
    ]
}

/// A small segment, a large one, and one whose length is no power of two.
fn pool() -> Pool {
    let lens = [64 << 10, 2 << 20, (1 << 20) + 5 * PAGE_BYTES + 100];
    let mut pool = Pool::new(lens.iter().sum::<usize>() as u64);
    for (index, len) in lens.into_iter().enumerate() {
        pool.add_segment(index as u32, Mapping::heap(len));
    }
    pool
}

fn block_bytes(pool: &Pool, e: Extent) -> u64 {
    let segment = pool.map(e.segment).unwrap().len_bytes() as u64;
    let granule = if segment <= SEGMENT_SMALL_BYTES_MAX { GRANULE_SMALL_BYTES } else { GRANULE_LARGE_BYTES };
    u64::from(e.len_bytes.max(granule)).next_power_of_two()
}

fn check_new(pool: &Pool, out: &[Extent], new: Extent) {
    let block = block_bytes(pool, new);
    assert_eq!(new.offset_bytes % block, 0, "{new:?} lies at a multiple of its size");
    assert!(new.offset_bytes + block <= pool.map(new.segment).unwrap().len_bytes() as u64);
    for old in out.iter().filter(|old| old.segment == new.segment) {
        let apart = old.offset_bytes + block_bytes(pool, *old) <= new.offset_bytes
            || new.offset_bytes + block <= old.offset_bytes;
        assert!(apart, "{new:?} overlaps {old:?}");
    }
}

struct Model {
    pool: Pool,
    out: Vec<Extent>,
    loans: Vec<Loan>,
}

impl Model {
    fn all_out(&self) -> Vec<Extent> {
        self.out.iter().copied().chain(self.loans.iter().map(Loan::extent)).collect()
    }

    fn step(&mut self, act: Act) {
        match act {
            Act::Alloc(len) => match self.pool.alloc(len) {
                Some(e) => {
                    check_new(&self.pool, &self.all_out(), e);
                    self.out.push(e);
                }
                None => {
                    assert!(self.pool.largest_free() < u64::from(len), "no {len} bytes, yet so many are free")
                }
            },
            Act::Free(i) if !self.out.is_empty() => {
                let e = self.out.swap_remove(i % self.out.len());
                self.pool.free(e).unwrap();
            }
            Act::FreeTwice(i) if !self.out.is_empty() => {
                let e = self.out.swap_remove(i % self.out.len());
                self.pool.free(e).unwrap();
                assert_eq!(self.pool.free(e), Err(NotAllocated));
            }
            Act::Forge(e) => {
                let known = |o: &Extent| {
                    (o.segment, o.offset_bytes) == (e.segment, e.offset_bytes)
                        && block_bytes(&self.pool, *o) == block_bytes(&self.pool, e)
                };
                if !self.all_out().iter().any(known) {
                    assert_eq!(self.pool.free(e), Err(NotAllocated));
                }
            }
            Act::Loan(len) => {
                if let Some(mut loan) = self.pool.loan(len) {
                    check_new(&self.pool, &self.all_out(), loan.extent());
                    let mark = loan.extent().offset_bytes as u8;
                    loan.fill(mark);
                    self.loans.push(loan);
                }
            }
            Act::DropLoan(i) if !self.loans.is_empty() => {
                let loan = self.loans.swap_remove(i % self.loans.len());
                assert!(loan.iter().all(|&b| b == loan.extent().offset_bytes as u8), "nobody else wrote");
            }
            Act::SendLoan(i) if !self.loans.is_empty() => {
                let loan = self.loans.swap_remove(i % self.loans.len());
                self.out.push(loan.into_extent());
            }
            Act::Free(_) | Act::FreeTwice(_) | Act::DropLoan(_) | Act::SendLoan(_) => {}
        }
    }

    fn audit(&mut self) {
        self.pool.settle();
        let all = self.all_out();
        let tally = self.pool.audit().unwrap();
        let loaned: u64 = all.iter().map(|e| block_bytes(&self.pool, *e)).sum();
        assert_eq!(tally.loans, all.len() as u64);
        assert_eq!(tally.free_bytes + loaned, tally.total_bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn loans_never_overlap_and_all_that_returns_becomes_whole_again(
        acts in prop::collection::vec(act(), 1..200),
    ) {
        let mut fresh = pool();
        let (whole, total) = (fresh.largest_free(), fresh.total_bytes());
        let mut model = Model { pool: fresh, out: Vec::new(), loans: Vec::new() };
        for act in acts {
            model.step(act);
        }
        model.audit();
        for e in std::mem::take(&mut model.out) {
            model.pool.free(e).unwrap();
        }
        model.loans.clear();
        model.audit();
        prop_assert_eq!(model.pool.free_bytes(), total);
        prop_assert_eq!(model.pool.largest_free(), whole);
    }
}

#[test]
fn the_most_recently_freed_goes_out_first() {
    let mut pool = pool();
    let a = pool.alloc(100_000).unwrap();
    let b = pool.alloc(100_000).unwrap();
    let c = pool.alloc(100_000).unwrap();
    for e in [b, c, a] {
        pool.free(e).unwrap();
    }
    assert_eq!([pool.alloc(100_000), pool.alloc(100_000), pool.alloc(100_000)], [Some(a), Some(c), Some(b)]);
}

#[test]
fn one_buffer_is_used_over_and_over_whatever_else_is_out() {
    let mut pool = pool();
    let _others = [pool.alloc(5000).unwrap(), pool.alloc(9000).unwrap()];
    let first = pool.alloc(1 << 20).unwrap();
    pool.free(first).unwrap();
    for _ in 0..1000 {
        let again = pool.alloc(1 << 20).unwrap();
        assert_eq!(again, first);
        pool.free(again).unwrap();
    }
}

#[test]
fn a_full_pool_says_no_and_a_freed_one_gives_all_in_one_piece() {
    let mut pool = Pool::new(1 << 20);
    pool.add_segment(0, Mapping::heap(1 << 20));
    let small: Vec<Extent> = std::iter::from_fn(|| pool.alloc(64)).collect();
    assert_eq!(small.len(), 1 << 14);
    assert_eq!((pool.free_bytes(), pool.largest_free()), (0, 0));
    for e in small {
        pool.free(e).unwrap();
    }
    assert_eq!(pool.alloc(1 << 20), Some(Extent { segment: 0, offset_bytes: 0, len_bytes: 1 << 20 }));
}

#[test]
fn a_double_free_and_a_forged_extent_are_refused_and_change_nothing() {
    let mut pool = pool();
    let e = pool.alloc(5000).unwrap();
    let before = pool.audit().unwrap();
    let forged = [
        Extent { segment: 9, ..e },
        Extent { offset_bytes: e.offset_bytes + 1, ..e },
        Extent { offset_bytes: e.offset_bytes + 4096, ..e },
        Extent { offset_bytes: u64::MAX, ..e },
        Extent { len_bytes: 8193, ..e },
        Extent { len_bytes: u32::MAX, ..e },
    ];
    for f in forged {
        assert_eq!(pool.free(f), Err(NotAllocated));
    }
    assert_eq!(pool.audit(), Ok(before));
    pool.free(e).unwrap();
    assert_eq!(pool.free(e), Err(NotAllocated));
}

#[test]
fn short_loans_go_to_the_segment_of_small_granules() {
    let mut pool = pool();
    assert_eq!(pool.alloc(100).map(|e| e.segment), Some(0));
    assert_eq!(pool.alloc(5000).map(|e| e.segment), Some(1));
}

#[test]
fn a_loan_dropped_on_another_thread_goes_home_at_the_next_allocation() {
    let mut pool = Pool::new(1 << 20);
    pool.add_segment(3, Mapping::heap(1 << 20));
    let loan = pool.loan(1 << 20).unwrap();
    assert!(pool.alloc(1).is_none());
    std::thread::spawn(move || drop(loan)).join().unwrap();
    assert!(pool.alloc(1 << 20).is_some());
}

#[test]
fn a_thousand_unsent_loans_dropped_at_once_all_come_home() {
    let mut pool = Pool::new(1 << 20);
    pool.add_segment(0, Mapping::heap(1 << 20));
    let loans: Vec<Loan> = (0..1000).map(|_| pool.loan(64).unwrap()).collect();
    drop(loans);
    assert_eq!(pool.largest_free(), 1 << 20);
}

#[test]
fn a_loan_outlives_its_pool() {
    let mut pool = pool();
    let mut loan = pool.loan(64).unwrap();
    drop(pool);
    loan.copy_from_slice(&[1; 64]);
    assert_eq!(loan[63], 1);
}

#[test]
#[should_panic(expected = "limit")]
fn a_segment_beyond_the_limit_is_a_bug() {
    Pool::new(8191).add_segment(0, Mapping::heap(8192));
}
