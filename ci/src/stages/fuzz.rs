//! The stage `fuzz`: each target of `fuzz/` for a while, from the corpus in the tree, which stays as it is.

use super::cargo_tests::run_tests;
use super::{Job, install};
use crate::report::excerpt;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

const SECONDS: u64 = 10;
const SECONDS_FULL: u64 = 120;
const INPUT_BYTES_MAX: usize = 3000;

pub fn run(job: &mut Job) -> Result<()> {
    let tool = match tool(job)? {
        Ok(tool) => tool,
        Err(why) => {
            job.not_run("fuzz", why);
            // What was found once is looked at again, with any compiler.
            let mut command = job.cargo(&["test", "--manifest-path", "fuzz/Cargo.toml", "--target-dir"]);
            command.arg(job.workspace.target.join("fuzz"));
            return run_tests(job, "fuzz: the corpus again", command);
        }
    };
    let build = command(job, &tool, "build", &[]);
    if job.run_well("fuzz: build", build)?.is_none() {
        return Ok(());
    }
    let seconds = if job.is_full { SECONDS_FULL } else { SECONDS };
    for target in targets(&job.workspace.root.join("fuzz/fuzz_targets"))? {
        let scratch = job.workspace.target.join("fuzz-corpus").join(&target);
        std::fs::create_dir_all(&scratch).context("cannot make a folder for a corpus")?;
        let corpus = job.workspace.root.join("fuzz/corpus").join(&target);
        let mut fuzz = command(job, &tool, "run", &[&target]);
        fuzz.arg(&scratch).arg(&corpus).arg("--");
        fuzz.args([format!("-max_total_time={seconds}"), format!("-max_len={INPUT_BYTES_MAX}")]);
        let done = job.run(fuzz)?;
        let name = format!("fuzz {target}");
        if done.is_ok() {
            let said = done.log.iter().rev().find_map(|line| line.strip_prefix("Done "));
            job.passed(&name, said.unwrap_or("done").to_owned());
        } else {
            job.failed(&name, done.ending(), excerpt(done.log.iter()));
        }
    }
    Ok(())
}

/// `cargo-fuzz` of a nightly toolchain; or why there is none.
fn tool(job: &mut Job) -> Result<Result<PathBuf, String>> {
    let mut nightly = job.cargo(&["+nightly", "--version"]);
    nightly.env_remove("RUSTUP_TOOLCHAIN");
    if !job.run(nightly)?.is_ok() {
        return Ok(Err("there is no nightly toolchain (rustup toolchain install nightly)".into()));
    }
    install::cargo_tool(job, "cargo-fuzz")
}

fn command(job: &Job, tool: &Path, what: &str, rest: &[&str]) -> Command {
    let mut command = Command::new(tool);
    command.args(["fuzz", what, "--fuzz-dir", "fuzz", "--features", "libfuzzer", "--target-dir"]);
    command.arg(job.workspace.target.join("fuzz")).args(rest);
    command.current_dir(&job.workspace.root).env("RUSTUP_TOOLCHAIN", "nightly");
    command
}

fn targets(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let stem = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    let mut names: Vec<String> = entries.filter_map(|entry| stem(entry.ok()?.path())).collect();
    names.sort();
    Ok(names)
}
