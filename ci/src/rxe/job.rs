//! A job as files for the guest, in a folder of its own. Neighbour: `rxe-guest/src/job.rs`, which reads them.

use super::Options;
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Lines of the kernel's log that are shown when something went wrong.
const LAST_WORDS: usize = 12;

const PREFIX: &str = "job-";

/// Removes the folders of processes that were killed.
pub fn clear(place: &Path) {
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let of =
            name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if of.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // Another may be at it too.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Removed when it goes.
pub struct Written {
    folder: tempfile::TempDir,
    kernel_log: Option<PathBuf>,
}

impl Written {
    pub fn new(place: &Path, options: &Options) -> Result<Written> {
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let folder =
            tempfile::Builder::new().prefix(&prefix).tempdir_in(place).context("no folder for a job")?;
        let shares: Result<Vec<OsString>> = options.share.iter().map(|share| absolute(share)).collect();
        let own = std::env::current_dir().context("there is no current folder")?;
        let environment = std::env::vars_os().map(|(name, value)| {
            let mut both = name;
            both.push("=");
            both.push(value);
            both
        });
        let put = |name: &str, bytes: &[u8]| {
            std::fs::write(folder.path().join(name), bytes).with_context(|| format!("cannot write {name}"))
        };
        put("command", &list(options.command.iter().cloned()))?;
        put("environment", &list(environment))?;
        put("folder", own.as_os_str().as_bytes())?;
        put("shares", &list(shares?.into_iter()))?;
        put("huge-pages", options.huge_pages.to_string().as_bytes())?;
        put("net", options.net.for_guest().as_bytes())?;
        Ok(Written { folder, kernel_log: options.kernel_log.clone() })
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn console(&self) -> PathBuf {
        self.folder.path().join("console")
    }

    /// What the kernel and the first process said last.
    pub fn last_words(&self) -> String {
        let console = std::fs::read(self.console()).unwrap_or_default();
        let console = String::from_utf8_lossy(&console).into_owned();
        let lines: Vec<&str> = console.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        if let Some(to) = &self.kernel_log
            && let Err(why) = std::fs::copy(self.console(), to)
        {
            eprintln!("ci rxe: the kernel's log is not kept: {why}");
        }
    }
}

fn absolute(share: &Path) -> Result<OsString> {
    let path = share.canonicalize().with_context(|| format!("--share {}: make it", share.display()))?;
    Ok(path.into_os_string())
}

/// A zero byte behind each.
fn list(parts: impl Iterator<Item = OsString>) -> Vec<u8> {
    parts.flat_map(|part| part.into_vec().into_iter().chain([0])).collect()
}
