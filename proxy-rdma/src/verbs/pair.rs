//! Reliable queue pairs. One is made ([`Pair`]), told of its other end, and can then be posted to ([`Ready`]): nothing
//! can be posted to one that is not connected.

use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys::{
    ibv_access_flags, ibv_create_qp, ibv_destroy_qp, ibv_modify_qp, ibv_post_send, ibv_qp, ibv_qp_attr,
    ibv_qp_attr_mask, ibv_qp_cap, ibv_qp_init_attr, ibv_qp_state, ibv_qp_type, ibv_send_flags, ibv_send_wr,
    ibv_sge, ibv_wr_opcode, imm_data_invalidated_rkey_union_t, rdma_t,
};

use super::{Cq, Domain, Part, Payload, Remote, Srq, VerbsError, Work, WorkKind};

/// Requests that are posted with one ring of the device's doorbell.
const WORK_AT_ONCE: usize = 32;
/// Parts of all requests of one such batch.
const PARTS_AT_ONCE: usize = 128;
/// As long as any packet may live in a network of these days.
const HOPS_MAX: u8 = 64;
/// Retries of a message for which there is no buffer: without end.
const ALWAYS: u8 = 7;

/// How much a pair takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    /// Requests that are not complete.
    pub work: u32,
    /// Parts of one request.
    pub parts: u32,
    /// Payload that is copied when it is posted.
    pub inline_bytes: u32,
}

/// Where an end of a pair is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    pub gid: [u8; 16],
    /// Zero on Ethernet.
    pub lid: u16,
    /// Of the queue pair: 24 bits.
    pub number: u32,
    /// The number of its first packet: 24 bits.
    pub first_packet: u32,
    /// The largest packet that this end takes, as in [`super::Port::mtu`].
    pub mtu: u32,
}

/// How to get to the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    pub port: u8,
    /// Which of our own addresses it comes from.
    pub gid_index: u8,
    pub traffic_class: u8,
    pub service_level: u8,
    /// An answer is awaited for 4.096 us times two to this.
    pub timeout: u8,
    pub retries: u8,
    /// READs under way: as asker, and as asked.
    pub reads: u8,
    pub reads_asked: u8,
}

/// A pair that is not connected.
#[derive(Debug)]
pub struct Pair(Inner);

/// A pair that is connected, or has been.
#[derive(Debug)]
pub struct Ready(Inner);

#[derive(Debug)]
struct Inner {
    pair: NonNull<ibv_qp>,
    capacity: Capacity,
    _domain: Arc<Domain>,
    _queues: [Arc<Cq>; 2],
    _buffers: Arc<Srq>,
}

// SAFETY: 1. As for `Context`.
unsafe impl Send for Inner {}
// SAFETY: 1. As for `Context`.
unsafe impl Sync for Inner {}

impl Inner {
    fn number(&self) -> u32 {
        // SAFETY: 1. The pair is alive until `self` is dropped.
        unsafe { (*self.pair.as_ptr()).qp_num }
    }

    fn modify(
        &self,
        what: &'static str,
        attr: &mut ibv_qp_attr,
        mask: ibv_qp_attr_mask,
    ) -> Result<(), VerbsError> {
        // SAFETY: 1. The pair is alive. 2. `attr` is ours; the library reads of it what the mask names.
        let returned = unsafe { ibv_modify_qp(self.pair.as_ptr(), attr, mask.0 as i32) };
        VerbsError::check(what, returned)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: 1. It was created, and is destroyed once.
        unsafe { ibv_destroy_qp(self.pair.as_ptr()) };
    }
}

fn no_attributes() -> ibv_qp_attr {
    // SAFETY: 1. All of it are numbers and a union of bytes: zeroes are a legal value.
    unsafe { std::mem::zeroed() }
}

impl Pair {
    /// A pair whose requests complete on one queue and whose messages come out of another.
    pub fn new(
        domain: &Arc<Domain>,
        (sends, receives): (&Arc<Cq>, &Arc<Cq>),
        buffers: &Arc<Srq>,
        wanted: Capacity,
    ) -> Result<Pair, VerbsError> {
        let cap = ibv_qp_cap {
            max_send_wr: wanted.work,
            max_recv_wr: 0,
            max_send_sge: wanted.parts,
            max_recv_sge: 1,
            max_inline_data: wanted.inline_bytes,
        };
        let mut init = ibv_qp_init_attr {
            qp_context: ptr::null_mut(),
            send_cq: sends.as_ptr(),
            recv_cq: receives.as_ptr(),
            srq: buffers.as_ptr(),
            cap,
            qp_type: ibv_qp_type::IBV_QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: 1. All that it names is alive, and held until the pair is destroyed. 2. `init` is ours.
        let pair = unsafe { ibv_create_qp(domain.as_ptr(), &raw mut init) };
        let pair = NonNull::new(pair).ok_or_else(|| VerbsError::last("a queue pair"))?;
        let capacity = Capacity {
            work: init.cap.max_send_wr,
            parts: init.cap.max_send_sge,
            inline_bytes: init.cap.max_inline_data,
        };
        Ok(Pair(Inner {
            pair,
            capacity,
            _domain: Arc::clone(domain),
            _queues: [Arc::clone(sends), Arc::clone(receives)],
            _buffers: Arc::clone(buffers),
        }))
    }

    /// Its name on its device.
    pub fn number(&self) -> u32 {
        self.0.number()
    }

    /// Connects it. `own` is what the other end was told of this one.
    ///
    /// The other end need not be connected yet: what is posted before is sent again until it is. On an error the pair is
    /// of no use.
    pub fn connect(self, own: &Address, other: &Address, path: &Path) -> Result<Ready, VerbsError> {
        let inner = self.0;
        let mut init = no_attributes();
        init.qp_state = ibv_qp_state::IBV_QPS_INIT;
        init.port_num = path.port;
        // What the regions allow besides is decided there.
        let rights = ibv_access_flags::IBV_ACCESS_REMOTE_READ | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE;
        init.qp_access_flags = rights.0;
        let mask = ibv_qp_attr_mask::IBV_QP_STATE
            | ibv_qp_attr_mask::IBV_QP_PKEY_INDEX
            | ibv_qp_attr_mask::IBV_QP_PORT
            | ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS;
        inner.modify("to initialise a pair", &mut init, mask)?;

        let mut route = no_attributes();
        route.qp_state = ibv_qp_state::IBV_QPS_RTR;
        route.path_mtu = own.mtu.min(other.mtu);
        route.dest_qp_num = other.number;
        route.rq_psn = other.first_packet;
        route.max_dest_rd_atomic = path.reads_asked;
        // 0.64 ms.
        route.min_rnr_timer = 12;
        route.ah_attr.dlid = other.lid;
        route.ah_attr.sl = path.service_level;
        route.ah_attr.port_num = path.port;
        route.ah_attr.is_global = 1;
        route.ah_attr.grh.dgid.raw = other.gid;
        route.ah_attr.grh.sgid_index = path.gid_index;
        route.ah_attr.grh.hop_limit = HOPS_MAX;
        route.ah_attr.grh.traffic_class = path.traffic_class;
        let mask = ibv_qp_attr_mask::IBV_QP_STATE
            | ibv_qp_attr_mask::IBV_QP_AV
            | ibv_qp_attr_mask::IBV_QP_PATH_MTU
            | ibv_qp_attr_mask::IBV_QP_DEST_QPN
            | ibv_qp_attr_mask::IBV_QP_RQ_PSN
            | ibv_qp_attr_mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | ibv_qp_attr_mask::IBV_QP_MIN_RNR_TIMER;
        inner.modify("the way to the other end of a pair", &mut route, mask)?;

        let mut send = no_attributes();
        send.qp_state = ibv_qp_state::IBV_QPS_RTS;
        send.sq_psn = own.first_packet;
        send.timeout = path.timeout;
        send.retry_cnt = path.retries;
        send.rnr_retry = ALWAYS;
        send.max_rd_atomic = path.reads;
        let mask = ibv_qp_attr_mask::IBV_QP_STATE
            | ibv_qp_attr_mask::IBV_QP_SQ_PSN
            | ibv_qp_attr_mask::IBV_QP_TIMEOUT
            | ibv_qp_attr_mask::IBV_QP_RETRY_CNT
            | ibv_qp_attr_mask::IBV_QP_RNR_RETRY
            | ibv_qp_attr_mask::IBV_QP_MAX_QP_RD_ATOMIC;
        inner.modify("to let a pair send", &mut send, mask)?;
        Ok(Ready(inner))
    }
}

impl Ready {
    pub fn number(&self) -> u32 {
        self.0.number()
    }

    pub fn capacity(&self) -> Capacity {
        self.0.capacity
    }

    /// Posts requests in their order; returns how many were taken. Cost: one doorbell for each 32; no system call where the
    /// device has one.
    ///
    /// Errors: the first of them was refused. The caller counts what is not complete: more than [`Capacity::work`] is
    /// refused, or lost completions.
    pub fn post(&self, batch: &[Work<'_>]) -> Result<usize, VerbsError> {
        let mut taken = 0;
        while taken < batch.len() {
            let (asked, result) = self.post_some(&batch[taken..]);
            match result {
                Ok(count) => taken += count,
                Err(why) if taken == 0 => return Err(why),
                Err(_) => return Ok(taken),
            }
            if result != Ok(asked) {
                break;
            }
        }
        Ok(taken)
    }

    /// One doorbell: of how many requests, and how many were taken.
    fn post_some(&self, batch: &[Work<'_>]) -> (usize, Result<usize, VerbsError>) {
        let mut parts: Vec<ibv_sge> = Vec::with_capacity(PARTS_AT_ONCE);
        let mut all: Vec<ibv_send_wr> = Vec::with_capacity(WORK_AT_ONCE);
        let mut firsts: Vec<usize> = Vec::with_capacity(WORK_AT_ONCE);
        for work in batch.iter().take(WORK_AT_ONCE) {
            let first = parts.len();
            match work.payload {
                Payload::Inline(bytes) if bytes.len() > self.0.capacity.inline_bytes as usize => {
                    return (1, Err(VerbsError::TooMany("bytes to be copied when they are posted")));
                }
                Payload::Inline(bytes) => {
                    parts.push(ibv_sge { addr: bytes.as_ptr() as u64, length: bytes.len() as u32, lkey: 0 });
                }
                Payload::Parts(some) if some.len() > self.0.capacity.parts as usize => {
                    return (1, Err(VerbsError::TooMany("parts of a request")));
                }
                Payload::Parts(some) if !all.is_empty() && first + some.len() > PARTS_AT_ONCE => break,
                Payload::Parts(some) => parts.extend(some.iter().map(|Part(part)| *part)),
            }
            firsts.push(first);
            all.push(request(work, parts.len() - first));
        }
        for (one, first) in all.iter_mut().zip(firsts) {
            one.sg_list = parts[first..].as_mut_ptr();
        }
        for at in 1..all.len() {
            let next = &raw mut all[at];
            all[at - 1].next = next;
        }
        let asked = all.len();
        let (first, mut bad) = (all.as_mut_ptr(), ptr::null_mut());
        // SAFETY: 1. The pair is alive. 2. Requests, parts and inline bytes live during the call, which copies them.
        //         3. Other payload is named by key: a device does not touch what is not registered.
        let returned = unsafe { ibv_post_send(self.0.pair.as_ptr(), first, &raw mut bad) };
        if returned == 0 {
            return (asked, Ok(asked));
        }
        let taken = all.iter().position(|one| ptr::eq(one, bad)).unwrap_or(0);
        match taken {
            0 => (asked, VerbsError::check("a request", returned).map(|()| 0)),
            some => (asked, Ok(some)),
        }
    }

    /// Ends it: what is not complete comes back as [`super::DoneError::Flushed`].
    pub fn fail(&self) -> Result<(), VerbsError> {
        let mut attr = no_attributes();
        attr.qp_state = ibv_qp_state::IBV_QPS_ERR;
        self.0.modify("to end a pair", &mut attr, ibv_qp_attr_mask::IBV_QP_STATE)
    }
}

fn request(work: &Work<'_>, parts: usize) -> ibv_send_wr {
    // SAFETY: 1. Numbers, null pointers and unions of such: zeroes are a legal value.
    let mut one: ibv_send_wr = unsafe { std::mem::zeroed() };
    one.wr_id = work.name;
    one.num_sge = parts as i32;
    let mut flags = ibv_send_flags(0);
    if work.signalled {
        flags |= ibv_send_flags::IBV_SEND_SIGNALED;
    }
    if work.fenced {
        flags |= ibv_send_flags::IBV_SEND_FENCE;
    }
    if matches!(work.payload, Payload::Inline(_)) {
        flags |= ibv_send_flags::IBV_SEND_INLINE;
    }
    one.send_flags = flags.0;
    let mut to = |remote: Remote| one.wr.rdma = rdma_t { remote_addr: remote.address, rkey: remote.key };
    let number = |number: u32| imm_data_invalidated_rkey_union_t { imm_data: number.to_be() };
    match work.kind {
        WorkKind::Send(None) => one.opcode = ibv_wr_opcode::IBV_WR_SEND,
        WorkKind::Send(Some(with)) => {
            one.opcode = ibv_wr_opcode::IBV_WR_SEND_WITH_IMM;
            one.imm_data_invalidated_rkey_union = number(with);
        }
        WorkKind::Write(remote) => {
            to(remote);
            one.opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE;
        }
        WorkKind::WriteWith(remote, with) => {
            to(remote);
            one.opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM;
            one.imm_data_invalidated_rkey_union = number(with);
        }
        WorkKind::Read(remote) => {
            to(remote);
            one.opcode = ibv_wr_opcode::IBV_WR_RDMA_READ;
        }
    }
    one
}
