//! One of several that talk to each other while somebody attacks: whatever comes of the attackers, the streams between
//! friends lose nothing, and no call outlives its time.
//!
//! Key type: [`Friend`]. Neighbour: `attacker`, the other side.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use abi::grant::Grant;
use abi::{Endpoint, Slot};
use dvk::{
    Access, Binding, CopyEnd, CopyError, Delivery, From, GrantSegment, Message, PostError, ReceiveError,
    SendError, SendrecError, Timeout, View, WaitError, What,
};

use super::{Life, find, report};
use crate::process::system::{Chance, LONG};

/// The type of what friends post to one another, numbered.
const COUNTED: u32 = 91;
/// The last of a stream.
const LAST: u32 = 92;
/// An attacker's grant.
pub const GRANT: u32 = 93;
const BRIEFLY: Duration = Duration::from_millis(3);
const VIEWS_MAX: usize = 8;
const OWED_MAX: usize = 4;
const COPY_BYTES: u64 = 4096;
/// What is posted to a friend between two looks at what has come.
const BURST: usize = 4;
/// Calls to attackers between the same.
const PROVOKED: usize = 3;

/// Both directions of a stream between this friend and another.
#[derive(Default)]
struct Stream {
    sent: u64,
    got: u64,
    ended: bool,
    said_last: bool,
}

struct Friend {
    me: Binding,
    chance: Chance,
    streams: BTreeMap<Endpoint, Stream>,
    foes: Vec<Slot>,
    views: Vec<View>,
    owed: Vec<Delivery>,
    /// What attackers grant is copied here.
    buffer: Option<GrantSegment>,
    /// How calls ended, with whom it may end in any way.
    outcomes: BTreeMap<String, u64>,
}

/// Lives until it is told to stop and has all of its friends' streams. Reports how calls to attackers ended.
pub fn live(life: Life, seed: u64, friends: &[Slot], foes: Vec<Slot>) {
    let Life { mut me, orders } = life;
    let streams = friends.iter().map(|slot| (find(&mut me, *slot), Stream::default())).collect();
    let buffer = me.grant_segment(COPY_BYTES, Access::Write).expect("memory to copy into");
    let (views, owed, outcomes) = (Vec::new(), Vec::new(), BTreeMap::new());
    let chance = Chance::new(seed);
    let mut friend = Friend { me, chance, streams, foes, views, owed, buffer: Some(buffer), outcomes };
    while !orders.is_there() {
        friend.turn();
    }
    friend.finish();
    let text: Vec<_> = friend.outcomes.iter().map(|(how, count)| format!("{how}={count}")).collect();
    report(format_args!("outcomes {}", text.join(";")));
    orders.next();
}

fn check_word(source: Endpoint, to: Endpoint, number: u64) -> u64 {
    (source.to_word() ^ to.to_word().rotate_left(17) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The words that name how something ended.
fn name(error: impl Debug) -> String {
    format!("{error:?}").split(['(', '{']).next().unwrap_or_default().trim().to_owned()
}

fn of_send(why: &SendError) -> String {
    match why {
        SendError::Corrupt(corrupt) => corrupt.what.to_owned(),
        why => name(why),
    }
}

fn of_post(why: &PostError) -> String {
    match why {
        PostError::Corrupt(corrupt) => corrupt.what.to_owned(),
        why => name(why),
    }
}

impl Friend {
    fn turn(&mut self) {
        for _ in 0..BURST {
            self.take(Timeout::Zero);
        }
        let friends: Vec<Endpoint> = self.streams.keys().copied().collect();
        for friend in friends {
            self.post(friend, COUNTED);
        }
        for _ in 0..PROVOKED {
            self.provoke();
        }
        if self.chance.below(4) == 0 {
            self.take(Timeout::After(BRIEFLY));
        }
        if self.views.len() > VIEWS_MAX {
            self.views.clear();
        }
        if self.owed.len() > OWED_MAX {
            self.answer();
        }
    }

    fn count(&mut self, call: &str, how: &str) {
        *self.outcomes.entry(format!("{call}: {how}")).or_default() += 1;
    }

    /// A call that has a time must come back soon after it, whatever the peer does.
    fn timed<T>(&mut self, what: &str, limit: Duration, call: impl FnOnce(&mut Friend) -> T) -> T {
        let begun = Instant::now();
        let value = call(self);
        let took = begun.elapsed();
        assert!(took < limit + LONG, "{what} with {} ms took {} ms", limit.as_millis(), took.as_millis());
        value
    }

    /// The next of a stream, if there is room.
    fn post(&mut self, to: Endpoint, kind: u32) -> bool {
        let number = self.streams[&to].sent;
        let check = check_word(self.me.whoami(), to, number);
        let mut message = Message::new(kind).inline(&[number.to_le_bytes(), check.to_le_bytes()].concat());
        if number % 16 == 5
            && let Ok(mut loan) = self.me.loan(1 + (check % 5000) as usize)
        {
            loan.fill(check as u8);
            message = message.with(loan);
        }
        match self.me.post(to, message) {
            Ok(()) => {
                self.streams.entry(to).or_default().sent += 1;
                true
            }
            Err(PostError::Full(_)) => false,
            Err(why) => panic!("post {number} to friend {to}: {why}"),
        }
    }

    fn take(&mut self, timeout: Timeout) {
        let limit = if timeout == Timeout::Zero { Duration::ZERO } else { BRIEFLY };
        let received = self.timed("receive", limit, |f| f.me.receive(From::Any, timeout));
        self.received("receive", received);
    }

    fn received(&mut self, call: &str, received: Result<Delivery, ReceiveError>) {
        match received {
            Ok(delivery) if self.streams.contains_key(&delivery.source()) => self.of_friend(&delivery),
            Ok(delivery) => self.of_foe(delivery),
            Err(ReceiveError::Corrupt(why)) => self.count(call, why.what),
            Err(ReceiveError::TimedOut | ReceiveError::WouldBlock) => {}
            Err(ReceiveError::DeadSource) if call != "receive" => self.count(call, "DeadSource"),
            Err(why) => panic!("{call}: {why}"),
        }
    }

    /// Nobody can speak for a friend: what comes of it is what it has sent, each once and in order.
    fn of_friend(&mut self, delivery: &Delivery) {
        let (source, me) = (delivery.source(), self.me.whoami());
        assert_eq!(delivery.what(), What::Message, "of friend {source}");
        let inline = delivery.inline();
        assert_eq!(inline.len(), 16, "of friend {source}");
        let word = |at: usize| u64::from_le_bytes(inline[at..at + 8].try_into().expect("eight bytes"));
        let stream = self.streams.get_mut(&source).expect("a friend's");
        let check = check_word(source, me, stream.got);
        assert_eq!((word(0), word(8)), (stream.got, check), "the next of friend {source}");
        if let Some(view) = delivery.view() {
            assert!(view.to_vec().iter().all(|byte| *byte == check as u8), "an extent of friend {source}");
        }
        stream.got += 1;
        stream.ended |= delivery.kind() == LAST;
    }

    fn of_foe(&mut self, mut delivery: Delivery) {
        let source = delivery.source();
        assert!(self.foes.contains(&source.slot), "{source} is neither friend nor attacker");
        assert!(delivery.via().is_none_or(|via| self.foes.contains(&via.slot)), "passed on by an attacker");
        self.count("received", &name(delivery.what()));
        // Whatever stands there, it can be read.
        let sum: u64 = delivery.view().map_or(0, |view| view.to_vec().iter().map(|b| u64::from(*b)).sum());
        std::hint::black_box(sum);
        if delivery.kind() == GRANT {
            self.copy(delivery.inline());
        }
        match delivery.what() {
            What::Request { .. } if self.chance.below(3) > 0 => self.owed.push(delivery),
            _ => self.views.extend(delivery.take_view()),
        }
    }

    fn copy(&mut self, grant: &[u8]) {
        let Some(grant) = Grant::from_bytes(grant) else { return };
        let Some(buffer) = self.buffer.take() else { return };
        let ends = (CopyEnd::Granted(&grant, 0), CopyEnd::Own(&buffer, 0));
        let time = Timeout::After(BRIEFLY);
        let copied = self.timed("copy", BRIEFLY, |f| f.me.copy(ends.0, ends.1, COPY_BYTES, time));
        self.buffer = Some(buffer);
        match copied {
            Ok(()) => self.count("copy", "done"),
            Err(CopyError::Unavailable(why)) => self.count("copy", &name(why)),
            Err(why) => self.count("copy", &name(why)),
        }
    }

    /// Replies to some of what attackers have asked, and passes some on to other attackers.
    fn answer(&mut self) {
        for request in std::mem::take(&mut self.owed) {
            let foe = self.foes[self.chance.below(self.foes.len() as u64) as usize];
            match self.me.lookup(foe).filter(|foe| *foe != request.source()) {
                Some(foe) if self.chance.below(3) == 0 => {
                    let relayed = self.timed("relay", BRIEFLY, |f| f.me.relay(&request, foe));
                    let how = relayed.map_or_else(name, |()| "done".to_owned());
                    self.count("relay", &how);
                }
                _ => {
                    let replied = self.me.reply(&request, Message::new(1).inline(b"answer"));
                    let how = replied.map_or_else(name, |()| "done".to_owned());
                    self.count("reply", &how);
                }
            }
        }
    }

    /// A call to an attacker, with little time.
    fn provoke(&mut self) {
        let foe = self.foes[self.chance.below(self.foes.len() as u64) as usize];
        let Some(foe) = self.me.lookup(foe) else { return };
        let time = Timeout::After(BRIEFLY);
        let mut message = Message::new(7).inline(b"to an attacker");
        if self.chance.below(2) == 0
            && let Ok(loan) = self.me.loan(3000)
        {
            message = message.with(loan);
        }
        match self.chance.below(9) {
            8 => {
                let waited = self.timed("wait for room", BRIEFLY, |f| f.me.wait_room(foe, time));
                let how = match waited {
                    Ok(()) => "done".to_owned(),
                    Err(WaitError::Corrupt(why)) => why.what.to_owned(),
                    Err(why) => name(why),
                };
                self.count("wait for room", &how);
            }
            0 => {
                let sent = self.timed("send", BRIEFLY, |f| f.me.send(foe, message, time));
                let how = sent.map_or_else(|why| of_send(&why), |()| "taken".to_owned());
                self.count("send", &how);
            }
            1 => {
                let post = |f: &mut Friend| f.me.post(foe, message).map_err(|why| of_post(&why));
                let posted = self.timed("post", Duration::ZERO, post);
                self.count("post", &posted.map_or_else(|how| how, |()| "done".to_owned()));
            }
            2..6 => {
                let called = self.timed("sendrec", BRIEFLY, |f| f.me.sendrec(foe, message, time));
                match called {
                    Ok(reply) => {
                        assert!(self.foes.contains(&reply.source().slot), "an attacker's reply, or nobody's");
                        self.count("sendrec", "reply");
                    }
                    Err(SendrecError::Corrupt(why)) => self.count("sendrec", why.what),
                    Err(why) => self.count("sendrec", &name(why)),
                }
            }
            6 => {
                let raised = self.timed("notify", Duration::ZERO, |f| f.me.notify(foe, 5));
                let how = raised.map_or_else(name, |()| "done".to_owned());
                self.count("notify", &how);
            }
            _ => {
                let received =
                    self.timed("receive of one", BRIEFLY, |f| f.me.receive(From::Endpoint(foe), time));
                self.received("receive of one", received);
            }
        }
    }

    /// Ends all streams, and takes all of the others'.
    fn finish(&mut self) {
        let until = Instant::now() + LONG;
        let friends: Vec<Endpoint> = self.streams.keys().copied().collect();
        while self.streams.values().any(|stream| !stream.said_last || !stream.ended) {
            for friend in &friends {
                if !self.streams[friend].said_last && self.post(*friend, LAST) {
                    self.streams.entry(*friend).or_default().said_last = true;
                }
            }
            self.take(Timeout::After(BRIEFLY));
            let missing = || self.streams.iter().map(|(who, s)| format!("{who} {} {}", s.got, s.ended));
            assert!(Instant::now() < until, "streams end: {:?}", missing().collect::<Vec<_>>());
        }
        let got: u64 = self.streams.values().map(|stream| stream.got).sum();
        report(format_args!("streams {got}"));
    }
}
