//! Three hosts of a cell's own: a network namespace each, virtual cables to a bridge, and packet filters that lose what
//! they are told to. Made in namespaces that end with the cell's processes.
//!
//! Key type: [`Hosts`]. Needs unshare(1), ip(8), nft(8), and either root or user namespaces.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};

pub const NODES: u16 = 3;
const PORT: u16 = 7700;
const TABLE: &str = "inet faults";

/// What a cell's command line begins with, inside namespaces of its own.
pub fn unshare() -> Command {
    let mut command = Command::new("unshare");
    if rustix::process::getuid().is_root() {
        command.args(["--net", "--mount"]);
    } else {
        command.args(["--user", "--map-root-user", "--net", "--mount"]);
    }
    command
}

/// Why there can be no hosts here: found by trying.
pub fn missing() -> Option<String> {
    for (tool, package) in [("unshare", "util-linux"), ("ip", "iproute2"), ("nft", "nftables")] {
        let there = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if there.is_err() {
            return Some(format!("needs `{tool}` (apt-get install {package})"));
        }
    }
    let mut command = unshare();
    command.args(["sh", "-c", "nft add table inet t && ip link add left type veth peer name right"]);
    let tried = command.stdin(Stdio::null()).output();
    match tried {
        Ok(tried) if tried.status.success() => None,
        Ok(tried) => Some(format!("no namespaces: {}", String::from_utf8_lossy(&tried.stderr).trim())),
        Err(why) => Some(format!("unshare: {why}")),
    }
}

pub fn address(node: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, 91, 0, node as u8)
}

/// The hosts, by their namespaces' names.
pub struct Hosts;

impl Hosts {
    /// Makes them; in namespaces of our own already.
    pub fn make() -> Hosts {
        // A /run of our own, so that the names of our namespaces are ours alone.
        run("mount", "-t tmpfs tmpfs /run");
        run("ip", "link set lo up");
        run("ip", "link add street type bridge");
        run("ip", "link set street up");
        for node in 1..=NODES {
            let (name, address) = (format!("n{node}"), address(node));
            run("ip", &format!("netns add {name}"));
            run("ip", &format!("link add to-{name} type veth peer name eth0 netns {name}"));
            run("ip", &format!("link set to-{name} master street up"));
            run("ip", &format!("-n {name} addr add {address}/24 dev eth0"));
            run("ip", &format!("-n {name} link set lo up"));
            run("ip", &format!("-n {name} link set eth0 up"));
            let nft = |rest: &str| run("ip", &format!("netns exec {name} nft {rest}"));
            nft(&format!("add table {TABLE}"));
            nft(&format!("add chain {TABLE} in {{ type filter hook input priority 0; }}"));
        }
        Hosts
    }

    pub fn addresses() -> Vec<SocketAddr> {
        (1..=NODES).map(|node| SocketAddr::from((address(node), PORT))).collect()
    }

    /// What stands before a command that runs on a host.
    pub fn enter(node: u16) -> Vec<String> {
        ["ip", "netns", "exec", &format!("n{node}")].map(str::to_owned).to_vec()
    }

    /// From now on `node` loses `percent` of what `from` sends it.
    pub fn lose(&self, node: u16, from: u16, percent: u32) {
        let some = if percent < 100 { format!("numgen random mod 100 < {percent}") } else { String::new() };
        let from = address(from);
        run("ip", &format!("netns exec n{node} nft add rule {TABLE} in ip saddr {from} {some} drop"));
    }

    /// Nothing is lost any more.
    pub fn lose_nothing(&self) {
        for node in 1..=NODES {
            run("ip", &format!("netns exec n{node} nft flush chain {TABLE} in"));
        }
    }
}

#[track_caller]
fn run(program: &str, line: &str) {
    let mut command = Command::new(program);
    command.args(line.split_whitespace()).stdin(Stdio::null());
    let done = command.output().unwrap_or_else(|why| panic!("{program}: {why}"));
    assert!(done.status.success(), "{program} {line}: {}", String::from_utf8_lossy(&done.stderr).trim());
}
