//! Which cluster is meant, and what of it lives on this machine.
//!
//! Key type: [`Place`]: a checked cluster file and where its daemons keep their files. Neighbours:
//! `node::config`, `node::place`.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::Result;
use node::config::{Cluster, ClusterDc, ClusterNode, ConfigError};
use node::place::NodePlace;

use crate::cli::Where;
use crate::failure::{Exit, Failure, Spot, did_you_mean, failure};

/// Names the cluster file for every command that was not given one.
const ENV_CLUSTER: &str = "DVS_CLUSTER";
/// What a daemon's command line begins with: by it running clusters are found.
pub const DAEMON_COMMAND: &str = "node-daemon";

/// A cluster file, and where its nodes keep their sockets and logs.
#[derive(Clone, Debug)]
pub struct Place {
    pub cluster: Cluster,
    pub runtime_dir: Option<PathBuf>,
}

impl Place {
    pub fn load(file: &Path, runtime_dir: Option<&Path>) -> Result<Place> {
        let cluster = Cluster::load(file).map_err(|why| unusable(&why))?;
        Ok(Place { cluster, runtime_dir: runtime_dir.map(absolute) })
    }

    /// What `--cluster` names; else `$DVS_CLUSTER`, `./cluster.toml`, or the one cluster of this user that
    /// runs, in the runtime directory if one is given.
    pub fn find(place: &Where, runtime_dir: Option<&Path>) -> Result<Place> {
        if let Some(file) = named(place.cluster.as_deref()) {
            return Place::load(&file, runtime_dir);
        }
        if Path::new("cluster.toml").exists() {
            return Place::load(Path::new("cluster.toml"), runtime_dir);
        }
        let asked = runtime_dir.map(absolute);
        let is_asked = |found: &Running| asked.is_none() || found.runtime_dir == asked;
        let running: Vec<Running> = running().into_iter().filter(is_asked).collect();
        match running.as_slice() {
            [one] => Place::load(&one.file, one.runtime_dir.as_deref().or(runtime_dir)),
            [] => Err(failure(
                Exit::Config,
                match &asked {
                    Some(dir) => format!("no cluster is named, and none of yours runs in {}", dir.display()),
                    None => "no cluster is named, and none of yours runs on this machine".to_owned(),
                },
                "give --cluster FILE or set DVS_CLUSTER; `dvs up FILE` starts one, `dvs init` writes one",
            )),
            several => {
                let files: Vec<String> = several.iter().map(|r| r.file.display().to_string()).collect();
                let what = format!("{} clusters of yours run: {}", files.len(), files.join(", "));
                Err(failure(Exit::Config, what, "say which with --cluster FILE or DVS_CLUSTER"))
            }
        }
    }

    /// The node that was asked for by id or name.
    pub fn node(&self, asked: &str) -> Result<&ClusterNode> {
        self.cluster.node(asked).ok_or_else(|| {
            let known: Vec<String> =
                self.cluster.nodes.iter().map(|n| format!("{} ({})", n.id, n.name)).collect();
            let names: Vec<String> = self.cluster.nodes.iter().map(|n| n.name.as_str().to_owned()).collect();
            let near = did_you_mean(asked, &names);
            let hint = if near.starts_with("did you mean") {
                near
            } else {
                format!("use one of {}", known.join(", "))
            };
            let what = format!("cluster {} has no node {asked:?}", self.cluster.name);
            failure(Exit::Config, what, hint)
        })
    }

    pub fn dc(&self, asked: &str) -> Result<&ClusterDc> {
        self.cluster.dcs.iter().find(|dc| dc.name.as_str() == asked).ok_or_else(|| {
            let names: Vec<String> = self.cluster.dcs.iter().map(|dc| dc.name.as_str().to_owned()).collect();
            let what = format!("cluster {} has no DC {asked:?}", self.cluster.name);
            failure(Exit::Config, what, did_you_mean(asked, &names))
        })
    }

    /// The nodes that were asked for; by default those whose address belongs to this machine or that run
    /// here.
    pub fn nodes_here(&self, asked: &[String]) -> Result<Vec<&ClusterNode>> {
        if !asked.is_empty() {
            let mut nodes = Vec::new();
            for name in asked {
                let node = self.node(name)?;
                if !nodes.contains(&node) {
                    nodes.push(node);
                }
            }
            return Ok(nodes);
        }
        let here =
            |node: &&ClusterNode| is_local(node.address.ip()) || self.files(node).admin_socket().exists();
        let nodes: Vec<&ClusterNode> = self.cluster.nodes.iter().filter(here).collect();
        if nodes.is_empty() {
            let addresses: Vec<String> =
                self.cluster.nodes.iter().map(|n| format!("{} ({})", n.name, n.address)).collect();
            let what = format!(
                "no node of cluster {} lives on this machine: {}",
                self.cluster.name,
                addresses.join(", ")
            );
            return Err(failure(
                Exit::Config,
                what,
                "name one with --node, or correct the addresses in the file",
            ));
        }
        Ok(nodes)
    }

    /// The node that was asked for, or the only one here.
    pub fn one_node(&self, asked: Option<&str>) -> Result<&ClusterNode> {
        if let Some(asked) = asked {
            return self.node(asked);
        }
        let here = self.nodes_here(&[])?;
        match here.as_slice() {
            [one] => Ok(one),
            several => {
                let names: Vec<&str> = several.iter().map(|n| n.name.as_str()).collect();
                let what = format!("{} nodes of this cluster live here: {}", names.len(), names.join(", "));
                Err(failure(Exit::Config, what, "say which with --node"))
            }
        }
    }

    pub fn files(&self, node: &ClusterNode) -> NodePlace {
        NodePlace::of(&self.cluster, node, self.runtime_dir.as_deref())
    }

    /// The options that lead another `dvs` to this very cluster, for messages and for processes that are
    /// started.
    pub fn options(&self) -> Vec<std::ffi::OsString> {
        let mut options = vec!["--cluster".into(), self.cluster.file.clone().into_os_string()];
        if let Some(dir) = &self.runtime_dir {
            options.extend(["--runtime-dir".into(), dir.clone().into_os_string()]);
        }
        options
    }
}

/// What every command says about a cluster file that cannot be used.
pub fn unusable(why: &ConfigError) -> anyhow::Error {
    let next = match why.at {
        Some(_) => {
            "correct that line, then look again with `dvs check`; `dvs init example.toml` writes a file to compare with"
        }
        None => "give the path of a cluster file, or write one with `dvs init`",
    };
    let spot = Spot { file: why.file.clone(), at: why.at };
    Failure { spot: Some(spot), ..Failure::new(Exit::Config, why.to_string(), next) }.into()
}

/// The cluster file that is named: by `--cluster`, else by `$DVS_CLUSTER`.
pub fn named(option: Option<&Path>) -> Option<PathBuf> {
    let variable = || std::env::var_os(ENV_CLUSTER).filter(|v| !v.is_empty()).map(PathBuf::from);
    option.map(Path::to_path_buf).or_else(variable)
}

/// A cluster that has a daemon of this user's on this machine.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Running {
    file: PathBuf,
    runtime_dir: Option<PathBuf>,
}

/// Found by the command lines of this user's processes: nothing to keep in order, nothing to go stale.
fn running() -> BTreeSet<Running> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return BTreeSet::new() };
    let own = node::place::own_uid();
    let of = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        path.file_name()?.to_str()?.parse::<u32>().ok()?;
        let line = std::fs::read(path.join("cmdline")).ok()?;
        let running = running_by(&line)?;
        (uid_of(&path) == Some(own)).then_some(running)
    };
    processes.filter_map(of).collect()
}

/// A daemon that lets nobody trace it has files of root's in /proc: its user stands in one of them.
fn uid_of(process: &Path) -> Option<u32> {
    let status = std::fs::read_to_string(process.join("status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("Uid:"))?.split_whitespace().nth(1)?.parse().ok()
}

/// The cluster of a daemon's command line, `… node-daemon FILE --node N [--runtime-dir DIR]`.
fn running_by(command_line: &[u8]) -> Option<Running> {
    let words: Vec<&str> =
        command_line.split(|b| *b == 0).map(str::from_utf8).collect::<Result<_, _>>().ok()?;
    if words.get(1) != Some(&DAEMON_COMMAND) {
        return None;
    }
    let file = PathBuf::from(words.get(2)?);
    let dir = words.iter().position(|w| *w == "--runtime-dir").and_then(|at| words.get(at + 1));
    file.is_absolute().then(|| Running { file, runtime_dir: dir.map(PathBuf::from) })
}

/// Whether an address belongs to this machine: a socket can be bound to it.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

/// As the path is seen from here; what does not exist yet keeps its place.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_known_by_its_command_line_and_nothing_else_is() {
        let line = b"/usr/bin/dvs\0node-daemon\0/c.toml\0--node\x001\0--runtime-dir\0/run/x\0";
        let found = Running { file: "/c.toml".into(), runtime_dir: Some("/run/x".into()) };
        assert_eq!(running_by(line), Some(found));
        assert_eq!(running_by(b"dvs\0status\0/c.toml\0"), None);
        assert_eq!(running_by(b"dvs\0node-daemon\0c.toml\0--node\x001\0"), None);
        assert_eq!(running_by(b""), None);
    }

    #[test]
    fn loopback_is_here_and_a_documentation_address_is_not() {
        assert!(is_local("127.0.0.77".parse().unwrap()));
        assert!(!is_local("192.0.2.1".parse().unwrap()));
    }
}
