//! A session whose messages and extents go by queue pairs: one for messages, one for READs of extents, so that a
//! message waits for none.
//!
//! Key type: [`Session`]. Messages are copied when they are posted: inline where they are short, into a ring otherwise.
//! Extents are not: who receives one reads it from where it lies to where it belongs. Neighbour: `rdma` decides when a
//! session begins and ends.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use abi::limits::FRAME_BYTES_MAX;
use abi::wire::HEADER_BYTES;
use fabric::regions::{Pieces, Regions};
use fabric::{Desc, Piece, RegionKey};
use shm::map::Mapping;

use crate::device::Device;
use crate::frame::{self, Source};
use crate::ring::Ring;
use crate::verbs::{
    Address, Capacity, Memory, Pair, Part, Payload, Ready, Remote, Rights, Srq, VerbsError, Work, WorkKind,
};

/// Requests of the pair for messages that are not complete, and how many of them answers may use alone.
const WORK: u32 = 288;
const KEPT_FOR_ANSWERS: u64 = 32;
/// READs that are posted at a time, and how much each reads: one bulk message waits for a turn of each other.
const READS: u32 = 16;
const READ_BYTES_MAX: u64 = 1 << 20;
const INLINE_BYTES: u32 = 192;
/// A few of the longest messages.
const RING_BYTES: usize = 1 << 20;
/// Every so many requests one has a completion of its own.
const SIGNALLED_EVERY: u64 = 16;

/// What the names of completions begin with.
pub const OF_BUFFER: u64 = 1 << 63;
pub const OF_READ: u64 = 1 << 62;

/// Both pairs of a session, before it is known where they lead.
pub struct Ends {
    messages: Pair,
    bulk: Pair,
    pub own: [Address; 2],
    pub generation: u32,
}

impl Ends {
    pub fn new(device: &Device, buffers: &Arc<Srq>, generation: u32, seed: u32) -> Result<Ends, VerbsError> {
        let queues = (&device.queue, &device.queue);
        let pair = |work: u32| {
            let wanted =
                Capacity { work: work.min(device.work_per_queue), parts: 1, inline_bytes: INLINE_BYTES };
            Pair::new(&device.domain, queues, buffers, wanted)
        };
        let (messages, bulk) = (pair(WORK)?, pair(READS)?);
        let address = |pair: &Pair| Address {
            gid: device.gid,
            lid: device.lid,
            number: pair.number(),
            first_packet: seed.wrapping_mul(0x9e37_79b9) & 0xff_ffff,
            mtu: device.mtu,
        };
        let own = [address(&messages), address(&bulk)];
        Ok(Ends { messages, bulk, own, generation })
    }

    pub fn connect(self, device: &Device, other: &[Address; 2]) -> Result<Connected, VerbsError> {
        let messages = self.messages.connect(&self.own[0], &other[0], &device.path)?;
        let bulk = self.bulk.connect(&self.own[1], &other[1], &device.path)?;
        let map =
            Mapping::anonymous(RING_BYTES).map_err(|_| VerbsError::MemoryLimit { bytes: RING_BYTES })?;
        let area = Memory::register(&device.domain, &map, (0, RING_BYTES), Rights::Source)?;
        Ok(Connected { messages, bulk, area, generation: self.generation })
    }
}

/// Both pairs, connected.
pub struct Connected {
    messages: Ready,
    bulk: Ready,
    area: Memory,
    pub generation: u32,
}

/// A bulk message of ours that the other end has not read.
pub struct Outgoing {
    pub token: u64,
    pub pieces: Pieces,
    /// Where its bytes are read, if that is a copy of them: held until then.
    pub _copy: Option<Memory>,
}

/// A bulk message that the other end has announced.
pub struct Incoming {
    /// Its name for the caller.
    pub token: u64,
    sources: Vec<Source>,
    pub bytes: u64,
    pub into: Option<Piece>,
    /// Bytes of which a READ was posted, and bytes that were read.
    begun: u64,
    read: u64,
}

/// A request of the pair for messages.
enum Queued {
    Inline([u8; INLINE_BYTES as usize], u8),
    /// In the ring; and what is free when it is complete.
    Area(Part, u64),
}

/// See the file's head.
pub struct Session {
    pub number: u64,
    pub generation: u32,
    messages: Ready,
    bulk: Ready,
    ring: Ring,
    area: Memory,
    /// Not posted yet.
    queue: Vec<Queued>,
    /// Requests posted, and requests known to be complete.
    posted: u64,
    complete: u64,
    /// Those that use the ring: the request's number, and what is free with it.
    in_ring: VecDeque<(u64, u64)>,
    answers: VecDeque<[u8; HEADER_BYTES]>,
    /// By the name that the other end knows.
    pub outgoing: BTreeMap<u64, Outgoing>,
    announced: u64,
    /// By the name that the other end gave.
    pub incoming: BTreeMap<u64, Incoming>,
    /// Accepted, and not all of it posted to be read; each has its turn.
    turns: VecDeque<u64>,
    /// READs under way: of which bulk message, and how much.
    reads: BTreeMap<u64, (u64, u64)>,
    read_last: u64,
    /// Why it must end.
    pub failed: Option<String>,
}

impl Session {
    pub fn new(number: u64, ends: Connected) -> Session {
        Session {
            number,
            generation: ends.generation,
            messages: ends.messages,
            bulk: ends.bulk,
            ring: Ring::new(RING_BYTES),
            area: ends.area,
            queue: Vec::new(),
            posted: 0,
            complete: 0,
            in_ring: VecDeque::new(),
            answers: VecDeque::new(),
            outgoing: BTreeMap::new(),
            announced: 0,
            incoming: BTreeMap::new(),
            turns: VecDeque::new(),
            reads: BTreeMap::new(),
            read_last: 0,
            failed: None,
        }
    }

    /// The names of its pairs on the device.
    pub fn pairs(&self) -> [u32; 2] {
        [self.messages.number(), self.bulk.number()]
    }

    /// It has to end, and why.
    pub fn fail(&mut self, why: impl ToString) {
        self.failed.get_or_insert_with(|| why.to_string());
    }

    /// Requests that may still be posted.
    fn room(&self) -> u64 {
        u64::from(self.messages.capacity().work) - (self.posted - self.complete) - self.queue.len() as u64
    }

    /// A message of `len` bytes; `fill` writes it to a mapping from an offset on, or into bytes. False: not now.
    fn put(&mut self, len: usize, fill: impl FnOnce(Fill<'_>)) -> bool {
        if len <= (self.messages.capacity().inline_bytes as usize).min(INLINE_BYTES as usize) {
            let mut bytes = [0; INLINE_BYTES as usize];
            fill(Fill::Bytes(&mut bytes[..len]));
            self.queue.push(Queued::Inline(bytes, len as u8));
            return true;
        }
        let Some((at, end)) = self.ring.take(len) else { return false };
        fill(Fill::Area(self.area.map(), at));
        match self.area.part(at, len as u32) {
            Ok(part) => self.queue.push(Queued::Area(part, end)),
            Err(why) => self.fail(why),
        }
        true
    }

    /// Takes a message; false: there is no room.
    pub fn post(&mut self, desc: &Desc<'_>, pieces: &Pieces, regions: &Regions) -> bool {
        if self.room() <= KEPT_FOR_ANSWERS {
            return false;
        }
        let len = desc.head.len() + pieces.len_bytes() as usize;
        debug_assert!(len <= FRAME_BYTES_MAX as usize, "a message within caps");
        let head = [&frame::message(len)[..], desc.head].concat();
        self.put(HEADER_BYTES + len, |mut to| {
            to.write(0, &head);
            let mut at = head.len();
            for piece in pieces.as_slice() {
                to.copy(at, regions.map(piece.region), piece);
                at += piece.len_bytes as usize;
            }
        })
    }

    /// Announces a bulk message whose bytes lie at `sources`; false: there is no room.
    pub fn announce(&mut self, head: &[u8], sources: &[Source], of: Outgoing) -> Result<(), Outgoing> {
        if self.room() <= KEPT_FOR_ANSWERS {
            return Err(of);
        }
        let whole = frame::announce(self.announced + 1, sources, head);
        if !self.put(whole.len(), |mut to| to.write(0, &whole)) {
            return Err(of);
        }
        self.announced += 1;
        self.outgoing.insert(self.announced, of);
        Ok(())
    }

    /// Says that a bulk message was read, or is not wanted: now, or when there is room.
    pub fn answer(&mut self, name: u64, taken: bool) {
        self.answers.push_back(frame::answer(name, taken));
    }

    /// Posts what is queued: one doorbell.
    pub fn flush(&mut self) {
        while self.room() > 0
            && let Some(answer) = self.answers.pop_front()
        {
            self.put(HEADER_BYTES, |mut to| to.write(0, &answer));
        }
        if self.queue.is_empty() || self.failed.is_some() {
            return;
        }
        let last = self.queue.len() as u64;
        let parts: Vec<[Part; 1]> = self
            .queue
            .iter()
            .filter_map(|queued| match queued {
                Queued::Inline(..) => None,
                Queued::Area(part, _) => Some([*part]),
            })
            .collect();
        let (mut parts, first) = (parts.iter(), self.posted);
        let batch: Vec<Work<'_>> = (1..)
            .zip(&self.queue)
            .map(|(n, queued)| Work {
                name: first + n,
                kind: WorkKind::Send(None),
                payload: match queued {
                    Queued::Inline(bytes, len) => Payload::Inline(&bytes[..usize::from(*len)]),
                    Queued::Area(..) => Payload::Parts(parts.next().map_or(&[], |part| &part[..])),
                },
                signalled: n == last || (first + n).is_multiple_of(SIGNALLED_EVERY),
                fenced: false,
            })
            .collect();
        match self.messages.post(&batch) {
            Ok(count) if count == batch.len() => {}
            Ok(count) => self.failed = Some(format!("the device took {count} of {} requests", batch.len())),
            Err(why) => self.failed = Some(why.to_string()),
        }
        for queued in self.queue.drain(..) {
            self.posted += 1;
            if let Queued::Area(_, end) = queued {
                self.in_ring.push_back((self.posted, end));
            }
        }
    }

    /// A request is complete, and all before it.
    pub fn sent(&mut self, number: u64) {
        self.complete = self.complete.max(number.min(self.posted));
        while let Some(&(of, end)) = self.in_ring.front().filter(|(of, _)| *of <= self.complete) {
            debug_assert!(of <= self.complete, "in order");
            self.ring.give_back(end);
            self.in_ring.pop_front();
        }
    }

    /// Nothing that was posted is with the device any more.
    pub fn is_drained(&self) -> bool {
        self.complete == self.posted && self.reads.is_empty()
    }

    /// Ends both pairs: all that is posted comes back.
    pub fn end_pairs(&self) {
        // A pair whose device is gone has ended.
        let _ = self.messages.fail();
        let _ = self.bulk.fail();
    }

    pub fn is_announced(&mut self, name: u64, token: u64, sources: Vec<Source>, bytes: u64) {
        let incoming = Incoming { token, sources, bytes, into: None, begun: 0, read: 0 };
        self.incoming.insert(name, incoming);
    }

    /// It is to be read.
    pub fn accept(&mut self, name: u64, into: Piece) {
        if let Some(incoming) = self.incoming.get_mut(&name) {
            incoming.into = Some(into);
            if incoming.bytes > 0 {
                self.turns.push_back(name);
            }
        }
    }

    /// Posts READs, as many as may be under way.
    pub fn read(&mut self, registered: &BTreeMap<RegionKey, Memory>) {
        while self.reads.len() < READS as usize
            && self.failed.is_none()
            && let Some(name) = self.turns.pop_front()
        {
            let Some(incoming) = self.incoming.get_mut(&name) else { continue };
            let Some(into) = incoming.into else { continue };
            let Some((remote, len)) = incoming.next() else { continue };
            let at = into.offset_bytes + incoming.begun;
            let part = registered.get(&into.region).map(|memory| memory.part(at as usize, len as u32));
            let Some(Ok(part)) = part else {
                return self.fail("an extent whose memory is not registered");
            };
            incoming.begun += len;
            if incoming.begun < incoming.bytes {
                self.turns.push_back(name);
            }
            self.read_last += 1;
            let work = Work {
                name: OF_READ | self.read_last,
                kind: WorkKind::Read(remote),
                payload: Payload::Parts(&[part]),
                signalled: true,
                fenced: false,
            };
            self.reads.insert(self.read_last, (name, len));
            if let Err(why) = self.bulk.post(&[work]) {
                self.reads.remove(&self.read_last);
                return self.fail(why);
            }
        }
    }

    /// A READ has ended; the bulk message that is complete with it, if it was the last.
    pub fn was_read(&mut self, number: u64, is_ok: bool) -> Option<(u64, Incoming)> {
        let (name, len) = self.reads.remove(&number)?;
        let incoming = self.incoming.get_mut(&name)?;
        if is_ok {
            incoming.read += len;
        }
        let whole = incoming.read == incoming.bytes;
        whole.then(|| self.incoming.remove(&name)).flatten().map(|incoming| (name, incoming))
    }
}

impl Incoming {
    /// What to read next, and how much of it.
    fn next(&self) -> Option<(Remote, u64)> {
        let mut skip = self.begun;
        for source in &self.sources {
            let len = u64::from(source.len_bytes);
            if skip < len {
                let remote = Remote { address: source.remote.address.wrapping_add(skip), ..source.remote };
                return Some((remote, (len - skip).min(READ_BYTES_MAX)));
            }
            skip -= len;
        }
        None
    }
}

/// Where a message is written to.
enum Fill<'a> {
    Bytes(&'a mut [u8]),
    Area(&'a Arc<Mapping>, usize),
}

impl Fill<'_> {
    fn write(&mut self, at: usize, from: &[u8]) {
        match self {
            Fill::Bytes(to) => to[at..at + from.len()].copy_from_slice(from),
            Fill::Area(map, base) => map.write_from(*base + at, from).expect("a place that was taken"),
        }
    }

    fn copy(&mut self, at: usize, from: &Arc<Mapping>, piece: &Piece) {
        let (offset, len) = (piece.offset_bytes as usize, piece.len_bytes as usize);
        match self {
            Fill::Bytes(to) => {
                from.read_into(offset, &mut to[at..at + len]).expect("a piece that was checked")
            }
            Fill::Area(map, base) => {
                Mapping::copy_between(from, offset, map, *base + at, len).expect("a piece that was checked");
            }
        }
    }
}
