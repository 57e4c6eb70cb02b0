//! One node's end of the simulated network: what a courier drives.

use std::sync::Arc;

use abi::{Incarnation, NodeId};
use fabric::{Armed, Caps, Completion, Desc, Fabric, Piece, RegionKey, Time, Waiter};
use shm::map::Mapping;

use super::{Net, Shared, lock};

/// A [`Fabric`] over the simulated network. Dropping it ends its sessions, as the exit of a process does.
pub struct SimFabric {
    net: Shared,
    node: NodeId,
    life: u64,
}

impl SimFabric {
    /// Begins the next life of a node's end.
    pub fn enter(net: &Shared, node: NodeId, incarnation: Incarnation) -> SimFabric {
        let life = lock(net).enter(node, incarnation);
        SimFabric { net: Arc::clone(net), node, life }
    }

    fn act<T>(&self, otherwise: T, act: impl FnOnce(&mut Net, NodeId) -> T) -> T {
        let mut net = lock(&self.net);
        if net.port(self.node).life == self.life { act(&mut net, self.node) } else { otherwise }
    }
}

impl Fabric for SimFabric {
    fn caps(&self) -> Caps {
        lock(&self.net).caps()
    }

    fn attach(&mut self, map: &Arc<Mapping>) -> RegionKey {
        self.act(RegionKey(0), |net, at| net.port(at).regions.attach(map))
    }

    fn detach(&mut self, region: RegionKey) {
        self.act((), |net, at| net.port(at).regions.detach(region));
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

    fn poll(&mut self, now: Time, done: &mut Vec<Completion>) {
        lock(&self.net).advance(now);
        self.act((), |net, at| net.poll(at, done));
    }

    fn waiter(&self) -> Waiter<'_> {
        Waiter::MustPoll
    }

    fn arm(&mut self) -> Armed {
        self.act(Armed::Armed, |net, at| net.arm(at))
    }

    fn deadline(&self) -> Option<Time> {
        lock(&self.net).next_due()
    }

    fn fence(&mut self, peer: NodeId, incarnation: Incarnation) {
        self.act((), |net, at| net.fence(at, peer, incarnation));
    }
}

impl Drop for SimFabric {
    fn drop(&mut self) {
        self.act((), |net, at| net.leave(at));
    }
}
