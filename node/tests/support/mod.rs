//! Worlds to test in: one node, two nodes over the loopback fabric, two nodes over TCP. Daemons and proxies run as
//! threads of the test; what kills real processes is in `process.rs`.

use std::io;
use std::net::{Shutdown, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use abi::{Endpoint, NodeId, Slot};
use dvk::{BindOptions, Binding, Timeout, Wait};
use fabric::Fabric;
use fabric::driver::{Credentials, Driver};
use fabric::loopback::{Loopback, Mode};
use node::admin;
use node::core::EndpointView;
use node::daemon::start::ProxyHandle;
use node::{Daemon, RunOptions, StartProxy, Started};
use proxy_tcp::{ClusterKey, ProxyOptions, TcpConfig, TcpFabric};
use shm::os::events::EventFd;

/// How far apart the two places of a world are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Apart {
    OneNode,
    Loopback,
    OneSided,
    Tcp,
    /// Over TCP, with both ends packing.
    #[allow(dead_code, reason = "a world of builds with the feature")]
    TcpLz4,
}

/// Where to bind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Here,
    There,
    /// On a third node, of a world that has one.
    Beyond,
}

pub struct World {
    pub apart: Apart,
    daemons: Vec<Option<Daemon>>,
    sockets: Vec<PathBuf>,
    wire: Option<fabric::loopback::Wire>,
    _dir: tempfile::TempDir,
}

/// No wait of a test is longer than this: what takes longer hangs.
pub const LONG: Duration = Duration::from_secs(20);
/// For what must not happen.
pub const SHORT: Duration = Duration::from_millis(60);

pub const SLOTS_PER_NODE: u16 = 64;

impl World {
    pub fn new(apart: Apart) -> World {
        World::of(apart, if apart == Apart::OneNode { 1 } else { 2 })
    }

    /// A world of so many nodes.
    pub fn of(apart: Apart, count: u16) -> World {
        World::made(apart, count, |_| String::new())
    }

    /// `rules`: more lines for the DC, given where slots are.
    pub fn with_rules(apart: Apart, rules: impl FnOnce(&dyn Fn(Place, u16) -> Slot) -> String) -> World {
        World::made(apart, if apart == Apart::OneNode { 1 } else { 2 }, rules)
    }

    fn made(apart: Apart, count: u16, rules: impl FnOnce(&dyn Fn(Place, u16) -> Slot) -> String) -> World {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("cluster.toml");
        let key = dir.path().join("cluster.key");
        ClusterKey::create(&key).expect("a key");
        let mut text = String::from(
            "name = \"test\"\nkey_file = \"cluster.key\"\nnode_dead_after_ms = 1000\nlink_down_after_ms = 500\n",
        );
        let ids: Vec<u16> = (1..=count).collect();
        // Held until all are found, so that no two are the same.
        let held: Vec<TcpListener> =
            ids.iter().map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        for (id, listener) in ids.iter().zip(&held) {
            let address = listener.local_addr().expect("its address");
            text += &format!("[[node]]\nid = {id}\nname = \"n{id}\"\naddress = \"{address}\"\n");
        }
        text +=
            &format!("[[dc]]\nid = 1\nname = \"dc\"\nnodes = {ids:?}\nslots_per_node = {SLOTS_PER_NODE}\n");
        text += &rules(&|place, number| slot_of(apart, place, number));
        if apart == Apart::TcpLz4 {
            text += "[[proxy]]\nname = \"tcp\"\nkind = \"tcp\"\ncompression = \"lz4\"\n";
        }
        drop(held);
        std::fs::write(&file, text).expect("the cluster file");
        let nodes: Vec<NodeId> = ids.iter().map(|id| NodeId(*id)).collect();
        let mode = if apart == Apart::OneSided { Mode::OneSided } else { Mode::Eager };
        let mut ends: Vec<Option<Loopback>> = match apart {
            Apart::Loopback | Apart::OneSided => {
                Loopback::network(&nodes, mode).into_iter().map(Some).collect()
            }
            Apart::OneNode | Apart::Tcp | Apart::TcpLz4 => nodes.iter().map(|_| None).collect(),
        };
        let wire = ends[0].as_ref().map(Loopback::wire);
        let daemons: Vec<Option<Daemon>> = ids
            .iter()
            .zip(&mut ends)
            .map(|(id, end)| {
                let starter = Box::new(ThreadStarter {
                    loopback: end.take(),
                    tcp: matches!(apart, Apart::Tcp | Apart::TcpLz4),
                });
                let runtime_dir = Some(dir.path().join("run"));
                let options = RunOptions {
                    cluster_file: file.clone(),
                    node: id.to_string(),
                    runtime_dir,
                    starter,
                    keeper: None,
                };
                Some(Daemon::in_thread(options).expect("a daemon"))
            })
            .collect();
        let sockets = daemons.iter().flatten().map(Daemon::member_socket).collect();
        World { apart, daemons, sockets, wire, _dir: dir }
    }

    fn index(&self, place: Place) -> usize {
        index_of(self.apart, place)
    }

    pub fn is_remote(&self) -> bool {
        self.apart != Apart::OneNode
    }

    /// A slot of the place's own range, the same one for the same number.
    pub fn slot(&self, place: Place, number: u16) -> Slot {
        slot_of(self.apart, place, number)
    }

    /// Where the place's daemon listens.
    pub fn socket(&self, place: Place) -> PathBuf {
        self.sockets[self.index(place)].clone()
    }

    /// What the place's daemon says of its endpoints.
    pub fn endpoints(&self, place: Place) -> Vec<EndpointView> {
        #[derive(serde::Deserialize)]
        struct Answer {
            endpoints: Vec<EndpointView>,
        }
        let daemon = self.daemons[self.index(place)].as_ref().expect("it runs");
        let answer = admin::call_as::<Answer>(&daemon.admin_socket(), &admin::Request::Ps, LONG);
        answer.expect("the daemon answers").endpoints
    }

    pub fn options(&self, place: Place) -> BindOptions {
        BindOptions::new(self.socket(place), "dc").wait(Wait::Adaptive(Duration::from_micros(5)))
    }

    pub fn bind(&self, place: Place, number: u16) -> Binding {
        Binding::bind(&self.options(place).slot(self.slot(place, number))).expect("a binding")
    }

    /// Binds there in a thread of its own and runs `life`; returns when it is bound and seen from here.
    pub fn spawn<T: Send + 'static>(
        &self,
        place: Place,
        number: u16,
        life: impl FnOnce(Binding) -> T + Send + 'static,
    ) -> Life<T> {
        self.spawn_as(self.options(place).slot(self.slot(place, number)), life)
    }

    /// As [`World::spawn`], bound as these options say.
    pub fn spawn_as<T: Send + 'static>(
        &self,
        options: BindOptions,
        life: impl FnOnce(Binding) -> T + Send + 'static,
    ) -> Life<T> {
        let (told, bound) = mpsc::channel();
        let (over, ended) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let me = Binding::bind(&options).expect("a binding");
            told.send(me.whoami()).expect("the test listens");
            let result = life(me);
            let _ = over.send(());
            result
        });
        let endpoint = bound.recv_timeout(LONG).expect("bound in time");
        Life { endpoint, thread, ended }
    }

    /// Waits until an endpoint is seen by a binding.
    pub fn meet(&self, me: &mut Binding, other: Endpoint) {
        let seen = me.wait_bind(other.slot, Timeout::After(LONG)).expect("seen in time");
        assert_eq!(seen, other);
    }

    /// The link is lost and comes back. For worlds over the loopback fabric.
    pub fn flap(&self) {
        self.wire.as_ref().expect("a wire that can be cut").flap(NodeId(1), NodeId(2));
    }

    /// The only node's daemon ends, and with it every connection to it.
    #[allow(dead_code, reason = "one suite's")]
    pub fn lose_the_daemon(&mut self) {
        drop(self.daemons[0].take());
    }

    /// The other node is no longer reached by anything.
    pub fn lose_the_other_node(&mut self) {
        match &self.wire {
            Some(wire) => wire.cut(NodeId(1), NodeId(2)),
            None => drop(self.daemons[1].take()),
        }
    }
}

fn index_of(apart: Apart, place: Place) -> usize {
    match (place, apart) {
        (Place::Here, _) | (_, Apart::OneNode) => 0,
        (Place::There, _) => 1,
        (Place::Beyond, _) => 2,
    }
}

fn slot_of(apart: Apart, place: Place, number: u16) -> Slot {
    let base = if place == Place::There { 32 } else { 0 };
    Slot(index_of(apart, place) as u16 * SLOTS_PER_NODE + base + number)
}

/// Somebody bound in a thread of its own.
pub struct Life<T> {
    pub endpoint: Endpoint,
    thread: JoinHandle<T>,
    ended: mpsc::Receiver<()>,
}

impl<T> Life<T> {
    /// Waits for its end, but not for ever.
    pub fn join(self) -> T {
        let ended = self.ended.recv_timeout(LONG);
        assert_ne!(ended, Err(mpsc::RecvTimeoutError::Timeout), "the other end hangs");
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Tries again until it works or takes too long.
pub fn eventually(what: &str, mut works: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !works() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs proxies as threads.
struct ThreadStarter {
    loopback: Option<Loopback>,
    tcp: bool,
}

impl StartProxy for ThreadStarter {
    fn start(&mut self, options: &ProxyOptions, link: OwnedFd) -> io::Result<Started> {
        let exit = Arc::new(EventFd::new()?);
        let fired = exit.as_fd().try_clone_to_owned()?;
        let cut = Cut(UnixStream::from(link.try_clone()?));
        let options = options.clone();
        let began = Instant::now();
        let loopback = self.loopback.take();
        let tcp = self.tcp;
        // It ends with its link; nobody waits for the thread itself, only for its exit event.
        std::thread::spawn(move || {
            let fabric: Box<dyn Fabric> = match loopback {
                Some(end) => Box::new(end),
                None if tcp => {
                    let key =
                        options.key_file.as_deref().map(|path| ClusterKey::load(path).expect("the key"));
                    let config = TcpConfig {
                        peers: options.peers.clone(),
                        key,
                        packing: options.compression,
                        ..TcpConfig::new(options.node, options.incarnation, options.listen)
                    };
                    Box::new(TcpFabric::new(config, began.elapsed()).expect("a fabric"))
                }
                None => {
                    exit.ring().expect("the daemon is told");
                    return;
                }
            };
            let peers: Vec<NodeId> = options.peers.iter().map(|(node, _)| *node).collect();
            let credentials = Credentials { token: options.token };
            let driver = Driver::new(link, credentials, fabric, &peers, began).expect("a driver");
            // The daemon's end of the link closes when it stops, and that ends the loop.
            let _ = driver.run();
            exit.ring().expect("the daemon is told");
        });
        Ok(Started { pid: std::process::id(), exit: fired, handle: Box::new(cut) })
    }
}

/// A thread is killed by its link: what it waits for ends at once, also while it starts.
struct Cut(UnixStream);

impl ProxyHandle for Cut {
    fn kill(&mut self) {
        // Closed already: it has ended.
        let _ = self.0.shutdown(Shutdown::Both);
    }

    fn reap(&mut self) {}
}
