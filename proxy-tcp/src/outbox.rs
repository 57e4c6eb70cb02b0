//! What one session has to send: accepted descriptors in order, short control frames before them, bulk bytes between.
//!
//! Key type: [`Outbox`]. Heads are copied into slots that are made with the session and used again; pieces are sent from
//! where they lie. Frames are lined up for one `sendmsg` at a time: control, then messages, then at most one bulk frame,
//! so that a message waits for no more than that frame. Bulk frames take turns by flow, within a flow by message.
//! Neighbours: `session` writes it, `inbox` hands answers in.

use std::collections::VecDeque;

use abi::extent::Corrupt;
use abi::limits::{BULK_TURN_BYTES, HEAD_BYTES_MAX, PIECES_MAX};
use abi::wire::{HEADER_BYTES, Header, Kind};
use fabric::regions::{Pieces, Regions};
use fabric::{Completion, Desc, Time};
use shm::os::pieces::{PIECES_MAX as VECTORS_MAX, Piece as Vector};

use crate::commons::{BULK_POSTED_MAX, Commons, MESSAGES_POSTED_MAX};
use crate::pack::{PACKED_BYTES_MIN, Packer};
use crate::window::Window;

/// Control frames that may wait before the session takes nothing more from its peer.
const CONTROL_MAX: usize = 2048;
const SLOT_BYTES: usize = HEADER_BYTES + HEAD_BYTES_MAX;
const INDEX_BITS: u32 = 16;

const _: () = assert!(MESSAGES_POSTED_MAX < 1 << INDEX_BITS);

/// A message or an announcement in a slot.
#[derive(Clone, Copy)]
struct Entry {
    token: u64,
    /// Header and head.
    slot_bytes: u32,
    pieces: Pieces,
    /// The bulk message this announces.
    bulk: Option<u16>,
    /// It stands in its slot's place of `packs`, header and all.
    packed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Vacant,
    /// Its announcement is not written.
    Posted,
    Announced,
    /// `sent` bytes are written or lined up.
    Sending {
        sent: u64,
    },
}

#[derive(Clone, Copy)]
struct Bulk {
    /// Above the index in the token on the wire, so that a late answer meets nobody.
    serial: u64,
    token: u64,
    pieces: Pieces,
    bytes: u64,
    flow: u16,
    state: State,
}

#[derive(Clone, Copy)]
enum Frame {
    Control([u8; HEADER_BYTES]),
    Message(u16),
    Bulk {
        index: u16,
        header: [u8; HEADER_BYTES],
        offset: u64,
        bytes: u32,
    },
    /// Its payload stands in `bulk_pack`.
    PackedBulk {
        index: u16,
        header: [u8; HEADER_BYTES],
    },
}

/// Accepted bulk messages, in turn by flow: a flow with many of them has no more frames than one with a single one.
#[derive(Default)]
struct Flows {
    flows: VecDeque<(u16, VecDeque<u16>)>,
}

impl Flows {
    fn push(&mut self, flow: u16, index: u16) {
        match self.flows.iter_mut().find(|(id, _)| *id == flow) {
            Some((_, turn)) => turn.push_back(index),
            None => self.flows.push_back((flow, VecDeque::from([index]))),
        }
    }

    /// The next one's turn. Its flow goes to the end of the line, with it or without.
    fn pop(&mut self) -> Option<u16> {
        loop {
            let (flow, mut turn) = self.flows.pop_front()?;
            // An empty one stays until its next turn: the message at work comes back to it.
            if let Some(index) = turn.pop_front() {
                self.flows.push_back((flow, turn));
                return Some(index);
            }
        }
    }

    fn len(&self) -> usize {
        self.flows.iter().map(|(_, turn)| turn.len()).sum()
    }
}

/// The sending half of a session.
pub struct Outbox {
    slots: Vec<u8>,
    entries: Vec<Entry>,
    vacant: Vec<u16>,
    /// Slots that are not lined up, in order.
    waiting: VecDeque<u16>,
    control: VecDeque<[u8; HEADER_BYTES]>,
    /// Of what the peer sent, to be said.
    taken: Option<u64>,
    window: Window,
    bulk: Vec<Bulk>,
    bulk_vacant: Vec<u16>,
    /// Accepted bulk messages.
    sending: Flows,
    serial: u64,
    /// Frames in the order of the wire; of the first one, `done_bytes` are written.
    lineup: VecDeque<Frame>,
    done_bytes: usize,
    vectors: usize,
    bulk_lined_up: bool,
    /// The session packs: what with, and where packed bytes stand until they are written.
    packer: Option<Packer>,
    plain: Vec<u8>,
    scratch: Vec<u8>,
    packs: Vec<Vec<u8>>,
    bulk_pack: Vec<u8>,
}

impl Outbox {
    pub fn new(packs: bool) -> Outbox {
        let none = Pieces::new(&[]);
        let indices = |count: usize| (0..count as u16).rev().collect::<Vec<_>>();
        Outbox {
            slots: vec![0; MESSAGES_POSTED_MAX * SLOT_BYTES],
            entries: vec![
                Entry { token: 0, slot_bytes: 0, pieces: none, bulk: None, packed: false };
                MESSAGES_POSTED_MAX
            ],
            vacant: indices(MESSAGES_POSTED_MAX),
            waiting: VecDeque::with_capacity(MESSAGES_POSTED_MAX),
            control: VecDeque::with_capacity(64),
            taken: None,
            window: Window::default(),
            bulk: vec![
                Bulk { serial: 0, token: 0, pieces: none, bytes: 0, flow: 0, state: State::Vacant };
                BULK_POSTED_MAX
            ],
            bulk_vacant: indices(BULK_POSTED_MAX),
            sending: Flows::default(),
            serial: 0,
            lineup: VecDeque::with_capacity(VECTORS_MAX),
            done_bytes: 0,
            vectors: 0,
            bulk_lined_up: false,
            packer: packs.then(Packer::default),
            plain: Vec::new(),
            scratch: Vec::new(),
            packs: vec![Vec::new(); MESSAGES_POSTED_MAX],
            bulk_pack: Vec::new(),
        }
    }

    /// Takes a descriptor that was checked, or says that there is no room.
    pub fn post(&mut self, desc: &Desc<'_>, pieces: Pieces, commons: &mut Commons) -> bool {
        if self.vacant.is_empty() || desc.bulk && self.bulk_vacant.is_empty() {
            return false;
        }
        let Some(slot) = self.vacant.pop() else { return false };
        commons.regions.hold_all(&pieces);
        self.window.used_by(desc.flow, commons.now);
        let (header, bulk) = if desc.bulk {
            let Some(index) = self.bulk_vacant.pop() else { return false };
            self.serial += 1;
            let bytes = pieces.len_bytes();
            let (serial, token, flow) = (self.serial, desc.token, desc.flow);
            self.bulk[index as usize] = Bulk { serial, token, pieces, bytes, flow, state: State::Posted };
            let token = self.serial << INDEX_BITS | index as u64;
            let len_bytes = desc.head.len() as u32;
            (Header { kind: Kind::Announce, len_bytes, token, arg: bytes }, Some(index))
        } else {
            let len_bytes = (desc.head.len() as u64 + pieces.len_bytes()) as u32;
            (Header { kind: Kind::Message, len_bytes, token: 0, arg: 0 }, None)
        };
        let slot_bytes = HEADER_BYTES + desc.head.len();
        let bytes = &mut self.slots[slot as usize * SLOT_BYTES..][..slot_bytes];
        bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        bytes[HEADER_BYTES..].copy_from_slice(desc.head);
        let pieces = if desc.bulk { Pieces::new(&[]) } else { pieces };
        self.entries[slot as usize] =
            Entry { token: desc.token, slot_bytes: slot_bytes as u32, pieces, bulk, packed: false };
        self.waiting.push_back(slot);
        true
    }

    pub fn control(&mut self, kind: Kind, token: u64) {
        self.control.push_back(Header { kind, len_bytes: 0, token, arg: 0 }.to_bytes());
    }

    /// Says to the peer how many bytes of its bulk frames were taken in all; a word that was not sent is said no more.
    pub fn say_taken(&mut self, bytes: u64) {
        self.taken = Some(bytes);
    }

    /// The peer says so of ours.
    pub fn was_taken(&mut self, bytes: u64, now: Time) -> Result<(), Corrupt> {
        self.window.taken(bytes, now)
    }

    /// So much is said to a peer that does not listen that it is not heard either.
    pub fn is_overfull(&self) -> bool {
        self.control.len() >= CONTROL_MAX
    }

    pub fn packs(&self) -> bool {
        self.packer.is_some()
    }

    /// Packs a message that is about to be lined up, if that gains: from now on it is sent from `packs`.
    fn pack_message(&mut self, slot: u16, commons: &mut Commons) {
        let Some(packer) = &mut self.packer else { return };
        let entry = &mut self.entries[slot as usize];
        let head = &self.slots[slot as usize * SLOT_BYTES..][HEADER_BYTES..entry.slot_bytes as usize];
        let plain_bytes = head.len() + entry.pieces.len_bytes() as usize;
        if entry.bulk.is_some() || plain_bytes < PACKED_BYTES_MIN {
            return;
        }
        self.plain.clear();
        self.plain.extend_from_slice(head);
        copy_out(&mut self.plain, &commons.regions, entry.pieces.as_slice().iter().copied());
        let mut payload = std::mem::take(&mut self.scratch);
        entry.packed = packer.pack(&self.plain, &mut payload);
        commons.packed.plain_bytes += plain_bytes as u64;
        commons.packed.wire_bytes += if entry.packed { payload.len() as u64 } else { plain_bytes as u64 };
        if entry.packed {
            let (len_bytes, arg) = (payload.len() as u32, plain_bytes as u64);
            let header = Header { kind: Kind::PackedMessage, len_bytes, token: 0, arg };
            let pack = &mut self.packs[slot as usize];
            pack.clear();
            pack.extend_from_slice(&header.to_bytes());
            pack.extend_from_slice(&payload);
        }
        self.scratch = payload;
    }

    /// There are bytes that the kernel has not taken, and may be sent.
    pub fn has_unsent(&self) -> bool {
        let all = [self.lineup.len(), self.control.len(), self.waiting.len()];
        all != [0; 3] || self.taken.is_some() || self.sending.len() > 0 && self.window.has_room()
    }

    /// The peer wants the announced bulk message, or not.
    pub fn answered(
        &mut self,
        token: u64,
        wanted: bool,
        commons: &mut Commons,
    ) -> Result<Option<Completion>, Corrupt> {
        let index = (token & ((1 << INDEX_BITS) - 1)) as usize;
        let known = |b: &&mut Bulk| b.serial == token >> INDEX_BITS && b.state == State::Announced;
        let Some(bulk) = self.bulk.get_mut(index).filter(known) else {
            return Err(Corrupt::new("answer to a bulk message that was not announced", token));
        };
        if wanted && bulk.bytes > 0 {
            bulk.state = State::Sending { sent: 0 };
            self.sending.push(bulk.flow, index as u16);
            return Ok(None);
        }
        let (token, peer) = (bulk.token, commons.peer);
        self.vacate(index as u16, commons);
        Ok(Some(if wanted { Completion::Sent { peer, token } } else { Completion::Failed { peer, token } }))
    }

    fn vacate(&mut self, index: u16, commons: &mut Commons) {
        let bulk = &mut self.bulk[index as usize];
        commons.regions.release_all(&bulk.pieces);
        bulk.state = State::Vacant;
        self.bulk_vacant.push(index);
    }

    /// Lines up frames until one call's vectors are full.
    pub fn line_up(&mut self, commons: &mut Commons) {
        // A frame has at most its header or slot, and its pieces; one bulk frame always finds room.
        let room = VECTORS_MAX - 2 * (1 + PIECES_MAX);
        while self.vectors < room {
            let taken = self
                .taken
                .take()
                .map(|arg| Header { kind: Kind::BulkTaken, len_bytes: 0, token: 0, arg }.to_bytes());
            if let Some(header) = taken.or_else(|| self.control.pop_front()) {
                self.lineup.push_back(Frame::Control(header));
                self.vectors += 1;
            } else if let Some(slot) = self.waiting.pop_front() {
                self.pack_message(slot, commons);
                self.lineup.push_back(Frame::Message(slot));
                self.vectors += 1 + self.entries[slot as usize].pieces.as_slice().len();
            } else {
                break;
            }
        }
        if !self.bulk_lined_up {
            self.line_up_bulk(commons);
        }
    }

    fn line_up_bulk(&mut self, commons: &mut Commons) {
        if !self.window.has_room() {
            if self.sending.len() > 0 {
                self.window.is_full();
            }
            return;
        }
        let Some(index) = self.sending.pop() else { return };
        let bulk = &mut self.bulk[index as usize];
        let State::Sending { sent } = &mut bulk.state else { return };
        let bytes = (bulk.bytes - *sent).min(BULK_TURN_BYTES as u64) as u32;
        let token = bulk.serial << INDEX_BITS | index as u64;
        let offset = *sent;
        *sent += bytes as u64;
        let pieces = bulk.pieces;
        let packed = match &mut self.packer {
            Some(packer) => {
                self.plain.clear();
                copy_out(&mut self.plain, &commons.regions, pieces.part(offset, bytes as u64));
                let packed = packer.pack(&self.plain, &mut self.bulk_pack);
                commons.packed.plain_bytes += bytes as u64;
                commons.packed.wire_bytes += if packed { self.bulk_pack.len() as u64 } else { bytes as u64 };
                packed
            }
            None => false,
        };
        if packed {
            let arg = (bytes as u64) << 32 | offset;
            let len_bytes = self.bulk_pack.len() as u32;
            self.window.sent(len_bytes, commons.now);
            let header = Header { kind: Kind::PackedBulk, len_bytes, token, arg }.to_bytes();
            self.lineup.push_back(Frame::PackedBulk { index, header });
        } else {
            self.window.sent(bytes, commons.now);
            let header = Header { kind: Kind::Bulk, len_bytes: bytes, token, arg: offset }.to_bytes();
            self.lineup.push_back(Frame::Bulk { index, header, offset, bytes });
        }
        self.vectors += 1 + PIECES_MAX;
        self.bulk_lined_up = true;
    }

    /// The vectors of the lined-up bytes: how many, and how many bytes they are.
    pub fn gather<'a>(
        &'a self,
        regions: &'a Regions,
        vectors: &mut [Vector<'a>; VECTORS_MAX],
    ) -> (usize, usize) {
        let mut out = Gather { vectors, count: 0, bytes: 0, skip: self.done_bytes };
        for frame in &self.lineup {
            match frame {
                Frame::Control(header) => out.bytes(header),
                Frame::PackedBulk { header, .. } => {
                    out.bytes(header);
                    out.bytes(&self.bulk_pack);
                }
                Frame::Message(slot) if self.entries[*slot as usize].packed => {
                    out.bytes(&self.packs[*slot as usize]);
                }
                Frame::Message(slot) => {
                    let entry = &self.entries[*slot as usize];
                    out.bytes(&self.slots[*slot as usize * SLOT_BYTES..][..entry.slot_bytes as usize]);
                    entry.pieces.as_slice().iter().for_each(|piece| out.piece(regions, *piece));
                }
                Frame::Bulk { index, header, offset, bytes } => {
                    out.bytes(header);
                    let parts = self.bulk[*index as usize].pieces.part(*offset, *bytes as u64);
                    parts.for_each(|part| out.piece(regions, part));
                }
            }
        }
        (out.count, out.bytes)
    }

    /// The kernel took so many bytes: completes what is through.
    pub fn written(&mut self, mut bytes: usize, commons: &mut Commons) {
        while let Some(frame) = self.lineup.front().copied() {
            let whole = self.frame_bytes(&frame);
            let left = whole - self.done_bytes;
            if bytes < left {
                self.done_bytes += bytes;
                return;
            }
            bytes -= left;
            self.done_bytes = 0;
            self.lineup.pop_front();
            self.finish(frame, commons);
        }
        debug_assert!(bytes == 0, "the kernel takes no more than it is given");
    }

    fn frame_bytes(&self, frame: &Frame) -> usize {
        match frame {
            Frame::Control(_) => HEADER_BYTES,
            Frame::PackedBulk { .. } => HEADER_BYTES + self.bulk_pack.len(),
            Frame::Message(slot) if self.entries[*slot as usize].packed => self.packs[*slot as usize].len(),
            Frame::Message(slot) => {
                let entry = &self.entries[*slot as usize];
                entry.slot_bytes as usize + entry.pieces.len_bytes() as usize
            }
            Frame::Bulk { bytes, .. } => HEADER_BYTES + *bytes as usize,
        }
    }

    fn finish(&mut self, frame: Frame, commons: &mut Commons) {
        let peer = commons.peer;
        match frame {
            Frame::Control(_) => self.vectors -= 1,
            Frame::Message(slot) => {
                let entry = self.entries[slot as usize];
                self.vectors -= 1 + entry.pieces.as_slice().len();
                self.vacant.push(slot);
                match entry.bulk {
                    Some(index) => self.bulk[index as usize].state = State::Announced,
                    None => {
                        commons.regions.release_all(&entry.pieces);
                        commons.ready.push_back(Completion::Sent { peer, token: entry.token });
                    }
                }
            }
            Frame::Bulk { index, .. } | Frame::PackedBulk { index, .. } => {
                self.vectors -= 1 + PIECES_MAX;
                self.bulk_lined_up = false;
                let bulk = self.bulk[index as usize];
                if bulk.state != (State::Sending { sent: bulk.bytes }) {
                    return self.sending.push(bulk.flow, index);
                }
                self.vacate(index, commons);
                commons.ready.push_back(Completion::Sent { peer, token: bulk.token });
            }
        }
    }

    /// The session is gone: everything posted has failed.
    pub fn fail_all(&mut self, commons: &mut Commons) {
        let peer = commons.peer;
        let lined_up = self.lineup.drain(..).filter_map(|frame| match frame {
            Frame::Message(slot) => Some(slot),
            Frame::Control(_) | Frame::Bulk { .. } | Frame::PackedBulk { .. } => None,
        });
        for slot in lined_up.chain(self.waiting.drain(..)) {
            let entry = &self.entries[slot as usize];
            if entry.bulk.is_none() {
                commons.regions.release_all(&entry.pieces);
                commons.ready.push_back(Completion::Failed { peer, token: entry.token });
            }
        }
        for bulk in self.bulk.iter_mut().filter(|b| b.state != State::Vacant) {
            bulk.state = State::Vacant;
            commons.regions.release_all(&bulk.pieces);
            commons.ready.push_back(Completion::Failed { peer, token: bulk.token });
        }
    }
}

/// Appends the bytes of pieces.
fn copy_out(out: &mut Vec<u8>, regions: &Regions, pieces: impl Iterator<Item = fabric::Piece>) {
    for piece in pieces {
        let at = out.len();
        out.resize(at + piece.len_bytes as usize, 0);
        let read = regions.map(piece.region).read_into(piece.offset_bytes as usize, &mut out[at..]);
        read.expect("a piece that was checked when posted");
    }
}

struct Gather<'v, 'a> {
    vectors: &'v mut [Vector<'a>; VECTORS_MAX],
    count: usize,
    bytes: usize,
    /// Bytes at the front that are written already.
    skip: usize,
}

impl<'a> Gather<'_, 'a> {
    fn bytes(&mut self, all: &'a [u8]) {
        let skip = self.skip.min(all.len());
        self.skip -= skip;
        self.push(Vector::Bytes(&all[skip..]), all.len() - skip);
    }

    fn piece(&mut self, regions: &'a Regions, piece: fabric::Piece) {
        let skip = self.skip.min(piece.len_bytes as usize);
        self.skip -= skip;
        let (offset_bytes, len_bytes) = (piece.offset_bytes as usize + skip, piece.len_bytes as usize - skip);
        self.push(Vector::Mapped { map: regions.map(piece.region), offset_bytes, len_bytes }, len_bytes);
    }

    fn push(&mut self, vector: Vector<'a>, len_bytes: usize) {
        if len_bytes > 0 && self.count < VECTORS_MAX {
            self.vectors[self.count] = vector;
            self.count += 1;
            self.bytes += len_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_take_turns_however_many_messages_they_have() {
        let mut flows = Flows::default();
        (0..5).for_each(|index| flows.push(1, index));
        flows.push(2, 9);
        let mut order = Vec::new();
        for _ in 0..6 {
            let index = flows.pop().unwrap();
            flows.push(if index == 9 { 2 } else { 1 }, index);
            order.push(index);
        }
        assert_eq!((order, flows.len()), (vec![0, 9, 1, 9, 2, 9], 6));
    }

    #[test]
    fn a_flow_that_is_through_is_forgotten() {
        let mut flows = Flows::default();
        flows.push(1, 0);
        assert_eq!((flows.pop(), flows.pop(), flows.flows.len()), (Some(0), None, 0));
    }
}
