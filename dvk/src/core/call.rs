//! Both halves of a call: sendrec, and the reply that ends it. Neighbours: `send` (how a request is published), `relay`
//! (when another answers).

use std::rc::Rc;

use abi::limits::CALLS_KNOWN_EVERY;
use abi::slot::{self, Kind, SlotCopy};
use abi::{Corrupt, Endpoint};
use shm::lane::Withdrawal;
use shm::pool::Loan;
use shm::reply;

use super::extents::By;
use super::{Core, Host, NotBytes, PeerIndex, Sent};
use crate::error::{ReplyError, SendrecError};
use crate::message::{Delivery, Message, View, What};
use crate::peer::{End, Path};

/// A published request that waits for its reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    pub(super) sent: Sent,
    pub(super) call: u64,
    /// The server that had taken it passed it on; what was sent now is the confirmation.
    pub(super) passed_on: bool,
}

impl Call {
    pub fn peer(&self) -> PeerIndex {
        self.sent.peer
    }

    /// Its number, among all calls of this binding.
    pub fn number(&self) -> u64 {
        self.call
    }
}

/// Keeps a pair from being forgotten while a call in steps is open on it.
pub struct Hold(Rc<Path>);

impl Hold {
    /// Whether the pair is the one it was; it is not when its peer broke the protocol.
    pub fn is_open(&self) -> bool {
        self.0.is_open()
    }
}

impl Core {
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
        if call - self.calls_told >= CALLS_KNOWN_EVERY {
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

    /// Publishes a request whose caller does not stand still for the reply: it may answer others meanwhile, so nobody is told
    /// that it waits. Over with [`Core::close_call`]. As many as one likes may be open, one for each pair.
    pub fn open_call(&mut self, index: PeerIndex, message: &mut Message) -> Result<Call, SendrecError> {
        self.calls += 1;
        let call = self.calls;
        if call - self.calls_told >= CALLS_KNOWN_EVERY {
            self.tell_calls(call);
        }
        let sent = self.publish(index, message, Kind::Request, slot::WITHDRAWABLE, slot::call_low(call))?;
        self.open_calls.insert(call);
        Ok(Call { sent, call, passed_on: false })
    }

    /// An open call has ended. `number`: of when it was opened.
    pub fn close_call(&mut self, number: u64) {
        self.open_calls.remove(&number);
    }

    /// Keeps a pair.
    pub fn hold(&self, index: PeerIndex) -> Option<Hold> {
        self.peer(index).map(|peer| Hold(peer.path.clone()))
    }

    /// Every call before this one is over, but for those that are open.
    #[cold]
    fn tell_calls(&mut self, call: u64) {
        let call = self.open_calls.first().map_or(call, |&oldest| oldest.min(call));
        self.calls_told = self.calls_told.max(call);
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
    pub(super) fn corrupt_reply(&mut self, index: PeerIndex, corrupt: Corrupt) -> SendrecError {
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
            (_, Ok(true)) if !shm::mutant!(DeathForgetsTheTaken) => SendrecError::DeadSource,
            (_, Ok(false)) if call.passed_on => SendrecError::DeadSource,
            (End::Lost, Ok(false)) if self.may_have_left(call.sent) => SendrecError::DeliveryUnknown,
            (_, Ok(_)) => SendrecError::DeadDestination,
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
    // Inlined for whoever answers with bytes alone; a private binding with a loan has a call of its own.
    #[inline(always)]
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

    #[inline(never)]
    fn may_answer_with(&mut self, index: PeerIndex, loan: &Loan) -> bool {
        self.may_lend(index, loan.len() as u64) == Ok(true) && self.is_lendable(index, loan)
    }

    #[inline(always)]
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
        if let Some(loan) = &message.loan
            && !self.may_answer_with(index, loan)
        {
            return Err(ReplyError::Full);
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
}
