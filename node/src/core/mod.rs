//! The pure core of the daemon: who is bound where, who was introduced to whom, which proxy carries which pair, which
//! node lives. `Core::step(now, input, &mut effects)`; no clock, socket, process or random number inside.
//!
//! Key types: [`Core`], [`Input`], [`Effect`]. `daemon` (and the simulator) executes the effects in their order and
//! brings back what they ask for ([`Input::SegmentMade`], [`Input::Sealed`], …) before the next input from outside.
//! Neighbours: `plan` (what the cluster file says), `binding` and `pairs` (members), `proxies` and `routes` (couriers),
//! `nodes` and `directory` (other nodes), `dcs` and `changes` (DCs that come, change and go), `ending` (deaths), `memory`
//! (segments and sides), `grants`, `private` (memory for each peer apart), `privileges` (who may call whom), `view` (status).

mod binding;
mod changes;
mod dcs;
mod directory;
mod effect;
mod ending;
mod grants;
mod members;
mod memory;
mod nodes;
mod pairs;
mod plan;
mod polls;
mod private;
mod privileges;
mod proxies;
mod routes;
mod rule_words;
mod spec;
mod state;
mod successor;
mod view;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_dcs;
#[cfg(test)]
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use abi::{DcId, Endpoint, Incarnation, NodeId};
use serde::{Deserialize, Serialize};

pub use binding::GENERATIONS_AT_ONCE;
pub use changes::{DcChange, DcRefusal};
pub use directory::{Chunk, ChunkKind, DirectoryEntry};
pub use effect::{Descriptor, Effect, Input, Note, Order, Process};
pub use plan::{DcPlan, Plan, ProxyPlan, Range};
pub use privileges::{Destinations, Identity, Privileges, Rule, Rules};
pub use spec::{DcSpec, Share};
pub use successor::{HeldSegment, Holdings};
pub use view::{DcNodeView, DcSpecView, DcView, EndpointView, NodeView, ProxyView, Status};

#[cfg(test)]
pub(crate) use tests::plan as tests_plan;

use memory::Memory;
use state::{Asked, Conn, Dc, Inquiry, Local, Node, Proxy};

/// Time since an origin of the driver's choice; never goes back.
pub type Now = Duration;
/// A member's connection.
pub type ConnId = u64;

/// The state of one node's daemon.
#[derive(Serialize, Deserialize)]
pub struct Core {
    plan: Plan,
    incarnation: Incarnation,
    started: Now,
    /// Counts every change of what this node announces.
    version: u64,
    stopping: bool,
    /// DCs that this node is part of, or is leaving.
    dcs: BTreeMap<DcId, Dc>,
    /// Every DC that is known, those that were stopped too.
    specs: BTreeMap<DcId, DcSpec>,
    conns: BTreeMap<ConnId, Conn>,
    /// The highest number that a connection had: none has it again.
    conn_last: ConnId,
    /// Endpoints of this node, bound or dead with something of theirs still in use.
    locals: BTreeMap<Endpoint, Local>,
    memories: BTreeMap<u32, Memory>,
    memory_next: u32,
    inquiries: BTreeMap<u32, Inquiry>,
    /// Watched processes that other processes were bound for.
    tickets: BTreeMap<u32, Endpoint>,
    ticket_next: u32,
    /// When the memory of a dead endpoint is dropped at the latest.
    orphans: BTreeSet<(Now, Endpoint)>,
    /// Remote endpoints that wait for a side, by (local, remote).
    opens: BTreeMap<(Endpoint, Endpoint), Asked>,
    proxies: BTreeMap<u16, Proxy>,
    nodes: BTreeMap<NodeId, Node>,
    refused_entries: u64,
    binds: u64,
    generation_max: u32,
    generation_reserved: u32,
    /// How many daemons this life of the node has had after the first.
    successions: u32,
}

impl Core {
    /// A node that has just begun. The proxies are started by the first step.
    pub fn new(now: Now, plan: Plan) -> Core {
        let dcs = plan.dcs.keys().map(|dc| (*dc, Dc::default())).collect();
        let specs = plan.specs.clone();
        let proxies = plan.proxies.iter().map(|p| (p.index, Proxy::new(now))).collect();
        let others = plan.others();
        let nodes = others.into_iter().map(|id| (id, Node::new(now))).collect();
        Core {
            incarnation: plan.incarnation,
            started: now,
            version: 1,
            stopping: false,
            dcs,
            specs,
            conns: BTreeMap::new(),
            conn_last: 0,
            locals: BTreeMap::new(),
            memories: BTreeMap::new(),
            memory_next: 1,
            inquiries: BTreeMap::new(),
            tickets: BTreeMap::new(),
            ticket_next: 1,
            orphans: BTreeSet::new(),
            opens: BTreeMap::new(),
            proxies,
            nodes,
            refused_entries: 0,
            binds: 0,
            generation_max: 0,
            generation_reserved: plan.generation_reserved,
            successions: 0,
            plan,
        }
    }

    /// Takes one input and says what is to be done, in order.
    pub fn step(&mut self, now: Now, input: Input, out: &mut Vec<Effect>) {
        let from = out.len();
        self.take(now, input, out);
        self.note_answers(&out[from..]);
    }

    fn take(&mut self, now: Now, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Connected { conn, process } => {
                self.conn_last = self.conn_last.max(conn);
                self.conns.insert(conn, Conn::new(process));
            }
            Input::Asked { conn, number, request, fresh } => {
                if self.is_new(conn, number, out) {
                    self.asked(now, conn, request, fresh, out);
                }
            }
            Input::Disconnected { conn } => self.disconnected(now, conn, out),
            Input::ProcessOpened { ticket, process } => self.process_opened(now, ticket, process, out),
            Input::ProcessExited { ticket } => {
                if let Some(endpoint) = self.tickets.get(&ticket).copied() {
                    self.end_local(now, endpoint, out);
                }
            }
            Input::SegmentMade { memory, segment, made } => {
                self.segment_made(now, memory, segment, made, out)
            }
            Input::Sealed { memory, sealed } => self.sealed(now, memory, sealed, out),
            Input::ProxyStarted { proxy, pid, token } => self.proxy_started(now, proxy, pid, token),
            Input::ProxyNotStarted { proxy } => self.proxy_exited(now, proxy, out),
            Input::ProxySaid { proxy, message, tail } => self.proxy_said(now, proxy, message, &tail, out),
            Input::ProxyExited { proxy } => self.proxy_exited(now, proxy, out),
            Input::DcMade { dc, made } => self.dc_made(dc, made, out),
            Input::Tick => self.tick(now, out),
            Input::Order(order) => self.order(now, order, out),
            // Whoever wished for it hears the result from `change_dc` itself.
            Input::Change(change) => drop(self.change_dc(now, &change, out)),
            Input::Succeeded { lost } => self.succeed(now, &lost, out),
        }
    }

    /// When the next [`Input::Tick`] is due, if nothing comes before; `None`: never.
    pub fn deadline(&self) -> Option<Now> {
        let orphan = self.orphans.first().map(|(until, _)| *until);
        let proxies = self.proxies.values().filter_map(|p| p.deadline());
        let nodes = self.nodes.values().filter_map(|n| n.deadline(self.plan.node_dead_after, self.version));
        proxies.chain(nodes).chain(orphan).min()
    }

    fn tick(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.drop_orphans(now, out);
        self.tick_proxies(now, out);
        self.tick_nodes(now, out);
    }

    fn order(&mut self, now: Now, order: Order, out: &mut Vec<Effect>) {
        match order {
            Order::RestartProxy { proxy } => self.restart_proxy(now, proxy, out),
            Order::StopProxy { proxy } => self.stop_proxy(now, proxy, out),
            Order::Stop => self.stop(now, out),
        }
    }

    fn record(&self) -> Effect {
        Effect::Record { incarnation: self.incarnation, generations: self.generation_reserved }
    }

    /// What the cluster file says of this node.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Generations below this one are written down as used.
    pub fn generations_reserved(&self) -> u32 {
        self.generation_reserved
    }

    /// The highest generation that was given out.
    pub fn generation_max(&self) -> u32 {
        self.generation_max
    }

    /// This life of the node; a node that was fenced takes the next one.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }
}
