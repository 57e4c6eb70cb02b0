//! A proxy that is the test itself: it speaks the courier protocol on its link, and dies when it is killed.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use abi::courier::{Attach, FromProxy, LinkState, ToProxy, Totals};
use abi::member::{SegmentKind, VERSION, WORDS};
use abi::{DcId, Incarnation, NodeId, side};
use node::core::Chunk;
use node::daemon::start::ProxyHandle;
use node::{StartProxy, Started};
use proxy_tcp::options::ProxyOptions;
use shm::map::{Access, Mapping};
use shm::os::events::EventFd;
use shm::os::fdpass::{self, PassError};

use crate::client::{PATIENCE, to_bytes, to_words};

/// Two nodes of eight slots each.
pub const TWO: &str = r#"
name = "lab"
node_dead_after_ms = 300
[[node]]
id = 1
name = "n1"
address = "127.0.0.2:7701"
[[node]]
id = 2
name = "n2"
address = "127.0.0.3:7701"
[[dc]]
id = 1
name = "main"
slots_per_node = 8
"#;

/// The other node.
pub const FAR: NodeId = NodeId(2);

pub struct FakeStarter(Sender<FakeProxy>);

/// What starts fakes, and where they come out.
pub fn fakes() -> (Box<FakeStarter>, Receiver<FakeProxy>) {
    let (sender, receiver) = channel();
    (Box::new(FakeStarter(sender)), receiver)
}

pub struct FakeProxy {
    link: OwnedFd,
    pub options: ProxyOptions,
    exit: Arc<EventFd>,
    killed: Arc<Mutex<bool>>,
    /// Answers pings by itself.
    pub lively: bool,
    /// Its sides in the DC.
    pub sides: Option<Arc<Mapping>>,
    pub memory: u32,
}

struct FakeHandle {
    exit: Arc<EventFd>,
    killed: Arc<Mutex<bool>>,
}

impl ProxyHandle for FakeHandle {
    fn kill(&mut self) {
        *self.killed.lock().unwrap() = true;
        self.exit.ring().unwrap();
    }

    fn reap(&mut self) {}
}

impl StartProxy for FakeStarter {
    fn start(&mut self, options: &ProxyOptions, link: OwnedFd) -> std::io::Result<Started> {
        let exit = Arc::new(EventFd::new()?);
        let killed = Arc::new(Mutex::new(false));
        let handle = FakeHandle { exit: Arc::clone(&exit), killed: Arc::clone(&killed) };
        let started =
            Started { pid: 4711, exit: exit.as_fd().try_clone_to_owned()?, handle: Box::new(handle) };
        let options = options.clone();
        let proxy = FakeProxy { link, options, exit, killed, lively: true, sides: None, memory: 0 };
        self.0.send(proxy).map_err(|_| std::io::Error::other("the test is over"))?;
        Ok(started)
    }
}

impl FakeProxy {
    /// The next proxy that the daemon starts.
    pub fn next(from: &Receiver<FakeProxy>) -> FakeProxy {
        from.recv_timeout(PATIENCE).expect("a proxy is started")
    }

    /// The next one, greeted and with its memory mapped.
    pub fn up(from: &Receiver<FakeProxy>) -> FakeProxy {
        let mut proxy = FakeProxy::next(from);
        proxy.say(FromProxy::Hello { version: VERSION, token: proxy.options.token });
        proxy.take_memory();
        proxy
    }

    pub fn say(&self, message: FromProxy) {
        self.say_bytes(&to_bytes(&message.to_words()));
    }

    pub fn say_bytes(&self, bytes: &[u8]) {
        fdpass::send_with_fds(&self.link, bytes, &[]).unwrap();
    }

    pub fn link(&self, incarnation: u32, state: LinkState) {
        self.say(FromProxy::Link { node: FAR, incarnation: Incarnation(incarnation), state });
    }

    pub fn directory(&self, incarnation: u32, chunk: &Chunk) {
        let message = FromProxy::Directory { node: FAR, incarnation: Incarnation(incarnation) };
        let mut bytes = to_bytes(&message.to_words());
        bytes.extend(chunk.to_bytes());
        self.say_bytes(&bytes);
    }

    /// The next message that is no ping, with its tail and descriptors.
    pub fn hear(&self) -> (ToProxy, Vec<u8>, Vec<OwnedFd>) {
        self.try_hear().expect("a message")
    }

    fn try_hear(&self) -> Result<(ToProxy, Vec<u8>, Vec<OwnedFd>), PassError> {
        let mut bytes = vec![0; WORDS * 8 + abi::courier::TAIL_BYTES_MAX];
        let begun = std::time::Instant::now();
        loop {
            // Pings come for ever.
            assert!(begun.elapsed() < PATIENCE, "nothing but pings for {PATIENCE:?}");
            let (len, fds) = fdpass::recv_with_fds_within(&self.link, &mut bytes, PATIENCE)?;
            if len == 0 {
                return Err(PassError::Closed);
            }
            let message = ToProxy::from_words(&to_words(&bytes[..WORDS * 8])).expect("a message");
            match message {
                ToProxy::Ping { number } if self.lively => {
                    self.say(FromProxy::Pong { number, totals: Totals { pairs: 3, ..Totals::default() } });
                }
                ToProxy::Ping { .. } | ToProxy::Sealed { .. } => {}
                message => return Ok((message, bytes[WORDS * 8..len].to_vec(), fds)),
            }
        }
    }

    /// The next message of a kind, others passed over.
    pub fn hear_until<T>(&self, mut wanted: impl FnMut(&ToProxy) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(&self.hear().0) {
                return found;
            }
        }
    }

    pub fn hear_attach(&self) -> (Attach, Vec<OwnedFd>) {
        loop {
            if let (ToProxy::Attach { attach }, _, fds) = self.hear() {
                return (attach, fds);
            }
        }
    }

    pub fn hear_directory(&self) -> Chunk {
        loop {
            if let (ToProxy::Directory { node: FAR }, tail, _) = self.hear() {
                return Chunk::from_bytes(&tail).expect("a chunk");
            }
        }
    }

    /// Takes the DC and its two first segments, and says that they are mapped.
    fn take_memory(&mut self) {
        let mut given = 0;
        while given < 2 {
            match self.hear() {
                (ToProxy::Dc { dc: DcId(1), memory, .. }, _, fds) => {
                    assert_eq!(fds.len(), 3);
                    self.memory = memory;
                }
                (ToProxy::Segment { memory, index, kind, len_bytes }, _, fds) => {
                    let map =
                        Mapping::shared(fds[0].as_fd(), 0, len_bytes as usize, Access::ReadWrite).unwrap();
                    if kind == SegmentKind::Sides {
                        self.sides = Some(map);
                    }
                    self.say(FromProxy::Mapped { memory, index });
                    given += 1;
                }
                (ToProxy::NodeDead { .. }, ..) => {}
                other => panic!("unexpected: {other:?}"),
            }
        }
    }

    /// Writes into its side for a remote endpoint.
    pub fn write(&self, side: u32, at: usize, value: u64) {
        let offset = side as usize * side::BYTES + at * 8;
        self.sides.as_ref().unwrap().write_from(offset, &value.to_le_bytes()).unwrap();
    }

    pub fn is_killed(&self) -> bool {
        *self.killed.lock().unwrap()
    }

    /// Dies as a process would: its link closes, its exit fires.
    pub fn die(self) {
        let exit = Arc::clone(&self.exit);
        drop(self);
        exit.ring().unwrap();
    }
}
