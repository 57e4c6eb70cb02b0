//! Driver: waiting in somebody else's loop: the descriptor, and when it is readable.
//!
//! Neighbours: `polling` (what the descriptor is), `waiting` (how a call waits by itself), `steps` (calls in steps).

use std::os::fd::BorrowedFd;

use abi::doorbell;
use shm::doorbell::Wake;

use super::Binding;
use crate::core::Core;
use crate::daemon::Daemon;
use crate::error::Unavailable;
use crate::waiting::Look;

impl Binding {
    /// A descriptor for `epoll`, `poll` or an async runtime: readable while something may be pending for this binding: a
    /// message, a notification, a wake-up, a reply, room, a death, a word of the daemon. Level-triggered.
    ///
    /// It is unreadable only while the binding is *armed*. It is armed by a `receive` or `receive_request` with
    /// `Timeout::Zero` that says `WouldBlock`, and by [`Binding::arm`]. Once readable it stays so until armed again: call
    /// `receive` until it says `WouldBlock`, then look at the calls that were started (`poll_call`, `poll_send`), then
    /// wait. A call that waits by itself ends the arming, so the descriptor is readable after it. Now and then (100 ms, then
    /// up to 2 s apart) it is readable for nothing, should the doorbell page be spoilt.
    ///
    /// Cost: the first time a round trip to the daemon, then none. A wake-up costs its ringer one system call. Errors:
    /// `NoMemory` when there are no descriptors left.
    pub fn poll_fd(&mut self) -> Result<BorrowedFd<'_>, Unavailable> {
        if self.daemon.polling.is_none() {
            self.daemon.poll()?;
            // The bells of pairs that are there already.
            self.core.pull_now(&mut self.daemon)?;
        }
        self.daemon.polling.as_ref().map(|polling| polling.fd()).ok_or(Unavailable::Broken)
    }

    /// Arms the binding: what comes after this makes `poll_fd` readable. Whatever is waited for must be looked at once after
    /// this and before the wait. For a program that does not receive; a `receive` that finds nothing does it by itself.
    ///
    /// Cost: one system call, and one for each peer that rang.
    pub fn arm(&mut self) -> Result<(), Unavailable> {
        self.settle_rings();
        let Some(polling) = &mut self.daemon.polling else { return Ok(()) };
        // First this: a ring that is cleared was for something that is seen by the look that follows.
        let timed = polling.clear().map_err(|_| Unavailable::NoMemory)?;
        polling.armed = true;
        self.core.stop_attending();
        let (doorbells, _) = self.core.doorbells();
        doorbells.doze(self.doorbell, doorbell::ON_EVENTFD);
        if timed {
            self.core.suspect_all(self.began.elapsed());
            return self.core.pull_now(&mut self.daemon);
        }
        self.core.pull(&mut self.daemon)
    }

    pub(crate) fn polls(&self) -> bool {
        self.daemon.polling.is_some()
    }

    /// Ends the arming. From now on nobody rings, so we keep the descriptor readable ourselves, unless somebody just has.
    #[inline]
    pub(crate) fn disarm(&mut self) {
        if self.daemon.polling.as_ref().is_some_and(|polling| polling.armed) {
            self.disarm_now();
        }
    }

    #[cold]
    fn disarm_now(&mut self) {
        let Some(polling) = &mut self.daemon.polling else { return };
        polling.armed = false;
        let (doorbells, _) = self.core.doorbells();
        if doorbells.rouse(self.doorbell) == Wake::EventFd {
            polling.stay_readable();
        }
    }

    /// A look that arms when it finds nothing, and looks once more.
    pub(crate) fn look_and_arm<T>(
        &mut self,
        mut look: impl FnMut(&mut Core, &mut Daemon, Look) -> Option<T>,
    ) -> Result<Option<T>, Unavailable> {
        self.interrupted = false;
        let mut found = look(&mut self.core, &mut self.daemon, Look::Thorough);
        if found.is_none() {
            self.arm()?;
            found = look(&mut self.core, &mut self.daemon, Look::Last);
        }
        if found.is_some() {
            self.disarm();
        }
        Ok(found)
    }

    /// Rings peers that sleep in epoll and whose bells we had not fetched. Cost when there are none: one load.
    #[inline]
    pub(crate) fn settle_rings(&mut self) {
        if self.core.owes_ring() {
            // Without a daemon nobody can be rung so; they find by their timers what we published.
            let _ = self.core.pay_rings(&mut self.daemon);
        }
    }
}
