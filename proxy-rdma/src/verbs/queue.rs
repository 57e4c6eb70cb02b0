//! Where completions come out, and where buffers for messages lie.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys::{
    ibv_ack_cq_events, ibv_comp_channel, ibv_cq, ibv_create_comp_channel, ibv_create_cq, ibv_create_srq,
    ibv_destroy_comp_channel, ibv_destroy_cq, ibv_destroy_srq, ibv_get_cq_event, ibv_poll_cq,
    ibv_post_srq_recv, ibv_recv_wr, ibv_req_notify_cq, ibv_srq, ibv_srq_attr, ibv_srq_init_attr, ibv_wc,
};

use super::{Context, Domain, Done, Part, VerbsError};

/// Completions taken out in one call.
const DONE_AT_ONCE: usize = 32;
/// Buffers lent in one call of the library.
const BUFFERS_AT_ONCE: usize = 32;

/// Something to sleep on: readable when a queue that was armed has completions.
#[derive(Debug)]
pub struct Channel {
    channel: NonNull<ibv_comp_channel>,
    _context: Arc<Context>,
}

// SAFETY: 1. As for `Context`.
unsafe impl Send for Channel {}
// SAFETY: 1. As for `Context`.
unsafe impl Sync for Channel {}

impl Channel {
    pub fn new(context: &Arc<Context>) -> Result<Arc<Channel>, VerbsError> {
        // SAFETY: 1. The context is open.
        let channel = unsafe { ibv_create_comp_channel(context.as_ptr()) };
        let channel = NonNull::new(channel).ok_or_else(|| VerbsError::last("a completion channel"))?;
        let channel = Arc::new(Channel { channel, _context: Arc::clone(context) });
        rustix::io::ioctl_fionbio(channel.as_fd(), true)
            .map_err(|errno| VerbsError::Refused { what: "not to wait on a channel", errno })?;
        Ok(channel)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: 1. The channel is alive until `self` is dropped.
        let fd = unsafe { (*self.channel.as_ptr()).fd };
        // SAFETY: 1. It is the channel's own descriptor, open for as long as that.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: 1. Every queue that uses it holds it: none is left. 2. It is destroyed once.
        unsafe { ibv_destroy_comp_channel(self.channel.as_ptr()) };
    }
}

/// A completion queue.
#[derive(Debug)]
pub struct Cq {
    queue: NonNull<ibv_cq>,
    channel: Arc<Channel>,
    _context: Arc<Context>,
}

// SAFETY: 1. As for `Context`.
unsafe impl Send for Cq {}
// SAFETY: 1. As for `Context`.
unsafe impl Sync for Cq {}

impl Cq {
    /// For at least so many completions at a time: more that are not taken out are an overflow, and lost.
    pub fn new(channel: &Arc<Channel>, entries: u32) -> Result<Arc<Cq>, VerbsError> {
        let entries = i32::try_from(entries).map_err(|_| VerbsError::TooMany("completions"))?;
        let context = &channel._context;
        let channel_ptr = channel.channel.as_ptr();
        // SAFETY: 1. Context and channel are alive, and held until the queue is destroyed.
        let queue = unsafe { ibv_create_cq(context.as_ptr(), entries, ptr::null_mut(), channel_ptr, 0) };
        let queue = NonNull::new(queue).ok_or_else(|| VerbsError::last("a completion queue"))?;
        Ok(Arc::new(Cq { queue, channel: Arc::clone(channel), _context: Arc::clone(context) }))
    }

    pub(super) fn as_ptr(&self) -> *mut ibv_cq {
        self.queue.as_ptr()
    }

    pub fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// Takes out some completions and appends them; returns how many. Cost: no system call.
    pub fn poll(&self, into: &mut Vec<Done>) -> Result<usize, VerbsError> {
        let mut some = [const { MaybeUninit::<ibv_wc>::uninit() }; DONE_AT_ONCE];
        // SAFETY: 1. The queue is alive. 2. There is room for as many as are asked for.
        let count = unsafe { ibv_poll_cq(self.as_ptr(), DONE_AT_ONCE as i32, some.as_mut_ptr().cast()) };
        let count = usize::try_from(count).map_err(|_| VerbsError::last("to take completions"))?;
        for done in &some[..count.min(DONE_AT_ONCE)] {
            // SAFETY: 1. The library has written the first `count`.
            into.push(Done::of(unsafe { done.assume_init_ref() }));
        }
        Ok(count)
    }

    /// Has the channel tell of the next completion. Poll once more before sleeping: one may have come before.
    pub fn arm(&self) -> Result<(), VerbsError> {
        // SAFETY: 1. The queue is alive.
        let returned = unsafe { ibv_req_notify_cq(self.as_ptr(), 0) };
        VerbsError::check("to be told of completions", returned)
    }

    /// Takes what the channel has told, of this queue and of others on it, so that it can be slept on again.
    pub fn clear(&self) {
        let channel = self.channel.channel.as_ptr();
        loop {
            let (mut queue, mut tag) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: 1. The channel is alive, and does not wait. 2. Both places are ours.
            let returned = unsafe { ibv_get_cq_event(channel, &raw mut queue, &raw mut tag) };
            if returned != 0 {
                return;
            }
            // SAFETY: 1. The queue is one of the channel that has not been destroyed: that waits for this.
            unsafe { ibv_ack_cq_events(queue, 1) };
        }
    }
}

impl Drop for Cq {
    fn drop(&mut self) {
        // What was told and not taken would keep the library waiting for ever.
        self.clear();
        // SAFETY: 1. Every pair that uses it holds it: none is left. 2. It is destroyed once.
        unsafe { ibv_destroy_cq(self.as_ptr()) };
    }
}

/// A shared receive queue: buffers for the messages of all pairs that use it.
#[derive(Debug)]
pub struct Srq {
    queue: NonNull<ibv_srq>,
    _domain: Arc<Domain>,
}

// SAFETY: 1. As for `Context`.
unsafe impl Send for Srq {}
// SAFETY: 1. As for `Context`.
unsafe impl Sync for Srq {}

impl Srq {
    /// For so many buffers at a time.
    pub fn new(domain: &Arc<Domain>, buffers: u32) -> Result<Arc<Srq>, VerbsError> {
        let attr = ibv_srq_attr { max_wr: buffers, max_sge: 1, srq_limit: 0 };
        let mut init = ibv_srq_init_attr { srq_context: ptr::null_mut(), attr };
        // SAFETY: 1. The domain is alive, and held until the queue is destroyed. 2. `init` is ours.
        let queue = unsafe { ibv_create_srq(domain.as_ptr(), &raw mut init) };
        let queue = NonNull::new(queue).ok_or_else(|| VerbsError::last("a shared receive queue"))?;
        Ok(Arc::new(Srq { queue, _domain: Arc::clone(domain) }))
    }

    pub(super) fn as_ptr(&self) -> *mut ibv_srq {
        self.queue.as_ptr()
    }

    /// Lends buffers, each with a name that its completion bears; returns how many were taken.
    pub fn lend(&self, buffers: &[(u64, Part)]) -> Result<usize, VerbsError> {
        let mut taken = 0;
        for some in buffers.chunks(BUFFERS_AT_ONCE) {
            let mut parts = some.iter().map(|(_, part)| part.0).collect::<Vec<_>>();
            let mut all: Vec<ibv_recv_wr> = some
                .iter()
                .zip(&mut parts)
                .map(|((name, _), part)| ibv_recv_wr {
                    wr_id: *name,
                    next: ptr::null_mut(),
                    sg_list: part,
                    num_sge: 1,
                })
                .collect();
            for at in 1..all.len() {
                let next = &raw mut all[at];
                all[at - 1].next = next;
            }
            let (first, mut bad) = (all.as_mut_ptr(), ptr::null_mut());
            // SAFETY: 1. The queue is alive. 2. Requests and parts live during the call, and the library copies them.
            //         3. They name memory by key: a device does not touch what is not registered.
            let returned = unsafe { ibv_post_srq_recv(self.as_ptr(), first, &raw mut bad) };
            if returned == 0 {
                taken += some.len();
                continue;
            }
            taken += all.iter().position(|one| ptr::eq(one, bad)).unwrap_or(0);
            return if taken > 0 { Ok(taken) } else { VerbsError::check("a buffer", returned).map(|()| 0) };
        }
        Ok(taken)
    }
}

impl Drop for Srq {
    fn drop(&mut self) {
        // SAFETY: 1. Every pair that uses it holds it: none is left. 2. It is destroyed once.
        unsafe { ibv_destroy_srq(self.as_ptr()) };
    }
}
