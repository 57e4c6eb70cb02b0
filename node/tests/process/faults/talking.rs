//! The columns of calls: one calls, one takes, and the two lists are compared.
//!
//! Neighbour: `roles::talk`, the two.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::fault::{Fault, HIT, OTHER, Scene, Victim};
use super::{Hooks, time};
use crate::process::cluster::DC;
use crate::process::program::Program;
use crate::process::roles::talk::{Taken, Talk, Told, now_ms};
use crate::process::system::LONG;

const SLOT: u16 = 0;
/// Failures that a cell's report shows.
const SHOWN_MAX: usize = 20;
/// They go on for so long after all is mended.
const AFTERWARDS: Duration = Duration::from_millis(700);

/// A failure as the caller saw it.
struct Saw {
    n: u64,
    why: String,
    at_ms: u64,
}

impl Saw {
    fn of(report: &str) -> Option<Saw> {
        let mut words = report.strip_prefix("saw ")?.splitn(3, ' ');
        let n = words.next()?.parse().ok()?;
        let at_ms = words.next()?.parse().ok()?;
        Some(Saw { n, why: words.next()?.to_owned(), at_ms })
    }
}

fn taker(scene: &Scene, fault: Fault, talk: Talk) -> Program {
    let slot = scene.cluster.slot(HIT, SLOT);
    let mut command = Program::command(&scene.cluster.member_socket(HIT), DC, Some(slot));
    command.envs(Scene::around(fault, Victim::Application, &scene.clock));
    let program = Program::spawn(&scene.cluster.ground, command, &format!("taker {}", talk.word()));
    program.endpoint();
    program
}

/// Two who talk, and what they have said so far.
struct Pair {
    talk: Talk,
    caller: Program,
    taker: Program,
    /// Of each taker, in turn.
    lists: Vec<Taken>,
    saw: Vec<Saw>,
    told: Option<Told>,
}

/// Plays the cell, and says what the caller saw.
pub fn play(scene: &Scene, fault: Fault, talk: Talk) -> String {
    let taker = taker(scene, fault, talk);
    let role = format!("caller {} {}", talk.word(), scene.cluster.slot(HIT, SLOT).0);
    let caller = scene.cluster.start(OTHER, SLOT, &role);
    caller.endpoint();
    let mut pair = Pair { talk, caller, taker, lists: vec![Taken::default()], saw: Vec::new(), told: None };
    if !fault.is_limit() {
        pair.caller.order("go");
        pair.caller.hears("begun", LONG);
        if talk.holds() {
            pair.taker.order("hold");
            pair.taker_says("holds");
        }
    }
    let (pid, mut struck_ms) = (pair.taker.pid(), 0);
    let mut hooks = Hurt { pair: &mut pair, fault, struck_ms: &mut struck_ms };
    scene.suffer(fault, pid, &mut hooks);
    if fault == Fault::CutLong {
        // Both are of incarnations that have ended.
        pair.caller.kill();
        pair.taker_ends();
    } else {
        if fault.ends_application() {
            pair.follow(scene, fault);
        } else if talk.holds() && !fault.is_limit() {
            pair.taker.order("release");
            pair.taker_says("released");
        }
        if fault.is_limit() {
            pair.caller_begins();
        }
        std::thread::sleep(AFTERWARDS);
        pair.stop();
        pair.catch_up();
        pair.end();
    }
    pair.judge(fault);
    pair.text(struck_ms)
}

/// What is done while it strikes.
struct Hurt<'a> {
    pair: &'a mut Pair,
    fault: Fault,
    struck_ms: &'a mut u64,
}

impl Hooks for Hurt<'_> {
    fn struck(&mut self) {
        *self.struck_ms = now_ms();
        if self.fault.is_limit() {
            self.pair.caller.order("go");
        }
        if self.fault == Fault::MemoryGroup {
            self.pair.taker.order("eat");
        }
    }

    fn before_mended(&mut self) {
        if self.fault == Fault::CutLong {
            self.pair.stop();
        }
    }
}

impl Pair {
    /// Waits for a word of the taker.
    #[track_caller]
    fn taker_says(&mut self, word: &str) {
        let list = self.lists.last_mut().expect("there is a taker");
        loop {
            let report = self.taker.report(LONG);
            list.add(std::slice::from_ref(&report));
            if report.starts_with(word) {
                return;
            }
        }
    }

    /// Waits for a word of the caller; gives the rest of it.
    #[track_caller]
    fn caller_says(&mut self, word: &str) -> String {
        let until = Instant::now() + LONG;
        loop {
            let report = self.caller.report(until.saturating_duration_since(Instant::now()));
            if report.starts_with("saw") && self.saw.len() < SHOWN_MAX {
                println!("the caller {report}");
            }
            self.saw.extend(Saw::of(&report));
            if let Some(rest) = report.strip_prefix(word) {
                return rest.trim().to_owned();
            }
        }
    }

    fn caller_begins(&mut self) {
        self.caller_says("begun");
    }

    /// The caller stops and tells its list.
    fn stop(&mut self) {
        self.caller.order("stop");
        let rest = self.caller_says("told");
        self.told = Some(Told::parse(&rest));
    }

    /// What it has said until then is read.
    fn taker_ends(&mut self) {
        self.taker.kill();
        let list = self.lists.last_mut().expect("there was a taker");
        while let Some(report) = self.taker.report_within(Duration::from_millis(100)) {
            list.add(&[report]);
        }
    }

    /// The taker has been killed: another is bound in its slot.
    fn follow(&mut self, scene: &Scene, fault: Fault) {
        self.taker_ends();
        self.taker = taker(scene, fault, self.talk);
        self.lists.push(Taken::default());
    }

    /// Waits until the last taker has all that it will get.
    fn catch_up(&mut self) {
        let Some(told) = &self.told else { return };
        let (last, raised) = (told.well.last().map(|(_, last)| *last), told.raised);
        let until = Instant::now() + LONG;
        loop {
            let list = self.lists.last_mut().expect("there is a taker");
            let has_all = match self.talk {
                Talk::Copy => true,
                Talk::Notify => list.bits == raised,
                _ => list.numbers.last().copied() >= last,
            };
            if has_all {
                break;
            }
            assert!(Instant::now() < until, "lost: of {last:?}, bits {raised:x}: {list:?}");
            if let Some(report) = self.taker.report_within(Duration::from_millis(50)) {
                list.add(&[report]);
            }
        }
        // Nothing comes twice.
        while let Some(report) = self.taker.report_within(Duration::from_millis(200)) {
            self.lists.last_mut().expect("there is a taker").add(&[report]);
        }
    }

    /// Both end; what was lent is home.
    fn end(&mut self) {
        self.caller.order("go home");
        self.caller_says("home");
        self.caller.order("end");
        self.caller.ends_well();
        self.taker.kill();
    }

    fn judge(&self, fault: Fault) {
        let allowed = allowed(fault, self.talk);
        for saw in &self.saw {
            let known = allowed.iter().any(|name| saw.why.starts_with(name));
            assert!(known, "message {}: {} is none of {allowed:?}", saw.n, saw.why);
        }
        if fault.ends_application() {
            assert!(!self.saw.is_empty(), "nobody was told of the end");
        }
        if self.talk.is_counted() {
            self.compare(fault);
        }
    }

    /// The caller's list and the takers'.
    fn compare(&self, fault: Fault) {
        let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
        for list in &self.lists {
            assert!(list.numbers.is_sorted(), "out of order: {:?}", list.numbers);
            for (n, count) in list.counts() {
                *counts.entry(n).or_insert(0) += count;
            }
        }
        assert!(counts.values().all(|count| *count == 1), "doubled: {counts:?}");
        let taken = |n: u64| counts.contains_key(&n);
        let cut = fault.ends_application() || fault == Fault::CutLong;
        // Who is killed has perhaps taken one more than it could report.
        let last = self.lists[0].numbers.last().copied().unwrap_or(0);
        let unsaid = |n: u64| cut && n == last + 1;
        let told = self.told.as_ref().expect("the caller has told its list");
        let posted = matches!(self.talk, Talk::Post | Talk::Loan);
        for n in told.well.iter().flat_map(|(first, last)| *first..=*last) {
            // What was posted to one that died is lost with it, up to its successor's first.
            let gone = posted
                && cut
                && n > last
                && self.lists.get(1).is_none_or(|next| next.numbers.first().is_none_or(|first| n < *first));
            assert!(taken(n) || unsaid(n) || gone, "message {n} went well and was not taken");
        }
        for saw in self.saw.iter().filter(|saw| saw.n != 0) {
            match saw.why.as_str() {
                "DeliveryUnknown" => {}
                "DeadSource" => assert!(taken(saw.n) || unsaid(saw.n), "{}: DeadSource, not taken", saw.n),
                why => assert!(!taken(saw.n), "message {}: {why}, and it was taken", saw.n),
            }
        }
    }

    /// What the caller saw, for the table.
    fn text(&self, struck_ms: u64) -> String {
        let slowest = self.told.as_ref().map_or(0, |told| told.slowest_ms);
        let mut kinds: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for saw in &self.saw {
            kinds.entry(&saw.why).or_insert((saw.at_ms, 0)).1 += 1;
        }
        if kinds.is_empty() {
            return format!("all went well, the slowest in {}", time(slowest));
        }
        let texts: Vec<String> = kinds
            .iter()
            .map(|(why, (at, count))| {
                let after = time(at.saturating_sub(struck_ms));
                let times = if *count > 1 { format!(", {count} times") } else { String::new() };
                format!("`{why}` after {after}{times}")
            })
            .collect();
        texts.join("; ")
    }
}

/// How a call may fail.
fn allowed(fault: Fault, talk: Talk) -> &'static [&'static str] {
    if fault.ends_application() {
        return match talk {
            Talk::CallAfter => &["DeadSource"],
            // Whichever it was about to do: to ask for a grant, to have one, to copy.
            Talk::Copy => &["DeadSource", "NoGrant", "DeadDestination"],
            _ => &["DeadDestination"],
        };
    }
    if fault == Fault::CutLong {
        return match talk {
            // Whether the other node's word that it was taken came before the cut.
            Talk::CallAfter => &["DeadSource", "DeliveryUnknown"],
            Talk::Copy => &["DeadSource"],
            Talk::Send | Talk::CallBefore => &["DeliveryUnknown", "DeadDestination"],
            _ => &["DeadDestination"],
        };
    }
    if fault.is_limit() && talk == Talk::Copy {
        // Where no memory can be had, none is granted: who was asked for a grant drops the request.
        return &["Abandoned", "Unavailable(NoMemory)", "Unavailable(Refused(NoMemory))"];
    }
    &[]
}
