//! The column `cp`: a file goes from one node to the other. What is cut short is done when it is asked for again.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::fault::{Fault, HIT, OTHER, Scene};
use super::{Hooks, time};
use crate::process::cluster::{Cluster, DC};
use crate::process::ground::drain;
use crate::process::roles::talk::now_ms;
use crate::process::system::{Chance, LONG};

const NAME: &str = "file";
const FILE_BYTES: usize = 48 << 20;
const GLANCE: Duration = Duration::from_millis(1);

/// The command while it stands still, so that it is struck in the middle.
struct Frozen {
    pid: Pid,
    struck_ms: u64,
}

impl Frozen {
    fn signal(&self, what: Signal) {
        // It is our child and not collected yet: nobody else has its number.
        kill_process(self.pid, what).expect("our own child");
    }
}

impl Hooks for Frozen {
    fn struck(&mut self) {
        self.struck_ms = now_ms();
        self.signal(Signal::CONT);
    }
}

/// A file, where it goes, and who carries it.
pub struct Copy {
    bytes: Vec<u8>,
    file: PathBuf,
    folder: PathBuf,
}

impl Copy {
    pub fn prepare(cluster: &Cluster, folder: &str, seed: u64) -> Copy {
        let here = cluster.ground.folder();
        let (file, folder) = (here.join(NAME), here.join(folder));
        std::fs::create_dir(&folder).expect("a folder of our own");
        let mut chance = Chance::new(seed);
        let bytes: Vec<u8> = (0..FILE_BYTES / 8).flat_map(|_| chance.below(u64::MAX).to_le_bytes()).collect();
        std::fs::write(&file, &bytes).expect("a file of our own");
        Copy { bytes, file, folder }
    }

    pub fn command(&self, cluster: &Cluster) -> Command {
        let mut command = cluster.ground.command();
        command.args(["--json", "cp", "--dc", DC, "--cluster"]).arg(cluster.file(OTHER));
        command.args(["--node", &OTHER.to_string()]).arg(&self.file);
        command.arg(format!("{HIT}:{}/", self.folder.display()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn target(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    fn part(&self) -> PathBuf {
        self.folder.join(format!(".{NAME}.dvs-part"))
    }

    pub fn has_arrived(&self) -> bool {
        std::fs::read(self.target()).is_ok_and(|found| found == self.bytes)
    }
}

/// Waits for its end; gives its exit code and its answer.
pub fn end(mut child: Child) -> (Option<i32>, Value) {
    let outputs = [drain(child.stdout.take()), drain(child.stderr.take())];
    let until = Instant::now() + LONG * 2;
    let status = loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            break status;
        }
        if Instant::now() > until {
            child.kill().expect("our own child");
            panic!("dvs cp hangs");
        }
        std::thread::sleep(GLANCE * 10);
    };
    let [out, err] = outputs.map(|thread| thread.join().expect("reading does not fail"));
    let answer = serde_json::from_str(&out);
    (status.code(), answer.unwrap_or_else(|why| panic!("{status}, no answer: {why}: {out}{err}")))
}

/// The process at the other end of the copy.
pub fn far_end() -> Option<u32> {
    let entries = std::fs::read_dir("/proc").ok()?;
    let mut pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        words.get(1..3) == Some(&[b"worker", b"files"]) && super::fault::descends_from_us(*pid)
    })
}

/// Plays the cell, and says what became of the copy.
pub fn play(scene: &Scene, fault: Fault) -> String {
    let job = Copy::prepare(&scene.cluster, "there", 7);
    let start = || job.command(&scene.cluster).spawn().expect("dvs starts");
    let child = start();
    let mut frozen = Frozen { pid: Pid::from_child(&child), struck_ms: 0 };
    let until = Instant::now() + LONG;
    while !job.part().metadata().is_ok_and(|m| m.len() > 0) {
        assert!(Instant::now() < until, "nothing is copied");
        std::thread::sleep(GLANCE);
    }
    frozen.signal(Signal::STOP);
    assert!(!job.target().exists(), "it was struck in the middle");
    let application = far_end().expect("the other end of the copy");
    scene.suffer(fault, application, &mut frozen);
    let (code, answer) = end(child);
    let took = time(now_ms().saturating_sub(frozen.struck_ms));
    if code == Some(0) {
        assert!(job.has_arrived(), "dvs cp says that all is there: {answer}");
        return format!("done after {took}");
    }
    assert!(answer["next"].is_string(), "no way out is said: {answer}");
    assert!(!job.target().exists(), "half a file has got its name");
    scene.cluster.proxies_up();
    let (again, second) = end(start());
    assert_eq!(again, Some(0), "the second time: {second}; the first: {answer}");
    assert!(job.has_arrived(), "the second time all is there");
    let resumed = second["resumed_bytes"].as_u64().expect("a number");
    let said = answer["error"].as_str().expect("what went wrong");
    format!("\"{said}\" after {took}; again, with {} MiB there from before: done", resumed >> 20)
}
