//! What the demonstration stands on: a folder of its own, a cluster file in it, free addresses.
//!
//! Key type: [`Stage`]. Everything is below one private folder, so any number of them run beside one another
//! and one removal cleans up.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::netns;
use crate::cluster::Place;
use crate::failure::{Exit, failure};
use crate::init::cluster_text;

/// The nodes, and the DC over all of them.
pub const NODES: u16 = 3;
pub const DC: &str = "demo";
/// Below the ports that the system gives to connections, so that none of them takes what was found free.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// So many are tried on an address before giving up.
const PORT_TRIES: usize = 64;
/// A longer folder name leaves no room for a socket's.
const FOLDER_BYTES_MAX: usize = 60;

pub struct Stage {
    folder: TempDir,
    pub place: Place,
}

impl Stage {
    /// Makes folder and cluster file.
    pub fn set(netns: bool) -> Result<Stage> {
        let folder = own_folder(netns)?;
        let place = write_cluster(folder.path(), netns)?;
        Ok(Stage { folder, place })
    }

    /// Other ports, should somebody else have taken one meanwhile.
    pub fn set_anew(&mut self, netns: bool) -> Result<()> {
        self.place = write_cluster(self.folder.path(), netns)?;
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

/// Below `$XDG_RUNTIME_DIR`, `$TMPDIR` or /tmp: the first that takes it. In namespaces /run is another one.
fn own_folder(netns: bool) -> Result<TempDir> {
    let var = |key| std::env::var_os(key).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let runtime = if netns { None } else { var("XDG_RUNTIME_DIR") };
    let bases = [runtime, var("TMPDIR"), Some(PathBuf::from("/tmp"))];
    let mut refused = Vec::new();
    for base in bases.into_iter().flatten().filter(|base| base.as_os_str().len() <= FOLDER_BYTES_MAX) {
        match tempfile::Builder::new().prefix("dvs-demo-").tempdir_in(&base) {
            Ok(folder) => return Ok(folder),
            Err(why) => refused.push(format!("{}: {why}", base.display())),
        }
    }
    let what = format!("no place for the demonstration's files: {}", refused.join("; "));
    Err(failure(Exit::Refused, what, "set TMPDIR to a folder you may write to"))
}

fn write_cluster(folder: &Path, netns: bool) -> Result<Place> {
    let addresses = (1..=NODES).map(|node| address(node, netns)).collect::<Result<Vec<_>>>()?;
    let file = folder.join("cluster.toml");
    let text = cluster_text("demo", DC, &addresses, Some("cluster.key"));
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Place::load(&file, Some(&folder.join("run")))
}

fn address(node: u16, netns: bool) -> Result<SocketAddr> {
    if netns {
        return Ok(SocketAddr::from((netns::address(node), PORTS.start)));
    }
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
        let (one, other) = (Stage::set(false).unwrap(), Stage::set(false).unwrap());
        assert_ne!(one.folder(), other.folder());
        assert_eq!(one.place.cluster.nodes.len(), usize::from(NODES));
        let gone = one.folder().to_owned();
        drop(one);
        assert!(!gone.exists() && other.folder().exists());
    }
}
