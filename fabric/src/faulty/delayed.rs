//! A fabric whose completions come late: each after a time of its own, in their order for each peer.
//!
//! Key type: [`Delayed`]. It holds completions back and nothing else, so what it conserves is what it wraps conserves.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use abi::{Incarnation, NodeId};
use shm::map::Mapping;

use super::Dice;
use crate::regions::fail_late;
use crate::{Armed, Caps, Completion, Desc, Fabric, Piece, RegionKey, Time, Waiter};

#[derive(Default)]
struct Held {
    /// When each may go at the earliest, and what; none goes before those in front of it.
    times: VecDeque<Time>,
    completions: VecDeque<Completion>,
    /// The driver was told of the session that stands.
    up: bool,
    /// Descriptors whose completion the driver has not been told.
    posted: usize,
}

/// Holds completions back for up to a given time.
pub struct Delayed<F> {
    inner: F,
    dice: Dice,
    most: Duration,
    peers: BTreeMap<NodeId, Held>,
    scratch: Vec<Completion>,
    now: Time,
}

fn peer_of(completion: &Completion) -> NodeId {
    match *completion {
        Completion::Sent { peer, .. }
        | Completion::Failed { peer, .. }
        | Completion::Received { peer, .. }
        | Completion::Announced { peer, .. }
        | Completion::BulkReceived { peer, .. }
        | Completion::BulkFailed { peer, .. }
        | Completion::Up { peer, .. }
        | Completion::Lost { peer, .. }
        | Completion::Trouble { peer, .. } => peer,
    }
}

impl<F: Fabric> Delayed<F> {
    pub fn new(inner: F, seed: u64, most: Duration) -> Delayed<F> {
        let scratch = Vec::with_capacity(64);
        Delayed { inner, dice: Dice::new(seed), most, peers: BTreeMap::new(), scratch, now: Time::ZERO }
    }

    fn hold(&mut self, completion: Completion) {
        let delay = Duration::from_nanos(self.dice.up_to(self.most.as_nanos().min(u64::MAX as u128) as u64));
        let held = self.peers.entry(peer_of(&completion)).or_default();
        held.times.push_back(self.now + delay);
        held.completions.push_back(completion);
    }

    fn first_due(&self) -> Option<Time> {
        self.peers.values().filter_map(|held| held.times.front().copied()).min()
    }

    /// A session that has ended beneath, which the driver has not been told.
    fn is_ending(&self, peer: NodeId) -> bool {
        let lost = |c: &Completion| matches!(c, Completion::Lost { .. });
        self.peers.get(&peer).is_some_and(|held| held.completions.iter().any(lost))
    }
}

impl<F: Fabric> Fabric for Delayed<F> {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn attach(&mut self, map: &Arc<Mapping>) -> RegionKey {
        self.inner.attach(map)
    }

    fn detach(&mut self, region: RegionKey) {
        self.inner.detach(region);
    }

    fn post_send(&mut self, peer: NodeId, batch: &[Desc<'_>]) -> usize {
        if self.is_ending(peer) {
            return 0;
        }
        let Some(held) = self.peers.get_mut(&peer).filter(|held| held.up) else { return 0 };
        let room = self.inner.caps().posted_max - held.posted;
        let taken = self.inner.post_send(peer, &batch[..batch.len().min(room)]);
        held.posted += taken;
        taken
    }

    fn post_recv(&mut self, free: &[Piece]) -> usize {
        self.inner.post_recv(free)
    }

    fn accept(&mut self, peer: NodeId, token: u64, into: Piece) {
        if !self.is_ending(peer) {
            return self.inner.accept(peer, token, into);
        }
        let held = self.peers.entry(peer).or_default();
        fail_late(&mut held.completions, peer, token, into);
        // One more time, so that the last completion keeps one.
        held.times.push_back(self.now);
    }

    fn refuse(&mut self, peer: NodeId, token: u64) {
        self.inner.refuse(peer, token);
    }

    fn poll(&mut self, now: Time, done: &mut Vec<Completion>) {
        self.now = now;
        let mut scratch = std::mem::take(&mut self.scratch);
        self.inner.poll(now, &mut scratch);
        scratch.drain(..).for_each(|completion| self.hold(completion));
        self.scratch = scratch;
        let mut room = (done.capacity() - done.len()).max(1);
        for held in self.peers.values_mut() {
            while room > 0 && held.times.front().is_some_and(|at| *at <= now) {
                held.times.pop_front();
                let Some(completion) = held.completions.pop_front() else { break };
                match completion {
                    Completion::Up { .. } => held.up = true,
                    Completion::Lost { .. } => held.up = false,
                    Completion::Sent { .. } | Completion::Failed { .. } => held.posted -= 1,
                    _ => {}
                }
                done.push(completion);
                room -= 1;
            }
        }
    }

    fn waiter(&self) -> Waiter<'_> {
        self.inner.waiter()
    }

    fn arm(&mut self) -> Armed {
        if self.first_due().is_some_and(|at| at <= self.now) { Armed::MoreToDo } else { self.inner.arm() }
    }

    fn deadline(&self) -> Option<Time> {
        [self.inner.deadline(), self.first_due()].into_iter().flatten().min()
    }

    fn fence(&mut self, peer: NodeId, incarnation: Incarnation) {
        self.inner.fence(peer, incarnation);
    }
}
