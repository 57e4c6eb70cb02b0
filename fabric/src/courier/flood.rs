//! Tests of fairness: one DC floods, another has one thing to say, and what the wire carries in between is counted.
//!
//! Two couriers over the loopback, with a [`Narrow`] wire between: it takes as much as TCP does and carries little.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use abi::courier::Attach;
use abi::limits::{LINK_POSTED_BYTES_MAX, PULLED_BYTES_PER_DC_MAX, SLOT_BYTES, TURN_BYTES};
use abi::member::SegmentKind;
use abi::record::{Kind as RecordKind, Record};
use abi::slot::{self, Kind, SlotCopy};
use abi::{Claim, DcId, Endpoint, Generation, Incarnation, NodeId, Slot, doorbell, side};
use shm::doorbell::Doorbells;
use shm::lane::{self, LaneReader, LaneWriter, Take};
use shm::map::Mapping;
use shm::returns;
use shm::side::{OwnSide, PeerSide};
use shm::words::OwnWords;

use super::{Courier, Output};
use crate::loopback::{Loopback, Mode};
use crate::{Armed, Caps, Completion, Desc, Fabric, Piece, RegionKey, Time, Waiter};

const FLOOD: DcId = DcId(1);
const QUIET: DcId = DcId(2);
/// Pairs that flood.
const PAIRS: usize = 64;
const EXTENT_BYTES: usize = 1 << 20;
const POOL_BYTES: usize = 96 << 20;
/// What the wire carries in a poll.
const CARRIED_BYTES: u64 = 16 << 10;
/// The longest run of one pair's slots, and what else it says beside.
const RUN_BYTES: u64 = 64 * SLOT_BYTES as u64 + 1024;

struct Posted {
    token: u64,
    head: Vec<u8>,
    pieces: Vec<Piece>,
    bulk: bool,
    flow: u16,
}

impl Posted {
    fn bytes(&self) -> u64 {
        let pieces: u64 = self.pieces.iter().map(|piece| piece.len_bytes as u64).sum();
        self.head.len() as u64 + if self.bulk { 0 } else { pieces }
    }
}

/// Takes 256 descriptors, as TCP does, and carries a few bytes of them at each poll.
struct Narrow {
    inner: Loopback,
    queue: VecDeque<Posted>,
    /// What was carried: DC, kind and bytes.
    carried: Vec<(DcId, RecordKind, u64)>,
    /// Bytes accepted here that have not come, and the most that ever were.
    coming_bytes: u64,
    coming_most: u64,
}

impl Fabric for Narrow {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }
    fn attach(&mut self, map: &Arc<Mapping>) -> RegionKey {
        self.inner.attach(map)
    }
    fn detach(&mut self, region: RegionKey) {
        self.inner.detach(region);
    }
    fn post_send(&mut self, _: NodeId, batch: &[Desc<'_>]) -> usize {
        let posted_max = self.caps().posted_max;
        let mut taken = 0;
        for desc in batch {
            let bulk = self.queue.iter().filter(|posted| posted.bulk).count();
            if self.queue.len() >= posted_max || desc.bulk && bulk >= posted_max / 2 {
                break;
            }
            let (head, pieces) = (desc.head.to_vec(), desc.pieces.to_vec());
            let (token, bulk, flow) = (desc.token, desc.bulk, desc.flow);
            self.queue.push_back(Posted { token, head, pieces, bulk, flow });
            taken += 1;
        }
        taken
    }
    fn post_recv(&mut self, free: &[Piece]) -> usize {
        self.inner.post_recv(free)
    }
    fn accept(&mut self, peer: NodeId, token: u64, into: Piece) {
        self.coming_bytes += into.len_bytes as u64;
        self.coming_most = self.coming_most.max(self.coming_bytes);
        self.inner.accept(peer, token, into);
    }
    fn refuse(&mut self, peer: NodeId, token: u64) {
        self.inner.refuse(peer, token);
    }
    fn poll(&mut self, now: Time, done: &mut Vec<Completion>) {
        let peer = NodeId(3 - self.inner.node().0);
        let mut left = CARRIED_BYTES as i64;
        while let Some(posted) = self.queue.front().filter(|_| left > 0) {
            let Posted { token, head, pieces, bulk, flow } = posted;
            let desc = Desc { token: *token, head, pieces, bulk: *bulk, flow: *flow };
            if self.inner.post_send(peer, &[desc]) == 0 {
                break;
            }
            let mut whole = head.clone();
            whole.resize(posted.bytes() as usize, 0);
            let record = Record::check(&whole).unwrap();
            let dc = record.pair.map_or(DcId(0), |pair| pair.source.dc);
            assert_eq!(dc.0, *flow, "a flow is a DC");
            left -= posted.bytes() as i64;
            self.carried.push((dc, record.kind, posted.bytes()));
            self.queue.pop_front();
        }
        let before = done.len();
        self.inner.poll(now, done);
        for completion in &done[before..] {
            if let Completion::BulkReceived { into, .. } = completion {
                self.coming_bytes -= into.len_bytes as u64;
            }
        }
    }
    fn waiter(&self) -> Waiter<'_> {
        self.inner.waiter()
    }
    fn arm(&mut self) -> Armed {
        self.inner.arm()
    }
    fn deadline(&self) -> Option<Time> {
        self.inner.deadline()
    }
    fn fence(&mut self, peer: NodeId, incarnation: Incarnation) {
        self.inner.fence(peer, incarnation);
    }
}

/// A local endpoint and the pair it has.
struct Seat {
    local: Endpoint,
    remote: Endpoint,
    own: OwnSide,
    mirror: PeerSide,
    writer: LaneWriter,
    reader: LaneReader,
}

impl Seat {
    fn publish(&mut self, courier: &mut Courier, extent: bool) -> bool {
        if !self.writer.has_room(&self.mirror).unwrap() {
            return false;
        }
        let flags = if extent { slot::EXTENT } else { 0 };
        let mut slot = SlotCopy {
            head: lane::head(Kind::Post, flags),
            source: self.local.to_word(),
            sequence: 0,
            kind: 1,
            call: 0,
            body: [0; slot::BODY_WORDS],
        };
        if extent {
            slot.set_claim(Claim { segment: 1, token: 7, offset_bytes: 0, len_bytes: EXTENT_BYTES as u64 });
        }
        self.writer.publish(&self.own, &mut slot);
        courier.hint(self.local.dc, self.local.slot.0);
        true
    }

    /// Takes what there is and gives its extents back; how many slots.
    fn take_all(&mut self, courier: &mut Courier) -> usize {
        let mut taken = 0;
        while let Take::Message(slot) = self.reader.take(&self.own, &self.mirror, self.remote).unwrap() {
            if let Some(claim) = slot.claim() {
                returns::give(&self.own, claim.token, self.local.dc.0 as u32);
            }
            taken += 1;
        }
        if taken > 0 {
            courier.hint(self.local.dc, self.local.slot.0);
        }
        taken
    }
}

struct End {
    courier: Courier,
    fabric: Narrow,
    seats: Vec<Seat>,
    pool: Arc<Mapping>,
}

impl End {
    /// The flooding pairs, and last the quiet one.
    fn new(n: u16, inner: Loopback) -> End {
        let mut fabric =
            Narrow { inner, queue: VecDeque::new(), carried: Vec::new(), coming_bytes: 0, coming_most: 0 };
        let mut courier = Courier::new([NodeId(2 - n)]);
        courier.lend_buffers(Mapping::heap(Courier::buffer_bytes(&fabric)), &mut fabric);
        let own = |map: &Arc<Mapping>, at: usize| {
            OwnSide::new(OwnWords::mapped(map, at * side::BYTES, side::WORDS).unwrap())
        };
        let mut seats = Vec::new();
        for (dc, count) in [(FLOOD, PAIRS), (QUIET, 1)] {
            courier.add_dc(dc, dc.0 as u32, Doorbells::heap());
            let sides = Mapping::heap(count * side::BYTES);
            courier.add_segment(dc.0 as u32, 0, SegmentKind::Sides, sides.clone());
            courier.add_segment(dc.0 as u32, 1, SegmentKind::Pool, Mapping::heap(POOL_BYTES));
            courier.segment_sealed(dc.0 as u32, 0, &mut fabric);
            courier.segment_sealed(dc.0 as u32, 1, &mut fabric);
            for at in 0..count as u16 {
                let endpoint = |n: u16| Endpoint::new(dc, Slot(100 * n + at), Generation(1));
                let (local, remote) = (endpoint(n), endpoint(1 - n));
                let map = Mapping::heap(side::BYTES);
                let attach = Attach {
                    local,
                    remote,
                    node: NodeId(2 - n),
                    own_memory: dc.0 as u32,
                    own_segment: 0,
                    own_side: at as u32,
                    memory: 100 * dc.0 as u32 + at as u32,
                    segment: 0,
                    side: 0,
                    doorbell: doorbell::of_slot(local.slot) as u32,
                };
                assert!(courier.attach(&attach, map.clone(), &mut fabric));
                let mirror = own(&sides, at as usize).as_peer();
                let (writer, reader) = (LaneWriter::default(), LaneReader::default());
                seats.push(Seat { local, remote, own: own(&map, 0), mirror, writer, reader });
            }
        }
        End { courier, fabric, seats, pool: Mapping::heap(EXTENT_BYTES) }
    }

    fn step(&mut self) {
        self.courier.step(Duration::ZERO, &mut self.fabric);
        let mut outputs = Vec::new();
        self.courier.take_outputs(&mut outputs);
        for output in outputs {
            if let Output::WantSegment { memory, segment } = output {
                self.courier.add_peer_segment(memory, segment, self.pool.clone(), &mut self.fabric);
            }
        }
    }
}

fn joined() -> [End; 2] {
    let mut fabrics = Loopback::network_to_poll(&[NodeId(1), NodeId(2)], Mode::Eager).into_iter();
    let mut ends = [0, 1].map(|n| End::new(n, fabrics.next().unwrap()));
    (0..20).for_each(|_| ends.iter_mut().for_each(End::step));
    ends
}

/// One round of the flood: every pair has all the backlog that its lane holds. Some slots have extents of 1 MiB.
fn flood(ends: &mut [End; 2], every: usize, receivers_take: bool) {
    let [near, far] = ends;
    for seat in &mut near.seats[..PAIRS] {
        let mut n = 0;
        while seat.publish(&mut near.courier, n % every == 0) {
            n += 1;
        }
    }
    for seat in far.seats[..PAIRS].iter_mut().filter(|_| receivers_take) {
        seat.take_all(&mut far.courier);
    }
    near.step();
    far.step();
}

#[test]
fn a_dc_with_one_slot_waits_for_few_bytes_of_another_dcs_flood() {
    for every in [usize::MAX, 8] {
        let mut ends = joined();
        (0..50).for_each(|_| flood(&mut ends, every, true));
        let near = &mut ends[0];
        let before = near.fabric.carried.len();
        assert!(near.seats[PAIRS].publish(&mut near.courier, false));
        (0..400).for_each(|_| flood(&mut ends, every, true));
        let carried = &ends[0].fabric.carried[before..];
        let own = carried.iter().position(|(dc, kind, _)| (*dc, *kind) == (QUIET, RecordKind::Slots));
        let own = own.expect("the slot is carried");
        let others: u64 = carried[..own].iter().map(|(_, _, bytes)| bytes).sum();
        let most = LINK_POSTED_BYTES_MAX + TURN_BYTES + 2 * RUN_BYTES;
        assert!(others <= most, "{others} bytes of the flood before it, {most} at most");
        let all: u64 = carried.iter().map(|(_, _, bytes)| bytes).sum();
        assert!(all > 2 * most, "the flood went on: {all}");
        assert_eq!(ends[1].seats[PAIRS].take_all(&mut ends[1].courier), 1);
    }
}

#[test]
fn no_more_of_a_dcs_extents_are_pulled_at_once_than_its_share() {
    let mut ends = joined();
    (0..600).for_each(|_| flood(&mut ends, 2, true));
    let most = ends[1].fabric.coming_most;
    assert!(most > EXTENT_BYTES as u64 && most <= PULLED_BYTES_PER_DC_MAX, "{most}");
    let announced = ends[0].fabric.carried.iter().filter(|(_, kind, _)| *kind == RecordKind::SlotExtent);
    assert!(announced.count() > 100);
}

#[test]
fn extents_that_nobody_takes_leave_another_dcs_extents_their_way() {
    let mut ends = joined();
    (0..400).for_each(|_| flood(&mut ends, 1, false));
    let near = &mut ends[0];
    assert!(near.seats[PAIRS].publish(&mut near.courier, true));
    let mut taken = 0;
    for _ in 0..50 {
        flood(&mut ends, 1, false);
        taken += ends[1].seats[PAIRS].take_all(&mut ends[1].courier);
    }
    assert_eq!(taken, 1);
}

#[test]
fn two_floods_share_the_wire_by_bytes_however_many_pairs_they_have() {
    let mut ends = joined();
    (0..50).for_each(|_| flood(&mut ends, usize::MAX, true));
    let before = ends[0].fabric.carried.len();
    for _ in 0..1500 {
        let [near, far] = &mut ends;
        while near.seats[PAIRS].publish(&mut near.courier, false) {}
        far.seats[PAIRS].take_all(&mut far.courier);
        flood(&mut ends, usize::MAX, true);
    }
    let carried = &ends[0].fabric.carried[before..];
    let of = |dc| carried.iter().filter(|(of, _, _)| *of == dc).map(|(_, _, bytes)| bytes).sum::<u64>();
    let (many, one) = (of(FLOOD), of(QUIET));
    // One pair has one lane's worth under way, and waits for its receiver between.
    assert!(3 * one > many, "{one} bytes of one pair, {many} of {PAIRS}");
}
