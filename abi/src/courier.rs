//! Between the daemon and a proxy of its node: datagrams on a Unix socket (`SOCK_SEQPACKET`), 16 words and at most
//! [`TAIL_BYTES_MAX`] bytes behind them, with descriptors beside. Both sides write when they have something to say.

use crate::ids::{DcId, Endpoint, Incarnation, NodeId};
use crate::member::{Refusal, SegmentKind, WORDS, Words};

/// Bytes behind the words of a directory datagram.
pub const TAIL_BYTES_MAX: usize = 32 << 10;

// A description of a DC with all nodes and users, a word each, and all rules fits, with room for what stands before them.
const _: () = {
    use crate::limits::{NODES_MAX, RULE_WORDS_PER_DC_MAX, UIDS_PER_DC_MAX};
    assert!((NODES_MAX as usize + UIDS_PER_DC_MAX + RULE_WORDS_PER_DC_MAX + 16) * 8 <= TAIL_BYTES_MAX);
};

/// What the daemon tells a proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ToProxy {
    /// The proxy serves this DC from now on, at this doorbell, with this memory. Descriptors: DC table, doorbell page, the eventfd that
    /// the DC's members ring.
    Dc { dc: DcId, doorbell: u32, memory: u32 },
    /// One more memory of the proxy's own in this DC: for the private pairs of one local endpoint, which alone may read it.
    Memory { dc: DcId, memory: u32 },
    /// That memory is no longer used.
    ForgetMemory { memory: u32 },
    /// A segment of a memory of the proxy's own: map it, answer `Mapped`. Descriptor: the segment.
    Segment { memory: u32, index: u32, kind: SegmentKind, len_bytes: u64 },
    /// That segment is sealed: members may map it, so descriptors may lead into it from now on.
    Sealed { memory: u32, index: u32 },
    /// Carry this pair. Descriptor: the local endpoint's side segment.
    Attach { attach: Attach },
    /// Answer to `WantSegment`. Descriptor: the segment. Of what is granted to be written it may be written.
    PeerSegment { memory: u32, segment: u32, len_bytes: u64, kind: SegmentKind },
    /// The segment is given up: let go of it.
    ForgetSegment { memory: u32, segment: u32 },
    /// A local endpoint ended: freeze its lanes, tell the far ends their final sequences.
    LocalEnded { endpoint: Endpoint },
    /// Answer to `RemoteOpen`: no.
    Refuse { local: Endpoint, remote: Endpoint, why: Refusal },
    /// Forget the pair; answer `Detached`, after which both sides may be used again.
    Detach { local: Endpoint, remote: Endpoint },
    /// Take nothing from and send nothing to this incarnation of the node any more; end its pairs here with
    /// `side::END_NODE_DEAD`; answer `NodeClosed`.
    NodeDead { node: NodeId, incarnation: Incarnation },
    /// Bytes for the daemon of a node (0: of every node that is up).
    Directory { node: NodeId },
    /// The local endpoint of a carried pair polls. Descriptor: what rings it for this pair.
    Bell { local: Endpoint, remote: Endpoint },
    /// Answer `Pong` with the same number.
    Ping { number: u64 },
    /// End the connections in good order and exit.
    Stop,
    /// The proxy serves this DC no more: let go of all memory of it.
    DropDc { dc: DcId },
}

/// Where both sides of a carried pair are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attach {
    pub local: Endpoint,
    pub remote: Endpoint,
    pub node: NodeId,
    /// The proxy's side for `remote`, in this memory of its own.
    pub own_memory: u32,
    pub own_segment: u32,
    pub own_side: u32,
    /// The local endpoint's memory, its segment and side, and its doorbell.
    pub memory: u32,
    pub segment: u32,
    pub side: u32,
    pub doorbell: u32,
}

/// What a proxy tells the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum FromProxy {
    /// First. The token came with the proxy's start.
    Hello {
        version: u32,
        token: [u64; 2],
    },
    Mapped {
        memory: u32,
        index: u32,
    },
    /// One more segment of a memory of its own.
    NewSegment {
        memory: u32,
        kind: SegmentKind,
        len_bytes: u64,
    },
    /// A bulk segment of a local endpoint.
    WantSegment {
        memory: u32,
        segment: u32,
    },
    /// A remote endpoint wants to talk to a local one: answered by `Attach` or `Refuse`.
    RemoteOpen {
        local: Endpoint,
        remote: Endpoint,
        node: NodeId,
    },
    Detached {
        local: Endpoint,
        remote: Endpoint,
    },
    NodeClosed {
        node: NodeId,
    },
    /// The state of a link, at every change.
    Link {
        node: NodeId,
        incarnation: Incarnation,
        state: LinkState,
    },
    /// Bytes from the daemon of a node.
    Directory {
        node: NodeId,
        incarnation: Incarnation,
    },
    /// The far node says that it has declared this node dead.
    Fenced {
        by: NodeId,
    },
    /// Answer to `Ping`, with totals since the start.
    Pong {
        number: u64,
        totals: Totals,
    },
}

/// What a proxy has carried since its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Totals {
    pub slots_sent: u64,
    pub slots_received: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub sessions: u64,
    pub corrupt: u64,
    pub pairs: u64,
    pub packed: Packed,
}

/// How far packing has made shorter what was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Packed {
    /// Sessions now that pack: both ends want it.
    pub sessions: u64,
    /// Bytes of payload that might have been packed, and what they took on the wire.
    pub plain_bytes: u64,
    pub wire_bytes: u64,
}

/// A link to another node, as the proxy sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u8)]
pub enum LinkState {
    Connecting = 1,
    Up = 2,
    /// No heartbeat for `link_down_after`: nothing else happens.
    Cut = 3,
    /// The other end has another wire version.
    WrongVersion = 4,
    /// The other end does not know the cluster key.
    WrongKey = 5,
    /// The other end says it is another node than the cluster file says, or has our own id.
    WrongNode = 6,
    /// The other end has declared this incarnation of this node dead: take a new one.
    Fenced = 7,
}

impl LinkState {
    pub const fn from_word(word: u64) -> Option<Self> {
        Some(match word {
            1 => LinkState::Connecting,
            2 => LinkState::Up,
            3 => LinkState::Cut,
            4 => LinkState::WrongVersion,
            5 => LinkState::WrongKey,
            6 => LinkState::WrongNode,
            7 => LinkState::Fenced,
            _ => return None,
        })
    }

    pub const fn name(self) -> &'static str {
        match self {
            LinkState::Connecting => "connecting",
            LinkState::Up => "up",
            LinkState::Cut => "cut",
            LinkState::WrongVersion => "wrong wire version",
            LinkState::WrongKey => "wrong cluster key",
            LinkState::WrongNode => "wrong node id",
            LinkState::Fenced => "declared dead there",
        }
    }
}

fn small(word: u64) -> Option<u32> {
    u32::try_from(word).ok()
}

fn dc(word: u64) -> Option<DcId> {
    u16::try_from(word).ok().map(DcId)
}

fn node(word: u64) -> Option<NodeId> {
    u16::try_from(word).ok().map(NodeId)
}

fn fill<const N: usize>(values: [u64; N]) -> Words {
    let mut w = [0; WORDS];
    w[..N].copy_from_slice(&values);
    w
}

impl ToProxy {
    pub fn to_words(self) -> Words {
        match self {
            ToProxy::Dc { dc, doorbell, memory } => fill([101, dc.0 as u64, doorbell as u64, memory as u64]),
            ToProxy::Memory { dc, memory } => fill([114, dc.0 as u64, memory as u64]),
            ToProxy::ForgetMemory { memory } => fill([115, memory as u64]),
            ToProxy::Segment { memory, index, kind, len_bytes } => {
                fill([102, memory as u64, index as u64, kind as u64, len_bytes])
            }
            ToProxy::Sealed { memory, index } => fill([117, memory as u64, index as u64]),
            ToProxy::Attach { attach: a } => fill([
                103,
                a.local.to_word(),
                a.remote.to_word(),
                a.node.0 as u64,
                a.own_segment as u64,
                a.own_side as u64,
                a.memory as u64,
                a.segment as u64,
                a.side as u64,
                a.doorbell as u64,
                a.own_memory as u64,
            ]),
            ToProxy::PeerSegment { memory, segment, len_bytes, kind } => {
                fill([104, memory as u64, segment as u64, len_bytes, kind as u64])
            }
            ToProxy::ForgetSegment { memory, segment } => fill([112, memory as u64, segment as u64]),
            ToProxy::LocalEnded { endpoint } => fill([105, endpoint.to_word()]),
            ToProxy::Refuse { local, remote, why } => {
                fill([106, local.to_word(), remote.to_word(), why as u64])
            }
            ToProxy::Detach { local, remote } => fill([107, local.to_word(), remote.to_word()]),
            ToProxy::NodeDead { node, incarnation } => fill([108, node.0 as u64, incarnation.0 as u64]),
            ToProxy::Directory { node } => fill([109, node.0 as u64]),
            ToProxy::Ping { number } => fill([110, number]),
            ToProxy::Stop => fill([111]),
            ToProxy::Bell { local, remote } => fill([113, local.to_word(), remote.to_word()]),
            ToProxy::DropDc { dc } => fill([116, dc.0 as u64]),
        }
    }

    pub fn from_words(w: &Words) -> Option<ToProxy> {
        Some(match w[0] {
            101 => ToProxy::Dc { dc: dc(w[1])?, doorbell: small(w[2])?, memory: small(w[3])? },
            114 => ToProxy::Memory { dc: dc(w[1])?, memory: small(w[2])? },
            115 => ToProxy::ForgetMemory { memory: small(w[1])? },
            102 => ToProxy::Segment {
                memory: small(w[1])?,
                index: small(w[2])?,
                kind: SegmentKind::from_word(w[3])?,
                len_bytes: w[4],
            },
            117 => ToProxy::Sealed { memory: small(w[1])?, index: small(w[2])? },
            103 => ToProxy::Attach {
                attach: Attach {
                    local: Endpoint::from_word(w[1])?,
                    remote: Endpoint::from_word(w[2])?,
                    node: node(w[3])?,
                    own_segment: small(w[4])?,
                    own_side: small(w[5])?,
                    memory: small(w[6])?,
                    segment: small(w[7])?,
                    side: small(w[8])?,
                    doorbell: small(w[9])?,
                    own_memory: small(w[10])?,
                },
            },
            104 => ToProxy::PeerSegment {
                memory: small(w[1])?,
                segment: small(w[2])?,
                len_bytes: w[3],
                kind: SegmentKind::from_word(w[4])?,
            },
            112 => ToProxy::ForgetSegment { memory: small(w[1])?, segment: small(w[2])? },
            105 => ToProxy::LocalEnded { endpoint: Endpoint::from_word(w[1])? },
            106 => ToProxy::Refuse {
                local: Endpoint::from_word(w[1])?,
                remote: Endpoint::from_word(w[2])?,
                why: Refusal::from_code(w[3])?,
            },
            107 => ToProxy::Detach { local: Endpoint::from_word(w[1])?, remote: Endpoint::from_word(w[2])? },
            108 => ToProxy::NodeDead { node: node(w[1])?, incarnation: Incarnation(small(w[2])?) },
            109 => ToProxy::Directory { node: node(w[1])? },
            110 => ToProxy::Ping { number: w[1] },
            111 => ToProxy::Stop,
            113 => ToProxy::Bell { local: Endpoint::from_word(w[1])?, remote: Endpoint::from_word(w[2])? },
            116 => ToProxy::DropDc { dc: dc(w[1])? },
            _ => return None,
        })
    }
}

impl FromProxy {
    pub fn to_words(self) -> Words {
        match self {
            FromProxy::Hello { version, token } => fill([201, version as u64, token[0], token[1]]),
            FromProxy::Mapped { memory, index } => fill([202, memory as u64, index as u64]),
            FromProxy::NewSegment { memory, kind, len_bytes } => {
                fill([203, memory as u64, kind as u64, len_bytes])
            }
            FromProxy::WantSegment { memory, segment } => fill([204, memory as u64, segment as u64]),
            FromProxy::RemoteOpen { local, remote, node } => {
                fill([205, local.to_word(), remote.to_word(), node.0 as u64])
            }
            FromProxy::Detached { local, remote } => fill([206, local.to_word(), remote.to_word()]),
            FromProxy::NodeClosed { node } => fill([207, node.0 as u64]),
            FromProxy::Link { node, incarnation, state } => {
                fill([208, node.0 as u64, incarnation.0 as u64, state as u64])
            }
            FromProxy::Directory { node, incarnation } => fill([209, node.0 as u64, incarnation.0 as u64]),
            FromProxy::Fenced { by } => fill([210, by.0 as u64]),
            FromProxy::Pong { number, totals: t } => fill([
                211,
                number,
                t.slots_sent,
                t.slots_received,
                t.bytes_sent,
                t.bytes_received,
                t.sessions,
                t.corrupt,
                t.pairs,
                t.packed.sessions,
                t.packed.plain_bytes,
                t.packed.wire_bytes,
            ]),
        }
    }

    pub fn from_words(w: &Words) -> Option<FromProxy> {
        Some(match w[0] {
            201 => FromProxy::Hello { version: small(w[1])?, token: [w[2], w[3]] },
            202 => FromProxy::Mapped { memory: small(w[1])?, index: small(w[2])? },
            203 => {
                let kind = SegmentKind::from_word(w[2])?;
                FromProxy::NewSegment { memory: small(w[1])?, kind, len_bytes: w[3] }
            }
            204 => FromProxy::WantSegment { memory: small(w[1])?, segment: small(w[2])? },
            205 => FromProxy::RemoteOpen {
                local: Endpoint::from_word(w[1])?,
                remote: Endpoint::from_word(w[2])?,
                node: node(w[3])?,
            },
            206 => {
                FromProxy::Detached { local: Endpoint::from_word(w[1])?, remote: Endpoint::from_word(w[2])? }
            }
            207 => FromProxy::NodeClosed { node: node(w[1])? },
            208 => FromProxy::Link {
                node: node(w[1])?,
                incarnation: Incarnation(small(w[2])?),
                state: LinkState::from_word(w[3])?,
            },
            209 => FromProxy::Directory { node: node(w[1])?, incarnation: Incarnation(small(w[2])?) },
            210 => FromProxy::Fenced { by: node(w[1])? },
            211 => FromProxy::Pong {
                number: w[1],
                totals: Totals {
                    slots_sent: w[2],
                    slots_received: w[3],
                    bytes_sent: w[4],
                    bytes_received: w[5],
                    sessions: w[6],
                    corrupt: w[7],
                    pairs: w[8],
                    packed: Packed { sessions: w[9], plain_bytes: w[10], wire_bytes: w[11] },
                },
            },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Generation, Slot};

    #[test]
    fn every_datagram_survives_its_words() {
        let local = Endpoint::new(DcId(1), Slot(2), Generation(3));
        let remote = Endpoint::new(DcId(1), Slot(5), Generation(6));
        let (node, incarnation) = (NodeId(4), Incarnation(77));
        let attach = Attach {
            local,
            remote,
            node,
            own_memory: 7,
            own_segment: 1,
            own_side: 2,
            memory: 3,
            segment: 4,
            side: 5,
            doorbell: 6,
        };
        for m in [
            ToProxy::Dc { dc: DcId(1), doorbell: 4097, memory: 7 },
            ToProxy::Memory { dc: DcId(1), memory: 8 },
            ToProxy::ForgetMemory { memory: 8 },
            ToProxy::Segment { memory: 1, index: 0, kind: SegmentKind::Sides, len_bytes: 8 },
            ToProxy::Sealed { memory: 1, index: 2 },
            ToProxy::Attach { attach },
            ToProxy::PeerSegment { memory: 1, segment: 2, len_bytes: 3, kind: SegmentKind::GrantWrite },
            ToProxy::ForgetSegment { memory: 1, segment: 2 },
            ToProxy::LocalEnded { endpoint: local },
            ToProxy::Refuse { local, remote, why: Refusal::NoSuchEndpoint },
            ToProxy::Detach { local, remote },
            ToProxy::NodeDead { node, incarnation },
            ToProxy::Directory { node },
            ToProxy::Ping { number: 9 },
            ToProxy::Stop,
            ToProxy::Bell { local, remote },
            ToProxy::DropDc { dc: DcId(4) },
        ] {
            assert_eq!(ToProxy::from_words(&m.to_words()), Some(m));
        }
        let packed = Packed { sessions: 1, plain_bytes: 2, wire_bytes: 3 };
        for m in [
            FromProxy::Hello { version: 1, token: [2, 3] },
            FromProxy::Mapped { memory: 1, index: 2 },
            FromProxy::NewSegment { memory: 1, kind: SegmentKind::Pool, len_bytes: 3 },
            FromProxy::WantSegment { memory: 1, segment: 2 },
            FromProxy::RemoteOpen { local, remote, node },
            FromProxy::Detached { local, remote },
            FromProxy::NodeClosed { node },
            FromProxy::Link { node, incarnation, state: LinkState::WrongKey },
            FromProxy::Directory { node, incarnation },
            FromProxy::Fenced { by: node },
            FromProxy::Pong {
                number: 1,
                totals: Totals { slots_sent: 2, pairs: 3, packed, ..Totals::default() },
            },
        ] {
            assert_eq!(FromProxy::from_words(&m.to_words()), Some(m));
        }
        assert_eq!(ToProxy::from_words(&[0; WORDS]), None);
        assert_eq!(FromProxy::from_words(&[0; WORDS]), None);
    }
}
