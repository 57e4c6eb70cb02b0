//! Driver: the calls. Each is started in the core, waited for, and ended, or withdrawn when its time is over.
//!
//! Neighbours: `waiting` (how a call waits), `core` (what it does), `binding` (the handle).

use std::time::{Duration, Instant};

use abi::Endpoint;
use abi::limits::{INTRODUCTION_WAIT_MS, WITHDRAW_WAIT_MS};
use crossbeam_utils::Backoff;
use shm::lane::Withdrawal;

use super::{Binding, NoPeer, Wait};
use crate::core::{Accepts, Call, Core, PeerIndex, Sent};
use crate::daemon::Daemon;
use crate::error::{
    NotifyError, PostError, ReceiveError, RelayError, ReplyError, SendError, SendrecError, Unavailable,
    WaitError,
};
use crate::message::{Delivery, From, Message};
use crate::timeout::Timeout;
use crate::waiting::{Look, deadline_of, left_until};

impl Binding {
    /// Sends, and returns when the receiver has taken it: end to end, on another node too.
    ///
    /// Shape: one slot on the lane to `to`; a loan stays where it is. Cost: two cache lines; a system call only if
    /// somebody sleeps. Errors: see [`SendError`]; on every one a loan goes home as soon as nobody can read it.
    /// Source: DVS `dvk_send`, MINIX `send`.
    pub fn send(&mut self, to: Endpoint, mut message: Message, timeout: Timeout) -> Result<(), SendError> {
        let deadline = deadline_of(timeout);
        let index = match self.peer(to, deadline, timeout) {
            Ok(index) => index,
            Err(NoPeer::Dead) => return Err(SendError::DeadDestination),
            Err(NoPeer::NotPermitted) => return Err(SendError::NotPermitted),
            Err(NoPeer::NotInTime) if timeout == Timeout::Zero => return Err(SendError::WouldBlock),
            Err(NoPeer::NotInTime) => return Err(SendError::TimedOut),
            Err(NoPeer::Unavailable(why)) => return Err(SendError::Unavailable(why)),
        };
        self.stage(index, &mut message).map_err(SendError::Unavailable)?;
        let sent = self.core.start_send(index, &mut message, self.may_end_early(timeout))?;
        let waited = self.wait_on(Some(index), deadline, |core, _, look| {
            core.poll_sent(sent).or_else(|| if look == Look::Quick { None } else { core.poll_sent_end(sent) })
        });
        match waited {
            Some(done) => done,
            None => {
                let withdrawn = self.withdraw(sent, timeout);
                self.settle_rings();
                withdrawn
            }
        }
    }

    /// Whether the wait of a call may end before the call does, so that what it sent must be fit to be withdrawn.
    fn may_end_early(&self, timeout: Timeout) -> bool {
        timeout != Timeout::Forever || self.interruptible
    }

    fn withdraw(&mut self, sent: Sent, timeout: Timeout) -> Result<(), SendError> {
        let bound = Instant::now() + Duration::from_millis(WITHDRAW_WAIT_MS);
        let backoff = Backoff::new();
        loop {
            match self.core.withdraw(sent, &mut self.daemon) {
                Err(corrupt) => return Err(SendError::Corrupt(corrupt)),
                Ok(Withdrawal::Taken) => return Err(SendError::TimedOutTaken),
                Ok(Withdrawal::Withdrawn) if self.interrupted => return Err(SendError::Interrupted),
                Ok(Withdrawal::Withdrawn) if timeout == Timeout::Zero => return Err(SendError::WouldBlock),
                Ok(Withdrawal::Withdrawn) => return Err(SendError::TimedOut),
                Ok(Withdrawal::Undecided) if Instant::now() >= bound => {
                    return Err(SendError::TimedOutUnknown);
                }
                Ok(Withdrawal::Undecided) => backoff.snooze(),
            }
        }
    }

    /// Puts a message into the lane and returns. Exactly once and in order, as `send`.
    ///
    /// Errors: [`PostError::Full`] gives the message back.
    pub fn post(&mut self, to: Endpoint, message: Message) -> Result<(), PostError> {
        match self.peer(to, deadline_of(Timeout::Forever), Timeout::Forever) {
            Ok(index) => {
                let posted = match self.must_stage(&message) {
                    false => self.core.post(index, message),
                    true => self.post_staged(index, message),
                };
                self.settle_rings();
                posted
            }
            Err(NoPeer::Dead) => Err(PostError::DeadDestination),
            Err(NoPeer::NotPermitted) => Err(PostError::NotPermitted),
            Err(NoPeer::NotInTime) => Err(PostError::Full(message)),
            Err(NoPeer::Unavailable(why)) => Err(PostError::Unavailable(why)),
        }
    }

    /// Waits until a `post` to this endpoint would find room.
    pub fn wait_room(&mut self, to: Endpoint, timeout: Timeout) -> Result<(), WaitError> {
        let deadline = deadline_of(timeout);
        let index = match self.peer(to, deadline, timeout) {
            Ok(index) => index,
            Err(NoPeer::Dead) => return Err(WaitError::DeadDestination),
            Err(NoPeer::NotPermitted) => return Err(WaitError::NotPermitted),
            Err(NoPeer::NotInTime) => return Err(WaitError::TimedOut),
            Err(NoPeer::Unavailable(why)) => return Err(WaitError::Unavailable(why)),
        };
        self.wait_for_room(index, deadline)
    }

    fn wait_for_room(&mut self, index: PeerIndex, deadline: Option<Instant>) -> Result<(), WaitError> {
        self.core.want_returns(index, true);
        let waited = self.wait_on(Some(index), deadline, |core, _, look| match core.has_room(index) {
            Err(corrupt) => Some(Err(WaitError::Corrupt(corrupt))),
            Ok(true) => Some(Ok(())),
            Ok(false) if look != Look::Quick && core.has_ended(index) => {
                Some(Err(WaitError::DeadDestination))
            }
            Ok(false) => None,
        });
        self.core.want_returns(index, false);
        waited.unwrap_or(Err(if self.interrupted { WaitError::Interrupted } else { WaitError::TimedOut }))
    }

    /// Posts, waiting for room as often as needed.
    ///
    /// Errors: as `post`, without `Full`; the wait's as [`SendError`].
    pub fn post_all(
        &mut self,
        to: Endpoint,
        mut message: Message,
        timeout: Timeout,
    ) -> Result<(), SendError> {
        loop {
            match self.post(to, message) {
                Ok(()) => return Ok(()),
                Err(PostError::Full(back)) => message = back,
                Err(PostError::DeadDestination) => return Err(SendError::DeadDestination),
                Err(PostError::NotPermitted) => return Err(SendError::NotPermitted),
                Err(PostError::Corrupt(why)) => return Err(SendError::Corrupt(why)),
                Err(PostError::Unavailable(why)) => return Err(SendError::Unavailable(why)),
            }
            match self.wait_room(to, timeout) {
                Ok(()) => {}
                Err(WaitError::TimedOut) => return Err(SendError::TimedOut),
                Err(WaitError::Interrupted) => return Err(SendError::Interrupted),
                Err(WaitError::DeadDestination) => return Err(SendError::DeadDestination),
                Err(WaitError::NotPermitted) => return Err(SendError::NotPermitted),
                Err(WaitError::Corrupt(why)) => return Err(SendError::Corrupt(why)),
                Err(WaitError::Unavailable(why)) => return Err(SendError::Unavailable(why)),
            }
        }
    }

    /// Receives a message, a request or a notification.
    ///
    /// Order: a wake-up, notifications (lowest slot first), after each round of them one message; senders in turn; first in,
    /// first out for each. `From::Endpoint` only ever returns something of that endpoint. Source: MINIX `receive`.
    pub fn receive(&mut self, from: From, timeout: Timeout) -> Result<Delivery, ReceiveError> {
        self.receive_accepting(from, timeout, true)
    }

    /// Receives a request, a plain message or a wake-up; never a notification. The server's half of `sendrec`.
    ///
    /// A request dropped without a `reply` answers its client with [`SendrecError::Abandoned`].
    pub fn receive_request(&mut self, timeout: Timeout) -> Result<Delivery, ReceiveError> {
        self.receive_accepting(From::Any, timeout, false)
    }

    fn receive_accepting(
        &mut self,
        from: From,
        timeout: Timeout,
        notifications: bool,
    ) -> Result<Delivery, ReceiveError> {
        let accepts = Accepts { notifications, attend: self.wait != Wait::Block };
        let deadline = deadline_of(timeout);
        let mut misses = 0;
        loop {
            let polls = timeout == Timeout::Zero && self.polls();
            let look = |core: &mut Core, daemon: &mut Daemon, look: Look| {
                let due = match from {
                    From::Any => core.due(accepts, daemon),
                    From::Endpoint(source) => match core.due_from(source, accepts, daemon) {
                        Ok(None) if look != Look::Quick => core.poll_from_end(source, daemon).map(|()| None),
                        due => due,
                    },
                };
                due.transpose()
            };
            let waited = match polls {
                true => self.look_and_arm(look).map_err(ReceiveError::Unavailable)?,
                false => self.wait_on(None, deadline, look),
            };
            let due = match waited {
                Some(due) => due?,
                None if self.interrupted => return Err(ReceiveError::Interrupted),
                None if timeout == Timeout::Zero => return Err(ReceiveError::WouldBlock),
                None => return Err(ReceiveError::TimedOut),
            };
            if let Ok(delivery) = self.core.take_due_bytes(due, accepts) {
                self.settle_rings();
                return Ok(delivery);
            }
            let taken = self.core.take_due(due, accepts, &mut self.daemon);
            self.settle_rings();
            if let Some(delivery) = taken? {
                return Ok(delivery);
            }
            // Each pair may turn out to have nothing, once.
            misses += 1;
            if misses > self.core.pairs() && left_until(deadline).is_none() {
                return Err(ReceiveError::TimedOut);
            }
        }
    }

    /// Sends a request and returns its reply: one round trip.
    ///
    /// Errors: see [`SendrecError`]; `WouldBlock` while a call that was started to `to` is open. A late reply is dropped. Source: MINIX `sendrec`.
    pub fn sendrec(
        &mut self,
        to: Endpoint,
        mut message: Message,
        timeout: Timeout,
    ) -> Result<Delivery, SendrecError> {
        if !self.open_calls.is_empty() && self.open_calls.contains(&to) {
            return Err(SendrecError::WouldBlock);
        }
        let deadline = deadline_of(timeout);
        let index = match self.peer(to, deadline, timeout) {
            Ok(index) => index,
            Err(NoPeer::Dead) => return Err(SendrecError::DeadDestination),
            Err(NoPeer::NotPermitted) => return Err(SendrecError::NotPermitted),
            Err(NoPeer::NotInTime) if timeout == Timeout::Zero => return Err(SendrecError::WouldBlock),
            Err(NoPeer::NotInTime) => return Err(SendrecError::TimedOut),
            Err(NoPeer::Unavailable(why)) => return Err(SendrecError::Unavailable(why)),
        };
        self.stage(index, &mut message).map_err(SendrecError::Unavailable)?;
        let mut call = self.core.start_call(index, &mut message, self.may_end_early(timeout))?;
        loop {
            let waited = self.wait_on(Some(call.peer()), deadline, |core, daemon, look| {
                if core.is_answered(call) {
                    return Some(Ok(()));
                }
                match look {
                    Look::Quick => None,
                    Look::Thorough => core.call_end(call),
                    Look::Last if core.is_deadlock(call) => {
                        core.give_up(call, true, daemon);
                        Some(Err(SendrecError::Deadlock))
                    }
                    Look::Last => core.call_end(call),
                }
            });
            let Some(ended) = waited else { return Err(self.give_up(call, timeout)) };
            ended?;
            if let Ok(reply) = self.core.take_answer_bytes(call) {
                return Ok(reply);
            }
            if let Some(to) = self.core.redirected(call) {
                call = self.follow(call, to, deadline, timeout)?;
                // Servers that pass it round and round must not keep us beyond our time.
                if left_until(deadline).is_none() {
                    return Err(self.give_up(call, timeout));
                }
                continue;
            }
            if let Some(done) = self.core.take_answer(call, &mut self.daemon) {
                return done;
            }
            // It was there and is not: whoever answers so must not keep us beyond our time.
            if left_until(deadline).is_none() {
                return Err(self.give_up(call, timeout));
            }
        }
    }

    /// Our call was passed on: waits for the new server from now on.
    #[cold]
    fn follow(
        &mut self,
        call: Call,
        to: Result<Endpoint, SendrecError>,
        deadline: Option<Instant>,
        timeout: Timeout,
    ) -> Result<Call, SendrecError> {
        if let Ok(to) = to {
            // The server that passed it on may know the new one before this node does.
            let longest = Duration::from_millis(INTRODUCTION_WAIT_MS);
            let within = Timeout::After(left_until(deadline).unwrap_or_default().min(longest));
            let heard = self.wait_for_table(within, |me| (!me.core.is_unheard_of(to)).then_some(()));
            if heard == Err(WaitError::Interrupted) {
                return Err(self.give_up(call, timeout));
            }
        }
        let index = match to.map(|to| self.peer_for(to, true, deadline, timeout)) {
            Ok(Ok(index)) => index,
            Ok(Err(NoPeer::NotInTime)) => return Err(self.give_up(call, timeout)),
            refused => {
                self.give_up(call, timeout);
                return Err(match refused {
                    Err(why) => why,
                    Ok(Err(NoPeer::Unavailable(why))) => SendrecError::Unavailable(why),
                    Ok(Err(NoPeer::NotPermitted)) => SendrecError::NotPermitted,
                    // The server that passed it on had taken it.
                    Ok(_) => SendrecError::DeadSource,
                });
            }
        };
        loop {
            match self.core.follow(call, index, self.may_end_early(timeout)) {
                Err(SendrecError::Full) => {}
                followed => return followed,
            }
            match self.wait_for_room(index, deadline) {
                Ok(()) | Err(WaitError::DeadDestination) => {}
                Err(_) => return Err(self.give_up(call, timeout)),
            }
        }
    }

    pub(super) fn give_up(&mut self, call: Call, timeout: Timeout) -> SendrecError {
        let bound = Instant::now() + Duration::from_millis(WITHDRAW_WAIT_MS);
        let backoff = Backoff::new();
        loop {
            match self.core.give_up(call, Instant::now() >= bound, &mut self.daemon) {
                Some(SendrecError::TimedOut) if self.interrupted => return SendrecError::Interrupted,
                Some(SendrecError::TimedOut) if timeout == Timeout::Zero => return SendrecError::WouldBlock,
                Some(why) => {
                    self.settle_rings();
                    return why;
                }
                None => backoff.snooze(),
            }
        }
    }

    /// Answers a request that was received, once. Never blocks; `Ok` when it is published.
    pub fn reply(&mut self, request: &Delivery, message: Message) -> Result<(), ReplyError> {
        let replied = match self.must_stage(&message) {
            false => self.core.reply(request, message),
            true => self.reply_staged(request, message),
        };
        self.settle_rings();
        replied
    }

    /// Passes a request that was received on to another server, which answers its client. Never blocks once introduced.
    ///
    /// Shape: the message as it came; an extent is copied into a loan of ours, unless its view was taken out before. Cost:
    /// three slots, and one more of the client, which confirms to the new server before that gets the request. Errors: see
    /// [`RelayError`]; on every one the request is still ours to answer. Source: DVS `dvk_relay`.
    pub fn relay(&mut self, request: &Delivery, to: Endpoint) -> Result<(), RelayError> {
        let index = match self.peer(to, deadline_of(Timeout::Forever), Timeout::Forever) {
            Ok(index) => index,
            Err(NoPeer::Dead) => return Err(RelayError::DeadDestination),
            Err(NoPeer::NotPermitted) => return Err(RelayError::NotPermitted),
            Err(NoPeer::NotInTime) => return Err(RelayError::Unavailable(Unavailable::Slow)),
            Err(NoPeer::Unavailable(why)) => return Err(RelayError::Unavailable(why)),
        };
        let mut message = request.to_message();
        if let Some(view) = request.view() {
            let mut loan = self.pair_loan(index, view.len() as u32).map_err(RelayError::Loan)?;
            view.copy_to(&mut loan);
            message = message.with(loan);
        }
        let relayed = self.core.relay(request, index, message);
        self.settle_rings();
        relayed
    }

    /// Raises bits at an endpoint. Never blocks once introduced, never lost, or-ed until received.
    pub fn notify(&mut self, to: Endpoint, bits: u32) -> Result<(), NotifyError> {
        self.raise(to, |core, index| core.notify(index, bits))
    }

    /// Has an endpoint's `receive(From::Any)` or `receive_request` return `What::Woken`, now, or at once when it next waits.
    ///
    /// Never blocks once introduced. Several wake-ups of one source before the receiver looks are one.
    pub fn wake(&mut self, to: Endpoint) -> Result<(), NotifyError> {
        self.raise(to, Core::wake)
    }

    fn raise(
        &mut self,
        to: Endpoint,
        raise: impl FnOnce(&mut Core, PeerIndex) -> Result<(), NotifyError>,
    ) -> Result<(), NotifyError> {
        match self.peer(to, deadline_of(Timeout::Forever), Timeout::Forever) {
            Ok(index) => {
                let raised = raise(&mut self.core, index);
                self.settle_rings();
                raised
            }
            Err(NoPeer::Dead) => Err(NotifyError::DeadDestination),
            Err(NoPeer::NotPermitted) => Err(NotifyError::NotPermitted),
            Err(NoPeer::NotInTime) => Err(NotifyError::Unavailable(Unavailable::Slow)),
            Err(NoPeer::Unavailable(why)) => Err(NotifyError::Unavailable(why)),
        }
    }
}
