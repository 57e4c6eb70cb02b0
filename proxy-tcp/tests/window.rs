//! What stands before a message on the wire: counted by a peer that reads late.

mod common;

use abi::NodeId;
use abi::limits::{BULK_TAKEN_EVERY_BYTES, BULK_WINDOW_BYTES_MIN};
use abi::wire::Kind;
use fabric::{Completion, Desc, Fabric, Piece};
use shm::map::Mapping;
use std::io::Write;
use std::net::TcpStream;

use common::{clock, is_up, network, poll_until, raw};

const BULK_BYTES: u32 = 8 << 20;
const FIRST: u64 = 2;
const MESSAGE: u64 = 3;

/// Reads frames until this kind; the bulk bytes before it.
fn bulk_before(stream: &mut TcpStream, kind: Kind) -> (u64, u64) {
    let mut bulk = 0;
    loop {
        let (header, payload) = raw::read_frame(stream).expect("a session");
        if header.kind == kind {
            return (bulk, header.token);
        }
        bulk += if header.kind == Kind::Bulk { payload.len() as u64 } else { 0 };
    }
}

#[test]
fn a_message_waits_for_no_more_bulk_than_the_window_whatever_the_kernels_would_take() {
    let mut two = network(2, |address| address).pop().unwrap();
    let address = two.local_addr();
    let mut now = clock();
    let peer = std::thread::spawn(move || raw::session(address, 1).unwrap());
    poll_until(&mut [&mut two], &mut now, |done| is_up(&done[0]) && peer.is_finished());
    let mut stream = peer.join().unwrap();

    let region = two.attach(&Mapping::heap(BULK_BYTES as usize));
    let pieces = [Piece { region, offset_bytes: 0, len_bytes: BULK_BYTES }];
    let bulk = Desc { token: 1, head: b"bulk", pieces: &pieces, bulk: true, flow: 1 };
    // Another flow uses the session, else nobody would wait.
    let first = Desc { token: FIRST, head: b"first", pieces: &[], bulk: false, flow: 2 };
    assert_eq!(two.post_send(NodeId(1), &[first, bulk]), 2);
    let announced = std::thread::spawn(move || {
        let (_, token) = bulk_before(&mut stream, Kind::Announce);
        stream.write_all(&raw::frame(Kind::Accept, token, 0, &[])).unwrap();
        stream
    });
    poll_until(&mut [&mut two], &mut now, |_| announced.is_finished());
    let mut stream = announced.join().unwrap();
    // Long enough for as much as there is room for.
    let begin = now();
    poll_until(&mut [&mut two], &mut clock(), |_| now() > begin + std::time::Duration::from_millis(300));

    let message = Desc { token: MESSAGE, head: b"late", pieces: &[], bulk: false, flow: 2 };
    assert_eq!(two.post_send(NodeId(1), &[message]), 1);
    let sent = Completion::Sent { peer: NodeId(1), token: MESSAGE };
    poll_until(&mut [&mut two], &mut now, |done| done[0].contains(&sent));
    let reader = std::thread::spawn(move || {
        let (before, _) = bulk_before(&mut stream, Kind::Message);
        // Now it says what it took, and goes on as a peer does.
        let (mut taken, mut told) = (before, 0);
        while taken < u64::from(BULK_BYTES) {
            if taken - told >= BULK_TAKEN_EVERY_BYTES {
                told = taken;
                stream.write_all(&raw::frame(Kind::BulkTaken, 0, taken, &[])).unwrap();
            }
            let (header, payload) = raw::read_frame(&mut stream).expect("a session");
            taken += if header.kind == Kind::Bulk { payload.len() as u64 } else { 0 };
        }
        before
    });
    let whole = Completion::Sent { peer: NodeId(1), token: 1 };
    poll_until(&mut [&mut two], &mut now, |done| done[0].contains(&whole) && reader.is_finished());
    assert_eq!(reader.join().unwrap(), BULK_WINDOW_BYTES_MIN);
}
