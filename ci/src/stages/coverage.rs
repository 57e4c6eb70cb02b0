//! The stage `coverage`, with `--full`: which lines of the crates that everything stands on are run by tests.
//!
//! What programs do that are killed is not counted: they leave no profile. So the tests are those that run in one process.

use super::{Job, install};
use crate::report::excerpt;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Debian's; it reads profiles of newer compilers.
pub const LLVM_COV: &str = "llvm-cov-19";
const LLVM_PROFDATA: &str = "llvm-profdata-19";
/// Of the lines of each of [`CRATES`].
const PERCENT_MIN: f64 = 90.0;
const CRATES: [&str; 4] = ["abi", "shm", "fabric", "dvk"];
/// Whose tests run them.
const TESTED: [&str; 6] = ["abi", "shm", "fabric", "dvk", "proxy-tcp", "node"];
/// Processes that are killed, and a gibibyte copied by counting code.
const SKIPPED: [&str; 3] = ["process::", "gibibyte", "the_survivor_of_a_killed_peer"];

pub fn run(job: &mut Job) -> Result<()> {
    if !job.is_full {
        job.not_run("coverage", "builds and runs the tests anew, for minutes: with --full");
        return Ok(());
    }
    let tool = match install::cargo_tool(job, "cargo-llvm-cov")? {
        Ok(tool) => tool,
        Err(why) => {
            job.not_run("coverage", why);
            return Ok(());
        }
    };
    let target = job.workspace.target.join("coverage");
    let report = target.join("lines.json");
    let mut command = Command::new(tool);
    command.current_dir(&job.workspace.root).args(["llvm-cov", "--json", "--summary-only", "--output-path"]);
    command.arg(&report).env("CARGO_LLVM_COV_TARGET_DIR", &target);
    for name in TESTED {
        command.args(["-p", name]);
    }
    command.args(["--lib", "--tests", "--"]);
    for name in SKIPPED {
        command.args(["--skip", name]);
    }
    // Without them it looks for those of rustup, which say what to install.
    if Workspace::find_program(LLVM_COV).is_some() {
        command.env("LLVM_COV", LLVM_COV).env("LLVM_PROFDATA", LLVM_PROFDATA);
    }
    let dvs = job.dvs_executable()?;
    command.env("DVS_BIN", dvs).env("KILL_ROUNDS", "1");
    let done = job.run(command)?;
    if !done.is_ok() {
        job.failed("coverage", done.ending(), excerpt(done.log.iter()));
        return Ok(());
    }
    let text = std::fs::read_to_string(&report).with_context(|| format!("no {}", report.display()))?;
    let lines = lines_of(&text, &job.workspace.root).context("what cargo-llvm-cov wrote makes no sense")?;
    for name in CRATES {
        let Some((covered, count)) = lines.get(name) else {
            job.failed(&format!("coverage of {name}"), "it has no lines in the report", Vec::new());
            continue;
        };
        let percent = 100.0 * *covered as f64 / *count as f64;
        let said = format!("{percent:.1} % of {count} lines");
        if percent < PERCENT_MIN {
            job.failed(&format!("coverage of {name}"), format!("{said}, not {PERCENT_MIN} %"), Vec::new());
        } else {
            job.passed(&format!("coverage of {name}"), said);
        }
    }
    Ok(())
}

/// Lines that were run and all lines, of each crate.
fn lines_of(report: &str, root: &Path) -> Option<BTreeMap<String, (u64, u64)>> {
    let report: serde_json::Value = serde_json::from_str(report).ok()?;
    let mut crates: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for file in report["data"][0]["files"].as_array()? {
        let path = Path::new(file["filename"].as_str()?);
        let Some(name) = path.strip_prefix(root).ok().and_then(|path| path.iter().next()?.to_str()) else {
            continue;
        };
        let lines = &file["summary"]["lines"];
        let sum = crates.entry(name.to_owned()).or_default();
        *sum = (sum.0 + lines["covered"].as_u64()?, sum.1 + lines["count"].as_u64()?);
    }
    Some(crates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_summed_by_crate_and_files_from_elsewhere_are_not() {
        let file = |path: &str, covered: u64, count: u64| {
            serde_json::json!({
                "filename": path, "summary": { "lines": { "covered": covered, "count": count } }
            })
        };
        let files = [file("/w/abi/src/a.rs", 1, 2), file("/w/abi/src/b.rs", 3, 3), file("/r/std/c.rs", 0, 9)];
        let report = serde_json::json!({ "data": [{ "files": files }] }).to_string();
        let expected = BTreeMap::from([("abi".to_owned(), (4, 5))]);
        assert_eq!(lines_of(&report, Path::new("/w")), Some(expected));
        assert_eq!(lines_of("{}", Path::new("/w")), None);
    }
}
