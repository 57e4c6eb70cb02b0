//! The fault middlewares under the conformance suite, around both kinds of loopback and around one another.

use std::time::Duration;

use abi::NodeId;
use fabric::Fabric;
use fabric::conformance::{Network, nodes};
use fabric::faulty::{Cut, Delayed, Lossy, Switch};
use fabric::loopback::{Loopback, Mode};

/// Every end of a loopback network wrapped, with a switch to break sessions by.
fn network<F: Fabric + Send + 'static>(
    count: usize,
    mode: Mode,
    wrap: impl Fn(Loopback, NodeId, &Switch) -> F,
) -> Network {
    let (ids, switch) = (nodes(count), Switch::new());
    let ends = Loopback::network(&ids, mode).into_iter().zip(ids);
    let boxed = ends.map(|(end, id)| Box::new(wrap(end, id, &switch)) as _).collect();
    let flap = move |one, other| switch.flap(one, other);
    Network { flap: Some(Box::new(flap)), ..Network::counted(boxed) }
}

fn cut(count: usize, mode: Mode) -> Network {
    network(count, mode, Cut::new)
}

fn lossy(count: usize, mode: Mode) -> Network {
    network(count, mode, |end, id, switch| Lossy::new(end, id, switch, 11, 40))
}

fn delayed(count: usize, mode: Mode) -> Network {
    let wrap = |end, id: NodeId, _: &Switch| Delayed::new(end, id.0 as u64, Duration::from_millis(5));
    Network { flap: None, ..network(count, mode, wrap) }
}

/// A breaker within a breaker: each has a switch of its own.
fn all(count: usize) -> Network {
    let within = Switch::new();
    network(count, Mode::OneSided, |end, id, switch| {
        let lossy = Lossy::new(Cut::new(end, id, &within), id, switch, 5, 30);
        Delayed::new(lossy, id.0 as u64, Duration::from_millis(3))
    })
}

fabric::conformance!(cut_eager, |count| super::cut(count, super::Mode::Eager));
fabric::conformance!(cut_one_sided, |count| super::cut(count, super::Mode::OneSided));
fabric::conformance!(lossy_eager, |count| super::lossy(count, super::Mode::Eager));
fabric::conformance!(lossy_one_sided, |count| super::lossy(count, super::Mode::OneSided));
fabric::conformance!(delayed_eager, |count| super::delayed(count, super::Mode::Eager));
fabric::conformance!(delayed_one_sided, |count| super::delayed(count, super::Mode::OneSided));
fabric::conformance!(all_faults, super::all);
