//! The book as text: its pages with what they include, their blocks, and where things stand.
//!
//! Key types: [`Page`] and [`Block`].

use std::fs;
use std::path::{Path, PathBuf};

/// A page of the book.
pub struct Page {
    /// Its file, in the folder of pages.
    pub name: String,
    /// As it is written.
    pub text: String,
}

/// A fenced block of a page.
pub struct Block {
    /// The line of its fence, from 1.
    pub line: usize,
    /// What stands behind the fence.
    pub kind: String,
    /// The file that it is, if the line before says so: `<!-- file: NAME -->`.
    pub file: Option<String>,
    pub lines: Vec<String>,
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tree around this crate").to_owned()
}

pub fn folder() -> PathBuf {
    root().join("docs/book/src")
}

/// All files of the folder of pages, in order.
pub fn pages() -> Vec<Page> {
    let entries = fs::read_dir(folder()).expect("docs/book/src");
    let names = entries.map(|e| e.expect("an entry").file_name().into_string().expect("a name of text"));
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
        .into_iter()
        .map(|name| {
            let text = fs::read_to_string(folder().join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
            Page { name, text }
        })
        .collect()
}

impl Page {
    /// Its fenced blocks, as they are written.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut is_open = false;
        let mut before = "";
        for (line, text) in (1..).zip(self.text.lines()) {
            match (text.strip_prefix("```"), is_open) {
                (Some(kind), false) => {
                    let file = before.strip_prefix("<!-- file: ").and_then(|f| f.strip_suffix(" -->"));
                    let (kind, file) = (kind.to_owned(), file.map(str::to_owned));
                    blocks.push(Block { line, kind, file, lines: Vec::new() });
                    is_open = true;
                }
                (Some(_), true) => is_open = false,
                (None, true) => blocks.last_mut().expect("an open block").lines.push(text.to_owned()),
                (None, false) => {}
            }
            before = text;
        }
        assert!(!is_open, "{}: its last block is not closed: write ``` below it", self.name);
        blocks
    }

    /// Its lines outside of blocks, numbered from 1, with what they include.
    pub fn prose(&self) -> Vec<(usize, String)> {
        let mut is_open = false;
        let mut found = Vec::new();
        for (line, text) in (1..).zip(self.text.lines()) {
            if text.starts_with("```") {
                is_open = !is_open;
            } else if !is_open && let Some(included) = included(&folder(), text) {
                let included = included.unwrap_or_else(|why| panic!("{}:{line}: {why}", self.name));
                let page = Page { name: self.name.clone(), text: included };
                found.extend(page.prose().into_iter().map(|(_, text)| (line, text)));
            } else if !is_open {
                found.push((line, text.to_owned()));
            }
        }
        found
    }
}

impl Block {
    /// Its text with what it includes.
    pub fn whole(&self) -> Result<String, String> {
        let mut text = String::new();
        for line in &self.lines {
            match included(&folder(), line) {
                Some(part) => text += &part?,
                None => text += &format!("{line}\n"),
            }
        }
        Ok(text)
    }

    pub fn is(&self, kind: &str) -> bool {
        self.kind.split(',').next() == Some(kind)
    }
}

/// File and anchor of a line that is an `{{#include …}}`.
pub fn include_of(line: &str) -> Option<(&str, Option<&str>)> {
    let inner = line.trim().strip_prefix("{{#include ")?.strip_suffix("}}")?.trim();
    Some(inner.split_once(':').map_or((inner, None), |(file, anchor)| (file, Some(anchor))))
}

/// What a line includes; `None`: it includes nothing.
fn included(from: &Path, line: &str) -> Option<Result<String, String>> {
    let (file, anchor) = include_of(line)?;
    Some(match fs::read_to_string(from.join(file)) {
        Err(why) => Err(format!("{file} cannot be included: {why}")),
        Ok(text) => cut(&text, anchor).ok_or_else(|| {
            format!("{file} has no lines between `ANCHOR: {0}` and `ANCHOR_END: {0}`", anchor.unwrap_or(""))
        }),
    })
}

/// The lines between an anchor's marks, or all, without the lines that are marks; `None`: there are none.
fn cut(text: &str, anchor: Option<&str>) -> Option<String> {
    let mark = |line: &str, word: &str| {
        let (_, rest) = line.split_once(word)?;
        rest.split_whitespace().next().map(str::to_owned)
    };
    let mut is_in = anchor.is_none();
    let mut part = String::new();
    for line in text.lines() {
        if let Some(name) = mark(line, "ANCHOR: ") {
            is_in |= Some(name.as_str()) == anchor;
        } else if let Some(name) = mark(line, "ANCHOR_END: ") {
            is_in &= Some(name.as_str()) != anchor;
        } else if is_in {
            part += line;
            part.push('\n');
        }
    }
    (!part.trim().is_empty() && (anchor.is_none() || !is_in)).then_some(part)
}

#[test]
fn an_anchor_is_cut_out_without_marks_and_must_be_closed() {
    let text = "a\n// ANCHOR: x\nb\n// ANCHOR: y\nc\n// ANCHOR_END: x\nd\n";
    assert_eq!(cut(text, Some("x")).as_deref(), Some("b\nc\n"));
    assert_eq!(cut(text, None).as_deref(), Some("a\nb\nc\nd\n"));
    assert_eq!((cut(text, Some("y")), cut(text, Some("z"))), (None, None));
}
