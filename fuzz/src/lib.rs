//! Hostile bytes for everything that reads a claim: one function for each kind of claim, which must come back, whatever it is
//! given, and holds what it is given back to what the reader promises.
//!
//! `cargo +nightly fuzz run TARGET` drives one by libFuzzer; the test of this crate replays the corpus and as much again of
//! noise, with any compiler.

mod admin;
mod cluster_file;
mod grants;
mod handshake;
mod memory_claims;
mod wire_frames;

/// A target: its name, and what it does with an input.
type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("wire_frames", wire_frames::run),
    ("handshake", handshake::run),
    ("memory_claims", memory_claims::run),
    ("grants", grants::run),
    ("cluster_file", cluster_file::run),
    ("admin", admin::run),
];

/// Gives an input to a target.
///
/// # Panics
/// If there is no such target, or if it has found something.
pub fn run(target: &str, data: &[u8]) {
    let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target of this name");
    run(data);
}
