//! Each node in a network namespace of its own: three of them, joined by virtual cables to a bridge.
//!
//! The demonstration starts itself anew by unshare(1) in a network and a mount namespace (and, for who is not
//! root, a user namespace) of its own; inside it makes the three by ip(8). Nothing of it is visible from
//! outside, and all of it ends with its processes.

use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::failure::{Exit, failure};

/// Set for the demonstration that has been started anew inside.
const ENV_INSIDE: &str = "DVS_DEMO_INSIDE";

/// A node's address, private to the namespaces.
pub const fn address(node: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, 91, 0, node as u8)
}

/// What stands before a command that runs in a node's namespace.
pub fn prefix(node: u16) -> Vec<String> {
    ["ip", "netns", "exec", &name(node)].map(str::to_owned).to_vec()
}

fn name(node: u16) -> String {
    format!("node{node}")
}

/// Returns inside, with the namespaces made; outside it becomes the one inside, or says what is missing.
pub fn enter(nodes: u16) -> Result<()> {
    if std::env::var_os(ENV_INSIDE).is_some() {
        return build(nodes);
    }
    let tools = [("unshare", "util-linux"), ("mount", "util-linux"), ("ip", "iproute2")];
    for (tool, package) in tools {
        if quiet(Command::new(tool).arg("--help")).is_err() {
            let next = format!("install the package {package}, or run the demonstration without --netns");
            return Err(failure(Exit::Refused, format!("--netns needs the program `{tool}`"), next));
        }
    }
    let options: &[&str] = match node::place::own_uid() {
        0 => &["--net", "--mount"],
        _ => &["--user", "--map-root-user", "--net", "--mount"],
    };
    let tried = Command::new("unshare").args(options).arg("true").stdin(Stdio::null()).output();
    let tried = tried.context("unshare was there a moment ago")?;
    if !tried.status.success() {
        let said = String::from_utf8_lossy(&tried.stderr).trim().to_owned();
        let next = "run it as root, or permit user namespaces: `sysctl kernel.unprivileged_userns_clone=1` \
                    and, on Ubuntu, `sysctl kernel.apparmor_restrict_unprivileged_userns=0`; without --netns \
                    neither is needed";
        return Err(failure(Exit::Refused, format!("--netns: namespaces are refused here: {said}"), next));
    }
    let own = std::env::current_exe().context("where this program is")?;
    let mut command = Command::new("unshare");
    command.args(options).arg(own).args(std::env::args_os().skip(1)).env(ENV_INSIDE, "1");
    Err(anyhow::Error::from(command.exec()).context("unshare was there a moment ago"))
}

/// One bridge, and for each node a namespace with one end of a cable to it.
fn build(nodes: u16) -> Result<()> {
    // A /run of our own, so that the names of our namespaces are ours alone.
    run("mount", &["-t", "tmpfs", "tmpfs", "/run"])?;
    ip("link set lo up")?;
    ip("link add street type bridge")?;
    ip("link set street up")?;
    for node in 1..=nodes {
        let (name, address) = (name(node), address(node));
        ip(&format!("netns add {name}"))?;
        ip(&format!("link add to-{name} type veth peer name eth0 netns {name}"))?;
        ip(&format!("link set to-{name} master street up"))?;
        ip(&format!("-n {name} addr add {address}/24 dev eth0"))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
    }
    Ok(())
}

fn ip(line: &str) -> Result<()> {
    run("ip", &line.split(' ').collect::<Vec<_>>())
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{program} cannot be run"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let next =
        "the kernel must offer veth and bridge (`modprobe veth bridge`); without --netns neither is needed";
    Err(failure(Exit::Refused, format!("`{program} {}` was refused: {said}", args.join(" ")), next))
}

/// Ok when there is such a program, whatever it answers.
fn quiet(command: &mut Command) -> std::io::Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().map(|_| ())
}
