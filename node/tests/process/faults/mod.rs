//! Every fault we can make, in the middle of everything that can be done: three nodes, each on a host of its own.
//!
//! A row is what is broken (`fault`), a column what is done meanwhile (`talking`, `seats`, `copying`); each cell is a test,
//! which plays in a process of its own, in namespaces of its own (`hosts`), and ends with an audit (`audit`). The caller is on
//! node 1, whom it talks to is on node 2, where processes are hit; two others go on between nodes 3 and 1, whom none
//! of it concerns. `cargo run -p ci -- test --only faults` plays a slice, with `--full` all; the table is `docs/faults.md`.

mod audit;
mod copying;
mod fault;
mod hosts;
mod interrupted;
mod seats;
mod talking;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::cluster::{Cluster, Plan};
use super::ground::{Company, Ground, drain};
use super::program::entry;
use super::roles::ROLE;
use super::roles::talk::Talk;
use super::system::{processes_of, signal, works_for};
use fault::{Fault, NODE_DEAD_AFTER, Scene, Victim};
use hosts::Hosts;

/// A cell that takes longer hangs.
const CELL_MAX: Duration = Duration::from_secs(180);
/// Set where cells are played.
const PLAYED: &str = "FAULT_CELLS";
/// Stands before a cell's answer for the table.
const SEEN: &str = "seen: ";

macro_rules! cells {
    ($($column:ident)*) => { $(mod $column { $crate::process::faults::rows!($column); })* };
}

macro_rules! rows {
    ($column:ident) => {
        $crate::process::faults::row! { $column:
            kill_application kill_proxy kill_daemon
            stop_application stop_proxy stop_daemon
            stop_application_long stop_proxy_long stop_daemon_long
            cut cut_long cut_one_way half_open flapping loss
            memory_application memory_proxy memory_daemon memory_group
            descriptors_application descriptors_proxy descriptors_daemon
            clock_application clock_node
        }
    };
}

macro_rules! row {
    ($column:ident: $($row:ident)*) => {
        $(#[test]
        fn $row() {
            $crate::process::faults::cell(stringify!($row), stringify!($column));
        })*
        #[test]
        fn every_fault_has_a_cell() {
            let rows = [$(stringify!($row)),*];
            assert!($crate::process::faults::fault::Fault::ALL.iter().map(|(name, _)| *name).eq(rows));
        }
    };
}
use {row, rows};

cells! { send post sendrec_before sendrec_after notify copy loan bind cp }

/// Plays a cell in a process and namespaces of its own, and says what was seen in it.
fn cell(row: &str, column: &str) {
    let fault = Fault::of(row).expect("a row");
    if std::env::var_os(PLAYED).is_none() {
        println!("not run: faults: takes minutes: cargo run -p ci -- test --only faults");
        return;
    }
    let Some(ground) = Ground::take(Company::Others) else { return };
    if let Some(why) = hosts::missing() {
        println!("not run: faults: {why}");
        return;
    }
    if let Some(why) = fault.missing() {
        println!("not run: faults {row}: {why}");
        return;
    }
    let words = entry();
    let mut command = hosts::unshare();
    // All that it starts names this folder, so that nothing of it is left, whatever becomes of it.
    command.args(&words).env(ROLE, format!("cell {row} {column}")).env("TMPDIR", ground.folder());
    command.env("DVS_BIN", ground.dvs_executable());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|why| panic!("{command:?}: {why}"));
    let outputs = [drain(child.stdout.take()), drain(child.stderr.take())];
    let until = Instant::now() + CELL_MAX;
    let status = loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            break Some(status);
        }
        if Instant::now() > until {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let left = end_those_of(ground.folder());
    let [out, err] = outputs.map(|thread| thread.join().expect("reading does not fail"));
    let whole = format!("{out}\n{err}");
    assert!(status.is_some(), "hangs for more than {} s:\n{whole}", CELL_MAX.as_secs());
    assert!(status.is_some_and(|status| status.success()), "{whole}");
    assert_eq!(left, 0, "processes outlived the cell:\n{whole}");
    let seen = out.lines().find_map(|line| line.split_once(SEEN));
    let (_, seen) = seen.unwrap_or_else(|| panic!("nothing was seen:\n{whole}"));
    println!("cell: {row} | {column} | {seen}");
}

/// Kills what works for a folder; gives how many those were.
fn end_those_of(folder: &Path) -> usize {
    let left = processes_of(folder);
    for pid in &left {
        // One that has ended meanwhile needs no signal.
        signal(*pid, Signal::KILL, |pid| works_for(pid, folder));
    }
    left.len()
}

/// The cell itself, in its namespaces.
pub fn inside(row: &str, column: &str) {
    let fault = Fault::of(row).expect("a row");
    let ground = Ground::take(Company::Others).expect("dvs is named");
    let clock = ground.write("clock", "+0\n");
    let hosts = Hosts::make();
    let plan = Plan::nodes(hosts::NODES).dead_after_ms(NODE_DEAD_AFTER.as_millis() as u64);
    let around = |node| {
        if node == fault::HIT { Scene::around(fault, Victim::Daemon, &clock) } else { Vec::new() }
    };
    let cluster = Cluster::up_on_hosts(ground, plan, &Hosts::addresses(), Hosts::enter, around);
    let mut scene = Scene { hosts, cluster, clock };
    scene.cluster.proxies_up();
    let before = audit::Before::of(&scene);
    let bystanders = audit::Bystanders::begin(&scene, fault);
    let seen = match column {
        "bind" => seats::play(&scene, fault),
        "cp" => copying::play(&scene, fault),
        _ => talking::play(&scene, fault, Talk::of(column).expect("a column")),
    };
    audit::is_whole(&scene);
    bystanders.unharmed();
    before.nothing_leaked(&scene);
    scene.cluster.down();
    println!("{SEEN}{seen}");
}

/// Milliseconds, for people.
fn time(ms: u64) -> String {
    if ms < 1000 { format!("{ms} ms") } else { format!("{}.{} s", ms / 1000, ms % 1000 / 100) }
}

/// What a column does while a fault strikes.
pub trait Hooks {
    /// It has just struck.
    fn struck(&mut self);
    /// It is about to be mended.
    fn before_mended(&mut self) {}
}
