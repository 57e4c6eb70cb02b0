//! A fabric in one process: several nodes joined by memory, for tests and the simulator.
//!
//! Key types: [`Loopback`], one node's end; [`Wire`], the handle that cuts, heals and restarts. Nothing moves but in
//! `poll` and `accept`; there is no clock and no randomness, so that a simulator that polls in the same order sees the
//! same. Each end may be polled by a thread of its own. Neighbours: `net` is the core, `conformance` its judge.

mod bulk;
mod net;
mod ways;

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use abi::{Incarnation, NodeId};
use shm::map::Mapping;
use shm::os::events::EventFd;

use crate::{Armed, Caps, Completion, Desc, Fabric, Piece, RegionKey, Time, Waiter};
use net::Net;

/// Which kind of wire the loopback behaves like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Like a byte stream: `Sent` when the bytes are on their way; bulk bytes are pushed by their sender, bit by bit.
    Eager,
    /// Like a one-sided, announcing device: `Sent` when the receiver has it; bulk bytes are read by their receiver out of
    /// the sender's region at once, and bulk completions come in another order than the posting.
    OneSided,
}

struct Shared {
    net: Mutex<Net>,
    /// One for each node, or none where drivers must poll.
    bells: Vec<EventFd>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Net> {
        self.net.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the network and wakes whom it concerns.
    fn with<T>(&self, act: impl FnOnce(&mut Net) -> T) -> T {
        let mut net = self.lock();
        let result = act(&mut net);
        while let Some(at) = net.rung.pop() {
            if let Some(bell) = self.bells.get(at) {
                // A full or broken eventfd is readable, which is all a ring is for.
                let _ = bell.ring();
            }
        }
        result
    }
}

/// One node's end of a network in memory. Dropping it ends its sessions, as the exit of a process does.
pub struct Loopback {
    shared: Arc<Shared>,
    at: usize,
    life: u32,
}

impl Loopback {
    /// The ends of `nodes`, all connected with one another, with an eventfd each to sleep on.
    ///
    /// # Panics
    /// If the system has no descriptors left, or a node is named twice.
    pub fn network(nodes: &[NodeId], mode: Mode) -> Vec<Loopback> {
        let bell = |_: &NodeId| EventFd::new().expect("an event descriptor");
        Loopback::join(nodes, mode, nodes.iter().map(bell).collect())
    }

    /// The same without any system call: its waiter is [`Waiter::MustPoll`].
    pub fn network_to_poll(nodes: &[NodeId], mode: Mode) -> Vec<Loopback> {
        Loopback::join(nodes, mode, Vec::new())
    }

    fn join(nodes: &[NodeId], mode: Mode, bells: Vec<EventFd>) -> Vec<Loopback> {
        let shared = Arc::new(Shared { net: Mutex::new(Net::new(nodes, mode)), bells });
        (0..nodes.len()).map(|at| Loopback { shared: Arc::clone(&shared), at, life: 0 }).collect()
    }

    /// The handle on the whole network.
    pub fn wire(&self) -> Wire {
        Wire { shared: Arc::clone(&self.shared) }
    }

    /// Which node this is the end of.
    pub fn node(&self) -> NodeId {
        self.shared.lock().nodes[self.at].id
    }

    /// Acts as this node, unless another life of it has taken over.
    fn act<T>(&self, otherwise: T, act: impl FnOnce(&mut Net, usize) -> T) -> T {
        self.shared
            .with(|net| if net.nodes[self.at].life == self.life { act(net, self.at) } else { otherwise })
    }
}

impl Fabric for Loopback {
    fn caps(&self) -> Caps {
        self.shared.lock().caps()
    }

    fn attach(&mut self, map: &Arc<Mapping>) -> RegionKey {
        self.act(RegionKey(0), |net, at| net.nodes[at].regions.attach(map))
    }

    fn detach(&mut self, region: RegionKey) {
        self.act((), |net, at| net.nodes[at].regions.detach(region));
    }

    fn post_send(&mut self, peer: NodeId, batch: &[Desc<'_>]) -> usize {
        self.act(0, |net, at| net.post_send(at, peer, batch))
    }

    fn post_recv(&mut self, free: &[Piece]) -> usize {
        self.act(0, |net, at| net.post_recv(at, free))
    }

    fn accept(&mut self, peer: NodeId, token: u64, into: Piece) {
        self.act((), |net, at| net.accept(at, peer, token, into));
    }

    fn refuse(&mut self, peer: NodeId, token: u64) {
        self.act((), |net, at| net.refuse(at, peer, token));
    }

    fn poll(&mut self, _now: Time, done: &mut Vec<Completion>) {
        if let Some(bell) = self.shared.bells.get(self.at) {
            let armed = self.act(false, |net, at| std::mem::take(&mut net.nodes[at].told_to_ring));
            if armed {
                // What rings after this is seen below or by the next `arm`.
                let _ = bell.clear();
            }
        }
        self.act((), |net, at| net.poll(at, done));
    }

    fn waiter(&self) -> Waiter<'_> {
        match self.shared.bells.get(self.at) {
            Some(bell) => Waiter::Fd(bell.as_fd()),
            None => Waiter::MustPoll,
        }
    }

    fn arm(&mut self) -> Armed {
        self.act(Armed::Armed, |net, at| net.arm(at))
    }

    fn deadline(&self) -> Option<Time> {
        None
    }

    fn fence(&mut self, peer: NodeId, incarnation: Incarnation) {
        self.act((), |net, at| net.fence(at, peer, incarnation));
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.act((), |net, at| net.leave(at));
    }
}

/// The wires of a [`Loopback`] network in one hand.
#[derive(Clone)]
pub struct Wire {
    shared: Arc<Shared>,
}

impl Wire {
    /// Ends the session between two nodes and lets none come about.
    ///
    /// # Panics
    /// Here and below: if a node is not of this network.
    pub fn cut(&self, one: NodeId, other: NodeId) {
        self.shared.with(|net| net.cut(one, other));
    }

    /// Lets two nodes have a session again.
    pub fn heal(&self, one: NodeId, other: NodeId) {
        self.shared.with(|net| net.heal(one, other));
    }

    /// Ends the session between two nodes; a new one comes about at once.
    pub fn flap(&self, one: NodeId, other: NodeId) {
        self.cut(one, other);
        self.heal(one, other);
    }

    /// Ends this life of a node and begins the next, with a new incarnation and nothing attached or posted. The old end,
    /// if it still exists, does nothing any more.
    pub fn restart(&self, node: NodeId) -> Loopback {
        let (at, life) = self.shared.with(|net| net.restart(node));
        Loopback { shared: Arc::clone(&self.shared), at, life }
    }

    /// Which life of the node the others see.
    pub fn incarnation(&self, node: NodeId) -> Incarnation {
        let net = self.shared.lock();
        net.nodes[net.place(node)].incarnation
    }
}
