//! Rules at work: masks in introductions, opens of the far end, and whom an end is told.

use abi::{Allowed, Kinds, Level};

use super::*;

fn rule(level: Level) -> Rule {
    Rule { slots: None, name: None, uid: None, privileges: Privileges::of_level(level) }
}

fn slots(first: u16, count: u16) -> Option<Range> {
    Some(Range { first: Slot(first), count })
}

fn ruled(rules: Vec<Rule>) -> World {
    let mut world = World::up(None);
    world.core.plan.dcs.get_mut(&DC).unwrap().rules = Rules { rules: Some(rules) };
    world.link(50, LinkState::Up);
    world
}

/// A server is whoever calls itself `kv` on the other node, and slots 0 and 1 here.
fn servers() -> Vec<Rule> {
    let named = Rule { slots: slots(16, 8), name: Some(Name::new("kv").unwrap()), ..rule(Level::Server) };
    vec![Rule { slots: slots(0, 2), ..rule(Level::Server) }, named]
}

fn said(world: &mut World, endpoint: Endpoint, bound: bool, name: &str) {
    let name = if name.is_empty() { Name::NONE } else { Name::new(name).unwrap() };
    let chunk = Chunk {
        kind: ChunkKind::Delta,
        version: 1,
        entries: vec![DirectoryEntry { endpoint, bound, name, uid: 5, private: false }],
    };
    let message = FromProxy::Directory { node: FAR, incarnation: Incarnation(50) };
    world.done.clear();
    world.step(Input::ProxySaid { proxy: 1, message: Some(message), tail: chunk.to_bytes() });
}

fn allowed(reply: Reply) -> Allowed {
    match reply {
        Reply::Introduced(introduction) => introduction.allowed,
        other => panic!("not introduced: {other:?}"),
    }
}

#[test]
fn both_ends_of_a_pair_are_told_the_same_masks_turned() {
    let mut world = ruled(servers());
    let (server_conn, server) = world.bind(Some(0));
    let (user_conn, user) = world.bind(Some(5));
    let of_user = allowed(world.ask(user_conn, Request::Introduce { to: server }));
    let expected = Allowed { to_peer: Kinds::SENDREC.and(Kinds::CONFIRM), from_peer: Kinds::ALL };
    assert_eq!(of_user, expected);
    assert_eq!(allowed(world.ask(server_conn, Request::Pull)), expected.turned());
    assert_eq!(world.table[&user.slot].level, Level::User);
    let known = world.ask(user_conn, Request::Privileges);
    assert_eq!(known, Reply::Privileges { level: Level::User, calls: Kinds::SENDREC, warn: None });
}

#[test]
fn two_users_are_introduced_to_follow_a_call_and_for_nothing_else() {
    let mut world = ruled(servers());
    let (conn, _) = world.bind(Some(5));
    let (_, other) = world.bind(Some(6));
    let refused = Reply::Refused(Refusal::NotPermitted);
    assert_eq!(world.ask(conn, Request::Introduce { to: other }), refused);
    let both = Allowed { to_peer: Kinds::CONFIRM, from_peer: Kinds::CONFIRM };
    assert_eq!(allowed(world.ask(conn, Request::Follow { to: other })), both);
}

#[test]
fn a_remote_endpoint_is_what_this_nodes_file_makes_of_what_its_own_daemon_says() {
    let mut world = ruled(servers());
    let (conn, _) = world.bind(Some(5));
    for (slot, name, level) in [(16, "kv", Level::Server), (17, "", Level::User), (24, "kv", Level::User)] {
        said(&mut world, far(slot, 1), true, name);
        assert_eq!(world.table[&Slot(slot)].level, level, "slot {slot}");
        let answer = world.ask(conn, Request::Introduce { to: far(slot, 1) });
        match level {
            Level::Server => assert_eq!(allowed(answer).from_peer, Kinds::ALL),
            _ => assert_eq!(answer, Reply::Refused(Refusal::NotPermitted)),
        }
        said(&mut world, far(slot, 1), false, name);
    }
}

#[test]
fn a_far_end_that_opens_before_it_is_known_waits_until_it_is() {
    let mut world = ruled(servers());
    let (_, local) = world.bind(Some(5));
    let remote = far(16, 3);
    world.done.clear();
    world.said(FromProxy::RemoteOpen { local, remote, node: FAR });
    let told = |world: &World| {
        let told = world.told_proxy();
        told.into_iter().find(|m| matches!(m, ToProxy::Attach { .. } | ToProxy::Refuse { .. }))
    };
    assert_eq!(told(&world), None);
    said(&mut world, remote, true, "kv");
    assert!(matches!(told(&world), Some(ToProxy::Attach { .. })));
    assert_eq!(world.core.locals[&local].links[&remote].allowed.from_peer, Kinds::ALL);

    let overtaken = far(17, 3);
    world.said(FromProxy::RemoteOpen { local, remote: overtaken, node: FAR });
    said(&mut world, far(17, 4), true, "");
    let why = Refusal::NoSuchEndpoint;
    assert_eq!(told(&world), Some(ToProxy::Refuse { local, remote: overtaken, why }));
    assert!(world.core.opens.is_empty());
}

#[test]
fn the_burial_of_an_incarnation_leaves_what_the_next_one_has_asked_for() {
    let mut world = ruled(servers());
    let (_, local) = world.bind(Some(0));
    let (of_dead, of_next) = (far(16, 1), far(17, 2));
    world.said(FromProxy::RemoteOpen { local, remote: of_dead, node: FAR });
    // The session of the next one stands, and opens, before the proxy has answered that the dead one is closed.
    world.obeys = false;
    world.link(51, LinkState::Up);
    world.said(FromProxy::RemoteOpen { local, remote: of_next, node: FAR });
    world.said(FromProxy::NodeClosed { node: FAR });
    let waiting: Vec<_> = world.core.opens.keys().copied().collect();
    assert_eq!(waiting, [(local, of_next)]);
    world.done.clear();
    world.directory(51, ChunkKind::Delta, &[(of_next, true)]);
    let attached = world
        .told_proxy()
        .into_iter()
        .any(|m| matches!(m, ToProxy::Attach { attach } if attach.remote == of_next));
    assert!(attached, "{:?}", world.told_proxy());
}

#[test]
fn a_far_end_that_may_send_nothing_at_all_is_refused() {
    let mut mute = rule(Level::User);
    mute.privileges.calls = Kinds::NONE;
    let mut world = ruled(vec![mute]);
    let (_, local) = world.bind(Some(5));
    world.done.clear();
    world.said(FromProxy::RemoteOpen { local, remote: far(16, 1), node: FAR });
    let why = Refusal::NotPermitted;
    assert!(world.told_proxy().contains(&ToProxy::Refuse { local, remote: far(16, 1), why }));
}

#[test]
fn ends_here_and_there_and_of_a_whole_node_are_told_to_the_warn_target() {
    let mut watched = rule(Level::Server);
    watched.privileges.warn = Some(Slot(0));
    let mut world = ruled(vec![watched]);
    let (conn, me) = world.bind(Some(0));
    let rung = |world: &World| {
        world.done.iter().any(|e| {
            matches!(e, Effect::Ring { doorbell, pull: true, .. }
            if *doorbell == abi::doorbell::of_slot(me.slot) as u32)
        })
    };
    let (other_conn, other) = world.bind(Some(1));
    world.done.clear();
    world.step(Input::Disconnected { conn: other_conn });
    assert!(rung(&world));
    for (endpoint, bound) in [(far(16, 1), true), (far(16, 1), false), (far(17, 1), true), (far(17, 2), true)]
    {
        said(&mut world, endpoint, bound, "");
    }
    world.link(50, LinkState::Cut);
    world.until(ms(30_000));
    for endpoint in [other, far(16, 1), far(17, 2)] {
        assert_eq!(world.ask(conn, Request::Pull), Reply::Warned { endpoint }, "the last of each slot");
    }
    assert_eq!(world.ask(conn, Request::Pull), Reply::Nothing);
}
