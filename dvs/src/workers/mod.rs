//! The programs of the demonstration and of the measurements: each is started by `dvs run`, finds itself bound,
//! takes orders on standard input and reports on standard output, a line each. Its input ends with whoever
//! started it, and then it ends too.
//!
//! Key types: [`WorkerArgs`], [`Orders`]. Neighbours: `echo`, `stream`, `pour`, `carry` (what they do), `crew` (who
//! starts them), `stage` (a cluster to do it in), `spread` (what is measured).

pub mod carry;
pub mod chance;
pub mod crew;
pub mod echo;
pub mod pour;
pub mod soak;
pub mod spread;
pub mod stage;
pub mod stream;

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use abi::Endpoint;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use dvk::{Binding, Wait};
use serde::Serialize;

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
        #[command(flatten)]
        cargo: echo::Cargo,
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
    /// Posts as many messages as it can
    PourOut {
        to: String,
        #[command(flatten)]
        load: pour::Load,
    },
    /// Takes them
    PourIn {
        #[arg(long, value_enum)]
        wait: echo::Waiting,
    },
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
    /// Does everything with everybody, and keeps a book
    Soak {
        #[arg(long)]
        seed: u64,
    },
    /// Reads and writes files for a `dvs cp`
    Files {
        #[arg(long)]
        client: Endpoint,
    },
}

/// Does what a worker is for.
pub fn work(args: WorkerArgs) -> Result<()> {
    let orders = Orders::listen();
    let mut me = Binding::from_env()
        .context("this program is part of `dvs demo`, `dvs bench`, `dvs soak` and `dvs cp`: run those")?;
    match args.role {
        Role::Echo(manner) => echo::serve(&mut me, manner),
        Role::Ask { to, manner, cargo } => {
            let to = find(&mut me, &to)?;
            echo::ask(&mut me, to, manner, cargo, &orders)
        }
        Role::StreamOut { to, messages, pauses } => {
            let to = find(&mut me, &to)?;
            stream::send(&mut me, to, stream::Plan { messages, pauses }, &orders)
        }
        Role::PourOut { to, load } => {
            let to = find(&mut me, &to)?;
            pour::send(&mut me, to, load, &orders)
        }
        Role::PourIn { wait } => pour::receive(&mut me, wait),
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
        Role::Soak { seed } => soak::soak(&mut me, seed, &orders),
        Role::Files { client } => crate::cp::work(&mut me, client),
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

    /// The next order, if there is one.
    pub fn look(&self) -> Option<String> {
        self.0.try_recv().ok()
    }

    /// Waits for the next order.
    pub fn next(&self) -> Result<String> {
        self.0.recv().context("whoever gave orders has ended")
    }
}

/// One line for whoever gives orders.
pub fn report<T: Serialize>(value: &T) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(value)?)?;
    Ok(out.flush()?)
}
