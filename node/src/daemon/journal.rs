//! What the daemon's core was told, written down before the core takes it: a state, and the inputs since. From it a
//! successor has the very state that a killed daemon had. It lives in memory that the keeper holds, and nowhere else.
//!
//! Key types: [`Journal`], [`Past`] (what was read). Neighbours: `heritage` (the descriptors), `core::successor`.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::core::{Core, Input, Now};
use crate::keeper::{Keep, Key, Word};

/// Inputs are written to this many bytes, or several times the state's, before a new state stands for all of them: a
/// successor has little to go through, and a long life does not fill memory.
const INPUTS_BYTES_MIN: u64 = 256 << 10;
const INPUTS_PER_STATE: u64 = 4;
/// A record's length stands before it.
const PREFIX_BYTES: usize = 4;

/// What a successor must know besides the core's state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Head {
    /// Of the program: a state is no other version's to read.
    pub version: String,
    /// The origin of the core's time, on the clock of [`clock`].
    pub origin: Duration,
    /// The cluster file as it was when the node began: what it says by now is for the next life.
    pub cluster_text: String,
}

/// A daemon's journal; without a keeper there is none.
pub(super) struct Journal {
    head: Head,
    open: Option<Open>,
}

struct Open {
    file: File,
    len: u64,
    renew_at: u64,
}

/// What was read: the state, and what its daemon was told since.
pub(super) struct Past {
    pub head: Head,
    pub core: Core,
    pub inputs: Vec<(Now, Input)>,
    /// Bytes of all that is whole.
    pub len: u64,
}

/// Time that goes on from one process to the next, though not while the machine sleeps.
pub(super) fn clock() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), nanos)
}

impl Head {
    pub fn new(cluster_text: String) -> Head {
        Head { version: env!("CARGO_PKG_VERSION").into(), origin: clock(), cluster_text }
    }
}

impl Journal {
    /// Begins with this state, if there is a keeper.
    pub fn begin(head: Head, core: &Core, keep: &Keep) -> Journal {
        let mut journal = Journal { head, open: None };
        if keep.is_there() {
            journal.renew(core, keep);
        }
        journal
    }

    /// Goes on with a predecessor's, until its state stands for something else.
    pub fn go_on(head: Head, len: u64, journal: OwnedFd) -> Journal {
        // What was being written goes: a shorter record would leave its end behind.
        let file = File::from(journal);
        let cut = file.set_len(len);
        if let Err(why) = &cut {
            tracing::error!("journal not cut ({why}): should this daemon be killed, its node ends");
        }
        // At the next look a new one begins.
        Journal { head, open: cut.is_ok().then_some(Open { file, len, renew_at: 0 }) }
    }

    pub fn origin(&self) -> Duration {
        self.head.origin
    }

    /// Writes an input down. Before the core takes it.
    pub fn write(&mut self, now: Now, input: &Input, keep: &Keep) {
        let Some(open) = &mut self.open else { return };
        let written = record(&(now, input)).and_then(|bytes| open.append(&bytes));
        if let Err(why) = written {
            self.give_up(&why, keep);
        }
    }

    /// A new state, if the inputs have become many. Between inputs.
    pub fn look(&mut self, core: &Core, keep: &Keep) {
        if self.open.as_ref().is_some_and(|open| open.len >= open.renew_at) {
            self.renew(core, keep);
        }
    }

    fn renew(&mut self, core: &Core, keep: &Keep) {
        match self.started(core) {
            Ok((open, fd)) => {
                // The old one stands until the keeper has the new one, which is whole.
                keep.put(Key::Journal, &fd);
                self.open = Some(open);
            }
            Err(why) => self.give_up(&why, keep),
        }
    }

    fn started(&self, core: &Core) -> std::io::Result<(Open, OwnedFd)> {
        let fd = memfd_create("dvs-journal", MemfdFlags::CLOEXEC)?;
        let file = File::from(fd.try_clone()?);
        let mut open = Open { file, len: 0, renew_at: 0 };
        open.append(&record(&self.head)?)?;
        let state = framed(core.to_bytes())?;
        open.append(&state)?;
        let inputs = INPUTS_BYTES_MIN.max(INPUTS_PER_STATE * state.len() as u64);
        open.renew_at = open.len + inputs;
        Ok((open, fd))
    }

    /// What is not written down whole is not to be gone by.
    fn give_up(&mut self, why: &std::io::Error, keep: &Keep) {
        tracing::error!("journal not written ({why}): should this daemon be killed, its node ends");
        self.open = None;
        keep.say(Word::Last, &[]);
        keep.give_up(Key::Journal);
    }
}

impl Open {
    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all_at(bytes, self.len)?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

fn record(value: &impl Serialize) -> std::io::Result<Vec<u8>> {
    framed(postcard::to_allocvec(value).map_err(std::io::Error::other)?)
}

fn framed(bytes: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let len = u32::try_from(bytes.len()).map_err(std::io::Error::other)?;
    Ok([&len.to_le_bytes()[..], &bytes].concat())
}

/// Reads a journal. What was being written when its daemon was killed was not told to anybody: it is not there.
pub(super) fn read(journal: OwnedFd) -> Option<Past> {
    let file = File::from(journal);
    let len = usize::try_from(file.metadata().ok()?.len()).ok()?;
    let mut bytes = vec![0; len];
    // At its start, wherever the writer was: the place is shared with it.
    file.read_exact_at(&mut bytes, 0).ok()?;
    let mut records = Records(&bytes);
    let head: Head = postcard::from_bytes(records.next()?).ok()?;
    if head.version != env!("CARGO_PKG_VERSION") {
        return None;
    }
    let core = Core::from_bytes(records.next()?)?;
    let mut inputs = Vec::new();
    for record in &mut records {
        inputs.push(postcard::from_bytes(record).ok()?);
    }
    let len = (len - records.0.len()) as u64;
    Some(Past { head, core, inputs, len })
}

struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (prefix, rest) = self.0.split_first_chunk::<PREFIX_BYTES>()?;
        let (record, rest) = rest.split_at_checked(u32::from_le_bytes(*prefix) as usize)?;
        self.0 = rest;
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests_plan;

    fn head() -> Head {
        Head {
            version: env!("CARGO_PKG_VERSION").into(),
            origin: Duration::from_secs(3),
            cluster_text: "x".into(),
        }
    }

    /// A journal with a state and so many ticks, and where it is.
    fn journal(ticks: u64) -> (Journal, OwnedFd) {
        let core = Core::new(Duration::ZERO, tests_plan());
        let mut journal = Journal { head: head(), open: None };
        let (open, fd) = journal.started(&core).expect("memory");
        journal.open = Some(open);
        let nobody = Keep::new(None);
        for n in 1..=ticks {
            journal.write(Duration::from_secs(n), &Input::Tick, &nobody);
        }
        (journal, fd)
    }

    fn len(fd: &OwnedFd) -> u64 {
        rustix::fs::fstat(fd).expect("our own file").st_size as u64
    }

    #[test]
    fn what_was_written_down_is_read_in_its_order() {
        let (_journal, fd) = journal(3);
        let past = read(fd.try_clone().expect("a descriptor")).expect("a journal");
        assert_eq!(past.head, head());
        assert_eq!(past.core.to_bytes(), Core::new(Duration::ZERO, tests_plan()).to_bytes());
        let times: Vec<u64> = past.inputs.iter().map(|(now, _)| now.as_secs()).collect();
        assert_eq!((times, past.len), (vec![1, 2, 3], len(&fd)));
    }

    #[test]
    fn an_input_that_was_not_written_whole_is_not_there_and_what_follows_takes_its_place() {
        let (_journal, fd) = journal(2);
        let whole = len(&fd);
        let (_, shorter) = journal(1);
        let before = len(&shorter);
        for cut in before + 1..whole {
            rustix::fs::ftruncate(&shorter, before).expect("our own file");
            let mut bytes = vec![0; (cut - before) as usize];
            File::from(fd.try_clone().expect("a descriptor"))
                .read_exact_at(&mut bytes, before)
                .expect("whole");
            let file = File::from(shorter.try_clone().expect("a descriptor"));
            file.write_all_at(&bytes, before).expect("our own file");
            let past = read(shorter.try_clone().expect("a descriptor")).expect("a journal");
            assert_eq!((past.inputs.len(), past.len), (1, before), "cut at {cut}");
            let mut next = Journal::go_on(past.head, past.len, shorter.try_clone().expect("a descriptor"));
            next.write(Duration::from_secs(9), &Input::Tick, &Keep::new(None));
            let past = read(shorter.try_clone().expect("a descriptor")).expect("a journal");
            assert_eq!(past.inputs.last().map(|(now, _)| now.as_secs()), Some(9));
        }
    }

    #[test]
    fn a_journal_of_another_version_or_without_a_whole_state_is_none() {
        let core = Core::new(Duration::ZERO, tests_plan());
        let strange = Journal { head: Head { version: "0.0.0".into(), ..head() }, open: None };
        assert!(read(strange.started(&core).expect("memory").1).is_none());
        let (_, fd) = journal(0);
        rustix::fs::ftruncate(&fd, len(&fd) - 1).expect("our own file");
        assert!(read(fd).is_none());
    }

    #[test]
    fn a_new_state_stands_for_many_inputs() {
        let (mut journal, fd) = journal(0);
        let core = Core::new(Duration::ZERO, tests_plan());
        let nobody = Keep::new(None);
        let many = INPUTS_BYTES_MIN.max(INPUTS_PER_STATE * core.to_bytes().len() as u64);
        while len(&fd) <= many {
            let before = journal.open.as_ref().map(|open| open.len);
            journal.look(&core, &nobody);
            assert_eq!(journal.open.as_ref().map(|open| open.len), before, "not yet");
            for n in 0..1000 {
                journal.write(Duration::from_secs(n), &Input::Tick, &nobody);
            }
        }
        while journal.open.as_ref().is_some_and(|open| open.len < open.renew_at) {
            journal.write(Duration::from_secs(1), &Input::Tick, &nobody);
        }
        journal.look(&core, &nobody);
        assert!(journal.open.is_some_and(|open| open.len < many), "it is short again");
    }
}
