//! Debian's kernel, taken apart: the image that an emulator starts without firmware, and the modules, each before those
//! that need it.

use super::must;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// `crc32_generic`: rxe asks for it while it runs, and no list of dependencies names it.
const MODULES: [&str; 11] = [
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    "virtio_console",
    "virtio_net",
    "veth",
    "sch_netem",
    "crc32_generic",
    "rdma_rxe",
    "rdma_ucm",
];
/// How a packed kernel begins within its image, and what unpacks it.
const PACKED: [(&[u8], &str); 2] = [(b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")];
const ELF: &[u8] = b"\x7fELF";

/// Leaves `vmlinux` and `modules/` with its `list` in `made`.
pub fn take_apart(place: &Path, version: &str, made: &Path) -> Result<()> {
    let package = download(place, version)?;
    let scratch = tempfile::tempdir_in(place).context("no folder to unpack in")?;
    let root = scratch.path().join("root");
    must(Command::new("dpkg-deb").arg("-x").args([&package, &root]))?;
    if !root.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", root.join("lib")).context("cannot name the modules' folder")?;
    }
    let release = only_entry(&root.join("lib/modules"))?;
    must(Command::new("depmod").arg("-b").arg(&root).arg(&release))?;
    let image = root.join("boot").join(format!("vmlinuz-{release}"));
    let image = fs::read(&image).with_context(|| format!("no {}", image.display()))?;
    let ready = scratch.path().join("ready");
    let modules = ready.join("modules");
    fs::create_dir_all(&modules).context("no folder for modules")?;
    fs::write(ready.join("vmlinux"), unpacked_kernel(&image)?).context("cannot write the kernel")?;
    let mut list = String::new();
    for path in needed(&root, &release)? {
        let name = file_name(&path).trim_end_matches(".xz").trim_end_matches(".zst").to_owned();
        let file = modules.join(&name);
        fs::write(&file, unpacked_module(&path)?).with_context(|| format!("cannot write {name}"))?;
        must(Command::new("strip").arg("--strip-debug").arg(&file))?;
        list += &format!("{name}\n");
    }
    fs::write(modules.join("list"), list).context("cannot write the list of modules")?;
    if made.exists() {
        fs::remove_dir_all(made).with_context(|| format!("cannot replace {}", made.display()))?;
    }
    fs::rename(&ready, made).with_context(|| format!("cannot make {}", made.display()))
}

/// The newest kernel package of this version.
fn download(place: &Path, version: &str) -> Result<PathBuf> {
    let folder = place.join("packages").join(version);
    if let Ok(name) = only_entry(&folder) {
        return Ok(folder.join(name));
    }
    let meta = match version {
        "6.1" => "linux-image-amd64".to_owned(),
        other => format!("linux-image-{other}-amd64"),
    };
    let needs = must(Command::new("apt-cache").args(["depends", &meta]));
    let needs = needs.with_context(|| format!("no package {meta}: apt-get update, or add its archive"))?;
    let needs = String::from_utf8_lossy(&needs);
    let package = needs.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package
        .filter(|name| name.starts_with("linux-image"))
        .with_context(|| format!("{meta} names no kernel: {needs}"))?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let scratch = tempfile::tempdir_in(place).context("no folder to load into")?;
    must(Command::new("apt-get").args(["-qq", "download", package]).current_dir(scratch.path()))
        .with_context(|| format!("{package} could not be loaded"))?;
    let name = only_entry(scratch.path())?;
    let (from, to) = (scratch.path().join(&name), folder.join(&name));
    fs::rename(&from, &to).with_context(|| format!("cannot put {}", to.display()))?;
    Ok(to)
}

fn only_entry(folder: &Path) -> Result<String> {
    let entries = fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))?;
    let mut names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.next().with_context(|| format!("{} is empty", folder.display()))
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// The files of [`MODULES`] and of all that they need, these first.
fn needed(root: &Path, release: &str) -> Result<Vec<PathBuf>> {
    let mut all: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        let mut modprobe = Command::new("modprobe");
        modprobe.arg("-d").arg(root).args(["-S", release, "--show-depends", module]);
        let lines = must(&mut modprobe).with_context(|| format!("kernel {release} has no {module}"))?;
        for line in String::from_utf8_lossy(&lines).lines() {
            let Some(path) = line.trim().strip_prefix("insmod ") else { continue };
            let path = PathBuf::from(path.trim());
            if !all.contains(&path) {
                all.push(path);
            }
        }
    }
    Ok(all)
}

fn unpacked_module(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| format!("no {}", path.display()))?;
    match path.extension().and_then(|end| end.to_str()) {
        Some("xz") => unpacked("xz", &bytes),
        Some("zst") => unpacked("zstd", &bytes),
        _ => Ok(bytes),
    }
}

/// The ELF file within a kernel image.
fn unpacked_kernel(image: &[u8]) -> Result<Vec<u8>> {
    for (begin, program) in PACKED {
        let places = image.windows(begin.len()).enumerate().filter(|(_, window)| *window == begin);
        for (at, _) in places {
            let found = unpacked(program, &image[at..]).unwrap_or_default();
            if found.starts_with(ELF) {
                return Ok(found);
            }
        }
    }
    anyhow::bail!("there is no kernel in the image")
}

/// What a program unpacks of `bytes`, whatever it says of bytes behind.
fn unpacked(program: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(["-q", "-d", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start `{program}`: install it"))?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let (mut input, mut output) = (input.context("no input")?, output.context("no output")?);
    let mut found = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // It may stop reading where its part ends.
            let _ = input.write_all(bytes);
        });
        output.read_to_end(&mut found)
    })
    .with_context(|| format!("`{program}` is lost"))?;
    child.wait().with_context(|| format!("`{program}` is lost"))?;
    ensure!(!found.is_empty(), "`{program}` has unpacked nothing");
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_found_in_its_image_behind_whatever_looks_like_one() {
        let kernel = [ELF, &[7; 5000]].concat();
        let packed = |program: &str| {
            let mut child = Command::new(program)
                .args(["-q", "-c"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("started");
            child.stdin.take().expect("input").write_all(&kernel).expect("written");
            child.wait_with_output().expect("packed").stdout
        };
        if crate::workspace::Workspace::find_program("xz").is_none() {
            return println!("not run: there is no `xz` here");
        }
        let image = [b"head \xfd7zXZ\0 no kernel ", &packed("xz")[..], b"tail"].concat();
        assert_eq!(unpacked_kernel(&image).expect("found"), kernel);
        assert!(unpacked_kernel(b"nothing").is_err());
    }
}
