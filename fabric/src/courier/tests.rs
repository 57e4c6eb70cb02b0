//! Tests of the courier over heap memory and the loopback fabric: two nodes, one endpoint each, no daemon but the rig.

use std::sync::Arc;
use std::time::Duration;

use abi::courier::Attach;
use abi::grant::{CopyRequest, Range, Role};
use abi::limits::{EXTENTS_PER_PAIR_MAX, LANE_SLOTS};
use abi::member::{Refusal, SegmentKind};
use abi::record::{Kind as RecordKind, Record};
use abi::slot::{self, Kind, SlotCopy};
use abi::{Claim, DcId, Endpoint, Generation, NodeId, Pair, Slot, doorbell, side};
use shm::doorbell::Doorbells;
use shm::lane::{self, LaneReader, LaneWriter, Take, Withdrawal};
use shm::map::Mapping;
use shm::side::{OwnSide, PeerSide};
use shm::words::OwnWords;
use shm::{notify, reply, returns};

use super::jobs::{By, Job, Key, Work};
use super::{Courier, Output, PairIndex};
use crate::loopback::{Loopback, Mode, Wire};
use crate::{Armed, Desc, Fabric};

mod condemned;
mod seals;

const DC: DcId = DcId(1);
const POOL_BYTES: usize = 4 << 20;

fn node(n: usize) -> NodeId {
    NodeId(n as u16 + 1)
}

fn endpoint(n: usize) -> Endpoint {
    Endpoint::new(DC, Slot(n as u16), Generation(3))
}

/// An endpoint of one node, and what its proxy is made of.
struct End {
    side_map: Arc<Mapping>,
    own: OwnSide,
    mirror: PeerSide,
    pool: Arc<Mapping>,
    writer: LaneWriter,
    reader: LaneReader,
    proxy_pool: Vec<(u32, Arc<Mapping>)>,
    /// Of the proxy: another with each life.
    memory: u32,
    courier: Courier,
    fabric: Loopback,
    outputs: Vec<Output>,
    attached: bool,
    /// Its daemon seals what it maps, at once.
    seals: bool,
}

struct Rig {
    ends: [End; 2],
    wire: Wire,
}

fn own_side(map: &Arc<Mapping>, index: usize) -> OwnSide {
    OwnSide::new(OwnWords::mapped(map, index * side::BYTES, side::WORDS).unwrap())
}

/// A fresh proxy: its courier, its sides, its pool.
fn proxy(n: usize, memory: u32, fabric: &mut Loopback) -> (Courier, PeerSide, Arc<Mapping>) {
    let mut courier = Courier::new([node(1 - n)]);
    courier.lend_buffers(Mapping::heap(Courier::buffer_bytes(fabric)), fabric);
    courier.add_dc(DC, memory, Doorbells::heap());
    let (sides, pool) = (Mapping::heap(2 * side::BYTES), Mapping::heap(POOL_BYTES));
    courier.add_segment(memory, 0, SegmentKind::Sides, sides.clone());
    courier.add_segment(memory, 1, SegmentKind::Pool, pool.clone());
    courier.segment_sealed(memory, 0, fabric);
    courier.segment_sealed(memory, 1, fabric);
    (courier, own_side(&sides, 1).as_peer(), pool)
}

impl End {
    fn new(n: usize, mut fabric: Loopback, pool_bytes: usize) -> End {
        let memory = 10 * (n as u32 + 1);
        let (courier, mirror, proxy_pool) = proxy(n, memory, &mut fabric);
        let side_map = Mapping::heap(side::BYTES);
        End {
            own: own_side(&side_map, 0),
            side_map,
            mirror,
            pool: Mapping::heap(pool_bytes),
            writer: LaneWriter::default(),
            reader: LaneReader::default(),
            proxy_pool: vec![(1, proxy_pool)],
            memory,
            courier,
            fabric,
            outputs: Vec::new(),
            attached: false,
            seals: true,
        }
    }

    fn attach(&mut self, n: usize) {
        let attach = Attach {
            local: endpoint(n),
            remote: endpoint(1 - n),
            node: node(1 - n),
            own_memory: self.memory,
            own_segment: 0,
            own_side: 1,
            memory: n as u32 + 1,
            segment: 0,
            side: 0,
            doorbell: doorbell::of_slot(endpoint(n).slot) as u32,
        };
        assert!(self.courier.attach(&attach, self.side_map.clone(), &mut self.fabric));
        self.attached = true;
    }

    fn publish(&mut self, n: usize, kind: Kind, flags: u8, claim: Option<Claim>, text: &[u8]) -> u64 {
        assert!(self.writer.has_room(&self.mirror).unwrap());
        let mut slot = message(n, kind, flags, claim, text);
        let sequence = self.writer.publish(&self.own, &mut slot);
        self.courier.hint(DC, n as u16);
        sequence
    }

    fn take(&mut self, n: usize) -> Option<SlotCopy> {
        loop {
            let took = self.reader.take(&self.own, &self.mirror, endpoint(1 - n)).unwrap();
            self.courier.hint(DC, n as u16);
            match took {
                Take::Empty => return None,
                Take::Message(slot) => return Some(slot),
                Take::Skipped(_) => {}
            }
        }
    }

    fn bytes_of(&self, claim: Claim) -> Vec<u8> {
        let (_, map) =
            self.proxy_pool.iter().find(|(index, _)| *index == claim.segment).expect("the proxy's pool");
        let mut out = vec![0; claim.len_bytes as usize];
        map.read_into(claim.offset_bytes as usize, &mut out).unwrap();
        out
    }

    fn lent(&self) -> usize {
        self.courier.pairs.iter().flatten().map(|p| p.lent.iter().flatten().count()).sum()
    }
}

fn message(n: usize, kind: Kind, flags: u8, claim: Option<Claim>, text: &[u8]) -> SlotCopy {
    let flags = if claim.is_some() { flags | slot::EXTENT } else { flags };
    let mut slot = SlotCopy {
        head: lane::head(kind, flags),
        source: endpoint(n).to_word(),
        sequence: 0,
        kind: 1,
        call: 0,
        body: [0; slot::BODY_WORDS],
    };
    if let Some(claim) = claim {
        slot.set_claim(claim);
    }
    slot.set_inline(text);
    slot
}

fn text(slot: &SlotCopy) -> Vec<u8> {
    let mut out = [0; 96];
    let len = slot.inline_into(&mut out);
    out[..len].to_vec()
}

impl Rig {
    fn new(mode: Mode) -> Rig {
        Rig::with_pools(mode, 1 << 20)
    }

    fn with_pools(mode: Mode, pool_bytes: usize) -> Rig {
        let mut fabrics = Loopback::network_to_poll(&[node(0), node(1)], mode).into_iter();
        let mut end = |n| End::new(n, fabrics.next().unwrap(), pool_bytes);
        let ends = [end(0), end(1)];
        let wire = ends[0].fabric.wire();
        Rig { ends, wire }
    }

    /// Both attached, everything said.
    fn joined(mode: Mode) -> Rig {
        let mut rig = Rig::new(mode);
        rig.ends[0].attach(0);
        rig.settle();
        assert!(rig.ends[1].attached, "the other daemon was asked");
        rig
    }

    /// Steps both until nothing moves any more.
    fn settle(&mut self) {
        for _ in 0..100 {
            (0..2).for_each(|n| self.step(n));
        }
    }

    fn step(&mut self, n: usize) {
        let end = &mut self.ends[n];
        end.courier.step(Duration::ZERO, &mut end.fabric);
        let mut outputs = Vec::new();
        end.courier.take_outputs(&mut outputs);
        for output in &outputs {
            match output {
                Output::RemoteOpen { .. } if !end.attached => end.attach(n),
                Output::WantSegment { memory, segment } => {
                    end.courier.add_peer_segment(*memory, *segment, end.pool.clone(), &mut end.fabric);
                }
                Output::NewPoolSegment { memory, len_bytes } => {
                    let (index, map) = (end.proxy_pool.len() as u32 + 1, Mapping::heap(*len_bytes as usize));
                    end.proxy_pool.push((index, map.clone()));
                    end.courier.add_segment(*memory, index, SegmentKind::Pool, map);
                    if end.seals {
                        end.courier.segment_sealed(*memory, index, &mut end.fabric);
                    }
                }
                _ => {}
            }
        }
        end.outputs.extend(outputs);
    }

    /// A new proxy takes over at one node, with fresh memory.
    fn restart(&mut self, n: usize) {
        let fabric = self.wire.restart(node(n));
        let end = &mut self.ends[n];
        end.fabric = fabric;
        end.memory += 1;
        let (courier, mirror, pool) = proxy(n, end.memory, &mut end.fabric);
        end.courier = courier;
        end.proxy_pool = vec![(1, pool)];
        end.writer.leave(&end.mirror);
        end.mirror = mirror;
        end.attach(n);
    }
}

const MODES: [Mode; 2] = [Mode::Eager, Mode::OneSided];

fn claim_at(offset_bytes: u64, len_bytes: u64) -> Claim {
    Claim { segment: 1, token: 77, offset_bytes, len_bytes }
}

#[test]
fn a_stream_survives_restarts_and_lost_sessions_at_either_end_without_loss_or_duplicate() {
    for mode in MODES {
        let mut rig = Rig::joined(mode);
        let (mut sent, mut taken) = (0u64, 0u64);
        for round in 0..120 {
            for _ in 0..17 {
                let end = &mut rig.ends[0];
                if end.writer.has_room(&end.mirror).unwrap() {
                    end.publish(0, Kind::Post, 0, None, &sent.to_le_bytes());
                    sent += 1;
                }
            }
            match round % 6 {
                1 => rig.restart(0),
                3 => rig.restart(1),
                5 => rig.wire.flap(node(0), node(1)),
                _ => {}
            }
            (0..round % 4).for_each(|_| (0..2).for_each(|n| rig.step(n)));
            for _ in 0..13 {
                let Some(slot) = rig.ends[1].take(1) else { break };
                assert_eq!(text(&slot), taken.to_le_bytes(), "{mode:?}, round {round}");
                taken += 1;
            }
        }
        rig.settle();
        while let Some(slot) = rig.ends[1].take(1) {
            assert_eq!(text(&slot), taken.to_le_bytes());
            taken += 1;
            rig.settle();
        }
        assert_eq!((sent, taken > 2 * LANE_SLOTS), (taken, true));
    }
}

#[test]
fn extents_arrive_whole_in_order_and_go_home() {
    for mode in MODES {
        let mut rig = Rig::joined(mode);
        for round in 0..8u8 {
            for part in 0..3u8 {
                let at = part as u64 * (300 << 10);
                rig.ends[0].pool.write_from(at as usize, &vec![16 * round + part; 300 << 10]).unwrap();
                rig.ends[0].publish(0, Kind::Post, 0, Some(claim_at(at, 300 << 10)), &[round, part]);
                rig.ends[0].publish(0, Kind::Post, 0, None, b"between");
            }
            (0..round).for_each(|_| (0..2).for_each(|n| rig.step(n)));
            match round % 4 {
                1 => rig.wire.flap(node(0), node(1)),
                2 => rig.restart(0),
                3 => rig.restart(1),
                _ => {}
            }
            rig.settle();
            for part in 0..3u8 {
                let slot = rig.ends[1].take(1).unwrap();
                assert_eq!(text(&slot), [round, part]);
                let claim = slot.claim().unwrap();
                assert_eq!(rig.ends[1].bytes_of(claim), vec![16 * round + part; 300 << 10]);
                let end = &mut rig.ends[1];
                returns::give(&end.own, claim.token, end.memory);
                assert_eq!(text(&end.take(1).unwrap()), b"between");
                rig.settle();
            }
            assert_eq!(
                (rig.ends[0].writer.consumed(&rig.ends[0].mirror), rig.ends[1].lent()),
                (Ok(6 * (round as u64 + 1)), 0)
            );
        }
    }
}

#[test]
fn an_empty_extent_arrives_empty_and_gives_nothing_of_others_back() {
    let mut rig = Rig::joined(Mode::Eager);
    for _ in 0..100 {
        rig.ends[0].publish(0, Kind::Post, 0, Some(claim_at(0, 64)), b"held");
        rig.settle();
    }
    let mut empty = claim_at(4096, 0);
    empty.segment = 9;
    rig.ends[0].publish(0, Kind::Post, 0, Some(empty), b"empty");
    rig.settle();
    let held: Vec<_> = (0..100).map(|_| rig.ends[1].take(1).unwrap()).collect();
    let got = rig.ends[1].take(1).unwrap();
    let claim = got.claim().unwrap();
    assert!(rig.ends[1].bytes_of(claim).is_empty());
    let end = &mut rig.ends[1];
    returns::give(&end.own, claim.token, end.memory);
    end.courier.hint(DC, 1);
    rig.settle();
    assert_eq!(rig.ends[1].lent(), held.len());
}

#[test]
fn no_more_extents_are_lent_than_the_return_ring_of_the_receiver_holds() {
    let mut rig = Rig::joined(Mode::Eager);
    let more = EXTENTS_PER_PAIR_MAX + 40;
    let mut views = Vec::new();
    for n in 0..more {
        rig.ends[0].publish(0, Kind::Post, 0, Some(claim_at(0, 64)), &n.to_le_bytes());
        rig.settle();
        views.extend(rig.ends[1].take(1));
    }
    assert_eq!(rig.ends[1].lent() as u64, EXTENTS_PER_PAIR_MAX);
    let mut taken = views.len() as u64;
    while taken < more {
        for view in views.drain(..) {
            let end = &mut rig.ends[1];
            returns::give(&end.own, view.claim().unwrap().token, end.memory);
        }
        rig.ends[1].courier.hint(DC, 1);
        rig.settle();
        while let Some(slot) = rig.ends[1].take(1) {
            views.push(slot);
            taken += 1;
            rig.settle();
        }
        assert!(!views.is_empty(), "what waited for room comes when there is some");
    }
    assert_eq!(taken, more);
}

#[test]
fn an_extent_that_waits_for_room_is_not_overtaken_within_its_stream() {
    let mut rig = Rig::with_pools(Mode::Eager, 36 << 20);
    rig.ends[0].attach(0);
    rig.settle();
    let mut at = 0;
    for mib in [10u64, 20, 5] {
        rig.ends[0].publish(0, Kind::Post, 0, Some(claim_at(at, mib << 20)), b"");
        at += mib << 20;
        rig.settle();
    }
    for mib in [10u64, 20, 5] {
        let slot = rig.ends[1].take(1).expect("it has room, all before it went home");
        let claim = slot.claim().unwrap();
        assert_eq!(claim.len_bytes, mib << 20);
        let end = &mut rig.ends[1];
        returns::give(&end.own, claim.token, end.memory);
        end.courier.hint(DC, 1);
        rig.settle();
    }
}

#[test]
fn a_reply_crosses_with_its_extent_and_once() {
    for mode in MODES {
        let mut rig = Rig::joined(mode);
        for call in 1..20u64 {
            let mut request = message(0, Kind::Request, 0, None, b"?");
            request.call = call as u32;
            rig.ends[0].writer.publish(&rig.ends[0].own, &mut request);
            rig.ends[0].courier.hint(DC, 0);
            rig.settle();
            assert_eq!(rig.ends[1].take(1).unwrap().call, call as u32);
            let fill = call as u8;
            rig.ends[1].pool.write_from(0, &[fill; 5000]).unwrap();
            let with_extent = call % 3 != 0;
            let answer = message(1, Kind::Reply, 0, with_extent.then(|| claim_at(0, 5000)), &[fill]);
            reply::publish(&rig.ends[1].own, call, &answer, true);
            rig.ends[1].courier.hint(DC, 1);
            match call % 5 {
                1 => rig.restart(0),
                2 => rig.restart(1),
                3 => rig.wire.flap(node(0), node(1)),
                _ => rig.step(1),
            }
            rig.settle();
            let end = &rig.ends[0];
            let got = reply::read(&end.mirror, call, endpoint(1)).unwrap().expect("the reply");
            assert_eq!(text(&got), [fill]);
            if let Some(claim) = got.claim() {
                end.own.set_reply_taken(call);
                assert_eq!(end.bytes_of(claim), vec![fill; 5000]);
                returns::give(&end.own, claim.token, end.memory);
                rig.ends[0].courier.hint(DC, 0);
            }
            rig.settle();
            assert_eq!(rig.ends[0].lent(), 0);
        }
    }
}

#[test]
fn the_extent_of_a_reply_that_its_client_gave_up_goes_home() {
    let mut rig = Rig::joined(Mode::Eager);
    let answer = message(1, Kind::Reply, 0, Some(claim_at(0, 5000)), b"");
    reply::publish(&rig.ends[1].own, 4, &answer, true);
    rig.ends[1].courier.hint(DC, 1);
    rig.settle();
    assert_eq!(rig.ends[0].lent(), 1);
    rig.ends[0].own.set_gave_up(4);
    rig.ends[0].courier.hint(DC, 0);
    rig.settle();
    assert_eq!(rig.ends[0].lent(), 0);
}

#[test]
fn raised_bits_are_seen_once_across_restarts() {
    let mut rig = Rig::joined(Mode::Eager);
    for round in 0..12 {
        notify::raise(&rig.ends[0].own, 1 << round | 1 << 31);
        rig.ends[0].courier.hint(DC, 0);
        match round % 4 {
            1 => rig.restart(0),
            2 => rig.restart(1),
            3 => rig.wire.flap(node(0), node(1)),
            _ => {}
        }
        rig.settle();
        let end = &rig.ends[1];
        assert_eq!(notify::take(&end.own, &end.mirror), 1 << round | 1 << 31);
        assert_eq!(notify::take(&end.own, &end.mirror), 0);
    }
}

#[test]
fn a_withdrawal_follows_its_slot_even_behind_an_earlier_one() {
    let mut rig = Rig::joined(Mode::Eager);
    let withdrawable = |rig: &mut Rig| rig.ends[0].publish(0, Kind::Send, slot::WITHDRAWABLE, None, b"w");
    let withdraw = |rig: &mut Rig, sequence| {
        let end = &mut rig.ends[0];
        let outcome = end.writer.withdraw(&end.own, &end.mirror, sequence).unwrap();
        end.courier.hint(DC, 0);
        outcome
    };
    let early = withdrawable(&mut rig);
    assert_eq!(withdraw(&mut rig, early), Withdrawal::Withdrawn);
    let first = withdrawable(&mut rig);
    rig.settle();
    assert_eq!(withdraw(&mut rig, first), Withdrawal::Undecided);
    let second = withdrawable(&mut rig);
    rig.settle();
    assert_eq!(withdraw(&mut rig, second), Withdrawal::Undecided);
    rig.settle();
    rig.ends[0].publish(0, Kind::Post, 0, None, b"p");
    rig.settle();
    assert_eq!(text(&rig.ends[1].take(1).unwrap()), b"p");
    rig.settle();
    assert_eq!(withdraw(&mut rig, second), Withdrawal::Withdrawn);
}

#[test]
fn a_death_is_told_with_all_that_was_published_even_by_a_successor_after_a_lap() {
    let mut rig = Rig::joined(Mode::Eager);
    let mut sent = 0u64;
    for _ in 0..3 {
        for _ in 0..LANE_SLOTS / 2 + 10 {
            rig.ends[0].publish(0, Kind::Post, 0, None, &sent.to_le_bytes());
            sent += 1;
        }
        rig.settle();
        while rig.ends[1].take(1).is_some() {}
        rig.settle();
    }
    rig.wire.cut(node(0), node(1));
    for _ in 0..9 {
        rig.ends[0].publish(0, Kind::Post, 0, None, &sent.to_le_bytes());
        sent += 1;
    }
    rig.restart(0);
    rig.ends[0].courier.local_ended(endpoint(0));
    rig.wire.heal(node(0), node(1));
    rig.settle();
    assert_eq!(rig.ends[1].mirror.end(), (side::END_DEAD, sent));
    for n in sent - 9..sent {
        assert_eq!(text(&rig.ends[1].take(1).expect("published before the death")), n.to_le_bytes());
    }
    assert!(rig.ends[1].take(1).is_none());
}

#[test]
fn a_reply_that_waits_for_its_segment_comes_before_the_death_of_its_server() {
    let mut rig = Rig::joined(Mode::Eager);
    let answer = message(1, Kind::Reply, 0, Some(claim_at(0, 5000)), b"last words");
    reply::publish(&rig.ends[1].own, 1, &answer, true);
    let end = &mut rig.ends[1];
    end.courier.local_ended(endpoint(1));
    for _ in 0..5 {
        end.courier.step(Duration::ZERO, &mut end.fabric);
    }
    end.courier.take_outputs(&mut end.outputs);
    assert!(end.outputs.contains(&Output::WantSegment { memory: 2, segment: 1 }));
    for _ in 0..10 {
        rig.step(0);
    }
    assert_eq!(rig.ends[0].mirror.end().0, side::END_NONE);
    let end = &mut rig.ends[1];
    end.courier.add_peer_segment(2, 1, end.pool.clone(), &mut end.fabric);
    rig.settle();
    assert!(reply::read(&rig.ends[0].mirror, 1, endpoint(1)).unwrap().is_some());
    assert_eq!(rig.ends[0].mirror.end().0, side::END_DEAD);
}

#[test]
fn a_refused_pair_ends() {
    let mut rig = Rig::new(Mode::Eager);
    rig.ends[1].attached = true;
    rig.ends[0].attach(0);
    rig.settle();
    rig.ends[1].courier.refuse(endpoint(1), endpoint(0), Refusal::NoSuchEndpoint);
    rig.settle();
    assert_eq!(rig.ends[0].mirror.end().0, side::END_REFUSED);
}

#[test]
fn nothing_of_a_dead_node_is_delivered_any_more() {
    let mut rig = Rig::joined(Mode::Eager);
    let incarnation = rig.wire.incarnation(node(0));
    rig.ends[0].publish(0, Kind::Post, 0, None, b"late");
    rig.step(0);
    let end = &mut rig.ends[1];
    end.courier.node_dead(node(0), incarnation, &mut end.fabric);
    rig.settle();
    assert_eq!(rig.ends[1].mirror.end().0, side::END_NODE_DEAD);
    assert!(rig.ends[1].take(1).is_none());
    assert!(rig.ends[0].outputs.contains(&Output::Fenced { by: node(1) }));
}

#[test]
fn a_detached_pair_leaves_a_side_of_zeroes_and_a_whole_pool() {
    let mut rig = Rig::joined(Mode::Eager);
    rig.ends[0].publish(0, Kind::Post, 0, Some(claim_at(0, 64 << 10)), b"");
    rig.settle();
    let end = &mut rig.ends[1];
    end.courier.detach(endpoint(1), endpoint(0), &mut end.fabric);
    let words = end.mirror.words();
    assert!((0..side::WORDS).all(|at| words.load(at, shm::sync::Ordering::Relaxed) == 0));
    assert_eq!(end.courier.stores[&end.memory].pool.audit().unwrap().loans, 0);
    assert_eq!(end.courier.dcs[&DC].held.values().sum::<u64>(), 0);
}

#[test]
fn a_side_made_fresh_before_the_detach_is_heard_of_is_nobodys_fault() {
    let mut rig = Rig::joined(Mode::Eager);
    rig.ends[0].publish(0, Kind::Post, 0, Some(claim_at(0, 64)), b"");
    rig.settle();
    let view = rig.ends[1].take(1).expect("it was sent");
    let end = &mut rig.ends[1];
    returns::give(&end.own, view.claim().unwrap().token, end.memory);
    rig.settle();
    // The end was heard of from the predecessor; the successor is still to hear of it when the pair is closed.
    rig.wire.cut(node(0), node(1));
    rig.restart(1);
    rig.ends[1].own.clear();
    rig.ends[1].courier.hint(DC, 1);
    rig.wire.heal(node(0), node(1));
    rig.settle();
    assert_eq!(rig.ends[1].courier.totals().corrupt, 0, "{:?}", rig.ends[1].outputs);
}

#[test]
fn more_returned_than_can_be_out_closes_the_pair_and_is_reported_once() {
    let mut rig = Rig::joined(Mode::Eager);
    let tail = EXTENTS_PER_PAIR_MAX + 1;
    rig.ends[1].own.words().store(side::RETURNS_TAIL, tail, shm::sync::Ordering::Relaxed);
    for _ in 0..3 {
        rig.ends[1].courier.hint(DC, 1);
        rig.settle();
    }
    let reports = rig.ends[1].outputs.iter().filter(|output| matches!(output, Output::Condemned { .. }));
    assert_eq!((reports.count(), rig.ends[1].courier.totals().corrupt), (1, 1));
    assert_eq!(rig.ends[0].mirror.end().0, side::END_DEAD);
}

#[test]
fn a_dead_endpoints_pair_is_let_go_when_the_far_end_is_done_with_it_and_not_before() {
    let gone = Output::Detached { local: endpoint(0), remote: endpoint(1) };
    let mut rig = Rig::joined(Mode::Eager);
    rig.ends[0].publish(0, Kind::Post, 0, None, b"last words");
    rig.ends[0].courier.local_ended(endpoint(0));
    rig.settle();
    assert_eq!(text(&rig.ends[1].take(1).expect("published before the death")), b"last words");
    rig.settle();
    assert!(!rig.ends[0].outputs.contains(&gone));
    let end = &mut rig.ends[1];
    end.courier.detach(endpoint(1), endpoint(0), &mut end.fabric);
    rig.settle();
    assert!(rig.ends[0].outputs.contains(&gone));
}

#[test]
fn a_pair_whose_ends_have_both_died_is_let_go_at_both() {
    let mut rig = Rig::joined(Mode::Eager);
    rig.ends[0].publish(0, Kind::Post, 0, None, b"to nobody");
    rig.ends[0].courier.local_ended(endpoint(0));
    rig.ends[1].courier.local_ended(endpoint(1));
    rig.settle();
    for (n, end) in rig.ends.iter().enumerate() {
        assert!(end.outputs.contains(&Output::Detached { local: endpoint(n), remote: endpoint(1 - n) }));
    }
}

#[test]
fn more_to_say_than_one_batch_holds_is_said_without_another_push() {
    let mut fabrics = Loopback::network_to_poll(&[node(0), node(1)], Mode::Eager).into_iter();
    let (mut one, mut other) = (fabrics.next().unwrap(), fabrics.next().unwrap());
    let sides = Mapping::heap(64 * side::BYTES);
    let mut courier = Courier::new([node(1)]);
    courier.lend_buffers(Mapping::heap(Courier::buffer_bytes(&one)), &mut one);
    courier.add_dc(DC, 10, Doorbells::heap());
    courier.add_segment(10, 0, SegmentKind::Sides, sides);
    courier.segment_sealed(10, 0, &mut one);
    let remote = |n: u16| Endpoint::new(DC, Slot(100 + n), Generation(1));
    let own: Vec<OwnSide> = (0..40)
        .map(|n| {
            let map = Mapping::heap(side::BYTES);
            let attach = Attach {
                local: endpoint(0),
                remote: remote(n),
                node: node(1),
                own_memory: 10,
                own_segment: 0,
                own_side: n as u32,
                memory: 1,
                segment: 0,
                side: n as u32,
                doorbell: 0,
            };
            assert!(courier.attach(&attach, map.clone(), &mut one));
            own_side(&map, 0)
        })
        .collect();
    courier.step(Duration::ZERO, &mut one);
    let mut done = Vec::with_capacity(256);
    other.poll(Duration::ZERO, &mut done);
    for n in 0..40 {
        let pair = Pair { source: remote(n), destination: endpoint(0) };
        let head = Record::of(RecordKind::Opened, pair, 0).to_bytes();
        assert_eq!(
            other.post_send(node(0), &[Desc { token: 0, head: &head, pieces: &[], bulk: false, flow: 0 }]),
            1
        );
    }
    for (n, side) in own.iter().enumerate() {
        notify::raise(side, 1);
        let mut slot = message(0, Kind::Post, 0, None, &[n as u8]);
        LaneWriter::default().publish(side, &mut slot);
    }
    let mut steps = 0;
    while courier.step(Duration::ZERO, &mut one) || one.arm() == Armed::MoreToDo {
        steps += 1;
        assert!(steps < 100);
    }
    let said = courier
        .pairs
        .iter()
        .flatten()
        .filter(|p| p.raises_said == 1 && p.sent_next == 1 && p.words_said.is_some());
    assert_eq!(said.count(), 40);
}

#[test]
fn claims_from_the_wire_that_overflow_close_the_pair_and_nothing_else() {
    let mut buffers = [[0u8; 32 + 4 * 8]; 4];
    let pair = Pair { source: endpoint(1), destination: endpoint(0) };
    let put = |bytes: &mut [u8], record: Record, word: u64| {
        bytes[..32].copy_from_slice(&record.to_bytes());
        for at in (32..bytes.len()).step_by(8) {
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
    };
    put(&mut buffers[0], Record::of(RecordKind::Words, pair, 0), u64::MAX);
    put(&mut buffers[1], Record::of(RecordKind::Withdraw, pair, u64::MAX), 0);
    put(&mut buffers[2], Record::of(RecordKind::Ended, pair, side::END_DEAD), u64::MAX);
    let mut slots = Record::of(RecordKind::Slots, pair, u64::MAX).to_bytes().to_vec();
    slots[2] = 2;
    slots.extend([1; 256]);
    let messages = [&buffers[0][..], &buffers[1][..32], &buffers[2][..48], &slots];
    for message in messages {
        let mut rig = Rig::joined(Mode::Eager);
        rig.ends[0].publish(0, Kind::Post, 0, None, b"one");
        rig.settle();
        let desc = Desc { token: 1, head: message, pieces: &[], bulk: false, flow: 0 };
        assert_eq!(rig.ends[1].fabric.post_send(node(0), &[desc]), 1);
        rig.settle();
        rig.ends[0].courier.local_ended(endpoint(0));
        rig.settle();
    }
}

#[test]
fn an_extent_accepted_when_its_session_was_already_lost_goes_home() {
    let mut rig = Rig::joined(Mode::Eager);
    rig.ends[0].publish(0, Kind::Post, 0, Some(claim_at(0, 5000)), b"");
    (0..4).for_each(|_| rig.step(0));
    let end = &mut rig.ends[1];
    let mut done = Vec::with_capacity(256);
    end.fabric.poll(Duration::ZERO, &mut done);
    rig.wire.cut(node(0), node(1));
    end.fabric.poll(Duration::ZERO, &mut done);
    done.into_iter().for_each(|completion| end.courier.on_completion(completion, &mut end.fabric));
    rig.wire.heal(node(0), node(1));
    rig.settle();
    let claim = rig.ends[1].take(1).unwrap().claim().unwrap();
    let end = &mut rig.ends[1];
    returns::give(&end.own, claim.token, end.memory);
    rig.settle();
    assert_eq!(rig.ends[1].lent(), 0);
}

#[test]
fn the_death_of_an_incarnation_leaves_the_openings_of_the_next_one_to_be_answered() {
    let mut rig = Rig::new(Mode::Eager);
    let dead = rig.wire.incarnation(node(0));
    rig.restart(0);
    rig.ends[1].attached = true;
    rig.settle();
    let opening = Output::RemoteOpen { local: endpoint(1), remote: endpoint(0), node: node(0) };
    assert!(rig.ends[1].outputs.contains(&opening));
    let end = &mut rig.ends[1];
    end.courier.node_dead(node(0), dead, &mut end.fabric);
    end.courier.refuse(endpoint(1), endpoint(0), Refusal::NoSuchEndpoint);
    rig.settle();
    assert_eq!(rig.ends[0].mirror.end().0, side::END_REFUSED);
}

/// A copy that nobody goes on with, a segment mapped for one, one asked for, one that cannot be had.
fn leave_copies_about(end: &mut End) {
    let key = Key { pair: PairIndex(0), by: By::Local };
    let range = Range::own(0, 0);
    let request = CopyRequest {
        role: Role::Receive,
        node: NodeId(0),
        begun: false,
        len_bytes: 1,
        theirs: range,
        range,
        other: 0,
        beside: 0,
    };
    end.courier.jobs.insert(key, Job::new(2, endpoint(1), request, Work::Elsewhere));
    end.courier.jobs.wanted.insert((99, 1));
    end.courier.jobs.denied.insert((99, 2));
    end.courier.add_peer_segment(99, 3, Mapping::heap(4096), &mut end.fabric);
}

#[test]
fn nothing_of_a_dc_that_is_served_no_more_is_left_whatever_is_on_its_way() {
    for mode in MODES {
        for steps in 0..12 {
            for order in [[0, 1], [1, 0]] {
                let mut rig = Rig::with_pools(mode, 8 << 20);
                rig.ends[0].attach(0);
                rig.settle();
                for at in 0..8 {
                    rig.ends[0].publish(0, Kind::Post, 0, Some(claim_at(at << 20, 1 << 20)), b"");
                    rig.ends[1].publish(1, Kind::Post, 0, None, b"back");
                }
                (0..steps).for_each(|_| (0..2).for_each(|n| rig.step(n)));
                for n in order {
                    let end = &mut rig.ends[n];
                    end.courier.add_dc(DcId(2), 77, Doorbells::heap());
                    leave_copies_about(end);
                    end.courier.drop_dc(DC, &mut end.fabric);
                    rig.step(order[1]);
                }
                rig.settle();
                for end in &rig.ends {
                    assert_eq!(end.courier.remembers(DC), [""; 0], "{mode:?}, {steps} steps, {order:?}");
                    assert_eq!(end.courier.totals().pairs, 0);
                    assert!(end.courier.dcs.contains_key(&DcId(2)), "another DC stays");
                }
            }
        }
    }
}
