//! One that keeps no rule: it binds, makes pairs, and writes whatever it likes wherever it can.
//!
//! Key types: [`Attacker`] (one round: one binding), [`Tally`]. Neighbours: `acts` (what it does), `friend` (whom it does it to).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use abi::member::{NUMBER, Reply, Request, VERSION, WORDS};
use abi::{Endpoint, Name, Slot};
use dvk::Unavailable;
use dvk::core::{Host, Introduced, Pulled};
use dvk::daemon::Daemon;
use shm::lane::LaneWriter;
use shm::map::Mapping;
use shm::os::fdpass;
use shm::side::{OwnSide, PeerSide};

use super::acts::ACTS;
use super::{Orders, SOCKET, report};
use crate::process::cluster::DC;
use crate::process::system::{Chance, LONG};

const ACTS_PER_ROUND: u64 = 6;
const PATIENCE: Duration = Duration::from_secs(5);

/// What was done, and what was said to it: by name.
#[derive(Default)]
pub struct Tally(BTreeMap<String, u64>);

impl Tally {
    pub fn count(&mut self, what: &str, how: &str) {
        *self.0.entry(format!("{what}: {how}")).or_default() += 1;
    }

    /// `what: how=count;...`.
    pub fn text(&self) -> String {
        let entries: Vec<_> = self.0.iter().map(|(what, count)| format!("{what}={count}")).collect();
        entries.join(";")
    }
}

/// A pair as an attacker holds it: its own side, which it may write, and the other, which it may read.
pub struct Pair {
    pub peer: Endpoint,
    pub own: OwnSide,
    pub side: PeerSide,
    pub writer: LaneWriter,
    /// Of who reads its side: the peer, or a proxy.
    pub doorbell: usize,
}

/// One binding of an attacker.
pub struct Attacker<'a> {
    pub me: Endpoint,
    pub daemon: Daemon,
    pub pool: (u32, Arc<Mapping>),
    pub pairs: Vec<Pair>,
    pub victims: &'a [Slot],
    pub chance: &'a mut Chance,
    pub tally: &'a mut Tally,
    /// It ends without another word.
    pub is_over: bool,
}

/// Attacks so many times, each time as a new endpoint of its slot.
pub fn live(orders: &Orders, slot: Slot, seed: u64, rounds: u64, victims: &[Slot]) {
    report(format_args!("attacks as uid {}", rustix::process::getuid().as_raw()));
    orders.next();
    let (mut chance, mut tally) = (Chance::new(seed), Tally::default());
    for _ in 0..rounds {
        round(slot, victims, &mut chance, &mut tally);
    }
    report(format_args!("tally {}", tally.text()));
    orders.next();
}

fn socket() -> PathBuf {
    std::env::var(SOCKET).expect("the daemon's socket").into()
}

fn round(slot: Slot, victims: &[Slot], chance: &mut Chance, tally: &mut Tally) {
    let dc = Name::new(DC).expect("a name");
    let mut daemon = Daemon::connect(&socket(), dc).expect("the daemon listens to members");
    let bound = match daemon.bind(Some(slot), Name::NONE, false) {
        Ok(bound) => bound,
        // The last round's endpoint is not gone yet.
        Err(Unavailable::Refused(why)) => {
            tally.count("bind", &format!("{why:?}"));
            return std::thread::sleep(Duration::from_millis(2));
        }
        Err(why) => panic!("a bind, which is an honest thing: {why}"),
    };
    let (me, pool) = (bound.endpoint, bound.pool.expect("a binding of its own"));
    let pairs = Vec::new();
    let mut attacker = Attacker { me, daemon, pool, pairs, victims, chance, tally, is_over: false };
    for _ in 0..1 + attacker.chance.below(3) {
        attacker.meet();
    }
    for _ in 0..1 + attacker.chance.below(ACTS_PER_ROUND) {
        attacker.pull();
        let (name, act) = ACTS[attacker.chance.below(ACTS.len() as u64) as usize];
        attacker.tally.count("act", name);
        act(&mut attacker);
        if attacker.is_over {
            return;
        }
        std::thread::sleep(Duration::from_micros(attacker.chance.below(1500)));
    }
    if attacker.chance.below(2) == 0 {
        let ended = attacker.daemon.unbind();
        attacker.said("unbind", ended);
    }
}

impl Attacker<'_> {
    /// A pair with one of the victims.
    fn meet(&mut self) {
        let victim = self.victims[self.chance.below(self.victims.len() as u64) as usize];
        let Some(victim) = self.lookup(victim) else { return };
        match self.daemon.introduce(victim, false) {
            Ok(Some(new)) => self.take(new),
            Ok(None) => self.tally.count("introduce", "not ready"),
            Err(why) => self.said("introduce", Err::<(), _>(why)),
        }
    }

    fn lookup(&self, slot: Slot) -> Option<Endpoint> {
        let table = &self.daemon.welcome().table;
        let word = table.load(abi::table::of_slot(slot), shm::sync::Ordering::Acquire);
        let entry = abi::table::Entry::from_word(word);
        (entry.state == abi::table::State::Bound).then(|| Endpoint::new(self.me.dc, slot, entry.generation))
    }

    fn take(&mut self, new: Introduced) {
        if self.pairs.iter().all(|pair| pair.peer != new.peer) {
            let writer = LaneWriter::default();
            let doorbell = new.doorbell;
            self.pairs.push(Pair { peer: new.peer, own: new.own, side: new.side, writer, doorbell });
        }
    }

    /// Takes in whoever has made a pair with it.
    pub fn pull(&mut self) {
        loop {
            match self.daemon.pull(true) {
                Ok(Some(Pulled::Introduced(new))) => self.take(new),
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(why) => return self.said("pull", Err::<(), _>(why)),
            }
        }
    }

    /// Counts what the daemon has said.
    pub fn said<T>(&mut self, what: &str, said: Result<T, Unavailable>) {
        match said {
            Ok(_) => self.tally.count(what, "done"),
            Err(Unavailable::Refused(why)) => self.tally.count(what, &format!("{why:?}")),
            Err(Unavailable::Broken) => {
                self.tally.count(what, "hung up");
                self.is_over = true;
            }
            Err(why) => panic!("{what}: {why}"),
        }
    }

    /// One of its pairs.
    pub fn pair(&mut self) -> Option<usize> {
        let count = self.pairs.len() as u64;
        (count > 0).then(|| self.chance.below(count) as usize)
    }

    /// Rings whoever reads its side for that peer. A proxy that sleeps looks by itself, soon.
    pub fn ring(&mut self, at: usize) {
        let doorbells = &self.daemon.welcome().doorbells;
        let bell = self.pairs[at].doorbell;
        // Of a pair with a proxy the bit is the local end's.
        if doorbells.ring(bell, self.me.slot.0) == shm::doorbell::Wake::Futex {
            doorbells.wake(bell);
        }
    }
}

/// A connection on which it says what it likes.
pub struct Raw {
    socket: OwnedFd,
    asked: u64,
    /// The DC's doorbell page.
    pub doorbells: Option<OwnedFd>,
}

impl Raw {
    /// One that has said hello.
    pub fn hello() -> Raw {
        let mut raw = Raw {
            socket: fdpass::connect(&socket()).expect("the daemon listens"),
            asked: 0,
            doorbells: None,
        };
        let hello = Request::Hello { version: VERSION, dc: Name::new(DC).expect("a name") };
        let Some((Reply::Welcome { .. }, mut fds)) = raw.ask(hello.to_words()) else { panic!("not welcome") };
        raw.doorbells = fds.pop();
        raw
    }

    /// One that is bound, and its memory: sealed once it says that it is ready.
    pub fn bind() -> Option<(Raw, Vec<OwnedFd>)> {
        let mut raw = Raw::hello();
        let bind = Request::Bind { slot: None, name: Name::NONE, private: false };
        match raw.ask(bind.to_words()) {
            Some((Reply::Bound { .. }, fds)) => Some((raw, fds)),
            _ => None,
        }
    }

    /// `None`: it has hung up.
    pub fn ask(&mut self, mut words: [u64; WORDS]) -> Option<(Reply, Vec<OwnedFd>)> {
        self.asked += 1;
        words[NUMBER] = self.asked;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        fdpass::send_with_fds(&self.socket, &bytes, &[]).ok()?;
        let mut answer = [0; WORDS * 8];
        let (len, fds) = match fdpass::recv_with_fds_within(&self.socket, &mut answer, PATIENCE + LONG) {
            Ok(got) => got,
            Err(fdpass::PassError::TimedOut) => panic!("the daemon is silent"),
            Err(_) => return None,
        };
        if len != answer.len() {
            return None;
        }
        let mut said = [0; WORDS];
        for (word, eight) in said.iter_mut().zip(answer.chunks_exact(8)) {
            *word = u64::from_le_bytes(eight.try_into().expect("eight bytes"));
        }
        Some((Reply::from_words(&said).expect("an answer that makes sense"), fds))
    }
}
