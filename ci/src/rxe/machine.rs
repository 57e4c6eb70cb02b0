//! One run of the emulator.

use super::job::Written;
use super::{Options, Parts};
use crate::process::Guardian;
use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

const EMULATOR: &str = "qemu-system-x86_64";
/// Emulation alone: hardware virtualisation within a virtual machine did not come up where it was tried.
const MACHINE: &str = "-M q35 -nodefaults -no-user-config -accel tcg,thread=multi -cpu max -display none -no-reboot \
                       -device virtio-serial-pci -device isa-debug-exit,iobase=0xf4,iosize=1";
const KERNEL: &str = "console=ttyS0 quiet loglevel=4 panic=-1 tsc=reliable no_timer_check mitigations=off nopti nowatchdog \
                      random.trust_cpu=on cryptomgr.notests rcupdate.rcu_expedited=1 \
                      rcupdate.rcu_cpu_stall_suppress=1 rdinit=/init";
const POLL: Duration = Duration::from_millis(20);
/// What the first process says before the command begins.
const STARTED: &str = "started";

/// How a run ended.
pub enum End {
    /// The command's exit code.
    Code(u8),
    TimedOut,
    /// The command had not begun.
    NoBoot {
        how: String,
    },
    /// It had.
    Lost {
        how: String,
    },
}

/// What the guest is connected with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Net {
    Pair,
    None,
    /// By datagrams on the loopback with another machine.
    Nic {
        address: String,
        own: u16,
        other: u16,
    },
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Net, String> {
        match text.split(':').collect::<Vec<_>>()[..] {
            ["pair"] => Ok(Net::Pair),
            ["none"] => Ok(Net::None),
            ["nic", address, own, other] => {
                let port = |text: &str| text.parse().map_err(|_| format!("{text:?} is not a port"));
                Ok(Net::Nic { address: address.to_owned(), own: port(own)?, other: port(other)? })
            }
            _ => Err("use `pair`, `none` or `nic:ADDRESS/LENGTH:OWN_PORT:OTHER_PORT`".into()),
        }
    }
}

impl Net {
    /// As the guest's first process reads it.
    pub fn for_guest(&self) -> String {
        match self {
            Net::Pair => "pair".into(),
            Net::None => "none".into(),
            Net::Nic { address, .. } => format!("nic {address}"),
        }
    }
}

/// Boots, runs the command and waits for the end.
pub fn run(parts: &Parts, job: &Written, options: &Options, deadline: Instant) -> Result<End> {
    let folder = job.folder();
    let out = Stream::forward(folder.join("out"), std::io::stdout())?;
    let err = Stream::forward(folder.join("err"), std::io::stderr())?;
    let complaints = folder.join("complaints");
    let mut emulator = command(parts, job, options);
    emulator.stdin(Stdio::null()).stdout(Stdio::null());
    emulator.stderr(File::create(&complaints).context("no file for the emulator's complaints")?);
    let mut child = emulator.process_group(0).spawn().context("cannot start the emulator")?;
    let guardian = Guardian::over(child.id())?;
    let in_time = ends_before(&mut child, deadline)?;
    if in_time {
        guardian.dismiss();
    } else {
        guardian.end_group();
        child.wait().context("cannot wait for an emulator that was killed")?;
    }
    out.end();
    err.end();
    let said = std::fs::read_to_string(folder.join("exit")).unwrap_or_default();
    let mut lines = said.lines();
    let has_begun = lines.next() == Some(STARTED);
    if let Some(code) = lines.next().and_then(|line| line.parse::<i32>().ok()).filter(|_| has_begun) {
        return Ok(End::Code(u8::try_from(code).unwrap_or(u8::MAX)));
    }
    if !in_time {
        return Ok(End::TimedOut);
    }
    let complaints = std::fs::read_to_string(&complaints).unwrap_or_default();
    let how = match complaints.trim() {
        "" => "the emulator has no complaint".to_owned(),
        some => format!("the emulator says: {some}"),
    };
    Ok(if has_begun { End::Lost { how } } else { End::NoBoot { how } })
}

fn ends_before(child: &mut Child, deadline: Instant) -> Result<bool> {
    while child.try_wait().context("cannot wait for the emulator")?.is_none() {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(POLL);
    }
    Ok(true)
}

fn command(parts: &Parts, job: &Written, options: &Options) -> Command {
    let folder = job.folder();
    let mut command = Command::new(EMULATOR);
    command.args(MACHINE.split_whitespace());
    command.args(["-smp", &options.cpus.to_string(), "-m", &options.memory.to_string()]);
    command.arg("-kernel").arg(&parts.kernel).arg("-initrd").arg(&parts.initrd);
    command.arg("-append").arg(joined([KERNEL.into(), " rxejob=".into(), folder.into()]));
    command.arg("-serial").arg(joined(["file:".into(), job.console().into()]));
    share(&mut command, "host", Path::new("/"), true);
    for (number, path) in options.share.iter().enumerate() {
        share(&mut command, &format!("share{number}"), path, false);
    }
    for (number, name) in ["out", "err", "exit"].iter().enumerate() {
        let path = joined([format!("file,id={name},path=").into(), escaped(&folder.join(name))]);
        command.arg("-chardev").arg(path);
        let port = format!("virtserialport,chardev={name},name={name},nr={}", number + 1);
        command.args(["-device", &port]);
    }
    if let Net::Nic { own, other, .. } = &options.net {
        let ends = format!(
            "dgram,id=net,local.type=inet,local.host=127.0.0.1,local.port={own},\
             remote.type=inet,remote.host=127.0.0.1,remote.port={other}"
        );
        // Each machine's card has an address of its own, made of its port.
        let [high, low] = own.to_be_bytes();
        let card = format!("virtio-net-pci,netdev=net,romfile=,mac=52:54:00:{high:02x}:{low:02x}:01");
        command.args(["-netdev", &ends, "-device", &card]);
    }
    command
}

fn share(command: &mut Command, tag: &str, path: &Path, is_read_only: bool) {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let end = if is_read_only { ",readonly=on" } else { "" };
    command.arg("-fsdev").arg(joined([
        format!("local,id={tag},security_model=none,multidevs=remap{end},path=").into(),
        escaped(&path),
    ]));
    command.args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
}

fn joined<const N: usize>(parts: [OsString; N]) -> OsString {
    parts.into_iter().collect()
}

/// In the emulator's options a comma ends a value, and two are one.
fn escaped(path: &Path) -> OsString {
    path.to_string_lossy().replace(',', ",,").into()
}

/// What comes out of a pipe with a name, as it comes.
struct Stream {
    /// Held open, so that the reader does not see an end before the emulator has opened it.
    held: File,
    reader: std::thread::JoinHandle<()>,
}

impl Stream {
    fn forward(path: PathBuf, mut to: impl Write + Send + 'static) -> Result<Stream> {
        let made = rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
        made.with_context(|| format!("cannot make {}", path.display()))?;
        let both = File::options().read(true).write(true).open(&path);
        let held = both.with_context(|| format!("cannot open {}", path.display()))?;
        let mut from = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 16 << 10];
            while let Ok(len @ 1..) = from.read(&mut bytes) {
                // Whoever does not listen misses it; the guest goes on.
                let _ = to.write_all(&bytes[..len]).and_then(|()| to.flush());
            }
        });
        Ok(Stream { held, reader })
    }

    /// All that came has been passed on.
    fn end(self) {
        drop(self.held);
        // A reader that has panicked has said so.
        let _ = self.reader.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_named() {
        assert_eq!("pair".parse(), Ok(Net::Pair));
        let nic = Net::Nic { address: "10.79.0.1/24".into(), own: 31001, other: 31002 };
        assert_eq!("nic:10.79.0.1/24:31001:31002".parse(), Ok(nic.clone()));
        assert_eq!(nic.for_guest(), "nic 10.79.0.1/24");
        assert!("nic:10.79.0.1/24:x:1".parse::<Net>().is_err());
        assert!("wire".parse::<Net>().is_err());
    }

    #[test]
    fn a_comma_in_a_path_does_not_end_it() {
        assert_eq!(escaped(Path::new("/a,b/c")), "/a,,b/c");
    }
}
