//! The sending half: send, post, notify, and what ends each of them. Neighbour: `call` (sendrec and reply).

use abi::slot::{self, Heading, Kind};
use abi::{Corrupt, Kinds};
use shm::lane::Withdrawal;
use shm::notify;
use shm::pool::Loan;

use super::extents::By;
use super::{Core, Host, PeerIndex};
use crate::error::{NotifyError, PostError, RelayError, SendError, SendrecError};
use crate::message::Message;
use crate::peer::{End, Peer};

/// A published rendezvous that waits to be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sent {
    pub(super) peer: PeerIndex,
    sequence: u64,
}

impl Sent {
    /// The pair it waits on.
    pub fn peer(&self) -> PeerIndex {
        self.peer
    }
}

impl From<NotPublished> for RelayError {
    fn from(why: NotPublished) -> Self {
        match why {
            NotPublished::Full => RelayError::Full,
            NotPublished::NotPermitted => RelayError::NotPermitted,
            NotPublished::Dead => RelayError::DeadDestination,
            NotPublished::Corrupt(corrupt) => RelayError::Corrupt(corrupt),
        }
    }
}

/// Why nothing was published.
pub(crate) enum NotPublished {
    Full,
    Dead,
    /// The cluster file does not let us.
    NotPermitted,
    Corrupt(Corrupt),
}

impl From<NotPublished> for SendError {
    fn from(why: NotPublished) -> Self {
        match why {
            NotPublished::Full => SendError::Full,
            NotPublished::NotPermitted => SendError::NotPermitted,
            NotPublished::Dead => SendError::DeadDestination,
            NotPublished::Corrupt(corrupt) => SendError::Corrupt(corrupt),
        }
    }
}

impl From<NotPublished> for SendrecError {
    fn from(why: NotPublished) -> Self {
        match why {
            NotPublished::Full => SendrecError::Full,
            NotPublished::NotPermitted => SendrecError::NotPermitted,
            NotPublished::Dead => SendrecError::DeadDestination,
            NotPublished::Corrupt(corrupt) => SendrecError::Corrupt(corrupt),
        }
    }
}

impl Core {
    /// Publishes on the lane to a pair. All checks of a send are here: generation, death, privileges, room, extents.
    #[inline]
    pub(super) fn publish(
        &mut self,
        index: PeerIndex,
        message: &mut Message,
        kind: Kind,
        flags: u8,
        call: u32,
    ) -> Result<Sent, NotPublished> {
        let Some(peer) = self.peer(index) else { return Err(NotPublished::Dead) };
        let endpoint = peer.endpoint;
        if peer.end.is_some() || self.is_over(endpoint) {
            self.look_at_end(index);
            return Err(NotPublished::Dead);
        }
        if !peer.allowed.to_peer.carries(kind) {
            return Err(NotPublished::NotPermitted);
        }
        if let Some(loan) = &message.loan {
            self.check_loan(index, loan)?;
        }
        let me = self.me;
        let Some(peer) = self.peer_mut(index) else { return Err(NotPublished::Dead) };
        match peer.writer.has_room(&peer.side) {
            Ok(true) => {}
            Ok(false) => return Err(NotPublished::Full),
            Err(corrupt) => return Err(NotPublished::Corrupt(self.condemn(index, corrupt))),
        }
        let heading = message.heading(kind, flags | peer.flags_for_next(), me, call);
        if message.loan.is_some() {
            return self.publish_loan(index, message, heading);
        }
        let sequence = peer.writer.publish_body(&peer.path.own, heading, |at| message.word(at));
        peer.path.knock();
        self.counters.sent += 1;
        Ok(Sent { peer: index, sequence })
    }

    /// Whether a loan may go out to the peer. Apart, so that what goes without one is as short as can be.
    #[inline(never)]
    fn check_loan(&mut self, index: PeerIndex, loan: &Loan) -> Result<(), NotPublished> {
        match self.may_lend(index, loan.len() as u64) {
            // A private binding lends what was put where the peer alone may read.
            Ok(true) if self.is_lendable(index, loan) => Ok(()),
            Ok(_) => Err(NotPublished::Full),
            Err(corrupt) => Err(NotPublished::Corrupt(self.condemn(index, corrupt))),
        }
    }

    fn publish_loan(
        &mut self,
        index: PeerIndex,
        message: &mut Message,
        heading: Heading,
    ) -> Result<Sent, NotPublished> {
        let mut slot = message.to_slot(heading);
        let next = self.peer(index).map_or(0, |peer| peer.writer.next());
        if let Some(loan) = message.loan.take() {
            self.lend(index, loan, By::Slot(next), &mut slot);
        }
        let Some(peer) = self.peer_mut(index) else { return Err(NotPublished::Dead) };
        let sequence = peer.writer.publish(&peer.path.own, &mut slot);
        peer.path.knock();
        self.counters.sent += 1;
        Ok(Sent { peer: index, sequence })
    }

    /// Publishes asynchronously.
    #[inline]
    pub fn post(&mut self, index: PeerIndex, mut message: Message) -> Result<(), PostError> {
        match self.publish(index, &mut message, Kind::Post, 0, 0) {
            Ok(_) => Ok(()),
            Err(NotPublished::Full) => Err(PostError::Full(message)),
            Err(NotPublished::Dead) => Err(PostError::DeadDestination),
            Err(NotPublished::NotPermitted) => Err(PostError::NotPermitted),
            Err(NotPublished::Corrupt(corrupt)) => Err(PostError::Corrupt(corrupt)),
        }
    }

    /// Publishes a rendezvous; `withdrawable` if its wait may end early. Its loan is taken out when that succeeds.
    pub fn start_send(
        &mut self,
        index: PeerIndex,
        message: &mut Message,
        withdrawable: bool,
    ) -> Result<Sent, SendError> {
        let flags = slot::TELL | if withdrawable { slot::WITHDRAWABLE } else { 0 };
        self.publish(index, message, Kind::Send, flags, 0).map_err(SendError::from)
    }

    /// Whether a rendezvous has ended, and how. Cost: one load.
    #[inline]
    pub fn poll_sent(&mut self, sent: Sent) -> Option<Result<(), SendError>> {
        match self.is_taken(sent) {
            Err(corrupt) => Some(Err(SendError::Corrupt(corrupt))),
            Ok(true) => Some(Ok(())),
            Ok(false) => None,
        }
    }

    /// Whether the peer's end has ended the rendezvous. Asked when a wait has lasted a little.
    pub fn poll_sent_end(&mut self, sent: Sent) -> Option<Result<(), SendError>> {
        let end = self.look_at_end(sent.peer)?;
        // The consumed counter is final now: looked at again, after the end was seen.
        if let Some(done) = self.poll_sent(sent) {
            return Some(done);
        }
        Some(Err(match end {
            End::Dead { .. } => SendError::DeadDestination,
            End::Lost if self.may_have_left(sent) && !shm::mutant!(DeathCountsAsUnsent) => {
                SendError::DeliveryUnknown
            }
            End::Lost => SendError::DeadDestination,
        }))
    }

    pub(super) fn is_taken(&mut self, sent: Sent) -> Result<bool, Corrupt> {
        let Some(peer) = self.peer_mut(sent.peer) else { return Ok(false) };
        match peer.writer.consumed(&peer.side) {
            Ok(consumed) => Ok(consumed > sent.sequence),
            Err(corrupt) => Err(self.condemn(sent.peer, corrupt)),
        }
    }

    pub(super) fn may_have_left(&self, sent: Sent) -> bool {
        self.peer(sent.peer).is_some_and(|p| p.writer.may_have_left(&p.side, sent.sequence))
    }

    /// The time of a rendezvous is over: takes it back if that can be.
    pub fn withdraw(&mut self, sent: Sent, host: &mut dyn Host) -> Result<Withdrawal, Corrupt> {
        let outcome = self.mark_withdrawn(sent)?;
        if outcome != Withdrawal::Withdrawn || self.peer(sent.peer).is_none_or(|p| !p.proxied) {
            return Ok(outcome);
        }
        // A proxy's successor may have sent the slot before the mark, and says so in a side that we have not seen yet.
        match self.pull(host) {
            Ok(()) => self.mark_withdrawn(sent),
            Err(_) => Ok(Withdrawal::Undecided),
        }
    }

    fn mark_withdrawn(&mut self, sent: Sent) -> Result<Withdrawal, Corrupt> {
        let Some(peer) = self.peer_mut(sent.peer) else { return Ok(Withdrawal::Undecided) };
        let side = peer.side.clone();
        let path = peer.path.clone();
        match peer.writer.withdraw(&path.own, &side, sent.sequence) {
            Err(corrupt) => Err(self.condemn(sent.peer, corrupt)),
            // The receiver returns the extent of a slot it skips; a certain withdrawal is skipped too.
            Ok(outcome) => {
                path.knock();
                Ok(outcome)
            }
        }
    }

    /// Raises bits at the peer. Never blocks, never lost.
    pub fn notify(&mut self, index: PeerIndex, bits: u32) -> Result<(), NotifyError> {
        let peer = self.raises_at(index, Kinds::NOTIFY)?;
        notify::raise(&peer.path.own, bits);
        peer.path.knock();
        Ok(())
    }

    /// The peer, if it lives and we may raise that at it.
    fn raises_at(&self, index: PeerIndex, kind: Kinds) -> Result<&Peer, NotifyError> {
        let peer = self.peer(index).ok_or(NotifyError::DeadDestination)?;
        if peer.end.is_some() || self.is_over(peer.endpoint) {
            return Err(NotifyError::DeadDestination);
        }
        if peer.allowed.to_peer.has(kind) { Ok(peer) } else { Err(NotifyError::NotPermitted) }
    }

    /// Ends the peer's wait for anybody, now or when it next begins one.
    pub fn wake(&mut self, index: PeerIndex) -> Result<(), NotifyError> {
        let peer = self.raises_at(index, Kinds::WAKE)?;
        notify::raise_wake(&peer.path.own);
        peer.path.knock();
        Ok(())
    }

    /// Whether a slot of the lane to the peer is free and no extent limit is reached.
    pub fn has_room(&mut self, index: PeerIndex) -> Result<bool, Corrupt> {
        if let Err(corrupt) = self.bring_home(index) {
            return Err(self.condemn(index, corrupt));
        }
        let Some(peer) = self.peer_mut(index) else { return Ok(false) };
        let lendable = peer.out.extents < abi::limits::EXTENTS_PER_PAIR_MAX;
        match peer.writer.has_room(&peer.side) {
            Ok(room) => Ok(room && lendable),
            Err(corrupt) => Err(self.condemn(index, corrupt)),
        }
    }

    /// Whether the peer has ended, for a wait that is about it alone.
    pub fn has_ended(&mut self, index: PeerIndex) -> bool {
        self.peer(index).is_none() || self.look_at_end(index).is_some()
    }

    /// Tells the peer to ring when it gives an extent back, or no longer to.
    pub fn want_returns(&self, index: PeerIndex, on: bool) {
        if let Some(peer) = self.peer(index) {
            peer.path.own.set_wants_returns(on);
        }
    }

    /// Scans the pair by ourselves while we spin for it.
    pub fn attend_to(&mut self, index: PeerIndex) {
        self.attend(index);
    }
}
