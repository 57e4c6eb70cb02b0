//! Rows of the table of deaths: who is told what.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use abi::limits::{SIDES_FIRST, SLOT_BYTES, SLOT_HEADER_BYTES};
use abi::{side, slot};
use dvk::{From, Message, ReceiveError, SendError, SendrecError, Timeout};

use super::rows;
use crate::support::{Apart, LONG, Place, SHORT, World, eventually};

rows!(
    a_destination_that_dies_before_taking_is_dead_destination,
    a_client_of_a_server_that_dies_with_its_request_hears_dead_source,
    a_waiter_for_one_endpoint_hears_of_its_death,
    what_a_dead_sender_had_published_is_delivered,
    a_rendezvous_of_a_dead_sender_is_delivered,
    the_bits_of_a_dead_notifier_are_cleared,
    a_stale_endpoint_never_reaches_its_slots_next_holder,
    a_client_that_dies_is_no_longer_waiting,
    two_that_call_each_other_do_not_hang,
    a_peer_that_breaks_the_protocol_is_closed_for_its_observer_and_nobody_else,
);

// One node has no link; the links of TCP are cut in `process/links.rs`, between real processes.
#[test]
fn a_cut_link_is_told_to_nobody_and_loses_nothing() {
    for apart in [Apart::Loopback, Apart::OneSided] {
        what_crosses_a_cut_link(&World::new(apart));
    }
}

const AFTER: Timeout = Timeout::After(LONG);

fn a_destination_that_dies_before_taking_is_dead_destination(world: World) {
    let server = world.spawn(Place::There, 0, |_me| std::thread::sleep(SHORT * 5));
    let other = world.spawn(Place::There, 1, |_me| std::thread::sleep(SHORT * 5));
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    world.meet(&mut me, other.endpoint);
    assert_eq!(me.send(server.endpoint, Message::new(0), AFTER), Err(SendError::DeadDestination));
    let called = me.sendrec(other.endpoint, Message::new(0), AFTER);
    assert_eq!(called.map(|_| ()), Err(SendrecError::DeadDestination));
    server.join();
    other.join();
}

fn a_client_of_a_server_that_dies_with_its_request_hears_dead_source(world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        let request = me.receive_request(AFTER).expect("the request");
        std::thread::sleep(SHORT);
        drop(me);
        drop(request);
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    let called = me.sendrec(server.endpoint, Message::new(0), AFTER);
    assert_eq!(called.map(|_| ()), Err(SendrecError::DeadSource));
    server.join();
}

fn a_waiter_for_one_endpoint_hears_of_its_death(world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        let source = me.receive(From::Any, AFTER).expect("a message").source();
        me.post(source, Message::new(5)).expect("room");
        std::thread::sleep(SHORT);
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    me.send(server.endpoint, Message::new(0), AFTER).expect("taken");
    let source = server.endpoint;
    assert_eq!(me.receive(From::Endpoint(source), AFTER).expect("its last word").kind(), 5);
    assert_eq!(me.receive(From::Endpoint(source), AFTER).map(|_| ()), Err(ReceiveError::DeadSource));
    server.join();
}

fn what_a_dead_sender_had_published_is_delivered(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let to = me.whoami();
    let sender = world.spawn(Place::There, 0, move |mut sender| {
        sender.wait_bind(to.slot, AFTER).expect("seen");
        for n in 0..50 {
            sender.post(to, Message::new(n)).expect("room");
        }
    });
    let source = sender.endpoint;
    sender.join();
    std::thread::sleep(SHORT);
    for n in 0..50 {
        assert_eq!(me.receive(From::Any, AFTER).expect("published before the death").kind(), n);
    }
    assert_eq!(me.receive(From::Endpoint(source), AFTER).map(|_| ()), Err(ReceiveError::DeadSource));
}

fn a_rendezvous_of_a_dead_sender_is_delivered(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let to = me.whoami();
    let sender = world.spawn(Place::There, 0, move |mut sender| {
        sender.wait_bind(to.slot, AFTER).expect("seen");
        sender.post(to, Message::new(1).inline(b"rendezvous without its sender")).expect("room");
    });
    sender.join();
    assert_eq!(me.receive(From::Any, AFTER).expect("delivered").kind(), 1);
    assert_eq!(me.receive(From::Any, Timeout::After(SHORT)).map(|d| d.kind()), Err(ReceiveError::TimedOut));
}

fn the_bits_of_a_dead_notifier_are_cleared(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let to = me.whoami();
    let notifier = world.spawn(Place::There, 0, move |mut notifier| {
        notifier.wait_bind(to.slot, AFTER).expect("seen");
        notifier.notify(to, 1).expect("alive");
        std::thread::sleep(SHORT);
    });
    let source = notifier.endpoint;
    notifier.join();
    me.wait_unbind(source, AFTER).expect("it ended");
    std::thread::sleep(SHORT * 3);
    assert_eq!(me.receive(From::Any, Timeout::After(SHORT)).map(|d| d.what()), Err(ReceiveError::TimedOut));
}

fn a_stale_endpoint_never_reaches_its_slots_next_holder(world: World) {
    let first = world.spawn(Place::There, 0, |mut me| {
        me.receive(From::Any, AFTER).expect("the first");
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, first.endpoint);
    let stale = first.endpoint;
    me.send(stale, Message::new(1), AFTER).expect("taken");
    first.join();
    me.wait_unbind(stale, AFTER).expect("it ended");
    let second = world.spawn(Place::There, 0, |mut me| {
        let kind = me.receive(From::Any, AFTER).expect("a message").kind();
        (kind, me.receive(From::Any, Timeout::After(SHORT)).map(|d| d.kind()))
    });
    assert_eq!(second.endpoint.slot, stale.slot);
    assert_ne!(second.endpoint.generation, stale.generation);
    world.meet(&mut me, second.endpoint);
    assert_eq!(me.send(stale, Message::new(2), AFTER), Err(SendError::DeadDestination));
    me.send(second.endpoint, Message::new(3), AFTER).expect("taken");
    assert_eq!(second.join(), (3, Err(ReceiveError::TimedOut)));
}

fn a_client_that_dies_is_no_longer_waiting(world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        let request = me.receive_request(AFTER).expect("a request");
        me.wait_unbind(request.source(), AFTER).expect("it ended");
        std::thread::sleep(SHORT);
        // Best effort: published and dropped, or refused; never a hang, never the next call's answer.
        let _ = me.reply(&request, Message::new(1));
        let next = me.receive_request(AFTER).expect("the next client's");
        me.reply(&next, Message::new(2)).expect("it waits");
    });
    let to = server.endpoint;
    let client = world.spawn(Place::Here, 0, move |mut me| {
        me.wait_bind(to.slot, AFTER).expect("seen");
        // Long enough for the request to be taken: the server waits for the end of whoever asks first.
        me.sendrec(to, Message::new(0), Timeout::After(SHORT * 20)).map(|_| ())
    });
    let expected = [Err(SendrecError::TimedOutTaken), Err(SendrecError::TimedOutUnknown)];
    assert!(expected.contains(&client.join()));
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, to);
    assert_eq!(me.sendrec(to, Message::new(0), AFTER).expect("answered").kind(), 2);
    server.join();
}

fn two_that_call_each_other_do_not_hang(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let to = me.whoami();
    let bound = Timeout::After(Duration::from_secs(2));
    let other = world.spawn(Place::There, 0, move |mut other| {
        other.wait_bind(to.slot, AFTER).expect("seen");
        other.sendrec(to, Message::new(0), bound).map(|_| ())
    });
    world.meet(&mut me, other.endpoint);
    let mine = me.sendrec(other.endpoint, Message::new(0), bound).map(|_| ());
    let theirs = other.join();
    assert!(mine.is_err() && theirs.is_err());
    if !world.is_remote() {
        let deadlock = Err(SendrecError::Deadlock);
        assert!(mine == deadlock || theirs == deadlock, "{mine:?} {theirs:?}");
    }
}

// One node has no other to lose: a process's death is a row above.
#[test]
fn the_death_of_a_node_is_the_death_of_its_endpoints() {
    for apart in [Apart::Loopback, Apart::OneSided, Apart::Tcp] {
        what_crosses_the_death_of_a_node(World::new(apart));
    }
}

fn what_crosses_the_death_of_a_node(mut world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        let _request = me.receive_request(AFTER).expect("a request");
        std::thread::sleep(Duration::from_secs(3));
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    let to = server.endpoint;
    let waiter = world.spawn(Place::Here, 1, move |mut me| {
        me.wait_bind(to.slot, AFTER).expect("seen");
        me.notify(to, 1).expect("alive");
        me.receive(From::Endpoint(to), AFTER).map(|d| d.what())
    });
    let caller = world.spawn(Place::Here, 2, move |mut me| {
        me.wait_bind(to.slot, AFTER).expect("seen");
        me.sendrec(to, Message::new(0), AFTER).map(|_| ())
    });
    std::thread::sleep(SHORT * 5);
    world.lose_the_other_node();
    assert_eq!(waiter.join(), Err(ReceiveError::DeadSource));
    let called = caller.join();
    assert!(matches!(called, Err(SendrecError::DeadSource | SendrecError::DeliveryUnknown)), "{called:?}");
    assert_eq!(me.send(to, Message::new(0), AFTER), Err(SendError::DeadDestination));
    eventually("a dead node's endpoint is not looked up", || me.lookup(to.slot).is_none());
    server.join();
}

fn a_peer_that_breaks_the_protocol_is_closed_for_its_observer_and_nobody_else(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let to = me.whoami();
    let breaker = world.spawn(Place::There, 0, move |mut breaker| {
        breaker.wait_bind(to.slot, AFTER).expect("seen");
        let marker = format!("the slot of {:?} under test", breaker.whoami());
        breaker.send(to, Message::new(1).inline(marker.as_bytes()), AFTER).expect("taken");
        break_the_next_slot(marker.as_bytes());
        std::thread::sleep(SHORT * 10);
    });
    let honest = world.spawn(Place::There, 1, move |mut honest| {
        honest.wait_bind(to.slot, AFTER).expect("seen");
        for n in 0..50 {
            honest.send(to, Message::new(n), AFTER).expect("taken, whatever the other does");
            std::thread::sleep(SHORT / 6);
        }
    });
    let source = breaker.endpoint;
    world.meet(&mut me, source);
    assert_eq!(me.receive(From::Endpoint(source), AFTER).expect("the last good one").kind(), 1);
    let seen = me.receive(From::Endpoint(source), AFTER).map(|_| ());
    if world.is_remote() {
        // Its proxy was the observer; here the pair ends as by a death.
        assert_eq!(seen, Err(ReceiveError::DeadSource));
    } else {
        assert!(matches!(seen, Err(ReceiveError::Corrupt(_))), "{seen:?}");
    }
    for n in 0..50 {
        let got = me.receive(From::Endpoint(honest.endpoint), AFTER).expect("the honest one's");
        assert_eq!(got.kind(), n);
    }
    honest.join();
    breaker.join();
}

/// Puts a slot of no known kind behind the one that carries `marker`, past all that would refuse to: into the memory of
/// its owner, which is a thread of this process.
fn break_the_next_slot(marker: &[u8]) {
    let memory = File::options().read(true).write(true).open("/proc/self/mem").expect("our own memory");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("what is mapped");
    // Other tests have memory here as well: only segments of a fresh endpoint's sides are looked at, and there only where the
    // bytes of a slot are. A proxy is a thread of ours too and has mirrored the slot, into a larger segment.
    let sides_bytes = SIDES_FIRST as usize * side::BYTES;
    let mut found = None;
    for line in maps.lines().filter(|line| line.contains(" rw-s ")) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let [from, to] = [range.0, range.1].map(|word| u64::from_str_radix(word, 16).expect("an address"));
        let mut bytes = vec![0; sides_bytes];
        if to - from != sides_bytes as u64 || memory.read_exact_at(&mut bytes, from).is_err() {
            continue;
        }
        let is_it = |slot: &[u8]| slot[SLOT_HEADER_BYTES..].starts_with(marker);
        if let Some(at) = bytes.chunks_exact(SLOT_BYTES).position(is_it) {
            found = Some(from + ((at + 1) * SLOT_BYTES) as u64);
        }
    }
    let next = found.expect("the slot was published");
    let head = u64::from(slot::lap(1)) | 99 << 32;
    memory.write_all_at(&head.to_le_bytes(), next).expect("our own memory");
}

fn what_crosses_a_cut_link(world: &World) {
    const COUNT: u32 = 2_000;
    let receiver = world.spawn(Place::There, 0, |mut me| {
        for n in 0..COUNT {
            assert_eq!(me.receive(From::Any, AFTER).expect("it comes, later perhaps").kind(), n);
        }
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, receiver.endpoint);
    for n in 0..COUNT {
        if n % 250 == 100 {
            world.flap();
        }
        me.post_all(receiver.endpoint, Message::new(n), AFTER).expect("room, later perhaps");
    }
    receiver.join();
}
