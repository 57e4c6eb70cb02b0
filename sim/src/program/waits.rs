//! How a call waits and ends: `dvk::Binding`'s loop, cut where it would sleep.

use std::time::Duration;

use abi::Endpoint;
use abi::limits::{INTRODUCTION_WAIT_MS, RESCAN_FIRST_MS, RESCAN_MAX_MS, WITHDRAW_WAIT_MS};
use dvk::core::{Accepts, PeerIndex};
use dvk::message::{Delivery, What};
use dvk::{ReceiveError, SendError, SendrecError};
use shm::lane::Withdrawal;

use super::verbs::STAMP_BYTES;
use super::{Body, Held, Limit, Next, On, Owed, Scene, State, Verb, Wait};
use crate::invariants::{payload, relays, replies, wakes};
use crate::ledger::{Fate, WAKE};
use crate::site::node_of;

/// How thoroughly to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    Quick,
    Thorough,
    Last,
}

/// How a wait ended.
enum Found {
    Got(Delivery),
    Received(ReceiveError),
    Sent(Result<(), SendError>),
    Called(Result<Box<Delivery>, SendrecError>),
    PassedOn(Result<Endpoint, SendrecError>),
    Room(bool),
    Copied(super::copies::Answered),
}

impl Body {
    pub(super) fn wait(
        &mut self,
        scene: &mut Scene<'_>,
        on: On,
        limit: Limit,
        index: Option<PeerIndex>,
    ) -> Next {
        if let (Some(index), true) = (index, self.spins > 0) {
            self.core.attend_to(index);
        }
        let wait = Wait {
            on,
            limit,
            deadline: limit.deadline(scene.now),
            spins: self.spins,
            rescan: Duration::from_millis(RESCAN_FIRST_MS),
            lying: false,
        };
        self.waiting(scene, wait)
    }

    /// One turn of the waiting loop.
    pub(super) fn waiting(&mut self, scene: &mut Scene<'_>, mut wait: Wait) -> Next {
        let (doorbells, bell) = (scene.site.doorbells.clone(), self.bell());
        let over = |now| wait.deadline.is_some_and(|deadline| now >= deadline);
        let mut by_itself = false;
        if std::mem::take(&mut wait.lying) {
            by_itself = scene.site.sleeps(bell) && !over(scene.now) && !scene.rings_under_way;
            if scene.site.sleeps(bell) && !over(scene.now) {
                self.core.suspect_all(scene.now);
                let _ = self.core.pull_now(&mut Body::hands(&mut self.home, self.conn, scene));
                // A daemon that died while it was asked has a successor that rings everybody.
                by_itself &= !scene.site.is_to_ring(bell);
                wait.rescan = (wait.rescan * 2).min(Duration::from_millis(RESCAN_MAX_MS));
            }
            doorbells.awake(bell);
            wait.spins = self.spins;
        }
        if let Some(found) = self.look(scene, wait.on, Look::Quick) {
            let told = by_itself.then(|| found.name());
            scene.ledger.find("wakes", wakes::looked_again(&self.me, told));
            return self.end_wait(scene, (wait.on, wait.limit), found);
        }
        if wait.spins > 0 {
            wait.spins -= 1;
            if let Some(found) = self.look(scene, wait.on, Look::Thorough) {
                return self.end_wait(scene, (wait.on, wait.limit), found);
            }
            if !over(scene.now) {
                self.state = State::Waiting(wait);
                return Next::At(scene.now + scene.dice.us(1, 8));
            }
        }
        self.core.stop_attending();
        doorbells.doze(bell, abi::doorbell::ON_FUTEX);
        if let Some(found) = self.look(scene, wait.on, Look::Last) {
            doorbells.awake(bell);
            let told = by_itself.then(|| found.name());
            scene.ledger.find("wakes", wakes::looked_again(&self.me, told));
            return self.end_wait(scene, (wait.on, wait.limit), found);
        }
        if over(scene.now) {
            doorbells.awake(bell);
            return match self.look(scene, wait.on, Look::Thorough) {
                Some(found) => self.end_wait(scene, (wait.on, wait.limit), found),
                None => self.over(scene, wait.on, wait.limit),
            };
        }
        wait.lying = true;
        self.state = State::Waiting(wait);
        let pause = scene.now + wait.rescan;
        Next::Asleep(wait.deadline.map_or(pause, |deadline| deadline.min(pause)))
    }

    fn look(&mut self, scene: &mut Scene<'_>, on: On, look: Look) -> Option<Found> {
        let attend = self.spins > 0;
        let core = &mut self.core;
        let mut hands = Body::hands(&mut self.home, self.conn, scene);
        // A receive pulls by itself; a proxy may have been replaced during any other wait.
        if !matches!(on, On::Any { .. } | On::From { .. }) {
            let _ = core.pull(&mut hands);
        }
        let received = |polled: Result<Option<Delivery>, ReceiveError>| match polled {
            Ok(got) => got.map(Found::Got),
            Err(why) => Some(Found::Received(why)),
        };
        match on {
            On::Any { notifications } => {
                received(core.poll_any(Accepts { notifications, attend }, &mut hands))
            }
            On::From { source } => {
                let accepts = Accepts { notifications: true, attend };
                received(match core.poll_from(source, accepts, &mut hands) {
                    Ok(None) if look != Look::Quick => core.poll_from_end(source, &mut hands).map(|()| None),
                    polled => polled,
                })
            }
            On::Sent { sent, .. } => {
                let done = core.poll_sent(sent);
                done.or_else(|| if look == Look::Quick { None } else { core.poll_sent_end(sent) })
                    .map(Found::Sent)
            }
            On::Call { call, .. } => {
                if let Some(to) = core.redirected(call) {
                    return Some(Found::PassedOn(to));
                }
                let ended = match (core.poll_call(call, &mut hands), look) {
                    (Some(done), _) => Some(done),
                    (None, Look::Quick) => None,
                    (None, Look::Last) if core.is_deadlock(call) => {
                        core.give_up(call, true, &mut hands);
                        Some(Err(SendrecError::Deadlock))
                    }
                    (None, Look::Thorough | Look::Last) => match core.call_end(call) {
                        Some(Ok(())) => core.take_answer(call, &mut hands),
                        ended => ended.and_then(Result::err).map(Err),
                    },
                };
                ended.map(|done| Found::Called(done.map(Box::new)))
            }
            On::Copy => self.look_at_copy(look != Look::Quick).map(Found::Copied),
            On::Room { index, .. } => match core.has_room(index) {
                Ok(true) => Some(Found::Room(true)),
                Ok(false) if look != Look::Quick && core.has_ended(index) => Some(Found::Room(false)),
                Ok(false) => None,
                Err(_) => Some(Found::Room(false)),
            },
        }
    }

    fn end_wait(&mut self, scene: &mut Scene<'_>, (on, limit): (On, Limit), found: Found) -> Next {
        match (on, found) {
            (_, Found::Got(delivery)) => self.got(scene, delivery),
            (On::From { source }, Found::Received(ReceiveError::DeadSource)) => {
                scene.told_dead(self.me, source);
                scene.row(if self.is_near(source) {
                    "receive: DeadSource, local"
                } else {
                    "receive: DeadSource, remote"
                });
            }
            (_, Found::Received(why)) => {
                if matches!(why, ReceiveError::Corrupt(_)) {
                    scene.ledger.find("corrupt", Some(format!("{} receiving: {why:?}", self.me)));
                }
                scene.row("receive: unavailable");
            }
            (On::Sent { to, number, .. }, Found::Sent(result)) => self.sent(scene, to, number, result),
            (On::Call { to, server, number, .. }, Found::Called(result)) => {
                self.called(scene, (to, server), number, result);
            }
            (On::Call { call, to, number, .. }, Found::PassedOn(Ok(next))) => {
                scene.count("call followed");
                let verb = Verb::Follow { call, asked: to, number };
                let bound = scene.now + Duration::from_millis(INTRODUCTION_WAIT_MS);
                return self.introducing(scene, next, verb, (limit, bound, Duration::from_micros(50)));
            }
            (On::Call { call, to, server, number }, Found::PassedOn(Err(why))) => {
                self.core.give_up(call, true, &mut Body::hands(&mut self.home, self.conn, scene));
                self.called(scene, (to, server), number, Err(why));
            }
            (_, Found::Copied(said)) => return self.copy_answered(scene, said),
            (On::Room { index, to }, Found::Room(room)) => {
                self.core.want_returns(index, false);
                scene.row(if room { "room came" } else { "room: the peer ended" });
                if !room {
                    scene.told_dead(self.me, to);
                }
            }
            _ => {}
        }
        self.think(scene)
    }

    fn is_near(&self, other: Endpoint) -> bool {
        node_of(other) == node_of(self.me)
    }

    fn sent(&mut self, scene: &mut Scene<'_>, to: Endpoint, number: u64, result: Result<(), SendError>) {
        let near = self.is_near(to);
        let (row, fate) = match result {
            Ok(()) => ("send: taken", Fate::Taken),
            Err(SendError::TimedOut) => ("send: TimedOut", Fate::Withdrawn),
            Err(SendError::WouldBlock) => ("send: WouldBlock", Fate::Withdrawn),
            Err(SendError::TimedOutTaken) => ("send: TimedOutTaken", Fate::Taken),
            Err(SendError::TimedOutUnknown) => ("send: TimedOutUnknown", Fate::Unknown),
            Err(SendError::DeadDestination) if near => ("send: DeadDestination, local", Fate::NotDelivered),
            Err(SendError::DeadDestination) => ("send: DeadDestination, remote", Fate::NotDelivered),
            Err(SendError::DeliveryUnknown) => ("send: DeliveryUnknown", Fate::Unknown),
            Err(why) => {
                scene.ledger.find("corrupt", Some(format!("{} sending to {to}: {why:?}", self.me)));
                ("send: corrupt", Fate::Unknown)
            }
        };
        if matches!(result, Err(SendError::DeadDestination | SendError::DeliveryUnknown)) {
            scene.told_dead(self.me, to);
        }
        scene.row(row);
        scene.trace.note(scene.now, scene.site.id, format_args!("{} > {to} {number}: {row}", self.me));
        scene.ledger.decide(self.me, to, number, fate);
    }

    pub(super) fn called(
        &mut self,
        scene: &mut Scene<'_>,
        (to, server): (Endpoint, Endpoint),
        number: u64,
        result: Result<Box<Delivery>, SendrecError>,
    ) {
        let near = self.is_near(server);
        let (row, fate) = match &result {
            Ok(_) if server != to => ("sendrec: reply of another server", Fate::Taken),
            Ok(_) => ("sendrec: reply", Fate::Taken),
            Err(SendrecError::TimedOut) => ("sendrec: TimedOut", Fate::Withdrawn),
            Err(SendrecError::WouldBlock) => ("sendrec: WouldBlock", Fate::Withdrawn),
            Err(SendrecError::TimedOutTaken) => ("sendrec: TimedOutTaken", Fate::Taken),
            Err(SendrecError::TimedOutUnknown) => ("sendrec: TimedOutUnknown", Fate::Unknown),
            Err(SendrecError::DeadDestination) if near => {
                ("sendrec: DeadDestination, local", Fate::NotDelivered)
            }
            Err(SendrecError::DeadDestination) => ("sendrec: DeadDestination, remote", Fate::NotDelivered),
            Err(SendrecError::DeadSource) if near => ("sendrec: DeadSource, local", Fate::Taken),
            Err(SendrecError::DeadSource) => ("sendrec: DeadSource, remote", Fate::Taken),
            Err(SendrecError::DeliveryUnknown) => ("sendrec: DeliveryUnknown", Fate::Unknown),
            Err(SendrecError::Abandoned) => ("sendrec: Abandoned", Fate::Taken),
            Err(SendrecError::Deadlock) => ("sendrec: Deadlock", Fate::Unknown),
            Err(why) => {
                scene.ledger.find("corrupt", Some(format!("{} calling {to}: {why:?}", self.me)));
                ("sendrec: corrupt", Fate::Unknown)
            }
        };
        let dead = [SendrecError::DeadDestination, SendrecError::DeadSource, SendrecError::DeliveryUnknown];
        if result.as_ref().is_err_and(|why| dead.contains(why)) {
            scene.told_dead(self.me, server);
        }
        scene.row(row);
        scene.trace.note(scene.now, scene.site.id, format_args!("{} ? {to} {number}: {row}", self.me));
        scene.ledger.decide(self.me, to, number, fate);
        if let Ok(reply) = result {
            self.replied(scene, to, number, *reply);
        }
    }

    fn replied(&mut self, scene: &mut Scene<'_>, to: Endpoint, number: u64, mut reply: Delivery) {
        let what = format!("call {number} of {} to {to}", self.me);
        let inline = reply.inline();
        let (asked, value) = (word(inline, 0), word(inline, 8));
        let sent = scene.ledger.stream(self.me, to).sent.get(number as usize).copied();
        let published = sent.and_then(|sent| sent.replied);
        let passed = sent.and_then(|sent| sent.passed).map(|(_, to, came)| (to, came));
        scene.ledger.find("relays", relays::answered(to, passed, reply.source(), &what));
        scene.ledger.find("replies", replies::received(published.filter(|_| asked == number), value, &what));
        let len = u32::from_le_bytes(inline.get(16..20).and_then(|b| b.try_into().ok()).unwrap_or_default());
        let (view, source) = (reply.take_view(), reply.source());
        self.keep(scene, source, number, len, view, what);
    }

    /// A message, request or notification is here.
    fn got(&mut self, scene: &mut Scene<'_>, mut delivery: Delivery) {
        let source = delivery.source();
        if let What::Notification { bits } = delivery.what() {
            scene.count("notification received");
            scene.trace.note(scene.now, scene.site.id, format_args!("{} < {source} bits {bits:#x}", self.me));
            return scene.ledger.notified(source, self.me, bits.into());
        }
        if delivery.what() == What::Woken {
            scene.count("wake-up received");
            scene.trace.note(scene.now, scene.site.id, format_args!("{} < {source} woken", self.me));
            return scene.ledger.notified(source, self.me, WAKE);
        }
        let inline = delivery.inline();
        let (number, meant) = (word(inline, 0), word(inline, 8));
        let len = u32::from_le_bytes(inline.get(16..20).and_then(|b| b.try_into().ok()).unwrap_or_default());
        scene.trace.note(scene.now, scene.site.id, format_args!("{} < {source} {number}", self.me));
        let origin = delivery.via().and(Endpoint::from_word(meant)).unwrap_or(self.me);
        match delivery.via() {
            Some(via) => {
                scene.count("request that was passed on");
                scene.ledger.came_on((source, origin), number, via, self.me);
            }
            None => scene.ledger.delivered(source, self.me, meant, number),
        }
        let rest = inline.get(STAMP_BYTES..).unwrap_or_default();
        let wanted = payload::pattern(self.me, source, number, rest.len());
        let what = format!("{source} to {} number {number}", self.me);
        scene.ledger.find("payload", payload::read(&wanted, rest, "inline", &what));
        if !scene.ledger.is_alive(source) {
            scene.row(if self.is_near(source) {
                "delivered from a dead sender, local"
            } else {
                "delivered from a dead sender, remote"
            });
        }
        let view = delivery.take_view();
        if matches!(delivery.what(), What::Request { .. }) {
            self.owed.push_back(Owed { request: delivery, number, origin });
        }
        self.keep(scene, source, number, len, view, what);
    }

    /// Checks an extent that came along; keeps it for a while, perhaps.
    fn keep(
        &mut self,
        scene: &mut Scene<'_>,
        source: Endpoint,
        number: u64,
        len: u32,
        view: Option<dvk::View>,
        what: String,
    ) {
        let Some(view) = view else {
            let missing = (len != u32::MAX).then(|| format!("{what}: its extent of {len} bytes is missing"));
            return scene.ledger.find("payload", missing);
        };
        scene.count("extent received");
        let wanted = payload::pattern(source, self.me, number, len as usize);
        scene.ledger.find("payload", payload::read(&wanted, &view.to_vec(), "at once", &what));
        if scene.dice.one_in(3) {
            self.views.push_back(Held { view, wanted, what });
        }
    }

    /// The time of a call is over.
    fn over(&mut self, scene: &mut Scene<'_>, on: On, limit: Limit) -> Next {
        match on {
            On::Any { .. } | On::From { .. } => self.think(scene),
            On::Copy => self.copy_over(scene),
            On::Room { index, .. } => {
                self.core.want_returns(index, false);
                self.think(scene)
            }
            On::Sent { .. } | On::Call { .. } => {
                // Much may happen between the last look and the withdrawal: a process can be stopped anywhere.
                let pause = scene.dice.us(0, 400);
                let bound = scene.now + pause + Duration::from_millis(WITHDRAW_WAIT_MS);
                self.state = State::Withdrawing { on, limit, bound };
                Next::At(scene.now + pause)
            }
        }
    }

    pub(super) fn withdrawing(
        &mut self,
        scene: &mut Scene<'_>,
        on: On,
        limit: Limit,
        bound: fabric::Time,
    ) -> Next {
        let last = scene.now >= bound;
        let mut hands = Body::hands(&mut self.home, self.conn, scene);
        match on {
            On::Sent { sent, to, number } => {
                let result = match self.core.withdraw(sent, &mut hands) {
                    Err(corrupt) => Err(SendError::Corrupt(corrupt)),
                    Ok(Withdrawal::Taken) => Err(SendError::TimedOutTaken),
                    Ok(Withdrawal::Withdrawn) if limit == Limit::Zero => Err(SendError::WouldBlock),
                    Ok(Withdrawal::Withdrawn) => Err(SendError::TimedOut),
                    Ok(Withdrawal::Undecided) if last => Err(SendError::TimedOutUnknown),
                    Ok(Withdrawal::Undecided) => return self.undecided(scene, on, limit, bound),
                };
                self.sent(scene, to, number, result);
            }
            On::Call { call, to, server, number } => match self.core.give_up(call, last, &mut hands) {
                Some(SendrecError::TimedOut) if limit == Limit::Zero => {
                    self.called(scene, (to, server), number, Err(SendrecError::WouldBlock));
                }
                Some(why) => self.called(scene, (to, server), number, Err(why)),
                None => return self.undecided(scene, on, limit, bound),
            },
            On::Any { .. } | On::From { .. } | On::Room { .. } | On::Copy => {}
        }
        self.think(scene)
    }

    fn undecided(&mut self, scene: &mut Scene<'_>, on: On, limit: Limit, bound: fabric::Time) -> Next {
        self.state = State::Withdrawing { on, limit, bound };
        Next::At(scene.now + scene.dice.us(5, 300))
    }
}

impl Found {
    fn name(&self) -> &'static str {
        match self {
            Found::Got(delivery) => match delivery.what() {
                What::Notification { .. } => "a notification",
                What::Woken => "a wake-up",
                What::Warned => "a warning",
                What::Message | What::Request { .. } | What::Reply => "a message",
            },
            Found::Received(_) => "the end of a source",
            Found::Sent(Ok(())) => "its message taken",
            Found::Sent(Err(_)) => "the end of its destination",
            Found::Called(Ok(_)) => "a reply",
            Found::Called(Err(_)) => "the end of its server",
            Found::PassedOn(_) => "the word that its call was passed on",
            Found::Room(_) => "room",
            Found::Copied(_) => "news of its copy",
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(u64::MAX, u64::from_le_bytes)
}
