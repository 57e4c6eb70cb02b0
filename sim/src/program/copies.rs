//! What a program copies: `dvk::binding::copy`, cut where it would wait.
//!
//! Key type: [`Errand`], one copy under way. Neighbours: `grants` (what is copied from and to), `waits` (how it waits).

use std::sync::Arc;
use std::time::Duration;

use abi::grant::{Access, CopyRequest, Range, Role, Status};
use abi::limits::{COPY_CANCEL_WAIT_MS, COPY_STEP_BYTES};
use abi::{Endpoint, NodeId};
use dvk::CopyError;
use dvk::core::{Here, Known, PeerIndex};
use fabric::Time;

use super::{Body, Limit, Next, On, Scene, State};
use crate::invariants::copies;
use crate::ledger::areas::{Told, Whose, source_bytes};
use crate::site::node_of;

const OWN_NODE: NodeId = NodeId(0);
/// Before a copy is begun anew.
const PAUSE: Duration = Duration::from_millis(2);

/// A request, but for what it is about.
const NOTHING: CopyRequest = CopyRequest {
    role: Role::Within,
    node: OWN_NODE,
    begun: false,
    len_bytes: 0,
    theirs: Range::own(0, 0),
    range: Range::own(0, 0),
    other: 0,
    beside: 0,
};

/// One end of a copy, found.
#[derive(Clone)]
enum Spot {
    Here(Here),
    There(There),
}

#[derive(Clone, Copy)]
struct There {
    peer: PeerIndex,
    owner: Endpoint,
    node: NodeId,
    range: Range,
}

/// A request that stands.
#[derive(Clone, Copy)]
struct Asked {
    peer: PeerIndex,
    owner: Endpoint,
    number: u64,
    memory: Option<u32>,
}

/// How far it is.
#[derive(Clone, Copy)]
enum Stage {
    /// On this node, so many bytes are done.
    Steps { done: u64 },
    /// The couriers of one pair do it all.
    Asked,
    /// The receiving end between two other nodes is made ready.
    Readying { receive: CopyRequest },
    /// Both ends are at it.
    Both,
    /// It is given up, and hears so from each in turn.
    Cancelling { at: usize, bound: Time, sure: bool, then: Then },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    End(Result<(), CopyError>),
    Again,
}

/// A copy under way.
pub(super) struct Errand {
    from: Spot,
    to: Spot,
    len_bytes: u64,
    asked: Vec<Asked>,
    stage: Stage,
    deadline: Time,
    /// What the oracle knows: the source's bytes, where they go, what was there, which copy it is, whether it may.
    wanted: Vec<u8>,
    before: Vec<u8>,
    target: (Whose, u64),
    copy: u64,
    may: bool,
    what: String,
}

/// What a look at the answers came to.
#[derive(Clone, Copy)]
pub(super) struct Answered(Result<(usize, Status), CopyError>);

impl Body {
    /// Copies something from somewhere to somewhere, as far as there is something to copy.
    pub(super) fn copy(&mut self, scene: &mut Scene<'_>) -> Next {
        if !self.settle_down(scene) {
            return self.think(scene);
        }
        let me = self.me;
        let Some((source, target)) = choose(me, scene) else { return self.think(scene) };
        let bytes = self.estate.as_ref().map_or(0, |estate| estate.read.map.len_bytes() as u64);
        let room = |told: &Option<Told>| told.map_or(bytes, |told| told.grant.len_bytes);
        let (from_room, to_room) = (room(&source), room(&target));
        let longest = from_room.min(to_room);
        let len_bytes = if scene.dice.one_in(2) { longest } else { 1 + scene.dice.below(longest) };
        let from_at = scene.dice.below(from_room - len_bytes + 1);
        let to_at = scene.dice.below(to_room - len_bytes + 1);
        let (from, to) =
            (self.locate(scene, &source, from_at, true), self.locate(scene, &target, to_at, false));
        let (Some(from), Some(to)) = (from, to) else { return self.think(scene) };
        let source_at = source.map_or((me, from_at), |told| (told.grant.owner, told.offset_bytes + from_at));
        let wanted = source_bytes(source_at.0, source_at.1, len_bytes);
        let whose = target.map_or((me, true), |told| (told.grant.owner, false));
        let target_at = target.map_or(0, |told| told.offset_bytes) + to_at;
        scene.ledger.copies += 1;
        let copy = scene.ledger.copies;
        let Some(area) = scene.ledger.areas.get_mut(&whose) else { return self.think(scene) };
        let before = area.read(target_at, len_bytes);
        let may = |told: &Option<Told>| told.is_none_or(|told| told.to == me && !told.revoked);
        let may = may(&source) && may(&target);
        if may {
            area.copy = copy;
        }
        let ends = (node_of(source_at.0), node_of(whose.0), node_of(me));
        scene.count(match ends {
            (a, b, c) if a == b && b == c => "copy, local",
            (a, b, c) if a == c || b == c => "copy, to or from another node",
            (a, b, _) if a == b => "copy, within another node",
            _ => "copy, between two other nodes",
        });
        let what = format!("copy {copy} of {me}, {len_bytes} bytes of {} to {}", source_at.0, whose.0);
        scene.trace.note(scene.now, scene.site.id, format_args!("{what}"));
        let deadline =
            scene.now + if scene.dice.one_in(4) { scene.dice.us(1, 3_000) } else { scene.dice.ms(5, 900) };
        self.errand = Some(Box::new(Errand {
            from,
            to,
            len_bytes,
            asked: Vec::new(),
            stage: Stage::Asked,
            deadline,
            wanted,
            before,
            target: (whose, target_at),
            copy,
            may,
            what,
        }));
        self.set_out(scene)
    }

    fn locate(&mut self, scene: &mut Scene<'_>, told: &Option<Told>, at: u64, reads: bool) -> Option<Spot> {
        let estate = self.estate.as_ref()?;
        let Some(Told { grant, .. }) = told else {
            let land = if reads { &estate.read } else { &estate.scratch };
            let (segment, map) = (land.segment, Arc::clone(&land.map));
            return Some(Spot::Here(Here::Own { segment, map, offset_bytes: at }));
        };
        let owner = grant.owner;
        if self.core.known(owner) != Known::Alive {
            scene.row("copy: DeadSource");
            return None;
        }
        let peer = self.core.find(owner).or_else(|| self.meet(scene, owner))?;
        if !self.core.is_proxied(peer) {
            return Some(Spot::Here(Here::Granted { peer, grant: *grant, offset_bytes: at }));
        }
        let (node, range) = (node_of(owner), Range::granted(grant, at));
        Some(Spot::There(There { peer, owner, node, range }))
    }

    /// Begins it, or begins it anew.
    fn set_out(&mut self, scene: &mut Scene<'_>) -> Next {
        let Some(errand) = &mut self.errand else { return self.think(scene) };
        errand.asked.clear();
        let len_bytes = errand.len_bytes;
        let plain = CopyRequest { len_bytes, ..NOTHING };
        match (errand.from.clone(), errand.to.clone()) {
            (Spot::Here(_), Spot::Here(_)) => {
                errand.stage = Stage::Steps { done: 0 };
                self.step_copy(scene)
            }
            (Spot::There(there), Spot::Here(here)) => {
                self.core.begin_writing(&here);
                self.ask_one(scene, there, here, CopyRequest { role: Role::Send, ..plain })
            }
            (Spot::Here(here), Spot::There(there)) => {
                self.ask_one(scene, there, here, CopyRequest { role: Role::Receive, ..plain })
            }
            (Spot::There(from), Spot::There(to)) => {
                let request = CopyRequest {
                    node: if from.node == to.node { to.node } else { from.node },
                    theirs: to.range,
                    range: from.range,
                    other: from.owner.to_word(),
                    ..plain
                };
                if from.node == to.node {
                    return self.ask(scene, &[(to, request)], Stage::Asked);
                }
                let receive = CopyRequest { role: Role::Receive, ..request };
                self.ask(scene, &[(to, receive)], Stage::Readying { receive })
            }
        }
    }

    fn ask_one(&mut self, scene: &mut Scene<'_>, there: There, here: Here, request: CopyRequest) -> Next {
        let (range, beside) = match &here {
            Here::Own { segment, offset_bytes, .. } => (Range::own(*segment, *offset_bytes), 0),
            Here::Granted { peer, grant, offset_bytes } => {
                let memory = self.core.memory_of(*peer).unwrap_or(0);
                (Range::granted(grant, *offset_bytes), memory as u64)
            }
        };
        let request = CopyRequest { theirs: there.range, range, beside, ..request };
        self.ask(scene, &[(there, request)], Stage::Asked)
    }

    fn ask(&mut self, scene: &mut Scene<'_>, ask: &[(There, CopyRequest)], stage: Stage) -> Next {
        let mut first = None;
        for (there, request) in ask {
            let memory = self.core.memory_of(there.peer);
            let number = self.core.ask_copy(there.peer, request);
            first = first.or(Some(there.peer));
            if let Some(errand) = &mut self.errand {
                errand.asked.push(Asked { peer: there.peer, owner: there.owner, number, memory });
            }
        }
        let Some(errand) = &mut self.errand else { return self.think(scene) };
        errand.stage = stage;
        let limit = Limit::Until(errand.deadline);
        self.wait(scene, On::Copy, limit, first)
    }

    /// One step of a copy on this node.
    pub(super) fn step_copy(&mut self, scene: &mut Scene<'_>) -> Next {
        let Some(errand) = &mut self.errand else { return self.think(scene) };
        let (Spot::Here(from), Spot::Here(to), Stage::Steps { done }) =
            (errand.from.clone(), errand.to.clone(), errand.stage)
        else {
            return self.think(scene);
        };
        let (total, deadline) = (errand.len_bytes, errand.deadline);
        let len = COPY_STEP_BYTES.min(total - done);
        let mut hands = Body::hands(&mut self.home, self.conn, scene);
        if let Err(why) = self.core.copy_step(&from, &to, done, len as usize, total, &mut hands) {
            return self.copied(scene, Err(why));
        }
        if done + len == total {
            return self.copied(scene, Ok(()));
        }
        if scene.now >= deadline {
            return self.copied(scene, Err(CopyError::TimedOut));
        }
        errand.stage = Stage::Steps { done: done + len };
        self.state = State::Copying;
        Next::At(scene.now + scene.dice.us(20, 400))
    }

    /// Whether what is waited for has been said, or an owner has ended.
    pub(super) fn look_at_copy(&mut self, thorough: bool) -> Option<Answered> {
        let errand = self.errand.as_ref()?;
        let over = |at: usize, status| match errand.stage {
            Stage::Asked => status != Status::Ready,
            Stage::Both => status != Status::Ready && (at == 0 || status != Status::Done),
            Stage::Steps { .. } | Stage::Readying { .. } | Stage::Cancelling { .. } => true,
        };
        let only = match errand.stage {
            Stage::Cancelling { at, .. } => Some(at),
            _ => None,
        };
        for (at, asked) in
            errand.asked.iter().enumerate().filter(|(at, _)| only.is_none_or(|only| only == *at))
        {
            if let Some(status) = self.core.copy_answer(asked.peer, asked.number)
                && over(at, status)
            {
                return Some(Answered(Ok((at, status))));
            }
        }
        if !thorough {
            return None;
        }
        let has_ended = |owner: Endpoint| self.core.no_grant(owner) == CopyError::DeadSource;
        let dead = match (only, &errand.from) {
            (Some(at), _) => has_ended(errand.asked[at].owner),
            (None, Spot::There(from)) if has_ended(from.owner) => true,
            (None, _) => errand.asked.iter().any(|asked| has_ended(asked.owner)),
        };
        dead.then_some(Answered(Err(CopyError::DeadSource)))
    }

    /// It was said.
    pub(super) fn copy_answered(&mut self, scene: &mut Scene<'_>, Answered(said): Answered) -> Next {
        let Some(errand) = &self.errand else { return self.think(scene) };
        let asked = errand.asked.clone();
        match (errand.stage, said) {
            (Stage::Cancelling { at, bound, sure, then }, _) => {
                self.core.end_copy(asked[at].peer);
                self.cancel_next(scene, (at + 1, bound, sure, then))
            }
            (_, Err(why)) => self.cancel(scene, Then::End(Err(why))),
            (Stage::Readying { receive }, Ok((_, Status::Ready))) => {
                self.send_to_it(scene, asked[0], receive)
            }
            (Stage::Both, Ok((0, Status::Done))) | (Stage::Asked, Ok((_, Status::Done))) => {
                self.end_copy(scene)
            }
            (Stage::Both, Ok((_, Status::Again))) => self.cancel(scene, Then::Again),
            (Stage::Both, Ok((_, status))) => {
                let why = self.why(status);
                self.cancel(scene, Then::End(Err(why)))
            }
            (_, Ok((at, Status::Again))) => {
                self.core.end_copy(asked[at].peer);
                self.later(scene)
            }
            (_, Ok((at, status))) => {
                self.core.end_copy(asked[at].peer);
                let why = self.why(status);
                self.copied(scene, Err(why))
            }
        }
    }

    fn send_to_it(&mut self, scene: &mut Scene<'_>, receiving: Asked, receive: CopyRequest) -> Next {
        let ends = self.errand.as_ref().map(|errand| (errand.from.clone(), errand.to.clone()));
        let Some((Spot::There(from), Spot::There(to))) = ends else { return self.think(scene) };
        let begun = CopyRequest { begun: true, ..receive };
        self.core.ask_copy_again(receiving.peer, receiving.number, &begun);
        let send = CopyRequest {
            role: Role::Send,
            node: to.node,
            theirs: from.range,
            range: to.range,
            other: to.owner.to_word(),
            beside: receiving.number,
            ..receive
        };
        self.ask(scene, &[(from, send)], Stage::Both)
    }

    fn later(&mut self, scene: &mut Scene<'_>) -> Next {
        if let Some(errand) = &mut self.errand {
            errand.asked.clear();
        }
        self.state = State::Copying;
        scene.row("copy: begun anew");
        Next::At(scene.now + PAUSE)
    }

    /// It goes on after a pause.
    pub(super) fn copying(&mut self, scene: &mut Scene<'_>) -> Next {
        match self.errand.as_ref().map(|errand| errand.stage) {
            Some(Stage::Steps { .. }) => self.step_copy(scene),
            _ => self.set_out(scene),
        }
    }

    /// All is there: no courier's successor may begin it again.
    fn end_copy(&mut self, scene: &mut Scene<'_>) -> Next {
        let asked = self.errand.as_ref().map(|errand| errand.asked.clone()).unwrap_or_default();
        asked.iter().for_each(|asked| self.core.end_copy(asked.peer));
        let _ = self.core.pull(&mut Body::hands(&mut self.home, self.conn, scene));
        if asked.iter().any(|asked| self.core.memory_of(asked.peer) != asked.memory) {
            return self.cancel(scene, Then::End(Ok(())));
        }
        self.copied(scene, Ok(()))
    }

    fn cancel(&mut self, scene: &mut Scene<'_>, then: Then) -> Next {
        let bound = scene.now + Duration::from_millis(COPY_CANCEL_WAIT_MS);
        let request = CopyRequest { role: Role::Cancel, ..NOTHING };
        if let Some(errand) = &mut self.errand {
            for asked in &mut errand.asked {
                asked.number = self.core.ask_copy(asked.peer, &request);
            }
        }
        self.cancel_next(scene, (0, bound, true, then))
    }

    fn cancel_next(
        &mut self,
        scene: &mut Scene<'_>,
        (at, bound, sure, then): (usize, Time, bool, Then),
    ) -> Next {
        let Some(errand) = &mut self.errand else { return self.think(scene) };
        if let Some(asked) = errand.asked.get(at) {
            let peer = asked.peer;
            errand.stage = Stage::Cancelling { at, bound, sure, then };
            return self.wait(scene, On::Copy, Limit::Until(bound), Some(peer));
        }
        match then {
            Then::Again => self.later(scene),
            Then::End(result) => {
                let result = if sure { result } else { Err(CopyError::TimedOutUnknown) };
                self.copied(scene, result)
            }
        }
    }

    /// The time of a wait for couriers is over.
    pub(super) fn copy_over(&mut self, scene: &mut Scene<'_>) -> Next {
        match self.errand.as_ref().map(|errand| errand.stage) {
            Some(Stage::Cancelling { at, bound, then, .. }) => {
                self.cancel_next(scene, (at + 1, bound, false, then))
            }
            _ => self.cancel(scene, Then::End(Err(CopyError::TimedOut))),
        }
    }

    fn why(&self, status: Status) -> CopyError {
        let asked = self.errand.iter().flat_map(|errand| &errand.asked);
        if asked.clone().any(|asked| self.core.no_grant(asked.owner) == CopyError::DeadSource) {
            return CopyError::DeadSource;
        }
        if status == Status::NoWay { CopyError::NoWay } else { CopyError::NoGrant }
    }

    /// A copy has ended: what is there is looked at.
    fn copied(&mut self, scene: &mut Scene<'_>, result: Result<(), CopyError>) -> Next {
        let Some(errand) = self.errand.take() else { return self.think(scene) };
        if let (Spot::There(_), Spot::Here(here)) = (&errand.from, &errand.to) {
            self.core.end_writing(here);
        }
        let row = match result {
            Ok(()) => "copy: done",
            Err(CopyError::NoGrant) if errand.may => "copy: NoGrant, taken back meanwhile",
            Err(CopyError::NoGrant) => "copy: NoGrant",
            Err(CopyError::DeadSource) => "copy: DeadSource",
            Err(CopyError::TimedOut) => "copy: TimedOut",
            Err(CopyError::TimedOutUnknown) => "copy: TimedOutUnknown",
            Err(_) => "copy: unavailable",
        };
        scene.row(row);
        scene.trace.note(
            scene.now,
            scene.site.id,
            format_args!("copy {} of {}: {row}", errand.copy, self.me),
        );
        if result.is_ok() {
            scene.ledger.find("copies", copies::allowed(errand.may, &errand.what));
        }
        let (whose, at) = errand.target;
        let found = scene.ledger.areas.get_mut(&whose).and_then(|area| {
            let is_last = area.copy == errand.copy;
            area.unsure |= result == Err(CopyError::TimedOutUnknown);
            let now = area.read(at, errand.len_bytes);
            let looks = is_last && !area.unsure;
            looks
                .then(|| copies::ended(&errand.wanted, &errand.before, &now, result.is_ok(), &errand.what))?
        });
        scene.ledger.find("copies", found);
        self.think(scene)
    }
}

/// A source and a target: something granted, or (`None`) of one's own; not both of one's own. Now and then something that
/// was granted to another, or no longer is.
fn choose(me: Endpoint, scene: &mut Scene<'_>) -> Option<(Option<Told>, Option<Told>)> {
    let wrong = scene.dice.below(12);
    let of = |access: Access| -> Vec<Told> {
        let told =
            scene.ledger.told.iter().filter(|told| told.grant.access == access && told.grant.owner != me);
        told.filter(|told| match wrong {
            0 => told.to != me,
            1 => told.to == me && told.revoked,
            _ => told.to == me && !told.revoked,
        })
        .copied()
        .collect()
    };
    let (sources, targets) = (of(Access::Read), of(Access::Write));
    let from = scene.dice.pick(&sources).copied();
    let to = scene.dice.pick(&targets).copied();
    match (from, to) {
        (None, None) => None,
        (Some(from), Some(to)) => Some(match scene.dice.below(3) {
            0 => (Some(from), None),
            1 => (None, Some(to)),
            _ => (Some(from), Some(to)),
        }),
        ends => Some(ends),
    }
}
