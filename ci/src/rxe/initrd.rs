//! The guest's initial file system: its first process, the modules, their list, as an archive that the kernel unpacks.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// Makes it anew: that takes less than to find out whether it must be.
pub fn pack(guest: &Path, modules: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    let file = File::create(&new).with_context(|| format!("cannot make {}", new.display()))?;
    let mut archive = Archive { out: BufWriter::new(file), files: 0, bytes: 0 };
    let packed = archive.fill(guest, modules);
    packed.with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, to).with_context(|| format!("cannot make {}", to.display()))
}

/// In cpio's format "newc". Source: Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`.
struct Archive<W> {
    out: W,
    files: u32,
    bytes: usize,
}

impl<W: Write> Archive<W> {
    fn fill(&mut self, guest: &Path, modules: &Path) -> Result<()> {
        for folder in ["dev", "proc", "sys"] {
            self.put(folder, FOLDER, b"")?;
        }
        self.put("init", PROGRAM, &fs::read(guest)?)?;
        let list = fs::read(modules.join("list"))?;
        for name in String::from_utf8_lossy(&list).lines() {
            self.put(name, FILE, &fs::read(modules.join(name))?)?;
        }
        self.put("modules", FILE, &list)?;
        self.put("TRAILER!!!", 0, b"")?;
        self.out.flush()?;
        Ok(())
    }

    fn put(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.files += 1;
        let len_bytes = u32::try_from(bytes.len()).context("a file too long for an archive")?;
        let name_bytes = u32::try_from(name.len() + 1).context("a name too long for an archive")?;
        let (uid, gid, links, time, device) = (0, 0, 1, 0, [0; 4]);
        let mut head = String::from("070701");
        let numbers = [self.files, mode, uid, gid, links, time, len_bytes];
        for number in numbers.into_iter().chain(device).chain([name_bytes, 0]) {
            head += &format!("{number:08x}");
        }
        self.write(head.as_bytes())?;
        self.write(name.as_bytes())?;
        self.write(b"\0")?;
        self.align()?;
        self.write(bytes)?;
        self.align()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len();
        Ok(self.out.write_all(bytes)?)
    }

    fn align(&mut self) -> Result<()> {
        let missing = self.bytes.next_multiple_of(4) - self.bytes;
        self.write(&[0; 3][..missing])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_its_head_and_everything_begins_at_four_bytes() {
        let mut archive = Archive { out: Vec::new(), files: 0, bytes: 0 };
        archive.put("init", PROGRAM, b"hello").expect("written");
        let out = &archive.out;
        assert_eq!(&out[..14], b"07070100000001");
        assert_eq!(&out[14..22], b"000081ed");
        assert_eq!(&out[54..62], b"00000005");
        assert_eq!(&out[94..102], b"00000005");
        assert_eq!(&out[110..116], b"init\0\0");
        assert_eq!(out[110 + 6..], *b"hello\0\0\0");
        assert_eq!(out.len() % 4, 0);
    }
}
