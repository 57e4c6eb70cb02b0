//! The rules a compiler does not check, read from the tree itself. Key types: [`Tree`] (what is checked) and [`RULES`].
//! Each rule is one small function from a tree to its [`Violation`]s; `stages::lint` and `ci tidy` run them.

mod arrows;
mod atomics;
mod determinism;
mod errors;
mod scan;
mod texts;
mod unsafety;

use crate::process::git_command;
use anyhow::{Context, Result};
use scan::Source;
use std::fmt;
use std::path::Path;

/// One place that breaks one rule. Lines count from 1; 0 means the file as a whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    pub path: String,
    pub line: usize,
    pub what: String,
    pub remedy: String,
}

impl Violation {
    /// `line` counts from 0, as [`Source`] does.
    fn at(source: &Source, line: usize, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Violation { path: source.path.clone(), line: line + 1, what: what.into(), remedy: remedy.into() }
    }

    fn of_file(path: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Violation { path: path.to_owned(), line: 0, what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line.max(1), self.what, self.remedy)
    }
}

/// A workspace crate as `cargo metadata` shows it.
#[derive(Debug, Default, Clone)]
pub struct Package {
    pub name: String,
    /// Workspace crates it needs to build.
    pub needs: Vec<String>,
    /// Workspace crates its tests and benches need.
    pub dev_needs: Vec<String>,
    /// Root files of its library and binaries, relative to the workspace.
    pub roots: Vec<String>,
}

/// A text file that is no Rust source.
#[derive(Debug)]
pub struct TextFile {
    pub path: String,
    pub text: String,
}

/// Everything the rules look at.
#[derive(Debug, Default)]
pub struct Tree {
    pub packages: Vec<Package>,
    pub sources: Vec<Source>,
    /// Every text file, Rust sources among them.
    pub texts: Vec<TextFile>,
}

/// What breaking a rule means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    Failure,
    Warning,
}

/// A rule: its name in the report, what it asks, and its check.
pub struct Rule {
    pub name: &'static str,
    pub asks: &'static str,
    pub weight: Weight,
    pub check: fn(&Tree) -> Vec<Violation>,
}

/// All rules, in the order they are reported.
pub const RULES: &[Rule] = &[
    rule("arrows", "crates depend only as the allowed table says", arrows::check),
    rule("unsafe-rooms", "`unsafe` only in shm; every other crate forbids it", unsafety::check_rooms),
    rule(
        "unsafe-reasons",
        "every unsafe block says SAFETY, every unsafe fn # Safety",
        unsafety::check_reasons,
    ),
    rule("orderings", "every ordering names its partner or says why it needs none", atomics::check_orderings),
    rule("atomics-home", "atomics come through shm/src/sync.rs", atomics::check_home),
    rule("file-docs", "every source file opens with //!", texts::check_file_docs),
    rule("readme", "README.md is short and its crate table is complete", texts::check_readme),
    rule("banned-text", "no paths of one machine, no stubs, no silenced tests", texts::check_banned),
    rule("determinism", "cores ask no clock, no randomness, no hash order", determinism::check),
    rule("errors-tested", "every variant of an error type is named in a test", errors::check),
    Rule {
        name: "file-size",
        asks: "at most 500 lines without tests",
        weight: Weight::Warning,
        check: texts::check_size,
    },
];

const fn rule(name: &'static str, asks: &'static str, check: fn(&Tree) -> Vec<Violation>) -> Rule {
    Rule { name, asks, weight: Weight::Failure, check }
}

/// Reads the workspace at `root`; `metadata` is what `cargo metadata --no-deps` says about it.
pub fn read_tree(root: &Path, metadata: &serde_json::Value) -> Result<Tree> {
    let mut tree = Tree { packages: arrows::packages(root, metadata), ..Tree::default() };
    for path in listed_files(root)? {
        let full = root.join(&path);
        let Ok(bytes) = std::fs::read(&full) else { continue };
        let Ok(text) = String::from_utf8(bytes) else { continue };
        if path.ends_with(".rs") {
            tree.sources.push(Source::new(&path, &text));
        }
        tree.texts.push(TextFile { path, text });
    }
    Ok(tree)
}

/// Tracked files and those about to be; without git, everything but hidden and target folders.
fn listed_files(root: &Path) -> Result<Vec<String>> {
    let listed = git_command(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .ok()
        .filter(|o| o.status.success() && !o.stdout.is_empty());
    let mut files: Vec<String> = match listed {
        Some(output) => String::from_utf8_lossy(&output.stdout)
            .split('\0')
            .filter(|p| !p.is_empty())
            .map(str::to_owned)
            .collect(),
        None => {
            let mut found = Vec::new();
            walk(root, root, &mut found).context("cannot list the source tree: check its permissions")?;
            found
        }
    };
    files.sort();
    files.dedup();
    Ok(files)
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type()?;
        if kind.is_dir() && name != "target" && name != ".git" {
            walk(root, &entry.path(), found)?;
        } else if kind.is_file()
            && let Ok(path) = entry.path().strip_prefix(root)
        {
            found.push(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) fn tree_of(files: &[(&str, &str)]) -> Tree {
    Tree {
        packages: Vec::new(),
        sources: files.iter().filter(|f| f.0.ends_with(".rs")).map(|(p, t)| Source::new(p, t)).collect(),
        texts: files.iter().map(|(p, t)| TextFile { path: (*p).into(), text: (*t).into() }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_reads_as_a_compiler_message() {
        let source = Source::new("dvk/src/a.rs", "x");
        let text = Violation::at(&source, 6, "no reason", "say why").to_string();
        assert_eq!(text, "dvk/src/a.rs:7: no reason: say why");
    }

    #[test]
    fn rule_names_are_unique() {
        let mut names: Vec<_> = RULES.iter().map(|r| r.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), RULES.len());
    }
}
