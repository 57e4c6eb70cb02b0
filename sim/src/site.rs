//! One node: its daemon's pure core, the memory that it has made, its tables and doorbells, and the hands that execute
//! its effects. What reaches outside of the daemon is left in `out`, in order, for the world to carry.
//!
//! Key type: [`Site`]. Neighbours: `courierman` (the node's proxy), `program` (its members), `world`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use abi::courier::ToProxy;
use abi::member::{Introduction, Refusal, Reply, Request};
use abi::{DcId, Endpoint, Incarnation, NodeId, Slot, doorbell, side, table};
use fabric::Time;
use node::core::{ConnId, Core, Descriptor, Effect, Input, Note, Plan, Process};
use shm::doorbell::Doorbells;
use shm::map::Mapping;
use shm::side::{OwnSide, PeerSide};
use shm::sync::Ordering;
use shm::words::{OwnWords, Words};

/// The one DC of a simulated cluster.
pub const DC: DcId = DcId(1);
/// The one proxy of a node.
pub const PROXY: u16 = 1;
/// Slots of each node.
pub const SLOTS_EACH: u16 = 16;

/// What a daemon does to others.
pub enum Outward {
    Ring {
        doorbell: usize,
        source: Option<Slot>,
        pull: bool,
    },
    ToProxy(Heard),
    StartProxy {
        incarnation: Incarnation,
    },
    KillProxy,
    /// The daemon was killed, and its proxy with it. What was left before this was said; what follows is its successor's.
    Died,
    Note(Note),
}

/// A datagram to a proxy, its descriptors followed.
pub struct Heard {
    pub message: ToProxy,
    pub tail: Vec<u8>,
    pub map: Option<Arc<Mapping>>,
}

/// A segment, made when it is first used: of an endpoint side by side, of a proxy in one piece.
#[derive(Clone)]
struct Segment {
    len_bytes: usize,
    whole: Option<Arc<Mapping>>,
    sides: BTreeMap<u32, Arc<Mapping>>,
}

/// One life of a node.
pub struct Site {
    pub id: NodeId,
    core: Core,
    table: OwnWords,
    pub doorbells: Doorbells,
    vault: BTreeMap<(u32, u32), Segment>,
    /// What the daemons that died had: who was given it has it still.
    given: BTreeMap<(u32, u32), Segment>,
    replies: BTreeMap<ConnId, VecDeque<Reply>>,
    closed: BTreeSet<ConnId>,
    pub out: Vec<Outward>,
    conns: ConnId,
    asked: u64,
    /// The daemon dies in its next step, after so many of the things that it does.
    dies_after: Option<usize>,
}

impl Site {
    pub fn new(now: Time, plan: Plan) -> Site {
        Site {
            id: plan.node,
            core: Core::new(now, plan),
            table: OwnWords::heap(table::VERSION + 1),
            doorbells: Doorbells::heap(),
            vault: BTreeMap::new(),
            given: BTreeMap::new(),
            replies: BTreeMap::new(),
            closed: BTreeSet::new(),
            out: Vec::new(),
            conns: 0,
            asked: 0,
            dies_after: None,
        }
    }

    pub fn table(&self) -> Words {
        self.table.as_peer()
    }

    pub fn deadline(&self) -> Option<Time> {
        self.core.deadline()
    }

    pub fn incarnation(&self) -> Incarnation {
        self.core.incarnation()
    }

    /// Steps the core and executes what it says, until it asks for nothing more.
    pub fn step(&mut self, now: Time, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut effects = Vec::new();
            self.core.step(now, input, &mut effects);
            let dies = self.dies_after.take();
            let done = dies.map_or(effects.len(), |after| after % (effects.len() + 1));
            for (at, effect) in effects.iter().enumerate() {
                // What was decided is decided: the oracle hears of it, though no log does.
                if at < done || matches!(effect, Effect::Note(_)) {
                    inputs.extend(self.execute(effect.clone()));
                }
            }
            if dies.is_some() {
                // What the other inputs would have told is lost with it.
                return self.succeed(now, effects);
            }
        }
    }

    /// Kills the daemon in its next step.
    pub fn doom(&mut self, after: usize) {
        self.dies_after = Some(after);
    }

    /// The daemon is killed, and its successor goes on from what was written down: the state, which has the last input. Of
    /// what that one led to nobody knows what was done.
    fn succeed(&mut self, now: Time, uncertain: Vec<Effect>) {
        self.out.push(Outward::Died);
        self.given.extend(self.vault.iter().map(|(key, segment)| (*key, segment.clone())));
        self.core = Core::from_bytes(&self.core.to_bytes()).expect("bytes of this very program");
        let again: Vec<Effect> = uncertain.into_iter().filter(Effect::bears_repeating).collect();
        let inputs: Vec<Input> = again.into_iter().filter_map(|effect| self.execute(effect)).collect();
        for input in inputs {
            self.step(now, input);
        }
        self.step(now, Input::Succeeded { lost: Vec::new() });
    }

    fn execute(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Reply { conn, reply, .. } => self.replies.entry(conn).or_default().push_back(reply),
            Effect::Close { conn } => drop(self.closed.insert(conn)),
            Effect::MakeSegment { memory, segment, len_bytes, .. } => {
                let made = || Segment { len_bytes: len_bytes as usize, whole: None, sides: BTreeMap::new() };
                self.vault.entry((memory, segment)).or_insert_with(made);
                return Some(Input::SegmentMade { memory, segment, made: true });
            }
            Effect::Seal { memory, .. } => return Some(Input::Sealed { memory, sealed: true }),
            Effect::DropSegment { memory, segment } => drop(self.vault.remove(&(memory, segment))),
            Effect::DropMemory { memory } => self.vault.retain(|(m, _), _| *m != memory),
            Effect::SetTable { slot, entry, .. } => {
                // Pairs with: `dvk::core::Core::entry` load.
                self.table.store(table::of_slot(slot), entry.to_word(), Ordering::Release);
            }
            Effect::Ring { doorbell, source, pull, .. } => {
                self.out.push(Outward::Ring { doorbell: doorbell as usize, source, pull });
            }
            Effect::ToProxy { message, tail, fds, .. } => {
                let map = self.follow(&message, &fds);
                self.out.push(Outward::ToProxy(Heard { message, tail, map }));
            }
            Effect::StartProxy { incarnation, .. } => self.out.push(Outward::StartProxy { incarnation }),
            Effect::KillProxy { .. } => self.out.push(Outward::KillProxy),
            Effect::Note(note) => self.out.push(Outward::Note(note)),
            // Nothing is bound for another process here, nobody polls, and no daemon has a successor that reads its books.
            Effect::DropBells { .. }
            | Effect::OpenProcess { .. }
            | Effect::CloseProcess { .. }
            | Effect::Record { .. } => {}
            // The one DC is as it was made.
            Effect::MakeDc { .. } | Effect::DropDc { .. } | Effect::KeepDcs { .. } => {}
        }
        None
    }

    /// The memory that goes with a datagram to a proxy.
    fn follow(&mut self, message: &ToProxy, fds: &[Descriptor]) -> Option<Arc<Mapping>> {
        let segment = fds.iter().find_map(|fd| match fd {
            Descriptor::Segment { memory, segment } => Some((*memory, *segment)),
            Descriptor::Table(_)
            | Descriptor::Doorbells(_)
            | Descriptor::ProxyBell { .. }
            | Descriptor::Ringer { .. }
            | Descriptor::Rung { .. } => None,
        });
        let (memory, segment) = segment?;
        match message {
            ToProxy::Attach { attach } => self.side_map(memory, segment, attach.side),
            _ => self.whole(memory, segment),
        }
    }

    fn whole(&mut self, memory: u32, segment: u32) -> Option<Arc<Mapping>> {
        let key = (memory, segment);
        let there = self.vault.get_mut(&key).or_else(|| self.given.get_mut(&key))?;
        Some(Arc::clone(there.whole.get_or_insert_with(|| Mapping::heap(there.len_bytes))))
    }

    /// One side of an endpoint's segment, alone in its mapping.
    fn side_map(&mut self, memory: u32, segment: u32, at: u32) -> Option<Arc<Mapping>> {
        let key = (memory, segment);
        let there = self.vault.get_mut(&key).or_else(|| self.given.get_mut(&key))?;
        Some(Arc::clone(there.sides.entry(at).or_insert_with(|| Mapping::heap(side::BYTES))))
    }

    /// A new connection of a process.
    pub fn connect(&mut self, now: Time, pid: u32) -> ConnId {
        self.conns += 1;
        let conn = self.conns;
        let process = Process { pid, uid: 0, start_time: 1 };
        self.step(now, Input::Connected { conn, process });
        conn
    }

    /// Asks the daemon, as a member does: one datagram each way.
    pub fn ask(&mut self, now: Time, conn: ConnId, request: Request) -> Result<Reply, Refusal> {
        if self.closed.contains(&conn) {
            return Err(Refusal::Stopping);
        }
        // What was said twice is passed over.
        self.replies.remove(&conn);
        self.asked += 1;
        let number = self.asked;
        self.step(now, Input::Asked { conn, number, request: Some(request), fresh: [conn, 7] });
        match self.replies.get_mut(&conn).and_then(VecDeque::pop_front) {
            Some(Reply::Refused(why)) => Err(why),
            Some(reply) => Ok(reply),
            None => Err(Refusal::BadRequest),
        }
    }

    /// A pool segment of an endpoint, to write.
    pub fn pool(&mut self, memory: u32, segment: u32) -> Option<Arc<Mapping>> {
        self.whole(memory, segment)
    }

    /// A segment that the daemon has allowed somebody to read.
    pub fn bulk(&mut self, memory: u32, segment: u32) -> Option<Arc<Mapping>> {
        self.whole(memory, segment)
    }

    /// The side that an endpoint keeps for the peer of an introduction.
    pub fn own_side(&mut self, memory: u32, i: &Introduction) -> Option<OwnSide> {
        let map = self.side_map(memory, i.own_segment, i.own_side)?;
        OwnWords::mapped(&map, 0, side::WORDS).ok().map(OwnSide::new)
    }

    /// The side that the peer, or the proxy that speaks for it, keeps.
    pub fn peer_side(&mut self, i: &Introduction) -> Option<PeerSide> {
        let words = if i.proxied {
            let map = self.whole(i.memory, i.segment)?;
            Words::mapped(&map, i.side as usize * side::BYTES, side::WORDS)
        } else {
            let map = self.side_map(i.memory, i.segment, i.side)?;
            Words::mapped(&map, 0, side::WORDS)
        };
        words.ok().map(PeerSide::new)
    }

    /// Rings a doorbell as the daemon does.
    pub fn ring(&self, doorbell: usize, source: Option<Slot>, pull: bool) {
        if let Some(slot) = source {
            let _ = self.doorbells.ring(doorbell, slot.0);
        }
        if pull {
            let _ = self.doorbells.ring_for_pull(doorbell);
        }
    }

    /// Whether a ring of this doorbell has not been carried yet.
    pub fn is_to_ring(&self, bell: usize) -> bool {
        self.out.iter().any(|what| matches!(what, Outward::Ring { doorbell, .. } if *doorbell == bell))
    }

    /// Whether nobody has woken the owner of a doorbell since it lay down.
    pub fn sleeps(&self, doorbell: usize) -> bool {
        // Relaxed: one thread.
        self.doorbells.sleep_word(doorbell).load(Ordering::Relaxed) != doorbell::AWAKE
    }
}

/// The node in whose slots an endpoint is.
pub fn node_of(endpoint: Endpoint) -> NodeId {
    NodeId(endpoint.slot.0 / SLOTS_EACH + 1)
}

/// The first slot of a node.
pub fn first_slot(node: NodeId) -> Slot {
    Slot((node.0 - 1) * SLOTS_EACH)
}
