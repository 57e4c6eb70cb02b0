//! The DC table: one word for each slot, written by the daemon alone, mapped read-only by every member.
//! One word, so that it is read consistently without a lock. The word after the last slot is the table's version, a
//! futex that is woken at every change.

use crate::ids::{Generation, NodeId, Slot};
use crate::limits::SLOTS_PER_DC;
use crate::privilege::Level;

/// Words of a table: entries, then the version on a line of its own.
pub const VERSION: usize = SLOTS_PER_DC as usize;
/// Bytes of a table, whole pages.
pub const BYTES: usize = SLOTS_PER_DC as usize * 8 + 4096;

/// What the table knows of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// Never bound, or forgotten.
    Free = 0,
    /// Bound and alive.
    Bound = 1,
    /// Its holder of this generation unbound or died.
    Dead = 2,
    /// Its holder's node was declared dead.
    NodeDead = 3,
}

/// One entry. Bits 0..32 generation, 32..48 node, 48..56 proxy, 56..60 state, 60..64 level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub state: State,
    pub node: NodeId,
    /// The proxy of this node that leads there; 0 for a local endpoint.
    pub proxy: u8,
    pub generation: Generation,
    /// Of its holder, or its last one.
    pub level: Level,
}

impl Entry {
    pub const FREE: Entry = Entry {
        state: State::Free,
        node: NodeId(0),
        proxy: 0,
        generation: Generation(0),
        level: Level::Server,
    };

    pub const fn to_word(self) -> u64 {
        self.generation.0 as u64
            | (self.node.0 as u64) << 32
            | (self.proxy as u64) << 48
            | (self.state as u64) << 56
            | (self.level as u64) << 60
    }

    /// The daemon is trusted: an unknown state is read as `Free`.
    pub const fn from_word(word: u64) -> Self {
        let state = match (word >> 56) as u8 & 15 {
            1 => State::Bound,
            2 => State::Dead,
            3 => State::NodeDead,
            _ => State::Free,
        };
        Entry {
            state,
            node: NodeId((word >> 32) as u16),
            proxy: (word >> 48) as u8,
            generation: Generation(word as u32),
            level: Level::from_bits((word >> 60) as u8),
        }
    }
}

/// Position of a slot's entry.
pub const fn of_slot(slot: Slot) -> usize {
    slot.0 as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_survives_its_word() {
        for level in Level::ALL {
            let generation = Generation(u32::MAX);
            let e = Entry { state: State::NodeDead, node: NodeId(1024), proxy: 63, generation, level };
            assert_eq!(Entry::from_word(e.to_word()), e);
        }
        assert_eq!(Entry::from_word(0), Entry::FREE);
    }
}
