//! Driver: the logs of the daemon and its proxies, kept short.
//!
//! They are standard error of processes that others write into until they end, so a log is not renamed but copied and
//! emptied: what is written in between, a moment once in four mebibytes, is lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use abi::limits::LOG_BYTES_MAX;

use crate::core::Now;
use crate::place::aside;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Lines a second that members cause by coming and going: no more, or one of them writes the log full.
const MEMBERS_LINES_MAX: u32 = 50;

/// Holds back what members cause to be logged too often, and says how much that was.
#[derive(Default)]
pub(super) struct Throttle {
    until: Now,
    said: u32,
    held_back: u64,
}

impl Throttle {
    /// Tells the time; with a new second begins a new count.
    pub fn look(&mut self, now: Now) {
        if now >= self.until {
            if self.held_back > 0 {
                tracing::warn!("{} lines on binds and ends were not logged", self.held_back);
            }
            *self = Throttle { until: now + LOOK_EVERY, said: 0, held_back: 0 };
        }
    }

    /// Whether one more line may be written.
    pub fn may_say(&mut self) -> bool {
        let may = self.said < MEMBERS_LINES_MAX;
        match may {
            true => self.said += 1,
            false => self.held_back += 1,
        }
        may
    }
}

/// The logs of a node, where they are files.
pub(super) struct Logs {
    files: Vec<PathBuf>,
    next: Now,
}

impl Logs {
    pub fn new(files: Vec<PathBuf>) -> Logs {
        Logs { files, next: Now::ZERO }
    }

    /// Puts aside what has grown too long; looks once a second, however often it is called.
    pub fn look(&mut self, now: Now) {
        if now < self.next {
            return;
        }
        self.next = now + LOOK_EVERY;
        for file in &self.files {
            // One that is not there is not written into: in the foreground there is none.
            let too_long = std::fs::metadata(file).is_ok_and(|m| m.len() > LOG_BYTES_MAX);
            if too_long && let Err(why) = put_aside(file) {
                tracing::warn!("log {} not put aside: {why}", file.display());
            }
        }
    }
}

fn put_aside(log: &Path) -> io::Result<()> {
    let mut bytes = Vec::new();
    // One that grew by more than this since the last look loses the rest.
    File::open(log)?.take(2 * LOG_BYTES_MAX).read_to_end(&mut bytes)?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(aside(log))?.write_all(&bytes)?;
    OpenOptions::new().write(true).open(log)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_a_second_are_logged_and_the_first_of_the_next_second_too() {
        let mut throttle = Throttle::default();
        let mut says_at = |ms| {
            throttle.look(Duration::from_millis(ms));
            (throttle.may_say(), throttle.held_back)
        };
        assert!((0..MEMBERS_LINES_MAX).all(|_| says_at(5_000).0));
        assert_eq!(says_at(5_999), (false, 1));
        assert_eq!(says_at(6_000), (true, 0));
    }

    #[test]
    fn a_log_of_the_limit_stays_and_one_byte_more_is_put_aside_and_the_writer_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("daemon.log");
        let mut writer = OpenOptions::new().append(true).create(true).open(&log).unwrap();
        writer.write_all(&vec![b'x'; LOG_BYTES_MAX as usize]).unwrap();
        let mut logs = Logs::new(vec![log.clone(), dir.path().join("proxy-1.log")]);
        logs.look(LOOK_EVERY);
        assert!(!aside(&log).exists());
        writer.write_all(b"y").unwrap();
        logs.look(LOOK_EVERY + Duration::from_millis(999));
        assert!(!aside(&log).exists(), "not looked at yet");
        logs.look(LOOK_EVERY * 2);
        assert_eq!(std::fs::metadata(aside(&log)).unwrap().len(), LOG_BYTES_MAX + 1);
        writer.write_all(b"z").unwrap();
        assert_eq!(std::fs::read(&log).unwrap(), b"z");
    }
}
