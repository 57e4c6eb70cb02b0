//! A real file goes from node 1 over node 2 to node 3 in loans, and must have the same digest there.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Scene;
use super::report::FileTrip;
use crate::failure::{Exit, failure};
use crate::interrupt;
use crate::output::bytes;
use crate::workers::carry::{Arrived, PIECE_BYTES};

/// Files that are looked at, at most, for the largest.
const LOOKED_AT_MAX: usize = 100_000;
/// The slowest that a file may travel.
const BYTES_PER_S_MIN: u64 = 5 << 20;

/// The file that was asked for; else the largest one of the running Rust toolchain, or of /usr/lib.
pub fn choose(asked: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = asked {
        let bad = |why: String| {
            failure(Exit::Config, format!("--file {}: {why}", path.display()), "give a readable file")
        };
        let whole = path.canonicalize().map_err(|e| bad(e.to_string()))?;
        if !whole.is_file() {
            return Err(bad("not a regular file".to_owned()));
        }
        File::open(&whole).map_err(|e| bad(e.to_string()))?;
        return Ok(whole);
    }
    let own = std::env::current_exe().context("where this program is")?;
    let found = sysroot().and_then(|dir| largest_below(&dir));
    let found = found.or_else(|| {
        let own_size = size_if_readable(&own).map(|size| (size, own.clone()));
        own_size.into_iter().chain(largest_below(Path::new("/usr/lib"))).max()
    });
    found.map(|(_, path)| path).context("no readable file was found: give one with --file")
}

/// Where the Rust toolchain is, if there is one. It must not be fetched for our sake.
fn sysroot() -> Option<PathBuf> {
    let mut command = Command::new("rustc");
    command.args(["--print", "sysroot"]).current_dir("/").env("RUSTUP_AUTO_INSTALL", "0");
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(path.trim()))
}

fn size_if_readable(path: &Path) -> Option<u64> {
    let meta = std::fs::symlink_metadata(path).ok()?;
    (meta.is_file() && File::open(path).is_ok()).then_some(meta.len())
}

/// The largest readable regular file below a folder. Links are not followed.
fn largest_below(folder: &Path) -> Option<(u64, PathBuf)> {
    let mut folders = vec![folder.to_owned()];
    let (mut largest, mut looked_at) = (None, 0);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            looked_at += 1;
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && looked_at < LOOKED_AT_MAX {
                folders.push(entry.path());
            } else if kind.is_file() {
                let size = entry.metadata().map_or(0, |meta| meta.len());
                if largest.as_ref().is_none_or(|(most, _)| size > *most) && File::open(entry.path()).is_ok() {
                    largest = Some((size, entry.path()));
                }
            }
        }
    }
    largest
}

/// Sends it, and compares what node 3 says with what is on the disk.
pub fn travel(scene: &mut Scene<'_>, file: &Path) -> Result<()> {
    scene.progress.step("a file from node 1 over node 2 to node 3, in loans");
    let (size, digest) = digest_of(file)?;
    scene.progress.note(&format!("{}, {}", file.display(), bytes(size)));
    let mut taker = scene.start(3, "digest", &["file-in"])?;
    taker.ready()?;
    let mut relay = scene.start(2, "relay", &["file-relay", "digest"])?;
    relay.ready()?;
    let path = file.to_str().context("the file's name is not UTF-8: give another with --file")?;
    let mut reader = scene.start(1, "reader", &["file-out", "relay", "--file", path])?;
    reader.ready()?;
    let began = Instant::now();
    reader.order("go")?;
    let arrived: Arrived = taker.report(Duration::from_secs(30 + size / BYTES_PER_S_MIN))?;
    let seconds = began.elapsed().as_secs_f64();
    let digest_ok = arrived.digest == digest && arrived.bytes == size;
    let trip = FileTrip { path: path.to_owned(), arrived, digest_ok, seconds };
    let verdict = if digest_ok { "the same digest there" } else { "ANOTHER DIGEST THERE" };
    let speed = size as f64 / 1e6 / seconds.max(1e-9);
    scene.progress.done(&format!("{} ({}), {verdict}, {speed:.0} MB/s", file.display(), bytes(size)));
    scene.report.file = Some(trip);
    if !digest_ok {
        let what = format!("{} arrived at node 3 with another digest", file.display());
        return Err(failure(
            Exit::Failed,
            what,
            "does the file change while it is read? Otherwise this is a fault of ours",
        ));
    }
    Ok(())
}

/// The digest of what is on the disk, taken here and by nobody who is part of the journey.
fn digest_of(path: &Path) -> Result<(u64, String)> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let (mut hasher, mut buffer, mut size) = (blake3::Hasher::new(), vec![0; PIECE_BYTES], 0);
    loop {
        interrupt::check()?;
        let len = file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if len == 0 {
            return Ok((size, hasher.finalize().to_hex().to_string()));
        }
        hasher.update(&buffer[..len]);
        size += len as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_file_below_a_folder_is_found_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("in")).unwrap();
        std::fs::write(folder.path().join("small"), [0; 10]).unwrap();
        std::fs::write(folder.path().join("in/large"), [0; 20]).unwrap();
        std::os::unix::fs::symlink("/usr", folder.path().join("elsewhere")).unwrap();
        assert_eq!(largest_below(folder.path()), Some((20, folder.path().join("in/large"))));
    }

    #[test]
    fn some_file_is_found_everywhere_and_a_missing_one_is_named() {
        assert!(choose(None).unwrap().is_file());
        assert!(choose(Some(Path::new("/no/such"))).unwrap_err().to_string().contains("/no/such"));
    }
}
