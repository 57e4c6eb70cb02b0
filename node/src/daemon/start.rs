//! How a proxy comes to life: as a process of this executable, or as tests wish.
//!
//! Key types: [`StartProxy`], [`Started`], [`ProcessStarter`].

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use proxy_tcp::options::ProxyOptions;
use shm::os::peer::{pidfd_kill, pidfd_open};
use shm::os::process::{Start, spawn};

use crate::config::Cluster;

/// What keeps a started proxy on a string.
pub trait ProxyHandle: Send {
    /// Ends it, whatever it is doing. Its exit descriptor fires when it is over.
    fn kill(&mut self);
    /// After its exit descriptor fired: takes away what is left of it.
    fn reap(&mut self);
}

/// A proxy that runs.
pub struct Started {
    pub pid: u32,
    /// Becomes readable when it has ended for certain.
    pub exit: OwnedFd,
    pub handle: Box<dyn ProxyHandle>,
}

/// Starts proxies. `link` is the proxy's end of the socket to the daemon.
pub trait StartProxy: Send {
    fn start(&mut self, options: &ProxyOptions, link: OwnedFd) -> io::Result<Started>;
}

/// The program of proxies of the kinds `rdma` and `auto`, which is not this one: it needs libraries of its own.
const RDMA_PROGRAM: &str = "proxy-rdma";

/// Where that is: beside `program`, or on PATH.
pub fn rdma_program(program: &Path) -> Option<PathBuf> {
    let beside = program.parent().map(|folder| folder.join(RDMA_PROGRAM));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join(RDMA_PROGRAM));
    beside.into_iter().chain(on_path).find(|full| full.is_file())
}

/// Starts each proxy as a process: `program proxy-tcp ARGUMENTS`, or another program with the same, its link inherited,
/// killed when the daemon ends.
#[derive(Debug, Clone)]
pub struct ProcessStarter {
    program: PathBuf,
    /// Kinds of proxies that are not `tcp`, by index.
    kinds: BTreeMap<u16, String>,
    /// Where standard error of proxies goes; beside the daemon's own if `None`.
    logs: Option<PathBuf>,
}

impl ProcessStarter {
    /// `program`: usually `std::env::current_exe()`. `logs`: a directory.
    pub fn new(program: PathBuf, logs: Option<PathBuf>) -> ProcessStarter {
        ProcessStarter { program, kinds: BTreeMap::new(), logs }
    }

    /// For the proxies of this cluster.
    pub fn of(self, cluster: &Cluster) -> ProcessStarter {
        let kinds = (1..).zip(&cluster.proxies).map(|(index, proxy)| (index, proxy.kind.clone()));
        ProcessStarter { kinds: kinds.collect(), ..self }
    }

    /// Of the kind that a proxy is of.
    fn command(&self, index: u16) -> io::Result<Command> {
        let kind = self.kinds.get(&index).map_or("tcp", String::as_str);
        if let Some(program) = rdma_program(&self.program).filter(|_| kind != "tcp") {
            return Ok(Command::new(program));
        }
        if kind == "rdma" {
            let what = "the program proxy-rdma is neither beside this one nor on PATH: `cargo build --release -p proxy-rdma`";
            return Err(io::Error::new(io::ErrorKind::NotFound, what));
        }
        if kind == "auto" {
            tracing::info!(proxy = index, "by TCP: there is no program proxy-rdma here");
        }
        let mut command = Command::new(&self.program);
        command.arg("proxy-tcp");
        Ok(command)
    }

    fn log(&self, index: u16) -> io::Result<Stdio> {
        let Some(logs) = &self.logs else { return Ok(Stdio::inherit()) };
        let path = logs.join(format!("proxy-{index}.log"));
        Ok(OpenOptions::new().append(true).create(true).mode(0o600).open(path)?.into())
    }
}

impl StartProxy for ProcessStarter {
    fn start(&mut self, options: &ProxyOptions, link: OwnedFd) -> io::Result<Started> {
        let mut command = self.command(options.proxy_index)?;
        command.args(options.to_args());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(self.log(options.proxy_index)?);
        let start = Start { fds: vec![(link, options.link_fd)], own_group: true, dies_with_us: true };
        let child = spawn(command, start).map_err(|e| io::Error::other(e.to_string()))?;
        let pidfd = pidfd_open(child.id())?;
        let exit = pidfd.try_clone()?;
        Ok(Started { pid: child.id(), exit, handle: Box::new(ProcessHandle { child, pidfd }) })
    }
}

struct ProcessHandle {
    child: Child,
    pidfd: OwnedFd,
}

impl ProxyHandle for ProcessHandle {
    fn kill(&mut self) {
        if let Err(errno) = pidfd_kill(&self.pidfd) {
            tracing::error!(pid = self.child.id(), "proxy not killed: {errno}");
        }
    }

    fn reap(&mut self) {
        debug_assert!(shm::os::peer::pidfd_exited(&self.pidfd), "{:?} still runs", self.pidfd.as_fd());
        // It has exited: this does not wait.
        let _ = self.child.wait();
    }
}
