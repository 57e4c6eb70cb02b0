//! The calling half.

use std::fmt;

use abi::Endpoint;
use dvk::{Binding, LoanError, Message, SendrecError, Timeout};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{self, NotEncoded};
use crate::server::{ACCEPTED, Refused};

/// Why a call gave no result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallError {
    /// The request or its answer did not come through: see what it says of delivery.
    Sendrec(SendrecError),
    /// The server refused: nothing was done, but for `NoRoom`.
    Refused(Refused),
    /// The server answered something that the interface does not say. It has done what it was asked.
    Malformed,
    /// The arguments are longer than `PAYLOAD_BYTES_MAX`, or of a type without a fixed form: not called.
    TooLong,
    /// A [`Bulk`](crate::Bulk) among the arguments is of a loan that went with an earlier call: not called. Make another.
    Sent,
    /// There is no buffer for the arguments: not called. Drop replies that hold views, or wait.
    Loan(LoanError),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Sendrec(why) => why.fmt(f),
            CallError::Refused(why) => why.fmt(f),
            CallError::Malformed => f.write_str("the server's answer is not what the interface says"),
            CallError::TooLong => {
                write!(f, "arguments beyond {} bytes: not called", codec::PAYLOAD_BYTES_MAX)
            }
            CallError::Sent => {
                f.write_str("the loan of a bulk argument was sent before: make another; not called")
            }
            CallError::Loan(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for CallError {}

/// Calls number `call` of an interface. What [`crate::service!`] is made of.
pub fn call<A: Serialize, R: DeserializeOwned>(
    me: &mut Binding,
    server: Endpoint,
    timeout: Timeout,
    (interface, number): (u16, u16),
    arguments: &A,
) -> Result<R, CallError> {
    let request: Message = match codec::encode(me, kind_of(interface, number), arguments) {
        Ok(request) => request,
        Err(NotEncoded::TooLong) => return Err(CallError::TooLong),
        Err(NotEncoded::Sent) => return Err(CallError::Sent),
        Err(NotEncoded::Loan(why)) => return Err(CallError::Loan(why)),
    };
    let mut reply = me.sendrec(server, request, timeout).map_err(CallError::Sendrec)?;
    match reply.kind() {
        ACCEPTED => codec::decode(&mut reply).map_err(|_| CallError::Malformed),
        kind => Err(Refused::from_kind(kind).map_or(CallError::Malformed, CallError::Refused)),
    }
}

pub(crate) const fn kind_of(interface: u16, number: u16) -> u32 {
    (interface as u32) << 16 | number as u32
}
