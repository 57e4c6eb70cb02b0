//! Driver: the handle a process works with. Joins the core to the daemon, the clock and the futex.
//!
//! Waiting: spin for a budget, then sleep on the own doorbell. A sleeper looks again now and then, so that a spoilt
//! doorbell page delays and never loses. A handle is used by one thread; make more handles for more threads.

mod calls;
pub(crate) mod copy;
mod grants;
mod polls;
mod private;
mod steps;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use abi::limits::{
    INTRODUCTION_WAIT_MS, LOAN_BYTES_MAX, POOL_BYTES_MAX, POOL_SEGMENT_BYTES_MIN, RESCAN_MAX_MS,
};
use abi::member::{self, SegmentKind};
use abi::table::State;
use abi::{Endpoint, Kinds, Level, Name, NodeId, Slot, doorbell, table};
use shm::futex::{self, WaitEnd};
use shm::pool::{Loan, Pool, Tally, Unsound};
use shm::sync::Ordering;

use crate::core::{Core, Counters, Known, PeerIndex};
use crate::daemon::{Bound, Daemon, Welcome};
use crate::error::{BindError, LoanError, Unavailable, WaitError};
use crate::timeout::Timeout;
use crate::waiting::{deadline_of, left_until};

pub use steps::{Calling, Sending};

/// How a binding waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Never sleeps: lowest latency, a whole core.
    Spin,
    /// Sleeps at once.
    Block,
    /// Spins this long, then sleeps.
    Adaptive(Duration),
}

impl Wait {
    /// Spins for about the cost of one wake-up where another core can run the peer meanwhile, else not at all.
    pub fn of_this_machine() -> Wait {
        if shm::os::process::cpus_online() < 2 {
            Wait::Block
        } else {
            Wait::Adaptive(Duration::from_micros(20))
        }
    }

    pub(crate) const fn budget(self) -> Duration {
        match self {
            Wait::Spin => Duration::MAX,
            Wait::Block => Duration::ZERO,
            Wait::Adaptive(budget) => budget,
        }
    }
}

/// Where and as what to bind.
#[derive(Clone, Debug)]
pub struct BindOptions {
    socket: PathBuf,
    dc: String,
    slot: Option<Slot>,
    name: Option<String>,
    wait: Wait,
    interruptible: bool,
    private: bool,
}

/// What is known here of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Whereabouts {
    pub endpoint: Endpoint,
    /// Its home.
    pub node: NodeId,
    pub is_alive: bool,
    /// On this node: reached through shared memory alone.
    pub is_here: bool,
    /// What the cluster file makes of it.
    pub level: Level,
}

/// What the cluster file lets a binding do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Privileges {
    pub level: Level,
    /// The calls it may make, to those whom it may call: which those are is in the cluster file.
    pub calls: Kinds,
    /// Who is bound in this slot hears of its end.
    pub warn: Option<Slot>,
}

impl BindOptions {
    /// A binding in any free slot of `dc`, by the daemon that listens on `socket`.
    pub fn new(socket: impl AsRef<Path>, dc: &str) -> BindOptions {
        let socket = socket.as_ref().to_path_buf();
        BindOptions {
            socket,
            dc: dc.to_owned(),
            slot: None,
            name: None,
            wait: Wait::of_this_machine(),
            interruptible: false,
            private: false,
        }
    }

    /// In this slot and no other.
    #[must_use]
    pub fn slot(mut self, slot: Slot) -> BindOptions {
        self.slot = Some(slot);
        self
    }

    /// Under this name, by which others may look it up.
    #[must_use]
    pub fn name(mut self, name: &str) -> BindOptions {
        self.name = Some(name.to_owned());
        self
    }

    #[must_use]
    pub fn wait(mut self, wait: Wait) -> BindOptions {
        self.wait = wait;
        self
    }

    /// Lets a signal end a sleep: the call withdraws and says `Interrupted`. Otherwise it sleeps on.
    ///
    /// Cost: one fence more for each message that is taken.
    #[must_use]
    pub fn interruptible(mut self, interruptible: bool) -> BindOptions {
        self.interruptible = interruptible;
        self
    }

    /// With memory for each peer apart: what this endpoint publishes for one peer, no other may map, and when the pair ends
    /// its memory goes. Otherwise whoever is introduced to it can read along. What others send to it stands in *their* memory.
    ///
    /// Cost: a segment and a descriptor of the daemon for each peer, another for loans, and at most about 1,000 peers
    /// (`limits::SEGMENTS_MAX`). A loan is copied once more when it is sent, unless it was got by [`Binding::loan_for`].
    #[must_use]
    pub fn private(mut self, private: bool) -> BindOptions {
        self.private = private;
        self
    }
}

/// A bound endpoint. Dropped, it is unbound.
pub struct Binding {
    pub(crate) core: Core,
    pub(crate) daemon: Daemon,
    pub(crate) wait: Wait,
    pub(crate) doorbell: usize,
    pub(crate) interruptible: bool,
    pub(crate) began: Instant,
    /// When everything was looked at last, whatever hints and rings said.
    pub(crate) rescanned: Instant,
    /// The last wait ended by a signal.
    pub(crate) interrupted: bool,
    pub(crate) granting: grants::Granting,
    /// The servers of calls that were started and have not ended.
    open_calls: BTreeSet<Endpoint>,
}

impl Binding {
    /// Binds this process.
    ///
    /// Cost: a few round trips to the daemon. Errors: what the daemon refused, and why.
    pub fn bind(options: &BindOptions) -> Result<Binding, BindError> {
        let dc = name_of(&options.dc)?;
        let name = options.name.as_deref().map_or(Ok(Name::NONE), name_of)?;
        let mut daemon = Daemon::connect(&options.socket, dc).map_err(BindError::Unavailable)?;
        let bound = daemon.bind(options.slot, name, options.private).map_err(BindError::Unavailable)?;
        Binding::of(daemon, bound, options.wait, options.interruptible)
    }

    /// The binding that this process was started with: `dvs run` puts it into the environment.
    pub fn from_env() -> Result<Binding, BindError> {
        let var = |key| std::env::var(key).map_err(|_| BindError::NotStartedBound);
        let dc = name_of(&var(member::ENV_DC)?)?;
        let endpoint: Endpoint =
            var(member::ENV_ENDPOINT)?.parse().map_err(|_| BindError::NotStartedBound)?;
        let token =
            u128::from_str_radix(&var(member::ENV_TOKEN)?, 16).map_err(|_| BindError::NotStartedBound)?;
        let socket = PathBuf::from(var(member::ENV_SOCKET)?);
        let mut daemon = Daemon::connect(&socket, dc).map_err(BindError::Unavailable)?;
        let token = [(token >> 64) as u64, token as u64];
        let bound = daemon.claim(endpoint, token).map_err(BindError::Unavailable)?;
        Binding::of(daemon, bound, Wait::of_this_machine(), false)
    }

    fn of(daemon: Daemon, bound: Bound, wait: Wait, interruptible: bool) -> Result<Binding, BindError> {
        let mut pool = Pool::new(POOL_BYTES_MAX);
        if let Some((index, map)) = bound.pool {
            pool.add_segment(index, map);
        }
        let Welcome { doorbells, table, .. } = daemon.welcome().clone();
        let mut core = Core::new(bound.endpoint, doorbells, table, pool);
        if bound.private {
            core.set_private();
        }
        let doorbell = doorbell::of_slot(bound.endpoint.slot);
        Ok(Binding {
            core,
            daemon,
            wait,
            doorbell,
            interruptible,
            began: Instant::now(),
            rescanned: Instant::now(),
            interrupted: false,
            granting: grants::Granting::default(),
            open_calls: BTreeSet::new(),
        })
    }

    /// Binds another process of this node and user, which fetches the binding with `from_env`.
    /// Returns its endpoint and token.
    pub fn bind_other(options: &BindOptions, pid: u32) -> Result<(Endpoint, [u64; 2]), BindError> {
        let dc = name_of(&options.dc)?;
        let name = options.name.as_deref().map_or(Ok(Name::NONE), name_of)?;
        let mut daemon = Daemon::connect(&options.socket, dc).map_err(BindError::Unavailable)?;
        let bound = daemon.bind_other(pid, options.slot, name, options.private);
        let bound = bound.map_err(BindError::Unavailable)?;
        Ok((bound.endpoint, bound.token))
    }

    /// Who we are.
    pub fn whoami(&self) -> Endpoint {
        self.core.me()
    }

    /// What the daemon said of DC and node.
    pub fn welcome(&self) -> &Welcome {
        self.daemon.welcome()
    }

    pub fn counters(&self) -> Counters {
        self.core.counters()
    }

    pub fn set_wait(&mut self, wait: Wait) {
        self.wait = wait;
    }

    /// See [`BindOptions::interruptible`].
    pub fn set_interruptible(&mut self, interruptible: bool) {
        self.interruptible = interruptible;
    }

    /// Ends the binding, as dropping it does, and hears that it has ended.
    pub fn unbind(mut self) -> Result<(), Unavailable> {
        self.daemon.unbind()
    }

    /// The endpoint that is bound in a slot of our DC, on whichever node. Cost: one load.
    pub fn lookup(&self, slot: Slot) -> Option<Endpoint> {
        if slot.0 >= abi::limits::SLOTS_PER_DC {
            return None;
        }
        self.core.lookup(slot)
    }

    /// What is known here of whoever is, or was last, bound in a slot. Cost: one load.
    pub fn whereabouts(&self, slot: Slot) -> Option<Whereabouts> {
        if slot.0 >= abi::limits::SLOTS_PER_DC {
            return None;
        }
        let entry = self.core.entry(slot);
        let endpoint = Endpoint::new(self.whoami().dc, slot, entry.generation);
        let is_alive = entry.state == State::Bound;
        let is_here = entry.node == self.welcome().node;
        let (node, level) = (entry.node, entry.level);
        (entry.state != State::Free).then_some(Whereabouts { endpoint, node, is_alive, is_here, level })
    }

    /// What we may do. Cost: a round trip to the daemon. Source: DVS `dvk_getpriv`.
    pub fn privileges(&mut self) -> Result<Privileges, Unavailable> {
        self.daemon.privileges()
    }

    /// The endpoint bound under a name. Cost: a round trip to the daemon.
    pub fn lookup_name(&mut self, name: &str) -> Result<Option<Endpoint>, Unavailable> {
        match Name::new(name) {
            Ok(name) => self.daemon.lookup_name(name),
            Err(_) => Ok(None),
        }
    }

    /// Waits until somebody is bound in a slot.
    pub fn wait_bind(&mut self, slot: Slot, timeout: Timeout) -> Result<Endpoint, WaitError> {
        self.wait_for_table(timeout, |me| me.lookup(slot))
    }

    /// Waits until this very generation has ended.
    pub fn wait_unbind(&mut self, endpoint: Endpoint, timeout: Timeout) -> Result<(), WaitError> {
        self.wait_for_table(timeout, |me| (me.core.known(endpoint) != Known::Alive).then_some(()))
    }

    pub(super) fn wait_for_table<T>(
        &mut self,
        timeout: Timeout,
        look: impl Fn(&Binding) -> Option<T>,
    ) -> Result<T, WaitError> {
        let deadline = deadline_of(timeout);
        let table = self.daemon.welcome().table.clone();
        loop {
            // Pairs with: the daemon's version store (Release). What changed before it is seen below.
            let version = table.load(table::VERSION, Ordering::Acquire) as u32;
            if let Some(found) = look(self) {
                return Ok(found);
            }
            let Some(left) = left_until(deadline) else { return Err(WaitError::TimedOut) };
            let nap = left.min(Duration::from_millis(RESCAN_MAX_MS));
            let end = futex::wait(table.futex(table::VERSION), version, Some(nap));
            if end == WaitEnd::Interrupted && self.interruptible {
                return Err(WaitError::Interrupted);
            }
        }
    }

    /// A buffer to write in place and send. Reuses the buffer freed last.
    ///
    /// Units: bytes, up to `limits::LOAN_BYTES_MAX`. Cost: no system call unless the pool must grow.
    pub fn loan(&mut self, len_bytes: usize) -> Result<Loan, LoanError> {
        let len =
            u32::try_from(len_bytes).ok().filter(|&len| len <= LOAN_BYTES_MAX).ok_or(LoanError::TooLong)?;
        if let Some(loan) = self.core.pool().loan(len) {
            return Ok(loan);
        }
        self.core.bring_home_from_all();
        if let Some(loan) = self.core.pool().loan(len) {
            return Ok(loan);
        }
        let more = (len as u64).next_power_of_two().max(POOL_SEGMENT_BYTES_MIN);
        if more > self.core.pool().room_bytes() {
            return Err(LoanError::NoBuffer);
        }
        let (index, map) =
            self.daemon.new_segment(SegmentKind::Pool, more).map_err(LoanError::Unavailable)?;
        self.core.pool().add_segment(index, map);
        self.core.pool().loan(len).ok_or(LoanError::NoBuffer)
    }

    /// Checks that the pool is whole: free and out make the total. Takes home what came back first.
    pub fn audit(&mut self) -> Result<Tally, Unsound> {
        self.core.audit()
    }

    /// The pair with an endpoint, introduced first if need be.
    #[inline]
    fn peer(
        &mut self,
        to: Endpoint,
        deadline: Option<Instant>,
        timeout: Timeout,
    ) -> Result<PeerIndex, NoPeer> {
        self.peer_for(to, false, deadline, timeout)
    }

    /// `follow`: for a call of ours that was passed on to it.
    #[inline]
    fn peer_for(
        &mut self,
        to: Endpoint,
        follow: bool,
        deadline: Option<Instant>,
        timeout: Timeout,
    ) -> Result<PeerIndex, NoPeer> {
        match self.core.find(to) {
            Some(index) => {
                // A proxy may have been replaced while we did not look.
                self.core.pull(&mut self.daemon).map_err(NoPeer::Unavailable)?;
                Ok(index)
            }
            None => self.introduce(to, follow, deadline, timeout),
        }
    }

    #[cold]
    fn introduce(
        &mut self,
        to: Endpoint,
        follow: bool,
        deadline: Option<Instant>,
        timeout: Timeout,
    ) -> Result<PeerIndex, NoPeer> {
        let bound = Instant::now() + Duration::from_millis(INTRODUCTION_WAIT_MS);
        let mut pause = Duration::from_micros(50);
        loop {
            if self.core.known(to) != Known::Alive {
                return Err(NoPeer::Dead);
            }
            match self.daemon.introduce(to, follow) {
                Ok(Some(introduced)) => return Ok(self.core.introduce(introduced)),
                Ok(None) => {}
                Err(Unavailable::Refused(member::Refusal::NoSuchEndpoint)) => return Err(NoPeer::Dead),
                Err(Unavailable::Refused(member::Refusal::NotPermitted)) => return Err(NoPeer::NotPermitted),
                Err(why) => return Err(NoPeer::Unavailable(why)),
            }
            let now = Instant::now();
            if timeout == Timeout::Zero || deadline.is_some_and(|d| now >= d) {
                return Err(NoPeer::NotInTime);
            }
            if now >= bound {
                return Err(NoPeer::Unavailable(Unavailable::Slow));
            }
            // The other side may itself wait for an introduction to us: what it asked for is pulled meanwhile.
            self.core.pull(&mut self.daemon).map_err(NoPeer::Unavailable)?;
            if let Some(index) = self.core.find(to) {
                return Ok(index);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}

/// Why there is no pair.
enum NoPeer {
    Dead,
    /// The time of the call was over before the other side was ready. Nothing is published.
    NotInTime,
    NotPermitted,
    Unavailable(Unavailable),
}

fn name_of(text: &str) -> Result<Name, BindError> {
    Name::new(text).map_err(BindError::NotAName)
}
