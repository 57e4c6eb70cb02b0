//! Every interleaving, within bounds, of two or three threads over the words they share.
//!
//! `RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=2 cargo test --release -p shm --test loom`; a lane has two slots then.
//! A sleeper is modelled by its decision: it has dozed, has looked a last time and found nothing, so it would sleep, and
//! somebody must have been told to wake it.
#![cfg(loom)]

use std::ops::Range;

use abi::grant::{self, Access};
use abi::slot::{BODY_WORDS, Kind, SlotCopy, WITHDRAWABLE, WORDS};
use abi::{DcId, Endpoint, Generation, Slot, doorbell, side};
use loom::thread;
use shm::doorbell::{Doorbells, Wake};
use shm::grants::{OwnGrants, PeerGrants, Place};
use shm::lane::{LaneReader, LaneWriter, Take, Withdrawal, head, look_again};
use shm::returns::{Returns, give};
use shm::side::{Mirrored, OwnSide, PeerSide};
use shm::sync::{AtomicU64, Ordering, relax};
use shm::words::OwnWords;
use shm::{notify, reply};
use std::sync::Arc;

const SOURCE: Endpoint = Endpoint::new(DcId(1), Slot(3), Generation(9));
const READER: Range<usize> = side::CONSUMED..side::OUTCOME + 1;
const LANE: Range<usize> = side::LANE..side::WORDS;
const ATTENDING: Range<usize> = side::ATTENDING..side::ATTENDING + 1;
const RAISES: Range<usize> = side::RAISES..side::RAISED + side::RAISED_WORDS;
const SEEN: Range<usize> = side::SEEN..side::SEEN + side::RAISED_WORDS;
const CALLING: Range<usize> = side::CALLING..side::CALLING + 1;
const REPLIES: Range<usize> = side::REPLIES..side::REPLIES + 2 * WORDS;
const RETURNS_TAIL: Range<usize> = side::RETURNS_TAIL..side::RETURNS_TAIL + 1;
const WANTS: Range<usize> = side::WANTS_RETURNS..side::WANTS_RETURNS + 1;
const ONE_BIT: Range<usize> = doorbell::BITS..doorbell::BITS + 1;

/// Which of two threads is started first. Loom looks for other orders where a store meets the *last* access before it; a
/// thread that loads its own word before it stores hides there what others have read. Starting with either finds both.
#[derive(Clone, Copy, PartialEq)]
enum First {
    One,
    Other,
}

fn model(f: impl Fn(First) + Copy + Sync + Send + 'static) {
    for first in [First::One, First::Other] {
        model_within(2, move || f(first));
    }
}

/// No more preemptions than `most`, nor than the environment says.
fn model_within(most: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 10_000;
    builder.preemption_bound = Some(builder.preemption_bound.unwrap_or(most).min(most));
    builder.check(f);
}

/// Two threads side by side, to their ends.
fn beside<A: 'static, B: 'static>(
    first: First,
    one: impl FnOnce() -> A + 'static,
    other: impl FnOnce() -> B + 'static,
) -> (A, B) {
    let (one, other) = match first {
        First::One => {
            let one = thread::spawn(one);
            (one, thread::spawn(other))
        }
        First::Other => {
            let other = thread::spawn(other);
            (thread::spawn(one), other)
        }
    };
    (one.join().unwrap(), other.join().unwrap())
}

fn own(used: &[Range<usize>]) -> OwnSide {
    OwnSide::new(OwnWords::model(used))
}

fn bells() -> Doorbells {
    let words = [doorbell::SLEEP, doorbell::PULL, doorbell::SUMMARY].map(|at| at..at + 1);
    Doorbells::new(OwnWords::model(&[words.as_slice(), &[ONE_BIT]].concat()))
}

fn message(kind: Kind, flags: u8, payload: u64) -> SlotCopy {
    let (source, body) = (SOURCE.to_word(), [payload; BODY_WORDS]);
    SlotCopy { head: head(kind, flags), source, sequence: 0, kind: 1, call: 0, body }
}

/// Announces sleep, looks a last time, and says whether it would sleep.
fn would_sleep(bells: &Doorbells, last_look: impl FnOnce() -> bool) -> bool {
    bells.doze(0, doorbell::ON_FUTEX);
    !last_look()
}

fn publish_and_knock(own: &OwnSide, far: &OwnSide, bells: &Doorbells) -> Wake {
    LaneWriter::default().publish(own, &mut message(Kind::Post, 0, 7));
    look_again();
    if far.as_peer().attending() { Wake::Nothing } else { bells.ring(0, 3) }
}

#[test]
fn a_lane_that_wraps_delivers_every_slot_whole_and_in_order() {
    model(|first| {
        let (a, b, looked) = (own(&[LANE]), own(&[READER]), Arc::new(AtomicU64::new(0)));
        let (source, far, seen) = (a.as_peer(), b.as_peer(), looked.clone());
        let send = move || {
            let mut writer = LaneWriter::default();
            for payload in 0..3 {
                while !writer.has_room(&far).unwrap() {
                    relax();
                }
                // Loom runs loads in their order, so a place that is used too early shows only by such a witness.
                assert!(
                    seen.load(Ordering::Relaxed) >= writer.consumed_seen(),
                    "room before the slot was read"
                );
                writer.publish(&a, &mut message(Kind::Post, 0, payload));
            }
        };
        let receive = move || {
            let mut reader = LaneReader::default();
            while reader.next() < 3 {
                let next = reader.next();
                // Relaxed: what is tested is that the counter orders it.
                looked.store(next + 1, Ordering::Relaxed);
                match reader.take(&b, &source, SOURCE).unwrap() {
                    Take::Message(slot) => assert_eq!((slot.sequence, slot.body), (next, [next; BODY_WORDS])),
                    Take::Skipped(_) => panic!("nothing was withdrawn"),
                    Take::Empty => relax(),
                }
            }
        };
        beside(first, send, receive);
    });
}

/// What a sender is told while its receiver takes, against what it is told when all is quiet.
fn check_withdrawal(consumed: bool, told: Withdrawal, then: Withdrawal, delivered: bool) {
    assert!(!consumed || told != Withdrawal::Undecided, "consumed, so its outcome is there");
    assert_eq!(then, if delivered { Withdrawal::Taken } else { Withdrawal::Withdrawn });
    assert!(told == then || told == Withdrawal::Undecided, "{told:?}, then {then:?}");
}

#[test]
fn a_slot_is_withdrawn_or_taken_and_both_ends_agree() {
    model(|first| {
        let (a, b) = (own(&[LANE]), own(&[READER]));
        let mut writer = LaneWriter::default();
        writer.publish(&a, &mut message(Kind::Send, WITHDRAWABLE, 7));
        let (source, far, sender, mut again) = (a.as_peer(), b.as_peer(), a.clone(), writer);
        let withdraw = {
            let far = far.clone();
            move || (far.consumed() > 0, writer.withdraw(&sender, &far, 0).unwrap())
        };
        let take = move || LaneReader::default().take(&b, &source, SOURCE).unwrap();
        let ((consumed, told), took) = beside(first, withdraw, take);
        let then = again.withdraw(&a, &far, 0).unwrap();
        check_withdrawal(consumed, told, then, matches!(took, Take::Message(_)));
    });
}

/// The mark is the last word written, so it is the one that must bring the body.
#[test]
fn a_slot_that_is_withdrawn_as_soon_as_it_is_published_is_whole() {
    model(|first| {
        let (a, b) = (own(&[LANE]), own(&[READER]));
        let (source, far) = (a.as_peer(), b.as_peer());
        let send = move || {
            let mut writer = LaneWriter::default();
            let sequence = writer.publish(&a, &mut message(Kind::Send, WITHDRAWABLE, 7));
            writer.withdraw(&a, &far, sequence).unwrap()
        };
        let take = move || LaneReader::default().take(&b, &source, SOURCE).unwrap();
        let (told, took) = beside(first, send, take);
        match took {
            Take::Message(slot) => assert!(slot.body == [7; BODY_WORDS] && told != Withdrawal::Withdrawn),
            Take::Skipped(slot) => assert!(slot.body == [7; BODY_WORDS] && told != Withdrawal::Taken),
            Take::Empty => assert_eq!(told, Withdrawal::Withdrawn),
        }
    });
}

const CARRIED: [Range<usize>; 2] = [side::CONSUMED..side::REPLY_TAKEN + 1, side::GAVE_UP..side::GAVE_UP + 1];

/// With a courier between the two: what has left is never withdrawn for certain and yet delivered.
#[test]
fn a_slot_that_a_courier_carries_is_withdrawn_or_taken_and_both_ends_agree() {
    model(|first| {
        let (a, back, mirror, b) = (own(&[LANE]), own(&CARRIED), own(&[LANE]), own(&CARRIED));
        let mut writer = LaneWriter::default();
        writer.publish(&a, &mut message(Kind::Send, WITHDRAWABLE, 7));
        let (source, far, sender, mut again) = (a.as_peer(), back.as_peer(), a.clone(), writer);
        let withdraw = {
            let far = far.clone();
            move || (far.consumed() > 0, writer.withdraw(&sender, &far, 0).unwrap())
        };
        let carry = move || {
            back.set_taking(1);
            look_again();
            mirror.publish_mirrored(&LaneReader::peek(&source, 0, SOURCE).unwrap().unwrap());
            let took = LaneReader::default().take(&b, &mirror.as_peer(), SOURCE).unwrap();
            back.mirror(&b.as_peer().mirrored());
            matches!(took, Take::Message(_))
        };
        let ((consumed, told), delivered) = beside(first, withdraw, carry);
        let then = again.withdraw(&a, &far, 0).unwrap();
        check_withdrawal(consumed, told, then, delivered);
    });
}

/// The courier has sent a slot and finds the mark later, while the receiver takes what was sent.
#[test]
fn a_mark_that_comes_after_the_slot_is_obeyed_or_too_late() {
    model(|first| {
        let (mirror, b) = (own(&[LANE]), own(&[READER]));
        LaneWriter::default().publish(&mirror, &mut message(Kind::Send, WITHDRAWABLE, 7));
        let (source, receiver) = (mirror.as_peer(), b.clone());
        let mark = move || mirror.mark_withdrawn(0);
        let take = move || LaneReader::default().take(&receiver, &source, SOURCE).unwrap();
        let ((), took) = beside(first, mark, take);
        let delivered = matches!(took, Take::Message(_));
        assert_eq!(b.as_peer().outcome(), if delivered { 3 } else { 2 }, "the outcome says what was done");
    });
}

#[test]
fn a_mirrored_counter_brings_its_outcome() {
    model(|first| {
        let back = own(&CARRIED);
        let far = back.as_peer();
        let carry = move || {
            for slot in 1..3 {
                back.mirror(&Mirrored { consumed: slot, outcome: slot * 2 + 1, ..Mirrored::default() });
            }
        };
        let look = move || {
            let consumed = far.consumed();
            assert!(consumed == 0 || far.outcome() > consumed * 2, "counted, and not told how it ended");
        };
        beside(first, carry, look);
    });
}

#[test]
fn a_receiver_that_stops_attending_does_not_sleep_over_a_message() {
    model(|first| {
        let (a, b, bells) = (own(&[LANE]), own(&[ATTENDING]), bells());
        b.set_attending(true);
        let (source, far, ring) = (a.as_peer(), b.clone(), bells.clone());
        let send = move || publish_and_knock(&a, &far, &ring);
        let stop = move || {
            b.set_attending(false);
            look_again();
            would_sleep(&bells, || LaneReader::default().is_pending(&source))
        };
        let (wake, asleep) = beside(first, send, stop);
        assert!(!asleep || wake == Wake::Futex, "asleep, a message there, and nobody woken");
    });
}

/// A lane that is not attended is looked at only when the doorbell hints at it.
#[test]
fn a_receiver_that_is_not_attending_does_not_sleep_over_a_hint() {
    model(|first| {
        let (a, b, bells) = (own(&[LANE]), own(&[ATTENDING]), bells());
        let (source, ring) = (a.as_peer(), bells.clone());
        let send = move || publish_and_knock(&a, &b, &ring);
        let doze = move || would_sleep(&bells, || hinted(&bells, &source));
        let (wake, asleep) = beside(first, send, doze);
        assert!(!asleep || wake == Wake::Futex, "asleep, a hint there, and nobody woken");
    });
}

#[test]
fn a_hint_that_is_seen_awake_brings_what_was_published_before_it() {
    model(|first| {
        let (a, b, bells) = (own(&[LANE]), own(&[ATTENDING]), bells());
        let (source, ring) = (a.as_peer(), bells.clone());
        beside(first, move || publish_and_knock(&a, &b, &ring), move || hinted(&bells, &source));
    });
}

fn hinted(bells: &Doorbells, source: &PeerSide) -> bool {
    let mut found = false;
    if bells.has_hints(0) {
        bells.drain(0, |_| found = LaneReader::default().is_pending(source));
        assert!(found, "who hints has published");
    }
    found
}

#[test]
fn of_two_ringers_every_bit_is_drained_and_one_wakes_the_sleeper() {
    model(|_| {
        let bells = bells();
        let ringers = [1, 2].map(|bit| {
            let bells = bells.clone();
            thread::spawn(move || bells.ring(0, bit))
        });
        let mut seen = 0;
        bells.drain(0, |bit| seen |= 1 << bit);
        let asleep = would_sleep(&bells, || bells.has_hints(0));
        let wakes = ringers.map(|ringer| ringer.join().unwrap());
        assert!(!asleep || seen == 6 || wakes.contains(&Wake::Futex), "asleep, and nobody woken");
        assert!(wakes != [Wake::Futex, Wake::Futex], "one sleep, one wake-up");
        bells.drain(0, |bit| seen |= 1 << bit);
        assert_eq!(seen, 6, "both bits came out");
    });
}

#[test]
fn a_pull_that_is_rung_for_is_seen_or_wakes() {
    model(|first| {
        let bells = bells();
        let ring = bells.clone();
        let sleep = move || would_sleep(&bells, || bells.pulls(0) != 0);
        let (wake, asleep) = beside(first, move || ring.ring_for_pull(0), sleep);
        assert!(!asleep || wake == Wake::Futex);
    });
}

/// What was written before a raise is there when its bit is; a raise that was counted is handed out.
#[test]
fn a_raise_is_never_lost_and_brings_what_was_written_before_it() {
    model(|first| {
        let (a, b) = (own(&[RAISES]), own(&[SEEN]));
        let written = Arc::new(AtomicU64::new(0));
        let (source, receiver, data) = (a.as_peer(), b.clone(), written.clone());
        let raise = move || {
            for raise in 1..3 {
                // Relaxed: what is tested is that the raise orders it.
                data.store(raise, Ordering::Relaxed);
                notify::raise(&a, 1);
            }
        };
        let look = {
            let source = source.clone();
            move || {
                let counted = notify::raises(&source);
                let bits = notify::take(&receiver, &source);
                let seen = receiver.words().load(side::SEEN, Ordering::Relaxed);
                assert!(seen >= counted && (bits == 1) == (seen > 0), "counted {counted}, seen {seen}");
                assert!(written.load(Ordering::Relaxed) >= seen, "the bit is there, its cause is not");
                seen
            }
        };
        let ((), seen) = beside(first, raise, look);
        assert_eq!(notify::take(&b, &source), if seen < 2 { 1 } else { 0 });
        assert_eq!(notify::take(&b, &source), 0);
    });
}

/// What a mirror counts it has, so that a receiver that looks only when the count has changed misses nothing.
#[test]
fn a_count_is_never_ahead_of_its_counters_at_the_source_or_in_a_mirror() {
    model(|first| {
        let (a, mirror) = (own(&[RAISES]), own(&[RAISES]));
        let source = a.as_peer();
        let raise = move || {
            for _ in 0..2 {
                notify::raise(&a, 1);
            }
        };
        let carry = move || {
            let (count, counters) = notify::counters(&source);
            assert!(counters[0] >= count, "counted {count}, raised {}", counters[0]);
            notify::mirror(&mirror, count, &counters);
        };
        beside(first, raise, carry);
    });
    model(|first| {
        let mirror = own(&[RAISES]);
        let mirrored = mirror.as_peer();
        // One bit: of each that changes, either value may be read.
        let mut counters = [0; side::RAISED_WORDS];
        counters[0] = 1;
        let carry = move || notify::mirror(&mirror, 1, &counters);
        let look = move || {
            let (count, counters) = notify::counters(&mirrored);
            assert!(counters[0] >= count, "counted {count}, raised {}", counters[0]);
        };
        beside(first, carry, look);
    });
}

/// The client gave up call 1 and makes call 3, whose reply has the same entry, while a courier reads. Every word may be
/// the old or the new one, also without a preemption, and that alone is tens of thousands of ways.
#[test]
fn a_reply_that_is_replaced_while_it_is_read_is_whole_or_not_there() {
    model_within(0, || {
        let a = own(&[REPLIES]);
        let source = a.as_peer();
        answer(&a, 1);
        let look = {
            let source = source.clone();
            move || {
                if let Some(slot) = reply::newest(&source, 0, SOURCE).unwrap() {
                    assert_eq!(slot.body, [slot.sequence; BODY_WORDS]);
                }
            }
        };
        beside(First::One, move || answer(&a, 3), look);
        assert_eq!(reply::read(&source, 3, SOURCE).unwrap().map(|slot| slot.body[0]), Some(3));
    });
}

#[test]
fn a_reply_is_whole_when_its_client_sees_it() {
    model(|first| {
        let a = own(&[REPLIES]);
        let source = a.as_peer();
        let look = move || {
            if let Some(slot) = reply::read(&source, 2, SOURCE).unwrap() {
                assert_eq!((slot.sequence, slot.body), (2, [2; BODY_WORDS]));
            }
        };
        beside(first, move || (1..3).for_each(|call| answer(&a, call)), look);
    });
}

fn answer(own: &OwnSide, call: u64) {
    reply::publish(own, call, &message(Kind::Reply, 0, call), true);
}

#[test]
fn returned_extents_come_in_order_after_their_last_use() {
    model(|first| {
        let a = own(&[RETURNS_TAIL, side::RETURNS..side::RETURNS + 2]);
        let (far, used) = (a.as_peer(), Arc::new(AtomicU64::new(0)));
        let last_use = used.clone();
        let give_two = move || {
            for token in 1..3 {
                // Relaxed: what is tested is that giving back orders it.
                last_use.store(token.into(), Ordering::Relaxed);
                give(&a, token, 9);
            }
        };
        let bring_home = move || {
            let (mut owner, mut expected) = (Returns::default(), 1);
            while let Some(back) = owner.next(&far).unwrap() {
                assert_eq!(back, (expected, 9));
                assert!(used.load(Ordering::Relaxed) >= u64::from(expected), "given back while still in use");
                expected += 1;
            }
        };
        beside(first, give_two, bring_home);
    });
}

#[test]
fn an_owner_that_waits_for_returns_does_not_sleep_over_one() {
    model(|first| {
        let (a, b) = (own(&[RETURNS_TAIL, side::RETURNS..side::RETURNS + 1]), own(&[WANTS]));
        let (far, wants, bells) = (a.as_peer(), b.as_peer(), bells());
        let ring = bells.clone();
        let give_one = move || {
            give(&a, 5, 9);
            look_again();
            if wants.wants_returns() { ring.ring(0, 3) } else { Wake::Nothing }
        };
        let wait = move || {
            b.set_wants_returns(true);
            look_again();
            would_sleep(&bells, || Returns::default().next(&far).unwrap().is_some())
        };
        let (wake, asleep) = beside(first, give_one, wait);
        assert!(!asleep || wake == Wake::Futex);
    });
}

/// Two that call one another: one of them sees it, or both would wait for ever.
#[test]
fn of_two_that_write_and_look_one_sees_the_other() {
    model(|first| {
        let calling = || own(&[CALLING]);
        let (a, b) = (calling(), calling());
        let call = |own: OwnSide, far: PeerSide| {
            move || {
                own.set_calling(1);
                look_again();
                far.calling()
            }
        };
        let (see_a, see_b) = (a.as_peer(), b.as_peer());
        assert_ne!(beside(first, call(a, see_b), call(b, see_a)), (0, 0));
    });
}

/// A copier and a revocation: whoever goes on with a grant that has ended has been seen by the one that ended it.
#[test]
fn a_copier_sees_the_end_of_its_grant_or_is_seen_at_it() {
    model(|first| {
        let table = OwnWords::model(std::slice::from_ref(&(0..grant::LEN + 1)));
        let peer = PeerGrants::new(table.as_peer());
        let granter = OwnGrants::new(table);
        let me = Endpoint::new(DcId(1), Slot(1), Generation(1));
        let place = Place { segment: 1, access: Access::Write, offset_bytes: 0, len_bytes: 8 };
        let generation = granter.put(0, me, place).unwrap();
        let copier = own(&[side::COPYING..side::COPYING + 1]);
        let marker = copier.as_peer();
        let step = move || {
            copier.begin_step(grant::marker(0, generation));
            peer.find(0, generation, me).is_some()
        };
        let revoke = move || {
            granter.end(0, generation);
            marker.copying()
        };
        let (goes_on, seen) = beside(first, step, revoke);
        assert!(!goes_on || seen == grant::marker(0, generation));
    });
}
