//! A node that knows the key of the cluster and keeps no rule: it stands in the place of a daemon and its proxy, and says to
//! the other nodes what it likes.
//!
//! Key type: [`Foreign`]. Neighbours: `wire_acts` (what it says), `dent` (what becomes of its bytes), `friend` (whom it harms).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use abi::record::{self, Kind, Record};
use abi::slot::SlotCopy;
use abi::{DcId, Endpoint, Generation, Incarnation, Name, NodeId, Pair, Slot};
use fabric::{Completion, Desc, Fabric, Piece, RegionKey};
use node::core::{Chunk, ChunkKind, DirectoryEntry};
use proxy_tcp::{ClusterKey, TcpConfig, TcpFabric};
use shm::map::Mapping;

use super::attacker::Tally;
use super::dent::Dent;
use super::wire_acts::ACTS;
use super::{Orders, report};
use crate::process::system::Chance;

const ACTS_PER_ROUND: u64 = 6;
const BUFFERS: usize = 64;
/// What it sends lies here, one place after the other.
const OUT_BYTES: usize = 8 << 20;
/// As long as a round lasts at the most, beside what its acts take.
const LISTENING: Duration = Duration::from_millis(6);
const LINKS_COME: Duration = Duration::from_secs(2);

/// A pair of one of its endpoints with a victim, as far as it keeps to what the other may expect.
#[derive(Clone, Copy, Default)]
pub struct Stream {
    /// The number of the next slot that the victim expects.
    pub next: u64,
    /// Slots of the victim's that have come.
    pub came: u64,
}

/// Where it stands, and whom it knows.
pub struct Stand {
    pub cluster: PathBuf,
    pub node: NodeId,
    pub foes: Vec<Slot>,
    pub victims: Vec<(NodeId, Slot)>,
}

pub struct Foreign<'a> {
    stand: Stand,
    incarnation: u32,
    key: ClusterKey,
    peers: Vec<(NodeId, SocketAddr)>,
    /// With the memory that it receives into.
    fabric: Option<(TcpFabric, Arc<Mapping>)>,
    pub dent: Dent,
    origin: Instant,
    out: Arc<Mapping>,
    out_region: RegionKey,
    out_next: usize,
    links: BTreeMap<NodeId, bool>,
    version: u64,
    generation: u32,
    /// Endpoints of the victims, as the other nodes have said.
    known: BTreeMap<Slot, Endpoint>,
    pub streams: BTreeMap<Pair, Stream>,
    pub chance: &'a mut Chance,
    pub tally: &'a mut Tally,
    token: u64,
}

/// Attacks so many times, with new endpoints each time.
pub fn live(orders: &Orders, stand: Stand, seed: u64, rounds: u64) {
    let config = node::Cluster::load(&stand.cluster).expect("the file that is in use");
    let key = ClusterKey::load(&stand.cluster.with_file_name("cluster.key")).expect("the key of the cluster");
    let at = |node: NodeId| config.nodes.iter().find(|n| n.id == node).expect("a node of the file").address;
    let peers = config.nodes.iter().filter(|n| n.id != stand.node).map(|n| (n.id, n.address)).collect();
    let dent = Dent::at(at(stand.node), seed);
    let (mut chance, mut tally) = (Chance::new(seed), Tally::default());
    let mut foreign = Foreign {
        stand,
        incarnation: 1,
        key,
        peers,
        fabric: None,
        dent,
        origin: Instant::now(),
        out: Mapping::heap(OUT_BYTES),
        out_region: RegionKey(0),
        out_next: 0,
        links: BTreeMap::new(),
        version: 1,
        generation: 1000,
        known: BTreeMap::new(),
        streams: BTreeMap::new(),
        chance: &mut chance,
        tally: &mut tally,
        token: 0,
    };
    foreign.begin_anew();
    report("attacks");
    orders.next();
    for _ in 0..rounds {
        foreign.round();
    }
    drop(foreign);
    report(format_args!("tally {}", tally.text()));
    orders.next();
}

impl Foreign<'_> {
    /// A new incarnation of the node, with new connections.
    pub fn begin_anew(&mut self) {
        self.fabric = None;
        self.incarnation += 1;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let listen = listener.local_addr().expect("an address");
        self.dent.lead_to(listen);
        let mut config = TcpConfig::new(self.stand.node, Incarnation(self.incarnation), listen);
        config.peers = self.peers.clone();
        config.key = Some(self.key.clone());
        let mut fabric = TcpFabric::with_listener(config, listener, self.origin.elapsed()).expect("a fabric");
        let each = fabric.caps().message_bytes_max;
        let map = Mapping::heap(BUFFERS * each as usize);
        let region = fabric.attach(&map);
        let buffers: Vec<Piece> = (0..BUFFERS as u64)
            .map(|n| Piece { region, offset_bytes: n * u64::from(each), len_bytes: each })
            .collect();
        assert_eq!(fabric.post_recv(&buffers), BUFFERS);
        self.out_region = fabric.attach(&self.out);
        self.fabric = Some((fabric, map));
        self.links.clear();
        self.streams.clear();
    }

    fn round(&mut self) {
        let until = Instant::now() + LINKS_COME;
        while self.links.values().filter(|up| **up).count() < self.peers.len() && Instant::now() < until {
            self.listen(Duration::from_millis(1));
        }
        self.streams.clear();
        self.generation += 1;
        self.announce(ChunkKind::Delta, true);
        for _ in 0..1 + self.chance.below(3) {
            self.open();
        }
        self.listen(LISTENING);
        for _ in 0..1 + self.chance.below(ACTS_PER_ROUND) {
            let (name, act) = ACTS[self.chance.below(ACTS.len() as u64) as usize];
            self.tally.count("act", name);
            act(self);
            let pause = Duration::from_micros(self.chance.below(1500));
            self.listen(pause);
        }
        if self.chance.below(2) == 0 {
            self.announce(ChunkKind::Delta, false);
        }
    }

    /// One of its endpoints of this round.
    pub fn foe(&mut self) -> Endpoint {
        let slot = self.stand.foes[self.chance.below(self.stand.foes.len() as u64) as usize];
        Endpoint::new(DcId(1), slot, Generation(self.generation))
    }

    /// Tells all nodes of its endpoints.
    pub fn announce(&mut self, kind: ChunkKind, bound: bool) {
        let entry = |slot: &Slot| DirectoryEntry {
            endpoint: Endpoint::new(DcId(1), *slot, Generation(self.generation)),
            bound,
            name: Name::NONE,
            uid: 0,
            private: false,
        };
        let entries = self.stand.foes.iter().map(entry).collect();
        self.say_chunk(kind, entries);
    }

    pub fn say_chunk(&mut self, kind: ChunkKind, entries: Vec<DirectoryEntry>) {
        self.version += 1;
        let bytes = Chunk { kind, version: self.version, entries }.to_bytes();
        self.say_directory((bytes.len() as u64) << 32, &bytes);
    }

    pub fn say_directory(&mut self, arg: u64, bytes: &[u8]) {
        let record = Record { kind: Kind::Directory, count: 0, pair: None, arg };
        for (peer, _) in self.peers.clone() {
            self.say(peer, &record.to_bytes(), bytes);
        }
    }

    /// A victim that is known: its node and its endpoint.
    pub fn victim(&mut self) -> Option<(NodeId, Endpoint)> {
        let victims = &self.stand.victims;
        let (node, slot) = victims[self.chance.below(victims.len() as u64) as usize];
        Some((node, *self.known.get(&slot)?))
    }

    pub fn node_of(&self, slot: Slot) -> NodeId {
        self.stand.victims.iter().find(|(_, s)| *s == slot).map_or(NodeId(1), |(node, _)| *node)
    }

    /// Asks for a pair, as a proxy does.
    fn open(&mut self) {
        let Some((node, victim)) = self.victim() else { return };
        let pair = Pair { source: self.foe(), destination: victim };
        self.streams.entry(pair).or_default();
        self.record(node, Record::of(Kind::Open, pair, 0), &[]);
    }

    /// A pair that it has opened, or that a victim has.
    pub fn pair(&mut self) -> Option<(NodeId, Pair)> {
        let count = self.streams.len() as u64;
        let at = if count == 0 { return None } else { self.chance.below(count) as usize };
        let pair = *self.streams.keys().nth(at)?;
        Some((self.node_of(pair.destination.slot), pair))
    }

    pub fn record(&mut self, node: NodeId, record: Record, body: &[u8]) {
        self.say(node, &record.to_bytes(), body);
    }

    /// The next slot of a stream, changed by `change`.
    pub fn slot(&mut self, node: NodeId, pair: Pair, mut slot: SlotCopy, change: impl Fn(&mut [u64])) {
        let stream = self.streams.entry(pair).or_default();
        let sequence = stream.next;
        stream.next += 1;
        slot.sequence = sequence;
        let mut words = slot.to_words();
        change(&mut words);
        let body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let record = Record { kind: Kind::Slots, count: 1, pair: Some(pair), arg: sequence };
        self.record(node, record, &body);
    }

    pub fn say(&mut self, node: NodeId, head: &[u8], body: &[u8]) {
        self.post(node, head, body, false);
    }

    /// Announces bytes that the other end may have for the asking.
    pub fn say_bulk(&mut self, node: NodeId, head: &[u8], body: &[u8]) {
        self.post(node, head, body, true);
    }

    fn post(&mut self, node: NodeId, head: &[u8], body: &[u8], bulk: bool) {
        let Some((fabric, _)) = &mut self.fabric else { return };
        if self.out_next + body.len() > OUT_BYTES {
            self.out_next = 0;
        }
        let piece = Piece {
            region: self.out_region,
            offset_bytes: self.out_next as u64,
            len_bytes: body.len() as u32,
        };
        self.out.write_from(self.out_next, body).expect("its own memory");
        self.out_next += body.len().next_multiple_of(64);
        self.token += 1;
        let pieces = if body.is_empty() { &[][..] } else { std::slice::from_ref(&piece) };
        let desc = Desc { token: self.token, head, pieces, bulk, flow: 1 };
        // One that finds no room, or no link, is as good as lost.
        let taken = fabric.post_send(node, &[desc]);
        self.tally.count("posted", if taken == 1 { "sent" } else { "no room" });
    }

    /// Takes what comes, for so long.
    pub fn listen(&mut self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            self.poll();
            if Instant::now() >= until {
                return;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn poll(&mut self) {
        let now = self.origin.elapsed();
        let Some((fabric, map)) = &mut self.fabric else { return };
        let mut done = Vec::with_capacity(64);
        fabric.poll(now, &mut done);
        let mut heard = Vec::new();
        for completion in done {
            match completion {
                Completion::Up { peer, .. } => {
                    self.links.insert(peer, true);
                    self.tally.count("link", "up");
                }
                Completion::Lost { peer, .. } => {
                    self.links.insert(peer, false);
                    self.tally.count("link", "lost");
                }
                Completion::Received { peer, buffer, len_bytes } => {
                    let mut bytes = vec![0; len_bytes as usize];
                    map.read_into(buffer.offset_bytes as usize, &mut bytes).expect("a buffer of its own");
                    fabric.post_recv(&[buffer]);
                    heard.push((peer, bytes));
                }
                Completion::Announced { peer, token, buffer, .. } => {
                    fabric.post_recv(&[buffer]);
                    // Others wait for ever.
                    if self.chance.below(2) == 0 {
                        fabric.refuse(peer, token);
                    }
                }
                Completion::Failed { .. } => self.tally.count("posted", "failed"),
                _ => {}
            }
        }
        for (peer, bytes) in heard {
            self.hear(peer, &bytes);
        }
    }

    fn hear(&mut self, peer: NodeId, bytes: &[u8]) {
        let Ok(record) = Record::check(bytes) else { panic!("node {peer} speaks nonsense: {bytes:?}") };
        let Some(pair) = record.pair else { return self.hear_directory(bytes) };
        let outward = Pair { source: pair.destination, destination: pair.source };
        match record.kind {
            Kind::Open if self.stand.foes.contains(&outward.source.slot) => {
                self.streams.entry(outward).or_default();
                self.record(peer, Record::of(Kind::Opened, outward, 0), &[]);
                self.record(peer, Record::of(Kind::Words, outward, 0), &[0; record::WORDS_BYTES]);
            }
            Kind::Slots => {
                let stream = self.streams.entry(outward).or_default();
                stream.came = stream.came.max(record.arg + u64::from(record.count));
            }
            _ => {}
        }
    }

    fn hear_directory(&mut self, bytes: &[u8]) {
        let Some(chunk) = Chunk::from_bytes(&bytes[record::BYTES..]) else { return };
        for entry in chunk.entries.iter().filter(|entry| entry.bound) {
            self.known.insert(entry.endpoint.slot, entry.endpoint);
        }
    }
}
