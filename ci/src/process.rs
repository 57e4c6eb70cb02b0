//! Children: started in a group of their own, watched, timed, and ended with all they started. Key type: [`Child`].
//! A guardian shell per child ends the group when we say so *or* when we die ourselves: it reads from a pipe that only
//! we hold, and end-of-file is its order.

use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Environment variable that marks every process of a stage, however far it moved from its parent.
pub const TAG: &str = "CI_STAGE_TAG";

/// Lines kept of one child's output; older ones go.
const LINES_MAX: usize = 100_000;
const POLL: Duration = Duration::from_millis(100);
/// How long output may still come after the child has ended, from grandchildren that hold its pipes.
const DRAIN: Duration = Duration::from_secs(2);

/// What became of a child.
#[derive(Debug)]
pub struct Finished {
    /// Nothing when it was ended for taking too long.
    pub status: Option<ExitStatus>,
    pub took: Duration,
    pub stdout: VecDeque<String>,
    /// Both outputs, as they came.
    pub log: VecDeque<String>,
}

impl Finished {
    pub fn is_ok(&self) -> bool {
        self.status.is_some_and(|s| s.success())
    }

    /// How it ended, in words.
    pub fn ending(&self) -> String {
        match self.status {
            Some(status) => status.to_string(),
            None => format!("stopped after {} s: its time was up", self.took.as_secs()),
        }
    }
}

/// Runs `command` to its end or to `deadline`. `seen` hears every line, and nothing (`None`) about ten times a second.
pub fn run(mut command: Command, deadline: Instant, mut seen: impl FnMut(Option<&str>)) -> Result<Finished> {
    let program = command.get_program().to_string_lossy().into_owned();
    let from = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start `{program}`: install it or put it on PATH"))?;
    let guardian = Guardian::over(child.id())?;
    let (lines, output) = channel();
    let pipes = [
        child.stdout.take().map(|p| (true, Box::new(p) as Box<dyn Read + Send>)),
        child.stderr.take().map(|p| (false, Box::new(p) as Box<dyn Read + Send>)),
    ];
    for (is_stdout, pipe) in pipes.into_iter().flatten() {
        let lines = lines.clone();
        std::thread::spawn(move || forward(pipe, is_stdout, &lines));
    }
    drop(lines);

    let mut record = Record::default();
    let status = loop {
        record.take(&output, POLL, &mut seen);
        if let Some(status) = child.try_wait().context("cannot wait for a child")? {
            break Some(status);
        }
        if Instant::now() >= deadline {
            break None;
        }
    };
    if status.is_none() {
        guardian.end_group();
        child.wait().context("cannot wait for a child that was killed")?;
    } else {
        guardian.dismiss();
    }
    let drained_by = Instant::now() + DRAIN;
    while !record.is_closed && Instant::now() < drained_by {
        record.take(&output, POLL, &mut seen);
    }
    Ok(Finished { status, took: from.elapsed(), stdout: record.stdout, log: record.log })
}

#[derive(Default)]
struct Record {
    stdout: VecDeque<String>,
    log: VecDeque<String>,
    is_closed: bool,
}

impl Record {
    /// Takes what has come; waits for at most `patience` when there is nothing.
    fn take(
        &mut self,
        output: &Receiver<(bool, String)>,
        patience: Duration,
        seen: &mut impl FnMut(Option<&str>),
    ) {
        if self.is_closed {
            std::thread::sleep(patience);
            return seen(None);
        }
        let until = Instant::now() + patience;
        loop {
            match output.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((is_stdout, line)) => {
                    seen(Some(&line));
                    if is_stdout {
                        keep(&mut self.stdout, line.clone());
                    }
                    keep(&mut self.log, line);
                }
                Err(RecvTimeoutError::Timeout) => return seen(None),
                Err(RecvTimeoutError::Disconnected) => {
                    self.is_closed = true;
                    return;
                }
            }
            if Instant::now() >= until {
                return seen(None);
            }
        }
    }
}

fn keep(lines: &mut VecDeque<String>, line: String) {
    if lines.len() == LINES_MAX {
        lines.pop_front();
    }
    lines.push_back(line);
}

fn forward(pipe: Box<dyn Read + Send>, is_stdout: bool, lines: &Sender<(bool, String)>) {
    let mut reader = BufReader::new(pipe);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        if lines.send((is_stdout, line)).is_err() {
            return;
        }
        bytes.clear();
    }
}

/// A shell that waits for one line: with it, it goes; without it, it kills the group first.
pub struct Guardian(std::process::Child);

impl Guardian {
    pub fn over(group: u32) -> Result<Self> {
        let script = r#"read -r dismissed || kill -s KILL -- "-$1""#;
        Command::new("sh")
            .args(["-c", script, "guardian", &group.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map(Guardian)
            .context("cannot start `sh`, which guards every child: put it on PATH")
    }

    pub fn end_group(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().ok();
    }

    pub fn dismiss(mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            // A guardian that is gone needs no dismissal.
            std::io::Write::write_all(&mut pipe, b"dismissed\n").ok();
        }
        self.0.wait().ok();
    }
}

/// A living process that bears a stage's tag.
#[derive(Debug)]
pub struct Leftover {
    pub pid: u32,
    pub executable: String,
}

/// Processes that carry `tag` in the environment they were started with, wherever they moved since. What we may not
/// read we did not start with our own rights, and leave alone.
pub fn leftovers(tag: &str) -> Vec<Leftover> {
    let needle = format!("{TAG}={tag}");
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id())
        .filter_map(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
            environment.split(|b| *b == 0).any(|v| v == needle.as_bytes()).then_some(())?;
            let executable = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
            Some(Leftover { pid, executable: executable.to_string_lossy().into_owned() })
        })
        .collect()
}

/// Ends processes of ours by their ids.
pub fn end(processes: &[Leftover]) {
    let ids = processes.iter().map(|p| p.pid.to_string());
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"kill -s KILL "$@""#, "end"]).args(ids).stdin(Stdio::null()).stderr(Stdio::null());
    // One that ended by itself in between is as good.
    shell.status().ok();
}

/// `git` in `root`, also where the tree belongs to another user.
pub fn git_command(root: &Path) -> Command {
    let mut git = Command::new("git");
    git.args(["-c", "safe.directory=*"]).current_dir(root).stdin(Stdio::null()).stderr(Stdio::null());
    git
}

/// `cargo` in `root`, freed of what the cargo that started us has put into the environment.
pub fn cargo_command(root: &Path) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let ours = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
        if ours.iter().any(|prefix| name.starts_with(prefix)) || name == "CARGO" {
            cargo.env_remove(name);
        }
    }
    cargo.env("CARGO_TERM_COLOR", "never").env("CARGO_TERM_PROGRESS_WHEN", "never");
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn in_seconds(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[test]
    fn both_outputs_are_kept_and_stdout_alone_too() {
        let done = run(shell("echo a; echo b >&2; exit 3"), in_seconds(20), |_| {}).unwrap();
        assert_eq!(done.status.unwrap().code(), Some(3));
        assert_eq!(done.stdout, ["a"]);
        assert_eq!(done.log.len(), 2);
    }

    #[test]
    fn stdin_is_empty_not_missing() {
        let done = run(shell("read -r x; echo read $?"), in_seconds(20), |_| {}).unwrap();
        assert_eq!(done.stdout, ["read 1"]);
    }

    #[test]
    fn a_child_out_of_time_goes_with_its_children() {
        let done = run(shell("sleep 61.5 & echo $!; wait"), in_seconds(1), |_| {}).unwrap();
        assert!(done.status.is_none() && done.took < Duration::from_secs(20), "{done:?}");
        let grandchild = format!("/proc/{}/cmdline", done.stdout[0]);
        let gone_by = in_seconds(5);
        // A zombie that nobody has waited for has an empty command line.
        while std::fs::read(&grandchild).is_ok_and(|c| !c.is_empty()) {
            assert!(Instant::now() < gone_by, "the grandchild lives on");
            std::thread::sleep(POLL);
        }
    }

    #[test]
    fn a_process_that_left_its_group_is_found_by_its_tag() {
        let tag = format!("test-{}", std::process::id());
        let mut command = shell("setsid sleep 62.5 >/dev/null 2>&1 & sleep 0.3");
        command.env(TAG, &tag);
        run(command, in_seconds(20), |_| {}).unwrap();
        let left = leftovers(&tag);
        assert_eq!(left.len(), 1, "{left:?}");
        end(&left);
        let gone_by = in_seconds(5);
        while !leftovers(&tag).is_empty() {
            assert!(Instant::now() < gone_by, "it lives on");
            std::thread::sleep(POLL);
        }
    }
}
