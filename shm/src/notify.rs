//! Notifications: pairs of counters. The source raises (+1 each time), the receiver remembers what it has seen;
//! unequal means pending. No raise is ever lost, and mirroring the counters over a wire is idempotent.

use abi::limits::NOTIFY_BITS;
use abi::side::{RAISED, RAISED_WORDS, RAISES, SEEN, WAKE};

use crate::mutant;
use crate::side::{OwnSide, PeerSide};
use crate::sync::Ordering;

/// Raises every bit set in `bits`. Cost: a store for each bit and one more.
#[inline]
pub fn raise(own: &OwnSide, bits: u32) {
    let mut left = bits;
    while left != 0 {
        let bit = left.trailing_zeros() as usize;
        left &= left - 1;
        count_up(own, bit);
    }
    count_raise(own);
}

/// Raises the wake-up, a counter beside the bits'. Cost: two stores.
pub fn raise_wake(own: &OwnSide) {
    count_up(own, WAKE);
    count_raise(own);
}

#[inline]
fn count_up(own: &OwnSide, bit: usize) {
    let words = own.words();
    // Relaxed: our own word.
    let raised = words.load(RAISED + bit, Ordering::Relaxed) + 1;
    // Pairs with: `take_one` RAISED load. What was written before the raise is there when the bit is handed out.
    words.store(RAISED + bit, raised, Ordering::Release);
}

#[inline]
fn count_raise(own: &OwnSide) {
    if mutant!(NotifyIsNotCounted, 4) {
        return;
    }
    let words = own.words();
    // Relaxed: our own word.
    let raises = words.load(RAISES, Ordering::Relaxed) + 1;
    // Pairs with: `raises` RAISES load. The counters were raised before.
    words.store(RAISES, raises, Ordering::Release);
}

/// How often the peer has raised anything. Cost: one load of a line that changes only then.
#[inline]
pub fn raises(peer: &PeerSide) -> u64 {
    // Pairs with: `count_raise` and `mirror` RAISES store.
    peer.words().load(RAISES, Ordering::Acquire)
}

/// The pending bits, which count as seen from now on.
pub fn take(own: &OwnSide, peer: &PeerSide) -> u32 {
    (0..NOTIFY_BITS).fold(0, |bits, bit| bits | (take_one(own, peer, bit) as u32) << bit)
}

/// Whether the peer has woken us since the last time; it counts as seen from now on.
pub fn take_wake(own: &OwnSide, peer: &PeerSide) -> bool {
    take_one(own, peer, WAKE)
}

/// Whether a wake-up waits to be seen. Cost: two loads.
pub fn is_woken(own: &OwnSide, peer: &PeerSide) -> bool {
    is_unseen(own, peer, WAKE)
}

/// Whether any bit waits to be seen.
pub fn has_unseen_bits(own: &OwnSide, peer: &PeerSide) -> bool {
    (0..NOTIFY_BITS).any(|bit| is_unseen(own, peer, bit))
}

fn is_unseen(own: &OwnSide, peer: &PeerSide, bit: usize) -> bool {
    // Relaxed: nothing is handed out on the strength of it.
    let raised = peer.words().load(RAISED + bit, Ordering::Relaxed);
    // Relaxed: our own word.
    raised > own.words().load(SEEN + bit, Ordering::Relaxed)
}

fn take_one(own: &OwnSide, peer: &PeerSide, bit: usize) -> bool {
    // Pairs with: `count_up` and `mirror` RAISED store; the count may not tell of this raise yet.
    let raised = peer.words().load(RAISED + bit, Ordering::Acquire);
    // Relaxed: our own word.
    let is_new = raised > own.words().load(SEEN + bit, Ordering::Relaxed);
    if is_new && !mutant!(NotifyIsNotSeen) {
        // Relaxed: read by ourselves alone; stored before the bit is handed out.
        own.words().store(SEEN + bit, raised, Ordering::Relaxed);
    }
    is_new
}

/// All counters, for a courier.
pub fn counters(peer: &PeerSide) -> (u64, [u64; RAISED_WORDS]) {
    let raises = raises(peer);
    let mut counters = [0; RAISED_WORDS];
    for (bit, counter) in counters.iter_mut().enumerate() {
        // Pairs with: `count_up` RAISED store; `raises` above makes none older than the count.
        *counter = peer.words().load(RAISED + bit, Ordering::Acquire);
    }
    (raises, counters)
}

/// Mirrors counters that a courier brought. Idempotent, and never goes back.
pub fn mirror(own: &OwnSide, raises: u64, counters: &[u64; RAISED_WORDS]) {
    let words = own.words();
    for (bit, counter) in counters.iter().enumerate() {
        // Relaxed: our own word.
        let known = words.load(RAISED + bit, Ordering::Relaxed);
        if *counter > known && !(known > 0 && mutant!(NotifyIsMirroredOnce)) {
            // Pairs with: `take_one` RAISED load.
            words.store(RAISED + bit, *counter, Ordering::Release);
        }
    }
    // Relaxed: our own word.
    if raises > words.load(RAISES, Ordering::Relaxed) {
        // Pairs with: `raises` RAISES load.
        words.store(RAISES, raises, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn bits_are_handed_out_once_however_often_they_were_raised() {
        let (a, b) = (OwnSide::heap(), OwnSide::heap());
        raise(&a, 1);
        raise(&a, 1 | 1 << 31);
        assert_eq!((raises(&a.as_peer()), take(&b, &a.as_peer())), (2, 1 | 1 << 31));
        assert_eq!(take(&b, &a.as_peer()), 0);
        raise(&a, 1);
        assert_eq!(take(&b, &a.as_peer()), 1);
    }

    #[test]
    fn a_wake_up_is_none_of_the_bits_and_is_seen_once() {
        let (a, mirrored, b) = (OwnSide::heap(), OwnSide::heap(), OwnSide::heap());
        raise_wake(&a);
        raise_wake(&a);
        let (raises, counters) = counters(&a.as_peer());
        mirror(&mirrored, raises, &counters);
        assert_eq!((raises, take(&b, &mirrored.as_peer())), (2, 0));
        assert!(take_wake(&b, &mirrored.as_peer()));
        assert!(!take_wake(&b, &mirrored.as_peer()));
    }

    #[test]
    fn an_old_mirror_invents_nothing_and_takes_nothing_back() {
        let (a, mirrored, b) = (OwnSide::heap(), OwnSide::heap(), OwnSide::heap());
        raise(&a, 1);
        let (old_raises, old) = counters(&a.as_peer());
        raise(&a, 3);
        let (new_raises, new) = counters(&a.as_peer());
        mirror(&mirrored, new_raises, &new);
        mirror(&mirrored, old_raises, &old);
        assert_eq!((raises(&mirrored.as_peer()), take(&b, &mirrored.as_peer())), (2, 3));
        mirror(&mirrored, new_raises, &new);
        assert_eq!(take(&b, &mirrored.as_peer()), 0);
    }
}
