//! Driver: how a binding waits: look, spin for a budget, say that we sleep, look once more, sleep.
//!
//! Key type: `Look`. Neighbours: `shm::doorbell` (the sleep word), `core` (what is looked at).

use std::time::{Duration, Instant};

use abi::doorbell;
use abi::limits::{RESCAN_FIRST_MS, RESCAN_MAX_MS};
use shm::futex::{self, WaitEnd};
use shm::sync::relax;

use crate::binding::Binding;
use crate::core::{Core, PeerIndex};
use crate::daemon::Daemon;
use crate::timeout::Timeout;

/// How closely to look during a wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// One load or two.
    Quick,
    /// Deaths too.
    Thorough,
    /// The last before a sleep: nobody attends any more.
    Last,
}

/// Between two looks whether a daemon that was slow has answered.
const DAEMON_GLANCE: Duration = Duration::from_millis(5);

/// How many quick looks go between two glances at the clock.
const LOOKS_PER_GLANCE: u32 = 256;

impl Binding {
    /// Waits until `look` finds something; `None` when the deadline has passed, or a signal has come (`interrupted`).
    pub(crate) fn wait_on<T>(
        &mut self,
        peer: Option<PeerIndex>,
        deadline: Option<Instant>,
        mut look: impl FnMut(&mut Core, &mut Daemon, Look) -> Option<T>,
    ) -> Option<T> {
        self.interrupted = false;
        self.settle_rings();
        self.disarm();
        let budget = self.wait.budget();
        if let (Some(index), false) = (peer, budget.is_zero()) {
            self.core.attend_to(index);
        }
        let mut rescan = Duration::from_millis(RESCAN_FIRST_MS);
        loop {
            if let Some(found) = self.spin(budget, deadline, &mut look) {
                return found;
            }
            self.core.stop_attending();
            let (doorbells, _) = self.core.doorbells();
            let doorbells = doorbells.clone();
            doorbells.doze(self.doorbell, doorbell::ON_FUTEX);
            // The daemon may be what rang: a proxy was replaced, or a node died. A receive pulls by itself.
            let _ = self.core.glance(&mut self.daemon);
            let found = look(&mut self.core, &mut self.daemon, Look::Last);
            let left = left_until(deadline);
            if let (None, Some(left)) = (&found, left) {
                let word = doorbells.sleep_word(self.doorbell);
                let nap = if self.daemon.owes_answer() { DAEMON_GLANCE } else { rescan };
                match futex::wait(word, doorbell::ON_FUTEX as u32, Some(left.min(nap))) {
                    WaitEnd::TimedOut if self.rescanned.elapsed() >= rescan => {
                        self.core.suspect_all(self.began.elapsed());
                        // Nobody may have rung because the page is spoilt: the daemon is asked without being told to.
                        let _ = self.core.glance_now(&mut self.daemon);
                        self.rescanned = Instant::now();
                        rescan = (rescan * 2).min(Duration::from_millis(RESCAN_MAX_MS));
                    }
                    WaitEnd::TimedOut => {}
                    WaitEnd::Interrupted => self.interrupted = self.interruptible,
                    WaitEnd::Woken | WaitEnd::Changed => {}
                }
            }
            doorbells.awake(self.doorbell);
            if found.is_some() {
                return found;
            }
            if left.is_none() || self.interrupted {
                return look(&mut self.core, &mut self.daemon, Look::Thorough);
            }
        }
    }

    /// Looks until the budget is used up (`None`), something is found, or the deadline has passed (`Some(None)`).
    #[inline]
    fn spin<T>(
        &mut self,
        budget: Duration,
        deadline: Option<Instant>,
        look: &mut impl FnMut(&mut Core, &mut Daemon, Look) -> Option<T>,
    ) -> Option<Option<T>> {
        if let Some(found) = look(&mut self.core, &mut self.daemon, Look::Quick) {
            return Some(Some(found));
        }
        if budget.is_zero() {
            return None;
        }
        let mut began = None;
        loop {
            for _ in 0..LOOKS_PER_GLANCE {
                relax();
                if let Some(found) = look(&mut self.core, &mut self.daemon, Look::Quick) {
                    return Some(Some(found));
                }
            }
            if let Some(found) = look(&mut self.core, &mut self.daemon, Look::Thorough) {
                return Some(Some(found));
            }
            // A proxy may have been replaced; a receive pulls by itself.
            if self.core.glance(&mut self.daemon).is_err() {
                return None;
            }
            let now = Instant::now();
            if self.core.holds_relays() {
                self.core.tidy_relays(now.duration_since(self.began));
            }
            if deadline.is_some_and(|d| now >= d) {
                return Some(None);
            }
            if now.duration_since(*began.get_or_insert(now)) >= budget {
                return None;
            }
        }
    }
}

pub(crate) fn deadline_of(timeout: Timeout) -> Option<Instant> {
    match timeout {
        Timeout::Forever => None,
        Timeout::Zero => Some(Instant::now()),
        Timeout::After(duration) => Instant::now().checked_add(duration),
    }
}

/// How long until the deadline; `None` when it has passed.
pub(crate) fn left_until(deadline: Option<Instant>) -> Option<Duration> {
    match deadline {
        None => Some(Duration::MAX),
        Some(deadline) => deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()),
    }
}
