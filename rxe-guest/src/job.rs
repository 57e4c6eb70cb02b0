//! What the host asks for: files in a folder that the kernel's command line names.
//!
//! Key type: [`Job`]. Lists are separated by zero bytes. Neighbour: `ci/src/rxe/job.rs`, which writes them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// On the kernel's command line, before the folder.
const PLACE: &str = "rxejob=";

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    pub environment: Vec<(OsString, OsString)>,
    /// Where it is run.
    pub folder: PathBuf,
    /// What the program may write so that it stays.
    pub shares: Vec<PathBuf>,
    pub huge_pages: u32,
    /// See [`crate::net::make`].
    pub net: String,
}

pub fn place(command_line: &str) -> Result<PathBuf> {
    let found = command_line.split_whitespace().find_map(|word| word.strip_prefix(PLACE));
    found.map(PathBuf::from).context("the kernel's command line names no job")
}

impl Job {
    pub fn read(place: &Path) -> Result<Job> {
        let bytes = |name: &str| {
            let path = place.join(name);
            std::fs::read(&path).with_context(|| format!("no {}", path.display()))
        };
        let environment = list(&bytes("environment")?);
        let pair = |both: OsString| {
            let both = both.into_vec();
            // A name may begin with the sign.
            let at = both.iter().skip(1).position(|byte| *byte == b'=')? + 1;
            Some((OsString::from_vec(both[..at].to_vec()), OsString::from_vec(both[at + 1..].to_vec())))
        };
        let text = |name: &str| Ok::<_, anyhow::Error>(String::from_utf8_lossy(&bytes(name)?).into_owned());
        Ok(Job {
            command: list(&bytes("command")?),
            environment: environment.into_iter().filter_map(pair).collect(),
            folder: OsString::from_vec(bytes("folder")?).into(),
            shares: list(&bytes("shares")?).into_iter().map(PathBuf::from).collect(),
            huge_pages: text("huge-pages")?.parse().context("how many huge pages")?,
            net: text("net")?,
        })
    }
}

fn list(bytes: &[u8]) -> Vec<OsString> {
    let parts = bytes.split(|byte| *byte == 0);
    // Each ends with a zero: nothing is behind the last.
    let mut all: Vec<OsString> = parts.map(|part| OsString::from_vec(part.to_vec())).collect();
    all.pop();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_a_folder() {
        assert_eq!(place("quiet rxejob=/a/b panic=-1\n").expect("named"), Path::new("/a/b"));
        assert!(place("quiet").is_err());
    }

    #[test]
    fn lists_keep_empty_parts_and_whatever_bytes() {
        assert_eq!(list(b""), Vec::<OsString>::new());
        let all = [OsString::from("a"), OsString::new(), OsString::from_vec(vec![0xff])];
        assert_eq!(list(b"a\0\0\xff\0"), all);
    }

    #[test]
    fn a_job_is_read_back() {
        let place = std::env::temp_dir().join(format!("rxe-guest-job-{}", std::process::id()));
        std::fs::create_dir_all(&place).expect("a folder");
        for (name, bytes) in [
            ("command", &b"/bin/echo\0a b\0"[..]),
            ("environment", b"A=1\0B=x=y\0nothing\0"),
            ("folder", b"/tmp"),
            ("shares", b"/w\0"),
            ("huge-pages", b"4"),
            ("net", b"pair"),
        ] {
            std::fs::write(place.join(name), bytes).expect("written");
        }
        let job = Job::read(&place);
        std::fs::remove_dir_all(&place).expect("removed");
        let job = job.expect("a job");
        assert_eq!(job.command, ["/bin/echo", "a b"]);
        assert_eq!(job.environment, [("A".into(), "1".into()), ("B".into(), "x=y".into())]);
        assert_eq!((job.folder, job.shares), ("/tmp".into(), vec![PathBuf::from("/w")]));
        assert_eq!((job.huge_pages, job.net.as_str()), (4, "pair"));
    }
}
