//! Rows: the calls as futures (`aio`), and what dropping one does.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use aio::Endpoint;
use dvk::{Binding, Message, SendrecError, Timeout, What};
use futures_core::Stream;

use super::rows;
use crate::support::{LONG, Place, World};

rows!(
    a_client_and_a_server_meet_in_futures,
    a_dropped_receive_loses_no_message,
    a_dropped_sendrec_that_was_not_taken_is_withdrawn,
    a_dropped_sendrec_that_was_taken_leaves_the_next_its_own_reply,
    a_dropped_send_is_withdrawn,
    two_tasks_of_one_endpoint_wait_at_once,
);

const AFTER: Timeout = Timeout::After(LONG);

/// Runs to its end, but not for ever.
fn run<T>(me: Binding, life: impl AsyncFnOnce(Endpoint) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let me = Endpoint::new(me).expect("an endpoint");
        tokio::time::timeout(LONG, life(me)).await.expect("it hangs")
    })
}

/// Polls a future so often, and drops it.
async fn begin_and_drop<T>(future: impl Future<Output = T>, polls: usize) {
    let mut future = pin!(future);
    for _ in 0..polls {
        let is_ready = poll_fn(|task| Poll::Ready(future.as_mut().poll(task).is_ready())).await;
        assert!(!is_ready, "it must not have ended yet");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn a_client_and_a_server_meet_in_futures(world: World) {
    const ROUNDS: u32 = 100;
    let server = world.spawn(Place::There, 0, |me| {
        run(me, async |me| {
            let mut requests = me.requests();
            for _ in 0..ROUNDS {
                let request = poll_fn(|task| std::pin::Pin::new(&mut requests).poll_next(task)).await;
                let request = request.expect("no end").expect("a request");
                me.reply(&request, Message::new(request.kind() + 1)).expect("it waits");
            }
            let last = me.receive().await.expect("a notification");
            assert_eq!(last.what(), What::Notification { bits: 6 });
        })
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    let to = server.endpoint;
    run(me, async |me| {
        for round in 0..ROUNDS {
            let reply = me.sendrec(to, Message::new(round)).await.expect("a reply");
            assert_eq!(reply.kind(), round + 1);
        }
        me.notify(to, 6).await.expect("raised");
        // Bits of who has ended are cleared: not before they were had.
        assert!(me.receive_from(to).await.is_err(), "the server ends");
    });
    server.join();
}

fn a_dropped_receive_loses_no_message(world: World) {
    const COUNT: u32 = 500;
    let me = world.bind(Place::Here, 0);
    let to = me.whoami();
    let peer = world.spawn(Place::There, 0, move |mut me| {
        me.wait_bind(to.slot, AFTER).expect("seen");
        for n in 0..COUNT {
            me.post_all(to, Message::new(n), AFTER).expect("room");
        }
    });
    run(me, async |me| {
        let mut expected = 0;
        while expected < COUNT {
            let mut receive = pin!(me.receive());
            // One poll, and then it is dropped, whether or not it had anything.
            let got = poll_fn(|task| Poll::Ready(receive.as_mut().poll(task))).await;
            match got {
                Poll::Ready(got) => {
                    assert_eq!(got.expect("a message").kind(), expected);
                    expected += 1;
                }
                Poll::Pending => tokio::task::yield_now().await,
            }
        }
    });
    peer.join();
}

fn a_dropped_sendrec_that_was_not_taken_is_withdrawn(world: World) {
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let server = world.spawn(Place::There, 0, move |mut me| {
        gone.recv().expect("the test lives");
        let mut taken = Vec::new();
        while taken.last() != Some(&2) {
            let request = me.receive_request(AFTER).expect("a request");
            // Whose client has given up, as the first has, waits no more.
            let _ = me.reply(&request, Message::new(request.kind()));
            taken.push(request.kind());
        }
        taken
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    let to = server.endpoint;
    run(me, async |me| {
        begin_and_drop(me.sendrec(to, Message::new(1)), 3).await;
        go.send(()).expect("it lives");
        assert_eq!(me.sendrec(to, Message::new(2)).await.expect("a reply").kind(), 2);
    });
    // Between nodes it may have left before its mark: then it was delivered, once, and nobody waited for the reply.
    let taken = server.join();
    assert!(taken == [2] || (world.is_remote() && taken == [1, 2]), "{taken:?}");
}

fn a_dropped_sendrec_that_was_taken_leaves_the_next_its_own_reply(world: World) {
    let (taken, is_taken) = std::sync::mpsc::channel::<()>();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let server = world.spawn(Place::There, 0, move |mut me| {
        let first = me.receive_request(AFTER).expect("a request");
        taken.send(()).expect("the test lives");
        gone.recv().expect("the test lives");
        // Told that nobody waits, or published for nobody.
        let _ = me.reply(&first, Message::new(100));
        let next = me.receive_request(AFTER).expect("a request");
        me.reply(&next, Message::new(next.kind())).expect("it waits");
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    let to = server.endpoint;
    run(me, async |me| {
        {
            let mut call = pin!(me.sendrec(to, Message::new(1)));
            while is_taken.try_recv().is_err() {
                let ended = poll_fn(|task| Poll::Ready(call.as_mut().poll(task).is_ready())).await;
                assert!(!ended, "nobody has answered");
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        }
        go.send(()).expect("it lives");
        assert_eq!(me.sendrec(to, Message::new(2)).await.map(|reply| reply.kind()), Ok::<_, SendrecError>(2));
    });
    server.join();
}

fn a_dropped_send_is_withdrawn(world: World) {
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let peer = world.spawn(Place::There, 0, move |mut me| {
        gone.recv().expect("the test lives");
        let mut taken = Vec::new();
        while taken.last() != Some(&2) {
            taken.push(me.receive(dvk::From::Any, AFTER).expect("a message").kind());
        }
        taken
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, peer.endpoint);
    let to = peer.endpoint;
    run(me, async |me| {
        begin_and_drop(me.send(to, Message::new(1)), 3).await;
        go.send(()).expect("it lives");
        me.send(to, Message::new(2)).await.expect("taken");
    });
    let taken = peer.join();
    assert!(taken == [2] || (world.is_remote() && taken == [1, 2]), "{taken:?}");
}

fn two_tasks_of_one_endpoint_wait_at_once(world: World) {
    const ROUNDS: u32 = 100;
    let server = world.spawn(Place::There, 0, |mut me| {
        for round in 0..ROUNDS {
            let request = me.receive_request(AFTER).expect("a request");
            me.post_all(request.source(), Message::new(round), AFTER).expect("room");
            me.reply(&request, Message::new(round)).expect("it waits");
        }
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    let to = server.endpoint;
    run(me, async |me| {
        let listener = me.clone();
        let local = tokio::task::LocalSet::new();
        let heard = local.spawn_local(async move {
            for round in 0..ROUNDS {
                assert_eq!(listener.receive().await.expect("a message").kind(), round);
            }
        });
        local
            .run_until(async {
                for round in 0..ROUNDS {
                    assert_eq!(me.sendrec(to, Message::new(7)).await.expect("a reply").kind(), round);
                }
                heard.await.expect("all were heard");
            })
            .await;
    });
    server.join();
}
