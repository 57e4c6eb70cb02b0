//! Whoever lives is found, by whoever lives: when all is healed, every table names every endpoint.

use abi::Endpoint;

pub fn drained(me: Endpoint, found: Option<Endpoint>, lives: Endpoint) -> Option<String> {
    (found != Some(lives)).then(|| format!("{me} finds {found:?} where {lives} is bound"))
}
