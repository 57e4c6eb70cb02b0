//! Drives the fabrics of a [`Network`] in one thread and checks what comes, byte for byte.
//!
//! Key types: [`Rig`], [`Station`]. A message is made from a number: its head begins with it, its length, its pieces and
//! so all its bytes follow from it. Numbers count per direction, so order and gaps show.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use abi::NodeId;
use shm::map::Mapping;
use shm::os::events::{Epoll, Readiness};

use super::Network;
use super::ledger::Ledger;
use crate::{Armed, Completion, Desc, Fabric, Piece, RegionKey, Time, Waiter};

/// Posted buffers of one node.
pub const BUFFERS: usize = 24;
const AREA_BYTES: usize = 1 << 20;
/// Largest bulk message that a station accepts by itself.
pub const BULK_SLOT_BYTES: usize = 256 << 10;
const BULK_SLOTS: usize = 12;
/// Bytes of a head that say who and which.
pub const STAMP_BYTES: usize = 16;
/// What does not come about in this time does not come about.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a station does with announced bulk messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Accept,
    Refuse,
    /// Every second one.
    Half,
    /// The test answers.
    Hold,
}

/// One node under test.
pub struct Station {
    pub id: NodeId,
    /// `None`: dropped.
    pub fabric: Option<Box<dyn Fabric + Send>>,
    pub ledger: Ledger,
    pub answer: Answer,
    /// Received buffers are posted again at once.
    pub reposts: bool,
    /// Buffers that are not lent.
    pub held: Vec<Piece>,
    pub map: Arc<Mapping>,
    pub region: RegionKey,
    buffers_at: u64,
    bulk_at: u64,
    slots: Vec<Piece>,
    /// Numbers of the bulk messages under way, by peer and token.
    numbers: BTreeMap<(NodeId, u64), u64>,
    next: BTreeMap<NodeId, u64>,
    next_bulk: u64,
    last: BTreeMap<NodeId, u64>,
    /// Messages that came from each peer.
    pub received: BTreeMap<NodeId, u64>,
    pub bulk_received: u64,
    pub bulk_failed: u64,
    /// Messages without a stamp: their lengths.
    pub odd: Vec<u32>,
    tokens: u64,
    completions: u64,
    done: Vec<Completion>,
    /// Announced in this poll.
    fresh: Vec<(NodeId, u64)>,
}

/// The network under test.
pub struct Rig {
    pub stations: Vec<Station>,
    clock: Box<dyn FnMut() -> Time>,
    started: Time,
    pub now: Time,
    flap: Option<super::Flap>,
    epoll: Option<Epoll>,
}

fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn pattern(offset: usize) -> u8 {
    (offset % 251) as u8
}

/// The head and the pieces, as offsets and lengths in the sender's area, of the message with this number.
fn recipe(from: NodeId, number: u64, most_bytes: u64) -> (Vec<u8>, Vec<(u64, u32)>) {
    let dice = mixed(number ^ (from.0 as u64) << 48);
    let mut head = Vec::with_capacity(256);
    head.extend_from_slice(&(from.0 as u64).to_le_bytes());
    head.extend_from_slice(&number.to_le_bytes());
    head.resize(STAMP_BYTES + (dice % 200) as usize, dice as u8);
    let count = (dice >> 8) % 4;
    let part = |i: u64| {
        let dice = mixed(dice + i);
        let most = (most_bytes / 4).min(1 << (dice % 18));
        let len = (dice >> 20) % (most + 1);
        ((dice >> 40) % (AREA_BYTES as u64 - len), len as u32)
    };
    (head, (0..count).map(part).collect())
}

impl Station {
    fn new(id: NodeId, mut fabric: Box<dyn Fabric + Send>) -> Station {
        let buffer_bytes = fabric.caps().message_bytes_max as usize;
        let buffers_at = AREA_BYTES;
        let bulk_at = buffers_at + BUFFERS * buffer_bytes;
        let map = Mapping::heap(bulk_at + BULK_SLOTS * BULK_SLOT_BYTES);
        let area: Vec<u8> = (0..AREA_BYTES).map(pattern).collect();
        map.write_from(0, &area).expect("the area is in the map");
        let region = fabric.attach(&map);
        let piece = |at: usize, i: usize, len: usize| Piece {
            region,
            offset_bytes: (at + i * len) as u64,
            len_bytes: len as u32,
        };
        Station {
            id,
            fabric: Some(fabric),
            ledger: Ledger::default(),
            answer: Answer::Accept,
            reposts: true,
            held: (0..BUFFERS).map(|i| piece(buffers_at, i, buffer_bytes)).collect(),
            map,
            region,
            buffers_at: buffers_at as u64,
            bulk_at: bulk_at as u64,
            slots: (0..BULK_SLOTS).map(|i| piece(bulk_at, i, BULK_SLOT_BYTES)).collect(),
            numbers: BTreeMap::new(),
            next: BTreeMap::new(),
            next_bulk: 0,
            last: BTreeMap::new(),
            received: BTreeMap::new(),
            bulk_received: 0,
            bulk_failed: 0,
            odd: Vec::new(),
            tokens: 0,
            completions: 0,
            done: Vec::with_capacity(64),
            fresh: Vec::new(),
        }
    }

    /// The fabric, which has not been dropped.
    pub fn end(&mut self) -> &mut (dyn Fabric + Send) {
        self.fabric.as_deref_mut().expect("a fabric that was not dropped")
    }

    /// A name for a descriptor.
    pub fn token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    /// Posts the buffers that are not lent; how many were taken.
    pub fn lend(&mut self) -> usize {
        let held = std::mem::take(&mut self.held);
        let taken = self.end().post_recv(&held);
        held[..taken].iter().for_each(|piece| self.ledger.lend(*piece));
        self.held.extend(&held[taken..]);
        taken
    }

    /// Posts one descriptor; true if it was taken.
    pub fn post(&mut self, to: NodeId, head: &[u8], pieces: &[Piece], bulk: bool) -> bool {
        let token = self.token();
        let taken = self.end().post_send(to, &[Desc { token, head, pieces, bulk, flow: 0 }]);
        assert!(taken <= 1, "more was taken than offered");
        if taken == 1 {
            self.ledger.post(to, token, bulk);
        }
        taken == 1
    }

    /// Posts up to `count` of the next numbered messages in one batch; how many were taken.
    pub fn post_numbered(&mut self, to: NodeId, count: usize) -> usize {
        let first = self.next.get(&to).copied().unwrap_or(0);
        let most = self.end().caps().message_bytes_max as u64 - 256;
        let made: Vec<_> = (0..count as u64).map(|i| self.make(first + i, most)).collect();
        let tokens = self.tokens + 1;
        let mut batch: Vec<Desc<'_>> = Vec::with_capacity(count);
        for ((head, pieces), token) in made.iter().zip(tokens..) {
            batch.push(Desc { token, head, pieces, bulk: false, flow: 0 });
        }
        let taken = self.end().post_send(to, &batch);
        assert!(taken <= count, "more was taken than offered");
        batch[..taken].iter().for_each(|desc| self.ledger.post(to, desc.token, false));
        self.tokens += count as u64;
        self.next.insert(to, first + taken as u64);
        taken
    }

    /// Posts the next numbered bulk message; true if it was taken.
    pub fn post_bulk(&mut self, to: NodeId) -> bool {
        let (head, pieces) = self.make(self.next_bulk, BULK_SLOT_BYTES as u64);
        let taken = self.post(to, &head, &pieces, true);
        self.next_bulk += taken as u64;
        taken
    }

    fn make(&self, number: u64, most_bytes: u64) -> (Vec<u8>, Vec<Piece>) {
        let (head, parts) = recipe(self.id, number, most_bytes);
        let region = self.region;
        let piece = |(offset_bytes, len_bytes)| Piece { region, offset_bytes, len_bytes };
        (head, parts.into_iter().map(piece).collect())
    }

    fn bytes(&self, piece: Piece, len_bytes: u32) -> Vec<u8> {
        let mut bytes = vec![0; len_bytes as usize];
        self.map.read_into(piece.offset_bytes as usize, &mut bytes).expect("a piece of the map");
        bytes
    }

    fn handle(&mut self, completion: Completion) {
        self.ledger.note(&completion);
        match completion {
            Completion::Received { peer, buffer, len_bytes } => {
                self.check_message(peer, &self.bytes(buffer, len_bytes), len_bytes);
                self.come_back(buffer);
            }
            Completion::Announced { peer, token, bulk_bytes, buffer, len_bytes } => {
                let head = self.bytes(buffer, len_bytes);
                self.come_back(buffer);
                self.announced(peer, token, bulk_bytes, &head);
            }
            Completion::BulkReceived { peer, token, into } => {
                self.bulk_received += 1;
                let number = self.numbers.remove(&(peer, token)).filter(|_| into.region == self.region);
                if let Some(number) = number {
                    let (_, parts) = recipe(peer, number, BULK_SLOT_BYTES as u64);
                    assert!(
                        self.bytes(into, into.len_bytes) == area_of(&parts),
                        "bulk bytes are not those sent"
                    );
                }
                self.slot_back(into);
            }
            Completion::BulkFailed { peer, token, into } => {
                self.bulk_failed += 1;
                self.numbers.remove(&(peer, token));
                self.slot_back(into);
            }
            Completion::Up { peer, .. } => drop(self.last.remove(&peer)),
            Completion::Sent { .. } | Completion::Failed { .. } => {}
            Completion::Lost { .. } | Completion::Trouble { .. } => {}
        }
    }

    fn come_back(&mut self, buffer: Piece) {
        assert!(buffer.offset_bytes >= self.buffers_at && buffer.offset_bytes < self.bulk_at);
        self.held.push(buffer);
        if self.reposts {
            self.lend();
        }
    }

    fn slot_back(&mut self, into: Piece) {
        if into.region == self.region && into.offset_bytes >= self.bulk_at {
            self.slots.push(Piece { len_bytes: BULK_SLOT_BYTES as u32, ..into });
        }
    }

    fn check_message(&mut self, peer: NodeId, bytes: &[u8], len_bytes: u32) {
        let Some(number) = stamp(peer, bytes) else { return self.odd.push(len_bytes) };
        let most = self.end().caps().message_bytes_max as u64 - 256;
        let (mut whole, parts) = recipe(peer, number, most);
        whole.extend(area_of(&parts));
        assert!(bytes == whole, "message {number} from {peer} is not as it was sent");
        if let Some(last) = self.last.insert(peer, number) {
            assert_eq!(number, last + 1, "within a session messages come in order and none is left out");
        }
        *self.received.entry(peer).or_default() += 1;
    }

    fn announced(&mut self, peer: NodeId, token: u64, bulk_bytes: u64, head: &[u8]) {
        if let Some(number) = stamp(peer, head) {
            let (whole, parts) = recipe(peer, number, BULK_SLOT_BYTES as u64);
            assert!(head == whole, "the head of bulk message {number} is not as it was sent");
            let bytes: u64 = parts.iter().map(|(_, len)| *len as u64).sum();
            assert_eq!(bulk_bytes, bytes, "a bulk message is announced with its length");
            self.numbers.insert((peer, token), number);
        }
        self.fresh.push((peer, token));
    }

    /// After a poll: its announcements, but for those whose session was lost in the same poll.
    fn answer_fresh(&mut self) {
        for (peer, token) in std::mem::take(&mut self.fresh) {
            let Some(bulk_bytes) = self.ledger.announced.get(&(peer, token)).copied() else { continue };
            match self.answer {
                Answer::Hold => {}
                Answer::Accept => self.accept_in_slot(peer, token, bulk_bytes),
                Answer::Half if token % 2 == 1 => self.accept_in_slot(peer, token, bulk_bytes),
                Answer::Half | Answer::Refuse => self.refuse(peer, token),
            }
        }
    }

    /// Accepts into a slot, or refuses if there is none.
    pub fn accept_in_slot(&mut self, peer: NodeId, token: u64, bulk_bytes: u64) {
        match self.slots.pop() {
            Some(slot) if bulk_bytes <= slot.len_bytes as u64 => {
                self.accept(peer, token, Piece { len_bytes: bulk_bytes as u32, ..slot });
            }
            _ => self.refuse(peer, token),
        }
    }

    pub fn accept(&mut self, peer: NodeId, token: u64, into: Piece) {
        self.ledger.accept(peer, token, into);
        self.end().accept(peer, token, into);
    }

    pub fn refuse(&mut self, peer: NodeId, token: u64) {
        self.numbers.remove(&(peer, token));
        self.ledger.refuse(peer, token);
        self.end().refuse(peer, token);
    }

    /// Polls once.
    pub fn poll(&mut self, now: Time) {
        let Some(fabric) = &mut self.fabric else { return };
        let mut done = std::mem::take(&mut self.done);
        let room = done.capacity();
        fabric.poll(now, &mut done);
        assert!(done.len() <= room.max(1), "more completions than there is room for");
        self.completions += done.len() as u64;
        done.drain(..).for_each(|completion| self.handle(completion));
        self.done = done;
        self.answer_fresh();
    }

    /// How many completions one poll may bring.
    pub fn set_room(&mut self, room: usize) {
        self.done = Vec::with_capacity(room);
    }
}

/// Who sent it and which it is, if it begins with a stamp.
fn stamp(peer: NodeId, bytes: &[u8]) -> Option<u64> {
    let word = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    (word(0)? == peer.0 as u64).then(|| word(8)).flatten()
}

fn area_of(parts: &[(u64, u32)]) -> Vec<u8> {
    let bytes =
        |(offset, len): &(u64, u32)| (*offset as usize..*offset as usize + *len as usize).map(pattern);
    parts.iter().flat_map(bytes).collect()
}

impl Rig {
    /// All fabrics with all buffers posted, and every session up.
    pub fn up(network: Network) -> Rig {
        let mut rig = Rig::new(network);
        rig.stations.iter_mut().for_each(|s| assert_eq!(s.lend(), BUFFERS, "all buffers are taken"));
        rig.all_up();
        rig
    }

    /// Nothing posted, nothing polled.
    pub fn new(network: Network) -> Rig {
        let Network { fabrics, mut clock, flap } = network;
        let ids = super::nodes(fabrics.len());
        let stations = ids.into_iter().zip(fabrics).map(|(id, fabric)| Station::new(id, fabric)).collect();
        let now = clock();
        Rig { stations, clock, started: now, now, flap, epoll: None }
    }

    /// Every two nodes have a session.
    pub fn all_up(&mut self) {
        let ids: Vec<NodeId> = self.stations.iter().map(|s| s.id).collect();
        let peers = move |s: &Station| ids.iter().all(|id| *id == s.id || s.ledger.session(*id).is_some());
        self.until("all sessions are up", |rig| rig.stations.iter().all(&peers));
    }

    /// Time goes on.
    pub fn tick(&mut self, what: &str) {
        self.now = (self.clock)();
        assert!(self.now < self.started + PATIENCE, "does not come about: {what}");
    }

    /// Polls everybody once.
    pub fn step(&mut self, what: &str) {
        self.tick(what);
        let now = self.now;
        self.stations.iter_mut().for_each(|s| s.poll(now));
    }

    /// Polls everybody until it is so.
    pub fn until(&mut self, what: &str, so: impl Fn(&Rig) -> bool) {
        while !so(self) {
            self.step(what);
        }
    }

    /// Everything that was posted and accepted has completed.
    pub fn settle(&mut self) {
        self.until("everything completes", |rig| rig.stations.iter().all(|s| s.ledger.is_settled()));
    }

    /// Ends the session of the first two nodes, if the network can; false if not.
    pub fn flap(&mut self) -> bool {
        let (one, other) = (self.stations[0].id, self.stations[1].id);
        self.flap.as_mut().map(|flap| flap(one, other)).is_some()
    }

    /// Polls only who would be awake: its waiter is ready, its deadline has passed, or it may not sleep.
    pub fn step_sleepers(&mut self, what: &str) {
        self.tick(what);
        let now = self.now;
        let epoll = self.epoll.get_or_insert_with(|| Epoll::new().expect("an epoll"));
        for station in &mut self.stations {
            let Some(fabric) = &mut station.fabric else { continue };
            if is_awake(fabric.as_mut(), epoll, now) {
                station.poll(now);
            }
        }
    }

    /// Polls everybody once, and counts who might have slept although it had something to tell.
    pub fn step_and_count_surprises(&mut self, what: &str) -> usize {
        self.tick(what);
        let now = self.now;
        let epoll = self.epoll.get_or_insert_with(|| Epoll::new().expect("an epoll"));
        let mut surprises = 0;
        for station in &mut self.stations {
            let Some(fabric) = &mut station.fabric else { continue };
            let (awake, before) = (is_awake(fabric.as_mut(), epoll, now), station.completions);
            station.poll(now);
            surprises += usize::from(!awake && station.completions > before);
        }
        surprises
    }
}

fn is_awake(fabric: &mut (dyn Fabric + Send), epoll: &Epoll, now: Time) -> bool {
    fabric.arm() == Armed::MoreToDo
        || fabric.deadline().is_some_and(|at| at <= now)
        || is_ready(fabric, epoll)
}

fn is_ready(fabric: &(dyn Fabric + Send), epoll: &Epoll) -> bool {
    let Waiter::Fd(fd) = fabric.waiter() else { return true };
    epoll.add(fd, 1, Readiness::READ).expect("a waiter that can be waited for");
    let mut ready = Vec::new();
    epoll.wait(&mut ready, Some(Duration::ZERO)).expect("a look at the waiter");
    epoll.remove(fd).expect("a waiter that was added");
    !ready.is_empty()
}
