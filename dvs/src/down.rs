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
            let pid = daemon.recorded_pid();
            let pidfd = pid.and_then(|pid| pidfd_open(pid).ok()).filter(|_| pid.is_some_and(is_daemon));
            let ours = pid.is_some_and(|pid| serves(pid, place));
            (daemon, pid, pidfd.map(|pidfd| (pidfd, ours)), daemon.order(&Request::Stop).is_ok())
        })
        .collect();
    let until = Instant::now() + timeout;
    let mut downs = Vec::new();
    for (daemon, pid, pidfd, took) in asked {
        let outcome = wait_for(pidfd.as_ref(), took, until)?;
        if outcome != "still running" {
            sweep(place, daemon.node);
        }
        let name = daemon.node.name.as_str().to_owned();
        downs.push(Down { node: daemon.node.id.0, name, outcome, pid });
    }
    Ok(downs)
}

/// Waits for a daemon's end. One that did not take the order may be stopping already: it has its time too. Only one of
/// this very cluster file is killed in the end.
fn wait_for(process: Option<&(OwnedFd, bool)>, took: bool, until: Instant) -> Result<&'static str> {
    let Some((pidfd, ours)) = process else {
        return Ok(if took { "stopped" } else { "was not running" });
    };
    while Instant::now() < until {
        if pidfd_exited_within(pidfd, Duration::from_millis(50)) {
            return Ok("stopped");
        }
        interrupt::check()?;
    }
    if !ours || pidfd_kill(pidfd).is_err() {
        return Ok("still running");
    }
    Ok(if pidfd_exited_within(pidfd, Duration::from_secs(5)) { "killed" } else { "still running" })
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
