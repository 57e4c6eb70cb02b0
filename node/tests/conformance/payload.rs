//! Rows: loans, views, and where extents go.

use dvk::{Binding, From, Message, Timeout};

use super::rows;
use crate::support::{LONG, Place, World, eventually};

rows!(
    loans_of_every_size_arrive_as_they_were_written,
    a_reply_may_carry_a_loan,
    a_view_keeps_its_bytes_after_the_next_message,
    loans_come_home_when_views_are_dropped,
);

const AFTER: Timeout = Timeout::After(LONG);

fn fill(bytes: &mut [u8], seed: u8) {
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed;
    }
}

fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &b| (sum ^ b as u64).wrapping_mul(0x100_0000_01b3))
}

fn loan(me: &mut Binding, len: usize, seed: u8) -> dvk::Loan {
    let mut loan = me.loan(len).expect("a buffer");
    fill(&mut loan, seed);
    loan
}

fn loans_of_every_size_arrive_as_they_were_written(world: World) {
    const SIZES: [usize; 9] = [0, 1, 64, 4095, 4096, 65_537, 1 << 20, 5 << 20, 64 << 20];
    let server = world.spawn(Place::There, 0, |mut me| {
        let digest_of = |d: dvk::Delivery| digest(&d.view().expect("an extent").to_vec());
        SIZES.map(|_| me.receive(From::Any, AFTER).map(digest_of).expect("a message"))
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    let mut sent = Vec::new();
    for (n, len) in SIZES.into_iter().enumerate() {
        let loan = loan(&mut me, len, n as u8);
        sent.push(digest(&loan));
        me.send(server.endpoint, Message::new(1).inline(&[3; 72]).with(loan), AFTER).expect("taken");
    }
    assert_eq!(server.join().to_vec(), sent);
}

fn a_reply_may_carry_a_loan(world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        for n in 0..200u64 {
            let request = me.receive_request(AFTER).expect("a request");
            let loan = loan(&mut me, 100_000, n as u8);
            me.reply(&request, Message::new(0).with(loan)).expect("it waits");
        }
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    for n in 0..200u64 {
        let reply = me.sendrec(server.endpoint, Message::new(0), AFTER).expect("a reply");
        let mut expected = vec![0; 100_000];
        fill(&mut expected, n as u8);
        assert_eq!(digest(&reply.view().expect("an extent").to_vec()), digest(&expected), "{n}");
    }
    server.join();
}

fn a_view_keeps_its_bytes_after_the_next_message(world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        let kept: Vec<_> = (0..20)
            .map(|_| me.receive(From::Any, AFTER).expect("a message").take_view().expect("an extent"))
            .collect();
        kept.iter().map(|view| digest(&view.to_vec())).collect::<Vec<_>>()
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    let mut sent = Vec::new();
    for n in 0..20 {
        let loan = loan(&mut me, 70_000, n);
        sent.push(digest(&loan));
        me.post_all(server.endpoint, Message::new(0).with(loan), AFTER).expect("room");
    }
    assert_eq!(server.join(), sent);
}

fn loans_come_home_when_views_are_dropped(world: World) {
    let server = world.spawn(Place::There, 0, |mut me| {
        for _ in 0..2000 {
            me.receive(From::Any, AFTER).expect("a message");
        }
        me.receive(From::Any, AFTER).expect("the end");
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server.endpoint);
    for n in 0..2000u32 {
        let loan = me.loan(64 << (n % 12)).expect("a buffer");
        me.post_all(server.endpoint, Message::new(0).with(loan), AFTER).expect("room");
    }
    eventually("everything is home", || {
        let tally = me.audit().expect("a sound pool");
        tally.loans == 0 && tally.free_bytes == tally.total_bytes
    });
    me.send(server.endpoint, Message::new(0), AFTER).expect("taken");
    server.join();
}
