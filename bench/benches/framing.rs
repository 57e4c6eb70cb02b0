//! What stands around bytes on the wire: frame headers and records, emitted and checked, and the checksum.
#![forbid(unsafe_code)]

use std::hint::black_box;

use abi::record::{self, Record};
use abi::wire::{self, Header, crc32c};
use abi::{DcId, Endpoint, Generation, Pair, Slot};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn headers(c: &mut Criterion) {
    let mut group = c.benchmark_group("framing");
    group.throughput(Throughput::Elements(1));
    let header = Header { kind: wire::Kind::Message, len_bytes: 4096, token: 7, arg: 9 };
    group.bench_function("header_emit", |bencher| bencher.iter(|| black_box(&header).to_bytes()));
    let bytes = header.to_bytes();
    group.bench_function("header_check", |bencher| bencher.iter(|| Header::check(black_box(&bytes))));
    group.finish();
}

fn records(c: &mut Criterion) {
    let mut group = c.benchmark_group("framing");
    group.throughput(Throughput::Elements(1));
    let end = |slot| Endpoint::new(DcId(1), Slot(slot), Generation(4));
    let pair = Pair { source: end(1), destination: end(2) };
    let record = Record { kind: record::Kind::Slots, count: 2, pair: Some(pair), arg: 77 };
    group.bench_function("record_emit", |bencher| bencher.iter(|| black_box(&record).to_bytes()));
    let mut bytes = record.to_bytes().to_vec();
    bytes.extend([0; 2 * abi::limits::SLOT_BYTES]);
    group.bench_function("record_check", |bencher| bencher.iter(|| Record::check(black_box(&bytes))));
    group.finish();
}

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("framing");
    for len_bytes in [28usize, 4 << 10, 64 << 10] {
        let bytes: Vec<u8> = (0..len_bytes).map(|at| at as u8).collect();
        group.throughput(Throughput::Bytes(len_bytes as u64));
        group.bench_with_input(BenchmarkId::new("crc32c", len_bytes), &bytes, |bencher, bytes| {
            bencher.iter(|| crc32c(black_box(bytes)));
        });
    }
    group.finish();
}

criterion_group!(benches, headers, records, checksums);
criterion_main!(benches);
