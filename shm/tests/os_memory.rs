//! Segments as their owner, their readers and an attacker find them: present, sealed, never longer than their
//! file.

use std::io::Write;
use std::os::fd::AsFd;

use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use rustix::io::{Errno, pwrite};
use shm::map::{Access, HUGE_PAGE_BYTES, MapError, Mapping, PAGE_BYTES, Pages};
use shm::os::memfd::{SealError, check_sealed, is_full, seal, segment_fd};

#[test]
fn after_sealing_only_the_owners_mapping_writes_and_a_reader_sees_it() {
    let (fd, _) = segment_fd("test", 2 * PAGE_BYTES, false).unwrap();
    let owner = Mapping::shared(fd.as_fd(), 0, 2 * PAGE_BYTES, Access::ReadWrite).unwrap();
    seal(fd.as_fd()).unwrap();
    let reader = Mapping::shared(fd.as_fd(), 0, 2 * PAGE_BYTES, Access::ReadOnly).unwrap();

    let writable = Mapping::shared(fd.as_fd(), 0, PAGE_BYTES, Access::ReadWrite);
    assert_eq!(writable.err(), Some(MapError::Refused(Errno::PERM)));
    assert_eq!(pwrite(&fd, b"x", 0), Err(Errno::PERM));
    assert_eq!(ftruncate(&fd, PAGE_BYTES as u64), Err(Errno::PERM));
    assert_eq!(ftruncate(&fd, 3 * PAGE_BYTES as u64), Err(Errno::PERM));
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(fallocate(&fd, hole, 0, PAGE_BYTES as u64), Err(Errno::PERM));
    assert_eq!(seal(fd.as_fd()), Ok(()), "it is what it is to be");

    owner.write_from(5000, b"still here").unwrap();
    let mut seen = [0u8; 10];
    reader.read_into(5000, &mut seen).unwrap();
    assert_eq!(&seen, b"still here");
}

#[test]
fn a_mapping_longer_than_its_file_is_refused_by_a_byte() {
    let (fd, _) = segment_fd("test", 2 * PAGE_BYTES, false).unwrap();
    let map = |offset, len| Mapping::shared(fd.as_fd(), offset, len, Access::ReadOnly).err();
    let short = Some(MapError::TooShort { file_bytes: 2 * PAGE_BYTES as u64 });
    assert_eq!(map(0, 2 * PAGE_BYTES), None);
    assert_eq!(map(0, 2 * PAGE_BYTES + 1), short);
    assert_eq!(map(PAGE_BYTES as u64, PAGE_BYTES + 1), short);
    assert_eq!(map(u64::MAX - 4095, PAGE_BYTES), short);
    assert_eq!(map(100, 8), Some(MapError::Misaligned));
    assert_eq!(map(0, 0), Some(MapError::Misaligned));
}

#[test]
fn a_mapping_from_an_offset_shows_what_is_there() {
    let (fd, _) = segment_fd("test", 3 * HUGE_PAGE_BYTES, false).unwrap();
    pwrite(&fd, b"there", PAGE_BYTES as u64 + 8).unwrap();
    let tail = 3 * HUGE_PAGE_BYTES - PAGE_BYTES;
    let map = Mapping::shared(fd.as_fd(), PAGE_BYTES as u64, tail, Access::ReadOnly).unwrap();
    let mut seen = [0u8; 5];
    map.read_into(8, &mut seen).unwrap();
    assert_eq!(&seen, b"there");
}

#[test]
fn an_unsealed_or_half_sealed_or_ordinary_file_is_not_taken_for_a_segment() {
    let (fd, _) = segment_fd("test", PAGE_BYTES, false).unwrap();
    assert!(matches!(check_sealed(fd.as_fd()), Err(SealError::Unsealed { .. })));
    rustix::fs::fcntl_add_seals(&fd, rustix::fs::SealFlags::SHRINK | rustix::fs::SealFlags::GROW).unwrap();
    assert!(matches!(check_sealed(fd.as_fd()), Err(SealError::Unsealed { .. })));
    let disk = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
    assert!(check_sealed(disk.as_fd()).is_err());
}

#[test]
fn every_page_of_a_new_segment_exists() {
    for (len, huge) in [(PAGE_BYTES, false), (5 * PAGE_BYTES, true), (2 * HUGE_PAGE_BYTES, false)] {
        let (fd, pages) = segment_fd("test", len, huge).unwrap();
        assert!(is_full(fd.as_fd()).unwrap());
        assert_eq!(pages, Pages::Small);
    }
    let mut sparse = std::fs::File::from(segment_fd("test", PAGE_BYTES, false).unwrap().0);
    sparse.set_len(64 * PAGE_BYTES as u64).unwrap();
    sparse.write_all(b"x").unwrap();
    assert!(!is_full(sparse.as_fd()).unwrap());
}

#[test]
fn huge_pages_are_used_if_the_machine_has_them_and_small_ones_serve_as_well() {
    let len = 2 * HUGE_PAGE_BYTES;
    let (fd, pages) = segment_fd("test", len, true).unwrap();
    let owner = Mapping::shared(fd.as_fd(), 0, len, Access::ReadWrite).unwrap();
    println!("asked for huge pages: file {pages:?}, mapping {:?}", owner.pages());
    assert_eq!(pages == Pages::Huge, owner.pages() == Pages::Huge);
    seal(fd.as_fd()).unwrap();
    let reader = Mapping::shared(fd.as_fd(), 0, len, Access::ReadOnly).unwrap();
    owner.write_from(len - 4, b"last").unwrap();
    let mut seen = [0u8; 4];
    reader.read_into(len - 4, &mut seen).unwrap();
    assert_eq!(&seen, b"last");
}

#[test]
fn a_segment_beyond_all_memory_is_an_error_and_leaves_nothing() {
    let error = segment_fd("test", 1 << 50, false).err();
    assert!(matches!(error, Some(MapError::NoMemory(_) | MapError::Refused(_))), "{error:?}");
    assert_eq!(segment_fd("test", 0, false).err(), Some(MapError::Misaligned));
}

#[test]
#[should_panic(expected = "read-only")]
fn writing_to_a_peers_memory_is_a_bug() {
    let (fd, _) = segment_fd("test", PAGE_BYTES, false).unwrap();
    let reader = Mapping::shared(fd.as_fd(), 0, PAGE_BYTES, Access::ReadOnly).unwrap();
    let _ = reader.write_from(0, b"x");
}
