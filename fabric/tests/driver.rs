//! Why a driver's loop ends, beside being told to: its daemon is played by the test.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use abi::NodeId;
use abi::courier::ToProxy;
use abi::member::SegmentKind;
use fabric::driver::{Credentials, Driver, DriverError};
use fabric::loopback::{Loopback, Mode};
use rustix::io::Errno;
use shm::map::{MapError, PAGE_BYTES};
use shm::os::fdpass::{self, PassError};
use shm::os::memfd;

fn driver(link: OwnedFd) -> Result<Driver, DriverError> {
    let nodes = [NodeId(1), NodeId(2)];
    let fabric = Box::new(Loopback::network(&nodes, Mode::Eager).remove(0));
    Driver::new(link, Credentials { token: [1, 2] }, fabric, &nodes[1..], Instant::now())
}

/// How a driver ends that is told this, and then that its daemon is gone.
fn told(bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), DriverError> {
    let (daemon, link) = fdpass::pair().expect("a pair of sockets");
    fdpass::send_with_fds(&daemon, bytes, fds).expect("room for a datagram");
    let ended = std::thread::spawn(move || driver(link).expect("a driver").run());
    // What it was told is there before the end of the socket is.
    let mut hello = [0; 256];
    fdpass::recv_with_fds(&daemon, &mut hello).expect("its hello");
    drop(daemon);
    ended.join().expect("no panic")
}

fn words(what: ToProxy) -> Vec<u8> {
    what.to_words().iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn a_daemon_that_says_stop_ends_it_well_and_one_that_is_gone_does_not() {
    assert_eq!(told(&words(ToProxy::Stop), &[]), Ok(()));
    let known = words(ToProxy::ForgetMemory { memory: 3 });
    assert_eq!(told(&known, &[]), Err(DriverError::Daemon(PassError::Closed)));
}

#[test]
fn what_no_daemon_says_is_nonsense() {
    assert_eq!(told(b"short", &[]), Err(DriverError::Nonsense));
    assert_eq!(told(&[0xff; 128], &[]), Err(DriverError::Nonsense));
    let segment = ToProxy::Segment { memory: 1, index: 0, kind: SegmentKind::Sides, len_bytes: 4096 };
    assert_eq!(told(&words(segment), &[]), Err(DriverError::Nonsense), "a segment without its descriptor");
}

#[test]
fn memory_shorter_than_said_is_not_mapped() {
    let (short, _) = memfd::segment_fd("driver-test", PAGE_BYTES, false).expect("a page");
    let len_bytes = 2 * PAGE_BYTES as u64;
    let segment = words(ToProxy::Segment { memory: 1, index: 0, kind: SegmentKind::Sides, len_bytes });
    let too_short = MapError::TooShort { file_bytes: PAGE_BYTES as u64 };
    assert_eq!(told(&segment, &[short.as_fd()]), Err(DriverError::Map(too_short)));
}

#[test]
fn what_cannot_be_waited_for_is_no_link() {
    let file = std::fs::File::open("/proc/self/exe").expect("this program");
    let refused = driver(file.into()).map(drop);
    assert_eq!(refused, Err(DriverError::Os(Errno::PERM.raw_os_error())));
}
