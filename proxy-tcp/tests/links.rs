//! How links come about, fail to, end and come about again: keys, node ids, versions, restarts, silence.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use abi::courier::LinkState;
use abi::wire::{Kind, Refused, VERSION, crc32c};
use abi::{Incarnation, NodeId};
use fabric::{Completion, Fabric};
use proxy_tcp::{TcpConfig, TcpError, TcpFabric};

use common::{Relay, clock, config, is_lost, is_up, key, listener, network, poll_until, raw};

fn trouble(done: &[Completion], node: u16, wanted: LinkState) -> bool {
    done.iter().any(
        |c| matches!(c, Completion::Trouble { peer: NodeId(n), state } if *n == node && *state == wanted),
    )
}

/// Nodes 1 and 2, each configured by `change`.
fn pair(change: impl Fn(&mut TcpConfig)) -> (TcpFabric, TcpFabric) {
    let (one, two) = (listener(), listener());
    let (one_at, two_at) = (one.local_addr().unwrap(), two.local_addr().unwrap());
    let mut configs = [config(1, &one, &[(2, two_at)]), config(2, &two, &[(1, one_at)])];
    configs.iter_mut().for_each(&change);
    let [first, second] = configs;
    let start = |config, listener| TcpFabric::with_listener(config, listener, Duration::ZERO).unwrap();
    (start(first, one), start(second, two))
}

#[test]
fn a_wrong_key_is_told_at_both_ends() {
    let (mut one, mut two) = pair(|config| config.key = key(config.node.0 as u8));
    let done = poll_until(&mut [&mut one, &mut two], &mut clock(), |done| {
        trouble(&done[0], 2, LinkState::WrongKey) && trouble(&done[1], 1, LinkState::WrongKey)
    });
    assert!(!is_up(&done[0]) && !is_up(&done[1]));
}

#[test]
fn a_node_without_a_key_does_not_talk_to_one_with() {
    let (mut one, mut two) = pair(|config| config.key = key(7).filter(|_| config.node.0 == 1));
    poll_until(&mut [&mut one, &mut two], &mut clock(), |done| {
        trouble(&done[0], 2, LinkState::WrongKey) && trouble(&done[1], 1, LinkState::WrongKey)
    });
}

#[test]
fn two_nodes_without_a_key_talk_on_loopback_addresses() {
    let (mut one, mut two) = pair(|config| config.key = None);
    poll_until(&mut [&mut one, &mut two], &mut clock(), |done| is_up(&done[0]) && is_up(&done[1]));
}

#[test]
fn another_node_than_the_cluster_file_says_is_told() {
    let (one, three) = (listener(), listener());
    let (one_at, three_at) = (one.local_addr().unwrap(), three.local_addr().unwrap());
    let first = config(1, &one, &[(2, three_at)]);
    let third = config(3, &three, &[(1, one_at)]);
    let mut first = TcpFabric::with_listener(first, one, Duration::ZERO).unwrap();
    let mut third = TcpFabric::with_listener(third, three, Duration::ZERO).unwrap();
    poll_until(&mut [&mut first, &mut third], &mut clock(), |done| {
        trouble(&done[0], 2, LinkState::WrongNode) && trouble(&done[1], 1, LinkState::WrongNode)
    });
}

#[test]
fn a_twin_with_our_own_id_is_told() {
    let (one, twin) = (listener(), listener());
    let twin_at = twin.local_addr().unwrap();
    let first = config(1, &one, &[(2, twin_at)]);
    let second = config(1, &twin, &[(2, twin_at)]);
    let mut first = TcpFabric::with_listener(first, one, Duration::ZERO).unwrap();
    let mut second = TcpFabric::with_listener(second, twin, Duration::ZERO).unwrap();
    poll_until(&mut [&mut first, &mut second], &mut clock(), |done| {
        trouble(&done[0], 2, LinkState::WrongNode)
    });
}

#[test]
fn another_wire_version_is_told_at_both_ends() {
    let (one, other) = (listener(), listener());
    let (one_at, other_at) = (one.local_addr().unwrap(), other.local_addr().unwrap());
    let next = |mut bytes: Vec<u8>| {
        bytes[2] = VERSION + 1;
        let sum = crc32c(&bytes[..28]);
        bytes[28..32].copy_from_slice(&sum.to_le_bytes());
        bytes
    };
    // A node 3 of the next version, which this one dials, and a node 1 of it, which dials this one.
    let second = config(2, &one, &[(3, other_at), (1, other_at)]);
    let mut second = TcpFabric::with_listener(second, one, Duration::ZERO).unwrap();
    let acceptor = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        raw::read_frame(&mut stream).unwrap();
        stream.write_all(&next(raw::frame(Kind::Refused, 3, Refused::Version as u64, &[]))).unwrap();
        let mut opener = std::net::TcpStream::connect(one_at).unwrap();
        opener.write_all(&next(raw::hello(1, 2, 1, [0; 32]))).unwrap();
        let (header, _) = raw::read_frame(&mut opener).unwrap();
        assert_eq!((header.kind, header.arg), (Kind::Refused, Refused::Version as u64));
        other
    });
    poll_until(&mut [&mut second], &mut clock(), |done| {
        trouble(&done[0], 3, LinkState::WrongVersion) && trouble(&done[0], 1, LinkState::WrongVersion)
    });
    let _other = acceptor.join().unwrap();
}

#[test]
fn a_restarted_peer_is_connected_again() {
    let (one, two) = (listener(), listener());
    let (one_at, two_at) = (one.local_addr().unwrap(), two.local_addr().unwrap());
    let mut now = clock();
    let second = |incarnation| {
        let mut second = config(2, &two, &[(1, one_at)]);
        second.incarnation = Incarnation(incarnation);
        TcpFabric::with_listener(second, two.try_clone().unwrap(), Duration::ZERO).unwrap()
    };
    let first = config(1, &one, &[(2, two_at)]);
    let mut first = TcpFabric::with_listener(first, one, Duration::ZERO).unwrap();
    for incarnation in 1..4 {
        let mut second = second(incarnation);
        let done =
            poll_until(&mut [&mut first, &mut second], &mut now, |done| is_up(&done[0]) && is_up(&done[1]));
        let up = |c: &Completion| matches!(c, Completion::Up { incarnation: Incarnation(i), .. } if *i == incarnation);
        assert!(done[0].iter().any(up), "{done:?}");
        drop(second);
        poll_until(&mut [&mut first], &mut now, |done| is_lost(&done[0]));
    }
    // An earlier life than the last that was seen is told that it is over.
    let mut ghost = second(1);
    poll_until(&mut [&mut first, &mut ghost], &mut now, |done| trouble(&done[1], 1, LinkState::Fenced));
}

#[test]
fn a_fenced_node_is_told_whoever_opens_and_its_next_life_is_welcome() {
    for (fenced, fencer) in [(1, 2), (2, 1)] {
        let listeners = [listener(), listener()];
        let at = [0, 1].map(|i: usize| listeners[i].local_addr().unwrap());
        let start = |node: u16, incarnation| {
            let own = node as usize - 1;
            let mut config = config(node, &listeners[own], &[(3 - node, at[1 - own])]);
            config.incarnation = Incarnation(incarnation);
            TcpFabric::with_listener(config, listeners[own].try_clone().unwrap(), Duration::ZERO).unwrap()
        };
        let mut now = clock();
        let (mut dead, mut judge) = (start(fenced, 5), start(fencer, 1));
        poll_until(&mut [&mut dead, &mut judge], &mut now, |done| is_up(&done[0]) && is_up(&done[1]));
        judge.fence(NodeId(fenced), Incarnation(5));
        let done = poll_until(&mut [&mut dead, &mut judge], &mut now, |done| {
            trouble(&done[0], fencer, LinkState::Fenced)
        });
        assert!(is_lost(&done[0]) && is_lost(&done[1]) && !is_up(&done[1]));
        drop(dead);
        let mut reborn = start(fenced, 6);
        poll_until(&mut [&mut reborn, &mut judge], &mut now, |done| is_up(&done[0]) && is_up(&done[1]));
    }
}

#[test]
fn silence_is_a_loss_and_the_link_comes_back() {
    let (one, two) = (listener(), listener());
    let (one_at, two_at) = (one.local_addr().unwrap(), two.local_addr().unwrap());
    let relay = Relay::to(two_at);
    let mut configs = [config(1, &one, &[(2, relay.address)]), config(2, &two, &[(1, one_at)])];
    for config in &mut configs {
        config.link_down_after = Duration::from_millis(500);
        config.heartbeat_every = Duration::from_millis(20);
    }
    let [first, second] = configs;
    let mut first = TcpFabric::with_listener(first, one, Duration::ZERO).unwrap();
    let mut second = TcpFabric::with_listener(second, two, Duration::ZERO).unwrap();
    let mut now = clock();
    poll_until(&mut [&mut first, &mut second], &mut now, |done| is_up(&done[0]) && is_up(&done[1]));
    let quiet = now() + Duration::from_millis(1500);
    let mut time = clock();
    let offset = now() - time();
    let done = poll_until(&mut [&mut first, &mut second], &mut now, |_| time() + offset > quiet);
    assert!(!is_lost(&done[0]) && !is_lost(&done[1]), "heartbeats keep an idle link up: {done:?}");
    relay.hold();
    let done = poll_until(&mut [&mut first, &mut second], &mut now, |done| {
        is_lost(&done[0]) && is_lost(&done[1]) && trouble(&done[0], 2, LinkState::Cut)
    });
    assert!(!is_up(&done[0]));
    relay.pass();
    poll_until(&mut [&mut first, &mut second], &mut now, |done| is_up(&done[0]) && is_up(&done[1]));
}

#[test]
fn a_newer_connection_takes_the_place_of_an_old_one() {
    let mut fabrics = network(2, |address| address);
    let mut two = fabrics.pop().unwrap();
    drop(fabrics);
    let address = two.local_addr();
    let peer = std::thread::spawn(move || {
        let old = raw::session(address, 3).unwrap();
        let new = raw::session(address, 3).unwrap();
        assert!(raw::session(address, 2).is_none(), "an earlier life is refused");
        (old, new)
    });
    let ups = |done: &[Completion]| done.iter().filter(|c| matches!(c, Completion::Up { .. })).count();
    let mut now = clock();
    let done = poll_until(&mut [&mut two], &mut now, |done| ups(&done[0]) == 2 && peer.is_finished());
    let order: Vec<_> = done[0].iter().filter(|c| !matches!(c, Completion::Trouble { .. })).collect();
    assert!(
        matches!(order[..], [Completion::Up { .. }, Completion::Lost { .. }, Completion::Up { .. }]),
        "{order:?}"
    );
    let (mut old, _new) = peer.join().unwrap();
    assert_eq!(old.read(&mut [0; 64]).unwrap_or(0), 0, "the old connection is closed");
}

#[test]
fn nobody_there_is_told_as_a_cut() {
    let one = listener();
    let gone = listener().local_addr().unwrap();
    let mut first = config(1, &one, &[(2, gone)]);
    first.link_down_after = Duration::from_millis(100);
    let mut first = TcpFabric::with_listener(first, one, Duration::ZERO).unwrap();
    let done = poll_until(&mut [&mut first], &mut clock(), |done| trouble(&done[0], 2, LinkState::Cut));
    assert_eq!(done[0].len(), 1, "told once: {done:?}");
}

#[test]
fn a_start_that_cannot_work_is_refused_with_a_way_out() {
    let taken = listener();
    let error = |config: TcpConfig| TcpFabric::new(config, Duration::ZERO).err().unwrap();
    let in_use = error(config(1, &taken, &[]));
    assert!(matches!(in_use, TcpError::InUse { .. }));
    assert!(in_use.to_string().contains(&taken.local_addr().unwrap().to_string()), "{in_use}");
    let mut open = config(1, &taken, &[]);
    (open.listen, open.key) = ("0.0.0.0:0".parse().unwrap(), None);
    assert!(matches!(error(open.clone()), TcpError::NoKey { .. }));
    open.listen = "127.0.0.1:0".parse().unwrap();
    let wide = TcpListener::bind("0.0.0.0:0").unwrap();
    assert!(matches!(TcpFabric::with_listener(open, wide, Duration::ZERO), Err(TcpError::NoKey { .. })));
    let foreign = "203.0.113.1:7000".parse().unwrap();
    let mut elsewhere = config(1, &taken, &[]);
    elsewhere.listen = foreign;
    assert!(matches!(error(elsewhere), TcpError::Listen { address, .. } if address == foreign));
    assert!(matches!(error(config(1, &taken, &[(1, foreign)])), TcpError::NodeTwice { node: NodeId(1) }));
    assert!(matches!(error(config(0, &taken, &[])), TcpError::NoSuchNode { node: NodeId(0) }));
    assert!(matches!(
        error(config(1, &taken, &[(1025, foreign)])),
        TcpError::NoSuchNode { node: NodeId(1025) }
    ));
}
