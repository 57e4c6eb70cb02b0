//! Bytes arrive as they were written, and a view keeps them for as long as it is held.

use abi::Endpoint;

use crate::dice::mix;

/// What the extent of a message holds: chance that both ends can roll.
pub fn pattern(source: Endpoint, destination: Endpoint, number: u64, len: usize) -> Vec<u8> {
    let seed = mix(source.to_word() ^ mix(destination.to_word() ^ mix(number)));
    let mut bytes = Vec::with_capacity(len + 8);
    let mut at = 0;
    while bytes.len() < len {
        bytes.extend_from_slice(&mix(seed.wrapping_add(at)).to_le_bytes());
        at += 1;
    }
    bytes.truncate(len);
    bytes
}

pub fn read(wanted: &[u8], got: &[u8], when: &str, what: &str) -> Option<String> {
    if wanted == got {
        return None;
    }
    let at = wanted.iter().zip(got).position(|(w, g)| w != g).unwrap_or(wanted.len().min(got.len()));
    Some(format!("{what}, {when}: {} bytes of {}, the first wrong one at {at}", got.len(), wanted.len()))
}
