//! Ends sessions of a fabric from outside, at both ends, while the sessions beneath go on standing.
//!
//! Key type: [`Breaker`]. After a break each end lets what is posted complete, refuses what is announced and throws away
//! what comes; then it tells that the session is lost. Neighbour: `switch` says when, and when both ends are through.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;

use abi::{Incarnation, NodeId};
use shm::os::events::{Epoll, EventFd, Readiness};

use super::switch::{Ready, Switch};
use crate::regions::fail_late;
use crate::{Armed, Completion, Desc, Fabric, Piece, RegionKey, Time, Waiter};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No session.
    Down,
    Up(u64),
    /// The session is broken; some of it has not completed.
    Ending(u64),
}

struct Peer {
    /// The incarnation at the other end of the session beneath, if there is one.
    beneath: Option<Incarnation>,
    phase: Phase,
    /// The driver knows of the session.
    told: bool,
    /// The break that was seen last.
    epoch: u64,
    /// Since the session beneath began: descriptors taken, messages come.
    sent: u64,
    came: u64,
    outstanding: usize,
    announced: Vec<u64>,
    accepted: usize,
}

pub(super) struct Breaker<F> {
    pub inner: F,
    node: NodeId,
    switch: Switch,
    peers: BTreeMap<NodeId, Peer>,
    /// Descriptors whose completion the driver has not been told.
    posted: BTreeMap<NodeId, usize>,
    sessions: u64,
    ready: VecDeque<Completion>,
    scratch: Vec<Completion>,
    /// Buffers to post again beneath.
    unposted: Vec<Piece>,
    version: u64,
    /// Both the waiter beneath and the switch's bell, where one can sleep at all.
    sleep: Option<(Epoll, Arc<EventFd>)>,
}

impl<F: Fabric> Breaker<F> {
    pub fn new(inner: F, node: NodeId, switch: &Switch) -> Breaker<F> {
        let sleep = match inner.waiter() {
            Waiter::MustPoll => None,
            Waiter::Fd(fd) => {
                let epoll = Epoll::new().expect("an epoll");
                let bell = Arc::new(EventFd::new().expect("an event descriptor"));
                epoll.add(fd, 0, Readiness::READ).expect("a waiter that can be waited for");
                epoll.add(&*bell, 1, Readiness::READ).expect("an event descriptor that can be waited for");
                switch.hang(node, Arc::clone(&bell));
                Some((epoll, bell))
            }
        };
        Breaker {
            inner,
            node,
            switch: switch.clone(),
            peers: BTreeMap::new(),
            posted: BTreeMap::new(),
            sessions: 0,
            ready: VecDeque::new(),
            scratch: Vec::with_capacity(64),
            unposted: Vec::new(),
            version: 0,
            sleep,
        }
    }

    /// There is a session that the driver knows of and that is not broken.
    pub fn is_up(&self, peer: NodeId) -> bool {
        let Some(p) = self.peers.get(&peer) else { return false };
        matches!(p.phase, Phase::Up(_)) && p.told && self.switch.look(self.node, peer).epoch == p.epoch
    }

    pub fn post_send(&mut self, peer: NodeId, batch: &[Desc<'_>]) -> usize {
        if !self.is_up(peer) {
            return 0;
        }
        let posted = self.posted.entry(peer).or_default();
        let room = self.inner.caps().posted_max - *posted;
        let taken = self.inner.post_send(peer, &batch[..batch.len().min(room)]);
        *posted += taken;
        if let Some(p) = self.peers.get_mut(&peer) {
            p.sent += taken as u64;
            p.outstanding += taken;
        }
        taken
    }

    /// The session is broken, and these went with it, as many as there was room for.
    pub fn lose(&mut self, peer: NodeId, batch: &[Desc<'_>]) -> usize {
        let posted = self.posted.entry(peer).or_default();
        let lost = batch.len().min(self.inner.caps().posted_max - *posted);
        *posted += lost;
        self.ready.extend(batch[..lost].iter().map(|desc| Completion::Failed { peer, token: desc.token }));
        self.switch.flap(self.node, peer);
        lost
    }

    pub fn detach(&mut self, region: RegionKey) {
        self.inner.detach(region);
    }

    pub fn accept(&mut self, peer: NodeId, token: u64, into: Piece) {
        let known = self.peers.get_mut(&peer).and_then(|p| {
            let at = p.announced.iter().position(|t| *t == token)?;
            p.announced.swap_remove(at);
            p.accepted += 1;
            Some(())
        });
        match known {
            Some(()) => self.inner.accept(peer, token, into),
            None => fail_late(&mut self.ready, peer, token, into),
        }
    }

    pub fn refuse(&mut self, peer: NodeId, token: u64) {
        let Some(p) = self.peers.get_mut(&peer) else { return };
        if let Some(at) = p.announced.iter().position(|t| *t == token) {
            p.announced.swap_remove(at);
            self.inner.refuse(peer, token);
        }
    }

    pub fn poll(&mut self, now: Time, done: &mut Vec<Completion>) {
        if let Some((_, bell)) = &self.sleep {
            // What rings after this changes the version after it is read.
            let _ = bell.clear();
        }
        self.version = self.switch.version();
        self.look_at_switch();
        let room = (done.capacity() - done.len()).max(1);
        if self.ready.len() < room {
            let mut scratch = std::mem::take(&mut self.scratch);
            self.inner.poll(now, &mut scratch);
            scratch.drain(..).for_each(|completion| self.handle(completion));
            self.scratch = scratch;
            self.look_at_switch();
        }
        if !self.unposted.is_empty() {
            let taken = self.inner.post_recv(&self.unposted);
            self.unposted.drain(..taken);
        }
        for _ in 0..room {
            let Some(completion) = self.ready.pop_front() else { break };
            match completion {
                Completion::Sent { peer, .. } | Completion::Failed { peer, .. } => {
                    self.posted.entry(peer).and_modify(|posted| *posted -= 1);
                }
                Completion::Up { peer, session, .. } => {
                    let p = self.peers.get_mut(&peer).filter(|p| p.phase == Phase::Up(session));
                    p.into_iter().for_each(|p| p.told = true);
                }
                _ => {}
            }
            done.push(completion);
        }
    }

    pub fn waiter(&self) -> Waiter<'_> {
        match &self.sleep {
            Some((epoll, _)) => Waiter::Fd(epoll.as_fd()),
            None => Waiter::MustPoll,
        }
    }

    pub fn arm(&mut self) -> Armed {
        let changed = self.version != self.switch.version();
        if changed || !self.ready.is_empty() || !self.unposted.is_empty() {
            return Armed::MoreToDo;
        }
        self.inner.arm()
    }

    fn look_at_switch(&mut self) {
        let peers: Vec<NodeId> = self.peers.keys().copied().collect();
        peers.into_iter().for_each(|peer| self.look_at(peer));
    }

    /// Takes up a break, ends what can end, begins what can begin.
    fn look_at(&mut self, peer: NodeId) {
        let pair = self.switch.look(self.node, peer);
        let Some(p) = self.peers.get_mut(&peer) else { return };
        if pair.epoch != p.epoch {
            p.epoch = pair.epoch;
            match p.phase {
                Phase::Up(session) => {
                    p.phase = Phase::Ending(session);
                    std::mem::take(&mut p.announced)
                        .into_iter()
                        .for_each(|token| self.inner.refuse(peer, token));
                }
                Phase::Down if p.beneath.is_some() => self.say_ready(peer),
                Phase::Down | Phase::Ending(_) => {}
            }
        }
        let Some(p) = self.peers.get_mut(&peer) else { return };
        if let Phase::Ending(session) = p.phase
            && p.outstanding == 0
            && p.accepted == 0
        {
            p.phase = Phase::Down;
            p.told = false;
            self.ready.push_back(Completion::Lost { peer, session });
            self.say_ready(peer);
        }
        self.begin(peer);
    }

    fn say_ready(&mut self, peer: NodeId) {
        let Some(p) = self.peers.get(&peer) else { return };
        self.switch.say(self.node, peer, Some(Ready { epoch: p.epoch, sent: p.sent }));
    }

    /// A session begins when both ends are through with the old one and nothing of it is under way.
    fn begin(&mut self, peer: NodeId) {
        let pair = self.switch.look(self.node, peer);
        let Some(p) = self.peers.get_mut(&peer) else { return };
        let Some(incarnation) = p.beneath.filter(|_| p.phase == Phase::Down && !pair.cut) else { return };
        let other = Ready { epoch: p.epoch, sent: p.came };
        if p.epoch != pair.epoch || pair.other(self.node, peer) != Some(other) {
            return;
        }
        self.sessions += 1;
        p.phase = Phase::Up(self.sessions);
        self.ready.push_back(Completion::Up { peer, session: self.sessions, incarnation });
    }

    fn handle(&mut self, completion: Completion) {
        match completion {
            Completion::Up { peer, incarnation, .. } => self.begin_beneath(peer, incarnation),
            Completion::Lost { peer, .. } => self.end_beneath(peer),
            Completion::Sent { peer, .. } | Completion::Failed { peer, .. } => {
                if let Some(p) = self.peers.get_mut(&peer) {
                    p.outstanding -= 1;
                }
                self.ready.push_back(completion);
            }
            Completion::Received { peer, buffer, .. } => {
                if self.is_for_driver(peer) {
                    self.ready.push_back(completion);
                } else {
                    self.unposted.push(buffer);
                }
            }
            Completion::Announced { peer, token, buffer, .. } => {
                if self.is_for_driver(peer) {
                    if let Some(p) = self.peers.get_mut(&peer) {
                        p.announced.push(token);
                    }
                    self.ready.push_back(completion);
                } else {
                    self.unposted.push(buffer);
                    self.inner.refuse(peer, token);
                }
            }
            Completion::BulkReceived { peer, token, into } | Completion::BulkFailed { peer, token, into } => {
                let Some(p) = self.peers.get_mut(&peer) else { return };
                p.accepted -= 1;
                let whole =
                    matches!(p.phase, Phase::Up(_)) && matches!(completion, Completion::BulkReceived { .. });
                let failed = Completion::BulkFailed { peer, token, into };
                self.ready.push_back(if whole { completion } else { failed });
            }
            Completion::Trouble { .. } => self.ready.push_back(completion),
        }
    }

    /// A message came; whether it is of the standing session.
    fn is_for_driver(&mut self, peer: NodeId) -> bool {
        self.look_at(peer);
        let Some(p) = self.peers.get_mut(&peer) else { return false };
        p.came += 1;
        matches!(p.phase, Phase::Up(_))
    }

    fn begin_beneath(&mut self, peer: NodeId, incarnation: Incarnation) {
        let epoch = self.switch.look(self.node, peer).epoch;
        let p = Peer {
            beneath: Some(incarnation),
            phase: Phase::Down,
            told: false,
            epoch,
            sent: 0,
            came: 0,
            outstanding: 0,
            announced: Vec::new(),
            accepted: 0,
        };
        self.peers.insert(peer, p);
        self.say_ready(peer);
        self.begin(peer);
    }

    fn end_beneath(&mut self, peer: NodeId) {
        let Some(p) = self.peers.get_mut(&peer) else { return };
        p.beneath = None;
        p.told = false;
        p.announced.clear();
        if let Phase::Up(session) | Phase::Ending(session) = p.phase {
            p.phase = Phase::Down;
            self.ready.push_back(Completion::Lost { peer, session });
        }
        self.switch.say(self.node, peer, None);
    }
}

impl<F> Drop for Breaker<F> {
    fn drop(&mut self) {
        self.peers.keys().for_each(|peer| self.switch.say(self.node, *peer, None));
    }
}
