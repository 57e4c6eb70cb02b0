//! A private binding: each pair has a pool of its own, which that peer alone may read.
//!
//! Loans are cut from the pair's pool, or copied into it before they are lent: `binding::private` does so. Neighbour:
//! `extents` (what is out).

use std::collections::BTreeMap;

use abi::Endpoint;
use abi::limits::POOL_BYTES_MAX;
use shm::pool::{Loan, Pool, Tally, Unsound};

use super::{Core, PeerIndex};

/// The pools of a private binding, by pair; `None` of any other. Apart from the pairs, whose every byte is on the message path.
pub(super) type Pools = Option<Box<BTreeMap<PeerIndex, Pool>>>;

impl Core {
    /// From now on, before there are pairs, what is lent to a peer lies where nobody else may look.
    pub fn set_private(&mut self) {
        self.private = Some(Box::default());
    }

    #[inline]
    pub fn is_private(&self) -> bool {
        self.private.is_some()
    }

    /// The pool from which extents for one peer are cut; `None` unless this binding is private.
    #[inline]
    pub fn pair_pool(&mut self, index: PeerIndex) -> Option<&mut Pool> {
        let pools = self.private.as_deref_mut()?;
        self.peers.get(index.0 as usize)?.as_ref()?;
        Some(pools.entry(index).or_insert_with(|| Pool::new(POOL_BYTES_MAX)))
    }

    /// The pair has ended, and with it all that was there for its peer.
    pub(super) fn drop_pair_pool(&mut self, index: PeerIndex) {
        if let Some(pools) = self.private.as_deref_mut() {
            pools.remove(&index);
        }
    }

    pub fn endpoint_of(&self, index: PeerIndex) -> Option<Endpoint> {
        self.peer(index).map(|peer| peer.endpoint)
    }

    /// Whether the peer may read where a loan lies.
    #[inline]
    pub fn is_lendable(&self, index: PeerIndex, loan: &Loan) -> bool {
        match self.private.as_deref() {
            None => true,
            Some(pools) => pools.get(&index).is_some_and(|pool| pool.map(loan.extent().segment).is_some()),
        }
    }

    /// Checks that the pools are whole: free and out make the total. Takes home what came back first.
    pub fn audit(&mut self) -> Result<Tally, Unsound> {
        self.bring_home_from_all();
        self.pool.settle();
        let mut sum = self.pool.audit()?;
        for pool in self.private.iter_mut().flat_map(|pools| pools.values_mut()) {
            pool.settle();
            let tally = pool.audit()?;
            sum.total_bytes += tally.total_bytes;
            sum.free_bytes += tally.free_bytes;
            sum.loans += tally.loans;
        }
        Ok(sum)
    }
}
