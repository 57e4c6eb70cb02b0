//! A call that says "taken" means it: the receiver has the message (IPC, `send`).

use crate::ledger::Fate;

pub fn decided(fate: Fate, delivered: bool, what: &str) -> Option<String> {
    (fate == Fate::Taken && !delivered).then(|| format!("{what} counts as taken and was not delivered"))
}
