//! The stages `sim`, simulations from a first seed that the commit decides, so that all commits together walk far; and
//! `mutants`, which shows that they find what is broken.

use super::Job;
use crate::report::excerpt;
use anyhow::Result;

const SEEDS: &str = "1000";
const SEEDS_FULL: &str = "10000";
/// Hex digits of the commit id that make the seed: 48 bits, which every JSON reader keeps exactly.
const SEED_DIGITS: usize = 12;

pub fn run(job: &mut Job) -> Result<()> {
    let seeds = if job.is_full { SEEDS_FULL } else { SEEDS };
    let first = job.workspace.commit().and_then(|id| seed_of(&id)).unwrap_or(1).to_string();
    job.remark(&format!(
        "{seeds} seeds from {first}: cargo run --release -p sim -- --seeds {seeds} --from {first}"
    ));
    let arguments = ["run", "--release", "-p", "sim", "--", "--seeds", seeds, "--from", &first, "--json"];
    let command = job.cargo(&arguments);
    let done = job.run(command)?;
    job.relay_not_run(&done);
    if done.is_ok() {
        job.passed("sim", format!("{seeds} seeds from {first}"));
    } else {
        job.failed("sim", format!("{} (seeds from {first})", done.ending()), excerpt(done.log.iter()));
    }
    Ok(())
}

/// Every fault that is built into the code for it, each alone: found, or the stage fails.
pub fn mutants(job: &mut Job) -> Result<()> {
    let command = job.cargo(&["run", "--release", "-p", "sim", "--features", "mutants", "--", "--mutants"]);
    let done = job.run(command)?;
    let said = done.log.back().cloned().unwrap_or_default();
    if done.is_ok() {
        job.passed("mutants", said);
        return Ok(());
    }
    let survivors: Vec<String> = done.log.iter().filter(|line| line.contains("SURVIVES")).cloned().collect();
    let told = if survivors.is_empty() { excerpt(done.log.iter()) } else { survivors };
    job.failed("mutants", format!("{}; {said}", done.ending()), told);
    Ok(())
}

/// A number that the commit decides.
pub fn seed_of(commit: &str) -> Option<u64> {
    u64::from_str_radix(commit.get(..SEED_DIGITS)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_decides_the_seed() {
        assert_eq!(seed_of("0000000000ff4b825dc642cb6eb9a060e54bf8d6"), Some(255));
        assert_eq!(seed_of("no commit here"), None);
        assert_eq!(seed_of("ff"), None);
    }
}
