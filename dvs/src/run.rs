//! `dvs run`: bind this process in a DC, then become the program, which takes the binding over.

use std::os::unix::process::CommandExt;
use std::process::Command;

use abi::member::{ENV_DC, ENV_ENDPOINT, ENV_SOCKET, ENV_TOKEN};
use anyhow::Result;
use dvk::Binding;

use crate::cli::RunArgs;
use crate::cluster::Place;
use crate::failure::{Exit, failure};
use crate::seat::Seat;

/// Does not return unless something is wrong.
pub fn run(place: &Place, args: &RunArgs) -> Result<()> {
    let seat = Seat::choose(place, &args.seat)?;
    let bound = Binding::bind_other(&seat.options, std::process::id());
    let (endpoint, token) = bound.map_err(|why| seat.refused(why))?;
    let (program, rest) = args.program.split_first().expect("clap asks for a program");
    let mut command = Command::new(program);
    command.args(rest).env(ENV_SOCKET, &seat.socket).env(ENV_DC, &args.seat.dc);
    command
        .env(ENV_ENDPOINT, endpoint.to_string())
        .env(ENV_TOKEN, format!("{:016x}{:016x}", token[0], token[1]));
    Err(not_started(&command.exec(), &program.to_string_lossy()))
}

fn not_started(why: &std::io::Error, program: &str) -> anyhow::Error {
    if why.kind() == std::io::ErrorKind::NotFound {
        let next = "check the path; a program without a slash is looked up in PATH";
        return failure(Exit::NotFound, format!("there is no program {program:?}"), next);
    }
    failure(
        Exit::NotExecutable,
        format!("{program:?} was not executed: {why}"),
        "is it an executable file of this machine?",
    )
}
