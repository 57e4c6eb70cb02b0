//! The law of [`crate::Fabric`], kept for one node: what it lent, what came back, which sessions stand.
//!
//! Key type: [`Ledger`]. Every completion passes [`Ledger::note`], which panics at the first that breaks the law.

use std::collections::{BTreeMap, BTreeSet};

use abi::NodeId;

use crate::{Completion, Piece};

/// A descriptor that was accepted.
#[derive(Clone, Copy, Debug)]
struct Posted {
    peer: NodeId,
    bulk: bool,
}

/// One node's books.
#[derive(Default, Debug)]
pub struct Ledger {
    /// Posted buffers, by region and offset.
    lent: BTreeMap<(u32, u64), Piece>,
    outstanding: BTreeMap<u64, Posted>,
    pub announced: BTreeMap<(NodeId, u64), u64>,
    accepted: BTreeMap<(NodeId, u64), Piece>,
    sessions: BTreeMap<NodeId, u64>,
    ended: BTreeSet<(NodeId, u64)>,
    /// Sessions that must end: a message of theirs has failed.
    doomed: BTreeSet<NodeId>,
    pub sent: u64,
    pub failed: u64,
    pub lost: u64,
}

impl Ledger {
    pub fn lend(&mut self, piece: Piece) {
        let twice = self.lent.insert((piece.region.0, piece.offset_bytes), piece);
        assert!(twice.is_none(), "the suite lent {piece:?} twice");
    }

    pub fn post(&mut self, peer: NodeId, token: u64, bulk: bool) {
        assert!(self.sessions.contains_key(&peer), "accepted a descriptor without a session with {peer}");
        self.outstanding.insert(token, Posted { peer, bulk });
    }

    pub fn accept(&mut self, peer: NodeId, token: u64, into: Piece) {
        self.announced.remove(&(peer, token));
        self.accepted.insert((peer, token), into);
    }

    pub fn refuse(&mut self, peer: NodeId, token: u64) {
        self.announced.remove(&(peer, token));
    }

    pub fn session(&self, peer: NodeId) -> Option<u64> {
        self.sessions.get(&peer).copied()
    }

    pub fn lent(&self) -> usize {
        self.lent.len()
    }

    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    pub fn accepted(&self) -> usize {
        self.accepted.len()
    }

    /// All that must come back without the peers' doing has come back.
    pub fn is_settled(&self) -> bool {
        self.outstanding.is_empty() && self.accepted.is_empty() && self.doomed.is_empty()
    }

    fn take_back(&mut self, buffer: Piece, len_bytes: u32) {
        let lent = self.lent.remove(&(buffer.region.0, buffer.offset_bytes));
        assert_eq!(lent, Some(buffer), "a buffer came back that was not lent, or otherwise than lent");
        assert!(len_bytes <= buffer.len_bytes, "more bytes than the buffer has");
    }

    fn stands(&self, peer: NodeId, what: &Completion) {
        assert!(self.sessions.contains_key(&peer), "{what:?} without a session");
    }

    /// Checks one completion against all before it.
    pub fn note(&mut self, completion: &Completion) {
        match *completion {
            Completion::Sent { peer, token } => {
                let posted =
                    self.outstanding.remove(&token).expect("Sent, of a descriptor that is outstanding");
                assert_eq!(posted.peer, peer, "Sent to another peer than it was posted to");
                self.stands(peer, completion);
                self.sent += 1;
            }
            Completion::Failed { peer, token } => {
                let posted =
                    self.outstanding.remove(&token).expect("Failed, of a descriptor that is outstanding");
                assert_eq!(posted.peer, peer, "Failed to another peer than it was posted to");
                self.stands(peer, completion);
                self.failed += 1;
                if !posted.bulk {
                    self.doomed.insert(peer);
                }
            }
            Completion::Received { peer, buffer, len_bytes } => {
                self.stands(peer, completion);
                self.take_back(buffer, len_bytes);
            }
            Completion::Announced { peer, token, bulk_bytes, buffer, len_bytes } => {
                self.stands(peer, completion);
                self.take_back(buffer, len_bytes);
                let known = self.accepted.contains_key(&(peer, token));
                let twice = self.announced.insert((peer, token), bulk_bytes).is_some();
                assert!(!known && !twice, "a token is announced that is in use");
            }
            Completion::BulkReceived { peer, token, into } => {
                self.stands(peer, completion);
                assert_eq!(
                    self.accepted.remove(&(peer, token)),
                    Some(into),
                    "BulkReceived as it was accepted"
                );
            }
            Completion::BulkFailed { peer, token, into } => {
                assert_eq!(self.accepted.remove(&(peer, token)), Some(into), "BulkFailed as it was accepted");
            }
            Completion::Up { peer, session, .. } => {
                assert_eq!(self.sessions.insert(peer, session), None, "Up while a session stands");
                assert!(!self.ended.contains(&(peer, session)), "a session's number is used again");
            }
            Completion::Lost { peer, session } => self.lose(peer, session),
            Completion::Trouble { .. } => {}
        }
    }

    fn lose(&mut self, peer: NodeId, session: u64) {
        assert_eq!(self.sessions.remove(&peer), Some(session), "Lost, of a session that stands");
        let left = self.outstanding.values().find(|posted| posted.peer == peer);
        assert!(left.is_none(), "Lost before the session's descriptors completed: {left:?}");
        assert!(
            self.accepted.keys().all(|(of, _)| *of != peer),
            "Lost before its accepted bulk messages completed"
        );
        self.announced.retain(|(of, _), _| *of != peer);
        self.ended.insert((peer, session));
        self.doomed.remove(&peer);
        self.lost += 1;
    }
}
