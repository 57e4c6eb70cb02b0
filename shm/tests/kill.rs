//! Real processes, one of which is killed at a random point; the survivor audits what is left.
//!
//! The test plays the daemon: it makes the memories, starts two ends of a pair that send, lend, call, notify and sleep,
//! kills one, says so, and lets the other count. `KILL_ROUNDS` (20) and `KILL_SEED` repeat a run. Key type: [`End`].
#![cfg(not(loom))]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use abi::limits::{EXTENTS_PER_PAIR_MAX, LANE_SLOTS, NOTIFY_BITS};
use abi::slot::{BODY_WORDS, EXTENT, Kind, SlotCopy, WITHDRAWABLE};
use abi::{Claim, DcId, Endpoint, Generation, Slot, doorbell, side};
use shm::doorbell::{Doorbells, Wake};
use shm::futex::{self, WaitEnd};
use shm::lane::{LaneReader, LaneWriter, Take, Withdrawal, head, look_again};
use shm::map::{Access, Mapping, PAGE_BYTES};
use shm::os::memfd::{seal, segment_fd};
use shm::os::process::{Start, inherited, spawn};
use shm::pool::{Extent, Pool};
use shm::returns::{Returns, give};
use shm::side::{OwnSide, PeerSide};
use shm::sync::Ordering;
use shm::words::{OwnWords, Words};
use shm::{notify, reply};

/// Where a child finds its descriptors: control, doorbells, then side, pool and diary of each end.
const FD_FIRST: i32 = 10;
const POOL_BYTES: usize = 256 << 10;
const DIARY_BYTES: usize = 16 * PAGE_BYTES;
const SIZES: [usize; 3] = [side::BYTES, POOL_BYTES, DIARY_BYTES];
const ROUND_BYTES: u64 = 2 * (PAGE_BYTES + side::BYTES + POOL_BYTES + DIARY_BYTES) as u64;

/// Control: who is dead, plus one.
const DEAD: usize = 0;
/// Control: a write after death has been made (2: there was no room for one).
const GHOST: usize = 1;

/// Diary: slots published; withdrawals that ended; `sequence * 2`, + 1 if it had been taken, for each.
const PUBLISHED: usize = 0;
const WITHDRAWALS: usize = 1;
const WITHDRAWAL: usize = 2;

const fn endpoint(index: usize) -> Endpoint {
    Endpoint::new(DcId(1), Slot(index as u16), Generation(5))
}

/// The bits that raise number `n` raises: its sum is known, so that the counters can be audited.
const fn bits_of(n: u64) -> u32 {
    (n as u32).wrapping_mul(0x9e37_79b9) | 1
}

fn raised_after(raises: u64, bit: usize) -> u64 {
    (0..raises).filter(|n| bits_of(*n) & 1 << bit != 0).count() as u64
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// One end of the pair, as a process.
struct End {
    index: usize,
    own: OwnSide,
    far: PeerSide,
    pool: Pool,
    far_pool: Arc<Mapping>,
    diary: OwnWords,
    far_diary: Words,
    control: Words,
    bells: Doorbells,
    writer: LaneWriter,
    reader: LaneReader,
    returns: Returns,
    out: BTreeMap<u32, Extent>,
    token: u32,
    /// Of each slot of the peer's: whether it was handed out.
    delivered: Vec<bool>,
    raises: u64,
    bits_seen: [u64; NOTIFY_BITS],
    call: u32,
    random: Random,
}

fn map(number: i32, len_bytes: usize, access: Access) -> Arc<Mapping> {
    let fd = inherited(FD_FIRST + number).unwrap();
    let map = Mapping::shared(fd.as_fd(), 0, len_bytes, access).unwrap();
    if access == Access::ReadWrite && number >= 2 {
        seal(fd.as_fd()).unwrap();
    }
    map
}

fn own_words(map: &Arc<Mapping>) -> OwnWords {
    OwnWords::mapped(map, 0, map.len_bytes() / 8).unwrap()
}

impl End {
    fn from_env() -> Option<End> {
        let part = std::env::var("SHM_KILL_CHILD").ok()?;
        let (index, seed) = part.split_once(':').expect("index and seed");
        let (index, seed): (usize, u64) = (index.parse().unwrap(), seed.parse().unwrap());
        let of = |end: usize, what: usize, access| map((2 + 3 * end + what) as i32, SIZES[what], access);
        let (mine, theirs) = (index, 1 - index);
        let words = |map: Arc<Mapping>| Words::mapped(&map, 0, map.len_bytes() / 8).unwrap();
        let mut pool = Pool::new(POOL_BYTES as u64);
        pool.add_segment(0, of(mine, 1, Access::ReadWrite));
        let own = OwnSide::new(own_words(&of(mine, 0, Access::ReadWrite)));
        own.set_attending(true);
        Some(End {
            index,
            own,
            far: PeerSide::new(words(of(theirs, 0, Access::ReadOnly))),
            pool,
            far_pool: of(theirs, 1, Access::ReadOnly),
            diary: own_words(&of(mine, 2, Access::ReadWrite)),
            far_diary: words(of(theirs, 2, Access::ReadOnly)),
            control: words(map(0, PAGE_BYTES, Access::ReadOnly)),
            bells: Doorbells::new(own_words(&map(1, PAGE_BYTES, Access::ReadWrite))),
            writer: LaneWriter::default(),
            reader: LaneReader::default(),
            returns: Returns::default(),
            out: BTreeMap::new(),
            token: 0,
            delivered: Vec::new(),
            raises: 0,
            bits_seen: [0; NOTIFY_BITS],
            call: 0,
            random: Random(seed),
        })
    }

    /// Talks until the peer is dead.
    fn live(&mut self) {
        // Pairs with: the test's DEAD store. What the dead one wrote was written before it was reaped.
        while self.control.load(DEAD, Ordering::Acquire) == 0 {
            match self.random.below(12) {
                0..=3 => (0..self.random.below(9)).for_each(|_| self.publish()),
                4..=7 => {
                    let most = self.random.below(9);
                    let _taken = (0..most).take_while(|_| self.take()).count();
                }
                8 => self.bring_home(),
                9 => self.raise_and_see(),
                10 => self.call(),
                _ => self.sleep(),
            }
        }
    }

    fn knock(&self) {
        look_again();
        if !self.far.attending() && self.bells.ring(1 - self.index, self.index as u16) == Wake::Futex {
            self.bells.wake(1 - self.index);
        }
    }

    fn publish(&mut self) {
        let what = self.random.below(8);
        let flags = if what < 2 { WITHDRAWABLE } else { 0 };
        let Some(sequence) = self.publish_as(Kind::Post, flags, what.is_multiple_of(2), 0) else { return };
        if flags != 0 && self.random.below(3) == 0 {
            (0..self.random.below(400)).for_each(|_| std::hint::spin_loop());
            self.withdraw(sequence);
        }
    }

    fn publish_as(&mut self, kind: Kind, flags: u8, lend: bool, call: u32) -> Option<u64> {
        if !self.writer.has_room(&self.far).unwrap() {
            return None;
        }
        let sequence = self.writer.next();
        let mut slot = self.slot(kind, flags, call);
        if lend && (self.out.len() as u64) < EXTENTS_PER_PAIR_MAX {
            let mut loan = self.pool.loan(1 + self.random.below(2_000) as u32)?;
            loan.iter_mut().enumerate().for_each(|(at, byte)| *byte = (sequence as usize + at) as u8);
            let extent = loan.into_extent();
            let token = self.token;
            self.token += 1;
            self.out.insert(token, extent);
            slot.head.flags |= EXTENT;
            let (offset_bytes, len_bytes) = (extent.offset_bytes, extent.len_bytes.into());
            slot.set_claim(Claim { segment: 0, token, offset_bytes, len_bytes });
        }
        slot.set_inline(&[sequence.to_le_bytes(), (!sequence).to_le_bytes()].concat());
        self.writer.publish(&self.own, &mut slot);
        // Relaxed: read after death, which orders everything.
        self.diary.store(PUBLISHED, sequence + 1, Ordering::Relaxed);
        self.knock();
        Some(sequence)
    }

    fn slot(&self, kind: Kind, flags: u8, call: u32) -> SlotCopy {
        let source = endpoint(self.index).to_word();
        SlotCopy { head: head(kind, flags), source, sequence: 0, kind: 1, call, body: [0; BODY_WORDS] }
    }

    fn withdraw(&mut self, sequence: u64) {
        // Relaxed: our own word.
        let ended = self.diary.load(WITHDRAWALS, Ordering::Relaxed);
        let at = WITHDRAWAL + ended as usize;
        if at >= DIARY_BYTES / 8 {
            return;
        }
        for _ in 0..100 {
            let taken = match self.writer.withdraw(&self.own, &self.far, sequence).unwrap() {
                Withdrawal::Undecided => continue,
                Withdrawal::Withdrawn => 0,
                Withdrawal::Taken => 1,
            };
            // Relaxed: read after death, which orders everything.
            self.diary.store(at, sequence * 2 + taken, Ordering::Relaxed);
            self.diary.store(WITHDRAWALS, ended + 1, Ordering::Relaxed);
            return;
        }
    }

    /// Takes what is at the front of the lane, and checks every byte of it.
    fn take(&mut self) -> bool {
        let next = self.reader.next();
        let took = self.reader.take(&self.own, &self.far, endpoint(1 - self.index)).unwrap();
        let (slot, delivered) = match took {
            Take::Empty => return false,
            Take::Message(slot) => (slot, true),
            Take::Skipped(slot) => (slot, false),
        };
        self.delivered.push(delivered);
        assert_eq!((slot.sequence, self.delivered.len() as u64), (next, next + 1), "once and in order");
        let mut inline = [0; 96];
        assert_eq!(slot.inline_into(&mut inline), 16);
        assert_eq!(inline[..16], [next.to_le_bytes(), (!next).to_le_bytes()].concat());
        if let Some(claim) = slot.claim() {
            let range = claim.check(POOL_BYTES as u64).unwrap();
            let mut bytes = vec![0; range.len()];
            self.far_pool.read_into(range.start, &mut bytes).unwrap();
            let right = |(at, byte): (usize, &u8)| *byte == (next as usize + at) as u8;
            assert!(bytes.iter().enumerate().all(right), "slot {next}: its extent is whole");
            give(&self.own, claim.token, 0);
        }
        if slot.head.kind == Kind::Request {
            let mut reply = self.slot(Kind::Reply, 0, 0);
            let call = u64::from(slot.call);
            reply.body = [call ^ 0xabc; BODY_WORDS];
            reply::publish(&self.own, call, &reply, true);
            self.knock();
        }
        true
    }

    fn bring_home(&mut self) {
        while let Some((token, _memory)) = self.returns.next(&self.far).unwrap() {
            let extent = self.out.remove(&token).expect("what is given back was out");
            self.pool.free(extent).unwrap();
        }
    }

    fn raise_and_see(&mut self) {
        notify::raise(&self.own, bits_of(self.raises));
        self.raises += 1;
        self.knock();
        self.see_bits();
    }

    fn see_bits(&mut self) {
        let counted = notify::raises(&self.far);
        let bits = notify::take(&self.own, &self.far);
        for bit in (0..NOTIFY_BITS).filter(|bit| bits & 1 << bit != 0) {
            // Relaxed: our own word.
            self.bits_seen[bit] = self.own.words().load(side::SEEN + bit, Ordering::Relaxed);
        }
        let last = counted.saturating_sub(1);
        assert!(
            (0..NOTIFY_BITS).all(|bit| self.bits_seen[bit] >= raised_after(last, bit)),
            "a raise was lost"
        );
    }

    /// Polls for the reply to the call under way, or begins the next one; sometimes gives one up.
    fn call(&mut self) {
        if self.has_reply() || self.random.below(8) == 0 {
            self.own.set_gave_up(self.call.into());
            if self.publish_as(Kind::Request, 0, false, self.call + 1).is_some() {
                self.call += 1;
            }
        }
    }

    fn has_reply(&self) -> bool {
        if self.call == 0 {
            return true;
        }
        let reply = reply::read(&self.far, self.call.into(), endpoint(1 - self.index)).unwrap();
        let right = u64::from(self.call) ^ 0xabc;
        reply.is_some_and(|slot| {
            slot.call == self.call && slot.body == [right; BODY_WORDS] || panic!("{slot:?}")
        })
    }

    /// Sleeps until there is something to take. Publishes before, so that not both sleep for ever.
    fn sleep(&mut self) {
        self.publish_as(Kind::Post, 0, false, 0);
        self.own.set_attending(false);
        look_again();
        self.bells.doze(self.index, doorbell::ON_FUTEX);
        // Pairs with: the test's DEAD store.
        let idle = !self.reader.is_pending(&self.far) && self.control.load(DEAD, Ordering::Acquire) == 0;
        let word = self.bells.sleep_word(self.index);
        let wait = |expected| futex::wait(word, expected, Some(Duration::from_secs(1)));
        if idle && wait(doorbell::ON_FUTEX as u32) == WaitEnd::TimedOut && self.reader.is_pending(&self.far) {
            // Its publisher may have been stopped just before it rang.
            std::thread::sleep(Duration::from_millis(500));
            let asleep = word.load(Ordering::Acquire) == doorbell::ON_FUTEX;
            assert!(!asleep || self.control.load(DEAD, Ordering::Acquire) != 0, "a wake-up was lost");
        }
        self.bells.awake(self.index);
        self.own.set_attending(true);
    }

    /// The peer is dead: freezes its final sequence, takes what is valid, and counts.
    fn audit(&mut self) {
        let last = self.reader.next() + self.reader.pending(&self.far);
        self.own.end(side::END_DEAD, last);
        let began = Instant::now();
        // Pairs with: the test's GHOST store.
        while self.control.load(GHOST, Ordering::Acquire) == 0 {
            assert!(began.elapsed() < Duration::from_secs(20), "no word from the test");
            std::thread::yield_now();
        }
        while self.reader.next() < last {
            assert!(self.take(), "a slot below the final sequence is missing");
        }
        if self.control.load(GHOST, Ordering::Acquire) == 1 {
            assert!(self.reader.is_pending(&self.far), "the write after death is there, and not taken");
        }
        // Relaxed, all below: the writer is dead.
        let diary = |at| self.far_diary.load(at, Ordering::Relaxed);
        assert!(
            [diary(PUBLISHED), diary(PUBLISHED) + 1].contains(&last),
            "published {}, final {last}",
            diary(0)
        );
        for at in 0..diary(WITHDRAWALS) as usize {
            let (sequence, taken) = (diary(WITHDRAWAL + at) / 2, diary(WITHDRAWAL + at) % 2 == 1);
            assert_eq!(self.delivered[sequence as usize], taken, "withdrawal of slot {sequence}");
        }
        self.see_bits();
        let (raises, counters) = notify::counters(&self.far);
        for (bit, &counter) in counters.iter().enumerate().take(NOTIFY_BITS) {
            let between = raised_after(raises, bit)..=raised_after(raises + 1, bit);
            assert!(between.contains(&counter), "bit {bit}: {counter} not in {between:?}");
            assert_eq!(self.bits_seen[bit], counter, "bit {bit}: what was raised was seen");
        }
        self.has_reply();
        assert!(self.writer.consumed(&self.far).unwrap() <= self.writer.next());
        self.bring_home();
        for extent in std::mem::take(&mut self.out).into_values() {
            self.pool.free(extent).expect("what the dead held comes home once");
        }
        let tally = self.pool.audit().unwrap();
        assert_eq!((tally.loans, tally.free_bytes), (0, tally.total_bytes), "the pool is whole");
    }
}

/// Started again as one end of a pair; otherwise nothing.
#[test]
fn child_entry() {
    if let Some(mut end) = End::from_env() {
        end.live();
        end.audit();
    }
}

/// The memories of one round, as their maker holds them.
struct Round {
    control: OwnWords,
    bells: Doorbells,
    sides: [OwnSide; 2],
    fds: Vec<OwnedFd>,
}

impl Round {
    fn new() -> Round {
        let sizes = [PAGE_BYTES, PAGE_BYTES].into_iter().chain(SIZES).chain(SIZES);
        let fds: Vec<_> =
            sizes.map(|len_bytes| segment_fd("kill test", len_bytes, false).unwrap().0).collect();
        let own = |number: usize, len_bytes| {
            own_words(&Mapping::shared(fds[number].as_fd(), 0, len_bytes, Access::ReadWrite).unwrap())
        };
        let sides = [2, 5].map(|number| OwnSide::new(own(number, side::BYTES)));
        Round { control: own(0, PAGE_BYTES), bells: Doorbells::new(own(1, PAGE_BYTES)), sides, fds }
    }

    fn start(&self, index: usize, seed: u64) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child_entry", "--nocapture", "--test-threads=1"]);
        command.env("SHM_KILL_CHILD", format!("{index}:{seed}")).stdin(Stdio::null()).stdout(Stdio::null());
        let fds =
            self.fds.iter().zip(FD_FIRST..).map(|(fd, number)| (fd.try_clone().unwrap(), number)).collect();
        spawn(command, Start { fds, own_group: false, dies_with_us: true }).unwrap()
    }

    /// Kills one of two at a random point; the other must end well.
    fn run(&self, random: &mut Random) {
        let dead = random.below(2) as usize;
        let mut ends = [0, 1].map(|index| self.start(index, random.below(u64::MAX)));
        let began = Instant::now();
        // Now and then it dies before it has begun.
        if random.below(8) != 0 {
            while self.sides.iter().any(|side| side.consumed() == 0) {
                assert!(began.elapsed() < Duration::from_secs(30), "the two do not talk");
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        std::thread::sleep(Duration::from_micros(random.below(8_000)));
        ends[dead].kill().unwrap();
        assert_eq!(ends[dead].wait().unwrap().signal(), Some(9), "it lived until it was killed");
        let survivor = 1 - dead;
        // Pairs with: `End::live` DEAD load.
        self.control.store(DEAD, 1 + dead as u64, Ordering::Release);
        if self.bells.rouse(survivor) == Wake::Futex {
            self.bells.wake(survivor);
        }
        self.write_after_death(dead, &mut ends[survivor]);
        while ends[survivor].try_wait().unwrap().is_none() {
            assert!(began.elapsed() < Duration::from_secs(60), "the survivor hangs");
            std::thread::sleep(Duration::from_micros(100));
        }
        assert!(ends[survivor].wait().unwrap().success(), "the survivor's audit failed, see above");
    }

    /// A forked child of the dead would do this: a slot behind the final sequence, once the survivor has frozen it.
    fn write_after_death(&self, dead: usize, survivor: &mut Child) {
        let frozen = self.sides[1 - dead].as_peer();
        let mut last = frozen.end();
        while last.0 == side::END_NONE && survivor.try_wait().unwrap().is_none() {
            std::thread::yield_now();
            last = frozen.end();
        }
        let room = last.1 - frozen.consumed() < LANE_SLOTS;
        if room {
            let source = endpoint(dead).to_word();
            let body = [0; BODY_WORDS];
            let mut ghost =
                SlotCopy { head: head(Kind::Post, 0), source, sequence: 0, kind: 1, call: 0, body };
            LaneWriter::from_sequence(last.1).publish(&self.sides[dead], &mut ghost);
        }
        // Pairs with: `End::audit` GHOST load.
        self.control.store(GHOST, if room { 1 } else { 2 }, Ordering::Release);
    }
}

fn shmem_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Shmem:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn children() -> usize {
    let me = std::process::id().to_string();
    let stats = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("stat"));
    let parent = |stat: String| stat.rsplit_once(')')?.1.split_whitespace().nth(1).map(str::to_owned);
    stats.filter(|stat| std::fs::read_to_string(stat).ok().and_then(parent).as_ref() == Some(&me)).count()
}

#[test]
fn the_survivor_of_a_killed_peer_finds_everything_in_order() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let rounds = number("KILL_ROUNDS").unwrap_or(20);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = number("KILL_SEED").unwrap_or(now.as_millis() as u64);
    let open = || (std::fs::read_dir("/proc/self/fd").unwrap().count(), children());
    let (shmem, opened) = (shmem_bytes(), open());
    let began = Instant::now();
    for round in 0..rounds {
        let seed = seed + round;
        println!("again: KILL_ROUNDS=1 KILL_SEED={seed} cargo test -p shm --test kill");
        Round::new().run(&mut Random(seed));
    }
    println!("{rounds} rounds in {:?}", began.elapsed());
    assert_eq!(open(), opened, "descriptors and children as before");
    // Others on this machine use such memory too: half of what these rounds would have left is no leak of theirs.
    let most = shmem + (rounds * ROUND_BYTES / 2).max(2 * ROUND_BYTES);
    let began = Instant::now();
    while shmem_bytes() > most {
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "shared memory before {shmem}, now {}",
            shmem_bytes()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
