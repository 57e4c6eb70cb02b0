//! A [`fabric::Fabric`] over kernel TCP, and its proxy process.
//!
//! [`TcpFabric`] (`tcp`) keeps one authenticated connection to every other node: `handshake` and `half` bring it about,
//! `session` with `inbox` and `outbox` carries frames of [`abi::wire`] over it, `link` begins it anew when it ends.
//! [`ClusterKey`] is what the nodes know of each other, [`ProxyOptions`] what the process is started with.
#![forbid(unsafe_code)]

mod commons;
mod config;
mod half;
mod handshake;
mod inbox;
mod key;
mod link;
pub mod options;
mod outbox;
mod pack;
pub mod process;
mod session;
mod tcp;
mod window;

/// What reads a peer's bytes, for the fuzzers alone: no part of what this crate offers.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::commons::Commons;
    pub use crate::handshake::{Handshake, Own, Step};
    pub use crate::inbox::{Ended, Inbox};
    pub use crate::outbox::Outbox;
}

pub use config::{KeyError, TcpConfig, TcpError};
pub use key::ClusterKey;
pub use options::{OptionsError, ProxyOptions};
pub use pack::Packing;
pub use tcp::TcpFabric;
