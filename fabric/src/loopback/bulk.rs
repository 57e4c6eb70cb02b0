//! Bulk messages of the loopback: announced, accepted or refused, moved.
//!
//! Key type: [`Bulk`]. An eager wire pushes some bytes of each accepted one at every poll of its sender; a one-sided one
//! copies all of it from region to region when it is accepted, and tells of it later.

use abi::NodeId;
use abi::limits::BULK_BYTES_MAX;
use shm::map::Mapping;

use super::Mode;
use super::net::Net;
use crate::regions::{Pieces, fail_late};
use crate::{Completion, Piece};

#[derive(Clone, Copy)]
enum State {
    /// Its head has not been taken yet.
    Posted,
    Announced,
    Accepted {
        into: Piece,
        moved_bytes: u64,
    },
}

/// A bulk message on its way.
pub(super) struct Bulk {
    serial: u64,
    token: u64,
    pieces: Pieces,
    state: State,
}

impl Bulk {
    pub fn new(serial: u64, token: u64, pieces: Pieces) -> Bulk {
        Bulk { serial, token, pieces, state: State::Posted }
    }

    pub fn is_accepted(&self) -> bool {
        matches!(self.state, State::Accepted { .. })
    }
}

impl Net {
    /// The head of a bulk message is taken: its length.
    pub fn announce(&mut self, from: usize, to: usize, serial: u64) -> u64 {
        let found = self.way(from, to).bulk.iter_mut().find(|b| b.serial == serial);
        let bulk = found.expect("a bulk message stands until its session ends");
        bulk.state = State::Announced;
        bulk.pieces.len_bytes()
    }

    /// The place of a bulk message that waits for an answer.
    fn unanswered(&mut self, from: usize, to: usize, serial: u64) -> Option<usize> {
        let waits = |b: &Bulk| b.serial == serial && matches!(b.state, State::Announced);
        self.way(from, to).bulk.iter().position(waits)
    }

    pub fn accept(&mut self, at: usize, peer: NodeId, token: u64, into: Piece) {
        let from = self.find(peer);
        let Some((from, i)) = from.and_then(|from| Some((from, self.unanswered(from, at, token)?))) else {
            fail_late(&mut self.nodes[at].ready, peer, token, into);
            return self.wake(at);
        };
        let bulk_bytes = self.way(from, at).bulk[i].pieces.len_bytes();
        assert!(into.len_bytes as u64 == bulk_bytes, "a bulk message is accepted into exactly its length");
        self.nodes[at].regions.hold(into);
        self.way(from, at).bulk[i].state = State::Accepted { into, moved_bytes: 0 };
        if self.mode == Mode::OneSided {
            self.move_bulk(from, at, i, bulk_bytes);
            self.finish_bulk(from, at, i);
        }
        self.wake(from);
    }

    pub fn refuse(&mut self, at: usize, peer: NodeId, token: u64) {
        let Some(from) = self.find(peer) else { return };
        let Some(i) = self.unanswered(from, at, token) else { return };
        let bulk = self.way(from, at).bulk.remove(i);
        self.nodes[from].regions.release_all(&bulk.pieces);
        self.tell(from, Completion::Failed { peer: self.nodes[at].id, token: bulk.token });
    }

    /// One poll's worth of every accepted bulk message of `from`.
    pub fn push_bulk(&mut self, from: usize) {
        for to in 0..self.nodes.len() {
            let mut i = 0;
            while i < self.way(from, to).bulk.len() {
                if self.way(from, to).bulk[i].is_accepted()
                    && self.move_bulk(from, to, i, BULK_BYTES_MAX as u64)
                {
                    self.finish_bulk(from, to, i);
                } else {
                    i += 1;
                }
            }
        }
    }

    /// Copies at most `most_bytes` of an accepted bulk message; true when all of it is there.
    fn move_bulk(&mut self, from: usize, to: usize, i: usize, most_bytes: u64) -> bool {
        let at = from * self.nodes.len() + to;
        let Bulk { pieces, state, .. } = &mut self.ways[at].bulk[i];
        let State::Accepted { into, moved_bytes } = state else { return false };
        let step = most_bytes.min(pieces.len_bytes() - *moved_bytes);
        for part in pieces.part(*moved_bytes, step) {
            let src = self.nodes[from].regions.map(part.region);
            let dst = self.nodes[to].regions.map(into.region);
            let target = (into.offset_bytes + *moved_bytes) as usize;
            let len = part.len_bytes as usize;
            let copied = Mapping::copy_between(src, part.offset_bytes as usize, dst, target, len);
            copied.expect("ranges that were checked when posted");
            *moved_bytes += len as u64;
        }
        *moved_bytes == pieces.len_bytes()
    }

    fn finish_bulk(&mut self, from: usize, to: usize, i: usize) {
        let bulk = self.way(from, to).bulk.remove(i);
        let State::Accepted { into, .. } = bulk.state else { return };
        self.nodes[from].regions.release_all(&bulk.pieces);
        self.nodes[to].regions.release(into);
        let sent = Completion::Sent { peer: self.nodes[to].id, token: bulk.token };
        let received = Completion::BulkReceived { peer: self.nodes[from].id, token: bulk.serial, into };
        for (at, completion) in [(from, sent), (to, received)] {
            self.nodes[at].late.push(completion);
            if self.mode == Mode::Eager {
                self.nodes[at].tell_late();
            }
            self.wake(at);
        }
    }

    /// The session is gone: all bulk messages on this way failed, on both sides.
    pub fn drop_bulk(&mut self, from: usize, to: usize) {
        let (sender, receiver) = (self.nodes[from].id, self.nodes[to].id);
        for bulk in std::mem::take(&mut self.way(from, to).bulk) {
            self.nodes[from].regions.release_all(&bulk.pieces);
            self.tell(from, Completion::Failed { peer: receiver, token: bulk.token });
            if let State::Accepted { into, .. } = bulk.state {
                self.nodes[to].regions.release(into);
                self.tell(to, Completion::BulkFailed { peer: sender, token: bulk.serial, into });
            }
        }
    }
}
