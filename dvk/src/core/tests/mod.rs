//! Tests of the core over heap memory: two cores on one node, then what a proxy's side adds.

use std::collections::{BTreeMap, VecDeque};

use abi::limits::{CALLS_KNOWN_EVERY, EXTENTS_PER_PAIR_MAX, LANE_SLOTS, REPLY_SLOTS};
use abi::table::{Entry, State};
use abi::{Allowed, DcId, Endpoint, Generation, Level, NodeId, Slot, doorbell, side, slot, table};
use shm::doorbell::Doorbells;
use shm::lane::Withdrawal;
use shm::pool::Pool;
use shm::side::OwnSide;
use shm::words::OwnWords;

mod privileges;
mod relay;

use super::*;
use crate::error::{PostError, ReceiveError, RelayError, ReplyError, SendError, SendrecError};
use crate::message::{Delivery, Message, What};

const ALL: Accepts = Accepts { notifications: true, attend: false };
const NO_NOTES: Accepts = Accepts { notifications: false, attend: false };
const POOL_BYTES: usize = 256 << 10;

/// What a daemon would do, by hand.
#[derive(Default)]
struct Hands {
    maps: BTreeMap<(u32, u32), Arc<Mapping>>,
    recycled: Vec<Endpoint>,
    pulled: VecDeque<Pulled>,
}

impl Host for Hands {
    fn map_granted(&mut self, memory: u32, segment: u32, _: bool) -> Result<Arc<Mapping>, Unavailable> {
        self.map_segment(memory, segment)
    }

    fn map_segment(&mut self, memory: u32, segment: u32) -> Result<Arc<Mapping>, Unavailable> {
        self.maps.get(&(memory, segment)).cloned().ok_or(Unavailable::Broken)
    }

    fn recycled(&mut self, peer: Endpoint) {
        self.recycled.push(peer);
    }

    fn pull(&mut self, _: bool) -> Result<Option<Pulled>, Unavailable> {
        Ok(self.pulled.pop_front())
    }
}

fn at(slot: u16) -> Endpoint {
    Endpoint::new(DcId(1), Slot(slot), Generation(7))
}

struct Node {
    table: OwnWords,
    doorbells: Doorbells,
    hands: Hands,
}

impl Node {
    fn new() -> Node {
        Node {
            table: OwnWords::heap(table::VERSION + 1),
            doorbells: Doorbells::heap(),
            hands: Hands::default(),
        }
    }

    fn set(&self, endpoint: Endpoint, state: State) {
        let entry =
            Entry { state, node: NodeId(1), proxy: 0, generation: endpoint.generation, level: Level::Server };
        self.table.store(table::of_slot(endpoint.slot), entry.to_word(), Ordering::Release);
    }

    /// A core whose memory has its slot's number and one pool segment, 1.
    fn bind(&mut self, slot: u16) -> Core {
        let map = Mapping::heap(POOL_BYTES);
        self.hands.maps.insert((slot as u32, 1), map.clone());
        let mut pool = Pool::new(1 << 30);
        pool.add_segment(1, map);
        self.set(at(slot), State::Bound);
        Core::new(at(slot), self.doorbells.clone(), self.table.as_peer(), pool)
    }

    /// Two cores that know one another, and how each knows the other.
    fn pair(&mut self) -> (Core, Core, PeerIndex, PeerIndex) {
        self.pair_over(&OwnSide::heap(), &OwnSide::heap())
    }

    fn pair_over(&mut self, of_a: &OwnSide, of_b: &OwnSide) -> (Core, Core, PeerIndex, PeerIndex) {
        let (mut a, mut b) = (self.bind(1), self.bind(2));
        let to_b = a.introduce(local(at(2), of_a, of_b, 2));
        let to_a = b.introduce(local(at(1), of_b, of_a, 1));
        (a, b, to_b, to_a)
    }

    fn any(&mut self, core: &mut Core) -> Option<Delivery> {
        self.accepting(core, ALL)
    }

    fn accepting(&mut self, core: &mut Core, accepts: Accepts) -> Option<Delivery> {
        core.poll_any(accepts, &mut self.hands).unwrap()
    }

    fn from(&mut self, core: &mut Core, source: Endpoint) -> Option<Delivery> {
        core.poll_from(source, ALL, &mut self.hands).unwrap()
    }

    fn reply(&mut self, core: &mut Core, call: Call) -> Option<Result<Delivery, SendrecError>> {
        core.poll_call(call, &mut self.hands)
    }
}

fn local(peer: Endpoint, own: &OwnSide, theirs: &OwnSide, memory: u32) -> Introduced {
    Introduced {
        peer,
        own: own.clone(),
        side: theirs.as_peer(),
        memory,
        doorbell: doorbell::of_slot(peer.slot),
        proxied: false,
        allowed: Allowed::ALL,
        ring: None,
    }
}

fn text(bytes: &[u8]) -> Message {
    Message::new(5).inline(bytes)
}

fn loaned(core: &mut Core, len: u32, fill: u8) -> Message {
    let mut loan = core.pool().loan(len).unwrap();
    loan.fill(fill);
    Message::new(6).with(loan)
}

fn loans_out(core: &mut Core) -> u64 {
    core.bring_home_from_all();
    core.pool().settle();
    core.pool().audit().unwrap().loans
}

#[test]
fn posted_messages_arrive_once_and_in_order_over_several_laps() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = node.pair();
    let mut next = 0u64;
    for n in 0..3 * LANE_SLOTS {
        a.post(to_b, text(&n.to_le_bytes())).unwrap();
        if n % 5 == 4 {
            while let Some(got) = node.any(&mut b) {
                assert_eq!((got.source(), got.inline()), (at(1), &next.to_le_bytes()[..]));
                next += 1;
            }
        }
    }
    while node.any(&mut b).is_some() {
        next += 1;
    }
    assert_eq!(next, 3 * LANE_SLOTS);
}

#[test]
fn a_full_lane_gives_the_message_back_and_takes_it_after_one_was_received() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = node.pair();
    for _ in 0..LANE_SLOTS {
        a.post(to_b, text(b"x")).unwrap();
    }
    let Err(PostError::Full(back)) = a.post(to_b, text(b"last")) else { panic!("the lane is full") };
    assert_eq!(back.bytes(), b"last");
    assert!(!a.has_room(to_b).unwrap());
    node.any(&mut b).unwrap();
    assert!(a.has_room(to_b).unwrap());
    a.post(to_b, back).unwrap();
}

#[test]
fn a_rendezvous_ends_when_it_is_taken_and_not_before() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = node.pair();
    let sent = a.start_send(to_b, &mut text(b"meet"), false).unwrap();
    assert_eq!((a.poll_sent(sent), a.poll_sent_end(sent)), (None, None));
    assert_eq!(node.any(&mut b).unwrap().inline(), b"meet");
    assert_eq!(a.poll_sent(sent), Some(Ok(())));
}

#[test]
fn a_request_is_answered_and_its_extent_and_the_replys_go_home() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = node.pair();
    let mut request = loaned(&mut a, 1000, 3);
    let call = a.start_call(to_b, &mut request, true).unwrap();
    assert!(node.reply(&mut a, call).is_none());
    let mut got = node.accepting(&mut b, NO_NOTES).unwrap();
    assert_eq!(got.take_view().unwrap().to_vec(), vec![3; 1000]);
    let answer = loaned(&mut b, 70_000, 4);
    b.reply(&got, answer).unwrap();
    let reply = node.reply(&mut a, call).unwrap().unwrap();
    assert_eq!((reply.what(), reply.view().unwrap().to_vec()), (What::Reply, vec![4; 70_000]));
    assert_eq!((loans_out(&mut a), loans_out(&mut b)), (0, 1), "the reply's view is held");
    drop(reply);
    assert_eq!(loans_out(&mut b), 0);
}

#[test]
fn a_reply_whose_extent_lies_nowhere_ends_its_call() {
    let mut node = Node::new();
    let (of_a, of_b) = (OwnSide::heap(), OwnSide::heap());
    let (mut a, mut b, to_b, _) = node.pair_over(&of_a, &of_b);
    let call = a.start_call(to_b, &mut text(b"?"), true).unwrap();
    let got = node.any(&mut b).unwrap();
    let answer = loaned(&mut b, 64, 1);
    b.reply(&got, answer).unwrap();
    let entry = side::REPLIES + 1 % REPLY_SLOTS as usize * slot::WORDS;
    let offset = entry + slot::WORDS - slot::BODY_WORDS + 1;
    of_b.words().store(offset, u64::MAX, Ordering::Relaxed);
    assert_eq!(of_a.as_peer().calling(), 1);
    let ended = node.reply(&mut a, call).unwrap();
    assert!(matches!(ended, Err(SendrecError::Corrupt(_))), "{ended:?}");
    assert_eq!(of_a.as_peer().calling(), 0, "nobody takes it for waiting");
}

#[test]
fn a_pair_that_begins_during_a_call_does_not_count_the_call_as_over() {
    let mut node = Node::new();
    let (mut a, _b, to_b, _) = node.pair();
    a.calls = 5;
    a.start_call(to_b, &mut text(b"?"), true).unwrap();
    let (of_a, of_c) = (OwnSide::heap(), OwnSide::heap());
    node.bind(3);
    a.introduce(local(at(3), &of_a, &of_c, 3));
    assert_eq!(of_a.gave_up(), 5, "call 6 may still be answered");
}

#[test]
fn a_late_reply_to_a_call_that_was_given_up_is_refused_and_its_extent_stays_home() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = node.pair();
    let call = a.start_call(to_b, &mut text(b"?"), true).unwrap();
    let got = node.any(&mut b).unwrap();
    assert_eq!(a.give_up(call, false, &mut node.hands), Some(SendrecError::TimedOutTaken));
    let late = loaned(&mut b, 64, 1);
    assert!(b.reply(&got, late).is_err());
    assert_eq!(loans_out(&mut b), 0);
}

#[test]
fn a_client_may_call_for_longer_than_half_a_number_lasts() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = node.pair();
    for lap in 1..40 {
        // As if it had called others meanwhile.
        a.calls = lap * CALLS_KNOWN_EVERY - 2;
        for round in 0..4 {
            let call = a.start_call(to_b, &mut text(b"?"), true).unwrap();
            let got = node.any(&mut b).unwrap();
            if round == 1 {
                assert_eq!(a.give_up(call, false, &mut node.hands), Some(SendrecError::TimedOutTaken));
                assert_eq!(b.reply(&got, text(b"late")), Err(ReplyError::NotWaiting));
                continue;
            }
            let answer = loaned(&mut b, 64, 1);
            b.reply(&got, answer).unwrap();
            assert_eq!(node.reply(&mut a, call).unwrap().unwrap().view().unwrap().len(), 64);
        }
        assert_eq!(loans_out(&mut b), 0, "lap {lap}");
    }
}

#[test]
fn a_request_is_answered_once_and_abandoned_when_it_is_dropped_unanswered() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = node.pair();
    let call = a.start_call(to_b, &mut text(b"?"), true).unwrap();
    let got = node.any(&mut b).unwrap();
    b.reply(&got, text(b"!")).unwrap();
    assert_eq!(b.reply(&got, text(b"again")), Err(ReplyError::Answered));
    drop(got);
    assert_eq!(node.reply(&mut a, call).unwrap().unwrap().inline(), b"!");
    let call = a.start_call(to_b, &mut text(b"?"), true).unwrap();
    drop(node.any(&mut b).unwrap());
    assert_eq!(node.reply(&mut a, call).unwrap().unwrap_err(), SendrecError::Abandoned);
    // What was given up before it is dropped leaves no answer for the call after the next, which shares its place.
    let call = a.start_call(to_b, &mut text(b"?"), true).unwrap();
    let late = node.any(&mut b).unwrap();
    assert_eq!(a.give_up(call, false, &mut node.hands), Some(SendrecError::TimedOutTaken));
    drop(late);
    let call = a.start_call(to_b, &mut text(b"?"), true).unwrap();
    assert!(node.reply(&mut a, call).is_none());
}

#[test]
fn a_wake_up_comes_first_waits_for_a_receive_from_anybody_and_comes_once() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = node.pair();
    a.post(to_b, text(b"later")).unwrap();
    assert_eq!([a.notify(to_b, 1), a.wake(to_b), a.wake(to_b)], [Ok(()); 3]);
    let from_a = node.from(&mut b, at(1)).unwrap();
    assert_eq!(from_a.what(), What::Notification { bits: 1 });
    assert_eq!(node.from(&mut b, at(1)).unwrap().inline(), b"later");
    assert!(node.from(&mut b, at(1)).is_none());
    assert_eq!(a.notify(to_b, 2), Ok(()));
    let woken = node.accepting(&mut b, NO_NOTES).unwrap();
    assert_eq!((woken.what(), woken.source()), (What::Woken, at(1)));
    assert_eq!(node.any(&mut b).unwrap().what(), What::Notification { bits: 2 });
    assert!(node.any(&mut b).is_none());
    assert_eq!(a.wake(to_b), Ok(()));
    assert_eq!(node.accepting(&mut b, NO_NOTES).unwrap().what(), What::Woken);
    assert!(node.accepting(&mut b, NO_NOTES).is_none() && b.is_quiet());
}

#[test]
fn the_extent_of_a_reply_that_its_client_gave_up_goes_home() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = node.pair();
    let call = a.start_call(to_b, &mut text(b"?"), true).unwrap();
    let got = node.any(&mut b).unwrap();
    let answer = loaned(&mut b, 64, 1);
    b.reply(&got, answer).unwrap();
    assert_eq!(a.give_up(call, false, &mut node.hands), Some(SendrecError::TimedOutTaken));
    assert_eq!(loans_out(&mut b), 0);
}

#[test]
fn a_withdrawn_message_is_never_delivered_and_the_next_one_is() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = node.pair();
    let mut message = loaned(&mut a, 500, 1);
    let sent = a.start_send(to_b, &mut message, true).unwrap();
    assert_eq!(a.withdraw(sent, &mut node.hands), Ok(Withdrawal::Withdrawn));
    a.post(to_b, text(b"next")).unwrap();
    assert_eq!(node.any(&mut b).unwrap().inline(), b"next");
    assert_eq!(loans_out(&mut a), 0);
    let sent = a.start_send(to_b, &mut text(b"taken"), true).unwrap();
    node.any(&mut b).unwrap();
    assert_eq!(a.withdraw(sent, &mut node.hands), Ok(Withdrawal::Taken));
}

#[test]
fn notifications_are_one_bit_each_however_often_raised_and_come_before_messages() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = node.pair();
    a.post(to_b, text(b"m")).unwrap();
    assert_eq!([1, 1, 1 << 31].map(|bits| a.notify(to_b, bits)), [Ok(()); 3]);
    assert_eq!(node.any(&mut b).unwrap().what(), What::Notification { bits: 1 | 1 << 31 });
    assert_eq!(a.notify(to_b, 2), Ok(()));
    assert_eq!(node.any(&mut b).unwrap().what(), What::Message);
    assert_eq!(node.any(&mut b).unwrap().what(), What::Notification { bits: 2 });
    assert!(node.any(&mut b).is_none());
}

#[test]
fn a_bit_raised_again_between_two_looks_of_one_take_is_not_handed_out_empty() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = node.pair();
    for round in 0..40 {
        assert_eq!(a.notify(to_b, 1 << (round % 32)), Ok(()));
        let got = node.from(&mut b, at(1)).unwrap();
        assert_eq!(got.what(), What::Notification { bits: 1 << (round % 32) });
        assert!(node.from(&mut b, at(1)).is_none());
    }
}

#[test]
fn no_more_extents_are_out_with_a_peer_than_its_return_ring_holds() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = node.pair();
    let mut views = Vec::new();
    for _ in 0..EXTENTS_PER_PAIR_MAX {
        let message = loaned(&mut a, 64, 9);
        a.post(to_b, message).unwrap();
        views.extend(node.any(&mut b).unwrap().take_view());
    }
    let one_more = loaned(&mut a, 64, 9);
    assert!(matches!(a.post(to_b, one_more), Err(PostError::Full(_))));
    views.clear();
    assert_eq!(loans_out(&mut a), 0);
}

#[test]
fn what_a_dead_sender_published_is_received_before_its_death() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = node.pair();
    a.post(to_b, text(b"1")).unwrap();
    a.post(to_b, text(b"2")).unwrap();
    assert_eq!(a.notify(to_b, 4), Ok(()));
    node.set(at(1), State::Dead);
    b.poll_from_end(at(1), &mut node.hands).unwrap();
    drop(a);
    for want in [b"1", b"2"] {
        assert_eq!(node.from(&mut b, at(1)).unwrap().inline(), want);
    }
    assert_eq!(b.poll_from_end(at(1), &mut node.hands), Err(ReceiveError::DeadSource));
    assert_eq!(node.hands.recycled, [at(1)]);
    assert_eq!(b.pairs(), 0);
}

#[test]
fn what_a_dead_receiver_had_not_taken_is_known_not_to_be_delivered() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = node.pair();
    let mut message = loaned(&mut a, 5000, 1);
    let taken = a.start_call(to_b, &mut message, true).unwrap();
    let held = node.any(&mut b).unwrap();
    node.set(at(2), State::Dead);
    let done = a.call_end(taken).unwrap();
    assert_eq!(done, Err(SendrecError::DeadSource), "it had taken the request");
    assert!(matches!(a.post(to_b, text(b"x")), Err(PostError::DeadDestination)));
    drop((held, b));
    assert!(node.any(&mut a).is_none());
    a.suspect_all(Duration::ZERO);
    assert!(node.any(&mut a).is_none());
    assert_eq!((a.pairs(), loans_out(&mut a)), (0, 0), "closed, and all is home");
}

#[test]
fn a_rendezvous_with_one_that_dies_first_was_not_delivered() {
    let mut node = Node::new();
    let (mut a, _b, to_b, _) = node.pair();
    let sent = a.start_send(to_b, &mut text(b"x"), false).unwrap();
    node.set(at(2), State::Dead);
    assert_eq!(a.poll_sent_end(sent), Some(Err(SendError::DeadDestination)));
}

#[test]
fn a_view_outlives_its_sender_and_keeps_its_bytes() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = node.pair();
    let message = loaned(&mut a, 300, 8);
    a.post(to_b, message).unwrap();
    let view = node.any(&mut b).unwrap().take_view().unwrap();
    node.set(at(1), State::Dead);
    drop(a);
    b.suspect_all(Duration::ZERO);
    assert!(node.any(&mut b).is_none());
    assert!(node.hands.recycled.is_empty(), "its side may be used again when the view is gone");
    assert_eq!(view.to_vec(), [8; 300]);
    drop(view);
    b.suspect_all(Duration::ZERO);
    assert!(node.any(&mut b).is_none());
    assert_eq!(node.hands.recycled, [at(1)]);
}

#[test]
fn two_that_call_one_another_are_a_deadlock() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, to_a) = node.pair();
    let of_a = a.start_call(to_b, &mut text(b"a"), true).unwrap();
    assert!(!a.is_deadlock(of_a));
    let of_b = b.start_call(to_a, &mut text(b"b"), true).unwrap();
    assert!(a.is_deadlock(of_a) && b.is_deadlock(of_b));
    a.give_up(of_a, true, &mut node.hands);
    assert!(!b.is_deadlock(of_b));
}

#[test]
fn hints_are_followed_by_a_receiver_that_scans_nothing_by_itself() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = node.pair();
    assert!(node.any(&mut b).is_none());
    b.stop_attending();
    a.post(to_b, text(b"rung")).unwrap();
    assert_eq!(node.any(&mut b).unwrap().inline(), b"rung");
}

/// A pair behind a proxy: `mirror` is the proxy's side for the remote endpoint 9.
fn proxied(node: &mut Node) -> (Core, PeerIndex, OwnSide, OwnSide) {
    let mut a = node.bind(1);
    node.set(at(9), State::Bound);
    let (own, mirror) = (OwnSide::heap(), OwnSide::heap());
    let mut new = local(at(9), &own, &mirror, 90);
    new.proxied = true;
    new.doorbell = doorbell::of_proxy(1);
    let index = a.introduce(new);
    (a, index, own, mirror)
}

fn moved(mirror: &OwnSide) -> Pulled {
    let side = mirror.as_peer();
    Pulled::Moved { peer: at(9), side, memory: 91, doorbell: doorbell::of_proxy(1), ring: None }
}

#[test]
fn what_a_proxys_successor_may_have_sent_is_not_withdrawn_for_certain() {
    let mut node = Node::new();
    let (mut a, to_remote, _, _) = proxied(&mut node);
    let sent = a.start_send(to_remote, &mut text(b"x"), true).unwrap();
    let successor = OwnSide::heap();
    node.hands.pulled.push_back(moved(&successor));
    let _ = node.doorbells.ring_for_pull(doorbell::of_slot(Slot(1)));
    successor.set_taking(1);
    assert_eq!(a.withdraw(sent, &mut node.hands), Ok(Withdrawal::Undecided));
}

#[test]
fn what_a_proxy_may_have_sent_is_unknown_when_its_node_dies() {
    let mut node = Node::new();
    let (mut a, to_remote, _, mirror) = proxied(&mut node);
    let left = a.start_send(to_remote, &mut text(b"x"), false).unwrap();
    let stayed = a.start_send(to_remote, &mut text(b"y"), false).unwrap();
    mirror.set_taking(1);
    node.set(at(9), State::NodeDead);
    assert_eq!(a.poll_sent_end(left), Some(Err(SendError::DeliveryUnknown)));
    assert_eq!(a.poll_sent_end(stayed), Some(Err(SendError::DeadDestination)));
}

#[test]
fn a_peer_whose_pair_came_before_its_name_is_spoken_to() {
    for former in [None, Some(Endpoint { generation: Generation(6), ..at(9) })] {
        let mut node = Node::new();
        let (mut a, to_remote, _, _) = proxied(&mut node);
        match former {
            Some(former) => node.set(former, State::Dead),
            None => node.table.store(table::of_slot(Slot(9)), 0, Ordering::Release),
        }
        a.post(to_remote, text(b"early")).expect("it lives, though the table does not know it");
        a.notify(to_remote, 1).expect("it lives");
        node.set(at(9), State::Dead);
        assert!(a.post(to_remote, text(b"late")).is_err());
    }
}

#[test]
fn what_a_replaced_proxy_may_have_sent_is_unknown_when_the_far_node_knows_nothing_of_the_endpoint() {
    let mut node = Node::new();
    let (mut a, to_remote, _, mirror) = proxied(&mut node);
    let left = a.start_send(to_remote, &mut text(b"x"), false).unwrap();
    let stayed = a.start_send(to_remote, &mut text(b"y"), false).unwrap();
    mirror.set_taking(1);
    let successor = OwnSide::heap();
    successor.end(side::END_REFUSED, 0);
    node.hands.pulled.push_back(moved(&successor));
    a.pull_now(&mut node.hands).unwrap();
    assert_eq!(a.poll_sent_end(left), Some(Err(SendError::DeliveryUnknown)));
    assert_eq!(a.poll_sent_end(stayed), Some(Err(SendError::DeadDestination)));
}

#[test]
fn a_death_that_was_told_is_remembered_when_the_proxy_is_replaced_and_its_successor_refused() {
    let mut node = Node::new();
    let (mut a, to_remote, _, mirror) = proxied(&mut node);
    let sent = a.start_send(to_remote, &mut text(b"x"), false).unwrap();
    mirror.set_taking(1);
    mirror.end(side::END_DEAD, 0);
    let successor = OwnSide::heap();
    successor.end(side::END_REFUSED, 0);
    node.hands.pulled.push_back(moved(&successor));
    a.pull_now(&mut node.hands).unwrap();
    assert_eq!(a.poll_sent_end(sent), Some(Err(SendError::DeadDestination)), "its counter was final");
}

#[test]
fn an_extent_behind_a_proxy_is_home_when_the_far_end_has_consumed_it() {
    let mut node = Node::new();
    let (mut a, to_remote, _, mirror) = proxied(&mut node);
    let message = loaned(&mut a, 64, 1);
    a.post(to_remote, message).unwrap();
    assert_eq!(loans_out(&mut a), 1);
    mirror.mirror(&shm::side::Mirrored { consumed: 1, ..Default::default() });
    assert_eq!(loans_out(&mut a), 0);
}

#[test]
fn more_consumed_than_published_closes_the_pair_with_corrupt() {
    let mut node = Node::new();
    let (mut a, to_remote, _, mirror) = proxied(&mut node);
    let sent = a.start_send(to_remote, &mut text(b"x"), false).unwrap();
    mirror.mirror(&shm::side::Mirrored { consumed: 2, ..Default::default() });
    assert!(matches!(a.poll_sent(sent), Some(Err(SendError::Corrupt(_)))));
    assert!(a.has_ended(to_remote));
}

#[test]
fn what_a_dead_remote_sender_published_is_waited_for_when_the_proxy_is_replaced() {
    let mut node = Node::new();
    let (mut a, _, _, mirror) = proxied(&mut node);
    mirror.end(side::END_DEAD, 1);
    node.set(at(9), State::Dead);
    a.poll_from_end(at(9), &mut node.hands).unwrap();
    let successor = OwnSide::heap();
    node.hands.pulled.push_back(moved(&successor));
    let _ = node.doorbells.ring_for_pull(doorbell::of_slot(Slot(1)));
    assert!(node.any(&mut a).is_none());
    assert_eq!((a.poll_from_end(at(9), &mut node.hands), a.pairs()), (Ok(()), 1));
    successor.end(side::END_REFUSED, 0);
    assert_eq!(a.poll_from_end(at(9), &mut node.hands), Err(ReceiveError::DeadSource));
}

#[test]
fn the_death_of_a_node_is_heard_though_nobody_wrote_it_into_the_side_and_the_slot_is_bound_again() {
    let mut node = Node::new();
    let (mut a, to_remote, _, mirror) = proxied(&mut node);
    mirror.set_taking(1);
    let sent = a.start_send(to_remote, &mut text(b"x"), false).unwrap();
    node.set(Endpoint { generation: Generation(8), ..at(9) }, State::Bound);
    assert_eq!(a.poll_sent_end(sent), None, "its end may be on its way");
    node.hands.pulled.push_back(Pulled::Gone { peer: at(9) });
    let _ = node.doorbells.ring_for_pull(doorbell::of_slot(Slot(1)));
    a.pull(&mut node.hands).unwrap();
    assert_eq!(a.poll_sent_end(sent), Some(Err(SendError::DeliveryUnknown)));
}
