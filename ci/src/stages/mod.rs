//! The stages, in the order they run, and what drives them. Key types: [`Stage`], a row of the table, and [`Job`], what
//! a stage's function works with. A stage never ends the run: it records checks and the next one begins.

mod book;
mod cargo_tests;
mod coverage;
mod demo;
mod faults;
mod fuzz;
pub mod install;
mod lint;
mod rxe;
mod sim;
mod soak;
mod unprivileged;

use crate::process::{self, Finished, TAG, cargo_command};
use crate::report::{Check, Counts, Screen, Verdict, excerpt, minutes};
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const TOTAL_MINUTES_MAX: u64 = 85;
const TOTAL_MINUTES_MAX_FULL: u64 = 300;
/// What a stage left running is given this long to go by itself.
const LEAVE_GRACE: Duration = Duration::from_secs(5);

/// What the command line asks for.
pub struct Options {
    pub is_full: bool,
    pub only: Vec<String>,
    pub list: bool,
    pub verbose: bool,
}

/// A row of the table.
struct Stage {
    name: &'static str,
    about: &'static str,
    /// Minutes on two cores; over it is a warning, at twice this and two more its children are ended.
    budget_minutes: u64,
    /// How many times longer with `--full`.
    full_factor: u64,
    run: fn(&mut Job) -> Result<()>,
}

const fn stage(
    name: &'static str,
    budget_minutes: u64,
    about: &'static str,
    run: fn(&mut Job) -> Result<()>,
) -> Stage {
    Stage { name, about, budget_minutes, full_factor: 1, run }
}

/// The stages, in order. Their budgets sum to less than the total.
const STAGES: &[Stage] = &[
    stage("install", 2, "Debian packages the other stages need", install::run),
    stage("fmt", 1, "cargo fmt --all --check", lint::fmt),
    stage("tidy", 1, "the rules about the tree", lint::tidy),
    stage("deny", 1, "licences and sources of third-party crates", lint::deny),
    stage("clippy", 3, "cargo clippy --workspace --all-targets -- -D warnings", lint::clippy),
    stage("build", 4, "cargo build --release --bin dvs", cargo_tests::build),
    stage("unit", 11, "cargo test --workspace, but for conformance", cargo_tests::unit),
    stage("book", 3, "its pages, links, programs and commands", book::run),
    stage("conformance", 6, "what every transport must do, on each of them", cargo_tests::conformance),
    stage("loom", 3, "all interleavings of the shared-memory parts, bounded", cargo_tests::loom),
    Stage { full_factor: 5, ..stage("kill", 2, "a peer killed at random instructions", cargo_tests::kill) },
    stage("process", 3, "daemon, proxies and programs as processes", cargo_tests::process),
    Stage {
        full_factor: 8,
        ..stage("hostile", 3, "members and nodes that keep no rule", cargo_tests::hostile)
    },
    Stage {
        full_factor: 3,
        ..stage("faults", 4, "every fault in the middle of every call, on real processes", faults::run)
    },
    Stage { full_factor: 10, ..stage("sim", 5, "seeded simulations of whole clusters", sim::run) },
    stage("mutants", 3, "faults built in on purpose: the simulator finds each", sim::mutants),
    Stage {
        full_factor: 4,
        ..stage("fuzz", 6, "hostile bytes for everything that reads a claim", fuzz::run)
    },
    Stage {
        full_factor: 8,
        ..stage("soak", 6, "all calls at random under faults, also under a sanitizer", soak::run)
    },
    stage("demo", 2, "the demonstration, as this user", demo::run),
    stage("unprivileged", 3, "demonstration and process tests as a user without rights", unprivileged::run),
    stage("netns", 1, "the demonstration across network namespaces", demo::netns),
    stage("rxe", 6, "what needs RDMA devices, in a virtual machine that has two", rxe::run),
    stage("bench", 2, "the benches compile", cargo_tests::bench),
    Stage {
        full_factor: 20,
        ..stage("coverage", 1, "with --full: which lines the tests run, of the crates below", coverage::run)
    },
    stage("miri", 1, "undefined behaviour in the heap parts of shm", cargo_tests::miri),
];

/// Runs what `options` ask for; true when nothing failed.
pub fn run(options: &Options) -> Result<bool> {
    let stages = selected(&options.only)?;
    if options.list {
        list(&stages, options.is_full);
        return Ok(true);
    }
    let workspace = Workspace::read()?;
    let total_max = minutes_of(if options.is_full { TOTAL_MINUTES_MAX_FULL } else { TOTAL_MINUTES_MAX });
    let from = Instant::now();
    let mut screen = Screen::new(options.verbose);
    let mut counts = Counts::default();
    let mut failures = Vec::new();
    let mut slow = Vec::new();
    let mut relayed = BTreeSet::new();
    for (number, stage) in stages.iter().enumerate() {
        let budget = minutes_of(stage.budget_minutes * if options.is_full { stage.full_factor } else { 1 });
        let stage_from = Instant::now();
        let deadline = (stage_from + budget * 2 + minutes_of(2)).min(from + total_max);
        screen.begin_stage(stage.name, stage.about);
        let mut job = Job {
            workspace: &workspace,
            is_full: options.is_full,
            stage: stage.name,
            deadline,
            tag: format!("{}-{number}", std::process::id()),
            screen: &mut screen,
            relayed: &mut relayed,
            checks: Vec::new(),
        };
        job.perform(stage.run, from + total_max);
        for check in job.checks {
            counts.add(&check.verdict);
            if matches!(check.verdict, Verdict::Failed(..)) {
                failures.push(check.name);
            }
        }
        let took = stage_from.elapsed();
        screen.line(&format!("   time: {} min (budget {} min)", minutes(took), budget.as_secs() / 60));
        if took > budget {
            slow.push(format!("{}: {} min, budget {} min", stage.name, minutes(took), budget.as_secs() / 60));
            screen.line(&format!("warning: {} is over its budget", stage.name));
        }
    }
    let total = Check { name: "total time".into(), verdict: total_verdict(from.elapsed(), total_max) };
    counts.add(&total.verdict);
    screen.line("== summary");
    screen.verdict(&total);
    for line in slow {
        screen.line(&format!("warning: over budget: {line}"));
    }
    if !failures.is_empty() {
        screen.line(&format!("failed: {}", failures.join(", ")));
    }
    screen.line(&counts.to_string());
    Ok(counts.failed == 0)
}

fn total_verdict(took: Duration, max: Duration) -> Verdict {
    let figures = format!("{} min (at most {} min)", minutes(took), max.as_secs() / 60);
    if took > max {
        Verdict::Failed(format!("{figures}: shorten or split a stage"), Vec::new())
    } else {
        Verdict::Passed(figures)
    }
}

fn minutes_of(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

fn selected(only: &[String]) -> Result<Vec<&'static Stage>> {
    for name in only {
        let known = STAGES.iter().any(|s| s.name == name);
        ensure!(known, "there is no stage `{name}`; `cargo run -p ci -- test --list` shows them");
    }
    Ok(STAGES.iter().filter(|s| only.is_empty() || only.iter().any(|name| name == s.name)).collect())
}

fn list(stages: &[&Stage], is_full: bool) {
    for stage in stages {
        let budget = stage.budget_minutes * if is_full { stage.full_factor } else { 1 };
        println!("{:<14}{budget:>3} min  {}", stage.name, stage.about);
    }
}

/// A stage while it runs: where it is, how long it may take, and what it has found.
pub struct Job<'a> {
    pub workspace: &'a Workspace,
    pub is_full: bool,
    stage: &'static str,
    deadline: Instant,
    tag: String,
    screen: &'a mut Screen,
    /// What children said was not run, over all stages: the same test may be in several.
    relayed: &'a mut BTreeSet<String>,
    checks: Vec<Check>,
}

impl Job<'_> {
    fn perform(&mut self, run: fn(&mut Job) -> Result<()>, run_ends: Instant) {
        if Instant::now() >= run_ends {
            return self.not_run(self.stage, "the run's time is used up");
        }
        if let Err(error) = run(self) {
            self.failed(self.stage, format!("{error:#}"), Vec::new());
        }
        self.sweep();
    }

    fn record(&mut self, name: &str, verdict: Verdict) {
        let check = Check { name: name.to_owned(), verdict };
        self.screen.verdict(&check);
        self.checks.push(check);
    }

    fn passed(&mut self, name: &str, note: impl Into<String>) {
        self.record(name, Verdict::Passed(note.into()));
    }

    fn failed(&mut self, name: &str, why: impl Into<String>, lines: Vec<String>) {
        self.record(name, Verdict::Failed(why.into(), lines));
    }

    fn not_run(&mut self, name: &str, why: impl Into<String>) {
        self.record(name, Verdict::NotRun(why.into()));
    }

    fn remark(&mut self, text: &str) {
        self.screen.line(&format!("   {text}"));
    }

    /// `cargo` in the workspace.
    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut cargo = cargo_command(&self.workspace.root);
        cargo.args(arguments);
        cargo
    }

    /// Runs a command to its end or the stage's.
    fn run(&mut self, mut command: Command) -> Result<Finished> {
        command.env(TAG, &self.tag).env("RUST_BACKTRACE", "1").env("NO_COLOR", "1");
        let screen = &mut *self.screen;
        process::run(command, self.deadline, |line| screen.child_says(line))
    }

    /// Runs a command that must succeed; records its failure as `name`, and leaves its success to the caller.
    fn run_well(&mut self, name: &str, command: Command) -> Result<Option<Finished>> {
        let done = self.run(command)?;
        if done.is_ok() {
            return Ok(Some(done));
        }
        self.failed(name, done.ending(), excerpt(done.log.iter()));
        Ok(None)
    }

    /// Runs a command whose exit code is the whole verdict on the stage.
    fn run_as_stage(&mut self, command: Command) -> Result<()> {
        let name = self.stage;
        if let Some(done) = self.run_well(name, command)? {
            self.relay_not_run(&done);
            self.passed(name, "");
        }
        Ok(())
    }

    /// A child's own `not run: NAME: why` lines are ours too.
    fn relay_not_run(&mut self, done: &Finished) {
        for line in &done.log {
            let Some((name, why)) = line.strip_prefix("not run: ").and_then(|l| l.split_once(": ")) else {
                continue;
            };
            if self.relayed.insert(name.to_owned()) {
                self.not_run(name, why);
            }
        }
    }

    /// The release executable, built if it is not up to date.
    fn dvs_executable(&mut self) -> Result<PathBuf> {
        let done = self.run(self.cargo(&["build", "--release", "--bin", "dvs"]))?;
        if !done.is_ok() {
            bail!(
                "`cargo build --release --bin dvs`: {}\n{}",
                done.ending(),
                excerpt(done.log.iter()).join("\n")
            );
        }
        let built = self.workspace.target.join("release/dvs");
        std::path::absolute(&built).context("cannot tell where the target folder is")
    }

    /// `cargo` for all members, but for those that need libraries which are not here.
    fn cargo_workspace(&mut self, command: &str) -> Command {
        let mut cargo = self.cargo(&[command, "--workspace"]);
        if let Err(why) = install::rdma_libraries(self.workspace) {
            self.not_run("proxy-rdma", why);
            cargo.args(["--exclude", "proxy-rdma"]);
        }
        cargo
    }

    /// Ends what the stage left behind; leaving one of our own programs behind is a failure.
    fn sweep(&mut self) {
        let is_ours = |executable: &str| {
            [self.workspace.target.as_path(), std::env::temp_dir().as_path()]
                .iter()
                .any(|folder| executable.starts_with(&*folder.to_string_lossy()))
        };
        let patient_until = Instant::now() + LEAVE_GRACE;
        loop {
            let mut left = process::leftovers(&self.tag);
            left.retain(|p| is_ours(&p.executable));
            if left.is_empty() {
                return;
            }
            if Instant::now() >= patient_until {
                process::end(&left);
                let lines = left.iter().map(|p| format!("{} {}", p.pid, p.executable)).collect();
                let name = format!("{}: nothing left running", self.stage);
                return self.failed(&name, "processes outlived the stage and were ended", lines);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budgets_fit_into_the_total() {
        let sum: u64 = STAGES.iter().map(|s| s.budget_minutes).sum();
        assert!(sum < TOTAL_MINUTES_MAX, "{sum}");
        let sum_full: u64 = STAGES.iter().map(|s| s.budget_minutes * s.full_factor).sum();
        assert!(sum_full < TOTAL_MINUTES_MAX_FULL, "{sum_full}");
    }

    #[test]
    fn stages_run_in_their_own_order_and_unknown_ones_are_refused() {
        let names = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|s| (*s).to_owned()).collect();
            selected(&only).map(|found| found.iter().map(|s| s.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["tidy", "fmt"]).unwrap(), ["fmt", "tidy"]);
        assert_eq!(names(&[]).unwrap().len(), STAGES.len());
        assert!(names(&["fnt"]).is_err());
    }

    #[test]
    fn more_than_the_total_is_a_failure() {
        let max = minutes_of(85);
        assert!(matches!(total_verdict(max, max), Verdict::Passed(_)));
        assert!(matches!(total_verdict(max + Duration::from_secs(1), max), Verdict::Failed(..)));
    }
}
