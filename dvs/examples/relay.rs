//! A front door: it takes requests and passes them on, to each of its workers in turn. A worker answers the client itself.
//!
//! ```text
//! dvs run --dc main --node 2 --name worker-2 -- relay work
//! dvs run --dc main --node 3 --name worker-3 -- relay work
//! dvs run --dc main --node 1 --name door -- relay door worker-2 worker-3
//! dvs run --dc main --node 1 -- relay ask door one two three
//! ```

use std::time::Duration;

use abi::Endpoint;
use abi::limits::INLINE_BYTES_MAX;
use anyhow::{Context, Result, bail, ensure};
use dvk::{Binding, Message, Timeout, What};

/// A text to turn into capital letters.
const TASK: u32 = 1;

/// How long a client waits for an answer.
const PATIENCE: Timeout = Timeout::After(Duration::from_secs(20));

fn find(me: &mut Binding, name: &str) -> Result<Endpoint> {
    me.lookup_name(name)?.with_context(|| format!("nobody is bound as {name}: start that one first"))
}

// ANCHOR: door
/// Passes requests on until it is woken.
fn door(me: &mut Binding, names: &[&str]) -> Result<()> {
    ensure!(!names.is_empty(), "name the workers");
    let workers: Vec<Endpoint> = names.iter().map(|name| find(me, name)).collect::<Result<_>>()?;
    for worker in workers.iter().cycle() {
        let request = me.receive_request(Timeout::Forever)?;
        match request.what() {
            What::Woken => return Ok(()),
            // Not passed on, it is dropped here, and its client hears `Abandoned`.
            What::Request { .. } => me.relay(&request, *worker).unwrap_or_else(|why| eprintln!("{why}")),
            _ => {}
        }
    }
    Ok(())
}
// ANCHOR_END: door

// ANCHOR: work
/// Answers requests, whoever passed them on, until it is woken.
fn work(me: &mut Binding) -> Result<()> {
    let own = me.whoami();
    loop {
        let request = me.receive_request(Timeout::Forever)?;
        match request.what() {
            What::Woken => return Ok(()),
            What::Request { .. } => {
                let text = String::from_utf8_lossy(request.inline()).to_uppercase();
                let way = if request.via().is_some() { "by way of another" } else { "directly" };
                let said = format!("{text}, says slot {}, asked {way}", own.slot);
                let answer = &said.as_bytes()[..said.len().min(INLINE_BYTES_MAX)];
                // Its client may have gone: the next one has not.
                let _ = me.reply(&request, Message::new(TASK).inline(answer));
            }
            _ => {}
        }
    }
}
// ANCHOR_END: work

// ANCHOR: ask
fn ask(me: &mut Binding, door: &str, texts: &[&str]) -> Result<()> {
    let door = find(me, door)?;
    for text in texts {
        ensure!(text.len() <= INLINE_BYTES_MAX, "a text has at most {INLINE_BYTES_MAX} bytes");
        let answer = me.sendrec(door, Message::new(TASK).inline(text.as_bytes()), PATIENCE)?;
        println!("{}", String::from_utf8_lossy(answer.inline()));
    }
    Ok(())
}
// ANCHOR_END: ask

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut me = Binding::from_env()?;
    match words[..] {
        ["work"] => work(&mut me),
        ["door", ref workers @ ..] => door(&mut me, workers),
        ["ask", to, ref texts @ ..] => ask(&mut me, to, texts),
        _ => bail!("usage: relay work | door WORKER … | ask DOOR TEXT …"),
    }
}
