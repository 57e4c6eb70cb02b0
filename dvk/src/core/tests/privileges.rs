//! What an end may send: refused before it is sent, and condemned when it is sent all the same.

use abi::{Allowed, Kinds};

use super::*;
use crate::error::NotifyError;

/// Two cores; `a` may send `kinds` to `b`, which may send everything. `lies`: `a` does not keep to it.
fn pair(node: &mut Node, kinds: Kinds, lies: bool) -> (Core, Core, PeerIndex, PeerIndex) {
    let (of_a, of_b) = (OwnSide::heap(), OwnSide::heap());
    let (mut a, mut b) = (node.bind(1), node.bind(2));
    let allowed = Allowed { to_peer: kinds, from_peer: Kinds::ALL };
    let kept = if lies { Allowed::ALL } else { allowed };
    let to_b = a.introduce(Introduced { allowed: kept, ..local(at(2), &of_a, &of_b, 2) });
    let to_a = b.introduce(Introduced { allowed: allowed.turned(), ..local(at(1), &of_b, &of_a, 1) });
    (a, b, to_b, to_a)
}

fn corrupt(node: &mut Node, core: &mut Core, accepts: Accepts) -> bool {
    matches!(core.poll_any(accepts, &mut node.hands), Err(ReceiveError::Corrupt(_)))
}

#[test]
fn what_may_not_be_sent_is_refused_before_it_is_sent() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, to_a) = pair(&mut node, Kinds::SENDREC, false);
    assert!(matches!(a.post(to_b, text(b"x")), Err(PostError::NotPermitted)));
    assert_eq!(a.start_send(to_b, &mut text(b"x"), true).map(|_| ()), Err(SendError::NotPermitted));
    assert_eq!(a.notify(to_b, 1), Err(NotifyError::NotPermitted));
    assert_eq!(a.wake(to_b), Err(NotifyError::NotPermitted));
    let lent = loaned(&mut a, 100, 1);
    assert!(matches!(a.post(to_b, lent), Err(PostError::NotPermitted)));
    assert_eq!(loans_out(&mut a), 0, "a refused loan is home");
    assert!(node.any(&mut b).is_none());
    let call = a.start_call(to_b, &mut text(b"?"), false).unwrap();
    let request = node.any(&mut b).unwrap();
    b.reply(&request, text(b"!")).unwrap();
    assert_eq!(node.reply(&mut a, call).unwrap().unwrap().inline(), b"!");
    b.post(to_a, text(b"y")).unwrap();
    assert_eq!(node.any(&mut a).unwrap().inline(), b"y", "the other way is another matter");
}

#[test]
fn a_reply_is_always_allowed() {
    let mut node = Node::new();
    let (mut a, mut b, _, to_a) = pair(&mut node, Kinds::NONE, false);
    let call = b.start_call(to_a, &mut text(b"?"), false).unwrap();
    let request = node.any(&mut a).unwrap();
    a.reply(&request, text(b"!")).unwrap();
    assert_eq!(node.reply(&mut b, call).unwrap().unwrap().inline(), b"!");
}

#[test]
fn a_slot_of_a_forbidden_kind_condemns_its_sender_whichever_way_it_is_taken() {
    for with_loan in [false, true] {
        let mut node = Node::new();
        let (mut a, mut b, to_b, to_a) = pair(&mut node, Kinds::SENDREC, true);
        let message = if with_loan { loaned(&mut a, 100, 1) } else { text(b"x") };
        a.post(to_b, message).unwrap();
        let due = b.due(ALL, &mut node.hands).unwrap().unwrap();
        assert!(b.take_due_bytes(due, ALL).is_err(), "the short way hands out nothing");
        let taken = b.take_due(due, ALL, &mut node.hands);
        assert!(matches!(taken, Err(ReceiveError::Corrupt(_))));
        assert_eq!((b.counters().corrupt, b.counters().received), (1, 0));
        assert_eq!(node.hands.recycled, [at(1)], "the pair is closed");
        assert!(b.peer(to_a).is_none());
    }
}

#[test]
fn what_is_allowed_before_a_forbidden_slot_is_handed_out() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = pair(&mut node, Kinds::POST, true);
    a.post(to_b, text(b"fine")).unwrap();
    a.start_send(to_b, &mut text(b"not fine"), false).unwrap();
    assert_eq!(node.any(&mut b).unwrap().inline(), b"fine");
    assert!(corrupt(&mut node, &mut b, ALL));
}

#[test]
fn a_request_passed_on_without_the_privilege_condemns() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = pair(&mut node, Kinds::SENDREC.and(Kinds::POST), true);
    let mut whose = text(&[0; 16]);
    assert!(a.publish(to_b, &mut whose, slot::Kind::Via, 0, 0).is_ok());
    assert!(corrupt(&mut node, &mut b, ALL));
}

#[test]
fn raised_bits_and_wake_ups_without_the_privilege_condemn() {
    for (kind, accepts) in [(Kinds::NOTIFY, ALL), (Kinds::WAKE, ALL), (Kinds::WAKE, NO_NOTES)] {
        let mut node = Node::new();
        let (mut a, mut b, to_b, to_a) = pair(&mut node, Kinds::SENDREC, true);
        match kind {
            Kinds::WAKE => a.wake(to_b).unwrap(),
            _ => a.notify(to_b, 1).unwrap(),
        }
        assert!(corrupt(&mut node, &mut b, accepts));
        assert!(b.peer(to_a).is_none());
        assert!(node.accepting(&mut b, accepts).is_none(), "it is told once");
    }
}

#[test]
fn a_wake_up_of_another_is_not_lost_beside_one_that_may_not_be() {
    let mut node = Node::new();
    let (mut a, mut b, to_b, _) = pair(&mut node, Kinds::SENDREC, true);
    let (of_c, of_b) = (OwnSide::heap(), OwnSide::heap());
    let mut c = node.bind(3);
    let from_c = c.introduce(local(at(2), &of_c, &of_b, 2));
    b.introduce(local(at(3), &of_b, &of_c, 3));
    a.wake(to_b).unwrap();
    c.wake(from_c).unwrap();
    let mut woken = 0;
    let mut condemned = 0;
    for _ in 0..4 {
        match b.poll_any(ALL, &mut node.hands) {
            Ok(Some(delivery)) => {
                woken += u32::from(delivery.what() == What::Woken && delivery.source() == at(3))
            }
            Ok(None) => {}
            Err(_) => condemned += 1,
        }
    }
    assert_eq!((woken, condemned), (1, 1));
}

#[test]
fn an_end_is_told_once_for_each_slot_and_is_no_request() {
    let mut node = Node::new();
    let mut a = node.bind(1);
    let earlier = Endpoint::new(DcId(1), Slot(2), Generation(6));
    for endpoint in [earlier, at(2), at(3)] {
        node.hands.pulled.push_back(Pulled::Warned { endpoint });
    }
    a.pull_now(&mut node.hands).unwrap();
    assert!(node.accepting(&mut a, NO_NOTES).is_none());
    for ended in [at(2), at(3)] {
        let warning = node.any(&mut a).unwrap();
        assert_eq!((warning.what(), warning.source()), (What::Warned, ended));
    }
    assert!(node.any(&mut a).is_none());
}
