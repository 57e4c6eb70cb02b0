//! The stage `unprivileged`: what root has built, run by a user without any rights, from a folder of its own.
//! Key type: [`Den`], that folder, which goes when the stage ends.

use super::cargo_tests::run_tests;
use super::{Job, demo};
use crate::report::excerpt;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

/// `nobody`.
const UID: u32 = 65534;
const KILL_ROUNDS: &str = "50";

pub fn run(job: &mut Job) -> Result<()> {
    if !job.workspace.is_root_user {
        job.not_run("unprivileged", "already unprivileged: the other stages have shown it");
        return Ok(());
    }
    if let Some(why) = cannot_drop(job)? {
        job.not_run("unprivileged", why);
        return Ok(());
    }
    let dvs = job.dvs_executable()?;
    let process_test = test_executable(job, "node", "process")?;
    let kill_test = test_executable(job, "shm", "kill")?;
    let den = Den::make()?;
    let dvs = den.adopt(&dvs, "dvs")?;
    let process_test = den.adopt(&process_test, "process")?;
    let kill_test = den.adopt(&kill_test, "kill")?;

    let mut command = den.command(&dvs, &dvs);
    command.args(["demo", "--json", "--messages", demo::MESSAGES_SHORT]);
    let done = job.run(command)?;
    demo::judge(job, "unprivileged demo", &done);

    let mut command = den.command(&process_test, &dvs);
    command.args(["--show-output", "--skip", "process::faults"]);
    run_tests(job, "unprivileged process", command)?;

    let mut command = den.command(&kill_test, &dvs);
    command.arg("--show-output").env("KILL_ROUNDS", KILL_ROUNDS);
    run_tests(job, "unprivileged kill", command)
}

/// Why we cannot become another user here, found by trying.
fn cannot_drop(job: &mut Job) -> Result<Option<String>> {
    if Workspace::find_program("setpriv").is_none() {
        return Ok(Some("needs `setpriv` (apt-get install util-linux)".into()));
    }
    let mut command = setpriv();
    command.arg("true");
    let done = job.run(command)?;
    Ok((!done.is_ok()).then(|| {
        let said = done.log.back().map_or_else(|| done.ending(), Clone::clone);
        format!("cannot become uid {UID}: {said}")
    }))
}

fn setpriv() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &UID.to_string(), "--regid", &UID.to_string(), "--clear-groups"]);
    command
}

/// Builds the release executable of one integration test and says where it is.
fn test_executable(job: &mut Job, package: &str, test: &str) -> Result<PathBuf> {
    let arguments = [
        "test",
        "--release",
        "-p",
        package,
        "--test",
        test,
        "--no-run",
        "--message-format=json-render-diagnostics",
    ];
    let done = job.run(job.cargo(&arguments))?;
    if !done.is_ok() {
        bail!(
            "cannot build test `{test}` of `{package}`: {}\n{}",
            done.ending(),
            excerpt(done.log.iter()).join("\n")
        );
    }
    done.stdout
        .iter()
        .find_map(|line| executable_in(line, test))
        .with_context(|| format!("cargo built no executable for test `{test}` of `{package}`"))
}

fn executable_in(message: &str, test: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let target = &message["target"];
    let is_it = target["name"] == test && target["kind"].as_array()?.iter().any(|k| k == "test");
    is_it.then(|| message["executable"].as_str().map(PathBuf::from))?
}

/// A folder of programs that all may run, with a home that belongs to the user without rights.
struct Den {
    folder: PathBuf,
}

impl Den {
    fn make() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("dvs-ci-{}", std::process::id()));
        std::fs::create_dir(&folder)
            .with_context(|| format!("cannot make {}: remove it if it is old", folder.display()))?;
        let den = Den { folder };
        std::fs::set_permissions(&den.folder, Permissions::from_mode(0o755))
            .context("cannot open up a folder")?;
        for name in ["home", "run", "tmp"] {
            let own = den.folder.join(name);
            std::fs::create_dir(&own).with_context(|| format!("cannot make {}", own.display()))?;
            std::fs::set_permissions(&own, Permissions::from_mode(0o700)).context("cannot close a folder")?;
            chown(&own, Some(UID), Some(UID))
                .with_context(|| format!("cannot give {} away", own.display()))?;
        }
        Ok(den)
    }

    /// Copies a program in.
    fn adopt(&self, program: &Path, name: &str) -> Result<PathBuf> {
        let copy = self.folder.join(name);
        std::fs::copy(program, &copy)
            .with_context(|| format!("cannot copy {} to {}", program.display(), copy.display()))?;
        std::fs::set_permissions(&copy, Permissions::from_mode(0o755))
            .context("cannot make a copy executable")?;
        Ok(copy)
    }

    /// `program` as that user, knowing nothing of our environment.
    fn command(&self, program: &Path, dvs: &Path) -> Command {
        let mut command = setpriv();
        command.arg(program).current_dir(self.folder.join("home")).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("DVS_BIN", dvs);
        command.env("HOME", self.folder.join("home")).env("USER", "nobody");
        command.env("XDG_RUNTIME_DIR", self.folder.join("run")).env("TMPDIR", self.folder.join("tmp"));
        command
    }
}

impl Drop for Den {
    fn drop(&mut self) {
        // What cannot be removed lies in the system's temporary folder, which is cleaned anyway.
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_in_cargos_messages() {
        let message = r#"{"reason":"compiler-artifact","target":{"name":"kill","kind":["test"]},"executable":"/t/kill-1"}"#;
        assert_eq!(executable_in(message, "kill"), Some("/t/kill-1".into()));
        assert_eq!(executable_in(message, "process"), None);
        assert_eq!(executable_in("   Compiling shm", "kill"), None);
    }
}
