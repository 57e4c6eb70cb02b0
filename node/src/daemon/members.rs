//! Members' connections: accepted, asked, answered, and dropped when they flood, hang up or do not read.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use abi::member::{Introduction, NUMBER, Refusal, Reply, Request};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size;
use shm::os::events::{Epoll, Readiness};
use shm::os::fdpass::{self, PassError};
use shm::os::peer::{PeerError, PeerProcess};

use super::heritage::Held;
use super::socket::{WORDS_BYTES, from_bytes, random, send, set_nonblocking, to_bytes};
use super::tokens::{Token, Watched};
use super::vault::Vault;
use crate::NodeError;
use crate::core::{ConnId, Descriptor, Holdings, Input, Process};
use crate::keeper::{Keep, Key};

/// Connections that members may have open, all together.
const CONNECTIONS_MAX: usize = 8192;
/// Of one user: as many as a DC has slots.
const CONNECTIONS_OF_USER_MAX: usize = 4096;
/// Room for answers that a member has not read: a few.
const SEND_BUFFER_BYTES: usize = 8192;

struct Member {
    socket: OwnedFd,
    process: PeerProcess,
    /// Of its last request.
    number: u64,
    /// The request is still where it was read.
    unconsumed: bool,
}

impl Member {
    fn consume(&mut self) {
        if std::mem::take(&mut self.unconsumed) {
            // Descriptors that came along are nobody's and closed at once. It is there: it was read just now.
            let _ = fdpass::recv_with_fds(&self.socket, &mut [0; WORDS_BYTES + 1]);
        }
    }
}

/// Members as a predecessor left them.
pub(super) struct Regained {
    pub members: Members,
    /// Connections that are nobody's any more.
    pub gone: Vec<ConnId>,
    /// Those that the core has not heard of.
    pub fresh: Vec<Input>,
}

pub(super) struct Members {
    listener: OwnedFd,
    open: BTreeMap<ConnId, Member>,
    of_user: BTreeMap<u32, usize>,
    next: ConnId,
    /// Given up for a moment when descriptors run out, so that the connection in line can be refused.
    spare: Option<OwnedFd>,
    keep: Arc<Keep>,
}

impl Members {
    pub fn new(listener: OwnedFd, epoll: &Epoll, keep: Arc<Keep>) -> Result<Members, NodeError> {
        keep.put(Key::Members, &listener);
        epoll
            .add(&listener, Token { kind: Watched::Listener, id: 0 }.to_word(), Readiness::READ)
            .map_err(NodeError::system("to watch the member socket"))?;
        let (open, of_user) = (BTreeMap::new(), BTreeMap::new());
        Ok(Members { listener, open, of_user, next: 1, spare: spare(), keep })
    }

    /// Goes on with a predecessor's connections.
    pub fn regain(
        held: &mut Held,
        holdings: &Holdings,
        epoll: &Epoll,
        keep: Arc<Keep>,
    ) -> Result<Regained, NodeError> {
        let none = || NodeError::system("the member socket")(Errno::BADF);
        let listener = held.remove(&Key::Members).ok_or_else(none)?;
        let mut members = Members::new(listener, epoll, keep)?;
        let (mut gone, mut fresh) = (Vec::new(), Vec::new());
        members.next = holdings.conn_last + 1;
        for (conn, process, number) in &holdings.conns {
            let socket = held.remove(&Key::Conn(*conn));
            let same = |p: &PeerProcess| (p.pid, p.start_time) == (process.pid, process.start_time);
            let peer = socket.and_then(|s| PeerProcess::of(s.as_fd()).ok().filter(same).map(|p| (s, p)));
            match peer.and_then(|(socket, peer)| members.watch(*conn, socket, peer, *number, epoll).ok()) {
                Some(()) => {}
                None => gone.push(*conn),
            }
        }
        let unknown: Vec<Key> = held.keys().filter(|key| matches!(key, Key::Conn(_))).copied().collect();
        for key in unknown {
            if let (Key::Conn(conn), Some(socket)) = (key, held.remove(&key)) {
                members.next = members.next.max(conn + 1);
                fresh.extend(members.admit(conn, socket, epoll));
            }
        }
        for conn in &gone {
            members.keep.give_up(Key::Conn(*conn));
        }
        Ok(Regained { members, gone, fresh })
    }

    /// Takes one connection in line. Ok(None): it was turned away; Err: there is none.
    pub fn accept(&mut self, epoll: &Epoll) -> Result<Option<Input>, PassError> {
        match fdpass::accept(self.listener.as_fd(), Some(Duration::ZERO)) {
            Ok(socket) => {
                let conn = self.next;
                self.next += 1;
                // At once: killed before this, the daemon takes the connection along.
                self.keep.put(Key::Conn(conn), &socket);
                Ok(self.admit(conn, socket, epoll))
            }
            Err(PassError::Refused(Errno::MFILE | Errno::NFILE)) => {
                self.spare = None;
                if let Ok(socket) = fdpass::accept(self.listener.as_fd(), Some(Duration::ZERO)) {
                    turn_away(&socket, Refusal::NoMemory);
                }
                self.spare = spare();
                Ok(None)
            }
            Err(why) => Err(why),
        }
    }

    fn admit(&mut self, conn: ConnId, socket: OwnedFd, epoll: &Epoll) -> Option<Input> {
        let admitted = self.try_admit(conn, socket, epoll);
        if admitted.is_none() {
            self.keep.give_up(Key::Conn(conn));
        }
        admitted
    }

    fn try_admit(&mut self, conn: ConnId, socket: OwnedFd, epoll: &Epoll) -> Option<Input> {
        let process = match PeerProcess::of(socket.as_fd()) {
            Ok(process) => process,
            Err(why) => {
                let at_limit = [Errno::MFILE, Errno::NFILE, Errno::NOMEM].map(PeerError::Refused);
                let refusal = if at_limit.contains(&why) { Refusal::NoMemory } else { Refusal::NotAllowed };
                turn_away(&socket, refusal);
                return None;
            }
        };
        let of_user = self.of_user.get(&process.uid).copied().unwrap_or(0);
        if self.open.len() >= CONNECTIONS_MAX || of_user >= CONNECTIONS_OF_USER_MAX {
            tracing::warn!(
                pid = process.pid,
                uid = process.uid,
                of_user,
                "connection refused: too many are open"
            );
            turn_away(&socket, Refusal::LimitReached);
            return None;
        }
        // A smaller buffer only bounds what a silent member can tie up.
        let _ = set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES);
        let who = Process { pid: process.pid, uid: process.uid, start_time: process.start_time };
        match self.watch(conn, socket, process, 0, epoll) {
            Ok(()) => Some(Input::Connected { conn, process: who }),
            Err(socket) => {
                turn_away(&socket, Refusal::NoMemory);
                None
            }
        }
    }

    fn watch(
        &mut self,
        conn: ConnId,
        socket: OwnedFd,
        process: PeerProcess,
        number: u64,
        epoll: &Epoll,
    ) -> Result<(), OwnedFd> {
        let watched = |kind| Token { kind, id: conn }.to_word();
        let ready = set_nonblocking(&socket)
            .and_then(|()| epoll.add(&socket, watched(Watched::Member), Readiness::READ))
            .and_then(|()| epoll.add(&process.pidfd, watched(Watched::MemberProcess), Readiness::READ));
        if ready.is_err() {
            return Err(socket);
        }
        *self.of_user.entry(process.uid).or_default() += 1;
        self.open.insert(conn, Member { socket, process, number, unconsumed: false });
        Ok(())
    }

    /// Reads one request and leaves it where it is, until [`Members::consume`]: should this daemon be killed in between, its
    /// successor finds it. `None`: there is none now. A connection that ended is closed, which is its last input.
    pub fn read(&mut self, conn: ConnId) -> Option<Input> {
        let member = self.open.get_mut(&conn)?;
        let mut bytes = [0; WORDS_BYTES + 1];
        let words = match fdpass::peek(&member.socket, &mut bytes) {
            Ok(len) if len > 0 => from_bytes(&bytes[..len]),
            Err(PassError::TimedOut) => return None,
            Ok(_) | Err(_) => return self.end(conn),
        };
        let number = words.map_or(0, |words| words[NUMBER]);
        member.number = number;
        member.unconsumed = true;
        let request = words.and_then(|words| Request::from_words(&words));
        let fresh = if matches!(request, Some(Request::BindOther { .. })) { random() } else { Some([0; 2]) };
        match fresh {
            Some(fresh) => Some(Input::Asked { conn, number, request, fresh }),
            // Without randomness there are no tokens, so nothing can be bound for another.
            None => self.end(conn),
        }
    }

    /// Takes away the request that was read.
    pub fn consume(&mut self, conn: ConnId) {
        if let Some(member) = self.open.get_mut(&conn) {
            member.consume();
        }
    }

    /// Answers. A member that does not read its answers, or is gone, is dropped.
    pub fn reply(
        &mut self,
        conn: ConnId,
        reply: Reply,
        fds: &[Descriptor],
        vault: &mut Vault,
    ) -> Option<Input> {
        let member = self.open.get(&conn)?;
        let (reply, fds) = without_lost_bells(reply, fds, vault);
        let found: Option<Vec<_>> = fds.iter().map(|fd| vault.find(*fd)).collect();
        let (mut words, fds) = match found {
            Some(fds) => (reply.to_words(), fds),
            None => (Reply::Refused(Refusal::NoMemory).to_words(), Vec::new()),
        };
        words[NUMBER] = member.number;
        let sent = send(&member.socket, &to_bytes(&words), &fds);
        if let Err(why) = sent {
            tracing::debug!(pid = member.process.pid, "connection dropped: {why}");
            return self.end(conn);
        }
        None
    }

    /// Drops a connection and says so.
    pub fn end(&mut self, conn: ConnId) -> Option<Input> {
        let mut gone = self.open.remove(&conn)?;
        // A socket that is closed with something unread in it takes the last answer along.
        gone.consume();
        self.keep.give_up(Key::Conn(conn));
        if let Some(count) = self.of_user.get_mut(&gone.process.uid) {
            *count -= 1;
        }
        Some(Input::Disconnected { conn })
    }
}

/// A bell that cannot be made only delays a wake-up: the rest of the answer is worth having without it.
fn without_lost_bells(reply: Reply, fds: &[Descriptor], vault: &mut Vault) -> (Reply, Vec<Descriptor>) {
    let (mut reply, mut fds) = (reply, fds.to_vec());
    let (Reply::Introduced(Introduction { rings, .. })
    | Reply::Moved(Introduction { rings, .. })
    | Reply::Rings { rings, .. }) = &mut reply
    else {
        return (reply, fds);
    };
    fds.retain(|fd| match fd {
        Descriptor::Ringer { .. } => {
            rings.theirs = vault.find(*fd).is_some();
            rings.theirs
        }
        Descriptor::Rung { .. } => {
            rings.ours = vault.find(*fd).is_some();
            rings.ours
        }
        Descriptor::Table(_)
        | Descriptor::Doorbells(_)
        | Descriptor::Segment { .. }
        | Descriptor::ProxyBell { .. } => true,
    });
    (reply, fds)
}

fn spare() -> Option<OwnedFd> {
    std::fs::File::open("/dev/null").ok().map(OwnedFd::from)
}

/// Refuses a connection, as far as it can be told without waiting.
fn turn_away(socket: &OwnedFd, why: Refusal) {
    if set_nonblocking(socket).is_ok() {
        let _ = send(socket, &to_bytes(&Reply::Refused(why).to_words()), &[]);
    }
}
