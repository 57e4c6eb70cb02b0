//! The directory: each node tells the others which endpoints live on it, through the proxies. Soft state: a snapshot
//! whenever a link comes up, then deltas, then a snapshot now and then while there are changes, should a delta have
//! been lost with a session. A node speaks for its own slots only.
//!
//! A chunk is a header of two words (kind, version) and entries of six: endpoint, flags (low half: 1 bound, 2 ended,
//! and 4 more if it is private; high half: the user it runs as), name in four. Before a snapshot, and when one changes, go
//! the descriptions of the DCs: kind 5, version, then the words of one. Little-endian, at most
//! [`abi::courier::TAIL_BYTES_MAX`] bytes.

use std::collections::BTreeSet;

use abi::courier::{TAIL_BYTES_MAX, ToProxy};
use abi::table::{Entry, State};
use abi::{DcId, Endpoint, Incarnation, Name, NodeId};

use super::effect::{Effect, Note};
use super::privileges::Identity;
use super::state::{Local, Remote, Told};
use super::{Core, DcSpec, Now};

const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 48;
/// Entries of one chunk.
const ENTRIES_MAX: usize = (TAIL_BYTES_MAX - HEADER_BYTES) / ENTRY_BYTES;
/// In place of a chunk's kind: the words of a DC's description follow.
const DC_SPEC: u64 = 5;
const BOUND: u64 = 1;
const ENDED: u64 = 2;
const PRIVATE: u64 = 4;

/// What a chunk is part of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChunkKind {
    /// A snapshot begins with these.
    Begin = 1,
    Part = 2,
    /// A snapshot ends with these: whoever was not in it has ended.
    End = 3,
    /// Changes since.
    Delta = 4,
}

/// One endpoint of the sending node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectoryEntry {
    pub endpoint: Endpoint,
    pub bound: bool,
    pub name: Name,
    /// The user that it runs as, which rules may ask for.
    pub uid: u32,
    /// It has memory for each peer apart.
    pub private: bool,
}

/// One datagram of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    pub kind: ChunkKind,
    /// Of the sender's directory; grows with every change.
    pub version: u64,
    pub entries: Vec<DirectoryEntry>,
}

impl Chunk {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.entries.len() * ENTRY_BYTES);
        bytes.extend((self.kind as u64).to_le_bytes());
        bytes.extend(self.version.to_le_bytes());
        for entry in &self.entries {
            bytes.extend(entry.endpoint.to_word().to_le_bytes());
            let state = if entry.bound { BOUND } else { ENDED } | if entry.private { PRIVATE } else { 0 };
            bytes.extend((state | (entry.uid as u64) << 32).to_le_bytes());
            bytes.extend(entry.name.to_words().iter().flat_map(|w| w.to_le_bytes()));
        }
        bytes
    }

    /// `None` for bytes that are no chunk.
    pub fn from_bytes(bytes: &[u8]) -> Option<Chunk> {
        if bytes.len() > TAIL_BYTES_MAX || bytes.len() < HEADER_BYTES {
            return None;
        }
        let (header, body) = bytes.split_at(HEADER_BYTES);
        let entries = body.chunks_exact(ENTRY_BYTES);
        if !entries.remainder().is_empty() {
            return None;
        }
        let kind = match word(header, 0)? {
            1 => ChunkKind::Begin,
            2 => ChunkKind::Part,
            3 => ChunkKind::End,
            4 => ChunkKind::Delta,
            _ => return None,
        };
        let entries = entries.map(entry_from).collect::<Option<Vec<DirectoryEntry>>>()?;
        Some(Chunk { kind, version: word(header, 1)?, entries })
    }
}

fn word(bytes: &[u8], index: usize) -> Option<u64> {
    let eight = bytes.get(index * 8..index * 8 + 8)?;
    Some(u64::from_le_bytes(eight.try_into().ok()?))
}

/// The description that a datagram holds; `Some(None)`: it is to be one and is not.
fn spec_from(bytes: &[u8]) -> Option<Option<DcSpec>> {
    if word(bytes, 0)? != DC_SPEC {
        return None;
    }
    let words = bytes.chunks_exact(8);
    let is_whole = bytes.len() <= TAIL_BYTES_MAX && words.remainder().is_empty();
    let words: Vec<u64> =
        words.skip(2).filter_map(|eight| Some(u64::from_le_bytes(eight.try_into().ok()?))).collect();
    Some(DcSpec::from_words(&words).filter(|_| is_whole))
}

fn entry_from(bytes: &[u8]) -> Option<DirectoryEntry> {
    let flags = word(bytes, 1)?;
    let bound = match flags & u32::MAX as u64 & !PRIVATE {
        BOUND => true,
        ENDED => false,
        _ => return None,
    };
    let name = Name::from_words([word(bytes, 2)?, word(bytes, 3)?, word(bytes, 4)?, word(bytes, 5)?])?;
    let uid = (flags >> 32) as u32;
    let (endpoint, private) = (Endpoint::from_word(word(bytes, 0)?)?, flags & PRIVATE != 0);
    Some(DirectoryEntry { endpoint, bound, name, uid, private })
}

impl Local {
    pub(super) fn entry(&self, endpoint: Endpoint, bound: bool) -> DirectoryEntry {
        let (name, uid, private) = (self.name, self.process.uid, self.private);
        DirectoryEntry { endpoint, bound, name, uid, private }
    }
}

impl Core {
    /// Tells every node that shares the DC and is up of one change.
    pub(super) fn announce(&mut self, entry: DirectoryEntry, out: &mut Vec<Effect>) {
        self.version += 1;
        let (endpoint, entries) = (entry.endpoint, vec![entry]);
        let chunk = Chunk { kind: ChunkKind::Delta, version: self.version, entries };
        let up: Vec<NodeId> = self.nodes.iter().filter(|(_, n)| n.is_up()).map(|(id, _)| *id).collect();
        for node in up {
            if self.plan.dcs.get(&endpoint.dc).is_some_and(|dc| dc.ranges.contains_key(&node)) {
                self.say_chunk(node, &chunk, out);
            }
        }
    }

    fn say_chunk(&mut self, node: NodeId, chunk: &Chunk, out: &mut Vec<Effect>) {
        let Some(proxy) = self.plan.route(node) else { return };
        if self.proxies.get(&proxy).is_some_and(|p| p.is_up()) {
            let message = ToProxy::Directory { node };
            out.push(Effect::ToProxy { proxy, message, tail: chunk.to_bytes(), fds: Vec::new() });
        }
    }

    /// Tells a node that is up how a DC is now.
    pub(super) fn say_spec(&mut self, node: NodeId, dc: DcId, out: &mut Vec<Effect>) {
        let (Some(proxy), Some(spec)) = (self.plan.route(node), self.specs.get(&dc)) else { return };
        if self.proxies.get(&proxy).is_some_and(|p| p.is_up()) {
            let words = [DC_SPEC, self.version].into_iter().chain(spec.to_words());
            let tail = words.flat_map(u64::to_le_bytes).collect();
            out.push(Effect::ToProxy { proxy, message: ToProxy::Directory { node }, tail, fds: Vec::new() });
        }
    }

    /// Tells a node that is up of all DCs that were changed, and of all endpoints here in the DCs that it shares.
    pub(super) fn send_snapshot(&mut self, now: Now, node: NodeId, out: &mut Vec<Effect>) {
        let Some(there) = self.nodes.get_mut(&node).filter(|n| n.is_up()) else { return };
        there.told = Some(Told { version: self.version, at: now });
        let changed: Vec<DcId> = self.specs.values().filter(|s| s.revision > 0).map(|s| s.id).collect();
        for dc in changed {
            self.say_spec(node, dc, out);
        }
        let shared = self.plan.shared_with(node);
        let here = self.locals.iter().filter(|(e, l)| l.stage.is_visible() && shared.contains(&e.dc));
        let entries: Vec<DirectoryEntry> =
            here.map(|(endpoint, local)| local.entry(*endpoint, true)).collect();
        let chunk = |kind, entries| Chunk { kind, version: self.version, entries };
        let mut chunks = vec![chunk(ChunkKind::Begin, Vec::new())];
        chunks.extend(entries.chunks(ENTRIES_MAX).map(|part| chunk(ChunkKind::Part, part.to_vec())));
        chunks.push(chunk(ChunkKind::End, Vec::new()));
        for chunk in chunks {
            self.say_chunk(node, &chunk, out);
        }
    }

    /// Bytes from another node's daemon.
    pub(super) fn directory_said(
        &mut self,
        now: Now,
        proxy: u16,
        node: NodeId,
        incarnation: Incarnation,
        tail: &[u8],
        out: &mut Vec<Effect>,
    ) {
        if self.plan.route(node) != Some(proxy) || !self.seen(now, node, incarnation, out) {
            return;
        }
        if let Some(spec) = spec_from(tail) {
            return self.spec_said(now, node, spec, out);
        }
        let Some(chunk) = Chunk::from_bytes(tail) else {
            return out.push(Effect::Note(Note::DirectoryNone { node }));
        };
        let Some(there) = self.nodes.get_mut(&node) else { return };
        there.directory_version = chunk.version;
        if chunk.kind == ChunkKind::Begin {
            there.snapshot = Some(BTreeSet::new());
        }
        let mut refused = 0;
        for entry in &chunk.entries {
            if !self.apply(node, incarnation, entry, out) {
                refused += 1;
            } else if let Some(seen) = self.nodes.get_mut(&node).and_then(|n| n.snapshot.as_mut()) {
                seen.insert(entry.endpoint);
            }
        }
        if refused > 0 {
            self.refused_entries += refused;
            if let Some(there) = self.nodes.get_mut(&node) {
                there.refused_entries += refused;
            }
            out.push(Effect::Note(Note::DirectoryRefused { node, entries: refused }));
        }
        let whole = self.nodes.get_mut(&node).filter(|_| chunk.kind == ChunkKind::End);
        if let Some(seen) = whole.and_then(|n| n.snapshot.take()) {
            self.end_absent(node, &seen, out);
        }
    }

    /// One claim of a node about one of its slots; false: it is not its to make.
    pub(super) fn apply(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        entry: &DirectoryEntry,
        out: &mut Vec<Effect>,
    ) -> bool {
        let DirectoryEntry { endpoint, bound, name, uid, private } = *entry;
        if !bound && node != self.plan.node && self.plan.node_of(endpoint.dc, endpoint.slot).is_none() {
            // The last words of one that has left the DC are known already.
            return true;
        }
        if node == self.plan.node || self.plan.node_of(endpoint.dc, endpoint.slot) != Some(node) {
            return false;
        }
        if endpoint.slot.0 % 16 == 0 && shm::mutant!(RoutingMissesNews) {
            return true;
        }
        let proxy = self.plan.route(node).unwrap_or(0) as u8;
        let who = Identity { slot: endpoint.slot, name, uid };
        let level = self.level(endpoint.dc, &who);
        let Some(dc) = self.dcs.get_mut(&endpoint.dc) else { return false };
        let known =
            dc.remotes.get(&endpoint.slot).map(|r| (r.incarnation, r.generation, r.name, r.uid, r.alive));
        let mut replaced = None;
        if let Some((known_incarnation, generation, known_name, known_uid, alive)) = known {
            let old = (known_incarnation, generation) > (incarnation, endpoint.generation);
            // An endpoint ends once and for all.
            let same = known_incarnation == incarnation && generation == endpoint.generation;
            if old || (same && (!alive || bound)) {
                return true;
            }
            if alive {
                let before = Endpoint::new(endpoint.dc, endpoint.slot, generation);
                dc.unname(known_name, before);
                let who = Identity { slot: endpoint.slot, name: known_name, uid: known_uid };
                replaced = Some((before, who)).filter(|(b, _)| *b != endpoint);
            }
        }
        let generation = endpoint.generation;
        let remote = Remote { node, incarnation, generation, name, uid, alive: bound, private };
        dc.remotes.insert(endpoint.slot, remote);
        if bound {
            dc.name(name, endpoint);
        }
        let state = if bound { State::Bound } else { State::Dead };
        let entry = Entry { state, node, proxy, generation: endpoint.generation, level };
        out.push(Effect::SetTable { dc: endpoint.dc, slot: endpoint.slot, entry });
        for (ended, who) in replaced.into_iter().chain((!bound).then_some((endpoint, who))) {
            self.ring_linked(ended, out);
            self.warn_of(ended, &who, out);
        }
        self.retry_opens_by(endpoint, out);
        true
    }

    /// Whoever was not in the snapshot has ended.
    fn end_absent(&mut self, node: NodeId, seen: &BTreeSet<Endpoint>, out: &mut Vec<Effect>) {
        let Some(incarnation) = self.nodes.get(&node).and_then(|n| n.incarnation) else { return };
        let mut absent = Vec::new();
        for (id, dc) in &self.dcs {
            let of_node = dc.remotes.iter().filter(|(_, r)| r.node == node && r.alive);
            let of_life = of_node.filter(|(_, r)| r.incarnation == incarnation);
            let endpoints = of_life.map(|(slot, r)| DirectoryEntry {
                endpoint: Endpoint::new(*id, *slot, r.generation),
                bound: false,
                name: r.name,
                uid: r.uid,
                private: r.private,
            });
            absent.extend(endpoints.filter(|entry| !seen.contains(&entry.endpoint)));
        }
        for entry in absent {
            self.apply(node, incarnation, &entry, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::{Generation, Slot};

    #[test]
    fn any_bytes_are_a_chunk_or_none() {
        let chunk = Chunk {
            kind: ChunkKind::Part,
            version: 9,
            entries: vec![DirectoryEntry {
                endpoint: Endpoint::new(DcId(1), Slot(16), Generation(1)),
                bound: false,
                name: Name::new("kv").unwrap(),
                uid: u32::MAX,
                private: true,
            }],
        };
        let bytes = chunk.to_bytes();
        assert_eq!(Chunk::from_bytes(&bytes), Some(chunk));
        for len in 0..bytes.len() {
            assert_eq!(Chunk::from_bytes(&bytes[..len]).map(|c| c.entries.len()), (len == 16).then_some(0));
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let _ = Chunk::from_bytes(&flipped);
        }
    }
}
