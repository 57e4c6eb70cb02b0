//! Rows: send, post, receive, sendrec, reply, notify, lookup.

use std::time::Duration;

use dvk::{
    From, Message, NotifyError, PostError, ReceiveError, ReplyError, SendError, SendrecError, Timeout,
    WaitError, What,
};

use super::rows;
use crate::support::{LONG, Place, SHORT, World, eventually};

rows!(
    send_returns_when_the_receiver_has_taken_it_and_not_before,
    posts_arrive_once_and_in_order,
    a_full_lane_gives_the_message_back_and_room_comes_again,
    a_receive_from_one_endpoint_returns_nothing_of_another,
    senders_are_served_in_turn,
    notifications_come_first_and_one_message_after_each_round,
    a_request_is_answered_once,
    a_reply_does_not_wait_behind_posted_messages,
    only_a_request_is_replied_to,
    notification_bits_gather_until_received,
    a_receive_request_leaves_notifications_where_they_are,
    a_slot_is_looked_up_and_waited_for,
    a_name_is_looked_up,
    an_endpoint_that_never_was_is_dead,
    many_senders_lose_nothing,
    a_wake_up_ends_a_wait_for_anybody_and_is_kept_for_the_next,
    a_request_dropped_unanswered_is_abandoned,
    unbind_frees_the_slot_and_everybody_sees_it,
);

fn after(duration: Duration) -> Timeout {
    Timeout::After(duration)
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

fn send_returns_when_the_receiver_has_taken_it_and_not_before(world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        let first = me.receive(From::Any, after(LONG)).expect("the first");
        let second = me.receive(From::Any, after(LONG)).expect("the second");
        (first.inline().to_vec(), first.what(), second.kind())
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    me.send(server.endpoint, Message::new(1).inline(b"one"), after(LONG)).expect("taken");
    me.send(server.endpoint, Message::new(2), after(LONG)).expect("taken");
    assert_eq!(server.join(), (b"one".to_vec(), What::Message, 2));
}

fn posts_arrive_once_and_in_order(world: World) {
    const COUNT: u64 = 20_000;
    let server = world.spawn(Place::There, 0, |mut me| {
        for expected in 0..COUNT {
            let got = me.receive(From::Any, after(LONG)).expect("a message");
            assert_eq!(number(got.inline()), expected);
        }
        me.receive(From::Any, after(SHORT)).map(|extra| extra.inline().to_vec())
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    for sequence in 0..COUNT {
        let message = Message::new(0).inline(&sequence.to_le_bytes());
        me.post_all(server.endpoint, message, after(LONG)).expect("room in time");
    }
    assert_eq!(server.join(), Err(ReceiveError::TimedOut), "one too many");
}

fn a_full_lane_gives_the_message_back_and_room_comes_again(world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        let go = me.receive(From::Any, after(LONG)).expect("the first");
        let mut count = 1;
        while me.receive(From::Endpoint(go.source()), after(Duration::from_millis(500))).is_ok() {
            count += 1;
            if count == 1 {
                std::thread::sleep(SHORT);
            }
        }
        count
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    me.send(server.endpoint, Message::new(0), after(LONG)).expect("taken");
    let silent = world.bind(Place::There, 1);
    world.meet(&mut me, silent.whoami());
    let mut posted = 0;
    let back = loop {
        match me.post(silent.whoami(), Message::new(7).inline(b"kept")) {
            Ok(()) => posted += 1,
            Err(PostError::Full(back)) => break back,
            Err(other) => panic!("{other}"),
        }
        assert!(posted <= abi::limits::LANE_SLOTS);
    };
    assert_eq!((posted, back.kind(), back.bytes()), (abi::limits::LANE_SLOTS, 7, &b"kept"[..]));
    assert_eq!(me.wait_room(silent.whoami(), after(SHORT)), Err(WaitError::TimedOut));
    for _ in 0..1000 {
        me.post_all(server.endpoint, Message::new(0), after(LONG)).expect("room");
    }
    assert_eq!(server.join(), 1001);
}

fn a_receive_from_one_endpoint_returns_nothing_of_another(world: World) {
    let (go, gone) = std::sync::mpsc::channel();
    let server = world.spawn(Place::There, 0, move |mut me| {
        let one = me.receive(From::Any, after(LONG)).expect("the first says who it is").source();
        gone.recv().expect("the noise is published");
        std::thread::sleep(SHORT);
        assert_eq!(
            me.receive(From::Endpoint(one), after(SHORT)).map(|d| d.source()),
            Err(ReceiveError::TimedOut)
        );
        me.send(one, Message::new(0), after(LONG)).expect("go");
        let got = me.receive(From::Endpoint(one), after(LONG)).expect("of the one");
        assert_eq!((got.source(), got.kind()), (one, 2));
        let bits = me.receive(From::Any, after(LONG)).expect("the noise's bits");
        assert_eq!(bits.what(), What::Notification { bits: 0b101 });
        let noise = me.receive(From::Any, after(LONG)).expect("the noise's message");
        assert_eq!((noise.source(), noise.kind()), (bits.source(), 1));
    });
    let mut one = world.bind(Place::Here, 1);
    world.meet(&mut one, server.endpoint);
    one.send(server.endpoint, Message::new(0), after(LONG)).expect("taken");
    let mut noise = world.bind(Place::Here, 2);
    noise.post(server.endpoint, Message::new(1)).expect("room");
    noise.notify(server.endpoint, 1).expect("alive");
    noise.notify(server.endpoint, 4).expect("alive");
    go.send(()).expect("the server listens");
    one.receive(From::Any, after(LONG)).expect("go");
    one.post(server.endpoint, Message::new(2)).expect("room");
    server.join();
}

fn senders_are_served_in_turn(world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        // Each says that all its messages are in the lane.
        for _ in 0..3 {
            let ready = me.receive_request(after(LONG)).expect("ready");
            me.reply(&ready, Message::new(0)).expect("it waits");
        }
        std::thread::sleep(SHORT);
        let mut served = Vec::new();
        for _ in 0..9 {
            served.push(me.receive(From::Any, after(LONG)).expect("a message").source().slot);
        }
        served
    });
    let mut senders: Vec<_> = (1..=3).map(|n| world.bind(Place::Here, n)).collect();
    world.meet(&mut senders[0], server.endpoint);
    for sender in &mut senders {
        sender.sendrec(server.endpoint, Message::new(0), after(LONG)).expect("the server waits");
    }
    for sender in &mut senders {
        for _ in 0..3 {
            sender.post(server.endpoint, Message::new(0)).expect("room");
        }
    }
    let served = server.join();
    for round in served.chunks(3) {
        let mut slots = round.to_vec();
        slots.sort();
        slots.dedup();
        assert_eq!(slots.len(), 3, "somebody was served twice before another: {served:?}");
    }
}

fn notifications_come_first_and_one_message_after_each_round(world: World) {
    let (go, gone) = std::sync::mpsc::channel();
    let server = world.spawn(Place::There, 0, move |mut me| {
        gone.recv().expect("all is published");
        std::thread::sleep(SHORT * 2);
        let mut got = Vec::new();
        for _ in 0..4 {
            let d = me.receive(From::Any, after(LONG)).expect("something");
            got.push((d.source().slot.0, matches!(d.what(), What::Notification { .. })));
        }
        got
    });
    let mut low = world.bind(Place::Here, 1);
    let mut high = world.bind(Place::Here, 2);
    world.meet(&mut low, server.endpoint);
    high.post(server.endpoint, Message::new(0)).expect("room");
    low.post(server.endpoint, Message::new(0)).expect("room");
    high.notify(server.endpoint, 1).expect("alive");
    low.notify(server.endpoint, 1).expect("alive");
    go.send(()).expect("the server listens");
    let (a, b) = (low.whoami().slot.0, high.whoami().slot.0);
    let got = server.join();
    assert_eq!(got[..2], [(a, true), (b, true)], "{got:?}");
    assert!(got[2..].contains(&(a, false)) && got[2..].contains(&(b, false)), "{got:?}");
}

fn a_request_is_answered_once(world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        for _ in 0..2000 {
            let request = me.receive_request(after(LONG)).expect("a request");
            let answer = number(request.inline()) + 1;
            me.reply(&request, Message::new(9).inline(&answer.to_le_bytes())).expect("it waits");
        }
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    for n in 0..2000u64 {
        let reply = me
            .sendrec(server.endpoint, Message::new(0).inline(&n.to_le_bytes()), after(LONG))
            .expect("a reply");
        assert_eq!((reply.source(), reply.what(), reply.kind()), (server.endpoint, What::Reply, 9));
        assert_eq!(number(reply.inline()), n + 1);
    }
    server.join();
}

fn a_reply_does_not_wait_behind_posted_messages(world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        let request = me.receive_request(after(LONG)).expect("a request");
        // The client takes none of these before its reply.
        while me.post(request.source(), Message::new(1)).is_ok() {}
        me.reply(&request, Message::new(2)).expect("it waits");
        me.receive(From::Any, after(LONG)).expect("the end");
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    let reply = me.sendrec(server.endpoint, Message::new(0), after(LONG)).expect("not stuck");
    assert_eq!(reply.kind(), 2);
    me.send(server.endpoint, Message::new(0), after(LONG)).expect("taken");
    server.join();
}

fn only_a_request_is_replied_to(world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        let plain = me.receive_request(after(LONG)).expect("a plain message comes too");
        me.reply(&plain, Message::new(0))
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    me.send(server.endpoint, Message::new(0), after(LONG)).expect("taken");
    assert_eq!(server.join(), Err(ReplyError::NotARequest));
}

fn notification_bits_gather_until_received(world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        let mut all = 0;
        while all != u32::MAX {
            match me.receive(From::Any, after(LONG)).expect("bits").what() {
                What::Notification { bits } => {
                    assert_eq!(all & bits, 0, "a bit twice without a raise between");
                    all |= bits;
                }
                other => panic!("{other:?}"),
            }
        }
        me.receive(From::Any, after(SHORT)).map(|d| d.what())
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    for bit in 0..32 {
        me.notify(server.endpoint, 1 << bit).expect("alive");
    }
    assert_eq!(server.join(), Err(ReceiveError::TimedOut));
}

fn a_receive_request_leaves_notifications_where_they_are(world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        let got = me.receive_request(after(LONG)).expect("the message");
        assert_eq!(got.what(), What::Message);
        assert_eq!(me.receive_request(after(SHORT)).map(|d| d.what()), Err(ReceiveError::TimedOut));
        me.receive(From::Any, after(LONG)).map(|d| d.what())
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    me.notify(server.endpoint, 8).expect("alive");
    me.post(server.endpoint, Message::new(0)).expect("room");
    assert_eq!(server.join(), Ok(What::Notification { bits: 8 }));
}

fn a_slot_is_looked_up_and_waited_for(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let slot = world.slot(Place::There, 5);
    assert_eq!(me.lookup(slot), None);
    assert_eq!(me.wait_bind(slot, after(SHORT)), Err(WaitError::TimedOut));
    let server = world.spawn(Place::There, 5, |mut me| {
        me.receive(From::Any, after(LONG)).expect("the end");
    });
    assert_eq!(me.wait_bind(slot, after(LONG)), Ok(server.endpoint));
    assert_eq!(me.lookup(slot), Some(server.endpoint));
    assert_eq!(me.wait_unbind(server.endpoint, after(SHORT)), Err(WaitError::TimedOut));
    me.send(server.endpoint, Message::new(0), after(LONG)).expect("taken");
    assert_eq!(me.wait_unbind(server.endpoint, after(LONG)), Ok(()));
    assert_eq!(me.lookup(slot), None);
    server.join();
}

fn a_name_is_looked_up(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let options = world.options(Place::There).name("the-server");
    let server = dvk::Binding::bind(&options).expect("a binding");
    eventually("the name is known", || me.lookup_name("the-server") == Ok(Some(server.whoami())));
    assert_eq!(me.lookup_name("nobody"), Ok(None));
}

fn an_endpoint_that_never_was_is_dead(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let never = abi::Endpoint::new(me.whoami().dc, world.slot(Place::There, 9), abi::Generation(5));
    assert_eq!(me.send(never, Message::new(0), after(LONG)), Err(SendError::DeadDestination));
    assert_eq!(me.notify(never, 1), Err(NotifyError::DeadDestination));
    assert_eq!(me.receive(From::Endpoint(never), after(LONG)).map(|_| ()), Err(ReceiveError::DeadSource));
}

fn many_senders_lose_nothing(world: World) {
    const SENDERS: u16 = 6;
    const EACH: u64 = 500;
    let server = world.spawn(Place::There, 0, |mut me| {
        let mut next = std::collections::BTreeMap::new();
        for _ in 0..SENDERS as u64 * EACH {
            let got = me.receive(From::Any, after(LONG)).expect("a message");
            let expected = next.entry(got.source()).or_insert(0);
            assert_eq!(number(got.inline()), *expected, "{}", got.source());
            *expected += 1;
        }
        next.len()
    });
    let to = server.endpoint;
    let senders: Vec<_> = (1..=SENDERS)
        .map(|n| {
            world.spawn(Place::Here, n, move |mut me| {
                me.wait_bind(to.slot, after(LONG)).expect("seen");
                for sequence in 0..EACH {
                    let message = Message::new(0).inline(&sequence.to_le_bytes());
                    me.send(to, message, after(LONG)).expect("taken");
                }
            })
        })
        .collect();
    senders.into_iter().for_each(crate::support::Life::join);
    assert_eq!(server.join(), SENDERS as usize);
}

fn a_wake_up_ends_a_wait_for_anybody_and_is_kept_for_the_next(world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        let first = me.receive(From::Any, after(LONG)).expect("the waker says who it is").source();
        let waiting = me.receive(From::Any, after(LONG)).expect("woken while it waits");
        assert_eq!((waiting.what(), waiting.source()), (What::Woken, first));
        let only =
            me.receive(From::Endpoint(first), after(LONG)).expect("a message, not the wake-up before it");
        assert_eq!((only.what(), only.kind()), (What::Message, 2));
        let kept = me.receive_request(after(LONG)).expect("the wake-up that came meanwhile");
        assert_eq!((kept.what(), kept.source()), (What::Woken, first));
        me.receive(From::Any, after(SHORT)).map(|extra| extra.what())
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    me.send(server.endpoint, Message::new(1), after(LONG)).expect("taken");
    std::thread::sleep(SHORT);
    me.wake(server.endpoint).expect("it lives");
    // Nobody says when a wake-up was seen: the second one must not be the first.
    std::thread::sleep(SHORT);
    me.wake(server.endpoint).expect("it lives");
    me.wake(server.endpoint).expect("it lives");
    std::thread::sleep(SHORT);
    me.send(server.endpoint, Message::new(2), after(LONG)).expect("taken");
    assert_eq!(server.join(), Err(ReceiveError::TimedOut), "one wake-up too many");
}

fn a_request_dropped_unanswered_is_abandoned(world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        let request = me.receive_request(after(LONG)).expect("a request");
        assert!(request.view().is_some_and(|view| view.to_vec() == [5; 1000]));
        drop(request);
        let request = me.receive_request(after(LONG)).expect("the next request");
        me.reply(&request, Message::new(3)).expect("it waits");
        me.reply(&request, Message::new(4))
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    let mut loan = me.loan(1000).expect("a buffer");
    loan.fill(5);
    let dropped = me.sendrec(server.endpoint, Message::new(1).with(loan), after(LONG));
    assert_eq!(dropped.map(|reply| reply.kind()), Err(SendrecError::Abandoned));
    assert_eq!(me.sendrec(server.endpoint, Message::new(2), after(LONG)).expect("the answer").kind(), 3);
    assert_eq!(server.join(), Err(ReplyError::Answered));
    eventually("the request's extent comes home", || me.audit().expect("a whole pool").loans == 0);
}

fn unbind_frees_the_slot_and_everybody_sees_it(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let first = world.bind(Place::There, 0);
    let old = first.whoami();
    world.meet(&mut me, old);
    assert_eq!(me.wait_unbind(old, after(SHORT)), Err(WaitError::TimedOut));
    first.unbind().expect("the daemon hears it");
    me.wait_unbind(old, after(LONG)).expect("it has ended");
    assert_eq!(me.lookup(old.slot), None);
    let second = world.bind(Place::There, 0);
    assert_eq!(second.whoami().slot, old.slot);
    assert!(second.whoami().generation > old.generation, "strictly increasing");
    world.meet(&mut me, second.whoami());
    assert_eq!(me.notify(old, 1), Err(NotifyError::DeadDestination));
}
