//! As many messages as one process can post to another, of one size, for a while.
//!
//! Key types: [`Load`], [`Poured`], [`Taken`]. A loan is written by its sender and read by its receiver, all of it.

use std::time::{Duration, Instant};

use abi::Endpoint;
use abi::limits::INLINE_BYTES_MAX;
use anyhow::{Context, Result, ensure};
use clap::Args;
use dvk::{Binding, From, Message, Timeout, Wait};
use serde::{Deserialize, Serialize};

use super::echo::Waiting;
use super::{Orders, report};

/// Message types: one of many, and the last of a run.
const ONE: u32 = 40;
const LAST: u32 = 41;
/// Nothing takes longer unless it has failed.
const PATIENCE: Timeout = Timeout::After(Duration::from_secs(30));
/// Inline messages between two glances at the clock.
const GLANCE_EVERY: u64 = 64;
/// Bytes of loans that may be under way: few enough to stay in a cache, many enough to keep both sides busy.
const WINDOW_BYTES: usize = 8 << 20;
const WINDOW_MIN: usize = 2;

/// What is posted, and how the sender waits for room.
#[derive(Args, Clone, Copy, Debug)]
pub struct Load {
    #[arg(long)]
    size_bytes: usize,
    /// As a loan, whatever its size
    #[arg(long)]
    loan: bool,
    #[arg(long, value_enum)]
    wait: Waiting,
}

/// What the sender posted in a run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Poured {
    pub messages: u64,
}

/// What the receiver had of a run, from its first message to its last.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Taken {
    pub messages: u64,
    pub bytes: u64,
    pub seconds: f64,
}

/// Posts for so many milliseconds as each order says.
pub fn send(me: &mut Binding, to: Endpoint, load: Load, orders: &Orders) -> Result<()> {
    ensure!(load.size_bytes >= 8, "a message has 8 bytes at least");
    ensure!(
        load.loan || load.size_bytes <= INLINE_BYTES_MAX,
        "more than {INLINE_BYTES_MAX} bytes go as a loan"
    );
    report(&"ready")?;
    let mut source = vec![7; load.size_bytes];
    let window = (WINDOW_BYTES / load.size_bytes).max(WINDOW_MIN) as u64;
    loop {
        let time = Duration::from_millis(orders.next()?.parse().context("an order is MILLISECONDS")?);
        me.set_wait(load.wait.wait());
        let began = Instant::now();
        let mut number: u64 = 0;
        let every = if load.loan { 1 } else { GLANCE_EVERY };
        while !number.is_multiple_of(every) || began.elapsed() < time {
            source[..8].copy_from_slice(&number.to_le_bytes());
            let message = if load.loan {
                let mut loan = me.loan(load.size_bytes)?;
                loan.copy_from_slice(&source);
                Message::new(ONE).with(loan)
            } else {
                Message::new(ONE).inline(&source)
            };
            number += 1;
            // A rendezvous now and then: what came before it has been taken when it returns.
            if load.loan && number.is_multiple_of(window) {
                rendezvous(me, to, message)?;
            } else {
                me.post_all(to, message, PATIENCE)?;
            }
        }
        rendezvous(me, to, Message::new(LAST).inline(&number.to_le_bytes()))?;
        me.set_wait(Wait::Block);
        report(&Poured { messages: number })?;
    }
}

/// A `send` finds the lane full where a post has filled it: room comes first.
fn rendezvous(me: &mut Binding, to: Endpoint, message: Message) -> Result<()> {
    me.wait_room(to, PATIENCE)?;
    me.send(to, message, PATIENCE)?;
    Ok(())
}

/// Takes what comes and reports each run. Sleeps between runs.
pub fn receive(me: &mut Binding, waiting: Waiting) -> Result<()> {
    me.set_wait(Wait::Block);
    report(&"ready")?;
    let mut target = Vec::new();
    loop {
        let (mut taken, mut began) = (Taken { messages: 0, bytes: 0, seconds: 0.0 }, None);
        loop {
            let mut message = me.receive(From::Any, Timeout::Forever)?;
            if message.kind() == LAST {
                let posted = message.inline().try_into().map(u64::from_le_bytes);
                ensure!(posted.is_ok_and(|n| n == taken.messages), "{posted:?} were posted, {taken:?} came");
                break;
            }
            if began.is_none() {
                began = Some(Instant::now());
                me.set_wait(waiting.wait());
            }
            let bytes = match message.take_view() {
                Some(view) => {
                    target.resize(view.len(), 0);
                    view.read_into(0, &mut target);
                    target.as_slice()
                }
                None => message.inline(),
            };
            let number = bytes.first_chunk().map(|first| u64::from_le_bytes(*first));
            ensure!(number == Some(taken.messages), "{number:?} came instead of {}", taken.messages);
            taken.messages += 1;
            taken.bytes += bytes.len() as u64;
        }
        taken.seconds = began.map_or(0.0, |at| at.elapsed().as_secs_f64());
        me.set_wait(Wait::Block);
        report(&taken)?;
    }
}
