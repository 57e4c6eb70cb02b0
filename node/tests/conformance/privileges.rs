//! Rows: privileges: who may call whom, wherever both are, and who hears of an end.

use abi::{Kinds, Level, Slot};
use dvk::{
    Binding, From, Message, NotifyError, PostError, RelayError, SendError, SendrecError, Timeout, What,
};

use super::rows;
use crate::support::{Apart, LONG, Life, Place, SHORT, World, eventually};

rows!(
    apart:
    a_user_may_call_a_server_and_do_nothing_else,
    a_user_and_a_user_are_not_introduced,
    a_server_may_do_everything_to_a_user,
    without_rules_everybody_is_a_server,
    a_rule_names_calls_and_destinations,
    a_name_and_a_user_make_a_rule_fit,
    a_users_call_is_passed_on_by_a_server_wherever_that_may,
    a_server_that_may_not_pass_on_still_owes_the_answer,
    an_end_is_told_to_the_warn_target_once,
    an_end_waits_for_the_next_holder_of_the_warn_targets_slot,
);

const AFTER: Timeout = Timeout::After(LONG);
const PLACES: [Place; 2] = [Place::Here, Place::There];
const SERVER: u16 = 0;
const USER: u16 = 8;

fn rule(slots: (Slot, Slot), lines: &str) -> String {
    format!("[[dc.privileges]]\nslots = \"{}-{}\"\n{lines}\n", slots.0.0, slots.1.0)
}

/// The first eight slots of either place are servers', the others users'.
fn servers_first(apart: Apart) -> World {
    World::with_rules(apart, |slot| {
        PLACES.map(|place| rule((slot(place, 0), slot(place, 7)), "level = \"server\"")).concat()
    })
}

/// Answers each request with its own bytes, until it is told to end by a request of kind 0.
fn echo(world: &World, place: Place, number: u16) -> Life<u64> {
    world.spawn(place, number, |mut me| {
        let mut answered = 0;
        loop {
            let request = me.receive_request(AFTER).expect("a request");
            me.reply(&request, Message::new(request.kind()).inline(request.inline())).expect("it waits");
            if request.kind() == 0 {
                return answered;
            }
            answered += 1;
        }
    })
}

fn end<T>(me: &mut Binding, life: Life<T>) -> T {
    me.sendrec(life.endpoint, Message::new(0), AFTER).expect("its last answer");
    life.join()
}

fn a_user_may_call_a_server_and_do_nothing_else(apart: Apart) {
    let world = servers_first(apart);
    let mut me = world.bind(Place::Here, USER);
    let mine = me.privileges().expect("the daemon answers");
    assert_eq!((mine.level, mine.calls, mine.warn), (Level::User, Kinds::SENDREC, None));
    for (number, place) in (SERVER..).zip(PLACES) {
        let server = echo(&world, place, number);
        let to = server.endpoint;
        world.meet(&mut me, to);
        assert_eq!(me.whereabouts(to.slot).map(|known| known.level), Some(Level::Server));
        let reply = me.sendrec(to, Message::new(7).inline(b"may I?"), AFTER).expect("an answer");
        assert_eq!(reply.inline(), b"may I?");
        assert!(matches!(me.post(to, Message::new(1)), Err(PostError::NotPermitted)));
        assert_eq!(me.send(to, Message::new(1), AFTER), Err(SendError::NotPermitted));
        assert_eq!(me.notify(to, 1), Err(NotifyError::NotPermitted));
        assert_eq!(me.wake(to), Err(NotifyError::NotPermitted));
        let mut loan = me.loan(5000).expect("a buffer");
        loan.fill(1);
        assert!(matches!(me.post(to, Message::new(1).with(loan)), Err(PostError::NotPermitted)));
        assert_eq!(end(&mut me, server), 1, "nothing of what was refused has come");
    }
    assert_eq!(me.audit().expect("a sound pool").loans, 0, "a refused loan is home");
}

fn a_user_and_a_user_are_not_introduced(apart: Apart) {
    let world = servers_first(apart);
    let mut me = world.bind(Place::Here, USER);
    for (number, place) in (USER + 1..).zip(PLACES) {
        let mut other = world.bind(place, number);
        let to = other.whoami();
        world.meet(&mut me, to);
        assert_eq!(me.whereabouts(to.slot).map(|known| known.level), Some(Level::User));
        let refused = me.sendrec(to, Message::new(1), AFTER).map(|_| ());
        assert_eq!(refused, Err(SendrecError::NotPermitted));
        assert!(matches!(me.post(to, Message::new(1)), Err(PostError::NotPermitted)));
        assert_eq!(me.notify(to, 1), Err(NotifyError::NotPermitted));
        let nothing = other.receive(From::Any, Timeout::After(SHORT)).map(|_| ());
        assert_eq!(nothing, Err(dvk::ReceiveError::TimedOut));
    }
}

fn a_server_may_do_everything_to_a_user(apart: Apart) {
    let world = servers_first(apart);
    let mut me = world.bind(Place::Here, SERVER);
    for (number, place) in (USER..).zip(PLACES) {
        let user = world.spawn(place, number, |mut me| {
            let mut heard = Vec::new();
            for _ in 0..5 {
                let got = me.receive(From::Any, AFTER).expect("something");
                let view = got.view().map(|view| view.to_vec());
                heard.push((got.what(), got.kind(), view.map_or(0, |bytes| bytes.len())));
                if matches!(got.what(), What::Request { .. }) {
                    me.reply(&got, Message::new(9)).expect("it waits");
                }
            }
            heard
        });
        let to = user.endpoint;
        world.meet(&mut me, to);
        me.send(to, Message::new(1), AFTER).expect("taken");
        let mut loan = me.loan(70_000).expect("a buffer");
        loan.fill(3);
        me.post(to, Message::new(2).with(loan)).expect("room");
        assert_eq!(me.sendrec(to, Message::new(3), AFTER).expect("an answer").kind(), 9);
        me.notify(to, 4).expect("alive");
        eventually("the bits are there before the wake-up is", || {
            std::thread::sleep(SHORT);
            true
        });
        me.wake(to).expect("alive");
        let heard = user.join();
        let kinds: Vec<(u32, usize)> = heard.iter().map(|(_, kind, len)| (*kind, *len)).collect();
        assert_eq!(kinds[..3], [(1, 0), (2, 70_000), (3, 0)]);
        let raised: Vec<What> = heard[3..].iter().map(|(what, ..)| *what).collect();
        assert!(raised.contains(&What::Notification { bits: 4 }) && raised.contains(&What::Woken));
    }
}

fn without_rules_everybody_is_a_server(apart: Apart) {
    let world = World::new(apart);
    let mut me = world.bind(Place::Here, USER);
    let mine = me.privileges().expect("the daemon answers");
    assert_eq!((mine.level, mine.calls, mine.warn), (Level::Server, Kinds::ALL, None));
    let other = world.bind(Place::There, USER);
    world.meet(&mut me, other.whoami());
    me.post(other.whoami(), Message::new(1)).expect("allowed");
    assert_eq!(me.whereabouts(other.whoami().slot).map(|known| known.level), Some(Level::Server));
}

fn a_rule_names_calls_and_destinations(apart: Apart) {
    let world = World::with_rules(apart, |slot| {
        let (one, other) = (slot(Place::There, 0).0, slot(Place::There, 9).0);
        let lines = format!(
            "level = \"user\"\ncalls = [\"post\", \"notify\"]\nto_levels = [\"kernel\"]\nto_slots = [\"{one}\"]\n"
        );
        rule((slot(Place::Here, 0), slot(Place::Here, 0)), &lines)
            + &rule((slot(Place::There, 9), Slot(other)), "level = \"kernel\"\ncalls = []")
    });
    let mut me = world.bind(Place::Here, 0);
    for number in [0, 9] {
        let mut to = world.bind(Place::There, number);
        world.meet(&mut me, to.whoami());
        me.post(to.whoami(), Message::new(5)).expect("allowed");
        assert_eq!(to.receive(From::Any, AFTER).expect("it").kind(), 5);
        let refused = me.sendrec(to.whoami(), Message::new(1), AFTER).map(|_| ());
        assert_eq!(refused, Err(SendrecError::NotPermitted));
        assert!(matches!(to.post(me.whoami(), Message::new(1)), Err(PostError::NotPermitted)));
    }
    let third = world.bind(Place::There, 1);
    world.meet(&mut me, third.whoami());
    assert!(matches!(me.post(third.whoami(), Message::new(1)), Err(PostError::NotPermitted)));
}

fn a_name_and_a_user_make_a_rule_fit(apart: Apart) {
    let uid = rustix::process::getuid().as_raw();
    let world = World::with_rules(apart, |_| {
        format!(
            "[[dc.privileges]]\nname = \"kv\"\nuid = {uid}\nlevel = \"server\"\n\
             [[dc.privileges]]\nname = \"other\"\nuid = {}\nlevel = \"server\"\n",
            uid + 1
        )
    });
    let mut me = world.bind(Place::Here, 1);
    for (name, level) in [("kv", Level::Server), ("other", Level::User)] {
        let options = world.options(Place::There).name(name);
        let mut to = Binding::bind(&options).expect("a binding");
        world.meet(&mut me, to.whoami());
        assert_eq!(to.privileges().expect("the daemon answers").level, level);
        assert_eq!(me.whereabouts(to.whoami().slot).map(|known| known.level), Some(level), "{name}");
        // It may call us if it is a server, and only then: which its node and ours must both know.
        world.meet(&mut to, me.whoami());
        let posted = to.post(me.whoami(), Message::new(6));
        match level {
            Level::Server => {
                posted.expect("allowed");
                assert_eq!(me.receive(From::Any, AFTER).expect("it").kind(), 6);
            }
            _ => assert!(matches!(posted, Err(PostError::NotPermitted))),
        }
    }
}

fn a_users_call_is_passed_on_by_a_server_wherever_that_may(apart: Apart) {
    let world = servers_first(apart);
    let mut me = world.bind(Place::Here, USER);
    for (number, place) in (0..).zip(PLACES) {
        // The one that answers is a user itself, whom the client could not call.
        let answerer = world.spawn(place, USER + 1 + number, |mut me| {
            let request = me.receive_request(AFTER).expect("a request");
            let seen = (request.source(), request.via());
            me.reply(&request, Message::new(2).inline(request.inline())).expect("its client waits");
            seen
        });
        let to = answerer.endpoint;
        let server = world.spawn(Place::There, SERVER + number, move |mut me| {
            me.wait_bind(to.slot, AFTER).expect("seen");
            let request = me.receive_request(AFTER).expect("a request");
            me.relay(&request, to).expect("passed on");
        });
        world.meet(&mut me, server.endpoint);
        let via = server.endpoint;
        let reply = me.sendrec(via, Message::new(1).inline(b"go on"), AFTER).expect("an answer");
        assert_eq!((reply.source(), reply.inline()), (to, &b"go on"[..]));
        assert_eq!(answerer.join(), (me.whoami(), Some(via)));
        server.join();
        // The pair is there now, and is good for nothing else.
        let refused = me.sendrec(to, Message::new(1), AFTER).map(|_| ());
        assert!(matches!(refused, Err(SendrecError::NotPermitted | SendrecError::DeadDestination)));
    }
}

fn a_server_that_may_not_pass_on_still_owes_the_answer(apart: Apart) {
    let world = World::with_rules(apart, |slot| {
        let calls = "level = \"server\"\ncalls = [\"sendrec\", \"post\"]";
        PLACES.map(|place| rule((slot(place, 0), slot(place, 7)), calls)).concat()
    });
    let mut me = world.bind(Place::Here, USER);
    let other = world.bind(Place::Here, 1);
    let to = other.whoami();
    let server = world.spawn(Place::There, 0, move |mut me| {
        me.wait_bind(to.slot, AFTER).expect("seen");
        let request = me.receive_request(AFTER).expect("a request");
        assert_eq!(me.relay(&request, to), Err(RelayError::NotPermitted));
        me.reply(&request, Message::new(3)).expect("still owed");
    });
    world.meet(&mut me, server.endpoint);
    let reply = me.sendrec(server.endpoint, Message::new(1), AFTER).expect("an answer");
    assert_eq!((reply.kind(), reply.source()), (3, server.endpoint));
    server.join();
}

/// Whoever is bound in the slots from `USER` on there is watched by the first slot here.
fn watched(apart: Apart) -> World {
    World::with_rules(apart, |slot| {
        let lines = format!("level = \"server\"\nwarn = {}", slot(Place::Here, 0).0);
        rule((slot(Place::There, USER), slot(Place::There, USER + 7)), &lines)
            + "[[dc.privileges]]\nlevel = \"server\"\n"
    })
}

fn an_end_is_told_to_the_warn_target_once(apart: Apart) {
    let world = watched(apart);
    let mut me = world.bind(Place::Here, 0);
    let unwatched = world.bind(Place::There, 0);
    let mut ended = Vec::new();
    for number in [USER, USER + 1] {
        let mut other = world.bind(Place::There, number);
        world.meet(&mut me, other.whoami());
        assert_eq!(other.privileges().expect("the daemon answers").warn, Some(me.whoami().slot));
        ended.push(other.whoami());
    }
    drop(unwatched);
    let mut told = Vec::new();
    for _ in &ended {
        let warning = me.receive(From::Any, AFTER).expect("a warning");
        assert_eq!((warning.what(), warning.inline().len()), (What::Warned, 0));
        told.push(warning.source());
    }
    told.sort_unstable();
    assert_eq!(told, ended);
    let nothing = me.receive(From::Any, Timeout::After(SHORT)).map(|got| (got.what(), got.source()));
    assert_eq!(nothing, Err(dvk::ReceiveError::TimedOut));
}

fn an_end_waits_for_the_next_holder_of_the_warn_targets_slot(apart: Apart) {
    let world = watched(apart);
    let mut witness = world.bind(Place::Here, 1);
    let mut last = None;
    // Twice in one slot: the last end is told, once.
    for _ in 0..2 {
        let other = world.bind(Place::There, USER);
        let endpoint = other.whoami();
        world.meet(&mut witness, endpoint);
        other.unbind().expect("the daemon answers");
        witness.wait_unbind(endpoint, AFTER).expect("seen");
        last = Some(endpoint);
    }
    let mut me = world.bind(Place::Here, 0);
    me.post(witness.whoami(), Message::new(1)).expect("room");
    assert!(matches!(me.receive_request(Timeout::After(SHORT)), Err(dvk::ReceiveError::TimedOut)));
    let warning = me.receive(From::Any, AFTER).expect("a warning");
    assert_eq!((warning.what(), Some(warning.source())), (What::Warned, last));
    let nothing = me.receive(From::Any, Timeout::After(SHORT)).map(|got| (got.what(), got.source()));
    assert_eq!(nothing, Err(dvk::ReceiveError::TimedOut));
}
