//! What a demonstration or a measurement stands on: a folder of its own, a cluster file in it, free addresses.
//!
//! Key types: [`Plan`], [`Stage`]. Everything is below one private folder, so any number of them run beside one another
//! and one removal cleans up.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use node::config::ClusterNode;
use tempfile::TempDir;

use crate::cluster::Place;
use crate::failure::{Exit, failure};
use crate::init::cluster_text;

/// Below the ports that the system gives to connections, so that none of them takes what was found free.
pub const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// So many are tried on an address before giving up.
const PORT_TRIES: usize = 64;
/// How often other ports are looked for when somebody has taken one meanwhile.
const ANEW_TRIES: usize = 3;
/// A longer folder name leaves no room for a socket's.
const FOLDER_BYTES_MAX: usize = 60;

/// What is to stand there.
#[derive(Clone, Copy)]
pub struct Plan {
    /// Of the cluster, of the DC over all its nodes, and in its folder's name.
    pub name: &'static str,
    pub nodes: u16,
    /// Each node's address, where they are not on this machine's loopback.
    pub address: Option<fn(u16) -> SocketAddr>,
    /// A second DC over all its nodes.
    pub second_dc: Option<&'static str>,
    /// The kind of its proxies.
    pub proxy: &'static str,
}

pub struct Stage {
    plan: Plan,
    folder: TempDir,
    pub place: Place,
}

impl Stage {
    /// Makes folder and cluster file.
    pub fn set(plan: Plan) -> Result<Stage> {
        let folder = own_folder(&plan)?;
        let place = write_cluster(folder.path(), &plan)?;
        Ok(Stage { plan, folder, place })
    }

    /// Ports that were free a moment ago may be somebody else's by now: then others.
    pub fn free_ports(&mut self) -> Result<()> {
        for _ in 0..ANEW_TRIES {
            let taken = |n: &ClusterNode| TcpListener::bind(n.address).is_err();
            if self.plan.address.is_some() || !self.place.cluster.nodes.iter().any(taken) {
                break;
            }
            self.place = write_cluster(self.folder.path(), &self.plan)?;
        }
        Ok(())
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder stays.
    pub fn keep(self) -> PathBuf {
        self.folder.keep()
    }
}

/// Below `$XDG_RUNTIME_DIR`, `$TMPDIR` or /tmp: the first that takes it. Where nodes have
/// namespaces of their own, /run is another one.
fn own_folder(plan: &Plan) -> Result<TempDir> {
    let var = |key| std::env::var_os(key).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let runtime = if plan.address.is_some() { None } else { var("XDG_RUNTIME_DIR") };
    let bases = [runtime, var("TMPDIR"), Some(PathBuf::from("/tmp"))];
    let mut refused = Vec::new();
    for base in bases.into_iter().flatten().filter(|base| base.as_os_str().len() <= FOLDER_BYTES_MAX) {
        match tempfile::Builder::new().prefix(&format!("dvs-{}-", plan.name)).tempdir_in(&base) {
            Ok(folder) => return Ok(folder),
            Err(why) => refused.push(format!("{}: {why}", base.display())),
        }
    }
    let what = format!("no place for the {} files: {}", plan.name, refused.join("; "));
    Err(failure(Exit::Refused, what, "set TMPDIR to a folder you may write to"))
}

fn write_cluster(folder: &Path, plan: &Plan) -> Result<Place> {
    let address = |node| plan.address.map_or_else(|| loopback(node), |address| Ok(address(node)));
    let addresses = (1..=plan.nodes).map(address).collect::<Result<Vec<_>>>()?;
    let file = folder.join("cluster.toml");
    let mut text = cluster_text(plan.name, plan.name, &addresses, Some("cluster.key"));
    if let Some(name) = plan.second_dc {
        text += &format!("\n[[dc]]\nid = 2\nname = \"{name}\"\n");
    }
    if plan.proxy != "tcp" {
        text += &format!("\n[[proxy]]\nname = \"{0}\"\nkind = \"{0}\"\n", plan.proxy);
    }
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Place::load(&file, Some(&folder.join("run")))
}

fn loopback(node: u16) -> Result<SocketAddr> {
    let ip = IpAddr::from(Ipv4Addr::new(127, 0, 0, 1 + node as u8));
    for _ in 0..PORT_TRIES {
        let port = PORTS.start + (random() % u64::from(PORTS.end - PORTS.start)) as u16;
        if TcpListener::bind((ip, port)).is_ok() {
            return Ok(SocketAddr::from((ip, port)));
        }
    }
    Err(failure(
        Exit::Refused,
        format!("no free port on {ip}"),
        "is the loopback interface up? `ip addr show lo` tells",
    ))
}

/// Different in every process and at every call.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_stages_share_nothing_and_are_gone_when_dropped() {
        let plan = Plan { name: "test", nodes: 3, address: None, second_dc: None, proxy: "tcp" };
        let (one, other) = (Stage::set(plan).unwrap(), Stage::set(plan).unwrap());
        assert_ne!(one.folder(), other.folder());
        assert_eq!(one.place.cluster.nodes.len(), 3);
        let gone = one.folder().to_owned();
        drop(one);
        assert!(!gone.exists() && other.folder().exists());
    }
}
