//! What members, proxies and operators say to a daemon, in any order: its core answers, refuses, and can be written down.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use abi::courier::FromProxy;
use abi::member::{Reply, Request, VERSION, WORDS};
use abi::{DcId, Incarnation, Name, NodeId};
use arbitrary::{Arbitrary, Unstructured};
use node::Cluster;
use node::core::{Chunk, Core, Effect, Input, Process};

/// What a daemon hears next.
#[derive(Arbitrary, Debug)]
enum Said {
    Connects(u8),
    Hello(u8),
    Binds {
        conn: u8,
        slot: Option<u8>,
        private: bool,
    },
    Ready(u8),
    /// A request by its words: a kind that there is, and small numbers or anything.
    Asks {
        conn: u8,
        kind: u8,
        words: Vec<(u8, u64)>,
    },
    Introduces {
        conn: u8,
        slot: u8,
        generation: u8,
    },
    Leaves(u8),
    /// A proxy's word, the same way.
    Proxy {
        kind: u8,
        words: Vec<(u8, u64)>,
        tail: Vec<u8>,
    },
    /// Another daemon's directory.
    Directory {
        kind: u8,
        entries: Vec<(u8, u8, bool)>,
    },
    Exits,
    Later(u16),
}

const FILE: &str = r#"
name = "lab"
[[node]]
id = 1
name = "n1"
address = "127.0.0.2:7701"
[[node]]
id = 2
name = "n2"
address = "127.0.0.2:7702"
[[dc]]
id = 1
name = "main"
slots_per_node = 8
"#;
const SAID_MAX: usize = 100;
const STEPS_MAX: usize = 20_000;
const TOKEN: [u64; 2] = [7, 8];

fn words(kind: u64, set: &[(u8, u64)]) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    for (at, word) in set {
        words[*at as usize % WORDS] = *word;
    }
    words[0] = kind;
    words
}

struct Node {
    core: Core,
    now: Duration,
    asked: u64,
    answered: u64,
    steps: usize,
}

impl Node {
    /// Steps, and does what the core wants done, at once.
    fn step(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return;
            }
            let mut effects = Vec::new();
            self.core.step(self.now, input, &mut effects);
            for effect in effects {
                inputs.extend(self.obey(effect));
            }
        }
    }

    fn obey(&mut self, effect: Effect) -> Option<Input> {
        Some(match effect {
            Effect::Reply { reply, .. } => {
                self.answered += 1;
                assert_eq!(Reply::from_words(&reply.to_words()), Some(reply), "an answer that can be read");
                return None;
            }
            Effect::OpenProcess { ticket, .. } => Input::ProcessOpened { ticket, process: None },
            Effect::MakeSegment { memory, segment, .. } => Input::SegmentMade { memory, segment, made: true },
            Effect::Seal { memory, .. } => Input::Sealed { memory, sealed: true },
            Effect::MakeDc { dc, .. } => Input::DcMade { dc, made: true },
            Effect::StartProxy { proxy, .. } => Input::ProxyStarted { proxy, pid: 9, token: TOKEN },
            Effect::KillProxy { proxy } => Input::ProxyExited { proxy },
            _ => return None,
        })
    }

    fn ask(&mut self, conn: u8, request: Option<Request>) {
        if let Some(request) = request {
            assert_eq!(Request::from_words(&request.to_words()), Some(request), "a request that can be read");
        }
        self.asked += 1;
        let number = self.asked;
        self.step(Input::Asked { conn: u64::from(conn % 4) + 1, number, request, fresh: [1, 2] });
    }

    fn proxy(&mut self, message: Option<FromProxy>, tail: Vec<u8>) {
        self.step(Input::ProxySaid { proxy: 1, message, tail });
    }
}

/// A line at the admin socket.
fn line(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<node::admin::Request>(data) {
        let again = serde_json::to_vec(&request).expect("a request that can be said");
        assert_eq!(serde_json::from_slice::<node::admin::Request>(&again).ok(), Some(request));
    }
}

pub fn run(data: &[u8]) {
    line(data);
    let Ok(said) = Vec::<Said>::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let cluster = Cluster::parse(FILE, Path::new("cluster.toml")).expect("a file that is right");
    let plan = cluster.plan(&cluster.nodes[0], Incarnation(3), 100, 5);
    let core = Core::new(Duration::ZERO, plan);
    let mut node = Node { core, now: Duration::ZERO, asked: 0, answered: 0, steps: 0 };
    node.step(Input::Tick);
    node.proxy(Some(FromProxy::Hello { version: VERSION, token: TOKEN }), Vec::new());
    for said in said.into_iter().take(SAID_MAX) {
        hear(&mut node, said);
    }
    assert!(node.answered <= node.asked, "no answer that nobody asked for");
    let bytes = node.core.to_bytes();
    let again = Core::from_bytes(&bytes).expect("what was written down can be read");
    assert_eq!(again.to_bytes(), bytes, "and is the same");
}

fn hear(node: &mut Node, said: Said) {
    match said {
        Said::Connects(conn) => {
            let process = Process { pid: 1, uid: 5, start_time: 1 };
            node.step(Input::Connected { conn: u64::from(conn % 4) + 1, process });
        }
        Said::Hello(conn) => {
            let dc = Name::new("main").expect("a name");
            node.ask(conn, Some(Request::Hello { version: VERSION, dc }));
        }
        Said::Binds { conn, slot, private } => {
            let slot = slot.map(|slot| abi::Slot(u16::from(slot % 18)));
            node.ask(conn, Some(Request::Bind { slot, name: Name::NONE, private }));
        }
        Said::Ready(conn) => node.ask(conn, Some(Request::Ready)),
        Said::Asks { conn, kind, words: set } => {
            node.ask(conn, Request::from_words(&words(u64::from(kind % 26), &set)));
        }
        Said::Introduces { conn, slot, generation } => {
            let generation = abi::Generation(100 + u32::from(generation % 8));
            let to = abi::Endpoint::new(DcId(1), abi::Slot(u16::from(slot % 18)), generation);
            node.ask(conn, Some(Request::Introduce { to }));
        }
        Said::Leaves(conn) => node.step(Input::Disconnected { conn: u64::from(conn % 4) + 1 }),
        Said::Proxy { kind, words: set, tail } => {
            let message = FromProxy::from_words(&words(200 + u64::from(kind % 14), &set));
            if let Some(message) = message {
                assert_eq!(FromProxy::from_words(&message.to_words()), Some(message));
            }
            node.proxy(message, tail);
        }
        Said::Directory { kind, entries } => {
            let kinds = [
                node::core::ChunkKind::Begin,
                node::core::ChunkKind::Part,
                node::core::ChunkKind::End,
                node::core::ChunkKind::Delta,
            ];
            let entry = |(slot, generation, bound): &(u8, u8, bool)| node::core::DirectoryEntry {
                endpoint: abi::Endpoint::new(
                    DcId(1),
                    abi::Slot(u16::from(*slot) % 24),
                    abi::Generation(1 + u32::from(*generation)),
                ),
                bound: *bound,
                name: Name::NONE,
                uid: 5,
                private: false,
            };
            let entries = entries.iter().map(entry).collect();
            let chunk = Chunk { kind: kinds[kind as usize % 4], version: 1, entries };
            let bytes = chunk.to_bytes();
            assert_eq!(Chunk::from_bytes(&bytes), Some(chunk));
            let there = FromProxy::Directory { node: NodeId(2), incarnation: Incarnation(1) };
            node.proxy(Some(there), bytes);
        }
        Said::Exits => node.step(Input::ProxyExited { proxy: 1 }),
        Said::Later(ms) => {
            node.now += Duration::from_millis(ms.into());
            node.step(Input::Tick);
        }
    }
}
