//! Driver: the process around a courier: daemon's socket, doorbells, fabric and clock in one epoll loop.
//!
//! Every kind of proxy runs this loop with its own fabric. It sleeps with its doorbells set to "on eventfd", so that a
//! local endpoint that publishes makes one system call at most, and none while the courier is awake.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use abi::courier::{Attach, FromProxy, TAIL_BYTES_MAX, ToProxy, Totals};
use abi::limits::{RESCAN_FIRST_MS, RESCAN_MAX_MS};
use abi::member::{SegmentKind, VERSION, WORDS, Words};
use abi::{DcId, NodeId, doorbell, side};
use shm::doorbell::Doorbells;
use shm::map::{Access, MapError, Mapping};
use shm::os::events::{Epoll, EventFd, Readiness, Ringer};
use shm::os::fdpass::{self, PassError};
use shm::words::OwnWords;

use crate::courier::{Courier, Output};
use crate::{Armed, Fabric, Time, Waiter};

/// Why the loop ended, other than being told to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DriverError {
    /// The daemon's socket broke: the daemon is gone, or will start a successor.
    Daemon(PassError),
    /// The daemon said something that makes no sense: it is of another version.
    Nonsense,
    /// What the daemon gave could not be mapped: raise the limits.
    Map(MapError),
    /// The operating system refused an epoll or eventfd.
    Os(i32),
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DriverError::Daemon(why) => write!(f, "the daemon's socket broke ({why}): see the daemon's log"),
            DriverError::Nonsense => f.write_str(
                "the daemon said something unknown: daemon and proxy are of different versions, restart both",
            ),
            DriverError::Map(why) => write!(f, "memory of the daemon could not be mapped: {why}"),
            DriverError::Os(errno) => {
                write!(f, "the operating system refused: {}", std::io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

impl std::error::Error for DriverError {}

impl From<MapError> for DriverError {
    fn from(why: MapError) -> Self {
        DriverError::Map(why)
    }
}

impl From<rustix::io::Errno> for DriverError {
    fn from(errno: rustix::io::Errno) -> Self {
        DriverError::Os(errno.raw_os_error())
    }
}

/// How a proxy introduces itself to its daemon.
#[derive(Clone, Copy, Debug)]
pub struct Credentials {
    pub token: [u64; 2],
}

struct Bell {
    dc: DcId,
    doorbells: Doorbells,
    doorbell: usize,
    ring: EventFd,
}

/// A busy courier looks at the daemon's socket once in so many rounds.
const LOOKS_PER_LISTEN: u32 = 32;

const TOKEN_DAEMON: u64 = 0;
const TOKEN_FABRIC: u64 = 1;
const TOKEN_BELLS: u64 = 2;

/// A courier at work.
pub struct Driver {
    link: OwnedFd,
    fabric: Box<dyn Fabric>,
    courier: Courier,
    epoll: Epoll,
    bells: Vec<Bell>,
    outbox: VecDeque<Vec<u8>>,
    /// Whether epoll also says when the daemon's socket takes more.
    wants_room: bool,
    outputs: Vec<Output>,
    datagram: Vec<u8>,
    began: Instant,
    stopped: bool,
}

impl Driver {
    /// A driver over the daemon's socket and a fabric. `peers` are the nodes it may carry to.
    pub fn new(
        link: OwnedFd,
        credentials: Credentials,
        mut fabric: Box<dyn Fabric>,
        peers: &[NodeId],
        began: Instant,
    ) -> Result<Driver, DriverError> {
        rustix::io::ioctl_fionbio(&link, true)?;
        let epoll = Epoll::new()?;
        epoll.add(link.as_fd(), TOKEN_DAEMON, Readiness::READ)?;
        if let Waiter::Fd(fd) = fabric.waiter() {
            epoll.add(fd, TOKEN_FABRIC, Readiness::READ)?;
        }
        let mut courier = Courier::new(peers.iter().copied());
        let buffers = Mapping::anonymous(Courier::buffer_bytes(&*fabric).next_multiple_of(4096))?;
        courier.lend_buffers(buffers, &mut *fabric);
        let mut driver = Driver {
            link,
            fabric,
            courier,
            epoll,
            bells: Vec::new(),
            outbox: VecDeque::new(),
            wants_room: false,
            outputs: Vec::new(),
            datagram: vec![0; WORDS * 8 + TAIL_BYTES_MAX],
            began,
            stopped: false,
        };
        driver.tell(FromProxy::Hello { version: VERSION, token: credentials.token }, &[]);
        Ok(driver)
    }

    fn now(&self) -> Time {
        self.began.elapsed()
    }

    /// Carries until the daemon says stop (`Ok`), or goes away.
    pub fn run(mut self) -> Result<(), DriverError> {
        let mut ready = Vec::new();
        let mut rescan = Duration::from_millis(RESCAN_FIRST_MS);
        let mut daemon_spoke = true;
        let mut busy = 0u32;
        loop {
            if std::mem::take(&mut daemon_spoke) {
                self.listen()?;
            }
            if self.stopped {
                self.flush_outbox()?;
                return Ok(());
            }
            self.collect_hints();
            let now = self.now();
            let more = self.courier.step(now, &mut *self.fabric);
            self.report();
            self.flush_outbox()?;
            if more || self.cannot_sleep() {
                self.wake_up();
                // A courier that never sleeps must hear its daemon all the same.
                busy = busy.wrapping_add(1);
                daemon_spoke = busy.is_multiple_of(LOOKS_PER_LISTEN);
                continue;
            }
            let nap = self.nap(rescan);
            self.epoll.wait(&mut ready, Some(nap))?;
            self.wake_up();
            if ready.is_empty() && nap == rescan {
                self.courier.suspect_all();
                rescan = (rescan * 2).min(Duration::from_millis(RESCAN_MAX_MS));
            } else if !ready.is_empty() {
                rescan = Duration::from_millis(RESCAN_FIRST_MS);
            }
            daemon_spoke = ready.is_empty() || ready.iter().any(|(token, _)| *token == TOKEN_DAEMON);
            for &(token, _) in ready.iter().filter(|(token, _)| *token >= TOKEN_BELLS) {
                let of = |bell: &&Bell| TOKEN_BELLS + u64::from(bell.dc.0) == token;
                if let Some(bell) = self.bells.iter().find(of) {
                    bell.ring.clear()?;
                }
            }
        }
    }

    /// Announces sleep to everybody who could wake us, and looks once more.
    fn cannot_sleep(&mut self) -> bool {
        for bell in &self.bells {
            bell.doorbells.doze(bell.doorbell, doorbell::ON_EVENTFD);
        }
        let rung = self.bells.iter().any(|bell| bell.doorbells.has_hints(bell.doorbell));
        rung || self.fabric.arm() == Armed::MoreToDo
    }

    fn wake_up(&mut self) {
        for bell in &self.bells {
            bell.doorbells.awake(bell.doorbell);
        }
    }

    fn nap(&self, rescan: Duration) -> Duration {
        if matches!(self.fabric.waiter(), Waiter::MustPoll) {
            return Duration::from_micros(50);
        }
        match self.fabric.deadline() {
            Some(deadline) => deadline.saturating_sub(self.now()).min(rescan),
            None => rescan,
        }
    }

    fn collect_hints(&mut self) {
        for bell in &self.bells {
            if bell.doorbells.has_hints(bell.doorbell) {
                let courier = &mut self.courier;
                bell.doorbells.drain(bell.doorbell, |slot| courier.hint(bell.dc, slot));
            }
        }
    }

    fn tell(&mut self, what: FromProxy, tail: &[u8]) {
        let mut bytes = Vec::with_capacity(WORDS * 8 + tail.len());
        for word in what.to_words() {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(tail);
        self.outbox.push_back(bytes);
    }

    fn flush_outbox(&mut self) -> Result<(), DriverError> {
        while let Some(bytes) = self.outbox.front() {
            match fdpass::send_with_fds(&self.link, bytes, &[]) {
                Ok(()) => {
                    self.outbox.pop_front();
                }
                Err(PassError::TimedOut) => break,
                Err(why) => return Err(DriverError::Daemon(why)),
            }
        }
        let wants_room = !self.outbox.is_empty();
        if wants_room != self.wants_room {
            let interest = if wants_room { Readiness::BOTH } else { Readiness::READ };
            self.epoll.modify(self.link.as_fd(), TOKEN_DAEMON, interest)?;
            self.wants_room = wants_room;
        }
        Ok(())
    }

    fn report(&mut self) {
        let mut outputs = std::mem::take(&mut self.outputs);
        self.courier.take_outputs(&mut outputs);
        for output in outputs.drain(..) {
            match output {
                Output::RemoteOpen { local, remote, node } => {
                    self.tell(FromProxy::RemoteOpen { local, remote, node }, &[]);
                }
                Output::WantSegment { memory, segment } => {
                    self.tell(FromProxy::WantSegment { memory, segment }, &[]);
                }
                Output::NewPoolSegment { memory, len_bytes } => {
                    self.tell(FromProxy::NewSegment { memory, kind: SegmentKind::Pool, len_bytes }, &[]);
                }
                Output::Directory { node, incarnation, bytes } => {
                    self.tell(FromProxy::Directory { node, incarnation }, &bytes);
                }
                Output::Link { node, incarnation, state } => {
                    self.tell(FromProxy::Link { node, incarnation, state }, &[]);
                }
                Output::NodeClosed { node } => self.tell(FromProxy::NodeClosed { node }, &[]),
                Output::Detached { local, remote } => self.tell(FromProxy::Detached { local, remote }, &[]),
                Output::Fenced { by } => self.tell(FromProxy::Fenced { by }, &[]),
                Output::Condemned { pair, why } => {
                    tracing::warn!(local = %pair.source, remote = %pair.destination, %why, "pair closed");
                }
                Output::BadRecord { node, why } => {
                    tracing::warn!(node = node.0, %why, "records refused");
                }
            }
        }
        self.outputs = outputs;
    }

    /// Takes what the daemon has said.
    fn listen(&mut self) -> Result<(), DriverError> {
        loop {
            let mut datagram = std::mem::take(&mut self.datagram);
            let got = fdpass::recv_with_fds(&self.link, &mut datagram);
            let heard = match got {
                Err(PassError::TimedOut) => Ok(false),
                Err(why) => Err(DriverError::Daemon(why)),
                Ok((0, _)) => Err(DriverError::Daemon(PassError::Closed)),
                Ok((len, fds)) => self.hear(&datagram[..len], fds).map(|()| true),
            };
            self.datagram = datagram;
            if !heard? || self.stopped {
                return Ok(());
            }
        }
    }

    fn hear(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> Result<(), DriverError> {
        let (head, tail) = bytes.split_at_checked(WORDS * 8).ok_or(DriverError::Nonsense)?;
        let mut words: Words = [0; WORDS];
        for (word, eight) in words.iter_mut().zip(head.chunks_exact(8)) {
            *word = u64::from_le_bytes(eight.try_into().unwrap_or([0; 8]));
        }
        let what = ToProxy::from_words(&words).ok_or(DriverError::Nonsense)?;
        let mut fds = fds.into_iter();
        let mut fd = || fds.next().ok_or(DriverError::Nonsense);
        match what {
            ToProxy::Dc { dc, doorbell, memory } => {
                let (_table, page, ring) = (fd()?, fd()?, fd()?);
                self.add_dc(dc, doorbell as usize, memory, &page, ring)?;
            }
            ToProxy::Memory { memory, .. } => self.courier.add_memory(memory),
            ToProxy::ForgetMemory { memory } => self.courier.forget_memory(memory, &mut *self.fabric),
            ToProxy::Segment { memory, index, kind, len_bytes } => {
                let map = Mapping::shared(fd()?.as_fd(), 0, len_bytes as usize, Access::ReadWrite)?;
                self.courier.add_segment(memory, index, kind, map);
                self.tell(FromProxy::Mapped { memory, index }, &[]);
            }
            ToProxy::Sealed { memory, index } => {
                self.courier.segment_sealed(memory, index, &mut *self.fabric);
            }
            ToProxy::Attach { attach } => {
                let segment = fd()?;
                self.attach(&attach, &segment)?;
            }
            ToProxy::PeerSegment { memory, segment, len_bytes, kind } => {
                let writable = kind == SegmentKind::GrantWrite;
                let access = if writable { Access::ReadWrite } else { Access::ReadOnly };
                let map = Mapping::shared(fd()?.as_fd(), 0, len_bytes as usize, access)?;
                self.courier.add_peer_segment(memory, segment, map, &mut *self.fabric);
            }
            ToProxy::ForgetSegment { memory, segment } => {
                self.courier.forget_segment(memory, segment, &mut *self.fabric);
            }
            ToProxy::LocalEnded { endpoint } => self.courier.local_ended(endpoint),
            ToProxy::Refuse { local, remote, why } => self.courier.refuse(local, remote, why),
            ToProxy::Detach { local, remote } => self.courier.detach(local, remote, &mut *self.fabric),
            ToProxy::NodeDead { node, incarnation } => {
                self.courier.node_dead(node, incarnation, &mut *self.fabric);
            }
            ToProxy::Directory { node } => {
                self.courier.send_directory((node.0 != 0).then_some(node), tail);
            }
            ToProxy::Ping { number } => {
                let totals = Totals { packed: self.fabric.packed(), ..self.courier.totals() };
                self.tell(FromProxy::Pong { number, totals }, &[]);
            }
            ToProxy::Bell { local, remote } => {
                // Without one the endpoint is found by its own rescan.
                if let Ok(Ok(ringer)) = fd().map(Ringer::adopt) {
                    self.courier.add_bell(local, remote, ringer);
                }
            }
            ToProxy::Stop => self.stopped = true,
            ToProxy::DropDc { dc } => {
                self.courier.drop_dc(dc, &mut *self.fabric);
                for gone in self.bells.extract_if(.., |bell| bell.dc == dc) {
                    self.epoll.remove(gone.ring.as_fd())?;
                }
            }
        }
        Ok(())
    }

    fn add_dc(
        &mut self,
        dc: DcId,
        doorbell: usize,
        memory: u32,
        page: &OwnedFd,
        ring: OwnedFd,
    ) -> Result<(), DriverError> {
        if doorbell >= doorbell::COUNT {
            return Err(DriverError::Nonsense);
        }
        let map = Mapping::shared(page.as_fd(), 0, doorbell::BYTES, Access::ReadWrite)?;
        let words = OwnWords::mapped(&map, 0, doorbell::COUNT * doorbell::WORDS)
            .map_err(|_| DriverError::Nonsense)?;
        let doorbells = Doorbells::new(words);
        let ring = EventFd::adopt(ring)?;
        self.epoll.add(ring.as_fd(), TOKEN_BELLS + u64::from(dc.0), Readiness::READ)?;
        self.courier.add_dc(dc, memory, doorbells.clone());
        self.bells.push(Bell { dc, doorbells, doorbell, ring });
        Ok(())
    }

    fn attach(&mut self, attach: &Attach, segment: &OwnedFd) -> Result<(), DriverError> {
        let offset = attach.side as u64 * side::BYTES as u64;
        let map: Arc<Mapping> = Mapping::shared(segment.as_fd(), offset, side::BYTES, Access::ReadOnly)?;
        if !self.courier.attach(attach, map, &mut *self.fabric) {
            return Err(DriverError::Nonsense);
        }
        Ok(())
    }
}
