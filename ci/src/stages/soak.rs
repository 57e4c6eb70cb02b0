//! The stage `soak`: all calls at random on real processes under random faults, as released and, where there is a nightly
//! toolchain, under a sanitizer: one chosen by the commit id, with `--full` each.
//!
//! The standard library is not instrumented: its source is not everywhere. Memory that processes share is beyond a
//! sanitizer in any case; what is found is within each process.

use super::{Job, sim};
use crate::report::excerpt;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

const MINUTES: &str = "0.5";
const MINUTES_FULL: &str = "10";
const SANITIZERS: [&str; 2] = ["address", "thread"];
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// The standard library's channels free their wakers behind a fence. ThreadSanitizer knows no fences; what the library does
/// instead when it is built for it, ours does not, for it is not.
const SUPPRESSIONS: &str = "race:std::sync::mpmc\n";
/// What a sanitizer writes where it finds something, before the process's number.
const REPORT: &str = "report";

pub fn run(job: &mut Job) -> Result<()> {
    let dvs = job.dvs_executable()?;
    let soak = command(job, &dvs);
    judge(job, "soak", soak, None)?;
    if !cfg!(target_arch = "x86_64") {
        job.not_run("soak under a sanitizer", "only tried on x86_64");
        return Ok(());
    }
    let mut nightly = job.cargo(&["+nightly", "--version"]);
    nightly.env_remove("RUSTUP_TOOLCHAIN");
    if !job.run(nightly)?.is_ok() {
        let why = "there is no nightly toolchain (rustup toolchain install nightly)";
        job.not_run("soak under a sanitizer", why);
        return Ok(());
    }
    let seed = job.workspace.commit().and_then(|id| sim::seed_of(&id)).unwrap_or(0);
    let chosen = SANITIZERS[(seed % SANITIZERS.len() as u64) as usize];
    let is_full = job.is_full;
    for sanitizer in SANITIZERS.iter().filter(|name| is_full || **name == chosen) {
        under(job, sanitizer)?;
    }
    Ok(())
}

fn command(job: &Job, dvs: &PathBuf) -> Command {
    let mut soak = Command::new(dvs);
    soak.args(["soak", "--json", "--minutes", if job.is_full { MINUTES_FULL } else { MINUTES }]);
    soak
}

fn under(job: &mut Job, sanitizer: &str) -> Result<()> {
    let name = format!("soak under {sanitizer} sanitizer");
    let target = std::path::absolute(job.workspace.target.join(format!("sanitizer-{sanitizer}")));
    let target = target.context("where the target folder is")?;
    let mut build = job.cargo(&["build", "--release", "--bin", "dvs", "--target", TRIPLE, "--target-dir"]);
    build.arg(&target).env("RUSTUP_TOOLCHAIN", "nightly");
    build.env("RUSTFLAGS", format!("-Zsanitizer={sanitizer} -Cunsafe-allow-abi-mismatch=sanitizer"));
    // What is checked is the code, not the optimizer.
    for (setting, value) in [("LTO", "off"), ("CODEGEN_UNITS", "16"), ("DEBUG", "1"), ("OPT_LEVEL", "1")] {
        build.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
    }
    if job.run_well(&format!("{name}: build"), build)?.is_none() {
        return Ok(());
    }
    let reports = target.join("reports");
    // Those of an earlier run say nothing of this one.
    std::fs::remove_dir_all(&reports).ok();
    std::fs::create_dir_all(&reports).with_context(|| format!("cannot make {}", reports.display()))?;
    let mut soak = command(job, &target.join(TRIPLE).join("release/dvs"));
    let suppressions = target.join("suppressions");
    std::fs::write(&suppressions, SUPPRESSIONS).context("cannot write what a sanitizer passes over")?;
    let log = format!("log_path={}", reports.join(REPORT).display());
    soak.env("ASAN_OPTIONS", &log);
    soak.env("TSAN_OPTIONS", format!("{log} suppressions={}", suppressions.display()));
    judge(job, &name, soak, Some(reports))
}

/// Ended well, and no sanitizer has written anything.
fn judge(job: &mut Job, name: &str, soak: Command, reports: Option<PathBuf>) -> Result<()> {
    let done = job.run(soak)?;
    let written: Vec<PathBuf> = match reports {
        Some(folder) => std::fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        None => Vec::new(),
    };
    if let Some(first) = written.first() {
        let text = std::fs::read_to_string(first).unwrap_or_default();
        let why = format!("{} processes have something to report", written.len());
        job.failed(name, why, text.lines().take(40).map(str::to_owned).collect());
    } else if done.is_ok() {
        let said = done.stdout.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
        let answer: serde_json::Value = serde_json::from_str(&said).unwrap_or_default();
        let faults: u64 =
            answer["faults"].as_object().into_iter().flatten().filter_map(|f| f.1.as_u64()).sum();
        job.passed(name, format!("{} messages accepted, {faults} faults, none lost", answer["accepted"]));
    } else {
        job.failed(name, done.ending(), excerpt(done.log.iter()));
    }
    Ok(())
}
