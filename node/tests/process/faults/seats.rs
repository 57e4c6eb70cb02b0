//! The column `bind`: on the node that is hit one binds, answers once and unbinds, over and over; on the other node
//! somebody looks for it and calls.
//!
//! Neighbour: `roles::seats`, the two.

use std::collections::BTreeMap;

use super::fault::{Fault, HIT, OTHER, Scene, Victim};
use super::{Hooks, time};
use crate::process::cluster::DC;
use crate::process::program::Program;
use crate::process::roles::talk::now_ms;
use crate::process::system::LONG;

const SLOT: u16 = 9;

struct Struck<'a> {
    at_ms: u64,
    binds: &'a mut Program,
    eats: bool,
}

impl Hooks for Struck<'_> {
    fn struck(&mut self) {
        self.at_ms = now_ms();
        if self.eats {
            self.binds.order("eat");
        }
    }
}

fn binder(scene: &Scene, fault: Fault) -> Program {
    let slot = scene.cluster.slot(HIT, SLOT);
    let mut command = Program::command(&scene.cluster.member_socket(HIT), DC, None);
    command.envs(Scene::around(fault, Victim::Application, &scene.clock));
    let mut program = Program::spawn(&scene.cluster.ground, command, &format!("bind-again {}", slot.0));
    program.order("go");
    program
}

/// Waits until somebody who was bound from now on has been called.
#[track_caller]
fn they_meet(binder: &Program, looker: &Program, saw: &mut Vec<(u64, String)>) {
    // Those before are of the past.
    for report in binder.reports_so_far() {
        saw.extend(failure(&report));
    }
    let first = loop {
        let report = binder.report(LONG);
        if let Some(endpoint) = report.strip_prefix("bound ") {
            break endpoint.to_owned();
        }
        saw.extend(failure(&report));
    };
    let mut bound = vec![first];
    let until = now_ms() + LONG.as_millis() as u64;
    loop {
        let report = looker.report(LONG);
        assert!(!report.starts_with("wrong"), "{report}");
        bound.extend(
            binder.reports_so_far().iter().filter_map(|r| r.strip_prefix("bound ")).map(str::to_owned),
        );
        if report.strip_prefix("met ").is_some_and(|met| bound.iter().any(|b| b == met)) {
            return;
        }
        assert!(now_ms() < until, "nobody meets: {bound:?}");
    }
}

fn failure(report: &str) -> Option<(u64, String)> {
    let (at, why) = report.strip_prefix("saw ")?.split_once(' ')?;
    Some((at.parse().ok()?, why.to_owned()))
}

/// Plays the cell, and says what the one who binds saw.
pub fn play(scene: &Scene, fault: Fault) -> String {
    let mut binds = binder(scene, fault);
    let mut looks = scene.cluster.start(OTHER, SLOT, &format!("look {}", scene.cluster.slot(HIT, SLOT).0));
    looks.endpoint();
    let mut saw = Vec::new();
    they_meet(&binds, &looks, &mut saw);
    assert!(saw.is_empty(), "before anything was broken: {saw:?}");
    let pid = binds.pid();
    let mut struck = Struck { at_ms: 0, binds: &mut binds, eats: fault == Fault::MemoryGroup };
    scene.suffer(fault, pid, &mut struck);
    let struck_ms = struck.at_ms;
    if fault.ends_application() {
        binds.kill();
        binds = binder(scene, fault);
    }
    if fault == Fault::CutLong {
        // The one who looks was of an incarnation that has ended.
        looks.kill();
        looks = scene.cluster.start(OTHER, SLOT, &format!("look {}", scene.cluster.slot(HIT, SLOT).0));
        looks.endpoint();
    }
    they_meet(&binds, &looks, &mut saw);
    binds.order("stop");
    let slowest = loop {
        let report = binds.report(LONG);
        saw.extend(failure(&report));
        if let Some(slowest) = report.strip_prefix("slowest ") {
            break slowest.parse().expect("a number");
        }
    };
    looks.order("stop");
    binds.order("end");
    binds.ends_well();
    while looks.report(LONG) != "looked" {}
    looks.order("end");
    looks.ends_well();
    let mut kinds: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (at, why) in &saw {
        kinds.entry(why).or_insert((*at, 0)).1 += 1;
    }
    if kinds.is_empty() && fault.ends_application() {
        return "another is bound in its slot, and called".to_owned();
    }
    if kinds.is_empty() {
        return format!("all went well, the slowest in {}", time(slowest));
    }
    let text = |(why, (at, count)): (&&str, &(u64, u64))| {
        format!("`{why}` after {}, {count} times", time(at.saturating_sub(struck_ms)))
    };
    kinds.iter().map(text).collect::<Vec<_>>().join("; ")
}
