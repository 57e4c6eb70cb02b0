//! Private endpoints: memory for each peer apart, on either side of the daemon.
//!
//! A private endpoint has one memory, and in it for each pair a segment of one side and pool segments that the peer alone
//! may map; they go when the pair goes. A proxy, which speaks for all remote endpoints, has for each local endpoint with
//! private pairs a memory that this one alone may map. Neighbours: `memory` (segments), `pairs` and `routes` (who is whose
//! peer), `grants` (who asks).

use abi::Endpoint;
use abi::courier::ToProxy;
use abi::limits::{POOL_BYTES_FIRST, POOL_BYTES_MAX, SIDES_FIRST, SIDES_PRIVATE_FIRST};
use abi::member::{Refusal, SegmentKind};

use super::effect::{Effect, Note};
use super::members::refuse;
use super::memory::{Owner, Segment, SegmentStage, sides_bytes};
use super::pairs::ring;
use super::state::{Link, Via};
use super::{ConnId, Core};

impl Core {
    /// The memory of a fresh private endpoint: sides for its first peers, one to a segment, and a pool that nobody else maps.
    pub(super) fn private_memory(&mut self, owner: Owner, out: &mut Vec<Effect>) -> u32 {
        let memory = self.new_memory(owner, true);
        let sides = (0..SIDES_PRIVATE_FIRST).map(|_| (SegmentKind::Sides, sides_bytes(1)));
        for (kind, len_bytes) in sides.chain([(SegmentKind::Pool, POOL_BYTES_FIRST)]) {
            self.add_segment(memory, kind, len_bytes, POOL_BYTES_MAX, out).unwrap_or_default();
        }
        memory
    }

    /// One more pool segment for what a private endpoint sends to one peer.
    pub(super) fn pair_segment(
        &mut self,
        conn: ConnId,
        own: Endpoint,
        peer: Endpoint,
        len_bytes: u64,
        out: &mut Vec<Effect>,
    ) {
        let Some(local) = self.locals.get(&own) else { return };
        let memory = local.memory;
        let busy = self.memories.get(&memory).is_none_or(|m| m.any(SegmentStage::Making));
        if !local.private || busy {
            return refuse(conn, Refusal::BadRequest, out);
        }
        if !local.links.contains_key(&peer) {
            return refuse(conn, Refusal::NoSuchEndpoint, out);
        }
        match self.add_segment(memory, SegmentKind::Pool, len_bytes, POOL_BYTES_MAX, out) {
            Ok(index) => {
                let added = self.memories.get_mut(&memory).and_then(|m| m.segments.get_mut(&index));
                if let Some(segment) = added {
                    segment.peer = Some(peer);
                }
            }
            Err(why) => refuse(conn, why.into(), out),
        }
    }

    /// Whether whoever was introduced to the owner of a memory may map this segment of it: of a private one, what is its alone.
    pub(super) fn may_read(&self, memory: u32, segment: u32, sealed: Segment, reader: Endpoint) -> bool {
        let Some(there) = self.memories.get(&memory).filter(|m| m.private) else { return true };
        match (sealed.kind, there.owner) {
            (SegmentKind::Pool, _) => sealed.peer == Some(reader),
            (SegmentKind::Sides, Owner::Endpoint(owner)) => {
                let link = self.locals.get(&owner).and_then(|l| l.links.get(&reader));
                link.is_some_and(|link| link.own.segment == segment)
            }
            (SegmentKind::Sides, Owner::Proxy { .. }) => false,
            (SegmentKind::Grants, _) => there.granted.values().any(|granted| granted.is_to(reader)),
            // Who was granted something of it is asked elsewhere.
            (SegmentKind::GrantRead | SegmentKind::GrantWrite, _) => true,
        }
    }

    /// A pair of a private endpoint has ended: what it had for it is used for nobody else.
    pub(super) fn end_private_pair(
        &mut self,
        own: Endpoint,
        peer: Endpoint,
        link: &Link,
        out: &mut Vec<Effect>,
    ) {
        let Some(local) = self.locals.get_mut(&own) else { return };
        let memory = local.memory;
        if !link.told && !local.stage.is_dead() {
            local.spent.push_back(link.own.segment);
            out.push(ring(own, None, true));
        }
        let Some(there) = self.memories.get_mut(&memory) else { return };
        let pools = there.segments.iter().filter(|(_, s)| s.peer == Some(peer)).map(|(index, _)| *index);
        let pools: Vec<u32> = pools.collect();
        for &segment in pools.iter().chain([&link.own.segment]) {
            there.segments.remove(&segment);
            out.push(Effect::DropSegment { memory, segment });
        }
        if let Via::Remote(far) = link.via {
            for segment in pools {
                self.say(far.proxy, ToProxy::ForgetSegment { memory, segment }, out);
            }
        }
    }

    /// The memory in which a proxy that is up speaks to a local endpoint: that of the DC, or for private pairs the
    /// endpoint's own, which is made now if it is the first.
    pub(super) fn speaking_memory(
        &mut self,
        proxy: u16,
        local: Endpoint,
        private: bool,
        out: &mut Vec<Effect>,
    ) -> Option<u32> {
        let of_dc = self.proxy_memory(proxy, local.dc)?;
        if !private {
            return Some(of_dc);
        }
        if let Some(memory) = self.private_memory_of(proxy, local) {
            return Some(memory);
        }
        let owner = Owner::Proxy { proxy, dc: local.dc, only: Some(local) };
        let memory = self.first_memory(owner, SIDES_FIRST, POOL_BYTES_FIRST, out);
        self.proxies.get_mut(&proxy)?.private.insert(local, memory);
        self.say(proxy, ToProxy::Memory { dc: local.dc, memory }, out);
        Some(memory)
    }

    pub(super) fn private_memory_of(&self, proxy: u16, local: Endpoint) -> Option<u32> {
        self.proxies.get(&proxy)?.private.get(&local).copied()
    }

    /// Drops the memory that a proxy has for the private pairs of an endpoint, when there are none.
    pub(super) fn drop_unused(&mut self, proxy: u16, local: Endpoint, out: &mut Vec<Effect>) {
        let Some(memory) = self.private_memory_of(proxy, local) else { return };
        let used = self.memories.get(&memory).is_some_and(|m| !m.used.is_empty());
        let links = self.locals.get(&local).map(|l| l.links.keys().filter_map(|peer| l.far(*peer)));
        let waits = links.is_some_and(|mut links| links.any(|far| far.private && far.wants(proxy)));
        if used || waits || self.opens.keys().any(|(of, _)| *of == local) {
            return;
        }
        self.drop_private_memory(proxy, local, memory, out);
    }

    fn drop_private_memory(&mut self, proxy: u16, local: Endpoint, memory: u32, out: &mut Vec<Effect>) {
        if let Some(there) = self.proxies.get_mut(&proxy) {
            there.private.remove(&local);
        }
        self.drop_memory(memory, out);
        self.say(proxy, ToProxy::ForgetMemory { memory }, out);
    }

    /// There is no memory for one of a proxy's; its other pairs go on.
    pub(super) fn no_private_memory(
        &mut self,
        proxy: u16,
        local: Endpoint,
        memory: u32,
        out: &mut Vec<Effect>,
    ) {
        self.drop_private_memory(proxy, local, memory, out);
        out.push(Effect::Note(Note::ProxyWrong { proxy, what: "there is no memory for private pairs" }));
    }
}
