//! A process as the simulator sees it: the real `dvk::core` of one binding, and a little program that calls it by chance.
//! Blocking calls do what `dvk::Binding` does: look, announce sleep, look again, sleep until rung or for a pause.
//!
//! Key type: [`Program`]. Neighbours: `verbs` (what is called), `waits` (how calls end), `hands` (its host).

mod answers;
mod copies;
mod grants;
mod hands;
mod verbs;
mod waits;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use abi::member::{Reply, Request, VERSION};
use abi::{Endpoint, Name, Slot, doorbell};
use dvk::core::{Call, Core, PeerIndex, Sent};
use dvk::message::{Delivery, View};
use fabric::Time;
use node::core::ConnId;
use shm::pool::Pool;

use crate::dice::Dice;
use crate::ledger::{Fate, Ledger};
use crate::site::Site;
use crate::trace::Trace;
use hands::Hands;

/// Counts by name.
pub type Counts = BTreeMap<&'static str, u64>;

/// All that a program touches in one step.
pub struct Scene<'a> {
    pub now: Time,
    pub site: &'a mut Site,
    pub ledger: &'a mut Ledger,
    pub trace: &'a mut Trace,
    pub dice: &'a mut Dice,
    pub calls: &'a mut Counts,
    pub rows: &'a mut Counts,
    /// Slots that somebody is bound in, or will be.
    pub slots: &'a [Slot],
    /// Nothing new is begun: what is there is received, what is owed is answered.
    pub healing: bool,
    /// A call that nobody has made yet in this run, late in it.
    pub missing: Option<&'static str>,
    /// Longest loan, as a power of two.
    pub loan_log_max: u64,
    /// A ring is under way to somebody: looking by itself may overtake it.
    pub rings_under_way: bool,
}

impl Scene<'_> {
    pub fn count(&mut self, what: &'static str) {
        *self.calls.entry(what).or_default() += 1;
    }

    /// Somebody was told that an endpoint has ended.
    pub fn told_dead(&mut self, me: Endpoint, ended: Endpoint) {
        self.trace.note(self.now, self.site.id, format_args!("{me} is told that {ended} ended"));
        self.ledger.told_dead.insert((me, ended));
    }

    pub fn row(&mut self, what: &'static str) {
        *self.rows.entry(what).or_default() += 1;
    }
}

/// When a program goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    At(Time),
    /// When it is rung, at the latest then.
    Asleep(Time),
}

/// A process and its places.
pub struct Program {
    pub site: usize,
    pub slot: Slot,
    pub pid: u32,
    pub body: Option<Body>,
    /// Wakes of an earlier life or plan are stale.
    pub nonce: u64,
    pub asleep: bool,
    /// Its process is stopped until then.
    pub stopped_until: Time,
    /// Endpoints that it has heard of, dead ones too.
    known: VecDeque<Endpoint>,
}

/// A bound process.
pub struct Body {
    pub core: Core,
    pub me: Endpoint,
    pub conn: ConnId,
    home: Home,
    state: State,
    /// It looks for a while before it sleeps, and attends.
    spins: u32,
    views: VecDeque<Held>,
    owed: VecDeque<Owed>,
    /// What it grants, and the copy that it is in the middle of.
    estate: Option<Box<grants::Estate>>,
    errand: Option<Box<copies::Errand>>,
}

/// Its own memory.
struct Home {
    memory: u32,
    sides: u32,
    sides_used: u32,
    pools: u32,
}

/// A view that is kept for a while.
struct Held {
    view: View,
    wanted: Vec<u8>,
    what: String,
}

/// A request that is to be answered.
struct Owed {
    request: Delivery,
    number: u64,
    /// Whom its client had asked.
    origin: Endpoint,
}

/// How long a call may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Limit {
    Forever,
    Zero,
    Until(Time),
}

impl Limit {
    fn deadline(self, now: Time) -> Option<Time> {
        match self {
            Limit::Forever => None,
            Limit::Zero => Some(now),
            Limit::Until(at) => Some(at),
        }
    }
}

/// What is said to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verb {
    Post,
    Send,
    Call,
    Notify(u32),
    Wake,
    /// A call was passed on: confirm it to the new server, and wait for that.
    Follow {
        call: Call,
        asked: Endpoint,
        number: u64,
    },
}

enum State {
    Idle,
    Introducing {
        to: Endpoint,
        verb: Verb,
        limit: Limit,
        bound: Time,
        pause: Duration,
    },
    Waiting(Wait),
    /// Between two steps of a copy.
    Copying,
    /// It looks at the table now and then.
    Watching {
        what: watch::What,
        until: Time,
    },
    /// A grantee is in the middle of a step.
    Revoking {
        live: grants::Live,
        bound: Time,
    },
    /// The time of a call is over; its withdrawal is not decided.
    Withdrawing {
        on: On,
        limit: Limit,
        bound: Time,
    },
}

#[derive(Clone, Copy)]
struct Wait {
    on: On,
    limit: Limit,
    deadline: Option<Time>,
    spins: u32,
    rescan: Duration,
    lying: bool,
}

/// What is waited for.
#[derive(Clone, Copy)]
enum On {
    Sent {
        sent: Sent,
        to: Endpoint,
        number: u64,
    },
    /// `to` was asked, `server` owes the answer now.
    Call {
        call: Call,
        to: Endpoint,
        server: Endpoint,
        number: u64,
    },
    Any {
        notifications: bool,
    },
    From {
        source: Endpoint,
    },
    Room {
        index: PeerIndex,
        to: Endpoint,
    },
    /// The couriers of a copy.
    Copy,
}

impl Program {
    pub fn new(site: usize, slot: Slot, pid: u32) -> Program {
        let (body, known, stopped_until) = (None, VecDeque::new(), Time::ZERO);
        Program { site, slot, pid, body, nonce: 0, asleep: false, stopped_until, known }
    }

    pub fn me(&self) -> Option<Endpoint> {
        self.body.as_ref().map(|body| body.me)
    }

    /// Its machine was restarted: it remembers nobody.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// Somebody waits for its reply.
    pub fn owes(&self) -> bool {
        self.body.as_ref().is_some_and(|body| !body.owed.is_empty())
    }

    /// One step of the process, up to where it would wait.
    pub fn step(&mut self, scene: &mut Scene<'_>) -> Next {
        self.asleep = false;
        let Some(body) = &mut self.body else { return self.bind(scene) };
        let next = body.step(scene, &mut self.known);
        self.asleep = matches!(next, Next::Asleep(_));
        next
    }

    fn bind(&mut self, scene: &mut Scene<'_>) -> Next {
        let conn = scene.site.connect(scene.now, self.pid);
        match self.bind_on(scene, conn) {
            Some(body) => {
                scene.count("bind");
                scene.trace.note(scene.now, scene.site.id, format_args!("{} binds", body.me));
                self.body = Some(body);
                Next::At(scene.now + scene.dice.us(10, 100))
            }
            None => {
                scene.site.step(scene.now, node::core::Input::Disconnected { conn });
                Next::At(scene.now + scene.dice.us(1_000, 20_000))
            }
        }
    }

    fn bind_on(&mut self, scene: &mut Scene<'_>, conn: ConnId) -> Option<Body> {
        let now = scene.now;
        let dc = Name::new("main").ok()?;
        let mut ask = |request| scene.site.ask(now, conn, request).ok();
        let Some(Reply::Welcome { .. }) = ask(Request::Hello { version: VERSION, dc }) else { return None };
        let bind = Request::Bind { slot: Some(self.slot), name: Name::NONE, private: false };
        let Some(Reply::Bound { endpoint, memory, sides, .. }) = ask(bind) else { return None };
        let Some(Reply::Done) = ask(Request::Ready) else { return None };
        let mut pool = Pool::new(abi::limits::POOL_BYTES_MAX);
        pool.add_segment(1, scene.site.pool(memory, 1)?);
        let core = Core::new(endpoint, scene.site.doorbells.clone(), scene.site.table(), pool);
        scene.ledger.born(endpoint, scene.site.id, scene.site.incarnation());
        Some(Body {
            core,
            me: endpoint,
            conn,
            home: Home { memory, sides, sides_used: 0, pools: 1 },
            state: State::Idle,
            spins: if scene.dice.one_in(2) { scene.dice.between(1, 12) as u32 } else { 0 },
            views: VecDeque::new(),
            owed: VecDeque::new(),
            estate: None,
            errand: None,
        })
    }
}

impl Body {
    fn step(&mut self, scene: &mut Scene<'_>, known: &mut VecDeque<Endpoint>) -> Next {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => self.idle(scene, known),
            State::Introducing { to, verb, limit, bound, pause } => {
                self.introducing(scene, to, verb, (limit, bound, pause))
            }
            State::Waiting(wait) => self.waiting(scene, wait),
            State::Copying => self.copying(scene),
            State::Watching { what, until } => self.watching(scene, what, until),
            State::Revoking { live, bound } => self.revoking(scene, live, bound),
            State::Withdrawing { on, limit, bound } => self.withdrawing(scene, on, limit, bound),
        }
    }

    fn bell(&self) -> usize {
        doorbell::of_slot(self.me.slot)
    }

    fn hands<'a>(home: &'a mut Home, conn: ConnId, scene: &'a mut Scene<'_>) -> Hands<'a> {
        Hands { site: scene.site, now: scene.now, conn, home }
    }

    /// A pair with somebody, if it is to be had at once.
    fn meet(&mut self, scene: &mut Scene<'_>, with: Endpoint) -> Option<PeerIndex> {
        let introduced = Body::hands(&mut self.home, self.conn, scene).introduce(with).ok()??;
        Some(self.core.introduce(introduced))
    }

    /// Back to the next thing to do, after a little.
    fn think(&mut self, scene: &mut Scene<'_>) -> Next {
        self.state = State::Idle;
        let long = scene.dice.one_in(8);
        Next::At(scene.now + if long { scene.dice.us(500, 6_000) } else { scene.dice.us(5, 300) })
    }

    /// It is killed: what it was about to take back may or may not be delivered.
    pub fn killed(&self, ledger: &mut Ledger) {
        if let State::Withdrawing { on: On::Sent { to, number, .. } | On::Call { to, number, .. }, .. } =
            self.state
        {
            ledger.decide(self.me, to, number, Fate::Unknown);
        }
    }

    /// What it still waits for when all should be over.
    pub fn waits(&self) -> Option<String> {
        match &self.state {
            State::Idle | State::Watching { .. } => None,
            State::Copying => Some("to go on with a copy".into()),
            State::Revoking { .. } => Some("for a grantee to end its step".into()),
            State::Introducing { to, verb, .. } => Some(format!("for an introduction to {to}, to {verb:?}")),
            State::Withdrawing { .. } => Some("for a withdrawal".into()),
            State::Waiting(wait) => match wait.on {
                On::Any { .. } => None,
                On::Copy => Some("for couriers to copy".into()),
                On::From { source } => Some(format!("to receive from {source}")),
                On::Sent { to, number, .. } => Some(format!("for {to} to take number {number}")),
                On::Call { to, number, .. } => Some(format!("for the reply of {to} to number {number}")),
                On::Room { to, .. } => Some(format!("for room to {to}")),
            },
        }
    }

    /// Takes home what can come home, and counts.
    pub fn audit(&mut self) -> Result<shm::pool::Tally, shm::pool::Unsound> {
        self.core.bring_home_from_all();
        self.core.pool().settle();
        self.core.pool().audit()
    }
}
