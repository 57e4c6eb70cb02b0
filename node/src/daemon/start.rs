//! How a proxy comes to life: as a process of this executable, or as tests wish.
//!
//! Key types: [`StartProxy`], [`Started`], [`ProcessStarter`].

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use proxy_tcp::options::ProxyOptions;
use shm::os::peer::{pidfd_kill, pidfd_open};
use shm::os::process::{Start, spawn};

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

/// Starts each proxy as a process: `program proxy-KIND ARGUMENTS`, its link inherited, killed when the daemon ends.
#[derive(Debug, Clone)]
pub struct ProcessStarter {
    program: PathBuf,
    /// Where standard error of proxies goes; beside the daemon's own if `None`.
    logs: Option<PathBuf>,
}

impl ProcessStarter {
    /// `program`: usually `std::env::current_exe()`. `logs`: a directory.
    pub fn new(program: PathBuf, logs: Option<PathBuf>) -> ProcessStarter {
        ProcessStarter { program, logs }
    }

    fn log(&self, index: u16) -> io::Result<Stdio> {
        let Some(logs) = &self.logs else { return Ok(Stdio::inherit()) };
        let path = logs.join(format!("proxy-{index}.log"));
        Ok(OpenOptions::new().append(true).create(true).mode(0o600).open(path)?.into())
    }
}

impl StartProxy for ProcessStarter {
    fn start(&mut self, options: &ProxyOptions, link: OwnedFd) -> io::Result<Started> {
        let mut command = Command::new(&self.program);
        command.arg("proxy-tcp").args(options.to_args());
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
