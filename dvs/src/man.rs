//! `dvs man`: manual pages, made from the definition of the commands, so that they say what the help says.
//!
//! Neighbour: `cli::shown`, the definition without what users do not type.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use serde_json::json;

use crate::cli;
use crate::failure::{Exit, failure};
use crate::output::Output;

/// Without a folder the page of `dvs` itself, else a file for it and for each of its commands.
pub fn man(folder: Option<&Path>, output: &Output) -> Result<()> {
    let mut root = cli::shown().disable_help_subcommand(true);
    root.build();
    let Some(folder) = folder else {
        let page = String::from_utf8(page(&root)?.1)?;
        return output.answer(&json!({ "ok": true, "page": page }), |_| page.clone());
    };
    let refused = |path: &Path, why: std::io::Error| {
        failure(Exit::Refused, format!("{} was not written: {why}", path.display()), "give a folder of yours")
    };
    std::fs::create_dir_all(folder).map_err(|why| refused(folder, why))?;
    let mut files: Vec<PathBuf> = Vec::new();
    for command in with_all_below(&root) {
        let (name, text) = page(command)?;
        let file = folder.join(name);
        std::fs::write(&file, text).map_err(|why| refused(&file, why))?;
        files.push(file);
    }
    let names: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
    output.answer(&json!({ "ok": true, "files": names }), |_| names.join("\n"))
}

fn with_all_below(command: &Command) -> Vec<&Command> {
    let below = command.get_subcommands().flat_map(with_all_below);
    std::iter::once(command).chain(below).collect()
}

/// The name of a page's file, and its text.
fn page(command: &Command) -> Result<(String, Vec<u8>)> {
    let man = Man::new(command.clone())
        // No date, so that the same program writes the same page; an empty word would not be written down as one.
        .date("\"\"")
        .source(concat!("dvs ", env!("CARGO_PKG_VERSION")))
        .manual("Distributed containers");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    if let Some(end) = command.get_after_long_help().or_else(|| command.get_after_help()) {
        end_of_help(&end.to_string()).to_writer(&mut text)?;
    }
    Ok((man.get_filename(), text))
}

/// Examples and exit codes as sections of their own, their lines as they are.
fn end_of_help(text: &str) -> Roff {
    let mut roff = Roff::new();
    let mut as_is = false;
    for line in text.lines() {
        let indented = line.starts_with(' ');
        if indented != as_is {
            roff.control(if indented { "nf" } else { "fi" }, []);
            as_is = indented;
        }
        match line.strip_suffix(':').filter(|_| !indented) {
            Some(title) => drop(roff.control("SH", [title.to_uppercase().as_str()])),
            None if line.is_empty() => drop(roff.control("PP", [])),
            None => drop(roff.text([roman(line)])),
        }
    }
    if as_is {
        roff.control("fi", []);
    }
    roff
}
