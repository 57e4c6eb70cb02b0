//! Properties of bulk messages.

use std::panic::{AssertUnwindSafe, catch_unwind};

use abi::NodeId;
use shm::map::Mapping;

use super::Network;
use super::rig::{Answer, Rig};
use crate::{Desc, Piece};

/// Large enough to fill every buffer on the way.
const LARGE_BYTES: u32 = 64 << 20;

pub fn conformance_bulk_is_announced_and_arrives_or_is_refused(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::up(make(2));
    let to = rig.stations[1].id;
    rig.stations[1].answer = Answer::Half;
    while rig.stations[1].bulk_received < 60 {
        rig.stations[0].post_bulk(to);
        rig.stations[0].post_numbered(to, 2);
        rig.step("bulk messages arrive");
    }
    rig.settle();
    assert!(rig.stations[0].ledger.failed > 0, "the refused ones fail");
    rig.stations[1].answer = Answer::Refuse;
    rig.all_up();
    let (failed, arrived) = (rig.stations[0].ledger.failed, rig.stations[1].bulk_received);
    while rig.stations[0].ledger.failed == failed {
        rig.stations[0].post_bulk(to);
        rig.step("a refused bulk message fails");
    }
    rig.settle();
    assert_eq!(rig.stations[1].bulk_received, arrived);
}

pub fn conformance_an_empty_bulk_message_arrives(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::up(make(2));
    let to = rig.stations[1].id;
    while rig.stations[1].bulk_received < 3 {
        rig.stations[0].post(to, b"no bytes", &[], true);
        (0..4).for_each(|_| rig.step("empty bulk messages arrive"));
    }
    rig.settle();
}

/// Announces `LARGE_BYTES` and waits for it; its token, unless the session was lost.
fn announce_large(rig: &mut Rig, piece: Piece) -> Option<(NodeId, u64)> {
    rig.all_up();
    let (lost, to) = (rig.stations[0].ledger.lost + rig.stations[1].ledger.lost, rig.stations[1].id);
    if !rig.stations[0].post(to, b"large", &[piece], true) {
        rig.step("a large bulk message is taken");
        return None;
    }
    let is_lost = |rig: &Rig| rig.stations[0].ledger.lost + rig.stations[1].ledger.lost > lost;
    rig.until("a large bulk message is announced", |rig| {
        !rig.stations[1].ledger.announced.is_empty() || is_lost(rig)
    });
    let announced = &rig.stations[1].ledger.announced;
    announced.iter().next().filter(|_| !is_lost(rig)).map(|((peer, token), bytes)| {
        assert_eq!(*bytes, LARGE_BYTES as u64);
        (*peer, *token)
    })
}

pub fn conformance_a_message_does_not_wait_for_a_large_bulk(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::up(make(2));
    rig.stations[1].answer = Answer::Hold;
    let maps = [Mapping::heap(LARGE_BYTES as usize), Mapping::heap(LARGE_BYTES as usize)];
    for at in [0, LARGE_BYTES as usize / 2 + 3, LARGE_BYTES as usize - 1] {
        maps[0].write_from(at, &[at as u8 | 1]).expect("in the map");
    }
    let piece = |rig: &mut Rig, i: usize| {
        let region = rig.stations[i].end().attach(&maps[i]);
        Piece { region, offset_bytes: 0, len_bytes: LARGE_BYTES }
    };
    let (from, into) = (piece(&mut rig, 0), piece(&mut rig, 1));
    while rig.stations[1].bulk_received == 0 {
        let Some((peer, token)) = announce_large(&mut rig, from) else { continue };
        rig.stations[1].accept(peer, token, into);
        (0..2).for_each(|_| rig.step("a large bulk message begins"));
        if rig.stations[1].bulk_received > 0 {
            // It is read at once: nothing could wait.
            break;
        }
        let to = rig.stations[1].id;
        let before = rig.stations[1].received.get(&peer).copied().unwrap_or(0);
        let taken = rig.stations[0].post_numbered(to, 1);
        rig.until("the bulk message arrives or fails", |rig| {
            rig.stations[1].ledger.accepted() == 0
                || rig.stations[1].received.get(&peer).copied().unwrap_or(0) > before
        });
        let overtook = rig.stations[1].ledger.accepted() > 0;
        assert!(overtook || taken == 0 || rig.stations[1].bulk_failed > 0, "the message came after the bulk");
        rig.settle();
    }
    for at in [0, LARGE_BYTES as usize / 2 + 3, LARGE_BYTES as usize - 1] {
        let mut byte = [0];
        maps[1].read_into(at, &mut byte).expect("in the map");
        assert_eq!(byte, [at as u8 | 1], "bulk byte {at}");
    }
}

pub fn conformance_bulk_may_be_answered_in_any_order(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::up(make(2));
    let to = rig.stations[1].id;
    rig.stations[1].answer = Answer::Hold;
    while rig.stations[1].bulk_received < 40 {
        rig.stations[0].post_bulk(to);
        rig.step("bulk messages wait for answers");
        if rig.stations[1].ledger.announced.len() < 5 {
            continue;
        }
        let waiting: Vec<_> =
            rig.stations[1].ledger.announced.iter().map(|(k, bytes)| (*k, *bytes)).collect();
        for ((peer, token), bytes) in waiting.into_iter().rev() {
            rig.stations[1].accept_in_slot(peer, token, bytes);
        }
    }
    rig.stations[1].answer = Answer::Refuse;
    let waiting: Vec<_> = rig.stations[1].ledger.announced.keys().copied().collect();
    waiting.into_iter().for_each(|(peer, token)| rig.stations[1].refuse(peer, token));
    rig.settle();
}

pub fn conformance_unanswered_bulk_holds_nothing_else_up(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::up(make(2));
    let (from, to) = (rig.stations[0].id, rig.stations[1].id);
    rig.stations[1].answer = Answer::Hold;
    while rig.stations[1].received.get(&from).copied().unwrap_or(0) < 600 {
        rig.stations[0].post_bulk(to);
        rig.stations[0].post_numbered(to, 4);
        rig.step("messages pass unanswered bulk messages");
    }
    rig.stations[1].answer = Answer::Refuse;
    let waiting: Vec<_> = rig.stations[1].ledger.announced.keys().copied().collect();
    waiting.into_iter().for_each(|(peer, token)| rig.stations[1].refuse(peer, token));
    rig.settle();
}

pub fn conformance_bulk_beyond_caps_is_not_taken(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::up(make(2));
    let to = rig.stations[1].id;
    let station = &mut rig.stations[0];
    let most = station.end().caps().bulk_bytes_max;
    let part = u32::try_from(most / 2).expect("pieces that can be named") + 1;
    let piece = Piece { region: station.region, offset_bytes: 0, len_bytes: part };
    let token = station.token();
    let desc = Desc { token, head: &[], pieces: &[piece, piece], bulk: true, flow: 0 };
    let taken = catch_unwind(AssertUnwindSafe(|| station.end().post_send(to, &[desc])));
    assert!(matches!(taken, Err(_) | Ok(0)), "more than caps say is refused");
}
