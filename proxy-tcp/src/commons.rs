//! What all sessions of one fabric share: regions, posted buffers, completions to tell, the time.
//!
//! Key type: [`Commons`]. Neighbours: `session` works on it, `fabric` owns it.

use std::collections::VecDeque;

use abi::NodeId;
use abi::courier::Packed;
use fabric::regions::Regions;
use fabric::{Completion, Piece, Time};

/// Descriptors that may be posted to one peer and not yet completed.
pub const MESSAGES_POSTED_MAX: usize = 256;
/// How many of them may be bulk messages, which may wait long: messages always find room beside them.
pub const BULK_POSTED_MAX: usize = MESSAGES_POSTED_MAX / 2;
/// Bulk messages that one peer may have announced here and not yet seen arrive.
pub const ANNOUNCED_MAX: usize = 1024;

/// Shared by the sessions of a fabric, one of which works on it at a time.
pub struct Commons {
    pub regions: Regions,
    /// Posted buffers.
    pub free: VecDeque<Piece>,
    /// What the next polls tell.
    pub ready: VecDeque<Completion>,
    /// As the last poll was told.
    pub now: Time,
    /// The peer of the session that is at work.
    pub peer: NodeId,
    /// Names for bulk messages that peers announce; none is used twice.
    pub announced: u64,
    /// What packing has gained.
    pub packed: Packed,
}

impl Commons {
    pub fn new(now: Time) -> Commons {
        Commons {
            regions: Regions::new(),
            free: VecDeque::with_capacity(1024),
            ready: VecDeque::with_capacity(1024),
            now,
            peer: NodeId(0),
            announced: 0,
            packed: Packed::default(),
        }
    }
}
