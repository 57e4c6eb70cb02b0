//! A pair as one end holds it: both sides, the lane's two ends, what is out in extents.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use abi::{Allowed, Endpoint, slot};
use shm::doorbell::{Doorbells, Wake};
use shm::lane::{LaneReader, LaneWriter, look_again};
use shm::os::events::Ringer;
use shm::returns::Returns;
use shm::side::{OwnSide, PeerSide};

/// The way to a peer: our side, how to see whether it attends, how to ring it. Shared with the views it sent.
pub(crate) struct Path {
    pub(crate) own: OwnSide,
    pub(crate) far: RefCell<Far>,
    doorbells: Doorbells,
    /// We: our slot is the bit we set in the peer's doorbell.
    pub(crate) me: Endpoint,
    open: Cell<bool>,
    /// The peer slept in epoll and we had no bell of it yet: rung when it comes.
    owes: Cell<bool>,
    /// Whether any path of this binding does.
    any_owes: Rc<Cell<bool>>,
}

/// The part of a path that a proxy's successor replaces.
#[derive(Clone)]
pub(crate) struct Far {
    pub(crate) side: PeerSide,
    pub(crate) doorbell: usize,
    /// Rings a peer that sleeps in epoll.
    pub(crate) ring: Option<Arc<Ringer>>,
}

impl Path {
    pub(crate) fn new(
        me: Endpoint,
        own: OwnSide,
        far: Far,
        doorbells: Doorbells,
        any_owes: Rc<Cell<bool>>,
    ) -> Path {
        let owes = Cell::new(false);
        Path { own, far: RefCell::new(far), doorbells, me, open: Cell::new(true), owes, any_owes }
    }

    /// The bell of a peer that polls has come. Rings it if it should have been rung before.
    pub(crate) fn set_ring(&self, ring: Arc<Ringer>) {
        if self.owes.take() {
            let _ = ring.ring();
        }
        self.far.borrow_mut().ring = Some(ring);
    }

    /// The daemon has no bell for us: the peer finds by its timer what we had for it.
    pub(crate) fn forget_owed(&self) {
        self.owes.set(false);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.get()
    }

    pub(crate) fn close(&self) {
        self.open.set(false);
    }

    /// After something was published: rings the peer unless it looks by itself.
    ///
    /// Cost: a fence and a load; three read-modify-writes if it does not attend; a system call if it sleeps.
    #[inline]
    pub(crate) fn knock(&self) {
        look_again();
        let far = self.far.borrow();
        if !far.side.attending() && !shm::mutant!(LaneTellsNobody, 16) {
            self.ring(&far);
        }
    }

    /// After an extent was given back: rings the peer if it waits for that.
    pub(crate) fn knock_for_returns(&self) {
        look_again();
        let far = self.far.borrow();
        if far.side.wants_returns() {
            self.ring(&far);
        }
    }

    #[cold]
    fn ring(&self, far: &Far) {
        match self.doorbells.ring(far.doorbell, self.me.slot.0) {
            Wake::Nothing => {}
            Wake::Futex => self.doorbells.wake(far.doorbell),
            Wake::EventFd => match &far.ring {
                // One that is full is already readable, and no other failure is in the ringer's power to mend.
                Some(ring) => drop(ring.ring()),
                // The daemon has it: it is asked before this call returns.
                None => {
                    self.owes.set(true);
                    self.any_owes.set(true);
                }
            },
        }
    }
}

/// How a peer ended, as far as this end knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// It unbound or died: `slots` of its lane are valid, its consumed counter is final.
    Dead { slots: u64 },
    /// Its node was declared dead, or knows nothing of it: what it took last is not known.
    Lost,
}

/// A pair.
pub(crate) struct Peer {
    pub(crate) endpoint: Endpoint,
    pub(crate) path: Rc<Path>,
    /// A copy of `path.far.side`, one borrow less on the message path.
    pub(crate) side: PeerSide,
    pub(crate) proxied: bool,
    /// What either may send.
    pub(crate) allowed: Allowed,
    /// The memory behind `side`.
    pub(crate) memory: u32,
    pub(crate) writer: LaneWriter,
    pub(crate) reader: LaneReader,
    pub(crate) raises_seen: u64,
    pub(crate) returns: Returns,
    pub(crate) out: Outstanding,
    pub(crate) end: Option<End>,
    /// The slot at the front names an extent that cannot be had: its proxy is gone, and a successor will bring it again.
    pub(crate) stalled: bool,
    /// The last call of theirs that we answered with an extent that may not have been taken.
    pub(crate) replied: Option<(u64, u32)>,
    /// It passes a request on with its next slot: whose, and of which call.
    pub(crate) passing: Option<(Endpoint, u64)>,
    /// It waits for our answer to a call that was passed on; the request is not here yet.
    pub(crate) confirmed: Option<Confirmed>,
}

/// What a client says of its call that was passed on to us: by whom, of which number there, and of which here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Confirmed {
    pub(crate) via: Endpoint,
    pub(crate) call: u64,
    pub(crate) number: u64,
    /// Since when the one that passed it on is seen to have ended while there is no pair with it.
    pub(crate) over_since: Option<Duration>,
}

/// What is out with one peer.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Outstanding {
    pub(crate) extents: u64,
    pub(crate) bytes: u64,
}

impl Peer {
    /// Flags that every slot of this lane gets by its place: a sleeper for room is told now and then.
    pub(crate) fn flags_for_next(&self) -> u8 {
        let every = abi::limits::ROOM_TOLD_EVERY_SLOTS;
        if self.writer.next() % every == every - 1 { slot::TELL } else { 0 }
    }

    /// Whether a slot of the peer's lane is there and valid.
    #[inline]
    pub(crate) fn has_message(&self) -> bool {
        let valid = match self.end {
            None => true,
            Some(End::Dead { slots }) => self.reader.next() < slots,
            Some(End::Lost) => false,
        };
        valid && !self.stalled && self.reader.is_pending(&self.side)
    }

    /// Whether the peer has ended with slots of its lane that were not taken: they are here, or come by a proxy's
    /// successor.
    pub(crate) fn awaits_more(&self) -> bool {
        matches!(self.end, Some(End::Dead { slots }) if self.reader.next() < slots)
    }

    /// Whether the peer has raised bits that were not seen. A dead notifier's bits are cleared.
    #[inline]
    pub(crate) fn has_bits(&self) -> bool {
        self.end.is_none() && shm::notify::raises(&self.side) > self.raises_seen
    }
}
