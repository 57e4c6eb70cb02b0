//! A process that somebody else wants to bind: pinned by a pidfd, its user read while it is.

use std::os::fd::OwnedFd;

use shm::os::peer::{pidfd_exited, pidfd_open, start_time};

use crate::core::Process;

/// `None`: there is no such process, or its user cannot be told for certain.
pub(super) fn open(pid: u32) -> Option<(OwnedFd, Process)> {
    let pidfd = pidfd_open(pid).ok()?;
    let uid = only_uid(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)?;
    let start_time = start_time(pid).ok()?;
    // While the pidfd has not fired, the pid is that process's: then so was all that was just read.
    (!pidfd_exited(&pidfd)).then_some((pidfd, Process { pid, uid, start_time }))
}

/// Its user, if real, effective, saved and file-system user are one; a process between two users is nobody's.
fn only_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let mut uids = line.split_whitespace().map(|uid| uid.parse::<u32>().ok());
    let first = uids.next()??;
    uids.all(|uid| uid == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_between_two_users_is_nobodys() {
        assert_eq!(only_uid("Name:\tx\nUid:\t7\t7\t7\t7\n"), Some(7));
        assert_eq!(only_uid("Uid:\t7\t0\t7\t7\n"), None);
        assert_eq!(only_uid("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_is_found_and_pid_zero_is_not() {
        let (_pidfd, process) = open(std::process::id()).unwrap();
        assert_eq!(process.uid, crate::place::own_uid());
        assert!(open(0).is_none());
    }
}
