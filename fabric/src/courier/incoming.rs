//! Wire to local: records, checked as claims, written into the mirrors that local endpoints read.

use abi::limits::{LANE_SLOTS, SLOT_BYTES};
use abi::record::{self, Kind, Record};
use abi::slot::{EXTENT, Kind as SlotKind, SlotCopy, WITHDRAWN, WORDS};
use abi::{Corrupt, Incarnation, NodeId, Pair, side};
use shm::side::Mirrored;
use shm::{notify, reply};

use super::bulk::make_empty_ours;
use super::jobs::By;
use super::pair::{Held, Wanted};
use super::{Courier, OPENING_MAX, Output, PairIndex};
use crate::Piece;

fn word(bytes: &[u8], at: usize) -> u64 {
    let eight = bytes.get(at * 8..at * 8 + 8).and_then(|b| b.try_into().ok());
    u64::from_le_bytes(eight.unwrap_or([0; 8]))
}

pub(super) fn slot_of(bytes: &[u8]) -> Result<SlotCopy, Corrupt> {
    let mut words = [0; WORDS];
    for (at, value) in words.iter_mut().enumerate() {
        *value = word(bytes, at);
    }
    SlotCopy::from_words(&words)
}

impl Courier {
    /// A message stands in a buffer of ours.
    pub(super) fn received(&mut self, node: NodeId, buffer: Piece, len_bytes: u32) {
        let mut bytes = std::mem::take(&mut self.scratch);
        self.read_buffer(buffer, len_bytes, &mut bytes);
        self.totals.bytes_received += len_bytes as u64;
        if let Err(why) = self.on_record(node, &bytes) {
            self.totals.corrupt += 1;
            if let Some(link) = self.links.get_mut(&node).filter(|link| !link.complained) {
                link.complained = true;
                self.outputs.push(Output::BadRecord { node, why });
            }
        }
        self.scratch = bytes;
    }

    pub(super) fn read_buffer(&self, buffer: Piece, len_bytes: u32, into: &mut Vec<u8>) {
        into.clear();
        into.resize(len_bytes as usize, 0);
        let read = self.rx.as_ref().map(|(map, _)| map.read_into(buffer.offset_bytes as usize, into));
        if !matches!(read, Some(Ok(()))) {
            into.clear();
        }
    }

    fn on_record(&mut self, node: NodeId, bytes: &[u8]) -> Result<(), Corrupt> {
        let record = Record::check(bytes)?;
        let body = &bytes[record::BYTES..];
        let Some(pair) = record.pair else { return self.on_directory(node, record.arg, body) };
        let ends = (pair.destination, pair.source);
        let Some(&index) = self.by_ends.get(&ends) else {
            if record.kind == Kind::Open {
                self.ask_to_open(node, pair);
            }
            return Ok(());
        };
        if self.pair(index).is_some_and(|known| known.node != node) {
            return Err(Corrupt::new("a record of another node's endpoint", pair.source.to_word()));
        }
        if self.is_closed_to(index, record.kind) {
            return Ok(());
        }
        let result = self.on_pair_record(index, &record, body);
        self.mark_dirty(index);
        if let Err(corrupt) = result {
            self.condemn(index, corrupt);
        }
        Ok(())
    }

    fn on_pair_record(&mut self, index: PairIndex, record: &Record, body: &[u8]) -> Result<(), Corrupt> {
        let Some(pair) = self.pair_mut(index) else { return Ok(()) };
        if pair.ended.is_some() && matches!(record.kind, Kind::Slots | Kind::Reply) {
            // Nobody takes it any more; and who has heard of the end may have zeroed what its courier still sends.
            return Ok(());
        }
        match record.kind {
            Kind::Open => {
                pair.must_say_opened = true;
                pair.remote_gone = false;
                pair.rewind();
            }
            Kind::Opened => pair.rewind(),
            Kind::Refused => {
                pair.remote_gone = true;
                pair.own.end(side::END_REFUSED, 0);
                self.knocks.insert(index);
            }
            Kind::Slots => self.on_slots(index, record, body)?,
            Kind::Words => {
                let words = Mirrored {
                    consumed: word(body, 0),
                    outcome: word(body, 1),
                    reply_taken: word(body, 2),
                    gave_up: word(body, 3),
                };
                pair.own.mirror(&words);
                pair.heard = true;
                pair.sent_next = pair.sent_next.max(pair.own.consumed());
                if pair.withdrawable.is_some_and(|sequence| sequence < words.consumed) {
                    pair.withdrawable = None;
                }
                self.knocks.insert(index);
            }
            Kind::Raised => {
                let mut counters = [0; side::RAISED_WORDS];
                for (at, counter) in counters.iter_mut().enumerate() {
                    *counter = word(body, at);
                }
                notify::mirror(&pair.own, record.arg, &counters);
                self.knocks.insert(index);
            }
            Kind::Reply => self.on_reply(index, record, body)?,
            Kind::Withdraw => {
                pair.own.mark_withdrawn(record.arg);
                for held in pair.held.iter_mut().filter(|h| h.slot.sequence == record.arg) {
                    held.slot.head.flags |= WITHDRAWN;
                }
            }
            Kind::Ended => {
                let consumed = word(body, 1);
                pair.own.mirror(&Mirrored { consumed, ..Mirrored::default() });
                pair.remote_end = Some(word(body, 0));
                self.copies_end_with(index, By::Remote);
                self.look_for_unannounced(index)?;
                self.publish_ready(index);
            }
            Kind::Copy => self.on_copy(index, record.arg, body)?,
            Kind::CopyState => self.on_copy_state(index, record.arg, body)?,
            Kind::SlotExtent | Kind::ReplyExtent | Kind::CopyData => {
                return Err(Corrupt::new("an announcement that announces nothing", record.arg));
            }
            Kind::Closed => pair.remote_gone = true,
            Kind::Directory => {}
        }
        self.note_if_over(index);
        Ok(())
    }

    fn ask_to_open(&mut self, node: NodeId, pair: Pair) {
        let (local, remote) = (pair.destination, pair.source);
        let Some(link) = self.links.get_mut(&node) else { return };
        if link.opening.len() < OPENING_MAX && link.opening.insert((local, remote)) {
            self.outputs.push(Output::RemoteOpen { local, remote, node });
        }
    }

    fn on_slots(&mut self, index: PairIndex, record: &Record, body: &[u8]) -> Result<(), Corrupt> {
        let empty_at = self.pool_segment(index);
        let Some(pair) = self.pair_mut(index) else { return Ok(()) };
        let mut count = 0;
        for (n, bytes) in body.chunks_exact(SLOT_BYTES).enumerate() {
            let sequence = record.arg.saturating_add(n as u64);
            if sequence < pair.arrived {
                continue;
            }
            let mut slot = slot_of(bytes)?;
            if slot.sequence != sequence || sequence != pair.arrived {
                return Err(Corrupt::new("a slot out of its sequence", slot.sequence));
            }
            if slot.source != pair.remote.to_word() {
                return Err(Corrupt::new("a slot of another source", slot.source));
            }
            if slot.head.kind == SlotKind::Reply {
                return Err(Corrupt::new("a reply on a lane", sequence));
            }
            if sequence >= pair.side.consumed().saturating_add(LANE_SLOTS) {
                return Err(Corrupt::new("a slot beyond the lane", sequence));
            }
            pair.arrived += 1;
            make_empty_ours(&mut slot, empty_at);
            let extent = match slot.claim() {
                Some(claim) if claim.check_len()? > 0 => Wanted::Missing,
                _ => Wanted::Ready,
            };
            if extent == Wanted::Ready && pair.held.is_empty() {
                pair.own.publish_mirrored(&lapped(slot));
            } else {
                pair.held.push_back(Held { slot, extent });
            }
            count += 1;
        }
        if count > 0 {
            self.knocks.insert(index);
        }
        self.totals.slots_received += count;
        Ok(())
    }

    /// Publishes held slots from the front on, as far as they are whole; then the end, if that was all.
    pub(super) fn publish_ready(&mut self, index: PairIndex) {
        let Some(pair) = self.pair_mut(index) else { return };
        while let Some(front) = pair.held.front()
            && front.extent == Wanted::Ready
        {
            let slot = front.slot;
            pair.held.pop_front();
            pair.own.publish_mirrored(&lapped(slot));
        }
        if let Some(end) = pair.remote_end
            && pair.held.is_empty()
            && pair.held_reply.is_none()
        {
            pair.own.end(side::END_DEAD, end.min(pair.arrived));
        }
        self.knocks.insert(index);
    }

    fn on_reply(&mut self, index: PairIndex, record: &Record, body: &[u8]) -> Result<(), Corrupt> {
        let slot = slot_of(body)?;
        let empty_at = self.pool_segment(index);
        let Some(pair) = self.pair_mut(index) else { return Ok(()) };
        if slot.head.kind != SlotKind::Reply || slot.sequence != record.arg || record.arg == 0 {
            return Err(Corrupt::new("a reply that is none", record.arg));
        }
        if slot.source != pair.remote.to_word() {
            return Err(Corrupt::new("a reply of another source", slot.source));
        }
        let settled = pair.side.reply_taken().max(pair.side.gave_up());
        if reply::is_published(&pair.own, slot.sequence)
            || (slot.sequence <= settled && slot.head.has(EXTENT))
        {
            return Ok(());
        }
        match slot.claim() {
            Some(claim) if claim.check_len()? > 0 => {
                let known = pair.held_reply.is_some_and(|held| held.slot.sequence == slot.sequence);
                if !known {
                    self.drop_held_reply(index);
                    if let Some(pair) = self.pair_mut(index) {
                        pair.held_reply = Some(Held { slot, extent: Wanted::Missing });
                    }
                }
            }
            _ => {
                let mut slot = slot;
                make_empty_ours(&mut slot, empty_at);
                reply::publish(&pair.own, slot.sequence, &slot, true);
                self.drop_held_reply(index);
                self.knocks.insert(index);
            }
        }
        Ok(())
    }

    fn on_directory(&mut self, node: NodeId, arg: u64, part: &[u8]) -> Result<(), Corrupt> {
        let Some(link) = self.links.get_mut(&node) else { return Ok(()) };
        let (total, offset) = ((arg >> 32) as usize, arg as u32 as usize);
        if offset == 0 {
            link.directory.clear();
        }
        if total > abi::courier::TAIL_BYTES_MAX
            || offset != link.directory.len()
            || offset + part.len() > total
        {
            link.directory.clear();
            return Err(Corrupt::new("a directory text out of order", arg));
        }
        link.directory.extend_from_slice(part);
        if link.directory.len() == total {
            let bytes = std::mem::take(&mut link.directory);
            let incarnation = link.incarnation.unwrap_or(Incarnation(0));
            self.outputs.push(Output::Directory { node, incarnation, bytes });
        }
        Ok(())
    }
}

/// The slot with the lap that its sequence has in our mirror, whatever the wire said.
fn lapped(mut slot: SlotCopy) -> SlotCopy {
    slot.head.lap = abi::slot::lap(slot.sequence);
    slot
}
