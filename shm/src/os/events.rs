//! Readiness: descriptors that ring, and an epoll that waits for many descriptors.
//!
//! Key types: [`EventFd`], [`bell`], [`Timer`], [`Epoll`]. Who drives a courier sleeps here; who only has lanes sleeps on a futex
//! (`futex`). Source: eventfd(2), unix(7), timerfd_create(2), epoll(7).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::sockopt::socket_type;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

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

/// Makes somebody's descriptor readable, be it an eventfd or the [`Rung`] of a [`bell`]. Never waits.
#[derive(Debug)]
pub struct Ringer {
    fd: OwnedFd,
    is_socket: bool,
}

/// The end of a bell that becomes readable. Never waits.
#[derive(Debug)]
pub struct Rung(OwnedFd);

/// A bell between two that need not trust each other: a pair of sockets.
///
/// An eventfd is one open file for all that have it, and whether it blocks is a property of that file: who is rung by it
/// could fill it, make it blocking, and so hold whoever rings. Each end of a pair of sockets is a file of its own.
pub fn bell() -> Result<(Ringer, Rung), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (rings, rung) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok((Ringer { fd: rings, is_socket: true }, Rung(rung)))
}

impl Ringer {
    /// One that came from another process.
    pub fn adopt(fd: OwnedFd) -> Result<Ringer, Errno> {
        let is_socket = match socket_type(&fd) {
            Ok(_) => true,
            Err(Errno::NOTSOCK) => false,
            Err(errno) => return Err(errno),
        };
        if is_socket {
            return Ok(Ringer { fd, is_socket });
        }
        Ok(Ringer { fd: EventFd::adopt(fd)?.0, is_socket })
    }

    /// Makes the other end readable. One that is full is readable already, and one that is closed needs nothing: neither
    /// is an error. Cost: one system call.
    pub fn ring(&self) -> Result<(), Errno> {
        let word = 1u64.to_ne_bytes();
        let rung = rustix::io::retry_on_intr(|| match self.is_socket {
            true => send(&self.fd, &word, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            false => rustix::io::write(&self.fd, &word),
        });
        match rung {
            Ok(_) | Err(Errno::AGAIN | Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for Ringer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What was found in a [`Rung`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cleared {
    /// It had been rung, or not; more may have come since.
    Rung(bool),
    /// Nobody is left who could ring it.
    Closed,
}

/// How much of a bell is read at once: more than anybody who keeps to the rules writes.
const BELL_BYTES: usize = 1024;

impl Rung {
    /// One that came from another process. Errors: `NOTSOCK`, for anything that is no end of a bell.
    pub fn adopt(fd: OwnedFd) -> Result<Rung, Errno> {
        socket_type(&fd).map(|_| Rung(fd))
    }

    /// Makes it unreadable, unless somebody rings on and on: then it stays readable, and we do not stay here. Cost: one
    /// system call.
    pub fn clear(&self) -> Result<Cleared, Errno> {
        let mut bytes = [0u8; BELL_BYTES];
        match rustix::io::retry_on_intr(|| recv(&self.0, &mut bytes[..], RecvFlags::DONTWAIT)) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => Ok(Cleared::Closed),
            Ok(_) => Ok(Cleared::Rung(true)),
            Err(Errno::AGAIN) => Ok(Cleared::Rung(false)),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for Rung {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A descriptor that becomes readable once, some time after it was set.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// Not set.
    pub fn new() -> Result<Timer, Errno> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        timerfd_create(TimerfdClockId::Monotonic, flags).map(Timer)
    }

    /// Unreadable from now on, and readable after `pause`, which is not zero.
    pub fn set(&self, pause: Duration) -> Result<(), Errno> {
        let once = Itimerspec { it_interval: timespec(Duration::ZERO), it_value: timespec(pause) };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once).map(|_before| ())
    }
}

impl AsFd for Timer {
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
