//! The driver: one thread, one epoll. It turns what sockets, processes and the clock say into inputs of the core, and
//! executes the core's effects in their order; it decides nothing.
//!
//! Key types: [`RunOptions`] and [`run`] for a process of its own, `Driver` inside, `thread::Daemon` for tests.
//! Neighbours: `members`, `couriers`, `admin` (sockets), `vault` (descriptors for others), `start` (proxies' processes).

mod admin;
mod couriers;
mod dcs;
mod heritage;
mod journal;
mod logs;
mod members;
mod polled;
mod process;
mod run;
pub(crate) mod signals;
mod socket;
pub mod start;
pub mod thread;
mod tokens;
mod vault;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use proxy_tcp::options::ProxyOptions;
use shm::os::events::{Epoll, EventFd, Readiness};

use abi::{Incarnation, NodeId};

use crate::NodeError;
use crate::core::{Core, Effect, Input, Note, Now, Order};
use crate::keeper::Keep;
use crate::place::{Lock, NodePlace, Record};
use admin::AdminServer;
use couriers::{Couriers, NotStarted};
use journal::Journal;
use logs::{Logs, Throttle};
use members::Members;
use start::StartProxy;
use tokens::{Token, Watched};
use vault::Vault;

pub use run::{RunOptions, run};

/// What one descriptor may bring before others have their turn.
const AT_ONCE: usize = 32;

/// One running daemon: what decides, and what acts.
struct Driver {
    core: Core,
    journal: Journal,
    hands: Hands,
    logs: Logs,
}

/// Everything effects are executed with.
struct Hands {
    epoll: Epoll,
    keep: Arc<Keep>,
    vault: Vault,
    members: Members,
    couriers: Couriers,
    admin: AdminServer,
    /// Watched processes by their tickets.
    processes: BTreeMap<u32, OwnedFd>,
    starter: Box<dyn StartProxy>,
    /// What every proxy is started with; incarnation and token change.
    options: BTreeMap<u16, ProxyOptions>,
    stop: Arc<EventFd>,
    lock: Lock,
    /// Where DCs that differ from the cluster file are written down, and whom its folders let pass.
    place: NodePlace,
    /// Which nodes each proxy of the cluster file connects.
    wires: Vec<BTreeSet<NodeId>>,
    /// What members cause to be logged.
    throttle: Throttle,
}

impl Driver {
    /// Runs until the core has stopped.
    fn run(&mut self) -> Result<(), NodeError> {
        let mut ready = Vec::new();
        loop {
            let now = self.now();
            let pause = self.core.deadline().map(|at| at.saturating_sub(now));
            self.hands.epoll.wait(&mut ready, pause).map_err(NodeError::system("to wait"))?;
            for (word, readiness) in &ready {
                if let Some(token) = Token::from_word(*word) {
                    self.ready(token, *readiness);
                }
            }
            if self.core.deadline().is_some_and(|at| at <= self.now()) {
                self.handle(Input::Tick);
            }
            let now = self.now();
            self.logs.look(now);
            self.hands.throttle.look(now);
            if self.core.is_stopped() {
                self.hands.admin.flush_all();
                return Ok(());
            }
        }
    }

    fn now(&self) -> Now {
        journal::clock().saturating_sub(self.journal.origin())
    }

    fn ready(&mut self, token: Token, readiness: Readiness) {
        let small = u32::try_from(token.id).unwrap_or(u32::MAX);
        let proxy = u16::try_from(token.id).unwrap_or(u16::MAX);
        match token.kind {
            Watched::Listener => self.accept(),
            Watched::Member => self.member_ready(token.id),
            Watched::MemberProcess => {
                let ended = self.hands.members.end(token.id);
                self.handle_some(ended);
            }
            Watched::Ticket => {
                // Watched no more: it would stay readable.
                if let Some(pidfd) = self.hands.processes.get(&small) {
                    let _ = self.hands.epoll.remove(pidfd);
                }
                self.handle(Input::ProcessExited { ticket: small });
            }
            Watched::Proxy => {
                if readiness.writable {
                    self.hands.couriers.flush(proxy, &self.hands.epoll);
                }
                self.proxy_ready(proxy, AT_ONCE);
            }
            Watched::ProxyExit => {
                // Its last words first.
                self.proxy_ready(proxy, usize::MAX);
                let exited = self.hands.couriers.exited(proxy, &self.hands.epoll);
                self.handle_some(exited);
            }
            Watched::Admin => self.hands.admin.accept(&self.hands.epoll),
            Watched::AdminConn => self.admin_ready(token.id),
            Watched::Stop => {
                // One wish is enough.
                let _ = self.hands.stop.clear();
                self.handle(Input::Order(Order::Stop));
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..AT_ONCE {
            match self.hands.members.accept(&self.hands.epoll) {
                Ok(input) => self.handle_some(input),
                Err(_none) => return,
            }
        }
    }

    fn member_ready(&mut self, conn: u64) {
        for _ in 0..AT_ONCE {
            let Some(input) = self.hands.members.read(conn) else { return };
            self.handle(input);
            self.hands.members.consume(conn);
        }
    }

    fn proxy_ready(&mut self, proxy: u16, most: usize) {
        for _ in 0..most {
            let Some(input) = self.hands.couriers.read(proxy, &self.hands.epoll) else { return };
            self.handle(input);
        }
    }

    fn handle_some(&mut self, input: Option<Input>) {
        if let Some(input) = input {
            self.handle(input);
        }
    }

    /// One input, and all that follows from it before anything else from outside.
    fn handle(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.step(input, &mut effects);
        self.carry_out(effects);
        // All that was asked for is done: a state stands for it.
        self.journal.look(&self.core, &self.hands.keep);
    }

    fn step(&mut self, input: Input, effects: &mut Vec<Effect>) {
        let now = self.now();
        self.journal.write(now, &input, &self.hands.keep);
        self.core.step(now, input, effects);
    }

    fn carry_out(&mut self, mut effects: Vec<Effect>) {
        let mut inputs = VecDeque::new();
        loop {
            for effect in effects.drain(..) {
                inputs.extend(self.hands.execute(effect));
            }
            let Some(input) = inputs.pop_front() else { return };
            self.step(input, &mut effects);
        }
    }
}

impl Hands {
    /// Does one thing; what the core is to know of it comes back.
    fn execute(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Reply { conn, reply, fds } => {
                return self.members.reply(conn, reply, &fds, &mut self.vault);
            }
            Effect::Close { conn } => return self.members.end(conn),
            Effect::OpenProcess { ticket, pid } => return Some(self.open_process(ticket, pid)),
            Effect::CloseProcess { ticket } => drop(self.processes.remove(&ticket)),
            Effect::MakeSegment { memory, segment, kind, len_bytes } => {
                let made = self.vault.make(memory, segment, kind, len_bytes);
                if let Err(why) = made {
                    tracing::warn!(memory, segment, len_bytes, "segment not made: {why}");
                }
                return Some(Input::SegmentMade { memory, segment, made: made.is_ok() });
            }
            Effect::Seal { memory, segments } => {
                return Some(Input::Sealed { memory, sealed: self.vault.seal(memory, &segments) });
            }
            Effect::Record { incarnation, generations } => {
                if let Err(why) = self.lock.record(Record { incarnation: incarnation.0, generations }) {
                    tracing::error!("{why}");
                }
            }
            Effect::DropSegment { memory, segment } => self.vault.drop_segment(memory, segment),
            Effect::MakeDc { dc, proxies } => {
                return Some(Input::DcMade { dc, made: self.make_dc(dc, &proxies) });
            }
            Effect::DropDc { dc } => self.vault.drop_dc(dc),
            Effect::KeepDcs { specs } => {
                dcs::let_pass(&self.place, &specs);
                if let Err(why) = dcs::keep(&self.place.dcs_file(), &specs) {
                    tracing::error!("{why}: a restart of this daemon does not know of the change");
                }
            }
            Effect::DropMemory { memory } => self.vault.drop_memory(memory),
            Effect::SetTable { dc, slot, entry } => self.vault.set_table(dc, slot, entry),
            Effect::Ring { dc, doorbell, source, pull } => self.vault.ring(dc, doorbell, source, pull),
            Effect::DropBells { polls, by } => self.vault.drop_bells(polls, by),
            Effect::ToProxy { proxy, message, tail, fds } => {
                let fds = fds.iter().filter_map(|fd| self.vault.find(*fd)).collect();
                self.couriers.say(proxy, message, &tail, fds, &self.epoll);
            }
            Effect::StartProxy { proxy, incarnation } => return Some(self.start_proxy(proxy, incarnation)),
            Effect::KillProxy { proxy } => self.couriers.kill(proxy),
            Effect::Note(Note::Bound { .. } | Note::Ended { .. }) if !self.throttle.may_say() => {}
            Effect::Note(note) => log(note),
        }
        None
    }

    fn open_process(&mut self, ticket: u32, pid: u32) -> Input {
        let token = Token { kind: Watched::Ticket, id: u64::from(ticket) }.to_word();
        let found =
            process::open(pid).filter(|(pidfd, _)| self.epoll.add(pidfd, token, Readiness::READ).is_ok());
        let process = found.map(|(pidfd, process)| {
            self.processes.insert(ticket, pidfd);
            process
        });
        Input::ProcessOpened { ticket, process }
    }

    fn start_proxy(&mut self, proxy: u16, incarnation: Incarnation) -> Input {
        let Some(options) = self.options.get_mut(&proxy) else { return Input::ProxyNotStarted { proxy } };
        options.incarnation = incarnation;
        match self.couriers.start(options, &mut *self.starter, &self.epoll) {
            Ok(started) => started,
            Err(NotStarted(why)) => {
                tracing::error!(proxy, "proxy not started: {why}");
                Input::ProxyNotStarted { proxy }
            }
        }
    }
}

fn log(note: Note) {
    match note {
        Note::Bound { endpoint, .. } | Note::Ended { endpoint } => {
            tracing::info!(%endpoint, "{note}");
        }
        Note::DcChanged { dc, .. } | Note::DcJoined { dc } | Note::DcLeft { dc } => {
            tracing::info!(%dc, "{note}");
        }
        Note::DcNotMade { dc } => tracing::error!(%dc, "{note}"),
        Note::DcRefused { node } => tracing::warn!(node = node.0, "{note}"),
        Note::Introduced { .. } | Note::Attached { .. } => tracing::debug!("{note}"),
        Note::ProxyUp { proxy, .. } => tracing::info!(proxy, "{note}"),
        Note::ProxyExited { proxy } | Note::ProxyStalled { proxy } | Note::ProxyWrong { proxy, .. } => {
            tracing::warn!(proxy, "{note}");
        }
        Note::Link { node, .. } => tracing::info!(node = node.0, "{note}"),
        Note::NodeDead { node, .. } | Note::DirectoryNone { node } | Note::DirectoryRefused { node, .. } => {
            tracing::warn!(node = node.0, "{note}");
        }
        Note::Fenced { by, .. } => tracing::error!(node = by.0, "{note}"),
    }
}
