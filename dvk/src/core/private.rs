//! A private binding: each pair has a pool of its own, which that peer alone may read.
//!
//! Loans are cut from the pair's pool, or copied into it before they are lent: `binding::private` does so. Neighbour:
//! `extents` (what is out).

use abi::Endpoint;
use shm::pool::{Loan, Pool, Tally, Unsound};

use super::{Core, PeerIndex};

impl Core {
    /// From now on, before there are pairs, what is lent to a peer lies where nobody else may look.
    pub fn set_private(&mut self) {
        self.private = true;
    }

    #[inline]
    pub fn is_private(&self) -> bool {
        self.private
    }

    /// The pool from which extents for one peer are cut; `None` unless this binding is private.
    pub fn pair_pool(&mut self, index: PeerIndex) -> Option<&mut Pool> {
        self.peer_mut(index)?.pool.as_deref_mut()
    }

    pub fn endpoint_of(&self, index: PeerIndex) -> Option<Endpoint> {
        self.peer(index).map(|peer| peer.endpoint)
    }

    /// Whether the peer may read where a loan lies.
    #[inline]
    pub fn is_lendable(&self, index: PeerIndex, loan: &Loan) -> bool {
        !self.private || self.is_of_pair(index, loan)
    }

    fn is_of_pair(&self, index: PeerIndex, loan: &Loan) -> bool {
        let pool = self.peer(index).and_then(|peer| peer.pool.as_deref());
        pool.is_some_and(|pool| pool.map(loan.extent().segment).is_some())
    }

    /// Checks that the pools are whole: free and out make the total. Takes home what came back first.
    pub fn audit(&mut self) -> Result<Tally, Unsound> {
        self.bring_home_from_all();
        self.pool.settle();
        let mut sum = self.pool.audit()?;
        for pool in self.peers.iter_mut().flatten().filter_map(|peer| peer.pool.as_deref_mut()) {
            pool.settle();
            let tally = pool.audit()?;
            sum.total_bytes += tally.total_bytes;
            sum.free_bytes += tally.free_bytes;
            sum.loans += tally.loans;
        }
        Ok(sum)
    }
}
