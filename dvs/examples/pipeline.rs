//! A pipeline of three stages, each on a node of its own: read lines, turn them round, number and print them. Each posts to
//! the next and waits for room when that is slower; long lines go as loans.
//!
//! ```text
//! dvs run --dc main --node 3 --name print -- target/release/examples/pipeline print < /dev/null
//! dvs run --dc main --node 2 --name turn  -- target/release/examples/pipeline turn print
//! dvs run --dc main --node 1 -- target/release/examples/pipeline read turn < some.txt
//! ```

use std::io::BufRead;
use std::time::{Duration, Instant};

use abi::Endpoint;
use abi::limits::INLINE_BYTES_MAX;
use anyhow::{Context, Result, bail};
use dvk::{Binding, Delivery, From, Message, Timeout};

/// A line.
const LINE: u32 = 1;
/// No more lines.
const END: u32 = 2;

/// The stage bound under a name, which may still be starting.
fn find(me: &mut Binding, name: &str) -> Result<Endpoint> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match me.lookup_name(name)? {
            Some(stage) => return Ok(stage),
            None if Instant::now() > end => bail!("nobody is bound as {name}: start that stage first"),
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

// ANCHOR: pass
fn pass(me: &mut Binding, to: Endpoint, line: &[u8]) -> Result<()> {
    let message = if line.len() <= INLINE_BYTES_MAX {
        Message::new(LINE).inline(line)
    } else {
        let mut loan = me.loan(line.len())?;
        loan.copy_from_slice(line);
        Message::new(LINE).with(loan)
    };
    Ok(me.post_all(to, message, Timeout::Forever)?)
}
// ANCHOR_END: pass

// ANCHOR: finish
/// Hands over the end, and returns when the next stage has taken it, and so all before it.
fn finish(me: &mut Binding, to: Endpoint) -> Result<()> {
    Ok(me.send(to, Message::new(END), Timeout::Forever)?)
}
// ANCHOR_END: finish

fn line_of(delivery: &Delivery) -> Vec<u8> {
    delivery.view().map_or_else(|| delivery.inline().to_vec(), dvk::View::to_vec)
}

// ANCHOR: each
/// Each line that comes, until the end.
fn each(me: &mut Binding, mut act: impl FnMut(&mut Binding, Vec<u8>) -> Result<()>) -> Result<()> {
    loop {
        let delivery = me.receive(From::Any, Timeout::Forever)?;
        match delivery.kind() {
            LINE => act(me, line_of(&delivery))?,
            _ => return Ok(()),
        }
    }
}
// ANCHOR_END: each

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut me = Binding::from_env()?;
    match words[..] {
        ["read", next] => {
            let next = find(&mut me, next)?;
            for line in std::io::stdin().lock().lines() {
                pass(&mut me, next, line.context("standard input")?.as_bytes())?;
            }
            finish(&mut me, next)
        }
        ["turn", next] => {
            let next = find(&mut me, next)?;
            each(&mut me, |me, line| {
                let turned: String = String::from_utf8_lossy(&line).chars().rev().collect();
                pass(me, next, turned.as_bytes())
            })?;
            finish(&mut me, next)
        }
        ["print"] => {
            let mut number = 0;
            each(&mut me, |_, line| {
                number += 1;
                println!("{number} {}", String::from_utf8_lossy(&line));
                Ok(())
            })
        }
        _ => bail!("usage: pipeline read NEXT | turn NEXT | print"),
    }
}
