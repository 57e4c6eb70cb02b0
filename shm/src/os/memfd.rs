//! Memory files: made, filled with pages, sealed, checked.
//!
//! [`segment_fd`] makes one whose pages all exist; its owner maps it, then [`seal`] closes it to every other
//! writer, and who is given one looks with [`check_sealed`]. Neighbour: `map::Mapping::shared`. Source:
//! memfd_create(2), fcntl(2).

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::memfd_create;
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::map::{Access, HUGE_PAGE_BYTES, MapError, Mapping, Pages};

/// The seals of a segment: it can neither shrink (which would kill its readers) nor grow, nobody maps it
/// writable any more, and none of this can be added to.
const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

/// The seals of a segment that another than its owner writes.
const LEN_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// How much is filled between two looks at what memory is left.
const FILL_STEP_BYTES: u64 = 64 << 20;
/// What a segment leaves to everybody else; below it, making one is refused.
const MEMORY_KEPT_BYTES: u64 = 64 << 20;

/// Why a segment is not sealed as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealError {
    /// The giver's fault, or not a memory file at all: the system refused to say or set. Do not map it;
    /// condemn the giver.
    Refused(Errno),
    /// The giver's fault: seals are missing; `have` are the bits that are set. Do not map it; condemn the
    /// giver.
    Unsealed { have: u32 },
}

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SealError::Refused(errno) => write!(f, "seals refused: {errno}"),
            SealError::Unsealed { have } => write!(f, "segment is not sealed: only seals {have:#x} are set"),
        }
    }
}

impl std::error::Error for SealError {}

/// Makes a memory file of `len_bytes` with every page present: from huge pages if asked, possible and a whole
/// number of them, else from small ones.
///
/// Errors: `NoMemory` when the machine cannot back it whole (nothing is left behind), `Misaligned` for length
/// zero.
pub fn segment_fd(name: &str, len_bytes: usize, want_huge: bool) -> Result<(OwnedFd, Pages), MapError> {
    if len_bytes == 0 {
        return Err(MapError::Misaligned);
    }
    if want_huge
        && len_bytes.is_multiple_of(HUGE_PAGE_BYTES)
        && let Ok(fd) = filled(name, len_bytes, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)
    {
        return Ok((fd, Pages::Huge));
    }
    let fd = filled(name, len_bytes, MemfdFlags::empty())?;
    Ok((fd, Pages::Small))
}

/// Makes a memory file of `len_bytes` without its pages: who maps it makes them.
///
/// Errors: `NoMemory` when the machine could not back it whole now, `Misaligned` for length zero.
pub fn empty_fd(name: &str, len_bytes: usize) -> Result<OwnedFd, MapError> {
    if len_bytes == 0 {
        return Err(MapError::Misaligned);
    }
    let wanted = (len_bytes as u64).saturating_add(MEMORY_KEPT_BYTES);
    if available_bytes().is_some_and(|available| available < wanted) {
        return Err(MapError::NoMemory(Errno::NOMEM));
    }
    let fd = created(name, MemfdFlags::empty())?;
    ftruncate(&fd, len_bytes as u64).map_err(MapError::of)?;
    Ok(fd)
}

/// Closes the segment to every change of its length; whoever has a descriptor may write it.
pub fn seal_len(fd: BorrowedFd<'_>) -> Result<(), SealError> {
    add(fd, LEN_SEALS)?;
    check_sealed_len(fd)
}

/// Whether a descriptor is a segment that can neither shrink nor grow.
pub fn check_sealed_len(fd: BorrowedFd<'_>) -> Result<(), SealError> {
    let have = fcntl_get_seals(fd).map_err(SealError::Refused)?;
    if have.contains(LEN_SEALS) { Ok(()) } else { Err(SealError::Unsealed { have: have.bits() }) }
}

/// Closes the segment to every writer but those who have it mapped already, and proves it.
///
/// The owner's writable mapping comes first: afterwards nobody gets one, the owner included.
pub fn seal(fd: BorrowedFd<'_>) -> Result<(), SealError> {
    add(fd, SEALS)?;
    check_sealed(fd)
}

/// Adds seals; none can be added to what is sealed already, which is not said here: the caller looks.
fn add(fd: BorrowedFd<'_>, seals: SealFlags) -> Result<(), SealError> {
    match fcntl_add_seals(fd, seals) {
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(errno) => Err(SealError::Refused(errno)),
    }
}

/// Whether a descriptor that was given to us is a segment that can neither shrink nor be written by
/// newcomers.
pub fn check_sealed(fd: BorrowedFd<'_>) -> Result<(), SealError> {
    let have = fcntl_get_seals(fd).map_err(SealError::Refused)?;
    if have.contains(SEALS) { Ok(()) } else { Err(SealError::Unsealed { have: have.bits() }) }
}

/// Whether every page of the file exists, so that no reader ever allocates one or is killed for want of one.
pub fn is_full(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let stat = fstat(fd)?;
    let backed = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    Ok(backed >= u64::try_from(stat.st_size).unwrap_or(u64::MAX))
}

fn created(name: &str, kind: MemfdFlags) -> Result<OwnedFd, MapError> {
    let flags = kind | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Kernels before 6.3 do not know the flag.
        Err(Errno::INVAL) => memfd_create(name, flags),
        other => other,
    };
    fd.map_err(MapError::of)
}

fn filled(name: &str, len_bytes: usize, kind: MemfdFlags) -> Result<OwnedFd, MapError> {
    let fd = created(name, kind)?;
    ftruncate(&fd, len_bytes as u64).map_err(MapError::of)?;
    fill(fd.as_fd(), len_bytes as u64, kind.contains(MemfdFlags::HUGETLB))?;
    if !is_full(fd.as_fd()).map_err(MapError::of)? {
        return Err(MapError::NoMemory(Errno::NOSPC));
    }
    if kind.contains(MemfdFlags::HUGETLB) {
        // Some machines have the pages and refuse the mapping; better to learn it here, where small pages can
        // replace them.
        Mapping::shared(fd.as_fd(), 0, len_bytes, Access::ReadOnly)?;
    }
    Ok(fd)
}

/// Makes every page, a step at a time, and stops before the machine runs out: the kernel would not refuse a
/// memory file that is too long, it would kill somebody to make room.
fn fill(fd: BorrowedFd<'_>, len_bytes: u64, huge: bool) -> Result<(), MapError> {
    let mut done = 0;
    while done < len_bytes {
        let step = FILL_STEP_BYTES.min(len_bytes - done);
        // Huge pages are set aside already, and refused if they are not.
        let wanted = if huge { 0 } else { len_bytes - done };
        if available_bytes().is_some_and(|available| available < wanted.saturating_add(MEMORY_KEPT_BYTES)) {
            return Err(MapError::NoMemory(Errno::NOMEM));
        }
        fallocate(fd, FallocateFlags::empty(), done, step).map_err(MapError::of)?;
        done += step;
    }
    Ok(())
}

/// What the kernel thinks can be had without swapping; none where it does not say.
fn available_bytes() -> Option<u64> {
    let file = rustix::fs::open("/proc/meminfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = [0u8; 512];
    let len = rustix::io::read(&file, &mut text).ok()?;
    let text = std::str::from_utf8(&text[..len]).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_may_be_sealed_again_and_one_with_other_seals_may_not() {
        let (fd, _) = segment_fd("dvs-test", 4096, false).unwrap();
        assert_eq!(seal(fd.as_fd()), Ok(()));
        assert_eq!(seal(fd.as_fd()), Ok(()));
        let (other, _) = segment_fd("dvs-test", 4096, false).unwrap();
        seal_len(other.as_fd()).unwrap();
        assert_eq!(seal_len(other.as_fd()), Ok(()));
        assert!(matches!(seal(other.as_fd()), Err(SealError::Unsealed { .. })));
    }

    #[test]
    fn what_can_have_no_seals_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(check_sealed_len(file.as_fd()), Err(SealError::Refused(Errno::INVAL)));
    }

    #[test]
    fn the_kernel_says_how_much_memory_can_be_had() {
        assert!(available_bytes().unwrap() > MEMORY_KEPT_BYTES);
    }
}
