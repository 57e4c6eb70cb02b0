//! A chat room: async tasks over one binding. The room has a task for each of its members, so that a slow one delays nobody
//! else; a member waits for its keyboard and for the room at once.
//!
//! ```text
//! dvs run --dc main --node 1 --name room -- chat room
//! dvs run --dc main --node 2 -- chat join ada
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use abi::Endpoint;
use abi::limits::INLINE_BYTES_MAX;
use aio::Endpoint as Me;
use anyhow::{Context, Result, bail, ensure};
use dvk::{Binding, Message, What};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

/// To the room: a line. The first of a member also lets it in. From the room: what somebody said.
const SAY: u32 = 1;
/// To the room: lets me in, and says nothing.
const ENTER: u32 = 2;

/// So many lines a newcomer is told of what was said before.
const TOLD_MAX: usize = 20;
/// So many lines may wait for a member; one for whom more would is put out.
const BEHIND_MAX: usize = 64;
/// How long the room may take to take a line.
const PATIENCE: Duration = Duration::from_secs(10);

// ANCHOR: member
/// The task of one member: says to it what is said, one line at a time. It ends with the member, or when the room drops it.
async fn tell(me: Me, member: Endpoint, mut lines: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = lines.recv().await {
        // Returns when the member has taken it, however long that is; all other tasks go on.
        if me.send(member, Message::new(SAY).inline(&line)).await.is_err() {
            return;
        }
    }
}
// ANCHOR_END: member

// ANCHOR: room
async fn room(me: Me) -> Result<()> {
    let mut members: BTreeMap<Endpoint, mpsc::Sender<Vec<u8>>> = BTreeMap::new();
    let mut told = VecDeque::new();
    loop {
        let said = me.receive().await?;
        if said.what() == What::Woken {
            return Ok(());
        }
        members.entry(said.source()).or_insert_with(|| {
            let (to, lines) = mpsc::channel(BEHIND_MAX);
            told.iter().cloned().for_each(|line| drop(to.try_send(line)));
            spawn_local(tell(me.clone(), said.source(), lines));
            to
        });
        if said.kind() == SAY {
            let line = said.inline().to_vec();
            // Whoever has gone, or is too far behind, is a member no more.
            members.retain(|member, to| *member == said.source() || to.try_send(line.clone()).is_ok());
            told.push_back(line);
            told.truncate(TOLD_MAX);
        }
    }
}
// ANCHOR_END: room

// ANCHOR: join
/// Until its input ends and, if asked for, so many lines have come.
async fn join(me: Me, name: &str, mut wanted: usize) -> Result<()> {
    let room = me
        .with(|binding| binding.lookup_name("room"))?
        .context("nobody is bound as room: start `chat room`")?;
    timeout(PATIENCE, me.send(room, Message::new(ENTER))).await.context("the room does not listen")??;
    let mut typed = BufReader::new(tokio::io::stdin()).lines();
    let mut is_typing = true;
    while is_typing || wanted > 0 {
        tokio::select! {
            line = typed.next_line(), if is_typing => match line? {
                Some(line) => {
                    let line = format!("{name}: {line}");
                    ensure!(line.len() <= INLINE_BYTES_MAX, "a line has at most {INLINE_BYTES_MAX} bytes with the name");
                    let said = me.send(room, Message::new(SAY).inline(line.as_bytes()));
                    // Over in time, or withdrawn.
                    timeout(PATIENCE, said).await.context("the room does not listen")??;
                }
                None => is_typing = false,
            },
            // The one of the two that is not ready is dropped, and has taken nothing.
            said = me.receive_from(room) => {
                println!("{}", String::from_utf8_lossy(said?.inline()));
                wanted = wanted.saturating_sub(1);
            }
        }
    }
    Ok(())
}
// ANCHOR_END: join

// ANCHOR: main
fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let binding = Binding::from_env()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // A binding is of one thread, and so are its tasks.
    LocalSet::new().block_on(&runtime, async {
        let me = Me::new(binding)?;
        match words[..] {
            ["room"] => room(me).await,
            ["join", name] => join(me, name, 0).await,
            ["join", name, lines] => join(me, name, lines.parse().context("a number of lines")?).await,
            _ => bail!("usage: chat room | join NAME [LINES]"),
        }
    })?;
    // A thread may still wait for the keyboard.
    runtime.shutdown_background();
    Ok(())
}
// ANCHOR_END: main
