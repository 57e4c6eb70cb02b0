//! Rows: what a time-out means: withdrawn, taken, or unknown.

use dvk::{From, Message, ReceiveError, ReplyError, SendError, SendrecError, Timeout};

use super::rows;
use crate::support::{LONG, Place, SHORT, World};

rows!(
    nothing_to_receive_is_would_block_or_timed_out,
    a_send_that_is_not_taken_in_time_is_withdrawn,
    a_send_with_timeout_zero_is_withdrawn_at_once,
    a_late_reply_never_answers_the_next_call,
);

const AFTER: Timeout = Timeout::After(LONG);

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
