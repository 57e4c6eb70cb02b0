//! A slot on a lane: published and taken in one thread, and there and back between two that spin.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use abi::limits::LANE_SLOTS;
use abi::slot::{BODY_WORDS, Kind, SlotCopy, WITHDRAWABLE};
use abi::{DcId, Endpoint, Generation, Slot};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shm::lane::{LaneReader, LaneWriter, Take, head, look_again};
use shm::os::process::{cpus_allowed, pin_to};
use shm::side::{OwnSide, PeerSide};

const SOURCE: Endpoint = Endpoint::new(DcId(1), Slot(3), Generation(9));

fn message(flags: u8) -> SlotCopy {
    let source = SOURCE.to_word();
    let mut slot = SlotCopy {
        head: head(Kind::Post, flags),
        source,
        sequence: 0,
        kind: 1,
        call: 0,
        body: [7; BODY_WORDS],
    };
    slot.head.len = 96;
    slot
}

fn one_thread(c: &mut Criterion) {
    let mut group = c.benchmark_group("lane");
    for (name, flags) in [("publish_take", 0), ("publish_take_withdrawable", WITHDRAWABLE)] {
        group.throughput(Throughput::Elements(1));
        let (a, b) = (OwnSide::heap(), OwnSide::heap());
        let (source, far) = (a.as_peer(), b.as_peer());
        let (mut writer, mut reader) = (LaneWriter::default(), LaneReader::default());
        let mut slot = message(flags);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                assert_eq!(writer.has_room(&far), Ok(true));
                writer.publish(&a, black_box(&mut slot));
                black_box(reader.take(&b, &source, SOURCE))
            });
        });
    }
    group.throughput(Throughput::Elements(LANE_SLOTS));
    let (a, b) = (OwnSide::heap(), OwnSide::heap());
    let (source, far) = (a.as_peer(), b.as_peer());
    let (mut writer, mut reader) = (LaneWriter::default(), LaneReader::default());
    let mut slot = message(0);
    group.bench_function("fill_then_drain", |bencher| {
        bencher.iter(|| {
            while writer.has_room(&far) == Ok(true) {
                writer.publish(&a, black_box(&mut slot));
            }
            while !matches!(black_box(reader.take(&b, &source, SOURCE)), Ok(Take::Empty)) {}
        });
    });
    group.finish();
}

/// One end of a conversation between two threads.
struct End {
    own: OwnSide,
    far: PeerSide,
    writer: LaneWriter,
    reader: LaneReader,
    slot: SlotCopy,
}

impl End {
    fn say(&mut self) {
        while self.writer.has_room(&self.far) == Ok(false) {
            std::hint::spin_loop();
        }
        self.writer.publish(&self.own, black_box(&mut self.slot));
        // As a sender does: the peer attends, so that it is not rung for.
        look_again();
        black_box(self.far.attending());
    }

    fn hear(&mut self) {
        while !matches!(black_box(self.reader.take(&self.own, &self.far, SOURCE)), Ok(Take::Message(_))) {
            std::hint::spin_loop();
        }
    }
}

/// Time of so many round trips between this thread and another, each on its own processor where there are two.
fn round_trips(count: u64) -> Duration {
    let cpus = cpus_allowed().unwrap_or_default();
    let pin = |which: usize| cpus.get(which).map(|cpu| pin_to(*cpu));
    let (a, b) = (OwnSide::heap(), OwnSide::heap());
    let end = |own: &OwnSide, far: &OwnSide| {
        own.set_attending(true);
        let (writer, reader) = (LaneWriter::default(), LaneReader::default());
        End { own: own.clone(), far: far.as_peer(), writer, reader, slot: message(0) }
    };
    let (mut here, mut there) = (end(&a, &b), end(&b, &a));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(1);
            for _ in 0..=count {
                there.hear();
                there.say();
            }
        });
        // A thread of its own, so that being pinned ends with the measurement.
        let measured = scope.spawn(|| {
            pin(0);
            here.say();
            here.hear();
            let began = Instant::now();
            for _ in 0..count {
                here.say();
                here.hear();
            }
            began.elapsed()
        });
        measured.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn two_threads(c: &mut Criterion) {
    let mut group = c.benchmark_group("lane");
    group.throughput(Throughput::Elements(2));
    group.bench_function("round_trip_two_threads", |bencher| bencher.iter_custom(round_trips));
    group.finish();
}

criterion_group!(benches, one_thread, two_threads);
criterion_main!(benches);
