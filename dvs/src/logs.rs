//! `dvs logs`: what the daemons and proxies of this machine have logged, in the order of their time stamps.
//!
//! Neighbour: `node::daemon`, which keeps each log short; an earlier part of one is beside it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use abi::limits::LOG_BYTES_MAX;
use anyhow::Result;
use node::place::aside;
use serde::Serialize;
use serde_json::json;

use crate::cli::{LogsArgs, Where};
use crate::cluster::Place;
use crate::failure::{Exit, failure};
use crate::interrupt;
use crate::output::{Output, print};

/// How often a log is looked at that is followed.
const GLANCE: Duration = Duration::from_millis(200);

/// One log file.
struct Source {
    node: String,
    who: String,
    path: PathBuf,
    /// So much of it was shown.
    seen: u64,
}

#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
struct Line {
    node: String,
    who: String,
    text: String,
    /// Its own time stamp, or that of the line it belongs to.
    #[serde(skip)]
    at: String,
}

pub fn logs(args: &LogsArgs, dir: Option<&Path>, output: &Output) -> Result<()> {
    let place = Place::find(&Where { cluster: args.cluster.clone(), node: args.node.clone() }, dir)?;
    let mut sources = sources(&place, args.node.as_deref())?;
    if !args.follow && !sources.iter().any(|s| s.path.exists()) {
        let of = args.node.as_ref().map_or("this machine's nodes".to_owned(), |n| format!("node {n}"));
        let next = format!("logs end with their daemon; `dvs up {}` starts it", place.cluster.file.display());
        return Err(failure(Exit::NotRunning, format!("there is no log of {of}"), next));
    }
    if args.follow {
        interrupt::note_signals()?;
    }
    let mut lines: Vec<Line> = sources.iter_mut().flat_map(Source::all).collect();
    lines.sort_by(|a, b| a.at.cmp(&b.at));
    lines.drain(..lines.len().saturating_sub(args.lines as usize));
    if !args.follow {
        return output.answer(&json!({ "lines": lines }), |output| {
            lines.iter().map(|l| l.shown(output)).collect::<Vec<_>>().join("\n")
        });
    }
    loop {
        for line in lines.drain(..) {
            let shown = if output.json { serde_json::to_string(&line)? } else { line.shown(output) };
            if !print(&shown) {
                return Ok(());
            }
        }
        interrupt::sleep(GLANCE)?;
        lines.extend(sources.iter_mut().flat_map(Source::more));
        lines.sort_by(|a, b| a.at.cmp(&b.at));
    }
}

fn sources(place: &Place, asked: Option<&str>) -> Result<Vec<Source>> {
    let asked: Vec<String> = asked.map(str::to_owned).into_iter().collect();
    let indices: Vec<u16> = (1..).zip(&place.cluster.proxies).map(|(index, _)| index).collect();
    let mut sources = Vec::new();
    for node in place.nodes_here(&asked)? {
        let names = place.cluster.proxies.iter().map(|p| format!("proxy {}", p.name));
        let who = ["daemon".to_owned()].into_iter().chain(names);
        let node_name = node.name.as_str().to_owned();
        for (path, who) in place.files(node).logs(&indices).into_iter().zip(who) {
            sources.push(Source { node: node_name.clone(), who, path, seen: 0 });
        }
    }
    Ok(sources)
}

impl Source {
    /// All that is kept of it, and from where to go on.
    fn all(&mut self) -> Vec<Line> {
        let mut bytes = read(&aside(&self.path), 0).unwrap_or_default();
        let own = read(&self.path, 0).unwrap_or_default();
        // What comes of the last line later is shown as a line of its own.
        self.seen = own.len() as u64;
        bytes.extend(own);
        self.lines(&bytes)
    }

    /// The whole lines that came since.
    fn more(&mut self) -> Vec<Line> {
        let len = std::fs::metadata(&self.path).map_or(0, |m| m.len());
        if len < self.seen {
            // Put aside, or of another daemon.
            self.seen = 0;
        }
        let bytes = read(&self.path, self.seen).unwrap_or_default();
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        self.seen += whole as u64;
        self.lines(&bytes[..whole])
    }

    fn lines(&self, bytes: &[u8]) -> Vec<Line> {
        let mut at = String::new();
        let text = String::from_utf8_lossy(bytes);
        let mut lines = Vec::new();
        for line in text.lines().filter(|l| !l.trim().is_empty()) {
            if let Some(stamp) = stamp(line) {
                at = stamp.to_owned();
            }
            // A log is no way to a terminal's controls.
            let text = line.chars().map(|c| if c.is_control() && c != '\t' { '?' } else { c }).collect();
            lines.push(Line { node: self.node.clone(), who: self.who.clone(), text, at: at.clone() });
        }
        lines
    }
}

/// The time that a line begins with.
fn stamp(line: &str) -> Option<&str> {
    let word = line.split(' ').next()?;
    (word.len() >= 20 && word.ends_with('Z') && word.as_bytes()[4] == b'-').then_some(word)
}

fn read(path: &Path, from: u64) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(2 * LOG_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Line {
    fn shown(&self, output: &Output) -> String {
        let colour = match &self.text {
            text if text.contains(" ERROR ") => 31,
            text if text.contains(" WARN ") => 33,
            _ => 0,
        };
        let text = if colour != 0 && output.is_rich() {
            format!("\x1b[{colour}m{}\x1b[0m", self.text)
        } else {
            self.text.clone()
        };
        format!("{} {text}", output.heading(&format!("{} {}:", self.node, self.who)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(folder: &Path) -> Source {
        Source { node: "n1".into(), who: "daemon".into(), path: folder.join("daemon.log"), seen: 0 }
    }

    #[test]
    fn a_line_without_a_time_stays_with_the_one_before_and_controls_are_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = b"2026-01-02T03:04:05.000001Z  WARN a: b\n  more \x1b[31m\n";
        let lines = source(folder.path()).lines(bytes);
        assert_eq!(lines[1].at, lines[0].at);
        assert_eq!(lines[1].text, "  more ?[31m");
    }

    #[test]
    fn what_is_followed_is_shown_once_in_whole_lines_and_anew_after_it_was_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let mut source = source(folder.path());
        let path = source.path.clone();
        let texts = |lines: Vec<Line>| lines.into_iter().map(|l| l.text).collect::<Vec<_>>();
        std::fs::write(aside(&path), "zero\n").unwrap();
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(texts(source.all()), ["zero", "one"]);
        std::fs::write(&path, "one\ntwo\nthr").unwrap();
        assert_eq!(texts(source.more()), ["two"]);
        std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
        assert_eq!(texts(source.more()), ["three"]);
        std::fs::write(&path, "four\n").unwrap();
        assert_eq!(texts(source.more()), ["four"]);
    }
}
