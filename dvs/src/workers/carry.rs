//! A file in loans, from node to node to node: one reads it, one passes it on, one takes the digest of what
//! arrives.
//!
//! Every piece is a loan with its number beside it. The next taker acknowledges each, so that a few are under
//! way and never many. Key type: [`Arrived`].

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use abi::Endpoint;
use anyhow::{Context, Result, bail, ensure};
use dvk::{Binding, Delivery, From, Message, PostError, Timeout, Wait};
use serde::{Deserialize, Serialize};

use super::{Orders, report};

/// Message types: a piece, the end (with how many pieces and bytes there were), and "taken".
const PIECE: u32 = 30;
const END: u32 = 31;
const TAKEN: u32 = 32;
/// Bytes of a piece, the last one's apart.
pub const PIECE_BYTES: usize = 1 << 20;
/// Pieces sent and not yet acknowledged.
const UNDER_WAY_MAX: u64 = 8;
const PATIENCE: Timeout = Timeout::After(Duration::from_secs(30));

/// What the last node got.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Arrived {
    pub pieces: u64,
    pub bytes: u64,
    pub digest: String,
}

/// The way to the next node.
struct Onward {
    to: Endpoint,
    sent: u64,
    taken: u64,
}

impl Onward {
    fn new(to: Endpoint) -> Onward {
        Onward { to, sent: 0, taken: 0 }
    }

    fn is_full(&self) -> bool {
        self.sent - self.taken >= UNDER_WAY_MAX
    }

    /// Waits until one more may be under way.
    fn wait(&mut self, me: &mut Binding) -> Result<()> {
        while self.is_full() {
            let message =
                me.receive(From::Endpoint(self.to), PATIENCE).context("the next node takes nothing")?;
            self.note(&message)?;
        }
        Ok(())
    }

    fn note(&mut self, message: &Delivery) -> Result<()> {
        ensure!(message.kind() == TAKEN && self.taken < self.sent, "an acknowledgement was expected");
        self.taken += 1;
        Ok(())
    }

    fn post(&mut self, me: &mut Binding, message: Message) -> Result<()> {
        self.sent += 1;
        post(me, self.to, message)
    }
}

fn post(me: &mut Binding, to: Endpoint, mut message: Message) -> Result<()> {
    loop {
        match me.post(to, message) {
            Ok(()) => return Ok(()),
            Err(PostError::Full(back)) => message = back,
            Err(why) => bail!("a message was not posted: {why:?}"),
        }
        me.wait_room(to, PATIENCE)?;
    }
}

/// Two numbers beside a piece, or in the end.
fn pair(a: u64, b: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&a.to_le_bytes());
    bytes[8..].copy_from_slice(&b.to_le_bytes());
    bytes
}

fn read_pair(bytes: &[u8]) -> Result<(u64, u64)> {
    let word = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    word(0).zip(word(8)).context("a message without its two numbers")
}

/// Reads the file straight into loans and sends them.
pub fn send(me: &mut Binding, to: Endpoint, file: &Path, orders: &Orders) -> Result<()> {
    me.set_wait(Wait::of_this_machine());
    let mut file = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    report(&"ready")?;
    orders.next()?;
    let mut onward = Onward::new(to);
    let (mut left, mut bytes) = (file.metadata()?.len(), 0);
    while left > 0 {
        onward.wait(me)?;
        let len = left.min(PIECE_BYTES as u64);
        let mut loan = me.loan(len as usize)?;
        file.read_exact(&mut loan).context("the file became shorter while it was read")?;
        onward.post(me, Message::new(PIECE).inline(&pair(onward.sent, len)).with(loan))?;
        left -= len;
        bytes += len;
    }
    onward.wait(me)?;
    let end = Message::new(END).inline(&pair(onward.sent, bytes));
    onward.post(me, end)?;
    orders.next()?;
    Ok(())
}

/// Receives pieces, copies each once into a loan of its own, and sends them on.
pub fn relay(me: &mut Binding, to: Endpoint) -> Result<()> {
    me.set_wait(Wait::of_this_machine());
    let mut onward = Onward::new(to);
    report(&"ready")?;
    loop {
        let mut message = me.receive(From::Any, Timeout::Forever)?;
        if message.source() == to {
            onward.note(&message)?;
            continue;
        }
        onward.wait(me)?;
        let mut out = Message::new(message.kind()).inline(message.inline());
        if let Some(view) = message.take_view() {
            let mut loan = me.loan(view.len())?;
            view.copy_to(&mut loan);
            out = out.with(loan);
        }
        onward.post(me, out)?;
        post(me, message.source(), Message::new(TAKEN))?;
    }
}

/// Takes the digest of what comes, in its order, until the end.
pub fn receive(me: &mut Binding) -> Result<()> {
    me.set_wait(Wait::of_this_machine());
    report(&"ready")?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; PIECE_BYTES];
    let (mut pieces, mut bytes) = (0, 0);
    loop {
        let patience = if pieces == 0 { Timeout::Forever } else { PATIENCE };
        let mut message = me.receive(From::Any, patience).context("no more pieces come")?;
        let (number, len) = read_pair(message.inline())?;
        if message.kind() == END {
            ensure!(
                (number, len) == (pieces, bytes),
                "{pieces} pieces of {bytes} bytes came, not {number} of {len}"
            );
            break;
        }
        ensure!(number == pieces, "piece {number} came where {pieces} was due");
        let view = message.take_view().context("a piece without a loan")?;
        ensure!(
            view.len() as u64 == len && view.len() <= PIECE_BYTES,
            "a piece of {} bytes, not {len}",
            view.len()
        );
        view.read_into(0, &mut buffer[..view.len()]);
        hasher.update(&buffer[..view.len()]);
        pieces += 1;
        bytes += len;
        drop(view);
        post(me, message.source(), Message::new(TAKEN))?;
    }
    report(&Arrived { pieces, bytes, digest: hasher.finalize().to_hex().to_string() })?;
    // The last acknowledgements are delivered as long as we are here.
    me.receive(From::Any, Timeout::Forever)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_numbers_survive_their_bytes_and_fewer_bytes_are_refused() {
        assert_eq!(read_pair(&pair(7, u64::MAX)).unwrap(), (7, u64::MAX));
        assert!(read_pair(&pair(7, 8)[..15]).is_err());
    }
}
