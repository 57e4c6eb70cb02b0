//! What an atomic operation must say, and where atomics come from. An acquire or release names its partner
//! (`// Pairs with:`), a relaxed access says why that is enough, and only a fence is sequentially consistent.

use super::scan::Source;
use super::{Tree, Violation};
use std::collections::BTreeSet;

const ORDERINGS: [&str; 5] = ["Acquire", "Release", "AcqRel", "SeqCst", "Relaxed"];

/// Crates whose orderings must be explained.
const EXPLAINED: [&str; 3] = ["shm", "dvk", "fabric"];

/// Crates that take their atomics from `HOME`, so that a model checker can replace them.
const CHECKED: [&str; 4] = ["abi", "shm", "fabric", "dvk"];
const HOME: &str = "shm/src/sync.rs";

const PAIRS_REACH: usize = 8;
const RELAXED_REACH: usize = 12;

/// Rule `orderings`.
pub fn check_orderings(tree: &Tree) -> Vec<Violation> {
    let explained = |s: &&Source| EXPLAINED.contains(&s.krate()) && s.is_in_src();
    tree.sources.iter().filter(explained).flat_map(orderings_unexplained).collect()
}

fn orderings_unexplained(source: &Source) -> Vec<Violation> {
    let imports = Imports::of(source);
    let mut found = Vec::new();
    let mut asked = BTreeSet::new();
    for (at, token) in source.tokens.iter().enumerate() {
        if source.lines[token.line].is_test || imports.covers(at) {
            continue;
        }
        let is_fence = is_fence_call(source, at);
        let is_ordering = imports.is_ordering(source, at);
        if is_ordering && token.text == "Relaxed" {
            if !says_relaxed(source, token.line) && asked.insert((token.line, "relaxed")) {
                found.push(Violation::at(
                    source,
                    token.line,
                    "a Relaxed access without its reason",
                    "say in a comment above, in the function's documentation, or in a `//! Relaxed:` line of the \
                     file why relaxed is enough",
                ));
            }
            continue;
        }
        if is_ordering && token.text == "SeqCst" && !is_fence_argument(source, at) {
            found.push(Violation::at(
                source,
                token.line,
                "SeqCst outside a fence",
                "use Acquire, Release or AcqRel with its partner named, or a `fence(Ordering::SeqCst)`",
            ));
            continue;
        }
        let said = || source.comments_near(token.line, PAIRS_REACH).contains("Pairs with:");
        if (is_fence || is_ordering) && !said() && asked.insert((token.line, "pairs")) {
            found.push(Violation::at(
                source,
                token.line,
                format!("{} does not name its partner", token.text),
                "write `// Pairs with: …` above it: which store or load on the other side, and what that buys",
            ));
        }
    }
    found
}

fn says_relaxed(source: &Source, line: usize) -> bool {
    let says = |text: &str| text.to_lowercase().contains("relaxed");
    says(&source.comments_near(line, RELAXED_REACH))
        || source.file_docs().any(|l| l.starts_with("Relaxed:"))
        || source.spans.iter().any(|s| (s.first_line..=s.last_line).contains(&line) && says(&s.docs))
}

fn is_fence_call(source: &Source, at: usize) -> bool {
    matches!(source.text(at), "fence" | "compiler_fence")
        && source.text(at + 1) == "("
        && !matches!(at.checked_sub(1).map(|i| source.text(i)), Some("fn" | "."))
}

/// `fence(SeqCst`, `fence(Ordering::SeqCst`, with any path before it.
fn is_fence_argument(source: &Source, at: usize) -> bool {
    let opening = (0..at).rev().find(|&i| source.text(i) == "(");
    let Some(open) = opening.filter(|o| *o > 0) else { return false };
    let only_path = (open + 1..at).all(|i| !matches!(source.text(i), "," | ")" | ";" | "{"));
    only_path && matches!(source.text(open - 1), "fence" | "compiler_fence")
}

/// What a file calls orderings: the tokens of its `use` statements, and the names it imported.
struct Imports {
    statements: Vec<(usize, usize)>,
    /// Names for the enum: `Ordering` and what it was renamed to.
    enum_names: Vec<String>,
    /// Variants that were imported by name or by `*`.
    bare: BTreeSet<String>,
}

impl Imports {
    fn of(source: &Source) -> Self {
        let statements = source.use_statements();
        let mut enum_names = vec!["Ordering".to_owned()];
        let mut bare = BTreeSet::new();
        for &(first, last) in &statements {
            for at in first..=last {
                if source.text(at) != "Ordering" {
                    continue;
                }
                if source.text(at + 1) == "as" {
                    enum_names.push(source.text(at + 2).to_owned());
                }
                if source.text(at + 1) == "::" {
                    let names = (at + 2..=last).map(|i| source.text(i));
                    let star = source.text(at + 2) == "*";
                    bare.extend(names.filter(|n| ORDERINGS.contains(n)).map(str::to_owned));
                    bare.extend(ORDERINGS.iter().filter(|_| star).map(|n| (*n).to_owned()));
                }
            }
        }
        Imports { statements, enum_names, bare }
    }

    fn covers(&self, at: usize) -> bool {
        self.statements.iter().any(|(first, last)| (*first..=*last).contains(&at))
    }

    fn is_ordering(&self, source: &Source, at: usize) -> bool {
        let name = source.text(at);
        if !ORDERINGS.contains(&name) {
            return false;
        }
        match at.checked_sub(1).map(|i| source.text(i)) {
            Some("::") => at >= 2 && self.enum_names.iter().any(|n| n == source.text(at - 2)),
            _ => self.bare.contains(name),
        }
    }
}

/// Rule `atomics-home`.
pub fn check_home(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for source in
        tree.sources.iter().filter(|s| CHECKED.contains(&s.krate()) && s.is_in_src() && s.path != HOME)
    {
        let mut lines: BTreeSet<usize> = (0..source.tokens.len())
            .filter(|&at| is_atomic_path(source, at))
            .map(|at| source.tokens[at].line)
            .collect();
        for (first, last) in source.use_statements() {
            let names = |name: &str| (first..=last).any(|i| source.text(i) == name);
            if matches!(source.text(first + 1), "std" | "core" | "loom") && names("sync") && names("atomic") {
                lines.insert(source.tokens[first].line);
            }
        }
        for line in lines.into_iter().filter(|l| !source.lines[*l].is_test && !source.lines[*l].is_off_loom) {
            found.push(Violation::at(
                source,
                line,
                "atomics taken from the standard library",
                format!("take them from {HOME}, so that the model checker sees them, or put what it never compiles under #[cfg(not(loom))]"),
            ));
        }
    }
    found
}

fn is_atomic_path(source: &Source, at: usize) -> bool {
    matches!(source.text(at), "std" | "core" | "loom")
        && source.matches(at + 1, &["::", "sync", "::", "atomic"])
}

#[cfg(test)]
mod tests {
    use super::super::tree_of;
    use super::*;

    fn orderings(text: &str) -> Vec<String> {
        check_orderings(&tree_of(&[("shm/src/ring.rs", text)])).into_iter().map(|v| v.what).collect()
    }

    #[test]
    fn an_acquire_names_its_partner() {
        assert_eq!(orderings("fn a() {\n x.load(Ordering::Acquire);\n}").len(), 1);
        assert!(orderings("fn a() {\n // Pairs with: b.\n x.load(Ordering::Acquire);\n}").is_empty());
        assert!(orderings("fn a() {\n x.load(Ordering::Acquire); // Pairs with: b.\n}").is_empty());
    }

    #[test]
    fn imports_and_strange_enums_are_no_operations() {
        assert!(orderings("use crate::sync::Ordering::{Acquire, Release};").is_empty());
        assert!(orderings("fn a() { out.push(Effect::Release); let x = Release; }").is_empty());
    }

    #[test]
    fn imported_and_renamed_orderings_are_seen() {
        assert_eq!(
            orderings("use crate::sync::Ordering::{self, Acquire};\nfn a() {\n x.load(Acquire);\n}").len(),
            1
        );
        assert_eq!(orderings("use crate::sync::Ordering as O;\nfn a() {\n x.load(O::Acquire);\n}").len(), 1);
        assert_eq!(orderings("use crate::sync::Ordering::*;\nfn a() {\n x.load(Release);\n}").len(), 1);
    }

    #[test]
    fn sequential_consistency_is_for_fences() {
        assert_eq!(
            orderings("fn a() {\n // Pairs with: b.\n x.load(Ordering::SeqCst);\n}"),
            ["SeqCst outside a fence"]
        );
        assert!(
            orderings("fn a() {\n // Pairs with: b.\n crate::sync::fence(Ordering::SeqCst);\n}").is_empty()
        );
        assert_eq!(orderings("fn a() {\n fence(Ordering::SeqCst);\n}"), ["fence does not name its partner"]);
    }

    #[test]
    fn relaxed_says_why_somewhere_near() {
        assert_eq!(orderings("fn a() {\n x.load(Ordering::Relaxed);\n}").len(), 1);
        assert!(orderings("fn a() {\n // Relaxed: a statistic.\n x.load(Ordering::Relaxed);\n}").is_empty());
        assert!(
            orderings("//! A.\n//! Relaxed: all here are statistics.\nfn a() { x.load(Ordering::Relaxed); }")
                .is_empty()
        );
        let far = format!(
            "/// Own word, so relaxed.\nfn a() {{\n{}x.load(Ordering::Relaxed);\n}}",
            "b();\n".repeat(20)
        );
        assert!(orderings(&far).is_empty());
    }

    #[test]
    fn tests_need_not_explain() {
        assert!(orderings("#[cfg(test)]\nmod tests {\n fn a() { x.load(Ordering::SeqCst); }\n}").is_empty());
        assert!(
            check_orderings(&tree_of(&[("shm/tests/kill.rs", "fn a() { x.load(Ordering::SeqCst); }")]))
                .is_empty()
        );
    }

    #[test]
    fn atomics_have_one_home() {
        let count = |path, text| check_home(&tree_of(&[(path, text)])).len();
        assert_eq!(count("dvk/src/a.rs", "use std::sync::atomic::AtomicU32;"), 1);
        assert_eq!(count("dvk/src/a.rs", "use std::{\n  sync::{Arc, atomic::AtomicU32},\n};"), 1);
        assert_eq!(count("abi/src/a.rs", "fn a(x: &core::sync::atomic::AtomicU32) {}"), 1);
        assert_eq!(count("shm/src/sync.rs", "pub use std::sync::atomic::AtomicU32;"), 0);
        assert_eq!(count("dvk/src/a.rs", "use shm::sync::AtomicU32;\nuse std::sync::Arc;"), 0);
        assert_eq!(
            count("shm/src/futex.rs", "#[cfg(not(loom))]\nmod real {\n use std::sync::atomic::AtomicU32;\n}"),
            0
        );
        assert_eq!(count("node/src/a.rs", "use std::sync::atomic::AtomicBool;"), 0);
    }
}
