//! Mapped memory: the one type through which bytes that other processes see are reached.
//!
//! A [`Mapping`] owns a run of pages (a sealed segment, private memory of a courier, or plain heap for tests
//! and the simulator). Safe code copies bytes in and out, or takes the whole as atomic words; it never gets a
//! reference to bytes that another process may write. Neighbours: `os::memfd` makes and seals what is mapped
//! here, `pool` cuts loans out of it, `words` cuts atomic parts. Source: mmap(2), madvise(2),
//! memfd_create(2).
#![expect(unsafe_code, reason = "memory is mapped, unmapped and copied by address here and nowhere else")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::c_void;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// A small page: what every mapping and every file offset is a multiple of.
pub const PAGE_BYTES: usize = 4096;
/// A huge page: from this length on a mapping is placed so that it can have them.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// What this process may do to the bytes of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A peer's segment: a store would be a fault, so the copies in refuse (by panic) to try.
    ReadOnly,
    /// One's own segment, or private memory.
    ReadWrite,
}

/// How large the pages behind a mapping are, as far as this process arranged it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// 4 KiB; for a reader: not known. A reader gets the large pages that the owner had put together without
    /// asking.
    Small,
    /// 2 MiB, put together by the kernel on request (`MADV_COLLAPSE`); it may split them again under
    /// pressure.
    Collapsed,
    /// 2 MiB from the machine's reserve of huge pages (hugetlb).
    Huge,
}

/// Why memory was not made or mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The caller's or the introducer's claim: length zero, or length or offset not whole pages of that file.
    /// Give up on this segment; if a peer named it, condemn that peer.
    Misaligned,
    /// The giver's fault: the file is shorter than the segment it is said to be, and touching it would be
    /// fatal. Condemn the giver.
    TooShort { file_bytes: u64 },
    /// Nobody's fault, or a seal at work: the system refused the mapping or the file (EPERM: it is sealed
    /// against this access). Give up on this segment.
    Refused(Errno),
    /// The machine's: no memory, no address space or no room in its limits. Free segments or raise the limit,
    /// then retry.
    NoMemory(Errno),
}

impl MapError {
    pub(crate) fn of(errno: Errno) -> MapError {
        match errno {
            Errno::NOMEM | Errno::NOSPC | Errno::FAULT | Errno::MFILE | Errno::NFILE | Errno::AGAIN => {
                MapError::NoMemory(errno)
            }
            refused => MapError::Refused(refused),
        }
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MapError::Misaligned => write!(f, "segment is empty or not made of whole pages"),
            MapError::TooShort { file_bytes } => {
                write!(f, "segment is said to be longer than its file of {file_bytes} bytes")
            }
            MapError::Refused(errno) => write!(f, "mapping refused: {errno}"),
            MapError::NoMemory(errno) => write!(f, "no memory for the segment: {errno}"),
        }
    }
}

impl std::error::Error for MapError {}

/// A range that is not inside the mapping. If the numbers came from a peer, that peer made a bad claim:
/// condemn it. If they are one's own, it is a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange;

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("range is not inside its segment")
    }
}

impl std::error::Error for OutOfRange {}

enum Origin {
    Mapped,
    Heap(Layout),
}

/// A run of memory that stays where it is until dropped.
///
/// Bytes of a shared mapping may change under the reader at any moment: another process writes them. What is
/// copied out is a claim until it has been checked; what decides who may write when is the protocol above.
/// Within one process the same holds between threads: ranges in use by two threads at once are read by both
/// or belong to one.
pub struct Mapping {
    start: NonNull<u8>,
    len_bytes: usize,
    access: Access,
    pages: Pages,
    origin: Origin,
}

// SAFETY: 1. A mapping is an address range owned by this value alone; nothing in it is tied to the thread
//            that made it.
unsafe impl Send for Mapping {}
// SAFETY: 1. Shared use goes through atomics, or through copies of ranges that the protocol gives to one side
//            at a time (see the type's documentation); no reference to the bytes leaves this crate through a
//            `&Mapping`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len_bytes` of `fd` from `offset_bytes` on, shared with every other process that maps them.
    ///
    /// The pages are present on return (no fault on first use), absent in forked children, and lie so that
    /// huge pages are possible when there are 2 MiB or more of them. That the file cannot shrink later is the
    /// caller's to check (`os::memfd::check_sealed`); that it is long enough now is checked here. Cost: a few
    /// system calls, and time linear in the length. Errors: see [`MapError`]; a writable mapping of a sealed
    /// segment is `Refused(PERM)`.
    pub fn shared(
        fd: BorrowedFd<'_>,
        offset_bytes: u64,
        len_bytes: usize,
        access: Access,
    ) -> Result<Arc<Mapping>, MapError> {
        let stat = rustix::fs::fstat(fd).map_err(MapError::Refused)?;
        let huge = rustix::fs::fstatfs(fd).map_err(MapError::Refused)?.f_type as u64 == HUGETLBFS_MAGIC;
        let unit = if huge { HUGE_PAGE_BYTES } else { PAGE_BYTES };
        if len_bytes == 0
            || !offset_bytes.is_multiple_of(unit as u64)
            || (huge && !len_bytes.is_multiple_of(unit))
        {
            return Err(MapError::Misaligned);
        }
        let file_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        if offset_bytes.checked_add(len_bytes as u64).is_none_or(|end| end > file_bytes) {
            return Err(MapError::TooShort { file_bytes });
        }
        let place = Reservation::new(len_bytes, offset_bytes)?;
        let prot = match access {
            Access::ReadOnly => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        let at = place.at();
        // SAFETY: 1. `MAP_FIXED` replaces only pages of `place`, which this function reserved and owns.
        //         2. No reference into them exists.
        let got = unsafe { mmap(at, len_bytes, prot, MapFlags::SHARED | MapFlags::FIXED, fd, offset_bytes) };
        got.map_err(MapError::of)?;
        let mut mapping = place.keep(access);
        mapping.populate()?;
        mapping.pages = match (huge, access) {
            (true, _) => Pages::Huge,
            (false, Access::ReadWrite) => mapping.collapse(),
            (false, Access::ReadOnly) => Pages::Small,
        };
        Ok(Arc::new(mapping))
    }

    /// Private memory of this process: where a courier receives from the wire. Zeroed, present, with huge
    /// pages when it is long enough and the kernel has them.
    pub fn anonymous(len_bytes: usize) -> Result<Arc<Mapping>, MapError> {
        if len_bytes == 0 {
            return Err(MapError::Misaligned);
        }
        let place = Reservation::new(len_bytes, 0)?;
        let at = place.at();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: 1. `MAP_FIXED` replaces only pages of `place`, which this function reserved and owns.
        //         2. No reference into them exists.
        let got = unsafe { mmap_anonymous(at, len_bytes, prot, MapFlags::PRIVATE | MapFlags::FIXED) };
        got.map_err(MapError::of)?;
        let mut mapping = place.keep(Access::ReadWrite);
        if len_bytes >= HUGE_PAGE_BYTES {
            // Advice only: without transparent huge pages the memory is as good, and slower.
            let _ = mapping.advise(Advice::LinuxHugepage);
        }
        mapping.populate()?;
        mapping.pages = mapping.collapse();
        Ok(Arc::new(mapping))
    }

    /// Zeroed heap memory that behaves as a mapping: for tests and the simulator, which share within one
    /// process.
    ///
    /// # Panics
    /// If `len_bytes` is zero.
    pub fn heap(len_bytes: usize) -> Arc<Mapping> {
        assert!(len_bytes > 0, "a mapping has at least one byte");
        let layout =
            Layout::from_size_align(len_bytes, PAGE_BYTES).expect("a length that fits the address space");
        // SAFETY: 1. The layout's size is not zero (asserted above).
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        let origin = Origin::Heap(layout);
        Arc::new(Mapping { start, len_bytes, access: Access::ReadWrite, pages: Pages::Small, origin })
    }

    /// Length as asked for; the last page may reach beyond it.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// What this process may do to it.
    pub fn access(&self) -> Access {
        self.access
    }

    /// How large its pages are.
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// Copies `dst.len()` bytes out, from `offset_bytes` on. Another process may be writing them: the copy is
    /// a claim.
    #[inline]
    pub fn read_into(&self, offset_bytes: usize, dst: &mut [u8]) -> Result<(), OutOfRange> {
        let src = self.span(offset_bytes, dst.len())?.cast::<u8>();
        // SAFETY: 1. `span` checked that `dst.len()` bytes are mapped and readable there.
        //         2. `dst` is ours alone, and a `&mut` cannot overlap a mapping to which no references exist.
        //         3. A race with another process yields unknown bytes, each of them a valid `u8`.
        unsafe { ptr::copy_nonoverlapping(src.as_ptr(), dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }

    /// Copies `src` in, to `offset_bytes` on. A range that is on loan is its holder's to write, through the loan.
    ///
    /// # Panics
    /// If the mapping is read-only: a peer's memory is never ours to write.
    #[inline]
    pub fn write_from(&self, offset_bytes: usize, src: &[u8]) -> Result<(), OutOfRange> {
        assert!(self.access == Access::ReadWrite, "write to a read-only mapping");
        let dst = self.span(offset_bytes, src.len())?.cast::<u8>();
        // SAFETY: 1. `span` checked that `src.len()` bytes are mapped there; they are writable (asserted above).
        //         2. `ptr::copy` allows overlap, so `src` may even be a loan of this mapping.
        unsafe { ptr::copy(src.as_ptr(), dst.as_ptr(), src.len()) };
        Ok(())
    }

    /// Copies `len_bytes` from `src` to `dst`, which may be the same mapping with overlapping ranges.
    ///
    /// # Panics
    /// If `dst` is read-only.
    pub fn copy_between(
        src: &Mapping,
        src_offset_bytes: usize,
        dst: &Mapping,
        dst_offset_bytes: usize,
        len_bytes: usize,
    ) -> Result<(), OutOfRange> {
        assert!(dst.access == Access::ReadWrite, "copy to a read-only mapping");
        let from = src.span(src_offset_bytes, len_bytes)?.cast::<u8>();
        let to = dst.span(dst_offset_bytes, len_bytes)?.cast::<u8>();
        // SAFETY: 1. `span` checked both ranges; the target is writable (asserted above).
        //         2. `ptr::copy` allows overlap.
        //         3. A race with another process yields unknown bytes, each of them a valid `u8`.
        unsafe { ptr::copy(from.as_ptr(), to.as_ptr(), len_bytes) };
        Ok(())
    }

    /// The mapping as atomic words, a last incomplete one left out. A store through a read-only mapping is a
    /// fault: who cuts parts out of this hands out no writer for a peer's memory.
    #[cfg(not(loom))]
    pub(crate) fn words(&self) -> &[crate::sync::AtomicU64] {
        let start = self.start.cast::<crate::sync::AtomicU64>();
        // SAFETY: 1. Aligned: mappings start at a page, heap ones are aligned to a page.
        //         2. In bounds: `len_bytes / 8` words of 8 bytes, mapped for as long as `self` is borrowed.
        //         3. Every bit pattern is a legal `AtomicU64`, and atomics may be changed by others at any
        //            time.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.len_bytes / 8) }
    }

    /// The checked address of a range, for those who pass it to the kernel or own it by the protocol.
    #[inline]
    pub(crate) fn span(&self, offset_bytes: usize, len_bytes: usize) -> Result<NonNull<[u8]>, OutOfRange> {
        let end = offset_bytes.checked_add(len_bytes).ok_or(OutOfRange)?;
        if end > self.len_bytes {
            return Err(OutOfRange);
        }
        // SAFETY: 1. `offset_bytes <= end <= len_bytes`, so the result is inside the same mapping or one past
        //            its end.
        let start = unsafe { self.start.add(offset_bytes) };
        Ok(NonNull::slice_from_raw_parts(start, len_bytes))
    }

    /// Where a range lies in this process, for a library that gives it to a device. Nothing may be done with the pointer that
    /// a device would not do: other processes read and write there.
    pub fn address(&self, offset_bytes: usize, len_bytes: usize) -> Result<NonNull<u8>, OutOfRange> {
        self.span(offset_bytes, len_bytes).map(NonNull::cast)
    }

    fn advise(&self, advice: Advice) -> Result<(), Errno> {
        // SAFETY: 1. The range is this mapping's. 2. None of the advices used here changes its bytes.
        unsafe { madvise(self.start.as_ptr().cast(), self.len_bytes, advice) }
    }

    /// Makes every page present, so that no first use faults; then keeps the range out of forked children.
    fn populate(&self) -> Result<(), MapError> {
        let advice = match self.access {
            Access::ReadOnly => Advice::LinuxPopulateRead,
            Access::ReadWrite => Advice::LinuxPopulateWrite,
        };
        match self.advise(advice) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOSYS) => self.touch(),
            Err(errno) => return Err(MapError::of(errno)),
        }
        self.advise(Advice::LinuxDontFork).map_err(MapError::Refused)
    }

    /// Populates by hand, on kernels older than 5.14.
    fn touch(&self) {
        for offset in (0..self.len_bytes).step_by(PAGE_BYTES) {
            // SAFETY: 1. `offset < len_bytes`: inside the mapping.
            let byte = unsafe { self.start.add(offset) };
            match self.access {
                Access::ReadOnly => {
                    // SAFETY: 1. Mapped and readable. 2. Volatile, so it happens; the value is not used.
                    let _ = unsafe { byte.read_volatile() };
                }
                // A model of this program maps nothing, and its atomics cannot lie in mapped memory.
                #[cfg(loom)]
                Access::ReadWrite => {}
                #[cfg(not(loom))]
                Access::ReadWrite => {
                    // SAFETY: 1. The first word of a page that is mapped whole, and writable: aligned and in
                    //            bounds.
                    //         2. Atomics may race with other processes.
                    let word = unsafe { crate::sync::AtomicU64::from_ptr(byte.cast().as_ptr()) };
                    // Relaxed: nothing is published; the access alone brings the page in, and or-ing zero
                    // changes nothing.
                    word.fetch_or(0, crate::sync::Ordering::Relaxed);
                }
            }
        }
    }

    /// Asks the kernel to put the pages together into huge ones. Best effort: the answer says what came of
    /// it.
    fn collapse(&self) -> Pages {
        if self.len_bytes < HUGE_PAGE_BYTES {
            return Pages::Small;
        }
        // SAFETY: 1. The range is this mapping's. 2. Collapsing keeps its bytes and addresses.
        let rc = unsafe { libc::madvise(self.start.as_ptr().cast(), self.len_bytes, libc::MADV_COLLAPSE) };
        if rc == 0 { Pages::Collapsed } else { Pages::Small }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        match self.origin {
            Origin::Mapped => unmap(self.start.as_ptr(), self.len_bytes),
            Origin::Heap(layout) => {
                // SAFETY: 1. `start` came from `alloc_zeroed` with this layout. 2. Dropped once; nobody
                //            borrows it now.
                unsafe { dealloc(self.start.as_ptr(), layout) };
            }
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapping({} bytes, {:?}, {:?})", self.len_bytes, self.access, self.pages)
    }
}

/// Address space held free until a mapping takes its place; what is left over goes back when it is kept or
/// dropped.
struct Reservation {
    start: *mut u8,
    total_bytes: usize,
    lead_bytes: usize,
    len_bytes: usize,
}

impl Reservation {
    /// Reserves `len_bytes` at an address that is congruent to the file offset modulo a huge page, if that
    /// long.
    fn new(len_bytes: usize, offset_bytes: u64) -> Result<Reservation, MapError> {
        let whole = len_bytes.checked_next_multiple_of(PAGE_BYTES).ok_or(MapError::Misaligned)?;
        let slack = if len_bytes >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { 0 };
        let total_bytes = whole.checked_add(slack).ok_or(MapError::Misaligned)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: 1. No address is given, so nothing that exists is replaced.
        let got = unsafe { mmap_anonymous(ptr::null_mut(), total_bytes, ProtFlags::empty(), flags) };
        let start = got.map_err(MapError::of)?.cast::<u8>();
        let lead_bytes = match slack {
            0 => 0,
            huge => (offset_bytes as usize).wrapping_sub(start.addr()) % huge,
        };
        Ok(Reservation { start, total_bytes, lead_bytes, len_bytes: whole })
    }

    fn at(&self) -> *mut c_void {
        self.start.wrapping_add(self.lead_bytes).cast()
    }

    /// Hands the placed mapping over and gives the rest of the address space back.
    fn keep(mut self, access: Access) -> Mapping {
        let at = self.start.wrapping_add(self.lead_bytes);
        let end = self.lead_bytes + self.len_bytes;
        unmap(self.start, self.lead_bytes);
        unmap(self.start.wrapping_add(end), self.total_bytes - end);
        self.total_bytes = 0;
        let start = NonNull::new(at).expect("the kernel maps nothing at address zero");
        Mapping { start, len_bytes: self.len_bytes, access, pages: Pages::Small, origin: Origin::Mapped }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        unmap(self.start, self.total_bytes);
    }
}

/// Gives address space back. Only called with ranges that this module mapped and that nothing refers to any
/// more.
fn unmap(start: *mut u8, len_bytes: usize) {
    if len_bytes == 0 {
        return;
    }
    // SAFETY: 1. A whole range of pages that this module mapped (its callers). 2. No borrow of it is left:
    //            they own it.
    let done = unsafe { munmap(start.cast(), len_bytes) };
    debug_assert!(done.is_ok(), "munmap refused: {done:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_ends_one_byte_beyond_is_out_of_range() {
        let map = Mapping::heap(8192);
        let mut two = [0u8; 2];
        assert_eq!(map.read_into(8190, &mut two), Ok(()));
        assert_eq!(map.read_into(8191, &mut two), Err(OutOfRange));
        assert_eq!(map.write_from(8191, &two), Err(OutOfRange));
        assert_eq!(map.read_into(usize::MAX, &mut two), Err(OutOfRange));
    }

    #[test]
    fn an_overlapping_copy_within_one_mapping_keeps_the_bytes() {
        let map = Mapping::heap(4096);
        map.write_from(0, b"abcdef").unwrap();
        Mapping::copy_between(&map, 0, &map, 2, 6).unwrap();
        let mut out = [0u8; 8];
        map.read_into(0, &mut out).unwrap();
        assert_eq!(&out, b"ababcdef");
    }

    #[test]
    fn anonymous_memory_is_zeroed_writable_and_aligned_for_huge_pages() {
        let map = Mapping::anonymous(3 * HUGE_PAGE_BYTES + 5).unwrap();
        assert_eq!(map.start.as_ptr().addr() % HUGE_PAGE_BYTES, 0);
        let mut last = [1u8; 1];
        map.read_into(map.len_bytes() - 1, &mut last).unwrap();
        assert_eq!(last, [0]);
        map.write_from(map.len_bytes() - 1, &[9]).unwrap();
    }

    #[test]
    fn pages_touched_by_hand_keep_their_bytes() {
        let map = Mapping::heap(3 * PAGE_BYTES);
        map.write_from(PAGE_BYTES, b"kept").unwrap();
        map.touch();
        let mut out = [0u8; 4];
        map.read_into(PAGE_BYTES, &mut out).unwrap();
        assert_eq!(&out, b"kept");
    }

    #[cfg(not(loom))]
    #[test]
    fn words_cover_whole_words_only() {
        assert_eq!(Mapping::heap(4099).words().len(), 512);
    }

    #[test]
    #[should_panic(expected = "at least one byte")]
    fn an_empty_heap_mapping_is_a_bug() {
        let _ = Mapping::heap(0);
    }

    #[test]
    fn a_readers_pages_cannot_be_made_writable() {
        use std::os::fd::AsFd;
        let (fd, _) = crate::os::memfd::segment_fd("mprotect test", PAGE_BYTES, false).unwrap();
        crate::os::memfd::seal(fd.as_fd()).unwrap();
        let reader = Mapping::shared(fd.as_fd(), 0, PAGE_BYTES, Access::ReadOnly).unwrap();
        let both = rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE;
        // SAFETY: 1. The range is this mapping's. 2. If it succeeded, nobody would write anyway.
        let done = unsafe { rustix::mm::mprotect(reader.start.as_ptr().cast(), PAGE_BYTES, both) };
        assert_eq!(done, Err(Errno::ACCESS));
    }
}
