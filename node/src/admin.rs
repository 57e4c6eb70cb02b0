//! The client of a daemon's admin API, for the command line: one request, one answer, blocking.
//!
//! Key types: [`Request`], [`call`]. The server is in `daemon::admin`; answers are the types of `core::view` as JSON.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The longest request.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// The longest answer: every endpoint of every DC.
const ANSWER_BYTES_MAX: u64 = 1 << 30;

/// What can be asked of a daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// [`crate::core::Status`].
    Status,
    /// `{"endpoints": [...]}` of [`crate::core::EndpointView`].
    Ps,
    /// `{"proxies": [...]}` of [`crate::core::ProxyView`].
    Proxies,
    /// Kill a proxy, and start it anew; one that was stopped is started.
    ProxyRestart { name: String },
    /// Stop a proxy until it is restarted.
    ProxyStop { name: String },
    /// `{"dcs": [...]}` of [`crate::core::DcSpecView`].
    Dcs,
    /// Make a DC; answered by `{"done": true, "dc": ...}` as the following are. What is not said it has as the DC `like`
    /// has it, rules too; without one: all nodes, no other users, no rules.
    DcCreate {
        name: String,
        nodes: Vec<u16>,
        slots_per_node: Option<u16>,
        uids: BTreeSet<u32>,
        like: Option<String>,
    },
    /// Let nodes into a DC.
    DcGrow { name: String, nodes: Vec<u16> },
    /// Take nodes out of a DC, with the endpoints that live there if `force`.
    DcShrink { name: String, nodes: Vec<u16>, force: bool },
    /// End a DC, with the endpoints in it if `force`.
    DcStop { name: String, force: bool },
    /// Stop the daemon.
    Stop,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("no daemon runs here: nobody listens at {}; start it with `dvs up`", path.display())]
    NotRunning { path: PathBuf },
    #[error("a daemon ran here and is gone: {} is left of it; start it again with `dvs up`", path.display())]
    Dead { path: PathBuf },
    #[error("the daemon did not answer within {} ms: look at its log, or stop its process", timeout.as_millis())]
    TimedOut { timeout: Duration },
    #[error("{error}; {hint}")]
    Refused { error: String, hint: String },
    #[error("the daemon's answer makes no sense: {why}; are daemon and program of one version?")]
    Garbled { why: String },
    #[error("cannot talk to the daemon at {}: {source}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Asks the daemon whose admin socket is at `path`.
pub fn call(path: &Path, request: &Request, timeout: Duration) -> Result<Value, CallError> {
    let io = |source: std::io::Error| match source.kind() {
        ErrorKind::NotFound => CallError::NotRunning { path: path.to_owned() },
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            CallError::Dead { path: path.to_owned() }
        }
        ErrorKind::WouldBlock | ErrorKind::TimedOut => CallError::TimedOut { timeout },
        _ => CallError::Io { path: path.to_owned(), source },
    };
    let garbled = |why: String| CallError::Garbled { why };
    let mut stream = UnixStream::connect(path).map_err(io)?;
    stream.set_read_timeout(Some(timeout)).map_err(io)?;
    stream.set_write_timeout(Some(timeout)).map_err(io)?;
    let mut line = serde_json::to_vec(request).map_err(|e| garbled(e.to_string()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(io)?;
    let mut answer = String::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut answer).map_err(io)?;
    if answer.is_empty() {
        return Err(CallError::Dead { path: path.to_owned() });
    }
    let value: Value = serde_json::from_str(&answer).map_err(|e| garbled(e.to_string()))?;
    match value.get("error").and_then(Value::as_str) {
        Some(error) => {
            let hint = value.get("hint").and_then(Value::as_str).unwrap_or("see the daemon's log");
            Err(CallError::Refused { error: error.to_owned(), hint: hint.to_owned() })
        }
        None => Ok(value),
    }
}

/// As [`call`], with the answer as one of the types of `core::view`.
pub fn call_as<T: for<'a> Deserialize<'a>>(
    path: &Path,
    request: &Request,
    timeout: Duration,
) -> Result<T, CallError> {
    let value = call(path, request, timeout)?;
    serde_json::from_value(value).map_err(|e| CallError::Garbled { why: e.to_string() })
}
