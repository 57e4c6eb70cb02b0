//! Stages that read the source: formatting, lints, the rules of `tidy`, licences.

use super::Job;
use crate::tidy::{RULES, Weight, read_tree};
use anyhow::Result;

/// Violations shown per rule.
const SHOWN_MAX: usize = 40;

pub fn fmt(job: &mut Job) -> Result<()> {
    let command = job.cargo(&["fmt", "--all", "--check", "--", "--color", "never"]);
    job.run_as_stage(command)?;
    // A workspace of its own.
    let fuzz = job.cargo(&["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check", "--", "--color", "never"]);
    if job.run_well("fmt fuzz", fuzz)?.is_some() {
        job.passed("fmt fuzz", "");
    }
    Ok(())
}

pub fn clippy(job: &mut Job) -> Result<()> {
    let mut command = job.cargo_workspace("clippy");
    command.args(["--all-targets", "--", "-D", "warnings"]);
    job.run_as_stage(command)
}

pub fn deny(job: &mut Job) -> Result<()> {
    let version = job.run(job.cargo(&["deny", "--version"]))?;
    if !version.is_ok() {
        job.not_run("deny", "cargo-deny is not installed (cargo install cargo-deny)");
        return Ok(());
    }
    let command = job.cargo(&["deny", "check", "licenses", "bans", "sources"]);
    job.run_as_stage(command)
}

/// Every rule is a check of its own.
pub fn tidy(job: &mut Job) -> Result<()> {
    let tree = read_tree(&job.workspace.root, &job.workspace.metadata)?;
    for rule in RULES {
        let violations = (rule.check)(&tree);
        let name = format!("tidy {}", rule.name);
        if rule.weight == Weight::Warning {
            for violation in &violations {
                job.remark(&format!("warning: {violation}"));
            }
            let note =
                if violations.is_empty() { String::new() } else { format!("{} warnings", violations.len()) };
            job.passed(&name, note);
        } else if violations.is_empty() {
            job.passed(&name, "");
        } else {
            let mut lines: Vec<String> = violations.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
            if violations.len() > SHOWN_MAX {
                lines.push(format!("... and {} more", violations.len() - SHOWN_MAX));
            }
            job.failed(&name, format!("{} ({} places)", rule.asks, violations.len()), lines);
        }
    }
    Ok(())
}
