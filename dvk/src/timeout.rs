//! How long a call may take: for ever, not at all, or a while.

use std::time::Duration;

/// The bound of a blocking call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timeout {
    /// Until it ends by itself: with a result, or by the death of the peer.
    Forever,
    /// It must not wait: `WouldBlock` instead.
    Zero,
    /// `TimedOut` after this long.
    After(Duration),
}

impl std::convert::From<Duration> for Timeout {
    fn from(duration: Duration) -> Self {
        if duration.is_zero() { Timeout::Zero } else { Timeout::After(duration) }
    }
}
