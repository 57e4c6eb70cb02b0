//! What the system says of processes, and the signals that are sent to them: only ever to one that is known to be ours.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// No wait is longer than this: what takes longer hangs.
pub const LONG: Duration = Duration::from_secs(30);

/// Tries again until it works; fails when it takes too long.
pub fn eventually(what: &str, within: Duration, mut works: impl FnMut() -> bool) {
    let end = Instant::now() + within;
    while !works() {
        assert!(Instant::now() < end, "not within {} ms: {what}", within.as_millis());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Signals a process if `is_ours` says so of what the pid means now: it is asked with the process pinned.
pub fn signal(pid: u32, signal: Signal, is_ours: impl Fn(u32) -> bool) -> bool {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    let Ok(pinned) = pidfd_open(raw, PidfdFlags::empty()) else { return false };
    is_ours(pid) && pidfd_send_signal(&pinned, signal).is_ok()
}

/// The processes that name `folder` on their command line. The folder's name is unique, so they work for it.
pub fn processes_of(folder: &Path) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| works_for(*pid, folder)).collect()
}

/// Whether a process names `folder` on its command line, and is not about to be collected by its parent.
pub fn works_for(pid: u32, folder: &Path) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let name = folder.as_os_str().as_encoded_bytes();
    line.windows(name.len()).any(|part| part == name)
}

/// What a process holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holdings {
    pub descriptors: u64,
    pub mapped_kib: u64,
    pub resident_kib: u64,
}

impl Holdings {
    /// Of a process that may not be traced too: these are open to all.
    pub fn of(pid: u32) -> Holdings {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process that runs");
        // A kernel before 6.2 does not count here, and shows the list to root only.
        let listed = std::fs::metadata(format!("/proc/{pid}/fd")).map_or(0, |m| m.len());
        let descriptors = match listed {
            0 => std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |d| d.count() as u64),
            counted => counted,
        };
        let mapped_kib = kib_in(&status, "VmSize:").expect("a process with memory");
        let resident_kib = kib_in(&status, "VmRSS:").expect("a process with memory");
        Holdings { descriptors, mapped_kib, resident_kib }
    }
}

/// What the memory files that these processes hold take, each counted once. `None`: their descriptors are not shown to this
/// user.
pub fn memory_files_kib(pids: &[u32]) -> Option<u64> {
    let mut files = std::collections::BTreeMap::new();
    for pid in pids {
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
            let name = std::fs::read_link(entry.path()).unwrap_or_default();
            // One that was closed since has no more to say.
            if let Some(file) = std::fs::metadata(entry.path())
                .ok()
                .filter(|_| name.to_string_lossy().starts_with("/memfd:dvs-"))
            {
                files.insert((file.dev(), file.ino()), file.blocks() / 2);
            }
        }
    }
    Some(files.values().sum())
}

fn kib_in(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A small generator: different in every run, and good enough for moments and sizes.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(seed | 1)
    }

    /// A seed from the clock; printed, so that a failure shows it.
    pub fn of_now() -> Chance {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let seed = now.as_nanos() as u64;
        println!("seed {seed}");
        Chance::new(seed)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end
    }

    pub fn millis_below(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.below(end))
    }
}
