//! A cluster of real daemons, started by `dvs up`: looked at, its proxies signalled, programs started in it.
//!
//! Key types: [`Plan`], [`Cluster`]. Dropped, it is stopped by `dvs down`, and must leave nothing.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use abi::Slot;
use node::core::{EndpointView, NodeView, ProxyView, Status};
use rustix::process::Signal;
use serde_json::Value;

use super::ground::{Company, Ground, Said, addresses};
use super::program::Program;
use super::system::{LONG, eventually};

pub const DC: &str = "dc";
pub const SLOTS_PER_NODE: u16 = 64;

/// What kind of cluster.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub nodes: u16,
    pub node_dead_after_ms: u64,
    pub link_down_after_ms: u64,
    pub company: Company,
    /// More lines for the DC.
    pub rules: &'static str,
}

impl Plan {
    pub const fn nodes(nodes: u16) -> Plan {
        Plan {
            nodes,
            node_dead_after_ms: 15_000,
            link_down_after_ms: 500,
            company: Company::Others,
            rules: "",
        }
    }

    pub const fn alone(self) -> Plan {
        Plan { company: Company::Alone, ..self }
    }

    pub const fn dead_after_ms(self, node_dead_after_ms: u64) -> Plan {
        Plan { node_dead_after_ms, ..self }
    }

    pub const fn rules(self, rules: &'static str) -> Plan {
        Plan { rules, ..self }
    }

    /// The cluster file for nodes at these addresses.
    pub fn text(&self, addresses: &[SocketAddr]) -> String {
        let mut text = format!(
            "name = \"test\"\nkey_file = \"cluster.key\"\nnode_dead_after_ms = {}\nlink_down_after_ms = {}\n",
            self.node_dead_after_ms, self.link_down_after_ms
        );
        for (id, address) in (1..).zip(addresses) {
            write!(text, "[[node]]\nid = {id}\nname = \"n{id}\"\naddress = \"{address}\"\n")
                .expect("a string");
        }
        text + &format!("[[dc]]\nid = 1\nname = \"{DC}\"\nslots_per_node = {SLOTS_PER_NODE}\n{}", self.rules)
    }
}

/// Nodes that run.
pub struct Cluster {
    /// By node, from 1: each has its own idea of the cluster.
    files: Vec<PathBuf>,
    /// What stands before the command that starts a node.
    enter: fn(u16) -> Vec<String>,
    is_up: bool,
    pub ground: Ground,
}

impl Cluster {
    /// Starts all nodes; `None`, which has been said, when there is no `dvs`.
    pub fn up(plan: Plan) -> Option<Cluster> {
        let ground = Ground::take(plan.company)?;
        Some(Cluster::up_on(ground, plan))
    }

    pub fn up_on(ground: Ground, plan: Plan) -> Cluster {
        let file = ground.write("cluster.toml", &plan.text(&addresses(plan.nodes)));
        ground.dvs(["--json".as_ref(), "up".as_ref(), file.as_os_str()]).json();
        Cluster { files: vec![file; usize::from(plan.nodes)], enter: |_| Vec::new(), is_up: true, ground }
    }

    /// Starts each node by a cluster file of its own.
    pub fn up_each(ground: Ground, files: Vec<PathBuf>) -> Cluster {
        let cluster = Cluster { files, enter: |_| Vec::new(), is_up: true, ground };
        for node in 1..=cluster.nodes() {
            cluster.up_again(node);
        }
        cluster
    }

    /// Starts each node on a host of its own. `around`: what the environment of a node has besides.
    pub fn up_on_hosts(
        ground: Ground,
        plan: Plan,
        hosts: &[SocketAddr],
        enter: fn(u16) -> Vec<String>,
        around: impl Fn(u16) -> Vec<(String, OsString)>,
    ) -> Cluster {
        let file = ground.write("cluster.toml", &plan.text(hosts));
        let cluster = Cluster { files: vec![file; usize::from(plan.nodes)], enter, is_up: true, ground };
        for node in 1..=cluster.nodes() {
            cluster.up_with(node, around(node));
        }
        cluster
    }

    pub fn up_again(&self, node: u16) {
        self.up_with(node, Vec::new());
    }

    fn up_with(&self, node: u16, around: Vec<(String, OsString)>) {
        let mut command = self.ground.command_after(&(self.enter)(node));
        command.args(["--json", "up"]).arg(self.file(node)).args(["--node", &node.to_string()]).envs(around);
        self.ground.run(command).json();
    }

    pub fn nodes(&self) -> u16 {
        self.files.len() as u16
    }

    pub fn file(&self, node: u16) -> &Path {
        &self.files[usize::from(node) - 1]
    }

    /// The first slot of a node, and those after it.
    pub fn slot(&self, node: u16, number: u16) -> Slot {
        assert!(number < SLOTS_PER_NODE);
        Slot((node - 1) * SLOTS_PER_NODE + number)
    }

    pub fn member_socket(&self, node: u16) -> PathBuf {
        self.ground.runtime_dir().join(format!("n{node}/member.sock"))
    }

    pub fn admin_socket(&self, node: u16) -> PathBuf {
        self.ground.runtime_dir().join(format!("n{node}/admin.sock"))
    }

    /// Asks a node with a `dvs` command.
    pub fn ask(&self, node: u16, command: &[&str]) -> Said {
        let mut words: Vec<&OsStr> = vec!["--json".as_ref()];
        words.extend(command.iter().map(OsStr::new));
        let node_text = node.to_string();
        words.extend([
            "--cluster".as_ref(),
            self.file(node).as_os_str(),
            "--node".as_ref(),
            node_text.as_ref(),
        ]);
        self.ground.dvs(words)
    }

    pub fn status(&self, node: u16) -> Status {
        let said = self.ask(node, &["status"]).json();
        serde_json::from_value(said["nodes"][0].clone()).expect("a status")
    }

    pub fn endpoints(&self, node: u16) -> Vec<EndpointView> {
        let said = self.ask(node, &["ps"]).json();
        serde_json::from_value(said["endpoints"].clone()).expect("endpoints")
    }

    /// Waits until no endpoint is left on any node, alive or dead.
    #[track_caller]
    pub fn everybody_is_forgotten(&self, within: Duration) {
        let end = Instant::now() + within;
        for node in 1..=self.nodes() {
            loop {
                let left = self.endpoints(node);
                if left.is_empty() {
                    break;
                }
                assert!(
                    Instant::now() < end,
                    "not within {} s: node {node} forgets {left:#?}",
                    within.as_secs()
                );
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    pub fn proxies(&self, node: u16) -> Vec<ProxyView> {
        let said: Value = self.ask(node, &["proxy", "ls"]).json();
        serde_json::from_value(said["nodes"][0]["proxies"].clone()).expect("proxies")
    }

    /// The other node, as a node of two sees it.
    pub fn other(&self, node: u16) -> NodeView {
        self.status(node).nodes.into_iter().next().expect("there is another node")
    }

    /// The proxy of a node that is at work.
    pub fn proxy(&self, node: u16) -> Option<u32> {
        self.proxies(node).into_iter().find(|p| p.state == "up")?.pid
    }

    /// Waits until all proxies are at work and all links are up; gives their processes, by node.
    pub fn proxies_up(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        eventually("proxies and links are up", LONG, || {
            let nodes = 1..=self.nodes();
            let linked =
                nodes.clone().all(|node| self.status(node).nodes.iter().all(|other| other.link == "up"));
            pids = nodes.filter_map(|node| self.proxy(node)).collect();
            linked && pids.len() == usize::from(self.nodes())
        });
        pids
    }

    /// A daemon's process, as its own lock file says.
    pub fn daemon(&self, node: u16) -> u32 {
        let path = self.ground.runtime_dir().join(format!("n{node}/daemon.pid"));
        let text = std::fs::read_to_string(path).expect("the daemon's file");
        text.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a process number")
    }

    /// The process that keeps a node, as its lock file says.
    pub fn keeper(&self, node: u16) -> u32 {
        let path = self.ground.runtime_dir().join(format!("n{node}/daemon.pid"));
        let text = std::fs::read_to_string(path).expect("the daemon's file");
        text.split_whitespace().nth(3).and_then(|word| word.parse().ok()).expect("a process number")
    }

    pub fn signal(&self, pid: u32, what: Signal) {
        self.ground.signal(pid, what);
    }

    /// Starts a program that binds itself in a slot of a node.
    pub fn start(&self, node: u16, number: u16, role: &str) -> Program {
        Program::start(&self.ground, &self.member_socket(node), Some(self.slot(node, number)), role)
    }

    /// Starts a program that binds itself wherever there is room.
    pub fn start_anywhere(&self, node: u16, role: &str) -> Program {
        Program::start(&self.ground, &self.member_socket(node), None, role)
    }

    /// Stops all nodes, each as its own file says. Nothing may be left.
    pub fn down(&mut self) {
        self.is_up = false;
        let own_files = self.files.windows(2).any(|two| two[0] != two[1]);
        for node in 1..=if own_files { self.nodes() } else { 1 } {
            let id = node.to_string();
            let mut words = vec!["--json".as_ref(), "down".as_ref(), self.file(node).as_os_str()];
            if own_files {
                words.extend(["--node".as_ref(), OsStr::new(&id)]);
            }
            let said = self.ground.dvs(words);
            said.json();
            assert!(!said.out.contains("killed"), "a daemon did not stop by itself: {said:#?}");
        }
        self.ground.is_clean();
    }

    /// What daemons and proxies have logged, for a failure's report.
    fn logs(&self) -> String {
        let mut text = String::new();
        for node in 1..=self.nodes() {
            for name in ["daemon.log", "proxy-1.log"] {
                let path = self.ground.runtime_dir().join(format!("n{node}/{name}"));
                let log = std::fs::read_to_string(&path).unwrap_or_default();
                let from = log.lines().count().saturating_sub(12);
                let tail: Vec<&str> = log.lines().skip(from).collect();
                write!(text, "-- n{node}/{name}\n{}\n", tail.join("\n")).expect("a string");
            }
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.logs());
        } else if self.is_up {
            self.down();
        }
    }
}

/// How long a cut or a restart may go unnoticed.
pub const SOON: Duration = Duration::from_secs(8);
