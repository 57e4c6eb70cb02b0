//! Room comes back: when all is drained, whoever lives may send to whoever lives.

use abi::Endpoint;

pub fn drained(me: Endpoint, to: Endpoint, has_room: bool) -> Option<String> {
    (!has_room).then(|| format!("{me} has no room towards {to}, which took all"))
}
