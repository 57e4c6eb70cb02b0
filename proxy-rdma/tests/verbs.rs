//! Verbs between two devices, or within one: on a machine that has any. Elsewhere `cargo run -p ci -- rxe` gives two.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy_rdma::verbs::{
    Address, Capacity, Channel, Context, Cq, Domain, Done, DoneError, Kind, Memory, Pair, Part, Path,
    Payload, Ready, Remote, Rights, Srq, VerbsError, Work, WorkKind, device_names,
};
use shm::map::Mapping;
use shm::os::fdpass::wait_ready;
use shm::os::memfd;

/// Nothing takes longer, under emulation either.
const LONG: Duration = Duration::from_secs(20);
const PORT: u8 = 1;
const BUFFER_BYTES: u32 = 4096;
const BUFFERS: u32 = 16;
const CAPACITY: Capacity = Capacity { work: 64, parts: 4, inline_bytes: 128 };
const PATH: Path = Path {
    port: PORT,
    gid_index: 0,
    traffic_class: 0,
    service_level: 0,
    timeout: 14,
    retries: 7,
    reads: 4,
    reads_asked: 4,
};

/// One end: what it takes to be one.
struct End {
    context: Arc<Context>,
    domain: Arc<Domain>,
    queue: Arc<Cq>,
    buffers: Arc<Srq>,
    frames: Memory,
    gid: (u8, [u8; 16]),
    /// Taken out of the queue, and not asked for yet.
    backlog: RefCell<VecDeque<Done>>,
}

impl End {
    fn open(name: &str) -> End {
        let context = Context::open(name).expect("a device");
        let domain = Domain::new(&context).expect("a domain");
        let channel = Channel::new(&context).expect("a channel");
        let queue = Cq::new(&channel, 256).expect("a queue");
        let buffers = Srq::new(&domain, BUFFERS).expect("a shared receive queue");
        let frames = anonymous(&domain, (BUFFERS * BUFFER_BYTES) as usize, Rights::Local);
        let port = context.port(PORT).expect("a port");
        assert!(port.is_active, "{name} is not up");
        // The last one is of an IPv4 address, where there is one.
        let gids = (0..port.gids.min(256)).rev();
        let gid = gids.clone().find_map(|at| Some((at as u8, context.gid(PORT, at).ok()?)));
        let routable = gids.into_iter().find_map(|at| {
            let gid = context.gid(PORT, at).ok()?;
            (gid[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]).then_some((at as u8, gid))
        });
        let gid = routable.or(gid).expect("an address");
        End { context, domain, queue, buffers, frames, gid, backlog: RefCell::default() }
    }

    fn lend(&self, count: u32) {
        let of = |at: u32| (u64::from(at), self.frames.part((at * BUFFER_BYTES) as usize, BUFFER_BYTES));
        let all: Vec<(u64, Part)> = (0..count).map(of).map(|(n, part)| (n, part.expect("inside"))).collect();
        assert_eq!(self.buffers.lend(&all), Ok(count as usize));
    }

    fn frame(&self, name: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.frames.read_into(name as usize * BUFFER_BYTES as usize, &mut bytes).expect("inside");
        bytes
    }

    /// The next completion, slept for.
    fn done(&self) -> Done {
        let mut backlog = self.backlog.borrow_mut();
        let end = Instant::now() + LONG;
        let mut some = Vec::new();
        loop {
            self.queue.poll(&mut some).expect("a queue that works");
            backlog.extend(some.drain(..));
            if let Some(done) = backlog.pop_front() {
                return done;
            }
            self.queue.arm().expect("told");
            if self.queue.poll(&mut some).expect("a queue that works") > 0 {
                backlog.extend(some.drain(..));
                continue;
            }
            let left = end.saturating_duration_since(Instant::now());
            let ready = wait_ready(self.queue.channel().as_fd(), rustix::event::PollFlags::IN, Some(left));
            assert!(ready.expect("a wait"), "nothing was done in time");
            self.queue.clear();
        }
    }
}

fn anonymous(domain: &Arc<Domain>, len: usize, rights: Rights) -> Memory {
    let map = Mapping::anonymous(len.next_multiple_of(4096)).expect("memory");
    Memory::register(domain, &map, (0, len), rights).expect("registered")
}

fn remote(memory: &Memory) -> Remote {
    Remote { address: memory.address(), key: memory.remote_key() }
}

/// Two ends and a pair between them, of the first two devices, or both of the only one.
struct Two {
    ends: [End; 2],
    pairs: [Ready; 2],
}

impl Two {
    fn new() -> Option<Two> {
        Two::over(PATH)
    }

    fn over(path: Path) -> Option<Two> {
        let names = device_names().unwrap_or_default();
        let [first, second] = match &names[..] {
            [] => {
                println!("not run: there is no RDMA device here (cargo run -p ci -- rxe gives two)");
                return None;
            }
            [only] => [only, only],
            [first, second, ..] => [first, second],
        };
        let ends = [first, second].map(|name| End::open(name));
        let pairs = Two::connected(&ends, path);
        Some(Two { ends, pairs })
    }

    fn connected(ends: &[End; 2], path: Path) -> [Ready; 2] {
        let pairs = [0, 1].map(|at: usize| {
            let end = &ends[at];
            Pair::new(&end.domain, (&end.queue, &end.queue), &end.buffers, CAPACITY).expect("a pair")
        });
        let address = |at: usize, pair: &Pair| {
            let port = ends[at].context.port(PORT).expect("a port");
            let first_packet = 1000 + at as u32;
            Address { gid: ends[at].gid.1, lid: port.lid, number: pair.number(), first_packet, mtu: port.mtu }
        };
        let addresses = [address(0, &pairs[0]), address(1, &pairs[1])];
        let [one, two] = pairs;
        let path = |at: usize| Path { gid_index: ends[at].gid.0, ..path };
        [
            one.connect(&addresses[0], &addresses[1], &path(0)).expect("connected"),
            two.connect(&addresses[1], &addresses[0], &path(1)).expect("connected"),
        ]
    }

    fn post(&self, kind: WorkKind, payload: Payload<'_>) {
        let work = Work { name: 77, kind, payload, signalled: true, fenced: false };
        assert_eq!(self.pairs[0].post(&[work]), Ok(1));
    }
}

#[test]
fn messages_come_into_lent_buffers_in_their_order() {
    let Some(two) = Two::new() else { return };
    two.ends[1].lend(BUFFERS);
    let source = anonymous(&two.ends[0].domain, 8192, Rights::Source);
    source.write_from(0, b"head and pieces").expect("inside");
    let parts = [source.part(0, 4), source.part(5, 3), source.part(9, 6)].map(|part| part.expect("inside"));
    let inline = |bytes, with| Work {
        name: 1,
        kind: WorkKind::Send(with),
        payload: Payload::Inline(bytes),
        signalled: false,
        fenced: false,
    };
    let of_parts = Work { name: 3, payload: Payload::Parts(&parts), signalled: true, ..inline(b"", None) };
    let batch = [inline(b"first", None), inline(b"second", Some(0xdead_beef)), of_parts];
    assert_eq!(two.pairs[0].post(&batch), Ok(3), "with one doorbell");
    for (text, with) in [(&b"first"[..], None), (b"second", Some(0xdead_beef)), (b"headandpieces", None)] {
        let done = two.ends[1].done();
        assert_eq!(done.result, Ok((Kind::Received(with), text.len() as u32)));
        assert_eq!(done.pair, two.pairs[1].number());
        assert_eq!(two.ends[1].frame(done.name, text.len() as u32), text);
    }
    let done = two.ends[0].done();
    assert_eq!((done.name, done.result.map(|(kind, _)| kind)), (3, Ok(Kind::Sent)), "the last of the batch");
}

#[test]
fn a_long_batch_needs_no_more_than_its_room() {
    let Some(two) = Two::new() else { return };
    two.ends[1].lend(BUFFERS);
    let mut received = 0u64;
    for round in 0..8u64 {
        let texts: Vec<[u8; 8]> = (0..8).map(|at| (round * 8 + at).to_le_bytes()).collect();
        let batch: Vec<Work<'_>> = texts
            .iter()
            .enumerate()
            .map(|(at, text)| Work {
                name: round,
                kind: WorkKind::Send(None),
                payload: Payload::Inline(text),
                signalled: at == 7,
                fenced: false,
            })
            .collect();
        assert_eq!(two.pairs[0].post(&batch), Ok(8));
        for _ in 0..8 {
            let done = two.ends[1].done();
            assert_eq!(two.ends[1].frame(done.name, 8), received.to_le_bytes());
            let part = two.ends[1].frames.part(done.name as usize * BUFFER_BYTES as usize, BUFFER_BYTES);
            assert_eq!(two.ends[1].buffers.lend(&[(done.name, part.expect("inside"))]), Ok(1));
            received += 1;
        }
        assert_eq!(two.ends[0].done().name, round);
    }
}

#[test]
fn memory_is_read_and_written_by_its_key_and_a_number_tells_of_it() {
    let Some(two) = Two::new() else { return };
    two.ends[1].lend(1);
    const LEN: usize = 512 << 10;
    let own = anonymous(&two.ends[0].domain, LEN, Rights::Local);
    let readable = anonymous(&two.ends[1].domain, LEN, Rights::RemoteRead);
    let writable = anonymous(&two.ends[1].domain, LEN, Rights::RemoteWrite);
    let pattern: Vec<u8> = (0..LEN).map(|at| (at * 7 + at / 4096) as u8).collect();
    readable.write_from(0, &pattern).expect("inside");
    let whole = [own.part(0, LEN as u32).expect("inside")];
    two.post(WorkKind::Read(remote(&readable)), Payload::Parts(&whole));
    assert_eq!(two.ends[0].done().result.map(|(kind, _)| kind), Ok(Kind::Read));
    let mut seen = vec![0; LEN];
    own.read_into(0, &mut seen).expect("inside");
    assert!(seen == pattern, "what was read");

    two.post(WorkKind::Write(remote(&writable)), Payload::Parts(&whole));
    assert_eq!(two.ends[0].done().result.map(|(kind, _)| kind), Ok(Kind::Written));
    writable.read_into(0, &mut seen).expect("inside");
    assert!(seen == pattern, "what was written");

    two.post(WorkKind::WriteWith(remote(&writable), 9), Payload::Inline(b"told of"));
    assert_eq!(two.ends[0].done().result.map(|(kind, _)| kind), Ok(Kind::Written));
    assert_eq!(two.ends[1].done().result, Ok((Kind::WrittenHere(9), 7)));
    writable.read_into(0, &mut seen[..7]).expect("inside");
    assert_eq!(&seen[..7], b"told of");
}

/// What becomes of one request: of it, and of the next one on the same pair.
fn refused(two: &Two, kind: WorkKind, own: &Memory) -> (DoneError, DoneError) {
    let part = [own.part(0, 64).expect("inside")];
    two.post(kind, Payload::Parts(&part));
    let first = two.ends[0].done().result.expect_err("refused");
    two.post(kind, Payload::Parts(&part));
    (first, two.ends[0].done().result.expect_err("the pair has failed"))
}

#[test]
fn a_key_that_is_wrong_or_dead_or_of_another_domain_reads_and_writes_nothing() {
    let Some(two) = Two::new() else { return };
    let own = anonymous(&two.ends[0].domain, 4096, Rights::Local);
    own.write_from(0, &[7; 64]).expect("inside");
    let readable = anonymous(&two.ends[1].domain, 4096, Rights::RemoteRead);
    readable.write_from(0, b"a secret").expect("inside");
    let good = remote(&readable);
    let expected = (DoneError::RemoteMemory, DoneError::Flushed);
    let elsewhere = Domain::new(&two.ends[1].context).expect("a domain");
    let of_another = anonymous(&elsewhere, 4096, Rights::RemoteWrite);
    let local = anonymous(&two.ends[1].domain, 4096, Rights::Local);
    for (what, kind) in [
        ("a guess", WorkKind::Read(Remote { key: good.key ^ 0x55, ..good })),
        ("beyond the end", WorkKind::Read(Remote { address: good.address + 4090, ..good })),
        ("before the beginning", WorkKind::Read(Remote { address: good.address - 1, ..good })),
        ("to write what is there to be read", WorkKind::Write(good)),
        ("memory for our own device alone", WorkKind::Read(remote(&local))),
        ("another domain's, to read", WorkKind::Read(remote(&of_another))),
        ("another domain's, to write", WorkKind::Write(remote(&of_another))),
    ] {
        let fresh = Two { pairs: Two::connected(&two.ends, PATH), ends: two_ends(&two) };
        assert_eq!(refused(&fresh, kind, &own), expected, "{what}");
        let mut seen = [0; 64];
        own.read_into(0, &mut seen).expect("inside");
        assert_eq!(seen, [7; 64], "{what}: read all the same");
        let mut theirs = [0; 64];
        of_another.read_into(0, &mut theirs).expect("inside");
        assert_eq!(theirs, [0; 64], "{what}: written all the same");
    }
    drop(readable);
    let fresh = Two { pairs: Two::connected(&two.ends, PATH), ends: two_ends(&two) };
    assert_eq!(refused(&fresh, WorkKind::Read(good), &own), expected, "a key that was taken back");
}

/// The same ends, for more pairs.
fn two_ends(two: &Two) -> [End; 2] {
    [0, 1].map(|at: usize| {
        let end = &two.ends[at];
        End {
            context: Arc::clone(&end.context),
            domain: Arc::clone(&end.domain),
            queue: Arc::clone(&end.queue),
            buffers: Arc::clone(&end.buffers),
            frames: anonymous(&end.domain, 4096, Rights::Local),
            gid: end.gid,
            backlog: RefCell::default(),
        }
    })
}

#[test]
fn an_end_that_is_gone_is_no_answer_and_what_was_behind_is_flushed() {
    let Some(two) = Two::over(Path { timeout: 8, retries: 1, ..PATH }) else { return };
    let Two { ends, pairs: [one, other] } = two;
    drop(other);
    let work = |name| Work {
        name,
        kind: WorkKind::Send(None),
        payload: Payload::Inline(b"anybody?"),
        signalled: true,
        fenced: false,
    };
    assert_eq!(one.post(&[work(1)]), Ok(1));
    assert_eq!(ends[0].done().result, Err(DoneError::NoAnswer));
    assert_eq!(one.post(&[work(2)]), Ok(1));
    assert_eq!(ends[0].done().result, Err(DoneError::Flushed));
}

#[test]
fn a_pair_that_is_ended_gives_back_what_it_has() {
    let Some(two) = Two::new() else { return };
    // The other end has lent no buffer: it stands.
    two.post(WorkKind::Send(None), Payload::Inline(b"waits"));
    two.pairs[0].fail().expect("ended");
    assert_eq!(two.ends[0].done().result, Err(DoneError::Flushed));
}

#[test]
fn a_message_longer_than_its_buffer_is_refused_at_both_ends() {
    let Some(two) = Two::new() else { return };
    two.ends[1].lend(1);
    let source = anonymous(&two.ends[0].domain, 8192, Rights::Source);
    let part = [source.part(0, BUFFER_BYTES + 1).expect("inside")];
    two.post(WorkKind::Send(None), Payload::Parts(&part));
    // Soft-RoCE knows no better word for it.
    let here = two.ends[1].done().result.expect_err("refused");
    assert!(matches!(here, DoneError::TooLong | DoneError::BadRequest), "{here:?}");
    let there = two.ends[0].done().result.expect_err("refused");
    assert!(matches!(there, DoneError::RemoteBadRequest | DoneError::RemoteFailed), "{there:?}");
}

#[test]
fn what_cannot_be_is_refused_before_a_device_sees_it() {
    let asked = "no-such-device";
    match Context::open(asked).map(drop) {
        Err(VerbsError::NoDevices) => return println!("not run: there is no RDMA device here"),
        refused => assert!(matches!(refused, Err(VerbsError::NoSuchDevice { .. })), "{refused:?}"),
    }
    let Some(two) = Two::new() else { return };
    let end = &two.ends[0];
    assert!(matches!(end.context.gid(PORT, 100_000), Err(VerbsError::NoSuchGid { .. })));
    let own = anonymous(&end.domain, 4096, Rights::Local);
    assert_eq!(own.part(4000, 97).map(|_| ()), Err(VerbsError::OutOfRange));
    let map = Mapping::anonymous(4096).expect("memory");
    let beyond = Memory::register(&end.domain, &map, (4000, 97), Rights::Local).map(drop);
    assert_eq!(beyond, Err(VerbsError::OutOfRange));
    let long = [0; 4096];
    let work =
        |payload| Work { name: 1, kind: WorkKind::Send(None), payload, signalled: true, fenced: false };
    let inline = two.pairs[0].post(&[work(Payload::Inline(&long))]);
    assert!(matches!(inline, Err(VerbsError::TooMany(_))), "{inline:?}");
    let parts = vec![own.part(0, 1).expect("inside"); 100];
    let many = two.pairs[0].post(&[work(Payload::Parts(&parts))]);
    assert!(matches!(many, Err(VerbsError::TooMany(_))), "{many:?}");
    let huge = Cq::new(end.queue.channel(), i32::MAX as u32).map(drop);
    assert!(matches!(huge, Err(VerbsError::Refused { .. })), "{huge:?}");
}

#[test]
fn a_peers_sealed_memory_is_a_source_where_the_kernel_lets_it() {
    let Some(two) = Two::new() else { return };
    let (fd, _) = memfd::segment_fd("verbs-test", 8192, false).expect("a segment");
    let owner = Mapping::shared(fd.as_fd(), 0, 8192, shm::map::Access::ReadWrite).expect("mapped");
    memfd::seal(fd.as_fd()).expect("sealed");
    owner.write_from(100, b"where it lies").expect("inside");
    let view = Mapping::shared(fd.as_fd(), 0, 8192, shm::map::Access::ReadOnly).expect("mapped");
    let written = Memory::register(&two.ends[0].domain, &view, (0, 8192), Rights::Local).map(drop);
    assert_eq!(written, Err(VerbsError::ReadOnlyMemory), "nobody writes a peer's memory");
    let source = match Memory::register(&two.ends[0].domain, &view, (0, 8192), Rights::Source) {
        Ok(source) => source,
        Err(VerbsError::ReadOnlyMemory) => return println!("not run: {}", VerbsError::ReadOnlyMemory),
        Err(other) => panic!("{other}"),
    };
    two.ends[1].lend(1);
    two.post(WorkKind::Send(None), Payload::Parts(&[source.part(100, 13).expect("inside")]));
    let done = two.ends[1].done();
    assert_eq!(two.ends[1].frame(done.name, 13), b"where it lies");
}

#[test]
fn locked_memory_beyond_the_limit_is_named() {
    let Some(two) = Two::new() else { return };
    const CHILD: &str = "VERBS_TEST_CHILD";
    if std::env::var_os(CHILD).is_none() {
        // Root is free from the limit.
        let mut child = std::process::Command::new("setpriv");
        child.args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "prlimit",
            "--memlock=1048576:1048576",
        ]);
        child.arg(std::env::current_exe().expect("this program"));
        child.args(["locked_memory_beyond_the_limit_is_named", "--exact", "--test-threads=1", "--nocapture"]);
        let done = child.env(CHILD, "1").output();
        let Ok(done) = done else { return println!("not run: no setpriv or prlimit here") };
        let said = String::from_utf8_lossy(&done.stdout);
        if !done.status.success() && said.is_empty() {
            return println!("not run: {}", String::from_utf8_lossy(&done.stderr).trim());
        }
        assert!(done.status.success(), "{said}");
        return;
    }
    let len = 16 << 20;
    let map = Mapping::anonymous(len).expect("memory");
    let refused = Memory::register(&two.ends[0].domain, &map, (0, len), Rights::Local).map(drop);
    assert_eq!(refused, Err(VerbsError::MemoryLimit { bytes: len }));
}
