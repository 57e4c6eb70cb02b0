//! Segments whose ranges are granted: who may map them, who has, and when they are given up.
//!
//! The grants themselves stand in their owner's memory (`abi::grant`); the daemon keeps the rougher rule that the memory
//! map can enforce: a segment goes to endpoints of this node that were granted something of it, and to proxies, which
//! look at the grants of remote ones.

use std::collections::{BTreeMap, BTreeSet};

use abi::Endpoint;
use abi::courier::ToProxy;
use abi::member::{Refusal, Reply, SegmentKind};
use serde::{Deserialize, Serialize};

use super::effect::{Descriptor, Effect, Note};
use super::members::{done, refuse, reply};
use super::memory::{Owner, SegmentStage};
use super::state::Stage;
use super::{ConnId, Core};

/// Endpoints that may map one segment.
const GRANTEES_MAX: usize = abi::limits::GRANTS_MAX as usize;

/// Who may map a segment that is there to be granted; true: has been given it.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Granted {
    to: BTreeMap<Endpoint, bool>,
    proxies: BTreeSet<u16>,
}

impl Granted {
    pub(super) fn is_to(&self, endpoint: Endpoint) -> bool {
        self.to.contains_key(&endpoint)
    }
}

impl Core {
    fn granted_segment(&self, own: Endpoint, segment: u32) -> Result<(u32, SegmentKind), Refusal> {
        let memory = self.locals.get(&own).ok_or(Refusal::NoSuchEndpoint)?.memory;
        let there = self.memories.get(&memory).ok_or(Refusal::BadRequest)?;
        let found = there.sealed(segment).filter(|s| s.kind.is_granted()).ok_or(Refusal::BadRequest)?;
        Ok((memory, found.kind))
    }

    pub(super) fn grant(
        &mut self,
        conn: ConnId,
        own: Endpoint,
        segment: u32,
        to: Endpoint,
        out: &mut Vec<Effect>,
    ) {
        let result = self.granted_segment(own, segment).and_then(|(memory, kind)| {
            let there = self.memories.get_mut(&memory).ok_or(Refusal::BadRequest)?;
            let granted = there.granted.entry(segment).or_default();
            let others = granted.to.keys().any(|one| *one != to);
            if own == to || own.dc != to.dc || (kind == SegmentKind::GrantWrite && others) {
                return Err(Refusal::BadRequest);
            }
            if granted.to.len() >= GRANTEES_MAX {
                return Err(Refusal::LimitReached);
            }
            granted.to.entry(to).or_default();
            Ok(())
        });
        done(conn, result, out);
    }

    pub(super) fn revoke(
        &mut self,
        conn: ConnId,
        own: Endpoint,
        segment: u32,
        to: Endpoint,
        out: &mut Vec<Effect>,
    ) {
        let held = self.granted_segment(own, segment).map(|(memory, _)| {
            let granted = self.memories.get_mut(&memory).and_then(|m| m.granted.get_mut(&segment));
            granted.and_then(|g| g.to.remove(&to)).unwrap_or(false)
        });
        match held {
            Ok(held) => reply(conn, Reply::Revoked { held }, out),
            Err(why) => refuse(conn, why, out),
        }
    }

    /// Who has mapped it keeps what it has; the proxies let go.
    pub(super) fn drop_segment(&mut self, conn: ConnId, own: Endpoint, segment: u32, out: &mut Vec<Effect>) {
        let granted = self.granted_segment(own, segment).map(|(memory, _)| memory);
        let result = granted.or_else(|why| self.unused_segment(own, segment).ok_or(why)).map(|memory| {
            self.forget_granted(memory, Some(segment), out);
            if let Some(there) = self.memories.get_mut(&memory) {
                there.segments.remove(&segment);
            }
            out.push(Effect::DropSegment { memory, segment });
        });
        done(conn, result, out);
    }

    /// A segment that its owner could not map, and has not had sealed: nobody else was told of it.
    fn unused_segment(&self, own: Endpoint, segment: u32) -> Option<u32> {
        let local = self.locals.get(&own).filter(|l| l.stage == Stage::Ready)?;
        let found = self.memories.get(&local.memory)?.segments.get(&segment)?;
        (found.stage == SegmentStage::Open).then_some(local.memory)
    }

    /// Has the proxies let go of one granted segment, or of all of a memory.
    pub(super) fn forget_granted(&mut self, memory: u32, only: Option<u32>, out: &mut Vec<Effect>) {
        let Some(there) = self.memories.get_mut(&memory) else { return };
        let mut given_up = Vec::new();
        there.granted.retain(|segment, granted| {
            if only.is_some_and(|o| o != *segment) {
                return true;
            }
            given_up.extend(granted.proxies.iter().map(|proxy| (*proxy, *segment)));
            false
        });
        for (proxy, segment) in given_up {
            self.say(proxy, ToProxy::ForgetSegment { memory, segment }, out);
        }
    }

    /// A segment of a memory that the caller was introduced to.
    pub(super) fn map_segment(
        &mut self,
        conn: ConnId,
        own: Endpoint,
        memory: u32,
        segment: u32,
        out: &mut Vec<Effect>,
    ) {
        let Some(there) = self.memories.get(&memory) else {
            return refuse(conn, Refusal::NoSuchEndpoint, out);
        };
        let introduced = match there.owner {
            Owner::Endpoint(peer) => self.locals.get(&own).is_some_and(|l| l.links.contains_key(&peer)),
            Owner::Proxy { only: Some(only), .. } if only != own => {
                return refuse(conn, Refusal::Private, out);
            }
            Owner::Proxy { .. } => self.carried_from(own, memory),
        };
        if !introduced {
            return refuse(conn, Refusal::NoSuchEndpoint, out);
        }
        let Some(sealed) = there.sealed(segment) else {
            return refuse(conn, Refusal::BadRequest, out);
        };
        if !self.may_read(memory, segment, sealed, own) {
            return refuse(conn, Refusal::Private, out);
        }
        if sealed.kind.is_granted() {
            let granted = self.memories.get_mut(&memory).and_then(|m| m.granted.get_mut(&segment));
            let Some(held) = granted.and_then(|g| g.to.get_mut(&own)) else {
                return refuse(conn, Refusal::NotAllowed, out);
            };
            *held = true;
        }
        let reply = Reply::Segment { index: segment, len_bytes: sealed.len_bytes };
        out.push(Effect::Reply { conn, reply, fds: vec![Descriptor::Segment { memory, segment }] });
    }

    /// A segment of a local endpoint: for extents, of one with which the proxy carries a pair; for copies, of any in a DC
    /// that it serves, as a copier of this node may have been granted something of it.
    pub(super) fn proxy_wants(&mut self, proxy: u16, memory: u32, segment: u32, out: &mut Vec<Effect>) {
        let Some(there) = self.memories.get(&memory) else { return };
        let Owner::Endpoint(owner) = there.owner else { return };
        let carried = |l: &super::state::Local, peer| {
            l.far(peer).is_some_and(|f| f.proxy == proxy && f.place.is_some())
        };
        let carries = self.locals.get(&owner).is_some_and(|l| match there.sealed(segment) {
            // For the peer that it speaks for here, and no other.
            Some(sealed) if l.private && sealed.kind == SegmentKind::Pool => {
                sealed.peer.is_some_and(|peer| carried(l, peer))
            }
            _ => l.links.keys().any(|peer| carried(l, *peer)),
        });
        let serves = self.plan.dcs_of_proxy(proxy).contains(&owner.dc);
        let for_copies = |kind: SegmentKind| kind == SegmentKind::Grants || kind.is_granted();
        let found = there.sealed(segment).filter(|s| carries || (serves && for_copies(s.kind)));
        let Some(sealed) = found else {
            let of_other =
                there.private && there.sealed(segment).is_some_and(|s| s.kind == SegmentKind::Pool);
            if of_other {
                let what = "wants what a private endpoint has for another peer";
                out.push(Effect::Note(Note::ProxyWrong { proxy, what }));
            } else if !serves {
                let what = "wants a segment that is not its to read";
                out.push(Effect::Note(Note::ProxyWrong { proxy, what }));
            }
            return self.say(proxy, ToProxy::ForgetSegment { memory, segment }, out);
        };
        if sealed.kind.is_granted()
            && let Some(there) = self.memories.get_mut(&memory)
        {
            there.granted.entry(segment).or_default().proxies.insert(proxy);
        }
        let message =
            ToProxy::PeerSegment { memory, segment, len_bytes: sealed.len_bytes, kind: sealed.kind };
        self.say_with(proxy, message, vec![Descriptor::Segment { memory, segment }], out);
    }
}
