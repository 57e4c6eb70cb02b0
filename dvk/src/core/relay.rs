//! Requests that are passed on: whom they are from, and when they may be handed out.
//!
//! The server S that passes a request on publishes two slots on its lane to the new server T: whose request it is (`Via`)
//! and the request (`Relayed`); then it redirects the client C in its reply ring. C confirms to T, by a slot of its own,
//! that S owed it the answer, under a number of its own, and waits for T from then on. T hands a request out when it has both: so S cannot speak for
//! anybody who has not called it, and T answers nobody who does not wait. Why: `docs/adr/0007-relay.md`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use abi::limits::RELAY_HOLD_MS;
use abi::slot::{self, Kind, SlotCopy};
use abi::{Corrupt, Endpoint};
use shm::reply;

use super::send::NotPublished;
use super::{Call, Core, Due, Known, PeerIndex};
use crate::error::{RelayError, SendrecError};
use crate::message::{Delivery, Message, Owed, View, What};
use crate::peer::Confirmed;

const HOLD: Duration = Duration::from_millis(RELAY_HOLD_MS);

/// Which held request: via whom it came, and the slot of its client. A client has one call at a time, so a newer one of
/// the same client takes an older one's place, and what can be held is bounded by the slots of the DC.
pub(super) type Key = (Endpoint, u16);

/// What was passed on to us.
#[derive(Default)]
pub(super) struct Relays {
    held: BTreeMap<Key, Passed>,
    /// Of these, what its client has confirmed: to be handed out, first in, first out.
    ready: VecDeque<Key>,
    /// Somebody has confirmed a call to us, ever: most endpoints are never passed anything.
    ever: bool,
}

struct Passed {
    client: Endpoint,
    call: u64,
    /// Its number here, once it is confirmed.
    number: u64,
    /// `None` once it was held for too long: its client is told so should it still confirm.
    request: Option<(SlotCopy, Option<View>)>,
    /// When it was first seen to wait.
    since: Option<Duration>,
}

/// Of `Via`: the client, and the number of its call. Of `Confirm`: the server that passed the call on, its number there,
/// and its number from now on: a call that comes back to a server is another to it, so no earlier word answers it.
const VIA_BYTES: u16 = 16;
const CONFIRM_BYTES: u16 = 24;

fn named(slot: &SlotCopy, len_bytes: u16, dc: abi::DcId) -> Result<(Endpoint, u64), Corrupt> {
    let endpoint = Endpoint::from_word(slot.body[0]).filter(|endpoint| endpoint.dc == dc);
    match endpoint {
        Some(endpoint) if slot.head.len == len_bytes => Ok((endpoint, slot.body[1])),
        _ => Err(Corrupt::new("a request passed on for nobody", slot.body[0])),
    }
}

impl Relays {
    #[inline]
    pub(super) fn is_quiet(&self) -> bool {
        self.ready.is_empty()
    }

    pub(super) fn due(&self) -> Option<Due> {
        self.ready.front().map(|&(via, slot)| Due::Relayed { via, slot })
    }

    /// What is due and from this client.
    pub(super) fn due_from(&self, client: Endpoint) -> Option<Due> {
        let is_its = |key: &&Key| self.held.get(*key).is_some_and(|passed| passed.client == client);
        self.ready.iter().find(is_its).map(|&(via, slot)| Due::Relayed { via, slot })
    }

    fn remove(&mut self, key: Key) -> Option<Passed> {
        self.ready.retain(|&ready| ready != key);
        self.held.remove(&key)
    }
}

impl Core {
    /// Passes a request that we owe an answer to on to another server, as the message that its client sent. Never waits.
    ///
    /// On an error the request is still ours to answer.
    pub fn relay(
        &mut self,
        request: &Delivery,
        to: PeerIndex,
        mut message: Message,
    ) -> Result<(), RelayError> {
        let Some(owed) = request.owed() else { return Err(RelayError::NotARequest) };
        if owed.is_answered() {
            return Err(RelayError::Answered);
        }
        let (client, call) = (request.source(), owed.call());
        let Some(index) = self.find(client) else { return Err(RelayError::NotWaiting) };
        match self.peer(index) {
            Some(peer) if peer.end.is_none() && peer.side.gave_up() < call => {}
            _ => return Err(RelayError::NotWaiting),
        }
        let Some(server) = self.peer(to).map(|peer| peer.endpoint) else {
            return Err(RelayError::DeadDestination);
        };
        if server == client {
            return Err(RelayError::ToItsClient);
        }
        self.has_room_to_relay(to, &message)?;
        let mut whose = Message::new(0).inline(&[client.to_word(), call].map(u64::to_le_bytes).concat());
        self.publish(to, &mut whose, Kind::Via, 0, 0)?;
        self.publish(to, &mut message, Kind::Relayed, 0, slot::call_low(call))?;
        self.retire_reply(index, call);
        let Some(peer) = self.peer(index) else { return Err(RelayError::NotWaiting) };
        let heading = Message::new(0).heading(Kind::Reply, slot::REDIRECT, self.me, 0);
        let word = |at| if at == 0 { server.to_word() } else { 0 };
        if !shm::mutant!(RelayTellsNobody) {
            reply::publish_body(&peer.path.own, call, heading, peer.proxied, word);
        }
        peer.path.knock();
        owed.settle();
        Ok(())
    }

    /// Both slots, or neither: what is told of a request and the request itself.
    fn has_room_to_relay(&mut self, to: PeerIndex, message: &Message) -> Result<(), RelayError> {
        let lendable = match &message.loan {
            Some(loan) => self.may_lend(to, loan.len() as u64).map(|may| may && self.is_lendable(to, loan)),
            None => Ok(true),
        };
        let Some(peer) = self.peer_mut(to) else { return Err(RelayError::DeadDestination) };
        match (lendable, peer.writer.has_room_for(&peer.side, 2)) {
            (Ok(true), Ok(true)) => Ok(()),
            (Err(corrupt), _) | (_, Err(corrupt)) => Err(RelayError::Corrupt(self.condemn(to, corrupt))),
            (Ok(_), Ok(_)) => Err(RelayError::Full),
        }
    }

    /// Whom our call was passed on to, if it was: [`Core::follow`] is what comes next. An error has ended the call.
    pub fn redirected(&mut self, call: Call) -> Option<Result<Endpoint, SendrecError>> {
        let index = call.sent.peer;
        let peer = self.peer(index)?;
        let slot = match reply::read(&peer.side, call.call, peer.endpoint) {
            Ok(slot) => slot.filter(|slot| slot.head.has(slot::REDIRECT))?,
            // Whoever takes the answer condemns.
            Err(_) => return None,
        };
        let to = Endpoint::from_word(slot.body[0]).filter(|to| to.dc == self.me.dc && *to != self.me);
        let nobody = Corrupt::new("a call passed on to nobody", slot.body[0]);
        Some(to.ok_or_else(|| self.corrupt_reply(index, nobody)))
    }

    /// Our call was passed on: confirms it to the new server, which we wait for from now on.
    ///
    /// Errors: `Full` leaves the call as it was; any other has ended it.
    pub fn follow(&mut self, call: Call, to: PeerIndex, withdrawable: bool) -> Result<Call, SendrecError> {
        let number = self.calls + 1;
        if let Some(peer) = self.peer(to) {
            peer.path.own.set_calling(number);
        }
        self.follow_as(call, to, withdrawable)
    }

    /// As [`Core::follow`], for an open call.
    pub fn follow_open(&mut self, call: Call, to: PeerIndex) -> Result<Call, SendrecError> {
        self.follow_as(call, to, true)
    }

    fn follow_as(&mut self, call: Call, to: PeerIndex, withdrawable: bool) -> Result<Call, SendrecError> {
        let from = call.sent.peer;
        let Some(via) = self.peer(from).map(|peer| peer.endpoint) else {
            return Err(SendrecError::DeadSource);
        };
        // Not told to anybody, as a new call may be: the one that was passed on is not over.
        self.calls += 1;
        let number = self.calls;
        let words = [via.to_word(), call.call, number];
        let mut confirm = Message::new(0).inline(&words.map(u64::to_le_bytes).concat());
        let flags = if withdrawable { slot::WITHDRAWABLE } else { 0 };
        match self.publish(to, &mut confirm, Kind::Confirm, flags, slot::call_low(number)) {
            Ok(sent) => {
                if from != to {
                    self.end_call(from);
                }
                Ok(Call { sent, call: number, passed_on: true })
            }
            Err(NotPublished::Full) => {
                self.end_call(to);
                Err(SendrecError::Full)
            }
            // The first server had taken it.
            Err(NotPublished::Dead) => {
                self.end_call(from);
                self.end_call(to);
                Err(SendrecError::DeadSource)
            }
            Err(NotPublished::NotPermitted) => {
                self.end_call(from);
                self.end_call(to);
                Err(SendrecError::NotPermitted)
            }
            Err(NotPublished::Corrupt(corrupt)) => {
                self.end_call(from);
                self.end_call(to);
                Err(SendrecError::Corrupt(corrupt))
            }
        }
    }

    /// A slot that is about requests passed on was taken from a lane. Returns whether it was one.
    pub(super) fn take_in(&mut self, index: PeerIndex, slot: &SlotCopy) -> Result<bool, Corrupt> {
        let me = self.me;
        let Some(peer) = self.peer_mut(index) else { return Ok(false) };
        let from = peer.endpoint;
        let passing = peer.passing.take();
        match slot.head.kind {
            Kind::Via => {
                let (client, call) = named(slot, VIA_BYTES, me.dc)?;
                if client == me || client == from {
                    return Err(Corrupt::new("a request passed on to its client", client.to_word()));
                }
                peer.passing = Some((client, call));
            }
            Kind::Relayed => {
                let Some((client, call)) = passing.filter(|(_, call)| slot::call_low(*call) == slot.call)
                else {
                    return Err(Corrupt::new("a request passed on without its client", slot.call as u64));
                };
                let view = self.view_of(index, slot)?;
                let key = (from, client.slot.0);
                self.relays.remove(key);
                let request = Some((*slot, view));
                self.relays.held.insert(key, Passed { client, call, number: 0, request, since: None });
                if shm::mutant!(RelayIsNotConfirmed) {
                    self.relays.ready.push_back(key);
                }
                self.match_up(client);
            }
            Kind::Confirm => {
                let (via, call) = named(slot, CONFIRM_BYTES, me.dc)?;
                peer.confirmed = Some(Confirmed { via, call, number: slot.body[2], over_since: None });
                self.relays.ever = true;
                self.match_up(from);
            }
            Kind::Post | Kind::Send | Kind::Request | Kind::Reply => return Ok(false),
        }
        Ok(true)
    }

    /// If what a client has confirmed is here, it is due.
    fn match_up(&mut self, client: Endpoint) {
        let Some(index) = self.find(client) else { return };
        let Some(peer) = self.peers[index.0 as usize].as_mut() else { return };
        let Some(Confirmed { via, call, number, .. }) = peer.confirmed else { return };
        let key = (via, client.slot.0);
        let is_it = |passed: &&mut Passed| passed.client == client && passed.call == call;
        if shm::mutant!(RelayDropsTheClient) {
            peer.confirmed = None;
        }
        let Some(passed) = self.relays.held.get_mut(&key).filter(is_it) else { return };
        peer.confirmed = None;
        passed.number = if shm::mutant!(RelayAnswersTheOld) { call } else { number };
        if passed.request.is_some() {
            self.relays.ready.push_back(key);
        } else {
            // Dropped unanswered, which tells the client.
            drop(Owed::new(peer.path.clone(), number));
            self.relays.held.remove(&key);
        }
    }

    /// Hands out a request that was passed on and confirmed; `None` if its client gave it up meanwhile.
    pub(super) fn take_relayed(&mut self, key: Key) -> Option<Delivery> {
        let Passed { client, number, request, .. } = self.relays.remove(key)?;
        let (slot, view) = request?;
        let index = self.find(client)?;
        let peer = self.peer(index).filter(|peer| peer.end.is_none() && peer.side.gave_up() < number)?;
        let owed = Owed::new(peer.path.clone(), number);
        self.counters.received += 1;
        let what = What::Request { call: number };
        Some(Delivery::of_slot(client, what, &slot, view, Some(owed)).passed_on_by(key.0))
    }

    /// A server has ended: what it said it passes on, and has not, never comes. Its clients hear so.
    pub(super) fn abandon_calls_via(&mut self, via: Endpoint) {
        for peer in self.peers.iter_mut().flatten() {
            if let Some(confirmed) = peer.confirmed.take_if(|confirmed| confirmed.via == via) {
                // Dropped unanswered, which tells the client.
                drop(Owed::new(peer.path.clone(), confirmed.number));
            }
        }
    }

    /// Whether anything was passed on to us that is not handed out yet. Cost: two loads; a look at each pair for whoever
    /// was ever passed anything.
    pub fn holds_relays(&self) -> bool {
        !self.relays.held.is_empty()
            || (self.relays.ever && self.peers.iter().flatten().any(|peer| peer.confirmed.is_some()))
    }

    /// Drops what nobody waits for any more, and ends calls whose request never comes. Asked now and then; `now` is since
    /// any point in time that stays the same.
    pub fn tidy_relays(&mut self, now: Duration) {
        let mut gone = Vec::new();
        let mut held = std::mem::take(&mut self.relays.held);
        for (key, passed) in &mut held {
            if !self.may_still_wait(passed) {
                gone.push(*key);
            } else if now.saturating_sub(*passed.since.get_or_insert(now)) >= HOLD
                && !self.relays.ready.contains(key)
            {
                // Its client gave up before it heard of us, as far as can be known here.
                passed.request = None;
            }
        }
        self.relays.held = held;
        for key in gone {
            self.relays.remove(key);
        }
        let mut of_the_dead = Vec::new();
        for index in 0..self.peers.len() {
            let Some(Confirmed { via, .. }) = self.peers[index].as_ref().and_then(|peer| peer.confirmed)
            else {
                continue;
            };
            if !self.is_over(via) || self.index_of(via).is_some() {
                continue;
            }
            let is_lost = self.known(via) == Known::NodeDead;
            let confirmed = self.peers[index].as_mut().and_then(|peer| peer.confirmed.as_mut());
            let since = confirmed.map_or(now, |confirmed| *confirmed.over_since.get_or_insert(now));
            // The word of its end may overtake the pair on which it has passed the request on, never that of its node's.
            if is_lost || now.saturating_sub(since) >= HOLD {
                of_the_dead.push(via);
            }
        }
        for via in of_the_dead {
            self.abandon_calls_via(via);
        }
    }

    fn may_still_wait(&self, passed: &Passed) -> bool {
        let peer = self.index_of(passed.client).and_then(|index| self.peer(index));
        !self.is_over(passed.client) && peer.is_none_or(|peer| peer.side.gave_up() < passed.call)
    }

    fn index_of(&self, endpoint: Endpoint) -> Option<PeerIndex> {
        let of_slot = self.by_slot.get(&endpoint.slot.0)?;
        of_slot.iter().copied().find(|&index| self.peer(index).is_some_and(|peer| peer.endpoint == endpoint))
    }
}
