//! Driver: loans of a private binding: cut from the memory of the pair that they go to, or copied there before they are sent.
//!
//! Neighbours: `calls` and `steps`, which send; `core::private` (whose pool is whose). Why: `docs/adr/0013-private-endpoints.md`.

use abi::Endpoint;
use abi::limits::{LOAN_BYTES_MAX, POOL_BYTES_FIRST, POOL_SEGMENT_BYTES_MIN};
use abi::member::Refusal;
use shm::pool::Loan;

use super::Binding;
use crate::core::PeerIndex;
use crate::error::{LoanError, PostError, ReplyError, Unavailable};
use crate::message::{Delivery, Message};
use crate::timeout::Timeout;
use crate::waiting::deadline_of;

impl Binding {
    /// Whether this binding has memory for each peer apart: see [`super::BindOptions::private`].
    pub fn is_private(&self) -> bool {
        self.core.is_private()
    }

    /// A buffer for a message to this endpoint. Of a private binding it lies where `to` alone may read, so that nothing is
    /// copied when it is sent there; otherwise, or if there is no pair with `to`, it is as any [`Binding::loan`].
    ///
    /// Units: bytes, up to `limits::LOAN_BYTES_MAX`. Cost: as `loan`; of a private binding the first time an introduction.
    pub fn loan_for(&mut self, to: Endpoint, len_bytes: usize) -> Result<Loan, LoanError> {
        if self.core.is_private() {
            let len = u32::try_from(len_bytes).ok().filter(|&len| len <= LOAN_BYTES_MAX);
            let len = len.ok_or(LoanError::TooLong)?;
            // Who sends to one that cannot be had hears so then.
            if let Ok(index) = self.peer(to, deadline_of(Timeout::Forever), Timeout::Forever) {
                return self.pair_loan(index, len);
            }
        }
        self.loan(len_bytes)
    }

    /// Sees to it that a message's loan may be lent to the peer. Without a loan, or for a binding that is not private,
    /// nothing happens. What stands in the way of lending at all is left to whoever publishes.
    #[inline]
    pub(super) fn stage(&mut self, index: PeerIndex, message: &mut Message) -> Result<(), Unavailable> {
        if self.must_stage(message) { self.stage_loan(index, message) } else { Ok(()) }
    }

    /// Whether there is anything to do for [`Binding::stage`].
    #[inline]
    pub(super) fn must_stage(&self, message: &Message) -> bool {
        message.loan.is_some() && self.core.is_private()
    }

    /// A post of a private binding. A function of its own, so that no other pays for a message that may change on its way.
    #[cold]
    pub(super) fn post_staged(&mut self, index: PeerIndex, mut message: Message) -> Result<(), PostError> {
        self.stage_loan(index, &mut message).map_err(PostError::Unavailable)?;
        self.core.post(index, message)
    }

    /// A reply of a private binding, likewise.
    #[cold]
    pub(super) fn reply_staged(
        &mut self,
        request: &Delivery,
        mut message: Message,
    ) -> Result<(), ReplyError> {
        if let Some(index) = self.core.find(request.source()) {
            self.stage_loan(index, &mut message).map_err(|_| ReplyError::Full)?;
        }
        self.core.reply(request, message)
    }

    #[cold]
    fn stage_loan(&mut self, index: PeerIndex, message: &mut Message) -> Result<(), Unavailable> {
        let Some(loan) = &message.loan else { return Ok(()) };
        let len = loan.len();
        if self.core.is_lendable(index, loan) || !self.core.has_lending_room(index, len as u64) {
            return Ok(());
        }
        let mut staged = match self.pair_loan(index, len as u32) {
            Ok(staged) => staged,
            // The pair has ended just now.
            Err(LoanError::Unavailable(Unavailable::Refused(Refusal::NoSuchEndpoint))) => return Ok(()),
            Err(LoanError::Unavailable(why)) => return Err(why),
            Err(LoanError::NoBuffer | LoanError::TooLong) => {
                return Err(Unavailable::Refused(Refusal::LimitReached));
            }
        };
        staged.copy_from_slice(loan);
        message.loan = Some(staged);
        Ok(())
    }

    /// A loan of the pair's own pool.
    pub(super) fn pair_loan(&mut self, index: PeerIndex, len: u32) -> Result<Loan, LoanError> {
        let Some(pool) = self.core.pair_pool(index) else { return self.loan(len as usize) };
        if let Some(loan) = pool.loan(len) {
            return Ok(loan);
        }
        self.core.bring_home_from(index);
        let Some(pool) = self.core.pair_pool(index) else { return Err(LoanError::NoBuffer) };
        if let Some(loan) = pool.loan(len) {
            return Ok(loan);
        }
        let least = if pool.total_bytes() == 0 { POOL_BYTES_FIRST } else { POOL_SEGMENT_BYTES_MIN };
        let more = (len as u64).next_power_of_two().max(least);
        if more > pool.room_bytes() {
            return Err(LoanError::NoBuffer);
        }
        let to = self.core.endpoint_of(index).ok_or(LoanError::NoBuffer)?;
        let (segment, map) = self.daemon.pair_segment(to, more).map_err(LoanError::Unavailable)?;
        let pool = self.core.pair_pool(index).ok_or(LoanError::NoBuffer)?;
        pool.add_segment(segment, map);
        pool.loan(len).ok_or(LoanError::NoBuffer)
    }
}
