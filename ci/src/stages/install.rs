//! The stage `install`: the few system programs other stages use, by Debian's package manager, only when missing; and subcommands of
//! cargo, for the stages that need one.

use super::{Job, coverage};
use crate::report::excerpt;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Program, and the Debian package that holds it.
const NEEDED: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("setpriv", "util-linux"),
    ("c++", "g++"),
    ("nft", "nftables"),
    ("faketime", "faketime"),
];
/// What `proxy-rdma` is built with.
const NEEDED_RDMA: &[(&str, &str)] = &[
    ("pkg-config", "pkg-config"),
    ("/usr/include/infiniband/verbs.h", "libibverbs-dev"),
    ("/usr/include/rdma/rdma_cma.h", "librdmacm-dev"),
    ("/usr/share/doc/libclang-dev", "libclang-dev"),
];
/// What `--full` needs besides.
const NEEDED_FULL: &[(&str, &str)] = &[(coverage::LLVM_COV, "llvm-19")];
/// What `ci rxe` needs; a file is named by its path. The package `rdma-core` is not among them: it brings a device manager
/// along, and neither host nor guest has use for one.
const NEEDED_RXE: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("depmod", "kmod"),
    ("strip", "binutils"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("rdma", "iproute2"),
    ("ibv_devinfo", "ibverbs-utils"),
    ("ib_send_lat", "perftest"),
    ("rping", "rdmacm-utils"),
    ("/etc/libibverbs.d/rxe.driver", "ibverbs-providers"),
];
const TRIES: usize = 3;
const BETWEEN_TRIES: Duration = Duration::from_secs(5);

pub fn run(job: &mut Job) -> Result<()> {
    let missing = missing(job.is_full);
    if missing.is_empty() {
        job.passed("install", "nothing is missing");
        return Ok(());
    }
    let packages = missing.join(" ");
    if !job.workspace.is_root_user {
        job.not_run(
            "install",
            format!("needs root; some stages will not run without: apt-get install {packages}"),
        );
        return Ok(());
    }
    if Workspace::find_program("apt-get").is_none() {
        job.not_run("install", format!("there is no apt-get; install what holds: {packages}"));
        return Ok(());
    }
    for attempt in 1..=TRIES {
        let mut update = apt();
        update.arg("update");
        let mut install = apt();
        install.args(["-y", "--no-install-recommends", "install"]).args(&missing);
        let updated = job.run(update)?;
        let installed = job.run(install)?;
        if installed.is_ok() {
            job.passed("install", packages);
            return Ok(());
        }
        let failure = if updated.is_ok() { installed } else { updated };
        let said = excerpt(failure.log.iter()).pop().unwrap_or_default();
        if attempt == TRIES {
            job.not_run("install", format!("apt-get could not install {packages}: {said}"));
        } else {
            job.remark(&format!("attempt {attempt} of {TRIES}: {said}"));
            std::thread::sleep(BETWEEN_TRIES);
        }
    }
    Ok(())
}

fn missing(is_full: bool) -> Vec<&'static str> {
    packages_of(NEEDED.iter().chain(NEEDED_RDMA).chain(NEEDED_FULL.iter().filter(|_| is_full)))
}

/// The packages of what is not here.
fn packages_of(needed: impl Iterator<Item = &'static (&'static str, &'static str)>) -> Vec<&'static str> {
    let is_there = |what: &str| match Path::new(what).is_absolute() {
        true => Path::new(what).exists(),
        false => Workspace::find_program(what).is_some(),
    };
    needed.filter(|(what, _)| !is_there(what)).map(|(_, package)| *package).collect()
}

/// Whether `proxy-rdma` can be built, or what is missing.
pub fn rdma_libraries(workspace: &Workspace) -> Result<(), String> {
    // Whoever has the libraries from elsewhere says so by pkg-config, and where libclang is by a variable.
    let has = |library: &str| {
        let mut ask = Command::new("pkg-config");
        ask.args(["--exists", library]).current_dir(&workspace.root);
        ask.status().is_ok_and(|status| status.success())
    };
    let has_clang = std::env::var_os("LIBCLANG_PATH").is_some();
    if ["libibverbs", "librdmacm"].into_iter().all(has) && has_clang {
        return Ok(());
    }
    match &packages_of(NEEDED_RDMA.iter())[..] {
        [] => Ok(()),
        missing => Err(format!(
            "it is built with libraries that are not here: apt-get install {}",
            missing.join(" ")
        )),
    }
}

/// Installs what `ci rxe` needs, or says what that is.
pub fn for_rxe(workspace: &Workspace) -> Result<()> {
    let missing = packages_of(NEEDED_RXE.iter());
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    ensure!(
        workspace.is_root_user && Workspace::find_program("apt-get").is_some(),
        "install as root: apt-get install --no-install-recommends {packages}"
    );
    eprintln!("installing {packages}");
    let mut said = String::new();
    for attempt in 1..=TRIES {
        let updated = apt().arg("update").output().context("cannot start `apt-get`")?;
        let mut install = apt();
        install.args(["-y", "--no-install-recommends", "install"]).args(&missing);
        let installed = install.output().context("cannot start `apt-get`")?;
        if installed.status.success() {
            return Ok(());
        }
        let failed = if updated.status.success() { installed } else { updated };
        said = String::from_utf8_lossy(&failed.stderr).trim().to_owned();
        if attempt < TRIES {
            std::thread::sleep(BETWEEN_TRIES);
        }
    }
    bail!("`apt-get` could not install {packages}: {said}")
}

/// A subcommand of cargo, installed below the target folder if need be; or why there is none.
pub fn cargo_tool(job: &mut Job, name: &str) -> Result<Result<PathBuf, String>> {
    let root =
        std::path::absolute(job.workspace.target.join("tools")).context("where the target folder is")?;
    let tool = root.join("bin").join(name);
    if !tool.is_file() {
        let mut install = job.cargo(&["install", name, "--locked", "--root"]);
        install.arg(&root);
        let done = job.run(install)?;
        if !done.is_ok() {
            let said = excerpt(done.log.iter()).pop().unwrap_or_default();
            return Ok(Err(format!("{name} could not be installed: {said}")));
        }
    }
    Ok(Ok(tool))
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=300"]);
    apt
}
