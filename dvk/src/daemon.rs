//! Driver: the connection to the node's daemon: binding, introductions, segments. Off the message path.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use abi::limits::{INTRODUCTION_WAIT_MS, SIDES_MORE, SIDES_SPARE_MIN};
use abi::member::{Introduction, NUMBER, Refusal, Reply, Request, Rings, SegmentKind, VERSION, WORDS};
use abi::{DcId, Endpoint, Incarnation, Name, NodeId, Slot, doorbell, side, table};
use shm::doorbell::Doorbells;
use shm::map::{Access, MapError, Mapping};
use shm::os::events::{Ringer, Rung};
use shm::os::fdpass::{self, PassError};
use shm::side::{OwnSide, PeerSide};
use shm::words::{OwnWords, Words};

use crate::binding::Privileges;
use crate::core::{Host, Introduced, Pulled};
use crate::error::{Errno, Unavailable};
use crate::polling::Polling;

const ANSWER_WAIT: Duration = Duration::from_millis(INTRODUCTION_WAIT_MS);

/// Connections that may break before one is welcomed.
const HELLO_TRIES: u32 = 5;

/// A connection that has been welcomed.
pub struct Daemon {
    socket: Numbered,
    welcome: Welcome,
    own: BTreeMap<u32, Arc<Mapping>>,
    sides: u32,
    sides_used: u32,
    /// Of a private binding: the side segment of each peer.
    of_peers: Option<BTreeMap<Endpoint, u32>>,
    /// Peers whose memory could not be mapped when the daemon told of them, and whether it was of a new place of theirs. Tried
    /// again whenever the daemon rings, and at every look while the binding sleeps.
    unmet: BTreeMap<Endpoint, bool>,
    /// The eventfd of each proxy memory, one descriptor however many pairs lead there.
    rings: BTreeMap<u32, Arc<Ringer>>,
    /// From the first `poll_fd` on.
    pub(crate) polling: Option<Box<Polling>>,
}

/// The connection itself: requests and answers have numbers, so that it goes on over a daemon's successor.
struct Numbered {
    socket: OwnedFd,
    asked: u64,
    /// The last answer's descriptors found no place in this process.
    lost: bool,
}

/// What the daemon said at first.
#[derive(Clone)]
pub struct Welcome {
    pub dc: DcId,
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// The slots that may be bound on this node.
    pub slot_first: Slot,
    pub slot_count: u16,
    pub table: Words,
    pub doorbells: Doorbells,
}

/// A binding that the daemon has made.
pub struct Bound {
    pub endpoint: Endpoint,
    pub token: [u64; 2],
    /// The first pool segment, unless the binding is another process's.
    pub pool: Option<(u32, Arc<Mapping>)>,
    /// It has memory for each peer apart.
    pub private: bool,
}

fn broken(_: PassError) -> Unavailable {
    Unavailable::Broken
}

fn no_memory(_: MapError) -> Unavailable {
    Unavailable::NoMemory
}

fn of_connect(error: PassError) -> Unavailable {
    match error {
        PassError::Refused(errno) => Unavailable::NoDaemon(Errno(errno.raw_os_error())),
        _ => Unavailable::NoDaemon(Errno(rustix::io::Errno::CONNREFUSED.raw_os_error())),
    }
}

impl Daemon {
    /// Connects to a daemon and joins a DC, without a binding yet.
    pub fn connect(socket: &Path, dc: Name) -> Result<Daemon, Unavailable> {
        let mut tries = 0;
        let (socket, (reply, fds)) = loop {
            let mut connection = Numbered { socket: fdpass::connect(socket).map_err(of_connect)?, asked: 0, lost: false };
            match connection.ask(Request::Hello { version: VERSION, dc }) {
                // A daemon that was killed between taking the connection and keeping it took it along; its successor,
                // if it has one, takes the next. Nothing has been asked for yet.
                Err(Unavailable::Broken) if tries < HELLO_TRIES => tries += 1,
                answer => break (connection, answer?),
            }
        };
        let Reply::Welcome { dc, node, incarnation, slot_first, slot_count } = reply else {
            return Err(Unavailable::Broken);
        };
        let [table_fd, doorbell_fd] = <[OwnedFd; 2]>::try_from(fds).map_err(|_| socket.missing())?;
        let table_map =
            Mapping::shared(table_fd.as_fd(), 0, table::BYTES, Access::ReadOnly).map_err(no_memory)?;
        let bells =
            Mapping::shared(doorbell_fd.as_fd(), 0, doorbell::BYTES, Access::ReadWrite).map_err(no_memory)?;
        let words = doorbell::COUNT * doorbell::WORDS;
        let welcome = Welcome {
            dc,
            node,
            incarnation,
            slot_first,
            slot_count,
            table: Words::mapped(&table_map, 0, table::VERSION + 1).map_err(|_| Unavailable::Broken)?,
            doorbells: Doorbells::new(OwnWords::mapped(&bells, 0, words).map_err(|_| Unavailable::Broken)?),
        };
        Ok(Daemon {
            socket,
            welcome,
            own: BTreeMap::new(),
            sides: 0,
            sides_used: 0,
            of_peers: None,
            unmet: BTreeMap::new(),
            rings: BTreeMap::new(),
            polling: None,
        })
    }

    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Binds this process.
    pub fn bind(&mut self, slot: Option<Slot>, name: Name, private: bool) -> Result<Bound, Unavailable> {
        self.bound(Request::Bind { slot, name, private })
    }

    /// Fetches the binding that another process made for this one.
    pub fn claim(&mut self, endpoint: Endpoint, token: [u64; 2]) -> Result<Bound, Unavailable> {
        self.bound(Request::Claim { endpoint, token })
    }

    fn bound(&mut self, request: Request) -> Result<Bound, Unavailable> {
        let (reply, fds) = self.ask(request)?;
        let Reply::Bound { endpoint, sides, pool_bytes, token, private, .. } = reply else {
            return Err(Unavailable::Broken);
        };
        let (side_segments, sides_each) = if private { (sides, 1) } else { (1, sides) };
        let mut fds = fds.into_iter();
        for (segment, fd) in (0..side_segments).zip(&mut fds) {
            let len_bytes = sides_each as usize * side::BYTES;
            let map = Mapping::shared(fd.as_fd(), 0, len_bytes, Access::ReadWrite).map_err(no_memory)?;
            self.own.insert(segment, map);
        }
        self.sides = sides;
        self.of_peers = private.then(BTreeMap::new);
        let pool_fd = fds.next().ok_or_else(|| self.socket.missing())?;
        let pool =
            Mapping::shared(pool_fd.as_fd(), 0, pool_bytes as usize, Access::ReadWrite).map_err(no_memory)?;
        self.ready()?;
        Ok(Bound { endpoint, token, pool: Some((side_segments, pool)), private })
    }

    /// Binds another process of this node, which claims the binding with the token.
    pub fn bind_other(
        &mut self,
        pid: u32,
        slot: Option<Slot>,
        name: Name,
        private: bool,
    ) -> Result<Bound, Unavailable> {
        match self.ask(Request::BindOther { pid, slot, name, private })? {
            (Reply::Bound { endpoint, token, private, .. }, _) => {
                Ok(Bound { endpoint, token, pool: None, private })
            }
            _ => Err(Unavailable::Broken),
        }
    }

    fn ready(&mut self) -> Result<(), Unavailable> {
        self.done(Request::Ready)
    }

    fn done(&mut self, request: Request) -> Result<(), Unavailable> {
        match self.ask(request)? {
            (Reply::Done, _) => Ok(()),
            _ => Err(Unavailable::Broken),
        }
    }

    /// One more segment of the own memory, mapped and sealed.
    pub fn new_segment(
        &mut self,
        kind: SegmentKind,
        len_bytes: u64,
    ) -> Result<(u32, Arc<Mapping>), Unavailable> {
        self.add_segment(Request::NewSegment { kind, len_bytes })
    }

    /// One more pool segment of a private binding, which this peer alone may map.
    pub fn pair_segment(
        &mut self,
        peer: Endpoint,
        len_bytes: u64,
    ) -> Result<(u32, Arc<Mapping>), Unavailable> {
        self.add_segment(Request::PairSegment { peer, len_bytes })
    }

    fn add_segment(&mut self, request: Request) -> Result<(u32, Arc<Mapping>), Unavailable> {
        let (Reply::Segment { index, len_bytes }, fds) = self.ask(request)? else {
            return Err(Unavailable::Broken);
        };
        let fd = fds.first().ok_or_else(|| self.socket.missing());
        let map = fd.and_then(|fd| {
            Mapping::shared(fd.as_fd(), 0, len_bytes as usize, Access::ReadWrite).map_err(no_memory)
        });
        match map {
            Ok(map) => {
                self.ready()?;
                Ok((index, map))
            }
            Err(why) => {
                // Nobody has it mapped: it is to be as if it had not been made.
                self.drop_segment(index)?;
                Err(why)
            }
        }
    }

    fn add_sides(&mut self) -> Result<(), Unavailable> {
        let more = if self.of_peers.is_some() { 1 } else { SIDES_MORE };
        let (index, map) = self.new_segment(SegmentKind::Sides, more as u64 * side::BYTES as u64)?;
        self.own.insert(index, map);
        self.sides += more;
        Ok(())
    }

    /// Has sides for the next peers. It may come to a limit of its own or of the daemon's: whoever comes then finds it not
    /// ready, until a later look finds room.
    fn spare_sides(&mut self) -> Result<(), Unavailable> {
        while self.sides_used + SIDES_SPARE_MIN > self.sides {
            match self.add_sides() {
                Err(Unavailable::Refused(_) | Unavailable::NoMemory) => break,
                added => added?,
            }
        }
        Ok(())
    }

    /// The pair with `to`. `Ok(None)`: the other side is not ready, ask again. `follow`: for a call of ours that was
    /// passed on to it.
    pub fn introduce(&mut self, to: Endpoint, follow: bool) -> Result<Option<Introduced>, Unavailable> {
        self.spare_sides()?;
        if self.sides_used >= self.sides {
            return Err(Unavailable::Refused(Refusal::LimitReached));
        }
        let request = if follow { Request::Follow { to } } else { Request::Introduce { to } };
        match self.ask(request) {
            Ok((Reply::Introduced(introduction), fds)) => {
                let met = self.introduced(introduction, fds);
                self.remember(to, false, &met);
                met.map(Some)
            }
            Err(Unavailable::Refused(Refusal::NotReady)) => Ok(None),
            Ok(_) => Err(Unavailable::Broken),
            Err(why) => Err(why),
        }
    }

    fn introduced(&mut self, i: Introduction, fds: Vec<OwnedFd>) -> Result<Introduced, Unavailable> {
        let map = self.own.get(&i.own_segment).ok_or(Unavailable::Broken)?;
        let own = OwnWords::mapped(map, i.own_side as usize * side::BYTES, side::WORDS);
        let own = OwnSide::new(own.map_err(|_| Unavailable::Broken)?);
        let (side, ring) = self.far(&i, fds)?;
        self.sides_used += 1;
        if let Some(of_peers) = &mut self.of_peers {
            of_peers.insert(i.peer, i.own_segment);
        }
        let doorbell = i.doorbell as usize;
        let Introduction { peer, memory, proxied, allowed, .. } = i;
        Ok(Introduced { peer, own, side, memory, doorbell, proxied, allowed, ring })
    }

    /// A peer that could not be met is met later: for the daemon it is.
    fn remember<T>(&mut self, peer: Endpoint, moved: bool, met: &Result<T, Unavailable>) {
        match met {
            Err(Unavailable::NoMemory) => drop(self.unmet.entry(peer).or_insert(moved)),
            _ => drop(self.unmet.remove(&peer)),
        }
    }

    /// Somebody who could not be met before, and can be now.
    fn meet_late(&mut self) -> Result<Option<Pulled>, Unavailable> {
        let unmet: Vec<(Endpoint, bool)> = self.unmet.iter().map(|(peer, moved)| (*peer, *moved)).collect();
        for (peer, moved) in unmet {
            let met = match self.ask(Request::Introduce { to: peer }) {
                Ok((Reply::Introduced(i), fds)) if moved => self.moved(&i, fds),
                Ok((Reply::Introduced(i), fds)) => self.introduced(i, fds).map(Pulled::Introduced),
                // Its proxy is being replaced: it comes again.
                Err(Unavailable::Refused(Refusal::NotReady)) => continue,
                // It has ended. If we had it never, nobody else gives its side back.
                Err(Unavailable::Refused(_)) => {
                    self.unmet.remove(&peer);
                    if !moved {
                        let _ = self.done(Request::Recycled { peer });
                    }
                    continue;
                }
                Ok(_) => Err(Unavailable::Broken),
                Err(why) => Err(why),
            };
            match met {
                Ok(pulled) => {
                    self.unmet.remove(&peer);
                    return Ok(Some(pulled));
                }
                // Said before.
                Err(Unavailable::NoMemory) => {}
                Err(why) => return Err(why),
            }
        }
        Ok(None)
    }

    fn moved(&mut self, i: &Introduction, fds: Vec<OwnedFd>) -> Result<Pulled, Unavailable> {
        let (side, ring) = self.far(i, fds)?;
        let doorbell = i.doorbell as usize;
        Ok(Pulled::Moved { peer: i.peer, side, memory: i.memory, doorbell, ring })
    }

    /// The peer's side: only its own part of the segment is mapped.
    fn far(
        &mut self,
        i: &Introduction,
        fds: Vec<OwnedFd>,
    ) -> Result<(PeerSide, Option<Arc<Ringer>>), Unavailable> {
        if i.doorbell as usize >= doorbell::COUNT {
            return Err(Unavailable::Broken);
        }
        let mut fds = fds.into_iter();
        let fd = fds.next().ok_or_else(|| self.socket.missing())?;
        let offset = i.side as u64 * side::BYTES as u64;
        let map = Mapping::shared(fd.as_fd(), offset, side::BYTES, Access::ReadOnly).map_err(no_memory)?;
        let side = PeerSide::new(Words::mapped(&map, 0, side::WORDS).map_err(|_| Unavailable::Broken)?);
        let ring = self.take_rings(i.peer, i.rings, fds)?;
        if !i.proxied {
            return Ok((side, ring.map(Arc::new)));
        }
        let ring = Arc::new(ring.ok_or_else(|| self.socket.missing())?);
        Ok((side, Some(self.rings.entry(i.memory).or_insert(ring).clone())))
    }

    /// The descriptors by which a pair's ends wake each other: ours is watched, theirs is returned.
    fn take_rings(
        &mut self,
        peer: Endpoint,
        rings: Rings,
        mut fds: impl Iterator<Item = OwnedFd>,
    ) -> Result<Option<Ringer>, Unavailable> {
        let mut next = |wanted: bool| match wanted {
            true => fds.next().map(Some).ok_or_else(|| self.socket.missing()),
            false => Ok(None),
        };
        let (theirs, ours) = (next(rings.theirs)?, next(rings.ours)?);
        if let (Some(fd), Some(polling)) = (ours, &mut self.polling) {
            let rung = Rung::adopt(fd).map_err(|_| Unavailable::Broken)?;
            polling.watch(peer, rung).map_err(|_| Unavailable::NoMemory)?;
        }
        theirs.map(Ringer::adopt).transpose().map_err(|_| Unavailable::Broken)
    }

    /// Has whoever rings us do so by a descriptor, should we sleep in epoll.
    pub(crate) fn poll(&mut self) -> Result<(), Unavailable> {
        let (Reply::Polled, fds) = self.ask(Request::Poll)? else { return Err(Unavailable::Broken) };
        let fd = fds.into_iter().next().ok_or_else(|| self.socket.missing())?;
        let rung = Rung::adopt(fd).map_err(|_| Unavailable::Broken)?;
        let polling = Polling::new(rung).map_err(|_| Unavailable::NoMemory)?;
        self.polling = Some(Box::new(polling));
        Ok(())
    }

    /// The endpoint bound under a name in this DC.
    pub fn lookup_name(&mut self, name: Name) -> Result<Option<Endpoint>, Unavailable> {
        match self.ask(Request::LookupName { name }) {
            Ok((Reply::Found { endpoint }, _)) => Ok(Some(endpoint)),
            Err(Unavailable::Refused(Refusal::NoSuchEndpoint)) => Ok(None),
            Ok(_) => Err(Unavailable::Broken),
            Err(why) => Err(why),
        }
    }

    /// Lets an endpoint map a segment of ours that is there to be granted.
    pub fn grant(&mut self, segment: u32, to: Endpoint) -> Result<(), Unavailable> {
        self.done(Request::Grant { segment, to })
    }

    /// Lets it map the segment no more. Returns whether it was given it before.
    pub fn revoke(&mut self, segment: u32, to: Endpoint) -> Result<bool, Unavailable> {
        match self.ask(Request::Revoke { segment, to })? {
            (Reply::Revoked { held }, _) => Ok(held),
            _ => Err(Unavailable::Broken),
        }
    }

    pub fn privileges(&mut self) -> Result<Privileges, Unavailable> {
        match self.ask(Request::Privileges)? {
            (Reply::Privileges { level, calls, warn }, _) => Ok(Privileges { level, calls, warn }),
            _ => Err(Unavailable::Broken),
        }
    }

    /// Gives up a segment that was there to be granted.
    pub fn drop_segment(&mut self, segment: u32) -> Result<(), Unavailable> {
        self.done(Request::DropSegment { segment })
    }

    /// A side segment of a private binding was one peer's, and is nobody's any more.
    fn let_go(&mut self, segment: u32) {
        if self.own.remove(&segment).is_some() {
            self.sides = self.sides.saturating_sub(1);
        }
    }

    pub fn unbind(&mut self) -> Result<(), Unavailable> {
        self.done(Request::Unbind)
    }

    fn map(&mut self, memory: u32, segment: u32, access: Access) -> Result<Arc<Mapping>, Unavailable> {
        let (Reply::Segment { len_bytes, .. }, fds) = self.ask(Request::MapSegment { memory, segment })?
        else {
            return Err(Unavailable::Broken);
        };
        let fd = fds.first().ok_or_else(|| self.socket.missing())?;
        Mapping::shared(fd.as_fd(), 0, len_bytes as usize, access).map_err(no_memory)
    }

    fn ask(&mut self, request: Request) -> Result<(Reply, Vec<OwnedFd>), Unavailable> {
        self.socket.ask(request)
    }
}

impl Numbered {
    /// Why the last answer has too few descriptors.
    fn missing(&self) -> Unavailable {
        if self.lost { Unavailable::NoMemory } else { Unavailable::Broken }
    }

    fn ask(&mut self, request: Request) -> Result<(Reply, Vec<OwnedFd>), Unavailable> {
        self.asked += 1;
        let mut words = request.to_words();
        words[NUMBER] = self.asked;
        let mut bytes = [0; WORDS * 8];
        for (word, out) in words.iter().zip(bytes.chunks_exact_mut(8)) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        fdpass::send_with_fds(&self.socket, &bytes, &[]).map_err(broken)?;
        loop {
            bytes.fill(0);
            self.lost = false;
            let (len, fds) = match fdpass::recv_with_fds_within(&self.socket, &mut bytes, ANSWER_WAIT) {
                Ok(got) => got,
                Err(PassError::TimedOut) => return Err(Unavailable::Slow),
                // The words are here all the same.
                Err(PassError::LostDescriptors) => {
                    self.lost = true;
                    (bytes.len(), Vec::new())
                }
                Err(_) => return Err(Unavailable::Broken),
            };
            if len != bytes.len() {
                return Err(Unavailable::Broken);
            }
            for (word, eight) in words.iter_mut().zip(bytes.chunks_exact(8)) {
                *word = u64::from_le_bytes(eight.try_into().unwrap_or([0; 8]));
            }
            // Said again by a successor, or too late for who asked: nobody waits for it.
            if (1..self.asked).contains(&words[NUMBER]) {
                continue;
            }
            return match Reply::from_words(&words).ok_or(Unavailable::Broken)? {
                Reply::Refused(why) => Err(Unavailable::Refused(why)),
                reply => Ok((reply, fds)),
            };
        }
    }
}

impl Host for Daemon {
    fn map_granted(
        &mut self,
        memory: u32,
        segment: u32,
        writable: bool,
    ) -> Result<Arc<Mapping>, Unavailable> {
        self.map(memory, segment, if writable { Access::ReadWrite } else { Access::ReadOnly })
    }

    fn map_segment(&mut self, memory: u32, segment: u32) -> Result<Arc<Mapping>, Unavailable> {
        self.map(memory, segment, Access::ReadOnly)
    }

    fn recycled(&mut self, peer: Endpoint) {
        self.sides_used = self.sides_used.saturating_sub(1);
        if let Some(segment) = self.of_peers.as_mut().and_then(|of| of.remove(&peer)) {
            self.let_go(segment);
        }
        if let Some(polling) = &mut self.polling {
            polling.forget(peer);
        }
        // Without a daemon nobody can use the side again either.
        let _ = self.done(Request::Recycled { peer });
    }

    fn pull(&mut self) -> Result<Option<Pulled>, Unavailable> {
        let answer = loop {
            match self.ask(Request::Pull)? {
                (Reply::Spent { segment }, _) => self.let_go(segment),
                answer => break answer,
            }
        };
        let pulled = match answer {
            (Reply::Introduced(i), fds) => {
                let met = self.introduced(i, fds);
                self.remember(i.peer, false, &met);
                Some(Pulled::Introduced(met?))
            }
            (Reply::Moved(i), fds) => {
                let met = self.moved(&i, fds);
                self.remember(i.peer, true, &met);
                Some(met?)
            }
            (Reply::Gone { peer }, _) => {
                if self.unmet.remove(&peer) == Some(false) {
                    // The core never had it: nobody else gives its side back.
                    let _ = self.done(Request::Recycled { peer });
                }
                Some(Pulled::Gone { peer })
            }
            (Reply::Rings { peer, rings }, fds) => {
                let ring = self.take_rings(peer, rings, fds.into_iter())?;
                Some(Pulled::Rings { peer, ring: ring.map(Arc::new) })
            }
            (Reply::Warned { endpoint }, _) => Some(Pulled::Warned { endpoint }),
            (Reply::Nothing, _) => self.meet_late()?,
            _ => return Err(Unavailable::Broken),
        };
        self.spare_sides()?;
        Ok(pulled)
    }
}
