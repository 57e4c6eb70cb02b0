//! The core, step by step, with a driver that does everything at once and a proxy that obeys.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use abi::courier::{FromProxy, LinkState, ToProxy, Totals};
use abi::limits::{ORPHAN_KEEP_MS, PROXY_STALLED_AFTER_MS};
use abi::member::{Refusal, Reply, Request, SegmentKind, VERSION};
use abi::table::{Entry, State};
use abi::{DcId, Endpoint, Generation, Incarnation, Name, NodeId, Slot};

use super::memory::Owner;
use super::*;

mod private;
mod privileges;
mod seals;
mod successor;

const DC: DcId = DcId(1);
pub(super) const FAR: NodeId = NodeId(2);
const TOKEN: [u64; 2] = [7, 8];

pub(crate) fn plan() -> Plan {
    let range = |first| Range { first: Slot(first), count: 16 };
    let dc = DcPlan {
        name: Name::new("main").unwrap(),
        uids: BTreeSet::new(),
        ranges: BTreeMap::from([(NodeId(1), range(0)), (FAR, range(16))]),
        rules: Rules::default(),
    };
    Plan {
        cluster: "lab".into(),
        node: NodeId(1),
        node_name: "n1".into(),
        incarnation: Incarnation(100),
        generation_first: 1000,
        generation_reserved: 1002,
        owner: 5,
        node_dead_after: ms(10_000),
        node_names: BTreeMap::from([(NodeId(1), "n1".into()), (FAR, "n2".into())]),
        file_rules: BTreeMap::from([(dc.name, dc.rules.clone())]),
        specs: BTreeMap::from([(DC, DcSpec::of_file(DC, 16, &dc))]),
        dcs: BTreeMap::from([(DC, dc)]),
        proxies: vec![ProxyPlan {
            index: 1,
            name: "tcp".into(),
            kind: "tcp".into(),
            compression: Default::default(),
            nodes: BTreeSet::from([FAR]),
        }],
    }
}

pub(super) const fn ms(ms: u64) -> Now {
    Duration::from_millis(ms)
}

pub(super) fn far(slot: u16, generation: u32) -> Endpoint {
    Endpoint::new(DC, Slot(slot), Generation(generation))
}

/// A core and hands that do what it says.
pub(super) struct World {
    pub core: Core,
    pub now: Now,
    conn: ConnId,
    /// What the core did since it was last looked at.
    pub done: Vec<Effect>,
    table: BTreeMap<Slot, Entry>,
    pub memories: BTreeSet<u32>,
    /// A proxy that detaches when told; alive from its start on.
    pub obeys: bool,
    /// Segments fail from now on.
    pub no_memory: bool,
}

impl World {
    fn new() -> World {
        World {
            core: Core::new(ms(0), plan()),
            now: ms(0),
            conn: 0,
            done: Vec::new(),
            table: BTreeMap::new(),
            memories: BTreeSet::new(),
            obeys: true,
            no_memory: false,
        }
    }

    /// One whose proxy is up, and whose link too if an incarnation is given.
    pub fn up(incarnation: Option<u32>) -> World {
        let mut world = World::new();
        world.step(Input::Tick);
        if let Some(incarnation) = incarnation {
            world.link(incarnation, LinkState::Up);
        }
        world
    }

    pub fn step(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.core.step(self.now, input, &mut effects);
        self.carry_out(effects);
    }

    pub fn carry_out(&mut self, mut effects: Vec<Effect>) {
        let mut inputs = std::collections::VecDeque::new();
        loop {
            for effect in effects.drain(..) {
                inputs.extend(self.obey(&effect));
                self.done.push(effect);
            }
            let Some(input) = inputs.pop_front() else { return };
            self.core.step(self.now, input, &mut effects);
        }
    }

    pub fn entry(&self, slot: Slot) -> Option<Entry> {
        self.table.get(&slot).copied()
    }

    fn obey(&mut self, effect: &Effect) -> Vec<Input> {
        let said = |message| Input::ProxySaid { proxy: 1, message: Some(message), tail: Vec::new() };
        match effect {
            Effect::MakeSegment { memory, segment, .. } => {
                let made = !self.no_memory;
                if made {
                    self.memories.insert(*memory);
                }
                vec![Input::SegmentMade { memory: *memory, segment: *segment, made }]
            }
            Effect::MakeDc { dc, .. } => vec![Input::DcMade { dc: *dc, made: !self.no_memory }],
            Effect::Seal { memory, .. } => vec![Input::Sealed { memory: *memory, sealed: true }],
            Effect::DropMemory { memory } => {
                self.memories.remove(memory);
                Vec::new()
            }
            Effect::SetTable { slot, entry, .. } => {
                self.table.insert(*slot, *entry);
                Vec::new()
            }
            Effect::StartProxy { proxy, .. } => vec![
                Input::ProxyStarted { proxy: *proxy, pid: 9, token: TOKEN },
                said(FromProxy::Hello { version: VERSION, token: TOKEN }),
            ],
            Effect::KillProxy { proxy } => vec![Input::ProxyExited { proxy: *proxy }],
            Effect::ToProxy { message, .. } if self.obeys => match *message {
                ToProxy::Segment { memory, index, .. } => vec![said(FromProxy::Mapped { memory, index })],
                ToProxy::Detach { local, remote } => vec![said(FromProxy::Detached { local, remote })],
                ToProxy::NodeDead { node, .. } => vec![said(FromProxy::NodeClosed { node })],
                ToProxy::Ping { number } => vec![said(FromProxy::Pong { number, totals: Totals::default() })],
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    pub fn said(&mut self, message: FromProxy) {
        self.step(Input::ProxySaid { proxy: 1, message: Some(message), tail: Vec::new() });
    }

    pub fn link(&mut self, incarnation: u32, state: LinkState) {
        self.said(FromProxy::Link { node: FAR, incarnation: Incarnation(incarnation), state });
    }

    pub fn directory(&mut self, incarnation: u32, kind: ChunkKind, entries: &[(Endpoint, bool)]) {
        let entry = |(endpoint, bound): &(Endpoint, bool)| DirectoryEntry {
            endpoint: *endpoint,
            bound: *bound,
            name: Name::NONE,
            uid: 5,
            private: false,
        };
        let chunk = Chunk { kind, version: 1, entries: entries.iter().map(entry).collect() };
        let message = FromProxy::Directory { node: FAR, incarnation: Incarnation(incarnation) };
        self.step(Input::ProxySaid { proxy: 1, message: Some(message), tail: chunk.to_bytes() });
    }

    pub fn until(&mut self, now: Now) {
        while let Some(at) = self.core.deadline().filter(|at| *at <= now) {
            self.now = self.now.max(at);
            self.step(Input::Tick);
        }
        self.now = now;
    }

    fn hello(&mut self, uid: u32) -> ConnId {
        self.conn += 1;
        let (conn, process) = (self.conn, Process { pid: 1, uid, start_time: 1 });
        self.step(Input::Connected { conn, process });
        self.ask(conn, Request::Hello { version: VERSION, dc: Name::new("main").unwrap() });
        conn
    }

    pub fn ask(&mut self, conn: ConnId, request: Request) -> Reply {
        self.done.clear();
        self.step(Input::Asked { conn, number: 0, request: Some(request), fresh: [1, 2] });
        let answer = self.done.iter().rev().find_map(|e| match e {
            Effect::Reply { conn: to, reply, .. } if *to == conn => Some(*reply),
            _ => None,
        });
        answer.expect("every request is answered")
    }

    pub fn bind(&mut self, slot: Option<u16>) -> (ConnId, Endpoint) {
        self.try_bind(slot).expect("a free slot")
    }

    pub fn try_bind(&mut self, slot: Option<u16>) -> Option<(ConnId, Endpoint)> {
        let conn = self.hello(5);
        match self.ask(conn, Request::Bind { slot: slot.map(Slot), name: Name::NONE, private: false }) {
            Reply::Bound { endpoint, .. } => {
                assert_eq!(self.ask(conn, Request::Ready), Reply::Done);
                Some((conn, endpoint))
            }
            Reply::Refused(Refusal::NoFreeSlot) => {
                self.step(Input::Disconnected { conn });
                None
            }
            other => panic!("not bound: {other:?}"),
        }
    }

    fn state(&self, slot: u16) -> State {
        self.table.get(&Slot(slot)).map_or(State::Free, |e| e.state)
    }

    fn told_proxy(&self) -> Vec<ToProxy> {
        let told = self.done.iter().filter_map(|e| match e {
            Effect::ToProxy { message, .. } => Some(*message),
            _ => None,
        });
        told.collect()
    }
}

#[test]
fn users_that_the_file_does_not_name_are_refused() {
    let mut world = World::up(None);
    world.conn = 50;
    let process = Process { pid: 1, uid: 6, start_time: 1 };
    world.step(Input::Connected { conn: 51, process });
    let hello = Request::Hello { version: VERSION, dc: Name::new("main").unwrap() };
    assert_eq!(world.ask(51, hello), Reply::Refused(Refusal::NotAllowed));
}

#[test]
fn a_name_is_taken_when_its_bind_begins_and_found_when_it_is_seen() {
    let mut world = World::up(None);
    let (asker, _) = world.bind(None);
    let conn = world.hello(5);
    let name = Name::new("kv").unwrap();
    let Reply::Bound { endpoint, .. } = world.ask(conn, Request::Bind { slot: None, name, private: false })
    else {
        panic!("not bound")
    };
    let lookup = Request::LookupName { name };
    assert_eq!(world.ask(asker, lookup), Reply::Refused(Refusal::NoSuchEndpoint), "not in the table yet");
    let other = world.hello(5);
    let again = world.ask(other, Request::Bind { slot: None, name, private: false });
    assert_eq!(again, Reply::Refused(Refusal::NameTaken));
    assert_eq!(world.ask(conn, Request::Ready), Reply::Done);
    assert_eq!(world.ask(asker, lookup), Reply::Found { endpoint });
    assert_eq!(world.ask(conn, Request::Unbind), Reply::Done);
    assert_eq!(world.ask(asker, lookup), Reply::Refused(Refusal::NoSuchEndpoint));
}

#[test]
fn generations_of_a_slot_grow_from_the_first() {
    let mut world = World::up(None);
    for generation in 1000..1003 {
        let (conn, endpoint) = world.bind(Some(4));
        assert_eq!(endpoint.generation, Generation(generation));
        assert_eq!(world.ask(conn, Request::Unbind), Reply::Done);
    }
}

#[test]
fn generations_are_written_down_before_they_are_used() {
    let mut world = World::up(None);
    for written in [None, None, Some(1002 + GENERATIONS_AT_ONCE), None] {
        world.done.clear();
        let conn = world.hello(5);
        assert!(matches!(
            world.ask(conn, Request::Bind { slot: Some(Slot(1)), name: Name::NONE, private: false }),
            Reply::Bound { .. }
        ));
        let record = world.done.iter().position(|e| matches!(e, Effect::Record { .. }));
        assert_eq!(record.is_some(), written.is_some());
        if let (Some(at), Some(generations)) = (record, written) {
            assert_eq!(world.done[at], Effect::Record { incarnation: Incarnation(100), generations });
            assert!(world.done[at..].iter().any(|e| matches!(e, Effect::Reply { .. })), "before the answer");
        }
        world.step(Input::Disconnected { conn });
    }
}

#[test]
fn a_bind_without_memory_leaves_nothing() {
    let mut world = World::up(None);
    let conn = world.hello(5);
    let memories = world.memories.clone();
    world.no_memory = true;
    let bind = Request::Bind { slot: Some(Slot(1)), name: Name::new("x").unwrap(), private: false };
    assert_eq!(world.ask(conn, bind), Reply::Refused(Refusal::NoMemory));
    assert_eq!((&world.memories, world.core.locals.len(), world.state_free()), (&memories, 0, true));
}

impl World {
    fn state_free(&self) -> bool {
        self.table.is_empty() && self.core.dcs[&DC].names.is_empty()
    }
}

#[test]
fn a_dead_endpoints_memory_is_kept_a_minute_for_who_has_not_recycled_it() {
    let mut world = World::up(None);
    let (a, at_a) = world.bind(None);
    let (b, at_b) = world.bind(None);
    assert!(matches!(world.ask(a, Request::Introduce { to: at_b }), Reply::Introduced(_)));
    assert!(matches!(world.ask(b, Request::Pull), Reply::Introduced(_)));
    let memory = world.core.locals[&at_a].memory;
    world.step(Input::Disconnected { conn: a });
    world.until(ms(ORPHAN_KEEP_MS - 1));
    assert!(world.memories.contains(&memory));
    world.until(ms(ORPHAN_KEEP_MS));
    assert!(!world.memories.contains(&memory));
    assert_eq!(world.ask(b, Request::Recycled { peer: at_a }), Reply::Done);
}

#[test]
fn bytes_that_are_no_directory_are_blamed_on_the_node_that_sent_them() {
    let mut world = World::up(Some(50));
    let message = Some(FromProxy::Directory { node: FAR, incarnation: Incarnation(50) });
    world.step(Input::ProxySaid { proxy: 1, message, tail: vec![9; 24] });
    assert!(world.done.contains(&Effect::Note(Note::DirectoryNone { node: FAR })));
    assert!(!world.done.iter().any(|e| matches!(e, Effect::Note(Note::ProxyWrong { .. }))));
}

#[test]
fn a_node_may_only_speak_for_its_own_slots() {
    let mut world = World::up(Some(50));
    let (_, own) = world.bind(Some(3));
    let elsewhere = Endpoint::new(DcId(9), Slot(16), Generation(1));
    world.directory(
        50,
        ChunkKind::Delta,
        &[(own, false), (far(40, 1), true), (elsewhere, true), (far(16, 1), true)],
    );
    assert_eq!((world.state(3), world.state(16), world.state(40)), (State::Bound, State::Bound, State::Free));
    assert_eq!(world.core.status(world.now).directory_refused, 3);
}

#[test]
fn whoever_is_absent_from_a_snapshot_has_ended() {
    let mut world = World::up(Some(50));
    world.directory(50, ChunkKind::Delta, &[(far(16, 1), true), (far(17, 1), true)]);
    world.directory(50, ChunkKind::Begin, &[]);
    world.directory(50, ChunkKind::Part, &[(far(17, 1), true), (far(18, 1), true)]);
    assert_eq!(world.state(16), State::Bound, "not before its end");
    world.directory(50, ChunkKind::End, &[]);
    assert_eq!([16, 17, 18].map(|s| world.state(s)), [State::Dead, State::Bound, State::Bound]);
}

#[test]
fn an_endpoint_ends_once_and_stale_words_change_nothing() {
    let mut world = World::up(Some(50));
    world.directory(50, ChunkKind::Delta, &[(far(16, 5), true), (far(16, 5), false), (far(16, 5), true)]);
    assert_eq!(world.state(16), State::Dead);
    world.directory(50, ChunkKind::Delta, &[(far(16, 6), true), (far(16, 5), false), (far(16, 4), true)]);
    assert_eq!(world.table[&Slot(16)].generation, Generation(6));
    assert_eq!(world.state(16), State::Bound);
}

#[test]
fn a_node_that_was_up_is_dead_after_its_time_and_not_a_moment_before() {
    let mut world = World::up(Some(50));
    world.directory(50, ChunkKind::Delta, &[(far(16, 1), true)]);
    world.until(ms(5));
    world.link(50, LinkState::Cut);
    world.until(ms(10_004));
    assert_eq!(world.state(16), State::Bound);
    world.until(ms(10_005));
    assert_eq!(world.state(16), State::NodeDead);
}

#[test]
fn a_node_that_was_never_up_is_never_dead_nor_one_whose_proxy_is_stopped() {
    let mut world = World::up(None);
    world.link(0, LinkState::Cut);
    world.until(ms(60_000));
    assert!(!world.told_proxy().iter().any(|m| matches!(m, ToProxy::NodeDead { .. })));
    world.link(50, LinkState::Up);
    world.directory(50, ChunkKind::Delta, &[(far(16, 1), true)]);
    world.step(Input::Order(Order::StopProxy { proxy: 1 }));
    world.step(Input::ProxyExited { proxy: 1 });
    world.until(ms(600_000));
    assert_eq!(world.state(16), State::Bound);
    world.step(Input::Order(Order::RestartProxy { proxy: 1 }));
    world.until(ms(609_999));
    assert_eq!(world.state(16), State::Bound, "its time begins anew with the proxy");
    world.until(ms(610_001));
    assert_eq!(world.state(16), State::NodeDead);
}

#[test]
fn changes_are_followed_by_one_more_snapshot() {
    let mut world = World::up(Some(50));
    world.until(ms(10_000));
    world.done.clear();
    let (_, own) = world.bind(None);
    let chunks = |w: &World| {
        let chunk = |e: &Effect| match e {
            Effect::ToProxy { message: ToProxy::Directory { .. }, tail, .. } => Chunk::from_bytes(tail),
            _ => None,
        };
        w.done.iter().filter_map(chunk).collect::<Vec<_>>()
    };
    assert_eq!(chunks(&world).len(), 1, "the change itself");
    world.done.clear();
    world.until(ms(60_000));
    let snapshot = chunks(&world);
    let kinds: Vec<ChunkKind> = snapshot.iter().map(|c| c.kind).collect();
    assert_eq!(kinds, [ChunkKind::Begin, ChunkKind::Part, ChunkKind::End]);
    assert_eq!(snapshot[1].entries[0].endpoint, own);
}

#[test]
fn a_slot_that_is_not_drained_is_the_last_choice() {
    let mut world = World::up(None);
    let (_, anchor) = world.bind(Some(0));
    let (conn, gone) = world.bind(Some(1));
    assert!(matches!(world.ask(conn, Request::Introduce { to: anchor }), Reply::Introduced(_)));
    assert_eq!(world.ask(conn, Request::Unbind), Reply::Done);
    for slot in 2..16 {
        assert_eq!(world.bind(None).1.slot, Slot(slot));
    }
    let (_, last) = world.bind(None);
    assert_eq!((last.slot, last.generation.0), (gone.slot, gone.generation.0 + 1));
    assert!(world.try_bind(None).is_none());
}

#[test]
fn a_newer_incarnation_ends_the_endpoints_of_the_older() {
    let mut world = World::up(Some(50));
    world.directory(50, ChunkKind::Delta, &[(far(16, 1), true)]);
    world.link(51, LinkState::Up);
    assert_eq!(world.state(16), State::NodeDead);
    world.directory(50, ChunkKind::Delta, &[(far(17, 1), true)]);
    assert_eq!(world.state(17), State::Free, "the words of the dead do not count");
    world.directory(51, ChunkKind::Delta, &[(far(16, 2), true)]);
    assert_eq!(world.state(16), State::Bound);
}

#[test]
fn a_stalled_proxy_is_killed_at_its_time_and_the_second_start_waits() {
    let mut world = World::up(None);
    world.obeys = false;
    world.until(ms(PROXY_STALLED_AFTER_MS - 1));
    assert!(!world.done.contains(&Effect::KillProxy { proxy: 1 }));
    world.until(ms(PROXY_STALLED_AFTER_MS));
    let starts = |w: &World| w.done.iter().filter(|e| matches!(e, Effect::StartProxy { .. })).count();
    assert!(world.done.contains(&Effect::KillProxy { proxy: 1 }));
    assert_eq!(starts(&world), 2, "restarted at once");
    world.until(ms(2 * PROXY_STALLED_AFTER_MS + 49));
    assert_eq!(starts(&world), 2);
    world.until(ms(2 * PROXY_STALLED_AFTER_MS + 50));
    assert_eq!(starts(&world), 3);
}

#[test]
fn a_successor_carries_the_dead_too_and_hears_of_their_end_after_the_attach() {
    let mut world = World::up(Some(50));
    let remote = far(16, 1);
    world.directory(50, ChunkKind::Delta, &[(remote, true)]);
    let (a, own) = world.bind(None);
    assert!(matches!(world.ask(a, Request::Introduce { to: remote }), Reply::Introduced(_)));
    world.step(Input::Disconnected { conn: a });
    world.done.clear();
    world.step(Input::ProxyExited { proxy: 1 });
    world.step(Input::Tick);
    let told = world.told_proxy();
    let attached = told.iter().position(|m| matches!(m, ToProxy::Attach { attach } if attach.local == own));
    let ended = told.iter().position(|m| *m == ToProxy::LocalEnded { endpoint: own });
    assert!(attached.unwrap() < ended.unwrap(), "{told:?}");
}

#[test]
fn an_endpoint_that_was_done_with_a_dead_one_is_not_given_its_words_again() {
    let mut world = World::up(Some(50));
    let (a, own) = world.bind(None);
    let remote = far(16, 1);
    let open = FromProxy::RemoteOpen { local: own, remote, node: FAR };
    world.said(open);
    assert!(world.told_proxy().iter().any(|m| matches!(m, ToProxy::Attach { .. })));
    assert_eq!(world.ask(a, Request::Recycled { peer: remote }), Reply::Done);
    world.said(FromProxy::Detached { local: own, remote });
    world.done.clear();
    world.said(open);
    let why = Refusal::NoSuchEndpoint;
    assert_eq!(world.told_proxy(), [ToProxy::Refuse { local: own, remote, why }]);
    world.done.clear();
    world.said(FromProxy::RemoteOpen { local: own, remote: far(16, 2), node: FAR });
    assert!(world.told_proxy().iter().any(|m| matches!(m, ToProxy::Attach { .. })));
}

#[test]
fn an_unclaimed_endpoint_is_opened_when_it_is_ready() {
    let mut world = World::up(Some(50));
    let launcher = world.hello(5);
    let process = Process { pid: 77, uid: 5, start_time: 3 };
    world.done.clear();
    let ask = Request::BindOther { pid: 77, slot: None, name: Name::NONE, private: false };
    world.step(Input::Asked { conn: launcher, number: 0, request: Some(ask), fresh: [1, 2] });
    world.step(Input::ProcessOpened { ticket: 1, process: Some(process) });
    let bound = world.done.iter().find_map(|e| match e {
        Effect::Reply { reply: Reply::Bound { endpoint, token, .. }, .. } => Some((*endpoint, *token)),
        _ => None,
    });
    let (endpoint, token) = bound.unwrap();
    world.said(FromProxy::RemoteOpen { local: endpoint, remote: far(16, 1), node: FAR });
    let attached = |w: &World| {
        w.told_proxy().iter().any(|m| matches!(m, ToProxy::Attach { .. } | ToProxy::Refuse { .. }))
    };
    assert!(!attached(&world));
    world.conn += 1;
    let conn = world.conn;
    world.step(Input::Connected { conn, process });
    world.ask(conn, Request::Hello { version: VERSION, dc: Name::new("main").unwrap() });
    assert!(matches!(world.ask(conn, Request::Claim { endpoint, token }), Reply::Bound { .. }));
    assert_eq!(world.ask(conn, Request::Ready), Reply::Done);
    assert!(attached(&world));
}

#[test]
fn proxies_get_more_sides_before_the_last_are_given_out() {
    let mut world = World::up(Some(50));
    let conns: Vec<_> = (0..16).map(|_| world.bind(None)).collect();
    let known: Vec<_> = (16..32).map(|slot| (far(slot, 1), true)).collect();
    world.directory(50, ChunkKind::Delta, &known);
    let mut carried = 0;
    for (conn, own) in &conns {
        let more = Request::NewSegment { kind: SegmentKind::Sides, len_bytes: memory::sides_bytes(16) };
        assert!(matches!(world.ask(*conn, more), Reply::Segment { .. }));
        assert_eq!(world.ask(*conn, Request::Ready), Reply::Done);
        for slot in 16..32 {
            world.said(FromProxy::RemoteOpen { local: *own, remote: far(slot, 1), node: FAR });
            carried += 1;
        }
    }
    let memory = world.core.memories.values().find(|m| matches!(m.owner, Owner::Proxy { .. })).unwrap();
    assert_eq!((memory.used.len(), carried), (256, 256));
}
