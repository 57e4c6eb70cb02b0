//! Two who talk while something between them or with them is broken on purpose. One calls and keeps a list of what became
//! of each call; the other takes, and reports each thing that it took at once, because it may be killed.
//!
//! Key types: [`Talk`] (what they do), [`Told`] (the caller's list). Neighbour: `faults`, which breaks things.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use abi::grant::{Access, Grant};
use abi::{Endpoint, Slot};
use dvk::{
    CopyEnd, CopyError, Delivery, From, GrantError, GrantSegment, LoanError, Message, NotifyError,
    ReceiveError, SendError, SendrecError, Timeout, Unavailable, View, What,
};

use super::{AFTER, Life, report};

/// What the two do with one another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Talk {
    Send,
    Post,
    /// A call whose request waits in the lane.
    CallBefore,
    /// A call whose request was taken, and not answered yet.
    CallAfter,
    Notify,
    Copy,
    /// A loan was taken, and its view is kept.
    Loan,
}

impl Talk {
    pub const ALL: [Talk; 7] =
        [Talk::Send, Talk::Post, Talk::CallBefore, Talk::CallAfter, Talk::Notify, Talk::Copy, Talk::Loan];

    pub fn word(self) -> &'static str {
        match self {
            Talk::Send => "send",
            Talk::Post => "post",
            Talk::CallBefore => "sendrec_before",
            Talk::CallAfter => "sendrec_after",
            Talk::Notify => "notify",
            Talk::Copy => "copy",
            Talk::Loan => "loan",
        }
    }

    pub fn of(word: &str) -> Option<Talk> {
        Talk::ALL.into_iter().find(|talk| talk.word() == word)
    }

    /// Whether the one who takes stands still at a certain step while things break.
    pub fn holds(self) -> bool {
        matches!(self, Talk::CallBefore | Talk::CallAfter | Talk::Loan)
    }

    /// Whether it reports the number of each message that it took.
    pub fn is_counted(self) -> bool {
        !matches!(self, Talk::Notify | Talk::Copy)
    }

    /// Between one call and the next.
    fn pace(self) -> Duration {
        Duration::from_millis(match self {
            Talk::Notify => 60,
            Talk::Copy => 10,
            _ => 2,
        })
    }
}

/// Calls before the caller says that it is in the middle of it.
const FIRST: u64 = 20;
/// After a call that failed.
const PAUSE: Duration = Duration::from_millis(20);
const GLANCE: Duration = Duration::from_millis(20);
const COPY_BYTES: usize = 4 << 20;
const LOAN_BYTES: usize = 48 << 10;
/// Asks for a grant; other kinds are numbers.
const GRANT: u32 = u32::MAX;
/// The last of the bits, raised at the end.
const LAST_BIT: u32 = 31;
/// Views that are kept, where views are kept.
const KEPT: usize = 4;
/// What the one in a small memory group takes when it is told to eat.
pub const MEAL_BYTES: usize = 256 << 20;

/// Milliseconds on a clock that all processes of the machine share.
pub fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

fn byte(n: u64, at: usize) -> u8 {
    (n.wrapping_mul(31) as usize ^ at ^ at >> 9) as u8
}

fn fill(bytes: &mut [u8], n: u64) {
    for (at, b) in bytes.iter_mut().enumerate() {
        *b = byte(n, at);
    }
}

fn is_filled(bytes: &[u8], n: u64) -> bool {
    bytes.iter().enumerate().all(|(at, b)| *b == byte(n, at))
}

/// What becomes of a call that did not go well.
struct Failed {
    why: String,
    /// Whom it was for is no more.
    dead: bool,
}

fn failed(why: impl std::fmt::Debug, dead: bool) -> Failed {
    Failed { why: format!("{why:?}"), dead }
}

/// The caller's list, as it tells it at its end.
#[derive(Default, Debug)]
pub struct Told {
    /// Numbers of the calls that went well, as ranges.
    pub well: Vec<(u64, u64)>,
    /// How long the slowest of these took.
    pub slowest_ms: u64,
    /// Bits that were raised at the last holder of the slot.
    pub raised: u32,
}

impl Told {
    fn add(&mut self, n: u64) {
        match self.well.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => self.well.push((n, n)),
        }
    }

    fn text(&self) -> String {
        let mut text = format!("told {} {:x}", self.slowest_ms, self.raised);
        for (first, last) in &self.well {
            write!(text, " {first}-{last}").expect("a string");
        }
        text
    }

    pub fn parse(rest: &str) -> Told {
        let mut words = rest.split(' ');
        let mut number = |radix| {
            let word = words.next().expect("a word");
            u64::from_str_radix(word, radix).unwrap_or_else(|why| panic!("{word:?}: {why}"))
        };
        let (slowest_ms, raised) = (number(10), number(16) as u32);
        let range = |word: &str| {
            let (first, last) = word.split_once('-').expect("a range");
            (first.parse().expect("a number"), last.parse().expect("a number"))
        };
        Told { well: words.map(range).collect(), slowest_ms, raised }
    }
}

struct Caller {
    life: Life,
    talk: Talk,
    slot: Slot,
    to: Option<Endpoint>,
    /// Whose end it has seen: it is not found again.
    gone: Option<Endpoint>,
    grant: Option<Grant>,
    segment: Option<GrantSegment>,
    told: Told,
    stopped: bool,
}

/// Calls whoever is bound in `slot` until it is told to stop. Reports each failure with its moment, and at last its list.
pub fn call(life: Life, talk: Talk, slot: Slot) {
    life.orders.next();
    let told = Told::default();
    let mut caller =
        Caller { life, talk, slot, to: None, gone: None, grant: None, segment: None, told, stopped: false };
    let mut n = 0;
    while caller.goes_on() {
        n += 1;
        let began = Instant::now();
        match caller.call(n) {
            None => continue,
            Some(Ok(())) => {
                let took = began.elapsed().as_millis() as u64;
                caller.told.slowest_ms = caller.told.slowest_ms.max(took);
                caller.told.add(n);
                std::thread::sleep(talk.pace());
            }
            Some(Err(failed)) => {
                report(format_args!("saw {n} {} {}", now_ms(), failed.why));
                if failed.dead {
                    (caller.gone, caller.grant) = (caller.to.take(), None);
                }
                std::thread::sleep(PAUSE);
            }
        }
        if n == FIRST {
            report("begun");
        }
    }
    caller.finish();
}

impl Caller {
    fn goes_on(&mut self) -> bool {
        self.stopped |= self.life.orders.is_there();
        !self.stopped
    }

    fn peer(&mut self) -> Option<Endpoint> {
        while self.to.is_none() && self.goes_on() {
            self.to = self.life.me.lookup(self.slot).filter(|found| Some(*found) != self.gone);
            if self.to.is_none() {
                std::thread::sleep(GLANCE);
            }
        }
        self.to
    }

    /// One call; `None`: there was nobody to call before the order to stop.
    fn call(&mut self, n: u64) -> Option<Result<(), Failed>> {
        let fresh = self.to.is_none();
        let to = self.peer()?;
        if fresh {
            self.told.raised = 0;
        }
        let me = &mut self.life.me;
        let message = Message::new(n as u32).inline(&n.to_le_bytes());
        Some(match self.talk {
            Talk::Send => me.send(to, message, AFTER).map_err(sending),
            Talk::Post => me.post_all(to, message, AFTER).map_err(sending),
            Talk::CallBefore | Talk::CallAfter => match me.sendrec(to, message, AFTER) {
                Ok(reply) => {
                    assert_eq!(reply.inline(), n.to_le_bytes(), "a reply belongs to its request");
                    Ok(())
                }
                Err(why) => Err(calling(why)),
            },
            Talk::Notify => self.raise(to),
            Talk::Copy => self.copy(to),
            Talk::Loan => self.lend(to, n),
        })
    }

    /// The next bit that was not raised yet.
    fn raise(&mut self, to: Endpoint) -> Result<(), Failed> {
        let bit = self.told.raised.trailing_ones();
        if bit >= LAST_BIT {
            return Ok(());
        }
        self.raise_bit(to, bit)
    }

    fn raise_bit(&mut self, to: Endpoint, bit: u32) -> Result<(), Failed> {
        let done = self.life.me.notify(to, 1 << bit);
        done.map_err(|why| failed(why, why == NotifyError::DeadDestination))?;
        self.told.raised |= 1 << bit;
        Ok(())
    }

    fn copy(&mut self, to: Endpoint) -> Result<(), Failed> {
        let me = &mut self.life.me;
        if self.segment.is_none() {
            let made = me.grant_segment(COPY_BYTES as u64, Access::Write);
            self.segment = Some(made.map_err(|why| failed(why, false))?);
        }
        let Some(mine) = &self.segment else { return Ok(()) };
        if self.grant.is_none() {
            let reply = me.sendrec(to, Message::new(GRANT), AFTER).map_err(calling)?;
            self.grant = Some(Grant::from_bytes(reply.inline()).expect("a grant"));
        }
        let Some(grant) = &self.grant else { return Ok(()) };
        // What was copied before is not taken for this.
        mine.write_from(0, &[0; 64]).expect("its own segment");
        let done = me.copy(CopyEnd::Granted(grant, 0), CopyEnd::Own(mine, 0), COPY_BYTES as u64, AFTER);
        // The grant of a dead owner ends as well.
        done.map_err(|why| failed(why, matches!(why, CopyError::DeadSource | CopyError::NoGrant)))?;
        let mut bytes = vec![0; COPY_BYTES];
        mine.read_into(0, &mut bytes).expect("its own segment");
        assert!(is_filled(&bytes, 0), "what was copied is what was granted");
        Ok(())
    }

    fn lend(&mut self, to: Endpoint, n: u64) -> Result<(), Failed> {
        let me = &mut self.life.me;
        let until = Instant::now() + super::LONG;
        let mut loan = loop {
            match me.loan(LOAN_BYTES) {
                Ok(loan) => break loan,
                Err(LoanError::NoBuffer) if Instant::now() < until => std::thread::sleep(GLANCE),
                Err(why) => return Err(failed(why, false)),
            }
        };
        fill(&mut loan, n);
        let message = Message::new(n as u32).inline(&n.to_le_bytes()).with(loan);
        me.post_all(to, message, AFTER).map_err(sending)
    }

    fn finish(mut self) {
        if let (Talk::Notify, Some(to)) = (self.talk, self.to) {
            // The other waits for this one.
            if let Err(failed) = self.raise_bit(to, LAST_BIT) {
                report(format_args!("saw 0 {} {}", now_ms(), failed.why));
            }
        }
        report(self.told.text());
        self.life.orders.next();
        (self.grant, self.segment) = (None, None);
        let until = Instant::now() + super::LONG;
        loop {
            let tally = self.life.me.audit().expect("a sound pool");
            if tally.loans == 0 && tally.free_bytes == tally.total_bytes {
                break;
            }
            assert!(Instant::now() < until, "loans do not come home: {tally:?}");
            std::thread::sleep(GLANCE);
        }
        report("home");
        self.life.orders.next();
    }
}

fn sending(why: SendError) -> Failed {
    failed(why, matches!(why, SendError::DeadDestination | SendError::DeliveryUnknown))
}

fn calling(why: SendrecError) -> Failed {
    let dead = matches!(
        why,
        SendrecError::DeadDestination | SendrecError::DeadSource | SendrecError::DeliveryUnknown
    );
    failed(why, dead)
}

/// The one who takes.
struct Taker {
    life: Life,
    talk: Talk,
    segment: Option<GrantSegment>,
    kept: Vec<(View, u64)>,
    meal: Vec<u8>,
    mode: Mode,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Going,
    /// Stands still at the next such step.
    WillHold,
    Holds,
}

/// Takes whatever comes until it is killed or its input ends.
pub fn take(life: Life, talk: Talk) {
    let mut taker =
        Taker { life, talk, segment: None, kept: Vec::new(), meal: Vec::new(), mode: Mode::Going };
    // A late request in hand, of a call that is held.
    let mut owed: Option<Delivery> = None;
    loop {
        taker.obey();
        if taker.mode == Mode::WillHold && taker.talk == Talk::CallBefore {
            taker.hold(0);
        }
        if taker.mode == Mode::Holds {
            std::thread::sleep(GLANCE);
            continue;
        }
        if let Some(request) = owed.take() {
            taker.answer(&request);
        }
        match taker.life.me.receive(From::Any, Timeout::After(GLANCE)) {
            Ok(delivery) => owed = taker.takes(delivery),
            Err(ReceiveError::TimedOut) => {}
            // What limits are for: the pair comes when there is room.
            Err(ReceiveError::Unavailable(Unavailable::NoMemory)) => report("at its limit"),
            Err(why) => report(format_args!("wrong: receive: {why:?}")),
        }
    }
}

impl Taker {
    fn obey(&mut self) {
        let Some(order) = self.life.orders.look() else { return };
        match order.as_str() {
            "hold" => self.mode = Mode::WillHold,
            "release" => {
                for (view, n) in self.kept.drain(..) {
                    assert!(is_filled(&view.to_vec(), n), "a view that was kept shows what was lent");
                }
                self.mode = Mode::Going;
                report("released");
            }
            "eat" => {
                self.meal.resize(MEAL_BYTES, 1);
                report("ate");
            }
            other => panic!("no such order: {other:?}"),
        }
    }

    fn hold(&mut self, n: u64) {
        self.mode = Mode::Holds;
        report(format_args!("holds {n}"));
    }

    /// Gives back a request that is to be answered later.
    fn takes(&mut self, mut delivery: Delivery) -> Option<Delivery> {
        if let What::Notification { bits } = delivery.what() {
            report(format_args!("bits {bits:x}"));
            return None;
        }
        if delivery.kind() == GRANT {
            self.grant(&delivery);
            return None;
        }
        let n = u64::from_le_bytes(delivery.inline().try_into().expect("eight bytes"));
        assert_eq!(delivery.kind(), n as u32);
        report(format_args!("took {n}"));
        if let Some(view) = delivery.take_view() {
            assert!(is_filled(&view.to_vec(), n), "a view shows what was lent");
            if self.mode == Mode::WillHold {
                self.kept.push((view, n));
                if self.kept.len() == KEPT {
                    self.hold(n);
                }
            }
            return None;
        }
        if !matches!(delivery.what(), What::Request { .. }) {
            return None;
        }
        if self.mode == Mode::WillHold {
            self.hold(n);
            return Some(delivery);
        }
        self.answer(&delivery);
        None
    }

    fn answer(&mut self, request: &Delivery) {
        let reply = Message::new(request.kind()).inline(request.inline());
        // A client that has given up waits no more.
        let _ = self.life.me.reply(request, reply);
    }

    fn grant(&mut self, request: &Delivery) {
        match self.make_grant(request.source()) {
            Ok(grant) => {
                let reply = Message::new(GRANT).inline(&grant.to_bytes());
                let _ = self.life.me.reply(request, reply);
            }
            // Dropped unanswered, the request is abandoned: its client asks again.
            Err(why) => report(format_args!("no grant: {why:?}")),
        }
    }

    fn make_grant(&mut self, to: Endpoint) -> Result<Grant, GrantError> {
        let me = &mut self.life.me;
        let segment = match self.segment.take() {
            Some(segment) => segment,
            None => {
                let segment = me.grant_segment(COPY_BYTES as u64, Access::Read)?;
                let mut bytes = vec![0; COPY_BYTES];
                fill(&mut bytes, 0);
                segment.write_from(0, &bytes).expect("its own segment");
                segment
            }
        };
        let segment = self.segment.insert(segment);
        me.grant(segment, 0, COPY_BYTES as u64, to)
    }
}

/// Numbers that were taken, from a taker's reports, and the bits that it saw.
#[derive(Default, Debug)]
pub struct Taken {
    pub numbers: Vec<u64>,
    pub bits: u32,
}

impl Taken {
    /// What must never be is a failure at once.
    pub fn add(&mut self, reports: &[String]) {
        for line in reports {
            if let Some(n) = line.strip_prefix("took ") {
                self.numbers.push(n.parse().expect("a number"));
            } else if let Some(bits) = line.strip_prefix("bits ") {
                self.bits |= u32::from_str_radix(bits, 16).expect("bits");
            }
            assert!(!line.starts_with("wrong"), "{line}");
        }
    }

    /// How often each was taken.
    pub fn counts(&self) -> BTreeMap<u64, u32> {
        let mut counts = BTreeMap::new();
        for n in &self.numbers {
            *counts.entry(*n).or_insert(0) += 1;
        }
        counts
    }
}
