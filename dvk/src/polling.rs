//! Driver: what `poll_fd` hands out: a private epoll over one bell for each peer, the daemon's, a timer, and a descriptor of
//! our own that makes it readable while we are not armed.
//!
//! Key type: [`Polling`]. Neighbours: `binding::polls` (when it is armed), `daemon` (where the bells come from),
//! `docs/adr/0010-poll-fd.md` (why it is so).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use abi::Endpoint;
use abi::limits::{RESCAN_FIRST_MS, RESCAN_MAX_MS};
use rustix::io::Errno;
use shm::os::events::{Cleared, EVENTS_MAX, Epoll, EventFd, Readiness, Rung, Timer};

/// Tokens that are no endpoint: there is no DC of that number.
const TOKEN_OWN: u64 = u64::MAX;
const TOKEN_TIMER: u64 = u64::MAX - 1;
const TOKEN_DAEMON: u64 = u64::MAX - 2;

/// The descriptors of a binding that polls.
pub(crate) struct Polling {
    epoll: Epoll,
    /// Rung while the epoll must be readable and nobody else has seen to that.
    own: EventFd,
    timer: Timer,
    daemon: Option<Rung>,
    peers: BTreeMap<u64, Rung>,
    /// Our sleep word says "on eventfd", as far as we have set it.
    pub(crate) armed: bool,
    rescan: Duration,
    ready: Vec<(u64, Readiness)>,
}

impl Polling {
    /// Readable, since nobody has looked yet. `daemon`: what the daemon rings.
    pub(crate) fn new(daemon: Rung) -> Result<Polling, Errno> {
        let rescan = Duration::from_millis(RESCAN_FIRST_MS);
        let (epoll, own, timer) = (Epoll::new()?, EventFd::new()?, Timer::new()?);
        epoll.add(&own, TOKEN_OWN, Readiness::READ)?;
        epoll.add(&timer, TOKEN_TIMER, Readiness::READ)?;
        epoll.add(&daemon, TOKEN_DAEMON, Readiness::READ)?;
        own.ring()?;
        timer.set(rescan)?;
        let (daemon, peers, ready) = (Some(daemon), BTreeMap::new(), Vec::with_capacity(EVENTS_MAX));
        Ok(Polling { epoll, own, timer, daemon, peers, armed: false, rescan, ready })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Watches what a peer rings. Said again for a proxy's successor, it is the same bell, and the first stays.
    pub(crate) fn watch(&mut self, peer: Endpoint, rung: Rung) -> Result<(), Errno> {
        let token = peer.to_word();
        if !self.peers.contains_key(&token) {
            self.epoll.add(&rung, token, Readiness::READ)?;
            self.peers.insert(token, rung);
        }
        Ok(())
    }

    pub(crate) fn forget(&mut self, peer: Endpoint) {
        self.unwatch(peer.to_word());
    }

    fn unwatch(&mut self, token: u64) {
        let gone = if token == TOKEN_DAEMON { self.daemon.take() } else { self.peers.remove(&token) };
        if let Some(rung) = gone {
            // The daemon has the same file open: closing ours alone would leave it watched.
            let _ = self.epoll.remove(&rung);
        }
    }

    /// Keeps the epoll readable, although whoever made it so may be cleared.
    pub(crate) fn stay_readable(&self) {
        // One that is full is readable, and nothing else can go wrong with our own.
        let _ = self.own.ring();
    }

    /// Makes the epoll unreadable. Whatever rang before this was rung for what can be seen after it. Returns whether it is
    /// time to look at everything, whoever rang. Cost: one system call, and one for each that rang.
    pub(crate) fn clear(&mut self) -> Result<bool, Errno> {
        let (mut timed, mut rang) = (false, false);
        // Each is looked at once: peers that ring on and on keep us readable, and no longer than that.
        for _ in 0..=self.peers.len() / EVENTS_MAX {
            let mut ready = std::mem::take(&mut self.ready);
            let waited = self.epoll.wait(&mut ready, Some(Duration::ZERO));
            for (token, _) in &ready {
                match *token {
                    TOKEN_OWN => drop(self.own.clear()?),
                    TOKEN_TIMER => timed = true,
                    token => {
                        rang = true;
                        self.clear_bell(token)?;
                    }
                }
            }
            let was_all = ready.len() < EVENTS_MAX;
            self.ready = ready;
            waited?;
            if was_all {
                break;
            }
        }
        self.set_timer(timed, rang)?;
        Ok(timed)
    }

    fn clear_bell(&mut self, token: u64) -> Result<(), Errno> {
        let bell = if token == TOKEN_DAEMON { self.daemon.as_ref() } else { self.peers.get(&token) };
        if let Some(bell) = bell
            && bell.clear()? == Cleared::Closed
        {
            self.unwatch(token);
        }
        Ok(())
    }

    /// The pause doubles each time it was all that ended it, and is the shortest again when somebody rang.
    fn set_timer(&mut self, timed: bool, rang: bool) -> Result<(), Errno> {
        let first = Duration::from_millis(RESCAN_FIRST_MS);
        let next = match (timed, rang) {
            (_, true) => first,
            (true, false) => (self.rescan * 2).min(Duration::from_millis(RESCAN_MAX_MS)),
            (false, false) => self.rescan,
        };
        if timed || next != self.rescan {
            self.rescan = next;
            self.timer.set(next)?;
        }
        Ok(())
    }
}
