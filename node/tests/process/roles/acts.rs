//! What an attacker does to whoever has a pair with it: one function each, by name.
//!
//! Where an act is to meet a certain check, everything before that check is as it must be.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use abi::grant::{self, CopyRequest, Grant, Role};
use abi::limits::{EXTENTS_PER_PAIR_MAX, LANE_SLOTS, LOAN_BYTES_MAX};
use abi::member::{Reply, Request, SegmentKind, WORDS};
use abi::slot::{self, BODY_WORDS, Head, Kind, SlotCopy};
use abi::{Claim, Endpoint, NodeId, doorbell, side};
use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use rustix::io::Errno;
use shm::lane;
use shm::map::{Access, Mapping};
use shm::reply;
use shm::returns;
use shm::side::Mirrored;
use shm::sync::Ordering;

use super::attacker::{Attacker, Raw};
use super::friend::GRANT;

/// How often, and how long at a time, an act waits for its moment.
const WAITS: u32 = 60;
const WAIT: Duration = Duration::from_micros(200);

type Act = fn(&mut Attacker<'_>);

pub const ACTS: &[(&str, Act)] = &[
    ("anything over its side", anything),
    ("credits forged", credits),
    ("a slot out of its sequence", sequence),
    ("a slot in another's name", source),
    ("a reply on a lane", reply_on_lane),
    ("a slot of no kind", no_kind),
    ("flags that there are not", no_flags),
    ("a length beyond the slot", no_length),
    ("an extent outside its segment", extent_outside),
    ("an extent in no segment", extent_nowhere),
    ("an extent that is too long", extent_too_long),
    ("an extent that changes under its reader", extent_changes),
    ("extents given back that were not lent", returns_of_nothing),
    ("more given back than can be out", too_many_returns),
    ("a reply in another's name", |attacker| replies(attacker, Answer::InAnothersName)),
    ("a reply to another call", |attacker| replies(attacker, Answer::ToAnotherCall)),
    ("a reply with an extent that is none", |attacker| replies(attacker, Answer::WithNothing)),
    ("a request let fall", |attacker| replies(attacker, Answer::LetFall)),
    ("a call passed on to who has not got it", |attacker| replies(attacker, Answer::PassedOn)),
    ("a call passed on to nobody", |attacker| replies(attacker, Answer::PassedOnToNobody)),
    ("a request passed on that nobody made", relays),
    ("a copy that is none", copies),
    ("a grant that is none", grants),
    ("the doorbell page overwritten", doorbells),
    ("everybody rung all the time", rings),
    ("a flood of posts", flood),
    ("a slot taken back while it is read", withdraws),
    ("a request taken, and its taker gone", takes_and_goes),
    ("asleep in the middle of a step", asleep),
    ("memory cut off while it is shared", truncates),
    ("memory spoilt before its seal", spoils),
    ("requests to the daemon that make no sense", nonsense),
    ("connections and descriptors closed", hangs_up),
];

/// A slot as it should be, but for its place in the stream.
pub fn slot_of(source: Endpoint, kind: Kind, flags: u8) -> SlotCopy {
    let (head, source) = (lane::head(kind, flags), source.to_word());
    SlotCopy { head, source, sequence: 0, kind: 7, call: 0, body: [0x61; BODY_WORDS] }
}

/// Publishes a slot, changed by `change` after all of it but its head is there; rings.
fn publish(attacker: &mut Attacker<'_>, slot: &mut SlotCopy, change: impl Fn(&mut [u64; slot::WORDS])) {
    let Some(at) = attacker.pair() else { return };
    let pair = &mut attacker.pairs[at];
    let sequence = pair.writer.next();
    slot.sequence = sequence;
    slot.head = Head { lap: slot::lap(sequence), ..slot.head };
    let mut words = slot.to_words();
    change(&mut words);
    let first = side::LANE + (sequence % LANE_SLOTS) as usize * slot::WORDS;
    for (n, word) in words.iter().enumerate().rev() {
        pair.own.words().store(first + n, *word, Ordering::Release);
    }
    pair.writer = lane::LaneWriter::from_sequence(sequence + 1);
    attacker.ring(at);
}

fn anything(attacker: &mut Attacker<'_>) {
    let Some(at) = attacker.pair() else { return };
    for _ in 0..1 + attacker.chance.below(200) {
        let word = attacker.chance.below(side::WORDS as u64) as usize;
        let value = match attacker.chance.below(3) {
            0 => attacker.chance.below(u64::MAX),
            1 => attacker.chance.below(64),
            _ => u64::MAX - attacker.chance.below(64),
        };
        attacker.pairs[at].own.words().store(word, value, Ordering::Release);
    }
    attacker.ring(at);
}

fn credits(attacker: &mut Attacker<'_>) {
    let Some(at) = attacker.pair() else { return };
    let consumed = 1 + attacker.chance.below(1 << 20);
    let words = Mirrored { consumed, outcome: consumed * 2, reply_taken: consumed, gave_up: 0 };
    attacker.pairs[at].own.mirror(&words);
    attacker.ring(at);
}

fn sequence(attacker: &mut Attacker<'_>) {
    let mut slot = slot_of(attacker.me, Kind::Post, 0);
    publish(attacker, &mut slot, |words| words[2] = words[2].wrapping_add(LANE_SLOTS));
}

fn source(attacker: &mut Attacker<'_>) {
    let victims = attacker.victims.len() as u64;
    let other = attacker.victims[attacker.chance.below(victims) as usize];
    let forged = Endpoint { slot: other, ..attacker.me }.to_word();
    let mut slot = slot_of(attacker.me, Kind::Post, 0);
    publish(attacker, &mut slot, |words| words[1] = forged);
}

fn reply_on_lane(attacker: &mut Attacker<'_>) {
    let mut slot = slot_of(attacker.me, Kind::Reply, 0);
    publish(attacker, &mut slot, |_| {});
}

fn no_kind(attacker: &mut Attacker<'_>) {
    let mut slot = slot_of(attacker.me, Kind::Post, 0);
    publish(attacker, &mut slot, |words| words[0] |= 0x70 << 32);
}

fn no_flags(attacker: &mut Attacker<'_>) {
    let mut slot = slot_of(attacker.me, Kind::Post, 0);
    publish(attacker, &mut slot, |words| words[0] |= 0x80 << 40);
}

fn no_length(attacker: &mut Attacker<'_>) {
    let mut slot = slot_of(attacker.me, Kind::Post, 0);
    publish(attacker, &mut slot, |words| words[0] |= 0xffff << 48);
}

fn claim(attacker: &mut Attacker<'_>, claim: Claim) {
    let mut slot = slot_of(attacker.me, Kind::Post, slot::EXTENT);
    slot.set_claim(claim);
    publish(attacker, &mut slot, |_| {});
}

fn extent_outside(attacker: &mut Attacker<'_>) {
    let (segment, len) = (attacker.pool.0, attacker.pool.1.len_bytes() as u64);
    let offset_bytes = [len - 8, len, u64::MAX - 8, 1 << 40][attacker.chance.below(4) as usize];
    claim(attacker, Claim { segment, token: 1, offset_bytes, len_bytes: 64 });
}

fn extent_nowhere(attacker: &mut Attacker<'_>) {
    let segment = 2 + attacker.chance.below(1 << 31) as u32;
    claim(attacker, Claim { segment, token: 1, offset_bytes: 0, len_bytes: 64 });
}

fn extent_too_long(attacker: &mut Attacker<'_>) {
    let len_bytes = [LOAN_BYTES_MAX as u64 + 1, u64::MAX, u64::MAX / 2][attacker.chance.below(3) as usize];
    claim(attacker, Claim { segment: attacker.pool.0, token: 1, offset_bytes: 0, len_bytes });
}

fn extent_changes(attacker: &mut Attacker<'_>) {
    let len_bytes = attacker.pool.1.len_bytes() as u64 / 2;
    claim(attacker, Claim { segment: attacker.pool.0, token: 3, offset_bytes: 0, len_bytes });
    let pool = attacker.pool.1.clone();
    for _ in 0..2000 {
        let (at, value) = (attacker.chance.below(len_bytes - 8) as usize, attacker.chance.below(u64::MAX));
        pool.write_from(at, &value.to_le_bytes()).expect("its own pool");
    }
}

fn returns_of_nothing(attacker: &mut Attacker<'_>) {
    // Looked at by who has lent something.
    let lent = |attacker: &Attacker<'_>, at: usize| {
        let head = attacker.pairs[at].side.words().load(side::LANE, Ordering::Acquire);
        head as u32 != 0 && slot::has_flag(head, slot::EXTENT)
    };
    let Some(at) = wait_for(attacker, lent) else { return };
    for _ in 0..1 + attacker.chance.below(4) {
        let (token, memory) = (attacker.chance.below(1 << 20) as u32, attacker.chance.below(200) as u32);
        returns::give(&attacker.pairs[at].own, token, memory);
    }
    attacker.ring(at);
    // Its owner looks when it next has something to send.
    std::thread::sleep(WAIT * WAITS);
}

fn too_many_returns(attacker: &mut Attacker<'_>) {
    let Some(at) = attacker.pair() else { return };
    let tail = EXTENTS_PER_PAIR_MAX + 1 + attacker.chance.below(u64::MAX / 2);
    attacker.pairs[at].own.words().store(side::RETURNS_TAIL, tail, Ordering::Release);
    attacker.ring(at);
}

/// Waits a little until something is so of one of its pairs.
fn wait_for(attacker: &mut Attacker<'_>, is: impl Fn(&Attacker<'_>, usize) -> bool) -> Option<usize> {
    for _ in 0..WAITS {
        attacker.pull();
        if let Some(at) = (0..attacker.pairs.len()).find(|at| is(attacker, *at)) {
            return Some(at);
        }
        std::thread::sleep(WAIT);
    }
    None
}

fn calls(attacker: &Attacker<'_>, at: usize) -> bool {
    attacker.pairs[at].side.calling() != 0
}

/// What a call is answered with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    InAnothersName,
    ToAnotherCall,
    WithNothing,
    LetFall,
    PassedOn,
    PassedOnToNobody,
}

/// Waits a little for calls, and answers each in this way.
fn replies(attacker: &mut Attacker<'_>, answer: Answer) {
    let mut answered = BTreeSet::new();
    for _ in 0..WAITS {
        let waits = |attacker: &Attacker<'_>, at: usize| {
            calls(attacker, at) && !answered.contains(&attacker.pairs[at].peer)
        };
        attacker.pull();
        if let Some(at) = (0..attacker.pairs.len()).find(|at| waits(attacker, *at)) {
            answered.insert(attacker.pairs[at].peer);
            reply_to(attacker, at, answer);
        }
        std::thread::sleep(WAIT);
    }
}

fn reply_to(attacker: &mut Attacker<'_>, at: usize, answer: Answer) {
    let call = attacker.pairs[at].side.calling();
    let other = Endpoint { slot: attacker.victims[0], ..attacker.me }.to_word();
    let flags = match answer {
        Answer::InAnothersName | Answer::ToAnotherCall => 0,
        Answer::WithNothing => slot::EXTENT,
        Answer::LetFall => slot::ABANDONED,
        Answer::PassedOn | Answer::PassedOnToNobody => slot::REDIRECT,
    };
    let mut slot = slot_of(attacker.me, Kind::Reply, flags);
    match answer {
        Answer::InAnothersName => slot.source = other,
        Answer::PassedOn => slot.body[0] = other,
        _ => {}
    }
    let own = &attacker.pairs[at].own;
    reply::publish(own, call, &slot, false);
    if answer == Answer::ToAnotherCall {
        // The lap of this call, and the number of another.
        let entry = side::REPLIES + (call % abi::limits::REPLY_SLOTS) as usize * slot::WORDS;
        own.words().store(entry + 2, call + 1, Ordering::Release);
    }
    attacker.ring(at);
}

fn takes_and_goes(attacker: &mut Attacker<'_>) {
    let Some(at) = wait_for(attacker, calls) else { return };
    // All that there is to be taken, as far as the lane shows it.
    let published = |sequence: &u64| {
        let at_slot = side::LANE + (sequence % LANE_SLOTS) as usize * slot::WORDS;
        attacker.pairs[at].side.words().load(at_slot, Ordering::Acquire) as u32 == slot::lap(*sequence)
    };
    let consumed = (0..LANE_SLOTS).take_while(published).count() as u64;
    let words = Mirrored { consumed, outcome: consumed * 2 + 1, ..Mirrored::default() };
    attacker.pairs[at].own.mirror(&words);
    attacker.is_over = true;
}

fn relays(attacker: &mut Attacker<'_>) {
    let victims = attacker.victims.len() as u64;
    let somebody = attacker.victims[attacker.chance.below(victims) as usize];
    let client = match attacker.chance.below(3) {
        0 => 0,
        1 => u64::MAX,
        _ => Endpoint { slot: somebody, ..attacker.me }.to_word(),
    };
    let kinds = [Kind::Via, Kind::Relayed, Kind::Confirm];
    for _ in 0..1 + attacker.chance.below(3) {
        let kind = kinds[attacker.chance.below(3) as usize];
        let mut slot = slot_of(attacker.me, kind, 0);
        (slot.body[0], slot.body[1]) = (client, attacker.chance.below(5));
        publish(attacker, &mut slot, |_| {});
    }
}

fn copies(attacker: &mut Attacker<'_>) {
    let Some(at) = attacker.pair() else { return };
    let roles = [Role::Receive, Role::Send, Role::Within, Role::Cancel];
    let invented = grant::Range { place: attacker.chance.below(1 << 40), generation: 1, offset_bytes: 0 };
    let ranges = [grant::Range::own(attacker.chance.below(3) as u32, 0), invented];
    let request = CopyRequest {
        role: roles[attacker.chance.below(4) as usize],
        node: NodeId(attacker.chance.below(4) as u16),
        begun: attacker.chance.below(2) == 0,
        len_bytes: attacker.chance.below(1 << 20),
        theirs: ranges[attacker.chance.below(2) as usize],
        range: ranges[attacker.chance.below(2) as usize],
        other: attacker.pairs[0].peer.to_word(),
        beside: attacker.chance.below(3),
    };
    let words = attacker.pairs[at].own.words().clone();
    for (n, word) in request.to_words().iter().enumerate() {
        let value = if attacker.chance.below(20) == 0 { attacker.chance.below(u64::MAX) } else { *word };
        words.store(side::COPY + 1 + n, value, Ordering::Release);
    }
    // Even: it stands.
    words.store(side::COPY, 2 * (1 + attacker.chance.below(9)), Ordering::Release);
    words.store(side::COPY_ANSWER, attacker.chance.below(1 << 9), Ordering::Release);
    words.store(side::COPYING, attacker.chance.below(u64::MAX), Ordering::Release);
    attacker.ring(at);
}

/// Gives away a grant of a range that there is not, in a table that changes while it is looked at.
fn grants(attacker: &mut Attacker<'_>) {
    let made = attacker.daemon.new_segment(SegmentKind::Grants, grant::TABLE_BYTES as u64);
    let Ok((table, words)) = made else { return attacker.said("a table of grants", made.map(|_| ())) };
    let made = attacker.daemon.new_segment(SegmentKind::GrantRead, 8192);
    let Ok((segment, _)) = made else { return attacker.said("memory to grant", made.map(|_| ())) };
    let Some(at) = attacker.pair() else { return };
    let peer = attacker.pairs[at].peer;
    let granted = attacker.daemon.grant(segment, peer);
    attacker.said("grant", granted);
    let offset = [0, 8192, u64::MAX - 100][attacker.chance.below(3) as usize];
    let len = [8192, 1 << 40, u64::MAX][attacker.chance.below(3) as usize];
    let named = [segment as u64, 1, 77][attacker.chance.below(3) as usize];
    let entry = [grant::live(1), peer.to_word(), named | 1 << 32, offset, len];
    for (n, word) in entry.iter().enumerate() {
        words.write_from(n * 8, &word.to_le_bytes()).expect("its own table");
    }
    let access = grant::Access::Read;
    let given = Grant { owner: attacker.me, table, index: 0, generation: 1, access, len_bytes: 8192 };
    let mut slot = slot_of(attacker.me, Kind::Post, 0);
    slot.kind = GRANT;
    slot.set_inline(&given.to_bytes());
    publish(attacker, &mut slot, |_| {});
    for _ in 0..50 {
        std::thread::sleep(Duration::from_micros(50));
        let (at, value) = (attacker.chance.below(5) as usize, attacker.chance.below(1 << 40));
        words.write_from(at * 8, &value.to_le_bytes()).expect("its own table");
    }
}

fn doorbells(attacker: &mut Attacker<'_>) {
    let raw = Raw::hello();
    let page = raw.doorbells.as_ref().expect("it comes with the welcome");
    let page =
        Mapping::shared(page.as_fd(), 0, doorbell::BYTES, Access::ReadWrite).expect("everybody writes it");
    for _ in 0..20_000 {
        let at = attacker.chance.below(doorbell::BYTES as u64 / 8) as usize * 8;
        let value = match attacker.chance.below(3) {
            0 => attacker.chance.below(4),
            1 => 0,
            _ => attacker.chance.below(u64::MAX),
        };
        page.write_from(at, &value.to_le_bytes()).expect("within the page");
    }
}

fn rings(attacker: &mut Attacker<'_>) {
    let doorbells = attacker.daemon.welcome().doorbells.clone();
    for _ in 0..20_000 {
        let (bell, bit) = (attacker.chance.below(doorbell::COUNT as u64), attacker.chance.below(4096));
        let _ = doorbells.ring(bell as usize, bit as u16);
    }
}

fn flood(attacker: &mut Attacker<'_>) {
    for _ in 0..4 * LANE_SLOTS {
        let mut slot = slot_of(attacker.me, Kind::Post, 0);
        // Whether there is room or not.
        publish(attacker, &mut slot, |_| {});
    }
}

fn withdraws(attacker: &mut Attacker<'_>) {
    let Some(at) = attacker.pair() else { return };
    let sequence = attacker.pairs[at].writer.next();
    let kind = if attacker.chance.below(2) == 0 { Kind::Send } else { Kind::Request };
    let mut slot = slot_of(attacker.me, kind, slot::WITHDRAWABLE | slot::TELL);
    slot.call = 1;
    publish(attacker, &mut slot, |_| {});
    let first = side::LANE + (sequence % LANE_SLOTS) as usize * slot::WORDS;
    for turn in 0..2000u64 {
        let flags = if turn % 2 == 0 { slot::WITHDRAWN } else { slot::WITHDRAWABLE };
        let head = Head { lap: slot::lap(sequence), ..lane::head(kind, flags) };
        attacker.pairs[at].own.words().store(first, head.to_word(), Ordering::Release);
    }
}

/// Has begun to take what it never takes, asks what it does not wait for, and sleeps.
fn asleep(attacker: &mut Attacker<'_>) {
    let mut request = slot_of(attacker.me, Kind::Request, slot::WITHDRAWABLE | slot::TELL);
    request.call = 1;
    publish(attacker, &mut request, |_| {});
    for at in 0..attacker.pairs.len() {
        let own = attacker.pairs[at].own.clone();
        own.set_taking(1 + attacker.chance.below(9));
        own.set_attending(true);
        own.set_calling(1 + attacker.chance.below(3));
    }
    let unready = Raw::bind();
    std::thread::sleep(Duration::from_millis(attacker.chance.below(20)));
    drop(unready);
}

/// What the system lets it do with a sealed descriptor.
fn mangle(attacker: &mut Attacker<'_>, fd: &OwnedFd) {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let tried = [
        ("write", rustix::io::pwrite(fd, &[1], 0).err()),
        ("truncate", ftruncate(fd, 0).err()),
        ("punch", fallocate(fd, hole, 0, 4096).err()),
    ];
    for (what, refused) in tried {
        let refused = refused.unwrap_or_else(|| panic!("{what}: sealed memory can be changed"));
        attacker.tally.count(what, if refused == Errno::PERM { "PERM" } else { "another error" });
    }
    let mapped = Mapping::shared(fd.as_fd(), 0, 4096, Access::ReadWrite);
    assert!(mapped.is_err(), "sealed memory can be mapped to be written");
    attacker.tally.count("map writable", "refused");
}

fn truncates(attacker: &mut Attacker<'_>) {
    let Some((mut raw, fds)) = Raw::bind() else { return };
    let mapped: Vec<_> =
        fds.iter().map(|fd| Mapping::shared(fd.as_fd(), 0, 4096, Access::ReadWrite)).collect();
    assert!(mapped.iter().all(Result::is_ok), "fresh memory is its own");
    let Some((Reply::Done, _)) = raw.ask(Request::Ready.to_words()) else { return };
    for fd in &fds {
        mangle(attacker, fd);
    }
    for pair in 0..attacker.pairs.len() {
        let to = attacker.pairs[pair].peer;
        if let Some((Reply::Introduced(_), fds)) = raw.ask(Request::Introduce { to }.to_words()) {
            // The memory of somebody else. A ring, which is no memory, may come with it.
            mangle(attacker, &fds[0]);
        }
    }
}

fn spoils(attacker: &mut Attacker<'_>) {
    let Some((mut raw, fds)) = Raw::bind() else { return };
    for fd in &fds {
        let cut = ftruncate(fd, attacker.chance.below(4096));
        attacker.tally.count("cut before the seal", if cut.is_ok() { "done" } else { "refused" });
        let punched = fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096);
        attacker.tally.count("punch before the seal", if punched.is_ok() { "done" } else { "refused" });
    }
    match raw.ask(Request::Ready.to_words()) {
        Some((Reply::Done, _)) => attacker.tally.count("seal of what was spoilt", "done"),
        Some((Reply::Refused(why), _)) => {
            attacker.tally.count("seal of what was spoilt", &format!("{why:?}"));
        }
        Some((other, _)) => panic!("{other:?}"),
        None => attacker.tally.count("seal of what was spoilt", "hung up"),
    }
}

fn nonsense(attacker: &mut Attacker<'_>) {
    let bound = if attacker.chance.below(2) == 0 { Raw::bind() } else { None };
    let (mut raw, _memory) = bound.unwrap_or_else(|| (Raw::hello(), Vec::new()));
    for _ in 0..20 {
        let mut words = [0; WORDS];
        // Binding for others is left out: the process of that number may be anybody's on this machine.
        words[0] = [1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 20, 21, 22, 23, 24, 99]
            [attacker.chance.below(21) as usize];
        for word in &mut words[1..] {
            *word = match attacker.chance.below(4) {
                0 => attacker.chance.below(64),
                1 => attacker.chance.below(u64::MAX),
                2 => attacker.me.to_word(),
                _ => Endpoint { slot: attacker.victims[0], ..attacker.me }.to_word(),
            };
        }
        match raw.ask(words) {
            Some((Reply::Refused(why), _)) => attacker.tally.count("nonsense", &format!("{why:?}")),
            Some(_) => attacker.tally.count("nonsense", "done"),
            None => return attacker.tally.count("nonsense", "hung up"),
        }
    }
}

fn hangs_up(attacker: &mut Attacker<'_>) {
    attacker.is_over = true;
}
