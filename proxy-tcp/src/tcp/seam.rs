//! The fabric's face: [`Fabric`] for [`TcpFabric`].

use std::os::fd::AsFd;
use std::sync::Arc;

use abi::courier::Packed;
use abi::limits::{FRAME_BYTES_MAX, LOAN_BYTES_MAX};
use abi::{Incarnation, NodeId};
use fabric::regions::{check, fail_late};
use fabric::{Armed, Caps, Completion, Desc, Fabric, Piece, RegionKey, Time, Waiter};
use shm::map::Mapping;

use super::TcpFabric;
use crate::commons::MESSAGES_POSTED_MAX;
use crate::link::Link;
use crate::session::Session;

impl Fabric for TcpFabric {
    fn caps(&self) -> Caps {
        Caps {
            message_bytes_max: FRAME_BYTES_MAX,
            bulk_bytes_max: LOAN_BYTES_MAX as u64,
            posted_max: MESSAGES_POSTED_MAX,
            zero_copy: true,
            bulk_in_place: false,
        }
    }

    fn attach(&mut self, map: &Arc<Mapping>) -> RegionKey {
        self.commons.regions.attach(map)
    }

    fn detach(&mut self, region: RegionKey) {
        self.commons.regions.detach(region);
    }

    fn post_send(&mut self, peer: NodeId, batch: &[Desc<'_>]) -> usize {
        let Some(i) = self.find(peer) else { return 0 };
        let link = &mut self.links[i];
        let room = MESSAGES_POSTED_MAX - link.posted;
        let Some(session) = link.session.as_mut().filter(|s| s.told && s.ended.is_none()) else { return 0 };
        let mut accepted = 0;
        for desc in batch.iter().take(room) {
            if !session.post(desc, check(desc), &mut self.commons) {
                break;
            }
            accepted += 1;
        }
        link.posted += accepted;
        if accepted > 0 {
            session.flush(&mut self.commons);
            self.watch(i);
        }
        accepted
    }

    fn post_recv(&mut self, free: &[Piece]) -> usize {
        for piece in free {
            assert!(piece.len_bytes >= FRAME_BYTES_MAX, "a posted buffer holds any message");
            self.commons.regions.hold(*piece);
            self.commons.free.push_back(*piece);
        }
        free.len()
    }

    fn accept(&mut self, peer: NodeId, token: u64, into: Piece) {
        let known = self.find(peer).is_some_and(|i| {
            let Some(session) = &mut self.links[i].session else { return false };
            let known = session.accept(token, into, &mut self.commons);
            self.watch(i);
            known
        });
        if !known {
            fail_late(&mut self.commons.ready, peer, token, into);
        }
    }

    fn refuse(&mut self, peer: NodeId, token: u64) {
        let Some(i) = self.find(peer) else { return };
        let Some(session) = &mut self.links[i].session else { return };
        session.refuse(token, &mut self.commons);
        self.watch(i);
    }

    fn poll(&mut self, now: Time, done: &mut Vec<Completion>) {
        self.commons.now = now;
        if self.commons.ready.len() < (done.capacity() - done.len()).max(1) {
            self.work();
        }
        self.tell(done);
    }

    fn waiter(&self) -> Waiter<'_> {
        Waiter::Fd(self.epoll.as_fd())
    }

    /// The epoll is level-triggered, so it always tells of sockets; what does not stand in a socket is asked for here.
    fn arm(&mut self) -> Armed {
        if std::mem::take(&mut self.loose) {
            self.watch_exactly();
        }
        let to_do = |s: &Session| s.ended.is_some() || s.may_resume(&self.commons);
        let waiting = || self.links.iter().filter_map(|link| link.session.as_ref()).any(to_do);
        if (self.uneasy && waiting()) || !self.commons.ready.is_empty() {
            Armed::MoreToDo
        } else {
            Armed::Armed
        }
    }

    fn deadline(&self) -> Option<Time> {
        (self.due != Time::MAX).then_some(self.due)
    }

    fn packed(&self) -> Packed {
        let packs = |link: &&Link| link.session.as_ref().is_some_and(Session::packs);
        let sessions = self.links.iter().filter(packs).count() as u64;
        Packed { sessions, ..self.commons.packed }
    }

    fn fence(&mut self, peer: NodeId, incarnation: Incarnation) {
        let Some(i) = self.find(peer) else { return };
        let link = &mut self.links[i];
        link.floor = link.floor.max(Incarnation(incarnation.0.saturating_add(1)));
        if link.session.as_ref().is_some_and(|s| s.incarnation <= incarnation) {
            self.end(i);
        }
    }
}
