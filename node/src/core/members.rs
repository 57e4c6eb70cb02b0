//! What members ask, one request at a time. Neighbours: `binding` (bind, claim, segments), `pairs` (introductions).

use abi::member::{Refusal, Reply, Request, VERSION};
use abi::{Endpoint, Name};

use super::binding::Wish;
use super::effect::{Descriptor, Effect};
use super::{ConnId, Core, Now};

/// Answers without descriptors.
pub(super) fn reply(conn: ConnId, reply: Reply, out: &mut Vec<Effect>) {
    out.push(Effect::Reply { conn, reply, fds: Vec::new() });
}

pub(super) fn refuse(conn: ConnId, why: Refusal, out: &mut Vec<Effect>) {
    reply(conn, Reply::Refused(why), out);
}

/// `Done`, or why not.
pub(super) fn done(conn: ConnId, result: Result<(), Refusal>, out: &mut Vec<Effect>) {
    reply(conn, result.map_or_else(Reply::Refused, |()| Reply::Done), out);
}

impl Core {
    pub(super) fn asked(
        &mut self,
        now: Now,
        conn: ConnId,
        request: Option<Request>,
        fresh: [u64; 2],
        out: &mut Vec<Effect>,
    ) {
        let Some(asker) = self.conns.get_mut(&conn) else { return };
        if self.stopping {
            return refuse(conn, Refusal::Stopping, out);
        }
        if std::mem::take(&mut asker.fenced) {
            return refuse(conn, Refusal::Fenced, out);
        }
        let gone = asker.homeless || asker.dc.is_some_and(|dc| !self.is_open(dc));
        let Some(asker) = self.conns.get(&conn).filter(|_| !gone) else {
            return refuse(conn, Refusal::NoSuchDc, out);
        };
        let Some(request) = request else { return refuse(conn, Refusal::BadRequest, out) };
        match (asker.dc, asker.endpoint, request) {
            (None, _, Request::Hello { version, dc }) => self.hello(conn, version, dc, out),
            (None, _, _) | (Some(_), _, Request::Hello { .. }) => refuse(conn, Refusal::BadRequest, out),
            (Some(dc), None, Request::Bind { slot, name, private }) => {
                self.bind(now, conn, dc, Wish { slot, name, private }, out);
            }
            (Some(_), _, Request::BindOther { pid, slot, name, private }) => {
                self.bind_other(conn, pid, Wish { slot, name, private }, fresh, out);
            }
            (Some(_), None, Request::Claim { endpoint, token }) => self.claim(conn, endpoint, token, out),
            (Some(dc), _, Request::LookupName { name }) => self.lookup(conn, dc, name, out),
            (Some(_), Some(own), request) => self.bound_asked(now, conn, own, request, out),
            (Some(_), None, _) => refuse(conn, Refusal::BadRequest, out),
        }
    }

    fn bound_asked(
        &mut self,
        now: Now,
        conn: ConnId,
        own: Endpoint,
        request: Request,
        out: &mut Vec<Effect>,
    ) {
        match request {
            Request::Ready => self.ready(conn, own, out),
            Request::NewSegment { kind, len_bytes } => self.new_segment(conn, own, kind, len_bytes, out),
            Request::PairSegment { peer, len_bytes } => self.pair_segment(conn, own, peer, len_bytes, out),
            Request::Introduce { to } => self.introduce(conn, own, to, false, out),
            Request::Follow { to } => self.introduce(conn, own, to, true, out),
            Request::Privileges => self.privileges(conn, own, out),
            Request::Pull => self.pull(conn, own, out),
            Request::Poll => self.poll(conn, own, out),
            Request::MapSegment { memory, segment } => self.map_segment(conn, own, memory, segment, out),
            Request::Recycled { peer } => {
                let result = self.recycled(now, own, peer, out);
                done(conn, result, out);
            }
            Request::Grant { segment, to } => self.grant(conn, own, segment, to, out),
            Request::Revoke { segment, to } => self.revoke(conn, own, segment, to, out),
            Request::DropSegment { segment } => self.drop_segment(conn, own, segment, out),
            Request::Unbind => {
                self.end_local(now, own, out);
                reply(conn, Reply::Done, out);
            }
            Request::Hello { .. }
            | Request::Bind { .. }
            | Request::BindOther { .. }
            | Request::Claim { .. }
            | Request::LookupName { .. } => refuse(conn, Refusal::BadRequest, out),
        }
    }

    fn hello(&mut self, conn: ConnId, version: u32, dc: Name, out: &mut Vec<Effect>) {
        if version != VERSION {
            return refuse(conn, Refusal::Version, out);
        }
        let found = self.plan.dcs.iter().find(|(_, plan)| plan.name == dc).map(|(id, _)| *id);
        let Some(dc) = found.filter(|dc| self.is_open(*dc)) else {
            return refuse(conn, Refusal::NoSuchDc, out);
        };
        let Some(range) = self.plan.own_range(dc) else { return refuse(conn, Refusal::NoSuchDc, out) };
        let Some(asker) = self.conns.get_mut(&conn) else { return };
        if !self.plan.may_bind(dc, asker.process.uid) {
            return refuse(conn, Refusal::NotAllowed, out);
        }
        asker.dc = Some(dc);
        let reply = Reply::Welcome {
            dc,
            node: self.plan.node,
            incarnation: self.incarnation,
            slot_first: range.first,
            slot_count: range.count,
        };
        out.push(Effect::Reply { conn, reply, fds: vec![Descriptor::Table(dc), Descriptor::Doorbells(dc)] });
    }

    fn lookup(&mut self, conn: ConnId, dc: abi::DcId, name: Name, out: &mut Vec<Effect>) {
        let holders = self.dcs.get(&dc).and_then(|d| d.names.get(&name));
        // A name is taken when a bind begins, and found when it is seen: whoever finds it can call it.
        let is_seen = |endpoint: &&Endpoint| self.locals.get(*endpoint).is_none_or(|l| l.stage.is_visible());
        match holders.and_then(|h| h.iter().find(is_seen)) {
            Some(endpoint) => reply(conn, Reply::Found { endpoint: *endpoint }, out),
            None => refuse(conn, Refusal::NoSuchEndpoint, out),
        }
    }

    pub(super) fn disconnected(&mut self, now: Now, conn: ConnId, out: &mut Vec<Effect>) {
        let Some(gone) = self.conns.remove(&conn) else { return };
        if let Some(endpoint) = gone.endpoint {
            self.end_local(now, endpoint, out);
        }
        let tickets: Vec<u32> =
            self.inquiries.iter().filter(|(_, i)| i.conn == conn).map(|(ticket, _)| *ticket).collect();
        for ticket in tickets {
            self.inquiries.remove(&ticket);
            out.push(Effect::CloseProcess { ticket });
        }
    }
}
