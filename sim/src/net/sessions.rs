//! How sessions come and go: cuts, lost frames, restarts, nodes that were declared dead.

use std::time::Duration;

use abi::courier::LinkState;
use abi::{Incarnation, NodeId};
use fabric::Completion;

use super::{Due, Net, Port, ends};

impl Net {
    /// Ends the session between two nodes and lets none come about.
    pub fn cut(&mut self, one: NodeId, other: NodeId) {
        if let Some(link) = self.links.get_mut(&ends(one, other)) {
            link.cut = true;
        }
        self.end_session(one, other);
    }

    pub fn heal(&mut self, one: NodeId, other: NodeId) {
        if let Some(link) = self.links.get_mut(&ends(one, other)).filter(|l| l.cut) {
            link.cut = false;
            let after = self.dice.us(100, 20_000);
            self.at(after, Due::Try { one, other });
        }
    }

    /// Ends the session between two nodes; another comes about after a while.
    pub fn flap(&mut self, one: NodeId, other: NodeId) {
        self.end_session(one, other);
    }

    /// A new life of a node's end; the earlier one acts no more.
    pub fn enter(&mut self, node: NodeId, incarnation: Incarnation) -> u64 {
        self.leave(node);
        let life = self.port(node).life + 1;
        *self.port(node) = Port::new(life, incarnation, true);
        let others: Vec<NodeId> = self.ports.keys().copied().filter(|id| *id != node).collect();
        for other in others {
            let after = self.dice.us(100, 5_000);
            self.at(after, Due::Try { one: node, other });
        }
        life
    }

    /// A process is gone: the others lose their sessions with it.
    pub fn leave(&mut self, node: NodeId) {
        let others: Vec<NodeId> = self.ports.keys().copied().filter(|id| *id != node).collect();
        for other in others {
            self.end_session(node, other);
        }
        let port = self.port(node);
        *port = Port::new(port.life + 1, port.incarnation, false);
    }

    pub fn fence(&mut self, at: NodeId, peer: NodeId, incarnation: Incarnation) {
        let fenced = self.port(at).fenced.entry(peer).or_insert(incarnation);
        *fenced = (*fenced).max(incarnation);
        if self.is_fenced(at, peer) {
            self.end_session(at, peer);
            // Whoever was fenced is told when it tries, which it does at once.
            self.at(Duration::from_millis(5), Due::Try { one: at, other: peer });
        }
    }

    fn is_fenced(&self, by: NodeId, node: NodeId) -> bool {
        let fenced = self.ports.get(&by).and_then(|p| p.fenced.get(&node));
        fenced.is_some_and(|fenced| self.ports[&node].incarnation <= *fenced)
    }

    pub(super) fn try_up(&mut self, one: NodeId, other: NodeId) {
        let link = &self.links[&ends(one, other)];
        let present = self.ports[&one].present && self.ports[&other].present;
        if !present || link.cut || link.session.is_some() || self.is_way_cut(one, other) {
            return;
        }
        if link.quiet_until > self.now {
            let after = link.quiet_until - self.now;
            return self.at(after, Due::Try { one, other });
        }
        let mut fenced = false;
        for (by, at) in [(one, other), (other, one)] {
            if self.is_fenced(by, at) {
                fenced = true;
                self.port(at).tell(Completion::Trouble { peer: by, state: LinkState::Fenced });
            }
        }
        if fenced {
            return;
        }
        self.sessions += 1;
        self.counts.sessions += 1;
        let session = self.sessions;
        if let Some(link) = self.links.get_mut(&ends(one, other)) {
            link.session = Some(session);
        }
        for (at, peer) in [(one, other), (other, one)] {
            let incarnation = self.ports[&peer].incarnation;
            self.port(at).tell(Completion::Up { peer, session, incarnation });
            let way = self.way(at, peer);
            way.departs = Duration::ZERO;
        }
    }

    /// Gives all back that was between two nodes, then tells both, each in its own time; tries again later.
    pub(super) fn end_session(&mut self, one: NodeId, other: NodeId) {
        let Some(session) = self.links.get_mut(&ends(one, other)).and_then(|l| l.session.take()) else {
            return;
        };
        let mut told = [Vec::new(), Vec::new()];
        for (n, from, to) in [(0, one, other), (1, other, one)] {
            let way = self.way(from, to);
            way.arrived.clear();
            way.early.clear();
            way.stuck.clear();
            (way.flying, way.held, way.sent, way.came) = (0, 0, 0, 0);
            let (posted, bulk) = (std::mem::take(&mut way.posted), std::mem::take(&mut way.bulk));
            for post in posted.into_iter().filter(|p| p.bulk.is_none()) {
                self.port(from).regions.release_all(&post.pieces);
                told[n].push(Completion::Failed { peer: to, token: post.token });
            }
            for (serial, bulk) in bulk {
                self.port(from).regions.release_all(&bulk.pieces);
                told[n].push(Completion::Failed { peer: to, token: bulk.token });
                if let Some(into) = bulk.into {
                    self.port(to).regions.release(into);
                    told[1 - n].push(Completion::BulkFailed { peer: from, token: serial, into });
                }
            }
        }
        for ((at, peer), mut what) in [(one, other), (other, one)].into_iter().zip(told) {
            what.push(Completion::Lost { peer, session });
            let life = self.port(at).life;
            let after = self.dice.us(0, 2_000);
            let told_at = self.now + after;
            if let Some(link) = self.links.get_mut(&ends(one, other)) {
                link.quiet_until = link.quiet_until.max(told_at);
            }
            self.at(after, Due::Tell { node: at, life, what });
        }
        let after = self.dice.us(3_000, 60_000);
        self.at(after, Due::Try { one, other });
    }
}
