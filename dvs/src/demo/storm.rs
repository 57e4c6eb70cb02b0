//! A counted stream from node 1 to node 2, and in its middle proxies are killed: the sender's and the
//! receiver's in turn.
//!
//! The sender says when it comes to a pause, goes on slowly, and stops for good only a little later; the kill
//! falls between, while messages are under way.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use node::core::ProxyView;
use shm::os::peer::{pidfd_kill, pidfd_open};

use super::Scene;
use super::report::StreamTrip;
use crate::admin::Daemon;
use crate::failure::{Exit, failure};
use crate::interrupt;
use crate::output::count;
use crate::workers::crew::Worker;
use crate::workers::stream::{Pausing, Sent, Tally};

/// Kills of a stream, and of one of at least so many messages.
const KILLS: u64 = 2;
const KILLS_LONG: u64 = 4;
const LONG_MESSAGES: u64 = 1_000_000;
/// How long a daemon may take to notice that a proxy is gone, and the link to be up again.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);
const BACK_WITHIN: Duration = Duration::from_secs(20);
/// The slowest that a stream may be.
const MESSAGES_PER_S_MIN: u64 = 10_000;

/// The two nodes of the stream.
const FROM: u16 = 1;
const TO: u16 = 2;

pub fn weather(scene: &mut Scene<'_>) -> Result<()> {
    let messages = scene.report.messages;
    let kills = if messages >= LONG_MESSAGES { KILLS_LONG } else { KILLS };
    scene.progress.step("a counted stream to another node while its proxies are killed");
    let mut counter = scene.start(TO, "count", &["stream-in"])?;
    counter.ready()?;
    let (all, pauses) = (messages.to_string(), kills.to_string());
    let mut sender =
        scene.start(FROM, "post", &["stream-out", "count", "--messages", &all, "--pauses", &pauses])?;
    sender.ready()?;
    let within = Duration::from_secs(60 + messages / MESSAGES_PER_S_MIN);
    let began = Instant::now();
    sender.order("go")?;
    let mut back_max = Duration::ZERO;
    for kill in 0..kills {
        let (own, other) = if kill % 2 == 0 { (FROM, TO) } else { (TO, FROM) };
        let victim = proxy_of(scene, own, other)?;
        let at: Pausing = sender.report(within)?;
        back_max = back_max.max(kill_and_go_on(scene, (own, other), &victim, &mut sender)?);
        scene.progress.note(&format!("{} posted, {} proxies killed", count(at.posted), kill + 1));
    }
    let sent: Sent = sender.report(within)?;
    let tally: Tally = counter.report(within)?;
    let seconds = began.elapsed().as_secs_f64();
    let proxy_back_ms_max = u64::try_from(back_max.as_millis()).unwrap_or(u64::MAX);
    let trip = StreamTrip { tally, proxy_kills: kills, proxy_back_ms_max, seconds };
    let damage =
        format!("{} lost, {} duplicated, {} reordered", tally.lost, tally.duplicated, tally.reordered);
    let whole = trip.is_whole(messages);
    scene.progress.done(&format!("{} messages, {kills} proxies killed: {damage}", count(sent.posted)));
    scene.report.stream = Some(trip);
    if whole {
        return Ok(());
    }
    let what = format!(
        "the stream is damaged: {} of {messages} came, {damage}, {} corrupted",
        tally.received, tally.corrupted
    );
    Err(failure(Exit::Failed, what, "this is a fault of ours: please report it with the output of --json"))
}

fn proxies_of(scene: &Scene<'_>, own: u16) -> Result<Vec<ProxyView>> {
    let node = scene.place.node(&own.to_string())?;
    Daemon { place: scene.place, node }.proxies()
}

/// The proxy of `own` that carries to `other`, when it runs.
fn proxy_of(scene: &Scene<'_>, own: u16, other: u16) -> Result<ProxyView> {
    let until = Instant::now() + BACK_WITHIN;
    loop {
        let there = proxies_of(scene, own)?.into_iter().find(|p| p.nodes.contains(&other) && p.state == "up");
        match there {
            Some(proxy) if proxy.pid.is_some() => return Ok(proxy),
            _ if Instant::now() >= until => {
                let what = format!("node {own} has no running proxy to node {other}");
                return Err(failure(Exit::Failed, what, "look at its daemon's log with --keep"));
            }
            _ => interrupt::sleep(Duration::from_millis(5))?,
        }
    }
}

/// Kills it, waits until its daemon has noticed, lets the sender go on, and says after how long the link was
/// back.
fn kill_and_go_on(
    scene: &Scene<'_>,
    (own, other): (u16, u16),
    victim: &ProxyView,
    sender: &mut Worker,
) -> Result<Duration> {
    let pid = victim.pid.context("a running proxy has a process")?;
    let pidfd = pidfd_open(pid).with_context(|| format!("proxy process {pid}"))?;
    let began = Instant::now();
    pidfd_kill(&pidfd).with_context(|| format!("proxy process {pid} was not killed"))?;
    loop {
        let now = proxies_of(scene, own)?.into_iter().find(|p| p.index == victim.index);
        if now.is_none_or(|p| p.pid != Some(pid)) {
            break;
        }
        if began.elapsed() > NOTICED_WITHIN {
            let what = format!("the daemon of node {own} has not noticed the end of proxy process {pid}");
            return Err(failure(Exit::Failed, what, "this is a fault of ours"));
        }
        interrupt::sleep(Duration::from_millis(1))?;
    }
    sender.order("go")?;
    while !(is_linked(scene, own, other)? && is_linked(scene, other, own)?) {
        if began.elapsed() > BACK_WITHIN {
            let what = format!(
                "the link of nodes {own} and {other} was not up again within {} s",
                BACK_WITHIN.as_secs()
            );
            return Err(failure(Exit::Failed, what, "look at the daemons' logs with --keep"));
        }
        interrupt::sleep(Duration::from_millis(2))?;
    }
    Ok(began.elapsed())
}

fn is_linked(scene: &Scene<'_>, own: u16, other: u16) -> Result<bool> {
    let node = scene.place.node(&own.to_string())?;
    let status = Daemon { place: scene.place, node }.status()?;
    Ok(status.nodes.iter().any(|n| n.node == other && n.link == "up"))
}
