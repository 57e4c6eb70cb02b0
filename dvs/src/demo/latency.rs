//! The measuring steps: round trips on one node and between two, beside the bare limits of the same minute.
//!
//! Bare limit and product take turns, a few runs each, and the turn whose ratio is the middle one counts: what else the
//! machine does then hits both, and where it puts two processors' caches is the same for both.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use shm::bare::{self, PingPong};

use super::Scene;
use crate::interrupt;
use crate::output::count;
use crate::workers::crew::Worker;
use crate::workers::echo::{ROUND_BYTES, Run};
use crate::workers::spread::{Latency, Spread};
use crate::workers::stream::{Sent, Tally};

/// Runs of each kind, and how long one takes at most.
const RUNS: usize = 7;
const SPIN_RUN: Run = Run { rounds: 200_000, time_max: Duration::from_millis(150) };
const SLEEP_RUN: Run = Run { rounds: 50_000, time_max: Duration::from_millis(300) };
/// How long a worker may take to report a run.
const RUN_WITHIN: Duration = Duration::from_secs(60);
/// Messages of a stream that is only posted.
const POSTED_LOCAL: u64 = 1_000_000;
const POSTED_REMOTE: u64 = 200_000;

/// Two processors for two spinning processes, if there are two.
fn two_processors() -> Result<Option<(usize, usize)>> {
    let allowed = shm::os::process::cpus_allowed().context("which processors there are")?;
    Ok(allowed.first().copied().zip(allowed.get(1).copied()))
}

fn only_one_processor(scene: &mut Scene<'_>, what: &str) {
    let why = format!("{what}: two spinning processes need two processors, and there is one");
    scene.progress.done(&format!("not run: {why}"));
    scene.report.not_run.push(why);
}

/// Two processes on node 1, each on a processor of its own, neither ever sleeping.
pub fn spinning(scene: &mut Scene<'_>) -> Result<()> {
    scene.progress.step("round trips on one node, spinning");
    let Some((here, there)) = two_processors()? else {
        only_one_processor(scene, "spinning round trips");
        return Ok(());
    };
    let _echo = scene.start(1, "echo-spin", &["echo", "--wait", "spin", "--cpu", &there.to_string()])?;
    let mut ask =
        scene.start(1, "ask-spin", &["ask", "echo-spin", "--wait", "spin", "--cpu", &here.to_string()])?;
    ask.ready()?;
    let limit = PingPong {
        size_bytes: ROUND_BYTES,
        rounds: SPIN_RUN.rounds,
        time_max: SPIN_RUN.time_max,
        cpu_here: Some(here),
        cpu_there: Some(there),
        ..PingPong::default()
    };
    let (mut ours, mut bares) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        bares.push(Spread::of(&bare::shm_copy(&limit).context("bare shared memory")?).latency());
        ours.push(one_run(&mut ask, SPIN_RUN)?);
    }
    let (ours, bare) = middle_turn(&ours, &bares)?;
    scene.progress.done(&format!("{} ns, bare shared memory {} ns", ours.p50_ns, bare.p50_ns));
    (scene.report.local, scene.report.bare_shm) = (Some(ours), Some(bare));
    Ok(())
}

/// Both sides sleep whenever there is nothing to do: on node 1, and between nodes 1 and 2.
pub fn sleeping(scene: &mut Scene<'_>) -> Result<()> {
    scene.progress.step("round trips, sleeping, on one node and between two");
    let _near = scene.start(1, "echo-near", &["echo"])?;
    let _far = scene.start(2, "echo-far", &["echo"])?;
    let mut ask_near = scene.start(1, "ask-near", &["ask", "echo-near"])?;
    let mut ask_far = scene.start(1, "ask-far", &["ask", "echo-far"])?;
    ask_near.ready()?;
    ask_far.ready()?;
    let address = scene.place.cluster.nodes.get(1).context("a second node")?.address;
    let limit = PingPong {
        size_bytes: ROUND_BYTES,
        rounds: SLEEP_RUN.rounds,
        time_max: SLEEP_RUN.time_max,
        cpu_here: None,
        cpu_there: None,
        address: SocketAddr::from((address.ip(), 0)),
        ..PingPong::default()
    };
    let (mut near, mut far, mut bares) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        near.push(one_run(&mut ask_near, SLEEP_RUN)?);
        if !scene.netns {
            bares.push(Spread::of(&bare::tcp(&limit).context("bare TCP")?).latency());
        }
        far.push(one_run(&mut ask_far, SLEEP_RUN)?);
    }
    let near = Latency::middle(&near);
    let (far, bare) = match bares.is_empty() {
        true => (Latency::middle(&far), None),
        false => middle_turn(&far, &bares).map(|(far, bare)| (far, Some(bare)))?,
    };
    scene.progress.done(&format!("{:.1} us on one node, {:.1} us between two", us(near), us(far)));
    (scene.report.local_block, scene.report.remote) = (Some(near), Some(far));
    if scene.netns {
        let why = "bare TCP: its ends share a network namespace, the nodes do not; compare without --netns";
        scene.report.not_run.push(why.to_owned());
    } else {
        scene.report.bare_tcp = bare;
    }
    Ok(())
}

/// A loan is handed over, not copied: 1 MiB must take as long as 64 bytes.
pub fn loans(scene: &mut Scene<'_>) -> Result<()> {
    scene.progress.step("a loan of 1 MiB handed over, and one of 64 B");
    let processors = two_processors()?;
    let manner = |cpu: Option<usize>| {
        cpu.map_or(Vec::new(), |c| vec!["--wait".into(), "spin".into(), "--cpu".into(), c.to_string()])
    };
    let role = |words: &[&str], cpu| -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).chain(manner(cpu)).collect()
    };
    let start = |scene: &Scene<'_>, name: &str, role: Vec<String>| {
        scene.start(1, name, &role.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let _echo = start(scene, "echo-loan", role(&["echo"], processors.map(|(_, there)| there)))?;
    let here = processors.map(|(here, _)| here);
    let asker = |loan_bytes: &str| -> Result<Worker> {
        let name = format!("ask-{loan_bytes}");
        let mut ask = start(scene, &name, role(&["ask", "echo-loan", "--loan-bytes", loan_bytes], here))?;
        ask.ready()?;
        Ok(ask)
    };
    let (mut ask_small, mut ask_large) = (asker("64")?, asker("1048576")?);
    let (mut small, mut large) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        small.push(one_run(&mut ask_small, SPIN_RUN)?);
        large.push(one_run(&mut ask_large, SPIN_RUN)?);
    }
    let (large, small) = middle_turn(&large, &small)?;
    scene.progress.done(&format!("{} ns and {} ns there and back", large.p50_ns, small.p50_ns));
    (scene.report.loan_64, scene.report.loan_1m) = (Some(small), Some(large));
    Ok(())
}

/// How many messages one process can post to another, on its node and on the next.
pub fn posting(scene: &mut Scene<'_>) -> Result<()> {
    scene.progress.step("messages posted, on one node and to another");
    let local = rate(scene, (1, POSTED_LOCAL))?;
    let remote = rate(scene, (2, POSTED_REMOTE))?;
    scene.progress.done(&format!("{} and {} a second", count(local), count(remote)));
    (scene.report.post_local_per_s, scene.report.post_remote_per_s) = (Some(local), Some(remote));
    Ok(())
}

/// From node 1 to a node; the receiver's clock counts, from the first message to the last.
fn rate(scene: &Scene<'_>, (node, messages): (u16, u64)) -> Result<u64> {
    let (name_in, name_out) = (format!("count-{node}"), format!("post-{node}"));
    let mut counter = scene.start(node, &name_in, &["stream-in"])?;
    counter.ready()?;
    let role = ["stream-out", &name_in, "--messages", &messages.to_string()];
    let mut sender = scene.start(1, &name_out, &role)?;
    sender.ready()?;
    sender.order("go")?;
    let sent: Sent = sender.report(RUN_WITHIN)?;
    let tally: Tally = counter.report(RUN_WITHIN)?;
    anyhow::ensure!(tally.ended && tally.received == sent.posted, "{sent:?} was posted, {tally:?} arrived");
    Ok((tally.received as f64 / tally.seconds.max(1e-9)) as u64)
}

/// Of two that took turns, the turn whose ratio is the middle one.
fn middle_turn(ours: &[Latency], beside: &[Latency]) -> Result<(Latency, Latency)> {
    let mut turns: Vec<(Latency, Latency)> = ours.iter().copied().zip(beside.iter().copied()).collect();
    let ratio = |(ours, beside): &(Latency, Latency)| ours.p50_ns as f64 / beside.p50_ns.max(1) as f64;
    turns.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
    turns.get(turns.len() / 2).copied().context("at least one turn of each")
}

fn one_run(ask: &mut Worker, run: Run) -> Result<Latency> {
    interrupt::check()?;
    ask.order(&run.order())?;
    let spread: Spread = ask.report(RUN_WITHIN)?;
    Ok(spread.latency())
}

fn us(latency: Latency) -> f64 {
    latency.p50_ns as f64 / 1e3
}
