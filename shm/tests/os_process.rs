//! Processes: pinned by pidfd, started with descriptors in hand, limited and bound to processors.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, dumpable_behavior};
use shm::os::fdpass::{accept, connect, listen, pair, recv_with_fds_within, send_with_fds};
use shm::os::peer::{
    PeerError, PeerProcess, pidfd_exited, pidfd_exited_within, pidfd_kill, pidfd_open, start_time,
};
use shm::os::process::{
    Start, StartError, cpu_now, cpus_allowed, cpus_online, inherited, pin_to, raise_nofile, refuse_tracing,
    spawn,
};

/// Started again as a child, with `SHM_TEST_CHILD` saying what to be; otherwise nothing.
#[test]
fn the_child_side_of_the_tests_in_this_file() {
    match std::env::var("SHM_TEST_CHILD").as_deref() {
        Ok("echo") => {
            refuse_tracing().unwrap();
            assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
            let low = inherited(7).expect("left at 7");
            assert_eq!(inherited(7).err(), Some(StartError::NotInherited { number: 7 }), "taken once");
            let high = inherited(40).expect("left at 40");
            let mut buffer = [0u8; 64];
            let (len, fds) = recv_with_fds_within(&low, &mut buffer, Duration::from_secs(10)).unwrap();
            let mut text = String::new();
            std::fs::File::from(high).read_to_string(&mut text).unwrap();
            send_with_fds(&low, &[&buffer[..len], text.as_bytes()].concat(), &[]).unwrap();
            assert!(fds.is_empty());
        }
        Ok("connect") => drop(connect(std::env::var_os("SHM_TEST_PATH").unwrap().as_ref()).unwrap()),
        Ok("unseen") => {
            let sock = connect(std::env::var_os("SHM_TEST_PATH").unwrap().as_ref()).unwrap();
            assert_eq!(PeerProcess::of(sock.as_fd()).map(|_| ()).err(), Some(PeerError::Unseen));
        }
        Ok(other) => panic!("unknown child {other}"),
        Err(_) => {}
    }
}

fn child(part: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["the_child_side_of_the_tests_in_this_file", "--exact", "--test-threads=1"]);
    command.env("SHM_TEST_CHILD", part).stdout(Stdio::null());
    command
}

#[test]
fn a_child_finds_its_descriptors_at_the_numbers_given_even_when_they_cross() {
    let (here, there) = pair().unwrap();
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let command = child("echo");
    let fds = vec![(there, 7), (read, 40)];
    let mut child = spawn(command, Start { fds, own_group: true, dies_with_us: true }).unwrap();
    send_with_fds(&here, b"ping ", &[]).unwrap();
    std::fs::File::from(write).write_all(b"piped").unwrap();
    let mut buffer = [0u8; 64];
    let (len, _) = recv_with_fds_within(&here, &mut buffer, Duration::from_secs(20)).unwrap();
    assert_eq!(&buffer[..len], b"ping piped");
    assert!(child.wait().unwrap().success());
}

#[test]
fn numbers_that_are_each_others_sources_are_kept_apart() {
    let (a, b) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (low, high) = (a.as_raw_fd(), b.as_raw_fd());
    let mut command = Command::new("sh");
    // By path: a shell need not know descriptors of two digits.
    let path = |fd| format!("/proc/self/fd/{fd}");
    let script = format!("echo crossed >{}; read line <{}; test \"$line\" = crossed", path(low), path(high));
    command.arg("-c").arg(script);
    let start = Start { fds: vec![(a, high), (b, low)], ..Start::default() };
    assert!(spawn(command, start).unwrap().wait().unwrap().success());
}

#[test]
fn a_program_that_does_not_exist_is_told_and_closes_what_was_given() {
    let (here, there) = pair().unwrap();
    let start = Start { fds: vec![(there, 9)], ..Start::default() };
    let error = spawn(Command::new("/nonexistent/program"), start).err();
    assert_eq!(error, Some(StartError::Program(rustix::io::Errno::NOENT)));
    let ended = recv_with_fds_within(&here, &mut [0u8; 8], Duration::from_secs(5)).unwrap();
    assert_eq!(ended.0, 0);
}

#[test]
fn what_was_opened_here_is_not_inherited() {
    let (here, _there) = pair().unwrap();
    let number = here.as_raw_fd();
    assert_eq!(inherited(number).err(), Some(StartError::NotInherited { number }));
    assert_eq!(inherited(1).err(), Some(StartError::NotInherited { number: 1 }));
    assert_eq!(inherited(65_000).err(), Some(StartError::NotInherited { number: 65_000 }));
}

#[test]
fn a_killed_process_is_seen_to_exit_by_its_pidfd() {
    let mut command = Command::new("sleep");
    command.arg("60");
    let mut child = spawn(command, Start::default()).unwrap();
    let pidfd = pidfd_open(child.id()).unwrap();
    assert!(start_time(child.id()).unwrap() > 0);
    assert!(!pidfd_exited(&pidfd));
    pidfd_kill(&pidfd).unwrap();
    assert!(pidfd_exited_within(&pidfd, Duration::from_secs(5)));
    child.wait().unwrap();
    assert_eq!(pidfd_kill(&pidfd), Ok(()));
}

#[test]
fn a_peer_that_exited_is_gone_though_its_connection_still_waits() {
    let path = std::env::temp_dir().join(format!("shm-gone-{}", std::process::id()));
    let listener = listen(&path, 4).unwrap();
    let mut command = child("connect");
    command.env("SHM_TEST_PATH", &path);
    assert!(spawn(command, Start::default()).unwrap().wait().unwrap().success());
    let server = accept(listener.as_fd(), Some(Duration::from_secs(5))).unwrap();
    assert_eq!(PeerProcess::of(server.as_fd()).err(), Some(PeerError::Gone));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn an_ordinary_file_has_no_peer() {
    let file = std::fs::File::open("/proc/self/stat").unwrap();
    assert!(matches!(PeerProcess::of(file.as_fd()), Err(PeerError::Refused(_))));
}

#[test]
fn the_limit_of_descriptors_is_raised_to_the_hard_one() {
    let (old, new) = raise_nofile().unwrap();
    assert!(old <= new);
    assert_eq!(raise_nofile(), Ok((new, new)));
}

#[test]
fn a_thread_runs_where_it_is_pinned() {
    let allowed = cpus_allowed().unwrap();
    assert!(!allowed.is_empty() && allowed.len() <= cpus_online());
    let last = *allowed.last().unwrap();
    std::thread::spawn(move || {
        pin_to(last).unwrap();
        assert_eq!(cpu_now(), last);
        assert_eq!(cpus_allowed(), Ok(vec![last]));
    })
    .join()
    .unwrap();
    assert_eq!(pin_to(usize::MAX), Err(rustix::io::Errno::INVAL));
}

#[test]
fn a_number_beyond_the_limit_of_descriptors_is_named() {
    let (fd, _other) = pair().unwrap();
    let start = Start { fds: vec![(fd, i32::MAX - 1)], ..Start::default() };
    let started = spawn(child("echo"), start).map(drop);
    assert_eq!(started, Err(StartError::Descriptors(Errno::INVAL)));
}

/// The child lives in a process namespace of its own, where the one that listens has no number.
#[test]
fn a_peer_outside_of_our_process_namespace_is_unseen() {
    let path = std::env::temp_dir().join(format!("shm-unseen-{}", std::process::id()));
    let _listener = listen(&path, 1).unwrap();
    let mut apart = Command::new("unshare");
    apart.args(["--user", "--map-root-user", "--pid", "--fork"]).arg(std::env::current_exe().unwrap());
    apart.args(["the_child_side_of_the_tests_in_this_file", "--exact", "--test-threads=1"]);
    apart.env("SHM_TEST_CHILD", "unseen").env("SHM_TEST_PATH", &path);
    let done = apart.output();
    std::fs::remove_file(&path).unwrap();
    let Ok(done) = done else { return println!("not run: there is no `unshare` here (util-linux)") };
    let said = String::from_utf8_lossy(&done.stderr);
    if said.contains("unshare:") {
        return println!("not run: this user may make no process namespace: {said}");
    }
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stdout));
}
