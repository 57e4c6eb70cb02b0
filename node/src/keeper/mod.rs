//! The keeper: a node's outermost process. It starts the daemon, holds what must outlive it, and starts a successor when it
//! is killed. It knows nothing of what it holds, listens to nobody but its daemon, and does nothing else, so that there is
//! little by which it could end.
//!
//! Key types: [`Start`] (how a daemon is started), [`End`] (how the last one ended). Neighbours: `daemon::heritage` (what a
//! successor makes of it), `core::successor` (how it goes on). Why: `docs/adr/0014-keeper-and-journal.md`.

mod key;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};
use shm::os::events::EventFd;
use shm::os::fdpass::{self, PassError};
use shm::os::peer::{pidfd_exited, pidfd_kill, pidfd_open};

use crate::NodeError;
use crate::daemon::signals;
pub(crate) use key::{Keep, Key, Word};

/// A daemon that lived shorter than this has failed.
const FAILED_WITHIN: Duration = Duration::from_secs(1);
/// So many failures in a row, and there is no successor.
const FAILURES_MAX: u32 = 20;
/// After some failures in a row, a pause that grows: time for whatever it was to pass.
const FAILURES_AT_ONCE: u32 = 5;
const FAILURE_PAUSE: Duration = Duration::from_millis(50);
/// How long proxies that were killed may take to end.
const ORPHANS_WITHIN: Duration = Duration::from_secs(10);

/// Starts a daemon that finds this descriptor, its way to the keeper.
pub type Start = Box<dyn FnMut(OwnedFd) -> Result<Child, NodeError>>;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The daemon ended by itself, with this status: it was told to, or could not begin.
    Ended(ExitStatus),
    /// It was killed, and no successor could go on.
    NoSuccessor(ExitStatus),
}

/// A running daemon.
struct Kept {
    child: Child,
    pidfd: OwnedFd,
    link: OwnedFd,
    /// It may still say something.
    speaks: bool,
    since: Instant,
}

struct Keeper {
    start: Start,
    held: BTreeMap<Key, OwnedFd>,
    /// Whether a successor could go on.
    up: bool,
    stop: Arc<EventFd>,
    told: bool,
}

/// Runs daemons one after another, until one ends by itself. SIGTERM and SIGINT are passed on.
///
/// The process should be the keeper's alone: it refuses tracing from now on, has its descriptor limit raised, and is the
/// parent of whatever its daemons leave behind.
pub fn run(start: Start) -> Result<End, NodeError> {
    shm::os::process::refuse_tracing().map_err(NodeError::system("to refuse tracing"))?;
    if let Err(errno) = shm::os::process::raise_nofile() {
        tracing::warn!("limit of open descriptors not raised: {errno}");
    }
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(NodeError::system("to be the parent of orphans"))?;
    let stop = Arc::new(EventFd::new().map_err(NodeError::system("an eventfd"))?);
    let _signals = signals::ring_on_end(Arc::clone(&stop))?;
    let mut keeper = Keeper { start, held: BTreeMap::new(), up: false, stop, told: false };
    let mut failures = 0;
    loop {
        let (status, lived) = keeper.keep_one()?;
        let killed = status.signal();
        reap_orphans();
        // What it was told is what it did; and one that never was up has said why.
        if status.success() || keeper.told || (!keeper.up && killed.is_none()) {
            return Ok(End::Ended(status));
        }
        failures = if lived < FAILED_WITHIN { failures + 1 } else { 0 };
        if !keeper.up || failures >= FAILURES_MAX {
            tracing::error!(failures, "the daemon has ended ({status}), and no successor can go on");
            return Ok(End::NoSuccessor(status));
        }
        tracing::warn!("the daemon has ended ({status}): its successor starts");
        std::thread::sleep(FAILURE_PAUSE * failures.saturating_sub(FAILURES_AT_ONCE));
    }
}

impl Keeper {
    /// One daemon's life: how it ended, and how long it was.
    fn keep_one(&mut self) -> Result<(ExitStatus, Duration), NodeError> {
        let (link, theirs) = fdpass::pair().map_err(|e| of_pass("a socket pair", e))?;
        let mut child = (self.start)(theirs)?;
        let pidfd = match pidfd_open(child.id()) {
            Ok(pidfd) => pidfd,
            Err(errno) => {
                // It is our child and not reaped: it is there to be killed.
                let _ = child.kill();
                let _ = child.wait();
                return Err(NodeError::system("to watch the daemon")(errno));
            }
        };
        let mut kept = Kept { child, pidfd, link, speaks: true, since: Instant::now() };
        self.hand_over(&kept);
        while !pidfd_exited(&kept.pidfd) {
            self.wait(&kept)?;
            kept.speaks = kept.speaks && self.listen(&kept);
        }
        // What it said before its end counts.
        self.listen(&kept);
        let status = kept.child.wait().map_err(|e| of_io("to wait for the daemon", &e))?;
        Ok((status, kept.since.elapsed()))
    }

    fn hand_over(&self, kept: &Kept) {
        for (key, fd) in &self.held {
            if say(kept, Word::Put(*key), Some(fd)).is_err() {
                // It has ended: that is seen next.
                return;
            }
        }
        let _ = say(kept, Word::All, None);
    }

    /// Until the daemon says something or ends, or we are told to stop.
    fn wait(&mut self, kept: &Kept) -> Result<(), NodeError> {
        let on = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = vec![on(self.stop.as_fd()), on(kept.pidfd.as_fd())];
        // One that has hung up would end every wait at once.
        fds.extend(kept.speaks.then(|| on(kept.link.as_fd())));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(NodeError::system("to wait")(errno)),
        }
        if self.stop.clear().unwrap_or(false) {
            self.told = true;
            // It has exited, or takes the signal.
            let _ = rustix::process::pidfd_send_signal(&kept.pidfd, Signal::TERM);
        }
        Ok(())
    }

    /// Everything that the daemon has said by now; false: it says no more.
    fn listen(&mut self, kept: &Kept) -> bool {
        let mut bytes = [0; key::BYTES];
        loop {
            match fdpass::recv_with_fds_within(&kept.link, &mut bytes, Duration::ZERO) {
                Ok((0, _)) | Err(PassError::Closed) => return false,
                Ok((len, fds)) => self.heard(Word::from_bytes(&bytes[..len]), fds),
                Err(PassError::TimedOut) => return true,
                Err(why) => {
                    // A descriptor less than its successor needs.
                    tracing::error!("what the daemon said is lost ({why}): nobody could succeed it");
                    self.up = false;
                    return true;
                }
            }
        }
    }

    fn heard(&mut self, word: Option<Word>, fds: Vec<OwnedFd>) {
        match (word, fds.into_iter().next()) {
            (Some(Word::Put(key)), Some(fd)) => drop(self.held.insert(key, fd)),
            (Some(Word::Drop(key)), _) => drop(self.held.remove(&key)),
            (Some(Word::Up), _) => self.up = true,
            (Some(Word::Last), _) => self.up = false,
            (Some(Word::Put(_) | Word::All) | None, _) => {
                tracing::error!("the daemon said what makes no sense: nobody could succeed it");
                self.up = false;
            }
        }
    }
}

fn say(kept: &Kept, word: Word, fd: Option<&OwnedFd>) -> Result<(), PassError> {
    let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
    loop {
        match fdpass::send_with_fds(&kept.link, &word.to_bytes(), &fds) {
            Err(PassError::Refused(Errno::TOOMANYREFS)) if !pidfd_exited(&kept.pidfd) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            said => return said,
        }
    }
}

/// Kills and buries whatever a daemon left behind: no successor begins before its predecessor's proxies have ended.
fn reap_orphans() {
    let until = Instant::now() + ORPHANS_WITHIN;
    loop {
        for pid in children() {
            // It is our child and not reaped: the pid is its own.
            let pidfd = u32::try_from(pid.as_raw_pid()).ok().and_then(|pid| pidfd_open(pid).ok());
            if let Some(Err(errno)) = pidfd.as_ref().map(pidfd_kill) {
                tracing::error!(pid = pid.as_raw_pid(), "not killed: {errno}");
            }
        }
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_none) => return,
            }
        }
        if Instant::now() >= until {
            return tracing::error!("processes of the daemon that ended do not end");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Processes whose parent this thread is; those of other threads, too, are found once the kernel gives them to it.
fn children() -> Vec<Pid> {
    let lists = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let text: String =
        lists.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok()).collect();
    text.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

fn of_pass(what: &'static str, why: PassError) -> NodeError {
    match why {
        PassError::Refused(errno) => NodeError::system(what)(errno),
        _ => NodeError::system(what)(Errno::PIPE),
    }
}

fn of_io(what: &'static str, why: &std::io::Error) -> NodeError {
    NodeError::system(what)(Errno::from_io_error(why).unwrap_or(Errno::IO))
}
