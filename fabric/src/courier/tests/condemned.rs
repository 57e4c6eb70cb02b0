//! Endpoints that break the protocol: their pairs end at both ends, and leave nothing that stands still.

use super::*;

fn detached(n: usize) -> Output {
    Output::Detached { local: endpoint(n), remote: endpoint(1 - n) }
}

fn is_condemned(end: &End) -> bool {
    end.outputs.iter().any(|output| matches!(output, Output::Condemned { .. }))
}

/// Publishes one that names a segment which the daemon says there is not.
fn name_nothing(rig: &mut Rig) {
    let nowhere = Claim { segment: 9, token: 1, offset_bytes: 0, len_bytes: 100 };
    rig.ends[0].publish(0, Kind::Post, 0, Some(nowhere), b"");
    let end = &mut rig.ends[0];
    for _ in 0..3 {
        end.courier.step(Duration::ZERO, &mut end.fabric);
    }
    end.courier.take_outputs(&mut end.outputs);
    assert!(end.outputs.contains(&Output::WantSegment { memory: 1, segment: 9 }));
    end.courier.forget_segment(1, 9, &mut end.fabric);
}

#[test]
fn who_names_a_segment_that_there_is_not_broke_the_protocol() {
    for mode in MODES {
        let mut rig = Rig::joined(mode);
        rig.ends[0].publish(0, Kind::Post, 0, None, b"before");
        rig.settle();
        name_nothing(&mut rig);
        rig.settle();
        assert!(is_condemned(&rig.ends[0]));
        assert_eq!(text(&rig.ends[1].take(1).expect("published before")), b"before");
        assert_eq!(rig.ends[1].mirror.end(), (side::END_DEAD, 1));
    }
}

#[test]
fn a_hole_in_the_lane_of_a_dead_endpoint_ends_its_pair_behind_what_came_before() {
    for restarts in [false, true] {
        let mut rig = Rig::joined(Mode::Eager);
        rig.ends[0].publish(0, Kind::Post, 0, None, b"before");
        rig.settle();
        rig.wire.cut(node(0), node(1));
        rig.ends[0].publish(0, Kind::Post, 0, None, b"whole");
        let hole = rig.ends[0].publish(0, Kind::Post, 0, None, b"torn");
        rig.ends[0].publish(0, Kind::Post, 0, None, b"behind");
        let at = lane::slot_offset_bytes(hole) / 8;
        rig.ends[0].own.words().store(at, 0, shm::sync::Ordering::Relaxed);
        if restarts {
            rig.restart(0);
        }
        rig.ends[0].courier.local_ended(endpoint(0));
        rig.wire.heal(node(0), node(1));
        rig.settle();
        assert!(is_condemned(&rig.ends[0]));
        for expected in [&b"before"[..], b"whole"] {
            assert_eq!(text(&rig.ends[1].take(1).expect("published before the hole")), expected);
        }
        assert!(rig.ends[1].take(1).is_none());
        assert_eq!(rig.ends[1].mirror.end(), (side::END_DEAD, 2));
        assert!(rig.ends[0].outputs.contains(&detached(0)), "the dead one's pair is let go");
    }
}

#[test]
fn the_pair_of_a_friend_that_dies_is_let_go_whatever_became_of_the_session_meanwhile() {
    for cut in [false, true] {
        let mut rig = Rig::joined(Mode::Eager);
        name_nothing(&mut rig);
        if cut {
            // What was said of the end is lost with the session.
            rig.step(0);
            assert!(is_condemned(&rig.ends[0]));
            rig.wire.cut(node(0), node(1));
            rig.settle();
            assert_eq!(rig.ends[1].mirror.end().0, side::END_NONE);
            rig.wire.heal(node(0), node(1));
        }
        rig.settle();
        assert_eq!(rig.ends[1].mirror.end().0, side::END_DEAD, "the friend hears of it");
        rig.ends[1].courier.local_ended(endpoint(1));
        rig.settle();
        assert!(rig.ends[1].outputs.contains(&detached(1)));
        rig.ends[0].courier.local_ended(endpoint(0));
        rig.settle();
        assert!(rig.ends[0].outputs.contains(&detached(0)));
    }
}

/// What a copier asks of the other node's endpoint, and whether that breaks the protocol there.
fn asks_for(role: Role, theirs: Range, range: Range) -> bool {
    let mut rig = Rig::joined(Mode::Eager);
    let other = endpoint(1).to_word();
    let request =
        CopyRequest { role, node: NodeId(0), begun: false, len_bytes: 64, theirs, range, other, beside: 0 };
    rig.ends[0].own.ask_copy(&request);
    rig.ends[0].courier.hint(DC, 0);
    rig.settle();
    let wanted = |output: &Output| matches!(output, Output::WantSegment { memory: 2, segment: 1 });
    let is_condemned = is_condemned(&rig.ends[1]);
    assert_eq!(rig.ends[1].outputs.iter().any(wanted), !is_condemned && role != Role::Cancel);
    is_condemned
}

#[test]
fn who_copies_from_another_node_what_nobody_granted_broke_the_protocol_and_reads_nothing() {
    // Segment 1 is the pool of whoever is asked; as a table of grants it has none.
    let (own, granted) = (Range::own(1, 0), Range { place: 1, generation: 1, offset_bytes: 0 });
    assert!(asks_for(Role::Send, own, own));
    assert!(asks_for(Role::Receive, own, own));
    assert!(asks_for(Role::Within, own, granted));
    assert!(asks_for(Role::Within, granted, own));
    assert!(!asks_for(Role::Send, granted, own), "its own end is its own");
    assert!(!asks_for(Role::Cancel, own, own), "who gives up names nothing");
}

#[test]
fn who_has_the_bytes_and_no_way_to_whom_they_are_for_says_so() {
    let mut rig = Rig::joined(Mode::Eager);
    let granted = Range { place: 1, generation: 1, offset_bytes: 0 };
    let other = Endpoint::new(DC, Slot(9), endpoint(0).generation).to_word();
    let beyond = NodeId(9);
    let request = CopyRequest {
        role: Role::Send,
        node: beyond,
        begun: false,
        len_bytes: 64,
        theirs: granted,
        range: granted,
        other,
        beside: 2,
    };
    let number = rig.ends[0].own.ask_copy(&request);
    rig.ends[0].courier.hint(DC, 0);
    rig.settle();
    assert_eq!(rig.ends[0].mirror.copy_answer(number), Some(abi::grant::Status::NoWay));
    assert!(!is_condemned(&rig.ends[1]));
}
