//! What the kernel offers beyond what the product needs: asked for, and given back at once.
//!
//! Neighbours: `memfd` and `futex`, whose calls answer for themselves. Source: io_uring_setup(2).
#![expect(unsafe_code, reason = "io_uring_setup has no safe wrapper")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// Words of 8 bytes in `struct io_uring_params`.
const IO_URING_PARAMS_WORDS: usize = 15;

/// Whether this process gets an io_uring. `Err(PERM)`: forbidden; `Err(NOSYS)`: unknown to the kernel.
pub fn io_uring() -> Result<(), Errno> {
    let mut params = [0_u64; IO_URING_PARAMS_WORDS];
    // SAFETY: 1. `params` is ours, alive during the call and as long as the structure that is read and written.
    //         2. All its fields being zero, it names no other descriptor or memory.
    let raw = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1_u32, params.as_mut_ptr()) };
    let fd = RawFd::try_from(raw).ok().filter(|fd| *fd >= 0).ok_or_else(super::last_errno)?;
    // SAFETY: 1. The call succeeded, so `fd` is a new descriptor. 2. Nobody else knows it: this value owns it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}
