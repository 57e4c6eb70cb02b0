//! The host of a simulated binding: asks the daemon of its node, as `dvk::daemon` does over its socket.

use std::sync::Arc;

use abi::Endpoint;
use abi::limits::{SIDES_MORE, SIDES_SPARE_MIN};
use abi::member::{Introduction, Refusal, Reply, Request, SegmentKind};
use abi::side;
use dvk::Unavailable;
use dvk::core::{Host, Introduced, Pulled};
use fabric::Time;
use node::core::ConnId;
use shm::map::Mapping;

use super::Home;
use crate::site::Site;

pub(super) struct Hands<'a> {
    pub site: &'a mut Site,
    pub now: Time,
    pub conn: ConnId,
    pub home: &'a mut Home,
}

impl Hands<'_> {
    fn ask(&mut self, request: Request) -> Result<Reply, Unavailable> {
        self.site.ask(self.now, self.conn, request).map_err(Unavailable::Refused)
    }

    /// One more segment of the own memory, mapped and sealed.
    pub fn new_segment(&mut self, kind: SegmentKind, len_bytes: u64) -> Result<u32, Unavailable> {
        let Reply::Segment { index, .. } = self.ask(Request::NewSegment { kind, len_bytes })? else {
            return Err(Unavailable::Broken);
        };
        match self.ask(Request::Ready)? {
            Reply::Done => Ok(index),
            _ => Err(Unavailable::Broken),
        }
    }

    fn spare_sides(&mut self) -> Result<(), Unavailable> {
        if self.home.sides_used + SIDES_SPARE_MIN > self.home.sides {
            self.new_segment(SegmentKind::Sides, SIDES_MORE as u64 * side::BYTES as u64)?;
            self.home.sides += SIDES_MORE;
        }
        Ok(())
    }

    /// The pair with `to`. `Ok(None)`: the other side is not ready, ask again.
    pub fn introduce(&mut self, to: Endpoint) -> Result<Option<Introduced>, Unavailable> {
        self.spare_sides()?;
        match self.ask(Request::Introduce { to }) {
            Ok(Reply::Introduced(introduction)) => self.introduced(&introduction).map(Some),
            Err(Unavailable::Refused(Refusal::NotReady)) => Ok(None),
            Ok(_) => Err(Unavailable::Broken),
            Err(why) => Err(why),
        }
    }

    fn introduced(&mut self, i: &Introduction) -> Result<Introduced, Unavailable> {
        let own = self.site.own_side(self.home.memory, i).ok_or(Unavailable::NoMemory)?;
        let side = self.site.peer_side(i).ok_or(Unavailable::NoMemory)?;
        self.home.sides_used += 1;
        let doorbell = i.doorbell as usize;
        let Introduction { peer, memory, proxied, allowed, .. } = *i;
        Ok(Introduced { peer, own, side, memory, doorbell, proxied, allowed, ring: None })
    }
}

impl Host for Hands<'_> {
    fn map_granted(
        &mut self,
        memory: u32,
        segment: u32,
        _writable: bool,
    ) -> Result<Arc<Mapping>, Unavailable> {
        self.map_segment(memory, segment)
    }

    fn map_segment(&mut self, memory: u32, segment: u32) -> Result<Arc<Mapping>, Unavailable> {
        let Reply::Segment { .. } = self.ask(Request::MapSegment { memory, segment })? else {
            return Err(Unavailable::Broken);
        };
        self.site.bulk(memory, segment).ok_or(Unavailable::NoMemory)
    }

    fn recycled(&mut self, peer: Endpoint) {
        self.home.sides_used = self.home.sides_used.saturating_sub(1);
        let _ = self.ask(Request::Recycled { peer });
    }

    fn pull(&mut self, _: bool) -> Result<Option<Pulled>, Unavailable> {
        let pulled = match self.ask(Request::Pull)? {
            Reply::Introduced(i) => Some(Pulled::Introduced(self.introduced(&i)?)),
            Reply::Moved(i) => {
                let side = self.site.peer_side(&i).ok_or(Unavailable::NoMemory)?;
                let doorbell = i.doorbell as usize;
                Some(Pulled::Moved { peer: i.peer, side, memory: i.memory, doorbell, ring: None })
            }
            Reply::Rings { peer, .. } => Some(Pulled::Rings { peer, ring: None }),
            Reply::Gone { peer } => Some(Pulled::Gone { peer }),
            Reply::Warned { endpoint } => Some(Pulled::Warned { endpoint }),
            Reply::Nothing => None,
            _ => return Err(Unavailable::Broken),
        };
        self.spare_sides()?;
        Ok(pulled)
    }
}
