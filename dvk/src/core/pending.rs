//! Which pairs to look at: what doorbells hint at, and what a look has left.

use super::PeerIndex;

/// Pairs that may have something, as bits by index.
#[derive(Default)]
pub(super) struct Pending {
    bits: Vec<u64>,
    count: u32,
}

impl Pending {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn set(&mut self, index: PeerIndex) {
        let (word, bit) = (index.0 as usize / 64, 1 << (index.0 % 64));
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        self.count += (self.bits[word] & bit == 0) as u32;
        self.bits[word] |= bit;
    }

    pub(super) fn clear(&mut self, index: PeerIndex) {
        if let Some(word) = self.bits.get_mut(index.0 as usize / 64) {
            let bit = 1 << (index.0 % 64);
            self.count -= (*word & bit != 0) as u32;
            *word &= !bit;
        }
    }

    /// The first index at or above `from`.
    pub(super) fn first_from(&self, from: u32) -> Option<PeerIndex> {
        if self.is_empty() {
            return None;
        }
        let mut word = from as usize / 64;
        let mut mask = u64::MAX << (from % 64);
        while let Some(bits) = self.bits.get(word) {
            let left = bits & mask;
            if left != 0 {
                return Some(PeerIndex(word as u32 * 64 + left.trailing_zeros()));
            }
            mask = u64::MAX;
            word += 1;
        }
        None
    }
}
