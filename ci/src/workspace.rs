//! Where we are and who we are: the tree, its target folder, the user. Key type: [`Workspace`].

use crate::process::{cargo_command, git_command};
use anyhow::{Context, Result, ensure};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// The tree under test.
pub struct Workspace {
    pub root: PathBuf,
    pub target: PathBuf,
    /// What `cargo metadata --no-deps` says.
    pub metadata: serde_json::Value,
    pub is_root_user: bool,
}

impl Workspace {
    /// Asks cargo about the workspace around the current folder.
    pub fn read() -> Result<Self> {
        let output = cargo_command(Path::new("."))
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .stdin(Stdio::null())
            .output()
            .context("cannot start `cargo`: install Rust (https://rustup.rs) or put it on PATH")?;
        ensure!(
            output.status.success(),
            "`cargo metadata` failed; run this inside the workspace.\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let metadata: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("`cargo metadata` gave no JSON")?;
        let path = |name: &str| metadata[name].as_str().map(PathBuf::from);
        let root = path("workspace_root").context("`cargo metadata` names no workspace_root")?;
        let target = path("target_directory").context("`cargo metadata` names no target_directory")?;
        let uid = std::fs::metadata("/proc/self").context("cannot read /proc: mount it")?.uid();
        Ok(Workspace { root, target, metadata, is_root_user: uid == 0 })
    }

    /// The commit that is checked out, if there is one.
    pub fn commit(&self) -> Option<String> {
        let output = git_command(&self.root).args(["rev-parse", "--verify", "HEAD"]).output().ok()?;
        let id = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !id.is_empty()).then_some(id)
    }

    /// Where `program` is found on PATH or in the folders for system programs.
    pub fn find_program(program: &str) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
            .map(|folder| folder.join(program))
            .find(|full| full.is_file())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_knows_its_members() {
        let workspace = Workspace::read().unwrap();
        assert!(workspace.root.join("ci/Cargo.toml").is_file());
    }

    #[test]
    fn programs_are_found_or_not() {
        assert!(Workspace::find_program("sh").is_some());
        assert!(Workspace::find_program("no-such-program-here").is_none());
    }
}
