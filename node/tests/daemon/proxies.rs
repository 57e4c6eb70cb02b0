//! The courier protocol, with the test in the proxy's place.

use abi::courier::{FromProxy, LinkState, ToProxy};
use abi::member::{Refusal, Reply, Request, SegmentKind, VERSION};
use abi::table::State;
use abi::{Endpoint, Generation, Incarnation, Slot, doorbell, side};
use node::core::{Chunk, ChunkKind, DirectoryEntry, ProxyView};

use crate::client::{Client, DC, House, Member, PATIENCE, eventually, house, name_of, read_peer};
use crate::fake::{FAR, FakeProxy, TWO, fakes};

/// An endpoint in the other node's range.
fn far(slot: u16, generation: u32) -> Endpoint {
    Endpoint::new(DC, Slot(slot), Generation(generation))
}

fn delta(endpoint: Endpoint, bound: bool, name: &str) -> Chunk {
    let entries = vec![DirectoryEntry { endpoint, bound, name: name_of(name), uid: 0, private: false }];
    Chunk { kind: ChunkKind::Delta, version: 1, entries }
}

/// A proxy whose link is up and that has told of one remote endpoint, known to the local one.
fn told(proxy: &FakeProxy, a: &Member, remote: Endpoint) {
    proxy.link(50, LinkState::Up);
    proxy.directory(50, &delta(remote, true, "far"));
    eventually("the table knows it", || a.client.entry(remote.slot).state == State::Bound);
}

fn proxies(house: &House) -> Vec<ProxyView> {
    let socket = house.daemon.admin_socket();
    let answer = node::admin::call(&socket, &node::admin::Request::Proxies, PATIENCE).unwrap();
    serde_json::from_value(answer["proxies"].clone()).unwrap()
}

fn introduced(a: &Member) -> (abi::member::Introduction, Vec<std::os::fd::OwnedFd>, bool) {
    let mut pulled = None;
    eventually("there is something to pull", || {
        pulled = match a.pull() {
            (Reply::Introduced(i), fds) => Some((i, fds, false)),
            (Reply::Moved(i), fds) => Some((i, fds, true)),
            (Reply::Nothing, _) => None,
            (other, _) => panic!("{other:?}"),
        };
        pulled.is_some()
    });
    pulled.unwrap()
}

#[test]
fn an_introduction_to_a_remote_endpoint_leads_to_the_proxy() {
    let (starter, started) = fakes();
    let house = house(TWO, starter);
    let a = Member::bind(house.daemon.member_socket(), None, "a");
    let remote = far(9, 7);
    assert_eq!(a.client.refused(Request::Introduce { to: remote }), Refusal::NoSuchEndpoint);
    let proxy = FakeProxy::up(&started);
    told(&proxy, &a, remote);
    let entry = a.client.entry(remote.slot);
    assert_eq!((entry.node, entry.proxy, entry.generation), (FAR, 1, remote.generation));
    let (at_a, fds) = a.introduce(remote);
    assert!(at_a.proxied && fds.len() == 2);
    assert_eq!((at_a.memory, at_a.doorbell as usize), (proxy.memory, doorbell::of_proxy(1)));
    let (attach, attach_fds) = proxy.hear_attach();
    assert_eq!((attach.local, attach.remote, attach.node), (a.endpoint, remote, FAR));
    assert_eq!((attach.own_segment, attach.own_side), (at_a.segment, at_a.side));
    assert_eq!((attach.memory, attach.segment, attach.side), (a.memory, at_a.own_segment, at_a.own_side));
    assert_eq!((attach.doorbell as usize, attach_fds.len()), (doorbell::of_slot(a.endpoint.slot), 1));
    proxy.write(attach.own_side, side::LANE, 99);
    assert_eq!(read_peer(&at_a, &fds, side::LANE), 99);
    let lookup = Request::LookupName { name: name_of("far") };
    assert_eq!(a.client.ask(lookup).0, Reply::Found { endpoint: remote });
}

#[test]
fn a_remote_endpoint_opens_a_pair_and_the_local_one_pulls_it() {
    let (starter, started) = fakes();
    let house = house(TWO, starter);
    let a = Member::bind(house.daemon.member_socket(), None, "");
    let proxy = FakeProxy::up(&started);
    let remote = far(8, 3);
    told(&proxy, &a, remote);
    proxy.say(FromProxy::RemoteOpen { local: a.endpoint, remote, node: FAR });
    let (attach, _) = proxy.hear_attach();
    let (at_a, _, moved) = introduced(&a);
    assert!(at_a.proxied && !moved);
    assert_eq!((at_a.peer, at_a.side, at_a.own_side), (remote, attach.own_side, attach.side));
    // Asked again by one whose `Attach` is on its way: not answered twice.
    proxy.say(FromProxy::RemoteOpen { local: a.endpoint, remote, node: FAR });
    proxy.say(FromProxy::WantSegment { memory: attach.memory, segment: 1 });
    let (memory, segment) = proxy.hear_until(|m| match m {
        ToProxy::PeerSegment { memory, segment, .. } => Some((*memory, *segment)),
        ToProxy::Attach { .. } | ToProxy::Refuse { .. } => panic!("{m:?}"),
        _ => None,
    });
    assert_eq!((memory, segment), (a.memory, 1));
}

#[test]
fn implausible_opens_are_refused() {
    let (starter, started) = fakes();
    let house = house(TWO, starter);
    let a = Member::bind(house.daemon.member_socket(), None, "");
    let proxy = FakeProxy::up(&started);
    proxy.link(50, LinkState::Up);
    let stale = Endpoint { generation: Generation(1), ..a.endpoint };
    let beside = far(3, 1);
    for (local, remote) in [(stale, far(8, 1)), (a.endpoint, beside), (a.endpoint, far(900, 1))] {
        proxy.say(FromProxy::RemoteOpen { local, remote, node: FAR });
        let refused = proxy.hear_until(|m| match m {
            ToProxy::Refuse { local, remote, why } => Some((*local, *remote, *why)),
            ToProxy::Attach { .. } => panic!("attached"),
            _ => None,
        });
        assert_eq!(refused, (local, remote, Refusal::NoSuchEndpoint));
    }
}

#[test]
fn a_pair_moves_to_the_successor_of_a_dead_proxy() {
    let (starter, started) = fakes();
    let house = house(TWO, starter);
    let a = Member::bind(house.daemon.member_socket(), None, "");
    let proxy = FakeProxy::up(&started);
    let remote = far(9, 7);
    told(&proxy, &a, remote);
    let (before, _) = a.introduce(remote);
    let old_memory = proxy.memory;
    proxy.die();
    let successor = FakeProxy::up(&started);
    let (attach, _) = successor.hear_attach();
    assert_eq!((attach.local, attach.remote, attach.side), (a.endpoint, remote, before.own_side));
    let (after, fds, moved) = introduced(&a);
    assert!(moved && after.proxied);
    assert_eq!(
        (after.peer, after.own_segment, after.own_side),
        (remote, before.own_segment, before.own_side)
    );
    assert!(after.memory == successor.memory && after.memory != old_memory);
    successor.write(attach.own_side, side::LANE, 6);
    assert_eq!(read_peer(&after, &fds, side::LANE), 6);
    assert_eq!(a.pull().0, Reply::Nothing);
    assert_eq!(proxies(&house)[0].restarts, 1);
}

#[test]
fn a_proxy_hears_of_a_local_end_and_both_sides_come_back() {
    let (starter, started) = fakes();
    let house = house(TWO, starter);
    let socket = house.daemon.member_socket();
    let a = Member::bind(socket.clone(), Some(Slot(0)), "");
    let proxy = FakeProxy::up(&started);
    let remote = far(9, 7);
    told(&proxy, &a, remote);
    let (before, _) = a.introduce(remote);
    let ended = a.endpoint;
    drop(a);
    let heard = proxy.hear_until(|m| match m {
        ToProxy::LocalEnded { endpoint } => Some(*endpoint),
        _ => None,
    });
    assert_eq!(heard, ended);
    proxy.say(FromProxy::Detached { local: ended, remote });
    let b = Member::bind(socket, Some(Slot(0)), "");
    eventually("the proxy's side is free again", || b.introduce(remote).0.side == before.side);
}

#[test]
fn a_recycled_pair_is_detached_before_its_sides_are_used_again() {
    let (starter, started) = fakes();
    let house = house(TWO, starter);
    let a = Member::bind(house.daemon.member_socket(), None, "");
    let proxy = FakeProxy::up(&started);
    let remote = far(9, 7);
    told(&proxy, &a, remote);
    let (before, _) = a.introduce(remote);
    proxy.directory(50, &delta(remote, false, "far"));
    eventually("the table says dead", || a.client.entry(remote.slot).state == State::Dead);
    assert!(a.client.rung_by(a.endpoint, remote.slot));
    assert_eq!(a.client.ask(Request::Recycled { peer: remote }).0, Reply::Done);
    let detach = proxy.hear_until(|m| match m {
        ToProxy::Detach { local, remote } => Some((*local, *remote)),
        _ => None,
    });
    assert_eq!(detach, (a.endpoint, remote));
    let again = far(9, 8);
    proxy.directory(50, &delta(again, true, ""));
    eventually("it is bound again", || a.client.entry(again.slot).generation == again.generation);
    proxy.say(FromProxy::Detached { local: a.endpoint, remote });
    proxy.say(FromProxy::RemoteOpen { local: a.endpoint, remote: again, node: FAR });
    let (attach, _) = proxy.hear_attach();
    assert_eq!((attach.own_side, attach.side), (before.side, before.own_side), "the lowest free ones");
}

#[test]
fn a_node_is_dead_after_its_time_and_its_members_hear_of_it() {
    let (starter, started) = fakes();
    let house = house(TWO, starter);
    let a = Member::bind(house.daemon.member_socket(), None, "");
    let proxy = FakeProxy::up(&started);
    let remote = far(9, 7);
    told(&proxy, &a, remote);
    a.introduce(remote);
    proxy.link(50, LinkState::Cut);
    let dead = proxy.hear_until(|m| match m {
        ToProxy::NodeDead { node, incarnation } => Some((*node, *incarnation)),
        _ => None,
    });
    assert_eq!(dead, (FAR, Incarnation(50)));
    assert_eq!(a.client.entry(remote.slot).state, State::Bound, "not before the proxy has closed");
    proxy.say(FromProxy::NodeClosed { node: FAR });
    eventually("its endpoints are dead", || a.client.entry(remote.slot).state == State::NodeDead);
    eventually("the pair is rung", || a.client.rung_by(a.endpoint, remote.slot));
    proxy.link(50, LinkState::Up);
    proxy.directory(50, &delta(far(10, 1), true, ""));
    let told_again = proxy.hear_until(|m| match m {
        ToProxy::NodeDead { incarnation, .. } => Some(*incarnation),
        _ => None,
    });
    assert_eq!(told_again, Incarnation(50), "the dead stay dead");
    proxy.link(51, LinkState::Up);
    proxy.directory(51, &delta(far(11, 1), true, ""));
    eventually("a new life is heard", || a.client.entry(Slot(11)).state == State::Bound);
    assert_eq!(a.client.entry(Slot(10)).state, State::Free, "the words of the old one were not");
}

#[test]
fn a_cut_that_heals_in_time_is_no_death() {
    let (starter, started) = fakes();
    let house = house(TWO, starter);
    let a = Member::bind(house.daemon.member_socket(), None, "");
    let proxy = FakeProxy::up(&started);
    let remote = far(9, 7);
    told(&proxy, &a, remote);
    for _ in 0..4 {
        proxy.link(50, LinkState::Cut);
        std::thread::sleep(std::time::Duration::from_millis(100));
        proxy.link(50, LinkState::Up);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(a.client.entry(remote.slot).state, State::Bound);
}

#[test]
fn a_link_that_comes_up_is_sent_the_whole_directory_then_changes() {
    let (starter, started) = fakes();
    let house = house(TWO, starter);
    let socket = house.daemon.member_socket();
    let a = Member::bind(socket.clone(), None, "a");
    let proxy = FakeProxy::up(&started);
    proxy.link(50, LinkState::Up);
    let chunks: Vec<Chunk> = (0..3).map(|_| proxy.hear_directory()).collect();
    let kinds: Vec<ChunkKind> = chunks.iter().map(|c| c.kind).collect();
    assert_eq!(kinds, [ChunkKind::Begin, ChunkKind::Part, ChunkKind::End]);
    let uid = rustix::process::getuid().as_raw();
    let name = name_of("a");
    assert_eq!(
        chunks[1].entries,
        [DirectoryEntry { endpoint: a.endpoint, bound: true, name, uid, private: false }]
    );
    let b = Member::bind(socket, None, "");
    let bound = proxy.hear_directory();
    assert_eq!((bound.kind, bound.entries[0].endpoint), (ChunkKind::Delta, b.endpoint));
    let gone = b.endpoint;
    drop(b);
    let ended = proxy.hear_directory();
    assert_eq!((ended.entries[0].endpoint, ended.entries[0].bound), (gone, false));
}

#[test]
fn a_fenced_node_begins_anew() {
    let (starter, started) = fakes();
    let house = house(TWO, starter);
    let a = Member::bind(house.daemon.member_socket(), None, "");
    let proxy = FakeProxy::up(&started);
    let first = proxy.options.incarnation;
    proxy.link(50, LinkState::Up);
    proxy.say(FromProxy::Fenced { by: FAR });
    eventually("its endpoints have ended", || a.client.entry(a.endpoint.slot).state == State::Dead);
    assert_eq!(a.client.refused(Request::Pull), Refusal::Fenced);
    let successor = FakeProxy::up(&started);
    assert_eq!(successor.options.incarnation.0, first.0 + 1);
    assert!(proxy.is_killed());
    let (reply, fds) = a.client.ask(Request::Bind { slot: None, name: name_of("again"), private: false });
    Member::bound(a.client, reply, &fds);
}

#[test]
fn a_proxy_that_stalls_is_killed_and_replaced() {
    let (starter, started) = fakes();
    let house = house(TWO, starter);
    let mut proxy = FakeProxy::up(&started);
    proxy.lively = false;
    let successor = FakeProxy::up(&started);
    assert!(proxy.is_killed() && !successor.is_killed());
    drop(house);
}

#[test]
fn hello_with_a_wrong_token_and_garbage_cost_the_proxy() {
    let (starter, started) = fakes();
    let _house = house(TWO, starter);
    let forged = FakeProxy::next(&started);
    forged.say(FromProxy::Hello { version: VERSION, token: [1, 2] });
    let garbage = FakeProxy::up(&started);
    assert!(forged.is_killed());
    garbage.say_bytes(&[7; 128]);
    let silent = FakeProxy::up(&started);
    assert!(garbage.is_killed());
    silent.say_bytes(&[1]);
    FakeProxy::up(&started);
    assert!(silent.is_killed());
}

#[test]
fn a_proxy_gets_more_pool_within_its_limit() {
    let (starter, started) = fakes();
    let _house = house(TWO, starter);
    let proxy = FakeProxy::up(&started);
    let want = |len_bytes| {
        proxy.say(FromProxy::NewSegment { memory: proxy.memory, kind: SegmentKind::Pool, len_bytes })
    };
    want(1 << 40);
    want(4 << 20);
    let given = proxy.hear_until(|m| match m {
        ToProxy::Segment { index, len_bytes, .. } => Some((*index, *len_bytes)),
        _ => None,
    });
    assert_eq!(given, (2, 4 << 20));
}

#[test]
fn operators_stop_and_restart_proxies() {
    let (starter, started) = fakes();
    let house = house(TWO, starter);
    let proxy = FakeProxy::up(&started);
    let order = |request| node::admin::call(&house.daemon.admin_socket(), &request, PATIENCE).unwrap();
    order(node::admin::Request::ProxyStop { name: "tcp".into() });
    proxy.hear_until(|m| (*m == ToProxy::Stop).then_some(()));
    proxy.die();
    eventually("it is stopped", || proxies(&house)[0].state == "stopped");
    order(node::admin::Request::ProxyRestart { name: "tcp".into() });
    let proxy = FakeProxy::up(&started);
    proxy.link(50, LinkState::Up);
    eventually("it is up", || proxies(&house)[0].state == "up" && proxies(&house)[0].pid == Some(4711));
    order(node::admin::Request::ProxyRestart { name: "tcp".into() });
    FakeProxy::up(&started);
    assert!(proxy.is_killed());
}

#[test]
fn a_program_that_ends_at_once_is_started_again_and_leaves_no_zombie() {
    let starter = node::ProcessStarter::new("/bin/false".into(), None);
    let house = house(TWO, Box::new(starter));
    eventually("it was started again and again", || proxies(&house)[0].restarts >= 4);
    house.daemon.stop().unwrap();
    let mut zombies = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let mine = format!(") Z {}", std::process::id());
        zombies.extend((stat.contains("(false)") && stat.contains(&mine)).then_some(stat));
    }
    assert!(zombies.is_empty(), "{zombies:?}");
}

#[test]
fn members_wait_while_there_is_no_proxy() {
    let (starter, started) = fakes();
    let house = house(TWO, starter);
    let a = Member::bind(house.daemon.member_socket(), None, "");
    let proxy = FakeProxy::up(&started);
    let remote = far(9, 7);
    told(&proxy, &a, remote);
    proxy.die();
    let next = FakeProxy::next(&started);
    assert_eq!(a.client.refused(Request::Introduce { to: remote }), Refusal::NotReady);
    drop(next);
    let client = Client::hello(house.daemon.member_socket());
    assert_eq!(client.entry(remote.slot).state, State::Bound, "a proxy's end is no node's death");
}
