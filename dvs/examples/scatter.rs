//! Scatter and gather: one worker on each node, found by its name; a task for each at once, the answers as they come. Counts
//! primes.
//!
//! ```text
//! for node in 1 2 3; do
//!   dvs run --dc main --node $node --name worker-$node -- target/release/examples/scatter work &
//! done
//! dvs run --dc main --node 1 -- target/release/examples/scatter ask 100000 worker-1 worker-2 worker-3
//! ```

use std::time::Duration;

use abi::Endpoint;
use anyhow::{Context, Result, bail, ensure};
use dvk::{Binding, From, Message, Timeout, What};

/// Two numbers: from, and up to but not with. Answered by one number.
const TASK: u32 = 1;
const RESULT: u32 = 2;

/// How long a worker may take for its part.
const PATIENCE: Duration = Duration::from_secs(60);

fn primes(from: u64, to: u64) -> u64 {
    let is_prime = |n: &u64| *n >= 2 && (2..).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d));
    (from..to).filter(is_prime).count() as u64
}

fn numbers(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks().0.iter().map(|eight| u64::from_le_bytes(*eight)).collect()
}

// ANCHOR: work
/// Works until it is woken.
fn work(me: &mut Binding) -> Result<()> {
    loop {
        let task = me.receive(From::Any, Timeout::Forever)?;
        match (task.what(), task.kind(), &numbers(task.inline())[..]) {
            (What::Woken, ..) => return Ok(()),
            (What::Message, TASK, &[from, to]) => {
                let answer = Message::new(RESULT).inline(&primes(from, to).to_le_bytes());
                // Whoever asked may have ended: the next one may not.
                let _ = me.post_all(task.source(), answer, Timeout::After(PATIENCE));
            }
            _ => {}
        }
    }
}
// ANCHOR_END: work

fn ask(me: &mut Binding, below: u64, names: &[&str]) -> Result<()> {
    let find = |name: &&str| {
        me.lookup_name(name)?.with_context(|| format!("nobody is bound as {name}: start that worker first"))
    };
    let workers: Vec<Endpoint> = names.iter().map(find).collect::<Result<_>>()?;
    ensure!(!workers.is_empty(), "name the workers");
    let part = below.div_ceil(workers.len() as u64);
    // ANCHOR: ask
    for (at, worker) in (0..).zip(&workers) {
        let (from, to) = (at * part, ((at + 1) * part).min(below));
        let task = [from.to_le_bytes(), to.to_le_bytes()].concat();
        me.post_all(*worker, Message::new(TASK).inline(&task), Timeout::After(PATIENCE))?;
    }
    let mut sum = 0;
    for (worker, name) in workers.iter().zip(names) {
        // In this order, whichever is done first: what the others answer waits in their lanes.
        let result = me.receive(From::Endpoint(*worker), Timeout::After(PATIENCE));
        let count = numbers(result.with_context(|| (*name).to_owned())?.inline()).iter().sum::<u64>();
        println!("{name}: {count}");
        sum += count;
    }
    // ANCHOR_END: ask
    println!("{sum} primes below {below}");
    Ok(())
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut me = Binding::from_env()?;
    match words[..] {
        ["work"] => work(&mut me),
        ["ask", below, ref names @ ..] => ask(&mut me, below.parse().context("a number")?, names),
        _ => bail!("usage: scatter work | ask BELOW NAME …"),
    }
}
