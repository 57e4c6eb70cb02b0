//! Buffers for the messages of all pairs: one shared receive queue, and registered memory in it.
//!
//! Key type: [`Buffers`]. A pair that fails may keep the buffer of a message that was on its way, and a device need not say
//! so. So buffers have generations: after some failures new pairs get new ones, and the old go with their last pair.

use std::collections::BTreeMap;
use std::sync::Arc;

use shm::map::Mapping;

use crate::device::Device;
use crate::frame;
use crate::verbs::{Memory, Rights, Srq, VerbsError};

/// Messages that lie here and were not given on.
const COUNT: usize = 64;
const LEN_BYTES: usize = (frame::BYTES_MAX).next_multiple_of(4096);
/// Pairs that have failed before a new generation begins: each may have cost a buffer.
const FAILURES_MAX: usize = 16;

/// A buffer that holds a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name {
    generation: u32,
    index: u32,
}

impl Name {
    pub fn to_word(self) -> u64 {
        u64::from(self.generation) << 24 | u64::from(self.index)
    }

    pub fn from_word(word: u64) -> Name {
        Name { generation: (word >> 24) as u32, index: (word & 0xff_ffff) as u32 }
    }
}

struct Generation {
    queue: Arc<Srq>,
    memory: Memory,
    /// Pairs that take from it.
    pairs: usize,
}

/// See the file's head.
#[derive(Default)]
pub struct Buffers {
    all: BTreeMap<u32, Generation>,
    newest: u32,
    failures: usize,
    /// What marks a name as one of a buffer.
    mark: u64,
}

impl Buffers {
    pub fn new(mark: u64) -> Buffers {
        Buffers { mark, ..Buffers::default() }
    }

    /// A queue for one more session's pair; with the generation to give it back by.
    pub fn join(&mut self, device: &Device) -> Result<(Arc<Srq>, u32), VerbsError> {
        if self.failures >= FAILURES_MAX || !self.all.contains_key(&self.newest) {
            self.newest += 1;
            self.failures = 0;
            let generation = Generation::new(device)?;
            self.all.insert(self.newest, generation);
            for index in 0..COUNT as u32 {
                self.lend(Name { generation: self.newest, index });
            }
        }
        let generation = self.all.get_mut(&self.newest).ok_or(VerbsError::TooMany("buffers"))?;
        generation.pairs += 1;
        Ok((Arc::clone(&generation.queue), self.newest))
    }

    /// A pair is gone.
    pub fn leave(&mut self, of: u32) {
        self.failures += 1;
        if let Some(generation) = self.all.get_mut(&of) {
            generation.pairs -= 1;
            if generation.pairs == 0 {
                self.all.remove(&of);
            }
        }
    }

    /// The memory of a buffer, and where in it; none once its generation is gone.
    pub fn find(&self, name: Name) -> Option<(&Memory, usize)> {
        let generation = self.all.get(&name.generation)?;
        ((name.index as usize) < COUNT).then_some((&generation.memory, name.index as usize * LEN_BYTES))
    }

    /// It is empty again.
    pub fn lend(&mut self, name: Name) {
        let mark = self.mark;
        let Some(generation) = self.all.get(&name.generation) else { return };
        let Ok(part) = generation.memory.part(name.index as usize * LEN_BYTES, LEN_BYTES as u32) else {
            return;
        };
        if let Err(why) = generation.queue.lend(&[(mark | name.to_word(), part)]) {
            tracing::warn!(%why, "a buffer was not taken by the device");
        }
    }
}

impl Generation {
    fn new(device: &Device) -> Result<Generation, VerbsError> {
        let len = COUNT * LEN_BYTES;
        let map = Mapping::anonymous(len).map_err(|_| VerbsError::MemoryLimit { bytes: len })?;
        let memory = Memory::register(&device.domain, &map, (0, len), Rights::Local)?;
        let queue = Srq::new(&device.domain, COUNT as u32)?;
        Ok(Generation { queue, memory, pairs: 0 })
    }
}
