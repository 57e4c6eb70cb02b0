//! What a program grants of its memory, and takes back: `dvk::binding::grants`, cut where it would wait.
//!
//! Key type: [`Estate`]. Neighbours: `copies` (what grantees do), `ledger::areas` (what the oracle knows of it).

use std::sync::Arc;
use std::time::Duration;

use abi::Endpoint;
use abi::grant::{Access, Grant, TABLE_BYTES, marker};
use abi::limits::REVOKE_WAIT_MS;
use abi::member::{Reply, Request, SegmentKind};
use fabric::Time;
use shm::grants::{OwnGrants, Place};
use shm::map::Mapping;
use shm::words::OwnWords;

use super::{Body, Next, Scene, State};
use crate::ledger::areas::{Area, Told, source_bytes};

/// Grants that may live at once.
const LIVE_MAX: usize = 12;

/// What a program has to grant: one segment that others read, one that one other writes, and one that is written by its
/// own copies alone.
pub(super) struct Estate {
    table: u32,
    grants: OwnGrants,
    pub(super) read: Land,
    pub(super) write: Land,
    pub(super) scratch: Land,
    free: Vec<u16>,
    used: u16,
    live: Vec<Live>,
}

/// A segment.
pub(super) struct Land {
    pub(super) segment: u32,
    pub(super) map: Arc<Mapping>,
    access: Access,
}

/// A grant that lives.
#[derive(Clone, Copy)]
pub(super) struct Live {
    index: u16,
    generation: u32,
    to: Endpoint,
    access: Access,
}

impl Estate {
    fn may_map(&self, access: Access, to: Endpoint) -> bool {
        self.live.iter().any(|live| (live.access, live.to) == (access, to))
    }

    fn land(&self, access: Access) -> &Land {
        match access {
            Access::Read => &self.read,
            Access::Write => &self.write,
        }
    }
}

impl Body {
    /// Makes what it has to grant, when it first needs it. False: the daemon would not.
    pub(super) fn settle_down(&mut self, scene: &mut Scene<'_>) -> bool {
        if self.estate.is_none() {
            // More than one step of a copy, where loans are long too.
            let long = scene.loan_log_max >= 16 && scene.dice.one_in(3);
            let pages = if long { scene.dice.between(257, 400) } else { scene.dice.between(1, 16) };
            self.estate = self.new_estate(scene, pages * 4096).map(Box::new);
        }
        self.estate.is_some()
    }

    fn new_estate(&mut self, scene: &mut Scene<'_>, bytes: u64) -> Option<Estate> {
        let me = self.me;
        let table = self.new_land(scene, SegmentKind::Grants, TABLE_BYTES as u64)?;
        let words = OwnWords::mapped(&table.map, 0, TABLE_BYTES / 8).ok()?;
        let read = self.new_land(scene, SegmentKind::GrantRead, bytes)?;
        read.map.write_from(0, &source_bytes(me, 0, bytes)).ok()?;
        let write = self.new_land(scene, SegmentKind::GrantWrite, bytes)?;
        let scratch = self.new_land(scene, SegmentKind::GrantWrite, bytes)?;
        for (land, is_scratch) in [(&write, false), (&scratch, true)] {
            scene.ledger.areas.insert((me, is_scratch), Area::new(Arc::clone(&land.map)));
        }
        scene.count("grant_segment");
        let (table, grants) = (table.segment, OwnGrants::new(words));
        Some(Estate { table, grants, read, write, scratch, free: Vec::new(), used: 0, live: Vec::new() })
    }

    fn new_land(&mut self, scene: &mut Scene<'_>, kind: SegmentKind, bytes: u64) -> Option<Land> {
        let mut hands = Body::hands(&mut self.home, self.conn, scene);
        let segment = hands.new_segment(kind, bytes).ok()?;
        let map = hands.site.pool(hands.home.memory, segment)?;
        let access = if kind == SegmentKind::GrantRead { Access::Read } else { Access::Write };
        Some(Land { segment, map, access })
    }

    /// Grants a range to somebody, and tells of it.
    pub(super) fn grant(&mut self, scene: &mut Scene<'_>, to: Endpoint) {
        if !self.settle_down(scene) {
            return;
        }
        let Some(estate) = &mut self.estate else { return };
        let granted = estate.live.iter().any(|live| live.access == Access::Write);
        let access = if !granted && scene.dice.below(2) == 0 { Access::Write } else { Access::Read };
        if estate.live.len() >= LIVE_MAX {
            return;
        }
        let bytes = estate.read.map.len_bytes() as u64;
        let offset_bytes = if scene.dice.one_in(3) { 0 } else { scene.dice.below(bytes) };
        let left = bytes - offset_bytes;
        let len_bytes = if scene.dice.one_in(3) { left } else { 1 + scene.dice.below(left) };
        let segment = estate.land(access).segment;
        if !estate.may_map(access, to)
            && scene.site.ask(scene.now, self.conn, Request::Grant { segment, to }).is_err()
        {
            return;
        }
        let index = estate.free.pop().unwrap_or_else(|| {
            estate.used += 1;
            estate.used - 1
        });
        let Some(generation) =
            estate.grants.put(index, to, Place { segment, access, offset_bytes, len_bytes })
        else {
            return;
        };
        estate.live.push(Live { index, generation, to, access });
        let grant = Grant { owner: self.me, table: estate.table, index, generation, access, len_bytes };
        scene.count("grant");
        scene.trace.note(
            scene.now,
            scene.site.id,
            format_args!("{} grants {to} {access:?} {index}", self.me),
        );
        if access == Access::Write {
            scene.ledger.ask_quiet((self.me, false));
        }
        scene.ledger.told.push(Told { grant, to, offset_bytes, revoked: false });
    }

    /// Takes a grant back.
    pub(super) fn revoke(&mut self, scene: &mut Scene<'_>) -> Next {
        let Some(estate) = &mut self.estate else { return self.think(scene) };
        if estate.live.is_empty() {
            return self.think(scene);
        }
        let live = estate.live.swap_remove(scene.dice.below(estate.live.len() as u64) as usize);
        estate.grants.end(live.index, live.generation);
        estate.free.push(live.index);
        scene.count("revoke");
        scene.trace.note(scene.now, scene.site.id, format_args!("{} revokes {}", self.me, live.index));
        self.revoking(scene, live, scene.now + Duration::from_millis(REVOKE_WAIT_MS))
    }

    pub(super) fn revoking(&mut self, scene: &mut Scene<'_>, live: Live, bound: Time) -> Next {
        let peer = if live.access == Access::Write { self.core.find(live.to) } else { None };
        let writing = peer.is_some_and(|peer| self.core.copying(peer) == marker(live.index, live.generation));
        if writing && scene.now < bound {
            self.state = State::Revoking { live, bound };
            return Next::At(scene.now + scene.dice.us(20, 200));
        }
        if self.take_back(scene, live, writing).is_none() {
            scene.row("revoke: unavailable");
        }
        self.think(scene)
    }

    fn take_back(&mut self, scene: &mut Scene<'_>, live: Live, writing: bool) -> Option<()> {
        let estate = self.estate.as_ref()?;
        let (segment, to) = (estate.land(live.access).segment, live.to);
        let answer = scene.site.ask(scene.now, self.conn, Request::Revoke { segment, to });
        let Ok(Reply::Revoked { held }) = answer else { return None };
        if held || writing {
            scene.row(if writing { "revoke: in the middle of a copy" } else { "revoke: pages moved" });
            self.move_pages(scene, live.access)?;
        } else if estate.may_map(live.access, to) {
            scene.site.ask(scene.now, self.conn, Request::Grant { segment, to }).ok()?;
        }
        let is_it = |told: &&mut Told| {
            (told.grant.owner, told.grant.index, told.grant.generation)
                == (self.me, live.index, live.generation)
        };
        scene.ledger.told.iter_mut().filter(is_it).for_each(|told| told.revoked = true);
        if live.access == Access::Write {
            scene.ledger.be_quiet((self.me, false));
        }
        Some(())
    }

    /// The contents go to fresh pages, and the other grants with them.
    fn move_pages(&mut self, scene: &mut Scene<'_>, access: Access) -> Option<()> {
        let old = Arc::clone(&self.estate.as_ref()?.land(access).map);
        let kind = if access == Access::Read { SegmentKind::GrantRead } else { SegmentKind::GrantWrite };
        let new = self.new_land(scene, kind, old.len_bytes() as u64)?;
        Mapping::copy_between(&old, 0, &new.map, 0, old.len_bytes()).ok()?;
        let estate = self.estate.as_mut()?;
        for live in estate.live.iter().filter(|live| live.access == access) {
            let grant = Request::Grant { segment: new.segment, to: live.to };
            scene.site.ask(scene.now, self.conn, grant).ok()?;
            estate.grants.set_segment(live.index, new.segment, access);
        }
        if access == Access::Write
            && let Some(area) = scene.ledger.areas.get_mut(&(self.me, false))
        {
            area.map = Arc::clone(&new.map);
        }
        let land = if new.access == Access::Read { &mut estate.read } else { &mut estate.write };
        let old = std::mem::replace(land, new);
        scene.site.ask(scene.now, self.conn, Request::DropSegment { segment: old.segment }).ok()?;
        Some(())
    }
}
