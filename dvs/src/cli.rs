//! The command line. Key type: [`Cli`]. Every command is a variant here and a module beside this one.

mod copy;
mod dc;
mod measure;
mod rdma;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::failure::EXIT_CODES;
use crate::talk::Whom;
pub use copy::CpArgs;
pub use dc::{DcCommand, DcCreateArgs, LogsArgs, Via};
pub use measure::{BenchArgs, BenchCommand};
pub use rdma::{RdmaCommand, SoftroceCommand};
pub use values::ProxyKind;
use values::{at_least_one, bits, interval, minutes, seconds, slot};

const EXAMPLES: &str = "Examples:
  dvs demo                                      see it work on this machine, in a minute
  dvs up cluster.toml                           start this machine's nodes of a cluster
  dvs run --dc main --node 1 --name kv -- ./kv  run a program, bound in a DC
  dvs ps                                        who is bound where
  dvs send --dc main --node 1 --to kv hello     send it a message, by hand
  dvs cp --dc main --node 1 file 2:/srv/        copy files between nodes; goes on where it was cut
  dvs bench rtt                                 measure round trips, beside the bare limit
  dvs status                                    nodes, links, DCs and proxies
  dvs top                                       the same and who is bound, live, with rates
  dvs down cluster.toml                         stop them";

/// The end of a command's help: examples, what else is worth knowing, and the exit codes.
fn examples(lines: &[&str], note: &str) -> String {
    let mut text = "Examples:".to_owned();
    for line in lines {
        text += &format!("\n  {line}");
    }
    if !note.is_empty() {
        text += &format!("\n\n{note}");
    }
    format!("{text}\n\n{EXIT_CODES}")
}

#[derive(Parser, Debug)]
#[command(
    name = "dvs",
    version,
    about = "Distributed containers in user space: start nodes, run programs in them, look at them"
)]
#[command(arg_required_else_help = true)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub struct Cli {
    /// Print one JSON object on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Where the daemons keep sockets and logs [default: a private folder of $XDG_RUNTIME_DIR or /tmp]
    #[arg(long, global = true, value_name = "DIR", env = "DVS_RUNTIME_DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// Log more, on standard error (twice: even more); RUST_LOG chooses in detail
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Three nodes on this machine: latencies, a file through two hops, a stream while proxies are killed
    #[command(after_help = examples(
        &[
            "dvs demo",
            "dvs demo --file big.iso --json",
            "dvs demo --messages 100000 --keep",
            "dvs demo --netns",
            "dvs demo --proxy rdma",
        ],
        "",
    ))]
    Demo(DemoArgs),
    /// All calls at random on three nodes of this machine while processes are killed and stopped, and a running balance
    #[command(after_help = examples(
        &[
            "dvs soak",
            "dvs soak --minutes 60 --programs 6",
            "dvs soak --minutes 1 --seed 7 --json",
            "dvs soak --no-faults",
        ],
        "What was accepted must be delivered, once and in order: it returns 1 if a message between two that lived was lost,
doubled or damaged, or a loan did not come home. Each line says so far: accepted, delivered, under way.",
    ))]
    Soak(SoakArgs),
    /// Write a cluster file to begin with: three nodes on this machine
    #[command(after_help = examples(&["dvs init", "dvs init two.toml --nodes 2"], ""))]
    Init(InitArgs),
    /// Look for mistakes in a cluster file; nothing is started
    #[command(after_help = examples(
        &["dvs check cluster.toml", "dvs check cluster.toml --json"],
        "The first mistake is named with its line and column; --json gives `file`, `line` and `column`.",
    ))]
    Check(CheckArgs),
    /// What this machine can do, what it costs where it cannot, and what to do about it
    #[command(after_help = examples(
        &["dvs doctor", "dvs doctor --json", "dvs doctor --runtime-dir /run/user/1000/mine"],
        "All is tried, nothing is left behind. It returns 5 if nothing can run here; what is only slower is no error.",
    ))]
    Doctor,
    /// RDMA devices: list them, make one in software
    #[command(subcommand, arg_required_else_help = true)]
    #[command(after_help = examples(&["dvs rdma ls", "dvs rdma softroce up eth0"], ""))]
    Rdma(RdmaCommand),
    /// Start the nodes of a cluster file that live on this machine
    #[command(after_help = examples(
        &[
            "dvs up cluster.toml",
            "dvs up cluster.toml --node 1 --node 2",
        ],
        "Either all of them run when it returns 0, or none was left running.",
    ))]
    Up(UpArgs),
    /// Stop the nodes of a cluster file that live on this machine
    #[command(after_help = examples(&["dvs down cluster.toml", "dvs down cluster.toml --node 2"], ""))]
    Down(DownArgs),
    /// One node
    #[command(subcommand, arg_required_else_help = true)]
    #[command(after_help = examples(&["dvs node start cluster.toml --node 1"], ""))]
    Node(NodeCommand),
    /// Nodes, links, DCs and proxies
    #[command(after_help = examples(
        &[
            "dvs status",
            "dvs status --cluster cluster.toml --node 1 --json",
        ],
        "",
    ))]
    Status(Where),
    /// Who is bound where
    #[command(after_help = examples(&["dvs ps", "dvs ps --node 2 --json"], ""))]
    Ps(Where),
    /// Nodes, links, DCs, proxies and endpoints, and messages and bytes a second, live
    #[command(after_help = examples(
        &["dvs top", "dvs top --interval 0.5 --node 1", "dvs top --once", "dvs top --once --json"],
        "Keys: q or Esc ends, tab and arrows move, s sorts, p pauses, ? explains.\n\
         Rates are what proxies carry between nodes; what stays on one node is counted by nobody.\n\
         Without a terminal it is as with --once. Ctrl-C ends it like q; SIGTERM with 130.",
    ))]
    Top(TopArgs),
    /// Distributed containers: made, grown, shrunk and stopped while the cluster runs
    #[command(subcommand, arg_required_else_help = true)]
    #[command(after_help = examples(&["dvs dc ls", "dvs dc create batch --nodes n1,n2"], ""))]
    Dc(DcCommand),
    /// What the daemons and proxies of this machine have logged
    #[command(after_help = examples(
        &["dvs logs", "dvs logs n1 --follow", "dvs logs --lines 200 --json"],
        "The logs end with their daemon, but for one that was killed. RUST_LOG at `dvs up` chooses what is logged.",
    ))]
    Logs(LogsArgs),
    /// The processes that carry messages to other nodes
    #[command(subcommand, arg_required_else_help = true)]
    #[command(after_help = examples(&["dvs proxy ls", "dvs proxy restart tcp --node 1"], ""))]
    Proxy(ProxyCommand),
    /// Bind this process in a DC, then become PROGRAM
    #[command(after_help = examples(
        &[
            "dvs run --dc main --node 1 -- ./server --fast",
            "dvs run --cluster c.toml --dc main --node 2 --slot 100 --name kv -- ./kv",
        ],
        "The program takes its binding over with `Binding::from_env()`.",
    ))]
    Run(RunArgs),
    /// Print what a shell needs to complete `dvs` commands
    #[command(after_help = examples(
        &[
            "dvs completions bash > ~/.local/share/bash-completion/completions/dvs",
            "dvs completions fish > ~/.config/fish/completions/dvs.fish",
            "dvs completions zsh > ~/.zfunc/_dvs",
        ],
        "For zsh the folder must be in `fpath` before `compinit` is called.",
    ))]
    Completions(CompletionsArgs),
    /// Print the manual page of `dvs`, or write those of all commands
    #[command(after_help = examples(
        &["dvs man | man -l -", "dvs man ~/.local/share/man/man1", "man dvs-up"],
        "",
    ))]
    Man(ManArgs),
    /// Send a message to an endpoint: a rendezvous, or a post, or a request whose reply is printed
    #[command(after_help = examples(
        &[
            "dvs send --dc main --node 1 --to kv hello",
            "dvs send --dc main --node 1 --to 7 --kind 3 --call --timeout 2 'get x'",
            "dvs send --dc main --node 2 --to kv --post --file picture.png",
            "date | dvs send --dc main --node 1 --to kv -",
        ],
        "Up to 96 bytes travel in the message, more as a loan. It waits until the destination is bound.",
    ))]
    Send(SendArgs),
    /// Raise notification bits at an endpoint
    #[command(after_help = examples(
        &[
            "dvs notify --dc main --node 1 --to kv --bits 0x3",
            "dvs notify --dc main --node 2 --to 7 --bits 1 --linger 5",
        ],
        "",
    ))]
    Notify(NotifyArgs),
    /// Print what is sent to an endpoint, a line each
    #[command(after_help = examples(
        &[
            "dvs receive --dc main --node 1 --name kv",
            "dvs receive --dc main --node 1 --slot 7 --count 1 --timeout 5 --json",
            "dvs receive --dc main --node 2 --name echo --echo",
        ],
        "A request that is not answered with --echo is abandoned, and its client hears so.\n\
         A timeout is exit code 6 if fewer came than --count, or none without it.",
    ))]
    Receive(ReceiveArgs),
    /// Copy files and folders between this node and another, through a DC
    #[command(after_help = examples(
        &[
            "dvs cp --dc main --node 1 big.iso 2:/srv/",
            "dvs cp --dc main --node 1 -r 2:/srv/tree ./tree --json",
            "dvs cp --dc main --node 2 --serve /srv",
            "dvs cp --dc main --node 1 --via cp-2 notes.txt 2:notes.txt",
        ],
        copy::NOTE,
    ))]
    Cp(CpArgs),
    /// Measure round trips, messages and bytes a second, beside the bare limit
    #[command(subcommand, arg_required_else_help = true)]
    #[command(after_help = examples(&["dvs bench rtt", "dvs bench rate --remote", "dvs bench bw"], ""))]
    Bench(BenchCommand),
    /// A node's daemon, as `dvs up` starts it
    #[command(hide = true)]
    NodeDaemon(NodeDaemonArgs),
    /// A courier over TCP, as a daemon starts it
    #[command(hide = true)]
    ProxyTcp(RawArgs),
    /// A program of the demonstration or of a measurement
    #[command(hide = true)]
    Worker(crate::workers::WorkerArgs),
}

#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Send this file through the nodes [default: the largest one of the Rust toolchain or of /usr/lib]
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// Messages of the counted stream
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000))]
    pub messages: u64,
    /// Each node in a network namespace of its own
    #[arg(long)]
    pub netns: bool,
    /// By what the nodes are joined
    #[arg(long, value_enum, default_value_t = ProxyKind::Tcp)]
    pub proxy: ProxyKind,
    /// Leave the cluster up, and say how to use it
    #[arg(long)]
    pub keep: bool,
}

#[derive(Args, Debug)]
pub struct SoakArgs {
    /// How long
    #[arg(long, value_name = "N", default_value_t = 10.0, value_parser = minutes, allow_negative_numbers = true)]
    pub minutes: f64,
    /// Programs on each node
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub programs: u16,
    /// Of all choices; what the system does with them is its own [default: another one each time]
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
    /// Kill and stop nothing
    #[arg(long)]
    pub no_faults: bool,
    /// Leave the logs, and say where
    #[arg(long)]
    pub keep: bool,
}

#[derive(Args, Debug)]
pub struct InitArgs {
    /// The file to write; it must not exist
    #[arg(value_name = "CLUSTER.toml", default_value = "cluster.toml")]
    pub cluster: PathBuf,
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub nodes: u16,
}

#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The cluster file
    #[arg(value_name = "CLUSTER.toml")]
    pub cluster: PathBuf,
}

#[derive(Args, Debug)]
pub struct UpArgs {
    /// The cluster file
    #[arg(value_name = "CLUSTER.toml")]
    pub cluster: PathBuf,
    /// Only this node (by id or name; may be repeated)
    #[arg(long, value_name = "NODE")]
    pub node: Vec<String>,
    /// How long all daemons and links may take to come up
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = seconds, allow_negative_numbers = true)]
    pub timeout: Duration,
}

#[derive(Args, Debug)]
pub struct DownArgs {
    /// The cluster file
    #[arg(value_name = "CLUSTER.toml")]
    pub cluster: PathBuf,
    /// Only this node (by id or name; may be repeated)
    #[arg(long, value_name = "NODE")]
    pub node: Vec<String>,
    /// How long a daemon may take to stop before it is killed
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds, allow_negative_numbers = true)]
    pub timeout: Duration,
}

#[derive(Subcommand, Debug)]
pub enum NodeCommand {
    /// Run a node's daemon here, until Ctrl-C
    #[command(after_help = examples(&["dvs node start cluster.toml --node 1"], ""))]
    Start(NodeStartArgs),
}

#[derive(Args, Debug)]
pub struct NodeStartArgs {
    /// The cluster file
    #[arg(value_name = "CLUSTER.toml")]
    pub cluster: PathBuf,
    /// Which node, by id or name
    #[arg(long, value_name = "NODE")]
    pub node: String,
}

#[derive(Args, Debug)]
pub struct NodeDaemonArgs {
    pub cluster: PathBuf,
    #[arg(long)]
    pub node: u16,
    /// Log to standard error, and stay with the terminal
    #[arg(long)]
    pub foreground: bool,
    /// End when this process ends
    #[arg(long)]
    pub with: Option<u32>,
    /// The descriptor that leads to the keeper: this is the daemon. Without it, this is its keeper
    #[arg(long)]
    pub kept: Option<i32>,
}

/// Which cluster, and perhaps which node of it.
#[derive(Args, Debug, Clone)]
pub struct Where {
    /// The cluster file [default: $DVS_CLUSTER, ./cluster.toml, or the one cluster of yours that runs]
    #[arg(long, value_name = "FILE")]
    pub cluster: Option<PathBuf>,
    /// Only this node, by id or name
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
}

#[derive(Args, Debug)]
pub struct TopArgs {
    #[command(flatten)]
    pub place: Where,
    /// How often the daemons are asked: 0.1 to 3600
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval, allow_negative_numbers = true)]
    pub interval: Duration,
    /// Print one screen as plain text, after one interval
    #[arg(long)]
    pub once: bool,
}

#[derive(Subcommand, Debug)]
pub enum ProxyCommand {
    /// List them
    #[command(after_help = examples(&["dvs proxy ls", "dvs proxy ls --node 1 --json"], ""))]
    Ls(Where),
    /// End one and let its daemon start the next; no message is lost
    #[command(after_help = examples(&["dvs proxy restart tcp --node 1"], ""))]
    Restart(ProxyArgs),
    /// Stop one for good: the nodes behind it are cut off until `restart`
    #[command(after_help = examples(&["dvs proxy stop tcp --node 1"], ""))]
    Stop(ProxyArgs),
}

#[derive(Args, Debug)]
pub struct ProxyArgs {
    /// The proxy's name, as `dvs proxy ls` shows it
    pub name: String,
    #[command(flatten)]
    pub place: Where,
}

/// Where to bind, and as whom.
#[derive(Args, Debug, Clone)]
pub struct SeatArgs {
    #[command(flatten)]
    pub place: Where,
    /// The DC to bind in
    #[arg(long, value_name = "DC")]
    pub dc: String,
    /// In this slot and no other
    #[arg(long, value_name = "SLOT")]
    #[arg(value_parser = slot, allow_negative_numbers = true)]
    pub slot: Option<u16>,
    /// Under this name, by which others look it up
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// With memory for each peer apart: no peer can read what is meant for another
    #[arg(long)]
    pub private: bool,
}

#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub seat: SeatArgs,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    pub program: Vec<OsString>,
}

#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// Which shell
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub struct ManArgs {
    /// The folder to write a page for each command into; it is made, and pages that are there are replaced
    #[arg(value_name = "DIR")]
    pub folder: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct SendArgs {
    #[command(flatten)]
    pub seat: SeatArgs,
    /// To whom: the slot or the name of an endpoint of this DC, on whichever node
    #[arg(long, value_name = "SLOT|NAME")]
    pub to: Whom,
    /// The message's type, a number that means something to the receiver
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub kind: u32,
    /// Send a request, wait for its reply and print that
    #[arg(long, conflicts_with = "post")]
    pub call: bool,
    /// Return when it is in the lane, not when it is taken
    #[arg(long)]
    pub post: bool,
    /// How long all of it may take, waiting for the destination included; 0: not at all
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds, allow_negative_numbers = true)]
    pub timeout: Duration,
    /// What to send; `-` reads standard input [default: nothing]
    #[arg(value_name = "TEXT", allow_hyphen_values = true)]
    pub text: Option<String>,
    /// Send what this file holds
    #[arg(long, value_name = "PATH", conflicts_with = "text")]
    pub file: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct NotifyArgs {
    #[command(flatten)]
    pub seat: SeatArgs,
    /// At whom: the slot or the name of an endpoint of this DC, on whichever node
    #[arg(long, value_name = "SLOT|NAME")]
    pub to: Whom,
    /// The bits to raise: a number other than 0, as 5, 0x5 or 0b101
    #[arg(long, value_name = "BITS", value_parser = bits, allow_negative_numbers = true)]
    pub bits: u32,
    /// How long to wait until the destination is bound
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds, allow_negative_numbers = true)]
    pub timeout: Duration,
    /// How long to stay bound afterwards: when a notifier ends, bits that were not received are cleared
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds, allow_negative_numbers = true)]
    pub linger: Duration,
}

#[derive(Args, Debug)]
pub struct ReceiveArgs {
    #[command(flatten)]
    pub seat: SeatArgs,
    /// Only from this endpoint: its slot or its name [default: from anybody]
    #[arg(long, value_name = "SLOT|NAME")]
    pub from: Option<Whom>,
    /// End after so many deliveries [default: with Ctrl-C]
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_negative_numbers = true)]
    pub count: Option<u64>,
    /// End when nothing came for so long; 0: take only what is there [default: wait for ever]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true)]
    pub timeout: Option<Duration>,
    /// Answer each request with what it carried
    #[arg(long)]
    pub echo: bool,
}

#[derive(Args, Debug)]
pub struct RawArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}

/// The definition for completions and manual pages. What makes them does not leave out all that is hidden, so it is
/// made anew without that.
pub fn shown() -> clap::Command {
    let all = Cli::command();
    let mut shown = clap::Command::new("dvs").version(env!("CARGO_PKG_VERSION")).subcommand_required(true);
    shown = shown.args(all.get_arguments().cloned());
    shown = shown.subcommands(all.get_subcommands().filter(|c| !c.is_hide_set()).cloned());
    if let Some(about) = all.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(end) = all.get_after_long_help() {
        shown = shown.after_long_help(end.clone());
    }
    shown
}
