//! DCs that come, change and go while the core runs.

use std::collections::BTreeSet;

use abi::courier::{FromProxy, LinkState, ToProxy};
use abi::limits::{DCS_MAX, SLOTS_PER_DC, UIDS_PER_DC_MAX};
use abi::member::{Refusal, Reply, Request, SegmentKind, VERSION};
use abi::table::State;
use abi::{DcId, Endpoint, Incarnation, Level, Name, NodeId, Slot};

use super::tests::{FAR, World, far};
use super::*;

const HERE: NodeId = NodeId(1);
const MAIN: DcId = DcId(1);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn create(text: &str, nodes: &[NodeId]) -> DcChange {
    let uids = BTreeSet::new();
    let (name, nodes, rules) = (name(text), nodes.to_vec(), Rules::default());
    DcChange::Create { name, nodes, named: true, slots_per_node: 1024, uids, rules }
}

fn shrink(nodes: &[NodeId], force: bool) -> DcChange {
    DcChange::Shrink { name: "main".into(), nodes: nodes.to_vec(), force }
}

fn grow(nodes: &[NodeId]) -> DcChange {
    DcChange::Grow { name: "main".into(), nodes: nodes.to_vec() }
}

impl World {
    pub fn change(&mut self, change: &DcChange) -> Result<DcSpec, DcRefusal> {
        self.done.clear();
        let mut effects = Vec::new();
        let result = self.core.change_dc(self.now, change, &mut effects);
        self.carry_out(effects);
        result
    }

    /// The other node describes a DC.
    pub fn describe(&mut self, incarnation: u32, spec: &DcSpec) {
        let tail = [5, 1].into_iter().chain(spec.to_words()).flat_map(u64::to_le_bytes).collect();
        let message = FromProxy::Directory { node: FAR, incarnation: Incarnation(incarnation) };
        self.done.clear();
        self.step(Input::ProxySaid { proxy: 1, message: Some(message), tail });
    }

    pub fn main(&self) -> DcSpec {
        self.core.specs[&MAIN].clone()
    }

    /// The next revision of the one DC, by the other node: with this node, or without it.
    pub fn toggled(&self) -> DcSpec {
        let mut spec = self.main();
        spec.revision += 1;
        spec.by = FAR;
        for share in spec.shares.iter_mut().filter(|s| s.node == HERE) {
            share.left = !share.left;
        }
        spec
    }

    /// The same by an operator's wish, here.
    pub fn toggle(&mut self) {
        let wish = if self.main().spans(HERE) { shrink(&[HERE], true) } else { grow(&[HERE]) };
        self.change(&wish).expect("nothing speaks against it");
    }

    fn hello_to(&mut self, conn: ConnId, dc: &str) -> Reply {
        let process = Process { pid: 1, uid: 5, start_time: 1 };
        self.step(Input::Connected { conn, process });
        self.ask(conn, Request::Hello { version: VERSION, dc: name(dc) })
    }

    fn told(&self, wanted: &ToProxy) -> bool {
        self.done.iter().any(|e| matches!(e, Effect::ToProxy { message, .. } if message == wanted))
    }

    fn specs_sent(&self) -> usize {
        let is_spec = |tail: &[u8]| tail.first() == Some(&5);
        self.done.iter().filter(|e| matches!(e, Effect::ToProxy { tail, .. } if is_spec(tail))).count()
    }
}

#[test]
fn a_dc_is_made_while_the_node_runs_and_the_other_node_and_the_file_hear_of_it() {
    let mut world = World::up(Some(50));
    assert_eq!(world.hello_to(900, "batch"), Reply::Refused(Refusal::NoSuchDc));
    let spec = world.change(&create("batch", &[HERE, FAR])).unwrap();
    assert_eq!((spec.revision, spec.by, spec.nodes().count()), (1, HERE, 2));
    assert_eq!(world.specs_sent(), 1);
    assert!(world.done.iter().any(|e| *e == Effect::KeepDcs { specs: vec![spec.clone()] }));
    let given =
        |e: &Effect| matches!(e, Effect::ToProxy { message: ToProxy::Dc { dc, .. }, .. } if *dc == spec.id);
    assert!(world.done.iter().any(given), "the proxy has memory in it");
    let Reply::Welcome { dc, slot_first, slot_count, .. } = world.hello_to(901, "batch") else {
        panic!("not welcome")
    };
    assert_eq!((dc, slot_first, slot_count), (spec.id, Slot(0), 1024));
    let bound = world.ask(901, Request::Bind { slot: None, name: Name::NONE, private: false });
    assert!(matches!(bound, Reply::Bound { .. }), "{bound:?}");
}

#[test]
fn wrong_wishes_are_refused_each_for_its_reason_and_change_nothing() {
    let mut world = World::up(Some(50));
    let before = world.main();
    let refused = |world: &mut World, change: &DcChange| world.change(change).unwrap_err();
    let strange = DcChange::Stop { name: "other".into(), force: true };
    assert!(matches!(refused(&mut world, &strange), DcRefusal::UnknownDc { known, .. } if known == "main"));
    assert!(matches!(refused(&mut world, &create("main", &[HERE])), DcRefusal::NameTaken { id: MAIN, .. }));
    assert_eq!(refused(&mut world, &grow(&[FAR])), DcRefusal::ThereAlready { node: FAR });
    assert_eq!(refused(&mut world, &shrink(&[HERE, FAR], true)), DcRefusal::LastNode);
    let nine = NodeId(9);
    assert!(
        matches!(refused(&mut world, &shrink(&[nine], true)), DcRefusal::NotThere { node, .. } if node == nine)
    );
    let many = DcChange::Create {
        name: name("wide"),
        nodes: vec![HERE, FAR],
        named: false,
        slots_per_node: 2049,
        uids: BTreeSet::new(),
        rules: Rules::default(),
    };
    assert!(matches!(refused(&mut world, &many), DcRefusal::TooManySlots { nodes: 2, .. }));
    world.link(50, LinkState::Cut);
    let cut = refused(&mut world, &create("far", &[HERE, FAR]));
    assert_eq!(cut, DcRefusal::NotUp { node: FAR, link: "cut" });
    assert_eq!(world.main(), before);
    assert_eq!(world.core.specs.len(), 1);
}

#[test]
fn what_a_wish_goes_beyond_is_named() {
    let mut world = World::up(Some(50));
    let DcChange::Create { name: wide, nodes, named, rules, .. } = create("wide", &[HERE]) else { panic!() };
    let uids = (0..=UIDS_PER_DC_MAX as u32).collect();
    let crowded = DcChange::Create {
        name: wide,
        nodes: nodes.clone(),
        named,
        slots_per_node: 8,
        uids,
        rules: rules.clone(),
    };
    assert_eq!(world.change(&crowded), Err(DcRefusal::TooManyUsers));
    let uids = BTreeSet::new();
    let full = DcChange::Create { name: wide, nodes, named, slots_per_node: SLOTS_PER_DC, uids, rules };
    world.change(&full).expect("all slots of a DC on one node");
    let grow = DcChange::Grow { name: "wide".into(), nodes: vec![FAR] };
    assert_eq!(world.change(&grow), Err(DcRefusal::NoSlotsLeft { node: FAR }));
    world.change(&create("theirs", &[FAR])).expect("a DC of another node alone");
    let stop = DcChange::Stop { name: "theirs".into(), force: false };
    assert_eq!(world.change(&stop), Err(DcRefusal::NotHere { nodes: FAR.to_string() }));
}

#[test]
fn a_daemon_that_stops_changes_no_dc_and_refuses_every_request() {
    let mut world = World::up(Some(50));
    let Reply::Welcome { .. } = world.hello_to(901, "main") else { panic!("not welcome") };
    world.step(Input::Order(Order::Stop));
    assert_eq!(world.change(&create("late", &[HERE])), Err(DcRefusal::Stopping));
    let late = world.ask(901, Request::Bind { slot: None, name: Name::NONE, private: false });
    assert_eq!(late, Reply::Refused(Refusal::Stopping));
}

#[test]
fn the_last_id_is_given_and_none_beyond_it_until_a_dc_is_stopped() {
    let mut world = World::up(None);
    let ids: BTreeSet<DcId> = (1..DCS_MAX)
        .map(|k| world.change(&create(&format!("d{k}"), &[HERE])).expect("an id is free").id)
        .collect();
    assert_eq!(ids.len(), usize::from(DCS_MAX) - 1);
    assert_eq!(world.change(&create("more", &[HERE])), Err(DcRefusal::LimitReached));
    let stopped = world.change(&DcChange::Stop { name: "d5".into(), force: false }).unwrap();
    let made = world.change(&create("more", &[HERE])).unwrap();
    assert_eq!((made.id, made.revision), (stopped.id, stopped.revision + 1), "it counts more than what was");
}

#[test]
fn a_node_with_endpoints_is_not_taken_out_unless_forced_and_nothing_of_them_stays() {
    let mut world = World::up(Some(50));
    let (conn, own) = world.bind(None);
    let remote = far(16, 1);
    world.directory(50, ChunkKind::Delta, &[(remote, true)]);
    assert!(matches!(world.ask(conn, Request::Introduce { to: remote }), Reply::Introduced(_)));
    let why = world.change(&shrink(&[HERE], false)).unwrap_err();
    assert_eq!(why.to_string(), "an endpoint lives on node 1: slot 0");
    assert!(why.hint().contains("--force"));
    world.obeys = false;
    world.change(&shrink(&[HERE], true)).unwrap();
    assert!(world.told(&ToProxy::LocalEnded { endpoint: own }), "its peer hears of its death");
    assert!(!world.told(&ToProxy::DropDc { dc: MAIN }), "its last words are still carried");
    assert_eq!(
        world.ask(conn, Request::Bind { slot: None, name: Name::NONE, private: false }),
        Reply::Refused(Refusal::NoSuchDc)
    );
    assert_eq!(world.hello_to(901, "main"), Reply::Refused(Refusal::NoSuchDc));
    world.obeys = true;
    world.done.clear();
    world.said(FromProxy::Detached { local: own, remote });
    assert!(world.told(&ToProxy::DropDc { dc: MAIN }));
    assert!(world.done.contains(&Effect::DropDc { dc: MAIN }));
    assert!(world.memories.is_empty() && world.core.locals.is_empty() && world.core.dcs.is_empty());
}

impl World {
    /// What the core still keeps of a DC, beside its description.
    fn remembers(&self, dc: DcId) -> Vec<&'static str> {
        let core = &self.core;
        let of_dc = |owner: &super::memory::Owner| match owner {
            super::memory::Owner::Endpoint(endpoint) => endpoint.dc == dc,
            super::memory::Owner::Proxy { dc: of, .. } => *of == dc,
        };
        let places = [
            ("dcs", core.dcs.contains_key(&dc)),
            ("plan", core.plan.dcs.contains_key(&dc)),
            ("locals", core.locals.keys().any(|e| e.dc == dc)),
            ("orphans", core.orphans.iter().any(|(_, e)| e.dc == dc)),
            ("opens", core.opens.keys().any(|(local, _)| local.dc == dc)),
            ("memories", core.memories.values().any(|m| of_dc(&m.owner))),
            ("proxies", core.proxies.values().any(|p| p.memories.contains_key(&dc))),
            ("connections", core.conns.values().any(|c| c.dc == Some(dc))),
            ("endpoints of connections", core.conns.values().any(|c| c.endpoint.is_some_and(|e| e.dc == dc))),
            ("tickets", core.tickets.values().any(|e| e.dc == dc)),
            ("inquiries", !core.inquiries.is_empty()),
        ];
        places.into_iter().filter(|(_, is)| *is).map(|(what, _)| what).collect()
    }

    fn done_to(&self, wanted: &Effect) -> bool {
        self.done.contains(wanted)
    }
}

#[test]
fn a_dc_that_was_stopped_leaves_neither_bells_nor_grants_nor_warnings_nor_binds_for_others() {
    let mut world = World::up(Some(50));
    let first = Rule { slots: None, name: None, uid: None, privileges: Privileges::of_level(Level::Server) };
    let warn = Rule { privileges: Privileges { warn: Some(Slot(0)), ..first.privileges.clone() }, ..first };
    world.core.plan.dcs.get_mut(&MAIN).unwrap().rules = Rules { rules: Some(vec![warn]) };
    let ((owner, one), (polls, two)) = (world.bind(Some(0)), world.bind(Some(1)));
    let remote = far(16, 1);
    world.directory(50, ChunkKind::Delta, &[(remote, true)]);
    // Pairs here and across, one that waits for its memory, an endpoint that polls, one granted and mapped segment.
    for (conn, to) in [(owner, two), (polls, one), (owner, remote)] {
        assert!(matches!(world.ask(conn, Request::Introduce { to }), Reply::Introduced(_)));
    }
    world.said(FromProxy::RemoteOpen { local: one, remote: far(17, 1), node: FAR });
    assert_eq!(world.ask(polls, Request::Poll), Reply::Polled);
    let new = Request::NewSegment { kind: SegmentKind::GrantRead, len_bytes: 4096 };
    let Reply::Segment { index, .. } = world.ask(owner, new) else { panic!("no segment") };
    assert_eq!(world.ask(owner, Request::Ready), Reply::Done);
    assert_eq!(world.ask(owner, Request::Grant { segment: index, to: two }), Reply::Done);
    let memory = world.core.locals[&one].memory;
    world.said(FromProxy::WantSegment { memory, segment: index });
    // A bind for another process that was not claimed, and one whose process is being looked at.
    let other = Request::BindOther { pid: 7, slot: None, name: Name::NONE, private: false };
    world.done.clear();
    world.step(Input::Asked { conn: owner, number: 0, request: Some(other), fresh: [1, 2] });
    let end_of = |conn, world: &mut World| world.step(Input::Disconnected { conn });

    world.change(&DcChange::Stop { name: "main".into(), force: true }).unwrap();
    assert!(world.done_to(&Effect::DropBells { polls: two, by: None }));
    world.until(world.now + std::time::Duration::from_millis(abi::limits::ORPHAN_KEEP_MS));
    end_of(owner, &mut world);
    end_of(polls, &mut world);
    assert_eq!(world.remembers(MAIN), [""; 0]);
    assert!(world.told(&ToProxy::ForgetSegment { memory, segment: index }));
    assert!(world.told(&ToProxy::DropDc { dc: MAIN }) && world.done_to(&Effect::DropDc { dc: MAIN }));
    assert!(world.memories.is_empty());
}

#[test]
fn a_dc_that_is_made_like_another_has_its_rules_and_the_file_speaks_for_its_own() {
    let mut world = World::up(Some(50));
    let server = Rule { slots: None, name: None, uid: None, privileges: Privileges::of_level(Level::Server) };
    let rules =
        Rules { rules: Some(vec![Rule { slots: Some(Range { first: Slot(0), count: 1 }), ..server }]) };
    let DcChange::Create { name: batch, nodes, named, slots_per_node, uids, .. } =
        create("batch", &[HERE, FAR])
    else {
        panic!("a create")
    };
    let wish = DcChange::Create { name: batch, nodes, named, slots_per_node, uids, rules: rules.clone() };
    let spec = world.change(&wish).unwrap();
    assert_eq!(world.core.plan.dcs[&spec.id].rules, rules);
    let kept = DcSpec::from_words(&spec.to_words()).expect("what was said is read");
    assert_eq!(kept.rules, rules, "other nodes and the next life have them too");
    let view = world.core.dc_specs().into_iter().find(|d| d.name == "batch").unwrap();
    assert_eq!(view.rules, Some(1));
    // Another node says that everybody of this one is a server: it may, of a DC that no file has.
    let open = DcSpec { revision: 9, by: FAR, rules: Rules::default(), ..spec };
    world.describe(50, &open);
    assert_eq!(world.core.plan.dcs[&open.id].rules, Rules::default());

    world.core.plan.file_rules.insert(name("main"), rules.clone());
    let open = DcSpec { revision: 9, by: FAR, rules: Rules::default(), ..world.main() };
    world.describe(50, &open);
    assert_eq!(world.core.plan.dcs[&MAIN].rules, rules, "of one that the file has, the file speaks");
}

#[test]
fn who_comes_back_has_its_slots_again_and_no_generation_twice() {
    let mut world = World::up(Some(50));
    let (_, before) = world.bind(Some(3));
    world.change(&shrink(&[HERE], true)).unwrap();
    world.change(&grow(&[HERE])).unwrap();
    let (_, after) = world.bind(Some(3));
    assert_eq!(after.slot, before.slot);
    assert!(after.generation > before.generation, "{after} after {before}");
}

#[test]
fn the_endpoints_of_a_node_that_leaves_are_dead_here_and_their_peers_are_rung() {
    let mut world = World::up(Some(50));
    let (conn, own) = world.bind(None);
    let remote = far(16, 1);
    world.directory(50, ChunkKind::Delta, &[(remote, true)]);
    world.ask(conn, Request::Introduce { to: remote });
    let why = world.change(&shrink(&[FAR], false)).unwrap_err();
    assert!(matches!(why, DcRefusal::Inhabited { endpoints: 1, .. }));
    let mut spec = world.main();
    spec.shares.iter_mut().filter(|s| s.node == FAR).for_each(|s| s.left = true);
    (spec.revision, spec.by) = (4, FAR);
    world.describe(50, &spec);
    assert_eq!(world.entry(remote.slot).map(|e| e.state), Some(State::Dead));
    let rung = |e: &Effect| matches!(e, Effect::Ring { doorbell, source: Some(s), .. } if *doorbell == u32::from(own.slot.0) && *s == remote.slot);
    assert!(world.done.iter().any(rung));
    // Its last words come after, and are no wrong.
    world.directory(50, ChunkKind::Delta, &[(remote, false)]);
    assert_eq!(world.core.refused_entries, 0);
    world.directory(50, ChunkKind::Delta, &[(far(17, 1), true)]);
    assert_eq!(world.core.refused_entries, 1, "it has no slots here any more");
}

#[test]
fn the_higher_revision_counts_then_the_higher_node_and_nothing_else_does() {
    let mut world = World::up(Some(50));
    let mine = world.change(&create("batch", &[HERE])).unwrap();
    let with = |revision, by, text: &str| DcSpec { revision, by, name: name(text), ..mine.clone() };
    let is_now = |world: &World| world.core.specs[&mine.id].name.as_str().to_owned();
    world.describe(50, &with(1, NodeId(1), "same"));
    assert_eq!(is_now(&world), "batch");
    world.describe(50, &with(1, FAR, "later"));
    assert_eq!(is_now(&world), "later");
    assert_eq!(world.hello_to(900, "batch"), Reply::Refused(Refusal::NoSuchDc));
    assert!(matches!(world.hello_to(901, "later"), Reply::Welcome { .. }));
    world.describe(50, &with(1, HERE, "batch"));
    assert_eq!(is_now(&world), "later");
    // A node that the cluster does not have, a revision that only files have, bytes that are none.
    let mut strange = with(9, FAR, "strange");
    strange.shares[0].node = NodeId(77);
    world.describe(50, &strange);
    world.describe(50, &with(0, FAR, "file"));
    assert_eq!(is_now(&world), "later");
    let refused = |e: &&Effect| matches!(e, Effect::Note(Note::DcRefused { node: FAR }));
    assert_eq!(world.done.iter().filter(refused).count(), 1);
}

#[test]
fn a_node_that_comes_up_is_told_of_every_change_before_the_endpoints() {
    let mut world = World::up(None);
    world.change(&create("batch", &[HERE])).unwrap();
    world.done.clear();
    world.link(50, LinkState::Up);
    let kinds: Vec<u8> = world
        .done
        .iter()
        .filter_map(|e| match e {
            Effect::ToProxy { message: ToProxy::Directory { .. }, tail, .. } => tail.first().copied(),
            _ => None,
        })
        .collect();
    assert_eq!(kinds, [5, ChunkKind::Begin as u8, ChunkKind::End as u8]);
}

#[test]
fn a_node_without_memory_for_a_dc_stays_out_of_it() {
    let mut world = World::up(Some(50));
    world.no_memory = true;
    world.change(&create("batch", &[HERE])).unwrap();
    assert!(world.done.iter().any(|e| matches!(e, Effect::Note(Note::DcNotMade { .. }))));
    assert_eq!(world.hello_to(900, "batch"), Reply::Refused(Refusal::NoSuchDc));
}

#[test]
fn a_life_begins_with_what_the_one_before_wrote_down() {
    let mut world = World::up(Some(50));
    let made = world.change(&create("batch", &[HERE, FAR])).unwrap();
    let shrunk = world.change(&shrink(&[FAR], false)).unwrap();
    let mut plan = super::tests::plan();
    let strange =
        DcSpec { id: DcId(40), shares: vec![Share { node: NodeId(9), ..made.shares[0] }], ..made.clone() };
    assert_eq!(plan.overlay(vec![made.clone(), shrunk, strange]), 1);
    let names: Vec<&str> = plan.dcs.values().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["main", "batch"]);
    assert_eq!(plan.node_of(MAIN, Slot(16)), None, "the other node stays out of the first DC");
    let gone = Endpoint::new(made.id, made.shares[1].range.first, abi::Generation(1));
    assert_eq!(plan.node_of(gone.dc, gone.slot), Some(FAR));
}
