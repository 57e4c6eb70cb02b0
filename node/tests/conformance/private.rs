//! Rows: private endpoints: every call works, and nobody but its peer can map or find what such an endpoint publishes for it.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use abi::member::{Refusal, Reply, Request, VERSION, WORDS};
use abi::{Endpoint, Name};
use dvk::{Access as Grants, Binding, CopyEnd, From, Grant, Message, Timeout, What};
use node::core::EndpointView;
use shm::map::{Access, Mapping};
use shm::os::fdpass;

use super::rows;
use crate::support::{LONG, Life, Place, World, eventually};

rows!(
    every_call_works_with_a_private_endpoint_at_either_end,
    loans_of_every_size_cross_from_and_to_a_private_endpoint,
    a_request_is_passed_on_between_private_endpoints_with_its_extent,
    a_private_endpoint_grants_and_copies,
    what_is_for_one_peer_no_other_can_map_or_find,
    what_everybodys_endpoint_publishes_another_peer_can_read,
    a_loan_for_one_peer_can_be_sent_to_another,
    when_a_pair_ends_its_memory_goes,
    a_hundred_peers_in_turn_leave_nothing,
    peers_that_vanish_in_the_middle_leave_nothing,
    the_next_holder_of_a_slot_is_another_peer,
    everybody_sees_that_an_endpoint_is_private,
);

const AFTER: Timeout = Timeout::After(LONG);
/// Who is private: here, there.
const ENDS: [(bool, bool); 3] = [(true, false), (false, true), (true, true)];

const ECHO: u32 = 1;
const END: u32 = 2;

fn bind(world: &World, place: Place, number: u16, private: bool) -> Binding {
    let options = world.options(place).slot(world.slot(place, number)).private(private);
    Binding::bind(&options).expect("a binding")
}

/// Answers requests with what they brought, the extent copied into a loan; sends of a kind are answered by a `send` of the same.
fn echo(world: &World, place: Place, number: u16, private: bool) -> Life<Vec<What>> {
    let options = world.options(place).slot(world.slot(place, number)).private(private);
    world.spawn_as(options, |mut me| {
        assert!(me.audit().expect("a sound pool").total_bytes > 0);
        let mut heard = Vec::new();
        loop {
            let got = me.receive(From::Any, AFTER).expect("something");
            heard.push(got.what());
            let mut answer = Message::new(got.kind());
            answer = match got.view() {
                Some(view) => {
                    let mut loan = me.loan(view.len()).expect("a buffer");
                    assert_eq!(view.copy_to(&mut loan), view.len());
                    answer.with(loan)
                }
                None => answer.inline(got.inline()),
            };
            match got.what() {
                What::Request { .. } => me.reply(&got, answer).expect("it waits"),
                What::Message => me.send(got.source(), answer, AFTER).expect("it takes"),
                What::Notification { bits } => me.notify(got.source(), bits).expect("it lives"),
                _ => {}
            }
            if got.kind() == END {
                drop(got);
                eventually("all loans are home", || me.audit().expect("a sound pool").loans == 0);
                return heard;
            }
        }
    })
}

fn end(me: &mut Binding, life: Life<Vec<What>>) -> Vec<What> {
    let ended = life.endpoint;
    me.sendrec(ended, Message::new(END), AFTER).expect("its last answer");
    let heard = life.join();
    me.wait_unbind(ended, AFTER).expect("its end is seen");
    heard
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed).collect()
}

fn loan(me: &mut Binding, bytes: &[u8]) -> dvk::Loan {
    let mut loan = me.loan(bytes.len()).expect("a buffer");
    loan.copy_from_slice(bytes);
    loan
}

fn every_call_works_with_a_private_endpoint_at_either_end(world: World) {
    for (number, (here, there)) in (0..).zip(ENDS) {
        let server = echo(&world, Place::There, number, there);
        let to = server.endpoint;
        let mut me = bind(&world, Place::Here, number, here);
        assert_eq!(me.is_private(), here);
        world.meet(&mut me, to);
        let reply = me.sendrec(to, Message::new(ECHO).inline(b"request"), AFTER).expect("an answer");
        assert_eq!(reply.inline(), b"request");
        me.send(to, Message::new(ECHO).inline(b"send"), AFTER).expect("taken");
        assert_eq!(me.receive(From::Any, AFTER).expect("it is sent back").inline(), b"send");
        me.post(to, Message::new(ECHO).inline(b"post")).expect("room");
        assert_eq!(me.receive(From::Endpoint(to), AFTER).expect("it is sent back").inline(), b"post");
        me.notify(to, 5).expect("it lives");
        let raised = me.receive(From::Any, AFTER).expect("raised in turn");
        assert_eq!((raised.source(), raised.what()), (to, What::Notification { bits: 5 }));
        let heard = end(&mut me, server);
        let requests = heard.iter().filter(|what| matches!(what, What::Request { .. })).count();
        assert_eq!((heard.len(), requests), (5, 2), "{heard:?}");
    }
}

fn loans_of_every_size_cross_from_and_to_a_private_endpoint(world: World) {
    const SIZES: [usize; 8] = [0, 1, 100, 4096, 70_000, 300_000, 5 << 20, 20 << 20];
    for (number, (here, there)) in (0..).zip(ENDS) {
        let server = echo(&world, Place::There, number, there);
        let to = server.endpoint;
        let mut me = bind(&world, Place::Here, number, here);
        world.meet(&mut me, to);
        for (n, len) in SIZES.into_iter().enumerate() {
            let bytes = pattern(len, n as u8);
            // By turns in place, and from where every loan lies.
            let mut loan = if n % 2 == 0 { me.loan_for(to, len) } else { me.loan(len) }.expect("a buffer");
            loan.copy_from_slice(&bytes);
            let reply = me.sendrec(to, Message::new(ECHO).with(loan), AFTER).expect("an answer");
            assert!(reply.view().expect("an extent").to_vec() == bytes, "{len} bytes");
        }
        // Several out at once, more than the first segments hold.
        for n in 0..8 {
            let bytes = pattern(200_000, n);
            let loan = loan(&mut me, &bytes);
            me.post(to, Message::new(ECHO).with(loan)).expect("room");
        }
        let back: Vec<_> = (0..8).map(|_| me.receive(From::Any, AFTER).expect("sent back")).collect();
        for (n, got) in (0..).zip(&back) {
            assert!(got.view().expect("an extent").to_vec() == pattern(200_000, n), "the {n}th");
        }
        drop(back);
        end(&mut me, server);
        eventually("all loans are home", || me.audit().expect("a sound pool").loans == 0);
    }
}

fn a_request_is_passed_on_between_private_endpoints_with_its_extent(world: World) {
    let last = echo(&world, Place::Here, 1, true);
    let to = last.endpoint;
    let options = world.options(Place::There).slot(world.slot(Place::There, 2)).private(true);
    let first = world.spawn_as(options, move |mut me| {
        me.wait_bind(to.slot, AFTER).expect("it is seen");
        let request = me.receive_request(AFTER).expect("a request");
        me.relay(&request, to).expect("passed on");
        drop(request);
        // It lives until its client has confirmed and been answered.
        me.receive_request(AFTER).map(drop).expect("the word to end");
    });
    let mut me = bind(&world, Place::Here, 3, true);
    world.meet(&mut me, first.endpoint);
    let bytes = pattern(90_000, 3);
    let loan = loan(&mut me, &bytes);
    let reply = me.sendrec(first.endpoint, Message::new(ECHO).with(loan), AFTER).expect("an answer");
    assert_eq!(reply.source(), to);
    assert!(reply.view().expect("an extent").to_vec() == bytes);
    drop(reply);
    me.post(first.endpoint, Message::new(END)).expect("room");
    first.join();
    end(&mut me, last);
}

fn a_private_endpoint_grants_and_copies(world: World) {
    const LEN: u64 = 3 << 20;
    let options = world.options(Place::There).slot(world.slot(Place::There, 0)).private(true);
    let owner = world.spawn_as(options, |mut me| {
        let hello = me.receive_request(AFTER).expect("a request");
        let to = hello.source();
        let read = me.grant_segment(LEN, Grants::Read).expect("a segment");
        read.write_from(0, &pattern(LEN as usize, 1)).expect("inside");
        let write = me.grant_segment(LEN, Grants::Write).expect("a segment");
        let grant = me.grant(&read, 0, LEN, to).expect("a grant");
        let answer = Message::new(0).inline(&grant.to_bytes());
        me.reply(&hello, answer).expect("it waits");
        let hello = me.receive_request(AFTER).expect("a request");
        let grant = me.grant(&write, 0, LEN, to).expect("a grant");
        me.reply(&hello, Message::new(0).inline(&grant.to_bytes())).expect("it waits");
        let done = me.receive_request(AFTER).expect("a request");
        let mut bytes = vec![0; LEN as usize];
        write.read_into(0, &mut bytes).expect("inside");
        me.reply(&done, Message::new(0)).expect("it waits");
        bytes
    });
    let mut me = bind(&world, Place::Here, 0, true);
    world.meet(&mut me, owner.endpoint);
    let segment = me.grant_segment(LEN, Grants::Write).expect("a segment");
    let mut grants = Vec::new();
    for _ in 0..2 {
        let reply = me.sendrec(owner.endpoint, Message::new(0), AFTER).expect("a grant");
        grants.push(Grant::from_bytes(reply.inline()).expect("a grant"));
    }
    let own = |offset_bytes| CopyEnd::Own(&segment, offset_bytes);
    me.copy(CopyEnd::Granted(&grants[0], 0), own(0), LEN, AFTER).expect("copied");
    let mut bytes = vec![0; LEN as usize];
    segment.read_into(0, &mut bytes).expect("inside");
    assert!(bytes == pattern(LEN as usize, 1));
    segment.write_from(0, &pattern(LEN as usize, 2)).expect("inside");
    me.copy(own(0), CopyEnd::Granted(&grants[1], 0), LEN, AFTER).expect("copied");
    me.sendrec(owner.endpoint, Message::new(0), AFTER).expect("an answer");
    assert!(owner.join() == pattern(LEN as usize, 2));
}

/// A member that speaks with its daemon by hand, and maps what it is given.
struct Spy {
    socket: OwnedFd,
}

impl Spy {
    fn enter(socket: PathBuf) -> Spy {
        let socket = fdpass::connect(&socket).expect("a daemon");
        let spy = Spy { socket };
        let dc = Name::new("dc").expect("a name");
        spy.ask(Request::Hello { version: VERSION, dc });
        let (bound, _fds) = spy.ask(Request::Bind { slot: None, name: Name::NONE, private: false });
        assert!(matches!(bound, Reply::Bound { .. }), "not bound: {bound:?}");
        assert_eq!(spy.ask(Request::Ready).0, Reply::Done);
        spy
    }

    fn ask(&self, request: Request) -> (Reply, Vec<OwnedFd>) {
        let bytes: Vec<u8> = request.to_words().iter().flat_map(|w| w.to_le_bytes()).collect();
        fdpass::send_with_fds(&self.socket, &bytes, &[]).expect("the daemon listens");
        let mut answer = [0; WORDS * 8];
        let (_, fds) = fdpass::recv_with_fds_within(&self.socket, &mut answer, LONG).expect("an answer");
        let mut words = [0; WORDS];
        for (word, eight) in words.iter_mut().zip(answer.chunks_exact(8)) {
            *word = u64::from_le_bytes(eight.try_into().expect("eight bytes"));
        }
        (Reply::from_words(&words).expect("an answer"), fds)
    }

    /// Is introduced to an endpoint; returns the segment that it was given of it, whole, not its own side alone.
    fn meet(&self, other: Endpoint) -> Vec<u8> {
        let mut met = None;
        eventually("the spy is introduced", || match self.ask(Request::Introduce { to: other }) {
            (Reply::Introduced(_), fds) => {
                met = fds.into_iter().next();
                true
            }
            (Reply::Refused(Refusal::NotReady | Refusal::NoSuchEndpoint), _) => false,
            (answer, _) => panic!("not introduced: {answer:?}"),
        });
        bytes_of(&met.expect("a segment"))
    }

    /// Asks for every segment of every memory of its node; what it was given, and what it was told otherwise.
    fn look_everywhere(&self) -> (Vec<Vec<u8>>, BTreeSet<u32>) {
        let (mut seen, mut refused) = (Vec::new(), BTreeSet::new());
        for memory in 0..40 {
            for segment in 0..40 {
                match self.ask(Request::MapSegment { memory, segment }) {
                    (Reply::Segment { .. }, fds) => seen.push(bytes_of(&fds[0])),
                    (Reply::Refused(why), _) => drop(refused.insert(why as u32)),
                    (answer, _) => panic!("{answer:?}"),
                }
            }
        }
        (seen, refused)
    }
}

/// What is mapped of a segment, without its empty pages.
fn bytes_of(fd: &OwnedFd) -> Vec<u8> {
    let len = rustix::fs::fstat(fd).expect("its length").st_size as usize;
    let map = Mapping::shared(fd.as_fd(), 0, len, Access::ReadOnly).expect("mapped");
    let mut bytes = vec![0; len];
    map.read_into(0, &mut bytes).expect("inside");
    bytes.chunks(4096).filter(|page| page.iter().any(|byte| *byte != 0)).flatten().copied().collect()
}

fn holds(seen: &[Vec<u8>], secret: &[u8]) -> bool {
    seen.iter().any(|bytes| bytes.windows(secret.len()).any(|window| window == secret))
}

/// One thing that is found nowhere by chance.
fn secret(n: u8) -> Vec<u8> {
    pattern(48, n)
}

/// Sends bytes inline and in extents, short and long, and has the peer take them.
fn tell(me: &mut Binding, to: Endpoint, secrets: &[Vec<u8>; 3]) {
    me.send(to, Message::new(ECHO).inline(&secrets[0]), AFTER).expect("taken");
    for (secret, times) in [(&secrets[1], 1), (&secrets[2], 3000)] {
        let loan = loan(me, &secret.repeat(times));
        me.send(to, Message::new(ECHO).with(loan), AFTER).expect("taken");
    }
}

/// Takes what it is told, until a request comes, which it answers.
fn listener(world: &World, place: Place, number: u16, private: bool) -> Life<()> {
    let options = world.options(place).slot(world.slot(place, number)).private(private);
    world.spawn_as(options, |mut me| {
        loop {
            let got = me.receive(From::Any, AFTER).expect("something");
            if let What::Request { .. } = got.what() {
                me.reply(&got, Message::new(0)).expect("it waits");
            }
            if got.kind() == END {
                return;
            }
        }
    })
}

/// What a private endpoint here tells a peer there; spies at both places are introduced to both and ask for everything.
fn what_is_for_one_peer_no_other_can_map_or_find(world: World) {
    for (number, there) in (0..).zip([false, true]) {
        let peer = listener(&world, Place::There, number, there);
        let to = peer.endpoint;
        let mut me = bind(&world, Place::Here, number, true);
        world.meet(&mut me, to);
        let secrets = [1, 2, 3].map(secret);
        tell(&mut me, to, &secrets);
        for place in [Place::Here, Place::There] {
            let spy = Spy::enter(world.socket(place));
            // The endpoint itself takes part in its introduction: it has sides for so many peers, and makes more.
            let _ = me.receive(From::Any, Timeout::Zero);
            let given = [spy.meet(me.whoami()), spy.meet(to)];
            let (seen, refused) = spy.look_everywhere();
            for secret in &secrets {
                assert!(!holds(&given, secret), "in the segment of the spy's own pair, {place:?}");
                assert!(!holds(&seen, secret), "in what the spy may map, {place:?}");
            }
            assert!(refused.contains(&(Refusal::Private as u32)), "{refused:?}, {place:?}");
        }
        me.sendrec(to, Message::new(END), AFTER).expect("its last answer");
        peer.join();
    }
}

/// The spy finds what is not private: the row above looks in the right places.
fn what_everybodys_endpoint_publishes_another_peer_can_read(world: World) {
    let peer = listener(&world, Place::There, 0, false);
    let to = peer.endpoint;
    let mut me = bind(&world, Place::Here, 0, false);
    world.meet(&mut me, to);
    let secrets = [1, 2, 3].map(secret);
    tell(&mut me, to, &secrets);
    for place in [Place::Here, Place::There] {
        let spy = Spy::enter(world.socket(place));
        let given = [spy.meet(me.whoami()), spy.meet(to)];
        let (seen, refused) = spy.look_everywhere();
        assert!(holds(&given, &secrets[0]), "in the segment of the spy's own pair, {place:?}");
        // The first extent may have made room for the second.
        assert!(holds(&seen, &secrets[2]), "in what the spy may map, {place:?}");
        assert!(!refused.contains(&(Refusal::Private as u32)), "{refused:?}");
    }
    me.sendrec(to, Message::new(END), AFTER).expect("its last answer");
    peer.join();
}

fn a_loan_for_one_peer_can_be_sent_to_another(world: World) {
    let servers = [echo(&world, Place::There, 0, false), echo(&world, Place::Here, 1, true)];
    let mut me = bind(&world, Place::Here, 0, true);
    for server in &servers {
        world.meet(&mut me, server.endpoint);
    }
    for (to, of) in [(0, 1), (1, 0), (0, 0)] {
        let bytes = pattern(50_000, to as u8);
        let mut loan = me.loan_for(servers[of].endpoint, bytes.len()).expect("a buffer");
        loan.copy_from_slice(&bytes);
        let to = servers[to].endpoint;
        let reply = me.sendrec(to, Message::new(ECHO).with(loan), AFTER).expect("an answer");
        assert!(reply.view().expect("an extent").to_vec() == bytes);
    }
    for server in servers {
        end(&mut me, server);
    }
    eventually("all loans are home", || me.audit().expect("a sound pool").loans == 0);
}

fn view_of(world: &World, place: Place, endpoint: Endpoint) -> EndpointView {
    let name = endpoint.to_string();
    world.endpoints(place).into_iter().find(|e| e.endpoint == name).expect("the daemon knows it")
}

/// How many pairs and segments, of how many bytes, an endpoint here has.
fn holdings(world: &World, endpoint: Endpoint) -> (Option<usize>, Option<usize>, Option<u64>) {
    let view = view_of(world, Place::Here, endpoint);
    (view.pairs, view.segments, view.segment_bytes)
}

/// Looks after its own ended pairs, as every program does that receives, until it has what it had.
fn is_back(world: &World, me: &mut Binding, before: (Option<usize>, Option<usize>, Option<u64>)) {
    eventually("the endpoint has what it had before", || {
        let nothing = me.receive(From::Any, Timeout::After(std::time::Duration::from_millis(5)));
        assert!(nothing.is_err(), "nobody sends anything");
        holdings(world, me.whoami()) == before
    });
}

fn when_a_pair_ends_its_memory_goes(world: World) {
    let mut me = bind(&world, Place::Here, 0, true);
    let before = holdings(&world, me.whoami());
    for there in [false, true] {
        let server = echo(&world, Place::There, 0, there);
        world.meet(&mut me, server.endpoint);
        let bytes = pattern(6 << 20, 1);
        let loan = loan(&mut me, &bytes);
        // It grows the pool that nobody else maps, once: that is the endpoint's, and stays.
        let reply = me.sendrec(server.endpoint, Message::new(ECHO).with(loan), AFTER).expect("an answer");
        drop(reply);
        let with_pair = holdings(&world, me.whoami());
        assert!(with_pair.0 == Some(1) && with_pair.2 > before.2, "{with_pair:?}, {before:?}");
        end(&mut me, server);
        let own = Some(before.1.expect("segments") + 1);
        eventually("the pair's segments are gone", || {
            let _ = me.receive(From::Any, Timeout::After(std::time::Duration::from_millis(5)));
            let now = holdings(&world, me.whoami());
            now.0 == Some(0) && now.1 == own
        });
    }
}

fn a_hundred_peers_in_turn_leave_nothing(world: World) {
    let mut me = bind(&world, Place::Here, 0, true);
    let before = holdings(&world, me.whoami());
    for n in 0..100u16 {
        let place = if n % 2 == 0 { Place::There } else { Place::Here };
        let server = echo(&world, place, 1 + n % 8, n % 3 == 0);
        world.meet(&mut me, server.endpoint);
        let bytes = pattern(3000, n as u8);
        let mut loan = me.loan_for(server.endpoint, bytes.len()).expect("a buffer");
        loan.copy_from_slice(&bytes);
        let reply = me.sendrec(server.endpoint, Message::new(ECHO).with(loan), AFTER).expect("an answer");
        assert!(reply.view().expect("an extent").to_vec() == bytes);
        drop(reply);
        end(&mut me, server);
    }
    is_back(&world, &mut me, before);
}

/// They end with extents out both ways, and with messages that were not taken.
fn peers_that_vanish_in_the_middle_leave_nothing(world: World) {
    let mut me = bind(&world, Place::Here, 0, true);
    let before = holdings(&world, me.whoami());
    for n in 0..8 {
        let options = world.options(Place::There).slot(world.slot(Place::There, 1 + n % 4));
        let peer = world.spawn_as(options.private(n % 2 == 0), |mut me| {
            let request = me.receive_request(AFTER).expect("a request");
            let loan = loan(&mut me, &pattern(9000, 1));
            me.reply(&request, Message::new(0).with(loan)).expect("it waits");
            let held = me.receive(From::Any, AFTER).expect("a message");
            // Ends with the view, and all that it did not take.
            (held.view().map(dvk::View::len), drop(me)).0
        });
        world.meet(&mut me, peer.endpoint);
        let reply = me.sendrec(peer.endpoint, Message::new(0), AFTER).expect("an answer");
        for _ in 0..5 {
            let mut loan = me.loan_for(peer.endpoint, 9000).expect("a buffer");
            loan.fill(7);
            match me.post(peer.endpoint, Message::new(0).with(loan)) {
                Ok(()) | Err(dvk::PostError::DeadDestination) => {}
                Err(why) => panic!("{why:?}"),
            }
        }
        let ended = peer.endpoint;
        assert_eq!(peer.join(), Some(9000));
        me.wait_unbind(ended, AFTER).expect("its end is seen");
        assert!(reply.view().expect("an extent").to_vec() == pattern(9000, 1), "what it had sent stays");
    }
    is_back(&world, &mut me, before);
    eventually("all loans are home", || me.audit().expect("a sound pool").loans == 0);
}

fn the_next_holder_of_a_slot_is_another_peer(world: World) {
    let mut me = bind(&world, Place::Here, 0, true);
    let mut last = None;
    for n in 0..4 {
        let server = echo(&world, Place::There, 0, n % 2 == 0);
        let to = server.endpoint;
        assert!(last.is_none_or(|last: Endpoint| last.slot == to.slot && last.generation < to.generation));
        world.meet(&mut me, to);
        if let Some(last) = last {
            let late = me.post(last, Message::new(0)).map(drop);
            assert!(matches!(late, Err(dvk::PostError::DeadDestination)), "{late:?}");
        }
        let bytes = pattern(5000, n);
        let loan = loan(&mut me, &bytes);
        let reply = me.sendrec(to, Message::new(ECHO).with(loan), AFTER).expect("an answer");
        assert!(reply.view().expect("an extent").to_vec() == bytes);
        drop(reply);
        end(&mut me, server);
        last = Some(to);
    }
    // The private endpoint itself binds anew, in the same slot.
    let slot = me.whoami();
    me.unbind().expect("unbound");
    let mut me = bind(&world, Place::Here, 0, true);
    assert!(me.whoami().slot == slot.slot && me.whoami().generation > slot.generation);
    let server = echo(&world, Place::There, 0, false);
    world.meet(&mut me, server.endpoint);
    end(&mut me, server);
}

fn everybody_sees_that_an_endpoint_is_private(world: World) {
    let me = bind(&world, Place::Here, 0, true);
    let mut other = bind(&world, Place::There, 1, false);
    world.meet(&mut other, me.whoami());
    for place in [Place::Here, Place::There] {
        eventually("the directory tells", || {
            let known = world.endpoints(place);
            let is =
                |e: Endpoint| known.iter().find(|view| view.endpoint == e.to_string()).map(|v| v.private);
            is(me.whoami()) == Some(true) && is(other.whoami()) == Some(false)
        });
    }
}
