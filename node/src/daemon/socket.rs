//! Datagrams of words on non-blocking sockets: what members and proxies share.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use abi::member::{WORDS, Words};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use shm::os::fdpass::{self, PassError};

/// Bytes of a datagram's words.
pub(super) const WORDS_BYTES: usize = WORDS * 8;

pub(super) fn to_bytes(words: &Words) -> [u8; WORDS_BYTES] {
    let mut bytes = [0; WORDS_BYTES];
    for (word, out) in words.iter().zip(bytes.chunks_exact_mut(8)) {
        out.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The words of exactly as many bytes as they have.
pub(super) fn from_bytes(bytes: &[u8]) -> Option<Words> {
    if bytes.len() != WORDS_BYTES {
        return None;
    }
    let mut words = [0; WORDS];
    for (word, eight) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(eight.try_into().ok()?);
    }
    Some(words)
}

pub(super) fn set_nonblocking(fd: &OwnedFd) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)
}

/// One datagram with its descriptors, or not at all.
pub(super) fn send(socket: &OwnedFd, bytes: &[u8], fds: &[Arc<OwnedFd>]) -> Result<(), PassError> {
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    fdpass::send_with_fds(socket, bytes, &fds)
}

/// 128 bits that nobody guesses; `None`: the system has none to give.
pub(super) fn random() -> Option<[u64; 2]> {
    let mut bytes = [0u8; 16];
    let got = rustix::io::retry_on_intr(|| getrandom(&mut bytes[..], GetRandomFlags::empty())).ok()?;
    let (high, low) = bytes.split_at(8);
    let half = |part: &[u8]| part.try_into().ok().map(u64::from_ne_bytes);
    (got == bytes.len()).then_some([half(high)?, half(low)?])
}
