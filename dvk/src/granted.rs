//! Memory of ours that others may be granted: [`GrantSegment`].

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use abi::Endpoint;
use abi::grant::{Access, Grant};
use shm::map::{Mapping, OutOfRange};

/// A segment of one's own memory whose ranges can be granted, for reading or for writing. Dropped, it is given up, and
/// what is granted of it ends, at the binding's next call that has to do with grants.
///
/// Whoever is granted to write may do so at any moment until the grant is revoked: what is read is a claim.
pub struct GrantSegment {
    pub(crate) shared: Rc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) access: Access,
    pub(crate) len_bytes: u64,
    /// Both change when a revocation moves the pages.
    pub(crate) segment: Cell<u32>,
    pub(crate) map: RefCell<Arc<Mapping>>,
    pub(crate) grants: RefCell<Vec<Live>>,
}

/// A grant that lives.
#[derive(Clone, Copy)]
pub(crate) struct Live {
    pub(crate) index: u16,
    pub(crate) generation: u32,
    pub(crate) to: Endpoint,
}

impl Shared {
    pub(crate) fn has(&self, grant: &Grant) -> bool {
        let is_it = |live: &Live| (live.index, live.generation) == (grant.index, grant.generation);
        self.grants.borrow().iter().any(is_it)
    }

    pub(crate) fn may_map(&self, to: Endpoint) -> bool {
        self.grants.borrow().iter().any(|live| live.to == to)
    }
}

impl GrantSegment {
    /// As asked for.
    pub fn len_bytes(&self) -> u64 {
        self.shared.len_bytes
    }

    /// What its ranges may be granted for.
    pub fn access(&self) -> Access {
        self.shared.access
    }

    /// Copies bytes out, from `offset_bytes` on.
    pub fn read_into(&self, offset_bytes: u64, out: &mut [u8]) -> Result<(), OutOfRange> {
        self.check(offset_bytes, out.len() as u64)?;
        self.shared.map.borrow().read_into(offset_bytes as usize, out)
    }

    /// Copies bytes in, from `offset_bytes` on.
    pub fn write_from(&self, offset_bytes: u64, bytes: &[u8]) -> Result<(), OutOfRange> {
        self.check(offset_bytes, bytes.len() as u64)?;
        self.shared.map.borrow().write_from(offset_bytes as usize, bytes)
    }

    /// Checked against the length asked for: the last page may reach beyond it.
    pub(crate) fn check(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), OutOfRange> {
        let end = offset_bytes.checked_add(len_bytes);
        if end.is_some_and(|end| end <= self.shared.len_bytes) { Ok(()) } else { Err(OutOfRange) }
    }
}

impl std::fmt::Debug for GrantSegment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GrantSegment({} bytes, {:?})", self.shared.len_bytes, self.shared.access)
    }
}
