//! What was accepted arrives, if its destination lives: of a sender that lives, and what a dead one had published; unless
//! the sender's node was declared dead where the destination is, or its machine was restarted (ARCHITECTURE, invariant 1; IPC, "Death and loss").

use abi::Endpoint;

use crate::ledger::{Fate, Ledger, Sent};

pub fn drained(ledger: &Ledger) -> Option<String> {
    for ((source, destination), stream) in &ledger.streams {
        let alive = ledger.is_alive(*destination);
        let node = ledger.lives.get(destination).map(|life| life.node);
        let vanished = ledger.lives.get(source).is_some_and(|life| life.vanished);
        if !alive || vanished || node.is_none_or(|node| ledger.is_buried(node, *source)) {
            continue;
        }
        if let Some(number) = stream.sent.iter().position(is_lost) {
            let sent = stream.sent[number];
            return Some(describe(ledger, *source, *destination, number, sent));
        }
    }
    None
}

/// A sender that died in a call had published: what it never heard of counts as accepted.
fn is_lost(sent: &Sent) -> bool {
    !sent.delivered && matches!(sent.fate, Fate::Accepted | Fate::Taken | Fate::Pending)
}

fn describe(ledger: &Ledger, source: Endpoint, destination: Endpoint, number: usize, sent: Sent) -> String {
    let life = if ledger.is_alive(source) { "lives" } else { "is dead" };
    let stream = &ledger.streams[&(source, destination)];
    let (count, next) = (stream.sent.len(), stream.next);
    format!(
        "{source} ({life}) to {destination} number {number} of {count}, {:?}, never arrived; next is {next}",
        sent.fate
    )
}
