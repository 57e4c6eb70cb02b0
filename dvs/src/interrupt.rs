//! Ctrl-C and SIGTERM: noted once, asked for wherever something is waited for, so that everything started is
//! stopped.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::failure::{Exit, failure};

/// How long an interruption may go unnoticed.
pub const GLANCE: Duration = Duration::from_millis(50);

static NOTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on the signals that end a process are only noted.
pub fn note_signals() -> Result<()> {
    let noted = NOTED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(noted)).context("signals cannot be noted")?;
    }
    Ok(())
}

/// An error once a signal came.
pub fn check() -> Result<()> {
    // Relaxed: a flag that is only ever set; nothing is published with it.
    if NOTED.get().is_some_and(|noted| noted.load(Ordering::Relaxed)) {
        return Err(failure(Exit::Interrupted, "interrupted", "everything that was started is stopped"));
    }
    Ok(())
}

/// What came of it when a signal came meanwhile: whatever failed then failed of that, whoever it hit.
pub fn or_interrupted<T>(result: Result<T>) -> Result<T> {
    result.or_else(|why| {
        if crate::failure::of(&why).is_some_and(|f| f.exit == Exit::Interrupted) {
            Err(why)
        } else {
            check().and(Err(why))
        }
    })
}

/// Sleeps, unless interrupted.
pub fn sleep(time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    loop {
        check()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(GLANCE));
    }
}

/// The next of a channel: `Ok(None)` when its other end is gone, an error when the time is over or a signal
/// came.
pub fn next<T>(channel: &Receiver<T>, within: Duration, what: &str) -> Result<Option<T>> {
    let until = Instant::now() + within;
    loop {
        check()?;
        let left = until.saturating_duration_since(Instant::now());
        match channel.recv_timeout(left.min(GLANCE)) {
            Ok(value) => return Ok(Some(value)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                let what = format!("{what} said nothing for {} s", within.as_secs());
                return Err(failure(
                    Exit::Failed,
                    what,
                    "run it again with --verbose; with --keep the logs stay",
                ));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Does something that waits by itself on a thread of its own, while this one looks for a signal. After one the
/// process is to end, and with it whatever the thread still waits for.
pub fn unless<T: Send + 'static>(call: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (give, take) = channel();
    std::thread::spawn(move || give.send(call()));
    loop {
        check()?;
        match take.recv_timeout(GLANCE) {
            Ok(done) => return done,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the call ended in a panic"),
        }
    }
}
