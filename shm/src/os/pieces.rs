//! A stream socket's bytes straight from and into mapped memory, without a reference to bytes that others
//! write.
//!
//! Key type: [`Piece`]. A TCP courier sends a frame's header and its payload, which stays in the sender's
//! pool, by one call. Neighbour: `map`. Source: sendmsg(2), recv(2).
#![expect(unsafe_code, reason = "the kernel is given addresses inside mappings")]

use std::fmt;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use rustix::io::Errno;

use crate::map::{Access, Mapping};

/// The most pieces one call sends; of more the first so many are sent.
pub const PIECES_MAX: usize = 64;

/// A run of bytes to send.
#[derive(Clone, Copy, Debug)]
pub enum Piece<'a> {
    /// Bytes of this process: a header.
    Bytes(&'a [u8]),
    /// Bytes of a mapping: a payload where it lies, which its owner may still change.
    Mapped { map: &'a Mapping, offset_bytes: usize, len_bytes: usize },
}

/// Why no byte passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamError {
    /// Nobody's fault: no room, or nothing there. Wait until the socket is ready, then repeat.
    WouldBlock,
    /// The other end closed or the connection broke. Connect again.
    Closed(Errno),
    /// A piece is not inside its mapping. Whoever named the range made a bad claim: condemn him, send
    /// nothing.
    OutOfRange,
    /// The system refused. Close the connection.
    Refused(Errno),
}

impl StreamError {
    fn last() -> StreamError {
        match super::last_errno() {
            Errno::AGAIN => StreamError::WouldBlock,
            gone @ (Errno::PIPE
            | Errno::CONNRESET
            | Errno::CONNABORTED
            | Errno::CONNREFUSED
            | Errno::NOTCONN
            | Errno::TIMEDOUT
            | Errno::HOSTUNREACH
            | Errno::NETUNREACH) => StreamError::Closed(gone),
            refused => StreamError::Refused(refused),
        }
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StreamError::WouldBlock => f.write_str("socket not ready"),
            StreamError::Closed(errno) => write!(f, "connection ended: {errno}"),
            StreamError::OutOfRange => f.write_str("piece is not inside its segment"),
            StreamError::Refused(errno) => write!(f, "socket refused: {errno}"),
        }
    }
}

impl std::error::Error for StreamError {}

/// Sends the pieces one behind the other, as far as the socket has room, and says how many bytes it took.
/// Never waits.
///
/// `more` says that another call follows at once, so that the last segment need not go out half full. Cost:
/// one system call. All ranges are checked before the first byte goes.
pub fn send_pieces(sock: impl AsFd, pieces: &[Piece<'_>], more: bool) -> Result<usize, StreamError> {
    let mut vectors = [const { libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 } }; PIECES_MAX];
    let count = pieces.len().min(PIECES_MAX);
    for (vector, piece) in vectors.iter_mut().zip(pieces) {
        *vector = match *piece {
            Piece::Bytes(bytes) => {
                libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
            }
            Piece::Mapped { map, offset_bytes, len_bytes } => {
                let span = map.span(offset_bytes, len_bytes).map_err(|_| StreamError::OutOfRange)?;
                libc::iovec { iov_base: span.cast().as_ptr(), iov_len: len_bytes }
            }
        };
    }
    // SAFETY: 1. A header of zeroes is a legal one: no address, no vectors, no control bytes.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vectors.as_mut_ptr();
    header.msg_iovlen = count as _;
    let more = if more { libc::MSG_MORE } else { 0 };
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | more;
    loop {
        // SAFETY: 1. `header` names `count` vectors that live until the call returns.
        //         2. Each names bytes that are borrowed, or lie in a borrowed mapping (checked above); they
        //            are only read.
        let sent = unsafe { libc::sendmsg(sock.as_fd().as_raw_fd(), &raw const header, flags) };
        match usize::try_from(sent) {
            Ok(bytes) => return Ok(bytes),
            Err(_negative) if super::last_errno() == Errno::INTR => {}
            Err(_negative) => return Err(StreamError::last()),
        }
    }
}

/// Receives up to `len_bytes` into the mapping, and says how many came; zero: the other end closed. Never
/// waits.
///
/// # Panics
/// If the mapping is read-only, or `len_bytes` is zero (its answer could not be told from the end).
pub fn recv_into_mapping(
    sock: impl AsFd,
    map: &Mapping,
    offset_bytes: usize,
    len_bytes: usize,
) -> Result<usize, StreamError> {
    assert!(map.access() == Access::ReadWrite, "receive into a read-only mapping");
    assert!(len_bytes > 0, "receive nothing");
    let span = map.span(offset_bytes, len_bytes).map_err(|_| StreamError::OutOfRange)?;
    loop {
        // SAFETY: 1. The range is mapped and writable (checked above) and stays so while `map` is borrowed.
        //         2. No reference to it exists: whoever receives into a range was given it by its pool.
        let got = unsafe {
            libc::recv(sock.as_fd().as_raw_fd(), span.cast().as_ptr(), len_bytes, libc::MSG_DONTWAIT)
        };
        match usize::try_from(got) {
            Ok(bytes) => return Ok(bytes),
            Err(_negative) if super::last_errno() == Errno::INTR => {}
            Err(_negative) => return Err(StreamError::last()),
        }
    }
}
