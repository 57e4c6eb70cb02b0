//! What every [`Fabric`] must keep, middleware included: a suite written once, run for each implementation.
//!
//! Key types: [`Network`], what an implementation gives; [`Rig`], what drives it and checks every completion against the
//! trait's law as it comes. [`crate::conformance!`] makes one test of every property. Neighbours: `ledger` knows the law,
//! `messages`, `bulk` and `ends` are the properties.

pub mod bulk;
pub mod ends;
mod ledger;
pub mod messages;
mod rig;

use std::time::Duration;

use abi::NodeId;

use crate::{Fabric, Time};

pub use rig::{Answer, Rig, Station};

/// The ends of nodes 1 to n, not yet polled.
pub struct Network {
    pub fabrics: Vec<Box<dyn Fabric + Send>>,
    /// What `poll` is told: real time for a fabric over real wires, counted for others.
    pub clock: Box<dyn FnMut() -> Time>,
    /// Ends the session of two nodes so that a new one comes about, if the implementation can be made to.
    pub flap: Option<Flap>,
}

/// See [`Network::flap`].
pub type Flap = Box<dyn FnMut(NodeId, NodeId)>;

impl Network {
    /// With a clock that goes on by a millisecond whenever it is asked.
    pub fn counted(fabrics: Vec<Box<dyn Fabric + Send>>) -> Network {
        let mut now = Duration::ZERO;
        let clock = Box::new(move || {
            now += Duration::from_millis(1);
            now
        });
        Network { fabrics, clock, flap: None }
    }
}

/// The nodes of a network of so many.
pub fn nodes(count: usize) -> Vec<NodeId> {
    (1..=count as u16).map(NodeId).collect()
}

/// Makes the tests of one implementation: `conformance!(name, factory)`, where `factory` takes a number of nodes and
/// returns a [`Network`].
#[macro_export]
macro_rules! conformance {
    ($name:ident, $factory:expr) => {
        mod $name {
            $crate::conformance!(@tests $factory; messages:
                conformance_messages_arrive_whole_and_in_order,
                conformance_the_largest_message_passes_and_no_larger,
                conformance_an_empty_message_arrives,
                conformance_a_full_fabric_takes_a_prefix,
                conformance_three_nodes_talk_all_at_once,
                conformance_all_posted_buffers_come_back,
                conformance_one_completion_fits_where_no_room_is,
            );
            $crate::conformance!(@tests $factory; bulk:
                conformance_bulk_is_announced_and_arrives_or_is_refused,
                conformance_an_empty_bulk_message_arrives,
                conformance_a_message_does_not_wait_for_a_large_bulk,
                conformance_bulk_may_be_answered_in_any_order,
                conformance_unanswered_bulk_holds_nothing_else_up,
                conformance_bulk_beyond_caps_is_not_taken,
            );
            $crate::conformance!(@tests $factory; ends:
                conformance_nothing_is_taken_without_a_session,
                conformance_a_lost_peer_gives_everything_back,
                conformance_an_answer_after_the_loss_gives_its_buffer_back,
                conformance_a_detached_region_lives_until_its_last_use,
                conformance_a_sleeper_misses_nothing,
                conformance_who_may_sleep_has_nothing_to_do,
                conformance_a_new_session_follows_a_lost_one,
                conformance_a_fenced_peer_is_lost,
            );
        }
    };
    (@tests $factory:expr; $module:ident: $($test:ident,)*) => {
        $(
            #[test]
            fn $test() {
                $crate::conformance::$module::$test(&$factory);
            }
        )*
    };
}
