//! Stages that are a `cargo test` of one kind or another. Each counts the tests that ran: a filter that matches nothing
//! is a failure, not a pass.

use super::{Job, install};
use crate::process::Finished;
use crate::report::excerpt;
use anyhow::Result;
use std::process::Command;

/// Kill rounds of the stage `kill`, and in `unit`, where the test only shows that it works.
const KILL_ROUNDS: &str = "200";
const KILL_ROUNDS_FULL: &str = "1000";
const KILL_ROUNDS_UNIT: &str = "20";

/// Rounds of the stage `hostile`; where tests of `node` run besides, they only show that they work.
const ATTACK_ROUNDS: &str = "1000";
const ATTACK_ROUNDS_FULL: &str = "10000";

pub fn build(job: &mut Job) -> Result<()> {
    let command = job.cargo(&["build", "--release", "--bin", "dvs"]);
    job.run_as_stage(command)
}

/// All tests but those of the stage `conformance`; those of `process` run here with overflow checks, there as released.
pub fn unit(job: &mut Job) -> Result<()> {
    let dvs = job.dvs_executable()?;
    let mut command = job.cargo_workspace("test");
    command.args([
        "--no-fail-fast",
        "--",
        "--show-output",
        "--skip",
        "conformance",
        "--skip",
        "process::faults",
    ]);
    command.env("DVS_BIN", dvs).env("KILL_ROUNDS", KILL_ROUNDS_UNIT);
    run_tests(job, "unit", command)?;
    // What only a build without the feature says.
    let mut command = job.cargo(&["test", "-p", "proxy-tcp", "--no-default-features", "--", "--show-output"]);
    command.args(["--skip", "conformance"]);
    run_tests(job, "unit, proxy-tcp without features", command)
}

pub fn conformance(job: &mut Job) -> Result<()> {
    let dvs = job.dvs_executable()?;
    let mut packages = vec!["-p", "fabric", "-p", "proxy-tcp", "-p", "dvk", "-p", "node"];
    if install::rdma_libraries(job.workspace).is_ok() {
        // Over TCP: where there are devices is the stage `rxe`.
        packages.extend(["-p", "proxy-rdma"]);
    }
    let mut command = job.cargo(&["test", "--no-fail-fast"]);
    command.args(packages).args(["conformance", "--", "--show-output"]).env("DVS_BIN", dvs);
    run_tests(job, "conformance", command)
}

pub fn loom(job: &mut Job) -> Result<()> {
    let mut command = job.cargo(&["test", "--release", "-p", "shm", "--test", "loom", "--target-dir"]);
    command.arg(job.workspace.target.join("loom"));
    command.env("RUSTFLAGS", "--cfg loom").env("LOOM_MAX_PREEMPTIONS", "2");
    run_tests(job, "loom", command)
}

pub fn kill(job: &mut Job) -> Result<()> {
    let rounds = if job.is_full { KILL_ROUNDS_FULL } else { KILL_ROUNDS };
    let mut command = job.cargo(&["test", "--release", "-p", "shm", "--test", "kill", "--", "--show-output"]);
    command.env("KILL_ROUNDS", rounds);
    job.remark(&format!("KILL_ROUNDS={rounds}"));
    run_tests(job, "kill", command)
}

pub fn process(job: &mut Job) -> Result<()> {
    let dvs = job.dvs_executable()?;
    let mut command =
        job.cargo(&["test", "--release", "-p", "node", "--test", "process", "--", "--show-output"]);
    command.args(["--skip", "attack", "--skip", "process::faults"]).env("DVS_BIN", dvs);
    run_tests(job, "process", command)
}

/// Attackers beside others, whom they must not harm: by members of another user and of the same, and by a node.
pub fn hostile(job: &mut Job) -> Result<()> {
    let dvs = job.dvs_executable()?;
    let rounds = if job.is_full { ATTACK_ROUNDS_FULL } else { ATTACK_ROUNDS };
    let mut command = job.cargo(&["test", "--release", "-p", "node", "--test", "process", "attack", "--"]);
    command.args(["--show-output", "--test-threads=1"]).env("DVS_BIN", dvs).env("ATTACK_ROUNDS", rounds);
    job.remark(&format!("ATTACK_ROUNDS={rounds}"));
    run_tests(job, "hostile", command)
}

pub fn bench(job: &mut Job) -> Result<()> {
    let command = job.cargo(&["bench", "-p", "bench", "--no-run"]);
    job.run_as_stage(command)
}

pub fn miri(job: &mut Job) -> Result<()> {
    let version = job.run(job.cargo(&["+nightly", "miri", "--version"]))?;
    if !version.is_ok() {
        job.not_run(
            "miri",
            "the nightly toolchain has no miri (rustup component add --toolchain nightly miri)",
        );
        return Ok(());
    }
    let mut command = job.cargo(&["+nightly", "miri", "test", "-p", "shm", "--lib", "--target-dir"]);
    command.arg(job.workspace.target.join("miri")).arg("heap_");
    command.env_remove("RUSTUP_TOOLCHAIN");
    run_tests(job, "miri", command)
}

/// Runs a command that prints what Rust's test harness prints, and judges it as `name`.
pub fn run_tests(job: &mut Job, name: &str, command: Command) -> Result<()> {
    let done = job.run(command)?;
    judge_tests(job, name, &done);
    Ok(())
}

/// Judges by its output what Rust's test harness has run.
pub fn judge_tests(job: &mut Job, name: &str, done: &Finished) {
    job.relay_not_run(done);
    let tally = Tally::of(done.log.iter().map(String::as_str));
    if !done.is_ok() {
        job.failed(name, format!("{}; {tally}", done.ending()), excerpt(done.log.iter()));
    } else if tally.passed == 0 {
        job.failed(name, "no test ran: write one, or mend the filter", excerpt(done.log.iter()));
    } else {
        job.passed(name, tally.to_string());
    }
}

/// The sum of all `test result:` lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: usize,
    executables: usize,
}

impl Tally {
    fn of<'a>(lines: impl Iterator<Item = &'a str>) -> Self {
        let mut tally = Tally::default();
        for line in lines {
            let Some(result) = line.strip_prefix("test result: ") else { continue };
            let count = |what: &str| {
                let before = result.split(&format!(" {what}")).next().unwrap_or("");
                before.rsplit(' ').next().and_then(|n| n.parse::<usize>().ok()).unwrap_or(0)
            };
            tally.passed += count("passed");
            tally.failed += count("failed");
            tally.executables += 1;
        }
        tally
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tests good, {} bad, in {} executables", self.passed, self.failed, self.executables)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_executables_are_summed() {
        let log = [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 11 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.00s",
        ];
        assert_eq!(Tally::of(log.into_iter()), Tally { passed: 14, failed: 2, executables: 2 });
    }

    #[test]
    fn a_log_without_results_has_none() {
        assert_eq!(Tally::of(["error: no such test"].into_iter()).passed, 0);
    }
}
