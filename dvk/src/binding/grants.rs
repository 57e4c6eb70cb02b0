//! Driver: what others are granted of our memory: segments, grants, revocation.
//!
//! Neighbours: `shm::grants` (the table), `granted` (the segments), `copy` (what a grantee does).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use abi::Endpoint;
use abi::grant::{Access, Grant, TABLE_BYTES, marker};
use abi::limits::{COPY_BYTES_MAX, GRANTS_MAX, REVOKE_WAIT_MS};
use abi::member::SegmentKind;
use crossbeam_utils::Backoff;
use shm::grants::{OwnGrants, Place};
use shm::map::{Mapping, PAGE_BYTES};
use shm::words::OwnWords;

use super::Binding;
use crate::error::{GrantError, Unavailable};
use crate::granted::{GrantSegment, Live, Shared};

/// What a revocation moves at once: where a writer and the move meet, one such piece may be torn.
const MOVE_BYTES: usize = 4096;

/// What this binding grants.
#[derive(Default)]
pub(crate) struct Granting {
    table: Option<(u32, OwnGrants)>,
    free: Vec<u16>,
    used: u16,
    segments: Vec<Rc<Shared>>,
}

fn kind_of(access: Access) -> SegmentKind {
    match access {
        Access::Read => SegmentKind::GrantRead,
        Access::Write => SegmentKind::GrantWrite,
    }
}

impl Binding {
    /// Memory of which others can be granted ranges: for reading, to any number of them, or for writing, to one at a time.
    ///
    /// Units: bytes, up to `limits::COPY_BYTES_MAX`, all pages present. Cost: two round trips to the daemon, and the making
    /// of the pages. Source: grants as in MINIX `cpf_grant_direct`.
    pub fn grant_segment(&mut self, len_bytes: u64, access: Access) -> Result<GrantSegment, GrantError> {
        self.reap_segments();
        if len_bytes == 0 || len_bytes > COPY_BYTES_MAX {
            return Err(GrantError::TooLong);
        }
        let pages = len_bytes.next_multiple_of(PAGE_BYTES as u64);
        let made = self.daemon.new_segment(kind_of(access), pages);
        let (segment, map) = made.map_err(GrantError::Unavailable)?;
        let shared = Rc::new(Shared {
            access,
            len_bytes,
            segment: Cell::new(segment),
            map: RefCell::new(map),
            grants: RefCell::new(Vec::new()),
        });
        self.granting.segments.push(Rc::clone(&shared));
        Ok(GrantSegment { shared })
    }

    /// Grants a range of a segment to one endpoint, for what the segment is good for, until it is revoked.
    ///
    /// The grant is a value to be sent to it ([`Grant::to_bytes`]); it is of no use to others. Cost: a round trip to the
    /// daemon for the first grant of a segment to an endpoint, else a cache line.
    pub fn grant(
        &mut self,
        segment: &GrantSegment,
        offset_bytes: u64,
        len_bytes: u64,
        to: Endpoint,
    ) -> Result<Grant, GrantError> {
        self.reap_segments();
        segment.check(offset_bytes, len_bytes).map_err(|_| GrantError::OutOfRange)?;
        let me = self.whoami();
        if to == me || to.dc != me.dc {
            return Err(GrantError::ToNobody);
        }
        let shared = &segment.shared;
        let others = shared.grants.borrow().iter().any(|live| live.to != to);
        if shared.access == Access::Write && others {
            return Err(GrantError::WrittenByAnother);
        }
        self.make_table()?;
        if !shared.may_map(to) {
            self.daemon.grant(shared.segment.get(), to).map_err(GrantError::Unavailable)?;
        }
        let access = shared.access;
        let place = Place { segment: shared.segment.get(), access, offset_bytes, len_bytes };
        while let Some(index) = self.granting.next_index() {
            let Some((table, grants)) = &self.granting.table else { break };
            // An entry that has had all its generations is not used again.
            let Some(generation) = grants.put(index, to, place) else { continue };
            shared.grants.borrow_mut().push(Live { index, generation, to });
            return Ok(Grant { owner: me, table: *table, index, generation, access, len_bytes });
        }
        Err(GrantError::TooMany)
    }

    fn make_table(&mut self) -> Result<(), GrantError> {
        if self.granting.table.is_none() {
            let made = self.daemon.new_segment(SegmentKind::Grants, TABLE_BYTES as u64);
            let (segment, map) = made.map_err(GrantError::Unavailable)?;
            let words = OwnWords::mapped(&map, 0, TABLE_BYTES / 8);
            let words = words.map_err(|_| GrantError::Unavailable(Unavailable::Broken))?;
            self.granting.table = Some((segment, OwnGrants::new(words)));
        }
        Ok(())
    }

    /// Takes a grant back. When this returns, nothing more of the segment is written or read through it: a copy that was
    /// in the middle of it ends with `NoGrant`, and what it had written is a beginning of it.
    ///
    /// Cost: a round trip to the daemon; up to `limits::REVOKE_WAIT_MS` for a copier in the middle of a step; if the grantee
    /// had the segment mapped, or does not end its step, a copy of the whole segment to fresh pages.
    pub fn revoke(&mut self, grant: &Grant) -> Result<(), GrantError> {
        self.reap_segments();
        let found = self.granting.segments.iter().find(|shared| shared.has(grant)).cloned();
        let shared = found.filter(|_| grant.owner == self.whoami()).ok_or(GrantError::NoSuchGrant)?;
        let Some(live) = self.end_grant(&shared, grant.index) else { return Err(GrantError::NoSuchGrant) };
        let writing = shared.access == Access::Write && self.is_copying(&live);
        let segment = shared.segment.get();
        let held = self.daemon.revoke(segment, live.to).map_err(GrantError::Unavailable)?;
        if held || writing {
            self.move_pages(&shared)?;
        } else if shared.may_map(live.to) {
            self.daemon.grant(segment, live.to).map_err(GrantError::Unavailable)?;
        }
        Ok(())
    }

    fn end_grant(&mut self, shared: &Shared, index: u16) -> Option<Live> {
        let mut grants = shared.grants.borrow_mut();
        let at = grants.iter().position(|live| live.index == index)?;
        let live = grants.swap_remove(at);
        if let Some((_, table)) = &self.granting.table {
            table.end(live.index, live.generation);
        }
        self.granting.free.push(live.index);
        Some(live)
    }

    /// Whether the grantee is still in the middle of a step after all that it is given to end it.
    fn is_copying(&mut self, live: &Live) -> bool {
        let Some(peer) = self.core.find(live.to) else { return false };
        let bound = Instant::now() + Duration::from_millis(REVOKE_WAIT_MS);
        let backoff = Backoff::new();
        while self.core.copying(peer) == marker(live.index, live.generation) {
            if Instant::now() >= bound {
                return true;
            }
            backoff.snooze();
        }
        false
    }

    /// Moves a segment's contents to fresh pages, the last bytes first: a writer goes the other way, so what is kept of
    /// what it still writes is a beginning. The other grants go on with the new pages.
    fn move_pages(&mut self, shared: &Shared) -> Result<(), GrantError> {
        let old = Arc::clone(&shared.map.borrow());
        let made = self.daemon.new_segment(kind_of(shared.access), old.len_bytes() as u64);
        let (segment, map) = made.map_err(GrantError::Unavailable)?;
        let mut left = old.len_bytes();
        while left > 0 {
            let len = MOVE_BYTES.min(left);
            left -= len;
            Mapping::copy_between(&old, left, &map, left, len).map_err(|_| GrantError::OutOfRange)?;
        }
        let grants = shared.grants.borrow().clone();
        for live in &grants {
            self.daemon.grant(segment, live.to).map_err(GrantError::Unavailable)?;
            if let Some((_, table)) = &self.granting.table {
                table.set_segment(live.index, segment, shared.access);
            }
        }
        *shared.map.borrow_mut() = map;
        let old = shared.segment.replace(segment);
        self.daemon.drop_segment(old).map_err(GrantError::Unavailable)
    }

    /// Gives up the segments whose handles are gone, and ends what was granted of them.
    fn reap_segments(&mut self) {
        let mut at = 0;
        while at < self.granting.segments.len() {
            if Rc::strong_count(&self.granting.segments[at]) > 1 {
                at += 1;
                continue;
            }
            let shared = self.granting.segments.swap_remove(at);
            let grants = shared.grants.borrow().clone();
            for live in grants {
                self.end_grant(&shared, live.index);
            }
            // Without a daemon nobody gets it any more either.
            let _ = self.daemon.drop_segment(shared.segment.get());
        }
    }
}

impl Granting {
    fn next_index(&mut self) -> Option<u16> {
        if let Some(index) = self.free.pop() {
            return Some(index);
        }
        let index = Some(self.used).filter(|index| *index < GRANTS_MAX)?;
        self.used += 1;
        Some(index)
    }
}
