//! The sending half: send, post, sendrec, reply, notify, and what ends each of them.

use abi::limits::CALLS_KNOWN_EVERY;
use abi::slot::{self, Heading, Kind, SlotCopy};
use abi::{Corrupt, Endpoint};
use shm::lane::Withdrawal;
use shm::{notify, reply};

use super::extents::By;
use super::{Core, Host, NotBytes, PeerIndex};
use crate::error::{PostError, RelayError, ReplyError, SendError, SendrecError};
use crate::message::{Delivery, Message, View, What};
use crate::peer::End;

/// A published rendezvous that waits to be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sent {
    pub(super) peer: PeerIndex,
    sequence: u64,
}

/// A published request that waits for its reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    pub(super) sent: Sent,
    pub(super) call: u64,
    /// The server that had taken it passed it on; what was sent now is the confirmation.
    pub(super) passed_on: bool,
}

impl Sent {
    /// The pair it waits on.
    pub fn peer(&self) -> PeerIndex {
        self.peer
    }
}

impl Call {
    pub fn peer(&self) -> PeerIndex {
        self.sent.peer
    }
}

impl From<NotPublished> for RelayError {
    fn from(why: NotPublished) -> Self {
        match why {
            NotPublished::Full => RelayError::Full,
            NotPublished::Dead => RelayError::DeadDestination,
            NotPublished::Corrupt(corrupt) => RelayError::Corrupt(corrupt),
        }
    }
}

/// Why nothing was published.
pub(crate) enum NotPublished {
    Full,
    Dead,
    Corrupt(Corrupt),
}

impl From<NotPublished> for SendError {
    fn from(why: NotPublished) -> Self {
        match why {
            NotPublished::Full => SendError::Full,
            NotPublished::Dead => SendError::DeadDestination,
            NotPublished::Corrupt(corrupt) => SendError::Corrupt(corrupt),
        }
    }
}

impl From<NotPublished> for SendrecError {
    fn from(why: NotPublished) -> Self {
        match why {
            NotPublished::Full => SendrecError::Full,
            NotPublished::Dead => SendrecError::DeadDestination,
            NotPublished::Corrupt(corrupt) => SendrecError::Corrupt(corrupt),
        }
    }
}

impl Core {
    /// Publishes on the lane to a pair. All checks of a send are here: generation, death, room, extents.
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
        if peer.end.is_some() || self.known(endpoint) != super::Known::Alive {
            self.look_at_end(index);
            return Err(NotPublished::Dead);
        }
        if let Some(loan) = &message.loan {
            let len_bytes = loan.len() as u64;
            match self.may_lend(index, len_bytes) {
                Ok(true) => {}
                Ok(false) => return Err(NotPublished::Full),
                Err(corrupt) => return Err(NotPublished::Corrupt(self.condemn(index, corrupt))),
            }
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
            Err(NotPublished::Corrupt(corrupt)) => Err(PostError::Corrupt(corrupt)),
        }
    }

    /// Publishes a rendezvous; `withdrawable` if its wait may end early.
    pub fn start_send(
        &mut self,
        index: PeerIndex,
        mut message: Message,
        withdrawable: bool,
    ) -> Result<Sent, SendError> {
        let flags = slot::TELL | if withdrawable { slot::WITHDRAWABLE } else { 0 };
        self.publish(index, &mut message, Kind::Send, flags, 0).map_err(SendError::from)
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
            End::NodeDead if self.may_have_left(sent) => SendError::DeliveryUnknown,
            End::NodeDead => SendError::DeadDestination,
        }))
    }

    fn is_taken(&mut self, sent: Sent) -> Result<bool, Corrupt> {
        let Some(peer) = self.peer_mut(sent.peer) else { return Ok(false) };
        match peer.writer.consumed(&peer.side) {
            Ok(consumed) => Ok(consumed > sent.sequence),
            Err(corrupt) => Err(self.condemn(sent.peer, corrupt)),
        }
    }

    fn may_have_left(&self, sent: Sent) -> bool {
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

    /// Publishes a request. The message's loan is taken out of it when that succeeds.
    #[inline]
    pub fn start_call(
        &mut self,
        index: PeerIndex,
        message: &mut Message,
        withdrawable: bool,
    ) -> Result<Call, SendrecError> {
        self.calls += 1;
        let call = self.calls;
        if call.is_multiple_of(CALLS_KNOWN_EVERY) {
            self.tell_calls(call);
        }
        let flags = if withdrawable { slot::WITHDRAWABLE } else { 0 };
        if let Some(peer) = self.peer(index) {
            peer.path.own.set_calling(call);
        }
        match self.publish(index, message, Kind::Request, flags, slot::call_low(call)) {
            Ok(sent) => Ok(Call { sent, call, passed_on: false }),
            Err(why) => {
                self.end_call(index);
                Err(why.into())
            }
        }
    }

    /// Every call before this one is over.
    #[cold]
    fn tell_calls(&mut self, call: u64) {
        for peer in self.peers.iter().flatten() {
            peer.path.own.set_gave_up(call - 1);
        }
    }

    pub(super) fn end_call(&mut self, index: PeerIndex) {
        if let Some(peer) = self.peer(index) {
            peer.path.own.set_calling(0);
        }
    }

    /// Whether the answer to the call is there: [`Core::take_answer`] takes it. Cost: one load.
    #[inline]
    pub fn is_answered(&self, call: Call) -> bool {
        self.peer(call.sent.peer).is_some_and(|peer| match reply::front(&peer.side, call.call) {
            Some(head) => !(peer.stalled && slot::has_flag(head, slot::EXTENT)),
            None => false,
        })
    }

    /// Takes an answer that is bytes alone to where it is wanted.
    #[inline(always)]
    pub fn take_answer_bytes(&mut self, call: Call) -> Result<Delivery, NotBytes> {
        let Some(peer) = self.peer(call.sent.peer) else { return Err(NotBytes) };
        let source = peer.endpoint;
        match reply::read(&peer.side, call.call, source) {
            Ok(Some(slot)) if slot.head.flags & (slot::ABANDONED | slot::EXTENT | slot::REDIRECT) == 0 => {
                peer.path.own.set_calling(0);
                self.counters.received += 1;
                Ok(Delivery::of_slot(source, What::Reply, &slot, None, None))
            }
            _ => Err(NotBytes),
        }
    }

    /// Takes an answer, whatever it is: bytes, an extent, the word that there is none. `None`: it is not there after all,
    /// or comes from another: see [`Core::redirected`].
    pub fn take_answer(&mut self, call: Call, host: &mut dyn Host) -> Option<Result<Delivery, SendrecError>> {
        let index = call.sent.peer;
        let peer = self.peer(index)?;
        let source = peer.endpoint;
        let slot = match reply::read(&peer.side, call.call, source) {
            // A reply to a call that is not current cannot get here: `read` asked for this one.
            Ok(slot) => slot?,
            Err(corrupt) => return Some(Err(self.corrupt_reply(index, corrupt))),
        };
        if slot.head.has(slot::ABANDONED) {
            self.end_call(index);
            return Some(Err(SendrecError::Abandoned));
        }
        if slot.head.has(slot::REDIRECT) {
            return None;
        }
        let view = match self.view_of_reply(call, &slot, host) {
            Ok(view) => view?,
            Err(corrupt) => return Some(Err(self.corrupt_reply(index, corrupt))),
        };
        self.end_call(index);
        self.counters.received += 1;
        Some(Ok(Delivery::of_slot(source, What::Reply, &slot, view, None)))
    }

    /// Whether the call has ended, and how.
    pub fn poll_call(&mut self, call: Call, host: &mut dyn Host) -> Option<Result<Delivery, SendrecError>> {
        if self.is_answered(call) { self.take_answer(call, host) } else { None }
    }

    /// The server broke the protocol: the call is over, and the pair.
    #[cold]
    fn corrupt_reply(&mut self, index: PeerIndex, corrupt: Corrupt) -> SendrecError {
        self.end_call(index);
        SendrecError::Corrupt(self.condemn(index, corrupt))
    }

    /// The extent of a reply, if it has one. `Ok(None)`: the proxy that brought it is gone, its successor brings it again.
    #[inline]
    fn view_of_reply(
        &mut self,
        call: Call,
        slot: &SlotCopy,
        host: &mut dyn Host,
    ) -> Result<Option<Option<View>>, Corrupt> {
        if !slot.head.has(slot::EXTENT) {
            return Ok(Some(None));
        }
        let index = call.sent.peer;
        if self.peer(index).is_none_or(|peer| peer.stalled) || !self.can_read(index, slot, host)? {
            return Ok(None);
        }
        let view = self.view_of(index, slot)?;
        if let Some(peer) = self.peer(index) {
            peer.path.own.set_reply_taken(call.call);
            // A proxy keeps the far end's extent until it hears of this.
            if peer.proxied {
                peer.path.knock();
            }
        }
        Ok(Some(view))
    }

    /// Whether the server has ended, and so the call. `Ok`: it had answered, which counts.
    pub fn call_end(&mut self, call: Call) -> Option<Result<(), SendrecError>> {
        let index = call.sent.peer;
        let end = self.look_at_end(index)?;
        // Published before its death, seen after.
        if self.is_answered(call) {
            return Some(Ok(()));
        }
        let taken = self.is_taken(call.sent);
        self.end_call(index);
        Some(Err(match (end, taken) {
            (_, Err(corrupt)) => SendrecError::Corrupt(corrupt),
            (_, Ok(true)) => SendrecError::DeadSource,
            (_, Ok(false)) if call.passed_on => SendrecError::DeadSource,
            (End::NodeDead, Ok(false)) if self.may_have_left(call.sent) => SendrecError::DeliveryUnknown,
            (_, Ok(false)) => SendrecError::DeadDestination,
        }))
    }

    /// Whether the server itself waits for our reply, which it will not get while we wait for its. Asked after
    /// [`Core::stop_attending`], whose fence makes one of the two see the other.
    pub fn is_deadlock(&self, call: Call) -> bool {
        self.peer(call.sent.peer).is_some_and(|peer| {
            let theirs = peer.side.calling();
            !peer.proxied && theirs != 0 && !reply::is_published(&peer.path.own, theirs)
        })
    }

    /// The time of a call is over. `None`: undecided, ask again within its bound.
    pub fn give_up(&mut self, call: Call, last: bool, host: &mut dyn Host) -> Option<SendrecError> {
        let index = call.sent.peer;
        let outcome = self.withdraw(call.sent, host);
        if outcome == Ok(Withdrawal::Undecided) && !last {
            return None;
        }
        if let Some(peer) = self.peer(index) {
            peer.path.own.set_gave_up(call.call);
        }
        self.end_call(index);
        Some(match outcome {
            // The server that passed it on had taken it.
            Ok(_) if call.passed_on => SendrecError::TimedOutTaken,
            Ok(Withdrawal::Withdrawn) => SendrecError::TimedOut,
            Ok(Withdrawal::Taken) => SendrecError::TimedOutTaken,
            Ok(Withdrawal::Undecided) => SendrecError::TimedOutUnknown,
            Err(corrupt) => SendrecError::Corrupt(corrupt),
        })
    }

    /// Answers a request. Never waits.
    #[inline]
    pub fn reply(&mut self, request: &Delivery, mut message: Message) -> Result<(), ReplyError> {
        let Some(owed) = request.owed() else { return Err(ReplyError::NotARequest) };
        if owed.is_answered() {
            return Err(ReplyError::Answered);
        }
        let replied = self.reply_to(request.source(), owed.call(), &mut message);
        if replied != Err(ReplyError::Full) {
            owed.settle();
        }
        replied
    }

    /// An earlier reply that was never taken: its client has called again, so it never will be.
    pub(super) fn retire_reply(&mut self, index: PeerIndex, call: u64) {
        let Some(peer) = self.peer_mut(index) else { return };
        if let Some((earlier, token)) = peer.replied.take()
            && earlier != call
            && !peer.proxied
            && peer.side.reply_taken() < earlier
        {
            self.take_home(index, token);
        }
    }

    #[inline]
    fn reply_to(&mut self, client: Endpoint, call: u64, message: &mut Message) -> Result<(), ReplyError> {
        let Some(index) = self.find(client) else { return Err(ReplyError::NotWaiting) };
        let me = self.me;
        let Some(peer) = self.peer_mut(index) else { return Err(ReplyError::NotWaiting) };
        if peer.end.is_some() || peer.side.gave_up() >= call {
            return Err(ReplyError::NotWaiting);
        }
        if peer.replied.is_some() {
            self.retire_reply(index, call);
        }
        if let Some(loan) = &message.loan {
            let len_bytes = loan.len() as u64;
            if self.may_lend(index, len_bytes) != Ok(true) {
                return Err(ReplyError::Full);
            }
        }
        let heading = message.heading(Kind::Reply, 0, me, 0);
        let loan = message.loan.take();
        if let Some(loan) = loan {
            let mut slot = message.to_slot(heading);
            let token = self.lend(index, loan, By::Reply(call), &mut slot);
            let Some(peer) = self.peer_mut(index) else { return Err(ReplyError::NotWaiting) };
            peer.replied = Some((call, token));
            reply::publish(&peer.path.own, call, &slot, peer.proxied);
        } else {
            let Some(peer) = self.peer(index) else { return Err(ReplyError::NotWaiting) };
            reply::publish_body(&peer.path.own, call, heading, peer.proxied, |at| message.word(at));
        }
        if let Some(peer) = self.peer(index) {
            peer.path.knock();
        }
        self.counters.sent += 1;
        Ok(())
    }

    /// Raises bits at the peer. Never blocks, never lost.
    pub fn notify(&mut self, index: PeerIndex, bits: u32) -> bool {
        let Some(peer) = self.peer(index) else { return false };
        if peer.end.is_some() || self.known(peer.endpoint) != super::Known::Alive {
            return false;
        }
        notify::raise(&peer.path.own, bits);
        peer.path.knock();
        true
    }

    /// Ends the peer's wait for anybody, now or when it next begins one.
    pub fn wake(&mut self, index: PeerIndex) -> bool {
        let Some(peer) = self.peer(index) else { return false };
        if peer.end.is_some() || self.known(peer.endpoint) != super::Known::Alive {
            return false;
        }
        notify::raise_wake(&peer.path.own);
        peer.path.knock();
        true
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
