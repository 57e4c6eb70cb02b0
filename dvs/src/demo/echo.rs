//! Round trips: one side answers, the other asks and measures.
//!
//! Key types: [`Manner`], [`Latency`]. One reading of the clock a round, and of the same one as the bare ping-pongs.

use std::time::Duration;

use abi::Endpoint;
use anyhow::{Context, Result, ensure};
use clap::Args;
use dvk::{Binding, Message, Timeout, Wait};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use shm::bare::Clock;

use super::worker::{Orders, report};

/// Message types: a round trip, and how the echo is to wait from now on.
const ROUND: u32 = 1;
const SPIN: u32 = 2;
const BLOCK: u32 = 3;
/// A round trip that takes longer has failed.
const ROUND_WITHIN: Timeout = Timeout::After(Duration::from_secs(20));
/// What takes longer counts as this.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// Inline bytes of a round trip.
pub const ROUND_BYTES: usize = 64;

/// How a side waits, and where it runs.
#[derive(Args, Clone, Copy, Debug)]
pub struct Manner {
    /// Spins while it is measured; sleeps otherwise
    #[arg(long)]
    spin: bool,
    /// Runs on this processor only
    #[arg(long)]
    cpu: Option<usize>,
}

impl Manner {
    fn take_place(self) -> Result<()> {
        match self.cpu {
            Some(cpu) => {
                shm::os::process::pin_to(cpu).with_context(|| format!("cannot run on processor {cpu}"))
            }
            None => Ok(()),
        }
    }
}

/// Answers for ever.
pub fn serve(me: &mut Binding, manner: Manner) -> Result<()> {
    manner.take_place()?;
    me.set_wait(Wait::Block);
    loop {
        let mut request = me.receive_request(Timeout::Forever)?;
        match request.kind() {
            SPIN => me.set_wait(Wait::Spin),
            BLOCK => me.set_wait(Wait::Block),
            _ => {}
        }
        // Handed back untouched, before the answer: the client may use it again at once.
        drop(request.take_view());
        let answer = Message::new(request.kind()).inline(request.inline());
        me.reply(&request, answer)?;
    }
}

/// What to measure, as an order: `ROUNDS MILLISECONDS`, whichever is reached first.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub rounds: usize,
    pub time_max: Duration,
}

impl Run {
    pub fn order(self) -> String {
        format!("{} {}", self.rounds, self.time_max.as_millis())
    }

    fn read(order: &str) -> Result<Run> {
        let (rounds, ms) = order.split_once(' ').context("an order is ROUNDS MILLISECONDS")?;
        Ok(Run { rounds: rounds.parse()?, time_max: Duration::from_millis(ms.parse()?) })
    }
}

/// Round trips of one run, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    pub rounds: u64,
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    /// One after the other: how many in a second.
    pub per_second: u64,
}

impl Latency {
    pub fn of(samples_ns: impl IntoIterator<Item = u64>) -> Result<Latency> {
        let bounds = Histogram::<u64>::new_with_bounds(1, LATENCY_NS_MAX, 3);
        let mut histogram = bounds.context("a histogram of three digits")?;
        let mut sum_ns = 0;
        for sample in samples_ns {
            sum_ns += sample;
            histogram.saturating_record(sample);
        }
        let at = |fraction| histogram.value_at_quantile(fraction);
        let per_second = (histogram.len() as f64 * 1e9 / (sum_ns as f64).max(1.0)) as u64;
        let (p50_ns, p99_ns, p999_ns) = (at(0.5), at(0.99), at(0.999));
        Ok(Latency { rounds: histogram.len(), p50_ns, p99_ns, p999_ns, per_second })
    }

    /// The middle of several runs, figure by figure.
    pub fn middle(runs: &[Latency]) -> Latency {
        let of = |figure: fn(&Latency) -> u64| {
            let mut figures: Vec<u64> = runs.iter().map(figure).collect();
            figures.sort_unstable();
            figures.get(figures.len() / 2).copied().unwrap_or(0)
        };
        Latency {
            rounds: runs.iter().map(|r| r.rounds).sum(),
            p50_ns: of(|r| r.p50_ns),
            p99_ns: of(|r| r.p99_ns),
            p999_ns: of(|r| r.p999_ns),
            per_second: of(|r| r.per_second),
        }
    }
}

/// Measures whenever it is told to.
pub fn ask(
    me: &mut Binding,
    echo: Endpoint,
    manner: Manner,
    loan_bytes: usize,
    orders: &Orders,
) -> Result<()> {
    manner.take_place()?;
    tell(me, echo, BLOCK)?;
    report(&"ready")?;
    let clock = Clock::calibrate();
    loop {
        let run = Run::read(&orders.next()?)?;
        if manner.spin {
            tell(me, echo, SPIN)?;
            me.set_wait(Wait::Spin);
        }
        let samples = measure(me, echo, loan_bytes, run, &clock)?;
        if manner.spin {
            me.set_wait(Wait::Block);
            tell(me, echo, BLOCK)?;
        }
        report(&Latency::of(samples.into_iter().map(|ticks| clock.ns(ticks.into()).round() as u64))?)?;
    }
}

fn tell(me: &mut Binding, echo: Endpoint, kind: u32) -> Result<()> {
    me.sendrec(echo, Message::new(kind), ROUND_WITHIN).context("the echo does not answer")?;
    Ok(())
}

/// Round trips, in ticks of the clock. The first tenth warms up and does not count.
fn measure(me: &mut Binding, echo: Endpoint, loan_bytes: usize, run: Run, clock: &Clock) -> Result<Vec<u32>> {
    let mut samples = vec![0; run.rounds.max(1)];
    let (began, limit) = (clock.now(), clock.ticks(run.time_max));
    for number in 0..run.rounds as u64 / 10 {
        round(me, echo, loan_bytes, number)?;
        if clock.now() - began > limit / 10 {
            break;
        }
    }
    let (mut taken, began) = (0, clock.now());
    let mut before = began;
    while taken < samples.len() {
        round(me, echo, loan_bytes, taken as u64)?;
        let now = clock.now();
        samples[taken] = u32::try_from(now - before).unwrap_or(u32::MAX);
        taken += 1;
        before = now;
        if now - began > limit {
            break;
        }
    }
    samples.truncate(taken);
    Ok(samples)
}

#[inline]
fn round(me: &mut Binding, echo: Endpoint, loan_bytes: usize, number: u64) -> Result<()> {
    let mut body = [0; ROUND_BYTES];
    body[..8].copy_from_slice(&number.to_le_bytes());
    let mut message = Message::new(ROUND).inline(&body);
    if loan_bytes > 0 {
        message = message.with(me.loan(loan_bytes)?);
    }
    let reply = me.sendrec(echo, message, Timeout::Forever)?;
    ensure!(reply.inline() == body, "round trip {number} came back changed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_taken_figure_by_figure() {
        let run = |p50_ns, p99_ns| Latency { rounds: 1, p50_ns, p99_ns, ..Latency::default() };
        let middle = Latency::middle(&[run(3, 10), run(1, 30), run(2, 20)]);
        assert_eq!((middle.rounds, middle.p50_ns, middle.p99_ns), (3, 2, 20));
    }

    #[test]
    fn quantiles_are_of_the_samples() {
        let latency = Latency::of((1..=1000).map(|n| n * 100)).unwrap();
        assert_eq!(latency.rounds, 1000);
        assert!((49_900..=50_200).contains(&latency.p50_ns), "{latency:?}");
        assert!((98_900..=99_400).contains(&latency.p99_ns), "{latency:?}");
    }
}
