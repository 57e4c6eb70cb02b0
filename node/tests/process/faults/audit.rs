//! What must be true after a fault, whatever it was: all is as before.
//!
//! Key types: [`Before`] (what daemons and proxies held), [`Bystanders`] (two whom the fault does not concern).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::fault::{Fault, HIT, OTHER, Scene};
use super::hosts::NODES;
use crate::process::program::Program;
use crate::process::system::{Holdings, LONG, eventually};

/// A node whose programs talk to one of [`OTHER`].
const THIRD: u16 = 3;
const SLOT: u16 = 60;
/// What a proxy's memory grows by when many pairs or extents are in use at once, and what it keeps: so many segments at most,
/// over all nodes.
const CAPACITY: [&str; 2] = ["memfd:dvs-sides", "memfd:dvs-pool"];
const CAPACITY_SEGMENTS_MAX: u32 = 30;
/// Sockets that may be open for a moment more: a session that ends, a command that asks.
const SOCKETS_MORE_MAX: u32 = 3;
const LEAKED_AFTER: Duration = Duration::from_secs(10);

/// The descriptors of daemons and proxies at rest, by what they are of. A user who is not shown them knows their number only.
#[derive(Debug)]
pub struct Before(BTreeMap<String, u32>);

fn held(scene: &Scene) -> Before {
    let mut pids = scene.cluster.proxies_up();
    pids.extend((1..=NODES).map(|node| scene.cluster.daemon(node)));
    let mut held = BTreeMap::new();
    for pid in pids {
        let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
            *held.entry("number".to_owned()).or_insert(0) += Holdings::of(pid).descriptors as u32;
            continue;
        };
        for entry in entries.flatten() {
            // One that was closed since has no more to say.
            if let Ok(name) = std::fs::read_link(entry.path()) {
                *held.entry(kind(&name.display().to_string())).or_insert(0) += 1;
            }
        }
    }
    Before(held)
}

/// `/memfd:dvs-sides-1.0 (deleted)` is a `memfd:dvs-sides`.
fn kind(name: &str) -> String {
    let end = name.find(|c: char| c == '[' || c == ' ' || c.is_ascii_digit()).unwrap_or(name.len());
    if name.starts_with("/memfd:") {
        name[1..end].trim_end_matches('-').to_owned()
    } else {
        name[..end].to_owned()
    }
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
            let more = held(scene).more_than(&self);
            if more.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "leaked: {more:?}; before: {self:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn more_than(&self, before: &Before) -> BTreeMap<String, u32> {
        let more = |(kind, now): (&String, &u32)| {
            let then = before.0.get(kind).copied().unwrap_or(0);
            let allowed = match kind.as_str() {
                kind if CAPACITY.contains(&kind) => CAPACITY_SEGMENTS_MAX,
                "socket:" => SOCKETS_MORE_MAX,
                "number" => CAPACITY_SEGMENTS_MAX + SOCKETS_MORE_MAX,
                _ => 0,
            };
            (*now > then + allowed).then(|| (kind.clone(), now - then))
        };
        self.0.iter().filter_map(more).collect()
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
    eventually("nobody is dead for anybody", LONG, || {
        (1..=NODES).all(|node| scene.cluster.status(node).nodes.iter().all(|other| !other.dead))
    });
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
