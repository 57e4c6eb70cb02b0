//! Rows: relay: a request passed on is answered by another, wherever client and servers are.

use std::sync::mpsc;

use dvk::{Binding, From, Message, ReceiveError, RelayError, ReplyError, SendrecError, Timeout, What};

use super::rows;
use crate::support::{LONG, Life, Place, SHORT, World};

rows!(
    a_request_passed_on_is_answered_by_the_new_server,
    a_request_with_an_extent_is_passed_on_with_it,
    a_request_is_passed_on_and_on,
    a_request_is_passed_on_once_and_only_by_whoever_owes_the_answer,
    a_request_passed_on_to_a_dead_server_is_still_owed,
    a_client_whose_new_server_dies_hears_dead_source,
    a_request_outlives_the_server_that_passed_it_on,
    a_call_that_was_passed_on_times_out_as_taken,
    a_request_passed_on_and_dropped_is_abandoned,
    a_receive_from_the_one_that_passes_on_returns_nothing_of_the_client,
    a_receive_from_the_client_gets_what_is_passed_on_later,
    a_request_may_come_back_to_a_server_that_had_passed_it_on,
    many_calls_passed_on_lose_nothing,
);

const AFTER: Timeout = Timeout::After(LONG);
const PLACES: [Place; 2] = [Place::Here, Place::There];

/// Passes every request on to `to`, until it is told to end by a plain message.
fn passer(world: &World, place: Place, number: u16, to: abi::Endpoint) -> Life<u64> {
    world.spawn(place, number, move |mut me| {
        me.wait_bind(to.slot, AFTER).expect("seen");
        let mut passed = 0;
        loop {
            let request = me.receive_request(AFTER).expect("a request");
            if request.what() == What::Message {
                return passed;
            }
            me.relay(&request, to).expect("passed on");
            passed += 1;
        }
    })
}

/// Answers each request with its own bytes and what it saw of its way, until it is told to end.
fn echo(world: &World, place: Place, number: u16) -> Life<u64> {
    world.spawn(place, number, |mut me| {
        let mut answered = 0;
        loop {
            let request = me.receive_request(AFTER).expect("a request");
            if request.what() == What::Message {
                return answered;
            }
            let mut answer = Message::new(request.kind() + 1).inline(request.inline());
            if let Some(view) = request.view() {
                let mut loan = me.loan(view.len()).expect("a buffer");
                view.copy_to(&mut loan);
                answer = answer.with(loan);
            }
            me.reply(&request, answer).expect("its client waits");
            answered += 1;
        }
    })
}

fn end<T>(me: &mut Binding, life: Life<T>) -> T {
    world_end(me, &life);
    life.join()
}

fn world_end<T>(me: &mut Binding, life: &Life<T>) {
    me.post_all(life.endpoint, Message::new(0), AFTER).expect("alive");
}

fn a_request_passed_on_is_answered_by_the_new_server(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let client = me.whoami();
    let mut number = 1;
    for server_at in PLACES {
        for passer_at in PLACES {
            let (tell, told) = mpsc::channel();
            let server = world.spawn(server_at, number, move |mut me| {
                let request = me.receive_request(AFTER).expect("a request");
                tell.send((request.source(), request.via(), request.what())).expect("the test listens");
                me.reply(&request, Message::new(8).inline(request.inline())).expect("its client waits");
            });
            let passer = passer(&world, passer_at, number + 1, server.endpoint);
            world.meet(&mut me, passer.endpoint);
            let request = Message::new(7).inline(b"whoever can");
            let reply = me.sendrec(passer.endpoint, request, AFTER).expect("an answer");
            assert_eq!((reply.inline(), reply.kind()), (&b"whoever can"[..], 8));
            assert_eq!((reply.source(), reply.what()), (server.endpoint, What::Reply));
            let (source, via, what) = told.recv_timeout(LONG).expect("what it saw");
            assert_eq!((source, via), (client, Some(passer.endpoint)));
            assert!(matches!(what, What::Request { .. }));
            server.join();
            assert_eq!(end(&mut me, passer), 1);
            number += 2;
        }
    }
}

fn a_request_with_an_extent_is_passed_on_with_it(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let server = echo(&world, Place::There, 1);
    let passer = passer(&world, Place::There, 2, server.endpoint);
    world.meet(&mut me, passer.endpoint);
    for len in [0, 1, 4096, 300_000] {
        let mut loan = me.loan(len).expect("a buffer");
        loan.fill(len as u8 ^ 0x5a);
        let request = Message::new(1).inline(b"with an extent").with(loan);
        let reply = me.sendrec(passer.endpoint, request, AFTER).expect("an answer");
        assert_eq!(reply.inline(), b"with an extent");
        assert_eq!(reply.view().expect("the extent").to_vec(), vec![len as u8 ^ 0x5a; len]);
    }
    assert_eq!(end(&mut me, passer), 4);
    assert_eq!(end(&mut me, server), 4);
    let out = me.audit().expect("a sound pool").loans;
    assert_eq!(out, 0, "all extents are home");
}

fn a_request_is_passed_on_and_on(world: World) {
    let mut me = world.bind(Place::Here, 0);
    let server = echo(&world, Place::Here, 1);
    let last = passer(&world, Place::There, 2, server.endpoint);
    let middle = passer(&world, Place::Here, 3, last.endpoint);
    let first = passer(&world, Place::There, 4, middle.endpoint);
    world.meet(&mut me, first.endpoint);
    for n in 0..50 {
        let reply = me.sendrec(first.endpoint, Message::new(n), AFTER).expect("an answer");
        assert_eq!((reply.kind(), reply.source()), (n + 1, server.endpoint));
    }
    assert_eq!([end(&mut me, first), end(&mut me, middle), end(&mut me, last)], [50; 3]);
    assert_eq!(end(&mut me, server), 50);
}

fn a_request_is_passed_on_once_and_only_by_whoever_owes_the_answer(world: World) {
    let server = echo(&world, Place::Here, 1);
    let to = server.endpoint;
    let passer = world.spawn(Place::There, 2, move |mut me| {
        me.wait_bind(to.slot, AFTER).expect("seen");
        let message = me.receive_request(AFTER).expect("a message");
        let no_request = me.relay(&message, to);
        let request = me.receive_request(AFTER).expect("a request");
        let to_client = me.relay(&request, request.source());
        let first = me.relay(&request, to);
        let again = me.relay(&request, to);
        let reply = me.reply(&request, Message::new(0));
        (no_request, to_client, first, again, reply)
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, passer.endpoint);
    me.send(passer.endpoint, Message::new(1), AFTER).expect("taken");
    let reply = me.sendrec(passer.endpoint, Message::new(1), AFTER).expect("an answer");
    assert_eq!(reply.source(), to);
    let expected = (
        Err(RelayError::NotARequest),
        Err(RelayError::ToItsClient),
        Ok(()),
        Err(RelayError::Answered),
        Err(ReplyError::Answered),
    );
    assert_eq!(passer.join(), expected);
    end(&mut me, server);
}

fn a_request_passed_on_to_a_dead_server_is_still_owed(world: World) {
    let gone = world.spawn(Place::There, 1, |_me| ());
    let to = gone.endpoint;
    gone.join();
    let server = world.spawn(Place::There, 2, move |mut me| {
        me.wait_unbind(to, AFTER).expect("seen to end");
        let request = me.receive_request(AFTER).expect("a request");
        let passed = me.relay(&request, to);
        me.reply(&request, Message::new(9)).expect("still owed");
        passed
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    let reply = me.sendrec(server.endpoint, Message::new(1), AFTER).expect("an answer");
    assert_eq!((reply.kind(), reply.source()), (9, server.endpoint));
    assert_eq!(server.join(), Err(RelayError::DeadDestination));
}

fn a_client_whose_new_server_dies_hears_dead_source(world: World) {
    let server = world.spawn(Place::There, 1, |mut me| {
        let request = me.receive_request(AFTER).expect("the request");
        drop(me);
        drop(request);
    });
    let passer = passer(&world, Place::Here, 2, server.endpoint);
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, passer.endpoint);
    let called = me.sendrec(passer.endpoint, Message::new(1), AFTER);
    assert_eq!(called.map(|_| ()), Err(SendrecError::DeadSource));
    server.join();
    end(&mut me, passer);
}

fn a_request_outlives_the_server_that_passed_it_on(world: World) {
    let server = world.spawn(Place::There, 1, |mut me| {
        let request = me.receive_request(AFTER).expect("the request");
        std::thread::sleep(SHORT * 3);
        me.reply(&request, Message::new(3)).map(|()| request.via())
    });
    let to = server.endpoint;
    let passer = world.spawn(Place::There, 2, move |mut me| {
        me.wait_bind(to.slot, AFTER).expect("seen");
        let request = me.receive_request(AFTER).expect("a request");
        me.relay(&request, to).expect("passed on");
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, passer.endpoint);
    let via = passer.endpoint;
    let reply = me.sendrec(via, Message::new(1), AFTER).expect("an answer");
    assert_eq!((reply.kind(), reply.source()), (3, to));
    passer.join();
    assert_eq!(server.join(), Ok(Some(via)));
}

fn a_call_that_was_passed_on_times_out_as_taken(world: World) {
    let server = world.spawn(Place::There, 1, |mut me| {
        let request = me.receive_request(AFTER).expect("the request");
        me.receive(From::Endpoint(request.source()), AFTER).expect("the word that it gave up");
        me.reply(&request, Message::new(3))
    });
    let passer = passer(&world, Place::Here, 2, server.endpoint);
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, passer.endpoint);
    let called = me.sendrec(passer.endpoint, Message::new(1), Timeout::After(SHORT * 10));
    assert_eq!(called.map(|_| ()), Err(SendrecError::TimedOutTaken));
    me.send(server.endpoint, Message::new(0), AFTER).expect("taken");
    assert_eq!(server.join(), Err(ReplyError::NotWaiting));
    end(&mut me, passer);
}

fn a_request_passed_on_and_dropped_is_abandoned(world: World) {
    let server = world.spawn(Place::There, 1, |mut me| {
        drop(me.receive_request(AFTER).expect("the request"));
        me.receive_request(AFTER).map(|_| ())
    });
    let passer = passer(&world, Place::Here, 2, server.endpoint);
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, passer.endpoint);
    let called = me.sendrec(passer.endpoint, Message::new(1), AFTER);
    assert_eq!(called.map(|_| ()), Err(SendrecError::Abandoned));
    world_end(&mut me, &server);
    assert_eq!(server.join(), Ok(()));
    end(&mut me, passer);
}

fn a_receive_from_the_one_that_passes_on_returns_nothing_of_the_client(world: World) {
    let client = world.slot(Place::Here, 0);
    let server = world.spawn(Place::There, 1, move |mut me| {
        let client = me.wait_bind(client, AFTER).expect("seen");
        let hello = me.receive(From::Any, AFTER).expect("who passes on");
        let of_passer = me.receive(From::Endpoint(hello.source()), Timeout::After(SHORT * 5));
        let request = me.receive(From::Endpoint(client), AFTER).expect("the request, by its source");
        me.reply(&request, Message::new(4)).expect("its client waits");
        of_passer.map(|got| got.source())
    });
    let to = server.endpoint;
    let passer = world.spawn(Place::There, 2, move |mut me| {
        me.wait_bind(to.slot, AFTER).expect("seen");
        me.send(to, Message::new(1), AFTER).expect("taken");
        let request = me.receive_request(AFTER).expect("a request");
        me.relay(&request, to).expect("passed on");
        std::thread::sleep(SHORT * 10);
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, passer.endpoint);
    assert_eq!(me.sendrec(passer.endpoint, Message::new(1), AFTER).expect("an answer").kind(), 4);
    assert_eq!(server.join(), Err(ReceiveError::TimedOut));
    passer.join();
}

fn a_receive_from_the_client_gets_what_is_passed_on_later(world: World) {
    let client = world.slot(Place::Here, 0);
    let server = world.spawn(Place::There, 1, move |mut me| {
        let client = me.wait_bind(client, AFTER).expect("seen");
        let request = me.receive(From::Endpoint(client), AFTER).expect("the request, by its source");
        me.reply(&request, Message::new(4)).expect("its client waits");
    });
    let to = server.endpoint;
    let passer = world.spawn(Place::There, 2, move |mut me| {
        me.wait_bind(to.slot, AFTER).expect("seen");
        let request = me.receive_request(AFTER).expect("a request");
        std::thread::sleep(SHORT * 3);
        me.relay(&request, to).expect("passed on");
        std::thread::sleep(SHORT * 5);
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, passer.endpoint);
    assert_eq!(me.sendrec(passer.endpoint, Message::new(1), AFTER).expect("an answer").kind(), 4);
    server.join();
    passer.join();
}

fn a_request_may_come_back_to_a_server_that_had_passed_it_on(world: World) {
    for (first_at, other_at, base) in [(Place::There, Place::Here, 1), (Place::There, Place::There, 3)] {
        let other = world.slot(other_at, base + 1);
        let first = world.spawn(first_at, base, move |mut me| {
            let other = me.wait_bind(other, AFTER).expect("seen");
            for n in 0..20 {
                let request = me.receive_request(AFTER).expect("a request");
                me.relay(&request, other).expect("passed on");
                drop(request);
                let again = me.receive_request(AFTER).expect("the same one");
                assert_eq!((again.kind(), again.via()), (n, Some(other)));
                me.reply(&again, Message::new(n + 100)).expect("its client waits");
            }
        });
        let to = first.endpoint;
        let other = world.spawn(other_at, base + 1, move |mut me| {
            me.wait_bind(to.slot, AFTER).expect("seen");
            for _ in 0..20 {
                let request = me.receive_request(AFTER).expect("a request");
                me.relay(&request, to).expect("passed back");
            }
        });
        let mut me = world.bind(Place::Here, 0);
        world.meet(&mut me, to);
        for n in 0..20 {
            let reply = me.sendrec(to, Message::new(n), AFTER).expect("an answer");
            assert_eq!((reply.kind(), reply.source()), (n + 100, to));
        }
        first.join();
        other.join();
    }
}

fn many_calls_passed_on_lose_nothing(world: World) {
    const CLIENTS: u16 = 4;
    const CALLS: u32 = 300;
    let server = echo(&world, Place::There, 1);
    let passer = passer(&world, Place::Here, 2, server.endpoint);
    let to = passer.endpoint;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let place = PLACES[n as usize % 2];
            world.spawn(place, 3 + n, move |mut me| {
                me.wait_bind(to.slot, AFTER).expect("seen");
                for call in 0..CALLS {
                    let body = (u64::from(n) << 32 | u64::from(call)).to_le_bytes();
                    let reply = me.sendrec(to, Message::new(call).inline(&body), AFTER).expect("an answer");
                    assert_eq!((reply.inline(), reply.kind()), (&body[..], call + 1));
                }
            })
        })
        .collect();
    clients.into_iter().for_each(Life::join);
    let mut me = world.bind(Place::Here, 0);
    assert_eq!(end(&mut me, passer), u64::from(CALLS) * u64::from(CLIENTS));
    assert_eq!(end(&mut me, server), u64::from(CALLS) * u64::from(CLIENTS));
}
