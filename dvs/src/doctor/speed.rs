//! What makes it fast, and how far it goes: processors, clock, pages, limits.

use std::os::fd::AsFd;
use std::time::Instant;

use rustix::process::{Resource, getrlimit};
use shm::futex::WaitEnd;
use shm::map::{Access, HUGE_PAGE_BYTES, Mapping, Pages};
use shm::os::{memfd, process};
use shm::sync::AtomicU64;

use super::{Check, State, read};
use crate::output::{bytes, count};

/// Looks at the clock in one measurement, and measurements: the best one is what the clock costs.
const CLOCK_LOOKS: u32 = 1_000;
const CLOCK_ROUNDS: usize = 5;
/// A look that costs more is a system call, not a read of a counter.
const CLOCK_LOOK_NS_MAX: u64 = 200;
/// What a pool grows by, for the trial of its pages.
const POOL_BYTES: usize = abi::limits::POOL_SEGMENT_BYTES_MIN as usize;
/// Fewer descriptors than this are soon used up by a daemon with its programs.
const NOFILE_WANTED: u64 = 4_096;
/// What a transport that pins its memory needs at the very least.
const MEMLOCK_WANTED_BYTES: u64 = 64 << 20;
/// The bit of `CapEff` that frees from the limit of pinned memory.
const CAP_IPC_LOCK: u32 = 14;

const SMALL_PAGES: &str =
    "large loans miss the TLB more often: slower by what the processor needs to look pages up";

pub fn all() -> Vec<Check> {
    vec![
        cores(),
        clock(),
        futex_waitv(),
        huge_pages(),
        transparent_huge_pages(),
        descriptors(),
        locked_memory(),
        posix_shared_memory(),
        exec_policy(),
    ]
}

fn cores() -> Check {
    let online = process::cpus_online();
    // Affinity and the quota of a control group count too.
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    let found = format!("{usable} of {online} usable");
    if usable >= 2 {
        return Check::yes("processors", format!("{found}: two processes that spin fit"));
    }
    Check::short(
        "processors",
        State::Limited,
        format!("{found}: two processes that spin take turns"),
        "a call costs a switch between processes, microseconds instead of hundreds of nanoseconds",
        "allow two or more (taskset, cpuset, CPU quota, the virtual machine's size), or wait without spinning",
    )
}

fn clock() -> Check {
    let name = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let name = name.unwrap_or_else(|| "unknown clock source".into());
    let look_ns = (0..CLOCK_ROUNDS).map(|_| {
        let began = Instant::now();
        for _ in 0..CLOCK_LOOKS {
            std::hint::black_box(Instant::now());
        }
        u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX) / u64::from(CLOCK_LOOKS)
    });
    let look_ns = look_ns.min().unwrap_or(u64::MAX);
    let found = format!("{name}, {look_ns} ns a look");
    if look_ns <= CLOCK_LOOK_NS_MAX {
        return Check::yes("clock", found);
    }
    let others =
        read("/sys/devices/system/clocksource/clocksource0/available_clocksource").unwrap_or_default();
    Check::short(
        "clock",
        State::Limited,
        found,
        "waits with a time-out are slower, and short round trips are measured too long",
        format!("choose a faster one as root, where the machine keeps it stable; there are: {others}"),
    )
}

fn futex_waitv() -> Check {
    let word = AtomicU64::new(1);
    // The word is not as expected, so whoever knows the call answers at once.
    match shm::futex::wait_any(&[(&word, 0)], Some(std::time::Duration::ZERO)) {
        Some(WaitEnd::Changed) => Check::yes("futex_waitv", "sleeps on several words at once"),
        other => Check::short(
            "futex_waitv",
            State::Limited,
            if other.is_none() { "unknown to this kernel" } else { "forbidden" },
            "who waits for several things at once sleeps in short naps instead",
            "boot Linux 5.16 or newer, and permit the call (a seccomp profile?)",
        ),
    }
}

fn huge_pages() -> Check {
    let of = |file| read(&format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{file}"));
    let there = match (of("free_hugepages"), of("nr_hugepages")) {
        (Some(free), Some(all)) => format!("{free} of {all} pages of 2 MiB free"),
        _ => "the kernel has none of 2 MiB".into(),
    };
    match memfd::segment_fd("dvs-doctor", HUGE_PAGE_BYTES, true) {
        Ok((_, Pages::Huge)) => Check::yes("huge pages", format!("MFD_HUGETLB works; {there}")),
        Ok(_) | Err(_) => Check::short(
            "huge pages",
            State::No,
            format!("MFD_HUGETLB got no page; {there}"),
            SMALL_PAGES,
            "set some aside as root: `sysctl vm.nr_hugepages=512` is 1 GiB; transparent ones do nearly as well",
        ),
    }
}

/// As a pool gets them: small pages, put together on request.
fn transparent_huge_pages() -> Check {
    let setting = read("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    let chosen = setting.split(['[', ']']).nth(1).unwrap_or("unknown").to_owned();
    let tried = memfd::segment_fd("dvs-doctor", POOL_BYTES, false)
        .and_then(|(fd, _)| Mapping::shared(fd.as_fd(), 0, POOL_BYTES, Access::ReadWrite));
    let (state, found) = match tried.map(|mapping| mapping.pages()) {
        Ok(Pages::Collapsed | Pages::Huge) => {
            let found = format!("a pool's pages are put together (shmem_enabled is {chosen})");
            return Check::yes("transparent huge pages", found);
        }
        Ok(Pages::Small) => (State::No, format!("a pool's pages stay small (shmem_enabled is {chosen})")),
        Err(why) => (State::No, format!("no pool to try it with: {why}")),
    };
    let remedy =
        "as root: `echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled`; Linux 6.1 or newer";
    Check::short("transparent huge pages", state, found, SMALL_PAGES, remedy)
}

fn descriptors() -> Check {
    let limit = getrlimit(Resource::Nofile);
    let shown = |n: Option<u64>| n.map_or_else(|| "unlimited".into(), count);
    let found = format!("{}, daemons raise it to {}", shown(limit.current), shown(limit.maximum));
    if limit.maximum.is_none_or(|hard| hard >= NOFILE_WANTED) {
        return Check::yes("open descriptors", found);
    }
    Check::short(
        "open descriptors",
        State::Limited,
        found,
        "a node takes fewer programs: its daemon keeps three or more for each",
        "raise the hard limit: `ulimit -Hn 65536` as root, LimitNOFILE= of the unit, or limits.conf",
    )
}

fn locked_memory() -> Check {
    let limit = getrlimit(Resource::Memlock);
    let status = read("/proc/self/status").unwrap_or_default();
    let capabilities = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let capabilities = capabilities.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let found = match limit.current {
        None => "unlimited".to_owned(),
        Some(limit) => bytes(limit),
    };
    if capabilities >> CAP_IPC_LOCK & 1 == 1 {
        return Check::yes("pinned memory", format!("{found}, but CAP_IPC_LOCK frees from it"));
    }
    if limit.current.is_none_or(|limit| limit >= MEMLOCK_WANTED_BYTES) {
        return Check::yes("pinned memory", found);
    }
    Check::short(
        "pinned memory",
        State::Limited,
        found,
        "nothing with TCP, which pins none; RDMA and DPDK could not pin the memory they read from",
        "raise it: `ulimit -l unlimited` as root, LimitMEMLOCK= of the unit, or limits.conf",
    )
}

fn posix_shared_memory() -> Check {
    let costs = "nothing here: endpoint memory is in memory files, which no mount limits; programs with POSIX shared \
                 memory of their own lack it";
    match rustix::fs::statvfs("/dev/shm") {
        Ok(fs) => {
            let of = |blocks: u64| bytes(blocks.saturating_mul(fs.f_frsize));
            Check::yes("/dev/shm", format!("{} of {} free; not used here", of(fs.f_bavail), of(fs.f_blocks)))
        }
        Err(why) => Check::short(
            "/dev/shm",
            State::No,
            why.to_string(),
            costs,
            "mount a tmpfs there, if programs ask",
        ),
    }
}

fn exec_policy() -> Check {
    // Whether memory files can be made under it is tried elsewhere: these ask never to be executed.
    let found = match read("/proc/sys/vm/memfd_noexec").as_deref() {
        None => "no vm.memfd_noexec: Linux before 6.3, or no /proc".to_owned(),
        Some("0") => "vm.memfd_noexec is 0: executable unless asked otherwise, as is done here".to_owned(),
        Some("1") => "vm.memfd_noexec is 1: not executable unless asked otherwise".to_owned(),
        Some(level) => {
            format!("vm.memfd_noexec is {level}: never executable, which is all that is asked here")
        }
    };
    Check::yes("memory file policy", found)
}
