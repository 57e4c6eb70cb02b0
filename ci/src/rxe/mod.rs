//! `ci rxe`: runs a program of this machine in a small virtual machine whose kernel has RDMA devices (soft-RoCE), and
//! passes its exit code on. The host needs neither such devices nor hardware virtualisation: the machine is emulated.
//!
//! Key type: [`Options`]. `kernel` takes Debian's kernel apart once, `initrd` packs modules and the first process
//! (`rxe-guest`), `machine` runs the emulator. The host's files are the guest's, unchanged by what it writes outside
//! of `--share`.

mod initrd;
mod job;
mod kernel;
mod machine;

use crate::stages::install;
use crate::workspace::Workspace;
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// As `timeout` says it.
const TIMED_OUT: u8 = 124;
/// There was no machine to run the command in.
const NO_MACHINE: u8 = 125;
/// Boots that end before the command has begun are tried again: under emulation one of some is lost.
const BOOTS: u32 = 4;

pub const EXAMPLES: &str = "Examples:
  cargo run -p ci -- rxe                                        prepare it: kernel, modules, programs
  cargo run -p ci -- rxe -- rdma link                           the two devices
  cargo run -p ci -- rxe -- ibv_devinfo
  cargo run -p ci -- rxe -- target/release/dvs doctor
  cargo run -p ci -- rxe --share target/out --timeout 120 -- ./my-test --exact a_test
  cargo run -p ci -- rxe --net nic:10.79.0.1/24:31001:31002 -- SERVER    two machines: the other with the ports swapped

The exit code is the command's; 124: its time was up; 125: there was no machine, and why is on the error output.
The devices are rxe0 at 10.77.0.1 and rxe1 at 10.77.0.2, with a wire (v0, v1) between. What is measured there compares
with what is measured there, and with nothing else.";

#[derive(Args, Debug)]
pub struct Options {
    /// End the machine after so many seconds
    #[arg(long, value_name = "S", default_value_t = 300)]
    pub timeout: u64,
    /// The guest's memory
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub memory: u32,
    /// The guest's processors
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub cpus: u32,
    /// Which of Debian's kernels: 6.12, or 6.1, of which bookworm is made
    #[arg(long, value_name = "VERSION", default_value = "6.12", value_parser = ["6.12", "6.1"])]
    pub kernel: String,
    /// A folder where what the program writes stays; may be repeated
    #[arg(long, value_name = "DIR")]
    pub share: Vec<PathBuf>,
    /// Huge pages of 2 MiB in the guest
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub huge_pages: u32,
    /// `pair`, `none`, or `nic:ADDRESS/LENGTH:OWN_PORT:OTHER_PORT` to be one of two hosts
    #[arg(long, default_value = "pair")]
    pub net: machine::Net,
    /// Keep what the guest's kernel says
    #[arg(long, value_name = "FILE")]
    pub kernel_log: Option<PathBuf>,
    /// The program and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// What a machine is started from.
struct Parts {
    kernel: PathBuf,
    initrd: PathBuf,
}

/// Does what the command line asks for; the exit code is the command's.
pub fn run(options: &Options) -> ExitCode {
    match try_run(options) {
        Ok(code) => ExitCode::from(code),
        Err(why) => {
            eprintln!("ci rxe: {why:#}");
            ExitCode::from(NO_MACHINE)
        }
    }
}

fn try_run(options: &Options) -> Result<u8> {
    let workspace = Workspace::read()?;
    let place = workspace.target.join("rxe");
    std::fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let parts = prepare(&workspace, &place, &options.kernel)?;
    if options.command.is_empty() {
        eprintln!("ci rxe: ready; the kernel is {}", parts.kernel.display());
        return Ok(0);
    }
    let deadline = Instant::now() + Duration::from_secs(options.timeout);
    for boot in 1.. {
        let job = job::Written::new(&place, options)?;
        match machine::run(&parts, &job, options, deadline)? {
            machine::End::Code(code) => return Ok(code),
            machine::End::TimedOut => {
                eprintln!("ci rxe: timed out after {} s\n{}", options.timeout, job.last_words());
                return Ok(TIMED_OUT);
            }
            machine::End::NoBoot { how } if boot == BOOTS => {
                anyhow::bail!("the machine did not come up, {BOOTS} times; {how}\n{}", job.last_words());
            }
            machine::End::NoBoot { how } => {
                eprintln!("ci rxe: boot {boot} of {BOOTS} failed, the command had not begun: {how}");
            }
            machine::End::Lost { how } => {
                anyhow::bail!("the machine ended while the command ran; {how}\n{}", job.last_words());
            }
        }
    }
    Ok(NO_MACHINE)
}

/// Kernel and initial file system of this version, made if they are not there. One at a time.
fn prepare(workspace: &Workspace, place: &Path, version: &str) -> Result<Parts> {
    ensure!(cfg!(target_arch = "x86_64"), "the machine is an x86_64 one, and was only tried on such hosts");
    let lock = place.join("lock");
    let lock = File::create(&lock).with_context(|| format!("cannot make {}", lock.display()))?;
    lock.lock().context("another is at it, and cannot be waited for")?;
    job::clear(place);
    install::for_rxe(workspace).context("the machine needs programs that are not here")?;
    let guest = guest(workspace, place)?;
    let made = place.join(version);
    let (kernel, initrd) = (made.join("vmlinux"), made.join("initrd"));
    if !kernel.is_file() || !made.join("modules/list").is_file() {
        eprintln!("ci rxe: preparing kernel {version} in {}", made.display());
        kernel::take_apart(place, version, &made)?;
    }
    initrd::pack(&guest, &made.join("modules"), &initrd)?;
    Ok(Parts { kernel, initrd })
}

/// The guest's first process: no library of the host is there when it begins.
fn guest(workspace: &Workspace, place: &Path) -> Result<PathBuf> {
    const TRIPLE: &str = "x86_64-unknown-linux-gnu";
    let target = place.join("build");
    let mut build = crate::process::cargo_command(&workspace.root);
    build.args(["build", "--quiet", "--release", "-p", "rxe-guest", "--target", TRIPLE, "--target-dir"]);
    build.arg(&target).env("RUSTFLAGS", "-C target-feature=+crt-static");
    build.env("CARGO_PROFILE_RELEASE_STRIP", "true");
    let done = build.status().context("cannot start `cargo`")?;
    ensure!(done.success(), "the guest's first process could not be built: {done}");
    Ok(target.join(TRIPLE).join("release/rxe-guest"))
}

/// Runs a program to its end; what it said, if that was an error.
fn must(command: &mut std::process::Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let done = command.stdin(std::process::Stdio::null()).output();
    let done = done.with_context(|| format!("cannot start `{program}`: install it"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "`{program}`: {}: {}", done.status, said.trim());
    Ok(done.stdout)
}
