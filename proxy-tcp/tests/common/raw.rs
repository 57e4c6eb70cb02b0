//! A peer made of a plain socket: it speaks the wire by hand, rightly or wrongly.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use abi::wire::{HEADER_BYTES, Header, Kind, VERSION};

/// A frame with a right header.
pub fn frame(kind: Kind, token: u64, arg: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Header { kind, len_bytes: payload.len() as u32, token, arg }.to_bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// The handshake's MAC, written down a second time.
pub fn mac(key: [u8; 32], role: u8, ends: [(u16, u32, [u8; 32]); 2], offers: [u64; 2]) -> [u8; 32] {
    let mut bytes = b"dvs tcp handshake".to_vec();
    bytes.extend([VERSION, role, 0, 0, 0, 0, 0, 0, 0, 0]);
    for (node, incarnation, nonce) in ends {
        bytes.extend(node.to_le_bytes());
        bytes.extend(incarnation.to_le_bytes());
        bytes.extend(nonce);
    }
    if offers != [0, 0] {
        offers.iter().for_each(|offer| bytes.extend(offer.to_le_bytes()));
    }
    *blake3::keyed_hash(&key, &bytes).as_bytes()
}

pub fn hello(node: u16, expected: u16, incarnation: u32, nonce: [u8; 32]) -> Vec<u8> {
    let mut payload = node.to_le_bytes().to_vec();
    payload.extend(expected.to_le_bytes());
    payload.extend(incarnation.to_le_bytes());
    payload.extend(nonce);
    frame(Kind::Hello, node as u64, 0, &payload)
}

/// One frame off a blocking socket; `None`: it ended.
pub fn read_frame(stream: &mut TcpStream) -> Option<(Header, Vec<u8>)> {
    let mut head = [0; HEADER_BYTES];
    stream.read_exact(&mut head).ok()?;
    let header = Header::check(&head).unwrap();
    let mut payload = vec![0; header.len_bytes as usize];
    stream.read_exact(&mut payload).ok()?;
    Some((header, payload))
}

/// Connects as node 1 to node 2 with the key of the tests, and proves itself. The other end must be polled meanwhile.
pub fn session(address: SocketAddr, incarnation: u32) -> Option<TcpStream> {
    session_offering(address, incarnation, 0)
}

/// The same, with an offer.
pub fn session_offering(address: SocketAddr, incarnation: u32, offer: u64) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.set_nodelay(true).unwrap();
    let nonce = [3; 32];
    let said = hello(1, 2, incarnation, nonce);
    stream.write_all(&frame(Kind::Hello, 1, offer, &said[HEADER_BYTES..])).unwrap();
    let (header, welcome) = read_frame(&mut stream)?;
    assert_eq!((header.kind, welcome.len()), (Kind::Welcome, 72));
    let their_incarnation = u32::from_le_bytes(welcome[4..8].try_into().unwrap());
    let ends = [(1, incarnation, nonce), (2, their_incarnation, welcome[8..40].try_into().unwrap())];
    let offers = [offer, header.arg];
    assert_eq!(welcome[40..], mac([7; 32], 2, ends, offers), "the acceptor proves itself");
    stream.write_all(&frame(Kind::Proof, 1, 0, &mac([7; 32], 1, ends, offers))).unwrap();
    let (header, _) = read_frame(&mut stream)?;
    (header.kind == Kind::Ready).then_some(stream)
}
