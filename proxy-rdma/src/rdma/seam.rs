//! The fabric's face: [`Fabric`] for [`RdmaFabric`].

use std::os::fd::AsFd;
use std::sync::Arc;

use abi::courier::Packed;
use abi::limits::{FRAME_BYTES_MAX, LOAN_BYTES_MAX};
use abi::{Incarnation, NodeId};
use fabric::regions::{Pieces, check, fail_late};
use fabric::{Armed, Caps, Completion, Desc, Fabric, Piece, RegionKey, Time, Waiter};
use shm::map::Mapping;

use super::{BULK_MAX, POSTED_MAX, Phase, ROUNDS_MAX, RdmaFabric};
use crate::frame::Source;
use crate::session::Outgoing;
use crate::verbs::{Memory, Remote, Rights, VerbsError};

impl RdmaFabric {
    /// Takes one descriptor for a session of RDMA; false: not now.
    fn post_one(&mut self, peer: NodeId, desc: &Desc<'_>) -> bool {
        let pieces = check(desc);
        if desc.bulk {
            return self.post_bulk(peer, desc, pieces);
        }
        let Some(link) = self.links.get_mut(&peer) else { return false };
        let Phase::Rdma(session) = &mut link.phase else { return false };
        if !session.post(desc, &pieces, &self.regions) {
            return false;
        }
        link.posted += 1;
        // It was copied.
        self.ready.push_back(Completion::Sent { peer, token: desc.token });
        true
    }

    fn post_bulk(&mut self, peer: NodeId, desc: &Desc<'_>, pieces: Pieces) -> bool {
        if self.session(peer).is_none_or(|session| session.outgoing.len() >= BULK_MAX) {
            return false;
        }
        let (sources, copy) = match self.sources(&pieces) {
            Ok(found) => found,
            Err(why) => {
                // Its memory is beyond what the device may have.
                self.fail(peer, why);
                return false;
            }
        };
        self.regions.hold_all(&pieces);
        let of = Outgoing { token: desc.token, pieces, _copy: copy };
        let Some(session) = self.session(peer) else { return false };
        match session.announce(desc.head, &sources, of) {
            Ok(()) => {
                self.links.entry(peer).or_default().posted += 1;
                true
            }
            Err(of) => {
                self.release_all(of.pieces.as_slice());
                false
            }
        }
    }

    /// Where the other end is to read a bulk message; and the copy of it, where its own memory cannot be registered.
    fn sources(&mut self, pieces: &Pieces) -> Result<(Vec<Source>, Option<Memory>), VerbsError> {
        let mut sources = Vec::new();
        for piece in pieces.as_slice().iter().filter(|piece| piece.len_bytes > 0) {
            match self.register(piece.region) {
                Ok(()) => {}
                Err(VerbsError::ReadOnlyMemory) => return self.copied(pieces),
                Err(why) => return Err(why),
            }
            let Some(memory) = self.registered.get(&piece.region) else { continue };
            let address = memory.address() + piece.offset_bytes;
            let remote = Remote { address, key: memory.remote_key() };
            sources.push(Source { remote, len_bytes: piece.len_bytes });
        }
        Ok((sources, None))
    }

    fn copied(&mut self, pieces: &Pieces) -> Result<(Vec<Source>, Option<Memory>), VerbsError> {
        let Ok(device) = &self.device else { return Err(VerbsError::NoDevices) };
        let len = pieces.len_bytes() as usize;
        let bytes = len.next_multiple_of(4096);
        let map = Mapping::anonymous(bytes).map_err(|_| VerbsError::MemoryLimit { bytes })?;
        let mut at = 0;
        for piece in pieces.as_slice() {
            let (from, part) = (self.regions.map(piece.region), piece.len_bytes as usize);
            let copied = Mapping::copy_between(from, piece.offset_bytes as usize, &map, at, part);
            copied.map_err(|_| VerbsError::OutOfRange)?;
            at += part;
        }
        let memory = Memory::register(&device.domain, &map, (0, len), Rights::RemoteRead)?;
        self.carried.copied_bytes += len as u64;
        let remote = Remote { address: memory.address(), key: memory.remote_key() };
        Ok((vec![Source { remote, len_bytes: len as u32 }], Some(memory)))
    }

    /// The same descriptors in the TCP fabric's words.
    fn post_by_tcp(&mut self, peer: NodeId, batch: &[Desc<'_>]) -> usize {
        let mut taken = 0;
        for desc in batch {
            let pieces = check(desc);
            let inner: Vec<Piece> = pieces.as_slice().iter().map(|piece| self.by_tcp(*piece)).collect();
            if self.tcp.post_send(peer, &[Desc { pieces: &inner, ..*desc }]) == 0 {
                break;
            }
            taken += 1;
        }
        self.links.entry(peer).or_default().posted += taken;
        taken
    }

    fn by_tcp(&self, piece: Piece) -> Piece {
        let region = self.keys.get(&piece.region).copied();
        Piece { region: region.expect("a region that is attached"), ..piece }
    }
}

impl Fabric for RdmaFabric {
    fn caps(&self) -> Caps {
        Caps {
            message_bytes_max: FRAME_BYTES_MAX,
            bulk_bytes_max: LOAN_BYTES_MAX as u64,
            posted_max: POSTED_MAX,
            zero_copy: false,
            bulk_in_place: true,
        }
    }

    fn attach(&mut self, map: &Arc<Mapping>) -> RegionKey {
        let key = self.regions.attach(map);
        self.keys.insert(key, self.tcp.attach(map));
        key
    }

    fn detach(&mut self, region: RegionKey) {
        if let Some(inner) = self.keys.remove(&region) {
            self.tcp.detach(inner);
        }
        self.regions.detach(region);
        self.forget_unused(region);
    }

    fn post_send(&mut self, peer: NodeId, batch: &[Desc<'_>]) -> usize {
        let Some(link) = self.links.get(&peer).filter(|link| link.told) else { return 0 };
        let room = POSTED_MAX.saturating_sub(link.posted);
        let batch = &batch[..batch.len().min(room)];
        match &link.phase {
            Phase::Down | Phase::Agreeing(_) => 0,
            Phase::Tcp { .. } => self.post_by_tcp(peer, batch),
            Phase::Rdma(session) if session.failed.is_some() => 0,
            Phase::Rdma(_) => {
                let taken = batch.iter().take_while(|desc| self.post_one(peer, desc)).count();
                if let Some(session) = self.session(peer) {
                    session.flush();
                }
                taken
            }
        }
    }

    fn post_recv(&mut self, free: &[Piece]) -> usize {
        for piece in free {
            assert!(piece.len_bytes >= FRAME_BYTES_MAX, "a posted buffer holds any message");
            self.regions.hold(*piece);
            self.free.push_back(*piece);
        }
        free.len()
    }

    fn accept(&mut self, peer: NodeId, token: u64, into: Piece) {
        let Some(link) = self.links.get_mut(&peer) else {
            return fail_late(&mut self.ready, peer, token, into);
        };
        let Some(name) = link.names.get(&token).copied() else {
            return fail_late(&mut self.ready, peer, token, into);
        };
        match &link.phase {
            Phase::Tcp { .. } => {
                link.accepted.insert(name, (token, into));
                let into = self.by_tcp(into);
                self.tcp.accept(peer, name, into);
            }
            Phase::Rdma(_) => {
                if let Err(why) = self.register(into.region) {
                    tracing::warn!(peer = peer.0, %why, "an extent is refused");
                    self.refuse(peer, token);
                    return fail_late(&mut self.ready, peer, token, into);
                }
                self.regions.hold(into);
                let Some(session) = self.session(peer) else { return };
                session.accept(name, into);
                if session.incoming.get(&name).is_some_and(|incoming| incoming.bytes == 0) {
                    session.incoming.remove(&name);
                    session.answer(name, true);
                    self.has_come(peer, token, into);
                }
                self.go_on();
            }
            Phase::Down | Phase::Agreeing(_) => fail_late(&mut self.ready, peer, token, into),
        }
    }

    fn refuse(&mut self, peer: NodeId, token: u64) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        let Some(name) = link.names.remove(&token) else { return };
        match &mut link.phase {
            Phase::Tcp { .. } => self.tcp.refuse(peer, name),
            Phase::Rdma(session) => {
                session.incoming.remove(&name);
                session.answer(name, false);
                session.flush();
            }
            Phase::Down | Phase::Agreeing(_) => {}
        }
    }

    fn poll(&mut self, now: Time, done: &mut Vec<Completion>) {
        if self.ready.len() < (done.capacity() - done.len()).max(1) {
            if std::mem::take(&mut self.armed)
                && let Ok(device) = &self.device
            {
                device.queue.clear();
            }
            let mut inner = std::mem::take(&mut self.inner);
            self.tcp.poll(now, &mut inner);
            inner.drain(..).for_each(|completion| self.hear(completion));
            self.inner = inner;
            for _ in 0..ROUNDS_MAX {
                if self.take_completions() == 0 {
                    break;
                }
            }
            self.give_on();
            self.go_on();
        }
        self.tell(done);
    }

    fn waiter(&self) -> Waiter<'_> {
        Waiter::Fd(self.epoll.as_fd())
    }

    fn arm(&mut self) -> Armed {
        if !self.ready.is_empty() || (!self.came.is_empty() && !self.free.is_empty()) {
            return Armed::MoreToDo;
        }
        if let Ok(device) = &self.device {
            self.armed = true;
            if let Err(why) = device.queue.arm() {
                tracing::warn!(%why, "the device does not tell of completions");
                return Armed::MoreToDo;
            }
            // One may have come before it was asked to tell.
            if self.take_completions() > 0 {
                return Armed::MoreToDo;
            }
        }
        self.tcp.arm()
    }

    fn deadline(&self) -> Option<Time> {
        self.tcp.deadline()
    }

    fn packed(&self) -> Packed {
        self.tcp.packed()
    }

    fn fence(&mut self, peer: NodeId, incarnation: Incarnation) {
        self.tcp.fence(peer, incarnation);
    }
}
