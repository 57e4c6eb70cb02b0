//! A counted stream: posts with patterned bytes, every so often a loan with patterned content, in laps that begin with an
//! order. The receiver knows each message beforehand: anything lost, doubled, reordered or damaged ends it.

use std::time::{Duration, Instant};

use abi::Slot;
use dvk::{Binding, From, LoanError, Message, ReceiveError, Timeout};

use super::{AFTER, Life, find, report};
use crate::process::system::LONG;

/// Every so many messages one carries a loan.
const LOAN_EVERY: u64 = 97;
const LOAN_BYTES_MAX: u64 = 180_000;
const INLINE_BYTES: usize = 64;
/// For what must not come.
const AFTERWARDS: Duration = Duration::from_millis(300);

/// The word at a place of a message's pattern.
fn word(n: u64, at: u64) -> u64 {
    let x = (n << 20 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

fn fill(bytes: &mut [u8], n: u64) {
    for (at, part) in (0..).zip(bytes.chunks_mut(8)) {
        part.copy_from_slice(&word(n, at).to_le_bytes()[..part.len()]);
    }
}

fn inline_of(n: u64) -> [u8; INLINE_BYTES] {
    let mut bytes = [0; INLINE_BYTES];
    fill(&mut bytes, n);
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    bytes
}

fn loan_bytes(n: u64) -> Option<usize> {
    n.is_multiple_of(LOAN_EVERY).then(|| (word(n, 1 << 19) % LOAN_BYTES_MAX) as usize)
}

fn message(me: &mut Binding, n: u64) -> Message {
    let message = Message::new(n as u32).inline(&inline_of(n));
    let Some(len) = loan_bytes(n) else { return message };
    let until = Instant::now() + LONG;
    loop {
        match me.loan(len) {
            Ok(mut loan) => {
                fill(&mut loan, n);
                return message.with(loan);
            }
            Err(LoanError::NoBuffer) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(1))
            }
            Err(why) => panic!("no buffer for message {n}: {why}"),
        }
    }
}

/// Posts laps of messages, each when it is told to; then all loans must come home.
pub fn send(life: Life, slot: Slot, laps: u64, lap_messages: u64) {
    let Life { mut me, orders } = life;
    let to = find(&mut me, slot);
    for lap in 0..laps {
        orders.next();
        for n in lap * lap_messages..(lap + 1) * lap_messages {
            let message = message(&mut me, n);
            me.post_all(to, message, AFTER).unwrap_or_else(|why| panic!("message {n}: {why}"));
        }
        report(format_args!("lap {lap}"));
    }
    let until = Instant::now() + LONG;
    loop {
        let tally = me.audit().expect("a sound pool");
        if tally.loans == 0 && tally.free_bytes == tally.total_bytes {
            break;
        }
        assert!(Instant::now() < until, "loans do not come home: {tally:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    report("home");
    orders.next();
}

/// Receives them, and nothing else.
pub fn receive(life: Life, laps: u64, lap_messages: u64) {
    let Life { mut me, orders } = life;
    let mut expected = Vec::new();
    for lap in 0..laps {
        for n in lap * lap_messages..(lap + 1) * lap_messages {
            take(&mut me, n, &mut expected);
        }
        report(format_args!("lap {lap}"));
    }
    let after = me.receive(From::Any, Timeout::After(AFTERWARDS));
    assert_eq!(after.map(|d| d.kind()).err(), Some(ReceiveError::TimedOut), "something came twice");
    report("whole");
    orders.next();
}

fn take(me: &mut Binding, n: u64, expected: &mut Vec<u8>) {
    // A sender waits for its order between laps.
    let delivery =
        me.receive(From::Any, Timeout::After(LONG * 2)).unwrap_or_else(|why| panic!("message {n}: {why}"));
    let number = u64::from_le_bytes(delivery.inline()[..8].try_into().expect("eight bytes"));
    assert_eq!(number, n, "lost, doubled or reordered");
    assert_eq!(delivery.kind(), n as u32, "the kind of message {n}");
    assert_eq!(delivery.inline(), inline_of(n), "the inline bytes of message {n}");
    assert_eq!(delivery.view().map(|v| v.len()), loan_bytes(n), "the loan of message {n}");
    if let Some(view) = delivery.view() {
        expected.resize(view.len(), 0);
        fill(expected, n);
        assert!(view.to_vec() == *expected, "the bytes of the loan of message {n}, {} long", view.len());
    }
}
