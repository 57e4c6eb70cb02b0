//! Starting nodes: each daemon a process of its own, all of them and all links up, or none left running.
//!
//! Key types: [`Launch`] (how daemons are started), [`Started`] (those that were; dropped before `keep`, they
//! are stopped). Neighbours: `daemon` (what the process does), `down`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use node::config::{ClusterNode, ClusterProxy};
use node::place::own_uid;
use serde::Serialize;
use shm::os::process::{Start, spawn};

use crate::admin::Daemon;
use crate::cluster::{DAEMON_COMMAND, Place};
use crate::failure::{Exit, failure};
use crate::{down, interrupt};

/// How often daemons are asked how they do.
const GLANCE: Duration = Duration::from_millis(20);

/// How daemons are started.
pub struct Launch {
    /// What stands before each daemon's command: a way into its network namespace, say. By node.
    pub prefix: fn(&ClusterNode) -> Vec<String>,
    /// Daemons end with this process.
    pub with_us: bool,
    /// Look whether the addresses are free, as seen from here.
    pub probe_ports: bool,
    pub timeout: Duration,
}

impl Launch {
    pub fn new(timeout: Duration) -> Launch {
        Launch { prefix: |_| Vec::new(), with_us: false, probe_ports: true, timeout }
    }
}

/// A daemon that was started, and what it wrote.
struct Running {
    node: ClusterNode,
    child: Child,
    log: File,
}

/// The daemons that were started, in a cluster that has not been said to stay.
pub struct Started<'a> {
    place: &'a Place,
    running: Vec<Running>,
    kept: bool,
}

/// What `dvs up` answers.
#[derive(Serialize)]
pub struct Up {
    pub cluster: String,
    pub file: String,
    pub nodes: Vec<UpNode>,
    pub milliseconds: u64,
}

#[derive(Serialize)]
pub struct UpNode {
    pub node: u16,
    pub name: String,
    pub pid: u32,
    pub address: String,
    pub directory: String,
}

/// Starts the daemons of `nodes` and waits until each answers and all links between them are up.
pub fn start<'a>(place: &'a Place, nodes: &[&ClusterNode], launch: &Launch) -> Result<Started<'a>> {
    for node in nodes {
        refuse_running(place, node)?;
        if launch.probe_ports {
            probe_port(node)?;
        }
    }
    refuse_without_program(place, nodes)?;
    make_key(place)?;
    let mut started = Started { place, running: Vec::new(), kept: false };
    for node in nodes {
        started.running.push(start_one(place, node, launch)?);
    }
    started.wait(launch.timeout)?;
    Ok(started)
}

/// A proxy that could never start would be waited for in vain.
fn refuse_without_program(place: &Place, nodes: &[&ClusterNode]) -> Result<()> {
    let is_here = |proxy: &&ClusterProxy| nodes.iter().any(|node| proxy.nodes.contains(&node.id));
    let own = std::env::current_exe().context("where this program is")?;
    let needs = |proxy: &&ClusterProxy| proxy.kind == "rdma" && is_here(proxy);
    let Some(proxy) = place.cluster.proxies.iter().find(needs) else { return Ok(()) };
    if node::rdma_program(&own).is_some() {
        return Ok(());
    }
    Err(failure(
        Exit::Refused,
        format!(
            "proxy {} is of kind rdma, and the program proxy-rdma is neither beside dvs nor on PATH",
            proxy.name
        ),
        "build it with `cargo build --release -p proxy-rdma` (it needs libibverbs-dev, librdmacm-dev and libclang-dev), or use kind = \"auto\" or \"tcp\"",
    ))
}

fn refuse_running(place: &Place, node: &ClusterNode) -> Result<()> {
    let daemon = Daemon { place, node };
    let files = place.files(node);
    if !files.admin_socket().exists() || !daemon.answers() {
        return Ok(());
    }
    let pid = daemon.recorded_pid().map_or_else(String::new, |pid| format!(" (process {pid})"));
    let what = format!("node {} of cluster {} runs already{pid}", node.name, place.cluster.name);
    let file = place.cluster.file.display();
    Err(failure(Exit::Refused, what, format!("use it as it is, or stop it first: `dvs down {file}`")))
}

fn probe_port(node: &ClusterNode) -> Result<()> {
    use std::io::ErrorKind;
    let Err(why) = TcpListener::bind(node.address) else { return Ok(()) };
    let (name, address) = (node.name, node.address);
    Err(match why.kind() {
        ErrorKind::AddrInUse => {
            let next =
                "end the process that listens there (`ss -ltnp` names it), or give the node another port";
            failure(Exit::Refused, format!("port in use: node {name} cannot listen at {address}"), next)
        }
        ErrorKind::AddrNotAvailable => {
            let next = "start this node on its own machine, name others with --node, or correct the address";
            failure(Exit::Config, format!("{address} of node {name} is not an address of this machine"), next)
        }
        _ => failure(
            Exit::Refused,
            format!("node {name} cannot listen at {address}: {why}"),
            "give it another address",
        ),
    })
}

/// A cluster whose key file does not exist yet gets one; every machine needs the same.
fn make_key(place: &Place) -> Result<()> {
    let Some(path) = place.cluster.key_file.as_ref().filter(|path| !path.exists()) else { return Ok(()) };
    match proxy_tcp::ClusterKey::create(path) {
        Ok(_) => {}
        // Somebody else was quicker: it is there.
        Err(_) if path.exists() => {}
        Err(why) => {
            let next = "make its folder, or give another key_file in the cluster file";
            return Err(failure(Exit::Config, format!("no cluster key: {why}"), next));
        }
    }
    tracing::info!("made the cluster key {}: copy it to the cluster's other machines", path.display());
    Ok(())
}

fn start_one(place: &Place, node: &ClusterNode, launch: &Launch) -> Result<Running> {
    let files = place.files(node);
    files.make(place.cluster.foreign_uids(node.id, own_uid())).map_err(|why| {
        failure(
            Exit::Refused,
            format!("no place for node {}: {why}", node.name),
            "give another --runtime-dir",
        )
    })?;
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    let log = options.open(files.log()).with_context(|| format!("cannot write {}", files.log().display()))?;
    let own = std::env::current_exe().context("where this program is")?;
    let mut line = (launch.prefix)(node);
    line.push(own.to_string_lossy().into_owned());
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).arg(DAEMON_COMMAND).arg(&place.cluster.file);
    command.args(["--node", &node.id.to_string()]);
    if let Some(dir) = &place.runtime_dir {
        command.arg("--runtime-dir").arg(dir);
    }
    if launch.with_us {
        command.args(["--with", &std::process::id().to_string()]);
    }
    // What `dvs logs` shows; the files are kept short.
    if std::env::var_os("RUST_LOG").is_none() {
        command.env("RUST_LOG", "info");
    }
    // A daemon outlives the folder it was started from.
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.try_clone()?);
    let start = Start { own_group: true, ..Start::default() };
    let child =
        spawn(command, start).with_context(|| format!("the daemon of node {} was not started", node.name))?;
    Ok(Running { node: node.clone(), child, log })
}

impl Started<'_> {
    /// Until all is up, or the time is over: then what is missing is named.
    fn wait(&mut self, timeout: Duration) -> Result<()> {
        let until = Instant::now() + timeout;
        loop {
            interrupt::check()?;
            self.check_alive()?;
            let missing = self.missing();
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                let said: String = self.running.iter_mut().map(Running::said).collect();
                let what = format!("not up within {} s: {}{said}", timeout.as_secs(), missing.join("; "));
                return Err(failure(
                    Exit::Failed,
                    what,
                    "what had been started is stopped again; give it longer with --timeout",
                ));
            }
            std::thread::sleep(GLANCE);
        }
    }

    fn check_alive(&mut self) -> Result<()> {
        for running in &mut self.running {
            if let Ok(Some(status)) = running.child.try_wait() {
                let said = running.said();
                let what = format!("the daemon of node {} ended ({status}){said}", running.node.name);
                return Err(failure(Exit::Failed, what, "what had been started is stopped again"));
            }
        }
        Ok(())
    }

    /// Daemons that do not answer, and links that are not up between those that were started.
    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for running in &self.running {
            let daemon = Daemon { place: self.place, node: &running.node };
            let Ok(status) = daemon.status() else {
                missing.push(format!("node {} does not answer yet", running.node.name));
                continue;
            };
            for far in &status.nodes {
                let ours = self.running.iter().any(|r| r.node.id.0 == far.node);
                if ours && far.proxy.is_some() && far.link != "up" {
                    missing.push(format!("the link {} - {} is {}", running.node.name, far.name, far.link));
                }
            }
        }
        missing
    }

    /// They stay, whatever becomes of us.
    pub fn keep(mut self) -> Vec<UpNode> {
        self.kept = true;
        let up = |running: &Running| UpNode {
            node: running.node.id.0,
            name: running.node.name.as_str().to_owned(),
            pid: self.daemon_of(running),
            address: running.node.address.to_string(),
            directory: self.place.files(&running.node).node.display().to_string(),
        };
        self.running.iter().map(up).collect()
    }

    /// The daemon's process; its keeper's, should it be between two daemons.
    fn daemon_of(&self, running: &Running) -> u32 {
        let recorded = self.place.files(&running.node).recorded();
        recorded.map_or_else(|| running.child.id(), |(pid, _)| pid)
    }

    /// Stops all of them and waits for their end.
    pub fn stop(&mut self) {
        for running in &self.running {
            // Who does not take the order is killed below.
            let _ = Daemon { place: self.place, node: &running.node }.order(&node::admin::Request::Stop);
        }
        let until = Instant::now() + down::STOPPED_WITHIN;
        for running in &mut self.running {
            while matches!(running.child.try_wait(), Ok(None)) {
                if Instant::now() >= until {
                    tracing::warn!("the daemon of node {} did not stop: killed", running.node.name);
                    down::kill(self.place, &running.node);
                    let _ = running.child.kill();
                    let _ = running.child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            down::sweep(self.place, &running.node);
        }
        self.running.clear();
    }
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.stop();
        }
    }
}

impl Running {
    /// The last it wrote; its log's name may be gone by now.
    fn said(&mut self) -> String {
        let mut text = String::new();
        let read = self.log.rewind().and_then(|()| self.log.read_to_string(&mut text));
        let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        match read {
            Ok(_) if !lines.is_empty() => {
                let from = lines.len().saturating_sub(6);
                format!("\n  node {} said:\n    {}", self.node.name, lines[from..].join("\n    "))
            }
            _ => String::new(),
        }
    }
}
