//! DCs that come and go while the courier runs: whatever is kept for one goes with it.
//!
//! What the fabric still moves for it is let go of when it completes; until then its bytes stay counted.

use std::collections::{BTreeMap, BTreeSet};

use abi::DcId;
use shm::doorbell::Doorbells;

use super::{Courier, Dc};
use crate::Fabric;

impl Courier {
    /// Serves a DC from now on, with this memory.
    pub fn add_dc(&mut self, dc: DcId, memory: u32, doorbells: Doorbells) {
        self.dcs.insert(dc, Dc { memory, doorbells, held: BTreeMap::new(), coming: BTreeMap::new() });
        self.add_memory(memory);
    }

    /// Serves a DC no more: its pairs, with their bells and copies, are forgotten, and its memory is let go of.
    pub fn drop_dc(&mut self, dc: DcId, fabric: &mut dyn Fabric) {
        let ends: Vec<_> = self.by_ends.keys().filter(|(local, _)| local.dc == dc).copied().collect();
        for (local, remote) in ends {
            self.detach(local, remote, fabric);
        }
        for link in self.links.values_mut() {
            link.opening.retain(|(local, _)| local.dc != dc);
            link.turns.drop_dc(dc);
        }
        self.by_slot.retain(|(of, _), _| *of != dc);
        self.forget_extents_of(dc);
        self.forget_unpaired(fabric);
        if let Some(gone) = self.dcs.remove(&dc) {
            self.forget_memory(gone.memory, fabric);
        }
    }

    /// Lets go of a memory's segments, if no pair is of it.
    pub(super) fn forget_segments(&mut self, memory: u32, fabric: &mut dyn Fabric) {
        if self.pairs.iter().flatten().any(|p| p.memory == memory) {
            return;
        }
        self.wanted.retain(|&(m, _)| m != memory);
        self.absent.retain(|&(m, _)| m != memory);
        self.segments.retain(|&(m, _), (_, region)| {
            if m == memory {
                fabric.detach(*region);
            }
            m != memory
        });
    }

    /// Copies map, and ask for, segments of memories that no pair is of. Whoever still needs one asks again.
    fn forget_unpaired(&mut self, fabric: &mut dyn Fabric) {
        let paired: BTreeSet<u32> = self.pairs.iter().flatten().map(|pair| pair.memory).collect();
        for keys in [&mut self.wanted, &mut self.absent, &mut self.jobs.wanted, &mut self.jobs.denied] {
            keys.retain(|(memory, _)| paired.contains(memory));
        }
        self.segments.retain(|(memory, _), (_, region)| {
            let stays = paired.contains(memory);
            if !stays {
                fabric.detach(*region);
            }
            stays
        });
    }

    /// What still knows of a DC, or of anything if it was the only one.
    #[cfg(test)]
    pub(super) fn remembers(&self, dc: DcId) -> Vec<&'static str> {
        let jobs = &self.jobs;
        let places = [
            ("dcs", self.dcs.contains_key(&dc)),
            ("stores", self.stores.keys().any(|memory| self.dcs.values().all(|dc| dc.memory != *memory))),
            ("pairs", self.pairs.iter().flatten().any(|pair| pair.local.dc == dc)),
            ("by_ends", self.by_ends.keys().any(|(local, _)| local.dc == dc)),
            ("by_slot", self.by_slot.keys().any(|(of, _)| *of == dc)),
            ("opening", self.links.values().any(|l| l.opening.iter().any(|(local, _)| local.dc == dc))),
            ("turns", self.links.values().any(|l| l.turns.knows(dc))),
            ("waiting", !self.waiting.is_empty()),
            ("segments", !self.segments.is_empty()),
            ("wanted", !self.wanted.is_empty() || !self.absent.is_empty()),
            ("copies", !jobs.is_empty()),
            ("steps", !jobs.coming.is_empty() || !jobs.flying.is_empty()),
            ("copies' segments", !jobs.wanted.is_empty() || !jobs.denied.is_empty()),
            ("knocks", !self.knocks.is_empty()),
            ("over", !self.over.is_empty()),
            ("posted", self.posted.is_owed()),
        ];
        places.into_iter().filter(|(_, is)| *is).map(|(what, _)| what).collect()
    }
}
