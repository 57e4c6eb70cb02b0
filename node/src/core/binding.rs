//! How an endpoint comes to be: slot and generation chosen, first segments made, mapped by its process, sealed, visible.

use abi::limits::{POOL_BYTES_FIRST, POOL_BYTES_MAX, SIDES_FIRST, SIDES_PRIVATE_FIRST, SLOTS_PER_DC};
use abi::member::{Refusal, Reply, SegmentKind};
use abi::table::{Entry, State};
use abi::{DcId, Endpoint, Generation, Level, Name, Slot};

use super::effect::{Descriptor, Effect, Note, Process};
use super::members::{done, refuse, reply};
use super::memory::{NotAdded, Owner, SegmentStage};
use super::state::{Inquiry, Local, Stage};
use super::{ConnId, Core, Now};

/// Generations that are written down as used in one go.
pub const GENERATIONS_AT_ONCE: u32 = 1024;

/// What a binding starts from.
struct Binding {
    dc: DcId,
    slot: Option<Slot>,
    name: Name,
    process: Process,
    ticket: Option<u32>,
    token: [u64; 2],
    private: bool,
}

/// As what somebody wants to be bound.
pub(super) struct Wish {
    pub slot: Option<Slot>,
    pub name: Name,
    pub private: bool,
}

impl Core {
    pub(super) fn bind(&mut self, now: Now, conn: ConnId, dc: DcId, wish: Wish, out: &mut Vec<Effect>) {
        let Some(process) = self.conns.get(&conn).map(|c| c.process) else { return };
        let Wish { slot, name, private } = wish;
        let binding = Binding { dc, slot, name, process, ticket: None, token: [0; 2], private };
        match self.begin(now, conn, binding, out) {
            Ok(endpoint) => self.hold(conn, endpoint),
            Err(why) => refuse(conn, why, out),
        }
    }

    /// Ties a connection to its binding.
    fn hold(&mut self, conn: ConnId, endpoint: Endpoint) {
        if let Some(asker) = self.conns.get_mut(&conn) {
            asker.endpoint = Some(endpoint);
        }
        if let Some(local) = self.locals.get_mut(&endpoint) {
            local.conn = Some(conn);
        }
    }

    pub(super) fn bind_other(
        &mut self,
        conn: ConnId,
        pid: u32,
        wish: Wish,
        token: [u64; 2],
        out: &mut Vec<Effect>,
    ) {
        let Wish { slot, name, private } = wish;
        let ticket = self.ticket_next;
        self.ticket_next = self.ticket_next.wrapping_add(1);
        self.inquiries.insert(ticket, Inquiry { conn, pid, slot, name, token, private });
        out.push(Effect::OpenProcess { ticket, pid });
    }

    pub(super) fn process_opened(
        &mut self,
        now: Now,
        ticket: u32,
        process: Option<Process>,
        out: &mut Vec<Effect>,
    ) {
        let Some(inquiry) = self.inquiries.remove(&ticket) else {
            return self.process_found_again(now, ticket, process, out);
        };
        let asker = self.conns.get(&inquiry.conn).and_then(|c| Some((c.process.uid, c.dc?)));
        let Some((uid, dc)) = asker else { return out.push(Effect::CloseProcess { ticket }) };
        let process = process.filter(|p| p.pid == inquiry.pid && (uid == 0 || p.uid == uid));
        let result = match process {
            None => Err(Refusal::NoSuchProcess),
            Some(process) => {
                let Inquiry { slot, name, token, private, .. } = inquiry;
                let ticket = Some(ticket);
                let binding = Binding { dc, slot, name, process, ticket, token, private };
                self.begin(now, inquiry.conn, binding, out)
            }
        };
        match result {
            Ok(endpoint) => {
                self.tickets.insert(ticket, endpoint);
            }
            Err(why) => {
                out.push(Effect::CloseProcess { ticket });
                refuse(inquiry.conn, why, out);
            }
        }
    }

    /// Chooses slot and generation and has the first segments made; the answer goes out when they are there.
    fn begin(
        &mut self,
        now: Now,
        conn: ConnId,
        binding: Binding,
        out: &mut Vec<Effect>,
    ) -> Result<Endpoint, Refusal> {
        let Binding { dc, slot, name, process, ticket, token, private } = binding;
        let taken = |d: &super::state::Dc| d.names.contains_key(&name);
        if !name.is_none() && self.dcs.get(&dc).is_some_and(taken) {
            return Err(Refusal::NameTaken);
        }
        let slot = self.choose_slot(dc, slot)?;
        self.binds += 1;
        let Some(there) = self.dcs.get_mut(&dc) else { return Err(Refusal::NoSuchDc) };
        let first = self.plan.generation_first.max(there.generation_first);
        let used = there.slots.entry(slot).or_default();
        let grown = !(used.generation >= first && shm::mutant!(GenerationIsReused)) as u32;
        used.generation =
            used.generation.max(first.saturating_sub(1)).checked_add(grown).ok_or(Refusal::LimitReached)?;
        used.last_bind = self.binds;
        self.generation_max = self.generation_max.max(used.generation);
        let endpoint = Endpoint::new(dc, slot, Generation(used.generation));
        used.holder = Some(endpoint);
        there.name(name, endpoint);
        if endpoint.generation.0 >= self.generation_reserved {
            self.generation_reserved = endpoint.generation.0.saturating_add(GENERATIONS_AT_ONCE);
            out.push(self.record());
        }
        let memory = self.endpoint_memory(endpoint, private, out);
        let local = Local {
            name,
            process,
            stage: Stage::Making { conn },
            conn: None,
            ticket,
            token,
            memory,
            private,
            spent: Default::default(),
            links: Default::default(),
            past: Default::default(),
            pulls: Default::default(),
            polls: false,
            bells: Default::default(),
            since: now,
        };
        self.locals.insert(endpoint, local);
        Ok(endpoint)
    }

    /// The slot asked for, or of the free ones the one unused for longest, lowest first. One whose last holder left
    /// something that is still being read comes after all others.
    fn choose_slot(&self, dc: DcId, asked: Option<Slot>) -> Result<Slot, Refusal> {
        let open = self.plan.own_range(dc).filter(|_| self.is_open(dc));
        let range = open.ok_or(Refusal::NoSuchDc)?;
        let slots = &self.dcs.get(&dc).ok_or(Refusal::NoSuchDc)?.slots;
        if let Some(slot) = asked {
            if slot.0 >= SLOTS_PER_DC || !range.contains(slot) {
                return Err(Refusal::NotMySlot);
            }
            let bound = slots.get(&slot).is_some_and(|s| s.holder.is_some());
            return if bound { Err(Refusal::SlotTaken) } else { Ok(slot) };
        }
        let all = (range.first.0..range.first.0 + range.count).map(Slot);
        let free = all.filter_map(|slot| match slots.get(&slot) {
            None => Some((false, 0, slot)),
            Some(used) if used.holder.is_none() => Some((used.undrained > 0, used.last_bind, slot)),
            Some(_) => None,
        });
        free.min().map(|(.., slot)| slot).ok_or(Refusal::NoFreeSlot)
    }

    pub(super) fn segment_made(
        &mut self,
        now: Now,
        memory: u32,
        segment: u32,
        made: bool,
        out: &mut Vec<Effect>,
    ) {
        let Some(there) = self.memories.get_mut(&memory) else { return };
        let owner = there.owner;
        let Some(slot) = there.segments.get_mut(&segment) else { return };
        if slot.stage != SegmentStage::Making {
            return;
        }
        let len_bytes = slot.len_bytes;
        if made {
            slot.stage = SegmentStage::Open;
        }
        match owner {
            Owner::Proxy { proxy, .. } => self.proxy_segment_made(proxy, memory, segment, made, out),
            Owner::Endpoint(endpoint) => {
                let stage = self.locals.get(&endpoint).map(|l| (l.stage, l.conn));
                match stage {
                    Some((Stage::Making { conn }, _)) => {
                        self.first_segment_made(now, conn, endpoint, made, out)
                    }
                    Some((_, Some(conn))) if made => {
                        let reply = Reply::Segment { index: segment, len_bytes };
                        out.push(Effect::Reply {
                            conn,
                            reply,
                            fds: vec![Descriptor::Segment { memory, segment }],
                        });
                    }
                    Some((_, Some(conn))) => {
                        self.memories.get_mut(&memory).map(|m| m.segments.remove(&segment));
                        refuse(conn, Refusal::NoMemory, out);
                    }
                    Some((_, None)) | None => {}
                }
            }
        }
    }

    fn first_segment_made(
        &mut self,
        now: Now,
        conn: ConnId,
        endpoint: Endpoint,
        made: bool,
        out: &mut Vec<Effect>,
    ) {
        if !made {
            self.end_local(now, endpoint, out);
            return refuse(conn, Refusal::NoMemory, out);
        }
        let Some(local) = self.locals.get_mut(&endpoint) else { return };
        if self.memories.get(&local.memory).is_none_or(|m| m.any(SegmentStage::Making)) {
            return;
        }
        let for_other = local.ticket.is_some();
        local.stage = if for_other { Stage::Reserved } else { Stage::Mapping { visible: false } };
        local.since = now;
        let token = local.token;
        let (reply, fds) = bound(endpoint, local, token);
        if for_other {
            self.appear(endpoint, out);
        }
        out.push(Effect::Reply { conn, reply, fds: if for_other { Vec::new() } else { fds } });
    }

    /// The endpoint is in the table and the directory from now on.
    fn appear(&mut self, endpoint: Endpoint, out: &mut Vec<Effect>) {
        let Some(local) = self.locals.get(&endpoint) else { return };
        out.push(self.table_entry(endpoint, State::Bound));
        out.push(Effect::Note(Note::Bound { endpoint, pid: local.process.pid }));
        let entry = local.entry(endpoint, true);
        self.announce(entry, out);
        self.hint_warnings(endpoint, out);
    }

    /// Says in the table how an endpoint of this node is.
    pub(super) fn table_entry(&self, endpoint: Endpoint, state: State) -> Effect {
        let level = self.identity(endpoint).map_or_else(Level::default, |who| self.level(endpoint.dc, &who));
        let (node, generation) = (self.plan.node, endpoint.generation);
        let entry = Entry { state, node, proxy: 0, generation, level };
        Effect::SetTable { dc: endpoint.dc, slot: endpoint.slot, entry }
    }

    pub(super) fn claim(&mut self, conn: ConnId, endpoint: Endpoint, token: [u64; 2], out: &mut Vec<Effect>) {
        let Some(asker) = self.conns.get(&conn) else { return };
        let (process, dc) = (asker.process, asker.dc);
        let local = self.locals.get_mut(&endpoint).filter(|l| Some(endpoint.dc) == dc && !l.stage.is_dead());
        let Some(local) = local else { return refuse(conn, Refusal::NoSuchEndpoint, out) };
        let is_it = local.process.pid == process.pid && local.process.start_time == process.start_time;
        // All 128 bits are compared whatever the first ones say.
        let differs = (local.token[0] ^ token[0]) | (local.token[1] ^ token[1]);
        if local.stage != Stage::Reserved || !is_it || differs != 0 {
            return refuse(conn, Refusal::NotAllowed, out);
        }
        local.stage = Stage::Mapping { visible: true };
        // As which user it was bound is known on every node, and stays.
        local.process = Process { uid: local.process.uid, ..process };
        let (reply, fds) = bound(endpoint, local, [0; 2]);
        self.hold(conn, endpoint);
        out.push(Effect::Reply { conn, reply, fds });
    }

    pub(super) fn new_segment(
        &mut self,
        conn: ConnId,
        own: Endpoint,
        kind: SegmentKind,
        len_bytes: u64,
        out: &mut Vec<Effect>,
    ) {
        let Some(memory) = self.locals.get(&own).map(|l| l.memory) else { return };
        if self.memories.get(&memory).is_none_or(|m| m.any(SegmentStage::Making)) {
            return refuse(conn, Refusal::BadRequest, out);
        }
        match self.add_segment(memory, kind, len_bytes, POOL_BYTES_MAX, out) {
            Ok(_index) => {}
            Err(why) => refuse(conn, why.into(), out),
        }
    }

    /// Everything handed out so far is mapped: seal it.
    pub(super) fn ready(&mut self, conn: ConnId, own: Endpoint, out: &mut Vec<Effect>) {
        let Some(memory) = self.locals.get(&own).map(|l| l.memory) else { return };
        let Some(there) = self.memories.get_mut(&memory) else { return };
        let segments = there.seal(None);
        if segments.is_empty() {
            return done(conn, Ok(()), out);
        }
        out.push(Effect::Seal { memory, segments });
    }

    pub(super) fn sealed(&mut self, now: Now, memory: u32, sealed: bool, out: &mut Vec<Effect>) {
        let Some(there) = self.memories.get_mut(&memory) else { return };
        let owner = there.owner;
        let segments = if sealed { there.seal_done() } else { Vec::new() };
        let own = match owner {
            Owner::Endpoint(own) => own,
            Owner::Proxy { proxy, dc, .. } => {
                return self.proxy_sealed((proxy, dc), memory, sealed.then_some(segments), out);
            }
        };
        let Some(local) = self.locals.get_mut(&own) else { return };
        let Some(conn) = local.conn else { return };
        if !sealed {
            // It spoilt its own segment before the seal.
            refuse(conn, Refusal::BadRequest, out);
            out.push(Effect::Close { conn });
            return self.end_local(now, own, out);
        }
        let Stage::Mapping { visible } = local.stage else {
            reply(conn, Reply::Done, out);
            return self.retry_opens_of(own, out);
        };
        local.stage = Stage::Ready;
        if !visible {
            self.appear(own, out);
        }
        reply(conn, Reply::Done, out);
        self.retry_opens_of(own, out);
    }
}

impl From<NotAdded> for Refusal {
    fn from(why: NotAdded) -> Refusal {
        match why {
            NotAdded::Misshapen => Refusal::BadRequest,
            NotAdded::TooMuch => Refusal::LimitReached,
        }
    }
}

/// What tells a process of its binding, and its first segments: of sides, and the pool behind them.
fn bound(endpoint: Endpoint, local: &Local, token: [u64; 2]) -> (Reply, Vec<Descriptor>) {
    let (memory, private) = (local.memory, local.private);
    let (sides, segments) =
        if private { (SIDES_PRIVATE_FIRST, SIDES_PRIVATE_FIRST + 1) } else { (SIDES_FIRST, 2) };
    let reply = Reply::Bound { endpoint, memory, sides, pool_bytes: POOL_BYTES_FIRST, token, private };
    (reply, (0..segments).map(|segment| Descriptor::Segment { memory, segment }).collect())
}
