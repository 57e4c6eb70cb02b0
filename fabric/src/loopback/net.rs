//! The core of the loopback: nodes, links and sessions, without a lock, a clock or a descriptor.
//!
//! Key type: [`Net`]. Neighbours: `ways` carries messages, `bulk` what was announced.

use std::collections::VecDeque;

use abi::courier::LinkState;
use abi::limits::{FRAME_BYTES_MAX, LOAN_BYTES_MAX};
use abi::{Incarnation, NodeId};

use super::Mode;
use super::ways::Way;
use crate::regions::Regions;
use crate::{Armed, Caps, Completion, Piece};

/// One life of a node.
pub(super) struct Node {
    pub id: NodeId,
    pub incarnation: Incarnation,
    /// Changes with each restart: an end of an earlier life acts no more.
    pub life: u32,
    present: bool,
    pub regions: Regions,
    /// Posted buffers.
    pub free: VecDeque<Piece>,
    /// What the next polls tell.
    pub ready: VecDeque<Completion>,
    /// Bulk completions of a one-sided wire, told last first.
    pub late: Vec<Completion>,
    /// The session with each other node, as far as this one's driver has been told of it.
    told: Vec<Option<u64>>,
    /// Descriptors posted to each other node whose completion the driver has not been told.
    pub posted: Vec<usize>,
    /// The latest incarnation of each other node that was declared dead here.
    fenced: Vec<Option<Incarnation>>,
    /// The driver may sleep: ring when there is something to do.
    armed: bool,
    /// Rung since the last poll.
    pub told_to_ring: bool,
    /// Whose messages are looked at first, in turn.
    pub turn: usize,
}

impl Node {
    fn new(id: NodeId, incarnation: Incarnation, life: u32, nodes: usize) -> Node {
        Node {
            id,
            incarnation,
            life,
            present: true,
            regions: Regions::new(),
            free: VecDeque::new(),
            ready: VecDeque::new(),
            late: Vec::new(),
            told: vec![None; nodes],
            posted: vec![0; nodes],
            fenced: vec![None; nodes],
            armed: false,
            told_to_ring: false,
            turn: 0,
        }
    }

    pub fn tell_late(&mut self) {
        while let Some(completion) = self.late.pop() {
            self.ready.push_back(completion);
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Link {
    cut: bool,
    session: Option<u64>,
}

/// The whole network.
pub(super) struct Net {
    pub mode: Mode,
    pub nodes: Vec<Node>,
    links: Vec<Link>,
    /// One direction each, at `from * nodes + to`.
    pub ways: Vec<Way>,
    sessions: u64,
    /// Names of announced bulk messages; none is used twice.
    pub serials: u64,
    /// Byte buffers to use again.
    pub spare: Vec<Vec<u8>>,
    /// Nodes whose bell must be rung.
    pub rung: Vec<usize>,
}

impl Net {
    pub fn new(ids: &[NodeId], mode: Mode) -> Net {
        let count = ids.len();
        assert!(ids.iter().enumerate().all(|(i, id)| !ids[..i].contains(id)), "a node is named twice");
        let mut net = Net {
            mode,
            nodes: ids.iter().map(|id| Node::new(*id, Incarnation(1), 0, count)).collect(),
            links: vec![Link::default(); count * count],
            ways: (0..count * count).map(|_| Way::default()).collect(),
            sessions: 0,
            serials: 0,
            spare: Vec::new(),
            rung: Vec::new(),
        };
        for one in 0..count {
            (one + 1..count).for_each(|other| net.try_up(one, other));
        }
        net
    }

    pub fn caps(&self) -> Caps {
        let one_sided = self.mode == Mode::OneSided;
        Caps {
            message_bytes_max: FRAME_BYTES_MAX,
            bulk_bytes_max: LOAN_BYTES_MAX as u64,
            posted_max: if one_sided { 32 } else { 256 },
            zero_copy: one_sided,
            bulk_in_place: one_sided,
        }
    }

    /// Where a node stands.
    pub fn place(&self, node: NodeId) -> usize {
        self.find(node).expect("a node of this network")
    }

    pub fn find(&self, node: NodeId) -> Option<usize> {
        self.nodes.iter().position(|n| n.id == node)
    }

    pub fn way(&mut self, from: usize, to: usize) -> &mut Way {
        &mut self.ways[from * self.nodes.len() + to]
    }

    /// Has a node's driver look, should it sleep.
    pub fn wake(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if std::mem::take(&mut node.armed) {
            node.told_to_ring = true;
            self.rung.push(at);
        }
    }

    pub fn tell(&mut self, at: usize, completion: Completion) {
        self.nodes[at].ready.push_back(completion);
        self.wake(at);
    }

    /// The driver of `from` knows that it has a session with `to`, and it still stands.
    pub fn may_send(&self, from: usize, to: usize) -> bool {
        let session = self.links[self.link(from, to)].session;
        session.is_some() && self.nodes[from].told[to] == session
    }

    pub fn post_recv(&mut self, at: usize, free: &[Piece]) -> usize {
        let least = self.caps().message_bytes_max;
        for piece in free {
            assert!(piece.len_bytes >= least, "a posted buffer holds any message");
            self.nodes[at].regions.hold(*piece);
            self.nodes[at].free.push_back(*piece);
        }
        free.len()
    }

    pub fn poll(&mut self, at: usize, done: &mut Vec<Completion>) {
        self.nodes[at].armed = false;
        self.push_bulk(at);
        self.push_messages(at);
        self.take_messages(at);
        self.nodes[at].tell_late();
        let room = (done.capacity() - done.len()).max(1);
        for _ in 0..room {
            let Some(completion) = self.nodes[at].ready.pop_front() else { break };
            match completion {
                Completion::Up { peer, session, .. } => {
                    let peer = self.place(peer);
                    self.nodes[at].told[peer] = Some(session);
                }
                Completion::Sent { peer, .. } | Completion::Failed { peer, .. } => {
                    let peer = self.place(peer);
                    self.nodes[at].posted[peer] -= 1;
                }
                _ => {}
            }
            done.push(completion);
        }
    }

    pub fn arm(&mut self, at: usize) -> Armed {
        let node = &self.nodes[at];
        let others = 0..self.nodes.len();
        let told = !node.ready.is_empty() || !node.late.is_empty();
        let may_take = !node.free.is_empty() && others.clone().any(|from| self.has_message(from, at));
        if told || may_take || others.clone().any(|to| self.has_push(at, to)) {
            return Armed::MoreToDo;
        }
        self.nodes[at].armed = true;
        Armed::Armed
    }

    pub fn fence(&mut self, at: usize, peer: NodeId, incarnation: Incarnation) {
        let Some(other) = self.find(peer) else { return };
        let fenced = &mut self.nodes[at].fenced[other];
        *fenced = (*fenced).max(Some(incarnation));
        if self.is_fenced(at, other) && self.links[self.link(at, other)].session.is_some() {
            self.end_session(at, other);
            self.try_up(at, other);
        }
    }

    pub fn cut(&mut self, one: NodeId, other: NodeId) {
        let (one, other) = (self.place(one), self.place(other));
        let link = self.link(one, other);
        self.links[link].cut = true;
        self.end_session(one, other);
    }

    pub fn heal(&mut self, one: NodeId, other: NodeId) {
        let (one, other) = (self.place(one), self.place(other));
        let link = self.link(one, other);
        self.links[link].cut = false;
        self.try_up(one, other);
    }

    /// The end of a life: peers see `Lost`, this node sees nothing any more.
    pub fn leave(&mut self, at: usize) {
        (0..self.nodes.len()).for_each(|other| self.end_session(at, other));
        let node = &mut self.nodes[at];
        *node = Node::new(node.id, node.incarnation, node.life, node.told.len());
        node.present = false;
    }

    pub fn restart(&mut self, id: NodeId) -> (usize, u32) {
        let at = self.place(id);
        self.leave(at);
        let old = &self.nodes[at];
        let (incarnation, life) = (Incarnation(old.incarnation.0 + 1), old.life + 1);
        self.nodes[at] = Node::new(id, incarnation, life, self.nodes.len());
        (0..self.nodes.len()).for_each(|other| self.try_up(at, other));
        (at, life)
    }

    fn link(&self, one: usize, other: usize) -> usize {
        one.min(other) * self.nodes.len() + one.max(other)
    }

    /// `by` has declared the present life of `at` dead.
    fn is_fenced(&self, by: usize, at: usize) -> bool {
        self.nodes[by].fenced[at].is_some_and(|fenced| self.nodes[at].incarnation <= fenced)
    }

    fn try_up(&mut self, one: usize, other: usize) {
        let link = self.link(one, other);
        let may = self.nodes[one].present && self.nodes[other].present && !self.links[link].cut;
        if one == other || !may || self.links[link].session.is_some() {
            return;
        }
        let mut fenced = false;
        for (by, at) in [(one, other), (other, one)] {
            if self.is_fenced(by, at) {
                fenced = true;
                self.tell(at, Completion::Trouble { peer: self.nodes[by].id, state: LinkState::Fenced });
            }
        }
        if fenced {
            return;
        }
        self.sessions += 1;
        let session = self.sessions;
        self.links[link].session = Some(session);
        for (at, to) in [(one, other), (other, one)] {
            let Node { id: peer, incarnation, .. } = self.nodes[to];
            self.tell(at, Completion::Up { peer, session, incarnation });
        }
    }

    /// Gives all back that was on its way between two nodes, then tells both.
    fn end_session(&mut self, one: usize, other: usize) {
        let link = self.link(one, other);
        let Some(session) = self.links[link].session.take() else { return };
        for (from, to) in [(one, other), (other, one)] {
            self.nodes[from].tell_late();
            self.drop_messages(from, to);
            self.drop_bulk(from, to);
        }
        for (at, to) in [(one, other), (other, one)] {
            self.nodes[at].told[to] = None;
            self.tell(at, Completion::Lost { peer: self.nodes[to].id, session });
        }
    }
}
