//! A program in a role, as a process of its own: it takes orders on standard input, a line each, and reports on standard
//! output. Its input ends with this process, and then it ends too.
//!
//! Key type: [`Program`]; dropped, it is killed. Neighbour: `roles`, the other side.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use abi::{Endpoint, Slot};

use super::cluster::DC;
use super::ground::Ground;
use super::roles::{ENTRY, MARK, OTHER_DC, ROLE, SLOT, SOCKET};
use super::system::LONG;

/// A process in a role.
pub struct Program {
    role: String,
    child: Child,
    orders: Option<ChildStdin>,
    reports: Receiver<String>,
    log: PathBuf,
}

/// The words that begin this executable anew as a program.
pub fn entry() -> Vec<std::ffi::OsString> {
    entry_of(&std::env::current_exe().expect("where this program is"))
}

/// The same of a copy of it.
pub fn entry_of(executable: &Path) -> Vec<std::ffi::OsString> {
    let mut words = vec![executable.as_os_str().to_owned()];
    words.extend(["--exact", ENTRY, "--nocapture", "--test-threads=1"].map(Into::into));
    words
}

impl Program {
    /// Starts one that binds itself.
    pub fn start(ground: &Ground, socket: &Path, slot: Option<Slot>, role: &str) -> Program {
        Program::start_in(ground, socket, DC, slot, role)
    }

    /// The same in any DC.
    pub fn start_in(ground: &Ground, socket: &Path, dc: &str, slot: Option<Slot>, role: &str) -> Program {
        Program::spawn(ground, Program::command(socket, dc, slot), role)
    }

    /// What starts it.
    pub fn command(socket: &Path, dc: &str, slot: Option<Slot>) -> Command {
        let words = entry();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env(SOCKET, socket).env(OTHER_DC, dc);
        if let Some(slot) = slot {
            command.env(SLOT, slot.0.to_string());
        }
        command
    }

    /// Starts one by a command that leads to [`entry`].
    pub fn spawn(ground: &Ground, mut command: Command, role: &str) -> Program {
        static SERIAL: Mutex<u32> = Mutex::new(0);
        let serial = {
            let mut serial = SERIAL.lock().expect("nobody fails with it");
            *serial += 1;
            *serial
        };
        let log = ground.folder().join(format!("program-{serial}.log"));
        let stderr = File::create(&log).expect("a file in our own folder");
        command.env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().unwrap_or_else(|why| panic!("{command:?}: {why}"));
        let orders = child.stdin.take();
        let output = child.stdout.take().expect("its output is a pipe");
        let (give, reports) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let report = line.split_once(MARK).map(|(_, report)| report.to_owned());
                if report.is_some_and(|report| give.send(report).is_err()) {
                    return;
                }
            }
        });
        Program { role: role.to_owned(), child, orders, reports, log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives an order.
    pub fn order(&mut self, text: &str) {
        let Some(orders) = &mut self.orders else { return };
        if let Err(why) = writeln!(orders, "{text}").and_then(|()| orders.flush()) {
            panic!("{} takes no orders: {why}{}", self.role, self.last_words());
        }
    }

    /// Its next report.
    #[track_caller]
    pub fn report(&self, within: Duration) -> String {
        match self.reports.recv_timeout(within) {
            Ok(report) => report,
            Err(RecvTimeoutError::Timeout) => {
                panic!("{} says nothing within {} ms{}", self.role, within.as_millis(), self.last_words())
            }
            Err(RecvTimeoutError::Disconnected) => {
                panic!("{} has ended early{}", self.role, self.last_words())
            }
        }
    }

    /// Its next report, if it comes in time.
    pub fn report_within(&self, within: Duration) -> Option<String> {
        self.reports.recv_timeout(within).ok()
    }

    /// Its next report, which must be this.
    #[track_caller]
    pub fn hears(&mut self, expected: &str, within: Duration) {
        let report = self.report(within);
        assert_eq!(report, expected, "{}{}", self.role, self.last_words());
    }

    /// The rest of a report that begins with `word`.
    #[track_caller]
    pub fn says(&self, word: &str, within: Duration) -> String {
        let report = self.report(within);
        match report.strip_prefix(word) {
            Some(rest) => rest.trim().to_owned(),
            None => panic!("{} reports {report:?} instead of {word:?}{}", self.role, self.last_words()),
        }
    }

    /// Sends a signal to one of its threads: the kernel hands a process's signal to the thread that was named, if it can.
    /// One that has ended gets none; as it is not collected before it is dropped, nobody else has its number.
    pub fn signal(&self, thread: i32, what: rustix::process::Signal) {
        let thread = rustix::process::Pid::from_raw(thread).expect("the number of a thread");
        match rustix::process::kill_process(thread, what) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => panic!("no signal to thread {thread:?}: {error}"),
        }
    }

    /// Waits until it is bound.
    #[track_caller]
    pub fn endpoint(&self) -> Endpoint {
        self.says("bound", LONG).parse().expect("an endpoint")
    }

    /// Reports that are here already.
    pub fn reports_so_far(&self) -> Vec<String> {
        self.reports.try_iter().collect()
    }

    /// Kills it, whatever it is doing, and collects it.
    pub fn kill(&mut self) {
        // Both fail when it has ended by itself, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(&mut self) -> ExitStatus {
        let until = Instant::now() + LONG;
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return status;
            }
            assert!(Instant::now() < until, "{} does not end{}", self.role, self.last_words());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[track_caller]
    pub fn ends_well(&mut self) {
        let status = self.end();
        assert!(status.success(), "{}: {status}{}", self.role, self.last_words());
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let so_far = self.reports_so_far().join("; ");
        format!("; reported besides: {so_far:?}; its log:\n{log}")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}
