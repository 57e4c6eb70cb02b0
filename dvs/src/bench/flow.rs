//! `dvs bench rate` and `bw`: as much as one process of each pair can post to the other, counted by the receiver.
//!
//! `bw` sends loans of every size, `rate` those beyond the inline bytes. The bare ping-pong moves two messages in a
//! round trip and has one under way; we have many, and may be ahead of it.

use std::time::Duration;

use abi::limits::INLINE_BYTES_MAX;
use anyhow::{Result, ensure};
use serde_json::json;

use super::{Ground, REPORT_WITHIN, Results, What, middle, rounded};
use crate::interrupt;
use crate::output::{Output, Table, bytes, count};
use crate::workers::crew::Worker;
use crate::workers::pour::{Poured, Taken};

/// One size, all pairs together.
struct Measured {
    size_bytes: usize,
    loan: bool,
    messages: u64,
    bytes: u64,
    /// Of the turns, the middle one.
    per_second: f64,
    bare_per_second: Option<f64>,
    /// Ours divided by the bare one.
    ratio: Option<f64>,
}

/// The programs of a pair.
struct Pair {
    sender: Worker,
    receiver: Worker,
}

pub fn measure(ground: &Ground<'_>, sizes: &[usize], output: &Output) -> Result<Results> {
    let mut all = Vec::new();
    for size in sizes {
        all.push(one_size(ground, *size)?);
    }
    let json = all.iter().map(|m| {
        let size = m.size_bytes as f64;
        json!({
            "size_bytes": m.size_bytes,
            "loan": m.loan,
            "messages": m.messages,
            "bytes": m.bytes,
            "messages_per_s": m.per_second as u64,
            "bytes_per_s": (m.per_second * size) as u64,
            "bare_messages_per_s": m.bare_per_second.map(|n| n as u64),
            "bare_bytes_per_s": m.bare_per_second.map(|n| (n * size) as u64),
            "ratio": m.ratio.map(rounded),
        })
    });
    Ok(Results { json: json.collect(), text: text(ground.what, &all, output) })
}

fn one_size(ground: &Ground<'_>, size_bytes: usize) -> Result<Measured> {
    let loan = ground.what == What::Bw || size_bytes > INLINE_BYTES_MAX;
    let mut pairs = start(ground, size_bytes, loan)?;
    let (mut messages, mut bytes) = (0, 0);
    let (mut rates, mut bares, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ground.turns {
        interrupt::check()?;
        let bare = ground.limit.turn(size_bytes, ground.turn)?;
        let bare = bare.map(|all| all.iter().map(|s| 2.0 * s.latency().per_second as f64).sum::<f64>());
        let mut rate = 0.0;
        for taken in turn(&mut pairs, ground.turn)? {
            messages += taken.messages;
            bytes += taken.bytes;
            rate += taken.messages as f64 / taken.seconds.max(1e-9);
        }
        rates.push(rate);
        ratios.extend(bare.map(|bare| rate / bare.max(1.0)));
        bares.extend(bare);
    }
    let (per_second, bare_per_second) = (middle(rates).unwrap_or(0.0), middle(bares));
    Ok(Measured { size_bytes, loan, messages, bytes, per_second, bare_per_second, ratio: middle(ratios) })
}

fn start(ground: &Ground<'_>, size_bytes: usize, loan: bool) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for pair in 0..ground.pairs {
        let wait = ["--wait".to_owned(), ground.wait.name().to_owned()];
        let mut role = vec!["pour-in".to_owned()];
        role.extend(wait.clone());
        let receiver = ground.start(ground.far, "in", pair, &role)?;
        let mut role = vec!["pour-out".to_owned(), ground.name("in", pair)];
        role.extend(["--size-bytes".to_owned(), size_bytes.to_string()].into_iter().chain(wait));
        role.extend(loan.then(|| "--loan".to_owned()));
        pairs.push(Pair { sender: ground.start(ground.near, "out", pair, &role)?, receiver });
    }
    for pair in &mut pairs {
        pair.sender.ready()?;
        pair.receiver.ready()?;
    }
    Ok(pairs)
}

/// All pairs at once.
fn turn(pairs: &mut [Pair], time: Duration) -> Result<Vec<Taken>> {
    for pair in pairs.iter_mut() {
        pair.sender.order(&time.as_millis().max(1).to_string())?;
    }
    let taken = pairs.iter_mut().map(|pair| {
        // The sender first: when one fails, it is the one that can say why.
        let poured: Poured = pair.sender.report(time + REPORT_WITHIN)?;
        let taken: Taken = pair.receiver.report(REPORT_WITHIN)?;
        ensure!(taken.messages == poured.messages, "{poured:?} were posted, {taken:?} came");
        Ok(taken)
    });
    taken.collect()
}

fn text(what: What, all: &[Measured], output: &Output) -> String {
    let headings = if what == What::Bw {
        ["BANDWIDTH", ">MESSAGES", ">BYTES/S", ">BARE", ">OURS / BARE"]
    } else {
        ["RATE", ">MESSAGES", ">MESSAGES/S", ">BARE", ">OURS / BARE"]
    };
    let mut table = Table::new(&headings);
    for m in all {
        let size = format!("{}{}", bytes(m.size_bytes as u64), if m.loan { " in loans" } else { "" });
        let shown = |per_second: f64| match what {
            What::Bw => format!("{}/s", bytes((per_second * m.size_bytes as f64) as u64)),
            What::Rtt | What::Rate => count(per_second as u64),
        };
        let or_nothing = |value: Option<String>| value.unwrap_or_default();
        table.row(vec![
            size,
            count(m.messages),
            shown(m.per_second),
            or_nothing(m.bare_per_second.map(shown)),
            or_nothing(m.ratio.map(|ratio| format!("{ratio:.2}"))),
        ]);
    }
    table.text(output)
}
