//! The stage `install`: the few system programs other stages use, by Debian's package manager, only when missing; and subcommands of
//! cargo, for the stages that need one.

use super::{Job, coverage};
use crate::report::excerpt;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Program, and the Debian package that holds it.
const NEEDED: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("setpriv", "util-linux"),
    ("c++", "g++"),
    ("nft", "nftables"),
    ("faketime", "faketime"),
];
/// What `--full` needs besides.
const NEEDED_FULL: &[(&str, &str)] = &[(coverage::LLVM_COV, "llvm-19")];
const TRIES: usize = 3;
const BETWEEN_TRIES: Duration = Duration::from_secs(5);

pub fn run(job: &mut Job) -> Result<()> {
    let missing = missing(job.is_full);
    if missing.is_empty() {
        job.passed("install", "nothing is missing");
        return Ok(());
    }
    let packages = missing.join(" ");
    if !job.workspace.is_root_user {
        job.not_run(
            "install",
            format!("needs root; some stages will not run without: apt-get install {packages}"),
        );
        return Ok(());
    }
    if Workspace::find_program("apt-get").is_none() {
        job.not_run("install", format!("there is no apt-get; install what holds: {packages}"));
        return Ok(());
    }
    for attempt in 1..=TRIES {
        let mut update = apt();
        update.arg("update");
        let mut install = apt();
        install.args(["-y", "--no-install-recommends", "install"]).args(&missing);
        let updated = job.run(update)?;
        let installed = job.run(install)?;
        if installed.is_ok() {
            job.passed("install", packages);
            return Ok(());
        }
        let failure = if updated.is_ok() { installed } else { updated };
        let said = excerpt(failure.log.iter()).pop().unwrap_or_default();
        if attempt == TRIES {
            job.not_run("install", format!("apt-get could not install {packages}: {said}"));
        } else {
            job.remark(&format!("attempt {attempt} of {TRIES}: {said}"));
            std::thread::sleep(BETWEEN_TRIES);
        }
    }
    Ok(())
}

fn missing(is_full: bool) -> Vec<&'static str> {
    let needed = NEEDED.iter().chain(NEEDED_FULL.iter().filter(|_| is_full));
    needed.filter(|(program, _)| Workspace::find_program(program).is_none()).map(|(_, p)| *p).collect()
}

/// A subcommand of cargo, installed below the target folder if need be; or why there is none.
pub fn cargo_tool(job: &mut Job, name: &str) -> Result<Result<PathBuf, String>> {
    let root =
        std::path::absolute(job.workspace.target.join("tools")).context("where the target folder is")?;
    let tool = root.join("bin").join(name);
    if !tool.is_file() {
        let mut install = job.cargo(&["install", name, "--locked", "--root"]);
        install.arg(&root);
        let done = job.run(install)?;
        if !done.is_ok() {
            let said = excerpt(done.log.iter()).pop().unwrap_or_default();
            return Ok(Err(format!("{name} could not be installed: {said}")));
        }
    }
    Ok(Ok(tool))
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=300"]);
    apt
}
