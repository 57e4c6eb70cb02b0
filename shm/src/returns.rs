//! Returned extents: a ring of tokens in the receiver's memory, with as many entries as extents may be out, so that
//! dropping a view never waits.

use abi::Corrupt;
use abi::limits::EXTENTS_PER_PAIR_MAX;
use abi::side::{RETURNS, RETURNS_TAIL};

use crate::mutant;
use crate::side::{OwnSide, PeerSide};
use crate::sync::Ordering;

/// Gives an extent back: its token, and the low 32 bits of the memory it lies in, so that a proxy's successor is not
/// given its predecessor's extents.
pub fn give(own: &OwnSide, token: u32, memory: u32) {
    if mutant!(CreditsStayOut, 8) {
        return;
    }
    let words = own.words();
    // Relaxed: our own word.
    let tail = words.load(RETURNS_TAIL, Ordering::Relaxed);
    let at = RETURNS + (tail % EXTENTS_PER_PAIR_MAX) as usize;
    // Relaxed: released by the tail below.
    words.store(at, token as u64 | (memory as u64) << 32, Ordering::Relaxed);
    // Pairs with: `Returns::next` RETURNS_TAIL load. The entry was written, the view read to its end, before.
    words.store(RETURNS_TAIL, tail + 1 + mutant!(CreditsComeTwice, 8) as u64, Ordering::Release);
}

/// The owner's end: what it has read of the peer's ring.
#[derive(Clone, Copy, Debug, Default)]
pub struct Returns {
    head: u64,
}

impl Returns {
    /// Starts behind all that the peer has given back so far.
    pub fn from_now(peer: &PeerSide) -> Returns {
        // Pairs with: `give` RETURNS_TAIL store.
        Returns { head: peer.words().load(RETURNS_TAIL, Ordering::Acquire) }
    }

    /// The peer's ring is behind what has been read of it: it has closed the pair and made its side fresh again.
    pub fn went_back(&self, peer: &PeerSide) -> bool {
        // Relaxed: nothing is read on the strength of it.
        peer.words().load(RETURNS_TAIL, Ordering::Relaxed) < self.head
    }

    /// The next returned token and its memory. A claim: the caller checks that it is out.
    pub fn next(&mut self, peer: &PeerSide) -> Result<Option<(u32, u32)>, Corrupt> {
        // Pairs with: `give` RETURNS_TAIL store.
        let tail = peer.words().load(RETURNS_TAIL, Ordering::Acquire);
        if tail == self.head {
            return Ok(None);
        }
        if tail.wrapping_sub(self.head) > EXTENTS_PER_PAIR_MAX {
            return Err(Corrupt::new("more extents returned than can be out", tail));
        }
        let at = RETURNS + (self.head % EXTENTS_PER_PAIR_MAX) as usize;
        // Relaxed: ordered by the acquire load of the tail.
        let entry = peer.words().load(at, Ordering::Relaxed);
        // Wrapping: `from_now` may have begun at any claim.
        self.head = self.head.wrapping_add(1);
        Ok(Some((entry as u32, (entry >> 32) as u32)))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn as_many_come_back_as_can_be_out_and_one_more_is_corrupt() {
        let (giver, mut owner) = (OwnSide::heap(), Returns::default());
        for token in 0..EXTENTS_PER_PAIR_MAX as u32 {
            give(&giver, token, 7);
        }
        assert_eq!(owner.next(&giver.as_peer()), Ok(Some((0, 7))));
        give(&giver, 1_000, 7);
        assert_eq!(owner.next(&giver.as_peer()), Ok(Some((1, 7))));
        give(&giver, 1_001, 7);
        give(&giver, 1_002, 7);
        assert!(owner.next(&giver.as_peer()).is_err());
    }

    #[test]
    fn a_tail_that_wraps_is_no_panic() {
        let giver = OwnSide::heap();
        giver.words().store(RETURNS_TAIL, u64::MAX, Ordering::Relaxed);
        let mut owner = Returns::from_now(&giver.as_peer());
        giver.words().store(RETURNS_TAIL, 0, Ordering::Relaxed);
        assert_eq!(owner.next(&giver.as_peer()), Ok(Some((0, 0))));
        assert_eq!(owner.next(&giver.as_peer()), Ok(None));
    }
}
