//! The stage `rxe`: what needs RDMA devices, in the virtual machine that has two (`ci rxe`).

use super::cargo_tests::judge_tests;
use super::{Job, demo, install};
use crate::report::excerpt;
use anyhow::{Context, Result};
use std::process::Command;

/// As `ci rxe` says that there is no machine.
const NO_MACHINE: i32 = 125;
const SECONDS_MAX: &str = "420";
const MEMORY_MIB: &str = "2048";
const FILE_BYTES: u32 = 8 << 20;
/// What needs no device: other stages run it.
const SKIPPED: &str = "tcp_instead";

pub fn run(job: &mut Job) -> Result<()> {
    if let Err(why) = install::rdma_libraries(job.workspace) {
        job.not_run("rxe", why);
        return Ok(());
    }
    let build = job.cargo(&["test", "-p", "proxy-rdma", "--no-run", "--message-format", "json"]);
    let Some(built) = job.run_well("rxe: build", build)? else { return Ok(()) };
    let executables: Vec<String> = built.stdout.iter().filter_map(|line| executable_in(line)).collect();
    anyhow::ensure!(!executables.is_empty(), "cargo names no test of proxy-rdma");
    let mut command = Command::new(std::env::current_exe().context("where this program is")?);
    let each = format!("for one; do \"$one\" --test-threads=1 --show-output --skip {SKIPPED} || exit; done");
    command.args(["rxe", "--timeout", SECONDS_MAX, "--memory", MEMORY_MIB, "--", "sh", "-c", &each]);
    command.arg("rxe-stage").args(executables).current_dir(&job.workspace.root);
    let done = job.run(command)?;
    if done.status.and_then(|status| status.code()) == Some(NO_MACHINE) {
        let said = excerpt(done.log.iter()).pop().unwrap_or_default();
        job.not_run("rxe", format!("there is no virtual machine: {said}"));
        return Ok(());
    }
    judge_tests(job, "rxe", &done);
    demo(job)
}

/// The whole demonstration, its nodes joined by RDMA: nodes 1 and 3 share a device.
fn demo(job: &mut Job) -> Result<()> {
    let build = job.cargo(&["build", "--release", "-p", "proxy-rdma"]);
    if job.run_well("rxe demo: build", build)?.is_none() {
        return Ok(());
    }
    let dvs = job.dvs_executable()?;
    let file = job.workspace.target.join("rxe").join("file-to-send");
    let bytes: Vec<u8> = (0..FILE_BYTES).map(|at: u32| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    std::fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
    let mut command = Command::new(std::env::current_exe().context("where this program is")?);
    command.args(["rxe", "--timeout", SECONDS_MAX, "--memory", MEMORY_MIB, "--"]).arg(dvs);
    command
        .args(["demo", "--proxy", "rdma", "--json", "--messages", demo::MESSAGES_SHORT, "--file"])
        .arg(file);
    command.current_dir(&job.workspace.root);
    let done = job.run(command)?;
    demo::judge(job, "rxe demo", &done);
    Ok(())
}

/// The program of a test, from a line of cargo.
fn executable_in(line: &str) -> Option<String> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    (message["profile"]["test"] == true).then(|| message["executable"].as_str().map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_of_tests_are_found_and_nothing_else() {
        let test = r#"{"reason":"compiler-artifact","profile":{"test":true},"executable":"/t/verbs-1"}"#;
        assert_eq!(executable_in(test).as_deref(), Some("/t/verbs-1"));
        assert_eq!(executable_in(&test.replace("true", "false")), None);
        assert_eq!(executable_in(r#"{"profile":{"test":true},"executable":null}"#), None);
        assert_eq!(executable_in("   Compiling"), None);
    }
}
