//! Copies in which another node takes part: what a copier of this node asks for, and what this node's couriers do for
//! copiers elsewhere.
//!
//! The receiving end pulls: a step is announced by whoever has the bytes, and accepted straight into the granted range
//! while the grant is looked at, before and after. One step at a time, so that what is there is a beginning of the whole.
//! Nothing here matters but to whoever waits for it: after a lost session the copier's own request, in its own memory,
//! begins it anew. Neighbours: `shm::grants` (the table, the marker), `dvk` (the copier), `jobs` (the books).

use std::sync::Arc;

use abi::grant::{self, Access, CopyRequest, Range, Role, Status};
use abi::limits::{COPY_STEP_BYTES, COPY_STEPS_AHEAD};
use abi::record::{self, Kind, Record};
use abi::{Corrupt, Endpoint, NodeId, Pair};
use shm::grants::PeerGrants;
use shm::map::Mapping;
use shm::words::Words;

use super::jobs::{Announced, At, By, Coming, Job, Key, Work};
use super::outgoing::{Outgoing, Said};
use super::{CONTROL_MAX, Courier, Output, PairIndex};
use crate::{Fabric, Piece, RegionKey};

/// The copier's own node, in its requests.
const HERE: NodeId = NodeId(0);

/// Segments that cannot be had, and whose copies have not been told yet.
const DENIED_MAX: usize = 1024;

/// What a range comes to.
enum Found {
    Here {
        map: Arc<Mapping>,
        region: RegionKey,
        offset_bytes: u64,
    },
    /// Its segment has been asked for.
    Coming,
    NoGrant,
}

impl Courier {
    /// Looks whether the local endpoint asks for another copy than the one known.
    pub(super) fn look_for_copy(&mut self, index: PairIndex) {
        let Some(pair) = self.pair(index) else { return };
        let number = pair.side.copy_number();
        if number == pair.copy_seen || number & 1 != 0 {
            return;
        }
        let key = Key { pair: index, by: By::Local };
        let (request, node) = (pair.side.copy_request(), pair.node);
        let (local, remote, memory) = (pair.local, pair.remote, pair.memory);
        let Some((number, request)) = request else {
            // None any more: whoever waited for one does not.
            if pair.side.copy_number() == number {
                self.jobs.remove(key);
                self.on_copy_seen(index, number);
            }
            return;
        };
        self.on_copy_seen(index, number);
        if request.role == Role::Cancel {
            return self.cancel_local(key, number);
        }
        let memory = if request.range.generation == grant::OWN { memory } else { request.beside as u32 };
        let place = At { memory, range: request.range };
        let work = match (request.role, request.node) {
            (Role::Receive, HERE) => {
                let ends = Pair { source: local, destination: remote };
                Work::send(node, ends, false, number, place)
            }
            (Role::Send, HERE) => Work::receive(node, place),
            _ => Work::Elsewhere,
        };
        self.jobs.insert(key, Job::new(number, local, request, work));
    }

    fn on_copy_seen(&mut self, index: PairIndex, number: u64) {
        if let Some(pair) = self.pair_mut(index) {
            pair.copy_seen = number;
        }
    }

    fn cancel_local(&mut self, key: Key, number: u64) {
        let local = self.pair(key.pair).map(|pair| pair.local);
        match (self.jobs.get_mut(key), local) {
            (Some(job), _) => job.cancel(number),
            (None, Some(local)) => {
                let mut job = Job::new(number, local, CANCEL, Work::Elsewhere);
                job.cancel(number);
                self.jobs.insert(key, job);
            }
            (None, None) => {}
        }
    }

    /// Says to the far end what the local copier asks for, once in each session.
    pub(super) fn gather_copy(&mut self, index: PairIndex, out: &mut Outgoing) {
        self.look_for_copy(index);
        let key = Key { pair: index, by: By::Local };
        let Some(job) = self.jobs.get(key).filter(|job| !job.asked) else { return };
        let Some(pair) = self.pair(index) else { return };
        let request = match pair.side.copy_request() {
            Some((number, request)) if number == job.number => request,
            _ => job.request,
        };
        let mut body = [0; grant::REQUEST_BYTES];
        for (word, bytes) in request.to_words().iter().zip(body.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let record = Record::of(Kind::Copy, pair.outward(), job.number);
        out.push(record, &body, None, false, Said::CopyAsked { pair: index, number: job.number });
    }

    pub(super) fn copy_asked(&mut self, index: PairIndex, number: u64) {
        if let Some(job) = self.jobs.get_mut(Key { pair: index, by: By::Local })
            && job.number == number
        {
            job.asked = true;
        }
    }

    /// A copier elsewhere asks for something of the pair's local endpoint.
    pub(super) fn on_copy(&mut self, index: PairIndex, number: u64, body: &[u8]) -> Result<(), Corrupt> {
        let mut words = [0; grant::REQUEST_WORDS];
        for (word, eight) in words.iter_mut().zip(body.chunks_exact(8)) {
            *word = u64::from_le_bytes(eight.try_into().unwrap_or([0; 8]));
        }
        let request = CopyRequest::from_words(&words).ok_or(Corrupt::new("a copy that is none", number))?;
        // Of endpoints of this node a copier elsewhere has what it was granted, and nothing is its own.
        let is_here = |range: &Range| range.generation == grant::OWN;
        let names_own = match request.role {
            Role::Send | Role::Receive => is_here(&request.theirs),
            Role::Within => is_here(&request.theirs) || is_here(&request.range),
            Role::Cancel => false,
        };
        if names_own {
            return Err(Corrupt::new("a copy of what nobody granted", number));
        }
        let key = Key { pair: index, by: By::Remote };
        let Some(pair) = self.pair(index) else { return Ok(()) };
        let (local, remote, node, memory) = (pair.local, pair.remote, pair.node, pair.memory);
        let known = self.jobs.get(key).map(|job| job.number);
        if known.is_some_and(|known| known > number) {
            return Ok(());
        }
        if request.role == Role::Cancel {
            match self.jobs.get_mut(key) {
                Some(job) => {
                    job.cancel(number);
                    job.confirmed = true;
                }
                None => self.say_state(index, number, Status::Cancelled),
            }
            return Ok(());
        }
        if known == Some(number) {
            return Ok(());
        }
        if request.begun {
            self.say_state(index, number, Status::Again);
            return Ok(());
        }
        let theirs = At { memory, range: request.theirs };
        let other = Endpoint::from_word(request.other).filter(|other| other.dc == local.dc);
        let work = match request.role {
            Role::Receive if request.node == HERE => Work::receive(node, theirs),
            Role::Receive => Work::receive(request.node, theirs),
            Role::Send if request.node == HERE => {
                Work::send(node, Pair { source: local, destination: remote }, true, number, theirs)
            }
            Role::Send => match other.filter(|_| self.links.contains_key(&request.node)) {
                Some(to) => {
                    let ends = Pair { source: remote, destination: to };
                    Work::send(request.node, ends, false, request.beside, theirs)
                }
                None => {
                    self.say_state(index, number, Status::NoWay);
                    return Ok(());
                }
            },
            Role::Within | Role::Cancel => {
                let of_other = other.and_then(|other| self.by_ends.get(&(other, remote)));
                match of_other.and_then(|&index| self.pair(index)).map(|pair| pair.memory) {
                    Some(memory) => Work::within(At { memory, range: request.range }, theirs),
                    None => {
                        self.say_state(index, number, Status::NoGrant);
                        return Ok(());
                    }
                }
            }
        };
        self.drop_copy(key);
        self.jobs.insert(key, Job::new(number, remote, request, work));
        Ok(())
    }

    /// How a copy that a local endpoint asked for is doing at the far end.
    pub(super) fn on_copy_state(
        &mut self,
        index: PairIndex,
        number: u64,
        body: &[u8],
    ) -> Result<(), Corrupt> {
        let word = u64::from_le_bytes(body.try_into().unwrap_or([0; 8]));
        let status = Status::from_word(word).ok_or(Corrupt::new("a copy in no state", word))?;
        let key = Key { pair: index, by: By::Local };
        let Some(job) = self.jobs.get_mut(key).filter(|job| job.number == number) else { return Ok(()) };
        match (&mut job.work, status) {
            // What has come is counted here.
            (Work::Receive { .. }, Status::Done | Status::Ready) => {}
            (Work::Receive { .. } | Work::Send { .. }, Status::Again) => job.begin_anew(),
            (_, Status::Ready) => {
                if let Some(pair) = self.pair(index) {
                    pair.own.answer_copy(number, Status::Ready);
                    self.knocks.insert(index);
                }
            }
            (_, Status::Cancelled) => job.confirmed = true,
            (_, status) => job.end(status),
        }
        Ok(())
    }

    /// Bytes of a copy are announced. Refused unless they are the next ones, of one that was asked for, by whom it was asked of.
    pub(super) fn copy_announced(
        &mut self,
        node: NodeId,
        token: u64,
        bulk_bytes: u64,
        record: &Record,
        head: &[u8],
        fabric: &mut dyn Fabric,
    ) {
        let offset = head.get(record::BYTES..).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let by = if record.count == 1 { By::Local } else { By::Remote };
        let index = record.pair.and_then(|ends| self.by_ends.get(&(ends.destination, ends.source)).copied());
        let job = index.and_then(|pair| self.jobs.get_mut(Key { pair, by }));
        let taken = match (job, offset) {
            (Some(job), Some(offset)) if job.number == record.arg => {
                job.announce(node, Announced { token, offset, len_bytes: bulk_bytes })
            }
            _ => false,
        };
        if !taken {
            fabric.refuse(node, token);
        }
    }

    /// Moves every copy that can move. Returns whether there is more to do at once.
    pub(super) fn run_copies(&mut self, fabric: &mut dyn Fabric) -> bool {
        if self.jobs.is_empty() {
            return false;
        }
        let mut more = false;
        for key in self.jobs.keys() {
            more |= self.run_copy(key, fabric);
        }
        more
    }

    fn run_copy(&mut self, key: Key, fabric: &mut dyn Fabric) -> bool {
        let Some(job) = self.jobs.get(key) else { return false };
        if let Some(status) = job.ended() {
            self.finish_copy(key, status, fabric);
            return true;
        }
        if job.end.is_some() || job.cancelled {
            self.refuse_announced(key, fabric);
            return false;
        }
        match job.work {
            Work::Receive { .. } => self.run_receive(key, fabric),
            Work::Within { .. } => self.run_within(key),
            Work::Send { .. } | Work::Elsewhere => false,
        }
    }

    fn run_receive(&mut self, key: Key, fabric: &mut dyn Fabric) -> bool {
        let Some(job) = self.jobs.get(key) else { return false };
        let Work::Receive { from, place, next, coming, ref announced, ready } = job.work else {
            return false;
        };
        let (total, grantee, number, third) =
            (job.request.len_bytes, job.copier, job.number, job.request.node != HERE);
        if coming.is_some() {
            return false;
        }
        // Whoever is asked by a copier at a third node says when it is ready.
        let must_say_ready = key.by == By::Remote && third && !ready;
        let step = announced.front().copied();
        if step.is_none() && !must_say_ready {
            return false;
        }
        let (offset, len) = step.map_or((0, total), |step| (step.offset, step.len_bytes));
        if let Some(index) = (key.by == By::Remote).then_some(key.pair)
            && let (Some((at, generation)), Some(pair)) = (place.range.grant(), self.pair(index))
        {
            pair.own.begin_step(grant::marker(at, generation));
        }
        let found = self.find_range(&place, offset, len, total, grantee, Access::Write);
        let stop = matches!(found, Found::Coming | Found::NoGrant) || step.is_none();
        if stop && let Some(pair) = self.pair(key.pair).filter(|_| key.by == By::Remote) {
            pair.own.end_step();
        }
        let Some(job) = self.jobs.get_mut(key) else { return false };
        let (region, offset_bytes) = match found {
            Found::Coming => return false,
            Found::NoGrant => {
                job.end(Status::NoGrant);
                return true;
            }
            Found::Here { region, offset_bytes, .. } => (region, offset_bytes),
        };
        let serial = job.serial;
        let Work::Receive { coming, announced, ready, .. } = &mut job.work else { return false };
        if must_say_ready {
            *ready = true;
            self.say_state(key.pair, number, Status::Ready);
            return true;
        }
        debug_assert_eq!(offset, next);
        announced.pop_front();
        let Some(step) = step else { return false };
        *coming = Some(len);
        self.jobs.coming.insert((from, step.token), Coming { key, serial });
        fabric.accept(from, step.token, Piece { region, offset_bytes, len_bytes: len as u32 });
        false
    }

    /// A step that was accepted is there, or will not come. False: it is none of a copy.
    pub(super) fn copy_step_ended(&mut self, node: NodeId, token: u64, whole: bool) -> bool {
        let Some(Coming { key, serial }) = self.jobs.coming.remove(&(node, token)) else { return false };
        let Some(job) = self.jobs.get(key).filter(|job| job.serial == serial) else { return true };
        let Work::Receive { place, next, coming, .. } = job.work else { return true };
        let (len, total, grantee) = (coming.unwrap_or(0), job.request.len_bytes, job.copier);
        let found = self.find_range(&place, next, len, total, grantee, Access::Write);
        if let Some(pair) = self.pair(key.pair).filter(|_| key.by == By::Remote) {
            pair.own.end_step();
        }
        let Some(job) = self.jobs.get_mut(key) else { return true };
        let Work::Receive { next, coming, .. } = &mut job.work else { return true };
        *coming = None;
        if whole {
            *next += len;
            self.totals.bytes_received += len;
        }
        match found {
            Found::NoGrant => job.end(Status::NoGrant),
            _ if !whole => job.end(Status::Again),
            _ if *next == total || shm::mutant!(CopyStopsEarly) => job.end(Status::Done),
            _ => {}
        }
        true
    }

    fn run_within(&mut self, key: Key) -> bool {
        let Some(job) = self.jobs.get(key) else { return false };
        let Work::Within { from, to, next } = job.work else { return false };
        let (total, grantee) = (job.request.len_bytes, job.copier);
        let len = COPY_STEP_BYTES.min(total - next);
        let source = self.find_range(&from, next, len, total, grantee, Access::Read);
        let Some(pair) = self.pair(key.pair) else { return false };
        let own = pair.own.clone();
        if let Some((at, generation)) = to.range.grant() {
            own.begin_step(grant::marker(at, generation));
        }
        let target = self.find_range(&to, next, len, total, grantee, Access::Write);
        let copied = match (&source, &target) {
            (
                Found::Here { map: source, offset_bytes: from, .. },
                Found::Here { map: target, offset_bytes: to, .. },
            ) => Mapping::copy_between(source, *from as usize, target, *to as usize, len as usize).is_ok(),
            _ => false,
        };
        let still = self.find_range(&from, next, len, total, grantee, Access::Read);
        let there = self.find_range(&to, next, len, total, grantee, Access::Write);
        own.end_step();
        let Some(job) = self.jobs.get_mut(key) else { return false };
        if [source, target, still, there].iter().any(|found| matches!(found, Found::NoGrant)) {
            job.end(Status::NoGrant);
            return true;
        }
        let Work::Within { next, .. } = &mut job.work else { return false };
        if copied {
            *next += len;
            if *next == total {
                job.end(Status::Done);
            }
        }
        copied
    }

    /// The steps of copies that go to a node, as far as they may be ahead of what has come.
    pub(super) fn gather_copy_steps(&mut self, node: NodeId, out: &mut Outgoing) {
        if self.jobs.is_empty() {
            return;
        }
        for key in self.jobs.keys() {
            while !out.is_full() && self.gather_copy_step(node, key, out) {}
        }
    }

    fn gather_copy_step(&mut self, node: NodeId, key: Key, out: &mut Outgoing) -> bool {
        let Some(job) = self.jobs.get(key) else { return false };
        let Work::Send { to, ends, to_asker, number, place, posted, gathered, flying } = job.work else {
            return false;
        };
        let (total, grantee, serial) = (job.request.len_bytes, job.copier, job.serial);
        let from = posted + gathered;
        // The far end hears of the copy before its bytes.
        let may_begin = key.by == By::Remote || job.asked;
        let ahead = flying + (gathered.div_ceil(COPY_STEP_BYTES)) as usize;
        if to != node || from >= total || !may_begin || ahead >= COPY_STEPS_AHEAD || job.is_ending() {
            return false;
        }
        let len = COPY_STEP_BYTES.min(total - from);
        match self.find_range(&place, from, len, total, grantee, Access::Read) {
            Found::Coming => false,
            Found::NoGrant => {
                if let Some(job) = self.jobs.get_mut(key) {
                    job.end(Status::NoGrant);
                }
                false
            }
            Found::Here { region, offset_bytes, .. } => {
                let count = to_asker as u16;
                let record = Record { kind: Kind::CopyData, count, pair: Some(ends), arg: number };
                let piece = Piece { region, offset_bytes, len_bytes: len as u32 };
                let said = Said::CopyStep { key, serial, len_bytes: len };
                out.push(record, &from.to_le_bytes(), Some(piece), true, said);
                if let Some(Work::Send { gathered, .. }) = self.jobs.get_mut(key).map(|job| &mut job.work) {
                    *gathered += len;
                }
                true
            }
        }
    }

    /// A step was gathered: `posted` with this token, or not taken.
    pub(super) fn copy_step_said(&mut self, key: Key, serial: u64, len_bytes: u64, token: Option<u64>) {
        let Some(job) = self.jobs.get_mut(key).filter(|job| job.serial == serial) else { return };
        let Work::Send { posted, gathered, flying, .. } = &mut job.work else { return };
        *gathered = gathered.saturating_sub(len_bytes);
        if let Some(token) = token {
            *posted += len_bytes;
            *flying += 1;
            self.jobs.flying.insert(token, Coming { key, serial });
            self.totals.bytes_sent += len_bytes;
        }
    }

    /// A posted step was fetched, or was not wanted.
    pub(super) fn copy_step_left(&mut self, token: u64, fetched: bool) {
        let Some(Coming { key, serial }) = self.jobs.flying.remove(&token) else { return };
        let Some(job) = self.jobs.get_mut(key).filter(|job| job.serial == serial) else { return };
        let total = job.request.len_bytes;
        let Work::Send { posted, flying, .. } = &mut job.work else { return };
        *flying = flying.saturating_sub(1);
        let all = *posted == total && *flying == 0;
        match (key.by, fetched) {
            // Whoever receives says whether it has come; and it says itself why it does not want a step.
            (By::Local, true) => {}
            (By::Local, false) => job.halted = true,
            (By::Remote, false) => job.end(Status::Again),
            (By::Remote, true) if all => job.end(Status::Done),
            (By::Remote, true) => {}
        }
    }

    /// Where a part of a range is, if it is all granted: `len` bytes from `from` of the `total` on.
    fn find_range(
        &mut self,
        at: &At,
        from: u64,
        len: u64,
        total: u64,
        grantee: Endpoint,
        access: Access,
    ) -> Found {
        let Range { offset_bytes, generation, .. } = at.range;
        let (segment, start) = if generation == grant::OWN {
            (at.range.segment(), offset_bytes)
        } else {
            let Some((index, generation)) = at.range.grant() else { return Found::NoGrant };
            let table = (at.memory, at.range.segment());
            let Some((map, _)) = self.segments.get(&table) else { return self.want_for_copy(table) };
            let Ok(words) = Words::mapped(map, 0, grant::TABLE_BYTES / 8) else { return Found::NoGrant };
            let place = PeerGrants::new(words).find(index, generation, grantee);
            let Some(place) = place.filter(|place| access == Access::Read || place.access == access) else {
                return Found::NoGrant;
            };
            let Some(start) = place.at(offset_bytes, total) else { return Found::NoGrant };
            (place.segment, start)
        };
        let key = (at.memory, segment);
        let Some((map, region)) = self.segments.get(&key) else { return self.want_for_copy(key) };
        let end = start.checked_add(from).and_then(|begin| begin.checked_add(len));
        let fits = end.is_some_and(|end| end <= map.len_bytes() as u64);
        if !fits || (access == Access::Write && map.access() != shm::map::Access::ReadWrite) {
            return Found::NoGrant;
        }
        Found::Here { map: Arc::clone(map), region: *region, offset_bytes: start + from }
    }

    fn want_for_copy(&mut self, key: (u32, u32)) -> Found {
        if self.jobs.denied.remove(&key) {
            return Found::NoGrant;
        }
        if self.jobs.wanted.insert(key) {
            self.outputs.push(Output::WantSegment { memory: key.0, segment: key.1 });
        }
        Found::Coming
    }

    /// A segment is given up, or was never there: let go of it.
    pub fn forget_segment(&mut self, memory: u32, segment: u32, fabric: &mut dyn Fabric) {
        let key = (memory, segment);
        self.segment_is_absent(key);
        if self.jobs.wanted.remove(&key) {
            // What was wanted by copies that are over is nobody's: who still wants one that is dropped here asks again.
            if self.jobs.denied.len() >= DENIED_MAX {
                self.jobs.denied.clear();
            }
            self.jobs.denied.insert(key);
        }
        if let Some((_, region)) = self.segments.remove(&key) {
            fabric.detach(region);
        }
    }

    fn say_state(&mut self, index: PairIndex, number: u64, status: Status) {
        let Some(pair) = self.pair(index) else { return };
        let (node, outward) = (pair.node, pair.outward());
        let record = Record::of(Kind::CopyState, outward, number).to_bytes();
        if let Some(link) = self.links.get_mut(&node)
            && link.session.is_some()
            && link.control.len() < CONTROL_MAX
        {
            link.control.push_back([&record[..], &(status as u64).to_le_bytes()].concat());
        }
    }

    fn finish_copy(&mut self, key: Key, status: Status, fabric: &mut dyn Fabric) {
        self.refuse_announced(key, fabric);
        let Some(job) = self.jobs.remove(key) else { return };
        match key.by {
            By::Remote if job.silent => {}
            By::Remote => self.say_state(key.pair, job.number, status),
            By::Local => {
                if let Some(pair) = self.pair(key.pair) {
                    pair.own.answer_copy(job.number, status);
                    self.knocks.insert(key.pair);
                }
            }
        }
    }

    fn refuse_announced(&mut self, key: Key, fabric: &mut dyn Fabric) {
        if let Some(Work::Receive { from, announced, .. }) = self.jobs.get_mut(key).map(|job| &mut job.work) {
            let from = *from;
            for step in announced.drain(..) {
                fabric.refuse(from, step.token);
            }
        }
    }

    /// Nobody waits for it any more.
    fn drop_copy(&mut self, key: Key) {
        if let Some(job) = self.jobs.get_mut(key) {
            job.silent = true;
            job.end(Status::Cancelled);
        }
    }

    /// The pair is forgotten, or carried no more.
    pub(super) fn forget_copies(&mut self, index: PairIndex, fabric: &mut dyn Fabric) {
        for by in [By::Local, By::Remote] {
            let key = Key { pair: index, by };
            self.refuse_announced(key, fabric);
            self.jobs.remove(key);
        }
    }

    /// An end of the pair has ended: what it asked for is nobody's, what was asked of it is granted no more.
    pub(super) fn copies_end_with(&mut self, index: PairIndex, ended: By) {
        let (its, other) = match ended {
            By::Local => (By::Local, By::Remote),
            By::Remote => (By::Remote, By::Local),
        };
        self.drop_copy(Key { pair: index, by: its });
        if let Some(job) = self.jobs.get_mut(Key { pair: index, by: other }) {
            job.end(Status::NoGrant);
        }
    }

    /// The session with a node is lost, and with it what was on its way.
    pub(super) fn copies_lost(&mut self, node: NodeId) {
        for key in self.jobs.keys() {
            let of_node = self.pair(key.pair).is_some_and(|pair| pair.node == node);
            let Some(job) = self.jobs.get_mut(key) else { continue };
            match (key.by, of_node) {
                (By::Local, true) => job.begin_anew(),
                // Its copier asks again, and is told by nobody else.
                (By::Remote, true) => {
                    job.silent = true;
                    job.end(Status::Again);
                }
                (_, false) if job.is_with(node) => job.end(Status::Again),
                (_, false) => {}
            }
        }
    }
}

const CANCEL: CopyRequest = CopyRequest {
    role: Role::Cancel,
    node: HERE,
    begun: false,
    len_bytes: 0,
    theirs: Range::own(0, 0),
    range: Range::own(0, 0),
    other: 0,
    beside: 0,
};
