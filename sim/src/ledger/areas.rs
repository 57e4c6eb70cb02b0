//! What the oracle knows of memory that is granted: who may, what stands there, and since when nobody writes.
//!
//! Programs tell each other of grants through here, as through a letter that is never lost. Key type: [`Area`].

use std::sync::Arc;

use abi::Endpoint;
use abi::grant::Grant;
use shm::map::Mapping;

use super::Ledger;
use crate::dice::mix;
use crate::invariants::copies;

/// A grant that was told of.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    pub grant: Grant,
    pub to: Endpoint,
    /// In its segment.
    pub offset_bytes: u64,
    /// Its revocation has returned.
    pub revoked: bool,
}

/// A segment that copies write: of an endpoint, the one that it grants or (true) its own.
pub type Whose = (Endpoint, bool);

/// What is known of one.
#[derive(Debug)]
pub struct Area {
    pub map: Arc<Mapping>,
    /// The copy that was begun last.
    pub copy: u64,
    /// A copy ended without knowing whether more of it comes.
    pub unsure: bool,
    /// What stood there when the last grant was taken back; none was given since.
    quiet: Option<u64>,
}

impl Area {
    pub fn new(map: Arc<Mapping>) -> Area {
        Area { map, copy: 0, unsure: false, quiet: None }
    }

    pub fn read(&self, offset_bytes: u64, len_bytes: u64) -> Vec<u8> {
        let mut bytes = vec![0; len_bytes as usize];
        let read = self.map.read_into(offset_bytes as usize, &mut bytes);
        read.expect("a range that was granted");
        bytes
    }

    fn sum(&self) -> u64 {
        let bytes = self.read(0, self.map.len_bytes() as u64);
        let words =
            bytes.chunks_exact(8).map(|eight| u64::from_le_bytes(eight.try_into().unwrap_or_default()));
        words.fold(0, |sum, word| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
    }
}

/// What stands in the segment that an endpoint grants for reading.
pub fn source_bytes(owner: Endpoint, offset_bytes: u64, len_bytes: u64) -> Vec<u8> {
    let seed = mix(owner.to_word());
    let first = offset_bytes / 8;
    let words = (offset_bytes + len_bytes).div_ceil(8) - first;
    let mut bytes = Vec::with_capacity(words as usize * 8);
    for at in first..first + words {
        bytes.extend_from_slice(&mix(seed ^ at).to_le_bytes());
    }
    bytes.drain(..(offset_bytes % 8) as usize);
    bytes.truncate(len_bytes as usize);
    bytes
}

impl Ledger {
    /// A grant of the area was taken back, and no other is given: from now on nobody writes.
    pub fn be_quiet(&mut self, whose: Whose) {
        if let Some(area) = self.areas.get_mut(&whose) {
            area.unsure = false;
            area.quiet = Some(area.sum());
        }
    }

    /// Looks whether nobody has; somebody may from now on.
    pub fn ask_quiet(&mut self, whose: Whose) {
        let Some(area) = self.areas.get_mut(&whose) else { return };
        let Some(sum) = area.quiet.take() else { return };
        let found = copies::revoked(sum, area.sum(), whose.0);
        self.find("copies", found);
    }

    /// At the end, of all of them.
    pub fn ask_all_quiet(&mut self) {
        for whose in self.areas.keys().copied().collect::<Vec<_>>() {
            self.ask_quiet(whose);
        }
    }
}
