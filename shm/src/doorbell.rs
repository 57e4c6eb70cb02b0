//! Doorbells: how a sleeper learns that there is something to look at. The only memory several processes write, and
//! nothing in it is trusted: it says when to look, never what is there.
//!
//! Key type: [`Doorbells`], the page of one DC on one node. The sleep word is touched by read-modify-write only: either
//! the ringer's swap comes after the sleeper's, sees it and wakes it, or before, and then the sleeper's swap sees all
//! that the ringer wrote before ringing. So no fence is needed here.

use abi::doorbell::{AWAKE, BITS, BITS_WORDS, COUNT, ON_EVENTFD, ON_FUTEX, PULL, SLEEP, SUMMARY, WORDS};

use crate::sync::{AtomicU64, Ordering};
use crate::words::OwnWords;

/// All doorbells of a DC on this node.
#[derive(Clone)]
pub struct Doorbells {
    words: OwnWords,
}

/// What the ringer must still do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wake {
    /// The owner is awake, or somebody else wakes it.
    Nothing,
    /// Wake the futex: [`Doorbells::wake`].
    Futex,
    /// Write to the eventfd that the owner sleeps on.
    EventFd,
}

impl Doorbells {
    pub fn new(words: OwnWords) -> Doorbells {
        Doorbells { words }
    }

    /// A page of its own on the heap.
    #[cfg(not(loom))]
    pub fn heap() -> Doorbells {
        Doorbells::new(OwnWords::heap(COUNT * WORDS))
    }

    #[inline]
    fn cell(&self, doorbell: usize, word: usize) -> &AtomicU64 {
        assert!(doorbell < COUNT, "doorbell {doorbell} of {COUNT}");
        self.words.cell(doorbell * WORDS + word)
    }

    /// Says that the source of slot `bit` has something for the owner, and finds out whether it sleeps.
    ///
    /// Cost: three read-modify-writes; no system call here.
    #[must_use]
    pub fn ring(&self, doorbell: usize, bit: u16) -> Wake {
        let word = bit as usize / 64 % BITS_WORDS;
        // Pairs with: `drain` bits swap.
        self.cell(doorbell, BITS + word).fetch_or(1 << (bit % 64), Ordering::AcqRel);
        // Pairs with: `drain` SUMMARY swap.
        self.cell(doorbell, SUMMARY).fetch_or(1 << word, Ordering::AcqRel);
        self.rouse(doorbell)
    }

    /// Says that the daemon has something to be pulled.
    #[must_use]
    pub fn ring_for_pull(&self, doorbell: usize) -> Wake {
        // Pairs with: `pulls` PULL load.
        self.cell(doorbell, PULL).fetch_add(1, Ordering::AcqRel);
        self.rouse(doorbell)
    }

    /// Ends a sleep, if there is one, without any hint.
    #[must_use]
    pub fn rouse(&self, doorbell: usize) -> Wake {
        // Pairs with: `doze` SLEEP swap.
        match self.cell(doorbell, SLEEP).swap(AWAKE, Ordering::AcqRel) {
            ON_FUTEX => Wake::Futex,
            ON_EVENTFD => Wake::EventFd,
            _ => Wake::Nothing,
        }
    }

    /// How often the daemon has rung for a pull.
    #[inline]
    pub fn pulls(&self, doorbell: usize) -> u64 {
        // Pairs with: `ring_for_pull` PULL add.
        self.cell(doorbell, PULL).load(Ordering::Acquire)
    }

    /// Whether any bit may be set. Cost: one load of a line that is written only when somebody rings.
    #[inline]
    pub fn has_hints(&self, doorbell: usize) -> bool {
        // Relaxed: `drain` orders; whoever sleeps after missing one has swapped the sleep word in between.
        self.cell(doorbell, SUMMARY).load(Ordering::Relaxed) != 0
    }

    /// Clears the hints and hands out each source slot that was set.
    pub fn drain(&self, doorbell: usize, mut each: impl FnMut(u16)) {
        // Pairs with: `ring` SUMMARY or.
        let mut summary = self.cell(doorbell, SUMMARY).swap(0, Ordering::AcqRel);
        while summary != 0 {
            let word = summary.trailing_zeros() as usize;
            summary &= summary - 1;
            if word >= BITS_WORDS {
                continue;
            }
            // Pairs with: `ring` bits or.
            let mut bits = self.cell(doorbell, BITS + word).swap(0, Ordering::AcqRel);
            while bits != 0 {
                each((word * 64) as u16 + bits.trailing_zeros() as u16);
                bits &= bits - 1;
            }
        }
    }

    /// Announces sleep: whoever rings after this wakes us. Look once more before sleeping.
    pub fn doze(&self, doorbell: usize, how: u64) {
        // Pairs with: `rouse` SLEEP swap.
        self.cell(doorbell, SLEEP).swap(how, Ordering::AcqRel);
    }

    /// Ends our own doze.
    pub fn awake(&self, doorbell: usize) {
        // Pairs with: `rouse` SLEEP swap.
        self.cell(doorbell, SLEEP).swap(AWAKE, Ordering::AcqRel);
    }

    /// The word that a dozing owner waits on, while it is [`ON_FUTEX`].
    pub fn sleep_word(&self, doorbell: usize) -> &AtomicU64 {
        self.cell(doorbell, SLEEP)
    }

    /// Wakes the owner after [`Wake::Futex`]. One system call.
    #[cfg(not(loom))]
    pub fn wake(&self, doorbell: usize) {
        crate::futex::wake_all(self.sleep_word(doorbell));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use abi::limits::SLOTS_PER_DC;

    #[test]
    fn every_source_has_its_bit() {
        let bells = Doorbells::heap();
        let all = [0, 1, 63, 64, 4032, SLOTS_PER_DC - 1];
        for bit in all {
            assert_eq!(bells.ring(COUNT - 1, bit), Wake::Nothing);
        }
        let mut drained = Vec::new();
        bells.drain(COUNT - 1, |bit| drained.push(bit));
        assert_eq!(drained, all);
        assert!(!bells.has_hints(COUNT - 1));
    }

    #[test]
    fn a_sleeper_is_woken_as_it_sleeps_and_once() {
        let bells = Doorbells::heap();
        for (how, wake) in [(ON_FUTEX, Wake::Futex), (ON_EVENTFD, Wake::EventFd), (AWAKE, Wake::Nothing)] {
            bells.doze(2, how);
            assert_eq!(bells.ring_for_pull(2), wake);
            assert_eq!(bells.ring(2, 0), Wake::Nothing);
        }
        assert_eq!(bells.pulls(2), 3);
        bells.doze(2, ON_FUTEX);
        bells.awake(2);
        assert_eq!(bells.rouse(2), Wake::Nothing);
    }

    #[test]
    fn a_spoilt_sleep_word_wakes_nobody_and_is_repaired_by_the_next_ring() {
        let bells = Doorbells::heap();
        bells.doze(0, 77);
        assert_eq!(bells.rouse(0), Wake::Nothing);
        assert_eq!(bells.sleep_word(0).load(Ordering::Relaxed), AWAKE);
    }
}
