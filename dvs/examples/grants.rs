//! Bytes by grant: a server holds a file in memory, and lets whoever asks copy it out, on whichever node, as often and in what
//! pieces it likes, until it says that it is done.
//!
//! ```text
//! dvs run --dc main --node 1 --name shelf -- grants hold big.bin
//! dvs run --dc main --node 2 -- grants fetch copy.bin
//! ```

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

use abi::Endpoint;
use anyhow::{Context, Result, bail, ensure};
use dvk::{Access, Binding, CopyEnd, Grant, GrantSegment, Message, Timeout, What};

/// Asks for a grant of the whole; answered by one.
const OPEN: u32 = 1;
/// Is done with it.
const DONE: u32 = 2;

/// How long a client waits for an answer, and for a piece.
const PATIENCE: Timeout = Timeout::After(Duration::from_secs(20));
/// A piece; its size is the client's choice.
const PIECE_BYTES: u64 = 4 << 20;

// ANCHOR: hold
/// Answers until it is woken.
fn serve(me: &mut Binding, held: &GrantSegment) -> Result<()> {
    let mut given: BTreeMap<Endpoint, Grant> = BTreeMap::new();
    loop {
        let request = me.receive_request(Timeout::Forever)?;
        let answer = match (request.what(), request.kind()) {
            (What::Woken, _) => return Ok(()),
            (What::Request { .. }, OPEN) => {
                // A grant is of no use to anybody once its client has ended, and still has its place in the table.
                let is_over = |client: &Endpoint| me.lookup(client.slot) != Some(*client);
                let over: Vec<Endpoint> = given.keys().copied().filter(is_over).collect();
                for client in over {
                    take_back(me, &mut given, client)?;
                }
                let client = request.source();
                let grant = match given.entry(client) {
                    Entry::Occupied(entry) => *entry.get(),
                    Entry::Vacant(entry) => *entry.insert(me.grant(held, 0, held.len_bytes(), client)?),
                };
                Message::new(OPEN).inline(&grant.to_bytes())
            }
            (What::Request { .. }, DONE) => {
                take_back(me, &mut given, request.source())?;
                Message::new(DONE)
            }
            _ => continue,
        };
        // Its client may have gone: the next one has not.
        let _ = me.reply(&request, answer);
    }
}

/// After this nothing more is read through it.
fn take_back(me: &mut Binding, given: &mut BTreeMap<Endpoint, Grant>, client: Endpoint) -> Result<()> {
    if let Some(grant) = given.remove(&client) {
        me.revoke(&grant)?;
    }
    Ok(())
}
// ANCHOR_END: hold

/// The file in memory that can be granted.
fn load(me: &mut Binding, path: &str) -> Result<GrantSegment> {
    let mut file = File::open(path).with_context(|| path.to_owned())?;
    let len = file.metadata()?.len();
    ensure!(len > 0, "{path} is empty: nothing to hold");
    let held = me.grant_segment(len, Access::Read)?;
    let mut piece = vec![0; PIECE_BYTES as usize];
    let mut at = 0;
    while at < len {
        let piece = &mut piece[..PIECE_BYTES.min(len - at) as usize];
        file.read_exact(piece).with_context(|| path.to_owned())?;
        held.write_from(at, piece)?;
        at += piece.len() as u64;
    }
    Ok(held)
}

// ANCHOR: fetch
fn fetch(me: &mut Binding, path: &str) -> Result<()> {
    let server = me.lookup_name("shelf")?.context("nobody is bound as shelf: start `grants hold` first")?;
    let answer = me.sendrec(server, Message::new(OPEN), PATIENCE)?;
    let grant = Grant::from_bytes(answer.inline()).context("not a grant")?;
    let len = grant.len_bytes;
    let mut out = File::create(path).with_context(|| path.to_owned())?;
    // What the bytes are copied into is ours alone: nobody is granted anything of it.
    let mine = me.grant_segment(PIECE_BYTES, Access::Write)?;
    let mut piece = vec![0; PIECE_BYTES as usize];
    let mut at = 0;
    while at < len {
        let step = PIECE_BYTES.min(len - at);
        me.copy(CopyEnd::Granted(&grant, at), CopyEnd::Own(&mine, 0), step, PATIENCE)?;
        let piece = &mut piece[..step as usize];
        mine.read_into(0, piece)?;
        out.write_all(piece)?;
        at += step;
    }
    me.sendrec(server, Message::new(DONE), PATIENCE)?;
    println!("{len} bytes");
    Ok(())
}
// ANCHOR_END: fetch

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut me = Binding::from_env()?;
    match words[..] {
        ["hold", path] => {
            let held = load(&mut me, path)?;
            serve(&mut me, &held)
        }
        ["fetch", path] => fetch(&mut me, path),
        _ => bail!("usage: grants hold FILE | fetch FILE"),
    }
}
