//! The receiving half: whose turn it is, and what is handed out.
//!
//! Order of `receive(Any)`: a wake-up, then notifications, lowest slot first; after each round of them one pending message; messages
//! first in, first out for each sender, and whoever has one pending is served before anyone is served twice.
//!
//! In two steps: [`Core::due`] says what comes next, [`Core::take_due`] hands it out. A delivery is some 200 bytes; made
//! last, and in one place, it is written where the caller wants it and moved no more, which would cost more than the lane.

use abi::limits::LANE_SLOTS;
use abi::slot::{Kind, SlotCopy, TELL, call_of};
use abi::{Corrupt, Endpoint};
use shm::lane::{LaneReader, Take};

use super::{Core, Host, PeerIndex};
use crate::error::ReceiveError;
use crate::message::{Delivery, Owed, What};

/// What may be handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Accepts {
    pub notifications: bool,
    /// The receiver spins: lanes that bring something are scanned without being rung for.
    pub attend: bool,
}

/// What is handed out next. Must be: bits and wake-ups count as seen from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    Woken {
        source: Endpoint,
    },
    Notification {
        source: Endpoint,
        bits: u32,
    },
    /// The end of an endpoint of which we are the warn target.
    Warned {
        endpoint: Endpoint,
    },
    /// What stands at the front of a lane.
    Message(PeerIndex),
    /// A request that was passed on to us, by whom, and the slot of its client.
    Relayed {
        via: Endpoint,
        slot: u16,
    },
}

/// What is at the front is not bytes alone, or not there after all: [`Core::take_due`] and [`Core::take_answer`] see
/// to that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotBytes;

impl Core {
    /// What `receive(Any)` hands out next, if anything.
    #[inline]
    pub fn due(&mut self, accepts: Accepts, host: &mut dyn Host) -> Result<Option<Due>, ReceiveError> {
        match self.steady() {
            Some(index) if self.peer(index).is_some_and(|peer| peer.has_message()) => {
                Ok(Some(Due::Message(index)))
            }
            Some(_) => Ok(None),
            None if self.is_quiet() => Ok(None),
            None => self.due_of_all(accepts, host),
        }
    }

    fn due_of_all(&mut self, accepts: Accepts, host: &mut dyn Host) -> Result<Option<Due>, ReceiveError> {
        self.glance(host).map_err(ReceiveError::Unavailable)?;
        self.collect_hints();
        if let Some(woken) = self.next_wake() {
            return Ok(Some(woken));
        }
        self.close_overstepped(host)?;
        if accepts.notifications
            && let Some(floor) = self.note_floor
        {
            if let Some((_, endpoint)) = self.warned.pop_first() {
                return Ok(Some(Due::Warned { endpoint }));
            }
            if let Some(notification) = self.next_notification(floor) {
                return Ok(Some(notification));
            }
            self.close_overstepped(host)?;
            self.note_floor = if floor == 0 { Some(0) } else { None };
        }
        let message = self.relays.due().or_else(|| self.next_message(host).map(Due::Message));
        if self.note_floor.is_none() {
            // The round is over whether or not there was a message to serve.
            self.note_floor = Some(0);
            if accepts.notifications && message.is_none() {
                return Ok(self.next_notification(0));
            }
        }
        Ok(message)
    }

    /// Hands out what is due, if it is bytes alone: a request, mostly. Nothing is taken otherwise.
    #[inline(always)]
    pub fn take_due_bytes(&mut self, due: Due, accepts: Accepts) -> Result<Delivery, NotBytes> {
        let Due::Message(index) = due else { return Err(NotBytes) };
        let Some(Some(peer)) = self.peers.get_mut(index.0 as usize) else { return Err(NotBytes) };
        let source = peer.endpoint;
        let Some(front) = peer.reader.front_bytes(&peer.side) else { return Err(NotBytes) };
        if !front.is_allowed(peer.allowed.from_peer) {
            return Err(NotBytes);
        }
        let slot = match peer.reader.take_front(&peer.path.own, &peer.side, source, front) {
            Ok(Take::Message(slot)) => slot,
            Ok(Take::Skipped(slot)) => {
                self.skipped(index, &slot);
                return Err(NotBytes);
            }
            Ok(Take::Empty) | Err(_) => return Err(NotBytes),
        };
        if slot.head.has(TELL) {
            peer.path.knock();
        }
        self.counters.received += 1;
        self.served = index.0;
        let (what, owed) = self.owed(index, &slot);
        self.expect_more(index, accepts.attend);
        Ok(Delivery::of_slot(source, what, &slot, None, owed))
    }

    /// Hands out what is due. `None`: it was a message that its sender had withdrawn, or that cannot be had now; what is
    /// due then must be asked anew.
    pub fn take_due(
        &mut self,
        due: Due,
        accepts: Accepts,
        host: &mut dyn Host,
    ) -> Result<Option<Delivery>, ReceiveError> {
        let index = match due {
            Due::Woken { source } => return Ok(Some(Delivery::of_wake(source))),
            Due::Notification { source, bits } => return Ok(Some(Delivery::of_bits(source, bits))),
            Due::Warned { endpoint } => return Ok(Some(Delivery::of_warning(endpoint))),
            Due::Relayed { via, slot } => return Ok(self.take_relayed((via, slot))),
            Due::Message(index) => index,
        };
        self.served = index.0;
        match self.take_from(index, false, host) {
            Ok(taken) => {
                if taken.is_some() {
                    self.expect_more(index, accepts.attend);
                }
                Ok(taken)
            }
            Err(corrupt) => {
                self.close(index, host);
                Err(ReceiveError::Corrupt(corrupt))
            }
        }
    }

    /// What is here for `receive(Any)`, if anything.
    pub fn poll_any(
        &mut self,
        accepts: Accepts,
        host: &mut dyn Host,
    ) -> Result<Option<Delivery>, ReceiveError> {
        // Each pair may turn out to have nothing, once.
        for _ in 0..=self.peers.len() {
            let Some(due) = self.due(accepts, host)? else { return Ok(None) };
            if let Some(delivery) = self.take_due(due, accepts, host)? {
                return Ok(Some(delivery));
            }
        }
        Ok(None)
    }

    /// The one pair that can have anything, when that is a message: a conversation of two that is in full swing.
    #[inline]
    fn steady(&self) -> Option<PeerIndex> {
        let [index] = self.attended[..] else { return None };
        let nothing_else = self.pending.is_empty()
            && self.relays.is_quiet()
            && self.warned.is_empty()
            && self.note_floor == Some(0)
            && !self.doorbells.has_hints(self.doorbell)
            && self.doorbells.pulls(self.doorbell) == self.pulls_seen;
        (nothing_else && self.peer(index).is_some_and(|peer| !peer.has_bits())).then_some(index)
    }

    /// Whether a look can only find nothing: no hint, nothing pending, and the attended lanes are as they were.
    ///
    /// Cost: two loads of our doorbell and two for each attended peer, all in our cache while nothing comes.
    #[inline]
    pub(super) fn is_quiet(&self) -> bool {
        self.pending.is_empty()
            && self.relays.is_quiet()
            && self.warned.is_empty()
            && !self.doorbells.has_hints(self.doorbell)
            && self.doorbells.pulls(self.doorbell) == self.pulls_seen
            && self
                .attended
                .iter()
                .all(|&index| self.peer(index).is_none_or(|peer| !peer.has_message() && !peer.has_bits()))
    }

    /// A pair brought something: there may be more, for which its sender need not ring.
    #[inline]
    fn expect_more(&mut self, index: PeerIndex, attend: bool) {
        if attend {
            self.attend(index);
            // Whoever attends looks each time: a hint that stays would keep every look from being a quick one.
            self.pending.clear(index);
        } else {
            self.pending.set(index);
        }
    }

    /// The pair whose message is next in turn: from the one after that served last, round and round.
    fn next_message(&mut self, host: &mut dyn Host) -> Option<PeerIndex> {
        let start = self.served + 1;
        self.scan(start..u32::MAX, host).or_else(|| self.scan(0..start, host))
    }

    /// The first pair in `range` that has a message.
    fn scan(&mut self, range: std::ops::Range<u32>, host: &mut dyn Host) -> Option<PeerIndex> {
        let (mut from, to) = (range.start, range.end);
        loop {
            let attended = self.attended.iter().copied().filter(|i| i.0 >= from).min();
            let pending = self.pending.first_from(from);
            let index = match (attended, pending) {
                (Some(a), Some(p)) => a.min(p),
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => return None,
            };
            if index.0 >= to {
                return None;
            }
            if self.peer(index).is_some_and(|peer| peer.has_message()) {
                return Some(index);
            }
            if pending == Some(index) {
                self.settle(index, host);
            }
            from = index.0 + 1;
        }
    }

    /// A hinted pair had no message: it is pending no more, unless it still has bits, or has ended.
    fn settle(&mut self, index: PeerIndex, host: &mut dyn Host) {
        if self.peer(index).is_some_and(|p| p.has_bits()) {
            return;
        }
        self.pending.clear(index);
        if self.look_at_end(index).is_some() {
            self.close_if_drained(index, host);
            if self.peer(index).is_some() {
                self.pending.set(index);
            }
        }
    }

    /// Takes the message at the front of a pair's lane, whatever it is: extents, withdrawn slots. A `Corrupt` condemns the
    /// pair.
    ///
    /// `relays_only`: nothing of the peer itself, which keeps its place.
    fn take_from(
        &mut self,
        index: PeerIndex,
        relays_only: bool,
        host: &mut dyn Host,
    ) -> Result<Option<Delivery>, Corrupt> {
        // A peer that withdraws as fast as we skip keeps nobody else waiting.
        for _ in 0..LANE_SLOTS {
            let Some(peer) = self.peer(index) else { return Ok(None) };
            if !peer.has_message() {
                return Ok(None);
            }
            if relays_only && peer.reader.is_plain(&peer.side) {
                return Ok(None);
            }
            if peer.reader.has_extent(&peer.side) && !self.front_can_be_read(index, host)? {
                return Ok(None);
            }
            let Some(peer) = self.peer_mut(index) else { return Ok(None) };
            let source = peer.endpoint;
            let may_send = peer.allowed.from_peer;
            let slot = match peer.reader.take(&peer.path.own, &peer.side, source) {
                Ok(Take::Message(slot)) if !may_send.carries(slot.head.kind) => {
                    let what = "sent without the privilege";
                    return Err(self.condemn(index, Corrupt::new(what, slot.head.kind as u64)));
                }
                Ok(Take::Message(slot)) => slot,
                Ok(Take::Empty) => return Ok(None),
                Ok(Take::Skipped(slot)) => {
                    self.skipped(index, &slot);
                    continue;
                }
                Err(corrupt) => return Err(self.condemn(index, corrupt)),
            };
            let has_extent = slot.claim().is_some();
            if let Some(peer) = self.peer(index)
                && (slot.head.has(TELL) || (has_extent && peer.proxied))
            {
                peer.path.knock();
            }
            match self.take_in(index, &slot) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(corrupt) => return Err(self.condemn(index, corrupt)),
            }
            let view = match self.view_of(index, &slot) {
                Ok(view) => view,
                Err(corrupt) => return Err(self.condemn(index, corrupt)),
            };
            self.counters.received += 1;
            let (what, owed) = self.owed(index, &slot);
            return Ok(Some(Delivery::of_slot(source, what, &slot, view, owed)));
        }
        Ok(None)
    }

    /// What a slot is, and what its client waits for.
    #[inline(always)]
    fn owed(&self, index: PeerIndex, slot: &SlotCopy) -> (What, Option<Owed>) {
        match self.peer(index) {
            Some(peer) if slot.head.kind == Kind::Request => {
                // Its client brings this word up to date often enough for half a number to name one call.
                let call = call_of(slot.call, peer.side.gave_up());
                (What::Request { call }, Some(Owed::new(peer.path.clone(), call)))
            }
            _ => (What::Message, None),
        }
    }

    /// A withdrawn slot was consumed.
    #[cold]
    fn skipped(&mut self, index: PeerIndex, slot: &SlotCopy) {
        self.counters.skipped += 1;
        self.give_back(index, slot);
        if let Some(peer) = self.peer(index)
            && slot.head.has(TELL)
        {
            peer.path.knock();
        }
    }

    /// Whether the extent of the slot at the front is mapped, or can be. Before the slot counts as taken.
    #[cold]
    fn front_can_be_read(&mut self, index: PeerIndex, host: &mut dyn Host) -> Result<bool, Corrupt> {
        let Some(peer) = self.peer(index) else { return Ok(true) };
        let front = LaneReader::peek(&peer.side, peer.reader.next(), peer.endpoint);
        let readable = match front {
            Ok(Some(slot)) => self.can_read(index, &slot, host),
            Ok(None) => Ok(true),
            Err(corrupt) => Err(corrupt),
        };
        readable.map_err(|corrupt| self.condemn(index, corrupt))
    }

    /// What `receive` from one endpoint hands out next: its notifications first, then its messages; nothing of anybody else.
    pub fn due_from(
        &mut self,
        source: Endpoint,
        accepts: Accepts,
        host: &mut dyn Host,
    ) -> Result<Option<Due>, ReceiveError> {
        self.glance(host).map_err(ReceiveError::Unavailable)?;
        let Some(index) = self.find(source) else {
            return match self.known(source) {
                super::Known::Alive => Ok(None),
                super::Known::Dead | super::Known::NodeDead => Err(ReceiveError::DeadSource),
            };
        };
        let Some(peer) = self.peer(index) else { return Ok(None) };
        if accepts.notifications && peer.has_bits() && self.look_at_end(index).is_none() {
            let bits = self.take_bits(index);
            if self.overstepped.is_some_and(|(who, _)| who == index) {
                self.close_overstepped(host)?;
            }
            if bits != 0 {
                return Ok(Some(Due::Notification { source, bits }));
            }
        }
        if let Some(via) = self.peer(index).and_then(|peer| peer.confirmed)
            && let Some(via) = self.find(via.via)
        {
            self.draw_relays(via, host)?;
        }
        let message = self.peer(index).is_some_and(|peer| peer.has_message()).then_some(Due::Message(index));
        Ok(self.relays.due_from(source).or(message))
    }

    /// Takes in what a pair passes on, as far as nothing of its own stands before it.
    fn draw_relays(&mut self, index: PeerIndex, host: &mut dyn Host) -> Result<(), ReceiveError> {
        match self.take_from(index, true, host) {
            Ok(_nothing) => Ok(()),
            // Not of whom is listened to. It is counted, its pair ends, and what it had not passed on is abandoned.
            Err(_) => {
                self.close(index, host);
                Ok(())
            }
        }
    }

    /// What is here from one endpoint, if anything.
    pub fn poll_from(
        &mut self,
        source: Endpoint,
        accepts: Accepts,
        host: &mut dyn Host,
    ) -> Result<Option<Delivery>, ReceiveError> {
        match self.due_from(source, accepts, host)? {
            Some(due) => self.take_due(due, accepts, host),
            None => Ok(None),
        }
    }

    /// Whether the endpoint that is waited for has ended and left nothing. Asked when a wait has lasted a little.
    pub fn poll_from_end(&mut self, source: Endpoint, host: &mut dyn Host) -> Result<(), ReceiveError> {
        let Some(index) = self.find(source) else { return Ok(()) };
        if self.look_at_end(index).is_some() && self.close_if_drained(index, host) {
            return Err(ReceiveError::DeadSource);
        }
        Ok(())
    }
}
