//! The two views of a pair side (`abi::side`): the owner's, which writes, and the peer's, which reads.
//!
//! Small accessors for the single words; the lane, replies, notifications and returns have modules of their own.

use abi::side;

use crate::sync::Ordering;
use crate::words::{OwnWords, Words};

/// The side that we keep for a peer.
#[derive(Clone)]
pub struct OwnSide {
    words: OwnWords,
}

/// The side that a peer, or a proxy in its name, keeps for us. Every value read is a claim.
#[derive(Clone)]
pub struct PeerSide {
    words: Words,
}

impl OwnSide {
    pub fn new(words: OwnWords) -> OwnSide {
        OwnSide { words }
    }

    /// A fresh one on the heap.
    #[cfg(not(loom))]
    pub fn heap() -> OwnSide {
        OwnSide::new(OwnWords::heap(side::WORDS))
    }

    pub fn as_peer(&self) -> PeerSide {
        PeerSide { words: self.words.as_peer() }
    }

    pub fn words(&self) -> &OwnWords {
        &self.words
    }

    /// Sets the attending flag: 1 tells the peer that we look at its lane by ourselves.
    ///
    /// Clearing it must be followed by [`crate::lane::look_again`] before anything is looked at a last time.
    #[inline]
    pub fn set_attending(&self, on: bool) {
        // Relaxed: the fence of `look_again` orders a clear before the last look; a set needs no order at all.
        self.words.store(side::ATTENDING, on as u64, Ordering::Relaxed);
    }

    #[inline]
    pub fn set_calling(&self, call: u64) {
        // Relaxed: read by a peer that is about to sleep, after its fence; see `deadlock`.
        self.words.store(side::CALLING, call, Ordering::Relaxed);
    }

    pub fn set_gave_up(&self, call: u64) {
        // Relaxed: whoever misses a call that was given up publishes a reply that is never taken; and the request whose
        // number this completes is published after it, with release.
        self.words.store(side::GAVE_UP, call, Ordering::Relaxed);
    }

    pub fn gave_up(&self) -> u64 {
        // Relaxed: our own word.
        self.words.load(side::GAVE_UP, Ordering::Relaxed)
    }

    pub fn set_reply_taken(&self, call: u64) {
        // Pairs with: `PeerSide::reply_taken` REPLY_TAKEN load. The reply was copied before it counts as taken.
        self.words.store(side::REPLY_TAKEN, call, Ordering::Release);
    }

    pub fn set_wants_returns(&self, on: bool) {
        // Relaxed: followed by `look_again`, as the attending flag.
        self.words.store(side::WANTS_RETURNS, on as u64, Ordering::Relaxed);
    }

    /// How many slots of the peer's lane were consumed.
    pub fn consumed(&self) -> u64 {
        // Relaxed: our own word.
        self.words.load(side::CONSUMED, Ordering::Relaxed)
    }

    /// Publishes how the endpoint behind this side ended. For proxies.
    pub fn end(&self, how: u64, slots: u64) {
        // Relaxed: ordered by the release store of END.
        self.words.store(side::FINAL, slots, Ordering::Relaxed);
        // Pairs with: `PeerSide::end` END load. All that the end makes final was written before.
        self.words.store(side::END, how, Ordering::Release);
    }

    /// Mirrors the words that a courier brought. Values never go back.
    pub fn mirror(&self, words: &Mirrored) {
        let grow = |at: usize, value: u64, order| {
            // Relaxed: our own word.
            if value > self.words.load(at, Ordering::Relaxed) {
                self.words.store(at, value, order);
            }
        };
        // Relaxed: the outcome is read only after the consumed counter, whose store releases it.
        grow(side::OUTCOME, words.outcome, Ordering::Relaxed);
        // Relaxed: a hint.
        grow(side::GAVE_UP, words.gave_up, Ordering::Relaxed);
        // Pairs with: `PeerSide::reply_taken` REPLY_TAKEN load.
        grow(side::REPLY_TAKEN, words.reply_taken, Ordering::Release);
        // Pairs with: `PeerSide::consumed` CONSUMED load.
        grow(side::CONSUMED, words.consumed, Ordering::Release);
    }

    /// Makes the side fresh again: every word zero. Only when no peer looks at it any more.
    pub fn clear(&self) {
        for index in 0..side::WORDS {
            // Relaxed: the daemon hands the side out again only after it was told, by a system call.
            self.words.store(index, 0, Ordering::Relaxed);
        }
    }
}

/// The words that couriers carry beside slots, replies and notifications.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mirrored {
    pub consumed: u64,
    pub outcome: u64,
    pub reply_taken: u64,
    pub gave_up: u64,
}

impl PeerSide {
    pub fn new(words: Words) -> PeerSide {
        PeerSide { words }
    }

    pub fn words(&self) -> &Words {
        &self.words
    }

    /// Whether the peer looks at our lane by itself. Only meaningful after a publication and [`crate::lane::look_again`].
    #[inline]
    pub fn attending(&self) -> bool {
        // Relaxed: the fence before it orders it after our publication.
        self.words.load(side::ATTENDING, Ordering::Relaxed) != 0
    }

    pub fn wants_returns(&self) -> bool {
        // Relaxed: as `attending`.
        self.words.load(side::WANTS_RETURNS, Ordering::Relaxed) != 0
    }

    #[inline]
    pub fn consumed(&self) -> u64 {
        // Pairs with: `LaneReader::take` and `OwnSide::mirror` CONSUMED store. The slots below have been read out.
        self.words.load(side::CONSUMED, Ordering::Acquire)
    }

    pub fn taking(&self) -> u64 {
        // Relaxed: read after a fence, or as a hint.
        self.words.load(side::TAKING, Ordering::Relaxed)
    }

    pub fn outcome(&self) -> u64 {
        // Relaxed: read after `consumed`, whose acquire load orders it.
        self.words.load(side::OUTCOME, Ordering::Relaxed)
    }

    pub fn reply_taken(&self) -> u64 {
        // Pairs with: `OwnSide::set_reply_taken` REPLY_TAKEN store.
        self.words.load(side::REPLY_TAKEN, Ordering::Acquire)
    }

    pub fn gave_up(&self) -> u64 {
        // Relaxed: a hint.
        self.words.load(side::GAVE_UP, Ordering::Relaxed)
    }

    pub fn calling(&self) -> u64 {
        // Relaxed: read after the fence of `look_again`.
        self.words.load(side::CALLING, Ordering::Relaxed)
    }

    /// How the endpoint behind the side ended and how many slots of its lane are valid.
    #[inline]
    pub fn end(&self) -> (u64, u64) {
        // Pairs with: `OwnSide::end` END store.
        let how = self.words.load(side::END, Ordering::Acquire);
        if how == side::END_NONE {
            return (how, 0);
        }
        // Relaxed: ordered by the acquire load of END.
        (how, self.words.load(side::FINAL, Ordering::Relaxed))
    }

    /// The words a courier carries to the far end.
    pub fn mirrored(&self) -> Mirrored {
        let consumed = self.consumed();
        Mirrored {
            consumed,
            outcome: self.outcome(),
            reply_taken: self.reply_taken(),
            gave_up: self.gave_up(),
        }
    }
}
