//! Extents on their way: which are out, with whom, and when they come home.
//!
//! Over shared memory an extent comes home when the receiver drops its view, by the return ring. Behind a proxy it is
//! home as soon as the far end has consumed the slot: the bytes were copied to the other node, and until then they are
//! needed, should the proxy have to send them again.

use std::cell::Cell;
use std::rc::Rc;

use abi::limits::{EXTENT_BYTES_PER_PAIR_MAX, EXTENTS_PER_PAIR_MAX};
use abi::slot::SlotCopy;
use abi::{Claim, Corrupt};
use shm::lane::look_again;
use shm::pool::{Extent, Loan};

use super::{Core, Host, PeerIndex};
use crate::error::Unavailable;
use crate::message::{Home, View};

/// By which publication an extent left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum By {
    Slot(u64),
    Reply(u64),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    extent: Extent,
    peer: PeerIndex,
    by: By,
}

/// All that is out, by token.
#[derive(Default)]
pub(super) struct Out {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
}

impl Out {
    fn put(&mut self, entry: Entry) -> u32 {
        let token = self.free.pop().unwrap_or(self.entries.len() as u32);
        match self.entries.get_mut(token as usize) {
            Some(place) => *place = Some(entry),
            None => self.entries.push(Some(entry)),
        }
        token
    }

    fn take(&mut self, token: u32, peer: PeerIndex) -> Option<Entry> {
        let place = self.entries.get_mut(token as usize)?;
        if place.as_ref()?.peer != peer {
            return None;
        }
        self.free.push(token);
        place.take()
    }
}

impl Core {
    /// Whether one more extent of this length may be out with the peer.
    pub(super) fn may_lend(&mut self, index: PeerIndex, len_bytes: u64) -> Result<bool, Corrupt> {
        self.bring_home(index)?;
        let Some(peer) = self.peer(index) else { return Ok(false) };
        Ok(peer.out.extents < EXTENTS_PER_PAIR_MAX
            && (peer.out.bytes + len_bytes <= EXTENT_BYTES_PER_PAIR_MAX || peer.out.extents == 0))
    }

    /// Whether one more extent of this length may be out with the peer. If that cannot be told, whoever lends hears why.
    pub fn has_lending_room(&mut self, index: PeerIndex, len_bytes: u64) -> bool {
        self.may_lend(index, len_bytes) == Ok(true)
    }

    /// Takes home what one peer no longer needs: all of it, if it has ended.
    pub fn bring_home_from(&mut self, index: PeerIndex) {
        if self.peer(index).is_some_and(|peer| peer.out.extents > 0) && self.look_at_end(index).is_some() {
            return self.take_home_all(index);
        }
        if let Err(corrupt) = self.bring_home(index) {
            self.condemn(index, corrupt);
        }
    }

    /// Gives a loan to the peer: enters it in the books and puts its descriptor into the slot.
    pub(super) fn lend(&mut self, index: PeerIndex, loan: Loan, by: By, message: &mut SlotCopy) -> u32 {
        let extent = loan.into_extent();
        let token = self.out.put(Entry { extent, peer: index, by });
        if let Some(peer) = self.peer_mut(index) {
            peer.out.extents += 1;
            peer.out.bytes += extent.len_bytes as u64;
        }
        message.set_claim(Claim {
            segment: extent.segment,
            token,
            offset_bytes: extent.offset_bytes,
            len_bytes: extent.len_bytes as u64,
        });
        token
    }

    pub(super) fn take_home(&mut self, index: PeerIndex, token: u32) -> bool {
        let Some(entry) = self.out.take(token, index) else { return false };
        if let Some(peer) = self.peer_mut(index) {
            peer.out.extents -= 1;
            peer.out.bytes -= entry.extent.len_bytes as u64;
        }
        // The books say that it was allocated: `Out` holds each extent once.
        match self.pair_pool(index) {
            None => self.pool.free(entry.extent).is_ok(),
            Some(pool) => pool.free(entry.extent).is_ok(),
        }
    }

    /// Takes home everything that is out with a peer that ended.
    pub(super) fn take_home_all(&mut self, index: PeerIndex) {
        for token in 0..self.out.entries.len() as u32 {
            self.take_home(index, token);
        }
    }

    /// Takes home what the peer no longer needs.
    pub(super) fn bring_home(&mut self, index: PeerIndex) -> Result<(), Corrupt> {
        let Some(peer) = self.peer_mut(index) else { return Ok(()) };
        if peer.out.extents == 0 {
            return Ok(());
        }
        if peer.proxied {
            let consumed = peer.writer.consumed(&peer.side)?;
            let consumed = if shm::mutant!(CreditsComeEarly) { consumed + 1 } else { consumed };
            let replied = peer.side.reply_taken().max(peer.side.gave_up());
            return self.take_home_covered(index, consumed, replied);
        }
        self.bring_home_reply(index);
        loop {
            let Some(peer) = self.peer_mut(index) else { return Ok(()) };
            let side = peer.side.clone();
            let Some((token, _)) = peer.returns.next(&side)? else { return Ok(()) };
            if !self.take_home(index, token) {
                return Err(Corrupt::new("an extent returned that is not out", token as u64));
            }
        }
    }

    /// Takes home the extent of a reply that its client gave up and so never takes.
    fn bring_home_reply(&mut self, index: PeerIndex) {
        let Some(peer) = self.peer_mut(index) else { return };
        let Some((call, token)) = peer.replied.filter(|(call, _)| peer.side.gave_up() >= *call) else {
            return;
        };
        // What it took before it gave up a later call is seen after the fence that its later call has passed.
        look_again();
        peer.replied = None;
        if peer.side.reply_taken() < call {
            self.take_home(index, token);
        }
    }

    /// Takes home what any peer no longer needs. Cost: a look at every pair; for when the pool is empty.
    pub fn bring_home_from_all(&mut self) {
        for index in 0..self.peers.len() as u32 {
            self.bring_home_from(PeerIndex(index));
        }
    }

    fn take_home_covered(&mut self, index: PeerIndex, consumed: u64, replied: u64) -> Result<(), Corrupt> {
        for token in 0..self.out.entries.len() as u32 {
            let covered = match &self.out.entries[token as usize] {
                Some(entry) if entry.peer == index => match entry.by {
                    By::Slot(sequence) => sequence < consumed,
                    By::Reply(call) => call <= replied,
                },
                _ => false,
            };
            if covered {
                self.take_home(index, token);
            }
        }
        Ok(())
    }

    /// Makes the segment of a received descriptor readable. `Ok(false)`: it cannot be had now; a proxy that died took it
    /// along, and its successor brings the message again, since nothing of it was consumed.
    pub(super) fn can_read(
        &mut self,
        index: PeerIndex,
        message: &SlotCopy,
        host: &mut dyn Host,
    ) -> Result<bool, Corrupt> {
        let (Some(claim), Some(peer)) = (message.claim(), self.peer(index)) else { return Ok(true) };
        let (proxied, key) = (peer.proxied, (peer.memory, claim.segment));
        if let Some(map) = self.segments.get(&key) {
            return claim.check(map.len_bytes() as u64).map(|_| true);
        }
        match host.map_segment(key.0, key.1) {
            Ok(map) => {
                let len_bytes = map.len_bytes() as u64;
                self.segments.insert(key, map);
                claim.check(len_bytes).map(|_| true)
            }
            Err(Unavailable::Refused(_)) if !proxied => {
                Err(Corrupt::new("an extent in a segment that there is not", claim.segment as u64))
            }
            Err(_) => {
                if let Some(peer) = self.peer_mut(index) {
                    peer.stalled = true;
                }
                Ok(false)
            }
        }
    }

    /// The view of a received slot's extent, after [`Core::can_read`].
    pub(super) fn view_of(&mut self, index: PeerIndex, message: &SlotCopy) -> Result<Option<View>, Corrupt> {
        let (Some(claim), Some(peer)) = (message.claim(), self.peer(index)) else { return Ok(None) };
        let (memory, path) = (peer.memory, Rc::clone(&peer.path));
        let Some(map) = self.segments.get(&(memory, claim.segment)) else { return Ok(None) };
        let range = claim.check(map.len_bytes() as u64)?;
        let home = Home { path, token: claim.token, memory, given: Cell::new(false) };
        Ok(Some(View::new(map.clone(), range, home)))
    }

    /// No pair leads to a memory any more: what was mapped of it goes, once no view shows it.
    pub(super) fn unmap_unused(&mut self, memory: u32) {
        if !self.peers.iter().flatten().any(|peer| peer.memory == memory) {
            self.segments.retain(|&(of, _), _| of != memory);
        }
    }

    /// Gives back the extent of a slot that is not handed out.
    pub(super) fn give_back(&mut self, index: PeerIndex, message: &SlotCopy) {
        let (Some(claim), Some(peer)) = (message.claim(), self.peer(index)) else { return };
        let path = Rc::clone(&peer.path);
        Home { path, token: claim.token, memory: peer.memory, given: Cell::new(false) }.give();
    }
}
