//! Rows: what a time-out means: withdrawn, taken, or unknown.

use std::time::Duration;

use dvk::{Binding, From, Message, PostError, ReceiveError, ReplyError, SendError, SendrecError, Timeout};

use super::rows;
use crate::support::{Apart, LONG, Place, SHORT, World};

rows!(
    nothing_to_receive_is_would_block_or_timed_out,
    a_send_that_is_not_taken_in_time_is_withdrawn,
    a_send_with_timeout_zero_is_withdrawn_at_once,
    a_late_reply_never_answers_the_next_call,
    what_is_taken_as_its_time_ends_is_said_to_be_and_comes_once,
);

const AFTER: Timeout = Timeout::After(LONG);

/// More pairs than an endpoint that makes no call has room for.
const PAIRS_TOO_MANY: usize = 40;

#[test]
fn time_that_is_over_before_there_is_a_pair_is_said_as_any_other() {
    let world = World::new(Apart::OneNode);
    let server = world.bind(Place::Here, 0);
    let mut clients: Vec<_> = (1..=PAIRS_TOO_MANY as u16).map(|n| world.bind(Place::Here, n)).collect();
    let full = clients.iter_mut().find_map(|client| {
        let posted = client.post(server.whoami(), Message::new(1));
        matches!(posted, Err(PostError::Full(_) | PostError::Unavailable(_))).then_some(client)
    });
    let client = full.expect("an end to the sides of who makes no call");
    let (to, short) = (server.whoami(), Timeout::After(SHORT));
    assert_eq!(client.send(to, Message::new(2), Timeout::Zero), Err(SendError::WouldBlock));
    assert_eq!(client.send(to, Message::new(2), short), Err(SendError::TimedOut));
    let called = |client: &mut Binding, timeout| client.sendrec(to, Message::new(3), timeout).map(|_| ());
    assert_eq!(called(client, Timeout::Zero), Err(SendrecError::WouldBlock));
    assert_eq!(called(client, short), Err(SendrecError::TimedOut));
}

fn nothing_to_receive_is_would_block_or_timed_out(world: World) {
    let mut me = world.bind(Place::Here, 0);
    assert_eq!(me.receive(From::Any, Timeout::Zero).map(|_| ()), Err(ReceiveError::WouldBlock));
    assert_eq!(me.receive(From::Any, Timeout::After(SHORT)).map(|_| ()), Err(ReceiveError::TimedOut));
}

fn a_send_that_is_not_taken_in_time_is_withdrawn(world: World) {
    let mut server = world.bind(Place::There, 0);
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.whoami());
    let result = me.send(server.whoami(), Message::new(1), Timeout::After(SHORT));
    match result {
        Err(SendError::TimedOut) => {}
        Err(SendError::TimedOutUnknown) if world.is_remote() => {}
        other => panic!("{other:?}"),
    }
    me.post(server.whoami(), Message::new(2)).expect("room");
    let first = server.receive(From::Any, AFTER).expect("a message");
    if result == Err(SendError::TimedOut) {
        assert_eq!(first.kind(), 2, "a withdrawn message was delivered");
    } else if first.kind() == 1 {
        // Unknown: may be delivered, at most once, in order.
        assert_eq!(server.receive(From::Any, AFTER).expect("the next").kind(), 2);
    }
    assert_eq!(
        server.receive(From::Any, Timeout::After(SHORT)).map(|d| d.kind()),
        Err(ReceiveError::TimedOut)
    );
}

fn a_send_with_timeout_zero_is_withdrawn_at_once(world: World) {
    let mut server = world.bind(Place::There, 0);
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.whoami());
    me.post(server.whoami(), Message::new(0)).expect("introduced");
    server.receive(From::Any, AFTER).expect("the first");
    match me.send(server.whoami(), Message::new(1), Timeout::Zero) {
        Err(SendError::WouldBlock) => {
            assert_eq!(
                server.receive(From::Any, Timeout::After(SHORT)).map(|d| d.kind()),
                Err(ReceiveError::TimedOut)
            );
        }
        Err(SendError::TimedOutUnknown) if world.is_remote() => {}
        other => panic!("{other:?}"),
    }
}

fn a_late_reply_never_answers_the_next_call(world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        let first = me.receive_request(AFTER).expect("the first");
        // Its client has given up by now; the second call is in the lane.
        let second = me.receive_request(AFTER).expect("the second");
        let late = me.reply(&first, Message::new(1));
        me.reply(&second, Message::new(2)).expect("it waits");
        late
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    let result = me.sendrec(server.endpoint, Message::new(0), Timeout::After(SHORT * 3));
    match result.map(|d| d.kind()) {
        Err(SendrecError::TimedOutTaken) => {}
        Err(SendrecError::TimedOutUnknown) if world.is_remote() => {}
        other => panic!("{other:?}"),
    }
    let reply = me.sendrec(server.endpoint, Message::new(0), AFTER).expect("the second is answered");
    assert_eq!(reply.kind(), 2);
    let late = server.join();
    // Best effort: a reply that crosses the giving-up is published and dropped.
    assert!(late == Err(ReplyError::NotWaiting) || late == Ok(()), "{late:?}");
    if !world.is_remote() {
        assert_eq!(late, Err(ReplyError::NotWaiting));
    }
}

/// Sends whose time ends while the receiver looks: each is taken, withdrawn, or unknown, and what comes is what was said.
fn what_is_taken_as_its_time_ends_is_said_to_be_and_comes_once(world: World) {
    const SENDS: u32 = 3000;
    const LAST: u32 = SENDS;
    let server = world.spawn(Place::There, 0, |mut me| {
        let mut got = Vec::new();
        loop {
            let kind = me.receive(From::Any, AFTER).expect("a message").kind();
            if kind == LAST {
                return got;
            }
            got.push(kind);
        }
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    let (mut taken, mut unknown) = (Vec::new(), Vec::new());
    for n in 0..SENDS {
        let time = Duration::from_nanos(u64::from(n % 64) * 400);
        match me.send(server.endpoint, Message::new(n), Timeout::After(time)) {
            Ok(()) | Err(SendError::TimedOutTaken) => taken.push(n),
            Err(SendError::TimedOutUnknown) if world.is_remote() => unknown.push(n),
            // Withdrawn: it does not come.
            Err(SendError::TimedOut) => {}
            // Those that were withdrawn lie in the lane until the receiver passes them.
            Err(SendError::Full) => me.wait_room(server.endpoint, AFTER).expect("room"),
            other => panic!("{other:?}"),
        }
    }
    me.post_all(server.endpoint, Message::new(LAST), AFTER).expect("room");
    let got = server.join();
    assert!(got.is_sorted_by(|a, b| a < b), "once, and in order");
    let known: Vec<u32> = got.iter().copied().filter(|n| !unknown.contains(n)).collect();
    assert_eq!(known, taken, "what was said to be taken has come, and nothing of what was withdrawn");
}
