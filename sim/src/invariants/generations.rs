//! A stale endpoint never reaches its slot's next holder, and no generation is used twice (ARCHITECTURE, invariant 3).

use abi::Endpoint;

pub fn born(endpoint: Endpoint, known: bool) -> Option<String> {
    known.then(|| format!("{endpoint} was bound a second time"))
}

pub fn delivered(me: Endpoint, meant: u64, what: &str) -> Option<String> {
    (me.to_word() != meant).then(|| format!("{what} was meant for {:?}", Endpoint::from_word(meant)))
}
