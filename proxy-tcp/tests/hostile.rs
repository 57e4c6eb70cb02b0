//! Bytes and peers that break the protocol: connections end, the fabric goes on, memory stays bounded.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use abi::NodeId;
use abi::limits::{FRAME_BYTES_MAX, LOAN_BYTES_MAX};
use abi::wire::Kind;
use fabric::{Completion, Desc, Fabric, Piece};
use proxy_tcp::TcpFabric;
use shm::map::Mapping;

use common::{clock, is_lost, is_up, network, poll_until, raw};

/// Node 2 alone, with `buffers` posted; its peer is a plain socket.
fn victim(buffers: usize) -> (TcpFabric, SocketAddr) {
    let mut two = network(2, |address| address).pop().unwrap();
    let region = two.attach(&Mapping::heap(buffers.max(1) * FRAME_BYTES_MAX as usize));
    let piece = |i: usize| Piece {
        region,
        offset_bytes: i as u64 * FRAME_BYTES_MAX as u64,
        len_bytes: FRAME_BYTES_MAX,
    };
    let free: Vec<Piece> = (0..buffers).map(piece).collect();
    assert_eq!(two.post_recv(&free), buffers);
    let address = two.local_addr();
    (two, address)
}

/// A session of a plain socket, while the fabric is polled.
fn joined(two: &mut TcpFabric, address: SocketAddr) -> TcpStream {
    let peer = std::thread::spawn(move || raw::session(address, 1).unwrap());
    poll_until(&mut [two], &mut clock(), |done| is_up(&done[0]) && peer.is_finished());
    peer.join().unwrap()
}

/// The connection is closed by the other end, whatever comes before.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) => return e.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn whatever_comes_before_a_handshake_ends_the_connection_alone() {
    let (mut two, address) = victim(4);
    let openings = [
        b"GET / HTTP/1.1\r\nHost: nobody\r\n\r\n".to_vec(),
        vec![0xff; 5000],
        raw::frame(Kind::Message, 0, 0, b"early"),
        raw::frame(Kind::Announce, 1, 1 << 20, b"early"),
        raw::frame(Kind::Heartbeat, 0, 0, &[]),
        raw::frame(Kind::Proof, 1, 0, &[0; 32]),
        raw::frame(Kind::Hello, 1, 0, &[0; 200]),
        raw::frame(Kind::Hello, 1, 0, &[]),
        raw::frame(Kind::Refused, 1, 77, &[]),
        [raw::hello(1, 2, 1, [0; 32]), raw::frame(Kind::Message, 0, 0, b"early")].concat(),
        [raw::hello(1, 2, 1, [0; 32]), raw::frame(Kind::Proof, 1, 0, &[9; 32])].concat(),
        [raw::hello(1, 2, 1, [0; 32]), raw::hello(1, 2, 1, [0; 32])].concat(),
    ];
    let peer = std::thread::spawn(move || {
        for opening in openings {
            let mut stream = TcpStream::connect(address).unwrap();
            let _ = stream.write_all(&opening);
            assert!(is_closed(&mut stream), "still open after {opening:?}");
        }
        raw::session(address, 1).unwrap()
    });
    let done = poll_until(&mut [&mut two], &mut clock(), |done| is_up(&done[0]) && peer.is_finished());
    peer.join().unwrap();
    assert!(!is_lost(&done[0]) && done[0].iter().all(|c| !matches!(c, Completion::Received { .. })));
}

#[test]
fn half_open_connections_are_few_and_do_not_keep_others_out() {
    let (mut two, address) = victim(1);
    let peer = std::thread::spawn(move || {
        let silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
        (silent, raw::session(address, 1).unwrap())
    });
    let mut now = clock();
    poll_until(&mut [&mut two], &mut now, |done| is_up(&done[0]) && peer.is_finished());
    let (silent, _session) = peer.join().unwrap();
    // 64 may wait at a time: all others were closed to make room, and these when their time was over.
    let closed = |stream: &&TcpStream| {
        stream.set_nonblocking(true).unwrap();
        let mut stream: &TcpStream = stream;
        stream.read(&mut [0]).is_ok()
    };
    assert!(silent.iter().filter(closed).count() >= 200 - 64);
    poll_until(&mut [&mut two], &mut now, |_| silent.iter().filter(closed).count() == 200);
}

#[test]
fn frames_that_break_the_protocol_end_the_session() {
    let announce = |token| raw::frame(Kind::Announce, token, 100, b"head");
    let too_long = {
        let mut bytes = raw::frame(Kind::Message, 0, 0, &[]);
        bytes[4..8].copy_from_slice(&(FRAME_BYTES_MAX + 1).to_le_bytes());
        let sum = abi::wire::crc32c(&bytes[..28]);
        bytes[28..32].copy_from_slice(&sum.to_le_bytes());
        bytes
    };
    let many: Vec<u8> = (0..1100).flat_map(|token| raw::frame(Kind::Announce, token, 100, &[])).collect();
    for (what, bytes) in [
        ("an answer to nothing", raw::frame(Kind::Accept, 0, 0, &[])),
        ("an answer to what may come", raw::frame(Kind::Accept, 1 << 16, 0, &[])),
        ("a refusal of nothing", raw::frame(Kind::Refuse, u64::MAX, 0, &[])),
        ("bulk bytes of nothing", raw::frame(Kind::Bulk, 5, 0, &[0; 100])),
        ("bulk bytes without an answer", [announce(5), raw::frame(Kind::Bulk, 5, 0, &[0; 100])].concat()),
        ("bytes taken that were not sent", raw::frame(Kind::BulkTaken, 0, 1, &[])),
        ("a name announced twice", [announce(5), announce(5)].concat()),
        ("an announcement beyond limits", raw::frame(Kind::Announce, 1, LOAN_BYTES_MAX as u64 + 1, &[])),
        ("too many announcements", many),
        ("a message beyond limits", too_long),
        ("another handshake", raw::hello(1, 2, 1, [0; 32])),
        ("noise", vec![0x5a; 64]),
        ("a good-bye", raw::frame(Kind::Bye, 0, 0, &[])),
    ] {
        let (mut two, address) = victim(2000);
        let mut stream = joined(&mut two, address);
        let peer = std::thread::spawn(move || {
            let _ = stream.write_all(&bytes);
            is_closed(&mut stream)
        });
        poll_until(&mut [&mut two], &mut clock(), |done| is_lost(&done[0]) && peer.is_finished());
        assert!(peer.join().unwrap(), "{what}");
    }
}

#[test]
fn bulk_bytes_out_of_place_end_the_session_and_give_the_buffer_back() {
    for (offset, len) in [(1, 100), (0, 101), (0, 0), (u64::MAX, 1)] {
        let (mut two, address) = victim(8);
        let mut stream = joined(&mut two, address);
        stream.write_all(&raw::frame(Kind::Announce, 77, 100, b"head")).unwrap();
        let mut now = clock();
        let announced = |done: &[Completion]| {
            done.iter().find_map(|c| match c {
                Completion::Announced { token, bulk_bytes: 100, .. } => Some(*token),
                _ => None,
            })
        };
        let done = poll_until(&mut [&mut two], &mut now, |done| announced(&done[0]).is_some());
        let token = announced(&done[0]).unwrap();
        let region = two.attach(&Mapping::heap(4096));
        let into = Piece { region, offset_bytes: 8, len_bytes: 100 };
        two.accept(NodeId(1), token, into);
        stream.write_all(&raw::frame(Kind::Bulk, 77, offset, &vec![1; len])).unwrap();
        let done = poll_until(&mut [&mut two], &mut now, |done| is_lost(&done[0]));
        let failed = Completion::BulkFailed { peer: NodeId(1), token, into };
        assert_eq!(done[0].iter().filter(|c| **c == failed).count(), 1, "{done:?}");
    }
}

#[test]
fn noise_after_a_handshake_is_never_a_panic() {
    let mut dice = 99u64;
    let mut roll = move || {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        dice >> 33
    };
    let kinds = [
        Kind::Message,
        Kind::Announce,
        Kind::Accept,
        Kind::Refuse,
        Kind::Bulk,
        Kind::Heartbeat,
        Kind::Ready,
        Kind::BulkTaken,
    ];
    for round in 0..60 {
        let (mut two, address) = victim(64);
        let mut stream = joined(&mut two, address);
        let mut bytes = Vec::new();
        for _ in 0..20 {
            let kind = kinds[roll() as usize % if round % 2 == 0 { 2 } else { kinds.len() }];
            let most = if kind == Kind::Message || kind == Kind::Bulk { 3000 } else { 1000 };
            let len =
                if matches!(kind, Kind::Message | Kind::Announce | Kind::Bulk) { roll() % most } else { 0 };
            bytes.extend(raw::frame(kind, roll() % 4, roll() % 300, &vec![roll() as u8; len as usize]));
        }
        if round % 3 == 0 {
            let at = roll() as usize % bytes.len();
            bytes[at] ^= 1 << (roll() % 8);
        }
        bytes.truncate(bytes.len() - roll() as usize % 50);
        let peer = std::thread::spawn(move || {
            for part in bytes.chunks(701) {
                let _ = stream.write_all(part);
            }
            drop(stream);
        });
        poll_until(&mut [&mut two], &mut clock(), |done| is_lost(&done[0]) && peer.is_finished());
        peer.join().unwrap();
    }
}

#[test]
fn a_peer_that_does_not_read_fills_the_fabric_and_no_more() {
    let (mut two, address) = victim(4);
    let _silent = joined(&mut two, address);
    let map = Mapping::heap(FRAME_BYTES_MAX as usize);
    let region = two.attach(&map);
    let piece = [Piece { region, offset_bytes: 0, len_bytes: 60_000 }];
    let (mut now, mut posted, mut sent, mut idle) = (clock(), 0u64, 0u64, 0);
    let mut done = Vec::with_capacity(64);
    while idle < 100 {
        let desc = Desc { token: posted, head: b"x", pieces: &piece, bulk: false, flow: 0 };
        let taken = two.post_send(NodeId(1), &[desc]);
        posted += taken as u64;
        two.poll(now(), &mut done);
        sent += done.iter().filter(|c| matches!(c, Completion::Sent { .. })).count() as u64;
        done.clear();
        idle = if taken == 0 { idle + 1 } else { 0 };
        assert!(posted < 10_000, "the kernel's buffers are finite");
    }
    assert!(posted - sent <= two.caps().posted_max as u64);
    // It hears nothing of us either, and does not say anything: that is a loss, and everything comes back.
    let done = poll_until(&mut [&mut two], &mut now, |done| is_lost(&done[0]));
    let back =
        done[0].iter().filter(|c| matches!(c, Completion::Sent { .. } | Completion::Failed { .. })).count();
    assert_eq!(back as u64, posted - sent);
}

#[test]
fn the_bytes_of_a_session_are_these() {
    let (mut two, address) = victim(4);
    let mut stream = joined(&mut two, address);
    let map = Mapping::heap(4096);
    map.write_from(100, b"pieces").unwrap();
    let region = two.attach(&map);
    let piece = |offset_bytes, len_bytes| Piece { region, offset_bytes, len_bytes };
    let two_pieces = [piece(100, 3), piece(103, 3)];
    let message = Desc { token: 1, head: b"head+", pieces: &two_pieces, bulk: false, flow: 0 };
    let bulk = Desc { token: 2, head: b"bulk", pieces: &two_pieces, bulk: true, flow: 0 };
    assert_eq!(two.post_send(NodeId(1), &[message, bulk]), 2);
    let mut read = |len: usize| {
        let mut bytes = vec![0; len];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    };
    let got = [read(43), read(36)];
    let golden = include_str!("golden/session.hex");
    stream.write_all(&raw::frame(Kind::Accept, 1 << 16, 0, &[])).unwrap();
    let mut now = clock();
    let sent = |c: &Completion| matches!(c, Completion::Sent { token: 2, .. });
    poll_until(&mut [&mut two], &mut now, |done| done[0].iter().any(sent));
    let mut bytes = vec![0; 38];
    stream.read_exact(&mut bytes).unwrap();
    let hex = |bytes: &Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n";
    let got: String = got.iter().chain([&bytes]).map(hex).collect();
    assert_eq!(got, golden, "other bytes want another wire version");
}
