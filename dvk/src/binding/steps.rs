//! Driver: calls in steps, for a program that waits in a loop of its own: start, poll whenever `poll_fd` is readable, end.
//!
//! None of these waits. Neighbours: `calls` (the same calls, waiting by themselves), `polls` (the descriptor), `core`.

use std::time::{Duration, Instant};

use abi::Endpoint;
use abi::limits::WITHDRAW_WAIT_MS;
use shm::lane::Withdrawal;

use super::{Binding, NoPeer};
use crate::core::{Accepts, Call, Hold, PeerIndex, Sent};
use crate::error::{NotifyError, ReceiveError, SendError, SendrecError};
use crate::message::{Delivery, From, Message};
use crate::timeout::Timeout;
use crate::waiting::deadline_of;

/// A `send` that was started. Forgotten, it may still be delivered: end it.
#[must_use]
pub struct Sending {
    sent: Sent,
    hold: Hold,
}

/// A `sendrec` that was started. Forgotten, it keeps its server from being called again: end it.
#[must_use]
pub struct Calling {
    call: Call,
    hold: Hold,
    /// The number that the core keeps it open under.
    opened: u64,
    /// Whom it waits for.
    to: Endpoint,
    /// It was passed on to this server, which is not confirmed to yet.
    redirect: Option<Endpoint>,
}

impl Calling {
    /// The server that answers it: the one that was called, or the one that it was passed on to.
    pub fn server(&self) -> Endpoint {
        self.to
    }
}

impl Binding {
    /// What is here for a `receive` or, without `notifications`, a `receive_request`, if anything. Other than they, it never
    /// arms: for a loop that waits for calls too, arms by [`Binding::arm`], and then looks at everything.
    pub fn look(&mut self, from: From, notifications: bool) -> Result<Option<Delivery>, ReceiveError> {
        let accepts = Accepts { notifications, attend: false };
        let found = match from {
            From::Any => self.core.poll_any(accepts, &mut self.daemon),
            From::Endpoint(source) => match self.core.poll_from(source, accepts, &mut self.daemon) {
                Ok(None) => self.core.poll_from_end(source, &mut self.daemon).map(|()| None),
                found => found,
            },
        };
        if !matches!(found, Ok(None)) {
            self.disarm();
        }
        self.settle_rings();
        found
    }

    /// Begins the introduction to an endpoint, if there was none yet. `Ok(false)`: it is under way, try again in a while.
    /// After `Ok(true)` a `post` or a `notify` does not wait. Cost: a round trip to the daemon, the first time.
    pub fn meet(&mut self, to: Endpoint) -> Result<bool, NotifyError> {
        match self.peer_at_once(to) {
            Ok(_) => Ok(true),
            Err(NoPeer::NotInTime) => Ok(false),
            Err(NoPeer::Dead) => Err(NotifyError::DeadDestination),
            Err(NoPeer::NotPermitted) => Err(NotifyError::NotPermitted),
            Err(NoPeer::Unavailable(why)) => Err(NotifyError::Unavailable(why)),
        }
    }

    /// Publishes a `send`. Then ask [`Binding::poll_send`] until it says that the receiver has taken it.
    ///
    /// Shape and cost: as `send`. The message's loan is taken out of it when it is published, so on an error it is whole.
    /// Errors: as `send`; `WouldBlock`: an introduction is under way, try again.
    pub fn start_send(&mut self, to: Endpoint, message: &mut Message) -> Result<Sending, SendError> {
        let index = match self.peer_at_once(to) {
            Ok(index) => index,
            Err(NoPeer::Dead) => return Err(SendError::DeadDestination),
            Err(NoPeer::NotPermitted) => return Err(SendError::NotPermitted),
            Err(NoPeer::NotInTime) => return Err(SendError::WouldBlock),
            Err(NoPeer::Unavailable(why)) => return Err(SendError::Unavailable(why)),
        };
        self.stage(index, message).map_err(SendError::Unavailable)?;
        let sent = self.core.start_send(index, message, true)?;
        self.settle_rings();
        let hold = self.core.hold(index).ok_or(SendError::DeadDestination)?;
        Ok(Sending { sent, hold })
    }

    /// Whether a `send` has ended, and how; then it must not be asked again. Cost: a few loads.
    pub fn poll_send(&mut self, sending: &Sending) -> Option<Result<(), SendError>> {
        if !sending.hold.is_open() {
            // The pair was closed meanwhile, because its peer broke the protocol.
            return Some(Err(SendError::DeliveryUnknown));
        }
        self.core.poll_sent(sending.sent).or_else(|| self.core.poll_sent_end(sending.sent))
    }

    /// Gives a `send` up: withdrawn (`Ok(false)`: it will never be delivered), or taken already (`Ok(true)`).
    ///
    /// Cost: within `limits::WITHDRAW_WAIT_MS`, if the receiver is taking it just now. Errors: as `send`;
    /// `TimedOutUnknown`: it may be delivered.
    pub fn end_send(&mut self, sending: Sending) -> Result<bool, SendError> {
        if let Some(ended) = self.poll_send(&sending) {
            return ended.map(|()| true);
        }
        let bound = Instant::now() + Duration::from_millis(WITHDRAW_WAIT_MS);
        let withdrawn = loop {
            match self.core.withdraw(sending.sent, &mut self.daemon) {
                Err(corrupt) => break Err(SendError::Corrupt(corrupt)),
                Ok(Withdrawal::Taken) => break Ok(true),
                Ok(Withdrawal::Withdrawn) => break Ok(false),
                Ok(Withdrawal::Undecided) if Instant::now() >= bound => {
                    break Err(SendError::TimedOutUnknown);
                }
                Ok(Withdrawal::Undecided) => std::thread::yield_now(),
            }
        };
        self.settle_rings();
        withdrawn
    }

    /// Publishes a request. Then ask [`Binding::poll_call`] until the reply is here.
    ///
    /// One call for each server may be open, and as many servers as one likes: `WouldBlock` while there is one. It is no
    /// sign of a deadlock that the server calls us meanwhile: we can answer. Otherwise as [`Binding::start_send`].
    pub fn start_call(&mut self, to: Endpoint, message: &mut Message) -> Result<Calling, SendrecError> {
        if self.open_calls.contains(&to) {
            return Err(SendrecError::WouldBlock);
        }
        let index = match self.peer_at_once(to) {
            Ok(index) => index,
            Err(NoPeer::Dead) => return Err(SendrecError::DeadDestination),
            Err(NoPeer::NotPermitted) => return Err(SendrecError::NotPermitted),
            Err(NoPeer::NotInTime) => return Err(SendrecError::WouldBlock),
            Err(NoPeer::Unavailable(why)) => return Err(SendrecError::Unavailable(why)),
        };
        self.stage(index, message).map_err(SendrecError::Unavailable)?;
        let call = self.core.open_call(index, message)?;
        self.settle_rings();
        let hold = self.core.hold(index).ok_or(SendrecError::DeadDestination)?;
        self.open_calls.insert(to);
        Ok(Calling { call, hold, opened: call.number(), to, redirect: None })
    }

    /// Whether a call has ended, and how; then it must not be asked again.
    ///
    /// A call that was passed on is followed here. Cost: a few loads while nothing has come.
    pub fn poll_call(&mut self, calling: &mut Calling) -> Option<Result<Delivery, SendrecError>> {
        let ended = self.step_call(calling);
        if ended.is_some() {
            self.close_call(calling);
        }
        self.settle_rings();
        ended
    }

    /// Gives a call up. A request that was not taken is withdrawn (`TimedOut`); of one that was, the late reply is dropped
    /// and the server told `NotWaiting` (`TimedOutTaken`). A reply that is here all the same is returned.
    ///
    /// Cost: as [`Binding::end_send`].
    pub fn end_call(&mut self, mut calling: Calling) -> Result<Delivery, SendrecError> {
        if let Some(ended) = self.poll_call(&mut calling) {
            return ended;
        }
        let why = self.give_up(calling.call, Timeout::After(Duration::ZERO));
        self.close_call(&calling);
        Err(why)
    }

    fn close_call(&mut self, calling: &Calling) {
        self.open_calls.remove(&calling.to);
        self.core.close_call(calling.opened);
    }

    fn step_call(&mut self, calling: &mut Calling) -> Option<Result<Delivery, SendrecError>> {
        if !calling.hold.is_open() {
            return Some(Err(SendrecError::DeliveryUnknown));
        }
        if calling.redirect.is_none() && self.core.is_answered(calling.call) {
            if let Ok(reply) = self.core.take_answer_bytes(calling.call) {
                return Some(Ok(reply));
            }
            match self.core.redirected(calling.call) {
                Some(Ok(to)) => calling.redirect = Some(to),
                Some(Err(why)) => return Some(Err(why)),
                None => return self.core.take_answer(calling.call, &mut self.daemon),
            }
        }
        if let Some(to) = calling.redirect {
            return self.step_after(calling, to);
        }
        match self.core.call_end(calling.call)? {
            Ok(()) => None,
            Err(why) => Some(Err(why)),
        }
    }

    /// The call was passed on to `to`. `None`: confirmed, or to be tried again.
    fn step_after(&mut self, calling: &mut Calling, to: Endpoint) -> Option<Result<Delivery, SendrecError>> {
        // The server that passed it on may know the new one before this node does; and one call at a time is open to each.
        if self.core.is_unheard_of(to) || (to != calling.to && self.open_calls.contains(&to)) {
            return None;
        }
        let index = match self.peer_for(to, true, deadline_of(Timeout::Zero), Timeout::Zero) {
            Ok(index) => index,
            Err(NoPeer::NotInTime) => return None,
            Err(refused) => {
                self.give_up(calling.call, Timeout::After(Duration::ZERO));
                return Some(Err(match refused {
                    NoPeer::Unavailable(why) => SendrecError::Unavailable(why),
                    // The server that passed it on had taken it.
                    NoPeer::NotPermitted => SendrecError::NotPermitted,
                    NoPeer::Dead | NoPeer::NotInTime => SendrecError::DeadSource,
                }));
            }
        };
        match self.core.follow_open(calling.call, index) {
            Err(SendrecError::Full) => None,
            Err(why) => Some(Err(why)),
            Ok(call) => {
                self.open_calls.remove(&calling.to);
                self.open_calls.insert(to);
                let hold = self.core.hold(index)?;
                (calling.call, calling.hold, calling.to, calling.redirect) = (call, hold, to, None);
                None
            }
        }
    }

    fn peer_at_once(&mut self, to: Endpoint) -> Result<PeerIndex, NoPeer> {
        self.peer(to, deadline_of(Timeout::Zero), Timeout::Zero)
    }
}
