//! The first process of the virtual machine in which `ci rxe` runs a program of the host: linked statically, alone with
//! kernel modules in an initial file system.
//!
//! It loads the modules, puts a tmpfs over the host's files, which come by 9p and stay as they are, makes the devices
//! (`net`), runs the command of the `job` and ends the machine. What the host hears: the command's two outputs and, by
//! a port of its own, [`STARTED`] and the exit code. Whatever goes wrong before [`STARTED`] is on the console.
#![forbid(unsafe_code)]

mod job;
mod net;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use job::Job;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, setrlimit};

/// A line on the port for the exit code, before the command begins.
const STARTED: &str = "started";
/// The register of the device by which a machine ends its emulator at once.
const EXIT_PORT: u64 = 0xf4;
/// As shells say it.
const NOT_FOUND: i32 = 127;
const SIGNALLED: i32 = 128;
/// Where the machine's own root is made up.
const ROOT: &str = "/new";

fn main() {
    if let Err(why) = live() {
        eprintln!("rxe-guest: {why:#}");
    }
    end();
}

fn live() -> Result<()> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        put(kind, kind, at, MountFlags::empty(), "")?;
    }
    load_modules()?;
    let place = job::place(&fs::read_to_string("/proc/cmdline").context("no command line")?)?;
    make_root()?;
    rustix::process::chroot(ROOT).context("cannot change the root")?;
    std::env::set_current_dir("/").context("there is no root")?;
    let job = Job::read(&place)?;
    for (tag, folder) in job.shares.iter().enumerate() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let options = "trans=virtio,version=9p2000.L,msize=262144,cache=none";
        put(&format!("share{tag}"), "9p", folder, MountFlags::empty(), options)?;
    }
    if job.huge_pages > 0 {
        net::set("/proc/sys/vm/nr_hugepages", &job.huge_pages.to_string())?;
    }
    // Memory that a device may reach is locked.
    let all = Rlimit { current: None, maximum: None };
    setrlimit(Resource::Memlock, all).context("the limit of locked memory stays")?;
    net::make(&job.net)?;
    run(&job)
}

fn put(source: &str, kind: &str, at: impl AsRef<Path>, flags: MountFlags, options: &str) -> Result<()> {
    let at = at.as_ref();
    let options = std::ffi::CString::new(options).context("options with a zero")?;
    mount(source, at, kind, flags, Some(options.as_c_str()))
        .with_context(|| format!("cannot mount {kind} at {}", at.display()))
}

/// In the order that the host has found: what a module needs comes before it.
fn load_modules() -> Result<()> {
    for name in fs::read_to_string("/modules").context("no list of modules")?.lines() {
        let file = File::open(format!("/{name}")).with_context(|| format!("no module {name}"))?;
        rustix::system::finit_module(&file, c"", 0).with_context(|| format!("module {name} is refused"))?;
    }
    Ok(())
}

/// The host's files, unchanged by whatever is written here.
fn make_root() -> Result<()> {
    for folder in ["/lower", "/upper", ROOT] {
        fs::create_dir(folder).with_context(|| format!("cannot make {folder}"))?;
    }
    let options = "trans=virtio,version=9p2000.L,cache=loose,msize=262144";
    put("host", "9p", "/lower", MountFlags::RDONLY, options)?;
    put("tmpfs", "tmpfs", "/upper", MountFlags::empty(), "size=75%")?;
    for folder in ["/upper/files", "/upper/work"] {
        fs::create_dir(folder).with_context(|| format!("cannot make {folder}"))?;
    }
    let options = "lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work";
    put("overlay", "overlay", ROOT, MountFlags::empty(), options)?;
    let at = |path: &str| PathBuf::from(format!("{ROOT}{path}"));
    for (kind, path) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run")] {
        put(kind, kind, at(path), MountFlags::empty(), "")?;
    }
    for (kind, path, options) in [("tmpfs", "/dev/shm", "size=75%"), ("devpts", "/dev/pts", "")] {
        fs::create_dir_all(at(path)).with_context(|| format!("cannot make {path}"))?;
        put(kind, kind, at(path), MountFlags::empty(), options)?;
    }
    for (name, fd) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        std::os::unix::fs::symlink(format!("/proc/self/fd{fd}"), at(&format!("/dev/{name}")))
            .with_context(|| format!("cannot make /dev/{name}"))?;
    }
    Ok(())
}

/// The port to the host of this name.
fn port(name: &str) -> Result<File> {
    for entry in fs::read_dir("/sys/class/virtio-ports").context("no ports to the host")?.flatten() {
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|of| of.trim() == name) {
            let device = Path::new("/dev").join(entry.file_name());
            return File::options().write(true).open(device).with_context(|| format!("port {name}"));
        }
    }
    anyhow::bail!("no port {name} to the host")
}

fn run(job: &Job) -> Result<()> {
    let (output, errors, mut exit) = (port("out")?, port("err")?, port("exit")?);
    let mut said = errors.try_clone().context("a second way to the errors")?;
    let [program, arguments @ ..] = &job.command[..] else { anyhow::bail!("no command") };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(job.environment.iter().cloned());
    command.current_dir(&job.folder).stdin(Stdio::null()).stdout(output).stderr(errors);
    writeln!(exit, "{STARTED}").context("the host does not listen")?;
    let code = match command.status() {
        Ok(status) => status.code().unwrap_or_else(|| SIGNALLED + status.signal().unwrap_or_default()),
        Err(why) => {
            let program = program.to_string_lossy();
            writeln!(said, "rxe-guest: cannot start {program}: {why}").context("the host does not listen")?;
            NOT_FOUND
        }
    };
    writeln!(exit, "{code}").context("the host does not listen")
}

/// Ends the emulator at once; or, where that device is not there, the machine.
fn end() {
    let at_once = || {
        let mut ports = File::options().write(true).open("/dev/port")?;
        ports.seek(SeekFrom::Start(EXIT_PORT))?;
        ports.write_all(&[0])
    };
    if let Err(why) = at_once() {
        eprintln!("rxe-guest: no quick end: {why}");
    }
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    // The first process may not end.
    let _ = std::io::stdin().read(&mut [0]);
    std::thread::park();
}
