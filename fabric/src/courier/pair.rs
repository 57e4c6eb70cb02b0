//! One carried pair: the local endpoint's side, the mirror of the remote one's, and how far either has got.

use std::collections::VecDeque;

use abi::courier::Attach;
use abi::limits::LANE_SLOTS;
use abi::slot::{self, SlotCopy};
use abi::{Endpoint, NodeId, Pair};
use shm::lane;
use shm::os::events::Ringer;
use shm::pool::Extent;
use shm::returns::Returns;
use shm::side::{Mirrored, OwnSide, PeerSide};
use shm::sync::Ordering;

use crate::RegionKey;

/// Index of a pair in its courier.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct PairIndex(pub(super) u32);

/// A slot that has arrived and cannot be published yet: it, or one before it, waits for its extent.
#[derive(Clone, Copy)]
pub(super) struct Held {
    pub(super) slot: SlotCopy,
    pub(super) extent: Wanted,
}

/// Where the extent of an arrived slot or reply is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    /// There is none, or it is in place.
    Ready,
    /// It has not been announced in this session, or waits for room.
    Missing,
    /// It is being written into this extent of our pool.
    Coming(u32),
}

/// An extent of our pool that a local endpoint has, or is about to get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Lent {
    pub(super) extent: Extent,
}

/// A pair.
pub(super) struct Carried {
    /// Which attachment it is: indices are used again.
    pub(super) number: u64,
    pub(super) local: Endpoint,
    pub(super) remote: Endpoint,
    pub(super) node: NodeId,
    /// The mirror of the remote endpoint's side, which the local one reads.
    pub(super) own: OwnSide,
    /// The memory of ours that `own` stands in, and extents for the local endpoint.
    pub(super) store: u32,
    /// The local endpoint's side.
    pub(super) side: PeerSide,
    pub(super) region: RegionKey,
    /// The local endpoint's memory, for its extents.
    pub(super) memory: u32,
    pub(super) doorbell: usize,
    /// Rings the local endpoint while it sleeps in epoll.
    pub(super) ringer: Option<Ringer>,
    /// It slept in epoll and there was no ringer yet.
    pub(super) owes_ring: bool,
    /// Its node was declared dead, or it broke the protocol: nothing is carried any more.
    pub(super) closed: bool,
    /// It broke the protocol: closed, and nobody needs it any more.
    pub(super) condemned: bool,
    /// The far end is to be told that it is condemned.
    pub(super) end_due: bool,

    /// We have said `Open` in this session.
    pub(super) open_said: bool,
    /// The far end has the pair attached: what we send is taken.
    pub(super) opened: bool,
    pub(super) must_say_opened: bool,
    /// The far end has said in this session how far it is: nothing below that was needed by anybody before.
    pub(super) heard: bool,
    /// The next slot of the local lane to send.
    pub(super) sent_next: u64,
    /// Slots below this one may have left, in this session or an earlier one: never goes back.
    pub(super) left: u64,
    /// Sequences of sent slots whose extents are still to be announced.
    pub(super) bulk_due: VecDeque<u64>,
    pub(super) reply_bulk_due: Option<u64>,
    /// Extents announced and not completed.
    pub(super) bulk_out: usize,
    pub(super) words_said: Option<Mirrored>,
    pub(super) raises_said: u64,
    pub(super) reply_said: u64,
    /// A withdrawable slot that was sent: its mark must follow it.
    pub(super) withdrawable: Option<u64>,
    /// The local endpoint ended with this final sequence.
    pub(super) ended: Option<u64>,
    pub(super) ended_said: bool,

    /// The next slot that must arrive.
    pub(super) arrived: u64,
    pub(super) held: VecDeque<Held>,
    pub(super) held_reply: Option<Held>,
    /// Bytes of its extents on their way.
    pub(super) coming_bytes: u64,
    /// The last reply with an extent that was published to the local endpoint.
    pub(super) replied: Option<(u64, u32)>,
    /// The remote endpoint ended; said to the local one when all its slots are published.
    pub(super) remote_end: Option<u64>,
    /// The far end has forgotten the pair, or never had it.
    pub(super) remote_gone: bool,
    pub(super) returns: Returns,
    /// The number of the local endpoint's last copy that was looked at.
    pub(super) copy_seen: u64,
    /// Extents of our pool out with the local endpoint, by token.
    pub(super) lent: Vec<Option<Lent>>,
}

impl Carried {
    pub(super) fn new(
        attach: &Attach,
        number: u64,
        (own, side): (OwnSide, PeerSide),
        region: RegionKey,
    ) -> Carried {
        // The local reader's own word says what came before us, by a predecessor.
        let arrived = if shm::mutant!(ResumeStartsOver) { 0 } else { side.consumed() };
        let returns = Returns::from_now(&side);
        Carried {
            number,
            local: attach.local,
            remote: attach.remote,
            node: attach.node,
            own,
            store: attach.own_memory,
            side,
            region,
            memory: attach.memory,
            doorbell: attach.doorbell as usize,
            ringer: None,
            owes_ring: false,
            closed: false,
            condemned: false,
            end_due: false,
            open_said: false,
            opened: false,
            must_say_opened: false,
            heard: false,
            sent_next: 0,
            left: 0,
            bulk_due: VecDeque::new(),
            reply_bulk_due: None,
            bulk_out: 0,
            words_said: None,
            raises_said: 0,
            reply_said: 0,
            withdrawable: None,
            ended: None,
            ended_said: false,
            arrived,
            held: VecDeque::new(),
            held_reply: None,
            coming_bytes: 0,
            replied: None,
            remote_end: None,
            remote_gone: false,
            returns,
            copy_seen: 0,
            lent: Vec::new(),
        }
    }

    /// From the local endpoint to the remote one.
    pub(super) fn outward(&self) -> Pair {
        Pair { source: self.local, destination: self.remote }
    }

    /// The local endpoint has ended, and nobody is left who could want something of it.
    pub(super) fn is_over(&self) -> bool {
        let needed_by_nobody = match self.closed {
            true => self.condemned && !self.end_due,
            false => self.remote_gone || (self.ended_said && self.remote_end.is_some()),
        };
        self.ended.is_some() && needed_by_nobody
    }

    pub(super) fn new_session(&mut self) {
        self.open_said = false;
        self.opened = false;
        self.must_say_opened = false;
        self.heard = false;
        self.end_due = self.condemned;
        for held in self.held.iter_mut().chain(&mut self.held_reply) {
            // What was coming has failed with its session: each got its completion before.
            if matches!(held.extent, Wanted::Coming(_)) {
                held.extent = Wanted::Missing;
            }
        }
    }

    /// The far end has the pair: everything that it may not have is said again.
    pub(super) fn rewind(&mut self) {
        if self.opened {
            return;
        }
        self.opened = true;
        self.sent_next = if shm::mutant!(ResumeSkips) { self.sent_next } else { self.own.consumed() };
        self.bulk_due.clear();
        self.reply_bulk_due = None;
        self.words_said = None;
        if !shm::mutant!(ResumeForgetsRaises) {
            self.raises_said = 0;
        }
        if !shm::mutant!(ResumeForgetsReplies) {
            self.reply_said = 0;
        }
        self.ended_said = self.ended_said && shm::mutant!(ResumeForgetsTheEnd);
    }

    /// How many slots the local endpoint has published, read out of its lane alone: a successor does not know yet how
    /// far its predecessor had got.
    pub(super) fn published_here(&self) -> u64 {
        let words = self.side.words();
        let published = (0..LANE_SLOTS).filter_map(|place| {
            let at = lane::slot_offset_bytes(place) / 8;
            // Pairs with: the lane writer's head store. The sequence is there when the lap is right.
            let head = words.load(at, Ordering::Acquire);
            // Relaxed: ordered by the acquire load of the head.
            let sequence = words.load(at + 2, Ordering::Relaxed);
            let is_there = sequence % LANE_SLOTS == place && head as u32 == slot::lap(sequence);
            is_there.then_some(sequence.saturating_add(1))
        });
        published.max().unwrap_or(0)
    }

    /// Sequence of the first slot that is not published to the local endpoint.
    pub(super) fn published(&self) -> u64 {
        self.arrived - self.held.len() as u64
    }
}
