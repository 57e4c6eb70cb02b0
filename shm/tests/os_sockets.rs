//! Descriptors over sockets, who the peer is, readiness, and stream bytes straight from and into mappings.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use shm::map::{Access, Mapping, PAGE_BYTES};
use shm::os::events::{Cleared, Epoll, EventFd, Readiness, Ringer, Rung, Timer, bell};
use shm::os::fdpass::{self, FDS_MAX, PassError, recv_with_fds, recv_with_fds_within, send_with_fds};
use shm::os::memfd::segment_fd;
use shm::os::peer::{self, PeerProcess};
use shm::os::pieces::{PIECES_MAX, Piece, StreamError, recv_into_mapping, send_pieces};

#[test]
fn a_segment_passed_by_socket_shows_the_same_bytes() {
    let (here, there) = fdpass::pair().unwrap();
    let (fd, _) = segment_fd("test", PAGE_BYTES, false).unwrap();
    let owner = Mapping::shared(fd.as_fd(), 0, PAGE_BYTES, Access::ReadWrite).unwrap();
    owner.write_from(0, b"shared").unwrap();
    send_with_fds(&here, b"take this", &[fd.as_fd()]).unwrap();

    let mut buffer = [0u8; 64];
    let (len, fds) = recv_with_fds(&there, &mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"take this");
    let map = Mapping::shared(fds[0].as_fd(), 0, PAGE_BYTES, Access::ReadOnly).unwrap();
    let mut seen = [0u8; 6];
    map.read_into(0, &mut seen).unwrap();
    assert_eq!(&seen, b"shared");
    let flags = rustix::io::fcntl_getfd(&fds[0]).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn sixteen_descriptors_pass_at_once() {
    let (here, there) = fdpass::pair().unwrap();
    let fds = [here.as_fd(); FDS_MAX];
    send_with_fds(&here, b"x", &fds).unwrap();
    assert_eq!(recv_with_fds(&there, &mut [0u8; 8]).unwrap().1.len(), FDS_MAX);
}

#[test]
fn datagrams_keep_their_boundaries_and_the_end_is_zero() {
    let (here, there) = fdpass::pair().unwrap();
    send_with_fds(&here, b"one", &[]).unwrap();
    send_with_fds(&here, b"three", &[]).unwrap();
    drop(here);
    let mut buffer = [0u8; 16];
    assert_eq!(recv_with_fds(&there, &mut buffer).unwrap().0, 3);
    assert_eq!(recv_with_fds(&there, &mut buffer).unwrap().0, 5);
    assert_eq!(recv_with_fds(&there, &mut buffer).unwrap().0, 0);
    assert_eq!(send_with_fds(&there, b"late", &[]), Err(PassError::Closed));
}

#[test]
fn a_datagram_longer_than_the_buffer_is_named_not_cut() {
    let (here, there) = fdpass::pair().unwrap();
    send_with_fds(&here, &[7; 9], &[]).unwrap();
    assert_eq!(recv_with_fds(&there, &mut [0u8; 8]).err(), Some(PassError::LongDatagram));
    send_with_fds(&here, &[7; 8], &[]).unwrap();
    assert_eq!(recv_with_fds(&there, &mut [0u8; 8]).unwrap().0, 8);
}

#[test]
fn waiting_for_a_datagram_ends_by_its_timeout() {
    let (_here, there) = fdpass::pair().unwrap();
    let came = recv_with_fds_within(&there, &mut [0u8; 8], Duration::from_millis(5));
    assert_eq!(came.err(), Some(PassError::TimedOut));
}

#[test]
fn a_connection_by_path_tells_who_connected() {
    let dir = scratch("connect");
    let path = dir.join("door");
    let listener = fdpass::listen(&path, 4).unwrap();
    let client = fdpass::connect(&path).unwrap();
    let server = fdpass::accept(listener.as_fd(), Some(Duration::from_secs(5))).unwrap();
    let peer = PeerProcess::of(server.as_fd()).unwrap();
    assert_eq!(peer.pid, std::process::id());
    assert_eq!(peer.uid, rustix::process::getuid().as_raw());
    assert_eq!(peer.start_time, peer::start_time(peer.pid).unwrap());
    assert!(!peer::pidfd_exited(&peer.pidfd));
    send_with_fds(&client, b"hello", &[]).unwrap();
    assert_eq!(recv_with_fds(&server, &mut [0u8; 8]).unwrap().0, 5);
    let none = fdpass::accept(listener.as_fd(), Some(Duration::ZERO));
    assert_eq!(none.err(), Some(PassError::TimedOut));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(fdpass::connect(&path).err(), Some(PassError::Closed));
    std::fs::remove_dir(dir).unwrap();
}

#[test]
fn an_event_descriptor_wakes_an_epoll_until_it_is_cleared() {
    let (event, epoll) = (EventFd::new().unwrap(), Epoll::new().unwrap());
    epoll.add(&event, 42, Readiness::READ).unwrap();
    let mut ready = Vec::new();
    epoll.wait(&mut ready, Some(Duration::ZERO)).unwrap();
    assert_eq!(ready, []);
    event.ring().unwrap();
    event.ring().unwrap();
    epoll.wait(&mut ready, None).unwrap();
    assert_eq!(ready, [(42, Readiness::READ)]);
    assert_eq!(event.clear(), Ok(true));
    assert_eq!(event.clear(), Ok(false));
    epoll.modify(&event, 43, Readiness::WRITE).unwrap();
    epoll.wait(&mut ready, Some(Duration::from_micros(100))).unwrap();
    assert_eq!(ready, [(43, Readiness::WRITE)]);
    epoll.remove(&event).unwrap();
    epoll.wait(&mut ready, Some(Duration::from_micros(100))).unwrap();
    assert_eq!(ready, []);
}

#[test]
fn a_closed_end_is_reported_as_hung_up() {
    let (here, there) = fdpass::pair().unwrap();
    let epoll = Epoll::new().unwrap();
    epoll.add(&here, 1, Readiness::NONE).unwrap();
    drop(there);
    let mut ready = Vec::new();
    epoll.wait(&mut ready, Some(Duration::from_secs(5))).unwrap();
    assert!(ready[0].1.hung_up);
}

#[test]
fn pieces_of_two_kinds_arrive_as_one_stream_in_a_mapping() {
    let (here, there) = stream();
    let pool = Mapping::heap(8192);
    pool.write_from(100, b"payload").unwrap();
    let pieces = [Piece::Bytes(b"header "), Piece::Mapped { map: &pool, offset_bytes: 100, len_bytes: 7 }];
    assert_eq!(send_pieces(&here, &pieces, false), Ok(14));
    let buffers = Mapping::anonymous(PAGE_BYTES).unwrap();
    assert_eq!(recv_into_mapping(&there, &buffers, 4000, 96), Ok(14));
    let mut seen = [0u8; 14];
    buffers.read_into(4000, &mut seen).unwrap();
    assert_eq!(&seen, b"header payload");
    assert_eq!(recv_into_mapping(&there, &buffers, 0, 8), Err(StreamError::WouldBlock));
    drop(here);
    assert_eq!(recv_into_mapping(&there, &buffers, 0, 8), Ok(0));
}

#[test]
fn a_piece_outside_its_mapping_sends_nothing() {
    let (here, there) = stream();
    let pool = Mapping::heap(4096);
    let pieces = [Piece::Bytes(b"h"), Piece::Mapped { map: &pool, offset_bytes: 4000, len_bytes: 97 }];
    assert_eq!(send_pieces(&here, &pieces, false), Err(StreamError::OutOfRange));
    assert_eq!(recv_into_mapping(&there, &pool, 4000, 97), Err(StreamError::OutOfRange));
    assert_eq!(recv_into_mapping(&there, &pool, 0, 8), Err(StreamError::WouldBlock));
}

#[test]
fn of_too_many_pieces_the_first_are_sent() {
    let (here, _there) = stream();
    let pieces = [Piece::Bytes(b"ab"); PIECES_MAX + 1];
    assert_eq!(send_pieces(&here, &pieces, false), Ok(2 * PIECES_MAX));
}

#[test]
fn a_full_stream_takes_a_part_then_says_so() {
    let (here, there) = stream();
    let pool = Mapping::heap(1 << 20);
    let all = [Piece::Mapped { map: &pool, offset_bytes: 0, len_bytes: 1 << 20 }];
    let mut sent = 0;
    let end = loop {
        match send_pieces(&here, &all, false) {
            Ok(bytes) => sent += bytes,
            Err(end) => break end,
        }
    };
    assert_eq!(end, StreamError::WouldBlock);
    assert!(sent > 0);
    drop(there);
    assert!(matches!(send_pieces(&here, &all, false), Err(StreamError::Closed(_))));
}

fn stream() -> (OwnedFd, OwnedFd) {
    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    (a.into(), b.into())
}

fn scratch(name: &str) -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("shm-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn is_readable(fd: impl AsFd) -> bool {
    fdpass::wait_ready(fd.as_fd(), rustix::event::PollFlags::IN, Some(Duration::ZERO)).unwrap()
}

/// What a hostile process does to a descriptor that it was given.
fn make_blocking(fd: impl AsFd) {
    rustix::fs::fcntl_setfl(fd.as_fd(), rustix::fs::OFlags::empty()).unwrap();
}

#[test]
fn a_bell_is_readable_from_its_ring_until_it_is_cleared() {
    let (ringer, rung) = bell().unwrap();
    assert_eq!((is_readable(&rung), rung.clear()), (false, Ok(Cleared::Rung(false))));
    ringer.ring().unwrap();
    ringer.ring().unwrap();
    assert!(is_readable(&rung));
    assert_eq!((rung.clear(), is_readable(&rung)), (Ok(Cleared::Rung(true)), false));
    drop(ringer);
    assert_eq!(rung.clear(), Ok(Cleared::Closed));
}

#[test]
fn who_is_rung_cannot_make_the_ringer_wait() {
    let (ringer, rung) = bell().unwrap();
    let ringer = Ringer::adopt(ringer.as_fd().try_clone_to_owned().unwrap()).unwrap();
    make_blocking(&rung);
    // More than any buffer holds: would it wait, it would wait for ever.
    for _ in 0..1 << 20 {
        ringer.ring().unwrap();
    }
    assert!(is_readable(&rung));
    drop(rung);
    assert_eq!(ringer.ring(), Ok(()), "and its death is no error, nor a signal");
}

#[test]
fn who_rings_cannot_make_the_rung_wait() {
    let (ringer, rung) = bell().unwrap();
    make_blocking(&ringer);
    while rustix::net::send(&ringer, &[1; 4096], rustix::net::SendFlags::DONTWAIT).is_ok() {}
    assert_eq!((rung.clear(), is_readable(&rung)), (Ok(Cleared::Rung(true)), true));
    let adopted = Rung::adopt(rung.as_fd().try_clone_to_owned().unwrap()).unwrap();
    make_blocking(&adopted);
    while adopted.clear() == Ok(Cleared::Rung(true)) {}
    assert_eq!(adopted.clear(), Ok(Cleared::Rung(false)), "empty, and not waited for");
}

#[test]
fn what_is_no_bell_is_refused_or_rung_as_what_it_is() {
    let event = EventFd::new().unwrap();
    let fd = event.as_fd().try_clone_to_owned().unwrap();
    assert_eq!(Rung::adopt(fd.try_clone().unwrap()).err(), Some(rustix::io::Errno::NOTSOCK));
    Ringer::adopt(fd).unwrap().ring().unwrap();
    assert_eq!(event.clear(), Ok(true));
}

#[test]
fn a_timer_is_readable_once_its_pause_is_over() {
    let timer = Timer::new().unwrap();
    timer.set(Duration::from_secs(3600)).unwrap();
    assert!(!is_readable(&timer));
    timer.set(Duration::from_nanos(1)).unwrap();
    assert!(fdpass::wait_ready(timer.as_fd(), rustix::event::PollFlags::IN, None).unwrap());
    timer.set(Duration::from_secs(3600)).unwrap();
    assert!(!is_readable(&timer));
}

#[test]
fn more_descriptors_than_a_datagram_may_carry_are_named_as_lost() {
    let (here, there) = fdpass::pair().unwrap();
    let fds = [here.as_fd(); 2 * FDS_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2 * FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&here, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
    let got = recv_with_fds(&there, &mut [0u8; 8]).map(|(len, _)| len);
    assert_eq!(got, Err(PassError::LostDescriptors));
}

#[test]
fn what_the_system_refuses_is_named_with_its_errno() {
    let dir = scratch("taken");
    let taken = dir.join("sock");
    let _listener = fdpass::listen(&taken, 1).unwrap();
    let again = fdpass::listen(&taken, 1).map(drop);
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(again, Err(PassError::Refused(Errno::ADDRINUSE)));
    let (_read, write) = rustix::pipe::pipe().unwrap();
    assert_eq!(send_pieces(&write, &[Piece::Bytes(b"x")], false), Err(StreamError::Refused(Errno::NOTSOCK)));
}
