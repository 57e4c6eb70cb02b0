//! Cores are told the time; they do not ask. A file that drives a core says so with `Driver:` in its `//!` lines and
//! may read the clock; hash order is no one's to use.

use super::scan::Source;
use super::{Tree, Violation};
use std::collections::BTreeSet;

/// Folders whose code must do the same thing every time.
const CORES: [&str; 4] = ["sim/src/", "dvk/src/", "fabric/src/", "node/src/core/"];
const DRIVER_MARK: &str = "Driver:";

/// Tokens that ask the outside world.
const ASKS: &[(&[&str], &str)] = &[
    (&["Instant", "::", "now"], "`Instant::now`"),
    (&["SystemTime"], "`SystemTime`"),
    (&["thread", "::", "sleep"], "`thread::sleep`"),
    (&["rand", "::", "random"], "`rand::random`"),
];
const HASHED: [&str; 2] = ["HashMap", "HashSet"];

/// Rule `determinism`.
pub fn check(tree: &Tree) -> Vec<Violation> {
    let is_core = |s: &&Source| CORES.iter().any(|core| s.path.starts_with(core));
    tree.sources.iter().filter(is_core).flat_map(check_file).collect()
}

fn check_file(source: &Source) -> Vec<Violation> {
    let is_driver = source.file_docs().any(|l| l.contains(DRIVER_MARK));
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for (at, token) in source.tokens.iter().enumerate().filter(|(_, t)| !source.lines[t.line].is_test) {
        let asked = ASKS.iter().find(|(tokens, _)| !is_driver && source.matches(at, tokens));
        if let Some((_, name)) = asked.filter(|(_, name)| seen.insert((token.line, *name))) {
            found.push(Violation::at(
                source,
                token.line,
                format!("{name} in a core"),
                format!("take the time or seed as an argument, or mark the file `//! {DRIVER_MARK} …` if it drives one"),
            ));
        }
        if HASHED.contains(&token.text.as_str()) && seen.insert((token.line, "hash")) {
            found.push(Violation::at(
                source,
                token.line,
                format!("`{}` has no order one can replay", token.text),
                "use BTreeMap or BTreeSet",
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tree_of;
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check(&tree_of(&[(path, text)])).len()
    }

    #[test]
    fn a_core_asks_no_clock() {
        assert_eq!(count("dvk/src/route.rs", "fn a() { let now = Instant::now(); }"), 1);
        assert_eq!(count("node/src/core/table.rs", "fn a() { std::thread::sleep(x); }"), 1);
        assert_eq!(count("dvk/src/route.rs", "fn a(now: Instant) {}"), 0);
        assert_eq!(count("node/src/daemon.rs", "fn a() { let now = Instant::now(); }"), 0);
    }

    #[test]
    fn a_driver_may_read_the_clock_but_not_hash() {
        let driver = "//! Waits.\n//! Driver: reads the clock for the core.\n";
        assert_eq!(count("dvk/src/wait.rs", &format!("{driver}fn a() {{ Instant::now(); }}")), 0);
        assert_eq!(count("dvk/src/wait.rs", &format!("{driver}use std::collections::HashMap;")), 1);
    }

    #[test]
    fn tests_may_measure() {
        assert_eq!(count("fabric/src/a.rs", "#[cfg(test)]\nmod tests { fn a() { Instant::now(); } }"), 0);
    }
}
