//! The simulated network beneath the couriers: sessions that are lost and come back, delays, cuts, announced bulk.
//!
//! Key types: [`Net`], all nodes and links; [`SimFabric`], one node's end. Within a session nothing is lost, doubled or
//! overtakes, whatever the wire does to its packets; what is lost for good ends it, as on a byte stream. A piece is read when its message departs, some
//! time after it was posted, so that what is sent from where it lies is seen to change. Neighbours: `sessions`, `wire`.

mod end;
mod sessions;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use abi::limits::{FRAME_BYTES_MAX, LOAN_BYTES_MAX};
use abi::{Incarnation, NodeId};
use fabric::regions::{Pieces, Regions, fail_late};
use fabric::{Armed, Caps, Completion, Desc, Piece, Time};
use shm::map::Mapping;

use crate::dice::Dice;

pub use end::SimFabric;

/// Frames that a wire holds in one direction.
const WIRE_FRAMES_MAX: usize = 64;

/// How the wires behave.
#[derive(Clone, Copy, Debug)]
pub struct Temper {
    /// One frame in so many is lost, and its session with it. 0: none.
    pub lose_one_in: u64,
    /// One in so many is lost and sent again; arrives twice. 0: none.
    pub resend_one_in: u64,
    pub double_one_in: u64,
    pub latency_us: (u64, u64),
    /// What `Caps` says.
    pub posted_max: usize,
}

/// What happened on the wires.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub frames: u64,
    pub bulk: u64,
    pub lost_frames: u64,
    pub resent: u64,
    pub doubled: u64,
    pub overtook: u64,
    pub sessions: u64,
    pub refused_bulk: u64,
}

/// One life of a node's end.
struct Port {
    life: u64,
    present: bool,
    incarnation: Incarnation,
    regions: Regions,
    free: VecDeque<Piece>,
    ready: VecDeque<Completion>,
    /// The session with each other node that its courier was told of.
    told: BTreeMap<NodeId, u64>,
    fenced: BTreeMap<NodeId, Incarnation>,
    /// Its courier has something to look at.
    woken: bool,
    /// Descriptors accepted and not completed.
    open: u64,
}

impl Port {
    fn new(life: u64, incarnation: Incarnation, present: bool) -> Port {
        Port {
            life,
            present,
            incarnation,
            regions: Regions::new(),
            free: VecDeque::new(),
            ready: VecDeque::new(),
            told: BTreeMap::new(),
            fenced: BTreeMap::new(),
            woken: false,
            open: 0,
        }
    }

    fn tell(&mut self, completion: Completion) {
        self.open -= matches!(completion, Completion::Sent { .. } | Completion::Failed { .. }) as u64;
        self.ready.push_back(completion);
        self.woken = true;
    }
}

/// A message that is still its sender's.
struct Post {
    token: u64,
    head: Vec<u8>,
    pieces: Pieces,
    bulk: Option<u64>,
}

struct Frame {
    bytes: Vec<u8>,
    bulk: Option<u64>,
}

struct Bulk {
    token: u64,
    pieces: Pieces,
    announced: bool,
    into: Option<Piece>,
}

/// One direction between two nodes.
#[derive(Default)]
struct Way {
    posted: VecDeque<Post>,
    arrived: VecDeque<Frame>,
    bulk: BTreeMap<u64, Bulk>,
    /// Frames on the wire; and departures that wait until the far end has taken some.
    flying: usize,
    held: usize,
    /// When the last one departed: none overtakes before it leaves.
    departs: Time,
    /// Packets of this session: sent, come in order, come too early.
    sent: u64,
    came: u64,
    early: BTreeMap<u64, Frame>,
    /// Nothing gets through; what was sent since.
    cut: bool,
    stuck: Vec<(u64, Frame)>,
}

#[derive(Default)]
struct Link {
    cut: bool,
    session: Option<u64>,
    /// Until both have been told of the last session's end, none begins.
    quiet_until: Time,
}

/// What happens by itself, later.
enum Due {
    Depart { from: NodeId, to: NodeId, session: u64 },
    Arrive { from: NodeId, to: NodeId, session: u64, number: u64, frame: Frame },
    Deaf { from: NodeId, to: NodeId },
    Moved { from: NodeId, to: NodeId, session: u64, serial: u64 },
    Try { one: NodeId, other: NodeId },
    Tell { node: NodeId, life: u64, what: Vec<Completion> },
}

/// The whole network.
pub struct Net {
    now: Time,
    dice: Dice,
    pub temper: Temper,
    ports: BTreeMap<NodeId, Port>,
    links: BTreeMap<(NodeId, NodeId), Link>,
    ways: BTreeMap<(NodeId, NodeId), Way>,
    due: BTreeMap<(Time, u64), Due>,
    turns: u64,
    sessions: u64,
    serials: u64,
    pub counts: Counts,
}

/// The network as everybody holds it; one thread at a time.
pub type Shared = Arc<Mutex<Net>>;

/// A panic elsewhere has ended the run anyhow.
pub fn lock(net: &Shared) -> MutexGuard<'_, Net> {
    net.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Net {
    pub fn new(nodes: &[NodeId], temper: Temper, dice: Dice) -> Net {
        let mut net = Net {
            now: Duration::ZERO,
            dice,
            temper,
            ports: nodes.iter().map(|id| (*id, Port::new(0, Incarnation(0), false))).collect(),
            links: BTreeMap::new(),
            ways: BTreeMap::new(),
            due: BTreeMap::new(),
            turns: 0,
            sessions: 0,
            serials: 0,
            counts: Counts::default(),
        };
        for one in nodes {
            for other in nodes.iter().filter(|other| *other != one) {
                net.links.entry(ends(*one, *other)).or_default();
                net.ways.insert((*one, *other), Way::default());
            }
        }
        net
    }

    pub fn caps(&self) -> Caps {
        Caps {
            message_bytes_max: FRAME_BYTES_MAX,
            bulk_bytes_max: LOAN_BYTES_MAX as u64,
            posted_max: self.temper.posted_max,
            zero_copy: true,
            bulk_in_place: true,
        }
    }

    /// When something happens by itself next.
    pub fn next_due(&self) -> Option<Time> {
        self.due.keys().next().map(|(at, _)| *at)
    }

    /// Lets all happen that is due by `now`.
    pub fn advance(&mut self, now: Time) {
        while let Some(entry) = self.due.first_entry().filter(|e| e.key().0 <= now) {
            let ((at, _), due) = entry.remove_entry();
            self.now = self.now.max(at);
            self.happen(due);
        }
        self.now = self.now.max(now);
    }

    /// Nodes whose couriers have something to look at since the last call.
    pub fn take_woken(&mut self) -> Vec<NodeId> {
        let woken = self.ports.iter_mut().filter(|(_, p)| p.woken);
        woken
            .map(|(id, port)| {
                port.woken = false;
                *id
            })
            .collect()
    }

    /// Descriptors that a node's fabric has accepted and not given back.
    pub fn open(&self, node: NodeId) -> u64 {
        self.ports.get(&node).map_or(0, |p| p.open)
    }

    fn at(&mut self, after: Duration, due: Due) {
        self.turns += 1;
        self.due.insert((self.now + after, self.turns), due);
    }

    fn happen(&mut self, due: Due) {
        let stands = |net: &Net, from, to, session| net.links[&ends(from, to)].session == Some(session);
        match due {
            Due::Depart { from, to, session } if stands(self, from, to, session) => {
                self.depart(from, to, session)
            }
            Due::Arrive { from, to, session, number, frame } if stands(self, from, to, session) => {
                self.arrive(from, to, number, frame);
            }
            Due::Moved { from, to, session, serial } if stands(self, from, to, session) => {
                self.moved(from, to, session, serial);
            }
            Due::Deaf { from, to } => self.notice(from, to),
            Due::Depart { .. } | Due::Arrive { .. } | Due::Moved { .. } => {}
            Due::Try { one, other } => self.try_up(one, other),
            Due::Tell { node, life, what } => {
                if let Some(port) = self.ports.get_mut(&node).filter(|p| p.life == life) {
                    what.into_iter().for_each(|completion| port.tell(completion));
                }
            }
        }
    }

    fn way(&mut self, from: NodeId, to: NodeId) -> &mut Way {
        self.ways.get_mut(&(from, to)).expect("a way of this network")
    }

    fn port(&mut self, node: NodeId) -> &mut Port {
        self.ports.get_mut(&node).expect("a node of this network")
    }

    fn latency(&mut self) -> Duration {
        let (first, last) = self.temper.latency_us;
        self.dice.us(first, last)
    }

    /// The session that a node's courier may use: the one it was told of, if it still stands.
    fn usable(&self, from: NodeId, to: NodeId) -> Option<u64> {
        let session = self.links.get(&ends(from, to))?.session?;
        (self.ports.get(&from)?.told.get(&to) == Some(&session)).then_some(session)
    }

    fn post_send(&mut self, from: NodeId, to: NodeId, batch: &[Desc<'_>]) -> usize {
        let Some(session) = self.usable(from, to) else { return 0 };
        let caps = self.caps();
        let mut accepted = 0;
        for desc in batch {
            let pieces = Pieces::new(desc.pieces);
            let whole = desc.head.len() as u64 + pieces.len_bytes();
            assert!(desc.bulk || whole <= u64::from(caps.message_bytes_max), "a message within caps");
            let way = self.way(from, to);
            let posted = way.posted.iter().filter(|p| p.bulk.is_none()).count();
            let outstanding = if desc.bulk { way.bulk.len() } else { posted };
            if outstanding >= caps.posted_max || (desc.bulk && pieces.len_bytes() > caps.bulk_bytes_max) {
                break;
            }
            self.port(from).regions.hold_all(&pieces);
            self.port(from).open += 1;
            let bulk = desc.bulk.then(|| {
                self.serials += 1;
                let bulk = Bulk { token: desc.token, pieces, announced: false, into: None };
                let serial = self.serials;
                self.way(from, to).bulk.insert(serial, bulk);
                serial
            });
            let post = Post { token: desc.token, head: desc.head.to_vec(), pieces, bulk };
            let now = self.now;
            let departs = now + self.dice.us(0, 30);
            let way = self.way(from, to);
            way.posted.push_back(post);
            way.departs = way.departs.max(departs);
            let after = way.departs - now;
            self.at(after, Due::Depart { from, to, session });
            accepted += 1;
        }
        accepted
    }

    fn depart(&mut self, from: NodeId, to: NodeId, session: u64) {
        let way = self.way(from, to);
        if way.flying + way.arrived.len() >= WIRE_FRAMES_MAX {
            way.held += 1;
            return;
        }
        let Some(post) = way.posted.pop_front() else { return };
        let mut bytes = post.head;
        if post.bulk.is_none() {
            let port = self.port(from);
            for piece in post.pieces.as_slice() {
                let begin = bytes.len();
                bytes.resize(begin + piece.len_bytes as usize, 0);
                let read = port
                    .regions
                    .map(piece.region)
                    .read_into(piece.offset_bytes as usize, &mut bytes[begin..]);
                read.expect("a piece that was checked when posted");
            }
            port.regions.release_all(&post.pieces);
            port.tell(Completion::Sent { peer: to, token: post.token });
        }
        self.counts.frames += 1;
        if self.dice.one_in(self.temper.lose_one_in) {
            self.counts.lost_frames += 1;
            return self.end_session(from, to);
        }
        self.fly(from, to, session, Frame { bytes, bulk: post.bulk });
    }

    /// Puts what has arrived into posted buffers, of each other node in turn.
    fn deliver(&mut self, to: NodeId) {
        let mut others: Vec<NodeId> = self.ports.keys().copied().filter(|id| *id != to).collect();
        let first = self.dice.below(others.len() as u64) as usize;
        others.rotate_left(first);
        for from in others {
            while !self.port(to).free.is_empty() {
                let Some(frame) = self.way(from, to).arrived.pop_front() else { break };
                self.deliver_one(from, to, &frame);
                let Some(session) = self.links[&ends(from, to)].session else { continue };
                let way = self.way(from, to);
                if way.held > 0 {
                    way.held -= 1;
                    self.at(Duration::ZERO, Due::Depart { from, to, session });
                }
            }
        }
    }

    fn deliver_one(&mut self, from: NodeId, to: NodeId, frame: &Frame) {
        let bulk_bytes = frame.bulk.map(|serial| {
            let bulk = self.way(from, to).bulk.get_mut(&serial).expect("it stands until its session ends");
            bulk.announced = true;
            bulk.pieces.len_bytes()
        });
        let port = self.port(to);
        let Some(buffer) = port.free.pop_front() else { return };
        let written = port.regions.map(buffer.region).write_from(buffer.offset_bytes as usize, &frame.bytes);
        written.expect("a buffer that was checked when posted");
        port.regions.release(buffer);
        let len_bytes = frame.bytes.len() as u32;
        port.tell(match (frame.bulk, bulk_bytes) {
            (Some(token), Some(bulk_bytes)) => {
                Completion::Announced { peer: from, token, bulk_bytes, buffer, len_bytes }
            }
            _ => Completion::Received { peer: from, buffer, len_bytes },
        });
    }

    fn post_recv(&mut self, at: NodeId, free: &[Piece]) -> usize {
        for piece in free {
            self.port(at).regions.hold(*piece);
            self.port(at).free.push_back(*piece);
        }
        self.deliver(at);
        free.len()
    }

    fn accept(&mut self, at: NodeId, from: NodeId, token: u64, into: Piece) {
        let session = self.usable(at, from);
        let waits = self.ways.get_mut(&(from, at)).and_then(|way| way.bulk.get_mut(&token));
        let waits = waits.filter(|bulk| bulk.announced && bulk.into.is_none());
        let (Some(session), Some(bulk)) = (session, waits) else {
            let port = self.port(at);
            port.woken = true;
            return fail_late(&mut port.ready, from, token, into);
        };
        let len_bytes = bulk.pieces.len_bytes();
        assert!(u64::from(into.len_bytes) == len_bytes, "a bulk message is accepted into exactly its length");
        bulk.into = Some(into);
        self.port(at).regions.hold(into);
        let after = self.latency() * 2 + Duration::from_nanos(len_bytes);
        self.at(after, Due::Moved { from, to: at, session, serial: token });
    }

    fn refuse(&mut self, at: NodeId, from: NodeId, token: u64) {
        let Some(way) = self.ways.get_mut(&(from, at)) else { return };
        if !way.bulk.get(&token).is_some_and(|bulk| bulk.announced && bulk.into.is_none()) {
            return;
        }
        let Some(bulk) = way.bulk.remove(&token) else { return };
        self.counts.refused_bulk += 1;
        let port = self.port(from);
        port.regions.release_all(&bulk.pieces);
        port.tell(Completion::Failed { peer: at, token: bulk.token });
    }

    /// Copies an accepted bulk message from the sender's regions into the receiver's.
    fn finish_bulk(&mut self, from: NodeId, to: NodeId, serial: u64) {
        let Some(bulk) = self.way(from, to).bulk.remove(&serial) else { return };
        let Some(into) = bulk.into else { return };
        let mut at = into.offset_bytes as usize;
        for piece in bulk.pieces.as_slice() {
            let source = Arc::clone(self.port(from).regions.map(piece.region));
            let target = Arc::clone(self.port(to).regions.map(into.region));
            let len = piece.len_bytes as usize;
            let copied = Mapping::copy_between(&source, piece.offset_bytes as usize, &target, at, len);
            copied.expect("ranges that were checked when posted");
            at += len;
        }
        self.counts.bulk += 1;
        self.port(from).regions.release_all(&bulk.pieces);
        self.port(to).regions.release(into);
        self.port(from).tell(Completion::Sent { peer: to, token: bulk.token });
        self.port(to).tell(Completion::BulkReceived { peer: from, token: serial, into });
    }

    fn poll(&mut self, at: NodeId, done: &mut Vec<Completion>) {
        let room = (done.capacity() - done.len()).max(1);
        let port = self.port(at);
        for _ in 0..room {
            let Some(completion) = port.ready.pop_front() else { break };
            match completion {
                Completion::Up { peer, session, .. } => drop(port.told.insert(peer, session)),
                Completion::Lost { peer, session } => {
                    port.told.retain(|id, told| *id != peer || *told != session)
                }
                _ => {}
            }
            done.push(completion);
        }
    }

    fn arm(&mut self, at: NodeId) -> Armed {
        if self.port(at).ready.is_empty() { Armed::Armed } else { Armed::MoreToDo }
    }
}

fn ends(one: NodeId, other: NodeId) -> (NodeId, NodeId) {
    (one.min(other), one.max(other))
}
