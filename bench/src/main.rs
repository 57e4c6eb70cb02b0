//! What the benches are, and the bare limits of this machine to hold their figures against.
//!
//! `bench list` names every bench with its command. `bench limits` measures round trips of two processes with nothing
//! of the product in between (`shm::bare`), so that a figure of the product has its ratio from the same machine.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use serde_json::json;
use shm::bare::{BareError, PingPong, Samples, serve_from_env, shm_copy, tcp};
use shm::os::process::cpus_allowed;

/// Each bench of this crate, and what it measures.
const BENCHES: [(&str, &str); 4] = [
    ("lane", "a slot published and taken: in one thread, and there and back between two"),
    ("loan", "a loan taken and freed, by size; a descriptor of 1 MiB handed over and brought home"),
    ("wake", "a doorbell rung and its sleeper woken, there and back between two threads"),
    ("framing", "frame headers and records, emitted and checked; CRC-32C by length"),
];

type Measure = fn(&PingPong) -> Result<Samples, BareError>;

const LIMITS: [(&str, Measure); 2] = [("shm_copy", shm_copy), ("tcp", tcp)];

#[derive(Parser)]
#[command(about = "Benches of the kernel, and the bare limits beside them")]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Names every bench and the command that runs it.
    List,
    /// Measures the bare limits of this machine: round trips through shared memory and through TCP.
    Limits {
        /// Prints one JSON object instead of a table.
        #[arg(long)]
        json: bool,
        /// Bytes of a message; may be given several times.
        #[arg(long, default_values_t = [64, 4096, 1 << 20])]
        size_bytes: Vec<usize>,
        /// How long each measurement may take.
        #[arg(long, default_value_t = 1000)]
        time_ms: u64,
    },
}

fn main() -> Result<()> {
    serve_from_env();
    match Options::parse().command {
        Command::List => list(),
        Command::Limits { json, size_bytes, time_ms } => {
            limits(json, &size_bytes, Duration::from_millis(time_ms))?
        }
    }
    Ok(())
}

fn list() {
    for (name, what) in BENCHES {
        println!("cargo bench -p bench --bench {name:<8}  {what}");
    }
    println!("cargo run --release -p bench -- limits  the bare limits of this machine");
}

fn limits(as_json: bool, sizes_bytes: &[usize], time_max: Duration) -> Result<()> {
    let cpus = cpus_allowed().context("which processors may be used; is sched_getaffinity allowed here?")?;
    let mut figures = Vec::new();
    if !as_json {
        println!(
            "{:<10}{:>12}{:>10}{:>12}{:>12}{:>12}",
            "limit", "size_bytes", "rounds", "p50_ns", "p99_ns", "p999_ns"
        );
    }
    for &size_bytes in sizes_bytes {
        if size_bytes < 8 {
            bail!("--size-bytes {size_bytes}: a message has at least 8 bytes");
        }
        // With one processor both sides share it, which is slow, but measures what there is.
        let (cpu_here, cpu_there) = (cpus.first().copied(), cpus.get(1).or(cpus.first()).copied());
        let config = PingPong { size_bytes, time_max, cpu_here, cpu_there, ..PingPong::default() };
        for (name, measure) in LIMITS {
            let samples = measure(&config).with_context(|| format!("{name} with {size_bytes} bytes"))?;
            let rounds = samples.sorted_ns().len();
            let (p50, p99, p999) = (samples.p50(), samples.p99(), samples.p999());
            if as_json {
                figures.push(json!({
                    "limit": name, "size_bytes": size_bytes, "rounds": rounds,
                    "p50_ns": p50, "p99_ns": p99, "p999_ns": p999, "mean_ns": samples.mean(),
                }));
            } else {
                println!("{name:<10}{size_bytes:>12}{rounds:>10}{p50:>12.0}{p99:>12.0}{p999:>12.0}");
            }
        }
    }
    if as_json {
        println!("{}", json!({ "cpus": cpus, "round_trips": figures }));
    }
    Ok(())
}
