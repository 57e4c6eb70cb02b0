//! A member in the raw: one connection, its descriptors and mappings, and a daemon to talk to.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use abi::member::{Introduction, Refusal, Reply, Request, VERSION, WORDS};
use abi::table::Entry;
use abi::{DcId, Endpoint, Name, Slot, doorbell, side, table};
use node::{Daemon, RunOptions, StartProxy, Started};
use proxy_tcp::options::ProxyOptions;
use shm::map::{Access, Mapping};
use shm::os::fdpass;

pub const PATIENCE: Duration = Duration::from_secs(5);
pub const DC: DcId = DcId(1);

/// No proxy ever starts.
pub struct NoProxies;

impl StartProxy for NoProxies {
    fn start(&mut self, _: &ProxyOptions, _: OwnedFd) -> std::io::Result<Started> {
        Err(std::io::Error::other("this test has no proxies"))
    }
}

/// A daemon in a folder of its own.
pub struct House {
    pub folder: tempfile::TempDir,
    pub daemon: Daemon,
}

pub const ALONE: &str = r#"
name = "lab"
[[node]]
id = 1
name = "n1"
address = "127.0.0.2:7701"
[[dc]]
id = 1
name = "main"
slots_per_node = 8
"#;

pub fn house(cluster: &str, starter: Box<dyn StartProxy>) -> House {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::in_thread(options(folder.path(), cluster, starter)).unwrap();
    House { folder, daemon }
}

pub fn options(folder: &Path, cluster: &str, starter: Box<dyn StartProxy>) -> RunOptions {
    let cluster_file = folder.join("cluster.toml");
    std::fs::write(&cluster_file, cluster).unwrap();
    let runtime_dir = Some(folder.join("run"));
    RunOptions { cluster_file, node: "n1".into(), runtime_dir, starter, keeper: None }
}

pub fn alone() -> House {
    house(ALONE, Box::new(NoProxies))
}

pub fn to_bytes(words: &[u64; WORDS]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

pub fn to_words(bytes: &[u8]) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    for (word, eight) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(eight.try_into().unwrap());
    }
    words
}

/// A connection to the daemon.
pub struct Client {
    pub socket: OwnedFd,
    pub table: Option<Arc<Mapping>>,
    pub bells: Option<Arc<Mapping>>,
}

impl Client {
    pub fn connect(socket: PathBuf) -> Client {
        Client { socket: fdpass::connect(&socket).unwrap(), table: None, bells: None }
    }

    pub fn send(&self, bytes: &[u8]) {
        fdpass::send_with_fds(&self.socket, bytes, &[]).unwrap();
    }

    pub fn receive(&self) -> (Reply, Vec<OwnedFd>) {
        let mut bytes = [0; 256];
        let (len, fds) = fdpass::recv_with_fds_within(&self.socket, &mut bytes, PATIENCE).unwrap();
        assert_eq!(len, WORDS * 8, "a whole reply");
        (Reply::from_words(&to_words(&bytes[..len])).expect("a reply"), fds)
    }

    pub fn ask(&self, request: Request) -> (Reply, Vec<OwnedFd>) {
        self.send(&to_bytes(&request.to_words()));
        self.receive()
    }

    pub fn refused(&self, request: Request) -> Refusal {
        match self.ask(request).0 {
            Reply::Refused(why) => why,
            other => panic!("{request:?} was not refused: {other:?}"),
        }
    }

    /// A connection that has said hello and mapped the table and the doorbells.
    pub fn hello(socket: PathBuf) -> Client {
        let mut client = Client::connect(socket);
        let (reply, fds) = client.ask(Request::Hello { version: VERSION, dc: Name::new("main").unwrap() });
        assert!(matches!(reply, Reply::Welcome { .. }), "{reply:?}");
        let map = |fd: &OwnedFd, len, access| Mapping::shared(fd.as_fd(), 0, len, access).unwrap();
        client.table = Some(map(&fds[0], table::BYTES, Access::ReadOnly));
        assert!(
            Mapping::shared(fds[0].as_fd(), 0, table::BYTES, Access::ReadWrite).is_err(),
            "the table is read-only"
        );
        client.bells = Some(map(&fds[1], doorbell::BYTES, Access::ReadWrite));
        client
    }

    pub fn entry(&self, slot: Slot) -> Entry {
        Entry::from_word(word(self.table.as_ref().unwrap(), table::of_slot(slot)))
    }

    pub fn bell(&self, endpoint: Endpoint, at: usize) -> u64 {
        word(self.bells.as_ref().unwrap(), doorbell::of_slot(endpoint.slot) * doorbell::WORDS + at)
    }

    /// Whether the bit of `source` is set at `endpoint`'s doorbell.
    pub fn rung_by(&self, endpoint: Endpoint, source: Slot) -> bool {
        let (at, bit) = (source.0 as usize / 64, source.0 % 64);
        self.bell(endpoint, doorbell::BITS + at) >> bit & 1 == 1
            && self.bell(endpoint, doorbell::SUMMARY) >> at & 1 == 1
    }
}

pub fn word(map: &Mapping, at: usize) -> u64 {
    let mut bytes = [0; 8];
    map.read_into(at * 8, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// A bound endpoint with its two first segments.
pub struct Member {
    pub client: Client,
    pub endpoint: Endpoint,
    pub memory: u32,
    pub sides: Arc<Mapping>,
    pub pool: Arc<Mapping>,
}

impl Member {
    pub fn bind(socket: PathBuf, slot: Option<Slot>, name: &str) -> Member {
        let client = Client::hello(socket);
        let (reply, fds) = client.ask(Request::Bind { slot, name: name_of(name), private: false });
        Member::bound(client, reply, &fds)
    }

    pub fn bound(client: Client, reply: Reply, fds: &[OwnedFd]) -> Member {
        let Reply::Bound { endpoint, memory, sides, pool_bytes, .. } = reply else {
            panic!("not bound: {reply:?}")
        };
        let sides_bytes = sides as usize * side::BYTES;
        let map = |fd: &OwnedFd, len| Mapping::shared(fd.as_fd(), 0, len, Access::ReadWrite).unwrap();
        let (sides, pool) = (map(&fds[0], sides_bytes), map(&fds[1], pool_bytes as usize));
        let member = Member { client, endpoint, memory, sides, pool };
        assert_eq!(member.client.ask(Request::Ready).0, Reply::Done);
        assert!(Mapping::shared(fds[0].as_fd(), 0, sides_bytes, Access::ReadWrite).is_err(), "sealed");
        member
    }

    pub fn introduce(&self, to: Endpoint) -> (Introduction, Vec<OwnedFd>) {
        match self.client.ask(Request::Introduce { to }) {
            (Reply::Introduced(introduction), fds) => (introduction, fds),
            (other, _) => panic!("not introduced: {other:?}"),
        }
    }

    pub fn pull(&self) -> (Reply, Vec<OwnedFd>) {
        self.client.ask(Request::Pull)
    }

    /// Writes a word into one of its own sides.
    pub fn write(&self, side: u32, at: usize, value: u64) {
        self.sides.write_from(side as usize * side::BYTES + at * 8, &value.to_le_bytes()).unwrap();
    }
}

/// What stands in the peer's side that one was introduced to.
pub fn read_peer(introduction: &Introduction, fds: &[OwnedFd], at: usize) -> u64 {
    let offset = introduction.side as usize * side::BYTES;
    let map = Mapping::shared(fds[0].as_fd(), 0, offset + side::BYTES, Access::ReadOnly).unwrap();
    word(&map, offset / 8 + at)
}

pub fn name_of(name: &str) -> Name {
    if name.is_empty() { Name::NONE } else { Name::new(name).unwrap() }
}

/// Waits until something is so.
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
