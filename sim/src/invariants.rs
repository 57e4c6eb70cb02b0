//! What must always be true, one property a file. Some are asked at each delivery, the others when all is healed and
//! drained.

pub mod calls_end;
pub mod conservation;
pub mod copies;
pub mod credits;
pub mod deaths;
pub mod directory;
pub mod duplicates;
pub mod forgery;
pub mod generations;
pub mod no_loss;
pub mod notifications;
pub mod order;
pub mod payload;
pub mod relays;
pub mod replies;
pub mod taken;
pub mod wakes;
pub mod withdrawn;

/// A property that did not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub invariant: &'static str,
    pub what: String,
}
