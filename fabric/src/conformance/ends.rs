//! Properties of sessions, regions and sleep: how things begin and end.

use std::sync::Arc;

use abi::{Incarnation, NodeId};
use shm::map::Mapping;

use super::Network;
use super::rig::{Answer, BUFFERS, BULK_SLOT_BYTES, Rig};
use crate::{Desc, Piece};

pub fn conformance_nothing_is_taken_without_a_session(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::new(make(2));
    let to = rig.stations[1].id;
    let desc = [Desc { token: 1, head: b"early", pieces: &[], bulk: false, flow: 0 }];
    assert_eq!(rig.stations[0].end().post_send(to, &desc), 0, "before the session is told of");
    assert_eq!(rig.stations[0].end().post_send(NodeId(999), &desc), 0, "to a node nobody knows");
    rig.stations.iter_mut().for_each(|s| assert_eq!(s.lend(), BUFFERS));
    rig.all_up();
    assert_eq!(rig.stations[0].end().post_send(NodeId(999), &desc), 0, "to a node nobody knows");
    rig.stations[1].fabric = None;
    rig.until("the loss is told", |rig| rig.stations[0].ledger.session(to).is_none());
    assert_eq!(rig.stations[0].end().post_send(to, &desc), 0, "after the loss");
}

/// Messages and bulk messages from and into regions of the first station that are detached at once.
fn leave_in_flight(rig: &mut Rig) -> [Arc<Mapping>; 3] {
    let (one, other) = (rig.stations[0].id, rig.stations[1].id);
    let maps = [0; 3].map(|_| Mapping::heap(BULK_SLOT_BYTES));
    let pieces = maps.each_ref().map(|map| {
        let region = rig.stations[0].end().attach(map);
        Piece { region, offset_bytes: 0, len_bytes: BULK_SLOT_BYTES as u32 }
    });
    let small = Piece { len_bytes: 5000, ..pieces[0] };
    rig.stations[0].post(other, &[0xff], &[pieces[1]], true);
    rig.stations[0].answer = Answer::Hold;
    rig.stations[1].post_bulk(one);
    (0..3).for_each(|_| rig.step("a bulk message is announced"));
    let announced = rig.stations[0].ledger.announced.iter().map(|(key, bytes)| (*key, *bytes)).next();
    if let Some(((peer, token), bytes)) = announced {
        rig.stations[0].accept(peer, token, Piece { len_bytes: bytes as u32, ..pieces[2] });
    }
    for _ in 0..20 {
        rig.stations[0].post(other, &[0xff], &[small], false);
    }
    pieces.iter().for_each(|piece| rig.stations[0].end().detach(piece.region));
    maps
}

/// Traffic of all kinds in both directions, in the middle of which the second station vanishes.
pub fn conformance_a_lost_peer_gives_everything_back(make: &dyn Fn(usize) -> Network) {
    for rounds in [1, 3, 10, 40] {
        let mut rig = Rig::up(make(2));
        let (one, other) = (rig.stations[0].id, rig.stations[1].id);
        rig.stations[1].answer = Answer::Half;
        for _ in 0..rounds {
            rig.stations[0].post_numbered(other, 9);
            rig.stations[0].post_bulk(other);
            rig.stations[1].post_numbered(one, 9);
            rig.stations[1].post_bulk(one);
            rig.step("traffic");
        }
        rig.stations[1].answer = Answer::Hold;
        rig.stations[0].post_bulk(other);
        rig.stations[0].post_numbered(other, 50);
        let maps = leave_in_flight(&mut rig);
        rig.stations[1].fabric = None;
        rig.until("the loss is told", |rig| rig.stations[0].ledger.session(other).is_none());
        assert_eq!(maps.map(|map| Arc::strong_count(&map)), [1; 3], "regions of the lost session are let go");
        let station = &rig.stations[0];
        assert!(station.ledger.is_settled(), "all has completed before the loss is told");
        assert_eq!(station.ledger.lent() + station.held.len(), BUFFERS);
    }
}

pub fn conformance_an_answer_after_the_loss_gives_its_buffer_back(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::up(make(2));
    let (one, other) = (rig.stations[0].id, rig.stations[1].id);
    rig.stations[0].answer = Answer::Hold;
    while rig.stations[0].ledger.announced.is_empty() {
        rig.stations[1].post_bulk(one);
        rig.step("a bulk message is announced");
    }
    let ((peer, token), bytes) =
        rig.stations[0].ledger.announced.iter().map(|(k, b)| (*k, *b)).next().expect("one");
    rig.stations[1].fabric = None;
    rig.until("the loss is told", |rig| rig.stations[0].ledger.session(other).is_none());
    rig.stations[0].accept_in_slot(peer, token, bytes);
    rig.until("the buffer comes back", |rig| rig.stations[0].bulk_failed == 1);
    rig.stations[0].refuse(peer, token);
    rig.step("a late refusal is nothing");
}

pub fn conformance_a_detached_region_lives_until_its_last_use(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::up(make(2));
    let (from, to) = (rig.stations[0].id, rig.stations[1].id);
    rig.stations[1].answer = Answer::Hold;
    let map = Mapping::heap(1 << 20);
    while rig.stations[1].bulk_received == 0 {
        rig.all_up();
        let region = rig.stations[0].end().attach(&map);
        let piece = Piece { region, offset_bytes: 64, len_bytes: 200 << 10 };
        let small = Piece { len_bytes: 1000, ..piece };
        let taken = rig.stations[0].post(to, b"detached", &[piece], true);
        rig.stations[0].post(to, &[0xff; 3], &[small], false);
        rig.stations[0].end().detach(region);
        let lives = Arc::strong_count(&map) > 1;
        assert!(lives || !taken, "a region in use is not let go");
        let lost = rig.stations[1].ledger.lost;
        rig.until("it is announced", |rig| {
            !taken || !rig.stations[1].ledger.announced.is_empty() || rig.stations[1].ledger.lost > lost
        });
        let waiting: Vec<_> = rig.stations[1].ledger.announced.iter().map(|((_, t), b)| (*t, *b)).collect();
        waiting.into_iter().for_each(|(token, bytes)| rig.stations[1].accept_in_slot(from, token, bytes));
        rig.settle();
        assert_eq!(Arc::strong_count(&map), 1, "a region out of use is let go");
    }
}

pub fn conformance_a_sleeper_misses_nothing(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::up(make(2));
    let (one, other) = (rig.stations[0].id, rig.stations[1].id);
    let heard =
        |rig: &Rig, at: usize, from: NodeId| rig.stations[at].received.get(&from).copied().unwrap_or(0);
    for _ in 0..300 {
        for (at, to, me) in [(0, other, one), (1, one, other)] {
            let before = heard(&rig, 1 - at, me);
            while heard(&rig, 1 - at, me) == before {
                if rig.stations[at].ledger.outstanding() == 0 {
                    rig.stations[at].post_numbered(to, 1);
                }
                rig.step_sleepers("a sleeper wakes for a message");
            }
        }
    }
    while rig.stations[1].bulk_received < 20 {
        if rig.stations[0].ledger.outstanding() == 0 {
            rig.stations[0].post_bulk(other);
        }
        rig.step_sleepers("a sleeper wakes for bulk");
    }
    rig.stations[1].fabric = None;
    while rig.stations[0].ledger.session(other).is_some() {
        rig.step_sleepers("a sleeper wakes for a loss");
    }
}

pub fn conformance_who_may_sleep_has_nothing_to_do(make: &dyn Fn(usize) -> Network) {
    const ROUNDS: usize = 200;
    let mut rig = Rig::up(make(2));
    let other = rig.stations[1].id;
    let mut surprises = 0;
    for _ in 0..ROUNDS {
        if rig.stations[0].ledger.outstanding() < 8 {
            rig.stations[0].post_numbered(other, 1);
        }
        surprises += rig.step_and_count_surprises("messages get through");
    }
    // Bytes may come off a real wire just between the look and the poll.
    assert!(
        surprises < ROUNDS / 5,
        "{surprises} times there was something to do, and it was said that one may sleep"
    );
}

pub fn conformance_a_new_session_follows_a_lost_one(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::up(make(2));
    let (one, other) = (rig.stations[0].id, rig.stations[1].id);
    rig.stations[1].answer = Answer::Half;
    for round in 0..12 {
        let lost = [0, 1].map(|i: usize| rig.stations[i].ledger.lost);
        for _ in 0..round % 5 {
            rig.stations[0].post_numbered(other, 20);
            rig.stations[1].post_numbered(one, 20);
            rig.stations[0].post_bulk(other);
            rig.step("traffic");
        }
        if !rig.flap() {
            return;
        }
        rig.until("both see the loss", |rig| (0..2).all(|i| rig.stations[i].ledger.lost > lost[i]));
        rig.all_up();
    }
    let before = rig.stations[1].received.get(&one).copied().unwrap_or(0);
    while rig.stations[1].received.get(&one).copied().unwrap_or(0) < before + 100 {
        rig.stations[0].post_numbered(other, 5);
        rig.step("messages in the new session");
    }
    rig.settle();
}

pub fn conformance_a_fenced_peer_is_lost(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::up(make(2));
    let other = rig.stations[1].id;
    rig.stations[0].post_numbered(other, 20);
    rig.stations[0].end().fence(other, Incarnation(u32::MAX - 1));
    rig.until("the fenced peer is lost", |rig| rig.stations[0].ledger.session(other).is_none());
    let one = rig.stations[0].id;
    rig.until("the fenced peer sees it", |rig| rig.stations[1].ledger.session(one).is_none());
    assert!(rig.stations[0].ledger.is_settled());
    for _ in 0..50 {
        rig.step("nothing comes about");
        assert_eq!(rig.stations[0].ledger.session(other), None, "no session with a fenced incarnation");
        assert_eq!(rig.stations[0].post_numbered(other, 1), 0);
    }
}
