//! Nobody sleeps through a wake-up: looking again after a pause finds nothing that a ring had not told of. (The pauses
//! are there against a spoilt doorbell page, and nobody spoils it here.)

use std::fmt;

pub fn looked_again(who: &dyn fmt::Display, found: Option<&str>) -> Option<String> {
    found.map(|what| format!("{who} found {what} by itself; nobody had rung"))
}
