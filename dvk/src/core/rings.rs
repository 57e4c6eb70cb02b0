//! Peers that sleep in epoll: their bells, and what is owed to those whose bell we have not fetched. Neighbour: `peer`
//! (`Path::ring`, which finds them asleep). Why nothing is lost: `docs/adr/0010-poll-fd.md`.

use super::{Core, Host};
use crate::error::Unavailable;

impl Core {
    /// Whether a peer was found asleep in epoll before its bell had come: [`Core::pay_rings`] fetches it. Cost: one load.
    #[inline]
    pub fn owes_ring(&self) -> bool {
        self.owes.get()
    }

    /// Rings whoever is owed a ring. The daemon rang us for the bell before the peer could sleep so, and the peer's sleep
    /// word was seen after that, so no wake-up is lost; one whose bell could not be made delays the peer until its timer.
    /// Cost when the word was spoilt: one load.
    #[cold]
    pub fn pay_rings(&mut self, host: &mut dyn Host) -> Result<(), Unavailable> {
        self.owes.set(false);
        let pulled = self.pull(host);
        for peer in self.peers.iter().flatten() {
            peer.path.forget_owed();
        }
        pulled
    }
}
