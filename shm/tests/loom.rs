//! Every interleaving, within bounds, of two or three threads over the words they share.
//!
//! `RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=2 cargo test --release -p shm --test loom`; a lane has two slots then.
//! A sleeper is modelled by its decision: it has dozed, has looked a last time and found nothing, so it would sleep, and
//! somebody must have been told to wake it.
#![cfg(loom)]

use std::ops::Range;

use abi::slot::{BODY_WORDS, Kind, SlotCopy, WITHDRAWABLE, WORDS};
use abi::{DcId, Endpoint, Generation, Slot, doorbell, side};
use loom::thread;
use shm::doorbell::{Doorbells, Wake};
use shm::lane::{LaneReader, LaneWriter, Take, Withdrawal, flags_now, head, look_again};
use shm::returns::{Returns, give};
use shm::side::OwnSide;
use shm::sync::{AtomicU64, Ordering, relax};
use shm::words::OwnWords;
use shm::{notify, reply};
use std::sync::Arc;

const SOURCE: Endpoint = Endpoint::new(DcId(1), Slot(3), Generation(9));
const READER: Range<usize> = side::CONSUMED..side::OUTCOME + 1;
const LANE: Range<usize> = side::LANE..side::WORDS;
const ATTENDING: Range<usize> = side::ATTENDING..side::ATTENDING + 1;
const ONE_BIT: Range<usize> = doorbell::BITS..doorbell::BITS + 1;

fn model(f: impl Fn() + Sync + Send + 'static) {
    model_within(2, f);
}

/// No more preemptions than `most`, nor than the environment says.
fn model_within(most: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 10_000;
    builder.preemption_bound = Some(builder.preemption_bound.unwrap_or(most).min(most));
    builder.check(f);
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
    model(|| {
        let (a, b, looked) = (own(&[LANE]), own(&[READER]), Arc::new(AtomicU64::new(0)));
        let (source, far, seen) = (a.as_peer(), b.as_peer(), looked.clone());
        let sender = thread::spawn(move || {
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
        });
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
        sender.join().unwrap();
    });
}

/// The receiver takes one slot while its sender withdraws it; asked again afterwards, both say the same.
#[test]
fn a_slot_is_withdrawn_or_taken_and_both_ends_agree() {
    model(|| {
        let (a, b) = (own(&[LANE]), own(&[READER]));
        let mut writer = LaneWriter::default();
        writer.publish(&a, &mut message(Kind::Send, WITHDRAWABLE, 7));
        let (source, far) = (a.as_peer(), b.as_peer());
        let receiver = thread::spawn(move || LaneReader::default().take(&b, &source, SOURCE).unwrap());
        let consumed = far.consumed() > 0;
        let first = writer.withdraw(&a, &far, 0).unwrap();
        assert!(!consumed || first != Withdrawal::Undecided, "consumed, so its outcome is there");
        let took = receiver.join().unwrap();
        let then = writer.withdraw(&a, &far, 0).unwrap();
        match took {
            Take::Message(_) => assert_eq!(then, Withdrawal::Taken),
            Take::Skipped(_) => assert_eq!(then, Withdrawal::Withdrawn),
            Take::Empty => panic!("it was published"),
        }
        assert!(first == then || first == Withdrawal::Undecided, "{first:?}, then {then:?}");
    });
}

/// The mark is the last word written, so it is the one that must bring the body.
#[test]
fn a_slot_that_is_withdrawn_as_soon_as_it_is_published_is_whole() {
    model(|| {
        let (a, b) = (own(&[LANE]), own(&[READER]));
        let (source, far) = (a.as_peer(), b.as_peer());
        let sender = thread::spawn(move || {
            let mut writer = LaneWriter::default();
            let sequence = writer.publish(&a, &mut message(Kind::Send, WITHDRAWABLE, 7));
            writer.withdraw(&a, &far, sequence).unwrap()
        });
        let took = LaneReader::default().take(&b, &source, SOURCE).unwrap();
        let first = sender.join().unwrap();
        match took {
            Take::Message(slot) => assert!(slot.body == [7; BODY_WORDS] && first != Withdrawal::Withdrawn),
            Take::Skipped(slot) => assert!(slot.body == [7; BODY_WORDS] && first != Withdrawal::Taken),
            Take::Empty => assert_eq!(first, Withdrawal::Withdrawn),
        }
    });
}

/// As above, with a courier between the two: what has left is never withdrawn for certain and yet delivered.
#[test]
fn a_slot_that_a_courier_carries_is_withdrawn_or_taken_and_both_ends_agree() {
    let words = side::CONSUMED..side::REPLY_TAKEN + 1;
    let gave_up = side::GAVE_UP..side::GAVE_UP + 1;
    model(move || {
        let words = || own(&[words.clone(), gave_up.clone()]);
        let (a, back, mirror, b) = (own(&[LANE]), words(), own(&[LANE]), words());
        let mut writer = LaneWriter::default();
        writer.publish(&a, &mut message(Kind::Send, WITHDRAWABLE, 7));
        let (source, far) = (a.as_peer(), back.as_peer());
        let courier = thread::spawn(move || {
            back.set_taking(1);
            look_again();
            mirror.publish_mirrored(&LaneReader::peek(&source, 0, SOURCE).unwrap().unwrap());
            if flags_now(&source, 0) & abi::slot::WITHDRAWN != 0 {
                mirror.mark_withdrawn(0);
            }
            let took = LaneReader::default().take(&b, &mirror.as_peer(), SOURCE).unwrap();
            back.mirror(&b.as_peer().mirrored());
            matches!(took, Take::Message(_))
        });
        let consumed = far.consumed() > 0;
        let first = writer.withdraw(&a, &far, 0).unwrap();
        assert!(!consumed || first != Withdrawal::Undecided, "consumed, so its outcome is there");
        let delivered = courier.join().unwrap();
        let then = writer.withdraw(&a, &far, 0).unwrap();
        assert_eq!(then, if delivered { Withdrawal::Taken } else { Withdrawal::Withdrawn });
        assert!(first == then || first == Withdrawal::Undecided, "{first:?}, then {then:?}");
    });
}

#[test]
fn a_receiver_that_stops_attending_does_not_sleep_over_a_message() {
    model(|| {
        let (a, b, bells) = (own(&[LANE]), own(&[ATTENDING]), bells());
        b.set_attending(true);
        let (source, far, ring) = (a.as_peer(), b.clone(), bells.clone());
        let sender = thread::spawn(move || publish_and_knock(&a, &far, &ring));
        b.set_attending(false);
        look_again();
        let asleep = would_sleep(&bells, || LaneReader::default().is_pending(&source));
        let wake = sender.join().unwrap();
        assert!(!asleep || wake == Wake::Futex, "asleep, a message there, and nobody woken");
    });
}

/// A lane that is not attended is looked at only when the doorbell hints at it.
#[test]
fn a_receiver_that_is_not_attending_does_not_sleep_over_a_hint() {
    model(|| {
        let (a, b, bells) = (own(&[LANE]), own(&[ATTENDING]), bells());
        let (source, ring) = (a.as_peer(), bells.clone());
        let sender = thread::spawn(move || publish_and_knock(&a, &b, &ring));
        let asleep = would_sleep(&bells, || {
            let mut found = false;
            if bells.has_hints(0) {
                bells.drain(0, |_| found = LaneReader::default().is_pending(&source));
                assert!(found, "who hints has published");
            }
            found
        });
        let wake = sender.join().unwrap();
        assert!(!asleep || wake == Wake::Futex, "asleep, a hint there, and nobody woken");
    });
}

#[test]
fn of_two_ringers_every_bit_is_drained_and_one_wakes_the_sleeper() {
    model(|| {
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
    model(|| {
        let bells = bells();
        let ring = bells.clone();
        let daemon = thread::spawn(move || ring.ring_for_pull(0));
        let asleep = would_sleep(&bells, || bells.pulls(0) != 0);
        assert!(!asleep || daemon.join().unwrap() == Wake::Futex);
    });
}

/// What was written before a raise is there when its bit is; a raise that was counted is handed out.
#[test]
fn a_raise_is_never_lost_and_brings_what_was_written_before_it() {
    model(|| {
        let raised = side::RAISES..side::RAISED + side::RAISED_WORDS;
        let (a, b) = (own(&[raised]), own(&[side::SEEN..side::SEEN + side::RAISED_WORDS]));
        let written = Arc::new(AtomicU64::new(0));
        let (source, data) = (a.as_peer(), written.clone());
        let raiser = thread::spawn(move || {
            for raise in 1..3 {
                // Relaxed: what is tested is that the raise orders it.
                data.store(raise, Ordering::Relaxed);
                notify::raise(&a, 1);
            }
        });
        let counted = notify::raises(&source);
        let first = notify::take(&b, &source);
        let seen = b.words().load(side::SEEN, Ordering::Relaxed);
        assert!(seen >= counted && (first == 1) == (seen > 0));
        assert!(written.load(Ordering::Relaxed) >= seen, "the bit is there, its cause is not");
        raiser.join().unwrap();
        assert_eq!(notify::take(&b, &source), if seen < 2 { 1 } else { 0 });
        assert_eq!(notify::take(&b, &source), 0);
    });
}

/// What a mirror counts it has, so that a receiver that looks only when the count has changed misses nothing.
#[test]
fn a_mirrored_count_is_never_ahead_of_its_counters() {
    model(|| {
        let words = || own(&[side::RAISES..side::RAISED + side::RAISED_WORDS]);
        let (a, mirror) = (words(), words());
        let (source, mirrored) = (a.as_peer(), mirror.as_peer());
        let raiser = thread::spawn(move || notify::raise(&a, 1));
        let courier = thread::spawn(move || {
            let (count, counters) = notify::counters(&source);
            notify::mirror(&mirror, count, &counters);
        });
        let count = notify::raises(&mirrored);
        let raised = mirrored.words().load(side::RAISED, Ordering::Relaxed);
        assert!(raised >= count, "counted {count}, raised {raised}");
        courier.join().unwrap();
        raiser.join().unwrap();
    });
}

/// The client gave up call 1 and makes call 3, whose reply has the same entry, while a courier reads. Every word may be
/// the old or the new one, which costs; one preemption, of either thread at any word, is enough.
#[test]
fn a_reply_that_is_replaced_while_it_is_read_is_whole_or_not_there() {
    model_within(1, || {
        let a = own(&[side::REPLIES..side::REPLIES + 2 * WORDS]);
        let source = a.as_peer();
        reply::publish(&a, &mut SlotCopy { call: 1, ..message(Kind::Reply, 0, 1) });
        let server = thread::spawn(move || {
            reply::publish(&a, &mut SlotCopy { call: 3, ..message(Kind::Reply, 0, 3) })
        });
        if let Some(slot) = reply::newest(&source, 0, SOURCE).unwrap() {
            assert_eq!(slot.body, [u64::from(slot.call); BODY_WORDS]);
        }
        server.join().unwrap();
        assert_eq!(reply::read(&source, 3, SOURCE).unwrap().map(|slot| slot.body[0]), Some(3));
    });
}

#[test]
fn a_reply_is_whole_when_its_client_sees_it() {
    model(|| {
        let a = own(&[side::REPLIES..side::REPLIES + 2 * WORDS]);
        let source = a.as_peer();
        let server = thread::spawn(move || {
            for call in 1..3 {
                reply::publish(&a, &mut SlotCopy { call, ..message(Kind::Reply, 0, call.into()) });
            }
        });
        if let Some(slot) = reply::read(&source, 2, SOURCE).unwrap() {
            assert_eq!((slot.call, slot.body), (2, [2; BODY_WORDS]));
        }
        server.join().unwrap();
    });
}

#[test]
fn returned_extents_come_in_order_after_their_last_use() {
    model(|| {
        let ring = [side::RETURNS_TAIL..side::RETURNS_TAIL + 1, side::RETURNS..side::RETURNS + 2];
        let a = own(&ring);
        let (far, used) = (a.as_peer(), Arc::new(AtomicU64::new(0)));
        let last_use = used.clone();
        let giver = thread::spawn(move || {
            for token in 1..3 {
                // Relaxed: what is tested is that giving back orders it.
                last_use.store(token.into(), Ordering::Relaxed);
                give(&a, token, 9);
            }
        });
        let mut owner = Returns::default();
        let mut expected = 1;
        while let Some(back) = owner.next(&far).unwrap() {
            assert_eq!(back, (expected, 9));
            assert!(used.load(Ordering::Relaxed) >= u64::from(expected), "given back while still in use");
            expected += 1;
        }
        giver.join().unwrap();
    });
}

#[test]
fn an_owner_that_waits_for_returns_does_not_sleep_over_one() {
    model(|| {
        let ring = [side::RETURNS_TAIL..side::RETURNS_TAIL + 1, side::RETURNS..side::RETURNS + 1];
        let (a, b, bells) = (own(&ring), own(&[side::WANTS_RETURNS..side::WANTS_RETURNS + 1]), bells());
        let (far, wants, ring) = (a.as_peer(), b.as_peer(), bells.clone());
        let giver = thread::spawn(move || {
            give(&a, 5, 9);
            look_again();
            if wants.wants_returns() { ring.ring(0, 3) } else { Wake::Nothing }
        });
        b.set_wants_returns(true);
        look_again();
        let asleep = would_sleep(&bells, || Returns::default().next(&far).unwrap().is_some());
        assert!(!asleep || giver.join().unwrap() == Wake::Futex);
    });
}

/// Two that call one another: one of them sees it, or both would wait for ever.
#[test]
fn of_two_that_write_and_look_one_sees_the_other() {
    model(|| {
        let calling = || own(&[side::CALLING..side::CALLING + 1]);
        let (a, b) = (calling(), calling());
        let (see_a, see_b) = (a.as_peer(), b.as_peer());
        let other = thread::spawn(move || {
            a.set_calling(1);
            look_again();
            see_b.calling()
        });
        b.set_calling(1);
        look_again();
        let seen = see_a.calling();
        assert!(seen == 1 || other.join().unwrap() == 1);
    });
}
