//! RDMA: verbs over a network card that is made for it, or over soft-RoCE.
//!
//! [`verbs`] is the one module that calls libibverbs; what it offers is safe. This crate needs that library and is not
//! among the default members: `cargo build -p proxy-rdma`. Without a device of your own, `cargo run -p ci -- rxe`
//! gives two.
#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "the one module that calls a C library")]
pub mod verbs;
