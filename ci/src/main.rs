//! What continuous integration does, a laptop does: `cargo run -p ci -- test`. This file is the command line; the
//! stages are in `stages`, the rules about the tree in `tidy`.
#![forbid(unsafe_code)]

mod process;
mod report;
mod rxe;
mod stages;
mod tidy;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

const EXAMPLES: &str = "Examples:
  cargo run -p ci -- test                      all stages, as CI runs them
  cargo run -p ci -- test --list               the stages and their budgets, nothing is run
  cargo run -p ci -- test --only fmt,tidy      two stages
  cargo run -p ci -- test --only sim --full    one stage, with the long setting
  cargo run -p ci -- tidy                      the rules about the tree alone

The last line of a run is `N passed, N failed, N skipped`; the exit code is 0 when nothing failed.
What cannot run here is printed as `not run: NAME: why` and counts as skipped.";

#[derive(Parser)]
#[command(name = "ci", about = "Checks the whole project, stage by stage", after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the stages in order
    #[command(after_help = EXAMPLES)]
    Test {
        /// More seeds and rounds; up to four hours
        #[arg(long)]
        full: bool,
        /// Only these stages, in the order of the list
        #[arg(long, value_name = "STAGE", value_delimiter = ',')]
        only: Vec<String>,
        /// Print the stages with their budgets and stop
        #[arg(long)]
        list: bool,
        /// Show every line the stages print
        #[arg(long, short)]
        verbose: bool,
    },
    /// Run a program in a virtual machine with RDMA devices
    #[command(after_help = rxe::EXAMPLES)]
    Rxe(rxe::Options),
    /// Check the rules about the tree: arrows, unsafe, atomics, texts
    Tidy,
}

fn main() -> ExitCode {
    let options = match Arguments::parse().command {
        Task::Test { full, only, list, verbose } => stages::Options { is_full: full, only, list, verbose },
        Task::Rxe(options) => return rxe::run(&options),
        Task::Tidy => {
            stages::Options { is_full: false, only: vec!["tidy".into()], list: false, verbose: false }
        }
    };
    match stages::run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ci: {error:#}");
            ExitCode::FAILURE
        }
    }
}
