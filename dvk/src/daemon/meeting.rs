//! Driver: how pairs come to a binding: asked for, told of, moved; and those that find no room in this process, later.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use abi::limits::{SIDES_MORE, SIDES_SPARE_MIN};
use abi::member::{Introduction, Refusal, Reply, Request, Rings, SegmentKind};
use abi::{Endpoint, doorbell, side};
use shm::map::{Access, Mapping};
use shm::os::events::{Ringer, Rung};
use shm::side::{OwnSide, PeerSide};
use shm::words::{OwnWords, Words};

use super::{Daemon, no_memory};
use crate::core::{Host, Introduced, Pulled};
use crate::error::Unavailable;

impl Daemon {
    fn sides_used(&self) -> u32 {
        self.sides_of.len() as u32
    }

    fn add_sides(&mut self) -> Result<(), Unavailable> {
        let more = if self.of_peers.is_some() { 1 } else { SIDES_MORE };
        let (index, map) = self.new_segment(SegmentKind::Sides, more as u64 * side::BYTES as u64)?;
        self.own.insert(index, map);
        self.sides += more;
        Ok(())
    }

    /// Has sides for the next peers. It may come to a limit of its own or of the daemon's: whoever comes then finds it not
    /// ready, until a later look finds room.
    fn spare_sides(&mut self) -> Result<(), Unavailable> {
        while self.sides_used() + SIDES_SPARE_MIN > self.sides {
            match self.add_sides() {
                Err(Unavailable::Refused(_) | Unavailable::NoMemory) => break,
                added => added?,
            }
        }
        Ok(())
    }

    /// The pair with `to`. `Ok(None)`: the other side is not ready, ask again. `follow`: for a call of ours that was
    /// passed on to it.
    pub fn introduce(&mut self, to: Endpoint, follow: bool) -> Result<Option<Introduced>, Unavailable> {
        self.spare_sides()?;
        if self.sides_used() >= self.sides {
            return Err(Unavailable::Refused(Refusal::LimitReached));
        }
        let request = if follow { Request::Follow { to } } else { Request::Introduce { to } };
        match self.ask(request) {
            Ok((Reply::Introduced(introduction), fds)) => {
                let met = self.introduced(introduction, fds);
                self.remember(to, false, &met);
                met.map(Some)
            }
            Err(Unavailable::Refused(Refusal::NotReady)) => Ok(None),
            Ok(_) => Err(Unavailable::Broken),
            Err(why) => Err(why),
        }
    }

    fn introduced(&mut self, i: Introduction, fds: Vec<OwnedFd>) -> Result<Introduced, Unavailable> {
        let map = self.own.get(&i.own_segment).ok_or(Unavailable::Broken)?;
        let own = OwnWords::mapped(map, i.own_side as usize * side::BYTES, side::WORDS);
        let own = OwnSide::new(own.map_err(|_| Unavailable::Broken)?);
        let (side, ring) = self.far(&i, fds)?;
        self.sides_of.insert(i.peer);
        if let Some(of_peers) = &mut self.of_peers {
            of_peers.insert(i.peer, i.own_segment);
        }
        let doorbell = i.doorbell as usize;
        let Introduction { peer, memory, proxied, allowed, .. } = i;
        Ok(Introduced { peer, own, side, memory, doorbell, proxied, allowed, ring })
    }

    /// The side towards a peer is not used any more. Without a daemon nobody can use it again either.
    fn give_back(&mut self, peer: Endpoint) {
        let _ = self.done(Request::Recycled { peer });
    }

    /// A peer that could not be met is met later: for the daemon it is.
    fn remember<T>(&mut self, peer: Endpoint, moved: bool, met: &Result<T, Unavailable>) {
        match met {
            Err(Unavailable::NoMemory) => drop(self.unmet.entry(peer).or_insert(moved)),
            _ => drop(self.unmet.remove(&peer)),
        }
    }

    /// Somebody who could not be met before, and can be now.
    fn meet_late(&mut self) -> Result<Option<Pulled>, Unavailable> {
        let unmet: Vec<(Endpoint, bool)> = self.unmet.iter().map(|(peer, moved)| (*peer, *moved)).collect();
        for (peer, moved) in unmet {
            let met = match self.ask(Request::Introduce { to: peer }) {
                Ok((Reply::Introduced(i), fds)) if moved => self.moved(&i, fds),
                Ok((Reply::Introduced(i), fds)) => self.introduced(i, fds).map(Pulled::Introduced),
                // Its proxy is being replaced: it comes again.
                Err(Unavailable::Refused(Refusal::NotReady)) => continue,
                // It has ended. If we had it never, nobody else gives its side back.
                Err(Unavailable::Refused(_)) => {
                    self.unmet.remove(&peer);
                    if !moved {
                        self.give_back(peer);
                    }
                    continue;
                }
                Ok(_) => Err(Unavailable::Broken),
                Err(why) => Err(why),
            };
            match met {
                Ok(pulled) => {
                    self.unmet.remove(&peer);
                    return Ok(Some(pulled));
                }
                // Said before.
                Err(Unavailable::NoMemory) => {}
                Err(why) => return Err(why),
            }
        }
        Ok(None)
    }

    fn moved(&mut self, i: &Introduction, fds: Vec<OwnedFd>) -> Result<Pulled, Unavailable> {
        let (side, ring) = self.far(i, fds)?;
        let doorbell = i.doorbell as usize;
        Ok(Pulled::Moved { peer: i.peer, side, memory: i.memory, doorbell, ring })
    }

    /// The peer's side: only its own part of the segment is mapped.
    fn far(
        &mut self,
        i: &Introduction,
        fds: Vec<OwnedFd>,
    ) -> Result<(PeerSide, Option<Arc<Ringer>>), Unavailable> {
        if i.doorbell as usize >= doorbell::COUNT {
            return Err(Unavailable::Broken);
        }
        let mut fds = fds.into_iter();
        let fd = fds.next().ok_or_else(|| self.socket.missing())?;
        let offset = i.side as u64 * side::BYTES as u64;
        let map = Mapping::shared(fd.as_fd(), offset, side::BYTES, Access::ReadOnly).map_err(no_memory)?;
        let side = PeerSide::new(Words::mapped(&map, 0, side::WORDS).map_err(|_| Unavailable::Broken)?);
        let ring = self.take_rings(i.peer, i.rings, fds)?;
        if !i.proxied {
            return Ok((side, ring.map(Arc::new)));
        }
        let ring = Arc::new(ring.ok_or_else(|| self.socket.missing())?);
        Ok((side, Some(self.rings.entry(i.memory).or_insert(ring).clone())))
    }

    /// The descriptors by which a pair's ends wake each other: ours is watched, theirs is returned.
    fn take_rings(
        &mut self,
        peer: Endpoint,
        rings: Rings,
        mut fds: impl Iterator<Item = OwnedFd>,
    ) -> Result<Option<Ringer>, Unavailable> {
        let mut next = |wanted: bool| match wanted {
            true => fds.next().map(Some).ok_or_else(|| self.socket.missing()),
            false => Ok(None),
        };
        let (theirs, ours) = (next(rings.theirs)?, next(rings.ours)?);
        if let (Some(fd), Some(polling)) = (ours, &mut self.polling) {
            let rung = Rung::adopt(fd).map_err(|_| Unavailable::Broken)?;
            polling.watch(peer, rung).map_err(|_| Unavailable::NoMemory)?;
        }
        theirs.map(Ringer::adopt).transpose().map_err(|_| Unavailable::Broken)
    }

    /// A side segment of a private binding was one peer's, and is nobody's any more.
    fn let_go(&mut self, segment: u32) {
        if self.own.remove(&segment).is_some() {
            self.sides = self.sides.saturating_sub(1);
        }
    }
}

impl Host for Daemon {
    fn map_granted(
        &mut self,
        memory: u32,
        segment: u32,
        writable: bool,
    ) -> Result<Arc<Mapping>, Unavailable> {
        self.map(memory, segment, if writable { Access::ReadWrite } else { Access::ReadOnly })
    }

    fn map_segment(&mut self, memory: u32, segment: u32) -> Result<Arc<Mapping>, Unavailable> {
        self.map(memory, segment, Access::ReadOnly)
    }

    fn recycled(&mut self, peer: Endpoint) {
        self.sides_of.remove(&peer);
        if let Some(segment) = self.of_peers.as_mut().and_then(|of| of.remove(&peer)) {
            self.let_go(segment);
        }
        if let Some(polling) = &mut self.polling {
            polling.forget(peer);
        }
        self.give_back(peer);
    }

    fn pull(&mut self, patient: bool) -> Result<Option<Pulled>, Unavailable> {
        let answer = loop {
            match self.socket.pull(patient)? {
                (Reply::Spent { segment }, _) => self.let_go(segment),
                answer => break answer,
            }
        };
        let pulled = match answer {
            (Reply::Introduced(i), fds) => {
                let met = self.introduced(i, fds);
                self.remember(i.peer, false, &met);
                Some(Pulled::Introduced(met?))
            }
            (Reply::Moved(i), fds) => {
                let met = self.moved(&i, fds);
                self.remember(i.peer, true, &met);
                Some(met?)
            }
            (Reply::Gone { peer }, _) => {
                if self.unmet.remove(&peer) == Some(false) {
                    // The core never had it: nobody else gives its side back.
                    self.give_back(peer);
                }
                Some(Pulled::Gone { peer })
            }
            (Reply::Rings { peer, rings }, fds) => {
                let ring = self.take_rings(peer, rings, fds.into_iter())?;
                Some(Pulled::Rings { peer, ring: ring.map(Arc::new) })
            }
            (Reply::Warned { endpoint }, _) => Some(Pulled::Warned { endpoint }),
            (Reply::Nothing, _) => self.meet_late()?,
            _ => return Err(Unavailable::Broken),
        };
        match self.spare_sides() {
            // What was pulled is not asked for again: it is not lost for want of sides, which the next pull looks to.
            Err(why) if pulled.is_none() => Err(why),
            _ => Ok(pulled),
        }
    }
}
