//! The answering half.

use std::fmt;

use dvk::{Binding, Delivery, Message, ReceiveError, ReplyError, Timeout, What};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{self, Malformed, NotEncoded};

/// The type of a reply that carries a result.
pub(crate) const ACCEPTED: u32 = 0;

/// Why a server did not do what it was asked. Stable codes: the types of replies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Refused {
    /// It serves another interface: look up another name.
    NoSuchService = 1,
    /// Its interface has no call of this number: it is an older version.
    NoSuchCall = 2,
    /// The arguments are not what the interface says: another version, or too long.
    Malformed = 3,
    /// Its result is too long, or there is no buffer for it, or it is a bulk that was sent before. The call was carried out.
    NoRoom = 4,
}

impl Refused {
    pub(crate) fn from_kind(kind: u32) -> Option<Refused> {
        let all = [Refused::NoSuchService, Refused::NoSuchCall, Refused::Malformed, Refused::NoRoom];
        all.into_iter().find(|why| *why as u32 == kind)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refused::NoSuchService => "whoever is bound there serves another interface: look up another name",
            Refused::NoSuchCall => "the server does not know this call: it is of an older version",
            Refused::Malformed => "the server could not read the arguments: are both of one version?",
            Refused::NoRoom => "the server has no room for its result; the call was carried out",
        })
    }
}

impl std::error::Error for Refused {}

/// Which call of this interface a request asks for.
pub fn method(request: &Delivery, interface: u16) -> Option<u16> {
    let kind = request.kind();
    ((kind >> 16) as u16 == interface).then_some(kind as u16)
}

pub fn arguments<T: DeserializeOwned>(request: &mut Delivery) -> Result<T, Malformed> {
    codec::decode(request)
}

/// The reply that carries a result.
pub fn accepted<T: Serialize>(me: &mut Binding, result: &T) -> Message {
    match codec::encode(me, ACCEPTED, result) {
        Ok(reply) => reply,
        Err(NotEncoded::TooLong | NotEncoded::Sent | NotEncoded::Loan(_)) => refused(Refused::NoRoom),
    }
}

/// The reply that carries none.
pub fn refused(why: Refused) -> Message {
    Message::new(why as u32)
}

/// Answers requests until this endpoint is woken, or a signal ends the wait. Plain messages are dropped.
///
/// A client that no longer waits, or breaks the protocol, does not end it. Errors: the daemon can no longer be asked.
pub fn serve(
    me: &mut Binding,
    mut answer: impl FnMut(&mut Binding, &mut Delivery) -> Result<(), ReplyError>,
) -> Result<(), ReceiveError> {
    loop {
        match me.receive_request(Timeout::Forever) {
            Ok(mut request) => match request.what() {
                What::Request { .. } => {
                    // Too much is out with this client: it is told so without an extent. Nobody waits: so be it.
                    if answer(me, &mut request) == Err(ReplyError::Full) {
                        let _ = me.reply(&request, refused(Refused::NoRoom));
                    }
                }
                What::Woken => return Ok(()),
                What::Message | What::Notification { .. } | What::Warned | What::Reply => {}
            },
            Err(ReceiveError::Interrupted) => return Ok(()),
            Err(ReceiveError::Corrupt(_)) => {}
            Err(why) => return Err(why),
        }
    }
}
