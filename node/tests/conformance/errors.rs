//! Errors by their own names, each provoked: those that no row of another file meets on its way.
//!
//! On one node, but where another is needed. Neighbour: `misuse`, for what is said about them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::thread::JoinHandle;

use abi::limits::{COPY_BYTES_MAX, EXTENTS_PER_PAIR_MAX, LANE_SLOTS, LOAN_BYTES_MAX};
use abi::member::Refusal;
use abi::{Endpoint, Generation};
use dvk::{
    Access, BindError, BindOptions, Binding, CopyEnd, CopyError, GrantError, LoanError, Message, NotifyError,
    PostError, RelayError, ReplyError, SendError, SendrecError, Timeout, Unavailable, WaitError,
};
use shm::os::fdpass;

use crate::support::{Apart, LONG, Place, SHORT, World};

const AFTER: Timeout = Timeout::After(LONG);
const SOON: Timeout = Timeout::After(SHORT);

#[test]
fn a_binding_that_cannot_be() {
    let world = World::new(Apart::OneNode);
    let bind = |options: &BindOptions| Binding::bind(options).map(|_| ());
    let nobody = bind(&BindOptions::new("/no/such.sock", "dc"));
    assert!(matches!(nobody, Err(BindError::Unavailable(Unavailable::NoDaemon(_)))), "{nobody:?}");
    let none = bind(&BindOptions::new(world.socket(Place::Here), "My DC"));
    assert!(matches!(none, Err(BindError::NotAName(_))), "{none:?}");
    assert_eq!(Binding::from_env().map(|_| ()), Err(BindError::NotStartedBound));
}

#[test]
fn a_daemon_that_does_not_answer_is_slow() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("mute.sock");
    let _listener = fdpass::listen(&path, 1).expect("a socket");
    let bound = Binding::bind(&BindOptions::new(&path, "dc")).map(|_| ());
    assert_eq!(bound, Err(BindError::Unavailable(Unavailable::Slow)));
}

#[test]
fn a_full_lane_is_full_for_every_call() {
    let world = World::new(Apart::OneNode);
    let idle = world.bind(Place::Here, 1);
    let to = idle.whoami();
    let mut me = world.bind(Place::Here, 0);
    for _ in 0..LANE_SLOTS {
        me.post(to, Message::new(1)).expect("room");
    }
    assert!(matches!(me.post(to, Message::new(1)), Err(PostError::Full(_))));
    assert_eq!(me.send(to, Message::new(1), SOON), Err(SendError::Full));
    assert_eq!(me.sendrec(to, Message::new(1), SOON).map(drop), Err(SendrecError::Full));
    assert_eq!(me.wait_room(to, SOON), Err(WaitError::TimedOut));
    // A server may not pass a request on to it, and still owes the answer.
    let client = world.spawn(Place::Here, 2, |mut client| {
        let server = client.wait_bind(abi::Slot(0), AFTER).expect("bound");
        client.sendrec(server, Message::new(2), AFTER).map(|reply| reply.kind())
    });
    let request = me.receive_request(AFTER).expect("a request");
    assert_eq!(me.relay(&request, to), Err(RelayError::Full));
    me.reply(&request, Message::new(7)).expect("its client waits");
    assert_eq!(client.join(), Ok(7));
}

#[test]
fn replies_beyond_what_may_be_out_with_a_client_are_full() {
    let world = World::new(Apart::OneNode);
    let mut me = world.bind(Place::Here, 0);
    let client = world.spawn(Place::Here, 1, |mut client| {
        let server = client.wait_bind(abi::Slot(0), AFTER).expect("bound");
        client.sendrec(server, Message::new(1), AFTER).map(drop)
    });
    let request = me.receive_request(AFTER).expect("a request");
    for _ in 0..EXTENTS_PER_PAIR_MAX {
        let loan = me.loan(1).expect("a buffer");
        if me.post(client.endpoint, Message::new(2).with(loan)).is_err() {
            break;
        }
    }
    let loan = me.loan(1).expect("a buffer");
    assert_eq!(me.reply(&request, Message::new(3).with(loan)), Err(ReplyError::Full));
    me.reply(&request, Message::new(3)).expect("without a loan it fits");
    assert_eq!(client.join(), Ok(()));
}

#[test]
fn who_waits_for_room_with_the_dead_or_asks_them_hears_of_it() {
    let world = World::new(Apart::OneNode);
    let mut me = world.bind(Place::Here, 0);
    let gone = world.bind(Place::Here, 1);
    let to = gone.whoami();
    while me.post(to, Message::new(1)).is_ok() {}
    gone.unbind().expect("unbound");
    assert_eq!(me.wait_room(to, AFTER), Err(WaitError::DeadDestination));
    assert_eq!(me.wake(to), Err(NotifyError::DeadDestination));
}

#[test]
fn a_request_whose_client_has_given_up_is_not_passed_on() {
    let world = World::new(Apart::OneNode);
    let mut me = world.bind(Place::Here, 0);
    let other = world.bind(Place::Here, 2);
    let client = world.spawn(Place::Here, 1, |mut client| {
        let server = client.wait_bind(abi::Slot(0), AFTER).expect("bound");
        client.sendrec(server, Message::new(1), Timeout::After(SHORT)).map(drop)
    });
    let request = me.receive_request(AFTER).expect("a request");
    assert_eq!(client.join(), Err(SendrecError::TimedOutTaken));
    assert_eq!(me.relay(&request, other.whoami()), Err(RelayError::NotWaiting));
}

#[test]
fn what_is_no_segment_or_nobodys_is_not_granted() {
    let world = World::new(Apart::OneNode);
    let mut me = world.bind(Place::Here, 0);
    let other = world.bind(Place::Here, 1);
    assert_eq!(me.grant_segment(0, Access::Read).map(drop), Err(GrantError::TooLong));
    assert_eq!(me.grant_segment(COPY_BYTES_MAX + 1, Access::Read).map(drop), Err(GrantError::TooLong));
    let segment = me.grant_segment(4096, Access::Read).expect("a segment");
    let own = me.whoami();
    assert_eq!(me.grant(&segment, 0, 1, own).map(drop), Err(GrantError::ToNobody));
    let mut given = Vec::new();
    let refused = loop {
        match me.grant(&segment, 0, 1, other.whoami()) {
            Ok(grant) => given.push(grant),
            Err(why) => break why,
        }
    };
    assert_eq!(refused, GrantError::TooMany);
    assert_eq!(given.len(), usize::from(abi::limits::GRANTS_MAX));
    me.revoke(&given[0]).expect("revoked");
    me.grant(&segment, 0, 1, other.whoami()).expect("one has ended");
}

#[test]
fn a_loan_longer_than_any_is_refused_before_anybody_is_asked() {
    let world = World::new(Apart::OneNode);
    let mut me = world.bind(Place::Here, 0);
    assert_eq!(me.loan(LOAN_BYTES_MAX as usize + 1).map(drop), Err(LoanError::TooLong));
}

#[test]
fn a_copy_without_time_between_nodes_would_block() {
    let world = World::new(Apart::Loopback);
    let mut me = world.bind(Place::Here, 0);
    let owner = world.spawn(Place::There, 1, |mut owner| {
        let segment = owner.grant_segment(4096, Access::Read).expect("a segment");
        let request = owner.receive_request(AFTER).expect("a request");
        let grant = owner.grant(&segment, 0, 4096, request.source()).expect("a grant");
        owner.reply(&request, Message::new(1).inline(&grant.to_bytes())).expect("its client waits");
        // Until the other has ended.
        let _ = owner.receive(dvk::From::Endpoint(request.source()), AFTER);
    });
    let to = me.wait_bind(owner.endpoint.slot, AFTER).expect("seen");
    let reply = me.sendrec(to, Message::new(1), AFTER).expect("an answer");
    let grant = abi::grant::Grant::from_bytes(reply.inline()).expect("a grant");
    let mine = me.grant_segment(4096, Access::Write).expect("a segment");
    let ends = (CopyEnd::Granted(&grant, 0), CopyEnd::Own(&mine, 0));
    assert_eq!(me.copy(ends.0, ends.1, 4096, Timeout::Zero), Err(CopyError::WouldBlock));
    me.copy(ends.0, ends.1, 4096, AFTER).expect("copied");
    drop(me);
    owner.join();
}

#[test]
fn without_a_daemon_whoever_must_ask_it_hears_that_it_is_unavailable() {
    let mut world = World::new(Apart::OneNode);
    let mut me = world.bind(Place::Here, 0);
    let other = world.bind(Place::Here, 1);
    let segment = me.grant_segment(4096, Access::Read).expect("a segment");
    world.lose_the_daemon();
    let why = Unavailable::Broken;
    let granted = me.grant(&segment, 0, 1, other.whoami()).map(drop);
    assert_eq!(granted, Err(GrantError::Unavailable(why)));
    let more = LOAN_BYTES_MAX as usize / 2;
    assert_eq!(me.loan(more).map(drop), Err(LoanError::Unavailable(why)));
}

/// A member's connection to its daemon, which can be cut at the member's end alone.
struct Line {
    path: PathBuf,
    member: JoinHandle<OwnedFd>,
    _dir: tempfile::TempDir,
}

impl Line {
    fn to(world: &World) -> Line {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("line.sock");
        let listener = fdpass::listen(&path, 1).expect("a socket");
        let daemon = fdpass::connect(&world.socket(Place::Here)).expect("a daemon");
        let member = std::thread::spawn(move || {
            let member = fdpass::accept(listener.as_fd(), Some(LONG)).expect("a member");
            let ends = [&member, &daemon].map(|end| end.try_clone().expect("a copy"));
            let [from_member, to_daemon] = ends;
            std::thread::spawn(move || carry(&from_member, &to_daemon));
            let back = member.try_clone().expect("a copy");
            std::thread::spawn(move || carry(&daemon, &back));
            member
        });
        Line { path, member, _dir: dir }
    }

    fn cut(self) {
        let member = self.member.join().expect("somebody has connected");
        rustix::net::shutdown(member, rustix::net::Shutdown::Both).expect("cut");
    }
}

fn carry(from: &OwnedFd, to: &OwnedFd) {
    let mut buffer = [0; 4096];
    while let Ok((len @ 1.., fds)) = fdpass::recv_with_fds(from, &mut buffer) {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        if fdpass::send_with_fds(to, &buffer[..len], &fds).is_err() {
            return;
        }
    }
}

/// What the first call to an endpoint needs the daemon for, and what a request needs it for that is passed on.
#[test]
fn without_a_daemon_nobody_is_met() {
    let world = World::new(Apart::OneNode);
    let line = Line::to(&world);
    let mut me = Binding::bind(&BindOptions::new(&line.path, "dc").slot(abi::Slot(0))).expect("a binding");
    let met = world.bind(Place::Here, 3);
    let mut owner = world.bind(Place::Here, 1);
    let to = owner.whoami();
    let segment = owner.grant_segment(4096, Access::Read).expect("a segment");
    let grant = owner.grant(&segment, 0, 4096, me.whoami()).expect("a grant");
    let mine = me.grant_segment(4096, Access::Write).expect("a segment");
    let client = world.spawn(Place::Here, 2, |mut client| {
        let server = client.wait_bind(abi::Slot(0), AFTER).expect("bound");
        let loan = client.loan(4 << 20).expect("a buffer");
        client.sendrec(server, Message::new(1).with(loan), AFTER).map(|reply| reply.kind())
    });
    let request = me.receive_request(AFTER).expect("a request");
    me.post(met.whoami(), Message::new(1)).expect("room");
    line.cut();
    let why = Unavailable::Broken;
    assert_eq!(me.relay(&request, met.whoami()), Err(RelayError::Loan(LoanError::Unavailable(why))));
    assert_eq!(me.relay(&request, to), Err(RelayError::Unavailable(why)));
    assert_eq!(me.send(to, Message::new(1), AFTER), Err(SendError::Unavailable(why)));
    assert_eq!(me.sendrec(to, Message::new(1), AFTER).map(drop), Err(SendrecError::Unavailable(why)));
    assert_eq!(me.notify(to, 1), Err(NotifyError::Unavailable(why)));
    assert_eq!(me.wait_room(to, AFTER), Err(WaitError::Unavailable(why)));
    let ends = (CopyEnd::Granted(&grant, 0), CopyEnd::Own(&mine, 0));
    assert_eq!(me.copy(ends.0, ends.1, 4096, AFTER), Err(CopyError::Unavailable(why)));
    // Who has been met is reached all the same.
    me.reply(&request, Message::new(7)).expect("its client waits");
    assert_eq!(client.join(), Ok(7));
}

#[test]
fn a_copy_ends_when_its_time_is_over_or_rules_forbid_it() {
    const LEN: u64 = 64 << 20;
    let rules = |slot: &dyn Fn(Place, u16) -> abi::Slot| {
        let (me, other) = (slot(Place::Here, 2).0, slot(Place::Here, 1).0);
        format!(
            "[[dc.privileges]]\nslots = \"{me}\"\nlevel = \"user\"\ncalls = [\"send\"]\n\
             to_slots = [\"{other}\"]\n\
             [[dc.privileges]]\nlevel = \"server\"\n"
        )
    };
    let world = World::with_rules(Apart::OneNode, rules);
    let mut owner = world.bind(Place::Here, 1);
    let segment = owner.grant_segment(LEN, Access::Read).expect("a segment");
    for (number, expected) in [(0, CopyError::TimedOut), (2, CopyError::NotPermitted)] {
        let mut me = world.bind(Place::Here, number);
        let grant = owner.grant(&segment, 0, LEN, me.whoami()).expect("a grant");
        let mine = me.grant_segment(LEN, Access::Write).expect("a segment");
        let ends = (CopyEnd::Granted(&grant, 0), CopyEnd::Own(&mine, 0));
        let instant = Timeout::After(std::time::Duration::from_nanos(1));
        assert_eq!(me.copy(ends.0, ends.1, LEN, instant), Err(expected));
        owner.revoke(&grant).expect("revoked");
    }
}

#[test]
fn who_may_not_call_waits_for_no_room() {
    let rules = |slot: &dyn Fn(Place, u16) -> abi::Slot| {
        let (me, other) = (slot(Place::Here, 0).0, slot(Place::Here, 1).0);
        format!(
            "[[dc.privileges]]\nslots = \"{me}\"\nlevel = \"user\"\ncalls = []\nto_slots = [\"{other}\"]\n"
        )
    };
    let world = World::with_rules(Apart::OneNode, rules);
    let mut me = world.bind(Place::Here, 0);
    let other = world.bind(Place::Here, 1);
    assert_eq!(me.wait_room(other.whoami(), SOON), Err(WaitError::NotPermitted));
}

#[test]
fn an_endpoint_that_never_was_is_refused_by_name() {
    let world = World::new(Apart::OneNode);
    let mut me = world.bind(Place::Here, 0);
    let never = Endpoint::new(me.whoami().dc, abi::Slot(9), Generation(3));
    assert_eq!(me.send(never, Message::new(1), SOON), Err(SendError::DeadDestination));
    let taken = Binding::bind(&world.options(Place::Here).slot(me.whoami().slot)).map(|_| ());
    assert_eq!(taken, Err(BindError::Unavailable(Unavailable::Refused(Refusal::SlotTaken))));
}
