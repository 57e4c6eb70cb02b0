//! A `sendrec` through two kernels without a daemon: in one thread, which is what its instructions cost, and between two
//! threads that spin, which adds the way of the cache lines.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use abi::table::{self, Entry, State};
use abi::{DcId, Endpoint, Generation, NodeId, Slot, doorbell};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dvk::core::{Accepts, Core, Host, Introduced, PeerIndex, Pulled};
use dvk::{Delivery, Message, Unavailable};
use shm::doorbell::Doorbells;
use shm::map::Mapping;
use shm::os::process::{cpus_allowed, pin_to};
use shm::pool::Pool;
use shm::side::OwnSide;
use shm::words::OwnWords;

const REQUESTS: Accepts = Accepts { notifications: false, attend: true };
const BODY: [u8; 64] = [7; 64];

/// There is nothing to ask a daemon for.
struct Nobody;

impl Host for Nobody {
    fn map_granted(&mut self, _: u32, _: u32, _: bool) -> Result<Arc<Mapping>, Unavailable> {
        Err(Unavailable::Broken)
    }

    fn map_segment(&mut self, _: u32, _: u32) -> Result<Arc<Mapping>, Unavailable> {
        Err(Unavailable::Broken)
    }

    fn recycled(&mut self, _: Endpoint) {}

    fn pull(&mut self, _: bool) -> Result<Option<Pulled>, Unavailable> {
        Ok(None)
    }
}

fn at(slot: u16) -> Endpoint {
    Endpoint::new(DcId(1), Slot(slot), Generation(1))
}

/// What two kernels share.
#[derive(Clone)]
struct Shared {
    table: OwnWords,
    doorbells: Doorbells,
    sides: [OwnSide; 2],
}

impl Shared {
    fn new() -> Shared {
        let table = OwnWords::heap(table::VERSION + 1);
        for slot in 0..2 {
            let entry = Entry {
                state: State::Bound,
                node: NodeId(1),
                proxy: 0,
                generation: at(slot).generation,
                level: abi::Level::Server,
            };
            table.store(table::of_slot(Slot(slot)), entry.to_word(), shm::sync::Ordering::Release);
        }
        Shared { table, doorbells: Doorbells::heap(), sides: [OwnSide::heap(), OwnSide::heap()] }
    }

    /// The kernel of one end, and its pair with the other.
    fn end(&self, n: usize) -> (Core, PeerIndex) {
        let mut core =
            Core::new(at(n as u16), self.doorbells.clone(), self.table.as_peer(), Pool::new(1 << 20));
        let peer = at(1 - n as u16);
        let index = core.introduce(Introduced {
            peer,
            own: self.sides[n].clone(),
            side: self.sides[1 - n].as_peer(),
            memory: 1,
            doorbell: doorbell::of_slot(peer.slot),
            proxied: false,
            allowed: abi::Allowed::ALL,
            ring: None,
        });
        core.attend_to(index);
        (core, index)
    }
}

fn ask(core: &mut Core, to: PeerIndex, mut step: impl FnMut()) -> Delivery {
    let mut message = Message::new(1).inline(&BODY);
    let call = core.start_call(to, &mut message, false).expect("room for a request");
    while !core.is_answered(call) {
        step();
    }
    core.take_answer_bytes(call).expect("an answer of bytes")
}

fn answer(core: &mut Core) -> bool {
    let Some(due) = core.due(REQUESTS, &mut Nobody).expect("an honest peer") else { return false };
    let request = core.take_due_bytes(due, REQUESTS).expect("a request of bytes");
    let reply = Message::new(request.kind()).inline(request.inline());
    core.reply(&request, reply).expect("it waits");
    true
}

fn one_thread(c: &mut Criterion) {
    let mut group = c.benchmark_group("call");
    group.throughput(Throughput::Elements(1));
    let shared = Shared::new();
    let ((mut client, to), (mut server, _)) = (shared.end(0), shared.end(1));
    group.bench_function("one_thread", |bencher| {
        bencher.iter(|| black_box(ask(&mut client, to, || while !answer(&mut server) {})));
    });
    group.finish();
}

fn two_threads(c: &mut Criterion) {
    let cpus = cpus_allowed().unwrap_or_default();
    let [here, there, ..] = cpus[..] else { return eprintln!("not run: call/two_threads: one processor") };
    let mut group = c.benchmark_group("call");
    group.throughput(Throughput::Elements(1));
    group.bench_function("two_threads", |bencher| {
        bencher.iter_custom(|rounds| {
            let (shared, over) = (Shared::new(), Arc::new(AtomicBool::new(false)));
            let echo = {
                let (shared, over) = (shared.clone(), over.clone());
                std::thread::spawn(move || {
                    let _ = pin_to(there);
                    let (mut server, _) = shared.end(1);
                    while !over.load(Ordering::Relaxed) {
                        while answer(&mut server) {}
                        std::hint::spin_loop();
                    }
                })
            };
            let took = std::thread::spawn(move || -> Duration {
                let _ = pin_to(here);
                let (mut client, to) = shared.end(0);
                let began = Instant::now();
                for _ in 0..rounds {
                    black_box(ask(&mut client, to, std::hint::spin_loop));
                }
                began.elapsed()
            });
            let took = took.join().expect("the client");
            over.store(true, Ordering::Relaxed);
            echo.join().expect("the server");
            took
        });
    });
    group.finish();
}

criterion_group!(benches, one_thread, two_threads);
criterion_main!(benches);
