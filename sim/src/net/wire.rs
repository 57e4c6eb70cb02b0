//! The wire beneath a session: packets are delayed, lost, doubled and overtake each other, and a stream makes of that what
//! a stream does: it sends again, drops what it has, and hands out in order. A way that is cut keeps what it carries.

use std::time::Duration;

use abi::NodeId;

use super::{Due, Frame, Net};

/// A packet that was lost is sent again after this, in milliseconds.
const AGAIN_MS: (u64, u64) = (1, 12);
/// Whoever hears nothing on a session takes it for lost after this, in milliseconds.
const DEAF_MS: (u64, u64) = (20, 150);
const MOVE_AGAIN: Duration = Duration::from_millis(5);

impl Net {
    /// A frame is on its way.
    pub(super) fn fly(&mut self, from: NodeId, to: NodeId, session: u64, frame: Frame) {
        let temper = self.temper;
        let way = self.way(from, to);
        way.flying += 1;
        let number = way.sent;
        way.sent += 1;
        if way.cut {
            return way.stuck.push((number, frame));
        }
        let mut after = self.latency();
        if self.dice.one_in(temper.resend_one_in) {
            self.counts.resent += 1;
            after += self.dice.ms(AGAIN_MS.0, AGAIN_MS.1);
        }
        if self.dice.one_in(temper.double_one_in) {
            self.counts.doubled += 1;
            let later = after + self.latency();
            let frame = Frame { bytes: frame.bytes.clone(), bulk: frame.bulk };
            self.at(later, Due::Arrive { from, to, session, number, frame });
        }
        self.at(after, Due::Arrive { from, to, session, number, frame });
    }

    /// A packet arrives: what is next in order is handed on, what came before is dropped.
    pub(super) fn arrive(&mut self, from: NodeId, to: NodeId, number: u64, frame: Frame) {
        let way = self.way(from, to);
        if number < way.came || way.early.contains_key(&number) {
            return;
        }
        let overtakes = number > way.came;
        way.early.insert(number, frame);
        while let Some(next) = way.early.remove(&way.came) {
            way.came += 1;
            way.flying -= 1;
            way.arrived.push_back(next);
        }
        self.counts.overtook += u64::from(overtakes);
        self.deliver(to);
    }

    /// Nothing gets from one node to the other any more; the other way is as it was. Its session ends when they notice.
    pub fn cut_way(&mut self, from: NodeId, to: NodeId) {
        self.way(from, to).cut = true;
        let after = self.dice.ms(DEAF_MS.0, DEAF_MS.1);
        self.at(after, Due::Deaf { from, to });
    }

    /// What was kept arrives, if its session stands.
    pub fn heal_way(&mut self, from: NodeId, to: NodeId) {
        let way = self.way(from, to);
        if !std::mem::take(&mut way.cut) {
            return;
        }
        let stuck = std::mem::take(&mut way.stuck);
        if let Some(session) = self.links[&super::ends(from, to)].session {
            for (number, frame) in stuck {
                let after = self.latency();
                self.at(after, Due::Arrive { from, to, session, number, frame });
            }
        }
        let after = self.dice.us(100, 20_000);
        self.at(after, Due::Try { one: from, other: to });
    }

    pub(super) fn is_way_cut(&self, one: NodeId, other: NodeId) -> bool {
        [(one, other), (other, one)].iter().any(|ends| self.ways[ends].cut)
    }

    pub(super) fn notice(&mut self, from: NodeId, to: NodeId) {
        if self.way(from, to).cut {
            self.end_session(from, to);
        }
    }

    /// Bytes of a bulk message have had their time; while a way is cut, none go.
    pub(super) fn moved(&mut self, from: NodeId, to: NodeId, session: u64, serial: u64) {
        if self.is_way_cut(from, to) {
            return self.at(MOVE_AGAIN, Due::Moved { from, to, session, serial });
        }
        self.finish_bulk(from, to, serial);
    }
}
