//! What a device may touch.

use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::{
    ibv_access_flags, ibv_alloc_pd, ibv_dealloc_pd, ibv_dereg_mr, ibv_mr, ibv_pd, ibv_reg_mr, ibv_sge,
};
use rustix::io::Errno;
use shm::map::{Access, Mapping};

use super::{Context, VerbsError};

/// A protection domain: queue pairs of one reach no memory of another.
#[derive(Debug)]
pub struct Domain {
    domain: NonNull<ibv_pd>,
    context: Arc<Context>,
}

// SAFETY: 1. As for `Context`.
unsafe impl Send for Domain {}
// SAFETY: 1. As for `Context`.
unsafe impl Sync for Domain {}

impl Domain {
    pub fn new(context: &Arc<Context>) -> Result<Arc<Domain>, VerbsError> {
        // SAFETY: 1. The context is open.
        let domain = unsafe { ibv_alloc_pd(context.as_ptr()) };
        let domain = NonNull::new(domain).ok_or_else(|| VerbsError::last("a protection domain"))?;
        Ok(Arc::new(Domain { domain, context: Arc::clone(context) }))
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(super) fn as_ptr(&self) -> *mut ibv_pd {
        self.domain.as_ptr()
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: 1. All that was made of it holds it: nothing is left. 2. It is freed once.
        unsafe { ibv_dealloc_pd(self.as_ptr()) };
    }
}

/// What others may do with memory by its remote key; our own device reads it in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rights {
    /// Nothing, and our own device only reads it: enough for memory that is only mapped to be read.
    Source,
    /// Nothing, and our own device writes it.
    Local,
    RemoteRead,
    RemoteWrite,
    /// Others read it, and our own device writes it.
    Exchange,
}

impl Rights {
    fn flags(self) -> ibv_access_flags {
        match self {
            Rights::Source => ibv_access_flags(0),
            Rights::Local => ibv_access_flags::IBV_ACCESS_LOCAL_WRITE,
            Rights::RemoteRead => ibv_access_flags::IBV_ACCESS_REMOTE_READ,
            Rights::Exchange => {
                ibv_access_flags::IBV_ACCESS_LOCAL_WRITE | ibv_access_flags::IBV_ACCESS_REMOTE_READ
            }
            // The second asks for the first.
            Rights::RemoteWrite => {
                ibv_access_flags::IBV_ACCESS_LOCAL_WRITE | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
            }
        }
    }

    fn writes(self) -> bool {
        matches!(self, Rights::Local | Rights::RemoteWrite | Rights::Exchange)
    }
}

/// Registered memory: a region, in the words of a network card.
#[derive(Debug)]
pub struct Memory {
    region: NonNull<ibv_mr>,
    map: Arc<Mapping>,
    /// Where in the mapping it begins.
    offset_bytes: usize,
    len_bytes: usize,
    domain: Arc<Domain>,
}

// SAFETY: 1. As for `Context`. 2. The mapping may be shared between threads.
unsafe impl Send for Memory {}
// SAFETY: 1. As for `Context`. 2. As above.
unsafe impl Sync for Memory {}

/// A range of registered memory, for a work request. It does not keep the memory: without it the work fails.
#[derive(Clone, Copy)]
pub struct Part(pub(super) ibv_sge);

impl Memory {
    /// Registers a range of a mapping. Cost: pins its pages, microseconds for each megabyte; not for the message path.
    ///
    /// Errors: [`VerbsError::MemoryLimit`], [`VerbsError::ReadOnlyMemory`].
    pub fn register(
        domain: &Arc<Domain>,
        map: &Arc<Mapping>,
        (offset_bytes, len_bytes): (usize, usize),
        rights: Rights,
    ) -> Result<Memory, VerbsError> {
        let is_read_only = map.access() == Access::ReadOnly;
        if rights.writes() && is_read_only {
            return Err(VerbsError::ReadOnlyMemory);
        }
        let address = map.address(offset_bytes, len_bytes).map_err(|_| VerbsError::OutOfRange)?;
        let flags = rights.flags().0 as i32;
        // SAFETY: 1. The range is inside a mapping that outlives the region, which holds it and is deregistered first.
        //         2. The bytes of a mapping are shared with other processes: nobody here has a reference to them that a
        //            device's write would break.
        let region = unsafe { ibv_reg_mr(domain.as_ptr(), address.as_ptr().cast(), len_bytes, flags) };
        let Some(region) = NonNull::new(region) else {
            return Err(match VerbsError::last("to register memory") {
                VerbsError::Refused { errno: Errno::NOMEM, .. } => {
                    VerbsError::MemoryLimit { bytes: len_bytes }
                }
                VerbsError::Refused { errno: Errno::FAULT, .. } if is_read_only => VerbsError::ReadOnlyMemory,
                other => other,
            });
        };
        Ok(Memory { region, map: Arc::clone(map), offset_bytes, len_bytes, domain: Arc::clone(domain) })
    }

    pub fn map(&self) -> &Arc<Mapping> {
        &self.map
    }

    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// What another node names it by, as far as its rights go.
    pub fn remote_key(&self) -> u32 {
        // SAFETY: 1. The region is registered until `self` is dropped.
        unsafe { (*self.region.as_ptr()).rkey }
    }

    /// The address of its first byte, which stands for it in requests of others.
    pub fn address(&self) -> u64 {
        // SAFETY: 1. As above.
        unsafe { (*self.region.as_ptr()).addr as u64 }
    }

    /// A range of it, from its own beginning.
    pub fn part(&self, offset_bytes: usize, len_bytes: u32) -> Result<Part, VerbsError> {
        let end = offset_bytes.checked_add(len_bytes as usize);
        if end.is_none_or(|end| end > self.len_bytes) {
            return Err(VerbsError::OutOfRange);
        }
        // SAFETY: 1. The region is registered until `self` is dropped.
        let key = unsafe { (*self.region.as_ptr()).lkey };
        Ok(Part(ibv_sge { addr: self.address() + offset_bytes as u64, length: len_bytes, lkey: key }))
    }

    /// Copies out of it, as [`Mapping::read_into`].
    pub fn read_into(&self, offset_bytes: usize, into: &mut [u8]) -> Result<(), VerbsError> {
        self.check(offset_bytes, into.len())?;
        self.map.read_into(self.offset_bytes + offset_bytes, into).map_err(|_| VerbsError::OutOfRange)
    }

    /// Copies into it, as [`Mapping::write_from`].
    pub fn write_from(&self, offset_bytes: usize, from: &[u8]) -> Result<(), VerbsError> {
        self.check(offset_bytes, from.len())?;
        self.map.write_from(self.offset_bytes + offset_bytes, from).map_err(|_| VerbsError::OutOfRange)
    }

    fn check(&self, offset_bytes: usize, len_bytes: usize) -> Result<(), VerbsError> {
        let end = offset_bytes.checked_add(len_bytes);
        if end.is_some_and(|end| end <= self.len_bytes) { Ok(()) } else { Err(VerbsError::OutOfRange) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: 1. It was registered, and is deregistered once.
        let returned = unsafe { ibv_dereg_mr(self.region.as_ptr()) };
        if returned != 0 {
            // The device may still touch it: neither it nor its domain may ever go.
            std::mem::forget(Arc::clone(&self.map));
            std::mem::forget(Arc::clone(&self.domain));
        }
    }
}
