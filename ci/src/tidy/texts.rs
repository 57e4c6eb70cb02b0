//! Rules about files as texts: how they open, how long they are, what must not stand in them, and the README's table.

use super::scan::Source;
use super::{Tree, Violation};

const README: &str = "README.md";
const README_LINES_MAX: usize = 150;
const FILE_LINES_MAX: usize = 500;

/// First folders of paths that exist on one machine only; spelled apart so that this file passes its own rule.
const PRIVATE_FOLDERS: [&str; 4] = ["home", "root", "work", "Users"];

/// Calls that mean "not written yet", and the attribute that silences a test.
const STUBS: &[(&[&str], &str, &str)] = &[
    (&["todo", "!"], "a stub", "write it, or leave it out and say so in the documentation"),
    (&["unimplemented", "!"], "a stub", "write it, or return an error that says what is missing"),
    (&["#", "[", "ignore"], "a silenced test", "mend it, or assert what it does today and say why"),
];

/// Rule `file-docs`.
pub fn check_file_docs(tree: &Tree) -> Vec<Violation> {
    let opens_well = |s: &Source| {
        let first = s.lines.iter().find(|l| !l.code.trim().is_empty() || !l.comment.trim().is_empty());
        first.is_some_and(|l| l.comment.trim_start().starts_with("//!"))
    };
    tree.sources
        .iter()
        .filter(|s| s.is_in_src() && !opens_well(s))
        .map(|s| {
            Violation::of_file(
                &s.path,
                "does not open with `//!`",
                "say what it does, its key type, its neighbours",
            )
        })
        .collect()
}

/// Rule `banned-text`.
pub fn check_banned(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for file in &tree.texts {
        for (line, text) in file.text.lines().enumerate() {
            for folder in PRIVATE_FOLDERS.iter().filter(|f| names_absolute_path(text, f)) {
                found.push(Violation {
                    path: file.path.clone(),
                    line: line + 1,
                    what: format!("an absolute path under /{folder}"),
                    remedy: "make it relative to the tree, or take it from the environment".into(),
                });
            }
        }
    }
    for source in &tree.sources {
        for (at, token) in source.tokens.iter().enumerate() {
            for (tokens, what, remedy) in STUBS.iter().filter(|(tokens, ..)| source.matches(at, tokens)) {
                let what = format!("{what} (`{}`)", tokens.concat());
                found.push(Violation::at(source, token.line, what, *remedy));
            }
        }
    }
    found
}

/// Whether `/folder/` stands in `text` as the beginning of a path, not in the middle of one or of an address.
fn names_absolute_path(text: &str, folder: &str) -> bool {
    let needle = format!("/{folder}/");
    text.match_indices(&needle).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | '}' | '~' | '*'))
    })
}

/// Rule `readme`.
pub fn check_readme(tree: &Tree) -> Vec<Violation> {
    let Some(readme) = tree.texts.iter().find(|t| t.path == README) else {
        return vec![Violation::of_file(README, "there is none", "write it, with a table of the crates")];
    };
    let mut found = Vec::new();
    let lines = readme.text.lines().count();
    if lines > README_LINES_MAX {
        found.push(Violation::of_file(
            README,
            format!("{lines} lines, at most {README_LINES_MAX}"),
            "move the detail to docs/ and link it",
        ));
    }
    let table = crate_table(&readme.text, tree);
    for package in &tree.packages {
        let rows = table.iter().filter(|(_, names)| names.contains(&package.name)).count();
        if rows != 1 {
            found.push(Violation::of_file(
                README,
                format!("crate `{}` has {rows} rows in the crate table", package.name),
                "give it one row: its name in backticks in the first column",
            ));
        }
    }
    for (line, names) in &table {
        for name in names.iter().filter(|n| !tree.packages.iter().any(|p| p.name == **n)) {
            found.push(Violation {
                path: README.into(),
                line: line + 1,
                what: format!("the crate table names `{name}`, which is no crate of the workspace"),
                remedy: "take the row out".into(),
            });
        }
    }
    found
}

/// The table that names most crates, as (line, names in the first column), rows without a name left out.
fn crate_table(text: &str, tree: &Tree) -> Vec<(usize, Vec<String>)> {
    let mut tables: Vec<Vec<(usize, Vec<String>)>> = vec![Vec::new()];
    for (line, row) in text.lines().enumerate() {
        let Some(cells) = row.trim().strip_prefix('|') else {
            tables.push(Vec::new());
            continue;
        };
        let first = cells.split('|').next().unwrap_or("");
        let names: Vec<String> = first.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        if let Some(table) = tables.last_mut().filter(|_| !names.is_empty()) {
            table.push((line, names));
        }
    }
    let is_crate = |name: &String| tree.packages.iter().any(|p| p.name == *name);
    let crates_in =
        |t: &Vec<(usize, Vec<String>)>| t.iter().flat_map(|r| &r.1).filter(|n| is_crate(n)).count();
    tables.into_iter().max_by_key(crates_in).unwrap_or_default()
}

/// Rule `file-size`, a warning.
pub fn check_size(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for source in &tree.sources {
        let lines = source.lines.iter().filter(|l| !l.is_test).count();
        if lines > FILE_LINES_MAX {
            found.push(Violation::of_file(
                &source.path,
                format!("{lines} lines without its tests"),
                format!("cut it along a seam; {FILE_LINES_MAX} is enough"),
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::{Package, tree_of};
    use super::*;

    fn banned(path: &str, text: &str) -> usize {
        check_banned(&tree_of(&[(path, text)])).len()
    }

    #[test]
    fn a_source_file_opens_with_its_purpose() {
        assert_eq!(check_file_docs(&tree_of(&[("abi/src/a.rs", "use x;\n//! late")])).len(), 1);
        assert_eq!(check_file_docs(&tree_of(&[("abi/src/a.rs", "\n//! A.\nuse x;")])), []);
        assert_eq!(check_file_docs(&tree_of(&[("abi/tests/a.rs", "use x;")])), []);
    }

    #[test]
    fn paths_of_one_machine_are_banned_and_addresses_are_not() {
        let private = |folder: &str| format!("cd \"/{folder}/me\"");
        assert_eq!(banned("docs/a.md", &private("home")), 1);
        assert_eq!(banned("a/src/a.rs", &private("work")), 1);
        assert_eq!(banned("docs/a.md", "see https://example.org/home/x and ./root/x"), 0);
    }

    #[test]
    fn stubs_are_banned_in_code_only() {
        assert_eq!(banned("a/src/a.rs", concat!("fn a() { to", "do!() }")), 1);
        assert_eq!(banned("a/src/a.rs", concat!("#[ign", "ore = \"later\"]\nfn a() {}")), 1);
        assert_eq!(banned("a/src/a.rs", "// todo!() is banned\nfn a() { b(\"unimplemented!()\") }"), 0);
    }

    fn readme(text: &str) -> Vec<Violation> {
        let mut tree = tree_of(&[("README.md", text)]);
        for name in ["abi", "shm"] {
            tree.packages.push(Package { name: name.into(), ..Package::default() });
        }
        check_readme(&tree)
    }

    #[test]
    fn the_readme_names_each_crate_once() {
        let good = "| crate | what |\n| --- | --- |\n| `abi` | ids |\n| [`shm`](shm) | memory |\n\n| `shm` | a figure |\n";
        assert_eq!(readme(good), []);
        assert_eq!(readme("| `abi` | ids |\n").len(), 1);
        assert_eq!(readme("| `abi` | a |\n| `abi` | b |\n| `shm` | c |\n").len(), 1);
        assert_eq!(readme("| `abi` | a |\n| `gone` | b |\n| `shm` | c |\n")[0].line, 2);
    }

    #[test]
    fn the_readme_is_short_and_there() {
        let table = "| `abi` | ids |\n| `shm` | memory |\n";
        assert_eq!(readme(&format!("{table}{}", "x\n".repeat(148))), []);
        assert_eq!(readme(&format!("{table}{}", "x\n".repeat(149))).len(), 1);
        assert_eq!(check_readme(&Tree::default()).len(), 1);
    }

    #[test]
    fn only_lines_outside_tests_count_for_size() {
        let at_limit =
            format!("{}#[cfg(test)]\nmod tests {{\n{}}}", "a();\n".repeat(500), "b();\n".repeat(500));
        assert_eq!(check_size(&tree_of(&[("a/src/a.rs", &at_limit)])), []);
        let over = format!("a();\n{at_limit}");
        assert_eq!(check_size(&tree_of(&[("a/src/a.rs", &over)])).len(), 1);
    }
}
