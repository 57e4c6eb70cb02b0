//! Two ends that prove themselves to each other, with whatever in between.

use abi::{Incarnation, NodeId};
use arbitrary::{Arbitrary, Unstructured};
use proxy_tcp::fuzzing::{Handshake, Own, Step};

/// What becomes of the bytes of one message on its way.
#[derive(Arbitrary, Debug)]
enum Way {
    Whole,
    Flipped(Vec<(u8, u8)>),
    Cut(u8),
    Other(Vec<u8>),
    /// What the other end has said before, again.
    Again,
}

#[derive(Arbitrary, Debug)]
struct Input {
    same_key: bool,
    offers: (u64, u64),
    incarnations: (u32, u32),
    /// Below which the acceptor talks to nobody.
    floor: u32,
    expects: u8,
    ways: Vec<Way>,
}

const STEPS_MAX: usize = 12;
const OPENER: NodeId = NodeId(1);
const ACCEPTOR: NodeId = NodeId(2);

pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let end = |node, incarnation, byte, offers| Own {
        node,
        incarnation: Incarnation(incarnation),
        key: [byte; 32],
        offers,
    };
    let one = end(OPENER, input.incarnations.0, 7, input.offers.0);
    let two = end(ACCEPTOR, input.incarnations.1, if input.same_key { 7 } else { 8 }, input.offers.1);
    let floor = |node: NodeId| (node != NodeId(9)).then_some(Incarnation(input.floor));
    let (mut to_two, mut to_one) = (Vec::new(), Vec::new());
    let peer = NodeId(u16::from(input.expects % 4));
    let mut opener = Handshake::open(&one, peer, [1; 32], &mut to_two);
    let mut acceptor = Handshake::accept([2; 32]);
    let (mut over, mut before) = ([false; 2], [Vec::new(), Vec::new()]);
    let mut ways = input.ways.iter();
    for step in 0..STEPS_MAX {
        let at = step % 2;
        let sent = std::mem::take(if at == 0 { &mut to_two } else { &mut to_one });
        let came = match ways.next() {
            None | Some(Way::Whole) => sent.clone(),
            Some(Way::Flipped(flips)) => {
                let mut bytes = sent.clone();
                for (at, bit) in flips {
                    if let Some(byte) = bytes.get_mut(*at as usize) {
                        *byte ^= 1 << (bit % 8);
                    }
                }
                bytes
            }
            Some(Way::Cut(len)) => sent[..sent.len().min(*len as usize)].to_vec(),
            Some(Way::Other(bytes)) => bytes.clone(),
            Some(Way::Again) => std::mem::take(&mut before[at]),
        };
        before[at] = sent;
        let ends = [(&two, &mut acceptor, &mut to_one), (&one, &mut opener, &mut to_two)];
        let Some((own, handshake, out)) = ends.into_iter().nth(at) else { return };
        if over[at] {
            continue;
        }
        let mut rest = &came[..];
        loop {
            let (took, step) = handshake.feed(own, &floor, rest, out);
            assert!(took <= rest.len(), "no more than there is");
            match step {
                Step::More if took > 0 => rest = &rest[took..],
                Step::More => break,
                Step::Done { peer, incarnation, offers } => {
                    let other = if at == 0 { &one } else { &two };
                    assert!(input.same_key, "who does not know the key has proven nothing");
                    assert_eq!(
                        (peer, incarnation),
                        (other.node, other.incarnation),
                        "it is who it says it is"
                    );
                    assert_eq!(
                        offers,
                        one.offers & two.offers,
                        "nobody between took an offer out, or put one in"
                    );
                    over[at] = true;
                    break;
                }
                Step::Failed { .. } => {
                    over[at] = true;
                    break;
                }
            }
        }
    }
}
