//! The memories that are ours: one for each DC, and one for each endpoint with private pairs, which alone may read it.
//!
//! Key type: [`Store`]. Neighbours: `bulk` (cuts extents from their pools), `pair` (whose side stands in one).

use std::collections::BTreeMap;
use std::sync::Arc;

use abi::limits::PROXY_POOL_BYTES_MAX;
use abi::member::SegmentKind;
use shm::map::Mapping;
use shm::pool::{Pool, Tally, Unsound};

use super::{Courier, PairIndex};
use crate::{Fabric, RegionKey};

/// One memory of ours.
pub(super) struct Store {
    pub(super) pool: Pool,
    pub(super) regions: BTreeMap<u32, RegionKey>,
    pub(super) own: BTreeMap<u32, Arc<Mapping>>,
    /// Mapped, and not yet used: nobody else may map them before the daemon has sealed them.
    unsealed: BTreeMap<u32, (SegmentKind, Arc<Mapping>)>,
    /// A pool segment was asked for and has not come.
    pub(super) asked: bool,
}

impl Store {
    fn new() -> Store {
        let pool = Pool::new(PROXY_POOL_BYTES_MAX);
        Store {
            pool,
            regions: BTreeMap::new(),
            own: BTreeMap::new(),
            unsealed: BTreeMap::new(),
            asked: false,
        }
    }
}

impl Courier {
    /// One more memory of ours: for pairs of one local endpoint that nobody else may read along.
    pub fn add_memory(&mut self, memory: u32) {
        self.stores.insert(memory, Store::new());
    }

    /// No pair uses that memory any more. What is still on its way into it lands, and is nobody's.
    pub fn forget_memory(&mut self, memory: u32, fabric: &mut dyn Fabric) {
        if self.pairs.iter().flatten().any(|pair| pair.store == memory) {
            return;
        }
        let Some(store) = self.stores.remove(&memory) else { return };
        for region in store.regions.into_values() {
            fabric.detach(region);
        }
    }

    /// A segment of a memory of ours, mapped writable. It serves once it is sealed.
    pub fn add_segment(&mut self, memory: u32, index: u32, kind: SegmentKind, map: Arc<Mapping>) {
        if let Some(of) = self.stores.get_mut(&memory) {
            of.unsealed.insert(index, (kind, map));
        }
    }

    /// The daemon has sealed a segment of ours: whom we send a descriptor into it can map it from now on.
    pub fn segment_sealed(&mut self, memory: u32, index: u32, fabric: &mut dyn Fabric) {
        let Some(of) = self.stores.get_mut(&memory) else { return };
        let Some((kind, map)) = of.unsealed.remove(&index) else { return };
        if kind == SegmentKind::Pool {
            of.regions.insert(index, fabric.attach(&map));
            of.pool.add_segment(index, Arc::clone(&map));
            of.asked = false;
        }
        of.own.insert(index, map);
        self.retry_waiting(fabric);
    }

    /// A pool segment of the memory that a pair's mirror stands in.
    pub(super) fn pool_segment(&self, index: PairIndex) -> u32 {
        let store = self.pair(index).and_then(|pair| self.stores.get(&pair.store));
        store.and_then(|store| store.regions.keys().next().copied()).unwrap_or(0)
    }

    /// Checks that the pools are whole and counts what is out. For tests and the simulator.
    pub fn audit(&self) -> Result<Tally, Unsound> {
        let mut sum = Tally::default();
        for store in self.stores.values() {
            let tally = store.pool.audit()?;
            sum.total_bytes += tally.total_bytes;
            sum.free_bytes += tally.free_bytes;
            sum.loans += tally.loans;
        }
        Ok(sum)
    }
}
