//! The programs of the demonstration: each is started by `dvs run`, finds itself bound, takes orders on
//! standard input and reports on standard output, a line each. Its input ends with the demonstration, and
//! then it ends too.
//!
//! Key types: [`WorkerArgs`], [`Orders`]. Neighbours: `echo`, `stream`, `carry` (what they do), `crew` (who
//! starts them).

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use abi::Endpoint;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use dvk::{Binding, Wait};
use serde::Serialize;

use super::{carry, echo, stream};

/// How long a worker looks for the one it is to talk to.
const FOUND_WITHIN: Duration = Duration::from_secs(15);

#[derive(Args, Debug)]
pub struct WorkerArgs {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand, Debug)]
enum Role {
    /// Answers requests
    Echo(echo::Manner),
    /// Asks and measures
    Ask {
        to: String,
        #[command(flatten)]
        manner: echo::Manner,
        /// Lets a loan of so many bytes travel along
        #[arg(long, default_value_t = 0)]
        loan_bytes: usize,
    },
    /// Posts counted messages
    StreamOut {
        to: String,
        #[arg(long)]
        messages: u64,
        /// Stops so many times until it is told to go on
        #[arg(long, default_value_t = 0)]
        pauses: u64,
    },
    /// Counts them
    StreamIn,
    /// Sends a file in loans
    FileOut {
        to: String,
        #[arg(long)]
        file: PathBuf,
    },
    /// Sends on what comes
    FileRelay { to: String },
    /// Takes the digest
    FileIn,
}

/// What a worker needs from the demonstration.
pub fn work(args: WorkerArgs) -> Result<()> {
    let orders = Orders::listen();
    let mut me = Binding::from_env().context("this program is part of `dvs demo`: run that")?;
    match args.role {
        Role::Echo(manner) => echo::serve(&mut me, manner),
        Role::Ask { to, manner, loan_bytes } => {
            let to = find(&mut me, &to)?;
            echo::ask(&mut me, to, manner, loan_bytes, &orders)
        }
        Role::StreamOut { to, messages, pauses } => {
            let to = find(&mut me, &to)?;
            stream::send(&mut me, to, stream::Plan { messages, pauses }, &orders)
        }
        Role::StreamIn => stream::count(&mut me),
        Role::FileOut { to, file } => {
            let to = find(&mut me, &to)?;
            carry::send(&mut me, to, &file, &orders)
        }
        Role::FileRelay { to } => {
            let to = find(&mut me, &to)?;
            carry::relay(&mut me, to)
        }
        Role::FileIn => carry::receive(&mut me),
    }
}

/// Waits until somebody is bound under a name, on whichever node. A name comes from another node a little
/// later.
fn find(me: &mut Binding, name: &str) -> Result<Endpoint> {
    me.set_wait(Wait::Block);
    let until = Instant::now() + FOUND_WITHIN;
    loop {
        if let Some(found) = me.lookup_name(name)? {
            return Ok(found);
        }
        if Instant::now() >= until {
            bail!("nobody was bound under the name {name} within {} s", FOUND_WITHIN.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The lines of standard input, read by a thread of their own.
pub struct Orders(Receiver<String>);

impl Orders {
    /// The process ends with its input: nobody is left to work for.
    fn listen() -> Orders {
        let (give, take) = channel();
        std::thread::spawn(move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                // Who takes no orders does not keep the channel.
                let _ = give.send(line);
            }
            std::process::exit(0);
        });
        Orders(take)
    }

    /// Waits for the next order.
    pub fn next(&self) -> Result<String> {
        self.0.recv().context("the demonstration has ended")
    }
}

/// One line for the demonstration.
pub fn report<T: Serialize>(value: &T) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(value)?)?;
    Ok(out.flush()?)
}
