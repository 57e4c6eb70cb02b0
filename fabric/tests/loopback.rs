//! The loopback under the conformance suite, and what only it can: cut, heal, restart.

use std::time::Duration;

use abi::courier::LinkState;
use abi::{Incarnation, NodeId};
use fabric::conformance::{Network, nodes};
use fabric::loopback::{Loopback, Mode};
use fabric::{Armed, Completion, Desc, Fabric, Piece, Waiter};
use shm::map::Mapping;
use shm::os::events::{Epoll, Readiness};

fn network(count: usize, mode: Mode) -> Network {
    let ends = Loopback::network(&nodes(count), mode);
    let wire = ends[0].wire();
    let boxed = ends.into_iter().map(|end| Box::new(end) as _).collect();
    Network { flap: Some(Box::new(move |one, other| wire.flap(one, other))), ..Network::counted(boxed) }
}

fabric::conformance!(loopback_eager, |count| super::network(count, super::Mode::Eager));
fabric::conformance!(loopback_one_sided, |count| super::network(count, super::Mode::OneSided));

/// All that the polls of one end tell until there is no more.
fn poll(end: &mut Loopback) -> Vec<Completion> {
    let mut all = Vec::new();
    loop {
        let mut done = Vec::with_capacity(16);
        end.poll(Duration::ZERO, &mut done);
        if done.is_empty() {
            return all;
        }
        all.extend(done);
    }
}

fn pair(mode: Mode) -> (Loopback, Loopback) {
    let mut ends = Loopback::network(&nodes(2), mode);
    let (two, one) = (ends.pop().unwrap(), ends.pop().unwrap());
    (one, two)
}

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);

#[test]
fn a_cut_wire_ends_the_session_once_and_healing_begins_another() {
    let (mut one, mut two) = pair(Mode::Eager);
    let wire = one.wire();
    assert!(matches!(poll(&mut one)[..], [Completion::Up { peer: TWO, session: 1, .. }]));
    wire.cut(ONE, TWO);
    wire.cut(TWO, ONE);
    assert!(matches!(poll(&mut one)[..], [Completion::Lost { peer: TWO, session: 1 }]));
    wire.heal(ONE, TWO);
    wire.heal(ONE, TWO);
    assert!(matches!(poll(&mut one)[..], [Completion::Up { session: 2, .. }]));
    let all = poll(&mut two);
    assert!(
        matches!(all[..], [Completion::Up { .. }, Completion::Lost { .. }, Completion::Up { .. }]),
        "{all:?}"
    );
}

#[test]
fn a_restarted_node_has_a_new_incarnation_and_nothing_of_the_old_one() {
    let (mut one, mut two) = pair(Mode::OneSided);
    let wire = one.wire();
    poll(&mut one);
    poll(&mut two);
    let region = two.attach(&Mapping::heap(1 << 16));
    let taken = two.post_recv(&[Piece { region, offset_bytes: 0, len_bytes: 1 << 16 }]);
    assert_eq!(taken, 1);
    let mut reborn = wire.restart(TWO);
    assert_eq!(wire.incarnation(TWO), Incarnation(2));
    let seen = poll(&mut one);
    assert!(matches!(
        seen[..],
        [Completion::Lost { .. }, Completion::Up { incarnation: Incarnation(2), .. }]
    ));
    poll(&mut reborn);
    assert!(poll(&mut two).is_empty(), "the old life sees nothing");
    let desc = [Desc { token: 1, head: b"hello", pieces: &[], bulk: false, flow: 0 }];
    assert_eq!(two.post_send(ONE, &desc), 0, "the old life says nothing");
    assert_eq!(one.post_send(TWO, &desc), 1);
    assert!(poll(&mut reborn).is_empty(), "the buffer of the old life is not used");
    drop(two);
    assert!(poll(&mut one).is_empty(), "the end of the old life ends nothing of the new one");
}

#[test]
fn a_fenced_life_learns_of_it_and_the_next_is_welcome() {
    let (mut one, mut two) = pair(Mode::Eager);
    poll(&mut one);
    poll(&mut two);
    one.fence(TWO, Incarnation(1));
    assert!(matches!(poll(&mut one)[..], [Completion::Lost { .. }]));
    let told = poll(&mut two);
    let fenced = Completion::Trouble { peer: ONE, state: LinkState::Fenced };
    assert!(matches!(told[0], Completion::Lost { .. }) && told[1] == fenced, "{told:?}");
    let mut reborn = one.wire().restart(TWO);
    assert!(matches!(poll(&mut one)[..], [Completion::Up { .. }]));
    assert!(matches!(poll(&mut reborn)[..], [Completion::Up { .. }]));
}

#[test]
fn a_one_sided_wire_completes_bulk_in_another_order_than_it_was_posted() {
    let (mut one, mut two) = pair(Mode::OneSided);
    poll(&mut one);
    poll(&mut two);
    let (from, into) = (one.attach(&Mapping::heap(4096)), two.attach(&Mapping::heap(1 << 20)));
    let buffer = |i: u64| Piece { region: into, offset_bytes: i << 16, len_bytes: 1 << 16 };
    two.post_recv(&[buffer(1), buffer(2), buffer(3)]);
    let pieces = [Piece { region: from, offset_bytes: 0, len_bytes: 16 }];
    let desc = [1, 2, 3].map(|token| Desc { token, head: b"", pieces: &pieces, bulk: true, flow: 0 });
    assert_eq!(one.post_send(TWO, &desc), 3);
    for (i, completion) in poll(&mut two).into_iter().enumerate() {
        let Completion::Announced { token, .. } = completion else { panic!("{completion:?}") };
        two.accept(ONE, token, Piece { region: into, offset_bytes: 16 * i as u64, len_bytes: 16 });
    }
    let sent = |token| Completion::Sent { peer: TWO, token };
    assert_eq!(poll(&mut one), [sent(3), sent(2), sent(1)]);
}

/// A thread that sleeps on its end's waiter between polls, and sends one message back for each that comes.
fn play(mut end: Loopback, peer: NodeId, rounds: u32, begins: bool) {
    let region = end.attach(&Mapping::heap(1 << 20));
    let buffers: Vec<Piece> =
        (0..16).map(|i: u64| Piece { region, offset_bytes: i << 16, len_bytes: 1 << 16 }).collect();
    end.post_recv(&buffers);
    let (mut received, mut done, epoll) = (0, Vec::with_capacity(8), Epoll::new().unwrap());
    let Waiter::Fd(fd) = end.waiter() else { panic!("a waiter") };
    epoll.add(fd, 0, Readiness::READ).unwrap();
    let mut ready = Vec::new();
    let mut owed = u32::from(begins);
    while received < rounds || owed > 0 {
        end.poll(Duration::ZERO, &mut done);
        for completion in done.drain(..) {
            if let Completion::Received { buffer, .. } = completion {
                end.post_recv(&[buffer]);
                received += 1;
                owed += u32::from(received < rounds || !begins);
            }
        }
        let desc = [Desc { token: 1, head: b"ball", pieces: &[], bulk: false, flow: 0 }];
        while owed > 0 && end.post_send(peer, &desc) == 1 {
            owed -= 1;
        }
        if end.arm() == Armed::Armed && (received < rounds || owed > 0) {
            epoll.wait(&mut ready, Some(Duration::from_secs(20))).unwrap();
            assert!(!ready.is_empty(), "a wake-up was missed");
        }
    }
    // The last message has to be fetched by the other end before this one leaves.
    while end.arm() == Armed::MoreToDo {
        end.poll(Duration::ZERO, &mut done);
        done.clear();
    }
    std::thread::sleep(Duration::from_millis(200));
}

#[test]
fn two_threads_that_sleep_between_messages_miss_none() {
    for mode in [Mode::Eager, Mode::OneSided] {
        let (one, two) = pair(mode);
        let other = std::thread::spawn(move || play(two, ONE, 5000, false));
        play(one, TWO, 5000, true);
        other.join().unwrap();
    }
}
