//! Ends of pairs that broke the protocol: what is found out only when something stays away, and how both ends hear of it.
//!
//! Nothing that a local endpoint does may leave a pair standing: neither its peer, which would wait for ever, nor the
//! memory of either. Neighbours: `outgoing` and `incoming`, which find what is wrong; `pair`, which says when a pair is over.

use abi::Corrupt;
use abi::record::{ENDED_BYTES, Kind, Record};
use abi::side::{self, END_DEAD};

use super::bulk::What;
use super::outgoing::{Outgoing, Said, words_bytes};
use super::pair::Wanted;
use super::{Courier, Output, PairIndex};

impl Courier {
    /// An endpoint at either end broke the protocol: its pair is carried no more, and both ends see it ended.
    pub(super) fn condemn(&mut self, index: PairIndex, why: Corrupt) {
        let Some(pair) = self.pair_mut(index).filter(|pair| !pair.closed) else { return };
        pair.closed = true;
        pair.condemned = true;
        pair.end_due = true;
        pair.own.end(side::END_DEAD, pair.published());
        let outward = pair.outward();
        self.knocks.insert(index);
        self.totals.corrupt += 1;
        self.outputs.push(Output::Condemned { pair: outward, why });
        self.mark_dirty(index);
        self.note_if_over(index);
    }

    /// Tells the far end of a condemned pair that there is no more, and that nothing is wanted of it: once in each session, and
    /// to whoever opens the pair later.
    pub(super) fn gather_condemned(&mut self, index: PairIndex, out: &mut Outgoing) {
        let Some(pair) = self.pair(index).filter(|pair| pair.condemned && pair.end_due) else { return };
        let outward = pair.outward();
        let body: [u8; ENDED_BYTES] = words_bytes([pair.sent_next, pair.side.consumed()]);
        // That it is over counts, and is said second: if only the first is taken, both are said again.
        out.push(Record::of(Kind::Ended, outward, END_DEAD), &body, None, false, Said::Ended(index));
        out.push(Record::of(Kind::Closed, outward, 0), &[], None, false, Said::Condemned(index));
    }

    pub(super) fn end_was_said(&mut self, index: PairIndex) {
        if let Some(pair) = self.pair_mut(index) {
            pair.end_due = false;
            self.note_if_over(index);
        }
    }

    /// The far end opens a pair that is closed here. True: it is, and there is nothing else to be done about the record.
    pub(super) fn is_closed_to(&mut self, index: PairIndex, kind: Kind) -> bool {
        let Some(pair) = self.pair_mut(index).filter(|pair| pair.closed) else { return false };
        if kind == Kind::Open {
            pair.end_due = true;
            self.mark_dirty(index);
        }
        true
    }

    /// Asks for a segment of a local endpoint, once. An error if it was asked for before, and there is none.
    pub(super) fn want_segment(&mut self, key: (u32, u32)) -> Result<(), Corrupt> {
        if self.absent.remove(&key) {
            return Err(Corrupt::new("an extent in a segment that is not there", key.1 as u64));
        }
        if self.wanted.insert(key) {
            self.outputs.push(Output::WantSegment { memory: key.0, segment: key.1 });
        }
        Ok(())
    }

    /// There is no such segment: whoever named it is condemned at the next look.
    pub(super) fn segment_is_absent(&mut self, key: (u32, u32)) {
        if self.wanted.remove(&key) {
            self.absent.insert(key);
            self.mark_dirty_of(key.0);
        }
    }

    /// Nothing stands at `sequence`. Of a local endpoint that has ended with later slots that is a hole, and nothing will
    /// ever fill it.
    pub(super) fn look_for_hole(&mut self, index: PairIndex, sequence: u64) -> Result<(), Corrupt> {
        let Some(pair) = self.pair_mut(index) else { return Ok(()) };
        if pair.ended.is_none_or(|end| sequence >= end) {
            return Ok(());
        }
        if pair.remote_end.is_some() || pair.remote_gone {
            // It had heard of the other end, and may have died while it made its side fresh again.
            pair.ended = Some(sequence);
            return Ok(());
        }
        // A successor begins with slots that are long consumed, until the far end has said how far it is.
        if pair.heard { Err(Corrupt::new("a hole in a lane that has ended", sequence)) } else { Ok(()) }
    }

    /// The slot of an extent that was to be announced is not there any more, which is right if the far end has consumed it.
    pub(super) fn look_whether_consumed(&self, index: PairIndex, sequence: u64) -> Result<(), Corrupt> {
        let Some(pair) = self.pair(index) else { return Ok(()) };
        let heard = pair.heard && pair.remote_end.is_none() && !pair.remote_gone;
        if heard && pair.own.consumed() <= sequence {
            return Err(Corrupt::new("a slot that was taken back", sequence));
        }
        Ok(())
    }

    /// The remote end has said its last word, which comes behind all that it announced: what is not here or on its way by
    /// now never comes.
    pub(super) fn look_for_unannounced(&mut self, index: PairIndex) -> Result<(), Corrupt> {
        let Some(pair) = self.pair(index).filter(|pair| pair.ended.is_none()) else { return Ok(()) };
        let missing = |what: What, extent: Wanted| {
            extent == Wanted::Missing && !self.waiting.iter().any(|w| w.is_of(index, what))
        };
        let slot = pair.held.iter().find(|h| missing(What::Slot(h.slot.sequence), h.extent));
        if let Some(held) = slot {
            return Err(Corrupt::new("an extent that never came", held.slot.sequence));
        }
        let reply = pair.held_reply.filter(|h| missing(What::Reply(h.slot.sequence), h.extent));
        if reply.is_some()
            && let Some(pair) = self.pair_mut(index)
        {
            pair.held_reply = None;
        }
        Ok(())
    }
}
