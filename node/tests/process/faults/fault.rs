//! What is broken in a cell, and how: the rows.
//!
//! Key types: [`Fault`], [`Scene`] (where it strikes: always node 2, or what is between nodes 1 and 2).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

use super::Hooks;
use super::hosts::Hosts;
use crate::process::cluster::Cluster;
use crate::process::system::{self, LONG, eventually, works_for};

/// The node whose processes are hit.
pub const HIT: u16 = 2;
/// The node it is cut off from.
pub const OTHER: u16 = 1;
pub const NODE_DEAD_AFTER: Duration = Duration::from_secs(10);
const SHORT_STOP: Duration = Duration::from_secs(5);
const LONG_STOP: Duration = Duration::from_secs(12);
/// How long links are bad, and limits are hit.
const BAD: Duration = Duration::from_secs(4);
const FLAPS: u32 = 4;
const LOSS_PERCENT: u32 = 30;
/// A memory group's: less than its process takes when it is told to eat.
const GROUP_BYTES_MAX: u64 = 8 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Victim {
    Application,
    Proxy,
    Daemon,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    Kill(Victim),
    /// SIGSTOP for 5 s.
    Stop(Victim),
    /// SIGSTOP for longer than `node_dead_after`.
    StopLong(Victim),
    /// Neither hears the other for a while.
    Cut,
    /// The same until each has declared the other dead.
    CutLong,
    /// Node 1 does not hear node 2 for a while.
    CutOneWay,
    /// The proxy of node 2 is gone, and node 1 is not told.
    HalfOpen,
    /// Cut and mended again once a second.
    Flap,
    Loss,
    /// RLIMIT_AS at what it has.
    Memory(Victim),
    /// The memory limit of a control group: the kernel kills who goes over it.
    MemoryGroup,
    /// RLIMIT_NOFILE at what it has.
    Descriptors(Victim),
    /// Set back an hour; `Victim::Daemon` stands for all of its node.
    Clock(Victim),
}

impl Fault {
    pub const ALL: [(&str, Fault); 24] = {
        use Fault::*;
        use Victim::*;
        [
            ("kill_application", Kill(Application)),
            ("kill_proxy", Kill(Proxy)),
            ("kill_daemon", Kill(Daemon)),
            ("stop_application", Stop(Application)),
            ("stop_proxy", Stop(Proxy)),
            ("stop_daemon", Stop(Daemon)),
            ("stop_application_long", StopLong(Application)),
            ("stop_proxy_long", StopLong(Proxy)),
            ("stop_daemon_long", StopLong(Daemon)),
            ("cut", Cut),
            ("cut_long", CutLong),
            ("cut_one_way", CutOneWay),
            ("half_open", HalfOpen),
            ("flapping", Flap),
            ("loss", Loss),
            ("memory_application", Memory(Application)),
            ("memory_proxy", Memory(Proxy)),
            ("memory_daemon", Memory(Daemon)),
            ("memory_group", MemoryGroup),
            ("descriptors_application", Descriptors(Application)),
            ("descriptors_proxy", Descriptors(Proxy)),
            ("descriptors_daemon", Descriptors(Daemon)),
            ("clock_application", Clock(Application)),
            ("clock_node", Clock(Daemon)),
        ]
    };

    pub fn of(word: &str) -> Option<Fault> {
        Fault::ALL.into_iter().find(|(name, _)| *name == word).map(|(_, fault)| fault)
    }

    /// Whether the application it strikes is no more afterwards.
    pub fn ends_application(self) -> bool {
        matches!(self, Fault::Kill(Victim::Application) | Fault::MemoryGroup)
    }

    /// Whether a limit is hit: then those who talk have not met when it strikes.
    pub fn is_limit(self) -> bool {
        matches!(self, Fault::Memory(_) | Fault::Descriptors(_))
    }

    /// What it needs and this machine has not.
    pub fn missing(self) -> Option<String> {
        match self {
            Fault::Clock(_) if clock_library().is_none() => {
                Some("needs libfaketime (apt-get install faketime)".into())
            }
            Fault::MemoryGroup => Group::make().err(),
            _ => None,
        }
    }
}

/// The cluster and its hosts, and the clock of who has another.
pub struct Scene {
    pub hosts: Hosts,
    pub cluster: Cluster,
    pub clock: PathBuf,
}

impl Scene {
    /// Strikes, and mends what can be mended: returns when all is as it was, but for who was killed. `application`: its
    /// process.
    pub fn suffer(&self, fault: Fault, application: u32, hooks: &mut dyn Hooks) {
        match fault {
            Fault::Kill(victim) => {
                self.signal(self.pid(victim, application), Signal::KILL);
                hooks.struck();
            }
            Fault::Stop(victim) => self.stop(self.pid(victim, application), SHORT_STOP, hooks),
            Fault::StopLong(victim) => self.stop(self.pid(victim, application), LONG_STOP, hooks),
            Fault::Cut | Fault::CutLong | Fault::CutOneWay | Fault::Loss => {
                let percent = if fault == Fault::Loss { LOSS_PERCENT } else { 100 };
                self.hosts.lose(OTHER, HIT, percent);
                if fault != Fault::CutOneWay {
                    self.hosts.lose(HIT, OTHER, percent);
                }
                hooks.struck();
                let incarnations = || [OTHER, HIT].map(|node| self.cluster.status(node).incarnation);
                let before = incarnations();
                if fault == Fault::CutLong {
                    self.until_both_are_dead();
                } else {
                    std::thread::sleep(BAD);
                }
                hooks.before_mended();
                self.hosts.lose_nothing();
                if fault == Fault::CutLong {
                    eventually("whom another has declared dead begins anew", LONG, || {
                        let after = incarnations();
                        (0..2).all(|at| after[at] != before[at])
                    });
                }
            }
            Fault::HalfOpen => {
                let pid = self.pid(Victim::Proxy, application);
                self.hosts.lose(OTHER, HIT, 100);
                self.signal(pid, Signal::KILL);
                hooks.struck();
                std::thread::sleep(BAD / 2);
                self.hosts.lose_nothing();
            }
            Fault::Flap => {
                for flap in 0..FLAPS {
                    self.hosts.lose(OTHER, HIT, 100);
                    self.hosts.lose(HIT, OTHER, 100);
                    if flap == 0 {
                        hooks.struck();
                    }
                    std::thread::sleep(Duration::from_millis(500));
                    self.hosts.lose_nothing();
                    std::thread::sleep(Duration::from_millis(500));
                }
            }
            Fault::Memory(victim) => {
                let pid = self.pid(victim, application);
                let now = system::Holdings::of(pid).mapped_kib << 10;
                limit(pid, Resource::As, now, hooks);
            }
            Fault::Descriptors(victim) => {
                let pid = self.pid(victim, application);
                limit(pid, Resource::Nofile, lowest_free(pid), hooks);
            }
            Fault::MemoryGroup => {
                let group = Group::make().unwrap_or_else(|why| panic!("{why}"));
                group.take(application);
                hooks.struck();
                eventually("it ends: the kernel kills it, or it needs no more", LONG, || {
                    has_ended(application)
                });
            }
            Fault::Clock(_) => {
                std::fs::write(&self.clock, "-3600\n").expect("a file of our own");
                hooks.struck();
                std::thread::sleep(BAD);
            }
        }
    }

    fn pid(&self, victim: Victim, application: u32) -> u32 {
        match victim {
            Victim::Application => application,
            Victim::Proxy => self.cluster.proxies_up()[usize::from(HIT) - 1],
            Victim::Daemon => self.cluster.daemon(HIT),
        }
    }

    fn signal(&self, pid: u32, what: Signal) {
        let is_ours = |pid| works_for(pid, self.cluster.ground.folder()) || descends_from_us(pid);
        assert!(system::signal(pid, what, is_ours), "process {pid} is not ours, or has ended");
    }

    fn stop(&self, pid: u32, time: Duration, hooks: &mut dyn Hooks) {
        self.signal(pid, Signal::STOP);
        hooks.struck();
        std::thread::sleep(time);
        // One that was replaced since has been killed.
        let is_ours = |pid| works_for(pid, self.cluster.ground.folder()) || descends_from_us(pid);
        system::signal(pid, Signal::CONT, is_ours);
    }

    fn until_both_are_dead(&self) {
        let sees = |node: u16, of: u16| {
            self.cluster.status(node).nodes.iter().any(|other| other.node == of && other.dead)
        };
        eventually("each node has declared the other dead", NODE_DEAD_AFTER * 2, || {
            sees(OTHER, HIT) && sees(HIT, OTHER)
        });
    }

    /// What the environment of a node has besides, or of the application.
    pub fn around(fault: Fault, victim: Victim, clock: &Path) -> Vec<(String, OsString)> {
        if fault != Fault::Clock(victim) {
            return Vec::new();
        }
        let library = clock_library().expect("looked for before").into_os_string();
        let words = [
            ("LD_PRELOAD", library),
            ("FAKETIME_TIMESTAMP_FILE", clock.as_os_str().to_owned()),
            ("FAKETIME_NO_CACHE", "1".into()),
            // A clock that is set back is the wall's; the monotonic one never is.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ];
        words.map(|(name, value)| (name.to_owned(), value)).into()
    }
}

/// Sets a limit of a process for a while.
fn limit(pid: u32, what: Resource, to: u64, hooks: &mut dyn Hooks) {
    let pid = Pid::from_raw(pid as i32);
    // Theirs are ours.
    let before = prlimit(pid, what, Rlimit { current: Some(to), ..getrlimit(what) });
    let before = before.unwrap_or_else(|why| panic!("no limit: {why}"));
    hooks.struck();
    std::thread::sleep(BAD);
    // It may have ended of it.
    let _ = prlimit(pid, what, before);
}

fn lowest_free(pid: u32) -> u64 {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors");
    let mut open: Vec<u64> = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
    open.sort_unstable();
    (0..).zip(&open).find(|(at, fd)| at != *fd).map_or(open.len() as u64, |(at, _)| at)
}

fn status_word(pid: u32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.to_owned())
}

fn has_ended(pid: u32) -> bool {
    status_word(pid, "State:").is_none_or(|state| state == "Z")
}

pub fn descends_from_us(pid: u32) -> bool {
    let own = std::process::id();
    let mut at = pid;
    while at > 1 && at != own {
        let Some(parent) = status_word(at, "PPid:").and_then(|word| word.parse().ok()) else { return false };
        at = parent;
    }
    at == own
}

fn clock_library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.filter_map(|e| Some(e.ok()?.path()));
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())
}

/// A control group of our own with little memory, of version 1 or 2. Dropped, it goes.
struct Group(PathBuf);

impl Group {
    fn make() -> Result<Group, String> {
        let name = format!("dvs-test-{}", std::process::id());
        let tries = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        let mut why = String::new();
        for (root, file) in tries {
            let group = Group(Path::new(root).join(&name));
            let made = std::fs::create_dir(&group.0)
                .and_then(|()| std::fs::write(group.0.join(file), GROUP_BYTES_MAX.to_string()));
            match made {
                Ok(()) => return Ok(group),
                Err(error) => why = format!("needs the right to limit memory in a control group: {error}"),
            }
        }
        Err(why)
    }

    fn take(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("a group of our own");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Until the kernel has taken the dead out of it, it does not go.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() || !self.0.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
