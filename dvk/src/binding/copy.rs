//! Driver: `copy`: bytes from one range to another, wherever they are, by grants.
//!
//! What lies on this node is copied here, a step at a time. Otherwise the couriers do it: they are asked through words in
//! our side of the pair, so that a courier that dies or a session that is lost is replaced by one that reads the same
//! words. Neighbours: `core::grants`, `fabric::courier::copies` (their half).

use std::time::{Duration, Instant};

use abi::grant::{Access, CopyRequest, Grant, Range, Role, Status};
use abi::limits::{COPY_BYTES_MAX, COPY_CANCEL_WAIT_MS, COPY_STEP_BYTES};
use abi::{Endpoint, NodeId};

use super::{Binding, NoPeer};
use crate::core::{Here, PeerIndex};
use crate::error::CopyError;
use crate::granted::GrantSegment;
use crate::timeout::Timeout;
use crate::waiting::{Look, deadline_of, left_until};

/// The copier's own node, as couriers are told.
const OWN_NODE: NodeId = NodeId(0);
/// Before a copy is begun anew.
const PAUSE: Duration = Duration::from_millis(2);

/// Where a copy begins, or goes to.
#[derive(Clone, Copy, Debug)]
pub enum CopyEnd<'a> {
    /// In a segment of one's own, from this byte on. To be written by a copy it must be one for writing.
    Own(&'a GrantSegment, u64),
    /// In what another has granted, from this byte of the grant on.
    Granted(&'a Grant, u64),
}

/// A range on another node.
#[derive(Clone, Copy)]
struct There {
    peer: PeerIndex,
    owner: Endpoint,
    node: NodeId,
    range: Range,
}

enum Located {
    Here(Here),
    There(There),
}

impl Binding {
    /// Copies `len_bytes` bytes from one range to another: between two grants, or a grant and a segment of one's own; all on
    /// this node, on others, or on different ones. The bytes go straight between the two nodes that hold them.
    ///
    /// `Ok`: they are there. On an error a beginning of them may be, and nothing more is written, unless it is
    /// [`CopyError::TimedOutUnknown`]. A copy of no bytes looks at nothing. Units: bytes, up to `limits::COPY_BYTES_MAX`.
    /// Cost: on one node a memcpy, two looks at each grant per `limits::COPY_STEP_BYTES`, and no system call once the
    /// segments are mapped. Source: MINIX `sys_safecopy`, DVS `dvk_vcopy`.
    pub fn copy(
        &mut self,
        from: CopyEnd<'_>,
        to: CopyEnd<'_>,
        len_bytes: u64,
        timeout: Timeout,
    ) -> Result<(), CopyError> {
        if len_bytes > COPY_BYTES_MAX {
            return Err(CopyError::TooLong);
        }
        if let CopyEnd::Own(segment, _) = to
            && segment.access() != Access::Write
        {
            return Err(CopyError::ReadOnly);
        }
        let deadline = deadline_of(timeout);
        let from = self.locate(from, len_bytes, deadline, timeout)?;
        let to = self.locate(to, len_bytes, deadline, timeout)?;
        if len_bytes == 0 {
            return Ok(());
        }
        match (from, to) {
            (Located::Here(from), Located::Here(to)) => self.copy_here(&from, &to, len_bytes, deadline),
            (Located::There(_), _) | (_, Located::There(_)) if timeout == Timeout::Zero => {
                Err(CopyError::WouldBlock)
            }
            (Located::There(from), Located::Here(to)) => {
                self.core.begin_writing(&to);
                let done = self.copy_with(&from, &to, Role::Send, len_bytes, deadline);
                self.core.end_writing(&to);
                done
            }
            (Located::Here(from), Located::There(to)) => {
                self.copy_with(&to, &from, Role::Receive, len_bytes, deadline)
            }
            (Located::There(from), Located::There(to)) if from.node == to.node => {
                let request = CopyRequest {
                    role: Role::Within,
                    node: to.node,
                    begun: false,
                    len_bytes,
                    theirs: to.range,
                    range: from.range,
                    other: from.owner.to_word(),
                    beside: 0,
                };
                self.copy_by(&to, Some(&from), request, deadline)
            }
            (Located::There(from), Located::There(to)) => self.copy_across(&from, &to, len_bytes, deadline),
        }
    }

    fn locate(
        &mut self,
        end: CopyEnd<'_>,
        len_bytes: u64,
        deadline: Option<Instant>,
        timeout: Timeout,
    ) -> Result<Located, CopyError> {
        let (grant, offset_bytes) = match end {
            CopyEnd::Own(segment, offset_bytes) => {
                segment.check(offset_bytes, len_bytes).map_err(|_| CopyError::OutOfRange)?;
                let (map, segment) = (segment.shared.map.borrow().clone(), segment.shared.segment.get());
                return Ok(Located::Here(Here::Own { segment, map, offset_bytes }));
            }
            CopyEnd::Granted(grant, offset_bytes) => (*grant, offset_bytes),
        };
        let owner = grant.owner;
        let fits = offset_bytes.checked_add(len_bytes).is_some_and(|end| end <= grant.len_bytes);
        if !fits || owner == self.whoami() {
            return Err(CopyError::NoGrant);
        }
        if self.core.is_over(owner) {
            return Err(CopyError::DeadSource);
        }
        let peer = match self.peer(owner, deadline, timeout) {
            Ok(peer) => peer,
            Err(NoPeer::Dead) => return Err(CopyError::DeadSource),
            Err(NoPeer::NotPermitted) => return Err(CopyError::NotPermitted),
            Err(NoPeer::NotInTime) if timeout == Timeout::Zero => return Err(CopyError::WouldBlock),
            Err(NoPeer::NotInTime) => return Err(CopyError::TimedOut),
            Err(NoPeer::Unavailable(why)) => return Err(CopyError::Unavailable(why)),
        };
        if !self.core.may_copy(peer) {
            return Err(CopyError::NotPermitted);
        }
        if !self.core.is_proxied(peer) {
            return Ok(Located::Here(Here::Granted { peer, grant, offset_bytes }));
        }
        let node = self.core.entry(owner.slot).node;
        let range = Range::granted(&grant, offset_bytes);
        Ok(Located::There(There { peer, owner, node, range }))
    }

    fn copy_here(
        &mut self,
        from: &Here,
        to: &Here,
        total: u64,
        deadline: Option<Instant>,
    ) -> Result<(), CopyError> {
        let mut done = 0;
        while done < total {
            let len = COPY_STEP_BYTES.min(total - done);
            self.core.copy_step(from, to, done, len as usize, total, &mut self.daemon)?;
            done += len;
            if done < total && left_until(deadline).is_none() {
                return Err(CopyError::TimedOut);
            }
        }
        Ok(())
    }

    /// Between this node and that of `there`, which plays `role`.
    fn copy_with(
        &mut self,
        there: &There,
        here: &Here,
        role: Role,
        len_bytes: u64,
        deadline: Option<Instant>,
    ) -> Result<(), CopyError> {
        let (range, beside) = match here {
            Here::Own { segment, offset_bytes, .. } => (Range::own(*segment, *offset_bytes), 0),
            Here::Granted { peer, grant, offset_bytes } => {
                let memory = self.core.memory_of(*peer).ok_or(CopyError::DeadSource)?;
                (Range::granted(grant, *offset_bytes), memory as u64)
            }
        };
        let theirs = there.range;
        let request =
            CopyRequest { role, node: OWN_NODE, begun: false, len_bytes, theirs, range, other: 0, beside };
        let done = self.copy_by(there, None, request, deadline);
        match here {
            // Ours to see: it may be this node's owner that has ended.
            Here::Granted { grant, .. } if done == Err(CopyError::NoGrant) => {
                Err(self.core.no_grant(grant.owner))
            }
            _ => done,
        }
    }

    /// The couriers of one pair do it all.
    fn copy_by(
        &mut self,
        there: &There,
        other: Option<&There>,
        request: CopyRequest,
        deadline: Option<Instant>,
    ) -> Result<(), CopyError> {
        loop {
            let asked = self.begin(there, &request);
            let status = match self.await_copies(&[asked], other, deadline, |status| status != Status::Ready)
            {
                Ok((_, status)) => status,
                Err(why) => return Err(self.cancel(&[asked], why)),
            };
            match status {
                Status::Done => return self.end(&[asked]),
                Status::Again => {
                    self.core.end_copy(asked.peer);
                    std::thread::sleep(PAUSE);
                }
                status => {
                    self.core.end_copy(asked.peer);
                    return Err(self.why(status, &[Some(there), other]));
                }
            }
        }
    }

    /// Between two other nodes: the receiving end is made ready, then the sending end is told to send to it.
    fn copy_across(
        &mut self,
        from: &There,
        to: &There,
        len_bytes: u64,
        deadline: Option<Instant>,
    ) -> Result<(), CopyError> {
        loop {
            let mut receive = CopyRequest {
                role: Role::Receive,
                node: from.node,
                begun: false,
                len_bytes,
                theirs: to.range,
                range: from.range,
                other: from.owner.to_word(),
                beside: 0,
            };
            let receiving = self.begin(to, &receive);
            let first = self.await_copies(&[receiving], Some(from), deadline, |_| true);
            let status = match first {
                Ok((_, status)) => status,
                Err(why) => return Err(self.cancel(&[receiving], why)),
            };
            if status != Status::Ready {
                self.core.end_copy(receiving.peer);
                if status == Status::Again {
                    std::thread::sleep(PAUSE);
                    continue;
                }
                return Err(self.why(status, &[Some(to), None]));
            }
            receive.begun = true;
            self.core.ask_copy_again(receiving.peer, receiving.number, &receive);
            let send = CopyRequest {
                role: Role::Send,
                node: to.node,
                theirs: from.range,
                range: to.range,
                other: to.owner.to_word(),
                beside: receiving.number,
                ..receive
            };
            let sending = self.begin(from, &CopyRequest { begun: false, ..send });
            let both = [receiving, sending];
            // That it has left is no news: whoever receives it counts.
            let over = |at: usize, status| status != Status::Ready && (at == 0 || status != Status::Done);
            let ended = self.await_either(&both, [to, from], deadline, over);
            match ended {
                Err(why) => return Err(self.cancel(&both, why)),
                Ok((0, Status::Done)) => return self.end(&both),
                Ok((_, Status::Again)) => {
                    let _ = self.cancel(&both, CopyError::TimedOut);
                    std::thread::sleep(PAUSE);
                }
                Ok((at, status)) => {
                    let why = self.why(status, &[Some(if at == 0 { to } else { from }), None]);
                    return Err(self.cancel(&both, why));
                }
            }
        }
    }

    fn begin(&mut self, there: &There, request: &CopyRequest) -> Asked {
        let memory = self.core.memory_of(there.peer);
        let number = self.core.ask_copy(there.peer, request);
        Asked { peer: there.peer, owner: there.owner, number, memory }
    }

    /// Waits for an answer of the first, while another owner lives too.
    fn await_copies(
        &mut self,
        asked: &[Asked; 1],
        other: Option<&There>,
        deadline: Option<Instant>,
        over: impl Fn(Status) -> bool,
    ) -> Result<(usize, Status), CopyError> {
        let owners = [asked[0].owner, other.map_or(asked[0].owner, |other| other.owner)];
        self.await_any(asked, owners, deadline, |_, status| over(status))
    }

    fn await_either(
        &mut self,
        asked: &[Asked; 2],
        ends: [&There; 2],
        deadline: Option<Instant>,
        over: impl Fn(usize, Status) -> bool,
    ) -> Result<(usize, Status), CopyError> {
        self.await_any(asked, ends.map(|end| end.owner), deadline, over)
    }

    fn await_any(
        &mut self,
        asked: &[Asked],
        owners: [Endpoint; 2],
        deadline: Option<Instant>,
        over: impl Fn(usize, Status) -> bool,
    ) -> Result<(usize, Status), CopyError> {
        let first = asked.first().map(|asked| asked.peer);
        let waited = self.wait_on(first, deadline, |core, _, look| {
            for (at, asked) in asked.iter().enumerate() {
                if let Some(status) = core.copy_answer(asked.peer, asked.number)
                    && over(at, status)
                {
                    return Some(Ok((at, status)));
                }
            }
            let dead = look != Look::Quick
                && owners.iter().any(|owner| core.no_grant(*owner) == CopyError::DeadSource);
            dead.then_some(Err(CopyError::DeadSource))
        });
        match waited {
            Some(ended) => ended,
            None if self.interrupted => Err(CopyError::Interrupted),
            None => Err(CopyError::TimedOut),
        }
    }

    /// It is there: no courier's successor may begin it again.
    fn end(&mut self, asked: &[Asked]) -> Result<(), CopyError> {
        for asked in asked {
            self.core.end_copy(asked.peer);
        }
        // The daemon rings before it lets a successor look at our words: who has not rung has not begun.
        let _ = self.core.pull(&mut self.daemon);
        let replaced = asked.iter().any(|asked| self.core.memory_of(asked.peer) != asked.memory);
        if replaced && self.cancel(asked, CopyError::TimedOut) == CopyError::TimedOutUnknown {
            return Err(CopyError::TimedOutUnknown);
        }
        Ok(())
    }

    /// Gives it up, and hears that nothing more is written; then `why`.
    fn cancel(&mut self, asked: &[Asked], why: CopyError) -> CopyError {
        let bound = Some(Instant::now() + Duration::from_millis(COPY_CANCEL_WAIT_MS));
        let cancelled: Vec<Asked> = asked
            .iter()
            .map(|asked| Asked { number: self.core.ask_copy(asked.peer, &CANCEL), ..*asked })
            .collect();
        let mut confirmed = true;
        for asked in &cancelled {
            let number = asked.number;
            let waited = self.wait_on(Some(asked.peer), bound, |core, _, look| {
                if core.copy_answer(asked.peer, number).is_some() {
                    return Some(true);
                }
                // Whoever has ended has no courier any more that does anything for it.
                (look != Look::Quick && core.no_grant(asked.owner) == CopyError::DeadSource).then_some(true)
            });
            if waited == Some(true) {
                self.core.end_copy(asked.peer);
            } else {
                confirmed = false;
            }
        }
        if confirmed { why } else { CopyError::TimedOutUnknown }
    }

    fn why(&self, status: Status, ends: &[Option<&There>; 2]) -> CopyError {
        let dead = |end: &There| self.core.no_grant(end.owner) == CopyError::DeadSource;
        named(status, ends.iter().flatten().any(|end| dead(end)))
    }
}

/// How a courier's answer is named to who copies.
fn named(status: Status, has_ended: bool) -> CopyError {
    match status {
        _ if has_ended => CopyError::DeadSource,
        Status::NoWay => CopyError::NoWay,
        _ => CopyError::NoGrant,
    }
}

/// A request that stands.
#[derive(Clone, Copy)]
struct Asked {
    peer: PeerIndex,
    owner: Endpoint,
    number: u64,
    memory: Option<u32>,
}

const CANCEL: CopyRequest = CopyRequest {
    role: Role::Cancel,
    node: OWN_NODE,
    begun: false,
    len_bytes: 0,
    theirs: Range::own(0, 0),
    range: Range::own(0, 0),
    other: 0,
    beside: 0,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_named_and_the_end_of_an_owner_before_any() {
        assert_eq!(named(Status::NoWay, false), CopyError::NoWay);
        assert_eq!(named(Status::NoGrant, false), CopyError::NoGrant);
        assert_eq!(named(Status::NoWay, true), CopyError::DeadSource);
    }
}
