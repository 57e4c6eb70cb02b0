//! The stage `faults`: everything that can be done, while everything that we can break is broken. Its cells are tests of
//! `node` (`node/tests/process/faults`); this chooses three columns by the commit id, so that all run over time, and with
//! `--full` plays all and writes `docs/faults.md`.

use super::{Job, cargo_tests, sim};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// What is done, and what the table says of it.
const COLUMNS: &[(&str, &str)] = &[
    ("send", "one `send` after another; each returns when the receiver has the message"),
    ("post", "one `post` after another"),
    ("sendrec_before", "a `sendrec`, its request still in the lane"),
    ("sendrec_after", "a `sendrec`, its request taken and not answered"),
    ("notify", "one bit after another"),
    ("copy", "one `copy` of 4 MiB after another, from a grant"),
    ("loan", "loans of 48 KiB; the receiver keeps four of their views meanwhile"),
    ("bind", "a process of node 2 binds, answers one call and unbinds, over and over; seen is what it sees"),
    ("cp", "`dvs cp` of a file to node 2; seen is how it ends"),
];
/// So many make three columns.
const GROUPS: u64 = 3;

/// What is broken, always on node 2 or between it and node 1.
const ROWS: &[(&str, &str)] = &[
    ("kill_application", "whom it is for is killed, and another is bound in its slot"),
    ("kill_proxy", "the proxy is killed"),
    ("kill_daemon", "the daemon is killed"),
    ("stop_application", "whom it is for is stopped for 5 s"),
    ("stop_proxy", "the proxy is stopped for 5 s"),
    ("stop_daemon", "the daemon is stopped for 5 s"),
    ("stop_application_long", "whom it is for is stopped for 12 s, longer than `node_dead_after`"),
    ("stop_proxy_long", "the proxy is stopped for 12 s"),
    ("stop_daemon_long", "the daemon is stopped for 12 s"),
    ("cut", "the link is cut for 4 s"),
    ("cut_long", "the link is cut until each node has declared the other dead"),
    ("cut_one_way", "node 1 does not hear node 2 for 4 s"),
    ("half_open", "the proxy is killed, and node 1 hears nothing of it for 2 s"),
    ("flapping", "the link is cut and mended once a second, 4 times"),
    ("loss", "30 % of the packets are lost for 4 s, both ways"),
    ("memory_application", "RLIMIT_AS of whom it is for is what it has, for 4 s"),
    ("memory_proxy", "RLIMIT_AS of the proxy"),
    ("memory_daemon", "RLIMIT_AS of the daemon"),
    ("memory_group", "whom it is for is in a control group with 8 MiB, and wants more"),
    ("descriptors_application", "RLIMIT_NOFILE of whom it is for is what it has, for 4 s"),
    ("descriptors_proxy", "RLIMIT_NOFILE of the proxy"),
    ("descriptors_daemon", "RLIMIT_NOFILE of the daemon"),
    ("clock_application", "the wall clock of whom it is for is set back an hour"),
    ("clock_node", "the wall clock of the daemon, its keeper and its proxy is set back an hour"),
];

const TABLE: &str = "docs/faults.md";
/// How often a demonstration and a copy are interrupted.
const INTERRUPTS: &str = "4";
const INTERRUPTS_FULL: &str = "40";
/// Cells at once: they mostly wait.
const CELLS_AT_ONCE: &str = "--test-threads=8";

pub fn run(job: &mut Job) -> Result<()> {
    let dvs = job.dvs_executable()?;
    let seed = job.workspace.commit().and_then(|id| sim::seed_of(&id)).unwrap_or(0);
    let columns = columns(if job.is_full { None } else { Some(seed) });
    job.remark(&format!("columns: {}", columns.join(", ")));
    let mut command = job.cargo(&["test", "--release", "-p", "node", "--test", "process", "--"]);
    command.args(columns.iter().map(|column| format!("faults::{column}::"))).arg("faults::interrupted::");
    command.env("INTERRUPTS", if job.is_full { INTERRUPTS_FULL } else { INTERRUPTS });
    command.args(["--show-output", CELLS_AT_ONCE]).env("DVS_BIN", dvs).env("FAULT_CELLS", "1");
    let done = job.run(command)?;
    cargo_tests::judge_tests(job, "faults", &done);
    let cells: BTreeMap<_, _> = done.stdout.iter().filter_map(|line| cell(line)).collect();
    let path = job.workspace.root.join(TABLE);
    if job.is_full {
        let missing = ROWS.len() * COLUMNS.len() - cells.len();
        if missing == 0 {
            std::fs::write(&path, page(&cells)).with_context(|| format!("cannot write {TABLE}"))?;
            job.remark(&format!("{TABLE} is written anew"));
        } else {
            job.remark(&format!("{TABLE} is as it was: {missing} cells have not been played to their end"));
        }
        return Ok(());
    }
    for line in news(&path, &cells) {
        job.remark(&line);
    }
    Ok(())
}

/// The columns of one run; without a seed all.
fn columns(seed: Option<u64>) -> Vec<&'static str> {
    let names = COLUMNS.iter().map(|(name, _)| *name);
    match seed {
        None => names.collect(),
        Some(seed) => names.skip((seed % GROUPS) as usize).step_by(GROUPS as usize).collect(),
    }
}

/// `cell: ROW | COLUMN | what was seen`.
fn cell(line: &str) -> Option<((&'static str, &'static str), String)> {
    let mut parts = line.strip_prefix("cell: ")?.splitn(3, " | ");
    let (row, column, seen) = (parts.next()?, parts.next()?, parts.next()?);
    let known = |list: &'static [(&str, &str)], name| list.iter().map(|(n, _)| *n).find(|n| *n == name);
    Some(((known(ROWS, row)?, known(COLUMNS, column)?), seen.to_owned()))
}

type Cells = BTreeMap<(&'static str, &'static str), String>;

fn page(cells: &Cells) -> String {
    let mut text = String::from(
        "# What a fault looks like\n\n\
         Three nodes, each in a network namespace of its own, `node_dead_after` 10 s. The caller is on node 1, whom it is for on\n\
         node 2; what is broken is on node 2 or between the two. Each cell was played on real processes, and ended with an audit:\n\
         what was accepted has arrived once and in order, what was refused has not, two other programs between nodes 3 and 1 have\n\
         noticed nothing, and no memory, descriptor or process is left. Written by `cargo run -p ci -- test --only faults --full`; a run\n\
         without `--full` plays three columns, which the commit id chooses. Times are of one run, on two cores that eight cells share.\n",
    );
    for (column, about) in COLUMNS {
        let _ = write!(text, "\n## {column}\n\n{about}.\n\n| fault | | seen |\n| --- | --- | --- |\n");
        for (row, about) in ROWS {
            let seen = cells.get(&(*row, *column)).map_or("", String::as_str);
            let _ = writeln!(text, "| `{row}` | {about} | {} |", seen.replace('|', "\\|"));
        }
    }
    text
}

/// Cells in which something else was seen than the table says: another error, or one where there was none.
fn news(path: &Path, cells: &Cells) -> Vec<String> {
    let table = std::fs::read_to_string(path).unwrap_or_default();
    let mut column = "";
    let mut said = BTreeMap::new();
    for line in table.lines() {
        column = line.strip_prefix("## ").unwrap_or(column);
        let mut parts = line.strip_prefix("| `").unwrap_or_default().splitn(3, " | ");
        if let (Some(row), Some(_), Some(seen)) = (parts.next(), parts.next(), parts.next()) {
            said.insert((row.trim_end_matches('`').to_owned(), column.to_owned()), kinds(seen));
        }
    }
    let differs = |((row, column), seen): (&(&str, &str), &String)| {
        let before = said.get(&((*row).to_owned(), (*column).to_owned()))?;
        (*before != kinds(seen)).then(|| format!("other than in {TABLE}: {row}, {column}: {seen}"))
    };
    cells.iter().filter_map(differs).collect()
}

/// The errors that are named in a cell.
fn kinds(seen: &str) -> Vec<String> {
    seen.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_commits_play_all_columns_between_them() {
        let mut all: Vec<&str> = (0..GROUPS).flat_map(|seed| columns(Some(seed))).collect();
        assert_eq!(all.len(), COLUMNS.len());
        all.sort_unstable();
        let mut names = columns(None);
        names.sort_unstable();
        assert_eq!(all, names);
    }

    #[test]
    fn what_is_written_is_read_again_and_what_differs_is_said() {
        let line = "cell: cut | send | `DeadSource` after 3 ms; slow";
        let cells: Cells = cell(line).into_iter().collect();
        assert_eq!(cells[&("cut", "send")], "`DeadSource` after 3 ms; slow");
        assert_eq!(cell("cell: cot | send | x"), None);
        let folder = std::env::temp_dir().join(format!("ci-faults-{}", std::process::id()));
        std::fs::write(&folder, page(&cells)).unwrap();
        assert_eq!(news(&folder, &cells), Vec::<String>::new());
        let other = cell("cell: cut | send | `TimedOut` after 3 ms").into_iter().collect();
        assert_eq!(news(&folder, &other).len(), 1);
        std::fs::remove_file(&folder).unwrap();
    }
}
