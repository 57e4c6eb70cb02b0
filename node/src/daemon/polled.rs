//! The bells of endpoints that poll: one for each that rings them, the daemon among them.
//!
//! Key type: [`Polled`]. Neighbours: `vault` (all other descriptors), the core's `polls` (who gets which end).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use abi::{DcId, Endpoint, Slot};
use shm::os::events::{self, Ringer};

/// Both ends, to be given away.
pub(super) struct Bell {
    pub rings: Arc<OwnedFd>,
    pub rung: Arc<OwnedFd>,
}

#[derive(Default)]
pub(super) struct Polled {
    /// By who polls and who rings; `None`: the daemon.
    bells: BTreeMap<(Endpoint, Option<Endpoint>), Bell>,
    /// By slot, what the daemon rings itself.
    own: BTreeMap<(DcId, Slot), Ringer>,
}

impl Polled {
    /// A bell, made when it is first wanted; `None`: no descriptors are left.
    pub fn bell(&mut self, polls: Endpoint, by: Option<Endpoint>) -> Option<&Bell> {
        if !self.bells.contains_key(&(polls, by)) {
            match self.make(polls, by) {
                Ok(bell) => drop(self.bells.insert((polls, by), bell)),
                Err(errno) => tracing::warn!(%polls, "bell not made: {errno}"),
            }
        }
        self.bells.get(&(polls, by))
    }

    fn make(&mut self, polls: Endpoint, by: Option<Endpoint>) -> Result<Bell, rustix::io::Errno> {
        let (rings, rung) = events::bell()?;
        let rung = Arc::new(rung.as_fd().try_clone_to_owned().map_err(errno_of)?);
        let fd = Arc::new(rings.as_fd().try_clone_to_owned().map_err(errno_of)?);
        if by.is_none() {
            self.own.insert((polls.dc, polls.slot), rings);
        }
        Ok(Bell { rings: fd, rung })
    }

    pub fn drop_bells(&mut self, polls: Endpoint, by: Option<Endpoint>) {
        match by {
            Some(_) => drop(self.bells.remove(&(polls, by))),
            None => {
                self.bells.retain(|(owner, _), _| *owner != polls);
                self.own.remove(&(polls.dc, polls.slot));
            }
        }
    }

    pub fn drop_dc(&mut self, dc: DcId) {
        self.bells.retain(|(owner, _), _| owner.dc != dc);
        self.own.retain(|(of, _), _| *of != dc);
    }

    /// Rings who polls in a slot, if anybody does. Whatever its sleep word says: the daemon rings seldom, and so a word that
    /// a peer spoilt, or swapped and died, hides no death.
    pub fn ring(&self, dc: DcId, slot: Slot) {
        if let Some(bell) = self.own.get(&(dc, slot)) {
            // A full one is rung; nothing else can go wrong with our own.
            let _ = bell.ring();
        }
    }
}

fn errno_of(error: std::io::Error) -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::MFILE)
}
