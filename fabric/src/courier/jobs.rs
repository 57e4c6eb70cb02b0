//! The books of copies: what was asked for, by whom, and how far it is. Neighbour: `copies`, which moves the bytes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use abi::grant::{CopyRequest, Range, Status};
use abi::limits::COPY_STEPS_AHEAD;
use abi::{Endpoint, NodeId, Pair};

use super::PairIndex;

/// Which end of the pair asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum By {
    Local,
    Remote,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) pair: PairIndex,
    pub(super) by: By,
}

/// A range in a memory of this node.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub(super) memory: u32,
    pub(super) range: Range,
}

/// A step that its sender is ready to give.
#[derive(Clone, Copy, Debug)]
pub(super) struct Announced {
    pub(super) token: u64,
    pub(super) offset: u64,
    pub(super) len_bytes: u64,
}

/// This node's part.
#[derive(Debug)]
pub(super) enum Work {
    /// Nothing: other nodes do it all.
    Elsewhere,
    Receive {
        from: NodeId,
        place: At,
        /// Bytes that are there.
        next: u64,
        /// Bytes of the step that was accepted.
        coming: Option<u64>,
        announced: VecDeque<Announced>,
        /// The copier at a third node was told that the bytes may come.
        ready: bool,
    },
    Send {
        to: NodeId,
        /// The pair in whose name the bytes go, whether they go to the one that asked, and under which number.
        ends: Pair,
        to_asker: bool,
        number: u64,
        place: At,
        posted: u64,
        /// Bytes in the batch that is being made.
        gathered: u64,
        flying: usize,
    },
    Within {
        from: At,
        to: At,
        next: u64,
    },
}

impl Work {
    pub(super) fn receive(from: NodeId, place: At) -> Work {
        Work::Receive { from, place, next: 0, coming: None, announced: VecDeque::new(), ready: false }
    }

    pub(super) fn send(to: NodeId, ends: Pair, to_asker: bool, number: u64, place: At) -> Work {
        Work::Send { to, ends, to_asker, number, place, posted: 0, gathered: 0, flying: 0 }
    }

    pub(super) fn within(from: At, to: At) -> Work {
        Work::Within { from, to, next: 0 }
    }
}

/// One copy, as far as this node has to do with it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) number: u64,
    /// Tells it from every other one, whatever becomes of its pair.
    pub(super) serial: u64,
    pub(super) copier: Endpoint,
    pub(super) request: CopyRequest,
    pub(super) work: Work,
    /// How it ends, once nothing of it is on its way any more.
    pub(super) end: Option<Status>,
    /// By a local copier: the far end was told in this session.
    pub(super) asked: bool,
    /// The copier does not want it any more.
    pub(super) cancelled: bool,
    /// By a local copier: the far end does nothing for it any more.
    pub(super) confirmed: bool,
    /// Nobody is to be told.
    pub(super) silent: bool,
    /// The far end wants no more steps; why, it says itself.
    pub(super) halted: bool,
}

impl Job {
    pub(super) fn new(number: u64, copier: Endpoint, request: CopyRequest, work: Work) -> Job {
        Job {
            number,
            serial: 0,
            copier,
            request,
            work,
            end: None,
            asked: false,
            cancelled: false,
            confirmed: false,
            silent: false,
            halted: false,
        }
    }

    /// The first end is the end.
    pub(super) fn end(&mut self, status: Status) {
        self.end.get_or_insert(status);
    }

    /// The copier gives it up, under a new number.
    pub(super) fn cancel(&mut self, number: u64) {
        self.number = number;
        self.request.role = abi::grant::Role::Cancel;
        self.cancelled = true;
        self.confirmed = false;
        self.asked = false;
        self.end = None;
    }

    pub(super) fn is_ending(&self) -> bool {
        self.end.is_some() || self.cancelled || self.halted
    }

    fn is_coming(&self) -> bool {
        matches!(self.work, Work::Receive { coming: Some(_), .. })
    }

    /// How it has ended, if nothing of it is on its way any more.
    pub(super) fn ended(&self) -> Option<Status> {
        // A copier's own courier waits for the far end's word too.
        let far_knows = self.request.role != abi::grant::Role::Cancel || self.confirmed;
        let status = if self.cancelled { Some(Status::Cancelled).filter(|_| far_knows) } else { self.end };
        status.filter(|_| !self.is_coming())
    }

    /// After a lost session: nothing has come, nothing has left.
    pub(super) fn begin_anew(&mut self) {
        self.asked = false;
        self.confirmed = false;
        self.halted = false;
        match &mut self.work {
            Work::Receive { next, announced, .. } => {
                *next = 0;
                announced.clear();
            }
            Work::Send { posted, .. } => *posted = 0,
            Work::Elsewhere | Work::Within { .. } => {}
        }
    }

    /// Whether bytes of it come from or go to a node.
    pub(super) fn is_with(&self, node: NodeId) -> bool {
        match self.work {
            Work::Receive { from, .. } => from == node,
            Work::Send { to, .. } => to == node,
            Work::Elsewhere | Work::Within { .. } => false,
        }
    }

    /// Takes the next step in, if that is what it is.
    pub(super) fn announce(&mut self, node: NodeId, step: Announced) -> bool {
        if self.is_ending() {
            return false;
        }
        let total = self.request.len_bytes;
        let Work::Receive { from, next, coming, announced, .. } = &mut self.work else { return false };
        let behind = coming.unwrap_or(0) + announced.iter().map(|step| step.len_bytes).sum::<u64>();
        let right = *from == node
            && step.len_bytes > 0
            && step.len_bytes <= abi::limits::COPY_STEP_BYTES
            && announced.len() < COPY_STEPS_AHEAD
            && step.offset == *next + behind
            && total.checked_sub(step.offset).is_some_and(|left| step.len_bytes <= left);
        if right {
            announced.push_back(step);
        }
        right
    }
}

/// Which job a step on its way is of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coming {
    pub(super) key: Key,
    pub(super) serial: u64,
}

/// All copies that this node has to do with.
#[derive(Default)]
pub(super) struct Jobs {
    jobs: BTreeMap<Key, Job>,
    serials: u64,
    /// Accepted steps, by their sender and its token.
    pub(super) coming: BTreeMap<(NodeId, u64), Coming>,
    /// Posted steps, by our token.
    pub(super) flying: BTreeMap<u64, Coming>,
    /// Segments that were asked for, and those that cannot be had.
    pub(super) wanted: BTreeSet<(u32, u32)>,
    pub(super) denied: BTreeSet<(u32, u32)>,
}

impl Jobs {
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        self.jobs.keys().copied().collect()
    }

    pub(super) fn get(&self, key: Key) -> Option<&Job> {
        self.jobs.get(&key)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Job> {
        self.jobs.get_mut(&key)
    }

    pub(super) fn insert(&mut self, key: Key, mut job: Job) {
        self.serials += 1;
        job.serial = self.serials;
        self.jobs.insert(key, job);
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Job> {
        self.jobs.remove(&key)
    }
}
