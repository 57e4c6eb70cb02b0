//! Bits are or-ed until received, never lost and never made up (IPC, `notify`).

use abi::Endpoint;

use crate::ledger::Ledger;

pub fn received(raised: u32, bits: u32, source: Endpoint, me: Endpoint) -> Option<String> {
    (bits & !raised != 0)
        .then(|| format!("{me} received bits {bits:#x} of {source}, raised were {raised:#x}"))
}

/// Between two that live, everything raised was received in the end.
pub fn drained(ledger: &Ledger) -> Option<String> {
    let left = ledger.streams.iter().find(|((source, destination), stream)| {
        stream.raised != 0 && ledger.is_alive(*source) && ledger.is_alive(*destination)
    });
    left.map(|((source, destination), stream)| {
        format!("bits {:#x} of {source} never reached {destination}", stream.raised)
    })
}
