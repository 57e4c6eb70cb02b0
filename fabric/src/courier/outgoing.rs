//! Local to wire: what the local endpoints have published since the last look, in as few frames as it takes.

use std::ops::Range;

use abi::courier::TAIL_BYTES_MAX;
use abi::limits::{LANE_SLOTS, SLOT_BYTES};
use abi::record::{self, Kind, Record};
use abi::side::END_DEAD;
use abi::slot::{EXTENT, SlotCopy, WITHDRAWABLE, WITHDRAWN};
use abi::{Corrupt, DcId, NodeId};
use shm::lane::{self, LaneReader, look_again};
use shm::side::Mirrored;
use shm::{notify, reply};

use super::fair::Posted;
use super::jobs::Key;
use super::{CONTROL_MAX, Courier, PairIndex};
use crate::{Desc, Fabric, Piece, RegionKey};

/// Descriptors posted at once.
const BATCH: usize = 32;
/// Slots of one pair before the next pair has its turn.
const RUN_SLOTS_MAX: u64 = 64;

/// A batch in the making: heads end to end, and what each descriptor means when it is accepted.
#[derive(Default)]
pub(super) struct Outgoing {
    heads: Vec<u8>,
    items: Vec<Item>,
    bytes: u64,
    /// Announcements among them.
    bulk: usize,
    /// Pairs that have more to say than was gathered.
    again: Vec<PairIndex>,
}

struct Item {
    head: Range<usize>,
    piece: Option<Piece>,
    bulk: bool,
    dc: Option<DcId>,
    said: Said,
}

impl Item {
    /// What it costs of a turn. The bytes of an extent go by the fabric's turns and the far end's pulls.
    fn bytes(&self) -> u64 {
        let piece = if self.bulk { 0 } else { self.piece.map_or(0, |piece| piece.len_bytes as u64) };
        self.head.len() as u64 + piece
    }
}

/// What is true once a descriptor was accepted.
#[derive(Clone, Copy)]
pub(super) enum Said {
    Control,
    Open(PairIndex),
    Opened(PairIndex),
    Slots {
        pair: PairIndex,
        end: u64,
        withdrawable: Option<u64>,
        extent: bool,
    },
    SlotExtent {
        pair: PairIndex,
        sequence: u64,
    },
    Reply {
        pair: PairIndex,
        call: u64,
        extent: bool,
    },
    ReplyExtent {
        pair: PairIndex,
        call: u64,
    },
    Words {
        pair: PairIndex,
        words: Mirrored,
    },
    Raised {
        pair: PairIndex,
        raises: u64,
    },
    Withdraw {
        pair: PairIndex,
        sequence: u64,
    },
    Ended(PairIndex),
    /// The end of a condemned pair, and that it is forgotten: the second of two.
    Condemned(PairIndex),
    CopyAsked {
        pair: PairIndex,
        number: u64,
    },
    CopyStep {
        key: Key,
        serial: u64,
        len_bytes: u64,
    },
}

impl Said {
    fn pair(self) -> Option<PairIndex> {
        match self {
            Said::Control => None,
            Said::Open(index) | Said::Opened(index) | Said::Ended(index) | Said::Condemned(index) => {
                Some(index)
            }
            Said::Slots { pair, .. }
            | Said::SlotExtent { pair, .. }
            | Said::Reply { pair, .. }
            | Said::ReplyExtent { pair, .. }
            | Said::Words { pair, .. }
            | Said::Raised { pair, .. }
            | Said::Withdraw { pair, .. }
            | Said::CopyAsked { pair, .. } => Some(pair),
            Said::CopyStep { .. } => None,
        }
    }
}

impl Outgoing {
    fn clear(&mut self) {
        self.heads.clear();
        self.items.clear();
        (self.bytes, self.bulk) = (0, 0);
    }

    pub(super) fn is_full(&self) -> bool {
        self.items.len() >= BATCH
    }

    pub(super) fn push(&mut self, record: Record, body: &[u8], piece: Option<Piece>, bulk: bool, said: Said) {
        let start = self.heads.len();
        self.heads.extend_from_slice(&record.to_bytes());
        self.heads.extend_from_slice(body);
        let dc = record.pair.map(|pair| pair.source.dc);
        self.bulk += bulk as usize;
        self.add(Item { head: start..self.heads.len(), piece, bulk, dc, said });
    }

    fn add(&mut self, item: Item) {
        self.bytes += item.bytes();
        self.items.push(item);
    }
}

pub(super) fn words_bytes<const N: usize, const B: usize>(words: [u64; N]) -> [u8; B] {
    let mut out = [0; B];
    for (word, bytes) in words.iter().zip(out.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    out
}

impl Courier {
    /// Bytes for the daemon of a node, or of every node that is up. Dropped when the link is not: the daemon says
    /// everything again when it is.
    pub fn send_directory(&mut self, to: Option<NodeId>, bytes: &[u8]) {
        let chunk = abi::limits::HEAD_BYTES_MAX - record::BYTES;
        for (node, link) in &mut self.links {
            if link.session.is_none() || to.is_some_and(|to| to != *node) || link.control.len() > CONTROL_MAX
            {
                continue;
            }
            for (n, part) in bytes.chunks(chunk).enumerate() {
                let arg = (bytes.len() as u64) << 32 | (n * chunk) as u64;
                let record = Record { kind: Kind::Directory, count: 0, pair: None, arg };
                link.control.push_back([&record.to_bytes()[..], part].concat());
            }
        }
        debug_assert!(bytes.len() <= TAIL_BYTES_MAX);
    }

    /// Sends for every link that is up. Returns whether more could be sent at once.
    pub(super) fn pump(&mut self, fabric: &mut dyn Fabric) -> bool {
        let mut more = false;
        let mut at = self.links.keys().next().copied();
        while let Some(node) = at {
            more |= self.pump_link(node, fabric);
            at = self
                .links
                .range((std::ops::Bound::Excluded(node), std::ops::Bound::Unbounded))
                .next()
                .map(|l| *l.0);
        }
        more
    }

    fn pump_link(&mut self, node: NodeId, fabric: &mut dyn Fabric) -> bool {
        let mut out = std::mem::take(&mut self.outgoing);
        let more = loop {
            out.clear();
            if !self.gather(node, &mut out) {
                break false;
            }
            if out.items.is_empty() {
                break false;
            }
            let (taken, tokens) = self.post(node, &out, fabric);
            for (token, item) in tokens.into_iter().zip(&out.items[..taken]) {
                match item.said {
                    Said::CopyStep { key, serial, len_bytes } => {
                        self.copy_step_said(key, serial, len_bytes, Some(token));
                    }
                    said => self.commit(node, said),
                }
            }
            // The rest is gathered again, at once or after a completion: its pairs stay dirty.
            for item in &out.items[taken..] {
                self.keep_dirty(node, item);
            }
            // The last pair of a batch may have had more to say than the batch had room for.
            if taken < out.items.len().min(BATCH) {
                break false;
            }
        };
        out.clear();
        self.outgoing = out;
        more
    }

    /// How many were taken, and under which tokens.
    fn post(&mut self, node: NodeId, out: &Outgoing, fabric: &mut dyn Fabric) -> (usize, [u64; BATCH]) {
        let empty = Desc { token: 0, head: &[], pieces: &[], bulk: false, flow: 0 };
        let mut descs = [empty; BATCH];
        for (desc, item) in descs.iter_mut().zip(&out.items) {
            let pair = item.bulk.then(|| item.said.pair()).flatten();
            let pair = pair.and_then(|index| Some((index, self.pair(index)?.number)));
            let posted = Posted { dc: item.dc, pair, bytes: item.bytes(), bulk: item.bulk };
            let Some(link) = self.links.get_mut(&node) else { return (0, [0; BATCH]) };
            *desc = Desc {
                token: self.posted.add(node, posted, &mut link.turns),
                head: &out.heads[item.head.clone()],
                pieces: item.piece.as_slice(),
                bulk: item.bulk,
                flow: item.dc.map_or(0, |dc| dc.0),
            };
            self.count_bulk(&posted, 1);
        }
        let count = out.items.len().min(BATCH);
        let taken = fabric.post_send(node, &descs[..count]);
        for desc in &descs[taken..count] {
            self.completed(node, desc.token);
        }
        (taken, descs.map(|desc| desc.token))
    }

    /// Something posted is on its way no more, or was never taken.
    pub(super) fn completed(&mut self, node: NodeId, token: u64) {
        let Some(link) = self.links.get_mut(&node) else { return };
        if let Some(posted) = self.posted.strike(node, token, &mut link.turns) {
            self.count_bulk(&posted, -1);
        }
    }

    fn count_bulk(&mut self, posted: &Posted, by: isize) {
        if let Some((index, number)) = posted.pair
            && let Some(pair) = self.pair_mut(index).filter(|pair| pair.number == number)
        {
            pair.bulk_out = pair.bulk_out.saturating_add_signed(by);
        }
    }

    /// Whether one more extent of this pair may be announced now.
    fn may_announce(&self, index: PairIndex, out: &Outgoing) -> bool {
        let Some(pair) = self.pair(index) else { return false };
        let turns = self.links.get(&pair.node).map(|link| &link.turns);
        turns.is_some_and(|t| t.may_announce(pair.local.dc, pair.bulk_out, out.bulk, self.bulk_max))
    }

    /// Fills a batch. False when the link is down.
    fn gather(&mut self, node: NodeId, out: &mut Outgoing) -> bool {
        let Some(link) = self.links.get_mut(&node) else { return false };
        if link.session.is_none() {
            return false;
        }
        let room = link.turns.room_bytes();
        for bytes in link.control.iter().take(BATCH) {
            if out.bytes >= room {
                break;
            }
            let start = out.heads.len();
            out.heads.extend_from_slice(bytes);
            let head = start..out.heads.len();
            out.add(Item { head, piece: None, bulk: false, dc: None, said: Said::Control });
        }
        while !out.is_full() && out.bytes < room {
            let Some(link) = self.links.get_mut(&node) else { break };
            let Some((dc, index)) = link.turns.next() else { break };
            let before = out.bytes;
            let more = self.gather_pair(index, out);
            if more {
                out.again.push(index);
            }
            let Some(link) = self.links.get_mut(&node) else { break };
            link.turns.charge(dc, (out.bytes - before) as i64);
            // What was gathered of a pair is posted before more of it is: its DC keeps its turn until then.
            if more && out.bytes > before && link.turns.would_go_on(dc) {
                break;
            }
        }
        for index in std::mem::take(&mut out.again) {
            self.mark_dirty(index);
        }
        self.gather_copy_steps(node, out);
        true
    }

    /// Gathers what a pair has to say. Returns whether it has more than fits now.
    fn gather_pair(&mut self, index: PairIndex, out: &mut Outgoing) -> bool {
        self.bring_home(index);
        let Some(pair) = self.pair_mut(index) else { return false };
        if pair.closed {
            self.gather_condemned(index, out);
            return false;
        }
        if !pair.open_said {
            out.push(Record::of(Kind::Open, pair.outward(), 0), &[], None, false, Said::Open(index));
            return pair.opened;
        }
        if pair.must_say_opened {
            out.push(Record::of(Kind::Opened, pair.outward(), 0), &[], None, false, Said::Opened(index));
        }
        if !pair.opened {
            return false;
        }
        self.gather_copy(index, out);
        // Before the slots: a request's half of a number is understood by what these say.
        self.gather_words(index, out);
        self.gather_withdrawal(index, out);
        match self.gather_slots(index, out) {
            Ok(more) => {
                let said = self.gather_rest(index, out);
                more || said.unwrap_or(false)
            }
            Err(corrupt) => {
                self.condemn(index, corrupt);
                false
            }
        }
    }

    /// The mark on a slot that was sent without it. Said before the next withdrawable slot takes its place in our books.
    fn gather_withdrawal(&mut self, index: PairIndex, out: &mut Outgoing) {
        let Some(pair) = self.pair(index) else { return };
        if let Some(sequence) = pair.withdrawable
            && lane::flags_now(&pair.side, sequence) & WITHDRAWN != 0
        {
            let record = Record::of(Kind::Withdraw, pair.outward(), sequence);
            out.push(record, &[], None, false, Said::Withdraw { pair: index, sequence });
        }
    }

    /// A run of published slots, sent from where they are.
    fn gather_slots(&mut self, index: PairIndex, out: &mut Outgoing) -> Result<bool, Corrupt> {
        let Some(pair) = self.pair(index) else { return Ok(false) };
        if !pair.bulk_due.is_empty() {
            return self.gather_extents(index, out);
        }
        let first = pair.sent_next;
        let limit = RUN_SLOTS_MAX
            .min(LANE_SLOTS - first % LANE_SLOTS)
            .min(pair.ended.unwrap_or(u64::MAX).saturating_sub(first));
        let mut end = first;
        let mut withdrawable = None;
        let mut missing = None;
        let mut extent = false;
        while end < first + limit {
            let Some(slot) = LaneReader::peek(&pair.side, end, pair.local)? else { break };
            if let Some(claim) = slot.claim() {
                claim.check_len()?;
                let key = (pair.memory, claim.segment);
                if !self.segments.contains_key(&key) {
                    missing = Some(key);
                    break;
                }
            }
            if slot.head.has(WITHDRAWABLE) {
                withdrawable = Some(end);
            }
            end += 1;
            if slot.head.has(EXTENT) {
                extent = slot.claim().is_some_and(|claim| claim.len_bytes > 0);
                break;
            }
        }
        if end > first {
            let Some(pair) = self.pair_mut(index) else { return Ok(false) };
            // From here on these slots may leave: who withdraws one is told so. The marks are in the slots themselves,
            // which are read only after this. What left in an earlier session has left for good.
            if end > pair.left {
                pair.own.set_taking(end);
                pair.left = end;
            }
            look_again();
            let count = (end - first) as u16;
            let record = Record { kind: Kind::Slots, count, pair: Some(pair.outward()), arg: first };
            let piece = Piece {
                region: pair.region,
                offset_bytes: lane::slot_offset_bytes(first) as u64,
                len_bytes: count as u32 * SLOT_BYTES as u32,
            };
            out.push(record, &[], Some(piece), false, Said::Slots { pair: index, end, withdrawable, extent });
        } else if let Some(key) = missing {
            self.want_segment(key)?;
        } else {
            self.look_for_hole(index, end)?;
        }
        // Whoever has an extent announces it in the next batch, behind its slot.
        Ok(end > first)
    }

    fn gather_extents(&mut self, index: PairIndex, out: &mut Outgoing) -> Result<bool, Corrupt> {
        let Some(pair) = self.pair(index) else { return Ok(false) };
        let Some(&sequence) = pair.bulk_due.front() else { return Ok(false) };
        if !self.may_announce(index, out) {
            return Ok(true);
        }
        let said = Said::SlotExtent { pair: index, sequence };
        let slot = LaneReader::peek(&pair.side, sequence, pair.local)?;
        match slot.map(|slot| self.piece_of(index, &slot)).transpose()?.flatten() {
            Some(piece) => {
                let record = Record::of(Kind::SlotExtent, pair.outward(), sequence);
                out.push(record, &[], Some(piece), true, said);
            }
            // Consumed meanwhile, and its place used again: the far end has had it.
            None => {
                self.look_whether_consumed(index, sequence)?;
                self.commit(NodeId(0), said);
            }
        }
        Ok(true)
    }

    /// Where the extent of a local slot or reply lies.
    fn piece_of(&self, index: PairIndex, slot: &SlotCopy) -> Result<Option<Piece>, Corrupt> {
        let (Some(claim), Some(pair)) = (slot.claim(), self.pair(index)) else { return Ok(None) };
        let Some((map, region)) = self.segments.get(&(pair.memory, claim.segment)) else { return Ok(None) };
        let range = claim.check(map.len_bytes() as u64)?;
        let region: RegionKey = *region;
        Ok(Some(Piece { region, offset_bytes: range.start as u64, len_bytes: range.len() as u32 }))
    }

    /// The control words, if they have changed.
    fn gather_words(&mut self, index: PairIndex, out: &mut Outgoing) {
        let Some(pair) = self.pair(index) else { return };
        let words = pair.side.mirrored();
        if pair.words_said != Some(words) {
            let values = [words.consumed, words.outcome, words.reply_taken, words.gave_up];
            let body: [u8; abi::record::WORDS_BYTES] = words_bytes(values);
            let said = Said::Words { pair: index, words };
            out.push(Record::of(Kind::Words, pair.outward(), 0), &body, None, false, said);
        }
    }

    /// Replies, notifications, the end.
    fn gather_rest(&mut self, index: PairIndex, out: &mut Outgoing) -> Result<bool, Corrupt> {
        let Some(pair) = self.pair(index) else { return Ok(false) };
        let outward = pair.outward();
        let more = self.gather_reply(index, out);
        let more = match more {
            Ok(more) => more,
            Err(corrupt) => {
                self.condemn(index, corrupt);
                return Ok(false);
            }
        };
        let Some(pair) = self.pair(index) else { return Ok(false) };
        let raises = notify::raises(&pair.side);
        if raises > pair.raises_said {
            let (raises, counters) = notify::counters(&pair.side);
            let body: [u8; abi::record::RAISED_BYTES] = words_bytes(counters);
            let said = Said::Raised { pair: index, raises };
            out.push(Record::of(Kind::Raised, outward, raises), &body, None, false, said);
        }
        if let Some(end) = pair.ended
            && !pair.ended_said
            && pair.sent_next >= end
            && pair.bulk_due.is_empty()
            && !more
        {
            let body: [u8; abi::record::ENDED_BYTES] = words_bytes([end, pair.side.consumed()]);
            out.push(Record::of(Kind::Ended, outward, END_DEAD), &body, None, false, Said::Ended(index));
        }
        Ok(more)
    }

    fn gather_reply(&mut self, index: PairIndex, out: &mut Outgoing) -> Result<bool, Corrupt> {
        let Some(pair) = self.pair(index) else { return Ok(false) };
        let outward = pair.outward();
        if let Some(call) = pair.reply_bulk_due {
            if !self.may_announce(index, out) {
                return Ok(true);
            }
            let slot = reply::read(&pair.side, call, pair.local)?;
            let said = Said::ReplyExtent { pair: index, call };
            match slot.map(|slot| self.piece_of(index, &slot)).transpose()?.flatten() {
                Some(piece) => {
                    let record = Record::of(Kind::ReplyExtent, outward, call);
                    out.push(record, &[], Some(piece), true, said);
                }
                None => self.commit(NodeId(0), said),
            }
            return Ok(true);
        }
        let Some(slot) = reply::newest(&pair.side, pair.reply_said, pair.local)? else { return Ok(false) };
        // A reply whose client has taken it, or given it up, need not travel: its extent may be gone.
        let answered = (pair.own.as_peer().reply_taken()).max(pair.own.gave_up());
        if slot.sequence <= answered && slot.head.has(EXTENT) {
            return Ok(false);
        }
        if let Some(claim) = slot.claim() {
            claim.check_len()?;
            let key = (pair.memory, claim.segment);
            if !self.segments.contains_key(&key) {
                self.want_segment(key)?;
                // It is still to be said, so the end is not.
                return Ok(true);
            }
        }
        let body: [u8; SLOT_BYTES] = words_bytes(slot.to_words());
        let extent = slot.claim().is_some_and(|claim| claim.len_bytes > 0);
        let said = Said::Reply { pair: index, call: slot.sequence, extent };
        out.push(Record::of(Kind::Reply, outward, slot.sequence), &body, None, false, said);
        Ok(extent)
    }

    fn commit(&mut self, node: NodeId, said: Said) {
        match said {
            Said::Control => {
                if let Some(link) = self.links.get_mut(&node) {
                    link.control.pop_front();
                }
            }
            Said::Open(index) => self.on(index, |pair| pair.open_said = true),
            Said::Opened(index) => self.on(index, |pair| pair.must_say_opened = false),
            Said::Slots { pair, end, withdrawable, extent } => {
                let mut count = 0;
                self.on(pair, |pair| {
                    count = end - pair.sent_next;
                    if extent {
                        pair.bulk_due.push_back(end - 1);
                    }
                    pair.sent_next = end;
                    pair.withdrawable = withdrawable.or(pair.withdrawable);
                });
                self.totals.slots_sent += count;
                self.totals.bytes_sent += count * SLOT_BYTES as u64;
            }
            Said::SlotExtent { pair, sequence } => {
                self.on(pair, |pair| pair.bulk_due.retain(|&s| s != sequence))
            }
            Said::Reply { pair, call, extent } => self.on(pair, |pair| {
                pair.reply_said = call;
                pair.reply_bulk_due = extent.then_some(call);
            }),
            Said::ReplyExtent { pair, call } => self.on(pair, |pair| {
                if pair.reply_bulk_due == Some(call) {
                    pair.reply_bulk_due = None;
                }
            }),
            Said::Words { pair, words } => self.on(pair, |pair| pair.words_said = Some(words)),
            Said::Raised { pair, raises } => self.on(pair, |pair| pair.raises_said = raises),
            Said::Withdraw { pair, sequence } => self.on(pair, |pair| {
                pair.withdrawable = pair.withdrawable.filter(|&later| later != sequence);
            }),
            Said::Ended(index) => {
                self.on(index, |pair| pair.ended_said = true);
                self.note_if_over(index);
            }
            Said::Condemned(index) => self.end_was_said(index),
            Said::CopyAsked { pair, number } => self.copy_asked(pair, number),
            Said::CopyStep { .. } => {}
        }
    }

    fn on(&mut self, index: PairIndex, act: impl FnOnce(&mut super::pair::Carried)) {
        if let Some(pair) = self.pair_mut(index) {
            act(pair);
        }
    }

    /// An item was not taken: its pair says it again, and its DC has its bytes back.
    fn keep_dirty(&mut self, node: NodeId, item: &Item) {
        if let Said::CopyStep { key, serial, len_bytes } = item.said {
            return self.copy_step_said(key, serial, len_bytes, None);
        }
        if let (Some(index), Some(dc)) = (item.said.pair(), item.dc)
            && let Some(link) = self.links.get_mut(&node)
        {
            link.turns.insert(dc, index);
            link.turns.charge(dc, -(item.bytes() as i64));
        }
    }
}
