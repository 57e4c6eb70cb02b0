//! The doorbell page of a DC on one node: the only memory that several processes may write. Hints and futex words,
//! never trusted: spoiling it delays a wake-up until the sleeper looks again, and does nothing else.
//!
//! One doorbell for each slot of the DC, then one for each proxy of the node. Positions in 64-bit words.

use crate::ids::Slot;
use crate::limits::{PROXIES_PER_NODE_MAX, SLOTS_PER_DC};

/// The sleep word, touched by read-modify-write only; its low half is the futex. On a line of its own.
pub const SLEEP: usize = 0;
/// Raised by the daemon when it has something to be pulled.
pub const PULL: usize = 16;
/// Summary: bit `n` set when word `n` of the bitmap may have bits.
pub const SUMMARY: usize = 32;
/// One bit for each source slot.
pub const BITS: usize = 48;
/// Words of the bitmap.
pub const BITS_WORDS: usize = SLOTS_PER_DC as usize / 64;
/// Words of one doorbell.
pub const WORDS: usize = 128;
/// Doorbells of a page.
pub const COUNT: usize = SLOTS_PER_DC as usize + PROXIES_PER_NODE_MAX as usize;
/// Bytes of the page.
pub const BYTES: usize = COUNT * WORDS * 8;

/// `SLEEP`: the owner is awake.
pub const AWAKE: u64 = 0;
/// `SLEEP`: the owner sleeps on the futex.
pub const ON_FUTEX: u64 = 1;
/// `SLEEP`: the owner sleeps in epoll; its ringer writes to the eventfd it was given.
pub const ON_EVENTFD: u64 = 2;

/// Index of a slot's doorbell.
pub const fn of_slot(slot: Slot) -> usize {
    slot.0 as usize
}

/// Index of a proxy's doorbell.
pub const fn of_proxy(proxy: u16) -> usize {
    SLOTS_PER_DC as usize + proxy as usize
}

const _: () = assert!(BITS_WORDS <= 64 && BITS + BITS_WORDS <= WORDS && BYTES.is_multiple_of(4096));
