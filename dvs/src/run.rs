//! `dvs run`: bind this process in a DC, then become the program, which takes the binding over.

use std::os::unix::process::CommandExt;
use std::process::Command;

use abi::Slot;
use abi::member::{ENV_DC, ENV_ENDPOINT, ENV_SOCKET, ENV_TOKEN, Refusal};
use anyhow::Result;
use dvk::{BindError, BindOptions, Binding, Unavailable};
use node::config::{ClusterDc, ClusterNode};

use crate::cli::RunArgs;
use crate::cluster::Place;
use crate::failure::{Exit, failure};

/// Does not return unless something is wrong.
pub fn run(place: &Place, args: &RunArgs) -> Result<()> {
    let dc = place.dc(&args.dc)?;
    let node = place.one_node(args.place.node.as_deref())?;
    let first = first_slot(dc, node)?;
    if let Some(name) = &args.name {
        abi::Name::new(name)
            .map_err(|why| failure(Exit::Config, format!("--name {name:?} is {why}"), "choose another"))?;
    }
    if let Some(slot) = args.slot.filter(|slot| !(first..first + dc.slots_per_node).contains(slot)) {
        let last = first + dc.slots_per_node - 1;
        let what =
            format!("slot {slot} of DC {} is not node {}'s: it has {first} to {last}", dc.name, node.name);
        return Err(failure(
            Exit::Config,
            what,
            "choose one of these, leave --slot out, or run it on another node",
        ));
    }
    let socket = place.files(node).member_socket();
    let mut options = BindOptions::new(&socket, &args.dc);
    if let Some(slot) = args.slot {
        options = options.slot(Slot(slot));
    }
    if let Some(name) = &args.name {
        options = options.name(name);
    }
    let bound = Binding::bind_other(&options, std::process::id());
    let (endpoint, token) = bound.map_err(|why| refused(why, args, node))?;
    let (program, rest) = args.program.split_first().expect("clap asks for a program");
    let mut command = Command::new(program);
    command.args(rest).env(ENV_SOCKET, &socket).env(ENV_DC, &args.dc);
    command
        .env(ENV_ENDPOINT, endpoint.to_string())
        .env(ENV_TOKEN, format!("{:016x}{:016x}", token[0], token[1]));
    Err(not_started(&command.exec(), &program.to_string_lossy()))
}

/// The first slot of a node in a DC.
fn first_slot(dc: &ClusterDc, node: &ClusterNode) -> Result<u16> {
    let range = dc.ranges().find(|(id, _)| *id == node.id);
    let (_, range) = range.ok_or_else(|| {
        let ids: Vec<String> = dc.nodes.iter().map(ToString::to_string).collect();
        let what = format!("DC {} does not span node {} ({})", dc.name, node.id, node.name);
        failure(
            Exit::Config,
            what,
            format!("its nodes are {}: run it there, or list the node in the DC", ids.join(", ")),
        )
    })?;
    Ok(range.first.0)
}

fn refused(why: BindError, args: &RunArgs, node: &ClusterNode) -> anyhow::Error {
    let (dc, node) = (&args.dc, node.name);
    let slot = args.slot.map_or(String::new(), |slot| format!(" in slot {slot}"));
    let what = format!("not bound in DC {dc} on node {node}{slot}: {why}");
    match why {
        BindError::Unavailable(Unavailable::NoDaemon(_)) => failure(
            Exit::NotRunning,
            format!("node {node} does not answer: {why}"),
            "start it with `dvs up CLUSTER.toml`",
        ),
        BindError::Unavailable(Unavailable::Refused(Refusal::SlotTaken)) => failure(
            Exit::Refused,
            what,
            format!("`dvs ps --node {node}` shows who has it; leave --slot out for a free one"),
        ),
        BindError::Unavailable(Unavailable::Refused(Refusal::NameTaken)) => failure(
            Exit::Refused,
            what,
            format!("`dvs ps --node {node}` shows who has the name; give another --name"),
        ),
        _ => failure(Exit::Refused, what, format!("`dvs status --node {node}` shows how the node does")),
    }
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
