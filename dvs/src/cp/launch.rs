//! Starts the other end on a node of this machine: `dvs run … -- dvs worker files`, which ends with this command.
//!
//! Key type: [`Helper`]. Neighbour: `serve::work`, what it does.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use abi::Endpoint;
use anyhow::{Context, Result};
use shm::os::process::{Start, spawn};

use crate::cluster::Place;
use crate::failure::{Exit, failure};

/// How long it may take to be bound.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// Bytes of its last words that are looked at.
const WORDS_BYTES_MAX: u64 = 4096;

/// The other end as a process. Dropped, it is ended.
pub struct Helper {
    child: Child,
    /// It ends with its input.
    _input: ChildStdin,
    pub endpoint: Endpoint,
}

impl Helper {
    /// For one client. It ends with the thread that calls this, however that ends.
    pub fn start(place: &Place, dc: &str, node: &str, client: Endpoint) -> Result<Helper> {
        let own = std::env::current_exe().context("where this program is")?;
        let mut words =
            tempfile::tempfile().context("no temporary file: set TMPDIR to a folder you may write to")?;
        let mut command = Command::new(&own);
        command.arg("run").args(place.options()).args(["--dc", dc, "--node", node, "--"]);
        command.arg(&own).args(["worker", "files", "--client", &client.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(words.try_clone()?);
        let start = Start { fds: Vec::new(), own_group: true, dies_with_us: true };
        let mut child = spawn(command, start).context("the other end was not started")?;
        let input = child.stdin.take().context("its input is a pipe")?;
        let output = child.stdout.take().context("its output is a pipe")?;
        let (give, take) = channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(output.take(WORDS_BYTES_MAX)).read_line(&mut line);
            give.send(read.map(|_| line))
        });
        let line = take.recv_timeout(READY_WITHIN).ok().and_then(Result::ok);
        let endpoint = line.and_then(|line| serde_json::from_str::<String>(&line).ok()?.parse().ok());
        match endpoint {
            Some(endpoint) => Ok(Helper { child, _input: input, endpoint }),
            None => {
                end(&mut child);
                let what = format!("the other end was not started on node {node}: {}", last(&mut words));
                Err(failure(
                    Exit::Failed,
                    what,
                    format!("`dvs status --node {node}` shows how the node does"),
                ))
            }
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // Both fail when it has ended by itself, which is as well.
    let _ = child.kill();
    let _ = child.wait();
}

fn last(words: &mut File) -> String {
    let mut text = Vec::new();
    let read =
        words.seek(SeekFrom::Start(0)).and_then(|_| words.take(WORDS_BYTES_MAX).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    if read.is_ok() && !text.trim().is_empty() {
        text.trim().replace('\n', " ")
    } else {
        "it said nothing".to_owned()
    }
}
