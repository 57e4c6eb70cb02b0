//! What a daemon leaves with its keeper: descriptors, each under a key. Key types: [`Key`], [`Keep`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use abi::{DcId, Endpoint};
use rustix::io::Errno;
use shm::os::fdpass::{self, PassError};

/// A message: what it is, then a key.
pub(super) const WORDS: usize = 5;
pub(super) const BYTES: usize = WORDS * 8;

/// How long a keeper may be behind before it counts as lost.
const BEHIND_PAUSE: Duration = Duration::from_millis(1);
const BEHIND_MAX: u32 = 5000;

/// What a descriptor is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Key {
    /// The inputs of the daemon's core.
    Journal,
    /// The node's lock file, and the lock with it.
    Lock,
    /// The sockets that members and operators connect to.
    Members,
    Admin,
    /// A member's connection.
    Conn(u64),
    Table(DcId),
    Doorbells(DcId),
    Segment {
        memory: u32,
        segment: u32,
    },
    ProxyBell {
        proxy: u16,
        dc: DcId,
    },
    /// The two ends of a bell; `by`: `None` for the daemon.
    Rings {
        polls: Endpoint,
        by: Option<Endpoint>,
    },
    Rung {
        polls: Endpoint,
        by: Option<Endpoint>,
    },
}

/// What a message between keeper and daemon says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Word {
    /// Keep this descriptor; or, to a daemon that begins: this was kept.
    Put(Key),
    Drop(Key),
    /// To the daemon: that was all.
    All,
    /// The daemon runs, and a successor could go on from here.
    Up,
    /// No successor could go on any more.
    Last,
}

impl Key {
    fn to_words(self) -> [u64; WORDS - 1] {
        let by_word = |by: Option<Endpoint>| by.map_or(0, Endpoint::to_word);
        match self {
            Key::Journal => [1, 0, 0, 0],
            Key::Lock => [2, 0, 0, 0],
            Key::Members => [3, 0, 0, 0],
            Key::Admin => [4, 0, 0, 0],
            Key::Conn(conn) => [5, conn, 0, 0],
            Key::Table(dc) => [6, u64::from(dc.0), 0, 0],
            Key::Doorbells(dc) => [7, u64::from(dc.0), 0, 0],
            Key::Segment { memory, segment } => [8, u64::from(memory), u64::from(segment), 0],
            Key::ProxyBell { proxy, dc } => [9, u64::from(proxy), u64::from(dc.0), 0],
            Key::Rings { polls, by } => [10, polls.to_word(), by_word(by), 0],
            Key::Rung { polls, by } => [11, polls.to_word(), by_word(by), 0],
        }
    }

    fn from_words(w: &[u64]) -> Option<Key> {
        let small = |word: u64| u32::try_from(word).ok();
        let dc = |word: u64| u16::try_from(word).ok().map(DcId);
        let by = |word: u64| if word == 0 { Some(None) } else { Endpoint::from_word(word).map(Some) };
        Some(match *w.first()? {
            1 => Key::Journal,
            2 => Key::Lock,
            3 => Key::Members,
            4 => Key::Admin,
            5 => Key::Conn(w[1]),
            6 => Key::Table(dc(w[1])?),
            7 => Key::Doorbells(dc(w[1])?),
            8 => Key::Segment { memory: small(w[1])?, segment: small(w[2])? },
            9 => Key::ProxyBell { proxy: u16::try_from(w[1]).ok()?, dc: dc(w[2])? },
            10 => Key::Rings { polls: Endpoint::from_word(w[1])?, by: by(w[2])? },
            11 => Key::Rung { polls: Endpoint::from_word(w[1])?, by: by(w[2])? },
            _ => return None,
        })
    }
}

impl Word {
    pub fn to_bytes(self) -> [u8; BYTES] {
        let (code, key) = match self {
            Word::Put(key) => (1, key.to_words()),
            Word::Drop(key) => (2, key.to_words()),
            Word::All => (3, [0; WORDS - 1]),
            Word::Up => (4, [0; WORDS - 1]),
            Word::Last => (5, [0; WORDS - 1]),
        };
        let mut bytes = [0; BYTES];
        for (word, out) in [code].iter().chain(&key).zip(bytes.chunks_exact_mut(8)) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Word> {
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|eight| eight.try_into().map(u64::from_le_bytes))
            .collect::<Result<_, _>>()
            .ok()?;
        let (code, key) = words.split_first().filter(|_| bytes.len() == BYTES)?;
        Some(match code {
            1 => Word::Put(Key::from_words(key)?),
            2 => Word::Drop(Key::from_words(key)?),
            3 => Word::All,
            4 => Word::Up,
            5 => Word::Last,
            _ => return None,
        })
    }
}

/// A daemon's way to its keeper. Without one, what is put is nowhere, and nobody succeeds.
pub(crate) struct Keep {
    link: Option<OwnedFd>,
    lost: AtomicBool,
}

impl Keep {
    pub fn new(link: Option<OwnedFd>) -> Keep {
        Keep { link, lost: AtomicBool::new(false) }
    }

    /// Whether there is a keeper.
    pub fn is_there(&self) -> bool {
        // Relaxed: nothing but the flag is shared.
        self.link.is_some() && !self.lost.load(Ordering::Relaxed)
    }

    /// The keeper's process; 0: there is none.
    pub fn pid(&self) -> u32 {
        let parent = rustix::process::getppid().filter(|_| self.is_there());
        parent.and_then(|pid| u32::try_from(pid.as_raw_pid()).ok()).unwrap_or(0)
    }

    /// Has a descriptor kept. It is, once this returns, whatever becomes of this process. Cost: a system call.
    pub fn put(&self, key: Key, fd: impl AsFd) {
        self.say(Word::Put(key), &[fd.as_fd()]);
    }

    /// Nobody needs it any more.
    pub fn give_up(&self, key: Key) {
        self.say(Word::Drop(key), &[]);
    }

    pub fn say(&self, word: Word, fds: &[BorrowedFd<'_>]) {
        let Some(link) = self.link.as_ref().filter(|_| self.is_there()) else { return };
        for _ in 0..BEHIND_MAX {
            match fdpass::send_with_fds(link, &word.to_bytes(), fds) {
                Ok(()) => return,
                // The keeper has not taken yet what is on its way.
                Err(PassError::TimedOut | PassError::Refused(Errno::TOOMANYREFS | Errno::NOBUFS)) => {
                    std::thread::sleep(BEHIND_PAUSE);
                }
                Err(why) => {
                    tracing::error!(
                        "the keeper is lost ({why}): should this daemon be killed, its node ends"
                    );
                    break;
                }
            }
        }
        self.lost.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::{Generation, Slot};

    #[test]
    fn every_word_survives_its_bytes_and_others_are_refused() {
        let e = Endpoint::new(DcId(2), Slot(7), Generation(99));
        let keys = [
            Key::Journal,
            Key::Lock,
            Key::Members,
            Key::Admin,
            Key::Conn(u64::MAX),
            Key::Table(DcId(3)),
            Key::Doorbells(DcId(3)),
            Key::Segment { memory: 1, segment: u32::MAX },
            Key::ProxyBell { proxy: 1, dc: DcId(9) },
            Key::Rings { polls: e, by: None },
            Key::Rung { polls: e, by: Some(e) },
        ];
        let words = keys.iter().flat_map(|key| [Word::Put(*key), Word::Drop(*key)]);
        for word in words.chain([Word::All, Word::Up, Word::Last]) {
            assert_eq!(Word::from_bytes(&word.to_bytes()), Some(word));
        }
        let bytes = Word::All.to_bytes();
        assert_eq!(Word::from_bytes(&bytes[1..]), None);
        assert_eq!(Word::from_bytes(&[9; BYTES]), None);
        assert_eq!(Word::from_bytes(&[]), None);
    }

    #[test]
    fn without_a_keeper_nothing_is_said_and_nothing_waits() {
        let (here, there) = fdpass::pair().unwrap();
        let keep = Keep::new(Some(here));
        keep.put(Key::Lock, std::io::stdin());
        assert!(keep.is_there());
        drop(there);
        keep.put(Key::Lock, std::io::stdin());
        assert!(!keep.is_there());
        keep.put(Key::Lock, std::io::stdin());
    }
}
