//! What the reader sees: a header per stage, a verdict per check, the tail of what failed, and one line of counts.
//! Key types: [`Check`] and [`Screen`].

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often a long stage says a word where nobody watches a terminal.
const HEARTBEAT: Duration = Duration::from_secs(60);
const STATUS_COLUMNS: usize = 100;

/// Lines shown of a failure: the telling ones first, then the end.
const TELLING_MAX: usize = 60;
const TAIL: usize = 40;

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq)]
pub struct Check {
    pub name: String,
    pub verdict: Verdict,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// With a figure or a remark, perhaps empty.
    Passed(String),
    /// Why, and the lines that show it.
    Failed(String, Vec<String>),
    /// Why not.
    NotRun(String),
}

/// How many checks ended how.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl Counts {
    pub fn add(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Passed(_) => self.passed += 1,
            Verdict::Failed(..) => self.failed += 1,
            Verdict::NotRun(_) => self.skipped += 1,
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Writes to standard output; a reader that went away (`| head`) does not stop the run.
pub struct Screen {
    is_terminal: bool,
    is_verbose: bool,
    stage_from: Instant,
    last_word: Instant,
    last_line: String,
    /// The line that is rewritten in place, while it stands on the terminal.
    status: Option<String>,
}

impl Screen {
    pub fn new(is_verbose: bool) -> Self {
        let now = Instant::now();
        let is_ci = std::env::var_os("CI").is_some();
        let is_terminal = std::io::stdout().is_terminal() && !is_ci;
        Screen {
            is_terminal,
            is_verbose,
            stage_from: now,
            last_word: now,
            last_line: String::new(),
            status: None,
        }
    }

    pub fn line(&mut self, text: &str) {
        let mut out = std::io::stdout().lock();
        let clear = if self.status.take().is_some() { "\r\x1b[K" } else { "" };
        writeln!(out, "{clear}{text}").and_then(|()| out.flush()).ok();
    }

    pub fn begin_stage(&mut self, name: &str, about: &str) {
        self.stage_from = Instant::now();
        self.last_word = self.stage_from;
        self.last_line.clear();
        self.line(&format!("== {name}: {about}"));
    }

    /// A child's line, or time that passed without one.
    pub fn child_says(&mut self, line: Option<&str>) {
        if let Some(line) = line {
            if self.is_verbose {
                self.line(&format!("   | {line}"));
            }
            if !line.trim().is_empty() {
                self.last_line = line.trim().to_owned();
            }
            return;
        }
        if self.is_verbose {
            return;
        }
        let seconds = self.stage_from.elapsed().as_secs();
        let status: String =
            self.last_line.chars().filter(|c| !c.is_control()).take(STATUS_COLUMNS).collect();
        if self.is_terminal {
            let status = format!("   {}:{:02} {status}", seconds / 60, seconds % 60);
            if self.status.as_ref() != Some(&status) {
                let mut out = std::io::stdout().lock();
                write!(out, "\r\x1b[K{status}").and_then(|()| out.flush()).ok();
                self.status = Some(status);
            }
        } else if self.last_word.elapsed() >= HEARTBEAT {
            self.last_word = Instant::now();
            self.line(&format!("   ... {} min: {status}", seconds / 60));
        }
    }

    pub fn verdict(&mut self, check: &Check) {
        match &check.verdict {
            Verdict::Passed(note) if note.is_empty() => self.line(&format!("   pass: {}", check.name)),
            Verdict::Passed(note) => self.line(&format!("   pass: {}: {note}", check.name)),
            Verdict::NotRun(why) => self.line(&format!("not run: {}: {why}", check.name)),
            Verdict::Failed(why, lines) => {
                self.line(&format!("   FAIL: {}: {why}", check.name));
                for line in lines {
                    self.line(&format!("   | {line}"));
                }
            }
        }
    }
}

/// What to show of a failed child's output: lines that tell, then the end.
pub fn excerpt<'a>(log: impl DoubleEndedIterator<Item = &'a String> + ExactSizeIterator) -> Vec<String> {
    let lines: Vec<&String> = log.collect();
    let tail_from = lines.len().saturating_sub(TAIL);
    let tells = |l: &str| {
        l.starts_with("error")
            || l.contains("panicked at")
            || l.ends_with("... FAILED")
            || l.trim_start().starts_with("--> ")
            || l.starts_with("Diff in ")
            || l.starts_with("thread '")
    };
    let mut shown = Vec::new();
    let mut last = None;
    for (at, line) in lines[..tail_from].iter().enumerate().filter(|(_, l)| tells(l)) {
        if shown.len() >= TELLING_MAX {
            shown.push("... (more of these)".to_owned());
            break;
        }
        shown.push((*line).clone());
        // What a panic says stands on the line after it.
        if line.contains("panicked at")
            && let Some(message) = lines.get(at + 1).filter(|_| at + 1 < tail_from)
        {
            shown.push(format!("    {message}"));
        }
        last = Some(at);
    }
    if last.is_some() || tail_from > 0 {
        shown.push(format!("... ({} lines in all; the last {TAIL}:)", lines.len()));
    }
    shown.extend(lines[tail_from..].iter().map(|l| (*l).clone()));
    shown
}

/// Minutes with one decimal.
pub fn minutes(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() / 60.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_a_sentence_of_three_numbers() {
        let mut counts = Counts::default();
        counts.add(&Verdict::Passed(String::new()));
        counts.add(&Verdict::Passed(String::new()));
        counts.add(&Verdict::NotRun("no root".into()));
        assert_eq!(counts.to_string(), "2 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn a_short_log_is_shown_whole() {
        let log: Vec<String> = ["a", "b"].map(String::from).to_vec();
        assert_eq!(excerpt(log.iter()), ["a", "b"]);
    }

    #[test]
    fn a_long_log_shows_what_tells_and_the_end() {
        let mut log: Vec<String> = (0..200).map(|i| format!("line {i}")).collect();
        log[3] = "error: no such thing".into();
        log[5] = "thread 'x' panicked at a.rs:1:".into();
        let shown = excerpt(log.iter());
        assert_eq!(shown[0], "error: no such thing");
        assert_eq!(shown[2], "    line 6");
        assert_eq!(shown.last().unwrap(), "line 199");
        assert_eq!(shown.len(), 4 + TAIL);
    }
}
