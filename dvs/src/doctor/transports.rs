//! What joins nodes, now or some day, and namespaces, in which one machine plays several.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;

use super::{Check, State, names_in, read};
use crate::rdma::devices::{self, Device};
use crate::rdma::kernel_has_softroce;

/// Folders in which a DPDK that pkg-config does not know may lie.
const LIBRARY_FOLDERS: [&str; 6] = [
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
];

/// How long a call to ourselves may take.
const CALL_WITHIN: Duration = Duration::from_secs(2);

pub fn all() -> Vec<Check> {
    vec![loopback(), io_uring(), namespaces(), rdma(), dpdk()]
}

fn loopback() -> Check {
    Check::tried(
        "TCP on loopback",
        listen_and_call().map_err(|why| format!("{why:#}")),
        "several nodes on this machine do not talk: no `dvs demo`, no cluster of `dvs init`",
        "bring it up: `ip link set lo up` as root",
    )
}

fn listen_and_call() -> Result<String> {
    // The address of the first node that `dvs init` writes.
    let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).context("listen on 127.0.0.2")?;
    TcpStream::connect_timeout(&listener.local_addr()?, CALL_WITHIN).context("connect to 127.0.0.2")?;
    Ok("127.0.0.2 listens and answers".into())
}

fn io_uring() -> Check {
    let level = read("/proc/sys/kernel/io_uring_disabled");
    let level = level.map_or_else(String::new, |l| format!(" (kernel.io_uring_disabled is {l})"));
    let costs = "nothing now: the TCP proxy waits with epoll";
    match shm::os::offers::io_uring() {
        Ok(()) => Check::yes("io_uring", format!("io_uring_setup works{level}; not used yet")),
        Err(Errno::NOSYS) => {
            let remedy = "a kernel with CONFIG_IO_URING, if a transport asks for it";
            Check::short("io_uring", State::No, "unknown to this kernel", costs, remedy)
        }
        Err(why) => {
            let remedy = "permit it: `sysctl kernel.io_uring_disabled=0` as root, and in a container's seccomp profile";
            Check::short("io_uring", State::No, format!("io_uring_setup: {why}{level}"), costs, remedy)
        }
    }
}

/// By unshare(1), as the demonstration enters them: this process has threads, and would have to stay in them.
fn namespaces() -> Check {
    let costs = "`dvs demo --netns` needs root";
    let tried = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "true"])
        .stdin(Stdio::null())
        .output();
    let state = if node::place::own_uid() == 0 { State::Limited } else { State::No };
    match tried {
        Err(why) => Check::short(
            "namespaces without root",
            state,
            format!("not tried: unshare: {why}"),
            costs,
            "install util-linux",
        ),
        Ok(ran) if ran.status.success() => {
            Check::yes("namespaces without root", "user, network and mount namespaces are made")
        }
        Ok(ran) => {
            let said = String::from_utf8_lossy(&ran.stderr).trim().replace('\n', " ");
            let settings = [
                ("/proc/sys/user/max_user_namespaces", "user.max_user_namespaces"),
                ("/proc/sys/kernel/unprivileged_userns_clone", "kernel.unprivileged_userns_clone"),
                (
                    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
                    "kernel.apparmor_restrict_unprivileged_userns",
                ),
            ];
            let set = settings.iter().filter_map(|(path, name)| Some(format!("{name} is {}", read(path)?)));
            let found: Vec<String> = std::iter::once(said).chain(set).collect();
            Check::short(
                "namespaces without root",
                state,
                found.join("; "),
                costs,
                "as root, as far as there are such: `sysctl kernel.unprivileged_userns_clone=1 \
                 kernel.apparmor_restrict_unprivileged_userns=0 user.max_user_namespaces=10000`",
            )
        }
    }
}

fn rdma() -> Check {
    let devices = devices::all(Path::new(devices::FOLDER));
    let costs = "nodes are joined by TCP; proxies of kind `rdma` and `auto` too";
    if devices.is_empty() {
        let found = "no device in /sys/class/infiniband";
        return match kernel_has_softroce() {
            true => Check::short(
                "RDMA",
                State::No,
                format!("{found}; this kernel can make one in software"),
                costs,
                "to try it: `dvs rdma softroce up` as root",
            ),
            false => Check::short(
                "RDMA",
                State::No,
                format!("{found}; this kernel has no rdma_rxe to make one in software"),
                costs,
                "to try it: `cargo run -p ci -- rxe -- PROGRAM`, a virtual machine that has two devices",
            ),
        };
    }
    let found: Vec<String> = devices.iter().map(in_words).collect();
    let program = std::env::current_exe().ok().and_then(|own| node::rdma_program(&own));
    let has_program = if program.is_some() { "proxy-rdma is here" } else { "no program proxy-rdma" };
    let found = format!("{}; {has_program}", found.join(", "));
    if program.is_none() {
        let remedy = "`cargo build --release -p proxy-rdma`, and put it beside dvs or on PATH";
        return Check::short("RDMA", State::Limited, found, costs, remedy);
    }
    if devices.iter().any(|device| !device.is_software && device.is_active() && !device.gids.is_empty()) {
        return Check::yes("RDMA", found);
    }
    let remedy = match devices.iter().find(|device| !device.is_active() || device.gids.is_empty()) {
        Some(device) if !device.is_active() => {
            let on = device.interface.as_deref().unwrap_or("its interface");
            format!("bring its link up: `ip link set {on} up`, or see to cable and switch")
        }
        Some(device) => {
            let on = device.interface.as_deref().unwrap_or("its interface");
            format!("give {on} an address: `ip addr add ADDRESS/LENGTH dev {on}`")
        }
        None => "nothing to try it; a network card that does it for speed".into(),
    };
    Check::short(
        "RDMA",
        State::Limited,
        found,
        "in software it is slower than TCP, or it cannot be used",
        remedy,
    )
}

fn in_words(device: &Device) -> String {
    let by = if device.is_software { "software" } else { "card" };
    let on = device.interface.as_ref().map_or_else(String::new, |name| format!(" on {name}"));
    let gids = device.gids.len();
    format!("{} ({by}{on}, {}, {gids} GIDs)", device.name, device.state)
}

fn dpdk() -> Check {
    let library = dpdk_library();
    let pages = read("/proc/sys/vm/nr_hugepages").filter(|n| n != "0");
    let vfio = Path::new("/dev/vfio/vfio").exists();
    let found = [
        library.clone().unwrap_or_else(|| "no library".into()),
        pages.clone().map_or_else(|| "no huge pages".into(), |n| format!("{n} huge pages")),
        if vfio { "vfio".into() } else { "no /dev/vfio/vfio".to_owned() },
    ]
    .join(", ");
    match [library.is_some(), pages.is_some(), vfio].iter().filter(|there| **there).count() {
        3 => Check::yes("DPDK", format!("{found}; this program has no proxy for it")),
        there => Check::short(
            "DPDK",
            if there == 0 { State::No } else { State::Limited },
            found,
            "nothing now: nodes are joined by TCP, the only kind of proxy in this program",
            "nothing; to prepare: install dpdk, `sysctl vm.nr_hugepages=512`, `modprobe vfio-pci`",
        ),
    }
}

fn dpdk_library() -> Option<String> {
    let asked = Command::new("pkg-config").args(["--modversion", "libdpdk"]).stdin(Stdio::null()).output();
    if let Some(ran) = asked.ok().filter(|ran| ran.status.success()) {
        return Some(format!("libdpdk {}", String::from_utf8_lossy(&ran.stdout).trim()));
    }
    let is_eal = |name: &String| name.starts_with("librte_eal.");
    LIBRARY_FOLDERS.iter().find_map(|folder| {
        let name = names_in(folder).into_iter().find(is_eal)?;
        Some(format!("{folder}/{name}"))
    })
}
