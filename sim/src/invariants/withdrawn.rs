//! What was withdrawn, or is known not to be delivered, never is (IPC, "Calls" and "Death and loss").

use crate::ledger::Fate;

pub fn decided(fate: Fate, delivered: bool, what: &str) -> Option<String> {
    (delivered && matches!(fate, Fate::Withdrawn | Fate::NotDelivered))
        .then(|| format!("{what} was delivered although it is {fate:?} to its sender"))
}
