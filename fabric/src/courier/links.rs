//! Sessions with other nodes: what a fabric reports of them, and what a node's death ends.

use abi::courier::LinkState;
use abi::{Incarnation, NodeId, side};

use super::{Courier, Output, PairIndex};
use crate::{Completion, Fabric};

impl Courier {
    /// A node was declared dead: nothing of this incarnation is delivered any more, and nothing leaves for it.
    pub fn node_dead(&mut self, node: NodeId, incarnation: Incarnation, fabric: &mut dyn Fabric) {
        fabric.fence(node, incarnation);
        for index in 0..self.pairs.len() as u32 {
            let index = PairIndex(index);
            let Some(pair) = self.pair_mut(index) else { continue };
            if pair.node == node && !pair.closed {
                pair.closed = true;
                pair.own.end(side::END_NODE_DEAD, 0);
                self.knocks.insert(index);
                self.forget_copies(index, fabric);
            }
        }
        // A session of its next incarnation may stand already, and its openings wait for their answers.
        let link = self.links.get_mut(&node).filter(|link| link.incarnation <= Some(incarnation));
        if let Some(link) = link {
            link.turns.clear();
            link.control.clear();
            link.opening.clear();
        }
        self.outputs.push(Output::NodeClosed { node });
        self.knock_all();
    }

    pub(super) fn on_completion(&mut self, completion: Completion, fabric: &mut dyn Fabric) {
        match completion {
            Completion::Sent { peer, token } => {
                self.completed(peer, token);
                self.copy_step_left(token, true);
            }
            Completion::Failed { peer, token } => {
                self.completed(peer, token);
                self.copy_step_left(token, false);
            }
            Completion::Received { peer, buffer, len_bytes } => {
                self.received(peer, buffer, len_bytes);
                self.spare.push(buffer);
            }
            Completion::Announced { peer, token, bulk_bytes, buffer, len_bytes } => {
                self.announced(peer, token, bulk_bytes, buffer, len_bytes, fabric);
                self.spare.push(buffer);
            }
            Completion::BulkReceived { peer, token, .. } => self.bulk_ended(peer, token, true),
            Completion::BulkFailed { peer, token, .. } => self.bulk_ended(peer, token, false),
            Completion::Up { peer, session, incarnation } => self.up(peer, session, incarnation),
            Completion::Lost { peer, session } => self.lost(peer, session),
            Completion::Trouble { peer, state } => {
                if state == LinkState::Fenced {
                    self.outputs.push(Output::Fenced { by: peer });
                }
                let incarnation = self.links.get(&peer).and_then(|l| l.incarnation).unwrap_or(Incarnation(0));
                self.outputs.push(Output::Link { node: peer, incarnation, state });
            }
        }
    }

    fn up(&mut self, node: NodeId, session: u64, incarnation: Incarnation) {
        let Some(link) = self.links.get_mut(&node) else { return };
        link.session = Some(session);
        link.complained = false;
        link.incarnation = Some(incarnation);
        link.directory.clear();
        link.opening.clear();
        self.totals.sessions += 1;
        self.outputs.push(Output::Link { node, incarnation, state: LinkState::Up });
        for index in 0..self.pairs.len() as u32 {
            let index = PairIndex(index);
            if let Some(pair) = self.pair_mut(index)
                && pair.node == node
            {
                pair.new_session();
                self.mark_dirty(index);
            }
        }
    }

    fn lost(&mut self, node: NodeId, session: u64) {
        let Some(link) = self.links.get_mut(&node) else { return };
        if link.session != Some(session) {
            return;
        }
        link.session = None;
        link.control.clear();
        let incarnation = link.incarnation.unwrap_or(Incarnation(0));
        // One that was accepted when this was already on its way is still to be given back.
        self.waiting.retain(|w| w.node != node || w.is_coming());
        for pair in self.pairs.iter_mut().flatten().filter(|p| p.node == node) {
            pair.opened = false;
        }
        self.copies_lost(node);
        self.outputs.push(Output::Link { node, incarnation, state: LinkState::Cut });
    }
}
