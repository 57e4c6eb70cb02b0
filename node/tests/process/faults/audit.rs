//! What must be true after a fault, whatever it was: all is as before.
//!
//! Key types: [`Before`] (what daemons and proxies held), [`Bystanders`] (two whom the fault does not concern).

use std::time::{Duration, Instant};

use super::fault::{Fault, HIT, OTHER, Scene};
use super::hosts::NODES;
use crate::process::program::Program;
use crate::process::system::{Holdings, LONG, memory_files_kib};

/// A node whose programs talk to one of [`OTHER`].
const THIRD: u16 = 3;
const SLOT: u16 = 60;
/// Descriptors that may be open for a moment more: a session that ends, a command that asks.
const DESCRIPTORS_MORE_MAX: u64 = 3;

/// Pages of tables that nobody had written to before.
const TOUCHED_KIB_MAX: u64 = 256;
const LEAKED_AFTER: Duration = Duration::from_secs(10);

/// Daemons and proxies at rest.
#[derive(Debug)]
pub struct Before {
    descriptors: u64,
    memory_files_kib: Option<u64>,
}

fn processes(scene: &Scene) -> Vec<u32> {
    let mut pids = scene.cluster.proxies_up();
    pids.extend((1..=NODES).map(|node| scene.cluster.daemon(node)));
    pids
}

fn held(scene: &Scene) -> Before {
    let pids = processes(scene);
    let descriptors = pids.iter().map(|pid| Holdings::of(*pid).descriptors).sum();
    Before { descriptors, memory_files_kib: memory_files_kib(&pids) }
}

impl Before {
    /// When each has done once what it does.
    pub fn of(scene: &Scene) -> Before {
        is_whole(scene);
        scene.cluster.everybody_is_forgotten(LONG);
        held(scene)
    }

    /// Whoever was bound is forgotten, and nothing of them is kept.
    pub fn nothing_leaked(self, scene: &Scene) {
        scene.cluster.everybody_is_forgotten(LONG);
        let until = Instant::now() + LEAKED_AFTER;
        loop {
            let after = held(scene);
            let is_closed = after.descriptors <= self.descriptors + DESCRIPTORS_MORE_MAX;
            let most = self.memory_files_kib.map(|kib| kib + TOUCHED_KIB_MAX);
            if is_closed && after.memory_files_kib <= most {
                return;
            }
            assert!(Instant::now() < until, "leaked: before {self:?}, after {after:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// An echo on [`OTHER`], and who asks it from [`THIRD`]: counted, in order, none lost.
pub struct Bystanders(Option<(Program, Program)>);

impl Bystanders {
    pub fn begin(scene: &Scene, fault: Fault) -> Bystanders {
        if fault == Fault::CutLong {
            // Each of the two nodes is dead for the other and begins anew: that ends whoever is bound there.
            return Bystanders(None);
        }
        let echo = scene.cluster.start(OTHER, SLOT, "echo");
        echo.endpoint();
        let ask = scene.cluster.start(THIRD, SLOT, &format!("ask {}", scene.cluster.slot(OTHER, SLOT).0));
        ask.endpoint();
        Bystanders(Some((echo, ask)))
    }

    pub fn unharmed(self) {
        let Some((mut echo, mut ask)) = self.0 else { return };
        ask.order("stop");
        let asked: u64 = ask.says("asked", LONG).parse().expect("a number");
        assert!(asked > 0);
        ask.ends_well();
        echo.order("end");
        echo.ends_well();
    }
}

/// All nodes see one another, and calls go from each to each.
pub fn is_whole(scene: &Scene) {
    scene.cluster.proxies_up();
    for node in 1..=NODES {
        assert!(scene.cluster.status(node).nodes.iter().all(|other| !other.dead), "node {node} sees a dead one");
    }
    for (server, client) in [(OTHER, HIT), (HIT, OTHER), (HIT, THIRD)] {
        let mut echo = scene.cluster.start(server, SLOT + 1, "echo");
        echo.endpoint();
        let slot = scene.cluster.slot(server, SLOT + 1).0;
        let mut ask = scene.cluster.start(client, SLOT + 2, &format!("ask-some {slot} 30"));
        ask.endpoint();
        ask.hears("asked 30", LONG);
        ask.ends_well();
        echo.order("end");
        echo.ends_well();
    }
}
