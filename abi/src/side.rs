//! The side of a pair: all that one endpoint publishes for one peer, in the endpoint's own memory.
//!
//! Endpoints A and B have two sides: A's, which A alone writes and B reads, and B's the other way round. A fresh side
//! is all zeroes and legal. A proxy that speaks for a remote endpoint keeps a side for it, a mirror of the true one.
//! All positions are in 64-bit words. Lines that different events write stand 128 bytes apart.

use crate::limits::{EXTENTS_PER_PAIR_MAX, LANE_SLOTS, NOTIFY_BITS, REPLY_SLOTS, SLOT_BYTES};
use crate::slot;

/// As the reader of the peer's lane: how many slots were consumed, withdrawn ones included. Monotone.
pub const CONSUMED: usize = 0;
/// `sequence + 1` of the withdrawable slot that is being taken; for a proxy: of the last slot that left this node.
pub const TAKING: usize = 1;
/// What became of the last withdrawable slot: `(sequence + 1) * 2`, + 1 if it was taken.
pub const OUTCOME: usize = 2;
/// Number of the call whose reply was the last one taken from this peer that carried an extent.
pub const REPLY_TAKEN: usize = 3;
/// The call that this endpoint waits for from this peer; 0 = none.
pub const CALLING: usize = 4;
/// How the endpoint behind this side ended, as far as its proxy knows: see [`END_NONE`].
pub const END: usize = 8;
/// With an end: how many slots of this lane were ever published; later ones are never taken.
pub const FINAL: usize = 9;

/// On a line of its own: 1 while the reader scans the peer's lane by itself and needs no ring.
pub const ATTENDING: usize = 16;
/// Beside it, rarely written: the last call that was given up. No call up to this one takes a reply any more. Brought up
/// to date every `limits::CALLS_KNOWN_EVERY` calls in any case, so that the half of a number that a slot has room for
/// stands for one call alone: a client makes 2^32 of them in a quarter of an hour.
pub const GAVE_UP: usize = 17;
/// 1 while the owner of extents sleeps for returned ones.
pub const WANTS_RETURNS: usize = 18;

/// Counts the raises of all bits; written after them.
pub const RAISES: usize = 32;
/// Raised counters, one for each bit, and the wake-up's.
pub const RAISED: usize = 33;
/// Number of notification words.
pub const RAISED_WORDS: usize = NOTIFY_BITS + 1;
/// Which of them is the wake-up's.
pub const WAKE: usize = NOTIFY_BITS;
/// Seen counters of the peer's bits.
pub const SEEN: usize = 80;

/// The reply ring: the entry of call `c` is `c % REPLY_SLOTS`.
pub const REPLIES: usize = 128;

/// Number of extents given back to the peer. Monotone.
pub const RETURNS_TAIL: usize = 176;
/// The ring of tokens: entry `n` at `n % EXTENTS_PER_PAIR_MAX`, token and the peer memory's id.
pub const RETURNS: usize = 192;

/// As a copier: the request to couriers, see `grant::CopyRequest`. First its number, even when it stands: odd while it is
/// being written.
pub const COPY: usize = 448;
/// As a courier: `number * 16 + status` of the answer.
pub const COPY_ANSWER: usize = 464;
/// As a copier, or as its courier: `grant::marker` of the peer's grant while it is written through; 0 = none.
pub const COPYING: usize = 480;

/// The lane.
pub const LANE: usize = 512;
/// Words of a lane.
pub const LANE_WORDS: usize = LANE_SLOTS as usize * slot::WORDS;
/// Words of a whole side.
pub const WORDS: usize = LANE + LANE_WORDS;
/// Bytes of a whole side, a multiple of the page size.
pub const BYTES: usize = WORDS * 8;

/// `END`: the endpoint behind this side lives, or its death is not known here.
pub const END_NONE: u64 = 0;
/// `END`: it died or unbound; `FINAL` slots of its lane are valid, `CONSUMED` says what it had taken.
pub const END_DEAD: u64 = 1;
/// `END`: its whole node was declared dead; what had left this node is unknown.
pub const END_NODE_DEAD: u64 = 2;
/// `END`: the far node refused the introduction: no such endpoint.
pub const END_REFUSED: u64 = 3;

const _: () = assert!(SEEN >= RAISED + RAISED_WORDS && REPLIES >= SEEN + RAISED_WORDS);
const _: () = assert!(RETURNS_TAIL >= REPLIES + REPLY_SLOTS as usize * slot::WORDS);
const _: () = assert!(COPY >= RETURNS + EXTENTS_PER_PAIR_MAX as usize && LANE >= COPYING + 16);
const _: () = assert!(COPY_ANSWER > COPY + crate::grant::REQUEST_WORDS);
const _: () = assert!((LANE * 8).is_multiple_of(128) && SLOT_BYTES == slot::WORDS * 8);
const _: () = assert!(cfg!(loom) || BYTES.is_multiple_of(4096));
