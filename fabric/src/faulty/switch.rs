//! What the two ends of a breakable wire agree on, in one process.
//!
//! Key type: [`Switch`]. Each breaking of a pair has a number, its epoch. An end that has got rid of all of the old
//! session says so, with how much it has sent; when both have, and each has received that much, the new one begins.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use abi::NodeId;
use shm::os::events::EventFd;

/// What one end says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ready {
    pub epoch: u64,
    /// Descriptors taken from it since the inner session began: so many arrive at the other end.
    pub sent: u64,
}

#[derive(Clone, Copy, Default)]
pub(super) struct PairState {
    pub cut: bool,
    pub epoch: u64,
    /// Of the lower and the higher node; `None`: not ready.
    ends: [Option<Ready>; 2],
}

impl PairState {
    /// What the other end of `node`'s wire to `peer` says.
    pub fn other(&self, node: NodeId, peer: NodeId) -> Option<Ready> {
        self.ends[usize::from(node < peer)]
    }
}

#[derive(Default)]
struct Board {
    pairs: BTreeMap<(NodeId, NodeId), PairState>,
    bells: BTreeMap<NodeId, Arc<EventFd>>,
    /// Goes up with every change.
    version: u64,
}

/// Cuts and heals wires between ends that are wrapped with it.
#[derive(Clone, Default)]
pub struct Switch {
    board: Arc<Mutex<Board>>,
}

fn ordered(one: NodeId, other: NodeId) -> (NodeId, NodeId) {
    (one.min(other), one.max(other))
}

impl Switch {
    pub fn new() -> Switch {
        Switch::default()
    }

    /// Nothing crosses between the two until they are healed.
    pub fn cut(&self, one: NodeId, other: NodeId) {
        self.change(one, other, |pair| {
            pair.cut = true;
            pair.epoch += 1;
        });
    }

    pub fn heal(&self, one: NodeId, other: NodeId) {
        self.change(one, other, |pair| pair.cut = false);
    }

    /// Ends the session of the two; another begins when both have seen it.
    pub fn flap(&self, one: NodeId, other: NodeId) {
        self.change(one, other, |pair| pair.epoch += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, one: NodeId, other: NodeId, act: impl FnOnce(&mut PairState)) {
        let mut board = self.lock();
        board.version += 1;
        act(board.pairs.entry(ordered(one, other)).or_default());
        for node in [one, other] {
            if let Some(bell) = board.bells.get(&node) {
                // A full or broken eventfd is readable, which is all a ring is for.
                let _ = bell.ring();
            }
        }
    }

    pub(super) fn say(&self, node: NodeId, peer: NodeId, ready: Option<Ready>) {
        self.change(node, peer, |pair| pair.ends[usize::from(node > peer)] = ready);
    }

    pub(super) fn look(&self, one: NodeId, other: NodeId) -> PairState {
        self.lock().pairs.get(&ordered(one, other)).copied().unwrap_or_default()
    }

    pub(super) fn version(&self) -> u64 {
        self.lock().version
    }

    pub(super) fn hang(&self, node: NodeId, bell: Arc<EventFd>) {
        self.lock().bells.insert(node, bell);
    }
}
