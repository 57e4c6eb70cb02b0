//! The stage `book`: the book's pages, links, programs and commands by its test (`dvs/tests/book.rs`), and what mdBook says
//! where it is installed.

use super::Job;
use super::cargo_tests::run_tests;
use crate::workspace::Workspace;
use anyhow::Result;
use std::process::Command;

const FOLDER: &str = "docs/book";

pub fn run(job: &mut Job) -> Result<()> {
    // A test program that is asked for alone does not have the examples built.
    let examples = job.cargo(&["build", "--profile", "test", "-p", "dvs", "--examples"]);
    if job.run_well("book examples", examples)?.is_none() {
        return Ok(());
    }
    let command = job.cargo(&["test", "-p", "dvs", "--test", "book", "--", "--show-output"]);
    run_tests(job, "book", command)?;
    if Workspace::find_program("mdbook").is_none() {
        job.not_run("mdbook", "mdbook is not installed (cargo install mdbook)");
        return Ok(());
    }
    let mut build = Command::new("mdbook");
    build.args(["build", "--dest-dir"]).arg(job.workspace.target.join("book")).arg(FOLDER);
    build.current_dir(&job.workspace.root);
    if job.run_well("mdbook", build)?.is_some() {
        job.passed("mdbook", "");
    }
    Ok(())
}
