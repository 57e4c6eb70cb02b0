//! The words of `dvs bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{examples, seconds};
use crate::workers::echo::Waiting;

#[derive(Subcommand, Debug)]
pub enum BenchCommand {
    /// Round trips: p50, p99, p99.9, the longest, and how they are spread
    #[command(after_help = examples(
        &[
            "dvs bench rtt",
            "dvs bench rtt --sizes 64 --wait spin --time 5",
            "dvs bench rtt --remote --cluster cluster.toml --json",
            "dvs bench rtt --remote --sizes 64 --flood flood",
        ],
        BENCH_NOTE,
    ))]
    Rtt(BenchArgs),
    /// Messages posted per second
    #[command(after_help = examples(
        &[
            "dvs bench rate",
            "dvs bench rate --sizes 8,96 --pairs 2",
            "dvs bench rate --remote --json",
        ],
        BENCH_NOTE,
    ))]
    Rate(BenchArgs),
    /// Bytes per second in loans, written and read
    #[command(after_help = examples(
        &[
            "dvs bench bw",
            "dvs bench bw --sizes 1048576 --remote",
            "dvs bench bw --cluster cluster.toml --dc main --node 1 --to-node 2",
        ],
        BENCH_NOTE,
    ))]
    Bw(BenchArgs),
}

const BENCH_NOTE: &str =
    "Without --cluster or $DVS_CLUSTER it starts two nodes on this machine, and stops them.
The bare limit is a ping-pong: on one node through shared memory, copied in and out, both sides
spinning; to another node over one blocking TCP connection. It takes turns with ours, and as long.";

#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Measure in this running cluster [default: $DVS_CLUSTER, or a temporary one]
    #[arg(long, value_name = "FILE")]
    pub cluster: Option<PathBuf>,
    /// In this DC of it [default: the first that fits]
    #[arg(long, value_name = "DC")]
    pub dc: Option<String>,
    /// From this node of it, by id or name [default: the first of this machine]
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// To this node of it, which is on this machine too; as --remote
    #[arg(long, value_name = "NODE", conflicts_with = "local")]
    pub to_node: Option<String>,
    /// Bytes of a message; beyond 96 it travels in a loan [default: some that tell most]
    #[arg(long, value_name = "BYTES,…", value_delimiter = ',', value_parser = size)]
    pub sizes: Vec<usize>,
    /// So many pairs of processes at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub pairs: u16,
    /// How they wait
    #[arg(long, value_enum, default_value_t = Waiting::Adaptive)]
    pub wait: Waiting,
    /// On one node, which is the default
    #[arg(long, conflicts_with = "remote")]
    pub local: bool,
    /// From one node to another, through their proxies
    #[arg(long)]
    pub remote: bool,
    /// For `rtt`: in turns, a pair in this other DC floods the same proxies with loans of 1 MiB; and, where it has two
    /// more nodes on this machine, theirs, which shows what a flood's share of the processors alone does. Without a
    /// cluster, the DC is called `flood`
    #[arg(long, value_name = "DC")]
    pub flood: Option<String>,
    /// How long each size is measured; its bare limit takes as long
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = measured_seconds, allow_negative_numbers = true)]
    pub time: Duration,
}

/// From the shortest that is numbered to one that leaves memory for others.
fn size(text: &str) -> Result<usize, String> {
    let known = text.parse().ok().filter(|size| (8..=SIZE_BYTES_MAX).contains(size));
    known.ok_or_else(|| format!("sizes are 8 to {SIZE_BYTES_MAX} bytes"))
}

/// The largest message that is measured.
const SIZE_BYTES_MAX: usize = 64 << 20;

fn measured_seconds(text: &str) -> Result<Duration, String> {
    let bounds = Duration::from_millis(50)..=Duration::from_secs(3600);
    seconds(text)
        .and_then(|time| bounds.contains(&time).then_some(time).ok_or("give 0.05 to 3600 seconds".to_owned()))
}
