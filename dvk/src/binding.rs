//! Driver: the handle a process works with. Joins the core to the daemon, the clock and the futex.
//!
//! Waiting: spin for a budget, then sleep on the own doorbell. A sleeper looks again now and then, so that a spoilt
//! doorbell page delays and never loses. A handle is used by one thread; make more handles for more threads.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use abi::limits::{
    INTRODUCTION_WAIT_MS, LOAN_BYTES_MAX, POOL_BYTES_MAX, POOL_SEGMENT_BYTES_MIN, RESCAN_MAX_MS,
    WITHDRAW_WAIT_MS,
};
use abi::member::{self, SegmentKind};
use abi::{Endpoint, Name, Slot, doorbell, table};
use crossbeam_utils::Backoff;
use shm::futex;
use shm::lane::Withdrawal;
use shm::pool::{Loan, Pool, Tally, Unsound};
use shm::sync::Ordering;

use crate::core::{Accepts, Call, Core, Counters, Known, PeerIndex, Sent};
use crate::daemon::{Bound, Daemon, Welcome};
use crate::error::{
    BindError, LoanError, NotifyError, PostError, ReceiveError, RelayError, ReplyError, SendError,
    SendrecError, Unavailable, WaitError,
};
use crate::message::{Delivery, From, Message};
use crate::timeout::Timeout;
use crate::waiting::{Look, deadline_of, left_until};

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
}

impl BindOptions {
    /// A binding in any free slot of `dc`, by the daemon that listens on `socket`.
    pub fn new(socket: impl AsRef<Path>, dc: &str) -> BindOptions {
        let socket = socket.as_ref().to_path_buf();
        BindOptions { socket, dc: dc.to_owned(), slot: None, name: None, wait: Wait::of_this_machine() }
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
}

/// A bound endpoint. Dropped, it is unbound.
pub struct Binding {
    pub(crate) core: Core,
    pub(crate) daemon: Daemon,
    pub(crate) wait: Wait,
    pub(crate) doorbell: usize,
}

impl Binding {
    /// Binds this process.
    ///
    /// Cost: a few round trips to the daemon. Errors: what the daemon refused, and why.
    pub fn bind(options: &BindOptions) -> Result<Binding, BindError> {
        let dc = name_of(&options.dc)?;
        let name = options.name.as_deref().map_or(Ok(Name::NONE), name_of)?;
        let mut daemon = Daemon::connect(&options.socket, dc).map_err(BindError::Unavailable)?;
        let bound = daemon.bind(options.slot, name).map_err(BindError::Unavailable)?;
        Binding::of(daemon, bound, options.wait)
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
        Binding::of(daemon, bound, Wait::of_this_machine())
    }

    fn of(daemon: Daemon, bound: Bound, wait: Wait) -> Result<Binding, BindError> {
        let mut pool = Pool::new(POOL_BYTES_MAX);
        if let Some((index, map)) = bound.pool {
            pool.add_segment(index, map);
        }
        let Welcome { doorbells, table, .. } = daemon.welcome().clone();
        let core = Core::new(bound.endpoint, doorbells, table, pool);
        Ok(Binding { core, daemon, wait, doorbell: doorbell::of_slot(bound.endpoint.slot) })
    }

    /// Binds another process of this node and user, which fetches the binding with `from_env`.
    /// Returns its endpoint and token.
    pub fn bind_other(options: &BindOptions, pid: u32) -> Result<(Endpoint, [u64; 2]), BindError> {
        let dc = name_of(&options.dc)?;
        let name = options.name.as_deref().map_or(Ok(Name::NONE), name_of)?;
        let mut daemon = Daemon::connect(&options.socket, dc).map_err(BindError::Unavailable)?;
        let bound = daemon.bind_other(pid, options.slot, name).map_err(BindError::Unavailable)?;
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

    fn wait_for_table<T>(
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
            futex::wait(table.futex(table::VERSION), version, Some(nap));
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
        self.core.bring_home_from_all();
        self.core.pool().settle();
        self.core.pool().audit()
    }

    /// Sends, and returns when the receiver has taken it: end to end, on another node too.
    ///
    /// Shape: one slot on the lane to `to`; a loan stays where it is. Cost: two cache lines; a system call only if
    /// somebody sleeps. Errors: see [`SendError`]; on every one a loan goes home as soon as nobody can read it.
    /// Source: DVS `dvk_send`, MINIX `send`.
    pub fn send(&mut self, to: Endpoint, message: Message, timeout: Timeout) -> Result<(), SendError> {
        let deadline = deadline_of(timeout);
        let index = match self.peer(to, deadline, timeout) {
            Ok(index) => index,
            Err(NoPeer::Dead) => return Err(SendError::DeadDestination),
            Err(NoPeer::WouldBlock) => return Err(SendError::WouldBlock),
            Err(NoPeer::Unavailable(why)) => return Err(SendError::Unavailable(why)),
        };
        let sent = self.core.start_send(index, message, timeout != Timeout::Forever)?;
        let waited = self.wait_on(Some(index), deadline, |core, _, look| {
            core.poll_sent(sent).or_else(|| if look == Look::Quick { None } else { core.poll_sent_end(sent) })
        });
        match waited {
            Some(done) => done,
            None => self.withdraw(sent, timeout),
        }
    }

    fn withdraw(&mut self, sent: Sent, timeout: Timeout) -> Result<(), SendError> {
        let bound = Instant::now() + Duration::from_millis(WITHDRAW_WAIT_MS);
        let backoff = Backoff::new();
        loop {
            match self.core.withdraw(sent, &mut self.daemon) {
                Err(corrupt) => return Err(SendError::Corrupt(corrupt)),
                Ok(Withdrawal::Taken) => return Err(SendError::TimedOutTaken),
                Ok(Withdrawal::Withdrawn) if timeout == Timeout::Zero => return Err(SendError::WouldBlock),
                Ok(Withdrawal::Withdrawn) => return Err(SendError::TimedOut),
                Ok(Withdrawal::Undecided) if Instant::now() >= bound => {
                    return Err(SendError::TimedOutUnknown);
                }
                Ok(Withdrawal::Undecided) => backoff.snooze(),
            }
        }
    }

    /// Puts a message into the lane and returns. Exactly once and in order, as `send`.
    ///
    /// Errors: [`PostError::Full`] gives the message back.
    pub fn post(&mut self, to: Endpoint, message: Message) -> Result<(), PostError> {
        match self.peer(to, deadline_of(Timeout::Forever), Timeout::Forever) {
            Ok(index) => self.core.post(index, message),
            Err(NoPeer::Dead) => Err(PostError::DeadDestination),
            Err(NoPeer::WouldBlock) => Err(PostError::Full(message)),
            Err(NoPeer::Unavailable(why)) => Err(PostError::Unavailable(why)),
        }
    }

    /// Waits until a `post` to this endpoint would find room.
    pub fn wait_room(&mut self, to: Endpoint, timeout: Timeout) -> Result<(), WaitError> {
        let deadline = deadline_of(timeout);
        let index = match self.peer(to, deadline, timeout) {
            Ok(index) => index,
            Err(NoPeer::Dead) => return Err(WaitError::DeadDestination),
            Err(NoPeer::WouldBlock) => return Err(WaitError::TimedOut),
            Err(NoPeer::Unavailable(why)) => return Err(WaitError::Unavailable(why)),
        };
        self.wait_for_room(index, deadline)
    }

    fn wait_for_room(&mut self, index: PeerIndex, deadline: Option<Instant>) -> Result<(), WaitError> {
        self.core.want_returns(index, true);
        let waited = self.wait_on(Some(index), deadline, |core, _, look| match core.has_room(index) {
            Err(corrupt) => Some(Err(WaitError::Corrupt(corrupt))),
            Ok(true) => Some(Ok(())),
            Ok(false) if look != Look::Quick && core.has_ended(index) => {
                Some(Err(WaitError::DeadDestination))
            }
            Ok(false) => None,
        });
        self.core.want_returns(index, false);
        waited.unwrap_or(Err(WaitError::TimedOut))
    }

    /// Posts, waiting for room as often as needed.
    ///
    /// Errors: as `post`, without `Full`; the wait's as [`SendError`].
    pub fn post_all(
        &mut self,
        to: Endpoint,
        mut message: Message,
        timeout: Timeout,
    ) -> Result<(), SendError> {
        loop {
            match self.post(to, message) {
                Ok(()) => return Ok(()),
                Err(PostError::Full(back)) => message = back,
                Err(PostError::DeadDestination) => return Err(SendError::DeadDestination),
                Err(PostError::Corrupt(why)) => return Err(SendError::Corrupt(why)),
                Err(PostError::Unavailable(why)) => return Err(SendError::Unavailable(why)),
            }
            match self.wait_room(to, timeout) {
                Ok(()) => {}
                Err(WaitError::TimedOut) => return Err(SendError::TimedOut),
                Err(WaitError::DeadDestination) => return Err(SendError::DeadDestination),
                Err(WaitError::Corrupt(why)) => return Err(SendError::Corrupt(why)),
                Err(WaitError::Unavailable(why)) => return Err(SendError::Unavailable(why)),
            }
        }
    }

    /// Receives a message, a request or a notification.
    ///
    /// Order: a wake-up, notifications (lowest slot first), after each round of them one message; senders in turn; first in,
    /// first out for each. `From::Endpoint` only ever returns something of that endpoint. Source: MINIX `receive`.
    pub fn receive(&mut self, from: From, timeout: Timeout) -> Result<Delivery, ReceiveError> {
        self.receive_accepting(from, timeout, true)
    }

    /// Receives a request, a plain message or a wake-up; never a notification. The server's half of `sendrec`.
    ///
    /// A request dropped without a `reply` answers its client with [`SendrecError::Abandoned`].
    pub fn receive_request(&mut self, timeout: Timeout) -> Result<Delivery, ReceiveError> {
        self.receive_accepting(From::Any, timeout, false)
    }

    fn receive_accepting(
        &mut self,
        from: From,
        timeout: Timeout,
        notifications: bool,
    ) -> Result<Delivery, ReceiveError> {
        let accepts = Accepts { notifications, attend: self.wait != Wait::Block };
        let deadline = deadline_of(timeout);
        let mut misses = 0;
        loop {
            let waited = self.wait_on(None, deadline, |core, daemon, look| {
                let due = match from {
                    From::Any => core.due(accepts, daemon),
                    From::Endpoint(source) => match core.due_from(source, accepts, daemon) {
                        Ok(None) if look != Look::Quick => core.poll_from_end(source, daemon).map(|()| None),
                        due => due,
                    },
                };
                due.transpose()
            });
            let due = match waited {
                Some(due) => due?,
                None if timeout == Timeout::Zero => return Err(ReceiveError::WouldBlock),
                None => return Err(ReceiveError::TimedOut),
            };
            if let Ok(delivery) = self.core.take_due_bytes(due, accepts) {
                return Ok(delivery);
            }
            if let Some(delivery) = self.core.take_due(due, accepts, &mut self.daemon)? {
                return Ok(delivery);
            }
            // Each pair may turn out to have nothing, once.
            misses += 1;
            if misses > self.core.pairs() && left_until(deadline).is_none() {
                return Err(ReceiveError::TimedOut);
            }
        }
    }

    /// Sends a request and returns its reply: one round trip.
    ///
    /// Errors: see [`SendrecError`]. A late reply is dropped. Source: MINIX `sendrec`.
    pub fn sendrec(
        &mut self,
        to: Endpoint,
        mut message: Message,
        timeout: Timeout,
    ) -> Result<Delivery, SendrecError> {
        let deadline = deadline_of(timeout);
        let index = match self.peer(to, deadline, timeout) {
            Ok(index) => index,
            Err(NoPeer::Dead) => return Err(SendrecError::DeadDestination),
            Err(NoPeer::WouldBlock) => return Err(SendrecError::WouldBlock),
            Err(NoPeer::Unavailable(why)) => return Err(SendrecError::Unavailable(why)),
        };
        let mut call = self.core.start_call(index, &mut message, timeout != Timeout::Forever)?;
        loop {
            let waited = self.wait_on(Some(call.peer()), deadline, |core, daemon, look| {
                if core.is_answered(call) {
                    return Some(Ok(()));
                }
                match look {
                    Look::Quick => None,
                    Look::Thorough => core.call_end(call),
                    Look::Last if core.is_deadlock(call) => {
                        core.give_up(call, true, daemon);
                        Some(Err(SendrecError::Deadlock))
                    }
                    Look::Last => core.call_end(call),
                }
            });
            let Some(ended) = waited else { return Err(self.give_up(call, timeout)) };
            ended?;
            if let Ok(reply) = self.core.take_answer_bytes(call) {
                return Ok(reply);
            }
            if let Some(to) = self.core.redirected(call) {
                call = self.follow(call, to, deadline, timeout)?;
                continue;
            }
            if let Some(done) = self.core.take_answer(call, &mut self.daemon) {
                return done;
            }
            // It was there and is not: whoever answers so must not keep us beyond our time.
            if left_until(deadline).is_none() {
                return Err(self.give_up(call, timeout));
            }
        }
    }

    /// Our call was passed on: waits for the new server from now on.
    #[cold]
    fn follow(
        &mut self,
        call: Call,
        to: Result<Endpoint, SendrecError>,
        deadline: Option<Instant>,
        timeout: Timeout,
    ) -> Result<Call, SendrecError> {
        let index = match to.map(|to| self.peer(to, deadline, timeout)) {
            Ok(Ok(index)) => index,
            Ok(Err(NoPeer::WouldBlock)) => return Err(self.give_up(call, timeout)),
            refused => {
                self.give_up(call, timeout);
                return Err(match refused {
                    Err(why) => why,
                    Ok(Err(NoPeer::Unavailable(why))) => SendrecError::Unavailable(why),
                    // The server that passed it on had taken it.
                    Ok(_) => SendrecError::DeadSource,
                });
            }
        };
        loop {
            match self.core.follow(call, index, timeout != Timeout::Forever) {
                Err(SendrecError::Full) => {}
                followed => return followed,
            }
            match self.wait_for_room(index, deadline) {
                Ok(()) | Err(WaitError::DeadDestination) => {}
                Err(_) => return Err(self.give_up(call, timeout)),
            }
        }
    }

    fn give_up(&mut self, call: Call, timeout: Timeout) -> SendrecError {
        let bound = Instant::now() + Duration::from_millis(WITHDRAW_WAIT_MS);
        let backoff = Backoff::new();
        loop {
            match self.core.give_up(call, Instant::now() >= bound, &mut self.daemon) {
                Some(SendrecError::TimedOut) if timeout == Timeout::Zero => return SendrecError::WouldBlock,
                Some(why) => return why,
                None => backoff.snooze(),
            }
        }
    }

    /// Answers a request that was received, once. Never blocks; `Ok` when it is published.
    pub fn reply(&mut self, request: &Delivery, message: Message) -> Result<(), ReplyError> {
        self.core.reply(request, message)
    }

    /// Passes a request that was received on to another server, which answers its client. Never blocks once introduced.
    ///
    /// Shape: the message as it came; an extent is copied into a loan of ours, unless its view was taken out before. Cost:
    /// three slots, and one more of the client, which confirms to the new server before that gets the request. Errors: see
    /// [`RelayError`]; on every one the request is still ours to answer. Source: DVS `dvk_relay`.
    pub fn relay(&mut self, request: &Delivery, to: Endpoint) -> Result<(), RelayError> {
        let index = match self.peer(to, deadline_of(Timeout::Forever), Timeout::Forever) {
            Ok(index) => index,
            Err(NoPeer::Dead) => return Err(RelayError::DeadDestination),
            Err(NoPeer::WouldBlock) => return Err(RelayError::Unavailable(Unavailable::Slow)),
            Err(NoPeer::Unavailable(why)) => return Err(RelayError::Unavailable(why)),
        };
        let mut message = request.to_message();
        if let Some(view) = request.view() {
            let mut loan = self.loan(view.len()).map_err(RelayError::Loan)?;
            view.copy_to(&mut loan);
            message = message.with(loan);
        }
        self.core.relay(request, index, message)
    }

    /// Raises bits at an endpoint. Never blocks once introduced, never lost, or-ed until received.
    pub fn notify(&mut self, to: Endpoint, bits: u32) -> Result<(), NotifyError> {
        self.raise(to, |core, index| core.notify(index, bits))
    }

    /// Has an endpoint's `receive(From::Any)` or `receive_request` return `What::Woken`, now, or at once when it next waits.
    ///
    /// Never blocks once introduced. Several wake-ups of one source before the receiver looks are one.
    pub fn wake(&mut self, to: Endpoint) -> Result<(), NotifyError> {
        self.raise(to, Core::wake)
    }

    fn raise(
        &mut self,
        to: Endpoint,
        raise: impl FnOnce(&mut Core, PeerIndex) -> bool,
    ) -> Result<(), NotifyError> {
        match self.peer(to, deadline_of(Timeout::Forever), Timeout::Forever) {
            Ok(index) if raise(&mut self.core, index) => Ok(()),
            Ok(_) | Err(NoPeer::Dead) => Err(NotifyError::DeadDestination),
            Err(NoPeer::WouldBlock) => Err(NotifyError::Unavailable(Unavailable::Slow)),
            Err(NoPeer::Unavailable(why)) => Err(NotifyError::Unavailable(why)),
        }
    }

    /// The pair with an endpoint, introduced first if need be.
    #[inline]
    fn peer(
        &mut self,
        to: Endpoint,
        deadline: Option<Instant>,
        timeout: Timeout,
    ) -> Result<PeerIndex, NoPeer> {
        match self.core.find(to) {
            Some(index) => {
                // A proxy may have been replaced while we did not look.
                self.core.pull(&mut self.daemon).map_err(NoPeer::Unavailable)?;
                Ok(index)
            }
            None => self.introduce(to, deadline, timeout),
        }
    }

    #[cold]
    fn introduce(
        &mut self,
        to: Endpoint,
        deadline: Option<Instant>,
        timeout: Timeout,
    ) -> Result<PeerIndex, NoPeer> {
        let bound = Instant::now() + Duration::from_millis(INTRODUCTION_WAIT_MS);
        let mut pause = Duration::from_micros(50);
        loop {
            if self.core.known(to) != Known::Alive {
                return Err(NoPeer::Dead);
            }
            match self.daemon.introduce(to) {
                Ok(Some(introduced)) => return Ok(self.core.introduce(introduced)),
                Ok(None) => {}
                Err(Unavailable::Refused(member::Refusal::NoSuchEndpoint)) => return Err(NoPeer::Dead),
                Err(why) => return Err(NoPeer::Unavailable(why)),
            }
            let now = Instant::now();
            if timeout == Timeout::Zero || deadline.is_some_and(|d| now >= d) {
                return Err(NoPeer::WouldBlock);
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
    WouldBlock,
    Unavailable(Unavailable),
}

fn name_of(text: &str) -> Result<Name, BindError> {
    Name::new(text).map_err(|_| BindError::Unavailable(Unavailable::Refused(member::Refusal::BadRequest)))
}
