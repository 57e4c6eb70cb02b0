//! The receiving half: whose turn it is, and what is handed out.
//!
//! Order of `receive(Any)`: a wake-up, then notifications, lowest slot first; after each round of them one pending message; messages
//! first in, first out for each sender, and whoever has one pending is served before anyone is served twice.

use abi::slot::{EXTENT, Kind, TELL, call_of};
use abi::{Corrupt, Endpoint};
use shm::lane::{LaneReader, Take, Taken};
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
    /// Puts what is here for `receive(Any)`, if anything, into `got`, which is empty.
    ///
    /// Into a place of the caller's, here and below: a delivery is some 250 bytes, and handing it up by value through each
    /// of these calls costs more than the lane does.
    #[inline]
    pub fn poll_any(
        &mut self,
        accepts: Accepts,
        host: &mut dyn Host,
        got: &mut Option<Delivery>,
    ) -> Result<(), ReceiveError> {
        if let Some(index) = self.steady() {
            return self.serve(index, accepts.attend, host, got);
        }
        self.pull(host).map_err(ReceiveError::Unavailable)?;
        self.collect_hints();
        if self.next_wake(got) {
            return Ok(());
        }
        if accepts.notifications
            && let Some(floor) = self.note_floor
        {
            if self.next_notification(floor, got) {
                return Ok(());
            }
            self.note_floor = if floor == 0 { Some(0) } else { None };
        }
        self.next_message(accepts.attend, host, got)?;
        if self.note_floor.is_none() {
            // The round is over whether or not there was a message to serve.
            self.note_floor = Some(0);
            if accepts.notifications && got.is_none() {
                self.next_notification(0, got);
            }
        }
        Ok(())
    }

    /// The one pair that can have anything, when that is a message: a conversation of two that is in full swing.
    #[inline]
    fn steady(&self) -> Option<PeerIndex> {
        let [index] = self.attended[..] else { return None };
        let nothing_else = self.pending.is_empty()
            && self.note_floor == Some(0)
            && !self.doorbells.has_hints(self.doorbell)
            && self.doorbells.pulls(self.doorbell) == self.pulls_seen;
        (nothing_else && self.peer(index).is_some_and(|peer| !peer.has_bits())).then_some(index)
    }

    /// Takes what one pair has.
    #[inline]
    fn serve(
        &mut self,
        index: PeerIndex,
        attend: bool,
        host: &mut dyn Host,
        got: &mut Option<Delivery>,
    ) -> Result<(), ReceiveError> {
        match self.take_from(index, host, got) {
            Ok(()) if got.is_some() => {
                self.served = index.0;
                self.expect_more(index, attend);
                Ok(())
            }
            Ok(()) => Ok(()),
            Err(corrupt) => {
                self.close(index, host);
                Err(ReceiveError::Corrupt(corrupt))
            }
        }
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
            // Whoever attends looks each time: a hint that stays would keep every look from being a quick one.
            self.pending.clear(index);
        } else {
            self.pending.set(index);
        }
    }

    /// A wake-up that was not seen yet, whoever it is from.
    #[inline]
    fn next_wake(&mut self, got: &mut Option<Delivery>) -> bool {
        for at in 0..self.attended.len() {
            if self.wake_of(self.attended[at], got) {
                return true;
            }
        }
        let mut from = 0;
        while let Some(index) = self.pending.first_from(from) {
            if self.wake_of(index, got) {
                return true;
            }
            from = index.0 + 1;
        }
        false
    }

    #[inline]
    fn wake_of(&mut self, index: PeerIndex, got: &mut Option<Delivery>) -> bool {
        if self.peer(index).is_some_and(|peer| peer.has_bits()) {
            *got = self.take_wake(index);
        }
        got.is_some()
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

    #[inline]
    fn next_notification(&mut self, floor: u32, got: &mut Option<Delivery>) -> bool {
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
        match best {
            Some((slot, index)) => self.notification_of(slot, index, got),
            None => false,
        }
    }

    #[cold]
    fn notification_of(&mut self, slot: u32, index: PeerIndex, got: &mut Option<Delivery>) -> bool {
        // The bits of a dead notifier are cleared, not delivered.
        if self.look_at_end(index).is_some() {
            return self.next_notification(slot + 1, got);
        }
        let bits = self.take_bits(index);
        self.note_floor = Some(slot + 1);
        match self.peer(index).map(|peer| peer.endpoint) {
            Some(source) if bits != 0 => *got = Some(Delivery::of_bits(source, bits)),
            _ => return self.next_notification(slot + 1, got),
        }
        true
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
    #[inline]
    fn next_message(
        &mut self,
        attend: bool,
        host: &mut dyn Host,
        got: &mut Option<Delivery>,
    ) -> Result<(), ReceiveError> {
        let start = self.served + 1;
        self.scan(start..u32::MAX, attend, host, got)?;
        if got.is_none() {
            self.scan(0..start, attend, host, got)?;
        }
        Ok(())
    }

    /// Serves the first pair in `range` that has a message.
    #[inline]
    fn scan(
        &mut self,
        range: std::ops::Range<u32>,
        attend: bool,
        host: &mut dyn Host,
        got: &mut Option<Delivery>,
    ) -> Result<(), ReceiveError> {
        let (mut from, to) = (range.start, range.end);
        loop {
            let attended = self.attended.iter().copied().filter(|i| i.0 >= from).min();
            let pending = self.pending.first_from(from);
            let index = match (attended, pending) {
                (Some(a), Some(p)) => a.min(p),
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => return Ok(()),
            };
            if index.0 >= to {
                return Ok(());
            }
            let was_pending = pending == Some(index);
            self.serve(index, attend, host, got)?;
            if got.is_some() {
                return Ok(());
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
    fn take_from(
        &mut self,
        index: PeerIndex,
        host: &mut dyn Host,
        got: &mut Option<Delivery>,
    ) -> Result<(), Corrupt> {
        let Some(peer) = self.peers.get_mut(index.0 as usize).and_then(|peer| peer.as_deref_mut()) else {
            return Ok(());
        };
        if !peer.has_message() {
            return Ok(());
        }
        if peer.reader.has_extent(&peer.side) {
            return self.take_any_from(index, host, got);
        }
        let source = peer.endpoint;
        let delivery = got.insert(Delivery::blank(source));
        let put = |at: usize, word: u64| delivery.body().put(at, word);
        let heading = match peer.reader.take_body(&peer.path.own, &peer.side, source, put) {
            Ok(Taken::Message(heading)) if !heading.head.has(EXTENT) => heading,
            Ok(taken) => {
                *got = None;
                return self.not_taken(index, taken, host, got);
            }
            Err(corrupt) => {
                *got = None;
                return Err(self.condemn(index, corrupt));
            }
        };
        if heading.head.has(TELL) {
            peer.path.knock();
        }
        let (what, owed) = match heading.head.kind {
            Kind::Request => {
                // Its client brings this word up to date often enough for half a number to name one call.
                let call = call_of(heading.call, peer.side.gave_up());
                (What::Request { call }, Some(Owed::new(peer.path.clone(), self.me, call)))
            }
            Kind::Post | Kind::Send | Kind::Reply => (What::Message, None),
        };
        delivery.fill(heading, what, None, owed);
        self.counters.received += 1;
        Ok(())
    }

    /// The slot at the front was no plain message after all.
    #[cold]
    fn not_taken(
        &mut self,
        index: PeerIndex,
        taken: Taken,
        host: &mut dyn Host,
        got: &mut Option<Delivery>,
    ) -> Result<(), Corrupt> {
        match taken {
            Taken::Empty => Ok(()),
            Taken::Skipped(heading) => {
                self.counters.skipped += 1;
                if let Some(peer) = self.peer(index)
                    && heading.head.has(TELL)
                {
                    peer.path.knock();
                }
                self.take_any_from(index, host, got)
            }
            Taken::Message(heading) => {
                let flags = heading.head.flags as u64;
                Err(self.condemn(index, Corrupt::new("an extent that was not there at first", flags)))
            }
        }
    }

    /// As [`Core::take_from`], whatever is at the front: extents, withdrawn slots.
    fn take_any_from(
        &mut self,
        index: PeerIndex,
        host: &mut dyn Host,
        got: &mut Option<Delivery>,
    ) -> Result<(), Corrupt> {
        loop {
            let Some(peer) = self.peer_mut(index) else { return Ok(()) };
            if !peer.has_message() {
                return Ok(());
            }
            let source = peer.endpoint;
            let path = peer.path.clone();
            if peer.reader.has_extent(&peer.side) && !self.front_can_be_read(index, host)? {
                return Ok(());
            }
            let Some(peer) = self.peer_mut(index) else { return Ok(()) };
            let took = match peer.reader.take(&path.own, &peer.side, source) {
                Ok(took) => took,
                Err(corrupt) => return Err(self.condemn(index, corrupt)),
            };
            let slot = match took {
                Take::Empty => return Ok(()),
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
                // Its client brings this word up to date often enough for half a number to name one call.
                let call = call_of(slot.call, path.far.borrow().side.gave_up());
                (What::Request { call }, Some(Owed::new(path, self.me, call)))
            } else {
                (What::Message, None)
            };
            *got = Some(Delivery::of_slot(source, what, &slot, view, owed));
            return Ok(());
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

    /// Puts what is here from one endpoint into `got`: its notifications first, then its messages; nothing of anybody else.
    pub fn poll_from(
        &mut self,
        source: Endpoint,
        accepts: Accepts,
        host: &mut dyn Host,
        got: &mut Option<Delivery>,
    ) -> Result<(), ReceiveError> {
        self.pull(host).map_err(ReceiveError::Unavailable)?;
        let Some(index) = self.find(source) else {
            return match self.known(source) {
                super::Known::Alive => Ok(()),
                super::Known::Dead | super::Known::NodeDead => Err(ReceiveError::DeadSource),
            };
        };
        let has_bits = self.peer(index).is_some_and(|p| p.has_bits());
        if accepts.notifications && has_bits && self.look_at_end(index).is_none() {
            let bits = self.take_bits(index);
            if bits != 0 {
                *got = Some(Delivery::of_bits(source, bits));
                return Ok(());
            }
        }
        match self.take_from(index, host, got) {
            Ok(()) => {
                if got.is_some() {
                    self.expect_more(index, accepts.attend);
                }
                Ok(())
            }
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
