//! The side of whoever has workers: starts each as `dvs run … -- dvs worker …`, gives orders, reads reports.
//!
//! Key type: [`Worker`]; dropped, it is ended. Neighbour: `workers`, the other side.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use shm::os::process::{Start, spawn};

use crate::cluster::Place;
use crate::failure::{Exit, failure};
use crate::interrupt;
use crate::log_tail::tail;

/// How long a worker may take to begin.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Where a worker is bound, and as whom.
pub struct Post<'a> {
    pub place: &'a Place,
    pub dc: &'a str,
    pub node: u16,
    pub name: &'a str,
    pub logs: &'a Path,
}

/// A running worker.
pub struct Worker {
    name: String,
    child: Child,
    orders: ChildStdin,
    reports: Receiver<String>,
    log: PathBuf,
}

impl Worker {
    /// Starts one; `role` is the rest of its command line. It ends with the thread that calls this.
    pub fn start(post: &Post<'_>, role: &[String]) -> Result<Worker> {
        let own = std::env::current_exe().context("where this program is")?;
        let log = post.logs.join(format!("{}.log", post.name));
        let stderr = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(&own);
        command.arg("run").args(post.place.options()).args(["--dc", post.dc, "--name", post.name]);
        command.args(["--node", &post.node.to_string(), "--"]).arg(&own).arg("worker").args(role);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let start = Start { fds: Vec::new(), own_group: true, dies_with_us: true };
        let mut child = spawn(command, start).with_context(|| format!("{} was not started", post.name))?;
        let orders = child.stdin.take().context("its input is a pipe")?;
        let output = child.stdout.take().context("its output is a pipe")?;
        let (give, reports) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if give.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Worker { name: post.name.to_owned(), child, orders, reports, log })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it says that it is ready.
    pub fn ready(&mut self) -> Result<()> {
        self.report::<String>(READY_WITHIN).map(|_| ())
    }

    pub fn order(&mut self, text: &str) -> Result<()> {
        if writeln!(self.orders, "{text}").and_then(|()| self.orders.flush()).is_err() {
            return Err(self.ended());
        }
        Ok(())
    }

    /// Its next report.
    pub fn report<T: DeserializeOwned>(&mut self, within: Duration) -> Result<T> {
        let line = interrupt::next(&self.reports, within, &self.name);
        match line.with_context(|| self.last_words())? {
            Some(line) => {
                serde_json::from_str(&line).with_context(|| format!("{} reported {line}", self.name))
            }
            None => Err(self.ended()),
        }
    }

    fn ended(&mut self) -> anyhow::Error {
        let _ = self.child.kill();
        let how = self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        let what = format!("{} ended early ({how}): {}", self.name, tail(&self.log));
        failure(Exit::Failed, what, "run it again with --verbose; `dvs demo --keep` keeps its logs")
    }

    fn last_words(&self) -> String {
        let said = tail(&self.log);
        if said.is_empty() { format!("waiting for {}", self.name) } else { format!("{}: {said}", self.name) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail when it has ended by itself, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
