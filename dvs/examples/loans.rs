//! Large payloads: a client writes a file into a loan, a server reads it where it is and answers with the number of its
//! lines. On one node no byte is copied in between.
//!
//! ```text
//! dvs run --dc main --node 1 --name counter -- loans serve
//! dvs run --dc main --node 2 -- loans count some.txt
//! ```

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dvk::{Binding, Message, Timeout, View, What};

/// A text, answered by a number.
const COUNT: u32 = 1;

/// How long a client waits for an answer.
const PATIENCE: Timeout = Timeout::After(Duration::from_secs(20));

// ANCHOR: serve
/// Counts until it is woken.
fn serve(me: &mut Binding) -> Result<()> {
    loop {
        let request = me.receive_request(Timeout::Forever)?;
        match request.what() {
            What::Woken => return Ok(()),
            What::Request { .. } => {
                let lines = request.view().map_or(0, lines);
                // Its client may have gone: the next one has not.
                let _ = me.reply(&request, Message::new(COUNT).inline(&lines.to_le_bytes()));
            }
            _ => {}
        }
        // Here the request is dropped, and with it the view: the loan goes home to the client.
    }
}

/// Reads piece by piece: the sender may still write what is looked at, so each piece is copied before it is judged.
fn lines(view: &View) -> u64 {
    let mut piece = [0; 64 << 10];
    let mut count = 0;
    for from in (0..view.len()).step_by(piece.len()) {
        let piece = &mut piece[..(view.len() - from).min(64 << 10)];
        view.read_into(from, piece);
        count += piece.iter().filter(|byte| **byte == b'\n').count() as u64;
    }
    count
}
// ANCHOR_END: serve

// ANCHOR: count
fn count(me: &mut Binding, path: &str) -> Result<()> {
    let server =
        me.lookup_name("counter")?.context("nobody is bound as counter: start `loans serve` first")?;
    let mut file = std::fs::File::open(path).with_context(|| path.to_owned())?;
    let mut loan = me.loan(file.metadata()?.len().try_into()?)?;
    // Straight into memory that the server maps.
    file.read_exact(&mut loan)?;
    let answer = me.sendrec(server, Message::new(COUNT).with(loan), PATIENCE)?;
    let lines = answer.inline().try_into().context("not a number of eight bytes")?;
    println!("{} lines", u64::from_le_bytes(lines));
    Ok(())
}
// ANCHOR_END: count

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut me = Binding::from_env()?;
    match words[..] {
        ["serve"] => serve(&mut me),
        ["count", path] => count(&mut me, path),
        _ => bail!("usage: loans serve | count FILE"),
    }
}
