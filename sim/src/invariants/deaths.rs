//! Nobody is said to have ended who has not: by the end of a run it is dead everywhere, or was never said to be.

use crate::ledger::Ledger;

pub fn drained(ledger: &Ledger) -> Option<String> {
    let undead = ledger.told_dead.iter().find(|endpoint| ledger.is_alive(**endpoint));
    undead.map(|endpoint| format!("{endpoint} lives, and somebody was told that it had ended"))
}
