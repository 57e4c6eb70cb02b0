//! What can go wrong with each call: whose fault, and what to do next. Small `Copy` enums.
//!
//! "Not delivered" and "delivery unknown" are different errors and are never merged.

use std::fmt;

use abi::Corrupt;
use abi::member::Refusal;
use abi::name::NotAName;

use crate::message::Message;

/// The operating system's number for what went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

/// The daemon of this node could not be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unavailable {
    /// Nobody listens on its socket: start the node, or check the path.
    NoDaemon(Errno),
    /// The connection broke, or the daemon said something that makes no sense: bind again.
    Broken,
    /// It did not answer, or the introduction did not come about, in time: try again.
    Slow,
    /// It said no, and why.
    Refused(Refusal),
    /// This process could not map what the daemon gave it: raise its limits. A peer whose introduction this was is met when there
    /// is room.
    NoMemory,
}

/// Why a binding did not come about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BindError {
    Unavailable(Unavailable),
    /// The environment names no binding, or names it wrongly: start the program with `dvs run`.
    NotStartedBound,
    /// The DC, or the name to bind under, is none: choose another. Nobody was asked.
    NotAName(NotAName),
}

// ANCHOR: calls
/// Why a `send` did not end well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendError {
    /// Withdrawn in time: will never be delivered. Send again, or give up.
    TimedOut,
    /// A signal came: withdrawn, will never be delivered. See `BindOptions::interruptible`.
    Interrupted,
    /// It had been taken when the time was over.
    TimedOutTaken,
    /// The withdrawal could not be confirmed: may be delivered, at most once, in order.
    TimedOutUnknown,
    /// Timeout zero, and the receiver had not taken it at once: withdrawn.
    WouldBlock,
    /// The destination unbound or died: known not delivered. Look it up again.
    DeadDestination,
    /// Its node was declared dead when the message had left: delivered or not.
    DeliveryUnknown,
    /// The lane to it, or what may be out in extents, is full. Wait with `wait_room`.
    Full,
    /// The cluster file does not let us make this call to it: see `docs/privileges.md`.
    NotPermitted,
    /// The peer broke the protocol; the pair is closed.
    Corrupt(Corrupt),
    /// The first call to it needs the daemon.
    Unavailable(Unavailable),
}

/// Why a `post` did not end well. `Full` gives the message back.
#[derive(Debug)]
pub enum PostError {
    /// The lane, or what may be out in extents, is full: wait with `wait_room`, and post it again.
    Full(Message),
    /// The destination unbound or died: not delivered. Look it up again.
    DeadDestination,
    /// The cluster file does not let us make this call to it: see `docs/privileges.md`.
    NotPermitted,
    /// The peer broke the protocol; the pair is closed.
    Corrupt(Corrupt),
    /// The first call to it needs the daemon.
    Unavailable(Unavailable),
}

/// Why a `receive` ended without anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReceiveError {
    TimedOut,
    /// A signal came. See `BindOptions::interruptible`.
    Interrupted,
    /// Timeout zero, and nothing was there.
    WouldBlock,
    /// The endpoint that was waited for unbound or died; all it had published has been received.
    DeadSource,
    /// The peer broke the protocol; the pair is closed.
    Corrupt(Corrupt),
    Unavailable(Unavailable),
}

/// Why a `sendrec` ended without a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendrecError {
    /// The request was withdrawn in time: never delivered.
    TimedOut,
    /// A signal came: withdrawn, never delivered. See `BindOptions::interruptible`.
    Interrupted,
    /// The server had taken the request; its late reply will be dropped.
    TimedOutTaken,
    /// The withdrawal could not be confirmed: may be delivered, at most once, in order.
    TimedOutUnknown,
    /// Timeout zero: withdrawn.
    WouldBlock,
    /// The server unbound or died before it took the request: known not delivered.
    DeadDestination,
    /// The server took the request and died before replying: delivered, effect unknown.
    DeadSource,
    /// Its node was declared dead when the request had left.
    DeliveryUnknown,
    /// The server dropped the request without an answer: its effect is unknown.
    Abandoned,
    /// Each of the two waits for the other's reply.
    Deadlock,
    /// The lane to it, or what may be out in extents, is full.
    Full,
    /// The cluster file does not let us make this call to it: see `docs/privileges.md`.
    NotPermitted,
    /// The peer broke the protocol; the pair is closed.
    Corrupt(Corrupt),
    Unavailable(Unavailable),
}

/// Why a reply was not published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyError {
    /// The client gave the call up, or ended: nobody waits. Drop the result.
    NotWaiting,
    /// What was received was no request.
    NotARequest,
    /// The request has been answered already.
    Answered,
    /// Too much is out in extents with this client.
    Full,
}

/// Why a request was not passed on. It is still the caller's to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelayError {
    /// The client gave the call up, or ended: nobody waits. Drop the request.
    NotWaiting,
    /// What was received was no request.
    NotARequest,
    /// The request has been answered or passed on already.
    Answered,
    /// To the client that waits for the answer.
    ToItsClient,
    /// The new server unbound or died. Look it up again, or answer.
    DeadDestination,
    /// The lane to it, or what may be out in extents, is full. Wait with `wait_room`.
    Full,
    /// The cluster file does not let us make this call to it: see `docs/privileges.md`.
    NotPermitted,
    /// There is no buffer for the extent that goes along.
    Loan(LoanError),
    /// The new server broke the protocol; the pair is closed.
    Corrupt(Corrupt),
    /// The first call to it needs the daemon.
    Unavailable(Unavailable),
}

/// Why a notification was not raised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotifyError {
    /// The destination unbound or died. Look it up again.
    DeadDestination,
    /// The cluster file does not let us make this call to it: see `docs/privileges.md`.
    NotPermitted,
    Unavailable(Unavailable),
}

/// Why a wait for a bind, an end, or room was not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitError {
    TimedOut,
    /// A signal came. See `BindOptions::interruptible`.
    Interrupted,
    /// The endpoint unbound or died.
    DeadDestination,
    /// The cluster file does not let us make this call to it: see `docs/privileges.md`.
    NotPermitted,
    /// The peer broke the protocol; the pair is closed.
    Corrupt(Corrupt),
    Unavailable(Unavailable),
}

/// Why a `copy` did not end well. A beginning of the bytes may be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyError {
    /// No such grant for us, or not of this range, or not for writing, or revoked: ask its owner for one.
    NoGrant,
    /// The owner of a grant unbound or died.
    DeadSource,
    /// Nothing more is written.
    TimedOut,
    /// A signal came; nothing more is written. See `BindOptions::interruptible`.
    Interrupted,
    /// The end could not be confirmed: bytes of it may still be written, until the link is back or declared dead.
    TimedOutUnknown,
    /// Timeout zero, and another node takes part: nothing was begun.
    WouldBlock,
    /// More than `limits::COPY_BYTES_MAX`: copy it in parts.
    TooLong,
    /// The own range is not inside its segment.
    OutOfRange,
    /// The own segment is there to be read by others: make one for writing.
    ReadOnly,
    /// The node that has the bytes has no proxy to the one they are for: copy by way of a segment of one's own.
    NoWay,
    /// The cluster file's rules do not let us copy from or to the owner: see `docs/privileges.md`.
    NotPermitted,
    /// The first call to an owner needs the daemon.
    Unavailable(Unavailable),
}

/// Why nothing was granted, or a grant not taken back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GrantError {
    /// A segment of no bytes, or of more than `limits::COPY_BYTES_MAX`.
    TooLong,
    /// The range is not inside the segment.
    OutOfRange,
    /// To oneself, or to an endpoint of another DC.
    ToNobody,
    /// Another endpoint is granted to write the segment: revoke that first, or use a segment of its own.
    WrittenByAnother,
    /// As many grants live as one endpoint may have: revoke some.
    TooMany,
    /// It is none of ours, or was revoked before.
    NoSuchGrant,
    /// The daemon had no memory, or could not be asked. After a `revoke` the grant has ended, but who had mapped the segment
    /// may still use its pages: drop the segment.
    Unavailable(Unavailable),
}

/// Why there is no buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoanError {
    /// Longer than `limits::LOAN_BYTES_MAX`, or than a pool may grow.
    TooLong,
    /// Every buffer is out, and the pool may not grow any more: wait until receivers have dropped their views.
    NoBuffer,
    /// The daemon had no memory, or could not be asked.
    Unavailable(Unavailable),
}
// ANCHOR_END: calls

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unavailable::NoDaemon(errno) => {
                let why = std::io::Error::from_raw_os_error(errno.0);
                write!(
                    f,
                    "the node's daemon cannot be reached ({why}): start the node, or check the socket's path"
                )
            }
            Unavailable::Broken => f.write_str("the connection to the node's daemon broke: bind again"),
            Unavailable::Slow => {
                f.write_str("the node's daemon, or the other side, did not answer in time: try again")
            }
            Unavailable::Refused(why) => f.write_str(why.why()),
            Unavailable::NoMemory => f.write_str(
                "the memory that the daemon gave could not be mapped: raise this process's limits",
            ),
        }
    }
}

const TIMED_OUT: &str = "timed out: withdrawn, will never be delivered";
const INTERRUPTED: &str = "a signal came: withdrawn, will never be delivered";
const TIMED_OUT_TAKEN: &str = "timed out: the receiver had taken it";
const TIMED_OUT_UNKNOWN: &str = "timed out: whether it will be delivered is unknown; at most once, in order";
const DEAD_DESTINATION: &str = "the destination ended: not delivered; look it up again";
const UNKNOWN: &str = "the destination's node was declared dead: whether it was delivered is unknown";
const NOT_PERMITTED: &str =
    "the cluster file does not let this endpoint make this call: see its `[[dc.privileges]]`";
const FULL: &str = "the lane is full: wait for room";

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BindError::Unavailable(why) => why.fmt(f),
            BindError::NotAName(why) => why.fmt(f),
            BindError::NotStartedBound => f.write_str(
                "this program was not started bound: start it with `dvs run --dc D --node N -- PROGRAM`",
            ),
        }
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendError::TimedOut => f.write_str(TIMED_OUT),
            SendError::Interrupted => f.write_str(INTERRUPTED),
            SendError::TimedOutTaken => f.write_str(TIMED_OUT_TAKEN),
            SendError::TimedOutUnknown => f.write_str(TIMED_OUT_UNKNOWN),
            SendError::WouldBlock => f.write_str("the receiver did not take it at once: withdrawn"),
            SendError::DeadDestination => f.write_str(DEAD_DESTINATION),
            SendError::DeliveryUnknown => f.write_str(UNKNOWN),
            SendError::Full => f.write_str(FULL),
            SendError::NotPermitted => f.write_str(NOT_PERMITTED),
            SendError::Corrupt(why) => why.fmt(f),
            SendError::Unavailable(why) => why.fmt(f),
        }
    }
}

impl fmt::Display for PostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PostError::Full(_) => f.write_str(FULL),
            PostError::NotPermitted => f.write_str(NOT_PERMITTED),
            PostError::DeadDestination => f.write_str(DEAD_DESTINATION),
            PostError::Corrupt(why) => why.fmt(f),
            PostError::Unavailable(why) => why.fmt(f),
        }
    }
}

impl fmt::Display for ReceiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReceiveError::TimedOut => f.write_str("timed out: nothing came"),
            ReceiveError::Interrupted => f.write_str("a signal came, and nothing else"),
            ReceiveError::WouldBlock => f.write_str("nothing is here"),
            ReceiveError::DeadSource => f.write_str("the source ended, and all it had published is received"),
            ReceiveError::Corrupt(why) => why.fmt(f),
            ReceiveError::Unavailable(why) => why.fmt(f),
        }
    }
}

impl fmt::Display for SendrecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendrecError::TimedOut => f.write_str(TIMED_OUT),
            SendrecError::Interrupted => f.write_str(INTERRUPTED),
            SendrecError::TimedOutTaken => f.write_str(TIMED_OUT_TAKEN),
            SendrecError::TimedOutUnknown => f.write_str(TIMED_OUT_UNKNOWN),
            SendrecError::WouldBlock => f.write_str("the server did not answer at once: withdrawn"),
            SendrecError::DeadDestination => f.write_str(DEAD_DESTINATION),
            SendrecError::DeadSource => {
                f.write_str("the server ended after taking the request: its effect is unknown")
            }
            SendrecError::DeliveryUnknown => f.write_str(UNKNOWN),
            SendrecError::Abandoned => {
                f.write_str("the server dropped the request unanswered: its effect is unknown")
            }
            SendrecError::Deadlock => {
                f.write_str("each of the two waits for the other's reply: answer first")
            }
            SendrecError::Full => f.write_str(FULL),
            SendrecError::NotPermitted => f.write_str(NOT_PERMITTED),
            SendrecError::Corrupt(why) => why.fmt(f),
            SendrecError::Unavailable(why) => why.fmt(f),
        }
    }
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReplyError::NotWaiting => "the client no longer waits for this reply",
            ReplyError::NotARequest => "what was received was no request: only a request is replied to",
            ReplyError::Answered => "the request has been answered already: a request is replied to once",
            ReplyError::Full => "too much is out in extents with this client: reply without one",
        })
    }
}

impl fmt::Display for RelayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RelayError::NotWaiting => f.write_str("the client no longer waits: drop the request"),
            RelayError::NotARequest => {
                f.write_str("what was received was no request: only a request is passed on")
            }
            RelayError::Answered => f.write_str("the request has been answered or passed on already"),
            RelayError::ToItsClient => {
                f.write_str("a request cannot be passed on to the client that waits for its answer")
            }
            RelayError::DeadDestination => f.write_str("the new server ended: look it up again, or answer"),
            RelayError::Full => f.write_str(FULL),
            RelayError::NotPermitted => f.write_str(NOT_PERMITTED),
            RelayError::Loan(why) => why.fmt(f),
            RelayError::Corrupt(why) => why.fmt(f),
            RelayError::Unavailable(why) => why.fmt(f),
        }
    }
}

impl fmt::Display for NotifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotifyError::DeadDestination => f.write_str("the destination ended: look it up again"),
            NotifyError::NotPermitted => f.write_str(NOT_PERMITTED),
            NotifyError::Unavailable(why) => why.fmt(f),
        }
    }
}

impl fmt::Display for WaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitError::TimedOut => f.write_str("timed out"),
            WaitError::Interrupted => f.write_str("a signal came"),
            WaitError::DeadDestination => f.write_str("the endpoint ended: look it up again"),
            WaitError::NotPermitted => f.write_str(NOT_PERMITTED),
            WaitError::Corrupt(why) => why.fmt(f),
            WaitError::Unavailable(why) => why.fmt(f),
        }
    }
}

impl fmt::Display for LoanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoanError::TooLong => write!(f, "a loan is at most {} bytes", abi::limits::LOAN_BYTES_MAX),
            LoanError::NoBuffer => {
                f.write_str("every buffer is out: wait until receivers have dropped their views")
            }
            LoanError::Unavailable(why) => why.fmt(f),
        }
    }
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CopyError::NoGrant => {
                "no grant of this range for us, or it was revoked: ask its owner for another"
            }
            CopyError::DeadSource => "the owner of a grant ended: its memory is gone",
            CopyError::TimedOut => "timed out: nothing more is written, a beginning may be there",
            CopyError::Interrupted => "a signal came: nothing more is written, a beginning may be there",
            CopyError::TimedOutUnknown => "timed out: bytes may still be written while the link is down",
            CopyError::WouldBlock => "another node takes part, and there is no time to wait: nothing was begun",
            CopyError::TooLong => {
                return write!(f, "one copy is at most {} bytes: copy in parts", abi::limits::COPY_BYTES_MAX);
            }
            CopyError::NotPermitted => NOT_PERMITTED,
            CopyError::OutOfRange => "the range is not inside its segment",
            CopyError::ReadOnly => {
                "the segment was made to be read by others: make one with `Access::Write` to copy into"
            }
            CopyError::NoWay => {
                "no proxy of the node that has the bytes reaches the other: copy by way of a segment of your own"
            }
            CopyError::Unavailable(why) => return why.fmt(f),
        })
    }
}

impl fmt::Display for GrantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GrantError::TooLong => {
                return write!(f, "a segment has from 1 to {} bytes", abi::limits::COPY_BYTES_MAX);
            }
            GrantError::OutOfRange => "the range is not inside its segment",
            GrantError::ToNobody => "a grant is for another endpoint of the same DC",
            GrantError::WrittenByAnother => {
                "another endpoint is granted to write this segment: revoke that, or use a segment of its own"
            }
            GrantError::TooMany => {
                return write!(f, "{} grants live already: revoke some", abi::limits::GRANTS_MAX);
            }
            GrantError::NoSuchGrant => "that is no grant of ours, or it was revoked before",
            GrantError::Unavailable(why) => return why.fmt(f),
        })
    }
}

impl std::error::Error for CopyError {}
impl std::error::Error for GrantError {}
impl std::error::Error for Unavailable {}
impl std::error::Error for BindError {}
impl std::error::Error for SendError {}
impl std::error::Error for PostError {}
impl std::error::Error for ReceiveError {}
impl std::error::Error for SendrecError {}
impl std::error::Error for ReplyError {}
impl std::error::Error for RelayError {}
impl std::error::Error for NotifyError {}
impl std::error::Error for WaitError {}
impl std::error::Error for LoanError {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const BROKEN: Unavailable = Unavailable::Broken;

    /// Each is a sentence of its own that names what happened, not a word of the source.
    fn are_told_apart<E: std::error::Error>(errors: &[E]) {
        let texts: BTreeSet<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), errors.len(), "two say the same: {texts:#?}");
        for text in &texts {
            assert!(text.contains(' ') && !text.contains('\n') && !text.ends_with('.'), "{text:?}");
            assert!(!["Err(", "{"].iter().any(|code| text.contains(code)), "{text:?}");
        }
    }

    #[test]
    fn every_error_of_a_call_says_what_happened() {
        let corrupt = Corrupt::new("a slot that is none", 7);
        are_told_apart(&[
            SendError::TimedOut,
            SendError::Interrupted,
            SendError::TimedOutTaken,
            SendError::TimedOutUnknown,
            SendError::WouldBlock,
            SendError::DeadDestination,
            SendError::DeliveryUnknown,
            SendError::Full,
            SendError::NotPermitted,
            SendError::Corrupt(corrupt),
            SendError::Unavailable(BROKEN),
        ]);
        are_told_apart(&[
            PostError::Full(Message::new(1)),
            PostError::DeadDestination,
            PostError::NotPermitted,
            PostError::Corrupt(corrupt),
            PostError::Unavailable(BROKEN),
        ]);
        are_told_apart(&[
            ReceiveError::TimedOut,
            ReceiveError::Interrupted,
            ReceiveError::WouldBlock,
            ReceiveError::DeadSource,
            ReceiveError::Corrupt(corrupt),
            ReceiveError::Unavailable(BROKEN),
        ]);
        are_told_apart(&[
            SendrecError::TimedOut,
            SendrecError::Interrupted,
            SendrecError::TimedOutTaken,
            SendrecError::TimedOutUnknown,
            SendrecError::WouldBlock,
            SendrecError::DeadDestination,
            SendrecError::DeadSource,
            SendrecError::DeliveryUnknown,
            SendrecError::Abandoned,
            SendrecError::Deadlock,
            SendrecError::Full,
            SendrecError::NotPermitted,
            SendrecError::Corrupt(corrupt),
            SendrecError::Unavailable(BROKEN),
        ]);
        are_told_apart(&[
            ReplyError::NotWaiting,
            ReplyError::NotARequest,
            ReplyError::Answered,
            ReplyError::Full,
        ]);
        are_told_apart(&[
            RelayError::NotWaiting,
            RelayError::NotARequest,
            RelayError::Answered,
            RelayError::ToItsClient,
            RelayError::DeadDestination,
            RelayError::Full,
            RelayError::NotPermitted,
            RelayError::Loan(LoanError::NoBuffer),
            RelayError::Corrupt(corrupt),
            RelayError::Unavailable(BROKEN),
        ]);
        are_told_apart(&[
            NotifyError::DeadDestination,
            NotifyError::NotPermitted,
            NotifyError::Unavailable(BROKEN),
        ]);
    }

    #[test]
    fn every_error_of_waits_copies_grants_and_loans_says_what_happened() {
        are_told_apart(&[
            WaitError::TimedOut,
            WaitError::Interrupted,
            WaitError::DeadDestination,
            WaitError::NotPermitted,
            WaitError::Corrupt(Corrupt::new("a slot that is none", 7)),
            WaitError::Unavailable(BROKEN),
        ]);
        are_told_apart(&[
            CopyError::NoGrant,
            CopyError::DeadSource,
            CopyError::TimedOut,
            CopyError::Interrupted,
            CopyError::TimedOutUnknown,
            CopyError::WouldBlock,
            CopyError::TooLong,
            CopyError::OutOfRange,
            CopyError::ReadOnly,
            CopyError::NoWay,
            CopyError::NotPermitted,
            CopyError::Unavailable(BROKEN),
        ]);
        are_told_apart(&[
            GrantError::TooLong,
            GrantError::OutOfRange,
            GrantError::ToNobody,
            GrantError::WrittenByAnother,
            GrantError::TooMany,
            GrantError::NoSuchGrant,
            GrantError::Unavailable(BROKEN),
        ]);
        are_told_apart(&[LoanError::TooLong, LoanError::NoBuffer, LoanError::Unavailable(BROKEN)]);
    }

    #[test]
    fn why_the_daemon_is_of_no_help_is_said() {
        are_told_apart(&[
            BindError::Unavailable(Unavailable::NoDaemon(Errno(2))),
            BindError::Unavailable(Unavailable::Broken),
            BindError::Unavailable(Unavailable::Slow),
            BindError::Unavailable(Unavailable::Refused(Refusal::SlotTaken)),
            BindError::Unavailable(Unavailable::NoMemory),
            BindError::NotStartedBound,
        ]);
    }
}
