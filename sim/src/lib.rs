//! The doll's house: a whole cluster in one thread, driven by a seed. The real cores (`node::core`, `dvk::core`,
//! `fabric::courier`) over heap memory and a simulated network; programs that call by chance; faults; an oracle.
//!
//! Key types: [`run`] and [`Outcome`]. A run is a safety phase, in which things go wrong, then a heal phase, after which
//! everything accepted must have arrived. Neighbours: `world` (the events), `invariants` (what must be true).
#![forbid(unsafe_code)]

mod courierman;
mod dice;
mod invariants;
mod ledger;
pub mod net;
mod program;
pub mod report;
mod site;
mod trace;
mod world;

pub use dice::Dice;
pub use invariants::Finding;
pub use world::Outcome;

/// Runs one seed.
pub fn run(seed: u64, loud: bool) -> Outcome {
    world::World::new(seed, loud).run()
}
