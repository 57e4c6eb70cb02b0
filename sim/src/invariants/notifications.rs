//! Bits are or-ed until received, never lost and never made up (IPC, `notify`).

use abi::Endpoint;

use crate::ledger::{Ledger, RAISABLE, Stream};

/// A bit is received at most once for each time it was raised.
pub fn received(stream: &Stream, source: Endpoint, me: Endpoint) -> Option<String> {
    let bit = (0..RAISABLE).find(|bit| stream.receipts[*bit] > stream.raises[*bit])?;
    let (receipts, raises) = (stream.receipts[bit], stream.raises[bit]);
    Some(format!("{me} received bit {bit} of {source} {receipts} times, raised {raises}"))
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
