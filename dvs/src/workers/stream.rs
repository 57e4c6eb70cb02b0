//! A counted stream: every message carries its number and a checksum; the receiver keeps a book of all it has
//! seen.
//!
//! Key types: [`Plan`], [`Sent`], [`Tally`].

use std::time::{Duration, Instant};

use abi::Endpoint;
use anyhow::{Result, bail};
use dvk::{Binding, From, Message, PostError, ReceiveError, Timeout, Wait};
use serde::{Deserialize, Serialize};

use super::{Orders, report};

/// Message types: one of the counted, and the last, which says how many there were.
const COUNTED: u32 = 20;
const LAST: u32 = 21;
/// A message's words: its number, six that follow from it, and a checksum.
const WORDS: usize = 8;
/// Longer than a proxy takes to be noticed dead, started anew and connected again.
const PATIENCE: Duration = Duration::from_secs(30);
/// At a pause the sender goes slower for this part of the whole, so that something is under way all the time.
const SLOW_PART: u64 = 20;
/// So many messages at a time while it goes slower, and so long between.
const SLOW_BURST: u64 = 32;
const SLOW_GAP: Duration = Duration::from_micros(500);

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub messages: u64,
    pub pauses: u64,
}

/// Said at each pause's beginning: so many have been posted, more follow slowly.
#[derive(Debug, Serialize, Deserialize)]
pub struct Pausing {
    pub posted: u64,
}

/// Said at the end.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sent {
    pub posted: u64,
    pub seconds: f64,
    /// Of these: waiting to be told to go on.
    pub paused_seconds: f64,
}

/// The receiver's book.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    pub received: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub corrupted: u64,
    /// The last message came, and said how many there were.
    pub ended: bool,
    pub seconds: f64,
}

/// Posts them all; slows down and stops where the plan says, until told `go`.
pub fn send(me: &mut Binding, to: Endpoint, plan: Plan, orders: &Orders) -> Result<()> {
    me.set_wait(Wait::of_this_machine());
    report(&"ready")?;
    orders.next()?;
    let (began, mut paused) = (Instant::now(), Duration::ZERO);
    let every = plan.messages / (plan.pauses + 1);
    let slow = (every / 2).min(plan.messages / SLOW_PART).max(1);
    let mut at = 0;
    for pause in 1..=plan.pauses {
        post_range(me, to, at..pause * every)?;
        report(&Pausing { posted: pause * every })?;
        at = pause * every + slow;
        post_slowly(me, to, pause * every..at)?;
        let stopped = Instant::now();
        orders.next()?;
        paused += stopped.elapsed();
    }
    post_range(me, to, at..plan.messages)?;
    post(me, to, Message::new(LAST).inline(&plan.messages.to_le_bytes()))?;
    let seconds = began.elapsed().as_secs_f64();
    report(&Sent { posted: plan.messages, seconds, paused_seconds: paused.as_secs_f64() })?;
    // What was posted is delivered as long as we are here.
    orders.next()?;
    Ok(())
}

fn post_range(me: &mut Binding, to: Endpoint, numbers: std::ops::Range<u64>) -> Result<()> {
    for number in numbers {
        post(me, to, Message::new(COUNTED).inline(&body(number)))?;
    }
    Ok(())
}

fn post_slowly(me: &mut Binding, to: Endpoint, numbers: std::ops::Range<u64>) -> Result<()> {
    let mut at = numbers.start;
    while at < numbers.end {
        let until = (at + SLOW_BURST).min(numbers.end);
        post_range(me, to, at..until)?;
        at = until;
        std::thread::sleep(SLOW_GAP);
    }
    Ok(())
}

fn post(me: &mut Binding, to: Endpoint, mut message: Message) -> Result<()> {
    loop {
        match me.post(to, message) {
            Ok(()) => return Ok(()),
            Err(PostError::Full(back)) => message = back,
            Err(why) => bail!("a message was not posted: {why:?}"),
        }
        me.wait_room(to, Timeout::After(PATIENCE))?;
    }
}

/// Keeps the book until the last message, or until nothing came for long; then waits for the next stream.
pub fn count(me: &mut Binding) -> Result<()> {
    me.set_wait(Wait::of_this_machine());
    report(&"ready")?;
    loop {
        let mut book = Book::default();
        let mut began = None;
        let mut patience = Timeout::Forever;
        let ended = loop {
            match me.receive(From::Any, patience) {
                Ok(message) if message.kind() == LAST => {
                    let total = message.inline().try_into().map(u64::from_le_bytes);
                    break total.ok();
                }
                Ok(message) => book.enter(message.inline()),
                Err(ReceiveError::TimedOut) => break None,
                Err(why) => return Err(why.into()),
            }
            if began.is_none() {
                began = Some(Instant::now());
                patience = Timeout::After(PATIENCE);
            }
        };
        report(&book.close(ended, began.map_or(0.0, |at| at.elapsed().as_secs_f64())))?;
    }
}

/// Which numbers have come.
#[derive(Default)]
struct Book {
    seen: Vec<u64>,
    /// One more than the highest number that has come.
    next: u64,
    tally: Tally,
}

impl Book {
    #[inline]
    fn enter(&mut self, bytes: &[u8]) {
        let Some(number) = number_of(bytes) else {
            self.tally.corrupted += 1;
            return;
        };
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if word >= self.seen.len() {
            self.seen.resize((word + 1).next_multiple_of(1024), 0);
        }
        if self.seen[word] & bit != 0 {
            self.tally.duplicated += 1;
            return;
        }
        self.seen[word] |= bit;
        self.tally.received += 1;
        if number < self.next {
            self.tally.reordered += 1;
        } else {
            self.next = number + 1;
        }
    }

    fn close(mut self, total: Option<u64>, seconds: f64) -> Tally {
        self.tally.lost = total.unwrap_or(self.next).saturating_sub(self.tally.received);
        self.tally.ended = total.is_some();
        self.tally.seconds = seconds;
        self.tally
    }
}

/// The words of message `number`, in bytes.
fn body(number: u64) -> [u8; 8 * WORDS] {
    let words = words(number);
    let mut bytes = [0; 8 * WORDS];
    for (out, word) in bytes.chunks_exact_mut(8).zip(words) {
        out.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The number, if every word is what it must be. Numbers beyond any stream are refused before memory is.
fn number_of(bytes: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (number < 1 << 32 && bytes == body(number)).then_some(number)
}

fn words(number: u64) -> [u64; WORDS] {
    let mut words = [number; WORDS];
    let mut sum = number;
    for (at, word) in words.iter_mut().enumerate().take(WORDS - 1).skip(1) {
        // Source: SplitMix64's finalizer, Steele, Lea and Flood 2014.
        let mut mixed = number.wrapping_add((at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        *word = mixed ^ mixed >> 27;
        sum = sum.rotate_left(7) ^ *word;
    }
    words[WORDS - 1] = sum;
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally_of(numbers: &[u64], total: Option<u64>) -> Tally {
        let mut book = Book::default();
        for number in numbers {
            book.enter(&body(*number));
        }
        book.close(total, 0.0)
    }

    #[test]
    fn a_whole_stream_has_nothing_to_complain_about() {
        let whole = Tally { received: 3, ended: true, ..Tally::default() };
        assert_eq!(tally_of(&[0, 1, 2], Some(3)), whole);
    }

    #[test]
    fn every_kind_of_damage_is_counted_once() {
        let lost = tally_of(&[0, 2], Some(3));
        assert_eq!((lost.lost, lost.duplicated, lost.reordered), (1, 0, 0));
        let tail = tally_of(&[0, 1], Some(3));
        assert_eq!(tail.lost, 1);
        let twice = tally_of(&[0, 1, 1, 2], Some(3));
        assert_eq!((twice.lost, twice.duplicated, twice.reordered), (0, 1, 0));
        let late = tally_of(&[0, 2, 1], Some(3));
        assert_eq!((late.lost, late.duplicated, late.reordered), (0, 0, 1));
        assert!(!tally_of(&[0], None).ended);
    }

    #[test]
    fn one_changed_bit_is_a_corrupted_message() {
        let mut book = Book::default();
        let mut bytes = body(5);
        bytes[63] ^= 1;
        book.enter(&bytes);
        book.enter(&bytes[..60]);
        assert_eq!(book.close(Some(0), 0.0).corrupted, 2);
    }
}
