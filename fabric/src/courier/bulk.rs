//! Extents on the wire: announced by the far end, pulled when the receiver's share of our pool has room, and given to
//! the local endpoint in place of the far one.

use std::collections::BTreeSet;

use abi::limits::{
    EXTENTS_PER_PAIR_MAX, POOL_SEGMENT_BYTES_MIN, PROXY_POOL_BYTES_MAX, PROXY_RECEIVER_BYTES_MAX,
};
use abi::record::{Kind, Record};
use abi::slot::SlotCopy;
use abi::{Claim, DcId, NodeId};
use shm::lane::look_again;
use shm::pool::Extent;
use shm::reply;

use super::fair::{self, Pull};
use super::pair::{Held, Lent, Wanted};
use super::{Courier, Output, PairIndex};
use crate::{Fabric, Piece};

/// An announced extent that waits for room in our pool, or is on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) node: NodeId,
    pub(super) token: u64,
    pub(super) pair: PairIndex,
    what: What,
    len_bytes: u32,
    /// Our token of the extent it comes into, and the extent: it outlives the pair until the fabric is done with it.
    coming: Option<u32>,
    into: Option<Into>,
}

/// An extent of ours, by the DC that it is counted for and the memory that it lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Into {
    dc: DcId,
    store: u32,
    extent: Extent,
}

impl Waiting {
    pub(super) fn is_coming(&self) -> bool {
        self.coming.is_some()
    }

    pub(super) fn is_of(&self, pair: PairIndex, what: What) -> bool {
        self.pair == pair && self.what == what
    }
}

/// No pair: it was detached while its extent was coming.
const NO_PAIR: PairIndex = PairIndex(u32::MAX);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    Slot(u64),
    Reply(u64),
}

impl Courier {
    /// The far end has an extent for a slot or reply that has arrived.
    pub(super) fn announced(
        &mut self,
        node: NodeId,
        token: u64,
        bulk_bytes: u64,
        buffer: Piece,
        len_bytes: u32,
        fabric: &mut dyn Fabric,
    ) {
        let mut head = Vec::new();
        self.read_buffer(buffer, len_bytes, &mut head);
        if let Ok(record) = Record::check(&head)
            && record.kind == Kind::CopyData
        {
            return self.copy_announced(node, token, bulk_bytes, &record, &head, fabric);
        }
        match self.expected(node, &head, bulk_bytes) {
            Some((pair, what)) => {
                let waiting = Waiting {
                    node,
                    token,
                    pair,
                    what,
                    len_bytes: bulk_bytes as u32,
                    coming: None,
                    into: None,
                };
                self.waiting.push_back(waiting);
                self.retry_waiting(fabric);
            }
            None => fabric.refuse(node, token),
        }
    }

    /// Which arrived slot or reply an announcement is for, if we want it.
    fn expected(&mut self, node: NodeId, head: &[u8], bulk_bytes: u64) -> Option<(PairIndex, What)> {
        let record = Record::check(head).ok()?;
        let ends = record.pair?;
        let index = *self.by_ends.get(&(ends.destination, ends.source))?;
        let pair = self.pair_mut(index)?;
        if pair.node != node || pair.closed {
            return None;
        }
        let what = match record.kind {
            Kind::SlotExtent => What::Slot(record.arg),
            Kind::ReplyExtent => What::Reply(record.arg),
            _ => return None,
        };
        let held = match what {
            What::Slot(sequence) => pair.held.iter_mut().find(|h| h.slot.sequence == sequence)?,
            What::Reply(call) => pair.held_reply.as_mut().filter(|h| h.slot.sequence == call)?,
        };
        let right = held.extent == Wanted::Missing && held.slot.claim()?.len_bytes == bulk_bytes;
        // Whatever was waiting for the same thing is superseded: its session is gone.
        self.waiting.retain(|w| w.pair != index || w.what != what || w.coming.is_some());
        right.then_some((index, what))
    }

    /// Accepts what waits and now finds room, oldest first for each receiver, as far as the shares of its pair and DC go.
    pub(super) fn retry_waiting(&mut self, fabric: &mut dyn Fabric) {
        let mut behind = BTreeSet::new();
        let mut full = BTreeSet::new();
        for at in 0..self.waiting.len() {
            let waiting = self.waiting[at];
            let is_slot = matches!(waiting.what, What::Slot(_));
            // What comes behind one that waits would only take the room that it waits for.
            if waiting.coming.is_some() || (is_slot && behind.contains(&waiting.pair)) {
                continue;
            }
            let Some((dc, pull)) = self.may_pull(&waiting) else { continue };
            if full.contains(&(dc, waiting.node)) {
                continue;
            }
            if pull == Pull::DcWaits {
                full.insert((dc, waiting.node));
            }
            let room = if pull == Pull::Now { self.make_room(waiting.pair, waiting.len_bytes) } else { None };
            let Some((token, piece)) = room else {
                behind.insert(waiting.pair);
                continue;
            };
            self.count_coming(dc, &waiting, waiting.len_bytes as i64);
            self.waiting[at].coming = Some(token);
            self.waiting[at].into = self.pair(waiting.pair).and_then(|pair| {
                let lent = pair.lent.get(token as usize).copied().flatten()?;
                Some(Into { dc: pair.local.dc, store: pair.store, extent: lent.extent })
            });
            self.set_extent(waiting.pair, waiting.what, Wanted::Coming(token));
            fabric.accept(waiting.node, waiting.token, piece);
        }
    }

    fn may_pull(&self, waiting: &Waiting) -> Option<(DcId, Pull)> {
        let pair = self.pair(waiting.pair)?;
        let dc = self.dcs.get(&pair.local.dc)?;
        let of_dc = dc.coming.get(&waiting.node).copied().unwrap_or(0);
        Some((pair.local.dc, fair::may_pull(waiting.len_bytes as u64, pair.coming_bytes, of_dc)))
    }

    fn count_coming(&mut self, dc: DcId, waiting: &Waiting, bytes: i64) {
        if let Some(dc) = self.dcs.get_mut(&dc) {
            let coming = dc.coming.entry(waiting.node).or_default();
            *coming = coming.saturating_add_signed(bytes);
        }
        if let Some(pair) = self.pair_mut(waiting.pair) {
            pair.coming_bytes = pair.coming_bytes.saturating_add_signed(bytes);
        }
    }

    /// Room for one extent in the receiver's share, or a request for more pool.
    fn make_room(&mut self, index: PairIndex, len_bytes: u32) -> Option<(u32, Piece)> {
        let pair = self.pair(index)?;
        // The local endpoint gives them back through a ring of so many entries.
        if pair.lent.iter().flatten().count() as u64 >= EXTENTS_PER_PAIR_MAX {
            return None;
        }
        let (dc_id, slot, memory) = (pair.local.dc, pair.local.slot.0, pair.store);
        let dc = self.dcs.get_mut(&dc_id)?;
        let store = self.stores.get_mut(&memory)?;
        let held = dc.held.get(&slot).copied().unwrap_or(0);
        // One extent larger than the share is let through alone.
        if held > 0 && held + len_bytes as u64 > PROXY_RECEIVER_BYTES_MAX {
            return None;
        }
        let Some(extent) = store.pool.alloc(len_bytes) else {
            let more = (len_bytes as u64).next_power_of_two().max(POOL_SEGMENT_BYTES_MIN);
            if !store.asked && store.pool.total_bytes() + more <= PROXY_POOL_BYTES_MAX {
                store.asked = true;
                self.outputs.push(Output::NewPoolSegment { memory, len_bytes: more });
            }
            return None;
        };
        let region = *store.regions.get(&extent.segment)?;
        *dc.held.entry(slot).or_default() += len_bytes as u64;
        let pair = self.pair_mut(index)?;
        let token = match pair.lent.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                pair.lent.push(None);
                pair.lent.len() - 1
            }
        };
        pair.lent[token] = Some(Lent { extent });
        Some((token as u32, Piece { region, offset_bytes: extent.offset_bytes, len_bytes }))
    }

    /// The pair goes away: what only waits is refused, what is coming has no taker any more.
    pub(super) fn abandon_waiting(&mut self, index: PairIndex, fabric: &mut dyn Fabric) {
        let Some(pair) = self.pair(index) else { return };
        let (dc_id, slot) = (pair.local.dc, pair.local.slot.0);
        let mut orphaned = 0;
        self.waiting.retain_mut(|w| {
            if w.pair != index {
                return true;
            }
            if w.coming.is_none() {
                fabric.refuse(w.node, w.token);
                return false;
            }
            w.pair = NO_PAIR;
            orphaned += w.len_bytes as u64;
            true
        });
        if let Some(held) = self.dcs.get_mut(&dc_id).and_then(|dc| dc.held.get_mut(&slot)) {
            *held = held.saturating_sub(orphaned);
        }
    }

    /// The pool that they are coming into goes away: the fabric keeps the memory until it is done, nobody keeps account.
    pub(super) fn forget_extents_of(&mut self, dc: DcId) {
        for waiting in &mut self.waiting {
            waiting.into = waiting.into.filter(|into| into.dc != dc);
        }
    }

    fn held(&mut self, index: PairIndex, what: What) -> Option<&mut Held> {
        let pair = self.pair_mut(index)?;
        match what {
            What::Slot(sequence) => pair.held.iter_mut().find(|h| h.slot.sequence == sequence),
            What::Reply(call) => pair.held_reply.as_mut().filter(|h| h.slot.sequence == call),
        }
    }

    fn extent_of(&mut self, index: PairIndex, what: What) -> Option<Wanted> {
        self.held(index, what).map(|held| held.extent)
    }

    fn set_extent(&mut self, index: PairIndex, what: What, state: Wanted) {
        if let Some(held) = self.held(index, what) {
            held.extent = state;
        }
    }

    /// An accepted extent is in place, or will not come in this session.
    pub(super) fn bulk_ended(&mut self, node: NodeId, token: u64, whole: bool) {
        if self.copy_step_ended(node, token, whole) {
            return;
        }
        let Some(at) = self.waiting.iter().position(|w| w.node == node && w.token == token) else { return };
        let Some(waiting) = self.waiting.remove(at) else { return };
        let Some(ours) = waiting.coming else { return };
        if let Some(Into { dc, .. }) = waiting.into {
            self.count_coming(dc, &waiting, -(waiting.len_bytes as i64));
            self.room_came = true;
        }
        let index = waiting.pair;
        if index == NO_PAIR {
            if let Some(Into { store, extent, .. }) = waiting.into
                && let Some(store) = self.stores.get_mut(&store)
                && store.pool.free(extent).is_err()
            {
                self.totals.corrupt += 1;
            }
            return;
        }
        if !whole {
            if self.extent_of(index, waiting.what) == Some(Wanted::Coming(ours)) {
                self.set_extent(index, waiting.what, Wanted::Missing);
            }
            self.take_home(index, ours);
            return;
        }
        self.totals.bytes_received += waiting.len_bytes as u64;
        // A reply may have been given up meanwhile.
        self.mark_dirty(index);
        if self.pair(index).is_some_and(|pair| pair.ended.is_some()) {
            // Nobody is there any more to take it, or to give it back.
            self.take_home(index, ours);
            return;
        }
        let Some(pair) = self.pair_mut(index) else { return };
        let Some(Lent { extent }) = pair.lent.get(ours as usize).copied().flatten() else { return };
        match waiting.what {
            What::Slot(sequence) => {
                if let Some(held) = pair.held.iter_mut().find(|h| h.slot.sequence == sequence) {
                    put_claim(&mut held.slot, extent, ours);
                    held.extent = Wanted::Ready;
                }
                self.publish_ready(index);
            }
            What::Reply(call) => self.publish_reply(index, call, extent, ours),
        }
    }

    fn publish_reply(&mut self, index: PairIndex, call: u64, extent: Extent, token: u32) {
        let Some(pair) = self.pair_mut(index) else { return };
        let Some(held) = pair.held_reply.take_if(|h| h.slot.sequence == call) else {
            self.take_home(index, token);
            return;
        };
        let earlier = pair.replied.replace((call, token));
        let taken = pair.side.reply_taken();
        let mut slot = held.slot;
        put_claim(&mut slot, extent, token);
        reply::publish(&pair.own, call, &slot, true);
        // An earlier reply that was never taken: its client has called again, so it never will be.
        if let Some((earlier, token)) = earlier
            && taken < earlier
        {
            self.take_home(index, token);
        }
        self.publish_ready(index);
    }

    /// A newer reply takes the place of one that is still held.
    pub(super) fn drop_held_reply(&mut self, index: PairIndex) {
        let Some(pair) = self.pair_mut(index) else { return };
        if let Some(held) = pair.held_reply.take()
            && held.extent == Wanted::Missing
        {
            let call = held.slot.sequence;
            self.waiting.retain(|w| w.pair != index || w.what != What::Reply(call));
        }
    }

    /// Takes home the extent of a reply that the local endpoint gave up and so never takes.
    fn bring_home_reply(&mut self, index: PairIndex) {
        let Some(pair) = self.pair_mut(index) else { return };
        let Some((call, token)) = pair.replied.filter(|(call, _)| pair.side.gave_up() >= *call) else {
            return;
        };
        // What it took before it gave up a later call is seen after the fence that its later call has passed.
        look_again();
        pair.replied = None;
        if pair.side.reply_taken() < call {
            self.take_home(index, token);
        }
    }

    /// Takes home what the local endpoint has given back.
    pub(super) fn bring_home(&mut self, index: PairIndex) {
        self.bring_home_reply(index);
        loop {
            let Some(pair) = self.pair_mut(index) else { return };
            let side = pair.side.clone();
            let store = pair.store;
            match pair.returns.next(&side) {
                Ok(None) => return,
                Ok(Some((token, memory))) => {
                    // What belonged to a predecessor's memory is not ours to take back.
                    if store == memory {
                        self.take_home(index, token);
                    }
                }
                // It has heard of the peer's end, from us, from a predecessor of ours or from the daemon, and has closed
                // the pair; we are about to be told to let go.
                Err(_) if pair.returns.went_back(&side) => return,
                Err(corrupt) => {
                    self.condemn(index, corrupt);
                    return;
                }
            }
        }
    }

    pub(super) fn take_home(&mut self, index: PairIndex, token: u32) {
        let Some(pair) = self.pair_mut(index) else { return };
        let Some(Lent { extent }) = pair.lent.get_mut(token as usize).and_then(Option::take) else { return };
        let (dc, slot, store) = (pair.local.dc, pair.local.slot.0, pair.store);
        let Some(dc) = self.dcs.get_mut(&dc) else { return };
        if let Some(held) = dc.held.get_mut(&slot) {
            *held = held.saturating_sub(extent.len_bytes as u64);
        }
        if self.stores.get_mut(&store).is_none_or(|store| store.pool.free(extent).is_err()) {
            self.totals.corrupt += 1;
        }
        self.room_came = true;
    }

    /// Takes home everything that is out with a local endpoint that ended.
    pub(super) fn take_home_all(&mut self, index: PairIndex) {
        let count = self.pair(index).map_or(0, |pair| pair.lent.len());
        for token in 0..count as u32 {
            let extent = self.pair(index).and_then(|p| p.lent.get(token as usize).copied().flatten());
            let Some(Lent { extent }) = extent else { continue };
            let store = self.pair(index).map(|pair| pair.store);
            let is_it = |into: Into| Some(into.store) == store && into.extent == extent;
            let coming = self.waiting.iter().any(|w| w.into.is_some_and(is_it));
            if !coming {
                self.take_home(index, token);
            }
        }
    }
}

/// Gives an empty extent a descriptor that makes sense here and gives nothing back when it goes home.
pub(super) fn make_empty_ours(slot: &mut SlotCopy, segment: u32) {
    if slot.claim().is_some_and(|claim| claim.len_bytes == 0) {
        put_claim(slot, Extent { segment, offset_bytes: 0, len_bytes: 0 }, u32::MAX);
    }
}

fn put_claim(slot: &mut SlotCopy, extent: Extent, token: u32) {
    slot.set_claim(Claim {
        segment: extent.segment,
        token,
        offset_bytes: extent.offset_bytes,
        len_bytes: extent.len_bytes as u64,
    });
}
