//! RDMA: verbs over a network card that is made for it, or over soft-RoCE.
//!
//! [`RdmaFabric`] (`rdma`) is a [`fabric::Fabric`] over a TCP fabric: that one's sessions say who is there and when it is
//! gone, and carry what two ends must agree on (`note`); messages and extents go by queue pairs (`session`, `frame`), or
//! by TCP where there are none. [`verbs`] is the one module that calls libibverbs; what it offers is safe. This crate needs that library and is not
//! among the default members: `cargo build -p proxy-rdma`. Without a device of your own, `cargo run -p ci -- rxe`
//! gives two.
#![deny(unsafe_code)]

mod buffers;
mod device;
mod frame;
mod note;
mod rdma;
mod ring;
mod session;
#[allow(unsafe_code, reason = "the one module that calls a C library")]
pub mod verbs;

pub use device::{DeviceError, RdmaConfig};
pub use rdma::{Carried, RdmaFabric};
