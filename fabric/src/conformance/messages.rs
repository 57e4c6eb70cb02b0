//! Properties of messages that are not bulk.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::rig::{BUFFERS, Rig};
use super::{Network, nodes};
use crate::{Desc, Piece};

/// Rounds of traffic in which `count` messages get through from the first station to the second.
fn carry(rig: &mut Rig, count: u64) {
    let (from, to) = (rig.stations[0].id, rig.stations[1].id);
    let target = rig.stations[1].received.get(&from).copied().unwrap_or(0) + count;
    while rig.stations[1].received.get(&from).copied().unwrap_or(0) < target {
        rig.stations[0].post_numbered(to, 7);
        rig.step("messages get through");
    }
}

pub fn conformance_messages_arrive_whole_and_in_order(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::up(make(2));
    carry(&mut rig, 1500);
    rig.settle();
    let (one, other) = (&rig.stations[0].ledger, &rig.stations[1]);
    assert!(one.lost > 0 || one.failed == 0, "nothing fails without a lost session");
    assert_eq!(other.ledger.lent() + other.held.len(), BUFFERS);
}

pub fn conformance_the_largest_message_passes_and_no_larger(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::up(make(2));
    let to = rig.stations[1].id;
    let one = &mut rig.stations[0];
    let most = one.end().caps().message_bytes_max;
    assert!(most as usize >= abi::limits::LANE_SLOTS as usize * abi::limits::SLOT_BYTES, "a whole lane fits");
    let piece = Piece { region: one.region, offset_bytes: 5, len_bytes: most - 10 };
    while rig.stations[1].odd.is_empty() {
        rig.stations[0].post(to, &[0xff; 10], &[piece], false);
        rig.step("the largest message arrives");
    }
    assert_eq!(rig.stations[1].odd[0], most);
    rig.all_up();
    let station = &mut rig.stations[0];
    let token = station.token();
    let desc = Desc { token, head: &[0xff; 11], pieces: &[piece], bulk: false, flow: 0 };
    let taken = catch_unwind(AssertUnwindSafe(|| station.end().post_send(to, &[desc])));
    assert!(matches!(taken, Err(_) | Ok(0)), "one byte more is refused");
}

pub fn conformance_an_empty_message_arrives(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::up(make(2));
    let to = rig.stations[1].id;
    while rig.stations[1].odd.is_empty() {
        rig.stations[0].post(to, &[], &[], false);
        rig.step("an empty message arrives");
    }
    let empty = Piece { region: rig.stations[0].region, offset_bytes: 9, len_bytes: 0 };
    rig.settle();
    let before = rig.stations[1].odd.len();
    while rig.stations[1].odd.len() == before {
        rig.stations[0].post(to, &[], &[empty, empty], false);
        rig.step("an empty message of empty pieces arrives");
    }
    assert!(rig.stations[1].odd.iter().all(|len| *len == 0));
    carry(&mut rig, 10);
}

pub fn conformance_a_full_fabric_takes_a_prefix(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::new(make(2));
    rig.stations[0].lend();
    rig.all_up();
    let (from, to) = (rig.stations[0].id, rig.stations[1].id);
    let most = rig.stations[0].end().caps().posted_max;
    let mut idle = 0;
    while idle < 200 && rig.stations[0].ledger.sent < 20_000 {
        let taken = rig.stations[0].post_numbered(to, 50);
        assert!(rig.stations[0].ledger.outstanding() <= most, "no more than posted_max are outstanding");
        idle = if taken == 0 { idle + 1 } else { 0 };
        rig.step("the other end has no buffers");
    }
    assert!(rig.stations[0].ledger.sent < 20_000, "without buffers at the other end it must fill up");
    assert_eq!(rig.stations[1].received.get(&from), None, "nothing is received without a buffer");
    rig.stations[1].lend();
    rig.settle();
    carry(&mut rig, 300);
}

pub fn conformance_three_nodes_talk_all_at_once(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::up(make(3));
    let ids = nodes(3);
    let enough = |rig: &Rig| {
        rig.stations.iter().all(|s| s.received.len() == 2 && s.received.values().all(|count| *count >= 200))
    };
    while !enough(&rig) {
        for station in &mut rig.stations {
            ids.iter().filter(|to| **to != station.id).copied().collect::<Vec<_>>().into_iter().for_each(
                |to| {
                    station.post_numbered(to, 3);
                },
            );
        }
        rig.step("all hear all");
    }
    rig.settle();
}

pub fn conformance_all_posted_buffers_come_back(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::up(make(2));
    let (from, to) = (rig.stations[0].id, rig.stations[1].id);
    carry(&mut rig, 100);
    rig.stations[1].reposts = false;
    while rig.stations[1].ledger.lent() > 0 {
        rig.stations[0].post_numbered(to, 5);
        rig.step("every posted buffer comes back");
    }
    rig.stations[0].post_numbered(to, 5);
    assert_eq!(rig.stations[1].held.len(), BUFFERS);
    let before = rig.stations[1].received[&from];
    (0..50).for_each(|_| rig.step("nothing comes without buffers"));
    assert_eq!(rig.stations[1].received[&from], before);
    let (sent, lost) = (rig.stations[0].ledger.sent, rig.stations[0].ledger.lost);
    rig.stations[1].reposts = true;
    rig.stations[1].lend();
    rig.until("what was sent arrives without more being sent", |rig| {
        rig.stations[0].ledger.lost > lost
            || lost > 0
            || rig.stations[1].received[&from] >= sent.max(before + 1)
    });
    carry(&mut rig, 50);
}

pub fn conformance_one_completion_fits_where_no_room_is(make: &dyn Fn(usize) -> Network) {
    let mut rig = Rig::up(make(2));
    rig.stations.iter_mut().for_each(|s| s.set_room(0));
    let (from, to) = (rig.stations[0].id, rig.stations[1].id);
    while rig.stations[1].received.get(&from).copied().unwrap_or(0) < 100 {
        rig.stations[0].post_numbered(to, 2);
        rig.stations.iter_mut().for_each(|s| s.set_room(0));
        rig.step("completions come one by one");
    }
    rig.settle();
}
