//! What a program does when it waits for nothing: it chooses, by chance, whom to say what, or to listen.

use std::collections::VecDeque;
use std::time::Duration;

use abi::Endpoint;
use abi::limits::{INTRODUCTION_WAIT_MS, POOL_SEGMENT_BYTES_MIN};
use abi::member::{Refusal, SegmentKind};
use dvk::core::{Call, Known, PeerIndex};
use dvk::{Message, PostError, SendError, SendrecError, Unavailable};
use shm::pool::Loan;

use super::{Body, Limit, Next, On, Scene, State, Verb};
use crate::invariants::payload::pattern;
use crate::ledger::{Fate, WAKE};
use crate::site::node_of;

/// Endpoints remembered, so that the dead are called too.
const KNOWN_MAX: usize = 24;
/// Pool segments beside the first.
const POOLS_MAX: u32 = 3;
/// Inline bytes of every message: number, whom it is meant for, length of its extent.
pub(super) const STAMP_BYTES: usize = 20;

impl Body {
    pub(super) fn idle(&mut self, scene: &mut Scene<'_>, known: &mut VecDeque<Endpoint>) -> Next {
        if scene.healing {
            return self.drain(scene);
        }
        if let Some(next) = self.tidy(scene) {
            return next;
        }
        if scene.missing.is_some() && !scene.dice.one_in(8) {
            return self.make_up(scene, known);
        }
        match scene.dice.below(100) {
            0..44 => {
                let notifications = scene.dice.below(4) != 0;
                let limit = self.short(scene);
                scene.count(if notifications { "receive" } else { "receive_request" });
                self.wait(scene, On::Any { notifications }, limit, None)
            }
            44..50 => {
                let Some(source) = self.choose(scene, known) else { return self.think(scene) };
                let limit = self.short(scene);
                scene.count("receive from one");
                self.wait(scene, On::From { source }, limit, None)
            }
            50..70 => self.say(scene, known, Verb::Post),
            70 => self.watch_or_leave(scene, known),
            71..74 => self.copy(scene),
            74..83 => self.say(scene, known, Verb::Send),
            83..94 => self.say(scene, known, Verb::Call),
            94 => self.say(scene, known, Verb::Wake),
            95 => match self.choose(scene, known) {
                Some(to) if !scene.dice.one_in(4) => {
                    self.grant(scene, to);
                    self.think(scene)
                }
                _ => self.revoke(scene),
            },
            96 => self.revoke(scene),
            _ => {
                let bits = 1 << scene.dice.below(32) | 1 << scene.dice.below(32);
                self.say(scene, known, Verb::Notify(bits))
            }
        }
    }

    /// The call that nobody has made yet, or what leads to it.
    fn make_up(&mut self, scene: &mut Scene<'_>, known: &mut VecDeque<Endpoint>) -> Next {
        match scene.missing {
            Some("copy") => self.copy(scene),
            Some("revoke") => self.revoke(scene),
            Some("grant") => {
                if let Some(to) = self.choose(scene, known) {
                    self.grant(scene, to);
                }
                self.think(scene)
            }
            Some("unbind" | "wait_bind" | "wait_unbind") => self.watch_or_leave(scene, known),
            Some("notify") => self.say(scene, known, Verb::Notify(1)),
            Some("wake") => self.say(scene, known, Verb::Wake),
            // Seldom: whoever waits for an answer of this one may stand behind a lane full of posts.
            _ if scene.dice.one_in(6) => self.say(scene, known, Verb::Call),
            _ => {
                let limit = Limit::Until(scene.now + Duration::from_millis(20));
                scene.count("receive_request");
                self.wait(scene, On::Any { notifications: false }, limit, None)
            }
        }
    }

    /// Lets go of views and answers requests, now and then.
    fn tidy(&mut self, scene: &mut Scene<'_>) -> Option<Next> {
        if !self.views.is_empty() && (scene.dice.one_in(16) || self.views.len() > 24) {
            let at = scene.dice.below(self.views.len() as u64) as usize;
            self.let_go(scene, at);
        }
        if !self.owed.is_empty() && scene.dice.below(3) != 0 {
            self.answer(scene);
            return Some(self.think(scene));
        }
        None
    }

    pub(super) fn let_go(&mut self, scene: &mut Scene<'_>, at: usize) {
        let Some(held) = self.views.remove(at) else { return };
        let wrong = crate::invariants::payload::read(&held.wanted, &held.view.to_vec(), "held", &held.what);
        scene.ledger.find("payload", wrong);
    }

    /// When all is healed: answer, let go, receive, sleep.
    fn drain(&mut self, scene: &mut Scene<'_>) -> Next {
        while !self.views.is_empty() {
            self.let_go(scene, 0);
        }
        for _ in 0..self.owed.len() {
            self.answer(scene);
        }
        let limit = Limit::Until(scene.now + Duration::from_secs(1));
        self.wait(scene, On::Any { notifications: true }, limit, None)
    }

    fn short(&mut self, scene: &mut Scene<'_>) -> Limit {
        match scene.dice.below(4) {
            0 => Limit::Zero,
            1 => Limit::Until(scene.now + scene.dice.us(1, 50)),
            2 => Limit::Until(scene.now + scene.dice.us(50, 3_000)),
            _ => Limit::Until(scene.now + scene.dice.us(3_000, 60_000)),
        }
    }

    /// Whom to talk to: who is bound in a slot now, or somebody from before.
    pub(super) fn choose(
        &mut self,
        scene: &mut Scene<'_>,
        known: &mut VecDeque<Endpoint>,
    ) -> Option<Endpoint> {
        if scene.dice.one_in(10)
            && let Some(old) = known.get(scene.dice.below(known.len() as u64) as usize)
        {
            return Some(*old).filter(|old| *old != self.me);
        }
        let slot = *scene.dice.pick(scene.slots)?;
        let found = self.core.lookup(slot).filter(|found| *found != self.me)?;
        if !known.contains(&found) {
            known.push_back(found);
            if known.len() > KNOWN_MAX {
                known.pop_front();
            }
        }
        Some(found)
    }

    fn say(&mut self, scene: &mut Scene<'_>, known: &mut VecDeque<Endpoint>, verb: Verb) -> Next {
        let Some(to) = self.choose(scene, known) else { return self.think(scene) };
        let near = node_of(to) == node_of(self.me);
        scene.count(match (verb, near) {
            (Verb::Post, true) => "post, local",
            (Verb::Post, false) => "post, remote",
            (Verb::Send, true) => "send, local",
            (Verb::Send, false) => "send, remote",
            (Verb::Call, true) => "sendrec, local",
            (Verb::Call, false) => "sendrec, remote",
            (Verb::Notify(_), true) => "notify, local",
            (Verb::Notify(_), false) => "notify, remote",
            (Verb::Wake, true) => "wake, local",
            (Verb::Wake, false) => "wake, remote",
            (Verb::Follow { .. }, _) => "follow",
        });
        // Upwards only, so that no two wait for one another for ever.
        let endless = to.slot > self.me.slot && scene.missing.is_none();
        let limit = if endless && scene.dice.one_in(2) { Limit::Forever } else { self.short(scene) };
        let limit =
            if matches!(verb, Verb::Post | Verb::Notify(_) | Verb::Wake) { Limit::Forever } else { limit };
        match self.core.find(to) {
            Some(index) => {
                let pulled = self.core.pull(&mut Body::hands(&mut self.home, self.conn, scene));
                if pulled.is_err() {
                    return self.think(scene);
                }
                self.speak(scene, index, to, verb, limit)
            }
            None => {
                let bound = scene.now + Duration::from_millis(INTRODUCTION_WAIT_MS);
                self.introducing(scene, to, verb, (limit, bound, Duration::from_micros(50)))
            }
        }
    }

    pub(super) fn introducing(
        &mut self,
        scene: &mut Scene<'_>,
        to: Endpoint,
        verb: Verb,
        (limit, bound, pause): (Limit, fabric::Time, Duration),
    ) -> Next {
        if let Some(index) = self.core.find(to) {
            return self.speak(scene, index, to, verb, limit);
        }
        let unheard_of = matches!(verb, Verb::Follow { .. }) && self.core.is_unheard_of(to);
        if self.core.known(to) != Known::Alive && !(unheard_of && scene.now < bound) {
            return if unheard_of {
                self.not_followed(scene, to, verb)
            } else {
                self.dead_end(scene, to, verb)
            };
        }
        let introduced = match unheard_of {
            true => Ok(None),
            false => Body::hands(&mut self.home, self.conn, scene).introduce(to),
        };
        match introduced {
            Ok(Some(introduced)) => {
                let index = self.core.introduce(introduced);
                return self.speak(scene, index, to, verb, limit);
            }
            Ok(None) => {}
            Err(Unavailable::Refused(Refusal::NoSuchEndpoint)) => return self.dead_end(scene, to, verb),
            Err(_) => {
                scene.row("introduction unavailable");
                return self.not_followed(scene, to, verb);
            }
        }
        if limit.deadline(scene.now).is_some_and(|deadline| scene.now >= deadline) {
            scene.row("introduction would block");
            return self.not_followed(scene, to, verb);
        }
        if scene.now >= bound {
            scene.row("introduction too slow");
            return self.not_followed(scene, to, verb);
        }
        let _ = self.core.pull(&mut Body::hands(&mut self.home, self.conn, scene));
        let pause_next = (pause * 2).min(Duration::from_millis(20));
        self.state = State::Introducing { to, verb, limit, bound, pause: pause_next };
        Next::At(scene.now + pause)
    }

    fn dead_end(&mut self, scene: &mut Scene<'_>, to: Endpoint, verb: Verb) -> Next {
        scene.told_dead(self.me, to);
        scene.row("dead before the introduction");
        self.not_followed(scene, to, verb)
    }

    /// The new server of a call cannot be reached: the call is given up, as `Binding::follow` does.
    fn not_followed(&mut self, scene: &mut Scene<'_>, to: Endpoint, verb: Verb) -> Next {
        if let Verb::Follow { call, asked, number } = verb {
            let mut hands = Body::hands(&mut self.home, self.conn, scene);
            let why = self.core.give_up(call, true, &mut hands).unwrap_or(SendrecError::TimedOutUnknown);
            self.called(scene, (asked, to), number, Err(why));
        }
        self.think(scene)
    }

    /// Confirms a call to its new server, when there is room.
    fn follow(
        &mut self,
        scene: &mut Scene<'_>,
        (index, to): (PeerIndex, Endpoint),
        (call, asked, number): (Call, Endpoint, u64),
        limit: Limit,
    ) -> Next {
        let verb = Verb::Follow { call, asked, number };
        match self.core.follow(call, index, limit != Limit::Forever) {
            Ok(call) => {
                let on = On::Call { call, to: asked, server: to, number };
                self.wait(scene, on, limit, Some(index))
            }
            Err(SendrecError::Full)
                if limit.deadline(scene.now).is_some_and(|deadline| scene.now >= deadline) =>
            {
                self.not_followed(scene, to, verb)
            }
            Err(SendrecError::Full) => {
                let (bound, pause) = (scene.now, Duration::from_micros(200));
                self.state = State::Introducing { to, verb, limit, bound, pause };
                Next::At(scene.now + pause)
            }
            Err(why) => {
                self.called(scene, (asked, to), number, Err(why));
                self.think(scene)
            }
        }
    }

    fn speak(
        &mut self,
        scene: &mut Scene<'_>,
        index: PeerIndex,
        to: Endpoint,
        verb: Verb,
        limit: Limit,
    ) -> Next {
        match verb {
            Verb::Notify(bits) => {
                if self.core.notify(index, bits).is_ok() {
                    scene.ledger.raised(self.me, to, bits.into());
                } else {
                    scene.told_dead(self.me, to);
                    scene.row("notify to a dead one");
                }
                self.think(scene)
            }
            Verb::Wake => {
                if self.core.wake(index).is_ok() {
                    scene.ledger.raised(self.me, to, WAKE);
                } else {
                    scene.told_dead(self.me, to);
                    scene.row("wake of a dead one");
                }
                self.think(scene)
            }
            Verb::Post => self.post(scene, index, to),
            Verb::Send => self.send(scene, index, to, limit),
            Verb::Call => self.call(scene, index, to, limit),
            Verb::Follow { call, asked, number } => {
                self.follow(scene, (index, to), (call, asked, number), limit)
            }
        }
    }

    fn post(&mut self, scene: &mut Scene<'_>, index: PeerIndex, to: Endpoint) -> Next {
        let burst =
            if scene.dice.one_in(12) { scene.dice.between(20, 300) } else { scene.dice.between(1, 6) };
        for _ in 0..burst {
            let number = scene.ledger.next_number(self.me, to);
            let message = self.message(scene, to, number);
            match self.core.post(index, message) {
                Ok(()) => scene.ledger.published(self.me, to, Fate::Accepted),
                Err(PostError::Full(back)) => {
                    drop(back);
                    scene.row("lane full");
                    if scene.dice.one_in(2) {
                        return self.think(scene);
                    }
                    self.core.want_returns(index, true);
                    let limit = self.short(scene);
                    return self.wait(scene, On::Room { index, to }, limit, Some(index));
                }
                Err(PostError::DeadDestination) => {
                    scene.told_dead(self.me, to);
                    scene.row(if node_of(to) == node_of(self.me) {
                        "post to a dead one, local"
                    } else {
                        "post to a dead one, remote"
                    });
                    break;
                }
                Err(why @ (PostError::Corrupt(_) | PostError::NotPermitted)) => {
                    scene.ledger.find("corrupt", Some(format!("{} posting to {to}: {why}", self.me)));
                    break;
                }
                Err(PostError::Unavailable(_)) => break,
            }
        }
        self.think(scene)
    }

    fn send(&mut self, scene: &mut Scene<'_>, index: PeerIndex, to: Endpoint, limit: Limit) -> Next {
        let number = scene.ledger.next_number(self.me, to);
        let mut message = self.message(scene, to, number);
        match self.core.start_send(index, &mut message, limit != Limit::Forever) {
            Ok(sent) => {
                scene.ledger.published(self.me, to, Fate::Pending);
                self.wait(scene, On::Sent { sent, to, number }, limit, Some(index))
            }
            Err(why) => {
                self.not_started(
                    scene,
                    to,
                    why == SendError::DeadDestination,
                    matches!(why, SendError::Corrupt(_)),
                );
                self.think(scene)
            }
        }
    }

    fn call(&mut self, scene: &mut Scene<'_>, index: PeerIndex, to: Endpoint, limit: Limit) -> Next {
        let number = scene.ledger.next_number(self.me, to);
        let mut message = self.message(scene, to, number);
        match self.core.start_call(index, &mut message, limit != Limit::Forever) {
            Ok(call) => {
                scene.ledger.published(self.me, to, Fate::Pending);
                self.wait(scene, On::Call { call, to, server: to, number }, limit, Some(index))
            }
            Err(why) => {
                let corrupt = matches!(why, SendrecError::Corrupt(_));
                self.not_started(scene, to, why == SendrecError::DeadDestination, corrupt);
                self.think(scene)
            }
        }
    }

    fn not_started(&mut self, scene: &mut Scene<'_>, to: Endpoint, dead: bool, corrupt: bool) {
        if corrupt {
            scene.ledger.find("corrupt", Some(format!("{} sending to {to}", self.me)));
        }
        if dead {
            scene.told_dead(self.me, to);
        }
        let near = node_of(to) == node_of(self.me);
        scene.row(match (dead, near) {
            (true, true) => "send to a dead one, local",
            (true, false) => "send to a dead one, remote",
            (false, _) => "lane full",
        });
    }

    /// A message that says which it is, with a loan now and then.
    fn message(&mut self, scene: &mut Scene<'_>, to: Endpoint, number: u64) -> Message {
        let loan = if scene.dice.below(10) < 3 { self.loan(scene) } else { None };
        self.stamped(scene, (self.me, to, to), number, loan)
    }

    /// A message of `from` for `to`, that was first sent to `origin`.
    pub(super) fn stamped(
        &mut self,
        scene: &mut Scene<'_>,
        (from, to, origin): (Endpoint, Endpoint, Endpoint),
        number: u64,
        loan: Option<Loan>,
    ) -> Message {
        let mut inline = [0; 96];
        let extent_bytes = loan.as_ref().map_or(u32::MAX, |loan| loan.len() as u32);
        inline[..8].copy_from_slice(&number.to_le_bytes());
        inline[8..16].copy_from_slice(&origin.to_word().to_le_bytes());
        inline[16..STAMP_BYTES].copy_from_slice(&extent_bytes.to_le_bytes());
        let room = if loan.is_some() { 72 } else { 96 };
        let len = STAMP_BYTES + scene.dice.below((room - STAMP_BYTES + 1) as u64) as usize;
        inline[STAMP_BYTES..len].copy_from_slice(&pattern(to, from, number, len - STAMP_BYTES));
        let message = Message::new(number as u32);
        match loan {
            Some(mut loan) => {
                let len_bytes = loan.len();
                loan.copy_from_slice(&pattern(from, to, number, len_bytes));
                message.with(loan).inline(&inline[..len])
            }
            None => message.inline(&inline[..len]),
        }
    }

    /// A buffer of some length, as `Binding::loan` gets one.
    pub(super) fn loan(&mut self, scene: &mut Scene<'_>) -> Option<Loan> {
        let log = scene.dice.below(scene.loan_log_max + 1);
        let len = if scene.dice.one_in(20) { 0 } else { scene.dice.below(1 << log) as u32 };
        scene.count("loan");
        if let Some(loan) = self.core.pool().loan(len) {
            return Some(loan);
        }
        self.core.bring_home_from_all();
        if let Some(loan) = self.core.pool().loan(len) {
            return Some(loan);
        }
        if self.home.pools > POOLS_MAX {
            return None;
        }
        let mut hands = Body::hands(&mut self.home, self.conn, scene);
        let index = hands.new_segment(SegmentKind::Pool, POOL_SEGMENT_BYTES_MIN).ok()?;
        let map = hands.site.pool(hands.home.memory, index)?;
        self.home.pools += 1;
        self.core.pool().add_segment(index, map);
        self.core.pool().loan(len)
    }
}
