//! Copies, the pure part: grants of peers looked up, one step of a copy on this node, requests to couriers.
//!
//! Neighbours: `shm::grants` (table, marker, request), `binding::copy` (which waits and decides between nodes).

use std::collections::VecDeque;
use std::sync::Arc;

use abi::grant::{Access, CopyRequest, Grant, Status, TABLE_BYTES, marker};
use abi::limits::GRANTED_MAPS_MAX;
use abi::{Endpoint, Kinds};
use shm::grants::PeerGrants;
use shm::map::Mapping;
use shm::words::Words;

use super::{Core, Host, Known, PeerIndex};
use crate::error::CopyError;

/// Segments of peers that are mapped for copies: by memory and segment, the last used first.
pub(super) type Maps = VecDeque<((u32, u32), Arc<Mapping>)>;

/// One end of a copy, on this node.
#[derive(Clone)]
pub enum Here {
    /// Of a segment of ours, from this byte on.
    Own { segment: u32, map: Arc<Mapping>, offset_bytes: u64 },
    /// Of a peer's grant, from this byte of it on.
    Granted { peer: PeerIndex, grant: Grant, offset_bytes: u64 },
}

impl Core {
    /// Where a part of a peer's grant is: `len` bytes from `from` on of the `total` that are copied.
    #[expect(clippy::too_many_arguments, reason = "one range in another, of a grant of a peer")]
    fn find_grant(
        &mut self,
        peer: PeerIndex,
        grant: &Grant,
        start: u64,
        from: u64,
        total: u64,
        access: Access,
        host: &mut dyn Host,
    ) -> Result<(Arc<Mapping>, usize), CopyError> {
        let me = self.me;
        let memory = self.peer(peer).ok_or(CopyError::DeadSource)?.memory;
        if self.known(grant.owner) != Known::Alive {
            return Err(CopyError::DeadSource);
        }
        let no_grant = |core: &Core| core.no_grant(grant.owner);
        let Some(table) = self.map_of((memory, grant.table), false, host) else { return Err(no_grant(self)) };
        let Ok(words) = Words::mapped(&table, 0, TABLE_BYTES / 8) else { return Err(no_grant(self)) };
        let place = PeerGrants::new(words).find(grant.index, grant.generation, me);
        let place = place.filter(|place| access == Access::Read || place.access == access);
        let Some((place, at)) = place.and_then(|place| Some((place, place.at(start, total)?))) else {
            return Err(no_grant(self));
        };
        let writable = place.access == Access::Write;
        let Some(map) = self.map_of((memory, place.segment), writable, host) else {
            return Err(no_grant(self));
        };
        let fits = at.checked_add(total).is_some_and(|end| end <= map.len_bytes() as u64);
        if fits { Ok((map, (at + from) as usize)) } else { Err(no_grant(self)) }
    }

    /// Why a grant cannot be had: its owner has ended, or does not grant it.
    pub fn no_grant(&self, owner: Endpoint) -> CopyError {
        if self.is_over(owner) { CopyError::DeadSource } else { CopyError::NoGrant }
    }

    fn map_of(&mut self, key: (u32, u32), writable: bool, host: &mut dyn Host) -> Option<Arc<Mapping>> {
        if let Some(at) = self.granted_maps.iter().position(|(k, _)| *k == key) {
            let found = self.granted_maps.remove(at)?;
            let map = Arc::clone(&found.1);
            self.granted_maps.push_front(found);
            return Some(map);
        }
        let map = host.map_granted(key.0, key.1, writable).ok()?;
        self.granted_maps.truncate(GRANTED_MAPS_MAX - 1);
        self.granted_maps.push_front((key, Arc::clone(&map)));
        Some(map)
    }

    /// Copies `len` bytes from `from` on of the `total`, looking at every grant before and after.
    pub fn copy_step(
        &mut self,
        source: &Here,
        target: &Here,
        from: u64,
        len: usize,
        total: u64,
        host: &mut dyn Host,
    ) -> Result<(), CopyError> {
        let through = match target {
            Here::Granted { peer, grant, .. } => self.peer(*peer).map(|p| (p.path.own.clone(), *grant)),
            Here::Own { .. } => None,
        };
        if let Some((own, grant)) = &through {
            own.begin_step(marker(grant.index, grant.generation));
        }
        let mut step = || {
            let (source_map, source_at) = self.find_end(source, from, total, Access::Read, host)?;
            let (target_map, target_at) = self.find_end(target, from, total, Access::Write, host)?;
            let copied = Mapping::copy_between(&source_map, source_at, &target_map, target_at, len);
            copied.map_err(|_| CopyError::OutOfRange)?;
            shm::lane::look_again();
            self.find_end(source, from, total, Access::Read, host)?;
            self.find_end(target, from, total, Access::Write, host).map(|_| ())
        };
        let done = step();
        if let Some((own, _)) = through {
            own.end_step();
        }
        done
    }

    fn find_end(
        &mut self,
        end: &Here,
        from: u64,
        total: u64,
        access: Access,
        host: &mut dyn Host,
    ) -> Result<(Arc<Mapping>, usize), CopyError> {
        match end {
            Here::Own { map, offset_bytes, .. } => Ok((Arc::clone(map), (offset_bytes + from) as usize)),
            Here::Granted { peer, grant, offset_bytes } => {
                self.find_grant(*peer, grant, *offset_bytes, from, total, access, host)
            }
        }
    }

    /// Says that a peer's grant is written through by couriers on our behalf, until [`Core::end_writing`].
    pub fn begin_writing(&self, target: &Here) {
        if let Here::Granted { peer, grant, .. } = target
            && let Some(peer) = self.peer(*peer)
        {
            peer.path.own.begin_step(marker(grant.index, grant.generation));
        }
    }

    pub fn end_writing(&self, target: &Here) {
        if let Here::Granted { peer, .. } = target
            && let Some(peer) = self.peer(*peer)
        {
            peer.path.own.end_step();
        }
    }

    /// The grant of ours that the peer is writing through: its marker.
    pub fn copying(&self, peer: PeerIndex) -> u64 {
        self.peer(peer).map_or(0, |peer| peer.side.copying())
    }

    /// The memory behind a pair: another one after its proxy was replaced.
    pub fn memory_of(&self, index: PeerIndex) -> Option<u32> {
        self.peer(index).map(|peer| peer.memory)
    }

    /// Whether the rules let us copy from or to the peer.
    pub fn may_copy(&self, index: PeerIndex) -> bool {
        self.peer(index).is_some_and(|peer| peer.allowed.to_peer.has(Kinds::COPY))
    }

    pub fn is_proxied(&self, index: PeerIndex) -> bool {
        self.peer(index).is_some_and(|peer| peer.proxied)
    }

    /// Asks the couriers of a pair for a copy; returns its number.
    pub fn ask_copy(&self, index: PeerIndex, request: &CopyRequest) -> u64 {
        let Some(peer) = self.peer(index) else { return 0 };
        let number = peer.path.own.ask_copy(request);
        peer.path.knock();
        number
    }

    /// The request of this number has another word in it now. Nobody needs to be told.
    pub fn ask_copy_again(&self, index: PeerIndex, number: u64, request: &CopyRequest) {
        if let Some(peer) = self.peer(index) {
            peer.path.own.ask_copy_again(number, request);
        }
    }

    #[inline]
    pub fn copy_answer(&self, index: PeerIndex, number: u64) -> Option<Status> {
        self.peer(index)?.side.copy_answer(number)
    }

    /// There is no request any more; a courier's successor that has not begun yet does not begin.
    pub fn end_copy(&self, index: PeerIndex) {
        if let Some(peer) = self.peer(index) {
            peer.path.own.end_copy();
        }
    }
}
