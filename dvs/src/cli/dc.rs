//! `dvs dc` and `dvs logs` on the command line.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::values::{lines, slots, uid};
use super::{Where, examples};

/// What every change does.
const SPREADS: &str = "The daemon that is asked tells all others; one that is not up hears of it when it comes up.\n\
                       The change outlives the daemons.";

#[derive(Subcommand, Debug)]
pub enum DcCommand {
    /// Make a DC
    #[command(after_help = examples(
        &[
            "dvs dc create batch",
            "dvs dc create batch --nodes n1,n2 --slots 512",
            "dvs dc create shared --nodes 1,2 --uid 1001 --uid 1002 --json",
            "dvs dc create test --like main",
        ],
        SPREADS,
    ))]
    Create(DcCreateArgs),
    /// List the DCs: their nodes, the slots and endpoints of each
    #[command(after_help = examples(
        &["dvs dc ls", "dvs dc ls --node n1 --json"],
        "A `-` stands for endpoints of a node of which no daemon here knows.",
    ))]
    Ls(Where),
    /// Let nodes into a DC
    #[command(after_help = examples(
        &["dvs dc grow batch n3", "dvs dc grow batch n3 n4 --json"],
        "Slots of nodes that are there stay where they are; a node that comes back has its own again.",
    ))]
    Grow(DcNodesArgs),
    /// Take nodes out of a DC
    #[command(after_help = examples(
        &["dvs dc shrink batch n3", "dvs dc shrink batch n3 --force"],
        "With --force endpoints there end: their peers see them die, after all that they had sent.",
    ))]
    Shrink(DcShrinkArgs),
    /// End a DC
    #[command(after_help = examples(&["dvs dc stop batch", "dvs dc stop batch --force"], SPREADS))]
    Stop(DcStopArgs),
}

/// Which cluster, and by which daemon.
#[derive(Args, Debug, Clone)]
pub struct Via {
    /// The cluster file [default: $DVS_CLUSTER, ./cluster.toml, or the one cluster of yours that runs]
    #[arg(long, value_name = "FILE")]
    pub cluster: Option<PathBuf>,
    /// Ask the daemon of this node, by id or name [default: one of this machine that knows best]
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
}

#[derive(Args, Debug)]
pub struct DcCreateArgs {
    /// Its name
    pub name: String,
    /// As this DC is, where nothing else is said: nodes, slots, users, privileges
    #[arg(long, value_name = "DC")]
    pub like: Option<String>,
    /// Its nodes, by id or name, with commas between them [default: all nodes of the cluster]
    #[arg(long, value_name = "NODE,...", value_delimiter = ',')]
    pub nodes: Vec<String>,
    /// Slots of each node [default: 256]
    #[arg(long, value_name = "N", value_parser = slots)]
    pub slots: Option<u16>,
    /// A user who may bind, besides the daemons' own and root (may be repeated)
    #[arg(long, value_name = "UID", value_parser = uid)]
    pub uid: Vec<u32>,
    #[command(flatten)]
    pub via: Via,
}

#[derive(Args, Debug)]
pub struct DcNodesArgs {
    /// The DC, as `dvs dc ls` shows it
    pub name: String,
    /// Nodes, by id or name
    #[arg(required = true, value_name = "NODE")]
    pub nodes: Vec<String>,
    #[command(flatten)]
    pub via: Via,
}

#[derive(Args, Debug)]
pub struct DcShrinkArgs {
    #[command(flatten)]
    pub what: DcNodesArgs,
    /// End the endpoints that live there
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct DcStopArgs {
    /// The DC, as `dvs dc ls` shows it
    pub name: String,
    /// End the endpoints in it
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub via: Via,
}

#[derive(Args, Debug)]
pub struct LogsArgs {
    /// Only this node, by id or name
    #[arg(value_name = "NODE")]
    pub node: Option<String>,
    /// Go on with what is logged from now on, until Ctrl-C
    #[arg(long, short)]
    pub follow: bool,
    /// So many lines, the latest
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50, value_parser = lines)]
    pub lines: u32,
    /// The cluster file [default: $DVS_CLUSTER, ./cluster.toml, or the one cluster of yours that runs]
    #[arg(long, value_name = "FILE")]
    pub cluster: Option<PathBuf>,
}
