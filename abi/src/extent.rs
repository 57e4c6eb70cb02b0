//! Extents: a range of a segment, as a peer claims it and as it is once checked.

use core::fmt;

use crate::limits;

/// A peer's memory or a wire broke the protocol. The pair is closed, others do not act on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Corrupt {
    /// Which rule was broken, in a few words.
    pub what: &'static str,
    /// The value that broke it.
    pub value: u64,
}

impl Corrupt {
    pub const fn new(what: &'static str, value: u64) -> Self {
        Corrupt { what, value }
    }
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the peer broke the protocol: {} ({:#x})", self.what, self.value)
    }
}

impl std::error::Error for Corrupt {}

/// An extent as a descriptor names it: a claim until [`Claim::check`] has seen the segment's size.
///
/// Shape: 24 bytes, three little-endian words: segment and token, offset, length. The token is the sender's own name
/// for the loan; the receiver hands it back when its view is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    pub segment: u32,
    pub token: u32,
    pub offset_bytes: u64,
    pub len_bytes: u64,
}

impl Claim {
    pub const fn to_words(self) -> [u64; 3] {
        [self.segment as u64 | (self.token as u64) << 32, self.offset_bytes, self.len_bytes]
    }

    pub const fn from_words(words: [u64; 3]) -> Self {
        Claim {
            segment: words[0] as u32,
            token: (words[0] >> 32) as u32,
            offset_bytes: words[1],
            len_bytes: words[2],
        }
    }

    /// What can be said without knowing the segment: a length within the limits.
    pub const fn check_len(self) -> Result<u32, Corrupt> {
        if self.len_bytes > limits::LOAN_BYTES_MAX as u64 {
            return Err(Corrupt::new("extent longer than the largest loan", self.len_bytes));
        }
        Ok(self.len_bytes as u32)
    }

    /// The range within a segment of `segment_bytes`, or `Corrupt` when it leaves it.
    pub fn check(self, segment_bytes: u64) -> Result<core::ops::Range<usize>, Corrupt> {
        self.check_len()?;
        match self.offset_bytes.checked_add(self.len_bytes) {
            Some(end) if end <= segment_bytes => Ok(self.offset_bytes as usize..end as usize),
            _ => Err(Corrupt::new("extent outside its segment", self.offset_bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_that_ends_with_its_segment_is_taken_and_one_byte_more_is_not() {
        let claim = Claim { segment: 1, token: 9, offset_bytes: 4032, len_bytes: 64 };
        assert_eq!(Claim::from_words(claim.to_words()), claim);
        assert_eq!(claim.check(4096), Ok(4032..4096));
        assert!(claim.check(4095).is_err());
        assert!(Claim { offset_bytes: u64::MAX, ..claim }.check(u64::MAX).is_err());
        assert!(
            Claim { len_bytes: limits::LOAN_BYTES_MAX as u64 + 1, offset_bytes: 0, ..claim }
                .check(u64::MAX)
                .is_err()
        );
    }
}
