//! The bare limit beside which we are measured: two processes of this machine with nothing in between.
//!
//! Key type: [`Limit`]. Neighbour: `shm::bare`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use node::config::ClusterNode;
use shm::bare::{self, PingPong};

use crate::workers::spread::Spread;

/// More are not counted in one turn.
pub const ROUNDS_MAX: usize = 1_000_000;

/// How the bare limit is measured here.
pub struct Limit {
    remote: bool,
    address: SocketAddr,
    /// Its processors, or none where both sides sleep.
    pinned: Vec<(usize, usize)>,
    pairs: usize,
}

impl Limit {
    /// On one node it spins: as many pairs as have two processors for themselves. Over TCP it sleeps: all.
    pub fn choose(remote: bool, far: &ClusterNode, pairs: usize) -> Result<Limit> {
        let allowed = shm::os::process::cpus_allowed().context("which processors there are")?;
        let fit: Vec<_> = allowed.chunks_exact(2).take(pairs).map(|two| (two[0], two[1])).collect();
        let address = SocketAddr::from((far.address.ip(), 0));
        let (pinned, pairs) = if remote { (Vec::new(), pairs) } else { (fit.clone(), fit.len()) };
        Ok(Limit { remote, address, pinned, pairs })
    }

    pub fn name(&self) -> &'static str {
        if self.remote { "tcp" } else { "shm_copy" }
    }

    pub fn pairs(&self) -> usize {
        self.pairs
    }

    pub fn not_run(&self) -> Option<&'static str> {
        let one = "bare shared memory: two spinning processes need two processors, and there is one";
        (self.pairs == 0).then_some(one)
    }

    pub fn explained(&self) -> String {
        let what = if self.remote {
            "one blocking TCP connection, one message there and back at a time"
        } else {
            "a ring in shared memory, both sides spinning, one message there and back at a time, copied in and out"
        };
        format!("{} x {what}", self.pairs)
    }

    /// One turn, all pairs at once, each on its own; `None` where it cannot be run.
    pub fn turn(&self, size_bytes: usize, time: Duration) -> Result<Option<Vec<Spread>>> {
        if self.pairs == 0 {
            return Ok(None);
        }
        let one = |pair: usize| {
            let cpus = self.pinned.get(pair);
            let limit = PingPong {
                size_bytes,
                rounds: ROUNDS_MAX,
                time_max: time,
                cpu_here: cpus.map(|c| c.0),
                cpu_there: cpus.map(|c| c.1),
                address: self.address,
                ..PingPong::default()
            };
            let samples = if self.remote { bare::tcp(&limit) } else { bare::shm_copy(&limit) };
            samples.map(|samples| Spread::of(&samples)).with_context(|| format!("bare {}", self.name()))
        };
        let spreads: Result<Vec<Spread>> = std::thread::scope(|s| {
            let running: Vec<_> = (0..self.pairs).map(|pair| s.spawn(move || one(pair))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            running.into_iter().map(join).collect()
        });
        spreads.map(Some)
    }
}
