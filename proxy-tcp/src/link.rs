//! The link to one other node: its session, the attempts at one, and what was said of it.
//!
//! Key type: [`Link`]. Neighbour: `tcp` drives it.

use std::net::SocketAddr;
use std::time::Duration;

use abi::courier::LinkState;
use abi::{Incarnation, NodeId};
use fabric::{Completion, Time};

use crate::commons::Commons;
use crate::half::Half;
use crate::session::Session;

const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// A session that stood this long was a good one: after it, retries begin quickly again.
const GOOD_AFTER: Duration = Duration::from_secs(1);
/// A particular trouble is not overwritten by the general one before this time without a sign of it.
const TROUBLE_KEPT: Duration = Duration::from_secs(3);

/// What is known of one peer.
pub struct Link {
    pub peer: NodeId,
    pub address: SocketAddr,
    /// The lower node opens connections, the higher one waits for them.
    pub dials: bool,
    pub dial: Option<Half>,
    pub dial_at: Time,
    pub session: Option<Session>,
    /// Descriptors whose completion the driver has not been told.
    pub posted: usize,
    /// Incarnations below this one are refused.
    pub floor: Incarnation,
    attempt: u32,
    trouble: Option<LinkState>,
    /// Since when there is no session, and no particular reason was seen.
    quiet_since: Time,
}

impl Link {
    pub fn new(own: NodeId, peer: NodeId, address: SocketAddr, now: Time) -> Link {
        Link {
            peer,
            address,
            dials: own < peer,
            dial: None,
            dial_at: now,
            session: None,
            posted: 0,
            floor: Incarnation(0),
            attempt: 0,
            trouble: None,
            quiet_since: now,
        }
    }

    /// A session stands.
    pub fn stands(&mut self, session: Session) {
        self.trouble = None;
        self.floor = self.floor.max(session.incarnation);
        self.session = Some(session);
        self.dial = None;
    }

    /// Ends the session, if there is one.
    pub fn end(&mut self, own: NodeId, commons: &mut Commons) {
        let Some(session) = self.session.take() else { return };
        tracing::debug!(peer = self.peer.0, why = ?session.ended, "session ends");
        if commons.now.saturating_sub(session.since) >= GOOD_AFTER {
            self.attempt = 0;
        }
        session.end(commons);
        self.quiet_since = commons.now;
        self.retry(own, commons.now);
    }

    /// An attempt came to nothing.
    pub fn dial_failed(&mut self, own: NodeId, now: Time) {
        self.dial = None;
        self.retry(own, now);
    }

    fn retry(&mut self, own: NodeId, now: Time) {
        self.dial_at = now + pause(own, self.peer, self.attempt);
        self.attempt = self.attempt.saturating_add(1);
    }

    /// Why there is no session; told when it changes.
    pub fn trouble(&mut self, state: LinkState, commons: &mut Commons) {
        if self.session.is_some() {
            return;
        }
        self.quiet_since = commons.now;
        if self.trouble != Some(state) {
            self.trouble = Some(state);
            commons.ready.push_back(Completion::Trouble { peer: self.peer, state });
        }
    }

    /// When it is to be told that nothing comes about.
    pub fn cut_at(&self, after: Duration) -> Option<Time> {
        let wait = match self.trouble {
            _ if self.session.is_some() => return None,
            Some(LinkState::Cut) => return None,
            Some(_) => after.max(TROUBLE_KEPT),
            None => after,
        };
        Some(self.quiet_since + wait)
    }
}

/// How long to wait before the next attempt: doubling, with a share of up to a half taken off that two nodes do not have
/// in common.
fn pause(own: NodeId, peer: NodeId, attempt: u32) -> Duration {
    let whole = RETRY_FIRST.saturating_mul(1 << attempt.min(10)).min(RETRY_MAX);
    let seed = (own.0 as u64) << 48 | (peer.0 as u64) << 32 | attempt as u64;
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    whole - whole.mul_f64((mixed % 1024) as f64 / 2048.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_second_and_two_nodes_differ() {
        let at = |own, attempt| pause(NodeId(own), NodeId(9), attempt);
        assert!(at(1, 0) <= RETRY_FIRST && at(1, 0) >= RETRY_FIRST / 2);
        assert!(at(1, 100) <= RETRY_MAX && at(1, 100) >= RETRY_MAX / 2);
        assert_eq!(at(1, 5), at(1, 5));
        assert!((0..8).any(|attempt| at(1, attempt) != at(2, attempt)));
    }
}
