//! `dvs`: the one program that users install. It starts and stops nodes, shows them, runs programs bound in
//! them, talks to those, measures, and is itself their daemons and couriers: the same executable, started anew.
//!
//! `cli` says what can be asked, one module each answers it. Errors say what to do next (`failure`), and
//! every command can answer in JSON (`output`).
#![forbid(unsafe_code)]

const _: () = assert!(!shm::HAS_MUTANTS, "built with the feature `mutants`, which is the simulator's alone");

mod admin;
mod bench;
mod check;
mod cli;
mod cluster;
mod completions;
mod cp;
mod daemon;
mod dc;
mod demo;
mod doctor;
mod down;
mod failure;
mod init;
mod interrupt;
mod log_tail;
mod logs;
mod man;
mod notify;
mod order;
mod output;
mod rdma;
mod receive;
mod run;
mod seat;
mod send;
mod show;
mod soak;
mod talk;
mod top;
mod up;
mod workers;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use serde_json::json;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Command, NodeCommand, ProxyCommand};
use cluster::Place;
use failure::Exit;
use output::{Output, print};

fn main() -> ExitCode {
    // A bare ping-pong's other side is this program too.
    shm::bare::serve_from_env();
    let cli = Cli::parse();
    log_to_stderr(cli.verbose);
    let json = cli.json;
    match interrupt::or_interrupted(act(cli)) {
        Ok(code) => code,
        Err(error) => complain(&error, json),
    }
}

fn act(cli: Cli) -> Result<ExitCode> {
    let output = Output::new(cli.json);
    let dir = cli.runtime_dir.as_deref();
    match cli.command {
        Command::Demo(args) => return demo::run(&args, &output),
        Command::Soak(args) => return soak::run(&args, &output),
        Command::Bench(command) => bench::run(&command, dir, &output)?,
        Command::Init(args) => order::init(&args, &output)?,
        Command::Check(args) => check::check(&args, &output)?,
        Command::Doctor => return doctor::doctor(dir, &output),
        Command::Rdma(command) => rdma::rdma(command, &output)?,
        Command::Up(args) => order::up(&args, dir, &output)?,
        Command::Down(args) => order::down(&args, dir, &output)?,
        Command::Node(NodeCommand::Start(args)) => {
            daemon::start_here(&Place::load(&args.cluster, dir)?, &args.node)?;
        }
        Command::Status(place) => show::status(&Place::find(&place, dir)?, place.node.as_deref(), &output)?,
        Command::Ps(place) => show::ps(&Place::find(&place, dir)?, place.node.as_deref(), &output)?,
        Command::Top(args) => top::top(&args, dir, &output)?,
        Command::Dc(command) => dc::dc(command, dir, &output)?,
        Command::Logs(args) => logs::logs(&args, dir, &output)?,
        Command::Proxy(ProxyCommand::Ls(place)) => {
            show::proxies(&Place::find(&place, dir)?, place.node.as_deref(), &output)?;
        }
        Command::Proxy(ProxyCommand::Restart(args)) => {
            order::proxy(&args, order::Proxy::Restart, dir, &output)?
        }
        Command::Proxy(ProxyCommand::Stop(args)) => order::proxy(&args, order::Proxy::Stop, dir, &output)?,
        Command::Run(args) => run::run(&Place::find(&args.seat.place, dir)?, &args)?,
        Command::Send(args) => send::send(&Place::find(&args.seat.place, dir)?, args, &output)?,
        Command::Notify(args) => notify::notify(&Place::find(&args.seat.place, dir)?, args, &output)?,
        Command::Receive(args) => receive::receive(&Place::find(&args.seat.place, dir)?, &args, &output)?,
        Command::Cp(args) => cp::cp(&Place::find(&args.seat.place, dir)?, args, &output)?,
        Command::Completions(args) => completions::completions(args.shell, &output)?,
        Command::Man(args) => man::man(args.folder.as_deref(), &output)?,
        Command::NodeDaemon(args) => daemon::run(&args, dir)?,
        Command::ProxyTcp(args) => daemon::carry(args)?,
        Command::Worker(args) => workers::work(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn log_to_stderr(verbose: u8) {
    let level = ["warn", "info", "debug", "trace"][usize::from(verbose.min(3))];
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let colours = output::colours_wanted() && std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}

/// Tells what happened and what to do, and gives the exit code for it.
fn complain(error: &anyhow::Error, json: bool) -> ExitCode {
    let known = failure::of(error);
    let exit = known.map_or(Exit::Failed, |f| f.exit);
    // Where it was interrupted is nobody's concern.
    let what = known
        .filter(|f| f.exit == Exit::Interrupted)
        .map_or_else(|| format!("{error:#}"), |f| f.what.clone());
    let next = known.map_or("", |f| f.next.as_str());
    if json {
        let mut object = json!({ "ok": false, "error": what, "next": next, "exit": exit as u8 });
        if let Some(spot) = known.and_then(|f| f.spot.as_ref()) {
            object["file"] = json!(spot.file.display().to_string());
            object["line"] = json!(spot.at.map(|(line, _)| line));
            object["column"] = json!(spot.at.map(|(_, column)| column));
        }
        print(&object.to_string());
    } else if next.is_empty() {
        eprintln!("dvs: {what}");
    } else {
        eprintln!("dvs: {what}\n  next: {next}");
    }
    ExitCode::from(exit as u8)
}
