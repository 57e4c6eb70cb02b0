//! LZ4 blocks: payload made shorter where that gains, and made long again without trusting a byte of it.
//!
//! Key types: [`Packing`], what a proxy wants of its sessions; [`Packer`], one session's scratch memory. Without the
//! feature `lz4` nothing is offered, so no session packs. Neighbours: `outbox` packs, `inbox` unpacks.
//! Source: LZ4 block format, by `lz4_flex` in its safe variant.

use abi::extent::Corrupt;
use abi::limits::FRAME_BYTES_MAX;

/// The bit of a handshake's offers that means LZ4.
pub const OFFER_LZ4: u64 = 1;
/// Shorter payload is sent as it is.
pub const PACKED_BYTES_MIN: usize = 1024;
/// A packed block must be shorter by one in so many bytes, or it is not worth the receiver's work.
const GAIN_ONE_IN: usize = 16;
/// After blocks that did not gain, at most so many are sent without a try.
const UNTRIED_MAX: u32 = 16;

/// How the payload between two nodes travels, where both ends want it so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Packing {
    #[default]
    None,
    Lz4,
}

impl Packing {
    /// By its word in the cluster file and among the options.
    pub fn from_name(name: &str) -> Option<Packing> {
        match name {
            "none" => Some(Packing::None),
            "lz4" => Some(Packing::Lz4),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Packing::None => "none",
            Packing::Lz4 => "lz4",
        }
    }

    /// This program can do it.
    pub fn is_built_in(self) -> bool {
        self == Packing::None || cfg!(feature = "lz4")
    }

    /// What a handshake offers for it.
    pub(crate) fn offer(self) -> u64 {
        match self {
            Packing::Lz4 if self.is_built_in() => OFFER_LZ4,
            Packing::Lz4 | Packing::None => 0,
        }
    }
}

/// Decides what is worth packing, and packs it.
#[derive(Default)]
pub struct Packer {
    /// Blocks that are not tried, after the last that did not gain; and how many it was the last time.
    untried: u32,
    untried_last: u32,
}

impl Packer {
    /// Packs `plain` into `out`. False, and nothing in `out`, where it would not gain or is not tried.
    pub fn pack(&mut self, plain: &[u8], out: &mut Vec<u8>) -> bool {
        out.clear();
        if plain.len() < PACKED_BYTES_MIN {
            return false;
        }
        if self.untried > 0 {
            self.untried -= 1;
            return false;
        }
        if compress(plain, out) && out.len() <= plain.len() - plain.len() / GAIN_ONE_IN {
            self.untried_last = 0;
            return true;
        }
        self.untried_last = (2 * self.untried_last).clamp(1, UNTRIED_MAX);
        self.untried = self.untried_last;
        out.clear();
        false
    }
}

/// The length that a packed frame claims for its payload, within `most`. A block that is not shorter is none of ours.
pub fn check_plain_len(claim: u64, packed_bytes: u32, most: u64) -> Result<usize, Corrupt> {
    if claim > most.min(FRAME_BYTES_MAX as u64) || claim <= packed_bytes as u64 {
        return Err(Corrupt::new("packed frame of an impossible length", claim));
    }
    Ok(claim as usize)
}

/// Unpacks a block of the peer into exactly `plain`.
pub fn unpack(packed: &[u8], plain: &mut [u8]) -> Result<(), Corrupt> {
    match decompress(packed, plain) {
        Some(len) if len == plain.len() => Ok(()),
        Some(len) => Err(Corrupt::new("packed frame of another length than it says", len as u64)),
        None => Err(Corrupt::new("packed frame that is no LZ4 block", packed.len() as u64)),
    }
}

#[cfg(feature = "lz4")]
fn compress(plain: &[u8], out: &mut Vec<u8>) -> bool {
    out.resize(lz4_flex::block::get_maximum_output_size(plain.len()), 0);
    let packed = lz4_flex::block::compress_into(plain, out);
    out.truncate(*packed.as_ref().unwrap_or(&0));
    packed.is_ok()
}

#[cfg(feature = "lz4")]
fn decompress(packed: &[u8], plain: &mut [u8]) -> Option<usize> {
    lz4_flex::block::decompress_into(packed, plain).ok()
}

#[cfg(not(feature = "lz4"))]
fn compress(_: &[u8], _: &mut Vec<u8>) -> bool {
    false
}

#[cfg(not(feature = "lz4"))]
fn decompress(_: &[u8], _: &mut [u8]) -> Option<usize> {
    None
}

#[cfg(all(test, feature = "lz4"))]
mod tests {
    use super::*;

    fn text(len: usize) -> Vec<u8> {
        b"the same words again and again, ".iter().copied().cycle().take(len).collect()
    }

    fn noise(len: usize, mut seed: u64) -> Vec<u8> {
        let mut byte = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        };
        (0..len).map(|_| byte()).collect()
    }

    #[test]
    fn blocks_come_back_as_they_were() {
        for len in [PACKED_BYTES_MIN, 4097, FRAME_BYTES_MAX as usize] {
            let mixed = [text(len / 2), noise(len / 8, 3), text(len - len / 2 - len / 8)].concat();
            for plain in [text(len), vec![0; len], mixed] {
                let mut packed = Vec::new();
                assert!(Packer::default().pack(&plain, &mut packed));
                let len = check_plain_len(plain.len() as u64, packed.len() as u32, u64::MAX).unwrap();
                let mut back = vec![0xaa; len];
                unpack(&packed, &mut back).unwrap();
                assert_eq!(back, plain);
            }
        }
    }

    #[test]
    fn what_does_not_gain_is_not_packed_and_then_tried_less_often() {
        let mut packer = Packer::default();
        let mut out = Vec::new();
        assert!(!packer.pack(&text(PACKED_BYTES_MIN - 1), &mut out) && out.is_empty());
        let noise = noise(1 << 16, 1);
        (0..200).for_each(|_| assert!(!packer.pack(&noise, &mut out) && out.is_empty()));
        assert_eq!(packer.untried_last, UNTRIED_MAX);
        let until = (0..=UNTRIED_MAX).find(|_| packer.pack(&text(1 << 16), &mut out));
        assert!(until.is_some() && packer.untried_last == 0);
    }

    #[test]
    fn blocks_that_are_cut_changed_or_of_another_length_are_refused_or_harmless() {
        let plain = text(5000);
        let mut packed = Vec::new();
        assert!(Packer::default().pack(&plain, &mut packed));
        for len in [0, 1, 4999, 5001, 60_000] {
            assert!(unpack(&packed, &mut vec![0; len]).is_err(), "{len}");
        }
        for cut in 0..packed.len() {
            assert!(unpack(&packed[..cut], &mut vec![0; 5000]).is_err(), "{cut}");
        }
        for seed in 0..2000 {
            // Whatever it says: no panic, and not a byte outside.
            let _ = unpack(&noise(seed as usize % 300, seed), &mut vec![0; 5000]);
        }
    }

    #[test]
    fn impossible_lengths_are_refused_before_anything_is_made_for_them() {
        let most = FRAME_BYTES_MAX as u64;
        assert_eq!(check_plain_len(most, 10, u64::MAX), Ok(most as usize));
        assert!(check_plain_len(most + 1, 10, u64::MAX).is_err());
        assert!(check_plain_len(u64::MAX, 10, u64::MAX).is_err());
        assert!(check_plain_len(101, 10, 100).is_err());
        assert!(check_plain_len(10, 10, 100).is_err());
        assert_eq!(check_plain_len(11, 10, 11), Ok(11));
    }
}
