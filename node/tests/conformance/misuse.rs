//! Wrong uses of the calls, and all that is said about each, to the letter: every one ends, and says what to do next.
//!
//! On one node, since these are refused before anything travels. Neighbour: `dvs/tests/bad_input.rs`, for commands.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use abi::limits::{INLINE_BYTES_MAX, INLINE_BYTES_WITH_EXTENT_MAX, LOAN_BYTES_MAX, SLOTS_PER_DC};
use abi::{DcId, Endpoint, Generation, Name, Slot};
use dvk::daemon::Daemon;
use dvk::{BindOptions, Binding, From, Message, Timeout, What};

use crate::support::{Apart, Place, SHORT, World};

/// What was said, or that nothing was wrong.
fn said<T, E: Display>(result: Result<T, E>) -> String {
    result.err().map_or_else(|| "nothing".to_owned(), |why| why.to_string())
}

/// What a panic said.
fn panicked(call: impl FnOnce()) -> String {
    let Err(why) = catch_unwind(AssertUnwindSafe(call)) else { return "nothing".to_owned() };
    why.downcast_ref::<String>().cloned().unwrap_or_else(|| "something that is no text".to_owned())
}

/// All at once, so that a failure shows all that is said now.
fn are(said: &[(&str, String)], expected: &[(&str, &str)]) {
    let said: Vec<(&str, &str)> = said.iter().map(|(what, said)| (*what, said.as_str())).collect();
    assert_eq!(said, expected, "this is said now:\n{said:#?}");
}

fn soon() -> Timeout {
    Timeout::After(SHORT)
}

#[test]
fn a_binding_that_cannot_be_says_why() {
    let world = World::new(Apart::OneNode);
    let bind = |options: BindOptions| said(Binding::bind(&options));
    let options = || world.options(Place::Here);
    let _held = Binding::bind(&options().slot(Slot(3)).name("kv")).expect("a binding");
    let file = tempfile::NamedTempFile::new().expect("a file");
    let somewhere = |dc: &str| BindOptions::new(world.socket(Place::Here), dc);
    are(
        &[
            ("no daemon", bind(BindOptions::new("/no/such.sock", "dc"))),
            ("no socket", bind(BindOptions::new(file.path(), "dc"))),
            ("a path that is too long", bind(BindOptions::new("/x".repeat(100), "dc"))),
            ("an unknown DC", bind(somewhere("cd"))),
            ("a DC that is no name", bind(somewhere("My DC"))),
            ("a name that is none", bind(options().name("Key Value"))),
            ("a taken slot", bind(options().slot(Slot(3)))),
            ("a taken name", bind(options().name("kv"))),
            ("another node's slot", bind(options().slot(Slot(64)))),
            ("a slot beyond all", bind(options().slot(Slot(SLOTS_PER_DC)))),
            ("nobody's process", said(Binding::bind_other(&options(), u32::MAX / 2))),
            ("not started bound", said(Binding::from_env())),
        ],
        &[
            (
                "no daemon",
                "the node's daemon cannot be reached (Connection refused (os error 111)): start the node, or check the socket's path",
            ),
            (
                "no socket",
                "the node's daemon cannot be reached (Connection refused (os error 111)): start the node, or check the socket's path",
            ),
            (
                "a path that is too long",
                "the node's daemon cannot be reached (File name too long (os error 36)): start the node, or check the socket's path",
            ),
            ("an unknown DC", "this node has no such DC: see `dvs status` for those it has"),
            ("a DC that is no name", "not a name: use 1 to 32 of the characters a-z 0-9 - _ ."),
            ("a name that is none", "not a name: use 1 to 32 of the characters a-z 0-9 - _ ."),
            ("a taken slot", "the slot is bound: choose another slot, or any"),
            ("a taken name", "the name is bound in this DC: choose another"),
            (
                "another node's slot",
                "the slot is in another node's range: bind it there, or choose one of this node's",
            ),
            (
                "a slot beyond all",
                "the request makes no sense here: it is about this very endpoint, or names what is out of range",
            ),
            ("nobody's process", "no process with that pid, or it belongs to another user"),
            (
                "not started bound",
                "this program was not started bound: start it with `dvs run --dc D --node N -- PROGRAM`",
            ),
        ],
    );
}

#[test]
fn a_node_that_is_full_says_so() {
    let world = World::new(Apart::OneNode);
    let bind = || Binding::bind(&world.options(Place::Here));
    let all: Vec<Binding> = (0..64).map(|_| bind().expect("a free slot")).collect();
    are(
        &[("the sixty-fifth", said(bind()))],
        &[("the sixty-fifth", "all slots of this node are bound: widen its range in the cluster file")],
    );
    drop(all);
}

#[test]
fn a_binding_of_another_is_fetched_once_with_the_right_token() {
    let world = World::new(Apart::OneNode);
    let options = world.options(Place::Here);
    let (endpoint, token) = Binding::bind_other(&options, std::process::id()).expect("a binding");
    let dc = Name::new("dc").expect("a name");
    let daemon = || Daemon::connect(&world.socket(Place::Here), dc).expect("the daemon");
    let claim = |daemon: &mut Daemon, endpoint, token| said(daemon.claim(endpoint, token));
    let nobody = Endpoint::new(endpoint.dc, Slot(60), endpoint.generation);
    let wrong = claim(&mut daemon(), endpoint, [token[0], token[1] ^ 1]);
    let of_nobody = claim(&mut daemon(), nobody, token);
    let mut first = daemon();
    let right = claim(&mut first, endpoint, token);
    let twice = claim(&mut daemon(), endpoint, token);
    let again = claim(&mut first, endpoint, token);
    are(
        &[
            ("another token", wrong),
            ("another endpoint", of_nobody),
            ("the right one", right),
            ("twice", twice),
            ("twice by the same", again),
        ],
        &[
            (
                "another token",
                "not allowed: a token that is wrong or used, or a user that the DC's `uids` in the cluster file do not name",
            ),
            ("another endpoint", "no such endpoint, or it ended: look it up again"),
            ("the right one", "nothing"),
            (
                "twice",
                "not allowed: a token that is wrong or used, or a user that the DC's `uids` in the cluster file do not name",
            ),
            (
                "twice by the same",
                "the request makes no sense here: it is about this very endpoint, or names what is out of range",
            ),
        ],
    );
}

#[test]
fn what_cannot_be_sent_is_refused() {
    let world = World::new(Apart::OneNode);
    let mut me = world.bind(Place::Here, 0);
    let myself = me.whoami();
    let other = world.bind(Place::Here, 1);
    let (there, slot) = (other.whoami(), other.whoami().slot);
    world.meet(&mut me, there);
    drop(other);
    me.wait_unbind(there, Timeout::After(crate::support::LONG)).expect("an end that is seen");
    let elsewhere = Endpoint::new(DcId(9), slot, there.generation);
    let later = Endpoint::new(there.dc, slot, Generation(there.generation.0 + 1));
    let beyond = Endpoint::new(there.dc, Slot(SLOTS_PER_DC), there.generation);
    let message = || Message::new(1);
    are(
        &[
            ("send to myself", said(me.send(myself, message(), soon()))),
            ("post to myself", said(me.post(myself, message()))),
            ("call myself", said(me.sendrec(myself, message(), soon()))),
            ("notify myself", said(me.notify(myself, 1))),
            ("send to one that ended", said(me.send(there, message(), soon()))),
            ("post to one that ended", said(me.post(there, message()))),
            ("call one that ended", said(me.sendrec(there, message(), soon()))),
            ("notify one that ended", said(me.notify(there, 1))),
            ("send to one that never was", said(me.send(later, message(), soon()))),
            ("send to another DC's", said(me.send(elsewhere, message(), soon()))),
            ("call another DC's", said(me.sendrec(elsewhere, message(), soon()))),
            ("send to a slot beyond all", said(me.send(beyond, message(), soon()))),
            ("wait for a slot beyond all", said(me.wait_bind(Slot(SLOTS_PER_DC), soon()))),
            ("receive nothing", said(me.receive(From::Any, Timeout::Zero))),
            ("receive in vain", said(me.receive(From::Any, soon()))),
            ("receive from one that ended", said(me.receive(From::Endpoint(there), soon()))),
            ("receive from myself", said(me.receive(From::Endpoint(myself), soon()))),
            ("a loan that is too long", said(me.loan(LOAN_BYTES_MAX as usize + 1))),
        ],
        &[
            (
                "send to myself",
                "the request makes no sense here: it is about this very endpoint, or names what is out of range",
            ),
            (
                "post to myself",
                "the request makes no sense here: it is about this very endpoint, or names what is out of range",
            ),
            (
                "call myself",
                "the request makes no sense here: it is about this very endpoint, or names what is out of range",
            ),
            (
                "notify myself",
                "the request makes no sense here: it is about this very endpoint, or names what is out of range",
            ),
            ("send to one that ended", "the destination ended: not delivered; look it up again"),
            ("post to one that ended", "the destination ended: not delivered; look it up again"),
            ("call one that ended", "the destination ended: not delivered; look it up again"),
            ("notify one that ended", "the destination ended: look it up again"),
            ("send to one that never was", "the destination ended: not delivered; look it up again"),
            ("send to another DC's", "the destination ended: not delivered; look it up again"),
            ("call another DC's", "the destination ended: not delivered; look it up again"),
            ("send to a slot beyond all", "the destination ended: not delivered; look it up again"),
            ("wait for a slot beyond all", "timed out"),
            ("receive nothing", "nothing is here"),
            ("receive in vain", "timed out: nothing came"),
            ("receive from one that ended", "the source ended, and all it had published is received"),
            ("receive from myself", "timed out: nothing came"),
            ("a loan that is too long", "a loan is at most 1073741824 bytes"),
        ],
    );
    assert_eq!(me.lookup_name("No Name"), Ok(None));
    assert_eq!(me.lookup(Slot(SLOTS_PER_DC)), None);
}

#[test]
fn a_body_that_is_too_long_is_a_mistake_of_the_program() {
    let world = World::new(Apart::OneNode);
    let mut me = world.bind(Place::Here, 0);
    let loan = me.loan(1).expect("a loan");
    let beside = me.loan(1).expect("a loan");
    are(
        &[
            ("inline", panicked(|| drop(Message::new(0).inline(&[0; INLINE_BYTES_MAX + 1])))),
            (
                "beside a loan",
                panicked(|| drop(Message::new(0).with(loan).inline(&[0; INLINE_BYTES_WITH_EXTENT_MAX + 1]))),
            ),
            (
                "before a loan",
                panicked(|| {
                    drop(Message::new(0).inline(&[0; INLINE_BYTES_WITH_EXTENT_MAX + 1]).with(beside))
                }),
            ),
        ],
        &[
            ("inline", "97 inline bytes of at most 96: use a loan"),
            ("beside a loan", "73 inline bytes of at most 72: use a loan"),
            ("before a loan", "73 inline bytes of at most 72 beside a loan"),
        ],
    );
}

#[test]
fn only_a_request_is_answered_and_only_once() {
    let world = World::new(Apart::OneNode);
    let mut me = world.bind(Place::Here, 0);
    let server = me.whoami();
    let client = world.spawn(Place::Here, 1, move |mut client| {
        client.post(server, Message::new(1)).expect("room");
        client.sendrec(server, Message::new(2), Timeout::After(crate::support::LONG)).expect("a reply");
    });
    let from = From::Endpoint(client.endpoint);
    let long = Timeout::After(crate::support::LONG);
    let message = me.receive(from, long).expect("a message");
    let request = me.receive(from, long).expect("a request");
    assert!(matches!(request.what(), What::Request { .. }));
    let to_message = said(me.reply(&message, Message::new(0)));
    let pass_message = said(me.relay(&message, server));
    let pass_back = said(me.relay(&request, client.endpoint));
    let first = said(me.reply(&request, Message::new(0)));
    let second = said(me.reply(&request, Message::new(0)));
    let passed_on = said(me.relay(&request, server));
    client.join();
    are(
        &[
            ("reply to a message", to_message),
            ("pass a message on, to myself", pass_message),
            ("pass a request back", pass_back),
            ("reply", first),
            ("reply again", second),
            ("pass on what is answered", passed_on),
        ],
        &[
            ("reply to a message", "what was received was no request: only a request is replied to"),
            (
                "pass a message on, to myself",
                "the request makes no sense here: it is about this very endpoint, or names what is out of range",
            ),
            ("pass a request back", "a request cannot be passed on to the client that waits for its answer"),
            ("reply", "nothing"),
            ("reply again", "the request has been answered already: a request is replied to once"),
            (
                "pass on what is answered",
                "the request makes no sense here: it is about this very endpoint, or names what is out of range",
            ),
        ],
    );
}
