//! Requests passed on, and what a server that lies about them gets.

use abi::Corrupt;
use abi::slot::{Head, Kind, SlotCopy};
use shm::lane::LaneWriter;
use shm::reply;

use super::*;

/// A client (slot 1), the server it calls (2) and the one that answers in the end (3), each with a pair to each other.
struct Three {
    node: Node,
    cores: [Core; 3],
    /// `sides[a][b]`: the side that `a` keeps for `b`.
    sides: [[OwnSide; 3]; 3],
    /// `to[a][b]`: how `a` knows `b`.
    to: [[Option<PeerIndex>; 3]; 3],
}

const C: usize = 0;
const S: usize = 1;
const T: usize = 2;

impl Three {
    fn new() -> Three {
        Three::with_client(false)
    }

    /// The client may be on another node than the new server, which reaches it through a proxy then.
    fn with_client(far: bool) -> Three {
        let mut three = Three::unmet();
        for (a, b) in [(C, S), (C, T), (S, C), (S, T), (T, C), (T, S)] {
            three.introduce(a, b, far && [a, b].iter().all(|end| [C, T].contains(end)));
        }
        three
    }

    fn unmet() -> Three {
        let mut node = Node::new();
        let cores = [1, 2, 3].map(|slot| node.bind(slot));
        let sides = [(); 3].map(|()| [(); 3].map(|()| OwnSide::heap()));
        Three { node, cores, sides, to: [[None; 3]; 3] }
    }

    /// Tells `a` of its pair with `b`.
    fn introduce(&mut self, a: usize, b: usize, proxied: bool) {
        let slot = b as u16 + 1;
        let pair =
            Introduced { proxied, ..local(at(slot), &self.sides[a][b], &self.sides[b][a], slot.into()) };
        self.to[a][b] = Some(self.cores[a].introduce(pair));
    }

    fn call(&mut self) -> Call {
        let to = self.to[C][S].unwrap();
        self.cores[C].start_call(to, &mut text(b"?"), true).unwrap()
    }

    /// The server passes on what it has been asked.
    fn pass_on(&mut self) {
        let request = self.node.any(&mut self.cores[S]).unwrap();
        let message = request.to_message();
        self.cores[S].relay(&request, self.to[S][T].unwrap(), message).unwrap();
    }

    /// The client confirms.
    fn follow(&mut self, call: Call) -> Call {
        assert_eq!(self.cores[C].redirected(call), Some(Ok(at(3))));
        self.cores[C].follow(call, self.to[C][T].unwrap(), true).unwrap()
    }

    fn received(&mut self) -> Option<Delivery> {
        self.node.any(&mut self.cores[T])
    }

    /// Has `S` say that the first call of `C` is passed on to somebody, and nothing more.
    fn redirect(&self, to: Endpoint) {
        let mut body = [0; slot::BODY_WORDS];
        body[0] = to.to_word();
        let head = Head { lap: 0, kind: Kind::Reply, flags: slot::REDIRECT, len: 0 };
        let redirect = SlotCopy { head, source: at(2).to_word(), sequence: 1, kind: 0, call: 1, body };
        reply::publish(&self.sides[S][C], 1, &redirect, false);
    }

    /// Puts a slot on the lane from `S` to `T` that its core would not.
    fn forge(&self, writer: &mut LaneWriter, kind: Kind, call: u32, body: [u64; 2]) {
        let mut words = [0; slot::BODY_WORDS];
        words[..2].copy_from_slice(&body);
        let head = Head { lap: 0, kind, flags: 0, len: 16 };
        let mut slot = SlotCopy { head, source: at(2).to_word(), sequence: 0, kind: 0, call, body: words };
        writer.publish(&self.sides[S][T], &mut slot);
    }
}

#[test]
fn a_request_is_handed_out_when_its_client_has_confirmed_whichever_comes_first() {
    for confirmed_first in [false, true] {
        let mut three = Three::new();
        let call = three.call();
        three.pass_on();
        if !confirmed_first {
            assert!(three.received().is_none(), "nobody but S says so yet");
        }
        let call = three.follow(call);
        if confirmed_first {
            assert!(
                three.node.from(&mut three.cores[T], at(1)).is_none(),
                "the request is still in the lane of S"
            );
        }
        let request = three.received().unwrap();
        assert_eq!((request.source(), request.via(), request.inline()), (at(1), Some(at(2)), &b"?"[..]));
        three.cores[T].reply(&request, text(b"!")).unwrap();
        assert_eq!(three.node.reply(&mut three.cores[C], call).unwrap().unwrap().inline(), b"!");
        assert!(three.received().is_none());
    }
}

#[test]
fn a_server_cannot_speak_for_somebody_who_did_not_call_it() {
    let mut three = Three::new();
    let mut writer = LaneWriter::default();
    three.forge(&mut writer, Kind::Via, 0, [at(1).to_word(), 1]);
    three.forge(&mut writer, Kind::Relayed, 1, [0; 2]);
    assert!(three.received().is_none());
    // Not when the client calls T itself, either: that says nothing of S.
    let to = three.to[C][T].unwrap();
    let call = three.cores[C].start_call(to, &mut text(b"mine"), true).unwrap();
    let request = three.received().unwrap();
    assert_eq!((request.inline(), request.via()), (&b"mine"[..], None));
    three.cores[T].reply(&request, text(b"!")).unwrap();
    assert!(three.received().is_none());
    assert_eq!(three.node.reply(&mut three.cores[C], call).unwrap().unwrap().inline(), b"!");
}

#[test]
fn what_is_passed_on_for_nobody_condemns_its_pair() {
    let relayed_alone = [(Kind::Relayed, [0; 2])];
    let for_itself = [(Kind::Via, [at(2).to_word(), 1])];
    let for_the_new_server = [(Kind::Via, [at(3).to_word(), 1])];
    let for_another_dc = [(Kind::Via, [Endpoint::new(DcId(9), Slot(1), Generation(7)).to_word(), 1])];
    for lie in [relayed_alone, for_itself, for_the_new_server, for_another_dc] {
        let three = Three::new();
        let mut writer = LaneWriter::default();
        for (kind, body) in lie {
            three.forge(&mut writer, kind, 1, body);
        }
        let Three { mut node, cores: [_, _, mut t], .. } = three;
        let got = t.poll_any(ALL, &mut node.hands).map(|_| ());
        assert!(matches!(got, Err(ReceiveError::Corrupt(Corrupt { .. }))), "{lie:?}: {got:?}");
    }
}

#[test]
fn a_call_whose_request_is_never_passed_on_is_abandoned_when_the_server_ends() {
    let mut three = Three::new();
    let call = three.call();
    let _taken = three.node.any(&mut three.cores[S]).unwrap();
    // A redirect without a request: as if the node of S had died before the request had left it.
    three.redirect(at(3));
    let call = three.follow(call);
    assert!(three.received().is_none());
    three.cores[T].suspect_all(Duration::ZERO);
    assert!(three.node.reply(&mut three.cores[C], call).is_none(), "S may still pass it on");
    three.node.set(at(2), State::Dead);
    three.cores[T].suspect_all(Duration::ZERO);
    assert!(three.received().is_none());
    assert_eq!(three.node.reply(&mut three.cores[C], call).unwrap().unwrap_err(), SendrecError::Abandoned);
}

/// Everybody has met but the new server the old one, which has passed a call on and has ended.
fn passed_on_and_ended(state: State) -> (Three, Call) {
    let mut three = Three::unmet();
    for (a, b) in [(C, S), (C, T), (S, C), (S, T), (T, C)] {
        three.introduce(a, b, false);
    }
    let call = three.call();
    three.pass_on();
    let call = three.follow(call);
    assert!(three.received().is_none());
    three.node.set(at(2), state);
    three.cores[T].suspect_all(Duration::ZERO);
    (three, call)
}

#[test]
fn what_a_server_passed_on_before_it_ended_is_waited_for_though_its_end_is_heard_of_first() {
    let (mut three, call) = passed_on_and_ended(State::Dead);
    assert!(three.node.reply(&mut three.cores[C], call).is_none(), "it is on its way");
    three.introduce(T, S, false);
    let request = three.received().unwrap();
    assert_eq!((request.source(), request.via()), (at(1), Some(at(2))));
    three.cores[T].reply(&request, text(b"!")).unwrap();
    assert_eq!(three.node.reply(&mut three.cores[C], call).unwrap().unwrap().inline(), b"!");
}

#[test]
fn what_an_ended_server_never_passed_on_is_not_waited_for_without_end() {
    let hold = Duration::from_millis(abi::limits::RELAY_HOLD_MS);
    let (mut three, call) = passed_on_and_ended(State::Dead);
    three.cores[T].suspect_all(hold - Duration::from_millis(1));
    assert!(three.node.reply(&mut three.cores[C], call).is_none(), "not for so long yet");
    three.cores[T].suspect_all(hold);
    assert_eq!(three.node.reply(&mut three.cores[C], call).unwrap().unwrap_err(), SendrecError::Abandoned);

    let (mut three, call) = passed_on_and_ended(State::NodeDead);
    let of_a_dead_node = three.node.reply(&mut three.cores[C], call);
    assert_eq!(of_a_dead_node.unwrap().unwrap_err(), SendrecError::Abandoned);
}

#[test]
fn a_request_whose_client_gave_up_or_died_is_forgotten_with_its_extent() {
    for dies in [false, true] {
        let mut three = Three::new();
        let call = three.call();
        let request = three.node.any(&mut three.cores[S]).unwrap();
        let message = loaned(&mut three.cores[S], 500, 1);
        three.cores[S].relay(&request, three.to[S][T].unwrap(), message).unwrap();
        let call = three.follow(call);
        assert!(three.node.from(&mut three.cores[T], at(2)).is_none());
        assert_eq!(loans_out(&mut three.cores[S]), 1);
        if dies {
            three.node.set(at(1), State::Dead);
        } else {
            let gave_up = three.cores[C].give_up(call, true, &mut three.node.hands);
            assert_eq!(gave_up, Some(SendrecError::TimedOutTaken));
        }
        three.cores[T].suspect_all(Duration::ZERO);
        assert!(three.received().is_none());
        assert_eq!(loans_out(&mut three.cores[S]), 0, "dies: {dies}");
    }
}

#[test]
fn a_request_that_is_not_confirmed_in_time_lets_its_extent_go_and_is_abandoned_if_it_is_confirmed_after_all()
{
    let hold = Duration::from_millis(abi::limits::RELAY_HOLD_MS);
    let mut three = Three::new();
    let call = three.call();
    let request = three.node.any(&mut three.cores[S]).unwrap();
    let message = loaned(&mut three.cores[S], 500, 1);
    three.cores[S].relay(&request, three.to[S][T].unwrap(), message).unwrap();
    assert!(three.received().is_none());
    three.cores[T].suspect_all(hold);
    three.cores[T].suspect_all(hold * 2 - Duration::from_millis(1));
    assert_eq!(loans_out(&mut three.cores[S]), 1, "not for so long yet");
    three.cores[T].suspect_all(hold * 2);
    assert_eq!(loans_out(&mut three.cores[S]), 0);
    let call = three.follow(call);
    assert!(three.received().is_none());
    assert_eq!(three.node.reply(&mut three.cores[C], call).unwrap().unwrap_err(), SendrecError::Abandoned);
}

#[test]
fn a_client_that_this_node_has_not_heard_of_yet_is_not_taken_for_dead() {
    let mut three = Three::with_client(true);
    let call = three.call();
    three.pass_on();
    let earlier = Entry {
        state: State::Dead,
        node: NodeId(2),
        proxy: 0,
        generation: Generation(6),
        level: Level::Server,
    };
    three.node.table.store(table::of_slot(at(1).slot), earlier.to_word(), Ordering::Release);
    assert!(three.received().is_none());
    three.cores[T].suspect_all(Duration::ZERO);
    three.node.set(at(1), State::Bound);
    let call = three.follow(call);
    let request = three.received().unwrap();
    three.cores[T].reply(&request, text(b"!")).unwrap();
    assert_eq!(three.node.reply(&mut three.cores[C], call).unwrap().unwrap().inline(), b"!");
}

#[test]
fn a_call_passed_on_to_its_client_or_to_another_dc_ends_and_condemns() {
    for nobody in [at(1), Endpoint::new(DcId(9), Slot(3), Generation(7))] {
        let mut three = Three::new();
        let call = three.call();
        let _taken = three.node.any(&mut three.cores[S]).unwrap();
        three.redirect(nobody);
        let to = three.cores[C].redirected(call);
        assert!(matches!(to, Some(Err(SendrecError::Corrupt(_)))), "{to:?}");
        assert_eq!(three.sides[C][S].as_peer().calling(), 0);
        assert_eq!(three.cores[C].counters().corrupt, 1);
    }
}

#[test]
fn a_server_that_claims_to_have_read_what_it_was_not_sent_is_not_passed_anything_on() {
    let mut three = Three::new();
    let _call = three.call();
    let request = three.node.any(&mut three.cores[S]).unwrap();
    let to = three.to[S][T].unwrap();
    // While there is room without it, nobody looks at what the other claims.
    for _ in 0..LANE_SLOTS {
        three.cores[S].post(to, text(b"before")).unwrap();
    }
    three.sides[T][S].mirror(&shm::side::Mirrored { consumed: 2 * LANE_SLOTS, ..Default::default() });
    let relayed = three.cores[S].relay(&request, to, request.to_message());
    assert!(matches!(relayed, Err(RelayError::Corrupt(_))), "{relayed:?}");
    three.cores[S].reply(&request, text(b"!")).expect("it is still to be answered");
}
