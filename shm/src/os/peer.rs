//! Who is at the other end of a Unix socket, or behind a pid, so that the answer stays true: a pidfd and a
//! start time.
//!
//! Key type: [`PeerProcess`]. Neighbours: `os::fdpass` makes the sockets. Source: unix(7) `SO_PEERCRED`,
//! `SO_PEERPIDFD` (Linux 6.5), pidfd_open(2), proc_pid_stat(5).
#![expect(unsafe_code, reason = "SO_PEERPIDFD has no safe wrapper yet")]

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_send_signal};

use super::fdpass::wait_ready;

/// `SO_PEERPIDFD`, which libc does not name for every architecture.
const SO_PEERPIDFD: libc::c_int = 77;

/// A process, pinned: the pid means it for as long as `pidfd` has not fired.
#[derive(Debug)]
pub struct PeerProcess {
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
    pub pidfd: OwnedFd,
    /// Clock ticks after boot. With the pid it names the process for ever, also to a successor of ours.
    pub start_time: u64,
}

/// Why the peer could not be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerError {
    /// The peer's end, or death: the process that connected has exited. Close the connection.
    Gone,
    /// The set-up's fault: it lives in a process namespace that we cannot see. Refuse it; run it in ours.
    Unseen,
    /// The system refused (not a Unix socket, no descriptors left). Give up on this connection.
    Refused(Errno),
}

impl PeerError {
    fn of(errno: Errno) -> PeerError {
        match errno {
            Errno::SRCH | Errno::NOENT => PeerError::Gone,
            refused => PeerError::Refused(refused),
        }
    }
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerError::Gone => f.write_str("peer process has exited"),
            PeerError::Unseen => f.write_str("peer process is in a namespace that cannot be seen from here"),
            PeerError::Refused(errno) => write!(f, "peer process unknown: {errno}"),
        }
    }
}

impl std::error::Error for PeerError {}

impl PeerProcess {
    /// The process that connected this socket (or made the pair), even if another holds it by now.
    pub fn of(sock: BorrowedFd<'_>) -> Result<PeerProcess, PeerError> {
        let cred = match socket_pid(sock)? {
            Some(cred) => cred,
            None => return Err(PeerError::Unseen),
        };
        let pidfd = match peer_pidfd(sock) {
            Ok(pidfd) => pidfd,
            Err(Errno::NOPROTOOPT | Errno::INVAL) => pidfd_by_pid(sock, cred.pid)?,
            Err(errno) => return Err(PeerError::of(errno)),
        };
        let start_time = start_time(cred.pid).map_err(PeerError::of)?;
        // While the pidfd has not fired, the pid is that process's: then so was the start time just read.
        if pidfd_exited(&pidfd) {
            return Err(PeerError::Gone);
        }
        Ok(PeerProcess { pid: cred.pid, uid: cred.uid, gid: cred.gid, pidfd, start_time })
    }
}

struct Cred {
    pid: u32,
    uid: u32,
    gid: u32,
}

fn socket_pid(sock: BorrowedFd<'_>) -> Result<Option<Cred>, PeerError> {
    match read_cred(sock) {
        Ok(cred) if cred.pid > 0 => Ok(Some(cred)),
        Ok(_unseen) => Ok(None),
        Err(errno) => Err(PeerError::of(errno)),
    }
}

fn read_cred(sock: BorrowedFd<'_>) -> Result<Cred, Errno> {
    // Read as plain integers: a peer outside our process namespace has pid zero, which a non-zero `Pid`
    // cannot hold.
    let mut raw = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: 1. `raw` and `len` are ours and alive during the call. 2. `len` is the size of `raw`.
    let rc = unsafe {
        libc::getsockopt(
            sock.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut raw).cast(),
            &raw mut len,
        )
    };
    if rc != 0 {
        return Err(super::last_errno());
    }
    Ok(Cred { pid: u32::try_from(raw.pid).unwrap_or(0), uid: raw.uid, gid: raw.gid })
}

fn peer_pidfd(sock: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let mut raw: libc::c_int = -1;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: 1. `raw` and `len` are ours and alive during the call. 2. `len` is the size of `raw`.
    let rc = unsafe {
        libc::getsockopt(
            sock.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut raw).cast(),
            &raw mut len,
        )
    };
    if rc != 0 {
        return Err(super::last_errno());
    }
    if raw < 0 {
        return Err(Errno::SRCH);
    }
    // SAFETY: 1. The call succeeded, so `raw` is a new descriptor. 2. Nobody else knows it: this value owns
    //            it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Kernels before 6.5. The pid may have been reused since the connection; if the socket has not hung up once
/// the pidfd is open, and the start time stood still around that, its maker was alive throughout.
fn pidfd_by_pid(sock: BorrowedFd<'_>, pid: u32) -> Result<OwnedFd, PeerError> {
    let before = start_time(pid).map_err(PeerError::of)?;
    let pidfd = pidfd_open(pid).map_err(PeerError::of)?;
    let after = start_time(pid).map_err(PeerError::of)?;
    let hung_up = wait_ready(sock, PollFlags::empty(), Some(Duration::ZERO)).map_err(PeerError::of)?;
    if before != after || hung_up { Err(PeerError::Gone) } else { Ok(pidfd) }
}

/// A descriptor that becomes readable when the process exits. `Err(SRCH)`: no such process now.
pub fn pidfd_open(pid: u32) -> Result<OwnedFd, Errno> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
}

/// Kills that very process (SIGKILL). Ok also when it had exited.
pub fn pidfd_kill(pidfd: &OwnedFd) -> Result<(), Errno> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Err(Errno::SRCH) => Ok(()),
        other => other,
    }
}

/// Whether that process has exited.
pub fn pidfd_exited(pidfd: &OwnedFd) -> bool {
    pidfd_exited_within(pidfd, Duration::ZERO)
}

/// Waits up to `timeout` for that process to exit, and says whether it has.
pub fn pidfd_exited_within(pidfd: &OwnedFd, timeout: Duration) -> bool {
    wait_ready(pidfd.as_fd(), PollFlags::IN, Some(timeout)).unwrap_or(false)
}

/// When a process started, in clock ticks after boot. `Err(NOENT)` or `Err(SRCH)`: no such process now.
pub fn start_time(pid: u32) -> Result<u64, Errno> {
    let mut path = [0u8; 32];
    let path = stat_path(pid, &mut path);
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut line = [0u8; 1024];
    let len = rustix::io::read(&file, &mut line)?;
    field_22(&line[..len]).ok_or(Errno::SRCH)
}

fn stat_path(pid: u32, buffer: &mut [u8; 32]) -> &[u8] {
    use std::io::Write;
    let mut rest = &mut buffer[..];
    write!(rest, "/proc/{pid}/stat").expect("ten digits fit");
    let left = rest.len();
    &buffer[..32 - left]
}

/// The start time: the twenty-second field, counted from behind the name, which may itself hold spaces and
/// brackets.
fn field_22(line: &[u8]) -> Option<u64> {
    let close = line.iter().rposition(|&b| b == b')')?;
    let field = line[close + 1..].split(|&b| b == b' ').filter(|f| !f.is_empty()).nth(19)?;
    std::str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_start_time() {
        let line = b"12 (a) b (c) S 1 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 10";
        assert_eq!(field_22(line), Some(98765));
    }

    #[test]
    fn a_short_stat_line_has_no_start_time() {
        assert_eq!(field_22(b"12 (a) S 1 2"), None);
        assert_eq!(field_22(b""), None);
    }

    #[test]
    fn the_way_by_pid_finds_a_peer_that_lives_and_not_one_that_hung_up() {
        let (here, there) = super::super::fdpass::pair().unwrap();
        let me = std::process::id();
        assert!(pidfd_by_pid(here.as_fd(), me).is_ok());
        drop(there);
        assert_eq!(pidfd_by_pid(here.as_fd(), me).err(), Some(PeerError::Gone));
    }
}
