//! The ground a test stands on: a folder of its own, free addresses, and everything that runs for it.
//!
//! Key types: [`Ground`], [`Said`]. When a ground is left, nothing of it runs and nothing of it is there.

use std::ffi::OsStr;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::system::{LONG, eventually, processes_of, signal, works_for};

/// Whether other tests may run beside this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Company {
    Others,
    /// What it measures, others would disturb.
    Alone,
}

/// How many grounds are in use; one that is used alone counts as [`ALONE`].
static IN_USE: Mutex<u32> = Mutex::new(0);
static LEFT: Condvar = Condvar::new();
const ALONE: u32 = 1 << 16;

fn in_use() -> MutexGuard<'static, u32> {
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder, and the `dvs` that works in it.
pub struct Ground {
    folder: tempfile::TempDir,
    dvs: PathBuf,
    company: Company,
}

/// What a `dvs` command said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    /// The answer of a command that must work, called with `--json`.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:#?}");
        serde_json::from_str(&self.out).unwrap_or_else(|why| panic!("{why}: {self:#?}"))
    }

    /// The complaint of a command that must not work: exit code and all words.
    #[track_caller]
    pub fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not said: {self:#?}");
        }
        assert!(self.err.contains("next: "), "no way out is said: {self:#?}");
    }
}

impl Ground {
    /// A ground to stand on; `None`, which has been said, when there is no `dvs`.
    pub fn take(company: Company) -> Option<Ground> {
        let Some(dvs) = dvs() else {
            println!("not run: process: build dvs first (cargo build --release -p dvs)");
            return None;
        };
        let mut count = in_use();
        while *count >= ALONE || (company == Company::Alone && *count > 0) {
            count = LEFT.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
        *count += if company == Company::Alone { ALONE } else { 1 };
        drop(count);
        let folder = tempfile::Builder::new().prefix("dvs-test-").tempdir().expect("a temporary folder");
        Some(Ground { folder, dvs, company })
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn dvs_executable(&self) -> &Path {
        &self.dvs
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.folder().join("run")
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder().join(name);
        std::fs::write(&path, text).expect("a file in our own folder");
        path
    }

    /// A `dvs` command, beginning with its runtime directory, which knows nothing of the caller's clusters.
    pub fn command(&self) -> Command {
        self.command_after(&[])
    }

    /// The same with words before it: a way into a network namespace, say.
    pub fn command_after(&self, prefix: &[String]) -> Command {
        let mut command = match prefix {
            [] => Command::new(&self.dvs),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.dvs);
                command
            }
        };
        command.arg("--runtime-dir").arg(self.runtime_dir()).current_dir(self.folder());
        for variable in ["DVS_CLUSTER", "DVS_RUNTIME_DIR", "RUST_LOG"] {
            command.env_remove(variable);
        }
        command.env("NO_COLOR", "1");
        command
    }

    /// Runs `dvs` with these arguments to its end.
    pub fn dvs<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Said {
        let mut command = self.command();
        command.args(arguments);
        self.run(command)
    }

    /// Runs a command to its end.
    pub fn run(&self, mut command: Command) -> Said {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("dvs starts");
        let (out, err) = (drain(child.stdout.take()), drain(child.stderr.take()));
        let end = Instant::now() + LONG;
        let status = loop {
            match child.try_wait().expect("our own child") {
                Some(status) => break status,
                None if Instant::now() >= end => {
                    child.kill().expect("our own child");
                    child.wait().expect("our own child");
                    panic!("{command:?} takes longer than {} s", LONG.as_secs());
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let text = |thread: std::thread::JoinHandle<String>| thread.join().expect("reading does not fail");
        Said { code: status.code(), out: text(out), err: text(err) }
    }

    /// What runs for this ground.
    pub fn processes(&self) -> Vec<u32> {
        processes_of(self.folder())
    }

    /// Signals a process of this ground.
    #[track_caller]
    pub fn signal(&self, pid: u32, what: Signal) {
        assert!(
            signal(pid, what, |pid| works_for(pid, self.folder())),
            "process {pid} is not ours, or has ended"
        );
    }

    /// Nothing runs for this ground, and no socket, log or runtime directory is left. Only where endpoints came faster
    /// than seconds passed, a daemon leaves its record, by which the next life is told from this one; and where DCs were
    /// changed, what its successor must know of them.
    #[track_caller]
    pub fn is_clean(&self) {
        eventually("all processes have ended", LONG, || self.processes().is_empty());
        let mut left = tree(&self.runtime_dir());
        let stays = ["daemon.pid", "dcs"].map(OsStr::new);
        left.retain(|path| !path.file_name().is_some_and(|name| stays.contains(&name)));
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for pid in self.processes() {
            // One that has ended meanwhile needs no signal.
            signal(pid, Signal::KILL, |pid| works_for(pid, self.folder()));
        }
        *in_use() -= if self.company == Company::Alone { ALONE } else { 1 };
        LEFT.notify_all();
    }
}

/// Reads all of a pipe, so that its writer never waits.
pub fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    let mut pipe = pipe.expect("the child was given pipes");
    std::thread::spawn(move || {
        let mut text = Vec::new();
        // What was read until the pipe broke is what was said.
        let _ = pipe.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// All files below a folder, and folders with nothing in them.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return if folder.exists() { vec![folder.to_owned()] } else { Vec::new() };
    };
    let below: Vec<PathBuf> = entries.filter_map(|e| Some(tree(&e.ok()?.path()))).flatten().collect();
    if below.is_empty() { vec![folder.to_owned()] } else { below }
}

/// `$DVS_BIN`, or the `dvs` that was built beside this executable.
fn dvs() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("DVS_BIN").filter(|v| !v.is_empty()) {
        return Some(PathBuf::from(named));
    }
    let own = std::env::current_exe().ok()?;
    let profile = own.parent()?.parent()?;
    let target = profile.parent()?;
    let places = [profile.join("dvs"), target.join("release/dvs"), target.join("debug/dvs")];
    places.into_iter().find(|path| path.is_file())
}

/// Addresses nobody else uses: from a network in 127/8 that this process's number chooses, and tried.
pub fn addresses(count: u16) -> Vec<SocketAddr> {
    static SERIAL: Mutex<u16> = Mutex::new(0);
    let mut serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let pid = std::process::id();
    let mut found = Vec::new();
    while found.len() < usize::from(count) {
        *serial += 1;
        assert!(*serial < 10_000, "no free address on the loopback interface: is it up?");
        let ip = Ipv4Addr::new(127, 64 + (pid % 64) as u8, (pid / 64 % 256) as u8, 1 + (*serial % 250) as u8);
        let address = SocketAddr::from((ip, 7700 + *serial / 250));
        if TcpListener::bind(address).is_ok() {
            found.push(address);
        }
    }
    found
}
