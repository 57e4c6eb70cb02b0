//! The RDMA fabric under the conformance suite: by RDMA where there are devices, and by TCP where one end has none, or both.

#[path = "../../proxy-tcp/tests/common/mod.rs"]
mod common;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use abi::NodeId;
use fabric::conformance::Network;
use fabric::{Completion, Desc, Fabric, Piece};
use proxy_rdma::verbs::device_names;
use proxy_rdma::{DeviceError, RdmaConfig, RdmaFabric};
use proxy_tcp::{TcpConfig, TcpFabric};
use shm::map::Mapping;

use common::{Relay, clock, config, listener};

/// For each node the name of its device: the first and the second in turn.
fn devices(count: usize) -> Vec<Option<String>> {
    let names = device_names().unwrap_or_default();
    if names.is_empty() {
        println!("not run: there is no RDMA device here (cargo run -p ci -- rxe gives two): by TCP instead");
    }
    let name = |n: usize| (!names.is_empty()).then(|| names[n % names.len().min(2)].clone());
    (0..count).map(name).collect()
}

/// Fabrics of nodes 1 to `count`, each with its device; `through` may lead a connection elsewhere.
fn fabrics(devices: &[Option<String>], through: impl Fn(SocketAddr) -> SocketAddr) -> Vec<RdmaFabric> {
    let listeners: Vec<_> = devices.iter().map(|_| listener()).collect();
    let addresses: Vec<SocketAddr> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
    let mut all = Vec::new();
    for (i, (listener, device)) in listeners.into_iter().zip(devices).enumerate() {
        let mut peers: Vec<_> = addresses.iter().enumerate().map(|(i, a)| (i as u16 + 1, *a)).collect();
        if i == 0 && peers.len() > 1 {
            peers[1].1 = through(peers[1].1);
        }
        peers.remove(i);
        let mut tcp = config(i as u16 + 1, &listener, &peers);
        // Heartbeats would hide that a wake-up was missed.
        tcp.heartbeat_every = Duration::from_secs(60);
        tcp.link_down_after = Duration::from_secs(80);
        let chosen = device.clone().unwrap_or_else(|| "no such device".into());
        let rdma = RdmaConfig { device: Some(chosen), ..RdmaConfig::default() };
        let make = |offers| TcpFabric::with_listener(TcpConfig { offers, ..tcp }, listener, Duration::ZERO);
        all.push(RdmaFabric::over(make, &rdma).expect("a fabric"));
    }
    all
}

fn network(fabrics: Vec<RdmaFabric>) -> Network {
    let fabrics = fabrics.into_iter().map(|fabric| Box::new(fabric) as _).collect();
    Network { fabrics, clock: clock(), flap: None }
}

fn straight(count: usize) -> Network {
    network(fabrics(&devices(count), |address| address))
}

fn relayed(count: usize) -> Network {
    let relay = OnceLock::new();
    let made = fabrics(&devices(count), |address| relay.get_or_init(|| Relay::to(address)).address);
    let relay: Relay = relay.into_inner().unwrap();
    Network { flap: Some(Box::new(move |_, _| relay.kill())), ..network(made) }
}

/// The first node alone has a device.
fn one_sided(count: usize) -> Network {
    let mut devices = devices(count);
    devices[1..].fill(None);
    network(fabrics(&devices, |address| address))
}

fabric::conformance!(rdma, super::straight);
fabric::conformance!(rdma_relayed, super::relayed);
fabric::conformance!(tcp_instead, |count| super::network(super::fabrics(&vec![None; count], |a| a)));
fabric::conformance!(one_has_a_device, super::one_sided);

/// Why a fabric of this configuration has no device.
fn trouble(config: RdmaConfig) -> Option<String> {
    let listener = listener();
    let tcp = self::config(1, &listener, &[]);
    let make = |offers| TcpFabric::with_listener(TcpConfig { offers, ..tcp }, listener, Duration::ZERO);
    let fabric = RdmaFabric::over(make, &config).expect("a fabric, by TCP alone");
    fabric.trouble().map(|why| match why {
        DeviceError::Verbs(why) => format!("verbs: {why}"),
        DeviceError::NoneUp { known } => format!("none up: {known}"),
        DeviceError::NoGid { .. } => format!("no gid: {why}"),
    })
}

#[test]
fn a_device_that_cannot_be_is_named_and_all_goes_by_tcp() {
    let config = RdmaConfig::default();
    let trouble_with = |config| trouble(config).expect("no device");
    if device_names().unwrap_or_default().is_empty() {
        assert!(trouble_with(config).contains("dvs doctor"));
        return println!("not run: there is no RDMA device here");
    }
    assert_eq!(trouble(config.clone()), None, "the first that is up is found");
    assert!(trouble_with(RdmaConfig { port: 9, ..config.clone() }).starts_with("none up: rxe"));
    let stranger = RdmaConfig { device: Some("mlx9".into()), ..config.clone() };
    assert!(trouble_with(stranger).contains("there is no RDMA device mlx9: there is rxe0"));
    let nowhere = RdmaConfig { gid_index: Some(200), ..config };
    assert!(trouble_with(nowhere).contains("has no address 200"));
}

/// Polls both until it is so of what came.
fn until(
    both: &mut [RdmaFabric],
    came: &mut [Vec<Completion>; 2],
    so: impl Fn(&[Vec<Completion>; 2]) -> bool,
) {
    let begun = Instant::now();
    let mut done = Vec::with_capacity(64);
    while !so(came) {
        assert!(begun.elapsed() < Duration::from_secs(30), "does not come about: {came:?}");
        for (fabric, came) in both.iter_mut().zip(came.iter_mut()) {
            fabric.poll(begun.elapsed(), &mut done);
            came.append(&mut done);
        }
    }
}

#[test]
fn an_extent_is_read_by_the_device_and_copied_by_nobody() {
    const LEN: usize = 5 << 20;
    let devices = devices(2);
    if devices[0].is_none() {
        return;
    }
    let mut both = fabrics(&devices, |address| address);
    let mut came = [Vec::new(), Vec::new()];
    let is_up = |came: &Vec<Completion>| came.iter().any(|c| matches!(c, Completion::Up { .. }));
    until(&mut both, &mut came, |came| came.iter().all(is_up));
    assert_eq!(both.iter().map(|fabric| fabric.carried().sessions).collect::<Vec<_>>(), [1, 1]);
    let maps: [Arc<Mapping>; 2] = [(); 2].map(|()| Mapping::heap(LEN + (64 << 10)));
    let pattern: Vec<u8> = (0..LEN).map(|at| (at * 13 + at / 997) as u8).collect();
    maps[0].write_from(0, &pattern).expect("inside");
    let regions = [0, 1].map(|at: usize| both[at].attach(&maps[at]));
    let buffer = Piece { region: regions[1], offset_bytes: LEN as u64, len_bytes: 64 << 10 };
    both[1].post_recv(&[buffer]);
    let part = |offset: usize, len: usize| Piece {
        region: regions[0],
        offset_bytes: offset as u64,
        len_bytes: len as u32,
    };
    let pieces = [part(0, 1 << 20), part(1 << 20, LEN - (1 << 20))];
    let desc = Desc { token: 9, head: b"an extent", pieces: &pieces, bulk: true, flow: 0 };
    assert_eq!(both[0].post_send(NodeId(2), &[desc]), 1);
    let announced = |came: &[Vec<Completion>; 2]| {
        came[1].iter().find_map(|c| match c {
            Completion::Announced { token, .. } => Some(*token),
            _ => None,
        })
    };
    until(&mut both, &mut came, |came| announced(came).is_some());
    let into = Piece { region: regions[1], offset_bytes: 0, len_bytes: LEN as u32 };
    both[1].accept(NodeId(1), announced(&came).expect("announced"), into);
    until(&mut both, &mut came, |came| {
        came[1].iter().any(|c| matches!(c, Completion::BulkReceived { .. }))
            && came[0].iter().any(|c| matches!(c, Completion::Sent { token: 9, .. }))
    });
    let mut seen = vec![0; LEN];
    maps[1].read_into(0, &mut seen).expect("inside");
    assert!(seen == pattern, "what was read");
    assert_eq!((both[1].carried().read_bytes, both[0].carried().copied_bytes), (LEN as u64, 0));
}
