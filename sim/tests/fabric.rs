//! The simulated network is a fabric like any other: it passes the suite.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use abi::Incarnation;
use fabric::Fabric;
use fabric::conformance::{Network, nodes};
use sim::Dice;
use sim::net::{Net, Shared, SimFabric, Temper, lock};

fn network(count: usize) -> Network {
    let ids = nodes(count);
    let (latency_us, posted_max) = ((10, 400), 32);
    let temper = Temper { lose_one_in: 0, resend_one_in: 50, double_one_in: 20, latency_us, posted_max };
    let net = Shared::new(Net::new(&ids, temper, Dice::new(count as u64)).into());
    let ends: BTreeMap<_, _> =
        ids.iter().map(|id| (*id, SimFabric::enter(&net, *id, Incarnation(1)))).collect();
    let mut network =
        Network::counted(ends.into_values().map(|end| Box::new(end) as Box<dyn Fabric + Send>).collect());
    network.flap = Some(Box::new(move |one, other| lock(&net).flap(one, other)));
    network
}

fabric::conformance!(simulated, crate::network);
