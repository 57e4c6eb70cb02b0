//! A stream of frames after the handshake, as a peer may send it, and the records in them.

use std::collections::BTreeSet;
use std::time::Duration;

use abi::NodeId;
use abi::record::{self, Record};
use abi::wire::{HEADER_BYTES, Header, Kind};
use arbitrary::{Arbitrary, Unstructured};
use fabric::{Completion, Piece};
use proxy_tcp::fuzzing::{Commons, Inbox, Outbox};
use shm::map::Mapping;

/// One frame, mostly well formed: its checks are passed, what stands behind them is reached.
#[derive(Arbitrary, Debug)]
struct Frame {
    kind: u8,
    token: u8,
    arg: u64,
    /// A bit of the header that is turned over, if it is one of it.
    flip: u16,
    record: Option<RecordHead>,
    body: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
struct RecordHead {
    kind: u8,
    count: u8,
    source: u64,
    destination: u64,
    arg: u8,
}

#[derive(Arbitrary, Debug)]
struct Input {
    packs: bool,
    buffers: u8,
    frames: Vec<Frame>,
    accepts: u8,
}

const BUFFER_BYTES: u32 = 64 << 10;
const BULK_BYTES: u64 = 100 << 10;
const STREAM_BYTES_MAX: usize = 200 << 10;
const KINDS: &[Kind] = &[
    Kind::Message,
    Kind::PackedMessage,
    Kind::Bulk,
    Kind::PackedBulk,
    Kind::Announce,
    Kind::Accept,
    Kind::Refuse,
    Kind::BulkTaken,
    Kind::Heartbeat,
    Kind::Bye,
    Kind::Hello,
    Kind::Ready,
];

fn stream(frames: &[Frame]) -> Vec<u8> {
    let mut stream = Vec::new();
    for frame in frames {
        let mut body = Vec::new();
        if let Some(of) = &frame.record {
            let mut head = [0; record::BYTES];
            head[0] = of.kind % 20;
            head[2] = of.count % 4;
            head[8..16].copy_from_slice(&of.source.to_le_bytes());
            head[16..24].copy_from_slice(&of.destination.to_le_bytes());
            head[24] = of.arg;
            body.extend(head);
        }
        body.extend(&frame.body);
        let kind = KINDS[frame.kind as usize % KINDS.len()];
        let (len_bytes, token) = (body.len() as u32, u32::from(frame.token % 8));
        let mut header = Header { kind, len_bytes, token: token.into(), arg: frame.arg }.to_bytes();
        if let Some(byte) = header.get_mut(frame.flip as usize / 8) {
            *byte ^= 1 << (frame.flip % 8);
        }
        if stream.len() + HEADER_BYTES + body.len() > STREAM_BYTES_MAX {
            break;
        }
        stream.extend(header);
        stream.extend(body);
    }
    stream
}

/// What a header says is what its bytes say, and records come back as they went.
fn decode(bytes: &[u8]) {
    if let Some(head) = bytes.first_chunk::<HEADER_BYTES>()
        && let Ok(header) = Header::check(head)
    {
        assert_eq!(&header.to_bytes(), head, "a header that was accepted is the one that says so");
    }
    if let Ok(record) = Record::check(bytes) {
        let mut again = record.to_bytes().to_vec();
        again.extend(&bytes[record::BYTES..]);
        assert_eq!(Record::check(&again), Ok(record));
    }
}

pub fn run(data: &[u8]) {
    decode(data);
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    for frame in &input.frames {
        decode(&frame.body);
    }
    let bytes = stream(&input.frames);
    let mut commons = Commons::new(Duration::ZERO);
    commons.peer = NodeId(2);
    let buffers = u64::from(input.buffers % 8);
    let region = commons.regions.attach(&Mapping::heap(BUFFER_BYTES as usize * buffers.max(1) as usize));
    let into = commons.regions.attach(&Mapping::heap(BULK_BYTES as usize));
    let posted: Vec<Piece> = (0..buffers)
        .map(|n| Piece { region, offset_bytes: n * u64::from(BUFFER_BYTES), len_bytes: BUFFER_BYTES })
        .collect();
    for piece in &posted {
        commons.regions.hold(*piece);
        commons.free.push_back(*piece);
    }
    let mut out = Outbox::new(input.packs);
    let mut inbox = Inbox::new(&bytes, input.packs);
    let mut seen = BTreeSet::new();
    let mut accepted = BTreeSet::new();
    for turn in 0..8 {
        let broken = inbox.parse(&mut out, &mut commons).is_err();
        let ready: Vec<Completion> = commons.ready.drain(..).collect();
        for completion in ready {
            match completion {
                Completion::Received { buffer, len_bytes, .. }
                | Completion::Announced { buffer, len_bytes, .. } => {
                    assert!(posted.contains(&buffer), "a buffer that was posted");
                    assert!(len_bytes <= BUFFER_BYTES, "no more than the buffer holds");
                    assert!(seen.insert(buffer.offset_bytes), "once");
                }
                Completion::BulkReceived { token, into: piece, .. }
                | Completion::BulkFailed { token, into: piece, .. } => {
                    assert!(accepted.remove(&(token, piece.len_bytes)), "what was accepted, once");
                }
                _ => {}
            }
            if let Completion::Announced { token, bulk_bytes, .. } = completion {
                let fits = bulk_bytes <= BULK_BYTES && input.accepts >> (token % 8) & 1 == 1;
                let piece = Piece { region: into, offset_bytes: 0, len_bytes: bulk_bytes as u32 };
                if fits && inbox.accept(token, piece, &mut out, &mut commons) {
                    accepted.insert((token, piece.len_bytes));
                } else {
                    inbox.refuse(token, &mut out);
                }
            }
        }
        if broken || turn == 7 {
            break;
        }
    }
    inbox.fail_all(&mut commons);
    for completion in commons.ready.drain(..) {
        // One without a byte is complete as it is accepted, the last turn's too.
        if let Completion::BulkReceived { token, into: piece, .. }
        | Completion::BulkFailed { token, into: piece, .. } = completion
        {
            assert!(accepted.remove(&(token, piece.len_bytes)), "what was accepted, once");
        }
    }
    assert!(accepted.is_empty(), "every accepted buffer comes back: {accepted:?}");
    assert_eq!(seen.len() + commons.free.len(), posted.len(), "every posted buffer is somewhere");
}
