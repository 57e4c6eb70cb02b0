//! Readiness: an event descriptor that rings, and an epoll that waits for many descriptors.
//!
//! Key types: [`EventFd`], [`Epoll`]. Who drives a courier sleeps here; who only has lanes sleeps on a futex
//! (`futex`). Source: eventfd(2), epoll(7).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::fdpass::timespec;

/// The most events one wait brings; the rest comes with the next.
pub const EVENTS_MAX: usize = 64;

/// A counter in the kernel that makes its descriptor readable while it is not zero.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Not rung, non-blocking, closed on exec.
    pub fn new() -> Result<EventFd, Errno> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(EventFd)
    }

    /// One that came from another process. It must be non-blocking, or `ring` may wait for whoever fills it
    /// up.
    pub fn adopt(fd: OwnedFd) -> Result<EventFd, Errno> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(EventFd(fd))
    }

    /// Makes it readable. A counter that is full is readable already, so that is no error. Cost: one system
    /// call.
    pub fn ring(&self) -> Result<(), Errno> {
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.0, &1u64.to_ne_bytes())) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Makes it unreadable, and says whether it had been rung.
    pub fn clear(&self) -> Result<bool, Errno> {
        let mut count = [0u8; 8];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut count)) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a descriptor is ready for, or what one wants to know about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    pub readable: bool,
    pub writable: bool,
    /// The other end closed, or the descriptor is in error; always reported, asked for or not.
    pub hung_up: bool,
}

impl Readiness {
    pub const READ: Readiness = Readiness { readable: true, writable: false, hung_up: false };
    pub const WRITE: Readiness = Readiness { readable: false, writable: true, hung_up: false };
    pub const BOTH: Readiness = Readiness { readable: true, writable: true, hung_up: false };
    pub const NONE: Readiness = Readiness { readable: false, writable: false, hung_up: false };

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN | EventFlags::RDHUP, self.readable);
        flags.set(EventFlags::OUT, self.writable);
        flags
    }

    fn of(flags: EventFlags) -> Readiness {
        let ended = EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP;
        Readiness {
            readable: flags.contains(EventFlags::IN),
            writable: flags.contains(EventFlags::OUT),
            hung_up: flags.intersects(ended),
        }
    }
}

/// Waits for many descriptors, level-triggered; each is known by a token of the caller's.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> Result<Epoll, Errno> {
        epoll::create(CreateFlags::CLOEXEC).map(Epoll)
    }

    /// `Err(EXIST)`: it is there already; `Err(NOSPC)`: too many watches (raise `fs.epoll.max_user_watches`).
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Readiness) -> Result<(), Errno> {
        epoll::add(&self.0, fd, EventData::new_u64(token), interest.flags())
    }

    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Readiness) -> Result<(), Errno> {
        epoll::modify(&self.0, fd, EventData::new_u64(token), interest.flags())
    }

    pub fn remove(&self, fd: impl AsFd) -> Result<(), Errno> {
        epoll::delete(&self.0, fd)
    }

    /// Replaces what is in `ready` by (token, readiness) of up to [`EVENTS_MAX`] ready descriptors; empty
    /// when the time is over or a signal came. `None` waits for ever, zero only looks.
    pub fn wait(&self, ready: &mut Vec<(u64, Readiness)>, timeout: Option<Duration>) -> Result<(), Errno> {
        ready.clear();
        let mut events = [const { MaybeUninit::<Event>::uninit() }; EVENTS_MAX];
        let timeout = timeout.map(timespec);
        let (came, _rest) = match epoll::wait(&self.0, &mut events, timeout.as_ref()) {
            Ok(split) => split,
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        for event in came {
            let flags = event.flags;
            ready.push((event.data.u64(), Readiness::of(flags)));
        }
        Ok(())
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
