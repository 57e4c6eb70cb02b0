//! Buffers are conserved: when all is drained, nothing of any pool is out, and every descriptor that a fabric took has
//! come back (ARCHITECTURE, "The seam").

use std::fmt;

use shm::pool::{Tally, Unsound};

pub fn drained(who: &dyn fmt::Display, tally: Result<Tally, Unsound>) -> Option<String> {
    match tally {
        Err(unsound) => Some(format!("the pool of {who} does not add up: {unsound:?}")),
        Ok(tally) if tally.loans > 0 => Some(format!("{} extents of {who} are still out", tally.loans)),
        Ok(_) => None,
    }
}

pub fn completed(who: &dyn fmt::Display, open: u64) -> Option<String> {
    (open > 0).then(|| format!("{open} descriptors of {who} have not come back"))
}
