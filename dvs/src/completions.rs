//! `dvs completions`: what a shell needs to complete commands and options, made from their definition.
//!
//! Neighbour: `cli::shown`, the definition without what users do not type.

use anyhow::Result;
use clap_complete::Shell;
use serde_json::json;

use crate::cli;
use crate::output::Output;

pub fn completions(shell: Shell, output: &Output) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::shown(), "dvs", &mut script);
    let script = String::from_utf8(script)?;
    output.answer(&json!({ "ok": true, "shell": shell.to_string(), "script": script }), |_| script.clone())
}
