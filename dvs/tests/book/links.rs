//! That the book hangs together: its table of contents and its files agree, every link leads somewhere, and every Rust
//! block is taken from a file that cargo builds.

use std::collections::BTreeSet;

use super::pages::{Page, folder, include_of, pages, root};

const CONTENTS: &str = "SUMMARY.md";

/// What stands in the round brackets of links, outside of `code`.
fn targets(line: &str) -> Vec<String> {
    let text: String = line.split('`').step_by(2).collect::<Vec<_>>().join("");
    let links = text.split("](").skip(1);
    links.filter_map(|rest| rest.split_once(')').map(|(target, _)| target.to_owned())).collect()
}

/// The name that mdBook gives a heading.
fn id_of(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn ids(page: &Page) -> BTreeSet<String> {
    page.prose().iter().filter(|(_, line)| line.starts_with('#')).map(|(_, line)| id_of(line)).collect()
}

#[test]
fn the_contents_name_every_page_once_and_nothing_else() {
    let all = pages();
    let contents = all.iter().find(|page| page.name == CONTENTS).expect("a table of contents");
    let mut listed: Vec<String> = contents.text.lines().flat_map(targets).collect();
    listed.sort();
    let files: Vec<&String> = all.iter().map(|page| &page.name).filter(|name| *name != CONTENTS).collect();
    assert_eq!(listed.iter().collect::<Vec<_>>(), files, "SUMMARY.md, and the files beside it");
}

#[test]
fn every_link_leads_somewhere() {
    let all = pages();
    let mut wrong = Vec::new();
    for page in &all {
        for (line, text) in page.prose() {
            for target in targets(&text).iter().filter(|t| !t.contains("://")) {
                let (file, part) = target.split_once('#').unwrap_or((target, ""));
                let other = if file.is_empty() { Some(page) } else { all.iter().find(|p| p.name == file) };
                let why = match other {
                    Some(other) if part.is_empty() || ids(other).contains(part) => continue,
                    Some(_) => "there is no such heading",
                    None if !folder().join(file).exists() => "there is no such file",
                    None if file.ends_with(".md") => {
                        "mdBook makes it .html: include it in a page and link that, or name it in `code`"
                    }
                    None => continue,
                };
                wrong.push(format!("docs/book/src/{}:{line}: {target}: {why}", page.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `examples` and `src` of a crate of the workspace: cargo builds what is there.
fn is_built(file: &str) -> bool {
    let path = folder().join(file).canonicalize().ok();
    let path = path.as_deref().and_then(|path| path.strip_prefix(root().canonicalize().ok()?).ok());
    let parts: Vec<String> =
        path.map_or_else(Vec::new, |p| p.iter().map(|part| part.to_string_lossy().into_owned()).collect());
    let is_crate = |name: &str| root().join(name).join("Cargo.toml").is_file();
    match &parts.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [name, "examples", program] => program.ends_with(".rs") && is_crate(name),
        [name, "src", ..] => is_crate(name),
        _ => false,
    }
}

#[test]
fn every_rust_block_is_taken_from_a_file_that_cargo_builds() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for page in pages() {
        for block in page.blocks() {
            if let Err(why) = block.whole() {
                wrong.push(format!("docs/book/src/{}:{}: {why}", page.name, block.line));
            }
            if !block.is("rust") {
                continue;
            }
            seen += 1;
            for line in block.lines.iter().filter(|line| !line.trim().is_empty()) {
                if !include_of(line).is_some_and(|(file, _)| is_built(file)) {
                    wrong.push(format!(
                        "docs/book/src/{}:{}: `{line}` is not included from examples/ or src/ of a crate",
                        page.name, block.line
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 0, "no page shows a program");
}

#[test]
fn blocks_are_of_kinds_that_are_checked_or_cannot_be() {
    let known = ["rust", "console", "toml", "text"];
    for page in pages() {
        for block in page.blocks() {
            let place = format!("docs/book/src/{}:{}", page.name, block.line);
            let kind = &block.kind;
            assert!(known.iter().any(|k| block.is(k)), "{place}: `{kind}`: one of {known:?}");
            let shown = !block.is("toml") || block.file.is_some();
            assert!(
                shown,
                "{place}: say which file it is, `<!-- file: NAME -->`, so that a command reads it"
            );
            let typed = block.is("text") && block.lines.iter().any(|line| line.starts_with("$ "));
            assert!(!typed, "{place}: commands stand in a `console` block, which is run");
        }
    }
}

#[test]
fn links_and_headings_are_read_as_mdbook_reads_them() {
    assert_eq!(targets("a [b](c.md#d) `[x](y)` [e](f)"), ["c.md#d", "f"]);
    assert_eq!(id_of("## What `dvs up` does, and why"), "what-dvs-up-does-and-why");
}
