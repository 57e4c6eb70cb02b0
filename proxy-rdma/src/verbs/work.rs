//! What a queue pair is asked to do, and what became of it.

use rdma_sys::{ibv_wc, ibv_wc_flags, ibv_wc_opcode, ibv_wc_status};

use super::Part;

/// Memory of another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remote {
    pub address: u64,
    pub key: u32,
}

/// What to do with the payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorkKind {
    /// Into the next buffer that the other end has lent; a number may go along.
    Send(Option<u32>),
    /// To the memory of the other end, which hears nothing of it.
    Write(Remote),
    /// The same, and a number for the other end, which takes one of its buffers.
    WriteWith(Remote, u32),
    /// From the memory of the other end.
    Read(Remote),
}

/// What goes.
#[derive(Clone, Copy)]
pub enum Payload<'a> {
    /// Copied when it is posted; at most what the pair has room for (`Capacity::inline_bytes`).
    Inline(&'a [u8]),
    /// Read, or written by a READ, by the device, until the completion.
    Parts(&'a [Part]),
}

/// A work request.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    /// What its completion bears.
    pub name: u64,
    pub kind: WorkKind,
    pub payload: Payload<'a>,
    /// It has a completion of its own. One that fails has one in any case; those before it are complete with it.
    pub signalled: bool,
    /// It begins when the READs before it are complete.
    pub fenced: bool,
}

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Sent,
    Written,
    Read,
    /// A message, into a buffer that was lent; with its number, if it had one.
    Received(Option<u32>),
    /// A WRITE with a number has come; the buffer that it took is untouched.
    WrittenHere(u32),
    Other,
}

/// A completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Done {
    /// That of the request or of the buffer.
    pub name: u64,
    /// On which pair.
    pub pair: u32,
    /// What was done, and bytes received; or why not.
    pub result: Result<(Kind, u32), DoneError>,
}

/// Why work was not done. Source: rdma-core, ibv_poll_cq(3), and the InfiniBand specification, volume 1, 11.6.2.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DoneError {
    #[error("a message longer than the buffer lent for it")]
    TooLong,
    #[error("a request that the device finds wrong")]
    BadRequest,
    #[error("memory of our own that is not registered, or not for this")]
    LocalMemory,
    #[error("given up: the pair had failed before")]
    Flushed,
    #[error("a memory window could not be bound")]
    Window,
    #[error("an answer that makes no sense: different kinds of device, or a damaged wire")]
    BadAnswer,
    #[error("the other end finds the request wrong")]
    RemoteBadRequest,
    #[error("the other end does not let us: a key that it has taken back, or never gave")]
    RemoteMemory,
    #[error("the other end's device failed")]
    RemoteFailed,
    #[error(
        "no answer after all retries: the other end is gone, or the link is cut; see its state and the MTU at both ends"
    )]
    NoAnswer,
    #[error("the other end has lent no buffer in time")]
    NoBuffer,
    #[error("the other end has ended the pair")]
    Aborted,
    #[error("the device is gone, or broken")]
    Fatal,
    #[error("the device says {0}, for which there is no name")]
    Other(u32),
}

impl DoneError {
    fn of(status: u32) -> DoneError {
        match status {
            ibv_wc_status::IBV_WC_LOC_LEN_ERR => DoneError::TooLong,
            ibv_wc_status::IBV_WC_LOC_QP_OP_ERR => DoneError::BadRequest,
            ibv_wc_status::IBV_WC_LOC_PROT_ERR | ibv_wc_status::IBV_WC_LOC_ACCESS_ERR => {
                DoneError::LocalMemory
            }
            ibv_wc_status::IBV_WC_WR_FLUSH_ERR => DoneError::Flushed,
            ibv_wc_status::IBV_WC_MW_BIND_ERR => DoneError::Window,
            ibv_wc_status::IBV_WC_BAD_RESP_ERR => DoneError::BadAnswer,
            ibv_wc_status::IBV_WC_REM_INV_REQ_ERR => DoneError::RemoteBadRequest,
            ibv_wc_status::IBV_WC_REM_ACCESS_ERR => DoneError::RemoteMemory,
            ibv_wc_status::IBV_WC_REM_OP_ERR => DoneError::RemoteFailed,
            ibv_wc_status::IBV_WC_RETRY_EXC_ERR | ibv_wc_status::IBV_WC_RESP_TIMEOUT_ERR => {
                DoneError::NoAnswer
            }
            ibv_wc_status::IBV_WC_RNR_RETRY_EXC_ERR => DoneError::NoBuffer,
            ibv_wc_status::IBV_WC_REM_ABORT_ERR => DoneError::Aborted,
            ibv_wc_status::IBV_WC_FATAL_ERR => DoneError::Fatal,
            other => DoneError::Other(other),
        }
    }
}

impl Done {
    pub(super) fn of(done: &ibv_wc) -> Done {
        let result = match done.status {
            ibv_wc_status::IBV_WC_SUCCESS => Ok((kind_of(done), done.byte_len)),
            status => Err(DoneError::of(status)),
        };
        Done { name: done.wr_id, pair: done.qp_num, result }
    }
}

fn kind_of(done: &ibv_wc) -> Kind {
    let has_number = done.wc_flags & ibv_wc_flags::IBV_WC_WITH_IMM.0 != 0;
    // SAFETY: 1. Both readings of the union are a number of 32 bits: any bits are a value.
    let number = unsafe { done.imm_data_invalidated_rkey_union.imm_data };
    let number = has_number.then(|| u32::from_be(number));
    match (done.opcode, number) {
        (ibv_wc_opcode::IBV_WC_SEND, _) => Kind::Sent,
        (ibv_wc_opcode::IBV_WC_RDMA_WRITE, _) => Kind::Written,
        (ibv_wc_opcode::IBV_WC_RDMA_READ, _) => Kind::Read,
        (ibv_wc_opcode::IBV_WC_RECV, number) => Kind::Received(number),
        (ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM, Some(number)) => Kind::WrittenHere(number),
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_a_name() {
        let named: Vec<DoneError> = (1..=20).map(DoneError::of).collect();
        let expected = [
            DoneError::TooLong,
            DoneError::BadRequest,
            DoneError::Other(3),
            DoneError::LocalMemory,
            DoneError::Flushed,
            DoneError::Window,
            DoneError::BadAnswer,
            DoneError::LocalMemory,
            DoneError::RemoteBadRequest,
            DoneError::RemoteMemory,
            DoneError::RemoteFailed,
            DoneError::NoAnswer,
            DoneError::NoBuffer,
            DoneError::Other(14),
            DoneError::Other(15),
            DoneError::Aborted,
            DoneError::Other(17),
            DoneError::Other(18),
            DoneError::Fatal,
            DoneError::NoAnswer,
        ];
        assert_eq!(named, expected);
    }
}
