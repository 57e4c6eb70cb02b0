//! Driver: `cargo run --release -p sim -- --seeds N [--from S] [--json]`: runs seeds, each twice, and says what they
//! reached. `--mutants` shows that it bites: it breaks the code that ships on purpose, one promise at a time.
#![forbid(unsafe_code)]

mod hunt;
mod many;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use sim::report::{self, Report};

/// Simulates whole clusters: the cores of the daemon, the kernel and the courier, with faults, from a seed.
#[derive(Parser)]
struct Options {
    /// How many seeds; with --mutants, how many a mutant may survive [default: 200, or 1000].
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Print every line of the trace of each first run.
    #[arg(long)]
    loud: bool,
    /// Break the code on purpose, one fault at a time: each must be found.
    #[arg(long)]
    mutants: bool,
    /// Of the mutants, this one alone; with --seeds 1, also its last events.
    #[arg(long, requires = "mutants")]
    only: Option<String>,
}

const SEEDS: u64 = 200;
#[cfg(feature = "mutants")]
const MUTANT_SEEDS: u64 = 1_000;
/// From so many seeds on, whatever none of them has reached is a failure.
const ENOUGH: u64 = 100;

fn main() -> ExitCode {
    let options = Options::parse();
    let is_well = if options.mutants { hunt::run(&options) } else { run_seeds(&options) };
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_seeds(options: &Options) -> bool {
    let began = Instant::now();
    let seeds = options.seeds.unwrap_or(SEEDS);
    let mut report = Report::default();
    let mut failures = Vec::new();
    let mut last_lines = String::new();
    let jobs = if options.loud { 1 } else { many::jobs() };
    let all = options.from..options.from.saturating_add(seeds);
    many::each(
        all,
        jobs,
        |seed| (sim::run(seed, options.loud), sim::run(seed, false)),
        |seed, (first, second)| {
            let mut wrong: Vec<String> = first
                .findings
                .iter()
                .map(|finding| format!("{}: {}", finding.invariant, finding.what))
                .collect();
            if first.hash != second.hash {
                wrong.push(format!("two runs of the seed differ: {:#x} and {:#x}", first.hash, second.hash));
            }
            wrong.extend(report::too_small(&first));
            report.add(&first);
            last_lines = first.last_lines;
            if wrong.is_empty() {
                return true;
            }
            if !options.json {
                println!("seed {seed}:");
                wrong.iter().for_each(|what| println!("  {what}"));
                println!("{last_lines}");
                println!("replay: cargo run --release -p sim -- --seeds 1 --from {seed}\n");
            }
            failures.push(serde_json::json!({
                "seed": seed,
                "what": wrong,
                "replay": format!("cargo run --release -p sim -- --seeds 1 --from {seed}"),
            }));
            true
        },
    );
    let per_second = seeds as f64 / began.elapsed().as_secs_f64();
    let zeros = if seeds >= ENOUGH { report.zeros() } else { Vec::new() };
    let is_well = failures.is_empty() && zeros.is_empty();
    if options.json {
        let mut json = report.to_json();
        json["seeds_per_second"] = serde_json::json!((per_second * 10.0).round() / 10.0);
        json["violations"] = failures.len().into();
        json["failures"] = failures.into();
        json["zeros"] = zeros.into();
        println!("{json}");
        return is_well;
    }
    if seeds == 1 && failures.is_empty() {
        println!("{last_lines}\n");
    }
    println!("{}", report.to_text());
    println!("{per_second:.1} seeds/s, {} seeds with violations", failures.len());
    if !failures.is_empty() {
        let seeds: Vec<String> = failures.iter().map(|f| f["seed"].to_string()).collect();
        println!("failed: {}", seeds.join(" "));
    }
    if !zeros.is_empty() {
        println!("never reached by any seed: {}", zeros.join("; "));
    }
    is_well
}
