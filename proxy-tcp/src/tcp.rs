//! The fabric: links, the listener, the connections that are not trusted yet, and the epoll that watches them all.
//!
//! Key type: [`TcpFabric`]. Between two nodes there is one connection, which the lower node opens. Nothing is read,
//! written or timed but within a call of [`fabric::Fabric`] (`seam`); time is what `poll` is told. Neighbours: `link`,
//! `session`, `half`.

mod seam;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use abi::courier::LinkState;
use abi::limits::NODES_MAX;
use abi::{Incarnation, NodeId};
use fabric::{Completion, Time};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use shm::os::events::{Epoll, Readiness};

use crate::commons::Commons;
use crate::config::{TcpConfig, TcpError};
use crate::half::{Half, PENDING_MAX, Progress};
use crate::handshake::{NO_KEY, Own};
use crate::key;
use crate::link::Link;
use crate::pack::OFFER_LZ4;
use crate::session::Session;

const KIND_BITS: u32 = 32;
const LISTENER: u64 = 0;
const PENDING: u64 = 1 << KIND_BITS;
const DIAL: u64 = 2 << KIND_BITS;
const SESSION: u64 = 3 << KIND_BITS;
/// Connections accepted in one turn.
const ACCEPTS_MAX: usize = 16;
/// How long to leave the listener alone when there are no descriptors.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A [`fabric::Fabric`] over kernel TCP.
pub struct TcpFabric {
    own: Own,
    link_down_after: Duration,
    heartbeat_every: Duration,
    address: SocketAddr,
    listener: TcpListener,
    /// Set while the listener is left alone.
    accept_at: Option<Time>,
    epoll: Epoll,
    links: Vec<Link>,
    /// Index of a node's link, by node id.
    index: Vec<Option<u16>>,
    /// Accepted, and not proven.
    pending: Vec<Option<Half>>,
    commons: Commons,
    sessions: u64,
    events: Vec<(u64, Readiness)>,
    /// Nothing is due before this.
    due: Time,
    /// Some session may have ended or stalled.
    uneasy: bool,
    /// The epoll may tell of more than some session waits for.
    loose: bool,
}

impl TcpFabric {
    /// Listens, and begins to connect at the first `poll`.
    pub fn new(config: TcpConfig, now: Time) -> Result<TcpFabric, TcpError> {
        config.check()?;
        let address = config.listen;
        let listener = TcpListener::bind(address).map_err(|source| match source.kind() {
            ErrorKind::AddrInUse => TcpError::InUse { address },
            _ => TcpError::Listen { address, source },
        })?;
        TcpFabric::with_listener(config, listener, now)
    }

    /// The same with a listener that exists: one that outlives this process, or has a port of the system's choice.
    pub fn with_listener(config: TcpConfig, listener: TcpListener, now: Time) -> Result<TcpFabric, TcpError> {
        config.check()?;
        let address = config.listen;
        let prepared = listener.set_nonblocking(true).and_then(|()| listener.local_addr());
        let address = prepared.map_err(|source| TcpError::Listen { address, source })?;
        if config.key.is_none() && !address.ip().is_loopback() {
            return Err(TcpError::NoKey { address });
        }
        let descriptors = |errno: Errno| TcpError::Descriptors { source: errno.into() };
        let epoll = Epoll::new().map_err(descriptors)?;
        epoll.add(&listener, LISTENER, Readiness::READ).map_err(descriptors)?;
        let links = |(peer, address): &(NodeId, SocketAddr)| Link::new(config.node, *peer, *address, now);
        let links: Vec<Link> = config.peers.iter().map(links).collect();
        let mut index = vec![None; NODES_MAX as usize + 1];
        for (i, link) in links.iter().enumerate() {
            index[link.peer.0 as usize] = Some(i as u16);
        }
        let key = config.key.as_ref().map_or(NO_KEY, |key| *key.as_bytes());
        Ok(TcpFabric {
            own: Own {
                node: config.node,
                incarnation: config.incarnation,
                key,
                offers: config.packing.offer() | config.offers & !OFFER_LZ4,
            },
            link_down_after: config.link_down_after,
            heartbeat_every: config.heartbeat_every,
            address,
            listener,
            accept_at: None,
            epoll,
            links,
            index,
            pending: (0..PENDING_MAX).map(|_| None).collect(),
            commons: Commons::new(now),
            sessions: 0,
            events: Vec::with_capacity(shm::os::events::EVENTS_MAX),
            due: now,
            uneasy: false,
            loose: false,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What both ends of a session have offered ([`TcpConfig::offers`]); nothing once it has ended.
    pub fn agreed(&self, peer: NodeId, session: u64) -> u64 {
        let there = self.find(peer).and_then(|i| self.links[i].session.as_ref());
        there.filter(|there| there.number == session).map_or(0, |there| there.offers)
    }

    /// Ends the session with a node; another follows. For who carries over it and finds that it should not go on.
    pub fn end_session(&mut self, peer: NodeId) {
        if let Some(i) = self.find(peer) {
            self.end(i);
        }
    }

    fn find(&self, peer: NodeId) -> Option<usize> {
        self.index.get(peer.0 as usize).copied().flatten().map(usize::from)
    }

    /// Looks at all that is ready, once.
    fn work(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        // An epoll that fails is an epoll without events: the timers will tell.
        let _ = self.epoll.wait(&mut events, Some(Duration::ZERO));
        for (token, readiness) in events.drain(..) {
            let i = (token & ((1 << KIND_BITS) - 1)) as usize;
            match token & !((1 << KIND_BITS) - 1) {
                LISTENER => self.accept_some(),
                PENDING => self.advance_pending(i),
                DIAL => self.advance_dial(i),
                _ => self.serve(i, readiness),
            }
        }
        self.events = events;
        if std::mem::take(&mut self.uneasy) {
            (0..self.links.len()).for_each(|i| self.settle(i));
        }
        if self.commons.now >= self.due {
            self.tick();
        }
    }

    fn serve(&mut self, i: usize, readiness: Readiness) {
        let Some(session) = &mut self.links[i].session else { return };
        if readiness.readable || readiness.hung_up {
            session.receive(&mut self.commons);
        }
        if readiness.hung_up {
            session.hung_up();
        }
        if readiness.writable {
            session.flush(&mut self.commons);
        }
        self.watch(i);
    }

    /// After work on a session: what it waits for now.
    fn watch(&mut self, i: usize) {
        let Some(session) = &mut self.links[i].session else { return };
        session.watch(&self.epoll, SESSION | i as u64);
        self.uneasy |= session.ended.is_some() || session.is_stalled();
        self.loose |= session.is_watched_loosely();
    }

    /// Before sleeping: has the epoll tell of what is waited for, and of nothing else.
    fn watch_exactly(&mut self) {
        for (i, link) in self.links.iter_mut().enumerate() {
            let Some(session) = &mut link.session else { continue };
            session.watch_exactly(&self.epoll, SESSION | i as u64);
            self.uneasy |= session.ended.is_some();
            self.loose |= session.is_watched_loosely();
        }
    }

    /// Goes on with a session that stalled, ends one that broke.
    fn settle(&mut self, i: usize) {
        let Some(session) = &mut self.links[i].session else { return };
        if session.may_resume(&self.commons) {
            session.resume(&mut self.commons);
        }
        self.watch(i);
        if self.links[i].session.as_ref().is_some_and(|s| s.ended.is_some()) {
            self.end(i);
        }
    }

    fn end(&mut self, i: usize) {
        self.links[i].end(self.own.node, &mut self.commons);
        self.due = Time::ZERO;
    }

    fn accept_some(&mut self) {
        for _ in 0..ACCEPTS_MAX {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e)
                    if matches!(
                        Errno::from_io_error(&e),
                        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM)
                    ) =>
                {
                    tracing::warn!(error = %e, "cannot accept connections for now");
                    let _ = self.epoll.modify(&self.listener, LISTENER, Readiness::NONE);
                    self.accept_at = Some(self.commons.now + ACCEPT_AGAIN_AFTER);
                    self.due = Time::ZERO;
                    return;
                }
                // Of a connection that broke before it was accepted.
                Err(_) => continue,
            };
            self.greet(stream);
        }
    }

    fn greet(&mut self, stream: TcpStream) {
        let vacant = self.pending.iter().position(Option::is_none);
        let oldest = || {
            let deadline = |i: &usize| self.pending[*i].as_ref().map_or(Time::MAX, |half| half.deadline);
            (0..PENDING_MAX).min_by_key(deadline)
        };
        let Some(i) = vacant.or_else(oldest) else { return };
        let prepared = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
        let Ok(nonce) = prepared.and_then(|()| key::random()) else { return };
        if self.epoll.add(&stream, PENDING | i as u64, Readiness::READ).is_err() {
            return;
        }
        self.pending[i] = Some(Half::accepted(stream, nonce, self.commons.now));
        self.due = Time::ZERO;
    }

    fn advance_pending(&mut self, i: usize) {
        let Some(mut half) = self.pending[i].take() else { return };
        let (own, links, index) = (&self.own, &self.links, &self.index);
        let floor = |node: NodeId| {
            let link = &links[index.get(node.0 as usize).copied().flatten()? as usize];
            (!link.dials).then_some(link.floor)
        };
        match half.advance(own, &floor) {
            Progress::Waits => self.pending[i] = Some(half),
            Progress::Stands { peer, incarnation, offers } => self.stand(half, peer, incarnation, offers),
            Progress::Ended { peer, state } => {
                let known = peer.and_then(|peer| self.find(peer)).filter(|i| !self.links[*i].dials);
                if let (Some(i), Some(state)) = (known, state) {
                    self.trouble(i, state);
                }
            }
        }
    }

    fn trouble(&mut self, i: usize, state: LinkState) {
        self.links[i].trouble(state, &mut self.commons);
    }

    fn advance_dial(&mut self, i: usize) {
        let Some(mut half) = self.links[i].dial.take() else { return };
        let dialling = half.is_dialling();
        let (peer, lowest) = (self.links[i].peer, self.links[i].floor);
        match half.advance(&self.own, &|node| (node == peer).then_some(lowest)) {
            Progress::Waits => {
                let heard =
                    !dialling || self.epoll.modify(half.stream(), DIAL | i as u64, Readiness::READ).is_ok();
                if heard {
                    self.links[i].dial = Some(half);
                } else {
                    self.dial_failed(i);
                }
            }
            Progress::Stands { peer, incarnation, offers } => self.stand(half, peer, incarnation, offers),
            Progress::Ended { state, .. } => {
                self.dial_failed(i);
                if let Some(state) = state {
                    self.trouble(i, state);
                }
            }
        }
    }

    fn dial_failed(&mut self, i: usize) {
        self.links[i].dial_failed(self.own.node, self.commons.now);
        self.due = Time::ZERO;
    }

    /// A proven connection: it takes the place of an earlier one, which the peer must have given up.
    fn stand(&mut self, half: Half, peer: NodeId, incarnation: Incarnation, offers: u64) {
        let Some(i) = self.find(peer) else { return };
        self.end(i);
        let (stream, rest) = half.into_parts();
        if self.epoll.modify(&stream, SESSION | i as u64, Readiness::READ).is_err() {
            return self.dial_failed(i);
        }
        self.sessions += 1;
        let now = self.commons.now;
        let mut session = Session::new(stream, peer, incarnation, self.sessions, &rest, now, offers);
        self.commons.ready.push_back(Completion::Up { peer, session: self.sessions, incarnation });
        session.resume(&mut self.commons);
        self.links[i].stands(session);
        self.watch(i);
        self.due = Time::ZERO;
    }

    fn dial(&mut self, i: usize) {
        let link = &self.links[i];
        let half = connect(link.address).and_then(|stream| {
            self.epoll.add(&stream, DIAL | i as u64, Readiness::WRITE)?;
            Ok(Half::dialled(stream, &self.own, link.peer, key::random()?, self.commons.now))
        });
        match half {
            Ok(half) => self.links[i].dial = Some(half),
            Err(_) => self.links[i].dial_failed(self.own.node, self.commons.now),
        }
    }

    /// Does what is due, and finds out when something will be.
    fn tick(&mut self) {
        let now = self.commons.now;
        if self.accept_at.is_some_and(|at| now >= at) {
            self.accept_at = None;
            let _ = self.epoll.modify(&self.listener, LISTENER, Readiness::READ);
        }
        for half in &mut self.pending {
            half.take_if(|half| now >= half.deadline);
        }
        let mut due = self.accept_at.unwrap_or(Time::MAX);
        due = self.pending.iter().flatten().map(|half| half.deadline).fold(due, Time::min);
        for i in 0..self.links.len() {
            due = due.min(self.tick_link(i, now));
        }
        self.due = due;
    }

    fn tick_link(&mut self, i: usize, now: Time) -> Time {
        if let Some(at) = self.tick_session(i, now) {
            return at;
        }
        let link = &mut self.links[i];
        if link.dial.as_ref().is_some_and(|half| now >= half.deadline) {
            link.dial_failed(self.own.node, now);
        }
        if link.dials && link.dial.is_none() && now >= link.dial_at {
            self.dial(i);
        }
        if self.links[i].cut_at(self.link_down_after).is_some_and(|at| now >= at) {
            self.trouble(i, LinkState::Cut);
        }
        let link = &self.links[i];
        let dial_at =
            link.dial.as_ref().map_or(if link.dials { link.dial_at } else { Time::MAX }, |d| d.deadline);
        dial_at.min(link.cut_at(self.link_down_after).unwrap_or(Time::MAX))
    }

    /// When the session of a link has something due; `None`: it has no session.
    fn tick_session(&mut self, i: usize, now: Time) -> Option<Time> {
        let session = self.links[i].session.as_mut()?;
        if now >= session.heard + self.link_down_after {
            // It may be we who were not at work: look before judging.
            session.receive(&mut self.commons);
            if session.is_stalled() {
                session.heard = now;
            }
            if session.ended.is_some() || now >= session.heard + self.link_down_after {
                self.end(i);
                return None;
            }
        }
        let session = self.links[i].session.as_mut()?;
        if now >= session.said + self.heartbeat_every {
            session.heartbeat(&mut self.commons);
        }
        self.watch(i);
        if self.links[i].session.as_ref().is_some_and(|s| s.ended.is_some()) {
            self.end(i);
            return None;
        }
        let session = self.links[i].session.as_ref()?;
        Some((session.heard + self.link_down_after).min(session.said + self.heartbeat_every))
    }

    fn tell(&mut self, done: &mut Vec<Completion>) {
        let room = (done.capacity() - done.len()).max(1);
        for _ in 0..room {
            let Some(completion) = self.commons.ready.pop_front() else { break };
            match completion {
                Completion::Sent { peer, .. } | Completion::Failed { peer, .. } => {
                    let i = self.find(peer);
                    i.into_iter().for_each(|i| self.links[i].posted -= 1);
                }
                Completion::Up { peer, session, .. } => self.told(peer, session),
                _ => {}
            }
            done.push(completion);
        }
    }

    /// The driver knows of a session, so that it may post.
    fn told(&mut self, peer: NodeId, number: u64) {
        let link = self.find(peer).and_then(|i| self.links[i].session.as_mut());
        if let Some(session) = link.filter(|session| session.number == number) {
            session.told = true;
        }
    }
}

/// A connection under way.
fn connect(address: SocketAddr) -> Result<TcpStream, std::io::Error> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}
