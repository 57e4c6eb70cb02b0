//! A doorbell: rung while its owner is awake, and rung to wake a sleeper, there and back between two threads.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use abi::doorbell::ON_FUTEX;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shm::doorbell::{Doorbells, Wake};
use shm::futex;
use shm::os::process::{cpus_allowed, pin_to};

fn awake(c: &mut Criterion) {
    let mut group = c.benchmark_group("wake");
    group.throughput(Throughput::Elements(1));
    let bells = Doorbells::heap();
    group.bench_function("ring_and_drain_awake", |bencher| {
        bencher.iter(|| {
            let wake = bells.ring(0, black_box(3));
            bells.drain(0, |bit| {
                black_box(bit);
            });
            wake
        });
    });
    group.bench_function("has_hints_none", |bencher| bencher.iter(|| black_box(&bells).has_hints(1)));
    group.finish();
}

fn ring(bells: &Doorbells, owner: usize) {
    if bells.ring(owner, 1 - owner as u16) == Wake::Futex {
        bells.wake(owner);
    }
}

/// Sleeps until a hint is there, and takes it.
fn wait(bells: &Doorbells, owner: usize) {
    loop {
        bells.doze(owner, ON_FUTEX);
        if bells.has_hints(owner) {
            break;
        }
        futex::wait(bells.sleep_word(owner), ON_FUTEX as u32, Some(Duration::from_secs(1)));
    }
    bells.awake(owner);
    bells.drain(owner, |bit| {
        black_box(bit);
    });
}

/// Time of so many round trips; the two threads share a processor or have one each.
fn round_trips(count: u64, cpus: [Option<usize>; 2]) -> Duration {
    let bells = Doorbells::heap();
    let pin = |which: usize| cpus[which].map(pin_to);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(1);
            for _ in 0..=count {
                wait(&bells, 1);
                ring(&bells, 0);
            }
        });
        // A thread of its own, so that being pinned ends with the measurement.
        let measured = scope.spawn(|| {
            pin(0);
            ring(&bells, 1);
            wait(&bells, 0);
            let began = Instant::now();
            for _ in 0..count {
                ring(&bells, 1);
                wait(&bells, 0);
            }
            began.elapsed()
        });
        measured.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn sleeping(c: &mut Criterion) {
    let cpus = cpus_allowed().unwrap_or_default();
    let (first, second) = (cpus.first().copied(), cpus.get(1).copied());
    let mut group = c.benchmark_group("wake");
    group.throughput(Throughput::Elements(2));
    let mut bench = |name, cpus| {
        group.bench_function(name, |bencher| bencher.iter_custom(|count| round_trips(count, cpus)));
    };
    if second.is_some() {
        bench("round_trip_two_cpus", [first, second]);
    } else {
        println!("not run: wake/round_trip_two_cpus: one processor only");
    }
    bench("round_trip_one_cpu", [first, first]);
    group.finish();
}

criterion_group!(benches, awake, sleeping);
criterion_main!(benches);
