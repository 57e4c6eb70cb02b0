//! The contents of one file, block by block, holes left holes. Key type: [`Content`]. Neighbour: `end`, which opens it.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use abi::limits::CP_BLOCK_BYTES;
use rustix::fs::{FallocateFlags, FlockOperation, Mode, SeekFrom, Timespec, Timestamps};
use rustix::io::Errno;

use super::wire::{Entry, Mark, Piece, blocks, len_of};

/// What is copied of a mode: nobody gets another's rights by a copy.
pub const MODE_BITS: u32 = 0o1777;
/// So many zeros, in their place, become a hole.
const HOLE_BYTES: usize = 64 << 10;
/// How often a lock that is taken is tried.
const GLANCE: Duration = Duration::from_millis(20);

/// A file that is read, or one that is put together.
pub struct Content {
    file: File,
    /// As it was when it was opened, or as it is to be.
    len: u64,
    /// What a partial file had when it was opened; `None`: it is read only.
    have: Option<u64>,
}

impl Content {
    pub fn to_read(file: File, len: u64) -> Content {
        Content { file, len, have: None }
    }

    /// What is beyond the length that it is to have goes.
    pub fn of_partial(file: File, len: u64) -> Result<Content> {
        let mut have = file.metadata()?.len();
        if have > len {
            file.set_len(len)?;
            have = len;
        }
        Ok(Content { file, len, have: Some(have) })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn have(&self) -> u64 {
        self.have.unwrap_or(self.len)
    }

    pub fn is_partial(&self) -> bool {
        self.have.is_some()
    }

    /// The digest of a block; what a partial file does not have yet counts as zeros.
    pub fn mark(&self, block: u64) -> Result<Mark> {
        let Some(len) = len_of(block, self.len) else { return Err(ErrorKind::InvalidInput.into()) };
        if self.data_from(block * CP_BLOCK_BYTES)? >= block * CP_BLOCK_BYTES + len as u64 {
            return Ok(mark_of_zeros(len));
        }
        let mut bytes = vec![0; len];
        self.fill(block, &mut bytes)?;
        Ok(mark_of(&bytes))
    }

    /// Reads a block whole, unless it is empty; `out` is as long as it.
    pub fn read(&self, block: u64, out: &mut [u8]) -> Result<Piece> {
        let data = self.data_from(block * CP_BLOCK_BYTES)?;
        if data >= block * CP_BLOCK_BYTES + out.len() as u64 {
            let until = if data >= self.len { blocks(self.len) } else { data / CP_BLOCK_BYTES };
            return Ok(Piece::Zeros { blocks: until - block });
        }
        if self.fill(block, out)? < out.len() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(if is_zero(out) { Piece::Zeros { blocks: 1 } } else { Piece::Data })
    }

    /// Writes a block. Zeros that nothing stood in the place of are left out.
    pub fn write(&self, block: u64, bytes: &[u8]) -> Result<()> {
        let mut at = block * CP_BLOCK_BYTES;
        for part in bytes.chunks(HOLE_BYTES) {
            if !is_zero(part) {
                self.file.write_all_at(part, at)?;
            } else if at < self.have() {
                self.clear(part, at)?;
            }
            at += part.len() as u64;
        }
        Ok(())
    }

    /// The file has all its bytes, or holes for them.
    pub fn complete(&self) -> Result<()> {
        self.file.set_len(self.len)
    }

    fn clear(&self, zeros: &[u8], at: u64) -> Result<()> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, hole, at, zeros.len() as u64) {
            Ok(()) => Ok(()),
            // Not every file system can.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.file.write_all_at(zeros, at),
            Err(why) => Err(Error::from(why)),
        }
    }

    /// Where the next bytes are that are no hole, from `at` on; without any: the end of all files.
    fn data_from(&self, at: u64) -> Result<u64> {
        match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
            Ok(data) => Ok(data.max(at)),
            // No data any more: either a hole to the end, or the file ends before `at`.
            Err(Errno::NXIO) if self.is_partial() || at < self.file.metadata()?.len() => Ok(u64::MAX),
            Err(Errno::NXIO) => Ok(at),
            // Not every file system tells.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(at),
            Err(why) => Err(Error::from(why)),
        }
    }

    /// Reads as much of a block as there is.
    fn fill(&self, block: u64, bytes: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            match self.file.read_at(&mut bytes[done..], block * CP_BLOCK_BYTES + done as u64) {
                Ok(0) => break,
                Ok(len) => done += len,
                Err(why) if why.kind() == ErrorKind::Interrupted => {}
                Err(why) => return Err(why),
            }
        }
        Ok(done)
    }
}

pub fn mark_of(bytes: &[u8]) -> Mark {
    *blake3::hash(bytes).as_bytes()
}

/// Of a block that holds nothing but zeros.
pub fn mark_of_zeros(len: usize) -> Mark {
    static WHOLE: OnceLock<Mark> = OnceLock::new();
    if len as u64 == CP_BLOCK_BYTES {
        return *WHOLE.get_or_init(|| mark_of(&vec![0; len]));
    }
    mark_of(&vec![0; len])
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// Whether nobody else writes it, or will within this time.
pub fn lock(file: &File, within: Duration) -> bool {
    let until = Instant::now() + within;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return true,
            Err(_) if Instant::now() >= until => return false,
            Err(_) => std::thread::sleep(GLANCE),
        }
    }
}

/// Gives permissions and time.
pub fn dress(file: BorrowedFd<'_>, entry: &Entry) -> rustix::io::Result<()> {
    rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode & MODE_BITS))?;
    // Larger numbers have meanings of their own.
    let time = Timespec { tv_sec: entry.mtime_s, tv_nsec: i64::from(entry.mtime_ns.min(999_999_999)) };
    rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })
}
