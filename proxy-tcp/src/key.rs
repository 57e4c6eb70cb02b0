//! The cluster key: 32 random bytes that all nodes know, in a file that only their user can read.
//!
//! Key type: [`ClusterKey`]. It is never printed. Neighbour: `handshake` proves knowledge of it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::io::retry_on_intr;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::config::KeyError;

const KEY_BYTES: usize = 32;

/// What all nodes of a cluster know, and nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey([u8; KEY_BYTES]);

impl ClusterKey {
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> ClusterKey {
        ClusterKey(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Makes a key and a file with it, which must not exist and nobody else may read.
    pub fn create(path: &Path) -> Result<ClusterKey, KeyError> {
        let failed = |source| KeyError::Create { path: path.to_path_buf(), source };
        let key = ClusterKey(random().map_err(failed)?);
        let mut text = String::with_capacity(2 * KEY_BYTES + 1);
        for byte in key.0 {
            text.extend([byte >> 4, byte & 15].map(|digit| char::from(b"0123456789abcdef"[digit as usize])));
        }
        text.push('\n');
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        Ok(key)
    }

    /// Reads one. Refuses a file that others may read: they could speak for any node.
    pub fn load(path: &Path) -> Result<ClusterKey, KeyError> {
        let failed = |source| KeyError::Read { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Open { path: path.to_path_buf(), mode });
        }
        let mut text = String::new();
        let malformed = || KeyError::Malformed { path: path.to_path_buf() };
        match file.take(4096).read_to_string(&mut text) {
            Ok(_) => parse(text.trim()).ok_or_else(malformed),
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => Err(malformed()),
            Err(source) => Err(failed(source)),
        }
    }
}

fn parse(text: &str) -> Option<ClusterKey> {
    let digits = text.as_bytes();
    if digits.len() != 2 * KEY_BYTES {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|d| d as u8);
    let mut key = [0; KEY_BYTES];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(ClusterKey(key))
}

/// Fresh random bytes from the kernel; waits until it has enough, once after boot.
pub(crate) fn random() -> Result<[u8; KEY_BYTES], std::io::Error> {
    let mut bytes = [0; KEY_BYTES];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += retry_on_intr(|| getrandom(&mut bytes[filled..], GetRandomFlags::empty()))?;
    }
    Ok(bytes)
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(..)")
    }
}
