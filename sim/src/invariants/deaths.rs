//! Nobody is said to have ended who has not: of two that live at the end, neither was told of the other's end. (Who was
//! told may be gone itself, with the node that had declared the other's dead, before that one heard of it.)

use crate::ledger::Ledger;

pub fn drained(ledger: &Ledger) -> Option<String> {
    let undead = ledger.told_dead.iter().find(|(who, of)| ledger.is_alive(*who) && ledger.is_alive(*of));
    undead.map(|(who, of)| format!("{of} lives, and {who} was told that it had ended"))
}
