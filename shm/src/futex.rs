//! Sleeping on a word of shared memory, and waking all who do.
//!
//! The kernel compares and sleeps on the *low 32 bits* of a 64-bit word; it works through a read-only
//! mapping, for a word in a peer's memory. Neighbours: `map` (where words lie), `doorbell` (which words).
//! Source: futex(2), futex_waitv(2); shared futexes throughout, since sleeper and waker are two processes.

use std::time::Duration;

use crate::sync::AtomicU64;

const _: () =
    assert!(cfg!(target_endian = "little"), "a futex is the low half of a word, which lies at its address");

/// The most words one may sleep on at once; the kernel's limit is 128.
pub const WORDS_MAX: usize = 8;

/// How a sleep ended. None of them says what the word holds now: look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitEnd {
    /// Somebody woke the sleepers of this word.
    Woken,
    /// The word was not as expected, so there was no sleep.
    Changed,
    /// The time was over.
    TimedOut,
    /// A signal came, or the kernel gave no reason.
    Interrupted,
}

#[cfg(not(loom))]
mod real {
    #![expect(unsafe_code, reason = "the kernel is given the address of half a word")]

    use super::{AtomicU64, Duration, WORDS_MAX, WaitEnd};
    use crate::os::fdpass::timespec;
    use crate::sync::AtomicU32;
    use rustix::io::Errno;
    use rustix::thread::futex::{Flags, Wait, WaitFlags, WaitPtr, WaitvFlags};
    use rustix::thread::futex::{wait as futex_wait, waitv, wake};
    use rustix::time::{ClockId, clock_gettime};

    /// Sleeps until woken, if the low half of `word` is `expected_low32`. Cost: a system call; about 5 µs of
    /// wake-up.
    pub fn wait(word: &AtomicU64, expected_low32: u32, timeout: Option<Duration>) -> WaitEnd {
        let timeout = timeout.map(timespec);
        end(futex_wait(low_half(word), Flags::empty(), expected_low32, timeout.as_ref()))
    }

    /// Sleeps until one of several words is woken, if each low half is as given beside it. `None` where the
    /// kernel lacks the call (before 5.16): sleep on one word, and not long.
    ///
    /// # Panics
    /// If there are no words, or more than `WORDS_MAX`.
    pub fn wait_any(words: &[(&AtomicU64, u32)], timeout: Option<Duration>) -> Option<WaitEnd> {
        assert!((1..=WORDS_MAX).contains(&words.len()), "between one and {WORDS_MAX} words");
        let mut waits = [Wait::new(); WORDS_MAX];
        for (slot, (word, expected)) in waits.iter_mut().zip(words) {
            slot.val = u64::from(*expected);
            slot.uaddr = WaitPtr::new(std::ptr::from_ref::<AtomicU64>(word).cast_mut().cast());
            slot.flags = WaitFlags::SIZE_U32;
        }
        // This call takes a point in time where the simple one takes a span.
        let until = timeout.map(|span| clock_gettime(ClockId::Monotonic) + timespec(span));
        let clock = rustix::thread::futex::ClockId::Monotonic;
        match waitv(&waits[..words.len()], WaitvFlags::empty(), until.as_ref(), clock) {
            Err(Errno::NOSYS) => None,
            result => Some(end(result.map(|_which| ()))),
        }
    }

    /// Wakes all who sleep on this word, and says how many. Cost: a system call, which callers make only for
    /// a sleeper.
    pub fn wake_all(word: &AtomicU64) -> usize {
        // The kernel reads this count as signed: the largest positive one is everybody.
        wake(low_half(word), Flags::empty(), i32::MAX as u32).unwrap_or(0)
    }

    fn end(result: Result<(), Errno>) -> WaitEnd {
        match result {
            Ok(()) => WaitEnd::Woken,
            Err(Errno::AGAIN) => WaitEnd::Changed,
            Err(Errno::TIMEDOUT) => WaitEnd::TimedOut,
            Err(_no_reason) => WaitEnd::Interrupted,
        }
    }

    fn low_half(word: &AtomicU64) -> &AtomicU32 {
        // SAFETY: 1. Four bytes inside a word of eight that is aligned and borrowed for as long as the
        //            result.
        //         2. The result never leaves this module: only the kernel looks at it, so no access here is
        //            of mixed size.
        unsafe { AtomicU32::from_ptr(word.as_ptr().cast()) }
    }
}

#[cfg(not(loom))]
pub use real::{wait, wait_any, wake_all};

#[cfg(loom)]
mod model {
    use super::{AtomicU64, Duration, WaitEnd};
    use crate::sync::Ordering;

    /// The model of a sleep: a turn of others if the word is as expected. That a wake-up may come for no
    /// reason is part of the contract, so a model that always does is a legal one; what it cannot see is a
    /// lost wake-up.
    pub fn wait(word: &AtomicU64, expected_low32: u32, _timeout: Option<Duration>) -> WaitEnd {
        // Relaxed: the caller looks again, with its own ordering, whatever this finds.
        if word.load(Ordering::Relaxed) as u32 != expected_low32 {
            return WaitEnd::Changed;
        }
        loom::thread::yield_now();
        WaitEnd::Woken
    }

    /// The model of a sleep on several words: on the first, as often as need be.
    pub fn wait_any(words: &[(&AtomicU64, u32)], timeout: Option<Duration>) -> Option<WaitEnd> {
        words.first().map(|(word, expected)| wait(word, *expected, timeout))
    }

    /// The model of waking: sleepers of the model wake by themselves.
    pub fn wake_all(_word: &AtomicU64) -> usize {
        0
    }
}

#[cfg(loom)]
pub use model::{wait, wait_any, wake_all};

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::map::{Access, Mapping, PAGE_BYTES};
    use crate::os::memfd::{seal, segment_fd};
    use crate::sync::Ordering;
    use std::os::fd::AsFd;
    use std::sync::Arc;

    fn owner_and_reader() -> (Arc<Mapping>, Arc<Mapping>) {
        let (fd, _) = segment_fd("futex test", PAGE_BYTES, false).unwrap();
        let owner = Mapping::shared(fd.as_fd(), 0, PAGE_BYTES, Access::ReadWrite).unwrap();
        seal(fd.as_fd()).unwrap();
        let reader = Mapping::shared(fd.as_fd(), 0, PAGE_BYTES, Access::ReadOnly).unwrap();
        (owner, reader)
    }

    #[test]
    fn a_sleeper_on_a_read_only_mapping_is_woken_through_the_owners() {
        let (owner, reader) = owner_and_reader();
        std::thread::scope(|s| {
            let sleeper = s.spawn(|| {
                let word = &reader.words()[3];
                // Pairs with: the store below. The high half is not part of the comparison.
                while word.load(Ordering::Acquire) as u32 == 0 {
                    wait(word, 0, Some(Duration::from_secs(10)));
                }
            });
            while wake_all(&owner.words()[3]) == 0 {
                std::thread::yield_now();
            }
            // Pairs with: the load above.
            owner.words()[3].store(7, Ordering::Release);
            wake_all(&owner.words()[3]);
            sleeper.join().unwrap();
        });
    }

    #[test]
    fn all_sleepers_of_a_word_are_woken() {
        let (owner, reader) = owner_and_reader();
        std::thread::scope(|s| {
            let sleep = || wait(&reader.words()[0], 0, Some(Duration::from_secs(10)));
            let sleepers = [s.spawn(sleep), s.spawn(sleep), s.spawn(sleep)];
            std::thread::sleep(Duration::from_millis(50));
            // Relaxed: the joins below order all there is.
            owner.words()[0].store(1, Ordering::Relaxed);
            wake_all(&owner.words()[0]);
            for sleeper in sleepers {
                assert!(matches!(sleeper.join().unwrap(), WaitEnd::Woken | WaitEnd::Changed));
            }
        });
    }

    #[test]
    fn only_the_low_half_is_compared() {
        let (owner, reader) = owner_and_reader();
        // Relaxed: one thread.
        owner.words()[0].store(5 << 32 | 6, Ordering::Relaxed);
        assert_eq!(wait(&reader.words()[0], 5, None), WaitEnd::Changed);
        assert_eq!(wait(&reader.words()[0], 6, Some(Duration::from_millis(1))), WaitEnd::TimedOut);
    }

    #[test]
    fn a_sleeper_on_two_words_is_woken_by_the_second() {
        let (owner, reader) = owner_and_reader();
        std::thread::scope(|s| {
            let sleeper = s.spawn(|| {
                let words = [(&reader.words()[0], 0), (&reader.words()[1], 0)];
                wait_any(&words, Some(Duration::from_secs(10)))
            });
            while !sleeper.is_finished() && wake_all(&owner.words()[1]) == 0 {
                std::thread::yield_now();
            }
            assert!(matches!(sleeper.join().unwrap(), Some(WaitEnd::Woken) | None));
        });
    }

    #[test]
    fn a_sleep_on_two_words_ends_by_its_timeout_or_at_once_if_one_has_changed() {
        let (_owner, reader) = owner_and_reader();
        let same = [(&reader.words()[0], 0), (&reader.words()[1], 0)];
        assert!(matches!(wait_any(&same, Some(Duration::from_millis(2))), Some(WaitEnd::TimedOut) | None));
        let other = [(&reader.words()[0], 0), (&reader.words()[1], 1)];
        assert!(matches!(wait_any(&other, None), Some(WaitEnd::Changed) | None));
    }
}
