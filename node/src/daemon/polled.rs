//! The bells of endpoints that poll: one for each that rings them, the daemon among them.
//!
//! Key type: [`Polled`]. Neighbours: `vault` (all other descriptors), the core's `polls` (who gets which end).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use abi::{DcId, Endpoint, Slot};
use shm::os::events::{self, Ringer};

use crate::keeper::{Keep, Key};

/// Both ends, to be given away.
pub(super) struct Bell {
    pub rings: Arc<OwnedFd>,
    pub rung: Arc<OwnedFd>,
}

pub(super) struct Polled {
    keep: Arc<Keep>,
    /// By who polls and who rings; `None`: the daemon.
    bells: BTreeMap<(Endpoint, Option<Endpoint>), Bell>,
    /// By slot, what the daemon rings itself.
    own: BTreeMap<(DcId, Slot), Ringer>,
}

impl Polled {
    pub fn new(keep: Arc<Keep>) -> Polled {
        Polled { keep, bells: BTreeMap::new(), own: BTreeMap::new() }
    }

    /// A bell that a predecessor made.
    pub fn regain(&mut self, polls: Endpoint, by: Option<Endpoint>, rings: OwnedFd, rung: OwnedFd) {
        if by.is_none() {
            let own = rings.try_clone().map_err(errno_of).and_then(Ringer::adopt);
            match own {
                Ok(own) => drop(self.own.insert((polls.dc, polls.slot), own)),
                Err(errno) => tracing::warn!(%polls, "bell not taken over: {errno}"),
            }
        }
        self.bells.insert((polls, by), Bell { rings: Arc::new(rings), rung: Arc::new(rung) });
    }

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
        self.keep.put(Key::Rings { polls, by }, &rings);
        self.keep.put(Key::Rung { polls, by }, &rung);
        if by.is_none() {
            self.own.insert((polls.dc, polls.slot), rings);
        }
        Ok(Bell { rings: fd, rung })
    }

    pub fn drop_bells(&mut self, polls: Endpoint, by: Option<Endpoint>) {
        match by {
            Some(_) => self.drop_some(|key| *key == (polls, by)),
            None => {
                self.drop_some(|(owner, _)| *owner == polls);
                self.own.remove(&(polls.dc, polls.slot));
            }
        }
    }

    fn drop_some(&mut self, which: impl Fn(&(Endpoint, Option<Endpoint>)) -> bool) {
        let keep = &self.keep;
        self.bells.retain(|key, _| {
            let goes = which(key);
            if goes {
                let (polls, by) = *key;
                keep.give_up(Key::Rings { polls, by });
                keep.give_up(Key::Rung { polls, by });
            }
            !goes
        });
    }

    pub fn drop_dc(&mut self, dc: DcId) {
        self.drop_some(|(owner, _)| owner.dc == dc);
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
