//! Sessions that pack: what crosses is the same and shorter, both ends must want it, and forged packed frames end the
//! session.
#![cfg(feature = "lz4")]

mod common;

use std::io::Write;
use std::net::TcpStream;

use abi::NodeId;
use abi::limits::FRAME_BYTES_MAX;
use abi::wire::Kind;
use fabric::{Completion, Desc, Fabric, Piece};
use proxy_tcp::{Packing, TcpFabric};
use shm::map::Mapping;

use common::{clock, configured_network, is_lost, is_up, poll_until, raw};

const OFFER_LZ4: u64 = 1;
const BULK_BYTES: usize = 300_000;

fn pair(wants: impl Fn(u16) -> bool) -> (TcpFabric, TcpFabric) {
    let change = |config: &mut proxy_tcp::TcpConfig| {
        config.packing = if wants(config.node.0) { Packing::Lz4 } else { Packing::None };
    };
    let mut all = configured_network(2, |address| address, change).into_iter();
    (all.next().unwrap(), all.next().unwrap())
}

fn lend(fabric: &mut TcpFabric, count: u64) -> std::sync::Arc<Mapping> {
    let map = Mapping::heap(count as usize * FRAME_BYTES_MAX as usize);
    let region = fabric.attach(&map);
    let piece = |i| Piece { region, offset_bytes: i * FRAME_BYTES_MAX as u64, len_bytes: FRAME_BYTES_MAX };
    fabric.post_recv(&(0..count).map(piece).collect::<Vec<_>>());
    map
}

/// A message of 8 KiB and a bulk message cross; what came, with the sender's counts.
fn cross(wants: impl Fn(u16) -> bool) -> (Vec<u8>, Vec<u8>, abi::courier::Packed, abi::courier::Packed) {
    let (mut one, mut two) = pair(wants);
    let buffers = lend(&mut two, 8);
    let mut now = clock();
    poll_until(&mut [&mut one, &mut two], &mut now, |done| done.iter().all(|done| is_up(done)));
    let source = Mapping::heap(BULK_BYTES);
    source.write_from(0, &payload()).unwrap();
    let region = one.attach(&source);
    let piece = |len_bytes| [Piece { region, offset_bytes: 0, len_bytes }];
    let (short, long) = (piece(8192), piece(BULK_BYTES as u32));
    let message = Desc { token: 1, head: b"head", pieces: &short, bulk: false, flow: 0 };
    let bulk = Desc { token: 2, head: b"bulk", pieces: &long, bulk: true, flow: 1 };
    assert_eq!(one.post_send(NodeId(2), &[message, bulk]), 2);
    let announced = |done: &[Completion]| {
        done.iter().find_map(|c| match c {
            Completion::Announced { token, .. } => Some(*token),
            _ => None,
        })
    };
    let done = poll_until(&mut [&mut one, &mut two], &mut now, |done| announced(&done[1]).is_some());
    let mut message = Vec::new();
    for completion in &done[1] {
        if let Completion::Received { buffer, len_bytes, .. } = completion {
            message = vec![0; *len_bytes as usize];
            buffers.read_into(buffer.offset_bytes as usize, &mut message).unwrap();
        }
    }
    let target = Mapping::heap(BULK_BYTES);
    let region = two.attach(&target);
    let into = Piece { region, offset_bytes: 0, len_bytes: BULK_BYTES as u32 };
    two.accept(NodeId(1), announced(&done[1]).unwrap(), into);
    let is_there = |c: &Completion| matches!(c, Completion::BulkReceived { .. });
    poll_until(&mut [&mut one, &mut two], &mut now, |done| done[1].iter().any(is_there));
    let mut bulk = vec![0; BULK_BYTES];
    target.read_into(0, &mut bulk).unwrap();
    (message, bulk, one.packed(), two.packed())
}

/// Words, then noise in the middle, then words.
fn payload() -> Vec<u8> {
    let mut seed = 5u64;
    let mut byte = |i: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if (100_000..180_000).contains(&i) { (seed >> 56) as u8 } else { b"again and again "[i % 16] }
    };
    (0..BULK_BYTES).map(&mut byte).collect()
}

#[test]
fn what_is_packed_comes_as_it_was_and_in_fewer_bytes() {
    let (message, bulk, one, two) = cross(|_| true);
    let plain = payload();
    assert!(message[..4] == *b"head" && message[4..] == plain[..8192] && bulk == plain);
    assert_eq!((one.sessions, two.sessions, one.plain_bytes), (1, 1, 8196 + BULK_BYTES as u64));
    assert!(one.wire_bytes > 80_000 && one.wire_bytes < one.plain_bytes / 2, "{one:?}");
}

#[test]
fn one_end_that_does_not_want_it_is_enough_for_plain() {
    for wants in [1, 2, 3] {
        let (message, bulk, one, two) = cross(|node| node == wants);
        assert!(message[4..] == payload()[..8192] && bulk == payload());
        assert_eq!((one, two), Default::default());
    }
}

/// A block that repeats `byte` to `len` bytes.
fn block(len: usize) -> Vec<u8> {
    lz4_flex::block::compress(&vec![7; len])
}

fn joined(offer: u64) -> (TcpFabric, TcpStream, u64) {
    let (_, mut two) = pair(|_| true);
    lend(&mut two, 8);
    let address = two.local_addr();
    let peer = std::thread::spawn(move || {
        let mut stream = raw::session_offering(address, 1, offer).unwrap();
        stream.write_all(&raw::frame(Kind::Announce, 77, 5000, b"head")).unwrap();
        stream
    });
    let mut token = None;
    poll_until(&mut [&mut two], &mut clock(), |done| {
        token = done[0].iter().find_map(|c| match c {
            Completion::Announced { token, .. } => Some(*token),
            _ => None,
        });
        token.is_some() && peer.is_finished()
    });
    (two, peer.join().unwrap(), token.unwrap())
}

#[test]
fn forged_packed_frames_end_the_session_and_give_the_buffer_back() {
    let bulk =
        |len: u64, offset: u64, bytes: &[u8]| raw::frame(Kind::PackedBulk, 77, len << 32 | offset, bytes);
    let good = block(5000);
    let long = block(FRAME_BYTES_MAX as usize + 1);
    for (what, offer, frame) in [
        ("not agreed on", 0, bulk(5000, 0, &good)),
        ("a message, not agreed on", 0, raw::frame(Kind::PackedMessage, 0, 5000, &good)),
        ("shorter than it says", OFFER_LZ4, bulk(4999, 0, &block(4000))),
        ("longer than it says", OFFER_LZ4, bulk(4000, 0, &good)),
        ("longer than was announced", OFFER_LZ4, bulk(5001, 0, &block(5001))),
        ("out of place", OFFER_LZ4, bulk(4000, 1, &block(4000))),
        ("of nothing", OFFER_LZ4, bulk(0, 0, &[])),
        ("that packs nothing", OFFER_LZ4, bulk(3, 0, &[1; 3])),
        ("cut", OFFER_LZ4, bulk(5000, 0, &good[..good.len() - 1])),
        ("noise", OFFER_LZ4, bulk(5000, 0, &[0xf3; 100])),
        ("empty", OFFER_LZ4, bulk(5000, 0, &[])),
        ("of an unknown name", OFFER_LZ4, raw::frame(Kind::PackedBulk, 78, 5000 << 32, &good)),
        ("a message of any length", OFFER_LZ4, raw::frame(Kind::PackedMessage, 0, u64::MAX, &good)),
        (
            "a message beyond limits",
            OFFER_LZ4,
            raw::frame(Kind::PackedMessage, 0, FRAME_BYTES_MAX as u64 + 1, &long),
        ),
        ("a message cut", OFFER_LZ4, raw::frame(Kind::PackedMessage, 0, 5000, &good[..5])),
    ] {
        let (mut two, mut stream, token) = joined(offer);
        let region = two.attach(&Mapping::heap(8192));
        let into = Piece { region, offset_bytes: 8, len_bytes: 5000 };
        two.accept(NodeId(1), token, into);
        stream.write_all(&frame).unwrap();
        let done = poll_until(&mut [&mut two], &mut clock(), |done| is_lost(&done[0]));
        let failed = Completion::BulkFailed { peer: NodeId(1), token, into };
        assert_eq!(done[0].iter().filter(|c| **c == failed).count(), 1, "{what}: {done:?}");
    }
}

#[test]
fn packed_frames_of_a_stranger_that_are_right_are_taken() {
    let (mut two, mut stream, token) = joined(OFFER_LZ4);
    let target = Mapping::heap(8192);
    let region = two.attach(&target);
    two.accept(NodeId(1), token, Piece { region, offset_bytes: 8, len_bytes: 5000 });
    let message = raw::frame(Kind::PackedMessage, 0, 3000, &block(3000));
    let bulk =
        |offset: u64, len: u64| raw::frame(Kind::PackedBulk, 77, len << 32 | offset, &block(len as usize));
    stream.write_all(&[message, bulk(0, 2000), bulk(2000, 3000)].concat()).unwrap();
    let done = poll_until(&mut [&mut two], &mut clock(), |done| {
        done[0].iter().any(|c| matches!(c, Completion::BulkReceived { .. }))
    });
    assert!(done[0].iter().any(|c| matches!(c, Completion::Received { len_bytes: 3000, .. })));
    let mut bytes = vec![0; 5009];
    target.read_into(0, &mut bytes).unwrap();
    assert!(bytes[8..5008] == [7; 5000] && bytes[7] == 0 && bytes[5008] == 0);
}
