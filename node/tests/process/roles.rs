//! What a program does once it is started: one function for each role. Its first report is its endpoint.
//!
//! A role is a line of words in the environment. Key types: [`Orders`], [`Life`]. Neighbours: `program` (who starts
//! them), `stream`, `crowd` and `whisper` (the longer roles).

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use abi::{Endpoint, NodeId, Slot};
use dvk::{
    Access, BindOptions, Binding, CopyEnd, CopyError, Delivery, From, Grant, Message, ReceiveError,
    SendError, SendrecError, Timeout, Wait, WaitError, What,
};
use rustix::event::PollFlags;
use shm::os::fdpass::wait_ready;

use super::cluster::DC;
use super::system::LONG;

pub mod acts;
pub mod attacker;
pub mod crowd;
pub mod dent;
pub mod foreign;
pub mod friend;
pub mod rebind;
pub mod seats;
pub mod stream;
pub mod talk;
pub mod whisper;
pub mod wire_acts;

/// The test by which this executable begins as a program.
pub const ENTRY: &str = "child_entry";
/// Stands before every report: the test harness writes to standard output too.
pub const MARK: &str = "@report ";
pub const ROLE: &str = "DVS_TEST_ROLE";
pub const SOCKET: &str = "DVS_TEST_SOCKET";
pub const SLOT: &str = "DVS_TEST_SLOT";
/// In which DC, if not in that of the cluster file.
pub const OTHER_DC: &str = "DVS_TEST_DC";

pub const AFTER: Timeout = Timeout::After(LONG);

/// The lines of standard input.
pub struct Orders(Receiver<String>);

impl Orders {
    /// The process ends with its input: nobody is left to work for.
    fn listen() -> Orders {
        let (give, take) = channel();
        std::thread::spawn(move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                // Who takes no orders does not keep the channel.
                let _ = give.send(line);
            }
            std::process::exit(0);
        });
        Orders(take)
    }

    pub fn next(&self) -> String {
        self.0.recv_timeout(LONG * 3).expect("an order in time")
    }

    pub fn is_there(&self) -> bool {
        self.look().is_some()
    }

    pub fn look(&self) -> Option<String> {
        self.0.try_recv().ok()
    }
}

/// A bound program and its orders.
pub struct Life {
    pub me: Binding,
    pub orders: Orders,
}

/// One line for who started this program.
pub fn report(text: impl std::fmt::Display) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    // Nobody reads any more: the program goes on to its end.
    let _ = writeln!(out, "{MARK}{text}").and_then(|()| out.flush());
}

/// Plays the role that the environment names, and ends the process; returns when it names none.
pub fn play() {
    let Ok(line) = std::env::var(ROLE) else { return };
    // Any role may be played by a private endpoint.
    let (private, line) = match line.strip_prefix("private ") {
        Some(rest) => (true, rest),
        None => (false, line.as_str()),
    };
    let words: Vec<&str> = line.split(' ').collect();
    let orders = Orders::listen();
    let list = |at: usize| -> Vec<Slot> {
        words[at].split(',').map(|slot| Slot(slot.parse().expect("a slot"))).collect()
    };
    if words[0] == "attack" {
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        attacker::live(&orders, Slot(number(1) as u16), number(2), number(3), &list(4));
        std::process::exit(0);
    }
    if words[0] == "foreign" {
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        let (foes, victims) = (list(4), list(5));
        let of = |slot: &Slot| (NodeId(1 + slot.0 / super::cluster::SLOTS_PER_NODE), *slot);
        let victims = victims.iter().map(of).collect();
        let stand = foreign::Stand { cluster: words[1].into(), node: NodeId(3), foes, victims };
        foreign::live(&orders, stand, number(2), number(3));
        std::process::exit(0);
    }
    if words[0] == "cell" {
        super::faults::inside(words[1], words[2]);
        std::process::exit(0);
    }
    if words[0] == "bind-again" {
        let socket = std::env::var(SOCKET).expect("the socket of a daemon");
        seats::bind_again(&orders, &socket, DC, list(1)[0]);
        std::process::exit(0);
    }
    let me = bind(private);
    report(format_args!("bound {}", me.whoami()));
    let life = Life { me, orders };
    let number = |at: usize| words[at].parse::<u64>().expect("a number");
    let slot = |at: usize| Slot(words[at].parse().expect("a slot"));
    match words[0] {
        "echo" => echo(life),
        "ask" => ask(life, slot(1), None),
        "ask-some" => ask(life, slot(1), Some(number(2))),
        "poll-echo" => poll_echo(life),
        "mute" => mute(life, number(1)),
        "idle" => idle(&life),
        "watch" => watch(life, number(1)),
        "take-ordered" => take_ordered(life),
        "call" => call(life, slot(1)),
        "post-some" => post_some(life, slot(1), number(2)),
        "take-some" => take_some(life, number(1)),
        "wait-for" => wait_for(life, slot(1)),
        "interrupted" => interrupted(life, [1, 2, 3].map(slot)),
        "grants" => grants(life),
        "copy-on" => copy_on(life, slot(1)),
        "stream-out" => stream::send(life, slot(1), number(2), number(3)),
        "stream-in" => stream::receive(life, number(1), number(2)),
        "press" => crowd::press(life, slot(1), Duration::from_millis(number(2)), number(3) as usize),
        "friend" => friend::live(life, number(1), &list(2), list(3)),
        "crowd" => crowd::live(life, number(1)),
        "look" => seats::look(life, slot(1)),
        "caller" => talk::call(life, talk::Talk::of(words[1]).expect("a talk"), slot(2)),
        "taker" => talk::take(life, talk::Talk::of(words[1]).expect("a talk")),
        "rebind" => rebind::live(life, slot(1)),
        "tell" => whisper::tell(life),
        "hear" => whisper::hear(life),
        other => panic!("there is no role {other:?}"),
    }
    std::process::exit(0);
}

fn bind(private: bool) -> Binding {
    let Ok(socket) = std::env::var(SOCKET) else {
        return Binding::from_env().expect("bound by who started this program");
    };
    let dc = std::env::var(OTHER_DC).unwrap_or_else(|_| DC.to_owned());
    let wait = Wait::Adaptive(Duration::from_micros(5));
    let mut options = BindOptions::new(socket, &dc).wait(wait).private(private);
    if let Ok(slot) = std::env::var(SLOT) {
        options = options.slot(Slot(slot.parse().expect("a slot")));
    }
    Binding::bind(&options).expect("a binding")
}

pub fn find(me: &mut Binding, slot: Slot) -> Endpoint {
    me.wait_bind(slot, AFTER).expect("somebody is bound there")
}

/// Marks a request whose number must follow the one before from the same client.
const COUNTED: u32 = 77;

/// Answers every request with its own bytes, until its input ends. Checks that counted ones come once and in order.
fn echo(life: Life) {
    let Life { mut me, orders } = life;
    let mut last: std::collections::BTreeMap<Endpoint, u64> = std::collections::BTreeMap::new();
    loop {
        match me.receive_request(Timeout::After(Duration::from_millis(100))) {
            Ok(request) => {
                if request.kind() == COUNTED {
                    let number = number_in(&request);
                    let before = last.insert(request.source(), number).unwrap_or(0);
                    assert_eq!(number, before + 1, "requests of {} come once and in order", request.source());
                }
                answer(&mut me, &request);
            }
            Err(dvk::ReceiveError::TimedOut) if orders.is_there() => return,
            Err(dvk::ReceiveError::TimedOut) => {}
            Err(why) => panic!("{why}"),
        }
    }
}

/// Answers every request with its own bytes, and waits by its descriptor alone.
fn poll_echo(life: Life) {
    let Life { mut me, orders } = life;
    while !orders.is_there() {
        match me.receive_request(Timeout::Zero) {
            Ok(request) => answer(&mut me, &request),
            Err(dvk::ReceiveError::WouldBlock) => {
                let fd = me.poll_fd().expect("a descriptor");
                wait_ready(fd, PollFlags::IN, Some(LONG)).expect("a poll");
            }
            Err(why) => panic!("{why}"),
        }
    }
}

fn answer(me: &mut Binding, request: &Delivery) {
    if !matches!(request.what(), What::Request { .. }) {
        return;
    }
    let mut message = Message::new(request.kind());
    if let Some(view) = request.view() {
        let mut loan = me.loan(view.len()).expect("a buffer");
        view.copy_to(&mut loan);
        message = message.with(loan);
    }
    let inline = &request.inline()[..request.inline().len().min(abi::limits::INLINE_BYTES_WITH_EXTENT_MAX)];
    // A client that has ended waits no more.
    let _ = me.reply(request, message.inline(inline));
}

fn number_in(delivery: &Delivery) -> u64 {
    u64::from_le_bytes(delivery.inline()[..8].try_into().expect("eight bytes"))
}

/// Calls an echo with counted requests, until it has an order or has asked so many.
fn ask(life: Life, slot: Slot, count: Option<u64>) {
    let Life { mut me, orders } = life;
    let server = find(&mut me, slot);
    let mut asked = 0u64;
    while count.map_or_else(|| !orders.is_there(), |count| asked < count) {
        asked += 1;
        let message = Message::new(COUNTED).inline(&asked.to_le_bytes());
        let reply = me.sendrec(server, message, AFTER).unwrap_or_else(|why| panic!("request {asked}: {why}"));
        assert_eq!(number_in(&reply), asked, "a reply belongs to its request");
        std::thread::sleep(Duration::from_micros(200));
    }
    report(format_args!("asked {asked}"));
}

/// Takes so many requests, answers none, and takes nothing more.
fn mute(life: Life, requests: u64) {
    let Life { mut me, orders } = life;
    // Kept: a request that is dropped answers its client by itself.
    let mut owed = Vec::new();
    for _ in 0..requests {
        let request = me.receive_request(AFTER).expect("a request");
        report(format_args!("took {}", request.source()));
        owed.push(request);
    }
    orders.next();
}

/// Is there, and receives nothing.
fn idle(life: &Life) {
    life.orders.next();
}

/// Reports so many ends that its slot is the warn target of, and waits for an order with nothing else coming.
fn watch(life: Life, count: u64) {
    let Life { mut me, orders } = life;
    for _ in 0..count {
        let warning = me.receive(From::Any, AFTER).expect("a warning");
        assert_eq!(warning.what(), What::Warned);
        report(format_args!("Warned {}", warning.source()));
    }
    orders.next();
    let more = me.receive(From::Any, Timeout::After(Duration::from_millis(100))).map(|_| ());
    assert_eq!(more, Err(dvk::ReceiveError::TimedOut));
}

/// Takes one message when it is told to, and reports its kind.
fn take_ordered(life: Life) {
    let Life { mut me, orders } = life;
    orders.next();
    let message = me.receive(From::Any, AFTER).expect("a message");
    report(format_args!("took {}", message.kind()));
}

/// Calls, and reports what becomes of it.
fn call(life: Life, slot: Slot) {
    let Life { mut me, .. } = life;
    let server = find(&mut me, slot);
    report("calls");
    let reply = me.sendrec(server, Message::new(1).inline(b"call"), AFTER);
    report(match reply {
        Ok(reply) => format!("Reply {}", String::from_utf8_lossy(reply.inline())),
        Err(why @ SendrecError::Corrupt(_)) => format!("Corrupt: {why}"),
        Err(why) => format!("{why:?}"),
    });
}

/// Waits for a word of one endpoint, and reports how that ends.
fn wait_for(life: Life, slot: Slot) {
    let Life { mut me, .. } = life;
    let source = find(&mut me, slot);
    // The wait alone must make the pair, without a word to it before.
    report("waits");
    match me.receive(From::Endpoint(source), AFTER) {
        Ok(delivery) => report(format_args!("{:?}", delivery.what())),
        Err(why) => report(format_args!("{why:?}")),
    }
}

/// Reports how something has ended, which must be so.
fn ended<T, E: std::fmt::Debug + PartialEq>(how: Result<T, E>, expected: E) {
    assert_eq!(how.map(drop), Err(expected));
    report("as it should");
}

const GRANTED_BYTES: u64 = 64 << 20;

/// Grants as many bytes to whoever asks.
fn grants(life: Life) {
    let Life { mut me, orders } = life;
    let segment = me.grant_segment(GRANTED_BYTES, Access::Read).expect("a segment");
    let request = me.receive_request(AFTER).expect("a request");
    let grant = me.grant(&segment, 0, GRANTED_BYTES, request.source()).expect("a grant");
    me.reply(&request, Message::new(1).inline(&grant.to_bytes())).expect("its client waits");
    orders.next();
}

/// Copies what `granter` grants, until it is told that a courier stops and one does not end in its time.
fn copy_on(life: Life, granter: Slot) {
    let Life { mut me, .. } = life;
    let granter = find(&mut me, granter);
    let reply = me.sendrec(granter, Message::new(1), AFTER).expect("a grant");
    let grant = Grant::from_bytes(reply.inline()).expect("a grant");
    let mine = me.grant_segment(GRANTED_BYTES, Access::Write).expect("a segment");
    report("copies");
    let copied = loop {
        let (from, to) = (CopyEnd::Granted(&grant, 0), CopyEnd::Own(&mine, 0));
        if let Err(why) = me.copy(from, to, GRANTED_BYTES, Timeout::After(Duration::from_millis(500))) {
            break why;
        }
    };
    ended(Err::<(), _>(copied), CopyError::TimedOutUnknown);
}

/// Waits in each way, and reports how a signal ends it: for anything, for an answer of `mute`, for `idle` to take
/// something, for bytes that `granter` grants.
fn interrupted(life: Life, [mute, idle, granter]: [Slot; 3]) {
    let Life { mut me, .. } = life;
    let seen = std::sync::Arc::default();
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, seen).expect("a handler");
    let [mute, idle, granter] = [mute, idle, granter].map(|slot| find(&mut me, slot));
    report(format_args!("thread {}", rustix::thread::gettid().as_raw_pid()));
    report("sleeps on");
    let short = Timeout::After(Duration::from_secs(1));
    ended(me.receive(From::Any, short), ReceiveError::TimedOut);
    me.set_interruptible(true);
    report("receives");
    ended(me.receive(From::Any, Timeout::Forever), ReceiveError::Interrupted);
    report("calls who has taken it");
    ended(me.sendrec(mute, Message::new(1), Timeout::Forever), SendrecError::TimedOutTaken);
    report("calls");
    ended(me.sendrec(idle, Message::new(1), Timeout::Forever), SendrecError::Interrupted);
    report("sends");
    ended(me.send(idle, Message::new(1), Timeout::Forever), SendError::Interrupted);
    report("waits");
    ended(me.wait_unbind(idle, Timeout::Forever), WaitError::Interrupted);
    let reply = me.sendrec(granter, Message::new(1), AFTER).expect("a grant");
    let grant = Grant::from_bytes(reply.inline()).expect("a grant");
    let mine = me.grant_segment(GRANTED_BYTES, Access::Write).expect("a segment");
    report("copies");
    // One after the other, until a signal comes in the middle of one.
    let copied = loop {
        let (from, to) = (CopyEnd::Granted(&grant, 0), CopyEnd::Own(&mine, 0));
        if let Err(why) = me.copy(from, to, GRANTED_BYTES, Timeout::Forever) {
            break why;
        }
    };
    ended(Err::<(), _>(copied), CopyError::Interrupted);
    me.set_interruptible(false);
    // What was withdrawn is not there.
    me.post(idle, Message::new(2)).expect("room");
}

/// Posts so many and ends.
fn post_some(life: Life, slot: Slot, count: u64) {
    let Life { mut me, .. } = life;
    let to = find(&mut me, slot);
    for n in 0..count {
        me.post_all(to, Message::new(n as u32), AFTER).unwrap_or_else(|why| panic!("message {n}: {why}"));
    }
}

/// Takes so many, in order, of somebody who ends then; reports whatever comes afterwards, until its input ends.
fn take_some(life: Life, count: u64) {
    let Life { mut me, .. } = life;
    let mut last = me.whoami();
    for n in 0..count {
        let delivery = me.receive(From::Any, AFTER).expect("a message");
        assert_eq!(u64::from(delivery.kind()), n);
        last = delivery.source();
    }
    assert_eq!(me.receive(From::Endpoint(last), AFTER).map(|d| d.kind()), Err(dvk::ReceiveError::DeadSource));
    report("took all");
    loop {
        match me.receive(From::Any, AFTER) {
            Ok(delivery) => report(format_args!("again: {delivery:?}")),
            Err(dvk::ReceiveError::TimedOut) => {}
            Err(why) => panic!("{why}"),
        }
    }
}
