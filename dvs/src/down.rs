//! Stopping nodes: each daemon is asked, waited for, and killed only when it does not go.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use node::admin::Request;
use node::config::ClusterNode;
use serde::Serialize;
use shm::os::peer::{pidfd_exited_within, pidfd_kill, pidfd_open};

use crate::admin::Daemon;
use crate::cluster::Place;
use crate::interrupt;

/// How long a daemon may take to stop.
pub const STOPPED_WITHIN: Duration = Duration::from_secs(10);

/// What became of a node.
#[derive(Serialize)]
pub struct Down {
    pub node: u16,
    pub name: String,
    /// `stopped`, `killed`, `was not running` or `still running`.
    pub outcome: &'static str,
    pub pid: Option<u32>,
}

/// Asks all, then waits for all.
pub fn stop(place: &Place, nodes: &[&ClusterNode], timeout: Duration) -> Result<Vec<Down>> {
    let asked: Vec<_> = nodes
        .iter()
        .map(|node| {
            let daemon = Daemon { place, node };
            // Opened before anything ends: a pid may be somebody else's afterwards.
            let processes = Processes::of(&daemon);
            (daemon, processes, daemon.order(&Request::Stop).is_ok())
        })
        .collect();
    let until = Instant::now() + timeout;
    let mut downs = Vec::new();
    for (daemon, processes, took) in asked {
        let outcome = processes.wait(took, until)?;
        if outcome != "still running" {
            sweep(place, daemon.node);
        }
        let name = daemon.node.name.as_str().to_owned();
        downs.push(Down { node: daemon.node.id.0, name, outcome, pid: processes.pid });
    }
    Ok(downs)
}

/// What runs for a node: its keeper, and the daemon. Opened before anything ends: a pid may be somebody else's afterwards.
struct Processes {
    /// The daemon's, as it says itself.
    pid: Option<u32>,
    /// The keeper first: who is killed without it has a successor.
    running: Vec<OwnedFd>,
    /// They are of this very cluster file.
    ours: bool,
}

impl Processes {
    fn of(daemon: &Daemon) -> Processes {
        let recorded = daemon.place.files(daemon.node).recorded();
        let pids = recorded.iter().flat_map(|(pid, keeper)| keeper.iter().chain([pid]));
        let pids: Vec<u32> = pids.copied().filter(|pid| is_daemon(*pid)).collect();
        let running = pids.iter().filter_map(|pid| pidfd_open(*pid).ok()).collect();
        let ours = pids.iter().all(|pid| serves(*pid, daemon.place));
        Processes { pid: recorded.map(|(pid, _)| pid), running, ours }
    }

    /// Waits for their end. One that did not take the order may be stopping already: it has its time too. Only those of
    /// this very cluster file are killed in the end.
    fn wait(&self, took: bool, until: Instant) -> Result<&'static str> {
        if self.running.is_empty() {
            return Ok(if took { "stopped" } else { "was not running" });
        }
        while Instant::now() < until {
            if self.have_ended(Duration::from_millis(50)) {
                return Ok("stopped");
            }
            interrupt::check()?;
        }
        if !self.ours || !self.running.iter().all(|pidfd| pidfd_kill(pidfd).is_ok()) {
            return Ok("still running");
        }
        Ok(if self.have_ended(Duration::from_secs(5)) { "killed" } else { "still running" })
    }

    fn have_ended(&self, within: Duration) -> bool {
        self.running.iter().all(|pidfd| pidfd_exited_within(pidfd, within))
    }
}

/// Ends a node that does not go: its keeper, then its daemon.
pub fn kill(place: &Place, node: &ClusterNode) {
    let processes = Processes::of(&Daemon { place, node });
    for pidfd in processes.running.iter().filter(|_| processes.ours) {
        // One that has ended needs nothing.
        let _ = pidfd_kill(pidfd);
    }
    processes.have_ended(Duration::from_secs(5));
}

/// Whether a process is a daemon of ours: a pid may long be somebody else's.
fn is_daemon(pid: u32) -> bool {
    words_of(pid)
        .windows(2)
        .any(|pair| pair[0] == b"node-daemon" || (pair[0] == b"node" && pair[1] == b"start"))
}

/// Whether a process was started with this cluster's file.
fn serves(pid: u32, place: &Place) -> bool {
    let file = place.cluster.file.as_os_str().as_encoded_bytes();
    words_of(pid).iter().any(|word| word == file)
}

fn words_of(pid: u32) -> Vec<Vec<u8>> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|b| *b == 0).map(<[u8]>::to_vec).collect()
}

/// Takes away what a daemon that was killed left behind; one that ended well left nothing.
pub fn sweep(place: &Place, node: &ClusterNode) {
    let files = place.files(node);
    if !files.node.is_dir() {
        return;
    }
    match files.take_lock(node.name.as_str()) {
        Ok((lock, _)) => {
            let proxies: Vec<_> = (1..).zip(&place.cluster.proxies).map(|(index, _)| index).collect();
            files.remove(&proxies, true);
            drop(lock);
        }
        Err(why) => tracing::warn!("{why}"),
    }
}
