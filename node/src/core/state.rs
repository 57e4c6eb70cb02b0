//! The core's tables: connections, DCs, local endpoints and their links, proxies, nodes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use abi::courier::{LinkState, Totals};
use abi::limits::{HEARTBEAT_EVERY_MS, PROXY_STALLED_AFTER_MS};
use abi::member::Reply;
use abi::{Allowed, DcId, Endpoint, Generation, Incarnation, Name, NodeId, Slot};
use serde::{Deserialize, Serialize};

use super::effect::{Descriptor, Process};
use super::memory::SidePlace;
use super::{ConnId, Now};

/// A started proxy that does not say hello within this time is started anew.
pub(super) const PROXY_HELLO_WITHIN: Duration = Duration::from_secs(5);
pub(super) const PING_EVERY: Duration = Duration::from_millis(HEARTBEAT_EVERY_MS);
pub(super) const STALLED_AFTER: Duration = Duration::from_millis(PROXY_STALLED_AFTER_MS);
/// While this node's endpoints change, whoever is up is sent the whole directory this often.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(2);
const BACK_OFF_FIRST: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);
/// A proxy that lived this long starts its back-off anew.
const BACK_OFF_FORGET: Duration = Duration::from_secs(5);

/// A member's connection.
#[derive(Serialize, Deserialize)]
pub(super) struct Conn {
    pub process: Process,
    /// After its hello.
    pub dc: Option<DcId>,
    pub endpoint: Option<Endpoint>,
    /// Its endpoint ended because the node was fenced; told once.
    pub fenced: bool,
    /// The node has left its DC.
    pub homeless: bool,
    /// Of its last request.
    pub number: u64,
    /// Of the last request that was answered, and its answer.
    pub answer: Option<(u64, Reply, Vec<Descriptor>)>,
}

impl Conn {
    pub fn new(process: Process) -> Conn {
        Conn { process, dc: None, endpoint: None, fenced: false, homeless: false, number: 0, answer: None }
    }
}

/// What this node knows of a DC.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Dc {
    pub slots: BTreeMap<Slot, SlotUse>,
    /// Bound names, local and remote. Two nodes may bind a name at the same moment: then it has two holders.
    pub names: BTreeMap<Name, BTreeSet<Endpoint>>,
    pub remotes: BTreeMap<Slot, Remote>,
    /// Who has ended, by slot, and whose slot is to hear of it. The last one of each slot is enough.
    pub warnings: BTreeMap<Slot, (Slot, Endpoint)>,
    /// No slot's generation is lower, of a DC that the node joined while it ran.
    pub generation_first: u32,
    /// The node is no part of it any more; memory of its last endpoints is still read.
    pub leaving: bool,
}

impl Dc {
    pub fn name(&mut self, name: Name, endpoint: Endpoint) {
        if !name.is_none() {
            self.names.entry(name).or_default().insert(endpoint);
        }
    }

    pub fn unname(&mut self, name: Name, endpoint: Endpoint) {
        if let Some(holders) = self.names.get_mut(&name) {
            holders.remove(&endpoint);
            if holders.is_empty() {
                self.names.remove(&name);
            }
        }
    }
}

/// A slot of this node that was bound at least once.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct SlotUse {
    pub generation: u32,
    pub holder: Option<Endpoint>,
    /// Dead endpoints of this slot whose memory is still in use.
    pub undrained: u32,
    /// Number of the bind that used it last.
    pub last_bind: u64,
}

/// What another node said of one of its slots.
#[derive(Serialize, Deserialize)]
pub(super) struct Remote {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub generation: Generation,
    pub name: Name,
    /// The user that it runs as there, for rules.
    pub uid: u32,
    pub alive: bool,
    /// It has memory for each peer apart.
    pub private: bool,
}

/// How far an endpoint of this node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Stage {
    /// Its first segments are being made for this connection, which binds itself, or another process.
    Making {
        conn: ConnId,
    },
    /// Bound for a process that has not claimed it.
    Reserved,
    /// Its process has the segments and has not mapped them all; `visible` already if it was reserved.
    Mapping {
        visible: bool,
    },
    Ready,
    Dead {
        until: Now,
    },
}

impl Stage {
    pub fn is_visible(self) -> bool {
        matches!(self, Stage::Reserved | Stage::Mapping { visible: true } | Stage::Ready)
    }

    pub fn is_dead(self) -> bool {
        matches!(self, Stage::Dead { .. })
    }
}

/// An endpoint of this node.
#[derive(Serialize, Deserialize)]
pub(super) struct Local {
    pub name: Name,
    pub process: Process,
    pub stage: Stage,
    pub conn: Option<ConnId>,
    /// The watch on a process it was bound for, and what that process must say.
    pub ticket: Option<u32>,
    pub token: [u64; 2],
    pub memory: u32,
    /// It has memory for each peer apart.
    pub private: bool,
    /// Sides of pairs that ended before it was told of them: it lets go of them at its next pull.
    pub spent: VecDeque<u32>,
    pub links: BTreeMap<Endpoint, Link>,
    /// By slot, the last remote endpoint with which it was done: it must not be given again what it has had.
    pub past: BTreeMap<Slot, Generation>,
    /// Peers of which there is something to be pulled.
    pub pulls: VecDeque<Endpoint>,
    /// It sleeps in epoll, too: see `polls`.
    pub polls: bool,
    /// Peers to which it was introduced before there were bells between them.
    pub bells: VecDeque<Endpoint>,
    pub since: Now,
}

/// One endpoint's half of a pair.
#[derive(Serialize, Deserialize)]
pub(super) struct Link {
    pub own: SidePlace,
    /// Its owner has been told of the pair.
    pub told: bool,
    pub via: Via,
    /// What may be sent, as its owner sees it. Decided when the pair was made.
    pub allowed: Allowed,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) enum Via {
    Local,
    Remote(Far),
}

/// A half that leads to a proxy.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Far {
    pub node: NodeId,
    /// Of the node, when the pair was made; none was known then if `None`.
    pub incarnation: Option<Incarnation>,
    pub proxy: u16,
    /// Either end is: the proxy speaks in a memory that the local end alone may read.
    pub private: bool,
    /// Where the proxy speaks for the remote endpoint; `None` while no proxy carries the pair.
    pub place: Option<Place>,
    /// The local end is done with the pair and waits for the proxy's `Detached`.
    pub recycled: bool,
    /// The proxy has forgotten the pair.
    pub gone: bool,
    /// The remote endpoint's node was declared dead.
    pub ended: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Place {
    pub memory: u32,
    pub side: SidePlace,
}

/// A process that somebody wants to bind.
#[derive(Serialize, Deserialize)]
pub(super) struct Inquiry {
    pub conn: ConnId,
    pub pid: u32,
    pub slot: Option<Slot>,
    pub name: Name,
    pub token: [u64; 2],
    pub private: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum ProxyStage {
    /// To be started at that time.
    Waiting {
        at: Now,
    },
    /// Asked for; has not said hello.
    Starting {
        by: Now,
    },
    Up,
    /// Told to end by then.
    Stopping {
        by: Now,
    },
    /// Killed; its exit has not been seen.
    Killed,
    /// By the operator's wish.
    Stopped,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Proxy {
    pub stage: ProxyStage,
    /// The operator wants it stopped.
    pub unwanted: bool,
    pub pid: Option<u32>,
    pub token: Option<[u64; 2]>,
    pub restarts: u64,
    failures: u32,
    pub since: Now,
    pub memories: BTreeMap<DcId, u32>,
    /// Its memories that one local endpoint alone may read, for the private pairs of that endpoint.
    pub private: BTreeMap<Endpoint, u32>,
    pub ping: u64,
    pub next_ping: Now,
    /// When the oldest ping without an answer was sent.
    pub unanswered_since: Option<Now>,
    pub totals: Totals,
}

impl Proxy {
    pub fn new(now: Now) -> Proxy {
        Proxy {
            stage: ProxyStage::Waiting { at: now },
            unwanted: false,
            pid: None,
            token: None,
            restarts: 0,
            failures: 0,
            since: now,
            memories: BTreeMap::new(),
            private: BTreeMap::new(),
            ping: 0,
            next_ping: now,
            unanswered_since: None,
            totals: Totals::default(),
        }
    }

    pub fn is_up(&self) -> bool {
        self.stage == ProxyStage::Up
    }

    pub fn is_running(&self) -> bool {
        matches!(self.stage, ProxyStage::Starting { .. } | ProxyStage::Up)
    }

    /// When its successor may start: at once after a life of some length, later and later after short ones.
    pub fn restart_at(&mut self, now: Now) -> Now {
        if now.saturating_sub(self.since) >= BACK_OFF_FORGET {
            self.failures = 0;
        }
        let pause = match self.failures {
            0 => Duration::ZERO,
            n => BACK_OFF_FIRST.saturating_mul(1 << (n - 1).min(8)).min(BACK_OFF_MAX),
        };
        self.failures = self.failures.saturating_add(1);
        now + pause
    }

    pub fn deadline(&self) -> Option<Now> {
        match self.stage {
            ProxyStage::Waiting { at } => Some(at),
            ProxyStage::Starting { by } | ProxyStage::Stopping { by } => Some(by),
            ProxyStage::Up => {
                let stalled = self.unanswered_since.map(|since| since + STALLED_AFTER);
                Some(stalled.map_or(self.next_ping, |s| s.min(self.next_ping)))
            }
            ProxyStage::Killed | ProxyStage::Stopped => None,
        }
    }
}

/// Another node, as seen from here.
#[derive(Serialize, Deserialize)]
pub(super) struct Node {
    /// The newest that was seen up.
    pub incarnation: Option<Incarnation>,
    pub state: LinkState,
    pub since: Now,
    /// Since when the link of a node that had been up is not, while a proxy that could tell runs.
    pub down_since: Option<Now>,
    /// The newest incarnation that was declared dead.
    pub dead: Option<Incarnation>,
    /// Declared dead; the proxy has not said yet that it takes no more from it.
    pub closing: Option<Closing>,
    /// What the last directory datagrams said.
    pub directory_version: u64,
    /// Endpoints seen since the last snapshot began.
    pub snapshot: Option<BTreeSet<Endpoint>>,
    pub refused_entries: u64,
    /// The last snapshot that it was sent.
    pub told: Option<Told>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Told {
    pub version: u64,
    pub at: Now,
}

/// A remote endpoint's wish to talk to a local one, which waits for a side or for the directory.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Asked {
    pub proxy: u16,
    /// Of its node, when it asked.
    pub incarnation: Option<Incarnation>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Closing {
    pub incarnation: Incarnation,
    pub since: Now,
}

impl Node {
    pub fn new(now: Now) -> Node {
        Node {
            incarnation: None,
            state: LinkState::Connecting,
            since: now,
            down_since: None,
            dead: None,
            closing: None,
            directory_version: 0,
            snapshot: None,
            refused_entries: 0,
            told: None,
        }
    }

    pub fn is_up(&self) -> bool {
        self.state == LinkState::Up && self.closing.is_none()
    }

    /// Whether its present incarnation was declared dead here.
    pub fn is_dead(&self) -> bool {
        self.incarnation.is_some() && self.dead >= self.incarnation
    }

    /// `version`: of this node's own directory.
    pub fn deadline(&self, dead_after: Duration, version: u64) -> Option<Now> {
        let stale = self.told.filter(|told| self.is_up() && told.version < version);
        let again = stale.map(|told| told.at + SNAPSHOT_EVERY);
        let dead = self.down_since.filter(|_| !self.is_dead()).map(|since| since + dead_after);
        let closing = self.closing.map(|c| c.since + STALLED_AFTER);
        dead.into_iter().chain(closing).chain(again).min()
    }
}
