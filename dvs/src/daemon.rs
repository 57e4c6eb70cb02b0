//! The processes behind a cluster: a node's daemon, and the courier that a daemon starts.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, Result};
use node::keeper::{self, End};
use node::{NodeError, ProcessStarter, RunOptions};
use proxy_tcp::ProxyOptions;
use shm::os::process::{Start, spawn};

use crate::cli::{NodeDaemonArgs, RawArgs};
use crate::cluster::{DAEMON_COMMAND, Place, unusable};
use crate::failure::{Exit, failure};

/// At which number a daemon finds its way to the keeper.
const KEPT_FD: i32 = 3;

/// `dvs node-daemon`: runs until it is told to stop. With a terminal it stays in the foreground.
pub fn run(args: &NodeDaemonArgs, runtime_dir: Option<&Path>) -> Result<()> {
    if let Some(parent) = args.with {
        shm::os::process::die_with(parent).context("the process this daemon was to end with has ended")?;
    }
    let place = Place::load(&args.cluster, runtime_dir)?;
    let node = place.node(&args.node.to_string())?;
    if !args.foreground {
        // Its own session: no terminal's signals. Refused to who leads a group already and has one.
        let _ = rustix::process::setsid();
    }
    let Some(keeper) = args.kept else {
        return keep(args, &place);
    };
    let keeper = shm::os::process::inherited(keeper).context("a daemon is started by its keeper")?;
    let logs = (!args.foreground).then(|| place.files(node).node);
    let own = std::env::current_exe().context("where this program is")?;
    let options = RunOptions {
        cluster_file: place.cluster.file.clone(),
        node: node.id.to_string(),
        runtime_dir: place.runtime_dir.clone(),
        starter: Box::new(ProcessStarter::new(own, logs).of(&place.cluster)),
        keeper: Some(keeper),
    };
    node::run(options).map_err(explain)
}

/// The keeper: this process again, without a descriptor to a keeper of its own.
fn keep(args: &NodeDaemonArgs, place: &Place) -> Result<()> {
    let own = std::env::current_exe().context("where this program is")?;
    let (cluster, runtime_dir) = (place.cluster.file.clone(), place.runtime_dir.clone());
    let (node, foreground, with_us) = (args.node, args.foreground, args.with.is_some());
    let start = move |link| {
        // The very program that runs, though another may have taken its place on disk: it reads what it wrote.
        let mut command = Command::new("/proc/self/exe");
        command.arg0(&own).arg(DAEMON_COMMAND).arg(&cluster).args(["--node", &node.to_string()]);
        command.args(["--kept", &KEPT_FD.to_string()]);
        if foreground {
            command.arg("--foreground");
        }
        if with_us {
            command.args(["--with", &std::process::id().to_string()]);
        }
        if let Some(dir) = &runtime_dir {
            command.arg("--runtime-dir").arg(dir);
        }
        kept(command, link)
    };
    match keeper::run(Box::new(start)).map_err(explain)? {
        End::Ended(status) if status.success() => Ok(()),
        // It has said why.
        End::Ended(status) => std::process::exit(status.code().unwrap_or(1)),
        End::NoSuccessor(status) => Err(failure(
            Exit::Failed,
            format!("the daemon has ended ({status}) and has no successor"),
            "`dvs up` starts the node anew; its log says more",
        )),
    }
}

/// Starts a daemon that hands over what it has to its keeper.
fn kept(command: Command, link: OwnedFd) -> Result<Child, NodeError> {
    let start = Start { fds: vec![(link, KEPT_FD)], own_group: false, dies_with_us: false };
    spawn(command, start).map_err(NodeError::Daemon)
}

/// `dvs node start`: becomes the daemon, under the command line by which running clusters are found.
pub fn start_here(place: &Place, asked: &str) -> Result<()> {
    let node = place.node(asked)?;
    let own = std::env::current_exe().context("where this program is")?;
    let mut command = Command::new(own);
    command.arg(DAEMON_COMMAND).arg(&place.cluster.file).args([
        "--node",
        &node.id.to_string(),
        "--foreground",
    ]);
    if let Some(dir) = &place.runtime_dir {
        command.arg("--runtime-dir").arg(dir);
    }
    if std::env::var_os("RUST_LOG").is_none() {
        command.env("RUST_LOG", "info");
    }
    Err(anyhow::Error::from(command.exec()).context("this program cannot be started anew"))
}

fn explain(why: NodeError) -> anyhow::Error {
    let (exit, next) = match &why {
        NodeError::Config(why) => return unusable(why),
        NodeError::NoSuchNode { .. } => (Exit::Config, "correct the cluster file"),
        NodeError::RunsAlready { .. } => (Exit::Refused, "`dvs status` shows how it does"),
        NodeError::File { what: "find the cluster key", .. } => (
            Exit::Config,
            "copy it from another machine of the cluster; `dvs up` makes one where there is none",
        ),
        NodeError::File { source, .. } if is_limit(source) => {
            (Exit::Failed, "raise this user's limits (`ulimit -n` is that of descriptors), or free some")
        }
        NodeError::Place { .. } | NodeError::File { .. } => (Exit::Refused, "give another --runtime-dir"),
        NodeError::Memory { .. } | NodeError::System { .. } | NodeError::Daemon { .. } => {
            (Exit::Failed, "free some, or raise this user's limits")
        }
    };
    failure(exit, why.to_string(), next)
}

/// Whether a user has run into a limit, and another place would not help.
fn is_limit(source: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let limits = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOSPC, Errno::DQUOT];
    Errno::from_io_error(source).is_some_and(|errno| limits.contains(&errno))
}

/// `dvs proxy-tcp`: carries until its daemon says stop.
pub fn carry(args: RawArgs) -> Result<()> {
    let text =
        |arg: std::ffi::OsString| arg.into_string().unwrap_or_else(|raw| raw.to_string_lossy().into_owned());
    let options = ProxyOptions::parse(args.args.into_iter().map(text)).map_err(|why| {
        failure(Exit::Failed, format!("proxy-tcp: {why}"), "a proxy is started by its daemon")
    })?;
    proxy_tcp::process::run(&options)
        .map_err(|why| failure(Exit::Failed, format!("proxy-tcp: {why}"), "the daemon starts it anew"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shm::os::process::StartError;

    #[test]
    fn a_daemon_that_cannot_be_started_is_told_with_why() {
        let (_keeper, link) = shm::os::fdpass::pair().expect("a pair of sockets");
        let why = kept(Command::new("/no/such/program"), link).map(drop).expect_err("nothing to start");
        assert!(matches!(why, NodeError::Daemon(StartError::Program(_))), "{why}");
        assert!(explain(why).to_string().contains("was not started"));
    }
}
