//! What the TCP fabric tells: sessions that begin, what two ends agree on, what comes by TCP, and ends.

use std::time::Instant;

use abi::{Incarnation, NodeId};
use fabric::{Completion, Desc, Fabric, Piece};

use super::{Agreeing, Came, DRAIN_MAX, OFFER_RDMA, Phase, RdmaFabric};
use crate::buffers::Name;
use crate::note::Note;
use crate::session::{Ends, Session};

impl RdmaFabric {
    pub(super) fn hear(&mut self, completion: Completion) {
        match completion {
            Completion::Up { peer, session, incarnation } => self.begin(peer, session, incarnation),
            Completion::Lost { peer, session } => self.lose(peer, session),
            Completion::Trouble { .. } => self.ready.push_back(completion),
            Completion::Sent { peer, .. } | Completion::Failed { peer, .. } => {
                let link = self.links.entry(peer).or_default();
                if link.notes > 0 {
                    link.notes -= 1;
                } else {
                    self.ready.push_back(completion);
                }
            }
            Completion::Received { peer, buffer, len_bytes } => self.message_by_tcp(peer, buffer, len_bytes),
            Completion::Announced { peer, token, bulk_bytes, buffer, len_bytes } => {
                let Phase::Tcp { session } = self.links.entry(peer).or_default().phase else {
                    self.tcp.post_recv(&[buffer]);
                    return self.tcp.end_session(peer);
                };
                let announced = Some((token, bulk_bytes));
                self.came.push_back(Came::Tcp { peer, session, buffer, len_bytes, announced });
            }
            Completion::BulkReceived { peer, token, .. } | Completion::BulkFailed { peer, token, .. } => {
                let link = self.links.entry(peer).or_default();
                let Some((outer, into)) = link.accepted.remove(&token) else { return };
                link.names.remove(&outer);
                self.ready.push_back(match completion {
                    Completion::BulkReceived { .. } => Completion::BulkReceived { peer, token: outer, into },
                    _ => Completion::BulkFailed { peer, token: outer, into },
                });
            }
        }
    }

    fn message_by_tcp(&mut self, peer: NodeId, buffer: Piece, len_bytes: u32) {
        match self.links.entry(peer).or_default().phase {
            Phase::Tcp { session } => {
                self.came.push_back(Came::Tcp { peer, session, buffer, len_bytes, announced: None });
            }
            Phase::Down => drop(self.tcp.post_recv(&[buffer])),
            Phase::Agreeing(_) | Phase::Rdma(_) => {
                let mut bytes = vec![0; len_bytes as usize];
                let read = self.area.read_into(buffer.offset_bytes as usize, &mut bytes);
                self.tcp.post_recv(&[buffer]);
                let note = read.map_err(|_| ()).and_then(|()| Note::from_bytes(&bytes).map_err(|_| ()));
                match note {
                    Ok(note) => self.noted(peer, note),
                    Err(()) => self.quarrel(peer, "a note that is none"),
                }
            }
        }
    }

    fn quarrel(&mut self, peer: NodeId, why: &str) {
        tracing::warn!(peer = peer.0, why, "the peer breaks the protocol");
        self.tcp.end_session(peer);
    }

    fn say(&mut self, peer: NodeId, note: Note) {
        let head = note.to_bytes();
        let desc = Desc { token: 0, head: &head, pieces: &[], bulk: false, flow: 0 };
        // A session that takes nothing any more is about to be lost.
        let taken = self.tcp.post_send(peer, &[desc]);
        self.links.entry(peer).or_default().notes += taken;
    }

    /// A session of TCP stands.
    fn begin(&mut self, peer: NodeId, session: u64, incarnation: Incarnation) {
        let both = self.tcp.agreed(peer, session) & OFFER_RDMA != 0;
        let (Ok(device), true) = (&self.device, both) else {
            let why = if both { "no device here" } else { "no device at one end" };
            tracing::info!(peer = peer.0, why, "a session by TCP");
            self.links.entry(peer).or_default().phase = Phase::Tcp { session };
            return self.ready.push_back(Completion::Up { peer, session, incarnation });
        };
        self.sessions = self.sessions.wrapping_add(1);
        let seed = self.sessions;
        let ends = self.buffers.join(device).and_then(|(queue, generation)| {
            let ends = Ends::new(device, &queue, generation, seed);
            ends.inspect_err(|_| self.buffers.leave(generation))
        });
        if let Err(why) = &ends {
            tracing::warn!(peer = peer.0, %why, "no pair for a session: it stays one of TCP");
        }
        let ends = ends.ok();
        let hello = Note::Hello(ends.as_ref().map(|ends| ends.own));
        let pairs: Vec<u32> = ends.iter().flat_map(|ends| ends.own).map(|end| end.number).collect();
        for pair in &pairs {
            self.by_pair.insert(*pair, peer);
        }
        let (said, heard, early) = (None, None, Vec::new());
        let agreeing = Agreeing { session, incarnation, ends, connected: None, said, heard, pairs, early };
        self.links.entry(peer).or_default().phase = Phase::Agreeing(Box::new(agreeing));
        self.say(peer, hello);
    }

    fn noted(&mut self, peer: NodeId, note: Note) {
        let Ok(device) = &self.device else { return };
        let Phase::Agreeing(agreeing) = &mut self.links.entry(peer).or_default().phase else {
            return self.quarrel(peer, "a note when all is agreed");
        };
        match note {
            Note::Hello(_) if agreeing.said.is_some() => return self.quarrel(peer, "two hellos"),
            Note::Verdict(_) if agreeing.heard.is_some() => return self.quarrel(peer, "two verdicts"),
            Note::Hello(other) => {
                let generation = agreeing.ends.as_ref().map(|ends| ends.generation);
                if let Some((ends, other)) = agreeing.ends.take().zip(other) {
                    match ends.connect(device, &other) {
                        Ok(connected) => agreeing.connected = Some(connected),
                        Err(why) => {
                            tracing::warn!(peer = peer.0, %why, "no pair to a node: the session stays one of TCP");
                        }
                    }
                }
                let yes = agreeing.connected.is_some();
                agreeing.said = Some(yes);
                if let Some(generation) = generation.filter(|_| !yes) {
                    self.buffers.leave(generation);
                }
                self.say(peer, Note::Verdict(yes));
            }
            Note::Verdict(yes) => agreeing.heard = Some(yes),
        }
        self.conclude(peer);
    }

    /// Once both have said so, a session is one of RDMA or of TCP.
    fn conclude(&mut self, peer: NodeId) {
        let link = self.links.entry(peer).or_default();
        let Phase::Agreeing(agreeing) = &mut link.phase else { return };
        let (Some(said), Some(heard)) = (agreeing.said, agreeing.heard) else { return };
        let (session, incarnation) = (agreeing.session, agreeing.incarnation);
        let (pairs, early) = (std::mem::take(&mut agreeing.pairs), std::mem::take(&mut agreeing.early));
        match agreeing.connected.take() {
            Some(connected) if said && heard => {
                link.phase = Phase::Rdma(Box::new(Session::new(session, connected)));
                let came = |(buffer, len_bytes)| Came::Device { peer, session, buffer, len_bytes };
                self.came.extend(early.into_iter().map(came));
            }
            connected => {
                let generation = connected.as_ref().map(|connected| connected.generation);
                link.phase = Phase::Tcp { session };
                drop(connected);
                self.forget_pairs(&pairs, &early);
                generation.into_iter().for_each(|of| self.buffers.leave(of));
            }
        }
        match (said, heard) {
            (true, true) => tracing::info!(peer = peer.0, "a session by RDMA"),
            (false, _) => tracing::info!(peer = peer.0, "a session by TCP: no pair here"),
            (true, false) => tracing::info!(peer = peer.0, "a session by TCP: no pair there"),
        }
        self.ready.push_back(Completion::Up { peer, session, incarnation });
    }

    /// Pairs that are gone, and what came by them.
    fn forget_pairs(&mut self, pairs: &[u32], came: &[(Name, u32)]) {
        for pair in pairs {
            self.by_pair.remove(pair);
        }
        for (buffer, _) in came {
            self.buffers.lend(*buffer);
        }
    }

    /// The session of TCP is gone, and what was by RDMA with it: all that was lent comes back, then it is told.
    fn lose(&mut self, peer: NodeId, session: u64) {
        let link = self.links.entry(peer).or_default();
        link.notes = 0;
        link.told = false;
        link.names.clear();
        match std::mem::take(&mut link.phase) {
            Phase::Down => {}
            // Nobody was told of it.
            Phase::Agreeing(agreeing) => {
                let Agreeing { ends, connected, pairs, early, .. } = *agreeing;
                let of = ends.as_ref().map(|ends| ends.generation);
                let generation = of.or(connected.as_ref().map(|ends| ends.generation));
                drop((ends, connected));
                self.forget_pairs(&pairs, &early);
                generation.into_iter().for_each(|of| self.buffers.leave(of));
            }
            Phase::Tcp { .. } => {
                self.drop_messages(peer, session);
                self.ready.push_back(Completion::Lost { peer, session });
            }
            Phase::Rdma(ended) => {
                self.end(peer, ended);
                self.ready.push_back(Completion::Lost { peer, session });
            }
        }
    }

    fn end(&mut self, peer: NodeId, session: Box<Session>) {
        if let Some(why) = &session.failed {
            tracing::warn!(peer = peer.0, why, "a session of RDMA has failed");
        }
        session.end_pairs();
        let (number, generation, pairs) = (session.number, session.generation, session.pairs());
        // What comes now is of other pairs too.
        self.links.entry(peer).or_default().phase = Phase::Rdma(session);
        let until = Instant::now() + DRAIN_MAX;
        while !self.is_drained(peer) && Instant::now() < until {
            if self.take_completions() == 0 {
                std::thread::yield_now();
            }
        }
        let Phase::Rdma(session) = std::mem::take(&mut self.links.entry(peer).or_default().phase) else {
            return;
        };
        self.forget_pairs(&pairs, &[]);
        self.drop_messages(peer, number);
        let Session { outgoing, incoming, .. } = *session;
        // The pairs are destroyed: from here on no device touches what is given back.
        self.buffers.leave(generation);
        for outgoing in outgoing.into_values() {
            self.release_all(outgoing.pieces.as_slice());
            self.ready.push_back(Completion::Failed { peer, token: outgoing.token });
        }
        for incoming in incoming.into_values() {
            if let Some(into) = incoming.into {
                self.release_all(&[into]);
                self.ready.push_back(Completion::BulkFailed { peer, token: incoming.token, into });
            }
        }
    }

    fn is_drained(&self, peer: NodeId) -> bool {
        match self.links.get(&peer).map(|link| &link.phase) {
            Some(Phase::Rdma(session)) => session.is_drained(),
            _ => true,
        }
    }

    /// What came by a session that is lost and was not given on.
    pub(super) fn drop_messages(&mut self, peer: NodeId, number: u64) {
        for came in std::mem::take(&mut self.came) {
            match came {
                Came::Device { peer: of, session, buffer, .. } if (of, session) == (peer, number) => {
                    self.buffers.lend(buffer);
                }
                Came::Tcp { peer: of, session, buffer, .. } if (of, session) == (peer, number) => {
                    self.tcp.post_recv(&[buffer]);
                }
                other => self.came.push_back(other),
            }
        }
    }
}
