//! The kernel of one binding: its pairs, and what every call does to them. Pure: no clock, no socket, no thread; what it
//! needs of the world it asks its [`Host`], so that a driver and the simulator run the same code.
//!
//! Calls are split into a start and a poll: `start_send` publishes, `poll_sent` says whether it is taken. The driver
//! waits in between. Neighbours: `send`, `call`, `relay`, `receive`, `raised`, `extents`, `private`, `grants` (the calls), `peer` (a pair), `shm` (the words).

mod call;
mod extents;
mod grants;
mod pending;
mod private;
mod raised;
mod receive;
mod relay;
mod rings;
mod send;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use abi::table::{Entry, State};
use abi::{Allowed, Corrupt, Endpoint, Slot, doorbell, side, table};
use shm::doorbell::Doorbells;
use shm::lane::{LaneReader, LaneWriter, look_again};
use shm::map::Mapping;
use shm::os::events::Ringer;
use shm::pool::Pool;
use shm::returns::Returns;
use shm::side::{OwnSide, PeerSide};
use shm::sync::Ordering;
use shm::words::Words;

use crate::error::Unavailable;
use crate::peer::{End, Far, Outstanding, Path, Peer};

pub use call::{Call, Hold};
pub use grants::Here;
use pending::Pending;
pub use receive::{Accepts, Due, NotBytes};
pub use send::Sent;

/// What the core needs of the world.
pub trait Host {
    /// A bulk segment of a memory that this binding was introduced to.
    fn map_segment(&mut self, memory: u32, segment: u32) -> Result<Arc<Mapping>, Unavailable>;
    /// A table of grants, or a segment of which something is granted to this binding.
    fn map_granted(&mut self, memory: u32, segment: u32, writable: bool)
    -> Result<Arc<Mapping>, Unavailable>;
    /// Our side towards `peer` is all zeroes again and may be used for another.
    fn recycled(&mut self, peer: Endpoint);
    /// The pairs that the daemon has for us, new or moved. Without `patient` a daemon that is slow to answer is not waited for:
    /// [`Unavailable::Slow`], and its answer is what a later pull gives.
    fn pull(&mut self, patient: bool) -> Result<Option<Pulled>, Unavailable>;
}

/// Both sides of a pair, mapped.
pub struct Introduced {
    pub peer: Endpoint,
    pub own: OwnSide,
    pub side: PeerSide,
    pub memory: u32,
    pub doorbell: usize,
    pub proxied: bool,
    /// What either may send: what we may not is refused, what comes and may not breaks the protocol.
    pub allowed: Allowed,
    /// Rings a peer that sleeps in epoll.
    pub ring: Option<Arc<Ringer>>,
}

/// One answer to a pull.
pub enum Pulled {
    Introduced(Introduced),
    /// The peer's node was declared dead.
    Gone {
        peer: Endpoint,
    },
    /// The pair is as it was; its ends have bells from now on. `ring`: rings the peer, if it is the peer who polls.
    Rings {
        peer: Endpoint,
        ring: Option<Arc<Ringer>>,
    },
    /// An endpoint has ended of which we are the warn target.
    Warned {
        endpoint: Endpoint,
    },
    /// The pair leads elsewhere now; our own side is the same.
    Moved {
        peer: Endpoint,
        side: PeerSide,
        memory: u32,
        doorbell: usize,
        ring: Option<Arc<Ringer>>,
    },
}

/// Index of a pair in the core.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PeerIndex(u32);

/// What the DC's table says of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    Alive,
    Dead,
    NodeDead,
}

/// How many lanes a receiver scans by itself.
const ATTENDED_MAX: usize = 8;

/// The kernel of one binding.
pub struct Core {
    me: Endpoint,
    doorbell: usize,
    doorbells: Doorbells,
    table: Words,
    peers: Vec<Option<Box<Peer>>>,
    free: Vec<u32>,
    by_slot: BTreeMap<u16, Vec<PeerIndex>>,
    /// The pair used last: steady conversations look nowhere else.
    last: Option<(Endpoint, PeerIndex)>,
    attended: Vec<PeerIndex>,
    pending: Pending,
    pulls_seen: u64,
    /// Where the round of notifications stands: `None` when one message is due first.
    note_floor: Option<u32>,
    /// The pair whose message was served last.
    served: u32,
    /// The number of our last call.
    calls: u64,
    /// Calls whose caller does not stand still for them: see [`Core::open_call`].
    open_calls: BTreeSet<u64>,
    /// The one that all peers were told of last: see `side::GAVE_UP`.
    calls_told: u64,
    pool: Pool,
    /// Of a private binding: the pool of each pair.
    private: private::Pools,
    out: extents::Out,
    relays: relay::Relays,
    /// By slot, who has ended of whose end we are to be told. The last one of each slot.
    warned: BTreeMap<u16, Endpoint>,
    /// Raised what it may not: closed by the next look.
    overstepped: Option<(PeerIndex, Corrupt)>,
    segments: BTreeMap<(u32, u32), Arc<Mapping>>,
    granted_maps: grants::Maps,
    counters: Counters,
    /// See [`Core::owes_ring`].
    owes: Rc<Cell<bool>>,
}

/// What a binding has done since it began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    pub sent: u64,
    pub received: u64,
    pub skipped: u64,
    pub corrupt: u64,
}

impl Core {
    /// A core with no pairs yet.
    pub fn new(me: Endpoint, doorbells: Doorbells, table: Words, pool: Pool) -> Core {
        Core {
            me,
            doorbell: doorbell::of_slot(me.slot),
            doorbells,
            table,
            peers: Vec::new(),
            free: Vec::new(),
            by_slot: BTreeMap::new(),
            last: None,
            attended: Vec::with_capacity(ATTENDED_MAX),
            pending: Pending::default(),
            pulls_seen: 0,
            note_floor: Some(0),
            served: 0,
            calls: 0,
            calls_told: 0,
            open_calls: BTreeSet::new(),
            pool,
            private: private::Pools::default(),
            out: extents::Out::default(),
            relays: relay::Relays::default(),
            warned: BTreeMap::new(),
            overstepped: None,
            segments: BTreeMap::new(),
            granted_maps: grants::Maps::new(),
            counters: Counters::default(),
            owes: Rc::default(),
        }
    }

    pub fn me(&self) -> Endpoint {
        self.me
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The doorbells of the DC and which one is ours, for a driver that sleeps.
    pub fn doorbells(&self) -> (&Doorbells, usize) {
        (&self.doorbells, self.doorbell)
    }

    /// The table's entry of a slot. Cost: one load.
    #[inline]
    pub fn entry(&self, slot: Slot) -> Entry {
        // Pairs with: the daemon's table store (Release) in `node`.
        Entry::from_word(self.table.load(table::of_slot(slot), Ordering::Acquire))
    }

    /// The endpoint that is bound in a slot.
    pub fn lookup(&self, slot: Slot) -> Option<Endpoint> {
        let entry = self.entry(slot);
        (entry.state == State::Bound).then(|| Endpoint::new(self.me.dc, slot, entry.generation))
    }

    /// Whether this very generation lives.
    #[inline]
    pub fn known(&self, endpoint: Endpoint) -> Known {
        if endpoint.dc != self.me.dc || endpoint.slot.0 >= abi::limits::SLOTS_PER_DC {
            return Known::Dead;
        }
        let entry = self.entry(endpoint.slot);
        match entry.state {
            State::Bound
                if entry.generation == endpoint.generation || shm::mutant!(GenerationIsNotChecked) =>
            {
                Known::Alive
            }
            State::NodeDead if entry.generation == endpoint.generation => Known::NodeDead,
            State::Free | State::Bound | State::Dead | State::NodeDead => Known::Dead,
        }
    }

    /// Whether an endpoint is of a generation that this node has not heard of yet: somebody knew it before us.
    pub fn is_unheard_of(&self, endpoint: Endpoint) -> bool {
        endpoint.dc == self.me.dc
            && endpoint.slot.0 < abi::limits::SLOTS_PER_DC
            && self.entry(endpoint.slot).generation < endpoint.generation
    }

    /// Whether an endpoint has ended: one that this node has not heard of yet has not. Of one on another node the proxy
    /// may bring a pair before the directory brings its name.
    #[inline]
    pub fn is_over(&self, endpoint: Endpoint) -> bool {
        self.known(endpoint) != Known::Alive && !self.is_unheard_of(endpoint)
    }

    /// The pair with an endpoint, if there is one.
    #[inline]
    pub fn find(&mut self, endpoint: Endpoint) -> Option<PeerIndex> {
        if let Some((last, index)) = self.last
            && last == endpoint
        {
            return Some(index);
        }
        let found = self.by_slot.get(&endpoint.slot.0)?.iter().copied();
        let index = found.into_iter().find(|&i| {
            let found = self.peer(i).map(|p| p.endpoint);
            found == Some(endpoint) || (found.is_some() && shm::mutant!(GenerationIsNotCompared))
        })?;
        self.last = Some((endpoint, index));
        Some(index)
    }

    #[inline]
    fn peer(&self, index: PeerIndex) -> Option<&Peer> {
        self.peers.get(index.0 as usize)?.as_deref()
    }

    #[inline]
    fn peer_mut(&mut self, index: PeerIndex) -> Option<&mut Peer> {
        self.peers.get_mut(index.0 as usize)?.as_deref_mut()
    }

    /// Takes a pair in. Idempotent.
    pub fn introduce(&mut self, new: Introduced) -> PeerIndex {
        if let Some(index) = self.find(new.peer) {
            return index;
        }
        // The last call may still be waited for.
        new.own.set_gave_up(self.calls.saturating_sub(1));
        let far = Far { side: new.side.clone(), doorbell: new.doorbell, ring: new.ring };
        let path = Rc::new(Path::new(self.me, new.own, far, self.doorbells.clone(), self.owes.clone()));
        let peer = Box::new(Peer {
            endpoint: new.peer,
            path,
            returns: Returns::default(),
            side: new.side,
            proxied: new.proxied,
            allowed: new.allowed,
            memory: new.memory,
            writer: LaneWriter::default(),
            reader: LaneReader::default(),
            raises_seen: 0,
            out: Outstanding::default(),
            end: None,
            stalled: false,
            replied: None,
            passing: None,
            confirmed: None,
        });
        let index = PeerIndex(self.free.pop().unwrap_or(self.peers.len() as u32));
        match self.peers.get_mut(index.0 as usize) {
            Some(place) => *place = Some(peer),
            None => self.peers.push(Some(peer)),
        }
        self.by_slot.entry(new.peer.slot.0).or_default().push(index);
        self.pending.set(index);
        index
    }

    /// Does what the daemon has rung for, if it has. Cost when not: one load.
    #[inline]
    pub fn pull(&mut self, host: &mut dyn Host) -> Result<(), Unavailable> {
        let pulls = self.doorbells.pulls(self.doorbell);
        if pulls == self.pulls_seen {
            return Ok(());
        }
        self.pull_now(host)?;
        self.pulls_seen = pulls;
        Ok(())
    }

    /// The same for who has other things to do: what a slow daemon has rung for is done at a later look.
    #[inline]
    pub fn glance(&mut self, host: &mut dyn Host) -> Result<(), Unavailable> {
        let pulls = self.doorbells.pulls(self.doorbell);
        if pulls == self.pulls_seen {
            return Ok(());
        }
        match self.pull_all(host, false) {
            Ok(()) => self.pulls_seen = pulls,
            Err(Unavailable::Slow) => {}
            Err(why) => return Err(why),
        }
        Ok(())
    }

    /// Asks the daemon in any case: a spoilt doorbell page hides a ring.
    pub fn pull_now(&mut self, host: &mut dyn Host) -> Result<(), Unavailable> {
        self.pull_all(host, true)
    }

    /// The same without waiting for it.
    pub fn glance_now(&mut self, host: &mut dyn Host) -> Result<(), Unavailable> {
        self.pull_all(host, false)
    }

    fn pull_all(&mut self, host: &mut dyn Host, patient: bool) -> Result<(), Unavailable> {
        while let Some(pulled) = host.pull(patient)? {
            match pulled {
                Pulled::Introduced(new) => {
                    self.introduce(new);
                }
                Pulled::Gone { peer } => {
                    if let Some(index) = self.find(peer)
                        && let Some(peer) = self.peer_mut(index)
                    {
                        peer.end = Some(End::Lost);
                        self.pending.set(index);
                    }
                }
                Pulled::Rings { peer, ring } => {
                    if let Some(index) = self.find(peer)
                        && let (Some(peer), Some(ring)) = (self.peer(index), ring)
                    {
                        peer.path.set_ring(ring);
                    }
                }
                Pulled::Warned { endpoint } => {
                    self.warned.insert(endpoint.slot.0, endpoint);
                }
                Pulled::Moved { peer, side, memory, doorbell, ring } => {
                    if let Some(index) = self.find(peer) {
                        self.moved(index, Far { side, doorbell, ring }, memory);
                    }
                }
            }
        }
        Ok(())
    }

    fn moved(&mut self, index: PeerIndex, far: Far, memory: u32) {
        // What the old proxy had told of its end, the new one may not know any more.
        self.look_at_end(index);
        let Some(peer) = self.peer_mut(index) else { return };
        if shm::mutant!(RoutingKeepsTheOld) {
            return;
        }
        peer.writer.leave(&peer.side);
        peer.side = far.side.clone();
        let left = std::mem::replace(&mut peer.memory, memory);
        peer.stalled = false;
        *peer.path.far.borrow_mut() = far;
        peer.path.knock();
        self.pending.set(index);
        self.unmap_unused(left);
    }

    /// Makes a receiver that spins scan this lane by itself, so that its sender need not ring.
    #[inline]
    fn attend(&mut self, index: PeerIndex) {
        if !self.attended.contains(&index) {
            self.begin_to_attend(index);
        }
    }

    fn begin_to_attend(&mut self, index: PeerIndex) {
        if self.attended.len() == ATTENDED_MAX {
            let oldest = self.attended.remove(0);
            if let Some(peer) = self.peer(oldest) {
                peer.path.own.set_attending(false);
                look_again();
            }
            self.pending.set(oldest);
        }
        if let Some(peer) = self.peer(index) {
            peer.path.own.set_attending(true);
            self.attended.push(index);
        }
    }

    /// Before sleeping: from now on every sender rings. Whatever is waited for must be looked at once more after this.
    pub fn stop_attending(&mut self) {
        for at in 0..self.attended.len() {
            let index = self.attended[at];
            if let Some(peer) = self.peer(index) {
                peer.path.own.set_attending(false);
            }
            self.pending.set(index);
        }
        self.attended.clear();
        look_again();
    }

    /// Collects the hints of our doorbell. Cost when nobody rang: one load.
    #[inline]
    pub fn collect_hints(&mut self) {
        if self.doorbells.has_hints(self.doorbell) {
            self.drain_hints();
        }
    }

    fn drain_hints(&mut self) {
        let (doorbells, pending, by_slot) = (&self.doorbells, &mut self.pending, &self.by_slot);
        doorbells.drain(self.doorbell, |slot| {
            for &index in by_slot.get(&slot).into_iter().flatten() {
                pending.set(index);
            }
        });
    }

    /// Looks at every pair again, whatever the hints say: against a spoilt doorbell page. `now`: see
    /// [`Core::tidy_relays`].
    pub fn suspect_all(&mut self, now: Duration) {
        for (index, peer) in self.peers.iter_mut().enumerate() {
            if let Some(peer) = peer {
                peer.stalled = false;
                self.pending.set(PeerIndex(index as u32));
            }
        }
        if self.holds_relays() {
            self.tidy_relays(now);
        }
    }

    /// Looks whether the peer has ended, and remembers it.
    fn look_at_end(&mut self, index: PeerIndex) -> Option<End> {
        let peer = self.peer(index)?;
        // What is still to come from another node comes no more when that node dies, or has forgotten it.
        if peer.end.is_some() && !(peer.proxied && peer.awaits_more()) {
            return peer.end;
        }
        let known = self.known(peer.endpoint);
        let (how, slots) = peer.side.end();
        let end = match (peer.proxied, how, known) {
            (_, _, Known::NodeDead) | (true, side::END_NODE_DEAD, _) => Some(End::Lost),
            (true, side::END_DEAD, _) => Some(End::Dead { slots }),
            // Its node has forgotten it: after it told of the death, or because it has begun anew.
            (true, side::END_REFUSED, _) => match peer.end {
                Some(End::Dead { .. }) => Some(End::Dead { slots: 0 }),
                _ => Some(End::Lost),
            },
            // Its process is gone, so what it published is all there will be: the final sequence is frozen here.
            (false, _, Known::Dead) => {
                let rest = peer.reader.pending(&peer.side);
                let rest = if shm::mutant!(DeathHidesTheRest) { 0 } else { rest };
                Some(End::Dead { slots: peer.reader.next() + rest })
            }
            _ => None,
        };
        let peer = self.peer_mut(index)?;
        peer.end = end.or(peer.end);
        peer.end
    }

    /// Whether a pair's peer has ended and has nothing for us any more. Forgets it then, unless views of it are held:
    /// the memory they show is used again once the pair is forgotten.
    fn close_if_drained(&mut self, index: PeerIndex, host: &mut dyn Host) -> bool {
        let Some(peer) = self.peer(index) else { return true };
        if peer.end.is_none() || peer.awaits_more() {
            return false;
        }
        if Rc::strong_count(&peer.path) == 1 {
            self.close(index, host);
        }
        true
    }

    fn close(&mut self, index: PeerIndex, host: &mut dyn Host) {
        let Some(peer) = self.peers[index.0 as usize].take() else { return };
        peer.path.close();
        self.take_home_all(index);
        self.drop_pair_pool(index);
        if let Some(of_slot) = self.by_slot.get_mut(&peer.endpoint.slot.0) {
            of_slot.retain(|&i| i != index);
            if of_slot.is_empty() {
                self.by_slot.remove(&peer.endpoint.slot.0);
            }
        }
        self.last = None;
        self.attended.retain(|&i| i != index);
        self.pending.clear(index);
        self.overstepped.take_if(|(who, _)| *who == index);
        self.unmap_unused(peer.memory);
        self.granted_maps.retain(|((memory, _), _)| *memory != peer.memory);
        self.free.push(index.0);
        peer.path.own.clear();
        host.recycled(peer.endpoint);
        self.abandon_calls_via(peer.endpoint);
    }

    /// A peer broke the protocol: its pair is closed for us, as by its death. Others do not act on it.
    fn condemn(&mut self, index: PeerIndex, why: Corrupt) -> Corrupt {
        self.counters.corrupt += 1;
        if let Some(peer) = self.peer_mut(index) {
            peer.end = Some(End::Dead { slots: 0 });
        }
        why
    }

    /// How many pairs there are.
    pub fn pairs(&self) -> usize {
        self.peers.iter().flatten().count()
    }

    pub fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }
}

impl Drop for Core {
    /// Requests and views that outlive their binding answer nothing and give nothing back: the endpoint has ended.
    fn drop(&mut self) {
        for peer in self.peers.iter().flatten() {
            peer.path.close();
        }
    }
}
