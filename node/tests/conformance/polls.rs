//! Rows: `poll_fd`: readable for whatever may come, unreadable when all of it was had, and no wake-up is lost.

use std::sync::mpsc;
use std::time::Duration;

use abi::Endpoint;
use abi::doorbell;
use dvk::{Binding, Calling, Delivery, From, Message, ReceiveError, ReplyError, SendrecError, Timeout, What};
use rustix::event::PollFlags;
use shm::os::fdpass::wait_ready;

use super::rows;
use crate::support::{Apart, LONG, Place, World, eventually};

rows!(
    whatever_comes_makes_the_descriptor_readable_and_a_look_at_nothing_unreadable,
    what_was_not_taken_keeps_the_descriptor_readable,
    a_call_that_waits_by_itself_leaves_the_descriptor_readable,
    bells_come_to_pairs_made_before_and_after,
    the_death_of_an_awaited_endpoint_makes_the_descriptor_readable,
    two_that_both_poll_wake_each_other,
    a_spoilt_sleep_word_is_found_by_the_timer,
    no_wake_up_is_lost_however_sender_and_poller_meet,
    a_reply_and_a_taken_message_make_the_descriptor_readable,
    calls_to_many_servers_are_open_at_once_and_one_to_each,
    a_call_given_up_is_withdrawn_or_its_late_reply_dropped,
    a_call_passed_on_is_answered_by_the_other,
);

fn after(duration: Duration) -> Timeout {
    Timeout::After(duration)
}

fn is_readable(me: &mut Binding, within: Duration) -> bool {
    let fd = me.poll_fd().expect("a descriptor");
    wait_ready(fd, PollFlags::IN, Some(within)).expect("a poll")
}

fn next(me: &mut Binding) -> Option<Delivery> {
    match me.receive(From::Any, Timeout::Zero) {
        Ok(delivery) => Some(delivery),
        Err(ReceiveError::WouldBlock) => None,
        Err(why) => panic!("{why}"),
    }
}

/// Takes what is there, waiting by the descriptor alone.
fn await_next(me: &mut Binding) -> Delivery {
    loop {
        if let Some(delivery) = next(me) {
            return delivery;
        }
        assert!(is_readable(me, LONG), "nobody rang");
    }
}

/// Everything was had: nothing is readable but for the timer's moments.
fn settle(me: &mut Binding) {
    eventually("it is unreadable", || {
        while next(me).is_some() {}
        !is_readable(me, Duration::ZERO)
    });
}

fn whatever_comes_makes_the_descriptor_readable_and_a_look_at_nothing_unreadable(world: World) {
    // Were each found by the timer alone, it would take longer than any test may.
    const ROUNDS: usize = 300;
    let mut me = world.bind(Place::Here, 0);
    let to = me.whoami();
    let (go, gone) = mpsc::channel::<u8>();
    let peer = world.spawn(Place::There, 1, move |mut me| {
        me.wait_bind(to.slot, after(LONG)).expect("seen");
        while let Ok(what) = gone.recv() {
            match what {
                0 => me.post(to, Message::new(7)).expect("room"),
                1 => me.notify(to, 0b101).expect("raised"),
                2 => me.wake(to).expect("raised"),
                _ => {
                    let reply = me.sendrec(to, Message::new(9), after(LONG)).expect("a reply");
                    assert_eq!(reply.kind(), 10);
                }
            }
        }
    });
    for round in 0..ROUNDS {
        settle(&mut me);
        go.send((round % 4) as u8).expect("it lives");
        assert!(is_readable(&mut me, LONG));
        let got = await_next(&mut me);
        assert_eq!(got.source(), peer.endpoint);
        match (round % 4, got.what()) {
            (0, What::Message) | (2, What::Woken) => {}
            (1, What::Notification { bits }) => assert_eq!(bits, 0b101),
            (3, What::Request { .. }) => me.reply(&got, Message::new(10)).expect("it waits"),
            other => panic!("{other:?}"),
        }
    }
    drop(go);
    peer.join();
}

fn what_was_not_taken_keeps_the_descriptor_readable(world: World) {
    let mut me = world.bind(Place::Here, 0);
    settle(&mut me);
    let to = me.whoami();
    let peers = [1, 2, 3].map(|number| {
        world.spawn(Place::There, number, move |mut me| {
            me.wait_bind(to.slot, after(LONG)).expect("seen");
            for n in 0..20 {
                me.post(to, Message::new(n)).expect("room");
            }
        })
    });
    for _ in 0..60 {
        // Only ever one after a wait: whatever else is there must have kept it readable, or the next wait never ends.
        assert!(is_readable(&mut me, LONG));
        while next(&mut me).is_none() {
            assert!(is_readable(&mut me, LONG));
        }
    }
    for peer in peers {
        peer.join();
    }
    settle(&mut me);
}

fn a_call_that_waits_by_itself_leaves_the_descriptor_readable(world: World) {
    let mut me = world.bind(Place::Here, 0);
    settle(&mut me);
    let timed_out = me.receive(From::Any, after(Duration::from_millis(1))).map(|d| d.what());
    assert_eq!(timed_out, Err(ReceiveError::TimedOut));
    assert!(is_readable(&mut me, Duration::ZERO), "nobody rings who is not armed");
    settle(&mut me);
}

fn bells_come_to_pairs_made_before_and_after(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let to = me.whoami();
    let spawn = |number| {
        let (go, gone) = mpsc::channel::<()>();
        let life = world.spawn(Place::There, number, move |mut me| {
            me.wait_bind(to.slot, after(LONG)).expect("seen");
            me.send(to, Message::new(1), after(LONG)).expect("taken");
            while gone.recv().is_ok() {
                me.send(to, Message::new(2), after(LONG)).expect("taken");
            }
        });
        (go, life)
    };
    let before = spawn(1);
    assert_eq!(me.receive(From::Any, after(LONG)).expect("the first").kind(), 1);
    settle(&mut me);
    let later = spawn(2);
    assert_eq!(await_next(&mut me).kind(), 1);
    for _ in 0..100 {
        for (go, life) in [&before, &later] {
            settle(&mut me);
            go.send(()).expect("it lives");
            assert_eq!(await_next(&mut me).source(), life.endpoint);
        }
    }
    for (go, life) in [before, later] {
        drop(go);
        life.join();
    }
}

fn the_death_of_an_awaited_endpoint_makes_the_descriptor_readable(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let to = me.whoami();
    let (go, gone) = mpsc::channel::<()>();
    let peer = world.spawn(Place::There, 1, move |mut me| {
        me.wait_bind(to.slot, after(LONG)).expect("seen");
        me.post(to, Message::new(1)).expect("room");
        let _ = gone.recv();
    });
    assert_eq!(await_next(&mut me).kind(), 1);
    let from = From::Endpoint(peer.endpoint);
    assert_eq!(me.receive(from, Timeout::Zero).map(|d| d.what()), Err(ReceiveError::WouldBlock));
    drop(go);
    let end = loop {
        match me.receive(from, Timeout::Zero) {
            Err(ReceiveError::WouldBlock) => assert!(is_readable(&mut me, LONG)),
            end => break end.map(|d| d.what()),
        }
    };
    assert_eq!(end, Err(ReceiveError::DeadSource));
    peer.join();
}

fn two_that_both_poll_wake_each_other(world: World) {
    const ROUNDS: u32 = 300;
    let peer = world.spawn(Place::There, 1, move |mut me| {
        for round in 0..ROUNDS {
            let got = await_next(&mut me);
            assert_eq!(got.kind(), round);
            me.post(got.source(), Message::new(round)).expect("room");
        }
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, peer.endpoint);
    for round in 0..ROUNDS {
        me.post(peer.endpoint, Message::new(round)).expect("room");
        assert_eq!(await_next(&mut me).kind(), round);
    }
    peer.join();
}

fn a_spoilt_sleep_word_is_found_by_the_timer(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let to = me.whoami();
    let (go, gone) = mpsc::channel::<()>();
    let peer = world.spawn(Place::There, 1, move |mut me| {
        me.wait_bind(to.slot, after(LONG)).expect("seen");
        me.post(to, Message::new(1)).expect("room");
        let _ = gone.recv();
        me.post(to, Message::new(2)).expect("room");
        // It lives on: its death would ring by itself.
        let _ = gone.recv();
    });
    assert_eq!(await_next(&mut me).kind(), 1);
    settle(&mut me);
    let bells = me.welcome().doorbells.clone();
    let own = doorbell::of_slot(to.slot);
    // Whoever rings now thinks us awake.
    bells.doze(own, 77);
    go.send(()).expect("it lives");
    assert_eq!(await_next(&mut me).kind(), 2);
    drop(go);
    peer.join();
}

fn no_wake_up_is_lost_however_sender_and_poller_meet(world: World) {
    // Pauses of no pattern put each side before, in and after every step of the other. A lost wake-up costs a timer's
    // pause, and many of them the whole of the time that a test has.
    let count: u64 = if world.is_remote() { 5_000 } else { 100_000 };
    let mut me = world.bind(Place::Here, 0);
    let to = me.whoami();
    let peer = world.spawn(Place::There, 1, move |mut me| {
        me.wait_bind(to.slot, after(LONG)).expect("seen");
        let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
        for sequence in 0..count {
            pause(&mut dice);
            let message = Message::new(0).inline(&sequence.to_le_bytes());
            me.post_all(to, message, after(LONG)).expect("room in time");
        }
    });
    let mut dice = 0xd1b5_4a32_d192_ed03_u64;
    let mut timers = 0;
    for expected in 0..count {
        let got = loop {
            if let Some(got) = next(&mut me) {
                break got;
            }
            pause(&mut dice);
            timers += u32::from(!is_readable(&mut me, LONG));
        };
        assert_eq!(got.inline(), expected.to_le_bytes());
    }
    assert_eq!(timers, 0);
    peer.join();
}

/// Starts a call, waiting for the introduction alone.
fn start(me: &mut Binding, to: Endpoint, kind: u32) -> Calling {
    let mut message = Message::new(kind);
    loop {
        match me.start_call(to, &mut message) {
            Err(SendrecError::WouldBlock) => std::thread::yield_now(),
            started => return started.expect("started"),
        }
    }
}

fn finish(me: &mut Binding, calling: &mut Calling) -> Result<Delivery, SendrecError> {
    loop {
        me.arm().expect("armed");
        if let Some(ended) = me.poll_call(calling) {
            return ended;
        }
        assert!(is_readable(me, LONG), "nobody rang");
    }
}

fn a_reply_and_a_taken_message_make_the_descriptor_readable(world: World) {
    const ROUNDS: u32 = 200;
    let server = world.spawn(Place::There, 1, |mut me| {
        for _ in 0..ROUNDS {
            let request = me.receive_request(after(LONG)).expect("a request");
            me.reply(&request, Message::new(request.kind() + 1)).expect("it waits");
            let sent = me.receive(From::Any, after(LONG)).expect("a message");
            assert_eq!(sent.kind(), request.kind() + 2);
        }
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    for round in 0..ROUNDS {
        let mut calling = start(&mut me, server.endpoint, round);
        let reply = finish(&mut me, &mut calling).expect("a reply");
        assert_eq!((reply.kind(), reply.source()), (round + 1, server.endpoint));
        let sending = me.start_send(server.endpoint, &mut Message::new(round + 2)).expect("started");
        loop {
            me.arm().expect("armed");
            match me.poll_send(&sending) {
                Some(taken) => break taken.expect("taken"),
                None => assert!(is_readable(&mut me, LONG), "nobody rang"),
            }
        }
    }
    server.join();
}

fn calls_to_many_servers_are_open_at_once_and_one_to_each(world: World) {
    let servers = [1, 2, 3].map(|number| {
        let (go, gone) = mpsc::channel::<()>();
        let life = world.spawn(Place::There, number, move |mut me| {
            let request = me.receive_request(after(LONG)).expect("a request");
            gone.recv().expect("the test lives");
            me.reply(&request, Message::new(request.kind() * 2)).expect("it waits");
        });
        (go, life)
    });
    let mut me = world.bind(Place::Here, 0);
    let mut open = Vec::new();
    for (_, life) in &servers {
        world.meet(&mut me, life.endpoint);
        open.push(start(&mut me, life.endpoint, u32::from(life.endpoint.slot.0)));
    }
    let first = servers[0].1.endpoint;
    let again = me.start_call(first, &mut Message::new(0)).map(|_| ());
    assert_eq!(again, Err(SendrecError::WouldBlock));
    let waiting = me.sendrec(first, Message::new(0), after(LONG)).map(|_| ());
    assert_eq!(waiting, Err(SendrecError::WouldBlock));
    // Answered last first.
    for (calling, (go, life)) in open.iter_mut().zip(&servers).rev() {
        go.send(()).expect("it lives");
        let reply = finish(&mut me, calling).expect("a reply");
        assert_eq!(reply.kind(), u32::from(life.endpoint.slot.0) * 2);
    }
    for (_, life) in servers {
        life.join();
    }
}

fn a_call_given_up_is_withdrawn_or_its_late_reply_dropped(world: World) {
    let (taken, is_taken) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    let server = world.spawn(Place::There, 1, move |mut me| {
        let request = me.receive_request(after(LONG)).expect("the one that is not withdrawn");
        taken.send(request.kind()).expect("the test lives");
        gone.recv().expect("the test lives");
        // Best effort: the client may give up at the same moment, or be far away.
        while me.reply(&request, Message::new(0)) == Err(ReplyError::Full) {}
        let next = me.receive_request(after(LONG)).expect("another");
        me.reply(&next, Message::new(next.kind())).expect("it waits");
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    let calling = start(&mut me, server.endpoint, 7);
    assert_eq!(is_taken.recv_timeout(LONG), Ok(7));
    let why = loop {
        // The word that it was taken has its way from node to node.
        me.arm().expect("armed");
        if world.apart == Apart::OneNode || is_readable(&mut me, LONG) {
            break me.end_call(calling).map(|_| ());
        }
    };
    let expected = [Err(SendrecError::TimedOutTaken), Err(SendrecError::TimedOutUnknown)];
    assert!(expected.contains(&why), "{why:?}");
    go.send(()).expect("it lives");
    let mut calling = start(&mut me, server.endpoint, 8);
    assert_eq!(finish(&mut me, &mut calling).expect("its own reply").kind(), 8);
    server.join();
    let silent = world.bind(Place::There, 2);
    world.meet(&mut me, silent.whoami());
    let calling = start(&mut me, silent.whoami(), 9);
    let why = me.end_call(calling).map(|_| ());
    let expected = [Err(SendrecError::TimedOut), Err(SendrecError::TimedOutUnknown)];
    assert!(expected.contains(&why), "{why:?}");
}

fn a_call_passed_on_is_answered_by_the_other(world: World) {
    let second = world.spawn(Place::There, 2, |mut me| {
        let request = me.receive_request(after(LONG)).expect("a request");
        me.reply(&request, Message::new(request.kind() + 1)).expect("it waits");
    });
    let to = second.endpoint;
    let first = world.spawn(Place::Here, 1, move |mut me| {
        let request = me.receive_request(after(LONG)).expect("a request");
        me.wait_bind(to.slot, after(LONG)).expect("seen");
        me.relay(&request, to).expect("passed on");
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, first.endpoint);
    let mut calling = start(&mut me, first.endpoint, 5);
    let reply = finish(&mut me, &mut calling).expect("a reply");
    assert_eq!((reply.kind(), reply.source(), calling.server()), (6, to, to));
    first.join();
    second.join();
}

fn pause(dice: &mut u64) {
    *dice ^= *dice << 13;
    *dice ^= *dice >> 7;
    *dice ^= *dice << 17;
    for _ in 0..*dice % 64 {
        std::hint::spin_loop();
    }
    if *dice >> 58 == 0 {
        std::thread::yield_now();
    }
}
