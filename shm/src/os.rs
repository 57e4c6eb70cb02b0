//! What the product asks of the operating system, in safe wrappers: memory files, descriptors over sockets,
//! who the peer is, processes, readiness, sockets that send from and receive into mapped memory.
//!
//! Nothing here needs a privilege. Neighbours: `map` (what is mapped), `futex` (how one sleeps on a word).

pub mod events;
pub mod fdpass;
pub mod memfd;
pub mod offers;
pub mod peer;
pub mod pieces;
pub mod process;

use rustix::io::Errno;

/// The reason of the C call that just failed on this thread.
pub(crate) fn last_errno() -> Errno {
    let code = std::io::Error::last_os_error().raw_os_error();
    code.map_or(Errno::INVAL, Errno::from_raw_os_error)
}
