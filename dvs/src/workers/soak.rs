//! One of those who do everything with one another: all calls, at random, and a book of each message that was accepted and of
//! each that came.
//!
//! Key types: [`Book`] (what is told), `Soaker`. Neighbour: `soak`, which compares the books.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use abi::Endpoint;
use abi::grant::{Access, Grant};
use anyhow::{Context, Result};
use dvk::{
    Binding, CopyEnd, CopyError, Delivery, From, GrantSegment, Message, NotifyError, PostError, ReceiveError,
    SendError, SendrecError, Timeout, View, Wait, What,
};
use serde::{Deserialize, Serialize};

use super::chance::{Chance, mixed};
use super::{Orders, report};

const PLAIN: u32 = 40;
/// Asks for a grant.
const GRANT: u32 = 41;
/// How long a call may take: mostly too short for one whose receiver calls somebody itself, so that time runs out often.
const SHORT: Timeout = Timeout::After(Duration::from_millis(10));
const LONG: Timeout = Timeout::After(Duration::from_millis(500));
/// While nothing is begun any more.
const RESTING: Timeout = Timeout::After(Duration::from_millis(5));
const LOAN_BYTES_MAX: u64 = 48 << 10;
const SEGMENT_BYTES: u64 = 64 << 10;
const TAKEN_AT_ONCE: u32 = 64;
const POSTED_AT_ONCE: u64 = 32;
/// Requests and views that are kept for a while, and grants that live.
const KEPT_MAX: usize = 6;
const GRANTS_MAX: usize = 32;

/// What was sent to one endpoint.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sent {
    /// The number of the last: those that were refused are not used again.
    pub number: u64,
    /// Accepted: each is delivered once.
    pub accepted: u64,
    /// Those of which it is not known.
    pub unsure: u64,
}

/// What came from one endpoint.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Came {
    pub number: u64,
    pub taken: u64,
    /// Twice, or after a later one.
    pub out_of_turn: u64,
    pub damaged: u64,
}

/// What one of them has done.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Book {
    pub sent: BTreeMap<String, Sent>,
    pub came: BTreeMap<String, Came>,
    /// Other things that went well, by name.
    pub done: BTreeMap<String, u64>,
    /// How calls were refused, by name.
    pub refused: BTreeMap<String, u64>,
    /// Told at rest, as all below: loans that are out.
    pub loans: u64,
    /// Numbers that were refused, by receiver, and how; and those of which it is not known.
    pub refused_numbers: BTreeMap<String, Vec<(u64, String)>>,
    pub unsure_numbers: BTreeMap<String, Vec<u64>>,
    /// Numbers that did not come though a later one did, by sender.
    pub missed: BTreeMap<String, Vec<u64>>,
    pub strange: Vec<String>,
}

/// How a call ended for its message.
enum Fate {
    Accepted,
    Refused,
    Unsure,
}

/// What is told at rest only: long by then.
#[derive(Default)]
struct Lists {
    refused: BTreeMap<String, Vec<(u64, String)>>,
    unsure: BTreeMap<String, Vec<u64>>,
    missed: BTreeMap<String, Vec<u64>>,
}

struct Soaker<'a> {
    me: &'a mut Binding,
    chance: Chance,
    peers: Vec<Endpoint>,
    book: Book,
    lists: Lists,
    owed: VecDeque<Delivery>,
    views: Vec<(View, u64)>,
    /// Ours, that others copy from, and what is granted of it.
    lent: Option<GrantSegment>,
    given: VecDeque<Grant>,
    /// Ours, that we copy to, and what others have granted us.
    buffer: Option<GrantSegment>,
    grants: BTreeMap<Endpoint, Grant>,
}

/// Lives until its input ends. Orders: `peers` and endpoints, `tell`, `rest`.
pub fn soak(me: &mut Binding, seed: u64, orders: &Orders) -> Result<()> {
    me.set_wait(Wait::Block);
    report(&me.whoami().to_string())?;
    let mut soaker = Soaker {
        me,
        chance: Chance(seed | 1),
        peers: Vec::new(),
        book: Book::default(),
        lists: Lists::default(),
        owed: VecDeque::new(),
        views: Vec::new(),
        lent: None,
        given: VecDeque::new(),
        buffer: None,
        grants: BTreeMap::new(),
    };
    let mut resting = false;
    loop {
        while let Some(order) = orders.look() {
            let mut words = order.split(' ');
            match words.next() {
                Some("peers") => {
                    let all = words.map(str::parse).collect::<Result<Vec<Endpoint>, _>>();
                    soaker.peers = all.context("endpoints")?;
                    soaker.peers.retain(|peer| *peer != soaker.me.whoami());
                }
                Some("rest") => resting = true,
                _ => {
                    if resting {
                        soaker.book.loans = soaker.me.audit().map_or(u64::MAX, |tally| tally.loans);
                        soaker.book.refused_numbers.clone_from(&soaker.lists.refused);
                        soaker.book.unsure_numbers.clone_from(&soaker.lists.unsure);
                        soaker.book.missed.clone_from(&soaker.lists.missed);
                    }
                    report(&soaker.book)?;
                }
            }
        }
        if resting {
            soaker.owed.drain(..).for_each(drop);
            soaker.views.clear();
            soaker.take(RESTING);
        } else {
            soaker.act();
        }
    }
}

fn byte(seed: u64, at: usize) -> u8 {
    (seed as usize ^ at ^ at >> 7) as u8
}

fn is_of(bytes: &[u8], seed: u64) -> bool {
    bytes.iter().enumerate().all(|(at, b)| *b == byte(seed, at))
}

fn inline(source: Endpoint, number: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&mixed(number ^ source.to_word().rotate_left(17)).to_le_bytes());
    bytes
}

fn number_in(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?))
}

impl Soaker<'_> {
    fn somebody(&mut self) -> Option<Endpoint> {
        let at = self.chance.below(self.peers.len().max(1) as u64) as usize;
        self.peers.get(at).copied()
    }

    fn act(&mut self) {
        for _ in 0..TAKEN_AT_ONCE {
            if !self.take(Timeout::Zero) {
                break;
            }
        }
        while self.owed.len() >= KEPT_MAX || (!self.owed.is_empty() && self.chance.below(2) == 0) {
            let request = self.owed.pop_front();
            request.iter().for_each(|request| self.answer(request));
        }
        let Some(peer) = self.somebody() else {
            self.take(RESTING);
            return;
        };
        match self.chance.below(16) {
            0..=4 => (0..self.chance.below(POSTED_AT_ONCE)).for_each(|_| self.post(peer)),
            5 | 6 => self.send(peer),
            7..=9 => self.call(peer, PLAIN),
            10 => self.notify(peer),
            11 => self.copy(peer),
            12 => self.wake(peer),
            13 => {
                self.views.truncate(KEPT_MAX / 2);
                self.take_back();
            }
            _ => {
                self.take(RESTING);
            }
        }
    }

    fn patience(&mut self) -> Timeout {
        if self.chance.below(16) == 0 { LONG } else { SHORT }
    }

    /// The next message to a peer, now and then with a loan.
    fn message(&mut self, to: Endpoint, kind: u32) -> (Message, u64) {
        let sent = self.book.sent.entry(to.to_string()).or_default();
        sent.number += 1;
        let number = sent.number;
        let mut message = Message::new(kind).inline(&inline(self.me.whoami(), number));
        if kind == PLAIN && self.chance.below(5) == 0 {
            let len = self.chance.below(LOAN_BYTES_MAX) as usize;
            if let Ok(mut loan) = self.me.loan(len) {
                loan.iter_mut().enumerate().for_each(|(at, b)| *b = byte(number, at));
                message = message.with(loan);
                self.count("loan");
            }
        }
        (message, number)
    }

    fn count(&mut self, what: &str) {
        *self.book.done.entry(what.to_owned()).or_insert(0) += 1;
    }

    /// What became of the last message to an endpoint.
    fn concluded(&mut self, to: Endpoint, fate: &Fate, why: &str) {
        let to = to.to_string();
        let sent = self.book.sent.entry(to.clone()).or_default();
        let number = sent.number;
        match fate {
            Fate::Accepted => sent.accepted += 1,
            Fate::Unsure => {
                sent.unsure += 1;
                self.lists.unsure.entry(to).or_default().push(number);
            }
            Fate::Refused => self.lists.refused.entry(to).or_default().push((number, why.to_owned())),
        }
        if !why.is_empty() {
            self.refused(why);
        }
    }

    fn refused(&mut self, why: &str) {
        *self.book.refused.entry(why.to_owned()).or_insert(0) += 1;
    }

    /// A peer that is no more is not called again before the next list.
    fn gone(&mut self, peer: Endpoint) {
        self.peers.retain(|p| *p != peer);
        self.grants.remove(&peer);
    }

    fn post(&mut self, to: Endpoint) {
        let (message, _) = self.message(to, PLAIN);
        match self.me.post(to, message) {
            Ok(()) => self.concluded(to, &Fate::Accepted, ""),
            Err(PostError::Full(_)) => self.concluded(to, &Fate::Refused, "Full"),
            Err(why) => {
                self.concluded(to, &Fate::Refused, &format!("{why:?}"));
                if matches!(why, PostError::DeadDestination) {
                    self.gone(to);
                }
            }
        }
    }

    fn send(&mut self, to: Endpoint) {
        let (message, _) = self.message(to, PLAIN);
        let patience = self.patience();
        let Err(why) = self.me.send(to, message, patience) else {
            return self.concluded(to, &Fate::Accepted, "");
        };
        let fate = match why {
            SendError::TimedOutTaken => Fate::Accepted,
            SendError::TimedOutUnknown | SendError::DeliveryUnknown => Fate::Unsure,
            _ => Fate::Refused,
        };
        self.concluded(to, &fate, &format!("{why:?}"));
        if matches!(why, SendError::DeadDestination | SendError::DeliveryUnknown) {
            self.gone(to);
        }
    }

    fn call(&mut self, to: Endpoint, kind: u32) {
        let (message, number) = self.message(to, kind);
        let patience = self.patience();
        let why = match self.me.sendrec(to, message, patience) {
            Ok(reply) => {
                self.concluded(to, &Fate::Accepted, "");
                self.count("sendrec");
                return self.replied(to, kind, number, &reply);
            }
            Err(why) => why,
        };
        let fate = match why {
            SendrecError::TimedOutTaken | SendrecError::DeadSource | SendrecError::Abandoned => {
                Fate::Accepted
            }
            SendrecError::TimedOutUnknown | SendrecError::DeliveryUnknown | SendrecError::Deadlock => {
                Fate::Unsure
            }
            _ => Fate::Refused,
        };
        self.concluded(to, &fate, &format!("{why:?}"));
        if matches!(why, SendrecError::DeadDestination | SendrecError::DeliveryUnknown) {
            self.gone(to);
        }
    }

    fn replied(&mut self, to: Endpoint, kind: u32, number: u64, reply: &Delivery) {
        if kind == GRANT {
            match Grant::from_bytes(reply.inline()) {
                Some(grant) => drop(self.grants.insert(to, grant)),
                // Whoever had no memory to grant says so.
                None => self.count("sendrec without a grant"),
            }
        } else if number_in(reply.inline()) != Some(!number) {
            self.strange(format!("the reply of {to} to {number} is {:?}", reply.inline()));
        }
    }

    fn strange(&mut self, what: String) {
        if self.book.strange.len() < 20 {
            self.book.strange.push(what);
        }
    }

    fn notify(&mut self, to: Endpoint) {
        let bits = 1 << self.chance.below(32);
        match self.me.notify(to, bits) {
            Ok(()) => self.count("notify"),
            Err(NotifyError::DeadDestination) => self.gone(to),
            Err(why) => self.refused(&format!("notify: {why:?}")),
        }
    }

    fn wake(&mut self, to: Endpoint) {
        match self.me.wake(to) {
            Ok(()) => self.count("wake"),
            Err(NotifyError::DeadDestination) => self.gone(to),
            Err(why) => self.refused(&format!("wake: {why:?}")),
        }
    }

    fn copy(&mut self, from: Endpoint) {
        if self.buffer.is_none() {
            self.buffer = self.me.grant_segment(SEGMENT_BYTES, Access::Write).ok();
        }
        let (Some(buffer), Some(grant)) = (&self.buffer, self.grants.get(&from)) else {
            return self.call(from, GRANT);
        };
        let len = SEGMENT_BYTES;
        match self.me.copy(CopyEnd::Granted(grant, 0), CopyEnd::Own(buffer, 0), len, LONG) {
            Ok(()) => {
                let mut bytes = vec![0; len as usize];
                let read = buffer.read_into(0, &mut bytes);
                if read.is_err() || !is_of(&bytes, from.to_word()) {
                    self.strange(format!("a copy from {from} brought other bytes"));
                }
                self.count("copy");
            }
            Err(why) => {
                self.refused(&format!("copy: {why:?}"));
                if matches!(why, CopyError::NoGrant | CopyError::DeadSource) {
                    self.grants.remove(&from);
                }
                if matches!(why, CopyError::TimedOutUnknown) {
                    // Bytes of it may still come: another buffer.
                    self.buffer = None;
                }
            }
        }
    }

    /// Revokes the oldest grant.
    fn take_back(&mut self) {
        if let Some(grant) = self.given.pop_front()
            && self.me.revoke(&grant).is_ok()
        {
            self.count("revoke");
        }
    }

    /// Whether something was there.
    fn take(&mut self, timeout: Timeout) -> bool {
        match self.me.receive(From::Any, timeout) {
            Ok(delivery) => {
                self.enter(delivery);
                return true;
            }
            Err(ReceiveError::TimedOut | ReceiveError::WouldBlock) => {}
            Err(why) => self.strange(format!("receive: {why:?}")),
        }
        false
    }

    fn enter(&mut self, mut delivery: Delivery) {
        let what = delivery.what();
        match what {
            What::Notification { .. } => return self.count("notification"),
            What::Woken => return self.count("woken"),
            What::Message | What::Request { .. } => {}
            other => return self.strange(format!("{other:?} from {}", delivery.source())),
        }
        let (source, number) = (delivery.source(), number_in(delivery.inline()).unwrap_or(0));
        let whole = delivery.inline() == inline(source, number);
        let view = delivery.take_view();
        let whole = whole && view.as_ref().is_none_or(|view| is_of(&view.to_vec(), number));
        if delivery.via().is_some() {
            // It was counted where it came first.
            self.count("relayed request");
            if !whole {
                self.strange(format!("a damaged request of {source} by way of another"));
            }
        } else {
            let came = self.book.came.entry(source.to_string()).or_default();
            came.taken += 1;
            came.damaged += u64::from(!whole);
            came.out_of_turn += u64::from(number <= came.number);
            if number > came.number + 1 && whole {
                let missed = self.lists.missed.entry(source.to_string()).or_default();
                missed.extend(came.number + 1..number);
            }
            came.number = came.number.max(number);
        }
        if let Some(view) = view
            && self.views.len() < KEPT_MAX
        {
            self.views.push((view, number));
        }
        if matches!(what, What::Request { .. }) {
            self.owed.push_back(delivery);
        }
    }

    fn answer(&mut self, request: &Delivery) {
        if request.kind() == GRANT {
            return self.grant(request);
        }
        match self.chance.below(12) {
            // Dropped: that answers it too.
            0 => {}
            1 | 2 => {
                let Some(other) = self.somebody().filter(|other| *other != request.source()) else { return };
                if self.me.relay(request, other).is_ok() {
                    self.count("relay");
                }
            }
            _ => {
                let number = number_in(request.inline()).unwrap_or(0);
                let reply = Message::new(PLAIN).inline(&(!number).to_le_bytes());
                // A client that has given up waits no more.
                if self.me.reply(request, reply).is_ok() {
                    self.count("reply");
                }
            }
        }
    }

    fn grant(&mut self, request: &Delivery) {
        if self.lent.is_none()
            && let Ok(segment) = self.me.grant_segment(SEGMENT_BYTES, Access::Read)
        {
            let seed = self.me.whoami().to_word();
            let bytes: Vec<u8> = (0..SEGMENT_BYTES as usize).map(|at| byte(seed, at)).collect();
            if segment.write_from(0, &bytes).is_ok() {
                self.lent = Some(segment);
            }
        }
        if self.given.len() >= GRANTS_MAX {
            self.take_back();
        }
        let lent = self.lent.as_ref();
        let grant = lent.and_then(|lent| self.me.grant(lent, 0, SEGMENT_BYTES, request.source()).ok());
        let bytes = grant.as_ref().map(Grant::to_bytes);
        let reply = Message::new(GRANT).inline(bytes.as_ref().map_or(&[][..], |bytes| bytes));
        if self.me.reply(request, reply).is_ok() {
            self.count("reply");
        }
        self.given.extend(grant);
    }
}
