//! libibverbs, made safe: what it gives is owned, freed in the right order, and what it says has a type.
//!
//! Key types: [`Context`] (an open device), [`Domain`] and [`Memory`] (what a device may touch), [`Cq`] and [`Srq`],
//! [`Pair`] (a queue pair, by its state), [`Done`] (a completion). No call here waits but those that make or destroy.
//!
//! Why this is safe: a device touches only what is registered, for as long as it is; [`Memory`] holds the mapping and
//! deregisters before it lets go of it. A work request names memory by key and address, not by reference: one whose memory
//! is gone fails at the device. Only inline data is read by the library itself, and that is borrowed. Source of the
//! rules: the manual pages of rdma-core, ibv_*(3).

mod context;
mod memory;
mod pair;
mod queue;
mod work;

pub use context::{Context, Limits, Port, device_names};
pub use memory::{Domain, Memory, Part, Rights};
pub use pair::{Address, Capacity, Pair, Path, Ready};
pub use queue::{Channel, Cq, Srq};
pub use work::{Done, DoneError, Kind, Payload, Remote, Work, WorkKind};

use rustix::io::Errno;

/// Why a device does not do what it was asked. What becomes of work is [`DoneError`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VerbsError {
    #[error("there is no RDMA device here: `dvs doctor` says what to do")]
    NoDevices,
    #[error("there is no RDMA device {asked}: there is {known}")]
    NoSuchDevice { asked: String, known: String },
    #[error("port {port} of {device} has no address {index}: `dvs rdma ls` lists them")]
    NoSuchGid { device: String, port: u8, index: u32 },
    #[error(
        "the device may not have {bytes} bytes of memory: raise the limit of locked memory (`ulimit -l`, LimitMEMLOCK=)"
    )]
    MemoryLimit { bytes: usize },
    #[error("this kernel registers no read-only memory for a device: Linux 6.2 and later do")]
    ReadOnlyMemory,
    #[error("a range that is not inside its memory")]
    OutOfRange,
    #[error("more than fits: {0}")]
    TooMany(&'static str),
    #[error("{what} was refused: {errno}")]
    Refused { what: &'static str, errno: Errno },
}

impl VerbsError {
    /// For functions that return a null pointer and leave the number behind.
    fn last(what: &'static str) -> VerbsError {
        let number = std::io::Error::last_os_error().raw_os_error().unwrap_or_default();
        VerbsError::Refused { what, errno: Errno::from_raw_os_error(number) }
    }

    /// For functions that return the number; zero is success.
    fn check(what: &'static str, returned: i32) -> Result<(), VerbsError> {
        match returned {
            0 => Ok(()),
            // Some providers return -1 and leave the number behind, others return it negative.
            -1 => Err(VerbsError::last(what)),
            number => Err(VerbsError::Refused { what, errno: Errno::from_raw_os_error(number.abs()) }),
        }
    }
}
