//! Devices, and what they can do.

use std::ffi::CStr;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::{
    ___ibv_query_port, ibv_close_device, ibv_context, ibv_device, ibv_device_attr, ibv_free_device_list,
    ibv_get_device_list, ibv_get_device_name, ibv_gid, ibv_open_device, ibv_port_attr, ibv_port_state,
    ibv_query_device, ibv_query_gid,
};

use rustix::io::Errno;

use super::VerbsError;

/// What `ibv_port_attr::link_layer` is for an Ethernet. Source: rdma-core, `verbs.h`.
const LINK_LAYER_ETHERNET: u8 = 2;

/// The list that the library gives, until it is freed.
struct List {
    first: NonNull<*mut ibv_device>,
    count: usize,
}

impl List {
    fn get() -> Result<List, VerbsError> {
        let mut count = 0;
        // SAFETY: 1. `count` is ours and alive during the call.
        let first = unsafe { ibv_get_device_list(&raw mut count) };
        let first = NonNull::new(first).ok_or_else(|| match VerbsError::last("the list of devices") {
            // A kernel that knows nothing of such devices.
            VerbsError::Refused { errno: Errno::NOSYS, .. } => VerbsError::NoDevices,
            other => other,
        })?;
        Ok(List { first, count: usize::try_from(count).unwrap_or(0) })
    }

    fn devices(&self) -> impl Iterator<Item = (*mut ibv_device, String)> + '_ {
        (0..self.count).map(|at| {
            // SAFETY: 1. `at` is below the count of the list's pointers.
            let place = unsafe { self.first.as_ptr().add(at) };
            // SAFETY: 1. As above, and the list is freed with `self`.
            let device = unsafe { *place };
            (device, name_of(device))
        })
    }
}

/// Of a device of a list that is not freed.
fn name_of(device: *mut ibv_device) -> String {
    // SAFETY: 1. The caller's list is alive, and with it the device.
    let name = unsafe { ibv_get_device_name(device) };
    if name.is_null() {
        return String::new();
    }
    // SAFETY: 1. Not null, and the library's names end with a zero and live as long as the device.
    let name = unsafe { CStr::from_ptr(name) };
    name.to_string_lossy().into_owned()
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: 1. It came from `ibv_get_device_list`, and is freed once.
        unsafe { ibv_free_device_list(self.first.as_ptr()) };
    }
}

/// The names of the devices that this process can open.
pub fn device_names() -> Result<Vec<String>, VerbsError> {
    Ok(List::get()?.devices().map(|(_, name)| name).collect())
}

/// An open device.
#[derive(Debug)]
pub struct Context {
    context: NonNull<ibv_context>,
    name: String,
}

// SAFETY: 1. The library's functions may be called by several threads (rdma-core, ibv_open_device(3)).
unsafe impl Send for Context {}
// SAFETY: 1. As above.
unsafe impl Sync for Context {}

/// What a device can do at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    pub work_per_queue: u32,
    pub work_per_srq: u32,
    pub parts_per_work: u32,
    pub completions_per_queue: u32,
    /// READs that one pair has under way: as asker, as asked.
    pub reads: u8,
    pub reads_asked: u8,
}

/// A port, as it is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Port {
    pub is_active: bool,
    pub is_ethernet: bool,
    /// The library's number for it: 1 is 256 bytes, 5 is 4096.
    pub mtu: u32,
    /// The address within an InfiniBand subnet.
    pub lid: u16,
    pub gids: u32,
}

impl Context {
    pub fn open(asked: &str) -> Result<Arc<Context>, VerbsError> {
        let list = List::get()?;
        let Some((device, name)) = list.devices().find(|(_, name)| name == asked) else {
            let known: Vec<String> = list.devices().map(|(_, name)| name).collect();
            if known.is_empty() {
                return Err(VerbsError::NoDevices);
            }
            return Err(VerbsError::NoSuchDevice { asked: asked.to_owned(), known: known.join(", ") });
        };
        // SAFETY: 1. The list is alive, and with it the device.
        let context = unsafe { ibv_open_device(device) };
        let context = NonNull::new(context).ok_or_else(|| VerbsError::last("to open a device"))?;
        Ok(Arc::new(Context { context, name }))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn as_ptr(&self) -> *mut ibv_context {
        self.context.as_ptr()
    }

    pub fn limits(&self) -> Result<Limits, VerbsError> {
        // SAFETY: 1. All of it are numbers: zeroes are a legal value.
        let mut all: ibv_device_attr = unsafe { std::mem::zeroed() };
        // SAFETY: 1. The context is open. 2. `all` is ours and alive during the call.
        let returned = unsafe { ibv_query_device(self.as_ptr(), &raw mut all) };
        VerbsError::check("what a device can do", returned)?;
        let number = |n: i32| u32::try_from(n).unwrap_or(0);
        Ok(Limits {
            work_per_queue: number(all.max_qp_wr),
            work_per_srq: number(all.max_srq_wr),
            parts_per_work: number(all.max_sge).min(number(all.max_srq_sge)),
            completions_per_queue: number(all.max_cqe),
            reads: u8::try_from(all.max_qp_init_rd_atom).unwrap_or(u8::MAX),
            reads_asked: u8::try_from(all.max_qp_rd_atom).unwrap_or(u8::MAX),
        })
    }

    pub fn port(&self, port: u8) -> Result<Port, VerbsError> {
        // SAFETY: 1. All of it are numbers: zeroes are a legal value.
        let mut all: ibv_port_attr = unsafe { std::mem::zeroed() };
        // SAFETY: 1. The context is open. 2. `all` is ours and alive during the call.
        let returned = unsafe { ___ibv_query_port(self.as_ptr(), port, &raw mut all) };
        VerbsError::check("the state of a port", returned)?;
        Ok(Port {
            is_active: all.state == ibv_port_state::IBV_PORT_ACTIVE,
            is_ethernet: all.link_layer == LINK_LAYER_ETHERNET,
            mtu: all.active_mtu,
            lid: all.lid,
            gids: u32::try_from(all.gid_tbl_len).unwrap_or(0),
        })
    }

    /// An address of a port, as 16 bytes; none where the entry is empty.
    pub fn gid(&self, port: u8, index: u32) -> Result<[u8; 16], VerbsError> {
        let none = || VerbsError::NoSuchGid { device: self.name.clone(), port, index };
        let at = i32::try_from(index).map_err(|_| none())?;
        let mut gid = ibv_gid { raw: [0; 16] };
        // SAFETY: 1. The context is open. 2. `gid` is ours and alive during the call.
        let returned = unsafe { ibv_query_gid(self.as_ptr(), port, at, &raw mut gid) };
        VerbsError::check("an address", returned).map_err(|_| none())?;
        // SAFETY: 1. All of a union of bytes and numbers was written: any bytes are a value.
        let raw = unsafe { gid.raw };
        if raw == [0; 16] { Err(none()) } else { Ok(raw) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: 1. All that was made of it holds it: nothing is left. 2. It is closed once.
        unsafe { ibv_close_device(self.as_ptr()) };
    }
}
