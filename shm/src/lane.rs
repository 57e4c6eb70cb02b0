//! Lanes: A to B is one single-producer single-consumer ring of 128-byte slots in A's memory; what B has consumed
//! stands in B's. A slot is taken iff its sequence is the next one, from whatever memory it comes.
//!
//! Key types: [`LaneWriter`] and [`LaneReader`], the private state of either end. Neighbours: `side` (the words),
//! `doorbell` (how a sleeping reader learns). Source: `abi::slot`, and the bare ring of `bare::shm_copy`.

use abi::limits::LANE_SLOTS;
use abi::slot::{self, BODY_WORDS, Head, Heading, SlotCopy, WORDS};
use abi::{Corrupt, Endpoint, Kinds, side};

use crate::mutant;
use crate::side::{OwnSide, PeerSide};
use crate::sync::{Ordering, fence};

const fn slot_at(sequence: u64) -> usize {
    side::LANE + (sequence % LANE_SLOTS) as usize * WORDS
}

/// The fence between what was written and what is looked at next: a publication and the peer's attending flag, a
/// cleared flag and the peer's lane, a withdrawal mark and the peer's counters.
///
/// Pairs with: itself in the other process. Of two that each write, fence and look, at least one sees the other's.
/// Checked by loom, which models SeqCst fences (`shm/tests/loom.rs`).
#[inline]
pub fn look_again() {
    // Pairs with: the same fence in the peer.
    fence(Ordering::SeqCst);
}

/// The sender's end of a lane.
#[derive(Clone, Copy, Debug)]
pub struct LaneWriter {
    next: u64,
    consumed: u64,
    /// What the peer's earlier memories said of `taking`: a proxy's successor does not know what had left.
    taking: u64,
}

/// What became of a withdrawal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Withdrawal {
    /// It will never be delivered.
    Withdrawn,
    /// It had been taken.
    Taken,
    /// The receiver is in the middle of it, or it has left this node: ask again, or give up.
    Undecided,
}

impl Default for LaneWriter {
    fn default() -> Self {
        LaneWriter::from_sequence(0)
    }
}

impl LaneWriter {
    /// A writer whose first slot is `next`; all before it are consumed.
    pub const fn from_sequence(next: u64) -> Self {
        LaneWriter { next, consumed: next, taking: 0 }
    }

    /// Sequence of the slot that is published next.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// The highest consumed counter seen. A lower mirror is old, not corrupt; a higher one than was published is.
    #[inline]
    pub fn consumed(&mut self, peer: &PeerSide) -> Result<u64, Corrupt> {
        let claim = peer.consumed();
        if claim > self.next {
            return Err(Corrupt::new("more consumed than was published", claim));
        }
        self.consumed = self.consumed.max(claim);
        Ok(self.consumed)
    }

    /// The highest consumed counter seen so far, without a look at the peer's memory.
    pub const fn consumed_seen(&self) -> u64 {
        self.consumed
    }

    /// Whether one more slot fits. Cost: reads the peer's counter only when the lane looks full.
    #[inline]
    pub fn has_room(&mut self, peer: &PeerSide) -> Result<bool, Corrupt> {
        self.has_room_for(peer, 1)
    }

    /// Whether so many more slots fit.
    #[inline]
    pub fn has_room_for(&mut self, peer: &PeerSide, slots: u64) -> Result<bool, Corrupt> {
        if self.next - self.consumed + slots <= LANE_SLOTS || mutant!(LaneIsNeverFull) {
            return Ok(true);
        }
        if mutant!(CreditsAreNotSeen) {
            return Ok(false);
        }
        Ok(self.next - self.consumed(peer)? + slots <= LANE_SLOTS)
    }

    /// Publishes a slot; its lap and sequence are set here. The caller has asked for room.
    ///
    /// Cost: 16 stores to two cache lines of our own. Returns the slot's sequence.
    #[inline]
    pub fn publish(&mut self, own: &OwnSide, message: &mut SlotCopy) -> u64 {
        let sequence = self.publish_body(own, message.heading(), |at| message.body[at]);
        message.sequence = sequence;
        message.head.lap = slot::lap(sequence);
        sequence
    }

    /// As [`LaneWriter::publish`], the words of the body from where they are.
    #[inline]
    pub fn publish_body(&mut self, own: &OwnSide, heading: Heading, body: impl Fn(usize) -> u64) -> u64 {
        debug_assert!(self.next - self.consumed < LANE_SLOTS || mutant!(LaneIsNeverFull));
        let sequence = self.next;
        write(own, slot_at(sequence), (heading, sequence, slot::lap(sequence)), body);
        self.next = sequence + 1;
        sequence
    }

    /// Takes a published withdrawable slot back, if the receiver has not got it.
    ///
    /// Two-process consensus on read/write words cannot always be decided without waiting: see [`Withdrawal::Undecided`].
    /// One outcome is kept: ask before a later withdrawable slot may have been taken, or stay undecided.
    pub fn withdraw(&mut self, own: &OwnSide, peer: &PeerSide, sequence: u64) -> Result<Withdrawal, Corrupt> {
        debug_assert!(sequence < self.next, "withdrawn before it was published");
        // What is known to be consumed is not marked: its place may hold a later slot.
        if self.consumed <= sequence {
            let words = own.words();
            let at = slot_at(sequence);
            // Relaxed: our own word.
            let head = words.load(at, Ordering::Relaxed);
            // Pairs with: `LaneReader::take` second head load, through the fences on both sides.
            words.store(at, head | (slot::WITHDRAWN as u64) << 40, Ordering::Release);
            look_again();
        }
        if self.consumed(peer)? > sequence {
            let outcome = peer.outcome();
            return Ok(match outcome.wrapping_sub((sequence + 1) * 2) {
                0 => Withdrawal::Withdrawn,
                1 => Withdrawal::Taken,
                // A mirror that has not got it yet, or the outcome of a later slot.
                _ => Withdrawal::Undecided,
            });
        }
        Ok(if self.may_have_left(peer, sequence) { Withdrawal::Undecided } else { Withdrawal::Withdrawn })
    }

    /// Whether the slot of `sequence` may be in the receiver's hands or on its way to another node.
    pub fn may_have_left(&self, peer: &PeerSide, sequence: u64) -> bool {
        self.taking.max(peer.taking()) > sequence
    }

    /// The peer's side is replaced: remembers what `old` said.
    pub fn leave(&mut self, old: &PeerSide) {
        self.taking = self.taking.max(old.taking());
        self.consumed = self.consumed.max(old.consumed().min(self.next));
    }
}

/// Writes a slot: the body first, the head with release.
#[inline(always)]
fn write(
    own: &OwnSide,
    at: usize,
    (heading, sequence, lap): (Heading, u64, u32),
    body: impl Fn(usize) -> u64,
) {
    let words = own.words();
    let rest = [heading.source, sequence, heading.type_word()];
    // Relaxed: ordered by the release store of the head.
    words.store_each::<{ WORDS - 1 }>(at + 1, Ordering::Relaxed, |n| match rest.get(n) {
        Some(word) => *word,
        None => body(n - rest.len()),
    });
    // Pairs with: `read` head load (Acquire) in the peer.
    words.store(at, Head { lap, ..heading.head }.to_word(), Ordering::Release);
}

/// Reads the slot of `sequence`, if it is published, each word once, and checks it.
fn read(peer: &PeerSide, sequence: u64, source: Endpoint) -> Result<Option<SlotCopy>, Corrupt> {
    match published(peer, sequence) {
        Some(front) => read_behind(peer, sequence, source, front).map(Some),
        None => Ok(None),
    }
}

/// The head of the slot of `sequence`, if it is published.
#[inline(always)]
fn published(peer: &PeerSide, sequence: u64) -> Option<Front> {
    // Pairs with: `write` head store (Release). The body is there when the lap is right.
    let head = peer.words().load(slot_at(sequence), Ordering::Acquire);
    (head as u32 == slot::lap(sequence)).then_some(Front(head))
}

/// Reads what is behind a head that was seen.
#[inline(always)]
fn read_behind(
    peer: &PeerSide,
    sequence: u64,
    source: Endpoint,
    Front(head): Front,
) -> Result<SlotCopy, Corrupt> {
    let (words, at) = (peer.words(), slot_at(sequence));
    // Relaxed: ordered by the acquire load of the head.
    let [from, number, types] = words.load_all(at + 1, Ordering::Relaxed);
    let head = Head::from_word(head)?;
    check(head, (number, sequence), (from, source))?;
    // Relaxed: as above.
    let body = words.load_all::<BODY_WORDS>(at + WORDS - BODY_WORDS, Ordering::Relaxed);
    Ok(SlotCopy::of(Heading::of_words(head, from, types), sequence, body))
}

/// The head that was seen at the front of a lane. A claim, but one that was read once.
#[derive(Clone, Copy, Debug)]
pub struct Front(u64);

impl Front {
    /// Whether it is of a kind that its sender may send.
    #[inline(always)]
    pub fn is_allowed(self, kinds: Kinds) -> bool {
        slot::is_allowed(self.0, kinds)
    }
}

/// The receiver's end of a lane.
#[derive(Clone, Copy, Debug, Default)]
pub struct LaneReader {
    next: u64,
}

/// What stood at the front of a lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Take {
    Empty,
    /// A message; it counts as taken.
    Message(SlotCopy),
    /// A slot that its sender had withdrawn; its extent, if it has one, goes home. Look again.
    Skipped(SlotCopy),
}

impl LaneReader {
    /// A reader that has consumed all below `next`.
    pub const fn from_sequence(next: u64) -> Self {
        LaneReader { next }
    }

    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Whether a slot is there, without taking it. Cost: one load.
    #[inline]
    pub fn is_pending(&self, peer: &PeerSide) -> bool {
        // Relaxed: a hint; `take` loads again with acquire.
        peer.words().load(slot_at(self.next), Ordering::Relaxed) as u32 == slot::lap(self.next)
    }

    /// Whether the slot at the front carries an extent. Cost: one load of a line that is read next anyway.
    #[inline]
    pub fn has_extent(&self, peer: &PeerSide) -> bool {
        // Relaxed: a hint; who acts on it reads the slot with acquire.
        slot::has_flag(peer.words().load(slot_at(self.next), Ordering::Relaxed), slot::EXTENT)
    }

    /// Whether the slot at the front is a message to hand out as it is, as its head says now: not withdrawn either.
    pub fn is_plain(&self, peer: &PeerSide) -> bool {
        // Relaxed: as `has_extent`.
        let head = peer.words().load(slot_at(self.next), Ordering::Relaxed);
        slot::is_plain(head) && !slot::has_flag(head, slot::WITHDRAWN)
    }

    /// How many slots in a row are published from the front on.
    pub fn pending(&self, peer: &PeerSide) -> u64 {
        (0..LANE_SLOTS)
            .take_while(|ahead| {
                let sequence = self.next + ahead;
                // Pairs with: `write` head store (Release), for who reads the slots after this.
                let head = peer.words().load(slot_at(sequence), Ordering::Acquire);
                head as u32 == slot::lap(sequence)
            })
            .count() as u64
    }

    /// Takes the slot at the front: copied out, checked, counted as consumed, in this order.
    ///
    /// Errors: `Corrupt` when head, sequence or source are not what this lane must carry; nothing is consumed then.
    pub fn take(&mut self, own: &OwnSide, peer: &PeerSide, source: Endpoint) -> Result<Take, Corrupt> {
        match published(peer, self.next) {
            Some(front) => self.take_front(own, peer, source, front),
            None => Ok(Take::Empty),
        }
    }

    /// What is at the front, if it is there, has no extent, and is handed out as it is.
    #[inline(always)]
    pub fn front_bytes(&self, peer: &PeerSide) -> Option<Front> {
        published(peer, self.next)
            .filter(|front| !slot::has_flag(front.0, slot::EXTENT) && slot::is_plain(front.0))
    }

    /// As [`LaneReader::take`], of the front that was seen.
    ///
    /// Inlined into whoever takes it, so that the copy is never made: its words go from the lane to where they are wanted.
    #[inline(always)]
    pub fn take_front(
        &mut self,
        own: &OwnSide,
        peer: &PeerSide,
        source: Endpoint,
        front: Front,
    ) -> Result<Take, Corrupt> {
        let slot = read_behind(peer, self.next, source, front)?;
        let words = own.words();
        let withdrawn = if slot.head.has(slot::WITHDRAWABLE) {
            let at = slot_at(self.next);
            // Relaxed: the fence orders it before the second look at the mark.
            words.store(side::TAKING, self.next + 1, Ordering::Relaxed);
            look_again();
            // Pairs with: `LaneWriter::withdraw` head store.
            let mark = peer.words().load(at, Ordering::Acquire);
            let withdrawn = slot::has_flag(mark, slot::WITHDRAWN) && !mutant!(LaneIgnoresMark);
            // Relaxed: released by the consumed counter below.
            words.store(side::OUTCOME, (self.next + 1) * 2 + !withdrawn as u64, Ordering::Relaxed);
            withdrawn
        } else {
            slot.head.has(slot::WITHDRAWN)
        };
        if mutant!(LaneTakesTwice, 64) {
            return Ok(Take::Message(slot));
        }
        self.next += 1;
        // Pairs with: `PeerSide::consumed` CONSUMED load. The slot has been read out and may be written again.
        words.store(side::CONSUMED, self.next, Ordering::Release);
        Ok(if withdrawn { Take::Skipped(slot) } else { Take::Message(slot) })
    }

    /// Reads the slot of `sequence` without consuming it: a courier's look. `None` when it is not published.
    pub fn peek(peer: &PeerSide, sequence: u64, source: Endpoint) -> Result<Option<SlotCopy>, Corrupt> {
        read(peer, sequence, source)
    }
}

#[inline]
fn check(head: Head, (number, sequence): (u64, u64), (from, source): (u64, Endpoint)) -> Result<(), Corrupt> {
    if number != sequence {
        return Err(Corrupt::new("slot of another sequence", number));
    }
    if from != source.to_word() {
        return Err(Corrupt::new("slot of another source", from));
    }
    if head.kind == slot::Kind::Reply {
        return Err(Corrupt::new("reply on a lane", sequence));
    }
    Ok(())
}

/// For couriers: the mirrored lane, written out of order and published in order.
impl OwnSide {
    /// Writes the slot of `sequence` as it came over the wire; `head` decides its flags. The reader may take it at once.
    pub fn publish_mirrored(&self, message: &SlotCopy) {
        let (sequence, lap) = (message.sequence, message.head.lap);
        write(self, slot_at(sequence), (message.heading(), sequence, lap), |at| message.body[at]);
    }

    /// Marks a mirrored slot as withdrawn by its sender.
    pub fn mark_withdrawn(&self, sequence: u64) {
        let at = slot_at(sequence);
        // Relaxed: our own word.
        let head = self.words().load(at, Ordering::Relaxed);
        if head as u32 == slot::lap(sequence) {
            // Pairs with: `LaneReader::take` second head load.
            self.words().store(at, head | (slot::WITHDRAWN as u64) << 40, Ordering::Release);
        }
    }

    /// Says that slots below `end` may have left this node: a later withdrawal of one is undecided.
    pub fn set_taking(&self, end: u64) {
        // Relaxed: followed by `look_again` before the marks are read.
        self.words().store(side::TAKING, end, Ordering::Relaxed);
    }
}

/// Byte offset of a slot within its side, for couriers that send it from where it is.
pub const fn slot_offset_bytes(sequence: u64) -> usize {
    slot_at(sequence) * 8
}

/// The flags of a published slot as they are now.
pub fn flags_now(peer: &PeerSide, sequence: u64) -> u8 {
    // Pairs with: `LaneWriter::withdraw` head store, through the fence before this call.
    (peer.words().load(slot_at(sequence), Ordering::Acquire) >> 40) as u8
}

/// A head for a fresh message; lap and length are set later.
pub const fn head(kind: slot::Kind, flags: u8) -> Head {
    Head { lap: 0, kind, flags, len: 0 }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use abi::slot::{BODY_WORDS, Kind};
    use abi::{DcId, Generation, Slot};

    const SOURCE: Endpoint = Endpoint::new(DcId(1), Slot(3), Generation(9));

    fn message(kind: Kind, flags: u8) -> SlotCopy {
        let source = SOURCE.to_word();
        SlotCopy { head: head(kind, flags), source, sequence: 0, kind: 1, call: 0, body: [7; BODY_WORDS] }
    }

    /// Two fresh sides, and the lane from the first to the second after `count` withdrawable slots.
    fn lane(count: u64) -> (OwnSide, OwnSide, LaneWriter) {
        let (a, b, mut writer) = (OwnSide::heap(), OwnSide::heap(), LaneWriter::default());
        for _ in 0..count {
            writer.publish(&a, &mut message(Kind::Send, slot::WITHDRAWABLE));
        }
        (a, b, writer)
    }

    #[test]
    fn a_full_lane_has_room_when_one_slot_is_consumed() {
        let (a, b, mut writer) = lane(LANE_SLOTS - 1);
        assert_eq!(writer.has_room(&b.as_peer()), Ok(true));
        writer.publish(&a, &mut message(Kind::Post, 0));
        assert_eq!(writer.has_room(&b.as_peer()), Ok(false));
        assert!(matches!(LaneReader::default().take(&b, &a.as_peer(), SOURCE), Ok(Take::Message(_))));
        assert_eq!(writer.has_room(&b.as_peer()), Ok(true));
    }

    #[test]
    fn a_peer_that_consumed_more_than_was_published_is_corrupt() {
        let (_a, b, mut writer) = lane(2);
        b.words().store(side::CONSUMED, 2, Ordering::Relaxed);
        assert_eq!(writer.consumed(&b.as_peer()), Ok(2));
        b.words().store(side::CONSUMED, 3, Ordering::Relaxed);
        assert!(writer.consumed(&b.as_peer()).is_err());
        b.words().store(side::CONSUMED, 1, Ordering::Relaxed);
        assert_eq!(writer.consumed(&b.as_peer()), Ok(2), "a lower one is old");
    }

    #[test]
    fn a_slot_of_another_sequence_source_or_kind_is_corrupt_and_not_consumed() {
        let good = message(Kind::Post, 0);
        let others = [
            SlotCopy { sequence: LANE_SLOTS, ..good },
            SlotCopy { source: SOURCE.to_word() + 1, ..good },
            message(Kind::Reply, 0),
        ];
        for wrong in others {
            let (a, b, mut reader) = (OwnSide::heap(), OwnSide::heap(), LaneReader::default());
            let beside = (wrong.heading(), wrong.sequence, slot::lap(0));
            write(&a, slot_at(0), beside, |at| wrong.body[at]);
            assert!(reader.take(&b, &a.as_peer(), SOURCE).is_err());
            assert_eq!((reader.next(), b.consumed()), (0, 0));
        }
    }

    #[test]
    fn the_withdrawal_of_a_consumed_slot_leaves_the_next_in_its_place_alone() {
        let (a, b, mut writer) = lane(LANE_SLOTS);
        let mut reader = LaneReader::default();
        assert!(matches!(reader.take(&b, &a.as_peer(), SOURCE), Ok(Take::Message(_))));
        assert_eq!(writer.has_room(&b.as_peer()), Ok(true));
        let next = writer.publish(&a, &mut message(Kind::Post, 0));
        assert_eq!(writer.withdraw(&a, &b.as_peer(), 0), Ok(Withdrawal::Taken));
        assert_eq!(flags_now(&a.as_peer(), next) & slot::WITHDRAWN, 0);
    }

    #[test]
    fn a_slot_whose_outcome_was_overwritten_is_undecided_and_not_called_taken() {
        let (a, b, mut writer) = lane(2);
        assert_eq!(writer.withdraw(&a, &b.as_peer(), 0), Ok(Withdrawal::Withdrawn));
        let mut reader = LaneReader::default();
        assert!(matches!(reader.take(&b, &a.as_peer(), SOURCE), Ok(Take::Skipped(_))));
        assert_eq!(writer.withdraw(&a, &b.as_peer(), 0), Ok(Withdrawal::Withdrawn));
        assert!(matches!(reader.take(&b, &a.as_peer(), SOURCE), Ok(Take::Message(_))));
        assert_eq!(writer.withdraw(&a, &b.as_peer(), 0), Ok(Withdrawal::Undecided));
        assert_eq!(writer.withdraw(&a, &b.as_peer(), 1), Ok(Withdrawal::Taken));
    }

    #[test]
    fn a_slot_that_left_through_an_earlier_memory_is_not_withdrawn_for_certain() {
        let (a, old, mut writer) = lane(2);
        old.set_taking(1);
        writer.leave(&old.as_peer());
        let new = OwnSide::heap();
        assert_eq!(writer.withdraw(&a, &new.as_peer(), 0), Ok(Withdrawal::Undecided));
        assert_eq!(writer.withdraw(&a, &new.as_peer(), 1), Ok(Withdrawal::Withdrawn));
    }

    #[test]
    fn a_mirrored_slot_is_skipped_once_it_is_marked_and_only_in_its_lap() {
        let (mirror, mine, _writer) = lane(2);
        mirror.mark_withdrawn(0);
        mirror.mark_withdrawn(1 + LANE_SLOTS);
        let mut reader = LaneReader::default();
        assert!(matches!(reader.take(&mine, &mirror.as_peer(), SOURCE), Ok(Take::Skipped(_))));
        assert!(matches!(reader.take(&mine, &mirror.as_peer(), SOURCE), Ok(Take::Message(_))));
    }

    #[test]
    fn old_words_of_a_courier_take_nothing_back() {
        let side = OwnSide::heap();
        let new = crate::side::Mirrored { consumed: 2, outcome: 5, reply_taken: 3, gave_up: 4 };
        side.mirror(&new);
        side.mirror(&crate::side::Mirrored { consumed: 1, outcome: 3, reply_taken: 2, gave_up: 1 });
        assert_eq!(side.as_peer().mirrored(), new);
    }

    #[test]
    fn fresh_memory_is_no_message_where_the_lap_wraps() {
        let wraps = LANE_SLOTS * u64::from(u32::MAX);
        for sequence in [0, LANE_SLOTS - 1, wraps - 1, wraps, wraps + LANE_SLOTS] {
            let (fresh, mine, mut reader) =
                (OwnSide::heap(), OwnSide::heap(), LaneReader::from_sequence(sequence));
            assert_eq!(reader.take(&mine, &fresh.as_peer(), SOURCE), Ok(Take::Empty));
        }
    }
}
