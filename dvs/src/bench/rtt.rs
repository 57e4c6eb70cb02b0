//! `dvs bench rtt`: a request there and its reply back, as large.
//!
//! Up to the inline bytes a message carries it; beyond, it is written into a loan, copied by the other side into one
//! of its own, and that is read: as many copies as the bare ping-pong makes.

use std::time::Duration;

use abi::limits::INLINE_BYTES_MAX;
use anyhow::Result;
use serde_json::json;

use super::chart::chart;
use super::limit::ROUNDS_MAX;
use super::{Ground, REPORT_WITHIN, Results, middle, rounded};
use crate::interrupt;
use crate::output::{Output, Table, bytes, count, nanoseconds};
use crate::workers::crew::Worker;
use crate::workers::echo::Run;
use crate::workers::pour::{Poured, Taken};
use crate::workers::spread::{Latency, Spread};

/// The loans of a flood, and how much longer it lasts than what it is to hinder.
const FLOOD_BYTES: &str = "1048576";
const FLOOD_LONGER: Duration = Duration::from_millis(100);

/// Both sides of one size, all turns of all pairs together.
struct Measured {
    size_bytes: usize,
    ours: Spread,
    bare: Option<Spread>,
    /// While another DC floods the same proxies, and how many times longer its p99 is then: of the turns, the middle one.
    flooded: Option<Spread>,
    flooded_ratio: Option<f64>,
    /// Of the medians, ours divided by the bare one.
    ratio: Option<f64>,
}

pub fn measure(ground: &Ground<'_>, sizes: &[usize], output: &Output) -> Result<Results> {
    let mut all = Vec::new();
    for size in sizes {
        all.push(one_size(ground, *size)?);
    }
    let json = all.iter().map(|m| {
        json!({
            "size_bytes": m.size_bytes,
            "loan": m.size_bytes > INLINE_BYTES_MAX,
            "ours": m.ours.latency(),
            "bare": m.bare.as_ref().map(Spread::latency),
            "ratio": m.ratio.map(rounded),
            "flooded": m.flooded.as_ref().map(Spread::latency),
            "flooded_p99_ratio": m.flooded_ratio.map(rounded),
            "histogram": m.ours.rows(),
        })
    });
    Ok(Results { json: json.collect(), text: text(&all, output) })
}

fn one_size(ground: &Ground<'_>, size_bytes: usize) -> Result<Measured> {
    let (_echoes, mut asks) = start(ground, size_bytes)?;
    let (mut ours, mut bare) = (Spread::default(), None);
    let mut flood = Flood::start(ground)?;
    let (mut flooded, mut flooded_ratios) = (None, Vec::new());
    let mut ratios = Vec::new();
    for _ in 0..ground.turns {
        interrupt::check()?;
        let bare_turn = ground.limit.turn(size_bytes, ground.turn)?.map(|all| joined(&all));
        let ours_turn = joined(&turn(&mut asks, ground.turn)?);
        if let Some(bare_turn) = bare_turn {
            let p50 = |latency: Latency| latency.p50_ns.max(1) as f64;
            ratios.push(p50(ours_turn.latency()) / p50(bare_turn.latency()));
            bare.get_or_insert_with(Spread::default).join(&bare_turn);
        }
        if let Some(flood) = &mut flood {
            let turn = joined(&flood.during(ground.turn, || turn(&mut asks, ground.turn))?);
            let p99 = |latency: Latency| latency.p99_ns.max(1) as f64;
            flooded_ratios.push(p99(turn.latency()) / p99(ours_turn.latency()));
            flooded.get_or_insert_with(Spread::default).join(&turn);
        }
        ours.join(&ours_turn);
    }
    let flooded_ratio = middle(flooded_ratios);
    Ok(Measured { size_bytes, ours, bare, ratio: middle(ratios), flooded, flooded_ratio })
}

/// A pair in another DC that posts loans as fast as it can.
struct Flood {
    sender: Worker,
    receiver: Worker,
}

impl Flood {
    fn start(ground: &Ground<'_>) -> Result<Option<Flood>> {
        let Some(dc) = ground.flood else { return Ok(None) };
        let receiver = ground.start_in(
            dc,
            ground.far,
            "flood-in",
            0,
            &["pour-in", "--wait", ground.wait.name()].map(str::to_owned),
        )?;
        let (to, wait) = (ground.name("flood-in", 0), ground.wait.name());
        let role = ["pour-out", &to, "--size-bytes", FLOOD_BYTES, "--wait", wait, "--loan"];
        let role = role.map(str::to_owned);
        let sender = ground.start_in(dc, ground.near, "flood-out", 0, &role)?;
        let mut flood = Flood { sender, receiver };
        flood.sender.ready()?;
        flood.receiver.ready()?;
        Ok(Some(flood))
    }

    /// Floods for a little longer than what is done takes.
    fn during<T>(&mut self, time: Duration, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let longer = time + FLOOD_LONGER;
        self.sender.order(&longer.as_millis().to_string())?;
        std::thread::sleep(FLOOD_LONGER / 2);
        let result = act()?;
        let _: Poured = self.sender.report(longer + REPORT_WITHIN)?;
        let _: Taken = self.receiver.report(REPORT_WITHIN)?;
        Ok(result)
    }
}

/// The echoes, which are to be kept, and who asks them.
fn start(ground: &Ground<'_>, size_bytes: usize) -> Result<(Vec<Worker>, Vec<Worker>)> {
    let (mut echoes, mut asks) = (Vec::new(), Vec::new());
    for pair in 0..ground.pairs {
        let cpus = ground.processors.as_ref().and_then(|all| all.get(pair));
        let manner = |cpu: Option<usize>| {
            let mut words = vec!["--wait".to_owned(), ground.wait.name().to_owned()];
            cpu.into_iter().for_each(|cpu| words.extend(["--cpu".to_owned(), cpu.to_string()]));
            words
        };
        let role = [vec!["echo".to_owned()], manner(cpus.map(|c| c.1))].concat();
        echoes.push(ground.start(ground.far, "echo", pair, &role)?);
        let cargo = if size_bytes > INLINE_BYTES_MAX {
            vec!["--loan-bytes".to_owned(), size_bytes.to_string(), "--copied".to_owned()]
        } else {
            vec!["--inline-bytes".to_owned(), size_bytes.to_string()]
        };
        let role =
            [vec!["ask".to_owned(), ground.name("echo", pair)], manner(cpus.map(|c| c.0)), cargo].concat();
        asks.push(ground.start(ground.near, "ask", pair, &role)?);
    }
    for ask in &mut asks {
        ask.ready()?;
    }
    Ok((echoes, asks))
}

/// All pairs at once.
fn turn(asks: &mut [Worker], time: Duration) -> Result<Vec<Spread>> {
    let order = Run { rounds: ROUNDS_MAX, time_max: time }.order();
    for ask in asks.iter_mut() {
        ask.order(&order)?;
    }
    asks.iter_mut().map(|ask| ask.report(time + REPORT_WITHIN)).collect()
}

fn joined(spreads: &[Spread]) -> Spread {
    spreads.iter().fold(Spread::default(), |mut all, one| {
        all.join(one);
        all
    })
}

fn text(all: &[Measured], output: &Output) -> String {
    let mut table = Table::new(&["ROUND TRIP", ">p50", ">p99", ">p99.9", ">MAX", ">ROUNDS", ">OURS / BARE"]);
    for m in all {
        let ratio = m.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        table.row(row(&format!("{}{}", bytes(m.size_bytes as u64), form(m.size_bytes)), &m.ours, ratio));
        if let Some(bare) = &m.bare {
            table.row(row("  bare", bare, String::new()));
        }
        if let (Some(flooded), Some(ratio)) = (&m.flooded, m.flooded_ratio) {
            table.row(row(&format!("  beside a flood, p99 x {ratio:.2}"), flooded, String::new()));
        }
    }
    let mut text = table.text(output);
    for m in all {
        let heading = output.heading(&format!("{}{}", bytes(m.size_bytes as u64), form(m.size_bytes)));
        text += &format!("\n\n{heading}\n{}", chart(&m.ours.rows(), output.is_rich()));
    }
    text
}

fn form(size_bytes: usize) -> &'static str {
    if size_bytes > INLINE_BYTES_MAX { " in loans" } else { "" }
}

fn row(what: &str, spread: &Spread, ratio: String) -> Vec<String> {
    let l = spread.latency();
    let [p50, p99, p999, max] = [l.p50_ns, l.p99_ns, l.p999_ns, l.max_ns].map(nanoseconds);
    vec![what.to_owned(), p50, p99, p999, max, count(l.rounds), ratio]
}
