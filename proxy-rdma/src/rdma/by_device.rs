//! What the device tells: work that is done, messages that came, extents that were read.

use std::sync::Arc;

use abi::NodeId;
use abi::wire::HEADER_BYTES;
use fabric::{Completion, Fabric, Piece};
use shm::map::Mapping;

use super::{ANNOUNCED_MAX, Came, Phase, RdmaFabric};
use crate::buffers::Name;
use crate::frame::Frame;
use crate::session::{OF_BUFFER, OF_READ, Session};
use crate::verbs::Done;

impl RdmaFabric {
    /// Takes completions of the device; how many.
    pub(super) fn take_completions(&mut self) -> usize {
        let Ok(device) = &self.device else { return 0 };
        let mut done = std::mem::take(&mut self.done);
        if let Err(why) = device.queue.poll(&mut done) {
            tracing::warn!(%why, "the device's completions cannot be taken");
        }
        let count = done.len();
        done.drain(..).for_each(|one| self.is_done(one));
        self.done = done;
        count
    }

    fn is_done(&mut self, done: Done) {
        let peer = self.by_pair.get(&done.pair).copied();
        let phase = peer.and_then(|peer| self.links.get_mut(&peer)).map(|link| &mut link.phase);
        let session = match phase {
            Some(Phase::Rdma(session)) => Some(session),
            Some(Phase::Agreeing(agreeing)) if done.name & OF_BUFFER != 0 && done.result.is_ok() => {
                let buffer = Name::from_word(done.name & !OF_BUFFER);
                let len_bytes = done.result.map_or(0, |(_, len_bytes)| len_bytes);
                return agreeing.early.push((buffer, len_bytes));
            }
            _ => None,
        };
        if done.name & OF_BUFFER != 0 {
            let buffer = Name::from_word(done.name & !OF_BUFFER);
            return match (done.result, peer, session) {
                (Ok((_, len_bytes)), Some(peer), Some(session)) => {
                    let session = session.number;
                    self.came.push_back(Came::Device { peer, session, buffer, len_bytes });
                }
                (Err(why), _, Some(session)) => {
                    session.fail(why);
                    self.buffers.lend(buffer);
                }
                // Of a session that is gone.
                _ => self.buffers.lend(buffer),
            };
        }
        let (Some(peer), Some(session)) = (peer, session) else { return };
        if let Err(why) = done.result {
            session.fail(why);
        }
        if done.name & OF_READ == 0 {
            return session.sent(done.name);
        }
        let Some((name, incoming)) = session.was_read(done.name & !OF_READ, done.result.is_ok()) else {
            return;
        };
        session.answer(name, true);
        let Some(into) = incoming.into else { return };
        self.carried.read_bytes += incoming.bytes;
        self.has_come(peer, incoming.token, into);
    }

    /// A bulk message is where it belongs.
    pub(super) fn has_come(&mut self, peer: NodeId, token: u64, into: Piece) {
        self.links.entry(peer).or_default().names.remove(&token);
        self.release_all(&[into]);
        self.ready.push_back(Completion::BulkReceived { peer, token, into });
    }

    /// Gives on what has come, as far as the caller has buffers.
    pub(super) fn give_on(&mut self) {
        while let Some(came) = self.came.pop_front() {
            let waits = match &came {
                Came::Device { peer, buffer, len_bytes, .. } => {
                    !self.give_on_frame(*peer, *buffer, *len_bytes)
                }
                Came::Tcp { peer, buffer, len_bytes, announced, .. } => {
                    !self.give_on_message(*peer, *buffer, *len_bytes, *announced)
                }
            };
            if waits {
                return self.came.push_front(came);
            }
        }
    }

    fn give_on_message(
        &mut self,
        peer: NodeId,
        from: Piece,
        len_bytes: u32,
        announced: Option<(u64, u64)>,
    ) -> bool {
        let Some(buffer) = self.free.pop_front() else { return false };
        let (map, at) = (Arc::clone(self.regions.map(buffer.region)), buffer.offset_bytes as usize);
        let copied =
            Mapping::copy_between(&self.area, from.offset_bytes as usize, &map, at, len_bytes as usize);
        copied.expect("a buffer that was checked when posted");
        self.tcp.post_recv(&[from]);
        self.release_all(&[buffer]);
        let completion = match announced {
            None => Completion::Received { peer, buffer, len_bytes },
            Some((name, bulk_bytes)) => {
                let token = self.name(peer, name);
                Completion::Announced { peer, token, bulk_bytes, buffer, len_bytes }
            }
        };
        self.ready.push_back(completion);
        true
    }

    /// A name for the caller, of what the other side calls so.
    pub(super) fn name(&mut self, peer: NodeId, other: u64) -> u64 {
        self.tokens += 1;
        self.links.entry(peer).or_default().names.insert(self.tokens, other);
        self.tokens
    }

    /// A frame in a buffer of the device; false: there is no buffer for it.
    fn give_on_frame(&mut self, peer: NodeId, name: Name, len_bytes: u32) -> bool {
        let Some((memory, at)) = self.buffers.find(name) else { return true };
        // What stands before a message or a head, which are copied once, and not by way of here.
        let mut first = [0; HEADER_BYTES + 64];
        let count = first.len().min(len_bytes as usize);
        let checked = match memory.read_into(at, &mut first[..count]) {
            Ok(()) => Frame::check(&first[..count], len_bytes),
            Err(_) => return true,
        };
        let frame = match checked {
            Ok(frame) => frame,
            Err(why) => {
                self.fail(peer, why);
                self.buffers.lend(name);
                return true;
            }
        };
        let into = |fabric: &mut RdmaFabric, at_frame: usize, len: u32| {
            let buffer = fabric.free.pop_front()?;
            let (memory, base) = fabric.buffers.find(name)?;
            let to = fabric.regions.map(buffer.region);
            let (from, offset) = (memory.map(), buffer.offset_bytes as usize);
            let copied = Mapping::copy_between(from, base + at_frame, to, offset, len as usize);
            copied.expect("a buffer that was checked when posted");
            fabric.release_all(&[buffer]);
            Some(buffer)
        };
        match frame {
            Frame::Message { at, len_bytes } => {
                let Some(buffer) = into(self, at, len_bytes) else { return false };
                self.ready.push_back(Completion::Received { peer, buffer, len_bytes });
            }
            Frame::Announce { token, bulk_bytes, sources, head_at, head_bytes } => {
                if let Some(why) = self.cannot_be_announced(peer, token) {
                    self.fail(peer, why);
                    self.buffers.lend(name);
                    return true;
                }
                let Some(buffer) = into(self, head_at, head_bytes) else { return false };
                let outer = self.name(peer, token);
                if let Some(session) = self.session(peer) {
                    session.is_announced(token, outer, sources, bulk_bytes);
                }
                let (token, len_bytes) = (outer, head_bytes);
                self.ready.push_back(Completion::Announced { peer, token, bulk_bytes, buffer, len_bytes });
            }
            Frame::Taken { token } => self.is_answered(peer, token, true),
            Frame::Refuse { token } => self.is_answered(peer, token, false),
        }
        self.buffers.lend(name);
        true
    }

    fn cannot_be_announced(&mut self, peer: NodeId, name: u64) -> Option<&'static str> {
        let session = self.session(peer)?;
        if session.incoming.contains_key(&name) {
            return Some("bulk message announced twice");
        }
        (session.incoming.len() >= ANNOUNCED_MAX).then_some("more bulk messages announced than may be")
    }

    fn is_answered(&mut self, peer: NodeId, name: u64, taken: bool) {
        let Some(session) = self.session(peer) else { return };
        let Some(outgoing) = session.outgoing.remove(&name) else {
            return session.fail("an answer to a bulk message that was not announced");
        };
        self.release_all(outgoing.pieces.as_slice());
        let token = outgoing.token;
        self.ready.push_back(match taken {
            true => Completion::Sent { peer, token },
            false => Completion::Failed { peer, token },
        });
    }

    pub(super) fn session(&mut self, peer: NodeId) -> Option<&mut Session> {
        match &mut self.links.get_mut(&peer)?.phase {
            Phase::Rdma(session) => Some(session),
            _ => None,
        }
    }

    pub(super) fn fail(&mut self, peer: NodeId, why: impl ToString) {
        if let Some(session) = self.session(peer) {
            session.fail(why);
        }
    }
}
