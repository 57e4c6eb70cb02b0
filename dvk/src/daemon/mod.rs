//! Driver: the connection to the node's daemon: binding, introductions, segments. Off the message path.

mod meeting;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use abi::limits::INTRODUCTION_WAIT_MS;
use abi::member::{NUMBER, Refusal, Reply, Request, SegmentKind, VERSION, WORDS};
use abi::{DcId, Endpoint, Incarnation, Name, NodeId, Slot, doorbell, side, table};
use shm::doorbell::Doorbells;
use shm::map::{Access, MapError, Mapping};
use shm::os::events::{Ringer, Rung};
use shm::os::fdpass::{self, PassError};
use shm::words::{OwnWords, Words};

use crate::binding::Privileges;
use crate::error::{Errno, Unavailable};
use crate::polling::Polling;

const ANSWER_WAIT: Duration = Duration::from_millis(INTRODUCTION_WAIT_MS);
/// How long who has other things to do waits for a daemon.
const GLANCE: Duration = Duration::from_millis(2);

/// Connections that may break before one is welcomed.
const HELLO_TRIES: u32 = 5;

/// A connection that has been welcomed.
pub struct Daemon {
    socket: Numbered,
    welcome: Welcome,
    own: BTreeMap<u32, Arc<Mapping>>,
    sides: u32,
    /// Who has one of our sides.
    sides_of: BTreeSet<Endpoint>,
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
    /// The number of a pull that was not waited for, and its answer, if that came while something else was.
    pull: Option<u64>,
    pulled: Option<Answer>,
    /// The last answer's descriptors found no place in this process.
    lost: bool,
}

/// An answer with its descriptors, and whether some of these were lost.
struct Answer {
    reply: Reply,
    fds: Vec<OwnedFd>,
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
        PassError::Refused(
            rustix::io::Errno::MFILE | rustix::io::Errno::NFILE | rustix::io::Errno::NOMEM,
        ) => Unavailable::NoMemory,
        PassError::Refused(errno) => Unavailable::NoDaemon(Errno(errno.raw_os_error())),
        _ => Unavailable::NoDaemon(Errno(rustix::io::Errno::CONNREFUSED.raw_os_error())),
    }
}

impl Daemon {
    /// Connects to a daemon and joins a DC, without a binding yet.
    pub fn connect(socket: &Path, dc: Name) -> Result<Daemon, Unavailable> {
        let mut tries = 0;
        let (socket, (reply, fds)) = loop {
            let mut connection = Numbered::new(fdpass::connect(socket).map_err(of_connect)?);
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
            sides_of: BTreeSet::new(),
            of_peers: None,
            unmet: BTreeMap::new(),
            rings: BTreeMap::new(),
            polling: None,
        })
    }

    /// It was asked what it has for us, and has not answered yet.
    pub(crate) fn owes_answer(&self) -> bool {
        self.socket.pull.is_some()
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

    fn new(socket: OwnedFd) -> Numbered {
        Numbered { socket, asked: 0, pull: None, pulled: None, lost: false }
    }

    fn ask(&mut self, request: Request) -> Result<(Reply, Vec<OwnedFd>), Unavailable> {
        // Who was turned away finds the connection closed, and why in what came before that.
        let number = match self.say(request) {
            Err(Unavailable::Broken) => self.asked,
            said => said?,
        };
        self.answer(number, ANSWER_WAIT)
    }

    /// Asks for the next thing that the daemon has for us, unless it has been asked already and not answered yet.
    fn pull(&mut self, patient: bool) -> Result<(Reply, Vec<OwnedFd>), Unavailable> {
        if self.pull.is_some() || self.pulled.is_some() {
            let old = self.pull_answer(if patient { ANSWER_WAIT } else { Duration::ZERO })?;
            // That there was nothing then says nothing of now.
            if !matches!(old, (Reply::Nothing, _)) {
                return Ok(old);
            }
        }
        self.pull = Some(self.say(Request::Pull)?);
        self.pull_answer(if patient { ANSWER_WAIT } else { GLANCE })
    }

    fn pull_answer(&mut self, within: Duration) -> Result<(Reply, Vec<OwnedFd>), Unavailable> {
        if let Some(answer) = self.pulled.take() {
            return self.open(answer);
        }
        let answer = self.answer(self.pull.unwrap_or(self.asked), within);
        if !matches!(answer, Err(Unavailable::Slow)) {
            self.pull = None;
        }
        answer
    }

    /// Sends a request, and gives its number.
    fn say(&mut self, request: Request) -> Result<u64, Unavailable> {
        self.asked += 1;
        let mut words = request.to_words();
        words[NUMBER] = self.asked;
        let mut bytes = [0; WORDS * 8];
        for (word, out) in words.iter().zip(bytes.chunks_exact_mut(8)) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        fdpass::send_with_fds(&self.socket, &bytes, &[]).map_err(broken)?;
        Ok(self.asked)
    }

    /// Waits for the answer to a request.
    fn answer(&mut self, number: u64, within: Duration) -> Result<(Reply, Vec<OwnedFd>), Unavailable> {
        let mut bytes = [0; WORDS * 8];
        let mut words = [0; WORDS];
        let until = Instant::now() + within;
        loop {
            bytes.fill(0);
            let left = until.saturating_duration_since(Instant::now());
            let (len, fds, lost) = match fdpass::recv_with_fds_within(&self.socket, &mut bytes, left) {
                Ok((len, fds)) => (len, fds, false),
                Err(PassError::TimedOut) => return Err(Unavailable::Slow),
                // The words are here all the same.
                Err(PassError::LostDescriptors) => (bytes.len(), Vec::new(), true),
                Err(_) => return Err(Unavailable::Broken),
            };
            if len != bytes.len() {
                return Err(Unavailable::Broken);
            }
            for (word, eight) in words.iter_mut().zip(bytes.chunks_exact(8)) {
                *word = u64::from_le_bytes(eight.try_into().unwrap_or([0; 8]));
            }
            let of = words[NUMBER];
            if of != number && self.pull == Some(of) {
                let reply = Reply::from_words(&words).ok_or(Unavailable::Broken)?;
                (self.pull, self.pulled) = (None, Some(Answer { reply, fds, lost }));
                continue;
            }
            // Said again by a successor, or too late for who asked: nobody waits for it.
            if of != number && (1..=self.asked).contains(&of) {
                continue;
            }
            let reply = Reply::from_words(&words).ok_or(Unavailable::Broken)?;
            return self.open(Answer { reply, fds, lost });
        }
    }

    fn open(&mut self, answer: Answer) -> Result<(Reply, Vec<OwnedFd>), Unavailable> {
        self.lost = answer.lost;
        match answer.reply {
            Reply::Refused(why) => Err(Unavailable::Refused(why)),
            reply => Ok((reply, answer.fds)),
        }
    }
}
