//! What one session receives: a stream buffer, the frames in it, and the bulk messages on their way.
//!
//! Key type: [`Inbox`]. Every byte is a claim: what breaks the protocol is `Corrupt` and ends the session. Bulk bytes go
//! straight into the accepted region, but for those that stand in the stream buffer already. Neighbours: `session` reads
//! the socket, `outbox` gets the answers.

use std::io::Read;
use std::net::TcpStream;

use abi::extent::Corrupt;
use abi::limits::{BULK_TAKEN_EVERY_BYTES, FRAME_BYTES_MAX, LOAN_BYTES_MAX};
use abi::wire::{HEADER_BYTES, Header, HeaderError, Kind};
use fabric::{Completion, Piece};
use shm::os::pieces::{StreamError, recv_into_mapping};

use crate::commons::{ANNOUNCED_MAX, Commons};
use crate::outbox::Outbox;
use crate::pack;

/// One stream buffer.
const BUFFER_BYTES: usize = 256 << 10;
/// What is read into the stream buffer at once while a bulk message arrives, so that few of its bytes are copied.
const READ_BESIDE_BULK_BYTES: usize = 4 << 10;
/// Bytes that one session may read before others have their turn.
const READ_BYTES_MAX: usize = 1 << 20;

const _: () = assert!(BUFFER_BYTES >= 2 * (HEADER_BYTES + FRAME_BYTES_MAX as usize));

/// Why a session ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The connection broke, or the peer closed it.
    Closed,
    /// The peer broke the protocol.
    Corrupt(Corrupt),
}

impl From<Corrupt> for Ended {
    fn from(corrupt: Corrupt) -> Ended {
        Ended::Corrupt(corrupt)
    }
}

/// A bulk message that the peer announced.
struct Incoming {
    /// Its name for the caller.
    token: u64,
    /// Its name for the peer.
    wire_token: u64,
    bytes: u64,
    into: Option<Piece>,
    received: u64,
}

/// A bulk frame whose payload is not complete.
#[derive(Clone, Copy)]
struct Frame {
    index: usize,
    left: usize,
}

/// The receiving half of a session.
pub struct Inbox {
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    incoming: Vec<Incoming>,
    /// How many of them are accepted.
    accepted: usize,
    frame: Option<Frame>,
    /// Payload bytes of bulk frames that were taken, and how many of them the peer was told of.
    taken_bytes: u64,
    told_bytes: u64,
    /// The session packs; where packed payload is made long.
    packs: bool,
    plain: Vec<u8>,
    /// A message waits for a posted buffer, or for the peer to listen.
    pub stalled: bool,
}

impl Inbox {
    /// `first` came behind the handshake.
    pub fn new(first: &[u8], packs: bool) -> Inbox {
        let mut buffer = vec![0; BUFFER_BYTES];
        buffer[..first.len()].copy_from_slice(first);
        Inbox {
            buffer,
            begin: 0,
            end: first.len(),
            incoming: Vec::new(),
            accepted: 0,
            frame: None,
            taken_bytes: 0,
            told_bytes: 0,
            packs,
            plain: Vec::new(),
            stalled: false,
        }
    }

    /// Reads and takes what there is, within the turn's measure. Says whether anything came.
    pub fn receive(
        &mut self,
        stream: &TcpStream,
        out: &mut Outbox,
        commons: &mut Commons,
    ) -> Result<bool, Ended> {
        let mut total = 0;
        while !self.stalled && total < READ_BYTES_MAX {
            let (wanted, got) = match self.frame {
                Some(frame) if self.begin == self.end => self.read_bulk(stream, frame, commons)?,
                Some(_) | None => self.read_buffer(stream)?,
            };
            total += got;
            if got > 0 {
                self.parse(out, commons)?;
            }
            self.tell_taken(out);
            if got < wanted {
                break;
            }
        }
        Ok(total > 0)
    }

    fn tell_taken(&mut self, out: &mut Outbox) {
        if self.taken_bytes - self.told_bytes >= BULK_TAKEN_EVERY_BYTES {
            self.told_bytes = self.taken_bytes;
            out.say_taken(self.taken_bytes);
        }
    }

    fn read_buffer(&mut self, mut stream: &TcpStream) -> Result<(usize, usize), Ended> {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < HEADER_BYTES + FRAME_BYTES_MAX as usize {
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        let room = self.buffer.len() - self.end;
        let wanted = if self.accepted > 0 && !self.packs { room.min(READ_BESIDE_BULK_BYTES) } else { room };
        let got = match stream.read(&mut self.buffer[self.end..self.end + wanted]) {
            Ok(0) => return Err(Ended::Closed),
            Ok(got) => got,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => 0,
            Err(_) => return Err(Ended::Closed),
        };
        self.end += got;
        Ok((wanted, got))
    }

    fn read_bulk(
        &mut self,
        stream: &TcpStream,
        frame: Frame,
        commons: &Commons,
    ) -> Result<(usize, usize), Ended> {
        let incoming = &mut self.incoming[frame.index];
        let Some(into) = incoming.into else { return Err(Ended::Closed) };
        let at = (into.offset_bytes + incoming.received) as usize;
        let got = match recv_into_mapping(stream, commons.regions.map(into.region), at, frame.left) {
            Ok(0) => return Err(Ended::Closed),
            Ok(got) => got,
            Err(StreamError::WouldBlock) => 0,
            Err(StreamError::Closed(_) | StreamError::OutOfRange | StreamError::Refused(_)) => {
                return Err(Ended::Closed);
            }
        };
        incoming.received += got as u64;
        self.taken_bytes += got as u64;
        self.frame = Some(Frame { left: frame.left - got, ..frame });
        Ok((frame.left, got))
    }

    /// Takes all whole frames, and what there is of a bulk frame.
    pub fn parse(&mut self, out: &mut Outbox, commons: &mut Commons) -> Result<(), Ended> {
        self.stalled = false;
        loop {
            if let Some(frame) = self.frame {
                if !self.take_bulk(frame, commons) {
                    return Ok(());
                }
                continue;
            }
            let bytes = &self.buffer[self.begin..self.end];
            let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(()) };
            let header = match Header::check(header) {
                Ok(header) => header,
                Err(HeaderError::Corrupt(corrupt)) => return Err(corrupt.into()),
                Err(HeaderError::Version { theirs }) => {
                    return Err(Corrupt::new("another wire version within a session", theirs as u64).into());
                }
            };
            let payload = if header.kind == Kind::Bulk { 0 } else { header.len_bytes as usize };
            if bytes.len() < HEADER_BYTES + payload {
                return Ok(());
            }
            if !self.take(&header, out, commons)? {
                self.stalled = true;
                return Ok(());
            }
            self.begin += HEADER_BYTES + payload;
        }
    }

    /// Takes one frame; false: not now.
    fn take(&mut self, header: &Header, out: &mut Outbox, commons: &mut Commons) -> Result<bool, Ended> {
        let peer = commons.peer;
        match header.kind {
            Kind::Message => {
                let Some(buffer) = self.copy_out(header, commons) else { return Ok(false) };
                commons.ready.push_back(Completion::Received { peer, buffer, len_bytes: header.len_bytes });
            }
            Kind::Announce => return self.take_announce(header, out, commons),
            Kind::Accept | Kind::Refuse => {
                let wanted = header.kind == Kind::Accept;
                if let Some(completion) = out.answered(header.token, wanted, commons)? {
                    commons.ready.push_back(completion);
                }
            }
            Kind::Bulk => self.begin_bulk(header)?,
            Kind::PackedMessage | Kind::PackedBulk if !self.packs => {
                return Err(Corrupt::new("a packed frame in a session that does not pack", header.arg).into());
            }
            Kind::PackedMessage => return self.take_packed(header, commons),
            Kind::PackedBulk => self.take_packed_bulk(header, commons)?,
            Kind::BulkTaken => out.was_taken(header.arg, commons.now)?,
            Kind::Heartbeat => {}
            Kind::Bye => return Err(Ended::Closed),
            Kind::Hello | Kind::Welcome | Kind::Proof | Kind::Ready | Kind::Refused => {
                return Err(Corrupt::new("a handshake within a session", header.kind as u64).into());
            }
        }
        Ok(true)
    }

    fn copy_out(&self, header: &Header, commons: &mut Commons) -> Option<Piece> {
        let buffer = commons.free.pop_front()?;
        let bytes = &self.buffer[self.begin + HEADER_BYTES..][..header.len_bytes as usize];
        let map = commons.regions.map(buffer.region);
        map.write_from(buffer.offset_bytes as usize, bytes).expect("a buffer that was checked when posted");
        commons.regions.release(buffer);
        Some(buffer)
    }

    fn take_announce(&mut self, header: &Header, out: &Outbox, commons: &mut Commons) -> Result<bool, Ended> {
        if header.arg > LOAN_BYTES_MAX as u64 {
            return Err(Corrupt::new("bulk message longer than the largest loan", header.arg).into());
        }
        if self.incoming.len() >= ANNOUNCED_MAX {
            return Err(Corrupt::new("more bulk messages announced than may be", header.token).into());
        }
        if self.incoming.iter().any(|i| i.wire_token == header.token) {
            return Err(Corrupt::new("bulk message announced twice", header.token).into());
        }
        if out.is_overfull() {
            return Ok(false);
        }
        let Some(buffer) = self.copy_out(header, commons) else { return Ok(false) };
        commons.announced += 1;
        let (peer, token, bulk_bytes) = (commons.peer, commons.announced, header.arg);
        self.incoming.push(Incoming {
            token,
            wire_token: header.token,
            bytes: bulk_bytes,
            into: None,
            received: 0,
        });
        let len_bytes = header.len_bytes;
        commons.ready.push_back(Completion::Announced { peer, token, bulk_bytes, buffer, len_bytes });
        Ok(true)
    }

    /// Makes the payload of a packed frame long; it stands in `plain`.
    fn unpack(&mut self, header: &Header, claim: u64, most: u64) -> Result<(), Corrupt> {
        let len = pack::check_plain_len(claim, header.len_bytes, most)?;
        self.plain.resize(len, 0);
        let packed = &self.buffer[self.begin + HEADER_BYTES..][..header.len_bytes as usize];
        pack::unpack(packed, &mut self.plain)
    }

    fn take_packed(&mut self, header: &Header, commons: &mut Commons) -> Result<bool, Ended> {
        // Not unpacked again and again while nobody has room for it.
        if commons.free.is_empty() {
            return Ok(false);
        }
        self.unpack(header, header.arg, FRAME_BYTES_MAX as u64)?;
        let Some(buffer) = commons.free.pop_front() else { return Ok(false) };
        let written =
            commons.regions.map(buffer.region).write_from(buffer.offset_bytes as usize, &self.plain);
        written.expect("a buffer that was checked when posted");
        commons.regions.release(buffer);
        let (peer, len_bytes) = (commons.peer, self.plain.len() as u32);
        commons.ready.push_back(Completion::Received { peer, buffer, len_bytes });
        Ok(true)
    }

    fn take_packed_bulk(&mut self, header: &Header, commons: &mut Commons) -> Result<(), Ended> {
        let (offset, claim) = (header.arg & 0xffff_ffff, header.arg >> 32);
        let index = self.place_of(header.token)?;
        let incoming = &self.incoming[index];
        let (at, left) = (incoming.received, incoming.bytes - incoming.received);
        if offset != at {
            return Err(Corrupt::new("bulk bytes out of place", header.arg).into());
        }
        self.unpack(header, claim, left)?;
        let incoming = &mut self.incoming[index];
        if let Some(into) = incoming.into {
            let target = (into.offset_bytes + at) as usize;
            let written = commons.regions.map(into.region).write_from(target, &self.plain);
            written.expect("an extent that was checked when accepted");
        }
        incoming.received += self.plain.len() as u64;
        self.taken_bytes += u64::from(header.len_bytes);
        if incoming.received == incoming.bytes {
            self.finish(index, commons);
        }
        Ok(())
    }

    /// An accepted bulk message, by the peer's name for it.
    fn place_of(&self, token: u64) -> Result<usize, Corrupt> {
        let accepted = |i: &Incoming| i.wire_token == token && i.into.is_some();
        let place = self.incoming.iter().position(accepted);
        place.ok_or(Corrupt::new("bytes of a bulk message that was not accepted", token))
    }

    fn begin_bulk(&mut self, header: &Header) -> Result<(), Ended> {
        let index = self.place_of(header.token)?;
        let incoming = &self.incoming[index];
        let left = incoming.bytes - incoming.received;
        if header.arg != incoming.received || header.len_bytes as u64 > left || header.len_bytes == 0 {
            return Err(Corrupt::new("bulk bytes out of place", header.arg).into());
        }
        self.frame = Some(Frame { index, left: header.len_bytes as usize });
        Ok(())
    }

    /// Copies what stands in the stream buffer of a bulk frame; true when the frame is complete.
    fn take_bulk(&mut self, frame: Frame, commons: &mut Commons) -> bool {
        let there = frame.left.min(self.end - self.begin);
        let incoming = &mut self.incoming[frame.index];
        if let Some(into) = incoming.into.filter(|_| there > 0) {
            let at = (into.offset_bytes + incoming.received) as usize;
            let bytes = &self.buffer[self.begin..self.begin + there];
            let written = commons.regions.map(into.region).write_from(at, bytes);
            written.expect("an extent that was checked when accepted");
        }
        incoming.received += there as u64;
        self.taken_bytes += there as u64;
        self.begin += there;
        if there < frame.left {
            self.frame = Some(Frame { left: frame.left - there, ..frame });
            return false;
        }
        self.frame = None;
        if incoming.received == incoming.bytes {
            self.finish(frame.index, commons);
        }
        true
    }

    fn finish(&mut self, index: usize, commons: &mut Commons) {
        let Incoming { token, into, .. } = self.remove(index);
        let Some(into) = into else { return };
        self.accepted -= 1;
        commons.regions.release(into);
        commons.ready.push_back(Completion::BulkReceived { peer: commons.peer, token, into });
    }

    /// The caller has a buffer for an announced bulk message; false: it is not known (any more).
    pub fn accept(&mut self, token: u64, into: Piece, out: &mut Outbox, commons: &mut Commons) -> bool {
        let Some(index) = self.incoming.iter().position(|i| i.token == token && i.into.is_none()) else {
            return false;
        };
        let incoming = &mut self.incoming[index];
        assert!(
            into.len_bytes as u64 == incoming.bytes,
            "a bulk message is accepted into exactly its length"
        );
        commons.regions.hold(into);
        incoming.into = Some(into);
        self.accepted += 1;
        out.control(Kind::Accept, incoming.wire_token);
        if incoming.bytes == 0 {
            self.finish(index, commons);
        }
        true
    }

    /// The caller does not want it.
    pub fn refuse(&mut self, token: u64, out: &mut Outbox) {
        if let Some(index) = self.incoming.iter().position(|i| i.token == token && i.into.is_none()) {
            out.control(Kind::Refuse, self.incoming[index].wire_token);
            self.remove(index);
        }
    }

    /// The last one takes the place of the one that goes: the frame at work may be of it.
    fn remove(&mut self, index: usize) -> Incoming {
        if let Some(frame) = &mut self.frame
            && frame.index == self.incoming.len() - 1
        {
            frame.index = index;
        }
        self.incoming.swap_remove(index)
    }

    /// The session is gone: what was accepted has failed.
    pub fn fail_all(&mut self, commons: &mut Commons) {
        let peer = commons.peer;
        for Incoming { token, into, .. } in self.incoming.drain(..) {
            if let Some(into) = into {
                commons.regions.release(into);
                commons.ready.push_back(Completion::BulkFailed { peer, token, into });
            }
        }
    }
}
