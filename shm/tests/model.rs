//! Lanes, replies, notifications, returns and doorbells against the dumbest model of each, one thread at a time.
//!
//! What two threads do to one another is in `loom.rs`, what a peer without manners can do in `hostile.rs`.
#![cfg(not(loom))]

use std::collections::{BTreeSet, VecDeque};

use abi::limits::{EXTENTS_PER_PAIR_MAX, LANE_SLOTS, NOTIFY_BITS, SLOTS_PER_DC};
use abi::slot::{BODY_WORDS, Kind, SlotCopy, WITHDRAWABLE, WITHDRAWN};
use abi::{DcId, Endpoint, Generation, Slot, doorbell};
use proptest::prelude::*;
use shm::doorbell::{Doorbells, Wake};
use shm::lane::{LaneReader, LaneWriter, Take, Withdrawal, flags_now, head, look_again};
use shm::returns::{Returns, give};
use shm::side::OwnSide;
use shm::{notify, reply};

const SOURCE: Endpoint = Endpoint::new(DcId(1), Slot(3), Generation(9));

fn message(kind: Kind, flags: u8, payload: u64) -> SlotCopy {
    let (source, body) = (SOURCE.to_word(), [payload; BODY_WORDS]);
    SlotCopy { head: head(kind, flags), source, sequence: 0, kind: 1, call: 0, body }
}

/// Where streams begin: at zero, and where the lap of 32 bits wraps.
fn first_sequence() -> impl Strategy<Value = u64> {
    let lap_wraps = (u32::MAX as u64) * LANE_SLOTS;
    prop_oneof![Just(0), 0..3 * LANE_SLOTS, lap_wraps - LANE_SLOTS..lap_wraps]
}

#[derive(Clone, Debug)]
enum LaneAct {
    Publish {
        count: u64,
        withdrawable: bool,
    },
    Take {
        count: u64,
    },
    Withdraw {
        back: u64,
    },
    /// A courier has announced that it sends slots up to so many from the reader's place on.
    Leave {
        count: u64,
    },
}

fn lane_act() -> impl Strategy<Value = LaneAct> {
    let count = prop_oneof![3 => 1u64..4, 1 => 1..2 * LANE_SLOTS];
    prop_oneof![
        4 => (count.clone(), any::<bool>()).prop_map(|(count, withdrawable)| LaneAct::Publish { count, withdrawable }),
        4 => count.prop_map(|count| LaneAct::Take { count }),
        3 => (0..LANE_SLOTS + 4).prop_map(|back| LaneAct::Withdraw { back }),
        1 => (0u64..4).prop_map(|count| LaneAct::Leave { count }),
    ]
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Waiting,
    Delivered,
    Skipped,
}

/// A lane beside its model: every slot ever published, and what became of it.
struct Lane {
    first: u64,
    own: OwnSide,
    far: OwnSide,
    writer: LaneWriter,
    reader: LaneReader,
    slots: Vec<(bool, Fate)>,
    marked: BTreeSet<u64>,
    certain: BTreeSet<u64>,
    taking: u64,
    last_outcome: Option<u64>,
}

impl Lane {
    fn new(first: u64) -> Lane {
        Lane {
            first,
            own: OwnSide::heap(),
            far: OwnSide::heap(),
            writer: LaneWriter::from_sequence(first),
            reader: LaneReader::from_sequence(first),
            slots: Vec::new(),
            marked: BTreeSet::new(),
            certain: BTreeSet::new(),
            taking: 0,
            last_outcome: None,
        }
    }

    fn step(&mut self, act: &LaneAct) {
        match *act {
            LaneAct::Publish { count, withdrawable } => (0..count).for_each(|_| self.publish(withdrawable)),
            LaneAct::Take { count } => (0..count).for_each(|_| self.take()),
            LaneAct::Withdraw { back } => self.withdraw(back),
            LaneAct::Leave { count } => {
                let end = (self.reader.next() + count).min(self.writer.next());
                if end > self.taking {
                    self.taking = end;
                    self.far.set_taking(end);
                }
            }
        }
        assert_eq!(self.reader.pending(&self.own.as_peer()), self.writer.next() - self.reader.next());
        assert_eq!(self.far.consumed().max(self.first), self.reader.next());
    }

    fn publish(&mut self, withdrawable: bool) {
        let room = self.writer.has_room(&self.far.as_peer()).unwrap();
        assert_eq!(room, self.writer.next() - self.reader.next() < LANE_SLOTS, "room is what it says");
        if !room {
            return;
        }
        let flags = if withdrawable { WITHDRAWABLE } else { 0 };
        let mut slot = message(Kind::Send, flags, self.writer.next() ^ 0x55);
        let sequence = self.writer.publish(&self.own, &mut slot);
        assert_eq!(sequence, self.first + self.slots.len() as u64);
        self.slots.push((withdrawable, Fate::Waiting));
    }

    fn take(&mut self) {
        let at = self.reader.next();
        let took = self.reader.take(&self.far, &self.own.as_peer(), SOURCE).unwrap();
        let Some((withdrawable, fate)) = self.slots.get_mut((at - self.first) as usize) else {
            assert_eq!(took, Take::Empty);
            return;
        };
        let (slot, expected) = match took {
            Take::Empty => panic!("slot {at} was published"),
            Take::Message(slot) => (slot, Fate::Delivered),
            Take::Skipped(slot) => (slot, Fate::Skipped),
        };
        *fate = expected;
        assert_eq!((slot.sequence, slot.body), (at, [at ^ 0x55; BODY_WORDS]), "in order and whole");
        assert_eq!(
            expected == Fate::Skipped,
            self.marked.contains(&at),
            "withdrawn slots are skipped, and only they"
        );
        if *withdrawable {
            self.last_outcome = Some(at);
            self.taking = at + 1;
        }
    }

    /// Withdraws the slot `back` before the one published last, if it can be withdrawn.
    fn withdraw(&mut self, back: u64) {
        let Some(sequence) = self.writer.next().checked_sub(back + 1).filter(|s| *s >= self.first) else {
            return;
        };
        let (withdrawable, fate) = self.slots[(sequence - self.first) as usize];
        if !withdrawable {
            return;
        }
        let outcome = self.writer.withdraw(&self.own, &self.far.as_peer(), sequence).unwrap();
        let last = self.last_outcome == Some(sequence);
        let expected = match fate {
            Fate::Waiting if self.taking > sequence => Withdrawal::Undecided,
            Fate::Waiting => Withdrawal::Withdrawn,
            Fate::Delivered if last => Withdrawal::Taken,
            Fate::Skipped if last => Withdrawal::Withdrawn,
            Fate::Delivered | Fate::Skipped => Withdrawal::Undecided,
        };
        assert_eq!(outcome, expected, "slot {sequence}, {fate:?}");
        if fate == Fate::Waiting {
            self.marked.insert(sequence);
        }
        if outcome == Withdrawal::Withdrawn {
            self.certain.insert(sequence);
        }
    }

    fn audit(&self) {
        for (index, (_, fate)) in self.slots.iter().enumerate() {
            let certain = self.certain.contains(&(self.first + index as u64));
            assert!(!(certain && *fate == Fate::Delivered), "withdrawn for certain, and delivered");
        }
    }
}

#[derive(Clone, Debug)]
enum NoteAct {
    Raise(u32),
    Take,
    /// The courier looks at the source.
    Look,
    /// The courier writes the look so many back into its memory.
    Mirror(usize),
    /// The courier is replaced by one with fresh memory.
    Restart,
}

fn note_act() -> impl Strategy<Value = NoteAct> {
    prop_oneof![
        4 => any::<u32>().prop_map(NoteAct::Raise),
        2 => (0u32..32).prop_map(|bit| NoteAct::Raise(1 << bit)),
        3 => Just(NoteAct::Take),
        3 => Just(NoteAct::Look),
        4 => (0usize..6).prop_map(NoteAct::Mirror),
        1 => Just(NoteAct::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn a_lane_is_a_queue_with_honest_room_and_honest_withdrawals(
        first in first_sequence(),
        acts in prop::collection::vec(lane_act(), 1..120),
    ) {
        let mut lane = Lane::new(first);
        acts.iter().for_each(|act| lane.step(act));
        while lane.reader.next() < lane.writer.next() {
            lane.take();
        }
        lane.audit();
    }

    #[test]
    fn a_client_gets_the_reply_to_its_own_call_and_no_other(
        acts in prop::collection::vec((0u8..4, any::<u64>()), 1..200),
        first in prop_oneof![Just(1u64), Just(u64::from(u32::MAX) - 3), 1..u64::MAX / 2],
    ) {
        let (server, mut call, mut answered, mut given_up) = (OwnSide::heap(), first, None, Vec::new());
        for (act, payload) in acts {
            let published = |call, payload| {
                reply::publish(&server, call, &message(Kind::Reply, 0, payload), true);
            };
            match act {
                0 if answered.is_none() => {
                    published(call, payload);
                    answered = Some(payload);
                }
                // A late reply to the call before: the other entry, whatever it holds.
                1 => given_up.pop().into_iter().filter(|late| late + 1 == call).for_each(|late| published(late, payload)),
                2 => {
                    if answered.is_none() {
                        given_up.push(call);
                    }
                    (call, answered) = (call + 1, None);
                }
                _ => {}
            }
            let got = reply::read(&server.as_peer(), call, SOURCE).unwrap();
            prop_assert_eq!(got.map(|slot| (slot.sequence, slot.body[7])), answered.map(|payload| (call, payload)));
            prop_assert_eq!(reply::is_published(&server, call), answered.is_some());
            let newest = reply::newest(&server.as_peer(), call - 1, SOURCE).unwrap();
            prop_assert_eq!(newest, got, "a courier that has carried all before carries this one");
        }
    }

    #[test]
    fn no_raise_is_lost_and_none_is_invented(acts in prop::collection::vec(note_act(), 1..150)) {
        let (source, mut courier, receiver) = (OwnSide::heap(), OwnSide::heap(), OwnSide::heap());
        let mut looks = vec![(notify::counters(&source.as_peer()), 0u64)];
        // Bits raised and not handed out yet; the second as of each look: a bit may be due only after it was mirrored.
        let (mut raised, mut handed, mut raises) = ([0u64; NOTIFY_BITS], [0u64; NOTIFY_BITS], 0u64);
        let mut mirrored = [0u64; NOTIFY_BITS];
        for act in acts {
            match act {
                NoteAct::Raise(bits) => {
                    notify::raise(&source, bits);
                    raises += 1;
                    (0..NOTIFY_BITS).filter(|bit| bits & 1 << bit != 0).for_each(|bit| raised[bit] += 1);
                }
                NoteAct::Look => looks.push((notify::counters(&source.as_peer()), raises)),
                NoteAct::Mirror(back) => {
                    let ((count, counters), _) = &looks[looks.len().saturating_sub(back + 1)];
                    notify::mirror(&courier, *count, counters);
                    (0..NOTIFY_BITS).for_each(|bit| mirrored[bit] = mirrored[bit].max(counters[bit]));
                }
                NoteAct::Restart => {
                    courier = OwnSide::heap();
                    mirrored = handed;
                }
                NoteAct::Take => {
                    let bits = notify::take(&receiver, &courier.as_peer());
                    for bit in 0..NOTIFY_BITS {
                        prop_assert_eq!(bits & 1 << bit != 0, mirrored[bit] > handed[bit], "bit {}", bit);
                        handed[bit] = handed[bit].max(mirrored[bit]);
                    }
                }
            }
        }
        let (count, counters) = notify::counters(&source.as_peer());
        prop_assert_eq!((count, &counters[..NOTIFY_BITS]), (raises, &raised[..]));
        notify::mirror(&courier, count, &counters);
        let bits = notify::take(&receiver, &courier.as_peer());
        prop_assert!((0..NOTIFY_BITS).all(|bit| (bits & 1 << bit != 0) == (raised[bit] > handed[bit])));
        prop_assert_eq!(notify::take(&receiver, &courier.as_peer()), 0, "seen once");
    }

    #[test]
    fn the_ring_of_returns_is_a_queue(batches in prop::collection::vec((1..=EXTENTS_PER_PAIR_MAX, any::<bool>()), 1..40)) {
        let (giver, mut owner, mut model, mut token) = (OwnSide::heap(), Returns::default(), VecDeque::new(), 0u32);
        for (count, all) in batches {
            for _ in 0..count.min(EXTENTS_PER_PAIR_MAX - model.len() as u64) {
                token = token.wrapping_add(0x0101_0101);
                give(&giver, token, !token);
                model.push_back((token, !token));
            }
            for _ in 0..if all { EXTENTS_PER_PAIR_MAX } else { count / 2 } {
                prop_assert_eq!(owner.next(&giver.as_peer()), Ok(model.pop_front()));
            }
        }
    }

    #[test]
    fn a_doorbell_hands_out_every_source_once_and_wakes_a_sleeper_once(
        acts in prop::collection::vec((0u8..6, 0..SLOTS_PER_DC), 1..200),
    ) {
        let (bells, mut rung, mut sleep, mut pulls) = (Doorbells::heap(), BTreeSet::new(), doorbell::AWAKE, 0);
        let (mine, other) = (doorbell::COUNT - 1, doorbell::COUNT - 2);
        for (act, bit) in acts {
            let wakes = match sleep {
                doorbell::ON_FUTEX => Wake::Futex,
                doorbell::ON_EVENTFD => Wake::EventFd,
                _ => Wake::Nothing,
            };
            match act {
                0 | 1 => {
                    prop_assert_eq!(bells.ring(mine, bit), wakes);
                    rung.insert(bit);
                    sleep = doorbell::AWAKE;
                }
                2 => {
                    pulls += 1;
                    prop_assert_eq!(bells.ring_for_pull(mine), wakes);
                    sleep = doorbell::AWAKE;
                }
                3 => {
                    sleep = if bit % 2 == 0 { doorbell::ON_FUTEX } else { doorbell::ON_EVENTFD };
                    bells.doze(mine, sleep);
                }
                4 => {
                    sleep = doorbell::AWAKE;
                    bells.awake(mine);
                }
                _ => {
                    prop_assert_eq!(bells.has_hints(mine), !rung.is_empty());
                    let mut drained = Vec::new();
                    bells.drain(mine, |bit| drained.push(bit));
                    prop_assert_eq!(drained, std::mem::take(&mut rung).into_iter().collect::<Vec<_>>());
                }
            }
            prop_assert_eq!(bells.pulls(mine), pulls);
            prop_assert!(!bells.has_hints(other), "a doorbell is nobody else's");
        }
    }
}

/// Two ends with a courier between them: it copies the source's slots into a memory of its own, and the receiver's
/// words back. Both of its memories are lost when it restarts; the wire forgets what is under way.
struct Carried {
    source: OwnSide,
    back: OwnSide,
    mirror: OwnSide,
    receiver: OwnSide,
    writer: LaneWriter,
    reader: LaneReader,
    wire: VecDeque<SlotCopy>,
    sent_next: u64,
    /// Below it slots have left in some session: what was said of them stays said when they are sent again.
    left: u64,
    delivered: Vec<u64>,
    skipped: Vec<u64>,
    certain: BTreeSet<u64>,
}

impl Carried {
    fn new(first: u64) -> Carried {
        let side = OwnSide::heap;
        let mut new = Carried {
            source: side(),
            back: side(),
            mirror: side(),
            receiver: side(),
            writer: LaneWriter::from_sequence(first),
            reader: LaneReader::from_sequence(first),
            wire: VecDeque::new(),
            sent_next: first,
            left: first,
            delivered: Vec::new(),
            skipped: Vec::new(),
            certain: BTreeSet::new(),
        };
        new.bring_words();
        new
    }

    fn step(&mut self, act: u8, count: u64) {
        match act {
            0..=3 => (0..count).for_each(|_| self.publish(act.is_multiple_of(2))),
            4 | 5 => (0..count).for_each(|_| self.send()),
            6 | 7 => (0..count).for_each(|_| self.arrive()),
            8 | 9 => (0..count).for_each(|_| self.take()),
            10 => self.bring_words(),
            11 => self.withdraw(count),
            12 => self.lose_session(),
            // The successor's memories are fresh. The source leaves the old one before the successor sends anything.
            _ => {
                self.writer.leave(&self.back.as_peer());
                (self.back, self.mirror) = (OwnSide::heap(), OwnSide::heap());
                self.left = 0;
                self.lose_session();
            }
        }
    }

    fn publish(&mut self, withdrawable: bool) {
        if self.writer.has_room(&self.back.as_peer()).unwrap() {
            let flags = if withdrawable { WITHDRAWABLE } else { 0 };
            self.writer.publish(&self.source, &mut message(Kind::Send, flags, self.writer.next()));
        }
    }

    fn send(&mut self) {
        let source = self.source.as_peer();
        if LaneReader::peek(&source, self.sent_next, SOURCE).unwrap().is_some() {
            if self.sent_next >= self.left {
                self.left = self.sent_next + 1;
                self.back.set_taking(self.left);
            }
            look_again();
            self.wire.extend(LaneReader::peek(&source, self.sent_next, SOURCE).unwrap());
            self.sent_next += 1;
        }
    }

    fn arrive(&mut self) {
        let Some(slot) = self.wire.pop_front() else { return };
        // Lower is dropped: its place may hold a later one.
        if slot.sequence >= self.reader.next() {
            self.mirror.publish_mirrored(&slot);
        }
    }

    fn take(&mut self) {
        match self.reader.take(&self.receiver, &self.mirror.as_peer(), SOURCE).unwrap() {
            Take::Empty => {}
            Take::Message(slot) => self.delivered.push(slot.body[0]),
            Take::Skipped(slot) => self.skipped.push(slot.sequence),
        }
    }

    /// The receiver's words back to the source, the source's marks to the mirror.
    fn bring_words(&mut self) {
        self.back.mirror(&self.receiver.as_peer().mirrored());
        for sequence in self.reader.next()..self.sent_next {
            if flags_now(&self.source.as_peer(), sequence) & WITHDRAWN != 0 {
                self.mirror.mark_withdrawn(sequence);
            }
        }
    }

    fn withdraw(&mut self, back: u64) {
        let Some(sequence) = self.writer.next().checked_sub(back) else { return };
        let Some(slot) = LaneReader::peek(&self.source.as_peer(), sequence, SOURCE).unwrap() else { return };
        if !slot.head.has(WITHDRAWABLE) {
            return;
        }
        match self.writer.withdraw(&self.source, &self.back.as_peer(), sequence).unwrap() {
            Withdrawal::Withdrawn => drop(self.certain.insert(sequence)),
            Withdrawal::Taken => assert!(self.delivered.contains(&sequence), "taken means handed out"),
            Withdrawal::Undecided => {}
        }
    }

    /// What may be missing is said again: from the receiver's counter on.
    fn lose_session(&mut self) {
        self.wire.clear();
        self.bring_words();
        self.sent_next = self.reader.next();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn through_couriers_that_restart_every_slot_arrives_once_and_in_order(
        first in first_sequence(),
        acts in prop::collection::vec((0u8..14, prop_oneof![1u64..4, 1..LANE_SLOTS + 9]), 1..150),
    ) {
        let mut pair = Carried::new(first);
        acts.iter().for_each(|&(act, count)| pair.step(act, count));
        pair.lose_session();
        while pair.reader.next() < pair.writer.next() {
            pair.send();
            pair.arrive();
            pair.take();
        }
        let mut all: Vec<u64> = pair.delivered.iter().chain(&pair.skipped).copied().collect();
        prop_assert!(pair.delivered.is_sorted(), "in order");
        all.sort_unstable();
        prop_assert!(all.into_iter().eq(first..pair.writer.next()), "each exactly once");
        prop_assert!(pair.delivered.iter().all(|sequence| !pair.certain.contains(sequence)));
    }
}
