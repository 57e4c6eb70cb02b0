//! A connection whose other end has not proven itself: a socket, a handshake, a deadline and a small buffer.
//!
//! Key type: [`Half`]. Neighbours: `handshake` decides, `fabric` keeps at most `PENDING_MAX` of those it accepted.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use abi::courier::LinkState;
use abi::{Incarnation, NodeId};
use fabric::Time;

use crate::handshake::{FRAME_BYTES_MAX, Floor, Handshake, Nonce, Own, Step};

/// How long a handshake may take, with its connection.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(2);
/// Connections that were accepted and have not proven themselves; the oldest makes room for one more.
pub const PENDING_MAX: usize = 64;

/// A connection before its session.
pub struct Half {
    stream: TcpStream,
    handshake: Handshake,
    pub deadline: Time,
    buffer: [u8; 2 * FRAME_BYTES_MAX],
    filled: usize,
    /// What waits for the connection to stand.
    hello: Vec<u8>,
}

/// How far it has come.
pub enum Progress {
    Waits,
    /// Both ends have proven themselves.
    Stands {
        peer: NodeId,
        incarnation: Incarnation,
        /// What both ends offered.
        offers: u64,
    },
    Ended {
        peer: Option<NodeId>,
        state: Option<LinkState>,
    },
}

impl Half {
    pub fn accepted(stream: TcpStream, nonce: Nonce, now: Time) -> Half {
        Half::new(stream, Handshake::accept(nonce), Vec::new(), now)
    }

    /// A connection under way to `peer`: the opener speaks when it stands.
    pub fn dialled(stream: TcpStream, own: &Own, peer: NodeId, nonce: Nonce, now: Time) -> Half {
        let mut hello = Vec::new();
        let handshake = Handshake::open(own, peer, nonce, &mut hello);
        Half::new(stream, handshake, hello, now)
    }

    fn new(stream: TcpStream, handshake: Handshake, hello: Vec<u8>, now: Time) -> Half {
        let buffer = [0; 2 * FRAME_BYTES_MAX];
        Half { stream, handshake, deadline: now + HANDSHAKE_WITHIN, buffer, filled: 0, hello }
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// It has not said its `Hello`: wait until it can be written to.
    pub fn is_dialling(&self) -> bool {
        !self.hello.is_empty()
    }

    /// The socket, and what came behind the handshake.
    pub fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.buffer[..self.filled].to_vec())
    }

    /// Does what can be done now.
    pub fn advance(&mut self, own: &Own, floor: Floor<'_>) -> Progress {
        const BROKEN: Progress = Progress::Ended { peer: None, state: None };
        if self.is_dialling() {
            if !matches!(self.stream.take_error(), Ok(None)) {
                return BROKEN;
            }
            match (self.stream.local_addr(), self.stream.peer_addr()) {
                // A port of our own that the system happened to choose for both ends.
                (Ok(here), Ok(there)) if here == there => return BROKEN,
                (Ok(_), Ok(_)) => {}
                _ => return Progress::Waits,
            }
            let hello = std::mem::take(&mut self.hello);
            if !self.write(&hello) {
                return BROKEN;
            }
        }
        let mut out = Vec::new();
        loop {
            let closed = match self.stream.read(&mut self.buffer[self.filled..]) {
                Ok(got) => {
                    self.filled += got;
                    got == 0
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Progress::Waits,
                Err(e) if e.kind() == ErrorKind::Interrupted => false,
                Err(_) => return BROKEN,
            };
            let step = self.take_frames(own, floor, &mut out);
            let written = self.write(&out);
            out.clear();
            match step {
                Step::Done { peer, incarnation, offers } if written => {
                    return Progress::Stands { peer, incarnation, offers };
                }
                Step::Failed { peer, state } => {
                    // It reads what was said last, then the end.
                    let _ = self.stream.shutdown(Shutdown::Write);
                    return Progress::Ended { peer, state };
                }
                Step::More if written && !closed => {}
                Step::More | Step::Done { .. } => return BROKEN,
            }
        }
    }

    fn take_frames(&mut self, own: &Own, floor: Floor<'_>, out: &mut Vec<u8>) -> Step {
        let mut at = 0;
        let step = loop {
            let (len, step) = self.handshake.feed(own, floor, &self.buffer[at..self.filled], out);
            at += len;
            if len == 0 || step != Step::More {
                break step;
            }
        };
        self.buffer.copy_within(at.min(self.filled)..self.filled, 0);
        self.filled -= at.min(self.filled);
        step
    }

    /// A few bytes into an empty socket: all of them, or it is broken.
    fn write(&mut self, bytes: &[u8]) -> bool {
        bytes.is_empty() || matches!(self.stream.write(bytes), Ok(n) if n == bytes.len())
    }
}
