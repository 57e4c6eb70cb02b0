//! Handshakes between two ends in memory, and the bytes of one that must never change within a wire version.

use super::*;

fn own(node: u16, key: u8) -> Own {
    Own { node: NodeId(node), incarnation: Incarnation(100 + node as u32), key: [key; 32], offers: 0 }
}

/// Runs a handshake that node 1 opens with `expected`, against node 2; what each end came to.
fn run(opener: &Own, acceptor: &Own, expected: u16, opener_floor: u32, acceptor_floor: u32) -> (Step, Step) {
    let (mut to_acceptor, mut to_opener) = (Vec::new(), Vec::new());
    let mut open = Handshake::open(opener, NodeId(expected), [1; 32], &mut to_acceptor);
    let mut accept = Handshake::accept([2; 32]);
    let (mut opened, mut accepted) = (Step::More, Step::More);
    for _ in 0..4 {
        let floor = |node: NodeId| (node == NodeId(1)).then_some(Incarnation(acceptor_floor));
        accepted = drain(&mut accept, acceptor, &floor, &mut to_acceptor, &mut to_opener, accepted);
        let floor = |node: NodeId| (node == NodeId(expected)).then_some(Incarnation(opener_floor));
        opened = drain(&mut open, opener, &floor, &mut to_opener, &mut to_acceptor, opened);
    }
    (opened, accepted)
}

fn drain(
    end: &mut Handshake,
    own: &Own,
    floor: Floor<'_>,
    bytes: &mut Vec<u8>,
    out: &mut Vec<u8>,
    before: Step,
) -> Step {
    if before != Step::More {
        return before;
    }
    let (len, step) = end.feed(own, floor, bytes, out);
    bytes.drain(..len);
    step
}

/// What the first end that refuses says of it.
fn refusal(opener: &Own, acceptor: &Own, expected: u16) -> Option<Refused> {
    let floor = |_| Some(Incarnation(0));
    let (mut hello, mut answer, mut proof) = (Vec::new(), Vec::new(), Vec::new());
    let mut open = Handshake::open(opener, NodeId(expected), [1; 32], &mut hello);
    Handshake::accept([2; 32]).feed(acceptor, &floor, &hello, &mut answer);
    open.feed(opener, &floor, &answer, &mut proof);
    [answer, proof].iter().find_map(|frame| {
        let header = Header::check(frame.first_chunk()?).ok()?;
        (header.kind == Kind::Refused).then(|| Refused::from_word(header.arg))?
    })
}

#[test]
fn a_refusal_says_why_on_the_wire() {
    assert_eq!(refusal(&own(1, 7), &own(2, 8), 2), Some(Refused::Key));
    assert_eq!(refusal(&own(1, 7), &own(2, 7), 3), Some(Refused::Node));
    assert_eq!(refusal(&own(1, 7), &own(2, 7), 2), None);
}

fn failed(peer: u16, state: LinkState) -> Step {
    Step::Failed { peer: Some(NodeId(peer)), state: Some(state) }
}

#[test]
fn two_that_know_the_key_know_one_another() {
    let (opened, accepted) = run(&own(1, 7), &own(2, 7), 2, 0, 0);
    assert_eq!(opened, Step::Done { peer: NodeId(2), incarnation: Incarnation(102), offers: 0 });
    assert_eq!(accepted, Step::Done { peer: NodeId(1), incarnation: Incarnation(101), offers: 0 });
}

#[test]
fn what_both_offer_is_agreed_on_and_nothing_else() {
    for (one, two, both) in [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0b101, 0b110, 0b100)] {
        let (opened, accepted) =
            run(&Own { offers: one, ..own(1, 7) }, &Own { offers: two, ..own(2, 7) }, 2, 0, 0);
        assert_eq!(opened, Step::Done { peer: NodeId(2), incarnation: Incarnation(102), offers: both });
        assert_eq!(accepted, Step::Done { peer: NodeId(1), incarnation: Incarnation(101), offers: both });
    }
}

#[test]
fn an_offer_that_was_changed_on_its_way_is_noticed() {
    let (one, two) = (Own { offers: 1, ..own(1, 7) }, Own { offers: 1, ..own(2, 7) });
    let floor = |_| Some(Incarnation(0));
    for (hello_arg, welcome_arg) in [(0, 1), (1, 0), (3, 1), (0, 0)] {
        let changed = |frame: &mut Vec<u8>, arg: u64| {
            frame[16..24].copy_from_slice(&arg.to_le_bytes());
            let sum = abi::wire::crc32c(&frame[..28]);
            frame[28..32].copy_from_slice(&sum.to_le_bytes());
        };
        let (mut hello, mut welcome) = (Vec::new(), Vec::new());
        let mut open = Handshake::open(&one, NodeId(2), [1; 32], &mut hello);
        changed(&mut hello, hello_arg);
        Handshake::accept([2; 32]).feed(&two, &floor, &hello, &mut welcome);
        changed(&mut welcome, welcome_arg);
        let (_, step) = open.feed(&one, &floor, &welcome, &mut Vec::new());
        assert_eq!(step, failed(2, LinkState::WrongKey));
    }
}

#[test]
fn different_keys_are_told_at_both_ends() {
    let steps = run(&own(1, 7), &own(2, 8), 2, 0, 0);
    assert_eq!(steps, (failed(2, LinkState::WrongKey), failed(1, LinkState::WrongKey)));
    let steps = run(&Own { key: NO_KEY, ..own(1, 0) }, &own(2, 8), 2, 0, 0);
    assert_eq!(steps, (failed(2, LinkState::WrongKey), failed(1, LinkState::WrongKey)));
}

#[test]
fn another_node_than_expected_is_told_at_both_ends() {
    let steps = run(&own(1, 7), &own(2, 7), 3, 0, 0);
    assert_eq!(steps, (failed(3, LinkState::WrongNode), failed(1, LinkState::WrongNode)));
    let stranger = run(&own(5, 7), &own(2, 7), 2, 0, 0);
    assert_eq!(stranger, (failed(2, LinkState::WrongNode), failed(5, LinkState::WrongNode)));
    let twin = run(&own(2, 7), &own(2, 7), 2, 0, 0);
    assert_eq!(twin, (failed(2, LinkState::WrongNode), failed(2, LinkState::WrongNode)));
}

#[test]
fn the_last_incarnation_that_is_fenced_is_refused_and_the_next_is_not() {
    let (opened, accepted) = run(&own(1, 7), &own(2, 7), 2, 0, 102);
    assert_eq!(opened, failed(2, LinkState::Fenced));
    assert_eq!(accepted, Step::Failed { peer: Some(NodeId(1)), state: None }, "whom it concerns is told");
    assert!(matches!(run(&own(1, 7), &own(2, 7), 2, 0, 101).1, Step::Done { .. }));
    let (opened, accepted) = run(&own(1, 7), &own(2, 7), 2, 103, 0);
    assert_eq!(accepted, failed(1, LinkState::Fenced));
    assert_eq!(opened, Step::Failed { peer: Some(NodeId(2)), state: None });
    assert!(matches!(run(&own(1, 7), &own(2, 7), 2, 102, 0).0, Step::Done { .. }));
}

#[test]
fn who_has_proven_nothing_is_not_believed_that_we_are_dead() {
    let (mut hello, mut out) = (Vec::new(), Vec::new());
    let mut open = Handshake::open(&own(1, 7), NodeId(2), [1; 32], &mut hello);
    let mut refused = Vec::new();
    say(&own(2, 9), Kind::Refused, Refused::Fenced as u64, &[], &mut refused);
    let (_, step) = open.feed(&own(1, 7), &|_| Some(Incarnation(0)), &refused, &mut out);
    assert_eq!(step, Step::Failed { peer: Some(NodeId(2)), state: None });
}

#[test]
fn another_wire_version_is_told_at_both_ends() {
    let mut hello = Vec::new();
    let mut open = Handshake::open(&own(1, 7), NodeId(2), [1; 32], &mut hello);
    other_version(&mut hello);
    let mut answer = Vec::new();
    let floor = |_| Some(Incarnation(0));
    let (_, step) = Handshake::accept([2; 32]).feed(&own(2, 7), &floor, &hello, &mut answer);
    assert_eq!(step, failed(1, LinkState::WrongVersion));
    // The opener may read our refusal or, being of another version, one of its own.
    let mut theirs = answer.clone();
    other_version(&mut theirs);
    assert_eq!(open.feed(&own(1, 7), &floor, &theirs, &mut Vec::new()).1, failed(2, LinkState::WrongVersion));
    assert_eq!(open.feed(&own(1, 7), &floor, &answer, &mut Vec::new()).1, failed(2, LinkState::WrongVersion));
}

/// Bytes of the next version, with a right checksum.
fn other_version(frame: &mut [u8]) {
    frame[2] = VERSION + 1;
    let sum = abi::wire::crc32c(&frame[..28]);
    frame[28..32].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn no_bit_of_a_handshake_may_flip() {
    let (one, two) = (own(1, 7), own(2, 7));
    let floor = |_| Some(Incarnation(0));
    let mut hello = Vec::new();
    Handshake::open(&one, NodeId(2), [1; 32], &mut hello);
    let mut welcome = Vec::new();
    Handshake::accept([2; 32]).feed(&two, &floor, &hello, &mut welcome);
    for bit in 0..welcome.len() * 8 {
        let mut flipped = welcome.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let mut open = Handshake::open(&one, NodeId(2), [1; 32], &mut Vec::new());
        let (_, step) = open.feed(&one, &floor, &flipped, &mut Vec::new());
        // A longer length waits for more, which will not help.
        assert!(!matches!(step, Step::Done { .. }) && open.stage == Awaits::Welcome, "bit {bit}");
    }
}

#[test]
fn any_bytes_are_no_panic_and_no_session() {
    let mut dice = 7u64;
    for round in 0..2000 {
        let mut bytes = [0u8; 200];
        bytes.iter_mut().for_each(|byte| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (dice >> 56) as u8;
        });
        if round % 2 == 0 {
            let kind =
                [Kind::Hello, Kind::Welcome, Kind::Proof, Kind::Ready, Kind::Refused, Kind::Bulk][round % 6];
            let header = Header { kind, len_bytes: (round % 90) as u32, token: 1, arg: (round % 7) as u64 };
            bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        }
        let floor = |_| Some(Incarnation(0));
        let mut accept = Handshake::accept([2; 32]);
        for _ in 0..3 {
            let (_, step) = accept.feed(&own(2, 7), &floor, &bytes, &mut Vec::new());
            assert!(!matches!(step, Step::Done { .. }));
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_bytes_of_a_handshake_are_these() {
    let (one, two) = (own(1, 7), own(2, 7));
    let floor = |_| Some(Incarnation(0));
    let (mut hello, mut welcome, mut proof, mut ready) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut open = Handshake::open(&one, NodeId(2), [0xaa; 32], &mut hello);
    let mut accept = Handshake::accept([0xbb; 32]);
    accept.feed(&two, &floor, &hello, &mut welcome);
    open.feed(&one, &floor, &welcome, &mut proof);
    accept.feed(&two, &floor, &proof, &mut ready);
    let golden = include_str!("../../tests/golden/handshake.hex");
    let got: String = [&hello, &welcome, &proof, &ready].map(|frame| hex(frame) + "\n").concat();
    assert_eq!(got, golden, "other bytes want another wire version");
}
