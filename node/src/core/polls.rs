//! Endpoints that sleep in epoll: who rings one of them is given a bell of that pair's own, whose other end it watches.
//!
//! A pair that is made later comes with its bells (`sight`); for one that was told of before, either end pulls them, and a
//! proxy is told. Neighbours: `pairs` (introductions), `routes` (proxies), the driver's `polled` (the descriptors).

use abi::Endpoint;
use abi::courier::ToProxy;
use abi::member::{Refusal, Reply, Rings};

use super::effect::{Descriptor, Effect};
use super::members::refuse;
use super::pairs::ring;
use super::state::{Stage, Via};
use super::{ConnId, Core};

impl Core {
    /// The endpoint polls from now on. Every bell is on its way before the answer is: whoever finds the endpoint asleep in
    /// epoll, and has no bell, finds one by asking. Asked again, the answer is the same.
    pub(super) fn poll(&mut self, conn: ConnId, own: Endpoint, out: &mut Vec<Effect>) {
        let Some(local) = self.locals.get_mut(&own).filter(|l| l.stage == Stage::Ready) else {
            return refuse(conn, Refusal::BadRequest, out);
        };
        if !std::mem::replace(&mut local.polls, true) {
            let peers: Vec<(Endpoint, Via)> =
                local.links.iter().map(|(peer, link)| (*peer, link.via)).collect();
            for (peer, via) in peers {
                self.note_bells(own, peer);
                match via {
                    Via::Local => {
                        self.note_bells(peer, own);
                        out.push(ring(peer, None, true));
                    }
                    Via::Remote(_) => self.say_bell(own, peer, out),
                }
            }
        }
        out.push(Effect::Reply {
            conn,
            reply: Reply::Polled,
            fds: vec![Descriptor::Rung { polls: own, by: None }],
        });
    }

    fn note_bells(&mut self, own: Endpoint, peer: Endpoint) {
        let Some(local) = self.locals.get_mut(&own).filter(|l| !l.stage.is_dead()) else { return };
        if local.links.get(&peer).is_some_and(|link| link.told) && !local.bells.contains(&peer) {
            local.bells.push_back(peer);
        }
    }

    /// Tells the proxy that carries a pair how its local end is rung.
    pub(super) fn say_bell(&mut self, own: Endpoint, remote: Endpoint, out: &mut Vec<Effect>) {
        let Some(local) = self.locals.get(&own).filter(|l| l.polls) else { return };
        let Some(far) = local.far(remote).filter(|f| f.place.is_some() && !f.recycled) else { return };
        let fds = vec![Descriptor::Ringer { polls: own, by: remote }];
        self.say_with(far.proxy, ToProxy::Bell { local: own, remote }, fds, out);
    }

    fn polls(&self, endpoint: Endpoint) -> bool {
        self.locals.get(&endpoint).is_some_and(|l| l.polls)
    }

    fn is_far(&self, own: Endpoint, peer: Endpoint) -> bool {
        self.locals.get(&own).is_some_and(|l| l.far(peer).is_some())
    }

    /// What comes behind the segment when `own` is told of a pair.
    pub(super) fn rings(&self, own: Endpoint, peer: Endpoint) -> Rings {
        Rings { theirs: self.is_far(own, peer) || self.polls(peer), ours: self.polls(own) }
    }

    /// The descriptors of [`Core::rings`], without that of a proxy.
    pub(super) fn bells_of(&self, own: Endpoint, peer: Endpoint) -> Vec<Descriptor> {
        let theirs = (!self.is_far(own, peer) && self.polls(peer))
            .then_some(Descriptor::Ringer { polls: peer, by: own });
        let ours = self.polls(own).then_some(Descriptor::Rung { polls: own, by: Some(peer) });
        theirs.into_iter().chain(ours).collect()
    }

    /// The next pair that was told of before it had bells.
    pub(super) fn pull_bells(&mut self, conn: ConnId, own: Endpoint, out: &mut Vec<Effect>) {
        while let Some(peer) = self.locals.get_mut(&own).and_then(|l| l.bells.pop_front()) {
            if !self.locals.get(&own).is_some_and(|l| l.links.contains_key(&peer)) {
                continue;
            }
            let fds = self.bells_of(own, peer);
            if !fds.is_empty() {
                let theirs = matches!(fds.first(), Some(Descriptor::Ringer { .. }));
                let rings = Rings { theirs, ours: self.polls(own) };
                return out.push(Effect::Reply { conn, reply: Reply::Rings { peer, rings }, fds });
            }
        }
        super::members::reply(conn, Reply::Nothing, out);
    }
}
