//! The fabric: sessions of TCP, each of which becomes one of RDMA where both ends can.
//!
//! Key type: [`RdmaFabric`]. Between the beginning of a TCP session and what the caller hears of it, the two ends say one
//! another where their pairs are, and whether they could be connected (`note`): then it is one of RDMA, or stays one of
//! TCP, until its end. A pair that fails ends the session of TCP too; the next one begins anew, and so nothing is lost that
//! a lost session would not lose. Neighbours: `session`, `buffers`; `proxy_tcp` for who is there at all.

mod by_device;
mod by_tcp;
mod seam;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use abi::limits::FRAME_BYTES_MAX;
use abi::{Incarnation, NodeId};
use fabric::regions::Regions;
use fabric::{Completion, Fabric, Piece, RegionKey, Time};
use proxy_tcp::{TcpConfig, TcpError, TcpFabric};
use shm::map::{Access, Mapping};
use shm::os::events::{Epoll, Readiness};
use std::os::fd::AsFd;

use crate::buffers::{Buffers, Name};
use crate::device::{Device, DeviceError, RdmaConfig};
use crate::session::{Connected, Ends, OF_BUFFER, Session};
use crate::verbs::{Done, Memory, Rights, VerbsError};

/// What this end offers over a session of TCP.
const OFFER_RDMA: u64 = 1 << 8;
/// Descriptors of one peer that are not complete, and how many of them may be bulk.
const POSTED_MAX: usize = 256;
pub(crate) const BULK_MAX: usize = POSTED_MAX / 2;
const ANNOUNCED_MAX: usize = 1024;
/// Buffers that the TCP fabric gets for what comes by TCP.
const TCP_BUFFERS: usize = 64;
/// How long a pair that has failed may take to give back what it has.
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// Rounds of completions that are taken in one poll.
const ROUNDS_MAX: usize = 8;

/// What went by which way, in this fabric's life.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Carried {
    /// Sessions now that are ones of RDMA.
    pub sessions: u64,
    /// Bytes of bulk messages that the device read from where they lay to where they belong.
    pub read_bytes: u64,
    /// Bytes of bulk messages that were copied by a CPU, since the kernel registers no memory that is only read.
    pub copied_bytes: u64,
}

/// A link to another node.
#[derive(Default)]
struct Link {
    phase: Phase,
    /// Notes of ours that the TCP fabric has not completed: the next completions are theirs.
    notes: usize,
    /// Descriptors whose completion was not told.
    posted: usize,
    /// The caller knows of the session.
    told: bool,
    /// Names that the caller knows, of bulk messages that came and are not complete: what the other side calls them.
    names: BTreeMap<u64, u64>,
    /// Accepted over TCP: by that fabric's name, the caller's name and buffer.
    accepted: BTreeMap<u64, (u64, Piece)>,
}

#[derive(Default)]
enum Phase {
    #[default]
    Down,
    Agreeing(Box<Agreeing>),
    Tcp {
        session: u64,
    },
    Rdma(Box<Session>),
}

/// Before it is known what a session is.
struct Agreeing {
    session: u64,
    incarnation: Incarnation,
    ends: Option<Ends>,
    connected: Option<Connected>,
    said: Option<bool>,
    heard: Option<bool>,
    /// Our pairs' names, and what came by them already: the other end may know sooner that all is agreed.
    pairs: Vec<u32>,
    early: Vec<(Name, u32)>,
}

/// A message that came and waits for a buffer of the caller's.
enum Came {
    /// In a buffer of the device.
    Device { peer: NodeId, session: u64, buffer: Name, len_bytes: u32 },
    /// In one of the TCP fabric's, in ours: a message, or the head of a bulk message.
    Tcp { peer: NodeId, session: u64, buffer: Piece, len_bytes: u32, announced: Option<(u64, u64)> },
}

/// A [`Fabric`] over RDMA, and over TCP to whom it cannot be.
pub struct RdmaFabric {
    tcp: TcpFabric,
    device: Result<Device, DeviceError>,
    buffers: Buffers,
    regions: Regions,
    /// The TCP fabric's names for the same regions.
    keys: BTreeMap<RegionKey, RegionKey>,
    /// Regions that the device may read and write, as far as they are used so.
    registered: BTreeMap<RegionKey, Memory>,
    /// Posted buffers of the caller.
    free: VecDeque<Piece>,
    came: VecDeque<Came>,
    ready: VecDeque<Completion>,
    links: BTreeMap<NodeId, Link>,
    by_pair: BTreeMap<u32, NodeId>,
    /// Where the TCP fabric puts messages.
    area: Arc<Mapping>,
    tokens: u64,
    sessions: u32,
    epoll: Epoll,
    armed: bool,
    carried: Carried,
    done: Vec<Done>,
    inner: Vec<Completion>,
}

impl RdmaFabric {
    /// Opens a device, if there is one; listens, and begins to connect at the first `poll`.
    pub fn new(tcp: TcpConfig, config: &RdmaConfig, now: Time) -> Result<RdmaFabric, TcpError> {
        RdmaFabric::over(|offers| TcpFabric::new(TcpConfig { offers, ..tcp }, now), config)
    }

    /// The same over a TCP fabric that is made with these offers.
    pub fn over(
        make: impl FnOnce(u64) -> Result<TcpFabric, TcpError>,
        config: &RdmaConfig,
    ) -> Result<RdmaFabric, TcpError> {
        let device = Device::open(config);
        match &device {
            Ok(device) => {
                tracing::info!(device = device.context.name(), "sessions by RDMA where both ends can")
            }
            Err(why) => tracing::warn!(%why, "no RDMA: all sessions are by TCP"),
        }
        let mut tcp = make(if device.is_ok() { OFFER_RDMA } else { 0 })?;
        let descriptors = |errno: rustix::io::Errno| TcpError::Descriptors { source: errno.into() };
        let epoll = Epoll::new().map_err(descriptors)?;
        if let fabric::Waiter::Fd(fd) = tcp.waiter() {
            epoll.add(fd, 0, Readiness::READ).map_err(descriptors)?;
        }
        if let Ok(device) = &device {
            epoll.add(device.queue.channel().as_fd(), 1, Readiness::READ).map_err(descriptors)?;
        }
        let area = Mapping::heap(TCP_BUFFERS * FRAME_BYTES_MAX as usize);
        let region = tcp.attach(&area);
        let buffers: Vec<Piece> = (0..TCP_BUFFERS as u64)
            .map(|at| Piece {
                region,
                offset_bytes: at * u64::from(FRAME_BYTES_MAX),
                len_bytes: FRAME_BYTES_MAX,
            })
            .collect();
        tcp.post_recv(&buffers);
        Ok(RdmaFabric {
            tcp,
            device,
            buffers: Buffers::new(OF_BUFFER),
            regions: Regions::new(),
            keys: BTreeMap::new(),
            registered: BTreeMap::new(),
            free: VecDeque::new(),
            came: VecDeque::new(),
            ready: VecDeque::new(),
            links: BTreeMap::new(),
            by_pair: BTreeMap::new(),
            area,
            tokens: 0,
            sessions: 0,
            epoll,
            armed: false,
            carried: Carried::default(),
            done: Vec::new(),
            inner: Vec::with_capacity(256),
        })
    }

    /// What went by which way.
    pub fn carried(&self) -> Carried {
        let is_rdma = |link: &&Link| matches!(link.phase, Phase::Rdma(_));
        Carried { sessions: self.links.values().filter(is_rdma).count() as u64, ..self.carried }
    }

    /// Why there is no device, if so.
    pub fn trouble(&self) -> Option<&DeviceError> {
        self.device.as_ref().err()
    }

    /// Uses are over; what was detached meanwhile is let go.
    fn release_all(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            self.regions.release(*piece);
            self.forget_unused(piece.region);
        }
    }

    fn forget_unused(&mut self, key: RegionKey) {
        if !self.regions.contains(key) {
            self.registered.remove(&key);
            self.keys.remove(&key);
        }
    }

    /// Has the device know a region, whole.
    fn register(&mut self, key: RegionKey) -> Result<(), VerbsError> {
        let Ok(device) = &self.device else { return Err(VerbsError::NoDevices) };
        if self.registered.contains_key(&key) {
            return Ok(());
        }
        let map = self.regions.map(key);
        let rights = match map.access() {
            Access::ReadWrite => Rights::Exchange,
            Access::ReadOnly => Rights::RemoteRead,
        };
        let memory = Memory::register(&device.domain, map, (0, map.len_bytes()), rights)?;
        self.registered.insert(key, memory);
        Ok(())
    }

    /// Ends the sessions of TCP whose pairs have failed, and posts what is to be posted.
    fn go_on(&mut self) {
        let mut failed = Vec::new();
        for (peer, link) in &mut self.links {
            let Phase::Rdma(session) = &mut link.phase else { continue };
            session.read(&self.registered);
            session.flush();
            if session.failed.is_some() {
                failed.push(*peer);
            }
        }
        failed.into_iter().for_each(|peer| self.tcp.end_session(peer));
    }

    fn tell(&mut self, done: &mut Vec<Completion>) {
        let room = (done.capacity() - done.len()).max(1);
        for _ in 0..room {
            let Some(completion) = self.ready.pop_front() else { break };
            match completion {
                Completion::Sent { peer, .. } | Completion::Failed { peer, .. } => {
                    self.links.entry(peer).or_default().posted -= 1;
                }
                Completion::Up { peer, session, .. } => {
                    let link = self.links.entry(peer).or_default();
                    link.told = match &link.phase {
                        Phase::Tcp { session: now } => *now == session,
                        Phase::Rdma(now) => now.number == session,
                        Phase::Down | Phase::Agreeing(_) => false,
                    };
                }
                _ => {}
            }
            done.push(completion);
        }
    }
}
