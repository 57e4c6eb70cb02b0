//! The driver's side of the proxies: their links, their queues of what they have not read yet, their ends.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use abi::courier::{FromProxy, TAIL_BYTES_MAX, ToProxy};
use rustix::io::Errno;
use shm::os::events::{Epoll, Readiness};
use shm::os::fdpass::{self, PassError};
use shm::os::peer::pidfd_exited;

use super::socket::{WORDS_BYTES, from_bytes, random, send, set_nonblocking, to_bytes};
use super::start::{StartProxy, Started};
use super::tokens::{Token, Watched};
use crate::core::Input;

/// A proxy that leaves this much unread is killed.
const UNREAD_MAX: usize = 1 << 16;

struct Datagram {
    bytes: Vec<u8>,
    fds: Vec<Arc<OwnedFd>>,
}

struct Running {
    link: OwnedFd,
    started: Started,
    unread: VecDeque<Datagram>,
    /// The link has ended; its process may not have.
    hung_up: bool,
}

#[derive(Default)]
pub(super) struct Couriers {
    running: BTreeMap<u16, Running>,
}

/// Why a proxy did not start, in words.
pub(super) struct NotStarted(pub String);

impl Couriers {
    /// Starts a proxy; its token is what it will say first.
    pub fn start(
        &mut self,
        options: &mut proxy_tcp::options::ProxyOptions,
        starter: &mut dyn StartProxy,
        epoll: &Epoll,
    ) -> Result<Input, NotStarted> {
        let proxy = options.proxy_index;
        let refused = |e: Errno| NotStarted(e.to_string());
        options.token = random().ok_or_else(|| NotStarted("the system has no random bytes".into()))?;
        let (link, theirs) = fdpass::pair().map_err(|e| NotStarted(e.to_string()))?;
        set_nonblocking(&link).map_err(refused)?;
        let mut started = starter.start(options, theirs).map_err(|e| NotStarted(e.to_string()))?;
        let token = |kind| Token { kind, id: u64::from(proxy) }.to_word();
        let watched = epoll
            .add(&link, token(Watched::Proxy), Readiness::READ)
            .and_then(|()| epoll.add(&started.exit, token(Watched::ProxyExit), Readiness::READ));
        if let Err(errno) = watched {
            started.handle.kill();
            started.handle.reap();
            return Err(refused(errno));
        }
        let pid = started.pid;
        self.running.insert(proxy, Running { link, started, unread: VecDeque::new(), hung_up: false });
        Ok(Input::ProxyStarted { proxy, pid, token: options.token })
    }

    /// Reads one message; `None`: there is none now.
    pub fn read(&mut self, proxy: u16, epoll: &Epoll) -> Option<Input> {
        let there = self.running.get_mut(&proxy).filter(|r| !r.hung_up)?;
        let mut bytes = vec![0; WORDS_BYTES + TAIL_BYTES_MAX];
        let (message, tail) = match fdpass::recv_with_fds(&there.link, &mut bytes) {
            Ok((len, _)) if len > 0 => {
                let (words, tail) = bytes[..len].split_at(len.min(WORDS_BYTES));
                (from_bytes(words).and_then(|w| FromProxy::from_words(&w)), tail.to_vec())
            }
            Err(PassError::TimedOut) => return None,
            Err(PassError::LongDatagram) => (None, Vec::new()),
            Ok(_) | Err(_) => {
                // A proxy without a link is of no use; its end is what counts.
                there.hung_up = true;
                let _ = epoll.remove(&there.link);
                there.started.handle.kill();
                return None;
            }
        };
        Some(Input::ProxySaid { proxy, message, tail })
    }

    /// Says something now, or as soon as the proxy reads; one that never reads is killed.
    pub fn say(&mut self, proxy: u16, message: ToProxy, tail: &[u8], fds: Vec<Arc<OwnedFd>>, epoll: &Epoll) {
        let Some(there) = self.running.get_mut(&proxy) else { return };
        let mut bytes = to_bytes(&message.to_words()).to_vec();
        bytes.extend_from_slice(tail);
        there.unread.push_back(Datagram { bytes, fds });
        if there.unread.len() > UNREAD_MAX {
            tracing::warn!(proxy, "proxy does not read what it is told, and is killed");
            there.started.handle.kill();
            there.unread.clear();
        }
        self.flush(proxy, epoll);
    }

    /// Sends what was left; watches for room while something is.
    pub fn flush(&mut self, proxy: u16, epoll: &Epoll) {
        let Some(there) = self.running.get_mut(&proxy).filter(|r| !r.hung_up) else { return };
        while let Some(first) = there.unread.front() {
            match send(&there.link, &first.bytes, &first.fds) {
                Ok(()) => drop(there.unread.pop_front()),
                // No room, or too many descriptors on their way: later.
                Err(PassError::TimedOut | PassError::Refused(Errno::TOOMANYREFS)) => break,
                // Its end is seen by reading.
                Err(_) => there.unread.clear(),
            }
        }
        let interest = if there.unread.is_empty() { Readiness::READ } else { Readiness::BOTH };
        let token = Token { kind: Watched::Proxy, id: u64::from(proxy) }.to_word();
        if let Err(errno) = epoll.modify(&there.link, token, interest) {
            tracing::error!(proxy, "link to the proxy not watched: {errno}");
        }
    }

    pub fn kill(&mut self, proxy: u16) {
        if let Some(there) = self.running.get_mut(&proxy) {
            there.started.handle.kill();
        }
    }

    /// After its exit descriptor fired and its last words were read.
    pub fn exited(&mut self, proxy: u16, epoll: &Epoll) -> Option<Input> {
        if !self.running.get(&proxy).is_some_and(|r| pidfd_exited(&r.started.exit)) {
            return None;
        }
        let mut there = self.running.remove(&proxy)?;
        // Closing would not end the watch if somebody else has the descriptor too.
        let _ = epoll.remove(&there.started.exit);
        there.started.handle.reap();
        Some(Input::ProxyExited { proxy })
    }

    /// The daemon ends without ceremony.
    pub fn kill_all(&mut self) {
        for there in self.running.values_mut() {
            there.started.handle.kill();
        }
        for (_, mut there) in std::mem::take(&mut self.running) {
            let _ =
                shm::os::peer::pidfd_exited_within(&there.started.exit, std::time::Duration::from_secs(1));
            there.started.handle.reap();
        }
    }
}
