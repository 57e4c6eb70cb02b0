//! `cargo run --release -p sim -- --seeds N [--from S] [--json]`: runs seeds, each twice, and says what they reached.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use sim::report::Report;

/// Simulates whole clusters: the cores of the daemon, the kernel and the courier, with faults, from a seed.
#[derive(Parser)]
struct Options {
    /// How many seeds.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Print every line of the trace of each first run.
    #[arg(long)]
    loud: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut report = Report::default();
    let mut failures = Vec::new();
    for seed in options.from..options.from.saturating_add(options.seeds) {
        let first = sim::run(seed, options.loud);
        let second = sim::run(seed, false);
        let mut wrong: Vec<String> =
            first.findings.iter().map(|finding| format!("{}: {}", finding.invariant, finding.what)).collect();
        if first.hash != second.hash {
            wrong.push(format!("two runs of the seed differ: {:#x} and {:#x}", first.hash, second.hash));
        }
        report.add(&first);
        if wrong.is_empty() {
            continue;
        }
        if !options.json {
            println!("seed {seed}:");
            wrong.iter().for_each(|what| println!("  {what}"));
            println!("{}", first.last_lines);
            println!("replay: cargo run --release -p sim -- --seeds 1 --from {seed}\n");
        }
        failures.push(serde_json::json!({
            "seed": seed,
            "what": wrong,
            "replay": format!("cargo run --release -p sim -- --seeds 1 --from {seed}"),
        }));
    }
    let failed = !failures.is_empty();
    if options.json {
        let mut json = report.to_json();
        json["failures"] = failures.into();
        println!("{json}");
    } else {
        println!("{}", report.to_text());
        if failed {
            let seeds: Vec<String> = failures.iter().map(|f| f["seed"].to_string()).collect();
            println!("{} seeds failed: {}", failures.len(), seeds.join(" "));
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
