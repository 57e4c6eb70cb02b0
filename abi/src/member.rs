//! Between a process and its node's daemon: one datagram each way on a Unix socket (`SOCK_SEQPACKET`), 16 words, with
//! descriptors beside them. The process asks, the daemon answers; it never writes to a process that has not asked.
//!
//! A connection carries one binding. Its end unbinds, as the process's end does.

use crate::ids::{DcId, Endpoint, Incarnation, NodeId, Slot};
use crate::name::Name;
use crate::privilege::{Allowed, Kinds, Level};

/// Changes with every change of a layout or a message here.
pub const VERSION: u32 = 5;
/// Words of a datagram.
pub const WORDS: usize = 16;
/// A datagram.
pub type Words = [u64; WORDS];
/// The word in which a request has its number on the connection, from 1 on, and an answer that of the request. A daemon's
/// successor may say the last answer twice, or find a request that its predecessor had begun: the numbers tell them apart.
/// 0: not numbered.
pub const NUMBER: usize = WORDS - 1;

/// What a segment is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u32)]
pub enum SegmentKind {
    /// Pair sides, `side::BYTES` each.
    Sides = 1,
    /// Extents.
    Pool = 2,
    /// The table of grants, `grant::TABLE_BYTES`.
    Grants = 3,
    /// What others are granted to read.
    GrantRead = 4,
    /// What another is granted to write.
    GrantWrite = 5,
}

impl SegmentKind {
    /// Whether ranges of it may be granted.
    pub const fn is_granted(self) -> bool {
        matches!(self, SegmentKind::GrantRead | SegmentKind::GrantWrite)
    }
}

impl SegmentKind {
    pub const fn from_word(word: u64) -> Option<Self> {
        match word {
            1 => Some(SegmentKind::Sides),
            2 => Some(SegmentKind::Pool),
            3 => Some(SegmentKind::Grants),
            4 => Some(SegmentKind::GrantRead),
            5 => Some(SegmentKind::GrantWrite),
            _ => None,
        }
    }
}

/// What a process asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Request {
    /// First on every connection.
    Hello { version: u32, dc: Name },
    /// Bind the caller; answered by `Bound` with the first segments. Visible to others after `Ready`. `private`: it has memory
    /// for each peer apart.
    Bind { slot: Option<Slot>, name: Name, private: bool },
    /// Bind a process of this node for it; it fetches its memory by `Claim`.
    BindOther { pid: u32, slot: Option<Slot>, name: Name, private: bool },
    /// Fetch the memory that another process had bound for the caller. The token is the one `BindOther` answered.
    Claim { endpoint: Endpoint, token: [u64; 2] },
    /// All segments received so far are mapped: seal them. Makes a fresh binding visible.
    Ready,
    /// One more segment of the own memory.
    NewSegment { kind: SegmentKind, len_bytes: u64 },
    /// One more pool segment of a private endpoint, for what it sends to this peer: nobody else may map it.
    PairSegment { peer: Endpoint, len_bytes: u64 },
    /// The pair with `to`.
    Introduce { to: Endpoint },
    /// The next thing that the daemon has for this binding.
    Pull,
    /// A segment of a memory that the caller was introduced to, to read extents from.
    MapSegment { memory: u32, segment: u32 },
    /// The pair with `peer` is closed here and its side is all zeroes again.
    Recycled { peer: Endpoint },
    /// The endpoint bound under this name.
    LookupName { name: Name },
    /// This binding will sleep in epoll, too: each that rings it is given a descriptor to do so by. Once.
    Poll,
    /// End the binding.
    Unbind,
    /// `to` may map this segment of the caller's memory, which is there to be granted.
    Grant { segment: u32, to: Endpoint },
    /// `to` may not map it any more; answered by `Revoked`.
    Revoke { segment: u32, to: Endpoint },
    /// Nobody is granted anything of this segment any more: it is given up.
    DropSegment { segment: u32 },
    /// As `Introduce`, for our call that was passed on to `to`: a pair over which nothing else may be said will do.
    Follow { to: Endpoint },
    /// What the cluster file lets this binding do.
    Privileges,
}

/// Where both sides of a pair are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Introduction {
    pub peer: Endpoint,
    /// Own side: segment of the own memory and index in it.
    pub own_segment: u32,
    pub own_side: u32,
    /// The peer's memory, its segment and side. The segment comes as the first descriptor.
    pub memory: u32,
    pub segment: u32,
    pub side: u32,
    /// The peer's doorbell in the DC's doorbell page.
    pub doorbell: u32,
    /// The pair leads to a proxy: what it has consumed has been consumed at the far end, extents included.
    pub proxied: bool,
    /// Which descriptors come behind that of the segment.
    pub rings: Rings,
    /// What either side may send: what comes beyond it breaks the protocol.
    pub allowed: Allowed,
}

/// The descriptors by which the two ends of a pair wake each other out of an epoll, in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Rings {
    /// One that rings the peer: the eventfd of a proxy, or a socket that leads to a peer that polls.
    pub theirs: bool,
    /// One that becomes readable when the peer rings the caller, who polls.
    pub ours: bool,
}

impl Rings {
    const fn to_word(self) -> u64 {
        self.theirs as u64 | (self.ours as u64) << 1
    }

    const fn from_word(word: u64) -> Option<Rings> {
        match word {
            0..=3 => Some(Rings { theirs: word & 1 != 0, ours: word & 2 != 0 }),
            _ => None,
        }
    }
}

/// What the daemon answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Reply {
    Refused(Refusal),
    Done,
    /// Descriptors: the DC table, the doorbell page.
    Welcome {
        dc: DcId,
        node: NodeId,
        incarnation: Incarnation,
        slot_first: Slot,
        slot_count: u16,
    },
    /// Descriptors: segment 0 (sides) and segment 1 (pool), unless the binding is another process's. Of a private one: as
    /// many segments of one side each, and then the pool, which nobody else maps.
    /// `token` is for that process's `Claim`.
    Bound {
        endpoint: Endpoint,
        memory: u32,
        sides: u32,
        pool_bytes: u64,
        token: [u64; 2],
        private: bool,
    },
    /// Descriptor: the segment.
    Segment {
        index: u32,
        len_bytes: u64,
    },
    Introduced(Introduction),
    /// Of a `Pull`: the pair now leads elsewhere; own side unchanged.
    Moved(Introduction),
    /// Of a `Pull`: the peer's node was declared dead. Said to each binding, for no proxy may be there to say it, and the
    /// slot in the table may have its next holder already.
    Gone {
        peer: Endpoint,
    },
    /// Of a `Pull`: the pair is as it was, and these descriptors come with it from now on.
    Rings {
        peer: Endpoint,
        rings: Rings,
    },
    /// Of a `Pull`, to a private endpoint: a peer that has ended had this side, and the pair was never told of. It is used
    /// for nobody any more: let go of it.
    Spent {
        segment: u32,
    },
    /// Of a `Poll`. Descriptor: becomes readable when the daemon rings.
    Polled,
    /// Of a `Pull`: nothing more.
    Nothing,
    Found {
        endpoint: Endpoint,
    },
    /// `held`: it has been given the segment before, and keeps what it has mapped.
    Revoked {
        held: bool,
    },
    /// `warn`: the slot that is told of the end of this binding.
    Privileges {
        level: Level,
        calls: Kinds,
        warn: Option<Slot>,
    },
    /// Of a `Pull`: this endpoint has ended, and the cluster file makes the caller's slot hear of it.
    Warned {
        endpoint: Endpoint,
    },
}

/// Why the daemon refused. Stable codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u32)]
pub enum Refusal {
    /// Program and daemon are of different versions: rebuild or reinstall one of them.
    Version = 1,
    /// The cluster file names no such DC on this node.
    NoSuchDc = 2,
    /// This user may not bind in that DC: add its uid to the DC's `uids`; or the token of a claim is wrong or used.
    NotAllowed = 3,
    /// The slot is bound: choose another, or any.
    SlotTaken = 4,
    /// The slot belongs to another node's range.
    NotMySlot = 5,
    /// All slots of this node's range are bound.
    NoFreeSlot = 6,
    /// The daemon could not get memory or descriptors: free some, or raise the limits.
    NoMemory = 7,
    /// No such endpoint, or it died: look it up again.
    NoSuchEndpoint = 8,
    /// The other side is not ready for one more peer: try again.
    NotReady = 9,
    /// A limit of the cluster file was reached.
    LimitReached = 10,
    /// The request makes no sense here.
    BadRequest = 11,
    /// The name is in use in this DC.
    NameTaken = 12,
    /// No process with this pid, or it is another user's.
    NoSuchProcess = 13,
    /// The node was declared dead by others and has begun anew: bind again.
    Fenced = 14,
    /// The daemon is stopping.
    Stopping = 15,
    /// The cluster file lets neither of the two call the other.
    NotPermitted = 16,
    /// The segment is a private endpoint's, for another peer.
    Private = 17,
}

impl Refusal {
    pub const ALL: [Refusal; 17] = [
        Refusal::Version,
        Refusal::NoSuchDc,
        Refusal::NotAllowed,
        Refusal::SlotTaken,
        Refusal::NotMySlot,
        Refusal::NoFreeSlot,
        Refusal::NoMemory,
        Refusal::NoSuchEndpoint,
        Refusal::NotReady,
        Refusal::LimitReached,
        Refusal::BadRequest,
        Refusal::NameTaken,
        Refusal::NoSuchProcess,
        Refusal::Fenced,
        Refusal::Stopping,
        Refusal::NotPermitted,
        Refusal::Private,
    ];

    pub fn from_code(code: u64) -> Option<Refusal> {
        Refusal::ALL.into_iter().find(|r| *r as u64 == code)
    }

    /// What went wrong and what to do, in a few words.
    pub const fn why(self) -> &'static str {
        match self {
            Refusal::Version => {
                "program and daemon are of different versions: rebuild or restart the older one"
            }
            Refusal::NoSuchDc => "this node has no such DC: see `dvs status` for those it has",
            Refusal::NotAllowed => {
                "not allowed: a token that is wrong or used, or a user that the DC's `uids` in the cluster file do not name"
            }
            Refusal::SlotTaken => "the slot is bound: choose another slot, or any",
            Refusal::NotMySlot => {
                "the slot is in another node's range: bind it there, or choose one of this node's"
            }
            Refusal::NoFreeSlot => "all slots of this node are bound: widen its range in the cluster file",
            Refusal::NoMemory => {
                "the daemon has no memory or descriptors left: stop something or raise its limits"
            }
            Refusal::NoSuchEndpoint => "no such endpoint, or it ended: look it up again",
            Refusal::NotReady => "the other side cannot take one more peer just now: try again",
            Refusal::LimitReached => "a limit was reached: see `abi/src/limits.rs` and the cluster file",
            Refusal::BadRequest => {
                "the request makes no sense here: it is about this very endpoint, or names what is out of range"
            }
            Refusal::NameTaken => "the name is bound in this DC: choose another",
            Refusal::NoSuchProcess => "no process with that pid, or it belongs to another user",
            Refusal::Fenced => "this node was declared dead by others and began anew: bind again",
            Refusal::Stopping => "the daemon is stopping",
            Refusal::NotPermitted => {
                "the cluster file lets neither of the two call the other: see its `[[dc.privileges]]`"
            }
            Refusal::Private => {
                "the segment is a private endpoint's, for another peer: what it has for you comes with your pair"
            }
        }
    }
}

fn slot_word(slot: Option<Slot>) -> u64 {
    slot.map_or(u64::MAX, |s| s.0 as u64)
}

fn slot_from(word: u64) -> Option<Option<Slot>> {
    match word {
        u64::MAX => Some(None),
        w if w < crate::limits::SLOTS_PER_DC as u64 => Some(Some(Slot(w as u16))),
        _ => None,
    }
}

fn with_name(mut words: Words, at: usize, name: Name) -> Words {
    words[at..at + 4].copy_from_slice(&name.to_words());
    words
}

fn name_at(words: &Words, at: usize) -> Option<Name> {
    Name::from_words([words[at], words[at + 1], words[at + 2], words[at + 3]])
}

fn small(word: u64) -> Option<u32> {
    u32::try_from(word).ok()
}

fn flag(word: u64) -> Option<bool> {
    match word {
        0 | 1 => Some(word == 1),
        _ => None,
    }
}

impl Request {
    pub fn to_words(self) -> Words {
        let mut w = [0; WORDS];
        match self {
            Request::Hello { version, dc } => {
                w[..2].copy_from_slice(&[1, version as u64]);
                w = with_name(w, 2, dc);
            }
            Request::Bind { slot, name, private } => {
                w[..2].copy_from_slice(&[2, slot_word(slot)]);
                w = with_name(w, 2, name);
                w[6] = private as u64;
            }
            Request::BindOther { pid, slot, name, private } => {
                w[..3].copy_from_slice(&[3, pid as u64, slot_word(slot)]);
                w = with_name(w, 3, name);
                w[7] = private as u64;
            }
            Request::Claim { endpoint, token } => {
                w[..4].copy_from_slice(&[4, endpoint.to_word(), token[0], token[1]]);
            }
            Request::Ready => w[0] = 5,
            Request::NewSegment { kind, len_bytes } => w[..3].copy_from_slice(&[6, kind as u64, len_bytes]),
            Request::PairSegment { peer, len_bytes } => {
                w[..3].copy_from_slice(&[22, peer.to_word(), len_bytes]);
            }
            Request::Introduce { to } => w[..2].copy_from_slice(&[7, to.to_word()]),
            Request::Pull => w[0] = 8,
            Request::MapSegment { memory, segment } => {
                w[..3].copy_from_slice(&[9, memory as u64, segment as u64]);
            }
            Request::Recycled { peer } => w[..2].copy_from_slice(&[10, peer.to_word()]),
            Request::LookupName { name } => {
                w[0] = 11;
                w = with_name(w, 1, name);
            }
            Request::Unbind => w[0] = 12,
            Request::Grant { segment, to } => w[..3].copy_from_slice(&[13, segment as u64, to.to_word()]),
            Request::Revoke { segment, to } => w[..3].copy_from_slice(&[14, segment as u64, to.to_word()]),
            Request::DropSegment { segment } => w[..2].copy_from_slice(&[15, segment as u64]),
            Request::Poll => w[0] = 16,
            Request::Follow { to } => w[..2].copy_from_slice(&[20, to.to_word()]),
            Request::Privileges => w[0] = 21,
        }
        w
    }

    /// `None` for anything that is not a request of this version.
    pub fn from_words(w: &Words) -> Option<Request> {
        Some(match w[0] {
            1 => Request::Hello { version: small(w[1])?, dc: name_at(w, 2)? },
            2 => Request::Bind { slot: slot_from(w[1])?, name: name_at(w, 2)?, private: flag(w[6])? },
            3 => {
                let (pid, slot) = (small(w[1])?, slot_from(w[2])?);
                Request::BindOther { pid, slot, name: name_at(w, 3)?, private: flag(w[7])? }
            }
            4 => Request::Claim { endpoint: Endpoint::from_word(w[1])?, token: [w[2], w[3]] },
            5 => Request::Ready,
            6 => Request::NewSegment { kind: SegmentKind::from_word(w[1])?, len_bytes: w[2] },
            7 => Request::Introduce { to: Endpoint::from_word(w[1])? },
            8 => Request::Pull,
            9 => Request::MapSegment { memory: small(w[1])?, segment: small(w[2])? },
            10 => Request::Recycled { peer: Endpoint::from_word(w[1])? },
            11 => Request::LookupName { name: name_at(w, 1)? },
            12 => Request::Unbind,
            13 => Request::Grant { segment: small(w[1])?, to: Endpoint::from_word(w[2])? },
            14 => Request::Revoke { segment: small(w[1])?, to: Endpoint::from_word(w[2])? },
            15 => Request::DropSegment { segment: small(w[1])? },
            16 => Request::Poll,
            20 => Request::Follow { to: Endpoint::from_word(w[1])? },
            21 => Request::Privileges,
            22 => Request::PairSegment { peer: Endpoint::from_word(w[1])?, len_bytes: w[2] },
            _ => return None,
        })
    }
}

impl Introduction {
    fn put(self, w: &mut Words) {
        w[1..10].copy_from_slice(&[
            self.peer.to_word(),
            self.own_segment as u64,
            self.own_side as u64,
            self.memory as u64,
            self.segment as u64,
            self.side as u64,
            self.doorbell as u64,
            self.proxied as u64,
            self.rings.to_word(),
        ]);
        w[10] = self.allowed.to_word();
    }

    fn take(w: &Words) -> Option<Introduction> {
        Some(Introduction {
            peer: Endpoint::from_word(w[1])?,
            own_segment: small(w[2])?,
            own_side: small(w[3])?,
            memory: small(w[4])?,
            segment: small(w[5])?,
            side: small(w[6])?,
            doorbell: small(w[7])?,
            proxied: w[8] != 0,
            rings: Rings::from_word(w[9])?,
            allowed: Allowed::from_word(w[10]),
        })
    }
}

impl Reply {
    pub fn to_words(self) -> Words {
        let mut w = [0; WORDS];
        match self {
            Reply::Refused(why) => w[..2].copy_from_slice(&[1, why as u64]),
            Reply::Done => w[0] = 2,
            Reply::Welcome { dc, node, incarnation, slot_first, slot_count } => {
                w[..6].copy_from_slice(&[
                    3,
                    dc.0 as u64,
                    node.0 as u64,
                    incarnation.0 as u64,
                    slot_first.0 as u64,
                    slot_count as u64,
                ]);
            }
            Reply::Bound { endpoint, memory, sides, pool_bytes, token, private } => {
                let (memory, sides) = (memory as u64, sides as u64);
                w[..8].copy_from_slice(&[
                    4,
                    endpoint.to_word(),
                    memory,
                    sides,
                    pool_bytes,
                    token[0],
                    token[1],
                    private as u64,
                ]);
            }
            Reply::Segment { index, len_bytes } => w[..3].copy_from_slice(&[5, index as u64, len_bytes]),
            Reply::Introduced(i) => {
                w[0] = 6;
                i.put(&mut w);
            }
            Reply::Moved(i) => {
                w[0] = 7;
                i.put(&mut w);
            }
            Reply::Nothing => w[0] = 8,
            Reply::Found { endpoint } => w[..2].copy_from_slice(&[9, endpoint.to_word()]),
            Reply::Gone { peer } => w[..2].copy_from_slice(&[10, peer.to_word()]),
            Reply::Revoked { held } => w[..2].copy_from_slice(&[11, held as u64]),
            Reply::Rings { peer, rings } => w[..3].copy_from_slice(&[12, peer.to_word(), rings.to_word()]),
            Reply::Polled => w[0] = 13,
            Reply::Privileges { level, calls, warn } => {
                w[..4].copy_from_slice(&[20, level as u64, calls.bits() as u64, slot_word(warn)]);
            }
            Reply::Warned { endpoint } => w[..2].copy_from_slice(&[21, endpoint.to_word()]),
            Reply::Spent { segment } => w[..2].copy_from_slice(&[22, segment as u64]),
        }
        w
    }

    pub fn from_words(w: &Words) -> Option<Reply> {
        Some(match w[0] {
            1 => Reply::Refused(Refusal::from_code(w[1])?),
            2 => Reply::Done,
            3 => Reply::Welcome {
                dc: DcId(u16::try_from(w[1]).ok()?),
                node: NodeId(u16::try_from(w[2]).ok()?),
                incarnation: Incarnation(small(w[3])?),
                slot_first: Slot(u16::try_from(w[4]).ok()?),
                slot_count: u16::try_from(w[5]).ok()?,
            },
            4 => Reply::Bound {
                endpoint: Endpoint::from_word(w[1])?,
                memory: small(w[2])?,
                sides: small(w[3])?,
                pool_bytes: w[4],
                token: [w[5], w[6]],
                private: flag(w[7])?,
            },
            5 => Reply::Segment { index: small(w[1])?, len_bytes: w[2] },
            6 => Reply::Introduced(Introduction::take(w)?),
            7 => Reply::Moved(Introduction::take(w)?),
            8 => Reply::Nothing,
            9 => Reply::Found { endpoint: Endpoint::from_word(w[1])? },
            10 => Reply::Gone { peer: Endpoint::from_word(w[1])? },
            11 => Reply::Revoked { held: w[1] != 0 },
            12 => Reply::Rings { peer: Endpoint::from_word(w[1])?, rings: Rings::from_word(w[2])? },
            13 => Reply::Polled,
            20 => Reply::Privileges {
                level: Level::from_bits(u8::try_from(w[1]).ok()?),
                calls: Kinds::from_bits(u16::try_from(w[2]).ok()?),
                warn: slot_from(w[3])?,
            },
            21 => Reply::Warned { endpoint: Endpoint::from_word(w[1])? },
            22 => Reply::Spent { segment: small(w[1])? },
            _ => return None,
        })
    }
}

/// The environment of a process that was bound before it began: where its daemon listens.
pub const ENV_SOCKET: &str = "DVK_SOCKET";
/// Its DC's name.
pub const ENV_DC: &str = "DVK_DC";
/// Its endpoint, as `DC:SLOT.GENERATION`, and the token to claim it, as 32 hexadecimal digits.
pub const ENV_ENDPOINT: &str = "DVK_ENDPOINT";
pub const ENV_TOKEN: &str = "DVK_TOKEN";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Generation;

    #[test]
    fn every_request_and_reply_survives_its_words() {
        let e = Endpoint::new(DcId(2), Slot(7), Generation(99));
        let name = Name::new("kv").unwrap();
        let requests = [
            Request::Hello { version: VERSION, dc: name },
            Request::Bind { slot: None, name: Name::NONE, private: false },
            Request::Bind { slot: Some(Slot(4095)), name, private: true },
            Request::BindOther { pid: 17, slot: Some(Slot(0)), name, private: true },
            Request::PairSegment { peer: e, len_bytes: 1 << 18 },
            Request::Claim { endpoint: e, token: [1, 2] },
            Request::Ready,
            Request::NewSegment { kind: SegmentKind::Pool, len_bytes: 1 << 22 },
            Request::Introduce { to: e },
            Request::Pull,
            Request::MapSegment { memory: 4, segment: 5 },
            Request::Recycled { peer: e },
            Request::LookupName { name },
            Request::Unbind,
            Request::Grant { segment: 3, to: e },
            Request::Revoke { segment: 3, to: e },
            Request::DropSegment { segment: 3 },
            Request::Poll,
            Request::Follow { to: e },
            Request::Privileges,
        ];
        for r in requests {
            assert_eq!(Request::from_words(&r.to_words()), Some(r));
        }
        let i = Introduction {
            peer: e,
            own_segment: 1,
            own_side: 2,
            memory: 3,
            segment: 4,
            side: 5,
            doorbell: 6,
            proxied: true,
            rings: Rings { theirs: true, ours: true },
            allowed: Allowed { to_peer: Kinds::SENDREC, from_peer: Kinds::ALL },
        };
        let replies = [
            Reply::Done,
            Reply::Welcome {
                dc: DcId(1),
                node: NodeId(2),
                incarnation: Incarnation(3),
                slot_first: Slot(4),
                slot_count: 5,
            },
            Reply::Bound { endpoint: e, memory: 7, sides: 8, pool_bytes: 9, token: [3, 4], private: true },
            Reply::Segment { index: 1, len_bytes: 2 },
            Reply::Introduced(i),
            Reply::Moved(i),
            Reply::Gone { peer: i.peer },
            Reply::Rings { peer: e, rings: Rings { theirs: false, ours: true } },
            Reply::Rings { peer: e, rings: Rings { theirs: true, ours: false } },
            Reply::Polled,
            Reply::Nothing,
            Reply::Found { endpoint: e },
            Reply::Revoked { held: true },
            Reply::Privileges { level: Level::User, calls: Kinds::SENDREC, warn: Some(Slot(3)) },
            Reply::Privileges { level: Level::Kernel, calls: Kinds::ALL, warn: None },
            Reply::Warned { endpoint: e },
            Reply::Spent { segment: 6 },
        ];
        for r in replies.into_iter().chain(Refusal::ALL.map(Reply::Refused)) {
            assert_eq!(Reply::from_words(&r.to_words()), Some(r));
        }
        assert_eq!(Request::from_words(&[99; WORDS]), None);
        assert_eq!(Reply::from_words(&[99; WORDS]), None);
        let mut beyond = Reply::Introduced(i).to_words();
        beyond[9] = 4;
        assert_eq!(Reply::from_words(&beyond), None, "a third descriptor has no meaning");
        let mut bind = Request::Bind { slot: None, name, private: true }.to_words();
        bind[6] = 2;
        assert_eq!(Request::from_words(&bind), None, "private or not");
    }
}
