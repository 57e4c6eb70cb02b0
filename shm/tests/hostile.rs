//! A peer without manners: whatever stands in its words, whoever reads them comes back with a value or `Corrupt`.
#![cfg(not(loom))]

use abi::limits::{EXTENTS_PER_PAIR_MAX, LANE_SLOTS, SLOTS_PER_DC};
use abi::slot::{BODY_WORDS, Kind, SlotCopy, WITHDRAWABLE};
use abi::{DcId, Endpoint, Generation, Slot, doorbell, side};
use proptest::prelude::*;
use shm::doorbell::Doorbells;
use shm::lane::{LaneReader, LaneWriter, Take, flags_now, head};
use shm::returns::Returns;
use shm::side::{Mirrored, OwnSide, PeerSide};
use shm::sync::{AtomicU64, Ordering};
use shm::words::OwnWords;
use shm::{notify, reply};

const SOURCE: Endpoint = Endpoint::new(DcId(1), Slot(3), Generation(9));

fn message(kind: Kind, flags: u8, payload: u64) -> SlotCopy {
    let (source, body) = (SOURCE.to_word(), [payload; BODY_WORDS]);
    SlotCopy { head: head(kind, flags), source, sequence: 0, kind: 1, call: 0, body }
}

/// Everything that reads a peer's side, over whatever is there. It must come back, that is all.
fn read_all(peer: &PeerSide, lane: (LaneWriter, LaneReader), call: u64) {
    let (mut writer, mut reader) = lane;
    let (mine, mirror) = (OwnSide::heap(), OwnSide::heap());
    let sequence = writer.next().saturating_sub(1);
    let _ = (writer.consumed(peer), writer.has_room(peer), writer.may_have_left(peer, sequence));
    if writer.next() > 0 {
        let _ = writer.withdraw(&mine, peer, sequence);
    }
    writer.leave(peer);
    assert!(writer.consumed_seen() <= writer.next(), "a claim never leads beyond what was published");
    assert!(reader.pending(peer) <= LANE_SLOTS);
    for _ in 0..3 {
        let (next, pending) = (reader.next(), reader.is_pending(peer));
        let _ = (pending, LaneReader::peek(peer, next, SOURCE), flags_now(peer, next));
        match reader.take(&mine, peer, SOURCE) {
            Ok(Take::Message(slot) | Take::Skipped(slot)) => {
                assert_eq!((slot.sequence, slot.source), (next, SOURCE.to_word()));
                let _ = (slot.claim().map(|claim| claim.check(1 << 20)), slot.inline_into(&mut [0; 96]));
            }
            Ok(Take::Empty) | Err(_) => assert_eq!((reader.next(), mine.consumed()), (next, mine.consumed())),
        }
    }
    let _ =
        (reply::read(peer, call, SOURCE), reply::newest(peer, call, SOURCE), reply::newest(peer, 0, SOURCE));
    let (raises, counters) = notify::counters(peer);
    notify::mirror(&mirror, raises, &counters);
    let _ = (notify::take(&mine, peer), notify::take(&mine, &mirror.as_peer()));
    for mut returns in [Returns::default(), Returns::from_now(peer)] {
        for _ in 0..EXTENTS_PER_PAIR_MAX + 2 {
            if !matches!(returns.next(peer), Ok(Some(_))) {
                break;
            }
        }
    }
    mirror.mirror(&peer.mirrored());
    let _: Mirrored = mirror.as_peer().mirrored();
    let _ =
        (peer.end(), peer.attending(), peer.wants_returns(), peer.calling(), peer.taking(), peer.gave_up());
}

/// Words that matter more than others: all that is not lane, and the lane's first slots.
fn hot_word() -> impl Strategy<Value = usize> {
    prop_oneof![0..side::LANE, side::LANE..side::LANE + 48]
}

fn hot_value() -> impl Strategy<Value = u64> {
    let heads = (0u64..3, 0u64..6, any::<u8>(), 0u64..100)
        .prop_map(|(lap, kind, flags, len)| lap | kind << 32 | u64::from(flags & 0x1f) << 40 | len << 48);
    let near = prop_oneof![
        Just(0),
        Just(u64::MAX),
        Just(SOURCE.to_word()),
        0u64..600,
        (0u32..64).prop_map(|b| 1 << b)
    ];
    prop_oneof![3 => heads, 3 => near, 1 => any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, ..ProptestConfig::default() })]

    #[test]
    fn any_words_of_a_peer_are_read_without_a_panic(
        pokes in prop::collection::vec((hot_word(), hot_value()), 0..80),
        all in prop::option::of(any::<u64>()),
        sequences in (0u64..600, 0u64..600),
        call in 0u64..4,
    ) {
        let peer = OwnSide::heap();
        for slot in 0..4 {
            peer.publish_mirrored(&SlotCopy { sequence: slot, ..message(Kind::Post, WITHDRAWABLE, slot) });
        }
        if let Some(seed) = all {
            let value = |word: usize| seed.wrapping_mul(2 * word as u64 + 1).rotate_left(word as u32 % 61);
            (0..side::WORDS).for_each(|word| peer.words().store(word, value(word), Ordering::Relaxed));
        }
        pokes.iter().for_each(|&(word, value)| peer.words().store(word, value, Ordering::Relaxed));
        let lane = (LaneWriter::from_sequence(sequences.0), LaneReader::from_sequence(sequences.1));
        read_all(&peer.as_peer(), lane, call);
        read_all(&peer.as_peer(), (LaneWriter::default(), LaneReader::default()), call);
        read_all(&peer.as_peer(), (LaneWriter::from_sequence(5), LaneReader::from_sequence(1)), u64::from(u32::MAX));
    }

    #[test]
    fn any_words_of_a_doorbell_page_are_read_without_a_panic(
        pokes in prop::collection::vec((0..doorbell::WORDS, any::<u64>()), 0..80),
        bit in any::<u16>(),
    ) {
        let page = OwnWords::heap(doorbell::COUNT * doorbell::WORDS);
        let bells = Doorbells::new(page.clone());
        pokes.iter().for_each(|&(word, value)| page.store(word, value, Ordering::Relaxed));
        let _ = (bells.ring(0, bit), bells.ring_for_pull(0), bells.rouse(0), bells.pulls(0), bells.has_hints(0));
        bells.drain(0, |bit| assert!(bit < SLOTS_PER_DC));
    }
}

#[test]
fn words_that_change_while_they_are_read_do_no_harm() {
    let peer = OwnSide::heap();
    for slot in 0..4 {
        peer.publish_mirrored(&SlotCopy { sequence: slot, ..message(Kind::Post, WITHDRAWABLE, slot) });
    }
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = 1u64;
            // Relaxed: it ends some time.
            while done.load(Ordering::Relaxed) == 0 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let word = (random >> 33) as usize % (side::LANE + 64);
                let old = peer.words().load(word, Ordering::Relaxed);
                let new = if random & 7 == 0 { random } else { old ^ 1 << (random >> 58) };
                peer.words().store(word, new, Ordering::Relaxed);
            }
        });
        for round in 0..3_000 {
            let lane = (LaneWriter::from_sequence(round % 300), LaneReader::from_sequence(round % 4));
            read_all(&peer.as_peer(), lane, round % 4);
        }
        done.store(1, Ordering::Relaxed);
    });
}
