//! Endpoint memory: mapping, sealing, lanes, pools, doorbells, waiting. The one crate of the core with live wires.
//!
//! Everything two processes share is a run of 64-bit atomic words (`words::Words`), mapped or on the heap, and every
//! protocol above it (lanes, replies, counters, doorbells) is safe code over such words. Unsafe code is confined to
//! `map`, `os`, `futex` and the byte copies of `map`.
#![deny(unsafe_code)]

#[cfg(not(loom))]
pub mod bare;
mod buddy;
pub mod doorbell;
pub mod futex;
pub mod grants;
pub mod lane;
pub mod map;
#[cfg(feature = "mutants")]
pub mod mutants;
pub mod notify;
pub mod os;
pub mod pool;
pub mod reply;
pub mod returns;
pub mod side;
pub mod sync;
pub mod words;

/// Whether this is a build whose code can be broken on purpose: none that ships.
pub const HAS_MUTANTS: bool = cfg!(feature = "mutants");

/// Whether a mutant is on, `every`th time it is asked or always. The word `false` in whatever ships.
#[cfg(feature = "mutants")]
#[macro_export]
macro_rules! mutant {
    ($name:ident) => {
        $crate::mutants::is_on($crate::mutants::Mutant::$name)
    };
    ($name:ident, $every:literal) => {
        $crate::mutants::is_turn($crate::mutants::Mutant::$name, $every)
    };
}
/// Whether a mutant is on: never, without the feature `mutants`.
#[cfg(not(feature = "mutants"))]
#[macro_export]
macro_rules! mutant {
    ($name:ident) => {
        false
    };
    ($name:ident, $every:literal) => {
        false
    };
}
