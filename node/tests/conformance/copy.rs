//! Rows: copy, grants, revocation: bytes between ranges of any two endpoints, wherever they and the copier are.

use std::sync::mpsc;
use std::time::Duration;

use abi::Endpoint;
use dvk::{
    Access, Binding, CopyEnd, CopyError, From, Grant, GrantError, GrantSegment, Message, Timeout, What,
};

use super::rows;
use crate::support::{Apart, LONG, Life, Place, World};

rows!(
    a_granted_range_is_read_and_written_whole,
    bytes_go_between_two_grants_wherever_their_owners_are,
    what_is_not_granted_is_not_copied_and_nothing_is_written,
    a_revoked_grant_is_of_no_use_and_what_was_copied_stays,
    a_grant_revoked_in_the_middle_leaves_a_beginning,
    what_is_read_after_a_revocation_is_not_what_is_written_after_it,
    grants_of_one_segment_live_on_when_another_is_revoked,
    the_end_of_an_owner_ends_copies_through_its_grants,
    copies_of_several_endpoints_do_not_mix,
    copies_go_beside_messages,
    a_lost_session_costs_a_copy_nothing,
);

const AFTER: Timeout = Timeout::After(LONG);
const PLACES: [Place; 2] = [Place::Here, Place::There];
const MIB: u64 = 1 << 20;

/// What byte `at` of a pattern is.
fn pattern(seed: u8, at: u64) -> u8 {
    (at as u8).wrapping_mul(31).wrapping_add((at >> 12) as u8) ^ seed
}

fn fill(segment: &GrantSegment, seed: u8) {
    let mut at = 0;
    while at < segment.len_bytes() {
        let len = MIB.min(segment.len_bytes() - at);
        let bytes: Vec<u8> = (at..at + len).map(|at| pattern(seed, at)).collect();
        segment.write_from(at, &bytes).expect("inside");
        at += len;
    }
}

fn bytes(segment: &GrantSegment, offset: u64, len: u64) -> Vec<u8> {
    let mut out = vec![0; len as usize];
    segment.read_into(offset, &mut out).expect("inside");
    out
}

fn expect(seed: u8, offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(|at| pattern(seed, at)).collect()
}

/// What an owner is asked to do.
const GRANT_READ: u32 = 1;
const GRANT_WRITE: u32 = 2;
const REVOKE: u32 = 3;
/// Answers with bytes of its segment for writing: `offset`, `len`.
const SHOW: u32 = 4;
const END: u32 = 5;
/// Fills its segment for reading with another pattern.
const REFILL: u32 = 6;

/// An endpoint that grants what it is asked to grant: a segment for reading with the pattern of its number, one for writing.
fn owner(world: &World, place: Place, number: u16, len: u64) -> Life<()> {
    world.spawn(place, number, move |mut me| serve(&mut me, number as u8, len))
}

fn serve(me: &mut Binding, seed: u8, len: u64) {
    let read = me.grant_segment(len, Access::Read).expect("a segment");
    fill(&read, seed);
    let write = me.grant_segment(len, Access::Write).expect("a segment");
    loop {
        let request = me.receive_request(AFTER).expect("a request");
        let words = |at: usize| {
            let bytes = &request.inline()[at * 8..at * 8 + 8];
            u64::from_le_bytes(bytes.try_into().expect("a word"))
        };
        let answer = match request.kind() {
            GRANT_READ | GRANT_WRITE => {
                let segment = if request.kind() == GRANT_READ { &read } else { &write };
                let to = Endpoint::from_word(words(2)).expect("an endpoint");
                let grant = me.grant(segment, words(0), words(1), to).expect("a grant");
                Message::new(0).inline(&grant.to_bytes())
            }
            REVOKE => {
                let grant = Grant::from_bytes(request.inline()).expect("a grant");
                me.revoke(&grant).expect("revoked");
                Message::new(0)
            }
            REFILL => {
                fill(&read, words(0) as u8);
                Message::new(0)
            }
            SHOW => {
                let mut loan = me.loan(words(1) as usize).expect("a buffer");
                write.read_into(words(0), &mut loan).expect("inside");
                Message::new(0).with(loan)
            }
            _ => {
                me.reply(&request, Message::new(0)).expect("its client waits");
                return;
            }
        };
        me.reply(&request, answer).expect("its client waits");
    }
}

fn words<const N: usize>(words: [u64; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn grant_to(me: &mut Binding, owner: Endpoint, kind: u32, offset: u64, len: u64, to: Endpoint) -> Grant {
    let request = Message::new(kind).inline(&words([offset, len, to.to_word()]));
    let reply = me.sendrec(owner, request, AFTER).expect("an answer");
    Grant::from_bytes(reply.inline()).expect("a grant")
}

fn ask(me: &mut Binding, owner: Endpoint, kind: u32, offset: u64, len: u64) -> Grant {
    let to = me.whoami();
    grant_to(me, owner, kind, offset, len, to)
}

fn revoke(me: &mut Binding, grant: &Grant) {
    let request = Message::new(REVOKE).inline(&grant.to_bytes());
    me.sendrec(grant.owner, request, AFTER).expect("revoked");
}

fn show(me: &mut Binding, owner: Endpoint, offset: u64, len: u64) -> Vec<u8> {
    let reply = me.sendrec(owner, Message::new(SHOW).inline(&words([offset, len])), AFTER).expect("shown");
    reply.view().expect("an extent").to_vec()
}

fn end(me: &mut Binding, life: Life<()>) {
    me.sendrec(life.endpoint, Message::new(END), AFTER).expect("an answer");
    life.join();
}

fn a_granted_range_is_read_and_written_whole(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let len = 5 * MIB + 4097;
    let mine = me.grant_segment(len, Access::Write).expect("a segment");
    for (n, place) in (1..).zip(PLACES) {
        let owner = owner(&world, place, n, len);
        world.meet(&mut me, owner.endpoint);
        for (offset, len) in [(0, len), (0, 1), (1, 4095), (4096, MIB), (MIB + 1, 3 * MIB), (len, 0)] {
            let grant = ask(&mut me, owner.endpoint, GRANT_READ, offset, len);
            assert_eq!((grant.owner, grant.len_bytes, grant.access), (owner.endpoint, len, Access::Read));
            me.copy(CopyEnd::Granted(&grant, 0), CopyEnd::Own(&mine, 0), len, AFTER).expect("copied");
            assert_eq!(bytes(&mine, 0, len), expect(n as u8, offset, len), "{place:?} {offset} {len}");
            revoke(&mut me, &grant);
        }
        fill(&mine, 0xa5);
        let grant = ask(&mut me, owner.endpoint, GRANT_WRITE, 100, len - 100);
        me.copy(CopyEnd::Own(&mine, 7), CopyEnd::Granted(&grant, 3), 2 * MIB, AFTER).expect("copied");
        assert_eq!(show(&mut me, owner.endpoint, 103, 2 * MIB), expect(0xa5, 7, 2 * MIB));
        assert_eq!(show(&mut me, owner.endpoint, 0, 103), vec![0; 103], "before the range");
        assert_eq!(show(&mut me, owner.endpoint, 103 + 2 * MIB, 9), vec![0; 9], "behind it");
        // What was written through it may be read through it too.
        me.copy(CopyEnd::Granted(&grant, 3), CopyEnd::Own(&mine, MIB), 1000, AFTER).expect("copied");
        assert_eq!(bytes(&mine, MIB, 1000), expect(0xa5, 7, 1000));
        end(&mut me, owner);
    }
}

fn bytes_go_between_two_grants_wherever_their_owners_are(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let len = 2 * MIB + 11;
    let mut number = 1;
    for from in PLACES {
        for to in PLACES {
            let source = owner(&world, from, number, len);
            let target = owner(&world, to, number + 1, len);
            world.meet(&mut me, source.endpoint);
            world.meet(&mut me, target.endpoint);
            let read = ask(&mut me, source.endpoint, GRANT_READ, 10, len - 10);
            let write = ask(&mut me, target.endpoint, GRANT_WRITE, 20, len - 20);
            let (read_end, write_end) = (CopyEnd::Granted(&read, 1), CopyEnd::Granted(&write, 2));
            me.copy(read_end, write_end, 2 * MIB - 20, AFTER).expect("copied");
            let there = show(&mut me, target.endpoint, 22, 2 * MIB - 20);
            assert_eq!(there, expect(number as u8, 11, 2 * MIB - 20), "{from:?} to {to:?}");
            end(&mut me, source);
            end(&mut me, target);
            number += 2;
        }
    }
}

fn what_is_not_granted_is_not_copied_and_nothing_is_written(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let len = 64 << 10;
    let mine = me.grant_segment(len, Access::Write).expect("a segment");
    let readable = me.grant_segment(len, Access::Read).expect("a segment");
    let whole = CopyEnd::Own(&mine, 0);
    for (n, place) in (1..).zip(PLACES) {
        let owner = owner(&world, place, n, len);
        let other = world.spawn(place, n + 4, |mut me| {
            let _ = me.receive(From::Any, AFTER);
        });
        world.meet(&mut me, owner.endpoint);
        world.meet(&mut me, other.endpoint);
        let read = ask(&mut me, owner.endpoint, GRANT_READ, 4096, 8192);
        let write = ask(&mut me, owner.endpoint, GRANT_WRITE, 4096, 8192);
        let others = grant_to(&mut me, owner.endpoint, GRANT_READ, 0, 8192, other.endpoint);
        let no = Err(CopyError::NoGrant);
        let lie = |change: fn(&mut Grant)| {
            let mut grant = read;
            change(&mut grant);
            grant
        };
        let longer = lie(|grant| grant.len_bytes = 1 << 40);
        let later = lie(|grant| grant.generation += 1);
        let elsewhere = lie(|grant| grant.index += 900);
        let no_table = lie(|grant| grant.table += 77);
        let of_another = lie(|grant| grant.table = 0);
        let writable = lie(|grant| grant.access = Access::Write);
        for (what, grant, offset, len) in [
            ("one byte too many", &read, 1, 8192),
            ("a longer one", &longer, 0, 8193),
            ("a later generation", &later, 0, 1),
            ("another entry", &elsewhere, 0, 1),
            ("no table", &no_table, 0, 1),
            ("sides for a table", &of_another, 0, 1),
            ("another's grant", &others, 0, 1),
            ("an offset that wraps", &longer, u64::MAX, 2),
        ] {
            assert_eq!(me.copy(CopyEnd::Granted(grant, offset), whole, len, AFTER), no, "{place:?} {what}");
        }
        assert_eq!(bytes(&mine, 0, len), vec![0; len as usize], "nothing was written");
        for grant in [&read, &writable] {
            assert_eq!(me.copy(whole, CopyEnd::Granted(grant, 0), 1, AFTER), no, "for reading only");
        }
        assert_eq!(me.copy(whole, CopyEnd::Granted(&write, 8000), 193, AFTER), no, "beyond its end");
        assert_eq!(show(&mut me, owner.endpoint, 0, len), vec![0; len as usize], "nothing was written");
        let beyond = CopyEnd::Own(&mine, len - 1);
        assert_eq!(me.copy(CopyEnd::Granted(&read, 0), beyond, 2, AFTER), Err(CopyError::OutOfRange));
        let sealed = CopyEnd::Own(&readable, 0);
        assert_eq!(me.copy(CopyEnd::Granted(&read, 0), sealed, 2, AFTER), Err(CopyError::ReadOnly));
        let most = abi::limits::COPY_BYTES_MAX + 1;
        assert_eq!(me.copy(CopyEnd::Granted(&read, 0), whole, most, AFTER), Err(CopyError::TooLong));
        // The others are as good as before.
        me.copy(CopyEnd::Granted(&read, 0), whole, 8192, AFTER).expect("copied");
        assert_eq!(bytes(&mine, 0, 8192), expect(n as u8, 4096, 8192));
        mine.write_from(0, &vec![0; len as usize]).expect("inside");
        me.post_all(other.endpoint, Message::new(0), AFTER).expect("alive");
        other.join();
        end(&mut me, owner);
    }
}

fn a_revoked_grant_is_of_no_use_and_what_was_copied_stays(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let mine = me.grant_segment(MIB, Access::Write).expect("a segment");
    fill(&mine, 9);
    for (n, place) in (1..).zip(PLACES) {
        let owner = owner(&world, place, n, MIB);
        world.meet(&mut me, owner.endpoint);
        for round in 0..3 {
            let write = ask(&mut me, owner.endpoint, GRANT_WRITE, 0, MIB);
            let read = ask(&mut me, owner.endpoint, GRANT_READ, 0, MIB);
            me.copy(CopyEnd::Own(&mine, 0), CopyEnd::Granted(&write, 0), MIB, AFTER).expect("copied");
            revoke(&mut me, &write);
            revoke(&mut me, &read);
            let (write, read) = (CopyEnd::Granted(&write, 0), CopyEnd::Granted(&read, 0));
            assert_eq!(me.copy(CopyEnd::Own(&mine, 1), write, 1, AFTER), Err(CopyError::NoGrant));
            assert_eq!(me.copy(read, CopyEnd::Own(&mine, 0), 1, AFTER), Err(CopyError::NoGrant));
            assert_eq!(show(&mut me, owner.endpoint, 0, MIB), expect(9, 0, MIB), "round {round}");
        }
        end(&mut me, owner);
    }
}

fn a_grant_revoked_in_the_middle_leaves_a_beginning(world: World) {
    for (n, place) in (1..).zip(PLACES) {
        revoked_at(&world, place, n, 48 * MIB, 1);
    }
}

/// Somebody at `place` copies `len` bytes into a grant, which its owner revokes as soon as byte `at` is written. Whether the
/// copy was still under way.
fn revoked_at(world: &World, place: Place, n: u16, len: u64, at: u64) -> bool {
    let (tell, told) = mpsc::channel();
    let writer = world.spawn(place, n, move |mut me| {
        let mine = me.grant_segment(len, Access::Write).expect("a segment");
        fill(&mine, 3);
        let request = me.receive_request(AFTER).expect("a request");
        let grant = Grant::from_bytes(request.inline()).expect("a grant");
        me.reply(&request, Message::new(0)).expect("its client waits");
        let copied = me.copy(CopyEnd::Own(&mine, 0), CopyEnd::Granted(&grant, 0), len, AFTER);
        tell.send(copied).expect("the test listens");
    });
    let mut me = world.bind(Place::Here, 20 + n);
    world.meet(&mut me, writer.endpoint);
    let mine = me.grant_segment(len, Access::Write).expect("a segment");
    let grant = me.grant(&mine, 0, len, writer.endpoint).expect("a grant");
    let request = Message::new(0).inline(&grant.to_bytes());
    me.sendrec(writer.endpoint, request, AFTER).expect("it begins");
    let (mut first, wanted) = ([0], [pattern(3, at)]);
    while first != wanted {
        mine.read_into(at, &mut first).expect("inside");
        std::thread::yield_now();
    }
    me.revoke(&grant).expect("revoked");
    let there = beginning(&mine, 3);
    assert!(there > at, "{place:?}: byte {at} was written, and all before it");
    let copied = told.recv_timeout(LONG).expect("it ends");
    writer.join();
    assert_eq!(beginning(&mine, 3), there, "{place:?}: nothing is written after the revocation");
    match copied {
        Err(CopyError::NoGrant) => true,
        // It was over before.
        Ok(()) => {
            assert_eq!(there, len);
            false
        }
        other => panic!("{other:?}"),
    }
}

/// How many bytes of the pattern there are, behind which there must be nothing.
fn beginning(segment: &GrantSegment, seed: u8) -> u64 {
    // The pattern begins anew with each MiB.
    let (whole, none) = (expect(seed, 0, MIB), vec![0; MIB as usize]);
    let mut piece = none.clone();
    let mut there = 0;
    let mut is_over = false;
    for at in (0..segment.len_bytes()).step_by(MIB as usize) {
        segment.read_into(at, &mut piece).expect("inside");
        if is_over {
            assert!(piece == none, "behind {there} bytes, bytes within the MiB at {at}");
        } else if piece == whole {
            there = at + MIB;
        } else {
            is_over = true;
            let begun = piece.iter().zip(&whole).take_while(|(is, wanted)| is == wanted).count();
            there = at + begun as u64;
            assert!(piece[begun..] == none[begun..], "behind {there} bytes, bytes within the MiB at {at}");
        }
    }
    there
}

/// What memory must be left for the test of a GiB: two of them, and as much again for the others that run.
const FREE_KIB: u64 = 4 << 20;

#[test]
fn conformance_a_gibibyte_is_copied_and_a_grant_revoked_in_the_middle_of_it_tcp() {
    let meminfo = std::fs::read_to_string("/proc/meminfo").expect("Linux");
    let free = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next());
    if free.is_none_or(|kib| kib.parse::<u64>().expect("a number") < FREE_KIB) {
        println!("not run: a gibibyte copied: less than {} GiB of memory are free", FREE_KIB >> 20);
        return;
    }
    let len = abi::limits::COPY_BYTES_MAX;
    for place in PLACES {
        let world = World::of(Apart::Tcp, 2);
        // Whole, and back to the pattern of its owner.
        let mut me = world.bind(Place::Here, 0);
        let owner = owner(&world, place, 1, len);
        world.meet(&mut me, owner.endpoint);
        let mine = me.grant_segment(len, Access::Write).expect("a segment");
        let read = ask(&mut me, owner.endpoint, GRANT_READ, 0, len);
        me.copy(CopyEnd::Granted(&read, 0), CopyEnd::Own(&mine, 0), len, AFTER).expect("copied");
        assert_eq!(beginning(&mine, 1), len, "{place:?}");
        end(&mut me, owner);
        drop((mine, me));
        // A machine may run the copier to its end before the owner looks; not each time.
        let is_in_the_middle = (2..8).any(|round| revoked_at(&world, place, round, len, 64 * MIB));
        assert!(is_in_the_middle, "{place:?}: no copy was still under way");
    }
}

fn what_is_read_after_a_revocation_is_not_what_is_written_after_it(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let mine = me.grant_segment(MIB, Access::Write).expect("a segment");
    let owner = owner(&world, Place::There, 1, MIB);
    world.meet(&mut me, owner.endpoint);
    let old = ask(&mut me, owner.endpoint, GRANT_READ, 0, MIB);
    me.copy(CopyEnd::Granted(&old, 0), CopyEnd::Own(&mine, 0), MIB, AFTER).expect("copied");
    revoke(&mut me, &old);
    me.sendrec(owner.endpoint, Message::new(REFILL).inline(&words([77])), AFTER).expect("filled");
    let copied = me.copy(CopyEnd::Granted(&old, 0), CopyEnd::Own(&mine, 0), MIB, AFTER);
    assert_eq!(copied, Err(CopyError::NoGrant));
    assert_eq!(bytes(&mine, 0, MIB), expect(1, 0, MIB));
    let new = ask(&mut me, owner.endpoint, GRANT_READ, 0, MIB);
    me.copy(CopyEnd::Granted(&new, 0), CopyEnd::Own(&mine, 0), MIB, AFTER).expect("copied");
    assert_eq!(bytes(&mine, 0, MIB), expect(77, 0, MIB));
    end(&mut me, owner);
}

fn grants_of_one_segment_live_on_when_another_is_revoked(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let owner = owner(&world, Place::There, 1, MIB);
    world.meet(&mut me, owner.endpoint);
    let mine = me.grant_segment(MIB, Access::Write).expect("a segment");
    let kept = ask(&mut me, owner.endpoint, GRANT_READ, 0, MIB);
    for kind in [GRANT_READ, GRANT_WRITE] {
        for _ in 0..3 {
            let other = ask(&mut me, owner.endpoint, kind, 4096, 4096);
            let kept = CopyEnd::Granted(&kept, 0);
            me.copy(CopyEnd::Granted(&other, 0), CopyEnd::Own(&mine, 0), 4096, AFTER).expect("copied");
            revoke(&mut me, &other);
            me.copy(kept, CopyEnd::Own(&mine, 0), MIB, AFTER).expect("copied");
            assert_eq!(bytes(&mine, 0, MIB), expect(1, 0, MIB));
        }
    }
    // One writes at a time; a grant is revoked once, by whoever gave it.
    let them = me.whoami();
    let mut third = world.bind(Place::Here, 3);
    let segment = third.grant_segment(100, Access::Write).expect("a segment");
    let first = third.grant(&segment, 0, 100, them).expect("a grant");
    let second = third.grant(&segment, 0, 100, owner.endpoint);
    assert_eq!(second, Err(GrantError::WrittenByAnother));
    assert_eq!(third.grant(&segment, 1, 100, them), Err(GrantError::OutOfRange));
    assert_eq!(me.revoke(&first), Err(GrantError::NoSuchGrant));
    third.revoke(&first).expect("revoked");
    assert_eq!(third.revoke(&first), Err(GrantError::NoSuchGrant));
    end(&mut me, owner);
}

fn the_end_of_an_owner_ends_copies_through_its_grants(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let mine = me.grant_segment(MIB, Access::Write).expect("a segment");
    for (n, place) in (1..).zip(PLACES) {
        let owner = owner(&world, place, n, MIB);
        world.meet(&mut me, owner.endpoint);
        let (read, write) = (
            ask(&mut me, owner.endpoint, GRANT_READ, 0, MIB),
            ask(&mut me, owner.endpoint, GRANT_WRITE, 0, MIB),
        );
        let ended = owner.endpoint;
        end(&mut me, owner);
        me.wait_unbind(ended, AFTER).expect("ended");
        let copied = me.copy(CopyEnd::Granted(&read, 0), CopyEnd::Own(&mine, 0), MIB, AFTER);
        assert_eq!(copied, Err(CopyError::DeadSource), "{place:?}");
        let copied = me.copy(CopyEnd::Own(&mine, 0), CopyEnd::Granted(&write, 0), MIB, AFTER);
        assert_eq!(copied, Err(CopyError::DeadSource), "{place:?}");
        assert_eq!(bytes(&mine, 0, MIB), vec![0; MIB as usize]);
    }
}

fn copies_of_several_endpoints_do_not_mix(world: World) {
    let len = 3 * MIB + 5;
    let target = owner(&world, Place::There, 1, len);
    let to = target.endpoint;
    let copiers: Vec<Life<()>> = (2..5)
        .map(|n| {
            let place = PLACES[usize::from(n) % 2];
            world.spawn(place, n, move |mut me| {
                me.wait_bind(to.slot, AFTER).expect("seen");
                let mine = me.grant_segment(len, Access::Write).expect("a segment");
                for _ in 0..8 {
                    let grant = ask(&mut me, to, GRANT_READ, n as u64, len - n as u64);
                    let copied =
                        me.copy(CopyEnd::Granted(&grant, 0), CopyEnd::Own(&mine, 0), len - n as u64, AFTER);
                    copied.expect("copied");
                    let all = len - n as u64;
                    assert_eq!(bytes(&mine, 0, all), expect(1, n as u64, all));
                    revoke(&mut me, &grant);
                }
            })
        })
        .collect();
    for copier in copiers {
        copier.join();
    }
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, to);
    end(&mut me, target);
}

fn copies_go_beside_messages(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let len = 4 * MIB;
    let owner = owner(&world, Place::There, 1, len);
    world.meet(&mut me, owner.endpoint);
    let mine = me.grant_segment(len, Access::Write).expect("a segment");
    let to = me.whoami();
    let stream = world.spawn(Place::There, 2, move |mut me| {
        me.wait_bind(to.slot, AFTER).expect("seen");
        for n in 0..2_000u32 {
            me.post_all(to, Message::new(n), AFTER).expect("alive");
        }
    });
    let grant = ask(&mut me, owner.endpoint, GRANT_READ, 0, len);
    for _ in 0..10 {
        me.copy(CopyEnd::Granted(&grant, 0), CopyEnd::Own(&mine, 0), len, AFTER).expect("copied");
    }
    assert_eq!(bytes(&mine, 0, len), expect(1, 0, len));
    for n in 0..2_000 {
        let message = me.receive(From::Endpoint(stream.endpoint), AFTER).expect("a message");
        assert_eq!((message.kind(), message.what()), (n, What::Message));
    }
    stream.join();
    end(&mut me, owner);
}

fn a_lost_session_costs_a_copy_nothing(world: World) {
    if !matches!(world.apart, Apart::Loopback | Apart::OneSided) {
        // There is no session, or none that this test can cut.
        return;
    }
    let mut me = world.bind(Place::Here, 0);
    let len = 24 * MIB;
    let owner = owner(&world, Place::There, 1, len);
    world.meet(&mut me, owner.endpoint);
    let mine = me.grant_segment(len, Access::Write).expect("a segment");
    let read = ask(&mut me, owner.endpoint, GRANT_READ, 0, len);
    let write = ask(&mut me, owner.endpoint, GRANT_WRITE, 0, len);
    for round in 0..3 {
        let (pull, push) = (CopyEnd::Granted(&read, 0), CopyEnd::Granted(&write, 0));
        for (from, to) in [(pull, CopyEnd::Own(&mine, 0)), (CopyEnd::Own(&mine, 0), push)] {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for pause in [1, 2, 3, 5, 8] {
                        std::thread::sleep(Duration::from_millis(pause));
                        world.flap();
                    }
                });
                me.copy(from, to, len, AFTER).expect("copied");
            });
        }
        assert_eq!(bytes(&mine, 0, len), expect(1, 0, len), "round {round}");
        for at in [0, len / 2, len - MIB] {
            assert_eq!(show(&mut me, owner.endpoint, at, MIB), expect(1, at, MIB), "round {round}");
        }
        fill(&mine, 0);
    }
    end(&mut me, owner);
}

/// The copier is on a third node: between two others, and within one.
fn between_other_nodes(apart: Apart) {
    let world = World::of(apart, 3);
    let mut me = world.bind(Place::Here, 0);
    let len = 3 * MIB + 17;
    let mut number = 1;
    for (from, to) in [
        (Place::There, Place::Beyond),
        (Place::Beyond, Place::There),
        (Place::There, Place::There),
        (Place::Here, Place::Beyond),
        (Place::Beyond, Place::Here),
    ] {
        let source = owner(&world, from, number, len);
        let target = owner(&world, to, number + 1, len);
        world.meet(&mut me, source.endpoint);
        world.meet(&mut me, target.endpoint);
        let read = ask(&mut me, source.endpoint, GRANT_READ, 1, len - 1);
        let write = ask(&mut me, target.endpoint, GRANT_WRITE, 2, len - 2);
        for (offset, part) in [(0, len - 2), (5, 1), (MIB, MIB)] {
            let (read, write) = (CopyEnd::Granted(&read, offset), CopyEnd::Granted(&write, offset));
            me.copy(read, write, part, AFTER).expect("copied");
            let there = show(&mut me, target.endpoint, 2 + offset, part);
            assert_eq!(there, expect(number as u8, 1 + offset, part), "{from:?} to {to:?}");
        }
        for ended in [&read, &write] {
            revoke(&mut me, ended);
            let (read, write) = (CopyEnd::Granted(&read, 0), CopyEnd::Granted(&write, 0));
            let copied = me.copy(read, write, len - 2, AFTER);
            assert_eq!(copied, Err(CopyError::NoGrant), "{from:?} to {to:?}");
        }
        end(&mut me, source);
        end(&mut me, target);
        number += 2;
    }
}

#[test]
fn bytes_go_straight_between_two_other_nodes_loopback() {
    between_other_nodes(Apart::Loopback);
}

#[test]
fn bytes_go_straight_between_two_other_nodes_one_sided() {
    between_other_nodes(Apart::OneSided);
}

#[test]
fn bytes_go_straight_between_two_other_nodes_tcp() {
    between_other_nodes(Apart::Tcp);
}
