//! What is raised instead of sent: wake-ups and notifications, and what becomes of whoever raises what it may not.
//!
//! Neighbours: `receive` (whose turn it is), `shm::notify` (the counters).

use abi::{Corrupt, Kinds};
use shm::notify;

use super::{Core, Due, Host, PeerIndex};
use crate::error::ReceiveError;

impl Core {
    /// A wake-up that was not seen yet, whoever it is from.
    pub(super) fn next_wake(&mut self) -> Option<Due> {
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
    fn wake_of(&mut self, index: PeerIndex) -> Option<Due> {
        if self.peer(index).is_some_and(|peer| peer.has_bits()) { self.take_wake(index) } else { None }
    }

    #[cold]
    fn take_wake(&mut self, index: PeerIndex) -> Option<Due> {
        // As the bits of a dead notifier, its wake-up is cleared.
        if self.look_at_end(index).is_some() {
            return None;
        }
        let peer = self.peer_mut(index)?;
        if !peer.allowed.from_peer.has(Kinds::WAKE) && notify::is_woken(&peer.path.own, &peer.side) {
            self.oversteps(index, Kinds::WAKE);
            return None;
        }
        let raises = notify::raises(&peer.side);
        if !notify::take_wake(&peer.path.own, &peer.side) {
            return None;
        }
        if !notify::has_unseen_bits(&peer.path.own, &peer.side) {
            peer.raises_seen = raises;
        }
        Some(Due::Woken { source: peer.endpoint })
    }

    pub(super) fn next_notification(&mut self, floor: u32) -> Option<Due> {
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
        self.notification_of(slot, index)
    }

    #[cold]
    fn notification_of(&mut self, slot: u32, index: PeerIndex) -> Option<Due> {
        // The bits of a dead notifier are cleared, not delivered.
        if self.look_at_end(index).is_some() {
            return self.next_notification(slot + 1);
        }
        let bits = self.take_bits(index);
        self.note_floor = Some(slot + 1);
        match self.peer(index).map(|peer| peer.endpoint) {
            Some(source) if bits != 0 => Some(Due::Notification { source, bits }),
            _ => self.next_notification(slot + 1),
        }
    }

    pub(super) fn take_bits(&mut self, index: PeerIndex) -> u32 {
        let Some(peer) = self.peer_mut(index) else { return 0 };
        if !peer.allowed.from_peer.has(Kinds::NOTIFY) && notify::has_unseen_bits(&peer.path.own, &peer.side) {
            self.oversteps(index, Kinds::NOTIFY);
            return 0;
        }
        let raises = notify::raises(&peer.side);
        let bits = notify::take(&peer.path.own, &peer.side);
        // A wake-up waits for whoever receives from anybody.
        if !notify::is_woken(&peer.path.own, &peer.side) {
            peer.raises_seen = raises;
        }
        self.counters.received += (bits != 0) as u64;
        bits
    }

    /// A look at what is raised found something that may not be: the pair is closed.
    pub(super) fn close_overstepped(&mut self, host: &mut dyn Host) -> Result<(), ReceiveError> {
        let Some((index, corrupt)) = self.overstepped.take() else { return Ok(()) };
        self.close(index, host);
        Err(ReceiveError::Corrupt(corrupt))
    }

    /// The peer raised what it may not.
    #[cold]
    fn oversteps(&mut self, index: PeerIndex, kind: Kinds) {
        let corrupt = self.condemn(index, Corrupt::new("raised without the privilege", kind.bits().into()));
        self.overstepped = Some((index, corrupt));
        // A look that finds something else first is followed by another.
        self.pending.set(index);
    }
}
