//! `dvs doctor`: what this machine can do, found by trying, and what it costs where it cannot.
//!
//! Key type: [`Check`]. `needs` holds what nothing runs without, `speed` what makes it fast, `transports` what
//! joins nodes, now or some day.

mod needs;
mod speed;
mod transports;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use crate::failure::{Exit, failure};
use crate::output::{Output, Table};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Yes,
    Limited,
    No,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Yes => "yes",
            State::Limited => "limited",
            State::No => "no",
        }
    }
}

/// One thing a machine can do, or not.
#[derive(Serialize)]
struct Check {
    name: &'static str,
    state: State,
    /// Nothing runs without it.
    needed: bool,
    found: String,
    /// What is slower or missing; empty when it can.
    costs: &'static str,
    /// What to do about that; empty when it can.
    remedy: String,
}

impl Check {
    fn yes(name: &'static str, found: impl Into<String>) -> Check {
        let found = found.into();
        Check { name, state: State::Yes, needed: false, found, costs: "", remedy: String::new() }
    }

    fn short(
        name: &'static str,
        state: State,
        found: impl Into<String>,
        costs: &'static str,
        remedy: impl Into<String>,
    ) -> Check {
        Check { name, state, needed: false, found: found.into(), costs, remedy: remedy.into() }
    }

    /// Found by trying: what was got, or why not.
    fn tried<E: std::fmt::Display>(
        name: &'static str,
        tried: Result<String, E>,
        costs: &'static str,
        remedy: &str,
    ) -> Check {
        match tried {
            Ok(found) => Check::yes(name, found),
            Err(why) => Check::short(name, State::No, why.to_string(), costs, remedy),
        }
    }
}

pub fn doctor(runtime_dir: Option<&Path>, output: &Output) -> Result<ExitCode> {
    let mut checks = needs::all(runtime_dir);
    for check in &mut checks {
        check.needed = true;
    }
    checks.extend(speed::all());
    checks.extend(transports::all());
    let missing = checks.iter().find(|c| c.needed && c.state == State::No);
    let answer = json!({ "ok": missing.is_none(), "checks": checks });
    output.answer(&answer, |output| text(&checks, output))?;
    match missing {
        None => Ok(ExitCode::SUCCESS),
        // The one object says it all.
        Some(_) if output.json => Ok(ExitCode::from(Exit::Refused as u8)),
        Some(check) => {
            let what = format!("nothing can run on this machine: {}: {}", check.name, check.found);
            Err(failure(Exit::Refused, what, check.remedy.as_str()))
        }
    }
}

/// A row for each, and under it what there is to say about what is not as it could be.
fn text(checks: &[Check], output: &Output) -> String {
    let mut table = Table::new(&["STATE", "WHAT", "FOUND"]);
    for check in checks {
        table.row(vec![check.state.word().into(), check.name.into(), check.found.clone()]);
    }
    let table = table.text(output);
    let (heading, rows) = table.split_once('\n').unwrap_or((&table, ""));
    let mut text = heading.to_owned();
    for (row, check) in rows.lines().zip(checks) {
        text += &format!("\n{row}");
        if check.state != State::Yes {
            text += &format!("\n           costs: {}\n           to do: {}", check.costs, check.remedy);
        }
    }
    text
}

/// The text of a small file of /proc or /sys, trimmed; none where there is no such file.
fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The names in a folder, sorted; empty where there is no such folder.
fn names_in(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Major and minor number of the running kernel, and all of its name.
fn kernel() -> (Option<(u32, u32)>, String) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    (version(&release), release)
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_known_by_its_first_two_numbers() {
        assert_eq!(version("6.18.44-fc-v782"), Some((6, 18)));
        assert_eq!(version("5.10-rc3"), Some((5, 10)));
        assert_eq!(version("next"), None);
    }
}
