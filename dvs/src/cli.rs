//! The command line. Key type: [`Cli`]. Every command is a variant here and a module beside this one.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::failure::EXIT_CODES;

const EXAMPLES: &str = "Examples:
  dvs demo                                      see it work on this machine, in a minute
  dvs up cluster.toml                           start this machine's nodes of a cluster
  dvs run --dc main --node 1 --name kv -- ./kv  run a program, bound in a DC
  dvs ps                                        who is bound where
  dvs status                                    nodes, links, DCs and proxies
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
        ],
        "",
    ))]
    Demo(DemoArgs),
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
    #[command(subcommand)]
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
    /// The processes that carry messages to other nodes
    #[command(subcommand)]
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
    /// A node's daemon, as `dvs up` starts it
    #[command(hide = true)]
    NodeDaemon(NodeDaemonArgs),
    /// A courier over TCP, as a daemon starts it
    #[command(hide = true)]
    ProxyTcp(RawArgs),
    /// A program of the demonstration
    #[command(hide = true)]
    DemoWorker(crate::demo::WorkerArgs),
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
    /// Leave the cluster up, and say how to use it
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
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    pub timeout: u64,
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
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub timeout: u64,
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

#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub place: Where,
    /// The DC to bind in
    #[arg(long, value_name = "DC")]
    pub dc: String,
    /// In this slot and no other
    #[arg(long, value_name = "SLOT")]
    #[arg(value_parser = clap::value_parser!(u16).range(0..abi::limits::SLOTS_PER_DC as i64))]
    pub slot: Option<u16>,
    /// Under this name, by which others look it up
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
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
