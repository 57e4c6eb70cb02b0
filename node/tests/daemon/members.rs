//! The member protocol against a daemon without neighbours.

use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use abi::limits::{POOL_BYTES_MAX, SIDES_FIRST, SIDES_MORE};
use abi::member::{Refusal, Reply, Request, SegmentKind, VERSION};
use abi::table::State;
use abi::{Endpoint, Generation, Name, Slot, doorbell, side};
use shm::map::{Access, Mapping};
use shm::os::fdpass;

use crate::client::{Client, DC, Member, PATIENCE, alone, eventually, name_of, read_peer};

#[test]
fn a_bound_endpoint_is_in_the_table_once_it_is_ready() {
    let house = alone();
    let client = Client::hello(house.daemon.member_socket());
    let (reply, fds) = client.ask(Request::Bind { slot: Some(Slot(3)), name: Name::NONE, private: false });
    let Reply::Bound { endpoint, sides, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(client.entry(Slot(3)).state, State::Free, "not before ready");
    Mapping::shared(fds[0].as_fd(), 0, sides as usize * side::BYTES, Access::ReadWrite).unwrap();
    assert_eq!(client.ask(Request::Ready).0, Reply::Done);
    let entry = client.entry(Slot(3));
    assert_eq!((entry.state, entry.generation, entry.node.0), (State::Bound, endpoint.generation, 1));
    assert_eq!(endpoint.slot, Slot(3));
}

#[test]
fn hello_is_checked_for_version_and_dc() {
    let house = alone();
    let client = Client::connect(house.daemon.member_socket());
    let main = name_of("main");
    assert_eq!(client.refused(Request::Hello { version: VERSION + 1, dc: main }), Refusal::Version);
    assert_eq!(client.refused(Request::Hello { version: VERSION, dc: name_of("other") }), Refusal::NoSuchDc);
    assert_eq!(client.refused(Request::Pull), Refusal::BadRequest, "hello comes first");
    assert!(matches!(client.ask(Request::Hello { version: VERSION, dc: main }).0, Reply::Welcome { .. }));
}

#[test]
fn slots_are_taken_once_and_only_in_the_own_range() {
    let house = alone();
    let socket = house.daemon.member_socket();
    let first = Member::bind(socket.clone(), Some(Slot(7)), "");
    let client = Client::hello(socket);
    let bind = |slot| Request::Bind { slot: Some(slot), name: Name::NONE, private: false };
    assert_eq!(client.refused(bind(Slot(7))), Refusal::SlotTaken);
    assert_eq!(client.refused(bind(Slot(8))), Refusal::NotMySlot);
    assert_eq!(first.client.ask(Request::Unbind).0, Reply::Done);
    let (reply, fds) = client.ask(bind(Slot(7)));
    let second = Member::bound(client, reply, &fds);
    assert!(second.endpoint.generation > first.endpoint.generation);
}

#[test]
fn any_slot_is_the_one_unused_for_longest_until_none_is_left() {
    let house = alone();
    let socket = house.daemon.member_socket();
    let mut members: Vec<Member> = (0..8).map(|_| Member::bind(socket.clone(), None, "")).collect();
    assert!((0..).zip(&members).all(|(slot, m)| m.endpoint.slot == Slot(slot)));
    let client = Client::hello(socket.clone());
    assert_eq!(
        client.refused(Request::Bind { slot: None, name: Name::NONE, private: false }),
        Refusal::NoFreeSlot
    );
    drop(members.remove(5));
    drop(members.remove(2));
    eventually("both are dead", || {
        client.entry(Slot(5)).state == State::Dead && client.entry(Slot(2)).state == State::Dead
    });
    assert_eq!(Member::bind(socket, None, "").endpoint.slot, Slot(2), "bound before slot 5 was");
}

#[test]
fn names_are_unique_and_found() {
    let house = alone();
    let socket = house.daemon.member_socket();
    let kv = Member::bind(socket.clone(), None, "kv");
    let client = Client::hello(socket);
    assert_eq!(
        client.refused(Request::Bind { slot: None, name: name_of("kv"), private: false }),
        Refusal::NameTaken
    );
    let lookup = Request::LookupName { name: name_of("kv") };
    assert_eq!(client.ask(lookup).0, Reply::Found { endpoint: kv.endpoint });
    assert_eq!(kv.client.ask(Request::Unbind).0, Reply::Done);
    assert_eq!(client.refused(lookup), Refusal::NoSuchEndpoint);
}

#[test]
fn two_endpoints_read_each_others_sides() {
    let house = alone();
    let socket = house.daemon.member_socket();
    let (a, b) = (Member::bind(socket.clone(), None, ""), Member::bind(socket, None, ""));
    let pulls = b.client.bell(b.endpoint, doorbell::PULL);
    let (at_a, a_fds) = a.introduce(b.endpoint);
    assert_eq!((at_a.peer, at_a.memory, at_a.proxied), (b.endpoint, b.memory, false));
    assert_eq!(at_a.doorbell as usize, doorbell::of_slot(b.endpoint.slot));
    assert_eq!(b.client.bell(b.endpoint, doorbell::PULL), pulls + 1, "the peer is hinted");
    let (Reply::Introduced(at_b), b_fds) = b.pull() else { panic!("nothing to pull") };
    assert_eq!((at_b.peer, at_b.memory), (a.endpoint, a.memory));
    assert_eq!((at_b.segment, at_b.side), (at_a.own_segment, at_a.own_side));
    assert_eq!((at_a.segment, at_a.side), (at_b.own_segment, at_b.own_side));
    a.write(at_a.own_side, side::LANE, 41);
    b.write(at_b.own_side, side::LANE, 42);
    assert_eq!(read_peer(&at_a, &a_fds, side::LANE), 42);
    assert_eq!(read_peer(&at_b, &b_fds, side::LANE), 41);
    assert_eq!(b.pull().0, Reply::Nothing);
    assert_eq!(a.introduce(b.endpoint).0, at_a, "asking again changes nothing");
    assert_eq!(b.introduce(a.endpoint).0, at_b);
}

#[test]
fn introductions_to_nobody_are_refused() {
    let house = alone();
    let a = Member::bind(house.daemon.member_socket(), None, "");
    let nobody = Endpoint::new(DC, Slot(6), Generation(1));
    let stale = Endpoint { generation: Generation(a.endpoint.generation.0 + 1), ..a.endpoint };
    assert_eq!(a.client.refused(Request::Introduce { to: nobody }), Refusal::NoSuchEndpoint);
    assert_eq!(a.client.refused(Request::Introduce { to: stale }), Refusal::NoSuchEndpoint);
    assert_eq!(a.client.refused(Request::Introduce { to: a.endpoint }), Refusal::BadRequest);
    let far = Endpoint::new(DC, Slot(4000), Generation(1));
    assert_eq!(a.client.refused(Request::Introduce { to: far }), Refusal::NoSuchEndpoint);
}

#[test]
fn a_closed_connection_ends_the_endpoint_and_rings_its_peer() {
    let house = alone();
    let socket = house.daemon.member_socket();
    let (a, b) = (Member::bind(socket.clone(), None, ""), Member::bind(socket, None, ""));
    a.introduce(b.endpoint);
    let (Reply::Introduced(at_b), b_fds) = b.pull() else { panic!("nothing to pull") };
    a.write(at_b.side, side::LANE, 77);
    let dead = a.endpoint;
    drop(a);
    eventually("the table says dead", || b.client.entry(dead.slot).state == State::Dead);
    eventually("the peer is rung", || b.client.rung_by(b.endpoint, dead.slot));
    assert_eq!(b.client.entry(dead.slot).generation, dead.generation);
    assert_eq!(read_peer(&at_b, &b_fds, side::LANE), 77, "what it published is there");
    // The pair stands until it is given back: who could not map it before can have what was published.
    assert!(matches!(b.client.ask(Request::Introduce { to: dead }).0, Reply::Introduced(_)));
    assert_eq!(b.client.ask(Request::Recycled { peer: dead }).0, Reply::Done);
    assert_eq!(b.client.refused(Request::Introduce { to: dead }), Refusal::NoSuchEndpoint);
    assert_eq!(b.client.refused(Request::Recycled { peer: dead }), Refusal::NoSuchEndpoint);
}

#[test]
fn a_side_is_not_given_to_another_while_its_peer_lives() {
    let house = alone();
    let socket = house.daemon.member_socket();
    let (a, b) = (Member::bind(socket.clone(), None, ""), Member::bind(socket, None, ""));
    a.introduce(b.endpoint);
    assert_eq!(a.client.refused(Request::Recycled { peer: b.endpoint }), Refusal::BadRequest);
}

#[test]
fn an_introduction_to_one_that_died_unseen_is_still_pulled() {
    let house = alone();
    let socket = house.daemon.member_socket();
    let (a, b) = (Member::bind(socket.clone(), None, ""), Member::bind(socket, None, ""));
    let (at_a, _) = a.introduce(b.endpoint);
    a.write(at_a.own_side, side::LANE, 5);
    let dead = a.endpoint;
    drop(a);
    eventually("the table says dead", || b.client.entry(dead.slot).state == State::Dead);
    let (Reply::Introduced(at_b), fds) = b.pull() else { panic!("nothing to pull") };
    assert_eq!(read_peer(&at_b, &fds, side::LANE), 5);
}

#[test]
fn further_segments_bring_sides_and_pools_within_the_limits() {
    let house = alone();
    let socket = house.daemon.member_socket();
    let a = Member::bind(socket, None, "");
    let sides_bytes = SIDES_MORE as u64 * side::BYTES as u64;
    let more = Request::NewSegment { kind: SegmentKind::Sides, len_bytes: sides_bytes };
    let (reply, fds) = a.client.ask(more);
    assert_eq!(reply, Reply::Segment { index: 2, len_bytes: sides_bytes });
    let map = |access| Mapping::shared(fds[0].as_fd(), 0, sides_bytes as usize, access);
    let _own = map(Access::ReadWrite).unwrap();
    assert_eq!(a.client.ask(Request::Ready).0, Reply::Done);
    assert!(map(Access::ReadWrite).is_err(), "sealed");
    let pool = |len_bytes| Request::NewSegment { kind: SegmentKind::Pool, len_bytes };
    assert_eq!(a.client.refused(pool(4097)), Refusal::BadRequest);
    assert_eq!(a.client.refused(pool(0)), Refusal::BadRequest);
    assert_eq!(a.client.refused(pool(POOL_BYTES_MAX)), Refusal::LimitReached);
    let (reply, _) = a.client.ask(pool(1 << 20));
    assert_eq!(reply, Reply::Segment { index: 3, len_bytes: 1 << 20 });
}

#[test]
fn one_without_a_free_side_is_not_ready_until_it_has_more() {
    let house = alone();
    let socket = house.daemon.member_socket();
    let members: Vec<Member> = (0..8).map(|_| Member::bind(socket.clone(), None, "")).collect();
    let a = &members[0];
    assert_eq!(SIDES_FIRST, 8, "seven peers and one more");
    for peer in &members[1..] {
        a.introduce(peer.endpoint);
    }
    // Peers come and go without being recycled: the eighth side goes to a new one, and then there is none.
    let last = members[7].endpoint;
    assert_eq!(members[7].client.ask(Request::Unbind).0, Reply::Done);
    let again = Member::bind(socket.clone(), Some(last.slot), "");
    a.introduce(again.endpoint);
    assert_eq!(members[6].client.ask(Request::Unbind).0, Reply::Done);
    let slot = members[6].endpoint.slot;
    let one_more = Member::bind(socket, Some(slot), "");
    assert_eq!(a.client.refused(Request::Introduce { to: one_more.endpoint }), Refusal::NotReady);
    assert_eq!(one_more.client.refused(Request::Introduce { to: a.endpoint }), Refusal::NotReady);
    assert_eq!(a.client.ask(Request::Recycled { peer: last }).0, Reply::Done);
    assert_eq!(one_more.introduce(a.endpoint).0.peer, a.endpoint);
}

#[test]
fn bulk_segments_are_mapped_by_who_was_introduced_and_nobody_else() {
    let house = alone();
    let socket = house.daemon.member_socket();
    let (a, b) = (Member::bind(socket.clone(), None, ""), Member::bind(socket, None, ""));
    let map = Request::MapSegment { memory: b.memory, segment: 1 };
    assert_eq!(a.client.refused(map), Refusal::NoSuchEndpoint);
    a.introduce(b.endpoint);
    let (Reply::Segment { index: 1, len_bytes }, fds) = a.client.ask(map) else { panic!("no segment") };
    b.pool.write_from(0, b"bulk").unwrap();
    let theirs = Mapping::shared(fds[0].as_fd(), 0, len_bytes as usize, Access::ReadOnly).unwrap();
    let mut read = [0; 4];
    theirs.read_into(0, &mut read).unwrap();
    assert_eq!(&read, b"bulk");
    assert_eq!(a.client.refused(Request::MapSegment { memory: b.memory, segment: 2 }), Refusal::BadRequest);
    assert_eq!(a.client.refused(Request::MapSegment { memory: 999, segment: 0 }), Refusal::NoSuchEndpoint);
}

#[test]
fn a_segment_that_was_cut_before_its_seal_costs_the_binding() {
    let house = alone();
    let client = Client::hello(house.daemon.member_socket());
    let (_, fds) = client.ask(Request::Bind { slot: Some(Slot(1)), name: Name::NONE, private: false });
    rustix::fs::ftruncate(&fds[1], 4096).unwrap();
    assert_eq!(client.refused(Request::Ready), Refusal::BadRequest);
    let mut bytes = [0; 128];
    let end = fdpass::recv_with_fds_within(&client.socket, &mut bytes, PATIENCE).unwrap();
    assert_eq!(end.0, 0, "the connection is closed");
    assert_eq!(client.entry(Slot(1)).state, State::Free);
}

#[test]
fn a_process_bound_by_another_claims_with_its_token() {
    let house = alone();
    let socket = house.daemon.member_socket();
    let launcher = Client::hello(socket.clone());
    let me = std::process::id();
    let (reply, fds) = launcher.ask(Request::BindOther {
        pid: me,
        slot: Some(Slot(2)),
        name: name_of("job"),
        private: false,
    });
    let Reply::Bound { endpoint, token, .. } = reply else { panic!("{reply:?}") };
    assert!(fds.is_empty() && token != [0; 2]);
    assert_eq!(launcher.entry(Slot(2)).state, State::Bound, "reserved is bound");
    let other = Member::bind(socket.clone(), None, "");
    assert_eq!(other.client.refused(Request::Introduce { to: endpoint }), Refusal::NotReady);
    drop(launcher);
    let claimer = Client::hello(socket);
    let wrong = [token[0], token[1] ^ 1];
    assert_eq!(claimer.refused(Request::Claim { endpoint, token: wrong }), Refusal::NotAllowed);
    let (reply, fds) = claimer.ask(Request::Claim { endpoint, token });
    let claimed = Member::bound(claimer, reply, &fds);
    assert_eq!(claimed.endpoint, endpoint);
    assert_eq!(other.introduce(endpoint).0.peer, endpoint);
    assert_eq!(
        other.client.refused(Request::Claim { endpoint, token }),
        Refusal::BadRequest,
        "it is bound itself"
    );
}

#[test]
fn a_token_is_worth_nothing_to_another_process_and_the_reservation_ends_with_its_own() {
    let house = alone();
    let client = Client::hello(house.daemon.member_socket());
    let mut child = Command::new("sleep").arg("100").stdin(Stdio::null()).spawn().unwrap();
    let bind = Request::BindOther { pid: child.id(), slot: Some(Slot(4)), name: Name::NONE, private: false };
    let Reply::Bound { endpoint, token, .. } = client.ask(bind).0 else { panic!("not bound") };
    assert_eq!(client.refused(Request::Claim { endpoint, token }), Refusal::NotAllowed);
    assert_eq!(client.entry(Slot(4)).state, State::Bound);
    child.kill().unwrap();
    eventually("its process's end is the endpoint's", || client.entry(Slot(4)).state == State::Dead);
    child.wait().unwrap();
    assert_eq!(
        client.refused(Request::BindOther { pid: 0, slot: None, name: Name::NONE, private: false }),
        Refusal::NoSuchProcess
    );
    assert_eq!(client.refused(bind), Refusal::NoSuchProcess);
}

#[test]
fn garbage_is_refused_and_does_no_harm() {
    let house = alone();
    let socket = house.daemon.member_socket();
    let client = Client::hello(socket.clone());
    let mut garbage: Vec<Vec<u8>> = vec![vec![0xff; 128], vec![1], vec![0; 127], vec![9; 129], vec![3; 200]];
    garbage.extend((0..40u8).map(|kind| {
        let mut bytes = vec![0xa5; 128];
        bytes[..8].copy_from_slice(&u64::from(kind).to_le_bytes());
        bytes
    }));
    for bytes in &garbage {
        client.send(bytes);
        assert!(matches!(client.receive().0, Reply::Refused(_)), "{bytes:?}");
    }
    Member::bind(socket, None, "");
}

#[test]
fn one_that_never_reads_its_answers_is_dropped() {
    let house = alone();
    let socket = house.daemon.member_socket();
    let flood = Client::hello(socket.clone());
    let request = crate::client::to_bytes(&Request::LookupName { name: name_of("x") }.to_words());
    let dropped = (0..100_000).any(|_| fdpass::send_with_fds(&flood.socket, &request, &[]).is_err());
    assert!(dropped);
    Member::bind(socket, None, "");
}

/// Runs in a process of its own, where nobody else opens or closes anything.
#[test]
fn what_bindings_took_is_given_back() {
    const ALONE: &str = "DVS_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "members::what_bindings_took_is_given_back"]).env(ALONE, "1");
        let output = again.output().unwrap();
        return assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let house = alone();
    let socket = house.daemon.member_socket();
    let anchor = Member::bind(socket.clone(), None, "");
    let cycle = || {
        let member = Member::bind(socket.clone(), None, "");
        member.introduce(anchor.endpoint);
        let Reply::Introduced(_) = anchor.pull().0 else { panic!("nothing to pull") };
        let gone = member.endpoint;
        drop(member);
        eventually("it is dead", || anchor.client.entry(gone.slot).state == State::Dead);
        assert_eq!(anchor.client.ask(Request::Recycled { peer: gone }).0, Reply::Done);
    };
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().matches("dvs-").count();
    cycle();
    let before = (open(), mapped());
    for _ in 0..100 {
        cycle();
    }
    eventually("all is as before", || (open(), mapped()) == before);
    drop(anchor);
    house.daemon.stop().unwrap();
    assert_eq!(mapped(), 0);
}
