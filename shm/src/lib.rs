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
pub mod notify;
pub mod os;
pub mod pool;
pub mod reply;
pub mod returns;
pub mod side;
pub mod sync;
pub mod words;
