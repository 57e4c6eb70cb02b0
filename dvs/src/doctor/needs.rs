//! What nothing runs without: kernel, memory files, pinned processes, sockets that carry descriptors.
//!
//! Each is tried with the very functions that daemons and programs use.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use shm::map::{Access, Mapping, PAGE_BYTES};
use shm::os::{fdpass, memfd, peer};

use super::{Check, State, kernel, read};
use crate::output::bytes;

/// The first kernel with all calls that are used without a second way.
const KERNEL_MIN: (u32, u32) = (5, 11);
/// The first kernel that names the process behind a socket by descriptor.
const KERNEL_PEER_PIDFD: (u32, u32) = (6, 5);
/// How long a connection to ourselves may take.
const ACCEPT_WITHIN: Duration = Duration::from_secs(2);

const NOTHING_RUNS: &str = "no daemon and no program runs";

pub fn all(runtime_dir: Option<&Path>) -> Vec<Check> {
    let describe = |tried: Result<String>| tried.map_err(|why| format!("{why:#}"));
    vec![
        release(),
        Check::tried(
            "memory files",
            describe(memory_file()),
            NOTHING_RUNS,
            "permit memfd_create and its seals (a seccomp profile?), or free memory",
        ),
        Check::tried(
            "processes watched",
            describe(watched()),
            NOTHING_RUNS,
            "mount /proc, and permit pidfd_open (a seccomp profile?)",
        ),
        Check::tried(
            "runtime directory",
            describe(sockets(&runtime_base(runtime_dir))),
            NOTHING_RUNS,
            "give --runtime-dir (or DVS_RUNTIME_DIR) a folder of yours with a short path",
        ),
    ]
}

fn release() -> Check {
    let (version, name) = kernel();
    let (major, minor) = KERNEL_MIN;
    if version.is_some_and(|v| v >= KERNEL_MIN) {
        return Check::yes("kernel", format!("Linux {name}"));
    }
    Check::short(
        "kernel",
        State::No,
        format!("{name}, before {major}.{minor}"),
        NOTHING_RUNS,
        format!("boot Linux {major}.{minor} or newer"),
    )
}

/// As an endpoint's memory is made.
fn memory_file() -> Result<String> {
    let (fd, _) = memfd::segment_fd("dvs-doctor", PAGE_BYTES, false)?;
    let mapping = Mapping::shared(fd.as_fd(), 0, PAGE_BYTES, Access::ReadWrite)?;
    mapping.write_from(0, b"doctor")?;
    memfd::seal(fd.as_fd())?;
    let available = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?.trim().to_owned();
        line.strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    let available = available.map_or_else(String::new, |kib| format!("; {} can be had", bytes(kib * 1024)));
    Ok(format!("made, mapped and sealed{available}"))
}

/// As a daemon watches a program.
fn watched() -> Result<String> {
    let own = std::process::id();
    peer::start_time(own).context("/proc does not say when a process began")?;
    let pidfd = peer::pidfd_open(own).context("pidfd_open")?;
    anyhow::ensure!(!peer::pidfd_exited(&pidfd), "a pidfd says that this very process has ended");
    Ok(match kernel().0 {
        Some(version) if version >= KERNEL_PEER_PIDFD => "by pidfd, also of a socket's other side".into(),
        _ => "by pidfd; of a socket's other side by its number and start time".into(),
    })
}

/// As a program connects to its daemon and is given memory.
fn sockets(base: &Path) -> Result<String> {
    let folder = tempfile::Builder::new().prefix("dvs-doctor-").tempdir_in(base)?;
    let path = folder.path().join("member.sock");
    let listener = fdpass::listen(&path, 1).with_context(|| format!("{}", path.display()))?;
    let near = fdpass::connect(&path).context("connect")?;
    let far = fdpass::accept(listener.as_fd(), Some(ACCEPT_WITHIN)).context("accept")?;
    peer::PeerProcess::of(far.as_fd()).context("who is on the other side")?;
    fdpass::send_with_fds(&near, b"doctor", &[listener.as_fd()]).context("pass a descriptor")?;
    let mut buffer = [0; 16];
    let (_, fds) = fdpass::recv_with_fds(&far, &mut buffer).context("take a descriptor")?;
    anyhow::ensure!(fds.len() == 1, "a descriptor that was passed did not arrive");
    Ok(format!("sockets in {} pass descriptors", base.display()))
}

/// The nearest folder there is: daemons make what is below.
fn runtime_base(runtime_dir: Option<&Path>) -> PathBuf {
    match runtime_dir {
        Some(dir) => {
            let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
            dir.ancestors().find(|part| part.exists()).unwrap_or(&dir).to_owned()
        }
        None => node::place::default_base(),
    }
}
