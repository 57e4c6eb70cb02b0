//! Round trips: one side answers, the other asks and measures.
//!
//! Key types: [`Manner`], [`Cargo`]. One reading of the clock a round, and of the same one as the bare ping-pongs.

use std::time::Duration;

use abi::Endpoint;
use abi::limits::{INLINE_BYTES_MAX, INLINE_BYTES_WITH_EXTENT_MAX};
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use dvk::{Binding, Delivery, Message, Timeout, Wait};
use shm::bare::Clock;

use super::spread::Spread;
use super::{Orders, report};

/// Message types: a round trip, one whose loan is to come back as a copy, and how the echo is to wait from now on.
const ROUND: u32 = 1;
const SPIN: u32 = 2;
const BLOCK: u32 = 3;
const ADAPTIVE: u32 = 4;
const COPY: u32 = 5;
/// A round trip that takes longer has failed.
const ROUND_WITHIN: Timeout = Timeout::After(Duration::from_secs(20));
/// Inline bytes of a round trip.
pub const ROUND_BYTES: usize = 64;

/// How a side waits while it is measured. Otherwise it sleeps.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// Never sleeps: lowest latency, a whole processor for each process
    Spin,
    /// Sleeps at once
    Block,
    /// Spins a little, then sleeps, as programs do by default
    Adaptive,
}

impl Waiting {
    pub fn wait(self) -> Wait {
        match self {
            Waiting::Spin => Wait::Spin,
            Waiting::Block => Wait::Block,
            Waiting::Adaptive => Wait::of_this_machine(),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Waiting::Spin => "spin",
            Waiting::Block => "block",
            Waiting::Adaptive => "adaptive",
        }
    }

    fn kind(self) -> u32 {
        match self {
            Waiting::Spin => SPIN,
            Waiting::Block => BLOCK,
            Waiting::Adaptive => ADAPTIVE,
        }
    }
}

/// What a round trip carries.
#[derive(Args, Clone, Copy, Debug)]
pub struct Cargo {
    /// So many bytes inline
    #[arg(long, default_value_t = ROUND_BYTES)]
    inline_bytes: usize,
    /// Lets a loan of so many bytes travel along
    #[arg(long, default_value_t = 0)]
    loan_bytes: usize,
    /// The loan is written, copied by the echo into one of its own, and that is read
    #[arg(long)]
    copied: bool,
}

/// How a side waits, and where it runs.
#[derive(Args, Clone, Copy, Debug)]
pub struct Manner {
    /// While it is measured
    #[arg(long, value_enum, default_value_t = Waiting::Block)]
    wait: Waiting,
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
            ADAPTIVE => me.set_wait(Wait::of_this_machine()),
            COPY => {
                let answer = copy_of(me, &mut request)?;
                me.reply(&request, answer)?;
                continue;
            }
            _ => {}
        }
        // Handed back untouched, before the answer: the client may use it again at once.
        drop(request.take_view());
        let answer = Message::new(request.kind()).inline(request.inline());
        me.reply(&request, answer)?;
    }
}

fn copy_of(me: &mut Binding, request: &mut Delivery) -> Result<Message> {
    let view = request.take_view().context("a round trip without the loan to copy")?;
    let mut loan = me.loan(view.len())?;
    view.copy_to(&mut loan);
    Ok(Message::new(COPY).inline(request.inline()).with(loan))
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

/// Measures whenever it is told to.
pub fn ask(me: &mut Binding, echo: Endpoint, manner: Manner, cargo: Cargo, orders: &Orders) -> Result<()> {
    manner.take_place()?;
    check(cargo)?;
    tell(me, echo, BLOCK)?;
    report(&"ready")?;
    let clock = Clock::calibrate();
    loop {
        let run = Run::read(&orders.next()?)?;
        tell(me, echo, manner.wait.kind())?;
        me.set_wait(manner.wait.wait());
        let samples = measure(me, echo, &mut Asker::new(cargo), run, &clock)?;
        me.set_wait(Wait::Block);
        tell(me, echo, BLOCK)?;
        let mut spread = Spread::default();
        samples.into_iter().for_each(|ticks| spread.record(clock.ns(ticks.into()).round() as u64));
        report(&spread)?;
    }
}

fn check(cargo: Cargo) -> Result<()> {
    let room = if cargo.loan_bytes > 0 { INLINE_BYTES_WITH_EXTENT_MAX } else { INLINE_BYTES_MAX };
    ensure!((8..=room).contains(&cargo.inline_bytes), "inline bytes are 8 to {room}");
    ensure!(!cargo.copied || cargo.loan_bytes >= 8, "a loan that is copied has 8 bytes at least");
    Ok(())
}

fn tell(me: &mut Binding, echo: Endpoint, kind: u32) -> Result<()> {
    me.sendrec(echo, Message::new(kind), ROUND_WITHIN).context("the echo does not answer")?;
    Ok(())
}

/// Round trips, in ticks of the clock. The first tenth warms up and does not count.
fn measure(me: &mut Binding, echo: Endpoint, asker: &mut Asker, run: Run, clock: &Clock) -> Result<Vec<u32>> {
    let mut samples = vec![0; run.rounds.max(1)];
    let (began, limit) = (clock.now(), clock.ticks(run.time_max));
    for number in 0..run.rounds as u64 / 10 {
        asker.round(me, echo, number)?;
        if clock.now() - began > limit / 10 {
            break;
        }
    }
    let (mut taken, began) = (0, clock.now());
    let mut before = began;
    while taken < samples.len() {
        asker.round(me, echo, taken as u64)?;
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

/// What a round trip carries, and the buffers it is written from and read into.
struct Asker {
    cargo: Cargo,
    source: Vec<u8>,
    target: Vec<u8>,
}

impl Asker {
    fn new(cargo: Cargo) -> Asker {
        let copied_bytes = if cargo.copied { cargo.loan_bytes } else { 0 };
        Asker { cargo, source: vec![7; copied_bytes], target: vec![0; copied_bytes] }
    }

    #[inline]
    fn round(&mut self, me: &mut Binding, echo: Endpoint, number: u64) -> Result<()> {
        if self.cargo.copied {
            return self.round_copied(me, echo, number);
        }
        let mut body = [0; INLINE_BYTES_MAX];
        body[..8].copy_from_slice(&number.to_le_bytes());
        let body = &body[..self.cargo.inline_bytes];
        let mut message = Message::new(ROUND).inline(body);
        if self.cargo.loan_bytes > 0 {
            message = message.with(me.loan(self.cargo.loan_bytes)?);
        }
        let reply = me.sendrec(echo, message, Timeout::Forever)?;
        ensure!(reply.inline() == body, "round trip {number} came back changed");
        Ok(())
    }

    /// As many copies as a bare ping-pong makes: in and out on either way.
    fn round_copied(&mut self, me: &mut Binding, echo: Endpoint, number: u64) -> Result<()> {
        self.source[..8].copy_from_slice(&number.to_le_bytes());
        let mut loan = me.loan(self.cargo.loan_bytes)?;
        loan.copy_from_slice(&self.source);
        let mut reply = me.sendrec(echo, Message::new(COPY).with(loan), Timeout::Forever)?;
        let view = reply.take_view().filter(|view| view.len() == self.target.len());
        let view = view.with_context(|| format!("round trip {number} came back without its loan"))?;
        view.read_into(0, &mut self.target);
        ensure!(self.target[..8] == self.source[..8], "round trip {number} came back changed");
        Ok(())
    }
}
