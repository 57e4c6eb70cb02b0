//! Why a daemon does not start or ends. Each says what to do next.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;
use shm::map::MapError;

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error("the cluster file has no node {asked}: it has {known}")]
    NoSuchNode { asked: String, known: String },
    #[error("{}: {what}", path.display())]
    Place { path: PathBuf, what: &'static str },
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "node {node} runs already (process {pid}): stop it with `dvs down`, or give another --runtime-dir\n  its lock: {}",
        lock.display()
    )]
    RunsAlready { node: String, pid: String, lock: PathBuf },
    #[error("no memory for {what}: {source}; free some, or raise the limits of this user")]
    Memory {
        what: &'static str,
        #[source]
        source: MapError,
    },
    #[error("the daemon was not started: {0}")]
    Daemon(#[source] shm::os::process::StartError),
    #[error("the system refused {what}: {source}")]
    System {
        what: &'static str,
        #[source]
        source: Errno,
    },
}

impl NodeError {
    pub(crate) fn file(what: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> NodeError {
        let path = path.to_owned();
        move |source| NodeError::File { what, path, source }
    }

    pub(crate) fn system(what: &'static str) -> impl FnOnce(Errno) -> NodeError {
        move |source| NodeError::System { what, source }
    }
}
