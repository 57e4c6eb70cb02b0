//! Where a node keeps its sockets, its lock and its logs: one private directory per cluster file, one in it per node.
//!
//! Key type: [`NodePlace`]. Two clusters never share a directory, and a directory that others could have prepared is
//! refused.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::NodeError;
use crate::config::{Cluster, ClusterNode};

/// The longest path of a Unix socket.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Where a user without a runtime directory keeps one, among others' files.
const SHARED_DIR: &str = "/tmp";

/// The files of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlace {
    /// The cluster's directory.
    pub cluster: PathBuf,
    /// The node's directory in it.
    pub node: PathBuf,
}

impl NodePlace {
    /// Where a node's files are; nothing is made.
    pub fn of(cluster: &Cluster, node: &ClusterNode, runtime_dir: Option<&Path>) -> NodePlace {
        let cluster = runtime_dir.map_or_else(|| default_dir(cluster), Path::to_owned);
        let node = cluster.join(node.name.as_str());
        NodePlace { cluster, node }
    }

    pub fn member_socket(&self) -> PathBuf {
        self.node.join("member.sock")
    }

    pub fn admin_socket(&self) -> PathBuf {
        self.node.join("admin.sock")
    }

    pub fn lock(&self) -> PathBuf {
        self.node.join("daemon.pid")
    }

    pub fn log(&self) -> PathBuf {
        self.node.join("daemon.log")
    }

    /// What the node knows of DCs that differ from the cluster file: it outlives the daemon.
    pub fn dcs_file(&self) -> PathBuf {
        self.node.join("dcs")
    }

    /// The log of one of its proxies, by its index.
    pub fn proxy_log(&self, proxy: u16) -> PathBuf {
        self.node.join(format!("proxy-{proxy}.log"))
    }

    /// The logs of daemon and proxies, the daemon's first.
    pub fn logs(&self, proxies: &[u16]) -> Vec<PathBuf> {
        [self.log()].into_iter().chain(proxies.iter().map(|p| self.proxy_log(*p))).collect()
    }

    /// Makes the directories, private to this user but for passing through, when other users are to reach the sockets.
    pub fn make(&self, others_pass: bool) -> Result<(), NodeError> {
        let longest = self.member_socket();
        if longest.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let what = "too long for a socket (107 bytes): give a shorter --runtime-dir";
            return Err(NodeError::Place { path: longest, what });
        }
        if let Some(parent) = self.cluster.parent() {
            std::fs::create_dir_all(parent).map_err(NodeError::file("make", parent))?;
        }
        for path in [&self.cluster, &self.node] {
            private_dir(path, others_pass)?;
        }
        Ok(())
    }

    /// Takes the node's lock, and with it the right to all its files; says what a predecessor wrote down, if any.
    pub fn take_lock(&self, node: &str) -> Result<(Lock, Option<Record>), NodeError> {
        loop {
            let taken = self.try_lock(node)?;
            // A predecessor that was leaving may have removed the very file that was just locked.
            if taken.0.is_in_place() {
                return Ok(taken);
            }
        }
    }

    fn try_lock(&self, node: &str) -> Result<(Lock, Option<Record>), NodeError> {
        let path = self.lock();
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = open.map_err(NodeError::file("open", &path))?;
        let mut before = String::new();
        // What is not readable as text is no record of a predecessor.
        let _ = (&file).take(64).read_to_string(&mut before);
        let mut words = before.split_whitespace();
        let pid = words.next().unwrap_or("unknown").to_owned();
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(NodeError::RunsAlready { node: node.to_owned(), pid, lock: path });
            }
            Err(errno) => return Err(NodeError::File { what: "lock", path, source: errno.into() }),
        }
        let mut number = || words.next().and_then(|w| w.parse().ok());
        let record =
            number().zip(number()).map(|(incarnation, generations)| Record { incarnation, generations });
        Ok((Lock { file, path, keeper: 0 }, record))
    }

    /// The processes of the node's daemon and its keeper, by what its lock file says.
    pub fn recorded(&self) -> Option<(u32, Option<u32>)> {
        let text = std::fs::read_to_string(self.lock()).ok()?;
        let mut words = text.split_whitespace();
        let pid = words.next()?.parse().ok()?;
        let keeper = words.nth(2).and_then(|word| word.parse().ok()).filter(|pid| *pid != 0);
        Some((pid, keeper))
    }

    /// Removes what a predecessor that was killed left behind. Only with the lock.
    pub fn clear(&self) {
        for path in [self.member_socket(), self.admin_socket()] {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Removes all that the daemon made, logs included; the cluster's directory with its last node. The record stays
    /// if a successor needs it, and so does what it must know of DCs.
    pub fn remove(&self, proxies: &[u16], record_stays: bool) {
        self.clear();
        if !record_stays {
            let _ = std::fs::remove_file(self.lock());
        }
        for log in self.logs(proxies) {
            let _ = std::fs::remove_file(aside(&log));
            let _ = std::fs::remove_file(log);
        }
        let _ = std::fs::remove_dir(&self.node);
        let _ = std::fs::remove_dir(&self.cluster);
    }
}

/// Where the earlier part of a log is.
pub fn aside(log: &Path) -> PathBuf {
    log.with_extension("log.1")
}

/// What a life of the node leaves written down, so that the next one is told from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub incarnation: u32,
    /// Generations below this one are used.
    pub generations: u32,
}

/// The node's lock, held as long as this lives.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
    /// The process that holds the lock, too.
    keeper: u32,
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Lock {
    /// A lock that a predecessor took and did not give up.
    pub(crate) fn adopt(file: OwnedFd, place: &NodePlace) -> Lock {
        Lock { file: file.into(), path: place.lock(), keeper: 0 }
    }

    fn is_in_place(&self) -> bool {
        let same = |a: std::fs::Metadata, b: std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        let here = self.file.metadata().ok();
        here.zip(std::fs::metadata(&self.path).ok()).is_some_and(|(a, b)| same(a, b))
    }

    /// Says who keeps it beyond this process.
    pub(crate) fn kept_by(&mut self, keeper: u32) {
        self.keeper = keeper;
    }

    /// Leaves pid and record in the lock file, for who comes too early or after.
    pub fn record(&mut self, record: Record) -> Result<(), NodeError> {
        let Record { incarnation, generations } = record;
        // The keeper's pid comes last; 0: there is none.
        let (pid, keeper) = (std::process::id(), self.keeper);
        let wrote = self
            .file
            .rewind()
            .and_then(|()| self.file.set_len(0))
            .and_then(|()| writeln!(self.file, "{pid} {incarnation} {generations} {keeper}"));
        wrote.map_err(NodeError::file("write", &self.path))
    }
}

/// `$XDG_RUNTIME_DIR/dvs-<cluster>-<hash>`, or `/tmp/dvs-<uid>-<cluster>-<hash>`: the hash is of the file's path.
fn default_dir(cluster: &Cluster) -> PathBuf {
    let mark = fnv1a(cluster.file.as_os_str().as_encoded_bytes());
    let tail = format!("{}-{mark:08x}", cluster.name);
    match users_runtime_dir() {
        Some(dir) => dir.join(format!("dvs-{tail}")),
        None => Path::new(SHARED_DIR).join(format!("dvs-{}-{tail}", own_uid())),
    }
}

/// In which folder a cluster's directory is made, unless it is said.
pub fn default_base() -> PathBuf {
    users_runtime_dir().unwrap_or_else(|| SHARED_DIR.into())
}

fn users_runtime_dir() -> Option<PathBuf> {
    let dir = PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?);
    (dir.is_absolute() && dir.is_dir()).then_some(dir)
}

/// The user this process runs as.
pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn private_dir(path: &Path, others_pass: bool) -> Result<(), NodeError> {
    let mode = if others_pass { 0o711 } else { 0o700 };
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(NodeError::File { what: "make", path: path.to_owned(), source }),
    }
    let there = std::fs::symlink_metadata(path).map_err(NodeError::file("look at", path))?;
    let refused = |what| Err(NodeError::Place { path: path.to_owned(), what });
    if !there.is_dir() {
        return refused("not a directory: remove it, or give another --runtime-dir");
    }
    if there.uid() != own_uid() {
        return refused("belongs to another user: give another --runtime-dir");
    }
    if there.mode() & 0o022 != 0 {
        return refused("others may write into it: remove it, or give another --runtime-dir");
    }
    if there.mode() & 0o777 != mode {
        let wanted = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, wanted).map_err(NodeError::file("set the mode of", path))?;
    }
    Ok(())
}
