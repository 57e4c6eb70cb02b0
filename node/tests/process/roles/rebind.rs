//! A program that comes and goes: binds, calls, grants and ends, again and again, whatever happens to its daemon.

use std::path::Path;
use std::time::Duration;

use abi::Slot;
use dvk::{BindOptions, Binding, Message, Wait};

use super::super::cluster::DC;
use super::{AFTER, Life, SOCKET, find, report};

/// A second binding each time, beside the one that stays. Every other one is private, and each third one polls.
pub fn live(life: Life, slot: Slot) {
    let Life { mut me, orders } = life;
    let server = find(&mut me, slot);
    let socket = std::env::var(SOCKET).expect("the way to the daemon");
    let mut rounds = 0u32;
    while !orders.is_there() {
        rounds += 1;
        let mut fresh = bind(Path::new(&socket), rounds);
        if rounds.is_multiple_of(3) {
            fresh.poll_fd().expect("a descriptor");
        }
        let segment = fresh.grant_segment(4096, dvk::Access::Read).expect("a segment");
        fresh.grant(&segment, 0, 4096, me.whoami()).expect("a grant");
        let text = rounds.to_le_bytes();
        let reply = fresh.sendrec(server, Message::new(1).inline(&text), AFTER);
        assert_eq!(reply.expect("an answer").inline(), text, "round {rounds}");
    }
    report(format_args!("bound {rounds}"));
}

fn bind(socket: &Path, round: u32) -> Binding {
    let wait = Wait::Adaptive(Duration::from_micros(5));
    let options = BindOptions::new(socket, DC).wait(wait).private(round.is_multiple_of(2));
    Binding::bind(&options).unwrap_or_else(|why| panic!("round {round}: {why}"))
}
