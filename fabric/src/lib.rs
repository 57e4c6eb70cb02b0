//! The letter slot: what a transport must do, and the courier that uses it.
//!
//! [`Fabric`] is the seam: object-safe, one indirect call per batch, construction outside. The `courier` mirrors pair
//! sides over any fabric; `loopback` is a fabric in one process; `faulty` wraps faults around one; `conformance`
//! is the suite that every implementation passes.
#![forbid(unsafe_code)]

pub mod courier;
pub mod driver;

pub mod conformance;
pub mod faulty;
pub mod loopback;
pub mod regions;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use abi::courier::{LinkState, Packed};
use abi::{Incarnation, NodeId};
use shm::map::Mapping;

/// Monotonic time since an origin of the driver's choice. Cores and fabrics are told it; they never ask.
pub type Time = Duration;

/// Memory that a fabric may read from or write to, named at [`Fabric::attach`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RegionKey(pub u32);

/// A range of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    pub region: RegionKey,
    pub offset_bytes: u64,
    pub len_bytes: u32,
}

/// A message to post: a head that is copied by `post_send`, then pieces that must stay mapped until the completion.
#[derive(Clone, Copy, Debug)]
pub struct Desc<'a> {
    /// The caller's name for it, in the completion.
    pub token: u64,
    /// At most `limits::HEAD_BYTES_MAX`.
    pub head: &'a [u8],
    /// At most `limits::PIECES_MAX`.
    pub pieces: &'a [Piece],
    /// Announce it: the pieces cross only when the other end has accepted, straight into the buffer it names.
    /// Without it, head and pieces arrive in one posted buffer and are at most `caps().message_bytes_max` together.
    pub bulk: bool,
    /// Who shares the wire with whom: bulk bytes of one flow wait for one turn of each other flow, not for all of them.
    pub flow: u16,
}

/// What a fabric can do. Honest: conformance tests ask for exactly this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caps {
    /// Largest message that is not bulk, head and pieces.
    pub message_bytes_max: u32,
    /// Largest bulk message's pieces.
    pub bulk_bytes_max: u64,
    /// Descriptors that may be posted to one peer and not yet completed; half of them may be bulk.
    pub posted_max: usize,
    /// Pieces are read by the device or the kernel from where they are.
    pub zero_copy: bool,
    /// Bulk bytes are written into the accepted buffer without a copy on this side.
    pub bulk_in_place: bool,
}

/// What `poll` tells. Every accepted descriptor and buffer comes back in exactly one completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Completion {
    /// The fabric needs the memory of this descriptor no more. Not: that it has arrived.
    Sent { peer: NodeId, token: u64 },
    /// The descriptor did not leave, or nobody knows: its session is lost, or the other end refused it.
    Failed { peer: NodeId, token: u64 },
    /// A posted buffer, with a message in its first `len_bytes`.
    Received { peer: NodeId, buffer: Piece, len_bytes: u32 },
    /// The other end has a bulk message: its head stands in a posted buffer. Answer with `accept` or `refuse`.
    Announced { peer: NodeId, token: u64, bulk_bytes: u64, buffer: Piece, len_bytes: u32 },
    /// The accepted bulk message `token` is in its buffer.
    BulkReceived { peer: NodeId, token: u64, into: Piece },
    /// The accepted bulk message will not come; its buffer is the caller's again, contents undefined.
    BulkFailed { peer: NodeId, token: u64, into: Piece },
    /// A session stands. What a peer learnt in an earlier one must be said again.
    Up { peer: NodeId, session: u64, incarnation: Incarnation },
    /// The session is gone; all its descriptors and accepted bulk messages have completed before this.
    Lost { peer: NodeId, session: u64 },
    /// No session comes about, and why.
    Trouble { peer: NodeId, state: LinkState },
}

/// How a driver sleeps on a fabric.
#[derive(Debug)]
pub enum Waiter<'a> {
    /// Readable when `poll` has something to do.
    Fd(BorrowedFd<'a>),
    /// There is nothing to sleep on: poll again.
    MustPoll,
}

/// What `arm` found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Armed {
    /// Poll again before sleeping.
    MoreToDo,
    /// The waiter will become ready, or `deadline` pass.
    Armed,
}

/// A transport beneath the courier.
///
/// The law: buffers are conserved. Messages to one peer arrive in the order of their posting within a session, bulk
/// ones excepted, which complete when they do.
pub trait Fabric {
    fn caps(&self) -> Caps;

    /// Makes memory usable in pieces and posted buffers. Cost: may register pages; not for the message path.
    fn attach(&mut self, map: &Arc<Mapping>) -> RegionKey;

    /// The caller posts nothing of this region any more; the fabric lets go of it when its last descriptor completes.
    fn detach(&mut self, region: RegionKey);

    /// Takes a prefix of `batch`; returns its length. The rest stays the caller's: post it again after a completion.
    /// 0 when there is no session with `peer`.
    fn post_send(&mut self, peer: NodeId, batch: &[Desc<'_>]) -> usize;

    /// Lends empty buffers of at least `caps().message_bytes_max` for messages of any peer; returns how many it took.
    fn post_recv(&mut self, free: &[Piece]) -> usize;

    /// Where the announced bulk message goes: exactly `bulk_bytes` long.
    fn accept(&mut self, peer: NodeId, token: u64, into: Piece);

    /// The announced bulk message is not wanted; its sender sees `Failed`.
    fn refuse(&mut self, peer: NodeId, token: u64);

    /// Moves bytes and appends what completed, at most what `done` has capacity left for, at least one if there is any.
    fn poll(&mut self, now: Time, done: &mut Vec<Completion>);

    fn waiter(&self) -> Waiter<'_>;

    /// Before sleeping: makes the waiter tell of all that comes after this call.
    fn arm(&mut self) -> Armed;

    /// When `poll` must be called at the latest.
    fn deadline(&self) -> Option<Time>;

    /// What packing has gained, for a fabric that packs.
    fn packed(&self) -> Packed {
        Packed::default()
    }

    /// End and refuse all sessions with this incarnation of the node: it was declared dead.
    fn fence(&mut self, peer: NodeId, incarnation: Incarnation);
}
