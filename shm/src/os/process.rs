//! What a process does about itself, and how it starts another with descriptors in hand.
//!
//! Daemon, keeper and couriers call [`refuse_tracing`] first thing in `main`. Key type: [`Start`]. Source:
//! prctl(2), getrlimit(2), sched_setaffinity(2), fcntl(2).
#![expect(unsafe_code, reason = "a child arranges its descriptors between fork and exec; sysconf")]

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};
use rustix::process::{
    DumpableBehavior, Pid, Resource, Rlimit, Signal, getrlimit, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// Lets no process of the same user open this one's memory or take its descriptors from now on (root still
/// may).
pub fn refuse_tracing() -> Result<(), Errno> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Has the kernel kill this process when its parent ends. `parent` is who it was started by, from the
/// environment or the command line; `Err(SRCH)`: that one has ended already, so exit.
///
/// It fires when the *thread* that started this process ends: start such children from a thread that stays.
pub fn die_with(parent: u32) -> Result<(), Errno> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let now = Pid::as_raw(rustix::process::getppid());
    if u32::try_from(now) == Ok(parent) { Ok(()) } else { Err(Errno::SRCH) }
}

/// Raises the limit of open descriptors to the hard one, and returns the old and the new.
pub fn raise_nofile() -> Result<(u64, u64), Errno> {
    let limit = getrlimit(Resource::Nofile);
    let old = limit.current.unwrap_or(u64::MAX);
    let new = limit.maximum.unwrap_or(u64::MAX);
    if old < new {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok((old, new))
}

/// Binds the calling thread to one processor. `Err(INVAL)`: there is no such one, or it is not allowed to us.
pub fn pin_to(cpu: usize) -> Result<(), Errno> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(Errno::INVAL);
    }
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one)
}

/// The processors this thread may run on, in ascending order.
pub fn cpus_allowed() -> Result<Vec<usize>, Errno> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// How many processors the machine has on line, allowed to us or not.
pub fn cpus_online() -> usize {
    // SAFETY: 1. `sysconf` reads a number and touches no memory of ours.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(count).unwrap_or(1).max(1)
}

/// The processor this thread runs on at this moment.
pub fn cpu_now() -> usize {
    sched_getcpu()
}

/// Why a child did not start, or a descriptor was not taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The system refused to prepare descriptors: out of them (raise nofile), or the target number is beyond
    /// the limit.
    Descriptors(Errno),
    /// The program could not be started: not found, not executable, no more processes. Fix the path or the
    /// limit.
    Program(Errno),
    /// The starter's fault: no descriptor was left at that number, or it has been taken over before. Exit.
    NotInherited { number: RawFd },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Descriptors(errno) => write!(f, "descriptors for the child refused: {errno}"),
            StartError::Program(errno) => write!(f, "program not started: {errno}"),
            StartError::NotInherited { number } => {
                write!(f, "no descriptor was inherited at number {number}")
            }
        }
    }
}

impl std::error::Error for StartError {}

/// What a child is started with, beyond its command.
#[derive(Debug, Default)]
pub struct Start {
    /// Descriptors to hand over, each with the number it has in the child: above 2, no number twice.
    pub fds: Vec<(OwnedFd, RawFd)>,
    /// Gives the child a process group of its own, so that the terminal's signals do not reach it.
    pub own_group: bool,
    /// Has the child killed when the thread that starts it ends.
    pub dies_with_us: bool,
}

/// Starts `command` with `start`'s descriptors; ours are closed on return. The child takes them over with
/// [`inherited`].
///
/// # Panics
/// If a target number is below 3 or occurs twice.
pub fn spawn(mut command: Command, start: Start) -> Result<Child, StartError> {
    let beyond = start.fds.iter().map(|(_, target)| target + 1).max().unwrap_or(3);
    let mut held = Vec::new();
    let mut moves: Vec<(OwnedFd, RawFd)> = Vec::with_capacity(start.fds.len());
    for (fd, target) in &start.fds {
        assert!(*target > 2, "descriptors 0 to 2 belong to the standard streams");
        assert!(moves.iter().all(|(_, other)| other != target), "two descriptors for number {target}");
        // Hold the number, so that the pipe by which `Command` hears of a failed exec does not get it.
        held.push(fcntl_dupfd_cloexec(fd, *target).map_err(StartError::Descriptors)?);
        // Move the source out of the way of all targets.
        moves.push((fcntl_dupfd_cloexec(fd, beyond).map_err(StartError::Descriptors)?, *target));
    }
    if start.own_group {
        command.process_group(0);
    }
    let parent = std::process::id();
    let dies_with_us = start.dies_with_us;
    let arrange = move || {
        for (fd, target) in &moves {
            dup_over(fd.as_fd(), *target)?;
        }
        if dies_with_us {
            die_with(parent)?;
        }
        Ok(())
    };
    // SAFETY: 1. Between fork and exec `arrange` makes system calls only: no allocation, no lock, no thread.
    //         2. It touches no memory but `moves`, which the child has a copy of.
    unsafe { command.pre_exec(arrange) };
    let child = command.spawn();
    drop(held);
    child.map_err(|e| StartError::Program(Errno::from_io_error(&e).unwrap_or(Errno::INVAL)))
}

/// Takes over a descriptor that the starter left at `number`, and closes it to this process's own children.
///
/// Each works once: what is inherited stays open across exec, everything else here does not, nor does this
/// one then.
pub fn inherited(number: RawFd) -> Result<OwnedFd, StartError> {
    let missing = StartError::NotInherited { number };
    if number < 3 {
        return Err(missing);
    }
    // SAFETY: 1. Borrowed for two flag calls only; if it is not open they fail, and nothing is closed or
    //            read.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl_getfd(fd).map_err(|_| missing)?;
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(missing);
    }
    fcntl_setfd(fd, flags | FdFlags::CLOEXEC).map_err(StartError::Descriptors)?;
    // SAFETY: 1. It is open (asked above). 2. Nobody owns it: it was inherited across exec, since what this
    //            process opens is close-on-exec, and it is taken once, since it was not close-on-exec until
    //            just now.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn dup_over(fd: BorrowedFd<'_>, target: RawFd) -> Result<(), Errno> {
    // SAFETY: 1. Runs in a child before exec, where whatever had that number is a copy nobody will use again.
    //         2. `dup2` touches no memory.
    let rc = unsafe { libc::dup2(fd.as_raw_fd(), target) };
    if rc < 0 { Err(super::last_errno()) } else { Ok(()) }
}
