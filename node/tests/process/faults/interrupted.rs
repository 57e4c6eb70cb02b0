//! Ctrl-C at any time: nothing of a demonstration stays, and of a copy only what the next one goes on with.
//!
//! As a terminal does it, the whole process group gets the signal.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{PLAYED, copying};
use crate::process::cluster::{Cluster, Plan};
use crate::process::ground::{Company, Ground, drain};
use crate::process::system::{Chance, LONG, eventually};

/// How often, unless this says so.
const ROUNDS: &str = "INTERRUPTS";
const ROUNDS_FEW: u64 = 4;
/// A demonstration takes longer, and so does a copy.
const DEMO_MS: u64 = 7_000;
const COPY_MS: u64 = 300;
const INTERRUPTED: i32 = 130;
/// From the signal to the end.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

fn rounds() -> Option<u64> {
    if std::env::var_os(PLAYED).is_none() {
        println!("not run: faults: takes minutes: cargo run -p ci -- test --only faults");
        return None;
    }
    Some(std::env::var(ROUNDS).ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS_FEW))
}

/// Starts it, interrupts it after a while, and gives its exit code and what it wrote.
fn interrupt(mut command: Command, after: Duration) -> (Option<i32>, String) {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().expect("dvs starts");
    let outputs = [drain(child.stdout.take()), drain(child.stderr.take())];
    std::thread::sleep(after);
    // It is our child and not collected yet: nobody else has its number. Of one that has ended there is no group.
    let _ = kill_process_group(Pid::from_child(&child), Signal::INT);
    let until = Instant::now() + ENDS_WITHIN;
    let status = loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            break status;
        }
        if Instant::now() > until {
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            let _ = child.wait();
            let said = outputs.map(|thread| thread.join().unwrap_or_default()).concat();
            panic!("{command:?} goes on after Ctrl-C at {after:?}: {said}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let [out, err] = outputs.map(|thread| thread.join().expect("reading does not fail"));
    (status.code(), out + &err)
}

#[test]
fn a_demonstration_leaves_nothing() {
    let Some(rounds) = rounds() else { return };
    let mut chance = Chance::of_now();
    for _ in 0..rounds {
        let Some(ground) = Ground::take(Company::Others) else { return };
        let after = chance.millis_below(DEMO_MS);
        let mut command = Command::new(ground.dvs_executable());
        command.args(["demo", "--json"]).env("TMPDIR", ground.folder()).env_remove("XDG_RUNTIME_DIR");
        let (code, said) = interrupt(command, after);
        // Before it has looked for signals the system ends it.
        let ended = code.is_none_or(|code| code == INTERRUPTED || code == 0);
        assert!(ended, "after {after:?} it ended with {code:?}: {said}");
        eventually("no process of it goes on", LONG, || ground.processes().is_empty());
        let left: Vec<_> = std::fs::read_dir(ground.folder()).expect("our own folder").collect();
        assert!(left.is_empty(), "after {after:?} it left {left:?}: {said}");
    }
}

#[test]
fn a_copy_is_gone_on_with() {
    let Some(rounds) = rounds() else { return };
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    cluster.proxies_up();
    let mut chance = Chance::of_now();
    let mut resumed = 0;
    for round in 0..rounds {
        let job = copying::Copy::prepare(&cluster, &format!("there-{round}"), round);
        let after = chance.millis_below(COPY_MS);
        let (code, said) = interrupt(job.command(&cluster), after);
        let done = code == Some(0);
        assert!(done || code.is_none_or(|code| code == INTERRUPTED), "after {after:?}: {code:?}: {said}");
        assert_eq!(done, job.target().exists(), "after {after:?} a whole file, or none: {said}");
        eventually("both ends have ended", LONG, || (1..=2).all(|node| cluster.endpoints(node).is_empty()));
        let (code, answer) = copying::end(job.command(&cluster).spawn().expect("dvs starts"));
        assert_eq!(code, Some(0), "{answer}");
        assert!(job.has_arrived(), "what was interrupted is whole the second time");
        resumed += answer["resumed_bytes"].as_u64().expect("a number");
    }
    println!("{} MiB of {rounds} interrupted copies were gone on with", resumed >> 20);
    cluster.everybody_is_forgotten(LONG);
}
