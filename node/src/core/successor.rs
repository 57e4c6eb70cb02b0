//! How a daemon's successor goes on where its predecessor was killed: the state as bytes, and what is left to do.
//!
//! The core is a function of its inputs. The driver writes each input down before the core takes it, so a successor has the
//! state that its predecessor had; the descriptors were kept elsewhere, connections among them, so nobody who is bound has
//! to do anything. What was asked of the driver and not answered is asked again. Why: `docs/adr/0014-keeper-and-journal.md`.
//! Neighbours: `daemon::journal` (the inputs), `daemon::heritage` (the descriptors), `keeper`.

use std::collections::BTreeSet;

use abi::member::SegmentKind;
use abi::{DcId, Endpoint};

use super::effect::{Effect, Process};
use super::memory::{Owner, SegmentStage};
use super::state::ProxyStage;
use super::{ConnId, Core, Now};

/// What a state needs of the world: all else that was kept is nobody's.
pub struct Holdings {
    /// Members' connections, whose they are, and the numbers of their last requests.
    pub conns: Vec<(ConnId, Process, u64)>,
    /// The highest number that a connection had.
    pub conn_last: ConnId,
    pub dcs: BTreeSet<DcId>,
    pub segments: Vec<HeldSegment>,
    /// Endpoints that sleep in epoll.
    pub polls: BTreeSet<Endpoint>,
}

/// A segment of somebody's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeldSegment {
    pub memory: u32,
    pub segment: u32,
    pub kind: SegmentKind,
    pub len_bytes: u64,
    /// It was made, for certain.
    pub made: bool,
    pub sealed: bool,
}

impl Core {
    /// The whole state. Cost: a walk over all of it.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Every key and value is plain data: there is nothing in it that has no encoding.
        postcard::to_allocvec(self).expect("the state is plain data")
    }

    /// A state from its bytes, which are this program's own; `None`: they are not whole, or of another version.
    pub fn from_bytes(bytes: &[u8]) -> Option<Core> {
        postcard::from_bytes(bytes).ok()
    }

    pub fn holdings(&self) -> Holdings {
        let conns = self.conns.iter().map(|(conn, there)| (*conn, there.process, there.number));
        // Those of proxies, too, which go with them: an answer that is given again may speak of one.
        let segments = self.memories.iter().flat_map(|(memory, there)| {
            there.segments.iter().map(|(segment, s)| HeldSegment {
                memory: *memory,
                segment: *segment,
                kind: s.kind,
                len_bytes: s.len_bytes,
                made: s.stage != SegmentStage::Making,
                sealed: s.stage == SegmentStage::Sealed,
            })
        });
        Holdings {
            conns: conns.collect(),
            conn_last: self.conn_last,
            dcs: self.dcs.keys().copied().collect(),
            segments: segments.collect(),
            polls: self.locals.iter().filter(|(_, l)| l.polls).map(|(endpoint, _)| *endpoint).collect(),
        }
    }

    /// How many daemons this life of the node has had after the first.
    pub fn successions(&self) -> u32 {
        self.successions
    }

    /// Whether a request was not asked before. One that was is answered as it was then, if it was.
    pub(super) fn is_new(&mut self, conn: ConnId, number: u64, out: &mut Vec<Effect>) -> bool {
        let Some(asker) = self.conns.get_mut(&conn) else { return true };
        if number == 0 || asker.number != number {
            asker.number = number;
            return true;
        }
        if let Some((_, reply, fds)) = asker.answer.as_ref().filter(|(of, ..)| *of == number) {
            out.push(Effect::Reply { conn, reply: *reply, fds: fds.clone() });
        }
        false
    }

    /// Keeps what was answered: it may have to be said again.
    pub(super) fn note_answers(&mut self, effects: &[Effect]) {
        for effect in effects {
            if let Effect::Reply { conn, reply, fds } = effect
                && let Some(asker) = self.conns.get_mut(conn)
                && asker.number != 0
            {
                asker.answer = Some((asker.number, *reply, fds.clone()));
            }
        }
    }

    /// Asks the driver again for all that it may not have done, and has the proxies begin anew.
    pub(super) fn succeed(&mut self, now: Now, lost: &[u32], out: &mut Vec<Effect>) {
        self.successions += 1;
        let owners: Vec<Endpoint> = lost
            .iter()
            .filter_map(|memory| match self.memories.get(memory)?.owner {
                Owner::Endpoint(endpoint) => Some(endpoint),
                Owner::Proxy { .. } => None,
            })
            .collect();
        for endpoint in owners {
            self.end_local(now, endpoint, out);
        }
        self.lose_proxies(now, out);
        let mut making = Vec::new();
        let mut sealing = Vec::new();
        for (memory, there) in &self.memories {
            let of = |stage| there.segments.iter().filter(move |(_, s)| s.stage == stage);
            making.extend(of(SegmentStage::Making).map(|(i, s)| (*memory, *i, s.kind, s.len_bytes)));
            let segments: Vec<(u32, u64)> =
                of(SegmentStage::Sealing).map(|(i, s)| (*i, s.len_bytes)).collect();
            if !segments.is_empty() {
                sealing.push(Effect::Seal { memory: *memory, segments });
            }
        }
        for (memory, segment, kind, len_bytes) in making {
            out.push(Effect::MakeSegment { memory, segment, kind, len_bytes });
        }
        out.extend(sealing);
        let asked = self.inquiries.iter().map(|(ticket, inquiry)| (*ticket, inquiry.pid));
        let watched = self
            .tickets
            .iter()
            .filter_map(|(ticket, endpoint)| Some((*ticket, self.locals.get(endpoint)?.process.pid)));
        out.extend(asked.chain(watched).map(|(ticket, pid)| Effect::OpenProcess { ticket, pid }));
        let absent: Vec<DcId> = self.specs.keys().filter(|dc| !self.dcs.contains_key(dc)).copied().collect();
        for dc in absent {
            self.realize(now, dc, out);
        }
    }

    /// All of them died with the predecessor, those too of which it is not written down that they were started.
    fn lose_proxies(&mut self, now: Now, out: &mut Vec<Effect>) {
        let indices: Vec<u16> = self.proxies.keys().copied().collect();
        for proxy in indices {
            self.proxy_exited(now, proxy, out);
            // It did not fail: its successor need not wait.
            if let Some(there) = self.proxies.get_mut(&proxy)
                && matches!(there.stage, ProxyStage::Waiting { .. })
            {
                there.stage = ProxyStage::Waiting { at: now };
            }
        }
        self.tick_proxies(now, out);
    }

    /// A process that was watched before, looked for again; one that is not the same has ended.
    pub(super) fn process_found_again(
        &mut self,
        now: Now,
        ticket: u32,
        process: Option<Process>,
        out: &mut Vec<Effect>,
    ) {
        let Some(endpoint) = self.tickets.get(&ticket).copied() else {
            return out.push(Effect::CloseProcess { ticket });
        };
        let was = self.locals.get(&endpoint).map(|l| l.process);
        let same = |now: &Process| was.is_some_and(|w| (w.pid, w.start_time) == (now.pid, now.start_time));
        if !process.as_ref().is_some_and(same) {
            self.end_local(now, endpoint, out);
        }
    }
}
