//! The TCP fabric under the conformance suite, on loopback addresses; its sessions are broken by a relay, and faults are
//! wrapped around it.

mod common;

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use fabric::Fabric;
use fabric::conformance::{Network, nodes};
use fabric::faulty::{Cut, Delayed, Switch};
use proxy_tcp::TcpFabric;

use common::Relay;

fn boxed(ends: impl IntoIterator<Item = impl Fabric + Send + 'static>) -> Vec<Box<dyn Fabric + Send>> {
    ends.into_iter().map(|end| Box::new(end) as _).collect()
}

fn timed(fabrics: Vec<Box<dyn Fabric + Send>>) -> Network {
    Network { fabrics, clock: common::clock(), flap: None }
}

fn straight(count: usize) -> Vec<TcpFabric> {
    quiet(count, |address| address)
}

/// Without heartbeats, which would hide that a wake-up was missed.
fn quiet(count: usize, through: impl Fn(SocketAddr) -> SocketAddr) -> Vec<TcpFabric> {
    common::configured_network(count, through, |config| {
        config.heartbeat_every = Duration::from_secs(60);
        config.link_down_after = Duration::from_secs(80);
    })
}

/// Both ends pack, or the first alone wants to.
#[cfg(feature = "lz4")]
fn packing(count: usize, all: bool) -> Vec<TcpFabric> {
    common::configured_network(
        count,
        |address| address,
        |config| {
            config.heartbeat_every = Duration::from_secs(60);
            config.link_down_after = Duration::from_secs(80);
            if all || config.node.0 == 1 {
                config.packing = proxy_tcp::Packing::Lz4;
            }
        },
    )
}

fn relayed(count: usize) -> Network {
    let relay = OnceLock::new();
    let fabrics = boxed(quiet(count, |address| relay.get_or_init(|| Relay::to(address)).address));
    let relay = relay.into_inner().unwrap();
    Network { flap: Some(Box::new(move |_, _| relay.kill())), ..timed(fabrics) }
}

fn delayed(count: usize) -> Network {
    let ends = straight(count).into_iter().zip(7..);
    timed(boxed(ends.map(|(end, seed)| Delayed::new(end, seed, Duration::from_micros(300)))))
}

fn cut(count: usize) -> Network {
    let switch = Switch::new();
    let ends = straight(count).into_iter().zip(nodes(count));
    let fabrics = boxed(ends.map(|(end, node)| Cut::new(end, node, &switch)));
    Network { flap: Some(Box::new(move |one, other| switch.flap(one, other))), ..timed(fabrics) }
}

fabric::conformance!(tcp, |count| super::timed(super::boxed(super::straight(count))));
fabric::conformance!(tcp_relayed, super::relayed);
fabric::conformance!(delayed_tcp, super::delayed);
#[cfg(feature = "lz4")]
fabric::conformance!(tcp_lz4, |count| super::timed(super::boxed(super::packing(count, true))));
#[cfg(feature = "lz4")]
fabric::conformance!(tcp_lz4_at_one_end, |count| super::timed(super::boxed(super::packing(count, false))));
fabric::conformance!(cut_tcp, super::cut);
