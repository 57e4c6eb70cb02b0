//! `dvs bench rtt`: a request there and its reply back, as large.
//!
//! Up to the inline bytes a message carries it; beyond, it is written into a loan, copied by the other side into one
//! of its own, and that is read: as many copies as the bare ping-pong makes.

use std::time::Duration;

use abi::limits::INLINE_BYTES_MAX;
use anyhow::Result;
use node::config::ClusterNode;
use serde_json::json;

use super::chart::chart;
use super::limit::ROUNDS_MAX;
use super::{Ground, REPORT_WITHIN, Results, middle, rounded};
use crate::interrupt;
use crate::output::{Output, Table, bytes, count, nanoseconds};
use crate::workers::crew::Worker;
use crate::workers::echo::Run;
use crate::workers::pour::{Poured, Taken};
use crate::workers::spread::Spread;

/// The loans of a flood, and how much longer it lasts than what it is to hinder.
const FLOOD_BYTES: &str = "1048576";
const FLOOD_LONGER: Duration = Duration::from_millis(100);

/// Both sides of one size, all turns of all pairs together.
struct Measured {
    size_bytes: usize,
    ours: Spread,
    bare: Option<Spread>,
    /// While another DC floods the same proxies.
    flooded: Option<Beside>,
    /// While it floods other proxies of this machine: what the flood's share of the processors alone does.
    elsewhere: Option<Beside>,
    /// Of the medians, ours divided by the bare one.
    ratio: Option<f64>,
}

/// What was measured beside something.
#[derive(Default)]
struct Beside {
    spread: Spread,
    /// Of each turn, its p99 divided by that of the turn before, which nothing was beside.
    ratios: Vec<f64>,
}

impl Beside {
    fn join(&mut self, turn: &Spread, quiet: &Spread) {
        self.ratios.push(p99(turn) / p99(quiet));
        self.spread.join(turn);
    }

    fn ratio(&self) -> Option<f64> {
        middle(self.ratios.clone())
    }

    /// How many times longer the p99 is than beside `other`: the middle one of the turns, which came in pairs.
    fn over(&self, other: &Beside) -> Option<f64> {
        middle(self.ratios.iter().zip(&other.ratios).map(|(own, other)| own / other).collect())
    }
}

fn p99(turn: &Spread) -> f64 {
    turn.latency().p99_ns.max(1) as f64
}

impl Measured {
    /// What it costs that the flood goes through the same proxies: the p99 beside it by the p99 beside one elsewhere.
    fn shared_ratio(&self) -> Option<f64> {
        self.flooded.as_ref()?.over(self.elsewhere.as_ref()?)
    }
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
            "flooded": m.flooded.as_ref().map(|f| f.spread.latency()),
            "flooded_p99_ratio": m.flooded.as_ref().and_then(Beside::ratio).map(rounded),
            "flooded_elsewhere": m.elsewhere.as_ref().map(|f| f.spread.latency()),
            "flooded_elsewhere_p99_ratio": m.elsewhere.as_ref().and_then(Beside::ratio).map(rounded),
            "shared_p99_ratio": m.shared_ratio().map(rounded),
            "histogram": m.ours.rows(),
        })
    });
    Ok(Results { json: json.collect(), text: text(&all, output) })
}

fn one_size(ground: &Ground<'_>, size_bytes: usize) -> Result<Measured> {
    let (_echoes, mut asks) = start(ground, size_bytes)?;
    let (mut ours, mut bare) = (Spread::default(), None);
    let ends = ground.flood.as_ref().map(|_| [ground.near, ground.far]);
    let mut flood = ends.map(|ends| Flood::start(ground, "flood", ends)).transpose()?;
    let ends = ground.flood.as_ref().and_then(|f| f.elsewhere);
    let mut flood_elsewhere = ends.map(|ends| Flood::start(ground, "flood-elsewhere", ends)).transpose()?;
    let (mut flooded, mut elsewhere) = (None, None);
    let mut ratios = Vec::new();
    for _ in 0..ground.turns {
        interrupt::check()?;
        let bare_turn = ground.limit.turn(size_bytes, ground.turn)?.map(|all| joined(&all));
        let ours_turn = joined(&turn(&mut asks, ground.turn)?);
        if let Some(bare_turn) = bare_turn {
            let p50 = |turn: &Spread| turn.latency().p50_ns.max(1) as f64;
            ratios.push(p50(&ours_turn) / p50(&bare_turn));
            bare.get_or_insert_with(Spread::default).join(&bare_turn);
        }
        for (flood, beside) in [(&mut flood, &mut flooded), (&mut flood_elsewhere, &mut elsewhere)] {
            if let Some(flood) = flood {
                let turn = joined(&flood.during(ground.turn, || turn(&mut asks, ground.turn))?);
                beside.get_or_insert_with(Beside::default).join(&turn, &ours_turn);
            }
        }
        ours.join(&ours_turn);
    }
    Ok(Measured { size_bytes, ours, bare, ratio: middle(ratios), flooded, elsewhere })
}

/// A pair in another DC that posts loans as fast as it can.
struct Flood {
    sender: Worker,
    receiver: Worker,
}

impl Flood {
    fn start(ground: &Ground<'_>, name: &str, [near, far]: [&ClusterNode; 2]) -> Result<Flood> {
        let dc = ground.flood.as_ref().map_or(ground.dc, |flood| flood.dc);
        let [inward, outward] = ["in", "out"].map(|way| format!("{name}-{way}"));
        let (to, wait) = (ground.name(&inward, 0), ground.wait.name());
        let role = ["pour-in", "--wait", wait].map(str::to_owned);
        let receiver = ground.start_in(dc, far, &inward, 0, &role)?;
        let role = ["pour-out", &to, "--size-bytes", FLOOD_BYTES, "--wait", wait, "--loan"];
        let role = role.map(str::to_owned);
        let sender = ground.start_in(dc, near, &outward, 0, &role)?;
        let mut flood = Flood { sender, receiver };
        flood.sender.ready()?;
        flood.receiver.ready()?;
        Ok(flood)
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
        for (what, beside) in [("beside a flood", &m.flooded), ("flooded elsewhere", &m.elsewhere)] {
            if let Some((beside, ratio)) = beside.as_ref().and_then(|b| Some((b, b.ratio()?))) {
                table.row(row(&format!("  {what}, p99 x {ratio:.2}"), &beside.spread, String::new()));
            }
        }
    }
    let mut text = table.text(output);
    for m in all {
        if let Some(ratio) = m.shared_ratio() {
            text += &format!(
                "\n\n{}: p99 beside a flood through the same proxies / through others of this machine: {ratio:.2}",
                bytes(m.size_bytes as u64)
            );
        }
    }
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
