//! Datagrams with descriptors over Unix sockets that keep order and boundaries (`SOCK_SEQPACKET`): how a
//! segment gets from the daemon to its owner and its readers.
//!
//! A datagram that does not fit is an error with a name, never a silent loss. Neighbour: `os::peer` says who
//! is at the other end. Source: unix(7), cmsg(3).

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, recv,
    recvmsg, sendmsg, socket_with, socketpair,
};
use rustix::time::Timespec;

/// The most descriptors in one datagram.
pub const FDS_MAX: usize = 16;

/// Why a datagram did not pass, or a connection was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassError {
    /// The other end is gone, or nobody listens there. Connect again, later.
    Closed,
    /// Nothing came, or there was no room, within the time given. Retry.
    TimedOut,
    /// The sender's fault: its datagram is longer than the buffer given and its rest is lost. Close the
    /// connection.
    LongDatagram,
    /// The sender's fault, or we are out of descriptors (raise nofile): some that were sent are lost. Close
    /// the connection.
    LostDescriptors,
    /// The system refused. Give up.
    Refused(Errno),
}

impl PassError {
    fn of(errno: Errno) -> PassError {
        match errno {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNREFUSED | Errno::NOENT => {
                PassError::Closed
            }
            Errno::AGAIN => PassError::TimedOut,
            refused => PassError::Refused(refused),
        }
    }
}

impl fmt::Display for PassError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PassError::Closed => f.write_str("nobody at the other end of the socket"),
            PassError::TimedOut => f.write_str("socket not ready in time"),
            PassError::LongDatagram => f.write_str("datagram is longer than its protocol allows"),
            PassError::LostDescriptors => f.write_str("descriptors of a datagram were lost"),
            PassError::Refused(errno) => write!(f, "socket refused: {errno}"),
        }
    }
}

impl std::error::Error for PassError {}

/// A socket that listens at `path`. The path must not exist; who restarts removes his predecessor's first.
pub fn listen(path: &Path, backlog: i32) -> Result<OwnedFd, PassError> {
    let socket = seqpacket(SocketFlags::CLOEXEC)?;
    let address = SocketAddrUnix::new(path).map_err(PassError::Refused)?;
    bind(&socket, &address).map_err(PassError::Refused)?;
    rustix::net::listen(&socket, backlog).map_err(PassError::Refused)?;
    Ok(socket)
}

/// A connection to who listens at `path`. Waits while his backlog is full.
pub fn connect(path: &Path) -> Result<OwnedFd, PassError> {
    let socket = seqpacket(SocketFlags::CLOEXEC)?;
    let address = SocketAddrUnix::new(path).map_err(PassError::Refused)?;
    retry_on_intr(|| rustix::net::connect(&socket, &address)).map_err(PassError::of)?;
    Ok(socket)
}

/// The next connection to a listening socket; `TimedOut` if none came in time (`None`: waits for ever).
pub fn accept(listener: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<OwnedFd, PassError> {
    if !wait_ready(listener, PollFlags::IN, timeout).map_err(PassError::of)? {
        return Err(PassError::TimedOut);
    }
    retry_on_intr(|| accept_with(listener, SocketFlags::CLOEXEC)).map_err(PassError::of)
}

/// Two connected ends, for a child that inherits one.
pub fn pair() -> Result<(OwnedFd, OwnedFd), PassError> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(PassError::Refused)
}

/// Sends one datagram with up to [`FDS_MAX`] descriptors; both arrive, or neither. Waits for room unless the
/// socket is non-blocking (then `TimedOut`).
///
/// # Panics
/// If there are more descriptors, or no bytes (a datagram without bytes reads as the end of the connection).
pub fn send_with_fds(sock: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), PassError> {
    assert!(!bytes.is_empty(), "an empty datagram reads as the end");
    assert!(fds.len() <= FDS_MAX, "at most {FDS_MAX} descriptors in a datagram");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "the buffer has room for {FDS_MAX}");
    }
    let sent = retry_on_intr(|| sendmsg(&sock, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL));
    sent.map(|_whole| ()).map_err(PassError::of)
}

/// Receives one datagram and its descriptors (close-on-exec). `Ok((0, []))`: the other end closed.
///
/// Waits unless the socket is non-blocking. Errors: a datagram that does not fit is `LongDatagram` or
/// `LostDescriptors`; what came with it has been closed.
pub fn recv_with_fds(sock: impl AsFd, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), PassError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = retry_on_intr(|| recvmsg(&sock, &mut [IoSliceMut::new(buffer)], &mut control, flags));
    let got = match got {
        Ok(got) => got,
        Err(Errno::CONNRESET) => return Ok((0, Vec::new())),
        Err(errno) => return Err(PassError::of(errno)),
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(PassError::LostDescriptors);
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(PassError::LongDatagram);
    }
    Ok((got.bytes, fds))
}

/// Looks at the next datagram and leaves it where it is; its length, or that of the buffer if it is longer. `Ok(0)`: the
/// other end closed.
pub fn peek(sock: impl AsFd, buffer: &mut [u8]) -> Result<usize, PassError> {
    match retry_on_intr(|| recv(&sock, &mut *buffer, RecvFlags::PEEK)) {
        Ok((len, _)) => Ok(len),
        Err(Errno::CONNRESET) => Ok(0),
        Err(errno) => Err(PassError::of(errno)),
    }
}

/// [`recv_with_fds`], waiting no longer than `timeout`.
pub fn recv_with_fds_within(
    sock: impl AsFd,
    buffer: &mut [u8],
    timeout: Duration,
) -> Result<(usize, Vec<OwnedFd>), PassError> {
    if !wait_ready(sock.as_fd(), PollFlags::IN, Some(timeout)).map_err(PassError::of)? {
        return Err(PassError::TimedOut);
    }
    recv_with_fds(sock, buffer)
}

/// Waits until a descriptor is ready (or has hung up); false: not in time. Signals do not shorten or lengthen
/// the wait.
pub fn wait_ready(fd: BorrowedFd<'_>, what: PollFlags, timeout: Option<Duration>) -> Result<bool, Errno> {
    let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
    loop {
        let left = deadline.map(|d| timespec(d.saturating_duration_since(Instant::now())));
        match poll(&mut [PollFd::from_borrowed_fd(fd, what)], left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// A duration as the system takes it; what it cannot hold is for ever.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    let tv_sec = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec, tv_nsec: i64::from(duration.subsec_nanos()) }
}

fn seqpacket(flags: SocketFlags) -> Result<OwnedFd, PassError> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(PassError::Refused)
}
