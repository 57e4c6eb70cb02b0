//! What the programs did and saw, written down beside the system: the oracle. The invariants read it.
//!
//! Key type: [`Ledger`]. One [`Stream`] for each ordered pair of endpoints; a message is known by its number in it, which
//! it carries.

pub mod areas;

use std::collections::{BTreeMap, BTreeSet};

use abi::{Endpoint, Incarnation, NodeId};
use fabric::Time;

use crate::invariants::{self, Finding};

/// What its sender knows of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Its call is still under way.
    Pending,
    /// Published, and not to be taken back: it arrives if it can.
    Accepted,
    /// Taken for certain.
    Taken,
    /// Never delivered, for certain.
    Withdrawn,
    /// Known not delivered: its destination ended first.
    NotDelivered,
    /// Delivered at most once.
    Unknown,
}

/// One message of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub fate: Fate,
    pub delivered: bool,
    /// The contents of the reply, if a server has published one.
    pub replied: Option<u64>,
    /// Of a request that was passed on: by whom, to whom, and whether that one has it.
    pub passed: Option<(Endpoint, Endpoint, bool)>,
}

/// Bits of a notification, and the wake-up.
pub const RAISABLE: usize = 33;
/// The wake-up, among the bits.
pub const WAKE: u64 = 1 << 32;

/// All that went from one endpoint to another.
#[derive(Clone, Debug)]
pub struct Stream {
    pub sent: Vec<Sent>,
    /// The number that must be the least of the next delivery.
    pub next: u64,
    /// Bits raised since they were last received; bit 32 is the wake-up.
    pub raised: u64,
    /// How often each bit was raised and received: received at most once for each time it was raised.
    pub raises: [u32; RAISABLE],
    pub receipts: [u32; RAISABLE],
}

impl Default for Stream {
    fn default() -> Stream {
        let counts = [0; RAISABLE];
        Stream { sent: Vec::new(), next: 0, raised: 0, raises: counts, receipts: counts }
    }
}

/// One life of an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub died: Option<Time>,
    /// Its machine was restarted since: what had not left is gone.
    pub vanished: bool,
}

/// The books of one run.
#[derive(Debug, Default)]
pub struct Ledger {
    pub streams: BTreeMap<(Endpoint, Endpoint), Stream>,
    pub lives: BTreeMap<Endpoint, Life>,
    /// (who says it, of whom, which life): nodes declared dead.
    pub buried: BTreeSet<(NodeId, NodeId, Incarnation)>,
    /// (who was told, of whom): ends.
    pub told_dead: BTreeSet<(Endpoint, Endpoint)>,
    /// Grants that were told of, and the memory that copies write.
    pub told: Vec<areas::Told>,
    pub areas: BTreeMap<areas::Whose, areas::Area>,
    /// Copies that were begun.
    pub copies: u64,
    pub findings: Vec<Finding>,
}

impl Ledger {
    pub fn find(&mut self, invariant: &'static str, what: Option<String>) {
        self.findings.extend(what.map(|what| Finding { invariant, what }));
    }

    pub fn born(&mut self, endpoint: Endpoint, node: NodeId, incarnation: Incarnation) {
        let known = self.lives.insert(endpoint, Life { node, incarnation, died: None, vanished: false });
        self.find("generations", invariants::generations::born(endpoint, known.is_some()));
    }

    pub fn died(&mut self, endpoint: Endpoint, now: Time) {
        if let Some(life) = self.lives.get_mut(&endpoint) {
            life.died.get_or_insert(now);
        }
    }

    /// A machine was restarted, and its memory is gone.
    pub fn vanished(&mut self, node: NodeId) {
        self.lives.values_mut().filter(|life| life.node == node).for_each(|life| life.vanished = true);
    }

    pub fn is_alive(&self, endpoint: Endpoint) -> bool {
        self.lives.get(&endpoint).is_some_and(|life| life.died.is_none())
    }

    /// Whether a node has declared the other endpoint's node dead, in the life that the endpoint was bound in.
    pub fn is_buried(&self, by: NodeId, endpoint: Endpoint) -> bool {
        let life = self.lives.get(&endpoint);
        life.is_some_and(|life| self.buried.contains(&(by, life.node, life.incarnation)))
    }

    pub fn stream(&mut self, source: Endpoint, destination: Endpoint) -> &mut Stream {
        self.streams.entry((source, destination)).or_default()
    }

    /// The number that the next message of a stream will have.
    pub fn next_number(&mut self, source: Endpoint, destination: Endpoint) -> u64 {
        self.stream(source, destination).sent.len() as u64
    }

    /// The message of that number is in the lane.
    pub fn published(&mut self, source: Endpoint, destination: Endpoint, fate: Fate) {
        self.stream(source, destination).sent.push(Sent {
            fate,
            delivered: false,
            replied: None,
            passed: None,
        });
    }

    /// The call of a message has ended, and says this of it.
    pub fn decide(&mut self, source: Endpoint, destination: Endpoint, number: u64, fate: Fate) {
        let Some(sent) = self.stream(source, destination).sent.get_mut(number as usize) else { return };
        sent.fate = fate;
        let delivered = sent.delivered;
        let what = format!("{source} to {destination} number {number}");
        self.find("withdrawn", invariants::withdrawn::decided(fate, delivered, &what));
        self.find("taken", invariants::taken::decided(fate, delivered, &what));
    }

    /// A message came out at its destination.
    pub fn delivered(&mut self, source: Endpoint, me: Endpoint, meant: u64, number: u64) {
        let what = format!("{source} to {me} number {number}");
        self.find("generations", invariants::generations::delivered(me, meant, &what));
        let known = self.lives.contains_key(&source);
        let stream = self.stream(source, me);
        let next = stream.next;
        let sent = stream.sent.get_mut(number as usize);
        let before = sent.as_ref().map(|sent| (sent.fate, sent.delivered));
        if let Some(sent) = sent {
            sent.delivered = true;
        }
        stream.next = next.max(number + 1);
        self.find("forgery", invariants::forgery::delivered(known && before.is_some(), &what));
        let Some((fate, twice)) = before else { return };
        self.find("duplicates", invariants::duplicates::delivered(twice, &what));
        self.find("order", invariants::order::delivered(number, next, twice, &what));
        self.find("withdrawn", invariants::withdrawn::decided(fate, true, &what));
    }

    /// A server passes a request on that `client` sent to `origin`.
    pub fn passed(
        &mut self,
        (client, origin): (Endpoint, Endpoint),
        number: u64,
        via: Endpoint,
        to: Endpoint,
    ) {
        if let Some(sent) = self.stream(client, origin).sent.get_mut(number as usize) {
            sent.passed = Some((via, to, false));
        }
    }

    /// A request that was passed on came out at `me`.
    pub fn came_on(
        &mut self,
        (client, origin): (Endpoint, Endpoint),
        number: u64,
        via: Endpoint,
        me: Endpoint,
    ) {
        let what = format!("{client} to {origin} number {number}, passed on by {via} to {me}");
        let sent = self.stream(client, origin).sent.get_mut(number as usize);
        let passed = sent.and_then(|sent| sent.passed.as_mut());
        let known = passed.filter(|(by, to, _)| (*by, *to) == (via, me));
        let twice = known.as_ref().is_some_and(|(.., came)| *came);
        let is_known = known.is_some();
        if let Some((.., came)) = known {
            *came = true;
        }
        self.find("forgery", invariants::forgery::delivered(is_known, &what));
        self.find("duplicates", invariants::duplicates::delivered(twice, &what));
    }

    /// Whether it has raised bits at somebody who lives and has not seen them.
    pub fn has_unseen(&self, source: Endpoint) -> bool {
        let mut of_it = self.streams.iter().filter(|((by, _), _)| *by == source);
        of_it.any(|((_, at), stream)| stream.raised != 0 && self.is_alive(*at))
    }

    pub fn raised(&mut self, source: Endpoint, destination: Endpoint, bits: u64) {
        let stream = self.stream(source, destination);
        stream.raised |= bits;
        (0..RAISABLE).filter(|bit| bits >> bit & 1 != 0).for_each(|bit| stream.raises[bit] += 1);
    }

    pub fn notified(&mut self, source: Endpoint, me: Endpoint, bits: u64) {
        let stream = self.stream(source, me);
        stream.raised &= !bits;
        (0..RAISABLE).filter(|bit| bits >> bit & 1 != 0).for_each(|bit| stream.receipts[bit] += 1);
        let found = invariants::notifications::received(stream, source, me);
        self.find("notifications", found);
    }
}
