//! Messages of the loopback, one direction between two nodes at a time.
//!
//! Key type: [`Way`]. An eager wire copies a message at its sender's or receiver's poll and holds so many at most; a
//! one-sided wire holds none, the receiver reads the sender's region.

use std::collections::VecDeque;

use abi::NodeId;
use abi::limits::HEAD_BYTES_MAX;
use shm::map::Mapping;

use super::Mode;
use super::bulk::Bulk;
use super::net::Net;
use crate::regions::Pieces;
use crate::{Caps, Completion, Desc};

/// Messages that an eager wire holds in one direction.
const WIRE_MESSAGES_MAX: usize = 64;

/// A message that is still its sender's.
struct Post {
    token: u64,
    head: Vec<u8>,
    pieces: Pieces,
    /// The announced bulk message whose head this is.
    bulk: Option<u64>,
}

/// A message on an eager wire.
struct Flying {
    bytes: Vec<u8>,
    bulk: Option<u64>,
}

/// One direction between two nodes.
#[derive(Default)]
pub(super) struct Way {
    posted: VecDeque<Post>,
    wire: VecDeque<Flying>,
    pub bulk: Vec<Bulk>,
}

/// # Panics
/// If the descriptor is not as [`Caps`] and [`Desc`] say.
fn check(caps: &Caps, desc: &Desc<'_>) -> Pieces {
    let pieces = Pieces::new(desc.pieces);
    assert!(desc.head.len() <= HEAD_BYTES_MAX, "a head of at most {HEAD_BYTES_MAX} bytes");
    let whole = desc.head.len() as u64 + pieces.len_bytes();
    assert!(desc.bulk || whole <= caps.message_bytes_max as u64, "a message within caps");
    assert!(!desc.bulk || pieces.len_bytes() <= caps.bulk_bytes_max, "a bulk message within caps");
    pieces
}

impl Net {
    pub fn post_send(&mut self, from: usize, peer: NodeId, batch: &[Desc<'_>]) -> usize {
        let Some(to) = self.find(peer).filter(|to| self.may_send(from, *to)) else { return 0 };
        let caps = self.caps();
        let mut accepted = 0;
        for desc in batch {
            let pieces = check(&caps, desc);
            let bulk_full = self.way(from, to).bulk.len() >= caps.posted_max / 2;
            if self.nodes[from].posted[to] >= caps.posted_max || desc.bulk && bulk_full {
                break;
            }
            self.nodes[from].posted[to] += 1;
            let mut head = self.spare.pop().unwrap_or_default();
            head.clear();
            head.extend_from_slice(desc.head);
            self.nodes[from].regions.hold_all(&pieces);
            self.serials += desc.bulk as u64;
            let bulk = desc.bulk.then_some(self.serials);
            let way = self.way(from, to);
            if let Some(serial) = bulk {
                way.bulk.push(Bulk::new(serial, desc.token, pieces));
            }
            way.posted.push_back(Post { token: desc.token, head, pieces, bulk });
            accepted += 1;
        }
        if accepted > 0 {
            self.wake(to);
        }
        accepted
    }

    /// There is something for `to` to take.
    pub fn has_message(&self, from: usize, to: usize) -> bool {
        let way = &self.ways[from * self.nodes.len() + to];
        !way.wire.is_empty() || !way.posted.is_empty()
    }

    /// There is something for `from` to push.
    pub fn has_push(&self, from: usize, to: usize) -> bool {
        let way = &self.ways[from * self.nodes.len() + to];
        let room = !way.posted.is_empty() && way.wire.len() < WIRE_MESSAGES_MAX;
        self.mode == Mode::Eager && (room || way.bulk.iter().any(Bulk::is_accepted))
    }

    pub fn push_messages(&mut self, from: usize) {
        (0..self.nodes.len()).for_each(|to| self.carry(from, to));
    }

    /// Moves messages of an eager wire from their sender's regions to the wire, as far as it has room.
    fn carry(&mut self, from: usize, to: usize) {
        if self.mode != Mode::Eager {
            return;
        }
        let peer = self.nodes[to].id;
        while self.way(from, to).wire.len() < WIRE_MESSAGES_MAX {
            let Some(post) = self.way(from, to).posted.pop_front() else { break };
            let mut bytes = post.head;
            if post.bulk.is_none() {
                let regions = &mut self.nodes[from].regions;
                for piece in post.pieces.as_slice() {
                    let begin = bytes.len();
                    bytes.resize(begin + piece.len_bytes as usize, 0);
                    let read =
                        regions.map(piece.region).read_into(piece.offset_bytes as usize, &mut bytes[begin..]);
                    read.expect("a piece that was checked when posted");
                }
                regions.release_all(&post.pieces);
                self.tell(from, Completion::Sent { peer, token: post.token });
            }
            self.way(from, to).wire.push_back(Flying { bytes, bulk: post.bulk });
            self.wake(to);
        }
    }

    /// Takes messages of all others into the posted buffers of `to`, as far as these go.
    pub fn take_messages(&mut self, to: usize) {
        let count = self.nodes.len();
        let first = self.nodes[to].turn;
        self.nodes[to].turn = (first + 1) % count;
        for from in (0..count).map(|i| (first + i) % count) {
            self.carry(from, to);
            while !self.nodes[to].free.is_empty() && self.take_one(from, to) {
                self.carry(from, to);
            }
        }
    }

    fn take_one(&mut self, from: usize, to: usize) -> bool {
        let buffer = self.nodes[to].free[0];
        let (bytes, bulk, len_bytes) = match self.mode {
            Mode::Eager => {
                let Some(flying) = self.way(from, to).wire.pop_front() else { return false };
                let len = flying.bytes.len();
                (flying.bytes, flying.bulk, len)
            }
            Mode::OneSided => {
                let Some(post) = self.way(from, to).posted.pop_front() else { return false };
                let len =
                    post.head.len() + if post.bulk.is_none() { self.read_pieces(from, to, &post) } else { 0 };
                (post.head, post.bulk, len)
            }
        };
        let map = self.nodes[to].regions.map(buffer.region);
        map.write_from(buffer.offset_bytes as usize, &bytes).expect("a buffer that was checked when posted");
        self.spare.push(bytes);
        self.nodes[to].free.pop_front();
        self.nodes[to].regions.release(buffer);
        let (peer, len_bytes) = (self.nodes[from].id, len_bytes as u32);
        let completion = match bulk {
            None => Completion::Received { peer, buffer, len_bytes },
            Some(token) => {
                let bulk_bytes = self.announce(from, to, token);
                Completion::Announced { peer, token, bulk_bytes, buffer, len_bytes }
            }
        };
        self.nodes[to].ready.push_back(completion);
        true
    }

    /// The receiver of a one-sided wire reads the pieces behind the head, out of the sender's region.
    fn read_pieces(&mut self, from: usize, to: usize, post: &Post) -> usize {
        let buffer = self.nodes[to].free[0];
        let mut at = buffer.offset_bytes as usize + post.head.len();
        for piece in post.pieces.as_slice() {
            let src = self.nodes[from].regions.map(piece.region);
            let dst = self.nodes[to].regions.map(buffer.region);
            let len = piece.len_bytes as usize;
            let copied = Mapping::copy_between(src, piece.offset_bytes as usize, dst, at, len);
            copied.expect("ranges that were checked when posted");
            at += len;
        }
        self.nodes[from].regions.release_all(&post.pieces);
        self.tell(from, Completion::Sent { peer: self.nodes[to].id, token: post.token });
        post.pieces.len_bytes() as usize
    }

    /// The session is gone: what was posted failed, what was on the wire is lost.
    pub fn drop_messages(&mut self, from: usize, to: usize) {
        let peer = self.nodes[to].id;
        while let Some(post) = self.way(from, to).posted.pop_front() {
            if post.bulk.is_none() {
                self.nodes[from].regions.release_all(&post.pieces);
                self.tell(from, Completion::Failed { peer, token: post.token });
            }
            self.spare.push(post.head);
        }
        while let Some(flying) = self.way(from, to).wire.pop_front() {
            self.spare.push(flying.bytes);
        }
    }
}
