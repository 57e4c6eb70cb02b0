//! The loopback under the conformance suite, and what only it can: cut, heal, restart.

use fabric::conformance::{Network, nodes};
use fabric::loopback::{Loopback, Mode};

fn network(count: usize, mode: Mode) -> Network {
    let ends = Loopback::network(&nodes(count), mode);
    let wire = ends[0].wire();
    let boxed = ends.into_iter().map(|end| Box::new(end) as _).collect();
    Network { flap: Some(Box::new(move |one, other| wire.flap(one, other))), ..Network::counted(boxed) }
}

fabric::conformance!(loopback_eager, |count| super::network(count, super::Mode::Eager));
fabric::conformance!(loopback_one_sided, |count| super::network(count, super::Mode::OneSided));
