//! The courier: mirrors pair sides between this node's endpoints and those of other nodes, over any fabric.
//!
//! For a local A and a remote R it keeps a side in its own memory that looks to A as R's own side would: the slots that
//! R published, what R consumed, raised and replied. The courier at the far end does the same for A. Every word is
//! monotone and every record idempotent, so a courier holds no state that matters: a successor starts from the
//! endpoints' own memories, both ends say everything again, and what is already there is dropped by its sequence.
//!
//! Pure: told the time, given the fabric; what it wants of the daemon it puts into [`Output`]. Neighbours: `outgoing`
//! (local to wire), `incoming` (wire to local), `links` (sessions), `bulk` (extents), `stores` (our memories), `copies`, `fair`
//! (turns), `dcs`, `condemned` (pairs that broke the protocol), `driver` (the process around it).

mod bulk;
mod condemned;
mod copies;
mod dcs;
mod fair;
#[cfg(test)]
mod flood;
mod incoming;
mod jobs;
mod links;
mod outgoing;
mod pair;
mod stores;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use abi::courier::{Attach, LinkState, Totals};
use abi::limits::SLOTS_PER_DC;
use abi::member::Refusal;
use abi::record::{Kind, Record};
use abi::{Corrupt, DcId, Endpoint, Incarnation, NodeId, Pair, side};
use shm::doorbell::{Doorbells, Wake};
use shm::lane::look_again;
use shm::map::Mapping;
use shm::os::events::Ringer;
use shm::side::{OwnSide, PeerSide};
use shm::words::{OwnWords, Words};

use crate::{Completion, Fabric, Piece, RegionKey, Time};
use bulk::Waiting;
use fair::{Ledger, Turns};
use pair::{Carried, PairIndex};
use stores::Store;

/// What the courier wants the daemon to know or do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    RemoteOpen {
        local: Endpoint,
        remote: Endpoint,
        node: NodeId,
    },
    WantSegment {
        memory: u32,
        segment: u32,
    },
    NewPoolSegment {
        memory: u32,
        len_bytes: u64,
    },
    Directory {
        node: NodeId,
        incarnation: Incarnation,
        bytes: Vec<u8>,
    },
    Link {
        node: NodeId,
        incarnation: Incarnation,
        state: LinkState,
    },
    NodeClosed {
        node: NodeId,
    },
    Detached {
        local: Endpoint,
        remote: Endpoint,
    },
    Fenced {
        by: NodeId,
    },
    /// An endpoint at either end of the pair broke the protocol: it is carried no more.
    Condemned {
        pair: Pair,
        why: Corrupt,
    },
    /// A node sent a record that is none. Said once a session.
    BadRecord {
        node: NodeId,
        why: Corrupt,
    },
}

/// A link to another node.
#[derive(Default)]
struct Link {
    session: Option<u64>,
    /// A bad record of this session has been reported.
    complained: bool,
    incarnation: Option<Incarnation>,
    /// Pairs with something to say, in turn.
    turns: Turns,
    /// Records of no pair, oldest first.
    control: VecDeque<Vec<u8>>,
    /// A directory text on its way in.
    directory: Vec<u8>,
    /// Openings that the daemon has been asked about.
    opening: BTreeSet<(Endpoint, Endpoint)>,
}

/// A DC that this courier serves.
struct Dc {
    /// The one of ours that all pairs stand in whose local end has none of its own.
    memory: u32,
    doorbells: Doorbells,
    /// Bytes of our pools that each local receiver holds.
    held: BTreeMap<u16, u64>,
    /// Bytes of extents on their way from each node.
    coming: BTreeMap<NodeId, u64>,
}

/// Records of no pair that may wait for a link.
const CONTROL_MAX: usize = 4096;
/// Openings of one node that may be undecided.
const OPENING_MAX: usize = 4096;

/// The courier of one proxy, or of one endpoint in direct mode.
pub struct Courier {
    links: BTreeMap<NodeId, Link>,
    dcs: BTreeMap<DcId, Dc>,
    stores: BTreeMap<u32, Store>,
    pairs: Vec<Option<Box<Carried>>>,
    free: Vec<u32>,
    by_ends: BTreeMap<(Endpoint, Endpoint), PairIndex>,
    by_slot: BTreeMap<(DcId, u16), Vec<PairIndex>>,
    segments: BTreeMap<(u32, u32), (Arc<Mapping>, RegionKey)>,
    wanted: BTreeSet<(u32, u32)>,
    /// Segments that were asked for and are not there, until whoever named them is condemned.
    absent: BTreeSet<(u32, u32)>,
    waiting: VecDeque<Waiting>,
    knocks: BTreeSet<PairIndex>,
    /// Pairs of ended local endpoints that nobody needs any more.
    over: Vec<PairIndex>,
    rx: Option<(Arc<Mapping>, RegionKey)>,
    spare: Vec<Piece>,
    done: Vec<Completion>,
    scratch: Vec<u8>,
    outgoing: outgoing::Outgoing,
    jobs: jobs::Jobs,
    outputs: Vec<Output>,
    totals: Totals,
    /// Number of the last pair that was attached.
    numbers: u64,
    posted: Ledger,
    /// Extents that the fabric takes for one peer.
    bulk_max: usize,
    /// An extent came home since waiting ones were last tried.
    room_came: bool,
}

/// Buffers lent to the fabric.
const RX_BUFFERS: usize = 32;
/// Completions looked at in one step.
const DONE_MAX: usize = 256;

impl Courier {
    /// A courier that may talk to these nodes.
    pub fn new(peers: impl IntoIterator<Item = NodeId>) -> Courier {
        Courier {
            links: peers.into_iter().map(|node| (node, Link::default())).collect(),
            dcs: BTreeMap::new(),
            stores: BTreeMap::new(),
            pairs: Vec::new(),
            free: Vec::new(),
            by_ends: BTreeMap::new(),
            by_slot: BTreeMap::new(),
            segments: BTreeMap::new(),
            wanted: BTreeSet::new(),
            absent: BTreeSet::new(),
            waiting: VecDeque::new(),
            knocks: BTreeSet::new(),
            over: Vec::new(),
            rx: None,
            spare: Vec::new(),
            done: Vec::with_capacity(DONE_MAX),
            scratch: Vec::new(),
            outgoing: outgoing::Outgoing::default(),
            jobs: jobs::Jobs::default(),
            outputs: Vec::new(),
            totals: Totals::default(),
            numbers: 0,
            posted: Ledger::default(),
            bulk_max: 0,
            room_came: false,
        }
    }

    /// Lends receive buffers cut from `map` to the fabric. Once, before the first step.
    pub fn lend_buffers(&mut self, map: Arc<Mapping>, fabric: &mut dyn Fabric) {
        let each = fabric.caps().message_bytes_max;
        self.bulk_max = fabric.caps().posted_max / 2;
        let region = fabric.attach(&map);
        let count = map.len_bytes() / each as usize;
        self.spare.extend((0..count).map(|n| Piece {
            region,
            offset_bytes: n as u64 * each as u64,
            len_bytes: each,
        }));
        self.rx = Some((map, region));
        self.post_spare(fabric);
    }

    /// Bytes that `lend_buffers` should be given for this fabric.
    pub fn buffer_bytes(fabric: &dyn Fabric) -> usize {
        RX_BUFFERS * fabric.caps().message_bytes_max as usize
    }

    fn post_spare(&mut self, fabric: &mut dyn Fabric) {
        if !self.spare.is_empty() {
            let taken = fabric.post_recv(&self.spare);
            self.spare.drain(..taken);
        }
    }

    /// Carries a pair. `side_map` is the local endpoint's side, mapped read-only, alone.
    ///
    /// Returns false when the daemon named something that it has not given.
    pub fn attach(&mut self, attach: &Attach, side_map: Arc<Mapping>, fabric: &mut dyn Fabric) -> bool {
        let (local, remote) = (attach.local, attach.remote);
        if !self.dcs.contains_key(&local.dc) {
            return false;
        }
        let store = self.stores.get(&attach.own_memory);
        let Some(own_map) = store.and_then(|store| store.own.get(&attach.own_segment)) else { return false };
        let offset = attach.own_side as usize * side::BYTES;
        let (Ok(own), Ok(words)) =
            (OwnWords::mapped(own_map, offset, side::WORDS), Words::mapped(&side_map, 0, side::WORDS))
        else {
            return false;
        };
        if self.by_ends.contains_key(&(local, remote)) || !self.links.contains_key(&attach.node) {
            return false;
        }
        let region = fabric.attach(&side_map);
        self.numbers += 1;
        let sides = (OwnSide::new(own), PeerSide::new(words));
        let carried = Carried::new(attach, self.numbers, sides, region);
        carried.own.set_wants_returns(true);
        let index = PairIndex(self.free.pop().unwrap_or(self.pairs.len() as u32));
        match self.pairs.get_mut(index.0 as usize) {
            Some(place) => *place = Some(Box::new(carried)),
            None => self.pairs.push(Some(Box::new(carried))),
        }
        self.by_ends.insert((local, remote), index);
        self.by_slot.entry((local.dc, local.slot.0)).or_default().push(index);
        if let Some(link) = self.links.get_mut(&attach.node) {
            link.opening.remove(&(local, remote));
            link.turns.insert(local.dc, index);
        }
        self.totals.pairs += 1;
        true
    }

    /// The local end of a pair polls: what rings it. Rung at once if it should have been before.
    pub fn add_bell(&mut self, local: Endpoint, remote: Endpoint, ringer: Ringer) {
        let index = self.by_ends.get(&(local, remote)).copied();
        let Some(pair) = index.and_then(|index| self.pair_mut(index)) else { return };
        if std::mem::take(&mut pair.owes_ring) {
            // A bell that is full is rung, and no other failure is ours to mend.
            let _ = ringer.ring();
        }
        pair.ringer = Some(ringer);
    }

    /// The daemon will not open this pair.
    pub fn refuse(&mut self, local: Endpoint, remote: Endpoint, why: Refusal) {
        for link in self.links.values_mut() {
            if link.opening.remove(&(local, remote)) {
                let pair = abi::Pair { source: local, destination: remote };
                link.control.push_back(Record::of(Kind::Refused, pair, why as u64).to_bytes().to_vec());
            }
        }
    }

    /// A bulk segment of a local endpoint, mapped read-only.
    pub fn add_peer_segment(
        &mut self,
        memory: u32,
        segment: u32,
        map: Arc<Mapping>,
        fabric: &mut dyn Fabric,
    ) {
        self.wanted.remove(&(memory, segment));
        self.absent.remove(&(memory, segment));
        self.jobs.wanted.remove(&(memory, segment));
        let region = fabric.attach(&map);
        self.segments.insert((memory, segment), (map, region));
        self.mark_dirty_of(memory);
    }

    /// A local endpoint ended: its lanes are frozen as they are, and the far ends are told.
    pub fn local_ended(&mut self, endpoint: Endpoint) {
        for index in self.pairs_of(endpoint.dc, endpoint.slot.0) {
            let Some(pair) = self.pair_mut(index) else { continue };
            if pair.local == endpoint && pair.ended.is_none() && !shm::mutant!(DeathIsNotTold) {
                pair.ended = Some(pair.published_here());
                self.take_home_all(index);
                self.copies_end_with(index, jobs::By::Local);
                self.mark_dirty(index);
                self.note_if_over(index);
            }
        }
    }

    fn note_if_over(&mut self, index: PairIndex) {
        if self.pair(index).is_some_and(Carried::is_over) {
            self.over.push(index);
        }
    }

    /// Lets go of pairs that are over, and says so: their memory need not be kept.
    fn drop_over(&mut self, fabric: &mut dyn Fabric) {
        for index in std::mem::take(&mut self.over) {
            if let Some(pair) = self.pair(index).filter(|pair| pair.is_over()) {
                self.detach(pair.local, pair.remote, fabric);
            }
        }
    }

    /// Forgets a pair; its side is all zeroes afterwards. The far end hears that nobody here needs its own any more.
    pub fn detach(&mut self, local: Endpoint, remote: Endpoint, fabric: &mut dyn Fabric) {
        if let Some(&index) = self.by_ends.get(&(local, remote)) {
            self.abandon_waiting(index, fabric);
            self.forget_copies(index, fabric);
            self.take_home_all(index);
            self.by_ends.remove(&(local, remote));
            if let Some(of_slot) = self.by_slot.get_mut(&(local.dc, local.slot.0)) {
                of_slot.retain(|&i| i != index);
            }
            self.knocks.remove(&index);
            if let Some(pair) = self.pairs[index.0 as usize].take() {
                if let Some(link) = self.links.get_mut(&pair.node) {
                    link.turns.remove(local.dc, index);
                    if link.session.is_some() && !pair.closed && link.control.len() < CONTROL_MAX {
                        let closed = Record::of(Kind::Closed, pair.outward(), 0);
                        link.control.push_back(closed.to_bytes().to_vec());
                    }
                }
                pair.own.clear();
                fabric.detach(pair.region);
                self.forget_segments(pair.memory, fabric);
            }
            self.free.push(index.0);
            self.totals.pairs -= 1;
        }
        self.outputs.push(Output::Detached { local, remote });
    }

    /// A local endpoint rang: it has something for one of its pairs.
    pub fn hint(&mut self, dc: DcId, slot: u16) {
        for index in self.pairs_of(dc, slot) {
            self.mark_dirty(index);
        }
    }

    /// Looks at every pair, whatever the hints say: against a spoilt doorbell page.
    pub fn suspect_all(&mut self) {
        for index in 0..self.pairs.len() as u32 {
            self.mark_dirty(PairIndex(index));
        }
    }

    /// Moves everything that can move: takes what the fabric has, delivers it, sends what local endpoints published.
    /// Returns whether it would find more to do at once.
    pub fn step(&mut self, now: Time, fabric: &mut dyn Fabric) -> bool {
        let mut done = std::mem::take(&mut self.done);
        done.clear();
        fabric.poll(now, &mut done);
        let full = done.len() == done.capacity();
        for completion in done.drain(..) {
            self.on_completion(completion, fabric);
        }
        self.done = done;
        self.post_spare(fabric);
        let mut more = self.run_copies(fabric);
        more |= self.pump(fabric);
        self.drop_over(fabric);
        if std::mem::take(&mut self.room_came) {
            self.retry_waiting(fabric);
            more = true;
        }
        self.knock_all();
        full || more
    }

    /// Rings the local endpoints that were given something, unless they look by themselves. Once for a batch.
    fn knock_all(&mut self) {
        if self.knocks.is_empty() {
            return;
        }
        look_again();
        let knocks = std::mem::take(&mut self.knocks);
        for &index in &knocks {
            let Some(Some(pair)) = self.pairs.get_mut(index.0 as usize) else { continue };
            if pair.side.attending() {
                continue;
            }
            let Some(dc) = self.dcs.get(&pair.local.dc) else { continue };
            let bell = pair.doorbell ^ shm::mutant!(RoutingRingsAnother) as usize;
            match dc.doorbells.ring(bell, pair.remote.slot.0 % SLOTS_PER_DC) {
                Wake::Nothing => {}
                Wake::Futex => dc.doorbells.wake(pair.doorbell),
                Wake::EventFd => match &pair.ringer {
                    // A bell that is full is rung, and no other failure is ours to mend.
                    Some(ringer) => drop(ringer.ring()),
                    // The daemon has sent it before it let the endpoint sleep so: rung when it is here.
                    None => pair.owes_ring = true,
                },
            }
        }
    }

    fn pair(&self, index: PairIndex) -> Option<&Carried> {
        self.pairs.get(index.0 as usize)?.as_deref()
    }

    fn pair_mut(&mut self, index: PairIndex) -> Option<&mut Carried> {
        self.pairs.get_mut(index.0 as usize)?.as_deref_mut()
    }

    fn pairs_of(&self, dc: DcId, slot: u16) -> Vec<PairIndex> {
        self.by_slot.get(&(dc, slot)).cloned().unwrap_or_default()
    }

    fn mark_dirty(&mut self, index: PairIndex) {
        if let Some((node, dc)) = self.pair(index).map(|p| (p.node, p.local.dc))
            && let Some(link) = self.links.get_mut(&node)
        {
            link.turns.insert(dc, index);
        }
    }

    fn mark_dirty_of(&mut self, memory: u32) {
        for index in 0..self.pairs.len() as u32 {
            let index = PairIndex(index);
            if self.pair(index).is_some_and(|p| p.memory == memory) {
                self.mark_dirty(index);
            }
        }
    }

    /// Takes what the daemon is to be told.
    pub fn take_outputs(&mut self, into: &mut Vec<Output>) {
        into.append(&mut self.outputs);
    }

    pub fn totals(&self) -> Totals {
        self.totals
    }
}
