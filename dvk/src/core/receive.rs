//! The receiving half: whose turn it is, and what is handed out.
//!
//! Order of `receive(Any)`: a wake-up, then notifications, lowest slot first; after each round of them one pending message; messages
//! first in, first out for each sender, and whoever has one pending is served before anyone is served twice.

use abi::slot::{EXTENT, Kind, TELL};
use abi::{Corrupt, Endpoint};
use shm::lane::{LaneReader, Take};
use shm::notify;

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

impl Core {
    /// What is here for `receive(Any)`, if anything.
    #[inline]
    pub fn poll_any(
        &mut self,
        accepts: Accepts,
        host: &mut dyn Host,
    ) -> Result<Option<Delivery>, ReceiveError> {
        self.pull(host).map_err(ReceiveError::Unavailable)?;
        self.collect_hints();
        if let Some(woken) = self.next_wake() {
            return Ok(Some(woken));
        }
        if accepts.notifications
            && let Some(floor) = self.note_floor
        {
            if let Some(delivery) = self.next_notification(floor) {
                return Ok(Some(delivery));
            }
            self.note_floor = if floor == 0 { Some(0) } else { None };
        }
        let message = self.next_message(accepts.attend, host);
        if self.note_floor.is_none() {
            // The round is over whether or not there was a message to serve.
            self.note_floor = Some(0);
            if accepts.notifications && matches!(message, Ok(None)) {
                return Ok(self.next_notification(0));
            }
        }
        message
    }

    /// Whether a look can only find nothing: no hint, nothing pending, and the attended lanes are as they were.
    ///
    /// Cost: two loads of our doorbell and two for each attended peer, all in our cache while nothing comes.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        self.pending.is_empty()
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
        } else {
            self.pending.set(index);
        }
    }

    /// A wake-up that was not seen yet, whoever it is from.
    #[inline]
    fn next_wake(&mut self) -> Option<Delivery> {
        for at in 0..self.attended.len() {
            if let Some(woken) = self.wake_of(self.attended[at]) {
                return Some(woken);
            }
        }
        let mut from = 0;
        while let Some(index) = self.pending.first_from(from) {
            if let Some(woken) = self.wake_of(index) {
                return Some(woken);
            }
            from = index.0 + 1;
        }
        None
    }

    #[inline]
    fn wake_of(&mut self, index: PeerIndex) -> Option<Delivery> {
        if self.peer(index)?.has_bits() { self.take_wake(index) } else { None }
    }

    #[cold]
    fn take_wake(&mut self, index: PeerIndex) -> Option<Delivery> {
        // As the bits of a dead notifier, its wake-up is cleared.
        if self.look_at_end(index).is_some() {
            return None;
        }
        let peer = self.peer_mut(index)?;
        let raises = notify::raises(&peer.side);
        if !notify::take_wake(&peer.path.own, &peer.side) {
            return None;
        }
        if !notify::has_unseen_bits(&peer.path.own, &peer.side) {
            peer.raises_seen = raises;
        }
        Some(Delivery::of_wake(peer.endpoint))
    }

    fn next_notification(&mut self, floor: u32) -> Option<Delivery> {
        let mut best: Option<(u32, PeerIndex)> = None;
        let mut consider = |core: &Core, index: PeerIndex| {
            let Some(peer) = core.peer(index) else { return };
            let slot = peer.endpoint.slot.0 as u32;
            if slot >= floor && best.is_none_or(|(lowest, _)| slot < lowest) && peer.has_bits() {
                best = Some((slot, index));
            }
        };
        for at in 0..self.attended.len() {
            consider(self, self.attended[at]);
        }
        let mut from = 0;
        while let Some(index) = self.pending.first_from(from) {
            consider(self, index);
            from = index.0 + 1;
        }
        let (slot, index) = best?;
        // The bits of a dead notifier are cleared, not delivered.
        if self.look_at_end(index).is_some() {
            return self.next_notification(slot + 1);
        }
        let bits = self.take_bits(index);
        self.note_floor = Some(slot + 1);
        let source = self.peer(index)?.endpoint;
        if bits == 0 { self.next_notification(slot + 1) } else { Some(Delivery::of_bits(source, bits)) }
    }

    fn take_bits(&mut self, index: PeerIndex) -> u32 {
        let Some(peer) = self.peer_mut(index) else { return 0 };
        let raises = notify::raises(&peer.side);
        let bits = notify::take(&peer.path.own, &peer.side);
        // A wake-up waits for whoever receives from anybody.
        if !notify::is_woken(&peer.path.own, &peer.side) {
            peer.raises_seen = raises;
        }
        self.counters.received += (bits != 0) as u64;
        bits
    }

    /// The next message in turn: from the pair after the one served last, round and round.
    fn next_message(&mut self, attend: bool, host: &mut dyn Host) -> Result<Option<Delivery>, ReceiveError> {
        let start = self.served + 1;
        if let Some(found) = self.scan(start, u32::MAX, attend, host)? {
            return Ok(Some(found));
        }
        self.scan(0, start, attend, host)
    }

    /// Serves the first pair in `[from, to)` that has a message.
    fn scan(
        &mut self,
        mut from: u32,
        to: u32,
        attend: bool,
        host: &mut dyn Host,
    ) -> Result<Option<Delivery>, ReceiveError> {
        loop {
            let attended = self.attended.iter().copied().filter(|i| i.0 >= from).min();
            let pending = self.pending.first_from(from);
            let index = match (attended, pending) {
                (Some(a), Some(p)) => a.min(p),
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => return Ok(None),
            };
            if index.0 >= to {
                return Ok(None);
            }
            let was_pending = pending == Some(index);
            match self.take_from(index, host) {
                Ok(Some(delivery)) => {
                    self.served = index.0;
                    self.expect_more(index, attend);
                    return Ok(Some(delivery));
                }
                Ok(None) => {}
                Err(corrupt) => {
                    self.close(index, host);
                    return Err(ReceiveError::Corrupt(corrupt));
                }
            }
            if was_pending {
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

    /// Takes one message from a pair's lane. A `Corrupt` condemns the pair.
    #[inline]
    fn take_from(&mut self, index: PeerIndex, host: &mut dyn Host) -> Result<Option<Delivery>, Corrupt> {
        loop {
            let Some(peer) = self.peer_mut(index) else { return Ok(None) };
            if !peer.has_message() {
                return Ok(None);
            }
            let source = peer.endpoint;
            let path = peer.path.clone();
            if peer.reader.has_extent(&peer.side) && !self.front_can_be_read(index, host)? {
                return Ok(None);
            }
            let Some(peer) = self.peer_mut(index) else { return Ok(None) };
            let took = match peer.reader.take(&path.own, &peer.side, source) {
                Ok(took) => took,
                Err(corrupt) => return Err(self.condemn(index, corrupt)),
            };
            let slot = match took {
                Take::Empty => return Ok(None),
                Take::Skipped(slot) => {
                    self.counters.skipped += 1;
                    self.give_back(index, &slot);
                    if slot.head.has(TELL) {
                        path.knock();
                    }
                    continue;
                }
                Take::Message(slot) => slot,
            };
            if slot.head.has(TELL) || (slot.head.has(EXTENT) && self.peer(index).is_some_and(|p| p.proxied)) {
                path.knock();
            }
            let view = match self.view_of(index, &slot) {
                Ok(view) => view,
                Err(corrupt) => return Err(self.condemn(index, corrupt)),
            };
            self.counters.received += 1;
            let (what, owed) = if slot.head.kind == Kind::Request {
                (What::Request { call: slot.call }, Some(Owed::new(path, self.me, slot.call)))
            } else {
                (What::Message, None)
            };
            return Ok(Some(Delivery::of_slot(source, what, &slot, view, owed)));
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

    /// What is here from one endpoint: its notifications first, then its messages; nothing of anybody else.
    pub fn poll_from(
        &mut self,
        source: Endpoint,
        accepts: Accepts,
        host: &mut dyn Host,
    ) -> Result<Option<Delivery>, ReceiveError> {
        self.pull(host).map_err(ReceiveError::Unavailable)?;
        let Some(index) = self.find(source) else {
            return match self.known(source) {
                super::Known::Alive => Ok(None),
                super::Known::Dead | super::Known::NodeDead => Err(ReceiveError::DeadSource),
            };
        };
        let has_bits = self.peer(index).is_some_and(|p| p.has_bits());
        if accepts.notifications && has_bits && self.look_at_end(index).is_none() {
            let bits = self.take_bits(index);
            if bits != 0 {
                return Ok(Some(Delivery::of_bits(source, bits)));
            }
        }
        match self.take_from(index, host) {
            Ok(Some(delivery)) => {
                self.expect_more(index, accepts.attend);
                Ok(Some(delivery))
            }
            Ok(None) => Ok(None),
            Err(corrupt) => {
                self.close(index, host);
                Err(ReceiveError::Corrupt(corrupt))
            }
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
