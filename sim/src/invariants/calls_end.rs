//! Every blocking call ends (ARCHITECTURE, invariant 2): when all is healed, nobody waits for anybody any more.

use abi::Endpoint;

pub fn drained(endpoint: Endpoint, waits: Option<String>) -> Option<String> {
    waits.map(|waits| format!("{endpoint} still waits: {waits}"))
}
