//! Names of nodes, DCs and endpoints: 1 to 32 bytes of lower-case letters, digits, `-`, `_` and `.`.

use core::fmt;

use crate::limits::NAME_BYTES_MAX;

/// A checked name, padded with zeroes. The empty name means none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Name([u8; NAME_BYTES_MAX]);

/// Why a text is no name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAName;

impl Name {
    pub const NONE: Name = Name([0; NAME_BYTES_MAX]);

    pub fn new(text: &str) -> Result<Name, NotAName> {
        let bytes = text.as_bytes();
        let legal = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
        if bytes.is_empty() || bytes.len() > NAME_BYTES_MAX || !bytes.iter().all(legal) {
            return Err(NotAName);
        }
        let mut padded = [0; NAME_BYTES_MAX];
        padded[..bytes.len()].copy_from_slice(bytes);
        Ok(Name(padded))
    }

    pub fn is_none(&self) -> bool {
        self.0[0] == 0
    }

    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|&b| b == 0).unwrap_or(NAME_BYTES_MAX);
        str::from_utf8(&self.0[..len]).unwrap_or("")
    }

    pub fn to_words(self) -> [u64; 4] {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(self.0.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap_or([0; 8]));
        }
        words
    }

    /// The claim of four words: `None` unless they are a legal name or no name at all.
    pub fn from_words(words: [u64; 4]) -> Option<Name> {
        let mut bytes = [0; NAME_BYTES_MAX];
        for (word, out) in words.iter().zip(bytes.chunks_exact_mut(8)) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        if bytes == [0; NAME_BYTES_MAX] {
            return Some(Name::NONE);
        }
        let len = bytes.iter().position(|&b| b == 0).unwrap_or(NAME_BYTES_MAX);
        let name = Name::new(str::from_utf8(&bytes[..len]).ok()?).ok()?;
        (name.0 == bytes).then_some(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl fmt::Display for NotAName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a name: use 1 to {NAME_BYTES_MAX} of the characters a-z 0-9 - _ .")
    }
}

impl std::error::Error for NotAName {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_their_words_and_bad_ones_are_refused() {
        let longest = "a".repeat(NAME_BYTES_MAX);
        for text in ["x", "node-1", &longest] {
            let name = Name::new(text).unwrap();
            assert_eq!(Name::from_words(name.to_words()), Some(name));
            assert_eq!(name.as_str(), text);
        }
        assert!(Name::new(&"a".repeat(NAME_BYTES_MAX + 1)).is_err());
        assert!(Name::new("").is_err() && Name::new("Up").is_err() && Name::new("a/b").is_err());
        assert_eq!(Name::from_words([u64::from_le_bytes(*b"a\0b\0\0\0\0\0"), 0, 0, 0]), None);
    }
}
