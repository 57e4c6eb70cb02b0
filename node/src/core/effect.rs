//! What goes into the core and what comes out of it: plain data, so that a test reads it and a simulator carries it.

use std::fmt;

use abi::courier::{FromProxy, LinkState, ToProxy};
use abi::member::{Reply, Request, SegmentKind};
use abi::table::Entry;
use abi::{DcId, Endpoint, Incarnation, NodeId, Slot};
use serde::{Deserialize, Serialize};

use super::{ConnId, DcChange, DcSpec};

/// Who a process is: the pid means it only together with its start time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub uid: u32,
    pub start_time: u64,
}

/// What happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Input {
    Connected {
        conn: ConnId,
        process: Process,
    },
    /// `request`: `None` for bytes that are none. `fresh`: 128 unpredictable bits, should a token be needed.
    /// `number`: that of the request on its connection; 0: none.
    Asked {
        conn: ConnId,
        number: u64,
        request: Option<Request>,
        fresh: [u64; 2],
    },
    /// The connection's end, or its process's.
    Disconnected {
        conn: ConnId,
    },
    /// Answer to [`Effect::OpenProcess`]; `None`: there is no such process.
    ProcessOpened {
        ticket: u32,
        process: Option<Process>,
    },
    ProcessExited {
        ticket: u32,
    },
    /// Answer to [`Effect::MakeSegment`].
    SegmentMade {
        memory: u32,
        segment: u32,
        made: bool,
    },
    /// Answer to [`Effect::Seal`].
    Sealed {
        memory: u32,
        sealed: bool,
    },
    /// Answer to [`Effect::StartProxy`]: it runs, and will say this token.
    ProxyStarted {
        proxy: u16,
        pid: u32,
        token: [u64; 2],
    },
    /// The other answer.
    ProxyNotStarted {
        proxy: u16,
    },
    /// `message`: `None` for bytes that are none.
    ProxySaid {
        proxy: u16,
        message: Option<FromProxy>,
        tail: Vec<u8>,
    },
    /// It has exited, for certain: its successor may start.
    ProxyExited {
        proxy: u16,
    },
    /// Answer to [`Effect::MakeDc`].
    DcMade {
        dc: DcId,
        made: bool,
    },
    /// The time that [`super::Core::deadline`] named has come.
    Tick,
    Order(Order),
    /// An operator's wish about DCs.
    Change(DcChange),
    /// A daemon has died, and this is its successor's first input: connections, memories and bound processes are as they
    /// were, but for these memories, whose segments are not what they were; the proxies have exited.
    Succeeded {
        lost: Vec<u32>,
    },
}

/// What the operator wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Order {
    RestartProxy { proxy: u16 },
    StopProxy { proxy: u16 },
    Stop,
}

/// A descriptor to go beside a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Descriptor {
    Table(DcId),
    Doorbells(DcId),
    Segment {
        memory: u32,
        segment: u32,
    },
    /// What members ring for a proxy that sleeps in epoll.
    ProxyBell {
        proxy: u16,
        dc: DcId,
    },
    /// What `by` rings for an endpoint that polls.
    Ringer {
        polls: Endpoint,
        by: Endpoint,
    },
    /// The other end of that; `by`: `None` for the daemon.
    Rung {
        polls: Endpoint,
        by: Option<Endpoint>,
    },
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    Reply {
        conn: ConnId,
        reply: Reply,
        fds: Vec<Descriptor>,
    },
    /// End a connection, after what was said on it.
    Close {
        conn: ConnId,
    },
    /// Find a process and watch it; answered by [`Input::ProcessOpened`].
    OpenProcess {
        ticket: u32,
        pid: u32,
    },
    /// Watch it no more.
    CloseProcess {
        ticket: u32,
    },
    /// Make a segment, every page present but in what is there to be granted, whose owner makes them; answered by [`Input::SegmentMade`].
    MakeSegment {
        memory: u32,
        segment: u32,
        kind: SegmentKind,
        len_bytes: u64,
    },
    /// Seal segments (index, length) of a memory and check them; answered by [`Input::Sealed`].
    Seal {
        memory: u32,
        segments: Vec<(u32, u64)>,
    },
    /// Write down, for a successor, which incarnation this is and that generations below `generations` are used.
    /// Before anything that follows.
    Record {
        incarnation: Incarnation,
        generations: u32,
    },
    /// Close the descriptor of a segment.
    DropSegment {
        memory: u32,
        segment: u32,
    },
    /// Make the table and the doorbell page of a DC, and what its members ring these proxies with; answered by
    /// [`Input::DcMade`].
    MakeDc {
        dc: DcId,
        proxies: Vec<u16>,
    },
    /// Close all descriptors of a DC.
    DropDc {
        dc: DcId,
    },
    /// Write down, for a successor, which DCs differ from the cluster file, and how.
    KeepDcs {
        specs: Vec<DcSpec>,
    },
    /// Close all descriptors of a memory.
    DropMemory {
        memory: u32,
    },
    /// Store an entry, then count the table's version up and wake who waits for it.
    SetTable {
        dc: DcId,
        slot: Slot,
        entry: Entry,
    },
    /// Set the bit of `source` (if any), count `PULL` up (if asked), and wake the doorbell's owner if it sleeps.
    Ring {
        dc: DcId,
        doorbell: u32,
        source: Option<Slot>,
        pull: bool,
    },
    /// Close the bells of an endpoint that polls: those of one peer, or all.
    DropBells {
        polls: Endpoint,
        by: Option<Endpoint>,
    },
    ToProxy {
        proxy: u16,
        message: ToProxy,
        tail: Vec<u8>,
        fds: Vec<Descriptor>,
    },
    /// Start the process of a proxy; answered by [`Input::ProxyStarted`] or [`Input::ProxyNotStarted`].
    StartProxy {
        proxy: u16,
        incarnation: Incarnation,
    },
    /// SIGKILL; [`Input::ProxyExited`] follows.
    KillProxy {
        proxy: u16,
    },
    Note(Note),
}

impl Effect {
    /// Whether a successor does it again, when its predecessor may have been killed before it did: twice is as good as once,
    /// and left out is not. All else [`Input::Succeeded`] asks for again.
    pub fn bears_repeating(&self) -> bool {
        match self {
            // Numbered: a member passes over an answer that it has had.
            Effect::Reply { .. } | Effect::Close { .. } => true,
            Effect::Record { .. } | Effect::KeepDcs { .. } => true,
            Effect::DropSegment { .. } | Effect::DropMemory { .. } | Effect::DropDc { .. } => true,
            Effect::SetTable { .. } | Effect::Ring { .. } | Effect::DropBells { .. } => true,
            Effect::OpenProcess { .. }
            | Effect::CloseProcess { .. }
            | Effect::MakeSegment { .. }
            | Effect::Seal { .. }
            | Effect::MakeDc { .. }
            | Effect::ToProxy { .. }
            | Effect::StartProxy { .. }
            | Effect::KillProxy { .. }
            | Effect::Note(_) => false,
        }
    }
}

/// What a log should say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Note {
    Bound {
        endpoint: Endpoint,
        pid: u32,
    },
    Ended {
        endpoint: Endpoint,
    },
    Introduced {
        a: Endpoint,
        b: Endpoint,
    },
    Attached {
        local: Endpoint,
        remote: Endpoint,
        proxy: u16,
    },
    ProxyUp {
        proxy: u16,
        pid: u32,
    },
    ProxyExited {
        proxy: u16,
    },
    ProxyStalled {
        proxy: u16,
    },
    /// A proxy said what makes no sense.
    ProxyWrong {
        proxy: u16,
        what: &'static str,
    },
    Link {
        node: NodeId,
        state: LinkState,
    },
    NodeDead {
        node: NodeId,
        incarnation: Incarnation,
    },
    Fenced {
        by: NodeId,
        incarnation: Incarnation,
    },
    DcChanged {
        dc: DcId,
        revision: u32,
        by: NodeId,
    },
    DcJoined {
        dc: DcId,
    },
    DcLeft {
        dc: DcId,
    },
    /// There is no memory for its table.
    DcNotMade {
        dc: DcId,
    },
    /// A node described a DC that cannot be.
    DcRefused {
        node: NodeId,
    },
    /// Bytes of another node's daemon that make no sense.
    DirectoryNone {
        node: NodeId,
    },
    /// Entries of another node's directory that were refused.
    DirectoryRefused {
        node: NodeId,
        entries: u64,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Bound { endpoint, pid } => write!(f, "endpoint {endpoint} bound to process {pid}"),
            Note::Ended { endpoint } => write!(f, "endpoint {endpoint} ended"),
            Note::Introduced { a, b } => write!(f, "{a} and {b} introduced"),
            Note::Attached { local, remote, proxy } => {
                write!(f, "{local} and {remote} carried by proxy {proxy}")
            }
            Note::ProxyUp { proxy, pid } => write!(f, "proxy {proxy} up as process {pid}"),
            Note::ProxyExited { proxy } => write!(f, "proxy {proxy} exited"),
            Note::ProxyStalled { proxy } => write!(f, "proxy {proxy} shows no progress and is killed"),
            Note::ProxyWrong { proxy, what } => write!(f, "proxy {proxy}: {what}"),
            Note::Link { node, state } => write!(f, "link to node {node}: {}", state.name()),
            Note::NodeDead { node, incarnation } => {
                write!(f, "node {node} (incarnation {}) is dead", incarnation.0)
            }
            Note::Fenced { by, incarnation } => write!(
                f,
                "node {by} has declared this node dead: all endpoints end, incarnation {} begins",
                incarnation.0
            ),
            Note::DcChanged { dc, revision, by } => write!(f, "DC {dc}: revision {revision} by node {by}"),
            Note::DcJoined { dc } => write!(f, "this node has joined DC {dc}"),
            Note::DcLeft { dc } => write!(f, "this node has left DC {dc}"),
            Note::DcNotMade { dc } => write!(
                f,
                "no memory for DC {dc}, which this node is to join: free some, then restart the daemon"
            ),
            Note::DcRefused { node } => write!(
                f,
                "node {node} describes a DC that cannot be, or with nodes that are not in the cluster file here: \
                 compare the files"
            ),
            Note::DirectoryNone { node } => write!(f, "what node {node} sent as its directory is none"),
            Note::DirectoryRefused { node, entries } => {
                write!(f, "{entries} directory entries of node {node} refused: not its slots")
            }
        }
    }
}
