//! Loans: taken and freed, by size; a descriptor of 1 MiB handed over, looked at and brought home, payload untouched.
#![forbid(unsafe_code)]

use std::hint::black_box;

use abi::slot::{BODY_WORDS, EXTENT, Kind, SlotCopy};
use abi::{Claim, DcId, Endpoint, Generation, Slot};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shm::lane::{LaneReader, LaneWriter, Take, head};
use shm::map::Mapping;
use shm::pool::{Extent, Pool};
use shm::returns::{Returns, give};
use shm::side::OwnSide;

const SOURCE: Endpoint = Endpoint::new(DcId(1), Slot(3), Generation(9));
const SMALL_BYTES: usize = 256 << 10;
const LARGE_BYTES: usize = 64 << 20;

fn pool() -> Pool {
    let mut pool = Pool::new((SMALL_BYTES + LARGE_BYTES) as u64);
    pool.add_segment(0, Mapping::heap(SMALL_BYTES));
    pool.add_segment(1, Mapping::heap(LARGE_BYTES));
    pool
}

fn by_size(c: &mut Criterion) {
    let mut group = c.benchmark_group("loan");
    group.throughput(Throughput::Elements(1));
    for len_bytes in [64u32, 1 << 10, 64 << 10, 1 << 20, 16 << 20] {
        let mut pool = pool();
        group.bench_with_input(
            BenchmarkId::new("alloc_free", len_bytes),
            &len_bytes,
            |bencher, &len_bytes| {
                bencher.iter(|| {
                    let extent = pool.alloc(black_box(len_bytes)).expect("an empty pool has room");
                    pool.free(black_box(extent))
                });
            },
        );
        let mut pool = self::pool();
        group.bench_with_input(
            BenchmarkId::new("loan_drop", len_bytes),
            &len_bytes,
            |bencher, &len_bytes| {
                bencher.iter(|| black_box(pool.loan(black_box(len_bytes))).is_some());
            },
        );
    }
    group.finish();
}

/// What a send of 1 MiB costs when nobody copies it: 16 words there, one word back.
fn descriptor(c: &mut Criterion) {
    let mut group = c.benchmark_group("loan");
    let len_bytes = 1u32 << 20;
    // Elements: no byte of the payload moves, so bytes per second would say nothing.
    group.throughput(Throughput::Elements(1));
    let (a, b, mut pool) = (OwnSide::heap(), OwnSide::heap(), pool());
    let (source, far) = (a.as_peer(), b.as_peer());
    let (mut writer, mut reader, mut returns) =
        (LaneWriter::default(), LaneReader::default(), Returns::default());
    let (word, body) = (SOURCE.to_word(), [0; BODY_WORDS]);
    let mut slot =
        SlotCopy { head: head(Kind::Post, EXTENT), source: word, sequence: 0, kind: 1, call: 0, body };
    group.bench_function("descriptor_1MiB", |bencher| {
        bencher.iter(|| {
            let loan = pool.loan(len_bytes).expect("one at a time");
            let Extent { segment, offset_bytes, len_bytes } = loan.into_extent();
            slot.set_claim(Claim { segment, token: 5, offset_bytes, len_bytes: len_bytes.into() });
            assert_eq!(writer.has_room(&far), Ok(true));
            writer.publish(&a, black_box(&mut slot));
            let Ok(Take::Message(took)) = reader.take(&b, &source, SOURCE) else {
                panic!("it was published")
            };
            let claim = took.claim().expect("it has an extent");
            black_box(claim.check(LARGE_BYTES as u64)).expect("the claim is good");
            give(&b, claim.token, 0);
            let token = returns.next(&far).expect("one was given back");
            assert!(token.is_some());
            pool.free(Extent { segment, offset_bytes, len_bytes })
        });
    });
    group.finish();
}

criterion_group!(benches, by_size, descriptor);
criterion_main!(benches);
