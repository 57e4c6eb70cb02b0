//! An authenticated connection to a peer: both halves, and when something was last heard and said.
//!
//! Key type: [`Session`]. Neighbours: `inbox`, `outbox`; `fabric` decides when it begins and ends.

use std::net::TcpStream;

use abi::wire::Kind;
use abi::{Incarnation, NodeId};
use fabric::regions::Pieces;
use fabric::{Completion, Desc, Piece, Time};
use shm::os::events::{Epoll, Readiness};
use shm::os::pieces::{PIECES_MAX, Piece as Vector, StreamError, send_pieces};

use crate::commons::Commons;
use crate::inbox::{Ended, Inbox};
use crate::outbox::Outbox;
use crate::pack::OFFER_LZ4;

/// Calls of `sendmsg` in one turn, so that one peer's bulk does not keep the others waiting.
const WRITES_MAX: usize = 8;

pub struct Session {
    stream: TcpStream,
    peer: NodeId,
    pub number: u64,
    pub incarnation: Incarnation,
    /// What both ends can do.
    pub offers: u64,
    /// The driver knows of it: what it posts from now on is meant for it.
    pub told: bool,
    /// To be ended at the next poll.
    pub ended: Option<Ended>,
    pub since: Time,
    pub heard: Time,
    pub said: Time,
    inbox: Inbox,
    outbox: Outbox,
    interest: Readiness,
}

impl Session {
    pub fn new(
        stream: TcpStream,
        peer: NodeId,
        incarnation: Incarnation,
        number: u64,
        rest: &[u8],
        now: Time,
        offers: u64,
    ) -> Session {
        let packs = offers & OFFER_LZ4 != 0;
        Session {
            stream,
            peer,
            number,
            incarnation,
            offers,
            told: false,
            ended: None,
            since: now,
            heard: now,
            said: now,
            inbox: Inbox::new(rest, packs),
            outbox: Outbox::new(packs),
            interest: Readiness::READ,
        }
    }

    /// Both ends have offered to pack.
    pub fn packs(&self) -> bool {
        self.outbox.packs()
    }

    /// A message could not be taken for want of a buffer.
    pub fn is_stalled(&self) -> bool {
        self.inbox.stalled
    }

    /// The descriptor is in error; if nothing reads it at present, nothing else will tell.
    pub fn hung_up(&mut self) {
        if !self.interest.readable {
            self.ended = Some(Ended::Closed);
        }
    }

    /// Whether a stalled session can go on.
    pub fn may_resume(&self, commons: &Commons) -> bool {
        self.inbox.stalled && self.ended.is_none() && !commons.free.is_empty() && !self.outbox.is_overfull()
    }

    /// Takes what stands in the buffer, after a stall or a handshake.
    pub fn resume(&mut self, commons: &mut Commons) {
        commons.peer = self.peer;
        self.heard = commons.now;
        let parsed = self.inbox.parse(&mut self.outbox, commons);
        self.end_with(parsed);
        self.flush(commons);
    }

    pub fn receive(&mut self, commons: &mut Commons) {
        if self.ended.is_some() {
            return;
        }
        commons.peer = self.peer;
        match self.inbox.receive(&self.stream, &mut self.outbox, commons) {
            Ok(true) => self.heard = commons.now,
            Ok(false) => {}
            Err(ended) => self.ended = Some(ended),
        }
        if self.outbox.has_unsent() {
            self.flush(commons);
        }
    }

    fn end_with(&mut self, result: Result<(), Ended>) {
        if let Err(ended) = result {
            self.ended = Some(ended);
        }
    }

    pub fn post(&mut self, desc: &Desc<'_>, pieces: Pieces, commons: &mut Commons) -> bool {
        self.outbox.post(desc, pieces, commons)
    }

    pub fn heartbeat(&mut self, commons: &mut Commons) {
        self.said = commons.now;
        if !self.outbox.has_unsent() {
            self.outbox.control(Kind::Heartbeat, 0);
            self.flush(commons);
        }
    }

    pub fn accept(&mut self, token: u64, into: Piece, commons: &mut Commons) -> bool {
        commons.peer = self.peer;
        let known = self.inbox.accept(token, into, &mut self.outbox, commons);
        self.flush(commons);
        known
    }

    pub fn refuse(&mut self, token: u64, commons: &mut Commons) {
        self.inbox.refuse(token, &mut self.outbox);
        self.flush(commons);
    }

    /// Writes what the kernel takes, within the turn's measure.
    pub fn flush(&mut self, commons: &mut Commons) {
        commons.peer = self.peer;
        for _ in 0..WRITES_MAX {
            self.outbox.line_up(commons);
            let mut vectors = [Vector::Bytes(&[]); PIECES_MAX];
            let (count, bytes) = self.outbox.gather(&commons.regions, &mut vectors);
            if count == 0 || self.ended.is_some() {
                // Frames without a byte do not exist, so nothing is lined up.
                return;
            }
            match send_pieces(&self.stream, &vectors[..count], false) {
                Ok(written) => {
                    self.said = commons.now;
                    self.outbox.written(written, commons);
                    if written < bytes {
                        return;
                    }
                }
                Err(StreamError::WouldBlock) => return,
                Err(StreamError::Closed(_) | StreamError::OutOfRange | StreamError::Refused(_)) => {
                    self.ended = Some(Ended::Closed);
                    return;
                }
            }
        }
    }

    /// Tells the epoll what more this session waits for. What it waits for no more is left, as long as nobody sleeps:
    /// events for nothing are cheaper than a system call at every change.
    pub fn watch(&mut self, epoll: &Epoll, token: u64) {
        let Readiness { readable, writable, .. } = self.interest;
        let (read, write) = (!self.inbox.stalled, self.outbox.has_unsent());
        self.tell(epoll, token, readable || read, writable || write);
    }

    /// Before sleeping: tells the epoll exactly what this session waits for.
    pub fn watch_exactly(&mut self, epoll: &Epoll, token: u64) {
        self.tell(epoll, token, !self.inbox.stalled, self.outbox.has_unsent());
    }

    fn tell(&mut self, epoll: &Epoll, token: u64, readable: bool, writable: bool) {
        let interest = Readiness { readable, writable, hung_up: false };
        if interest == self.interest {
            return;
        }
        self.interest = interest;
        if epoll.modify(&self.stream, token, interest).is_err() {
            self.ended = Some(Ended::Closed);
        }
    }

    /// Waits for more than reading, or for less.
    pub fn is_watched_loosely(&self) -> bool {
        self.interest != Readiness::READ || self.inbox.stalled
    }

    /// Gives everything back, then tells that it is lost.
    pub fn end(mut self, commons: &mut Commons) {
        commons.peer = self.peer;
        self.outbox.fail_all(commons);
        self.inbox.fail_all(commons);
        commons.ready.push_back(Completion::Lost { peer: self.peer, session: self.number });
    }
}
