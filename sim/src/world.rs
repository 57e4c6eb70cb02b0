//! The composition root: nodes, proxies, programs and wires over one heap of events. No threads, no clock.
//!
//! Key type: [`World`]. Neighbours: `faults` (what goes wrong, and when), `carry` (what passes between processes),
//! `close` (what must be true at the end).

mod carry;
mod close;
mod faults;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use abi::courier::FromProxy;
use abi::{Incarnation, Name, NodeId, Slot};
use fabric::Time;
use node::core::{ConnId, DcPlan, GENERATIONS_AT_ONCE, Input, Plan, ProxyPlan, Range, Rules};

use crate::courierman::Courierman;
use crate::dice::Dice;
use crate::invariants::Finding;
use crate::ledger::Ledger;
use crate::net::{Net, Shared, Temper, lock};
use crate::program::{Body, Counts, Next, Program, Scene};
use crate::report::{CALLS, has_called};
use crate::site::{DC, Heard, PROXY, SLOTS_EACH, Site, first_slot};
use crate::trace::Trace;
use faults::Fault;

/// How long things go wrong.
const TROUBLE: Duration = Duration::from_millis(1_500);
/// How long everything has to come right again.
const PEACE: Duration = Duration::from_secs(12);
const NODE_DEAD_AFTER: Duration = Duration::from_millis(400);

/// More than any run has that comes to rest.
const EVENTS_MAX: u64 = 1_000_000;

/// What every run has.
pub const NODES_MIN: u64 = 3;
pub const ENDPOINTS_MIN: u64 = 12;
pub const EVENTS_MIN: u64 = 5_000;
/// From here on, what was not called yet is.
const LATE: Duration = Duration::from_millis(1_100);
/// The calm before healing, for what was not called yet: so often, so long.
const CALMS_MAX: u32 = 60;
const CALM: Duration = Duration::from_millis(50);

/// What happens at a time.
enum Event {
    Program { at: usize, nonce: u64 },
    Look { node: usize, life: u64, plan: u64 },
    Ring { node: usize, doorbell: usize, source: Option<Slot>, pull: bool, life: u64 },
    ToProxy { node: usize, life: u64, heard: Heard },
    FromProxy { node: usize, life: u64, message: FromProxy, tail: Vec<u8> },
    ProxyExited { node: usize, site: u64, life: u64 },
    Tick { node: usize },
    Gone { node: usize, site: u64, conn: ConnId },
    Fault(Fault),
    Heal,
}

/// A node and what runs on it, programs apart.
struct Home {
    site: Site,
    /// Which life of the node this is.
    life: u64,
    proxy: Option<Courierman>,
    proxy_lives: u64,
    /// Which plan of the proxy's next look counts.
    look: u64,
    ticks_at: Option<Time>,
    /// No datagram overtakes another, either way; rings go with those of the daemon.
    said_until: Time,
    heard_until: Time,
    rings: u64,
}

/// What a run came to.
pub struct Outcome {
    pub hash: u64,
    pub findings: Vec<Finding>,
    pub calls: Counts,
    pub rows: Counts,
    pub faults: Counts,
    pub events: u64,
    pub nodes: u64,
    pub endpoints: u64,
    pub messages: u64,
    pub net: crate::net::Counts,
    pub last_lines: String,
}

/// One simulated cluster.
pub struct World {
    now: Time,
    events: BTreeMap<(Time, u64), Event>,
    turns: u64,
    done: u64,
    dice: Dice,
    net: Shared,
    homes: Vec<Home>,
    programs: Vec<Program>,
    slots: Vec<Slot>,
    ledger: Ledger,
    trace: Trace,
    calls: Counts,
    rows: Counts,
    faults: Counts,
    healing: bool,
    /// When it is over.
    until: Time,
    calms: u32,
    loan_log_max: u64,
    /// Bodies of killed processes: their memory stays as it was, and nothing of theirs is dropped while the run lasts.
    graves: Vec<Body>,
}

impl World {
    /// A cluster whose size and luck the seed decides.
    pub fn new(seed: u64, loud: bool) -> World {
        let mut dice = Dice::new(seed);
        let nodes = [3, 3, 3, 4][dice.below(4) as usize];
        let ids: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
        let temper = Temper {
            lose_one_in: [0, 2_000, 400, 100][dice.below(4) as usize],
            resend_one_in: [0, 1_000, 200, 40][dice.below(4) as usize],
            double_one_in: [0, 500, 100, 30][dice.below(4) as usize],
            latency_us: [(10, 40), (50, 500), (200, 3_000)][dice.below(3) as usize],
            posted_max: [8, 32, 256][dice.below(3) as usize],
        };
        let net = Shared::new(Net::new(&ids, temper, dice.fork()).into());
        let homes = ids.iter().map(|id| home(Duration::ZERO, &ids, *id, 0)).collect();
        let mut world = World {
            now: Duration::ZERO,
            events: BTreeMap::new(),
            turns: 0,
            done: 0,
            loan_log_max: [8, 12, 12, 16, 20][dice.below(5) as usize],
            dice,
            net,
            homes,
            programs: Vec::new(),
            slots: Vec::new(),
            ledger: Ledger::default(),
            trace: Trace::new(loud),
            calls: Counts::new(),
            rows: Counts::new(),
            faults: Counts::new(),
            healing: false,
            until: TROUBLE + PEACE * 2,
            calms: 0,
            graves: Vec::new(),
        };
        world.people(nodes);
        for node in 0..nodes as usize {
            world.tick_later(node);
        }
        world.plan_faults(nodes);
        world.at(TROUBLE, Event::Heal);
        world
    }

    /// Programs, at least one on each node.
    fn people(&mut self, nodes: u16) {
        let count = self.dice.between(ENDPOINTS_MIN, ENDPOINTS_MIN + 2);
        for n in 0..count {
            let site = if n < nodes as u64 { n } else { self.dice.below(nodes as u64) } as usize;
            let here = self.programs.iter().filter(|p| p.site == site).count() as u16;
            let slot = Slot(first_slot(NodeId(site as u16 + 1)).0 + here);
            self.slots.push(slot);
            self.programs.push(Program::new(site, slot, 100 + n as u32));
            let after = self.dice.us(1, 20_000);
            self.wake_program(n as usize, after);
        }
    }

    /// Runs to the end and asks every invariant.
    pub fn run(mut self) -> Outcome {
        loop {
            let own = self.events.keys().next().map(|(at, _)| *at);
            let wires = lock(&self.net).next_due();
            let Some(next) = own.into_iter().chain(wires).min().filter(|at| *at < self.until) else {
                break;
            };
            self.now = self.now.max(next);
            lock(&self.net).advance(self.now);
            if own == Some(next)
                && let Some((_, event)) = self.events.pop_first()
            {
                self.done += 1;
                let touched = self.touches(&event);
                self.happen(event);
                self.carry(touched);
            }
            self.rouse_woken();
            if self.done > EVENTS_MAX {
                self.ledger.find("calls end", Some(format!("{EVENTS_MAX} events, and no end of them")));
            }
            if !self.ledger.findings.is_empty() {
                break;
            }
        }
        self.close()
    }

    /// The one node that an event touches, if it is one.
    fn touches(&self, event: &Event) -> Option<usize> {
        match event {
            Event::Program { at, .. } => Some(self.programs[*at].site),
            Event::Look { node, .. }
            | Event::Ring { node, .. }
            | Event::ToProxy { node, .. }
            | Event::FromProxy { node, .. }
            | Event::ProxyExited { node, .. }
            | Event::Tick { node }
            | Event::Gone { node, .. } => Some(*node),
            Event::Fault(_) | Event::Heal => None,
        }
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.turns += 1;
        self.events.insert((self.now + after, self.turns), event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Program { at, nonce } if self.programs[at].nonce == nonce => {
                let stopped = self.programs[at].stopped_until;
                if stopped > self.now {
                    let after = stopped - self.now;
                    return self.at(after, Event::Program { at, nonce });
                }
                self.step_program(at);
            }
            Event::Program { .. } => {}
            Event::Look { node, life, plan } => self.look(node, life, plan),
            Event::Ring { node, doorbell, source, pull, life } => {
                let home = &mut self.homes[node];
                if home.life == life {
                    home.rings -= 1;
                    home.site.ring(doorbell, source, pull);
                }
            }
            Event::ToProxy { node, life, heard } => self.hear(node, life, heard),
            Event::FromProxy { node, life, message, tail } => {
                let home = &mut self.homes[node];
                if home.proxy.as_ref().is_some_and(|proxy| proxy.life == life) {
                    let input = Input::ProxySaid { proxy: PROXY, message: Some(message), tail };
                    home.site.step(self.now, input);
                }
            }
            Event::ProxyExited { node, site, life } => {
                let home = &mut self.homes[node];
                // A daemon's successor knows that all before its own have exited.
                if home.life == site && home.proxy_lives == life {
                    home.site.step(self.now, Input::ProxyExited { proxy: PROXY });
                }
            }
            Event::Tick { node } => {
                self.homes[node].ticks_at = None;
                self.homes[node].site.step(self.now, Input::Tick);
            }
            Event::Gone { node, site, conn } => {
                if self.homes[node].life == site {
                    self.homes[node].site.step(self.now, Input::Disconnected { conn });
                }
            }
            Event::Fault(fault) => self.go_wrong(fault),
            Event::Heal if self.calms < CALMS_MAX && (self.missing().is_some() || self.done < EVENTS_MIN) => {
                self.calms += 1;
                // Wires on which a session never lasts may be why.
                if self.calms == CALMS_MAX / 2 {
                    self.mend_wires();
                }
                self.at(CALM, Event::Heal);
            }
            Event::Heal => {
                self.until = self.now + PEACE;
                self.heal();
            }
        }
    }

    fn wake_program(&mut self, at: usize, after: Duration) {
        self.programs[at].nonce += 1;
        let nonce = self.programs[at].nonce;
        self.at(after, Event::Program { at, nonce });
    }

    /// A call that nobody has made yet.
    fn missing(&self) -> Option<&'static str> {
        CALLS.iter().copied().find(|call| !has_called(&self.calls, call))
    }

    fn step_program(&mut self, at: usize) {
        let missing = if self.now > LATE && !self.healing { self.missing() } else { None };
        let program = &mut self.programs[at];
        let home = &mut self.homes[program.site];
        let mut scene = Scene {
            now: self.now,
            missing,
            rings_under_way: home.rings > 0,
            site: &mut home.site,
            ledger: &mut self.ledger,
            trace: &mut self.trace,
            dice: &mut self.dice,
            calls: &mut self.calls,
            rows: &mut self.rows,
            slots: &self.slots,
            healing: self.healing,
            loan_log_max: self.loan_log_max,
        };
        let next = program.step(&mut scene);
        let (Next::At(time) | Next::Asleep(time)) = next;
        self.wake_program(at, time.saturating_sub(self.now));
    }

    /// A process is killed: nothing of its is cleaned up, and its daemon hears of it later.
    fn kill_program(&mut self, at: usize, told: bool) {
        let program = &mut self.programs[at];
        let Some(body) = program.body.take() else { return };
        let (node, conn) = (program.site, body.conn);
        program.asleep = false;
        program.stopped_until = Time::ZERO;
        if self.ledger.has_unseen(body.me) {
            *self.rows.entry("notifier ended with bits that nobody had seen").or_default() += 1;
        }
        body.killed(&mut self.ledger);
        self.ledger.died(body.me, self.now);
        self.trace.note(self.now, self.homes[node].site.id, format_args!("{} is killed", body.me));
        self.graves.push(body);
        if told {
            let (site, after) = (self.homes[node].life, self.dice.us(1, 2_000));
            self.at(after, Event::Gone { node, site, conn });
        }
        let after = self.dice.us(500, 80_000);
        self.wake_program(at, after);
    }

    fn tick_later(&mut self, node: usize) {
        let home = &mut self.homes[node];
        let Some(at) = home.site.deadline() else { return };
        if home.ticks_at.is_none_or(|planned| at < planned) {
            home.ticks_at = Some(at);
            self.at(at.saturating_sub(self.now), Event::Tick { node });
        }
    }
}

fn home(now: Time, ids: &[NodeId], id: NodeId, life: u64) -> Home {
    Home {
        site: Site::new(now, plan(ids, id, life)),
        life,
        proxy: None,
        proxy_lives: 0,
        look: 0,
        ticks_at: None,
        said_until: now,
        heard_until: now,
        rings: 0,
    }
}

fn plan(ids: &[NodeId], id: NodeId, life: u64) -> Plan {
    let ranges = ids.iter().map(|node| (*node, Range { first: first_slot(*node), count: SLOTS_EACH }));
    let name = Name::new("main").expect("a legal name");
    let dc = DcPlan { name, uids: BTreeSet::new(), ranges: ranges.collect(), rules: Rules::default() };
    let generation_first = 1 + life as u32 * 1000;
    Plan {
        cluster: "sim".into(),
        node: id,
        node_name: format!("n{id}"),
        incarnation: Incarnation(1 + life as u32 * 1000),
        generation_first,
        generation_reserved: generation_first + GENERATIONS_AT_ONCE,
        owner: 0,
        node_dead_after: NODE_DEAD_AFTER,
        node_names: ids.iter().map(|node| (*node, format!("n{node}"))).collect(),
        file_rules: BTreeMap::new(),
        specs: BTreeMap::new(),
        dcs: BTreeMap::from([(DC, dc)]),
        proxies: vec![ProxyPlan {
            index: PROXY,
            name: "sim".into(),
            kind: "sim".into(),
            compression: Default::default(),
            nodes: ids.iter().copied().filter(|node| *node != id).collect(),
        }],
    }
}
