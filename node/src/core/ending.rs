//! How endpoints end, and what is kept of them: the memory of a dead one until its peers have read it, or a minute.

use std::collections::BTreeSet;
use std::time::Duration;

use abi::Endpoint;
use abi::courier::ToProxy;
use abi::limits::ORPHAN_KEEP_MS;
use abi::member::Refusal;
use abi::table::State;

use super::directory::DirectoryEntry;
use super::effect::{Effect, Note};
use super::pairs::ring;
use super::state::{Stage, Via};
use super::{Core, Now};

const ORPHAN_KEEP: Duration = Duration::from_millis(ORPHAN_KEEP_MS);

impl Core {
    /// The endpoint unbound, or its process or connection ended.
    pub(super) fn end_local(&mut self, now: Now, endpoint: Endpoint, out: &mut Vec<Effect>) {
        let until = now + ORPHAN_KEEP;
        let Some(local) = self.locals.get_mut(&endpoint).filter(|l| !l.stage.is_dead()) else { return };
        let was_visible = local.stage.is_visible();
        let name = local.name;
        local.stage = Stage::Dead { until };
        local.pulls.clear();
        local.spent.clear();
        local.bells.clear();
        if std::mem::take(&mut local.polls) {
            out.push(Effect::DropBells { polls: endpoint, by: None });
        }
        let ticket = local.ticket.take();
        if let Some(conn) = local.conn.take().and_then(|c| self.conns.get_mut(&c)) {
            conn.endpoint = None;
        }
        if let Some(ticket) = ticket {
            self.tickets.remove(&ticket);
            out.push(Effect::CloseProcess { ticket });
        }
        self.orphans.insert((until, endpoint));
        if let Some(dc) = self.dcs.get_mut(&endpoint.dc) {
            dc.unname(name, endpoint);
            if let Some(slot) = dc.slots.get_mut(&endpoint.slot) {
                slot.holder = None;
                slot.undrained += 1;
            }
        }
        if was_visible {
            let who = self.identity(endpoint);
            out.push(self.table_entry(endpoint, State::Dead));
            out.push(Effect::Note(Note::Ended { endpoint }));
            self.tell_peers(now, endpoint, out);
            if let Some(who) = who {
                let private = self.locals.get(&endpoint).is_some_and(|l| l.private);
                self.announce(DirectoryEntry { endpoint, bound: false, name, uid: who.uid, private }, out);
                self.warn_of(endpoint, &who, out);
            }
        }
        self.refuse_opens_of(endpoint, Refusal::NoSuchEndpoint, out);
        self.settle(now, endpoint, out);
    }

    /// Rings the local peers, tells the proxies, and lets go of peers that died before.
    fn tell_peers(&mut self, now: Now, endpoint: Endpoint, out: &mut Vec<Effect>) {
        let Some(local) = self.locals.get(&endpoint) else { return };
        let peers: Vec<(Endpoint, Via)> = local.links.iter().map(|(peer, link)| (*peer, link.via)).collect();
        let mut proxies = BTreeSet::new();
        for (peer, via) in peers {
            match via {
                Via::Remote(far) => {
                    if far.place.is_some() && !far.recycled {
                        proxies.insert(far.proxy);
                    }
                    self.release_ended(endpoint, peer, out);
                }
                Via::Local if self.locals.get(&peer).is_some_and(|p| !p.stage.is_dead()) => {
                    out.push(ring(peer, Some(endpoint.slot), false));
                }
                Via::Local => {
                    self.unlink(endpoint, peer, out);
                    self.unlink(peer, endpoint, out);
                    self.settle(now, peer, out);
                }
            }
        }
        for proxy in proxies {
            self.say(proxy, ToProxy::LocalEnded { endpoint }, out);
        }
    }

    /// Drops the memory of a dead endpoint that nobody reads any more.
    pub(super) fn settle(&mut self, now: Now, endpoint: Endpoint, out: &mut Vec<Effect>) {
        if self.locals.get(&endpoint).is_some_and(|l| l.is_done()) {
            self.forget(now, endpoint, out);
        }
    }

    fn forget(&mut self, now: Now, endpoint: Endpoint, out: &mut Vec<Effect>) {
        let Some(local) = self.locals.remove(&endpoint) else { return };
        if let Stage::Dead { until } = local.stage {
            self.orphans.remove(&(until, endpoint));
        }
        let slot = self.dcs.get_mut(&endpoint.dc).and_then(|d| d.slots.get_mut(&endpoint.slot));
        if let Some(slot) = slot {
            slot.undrained = slot.undrained.saturating_sub(1);
        }
        self.drop_memory(local.memory, out);
        let proxies: Vec<u16> = self.proxies.keys().copied().collect();
        for proxy in proxies {
            self.drop_unused(proxy, endpoint, out);
        }
        self.let_go(now, endpoint.dc, out);
    }

    /// What a dead endpoint published was kept for long enough.
    pub(super) fn drop_orphans(&mut self, now: Now, out: &mut Vec<Effect>) {
        while let Some((until, endpoint)) = self.orphans.first().copied() {
            if until > now {
                return;
            }
            self.orphans.pop_first();
            let Some(local) = self.locals.get(&endpoint) else { continue };
            let far: Vec<(Endpoint, u16)> = local
                .links
                .iter()
                .filter_map(|(peer, link)| match link.via {
                    Via::Remote(far) if far.place.is_some() && !far.recycled => Some((*peer, far.proxy)),
                    Via::Remote(_) | Via::Local => None,
                })
                .collect();
            for (remote, proxy) in far {
                // Its side stays in use until the proxy says `Detached`.
                self.say(proxy, ToProxy::Detach { local: endpoint, remote }, out);
            }
            self.forget(now, endpoint, out);
        }
    }
}
