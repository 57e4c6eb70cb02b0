//! Replies: a two-entry ring per pair, apart from the lane, so that a reply never stands behind posted messages.
//!
//! The entry of call `c` is `c % 2`; its sequence is the call's number. A client takes only its current call, so an entry
//! of an older one may be overwritten: a reply never waits for room, and a late one never answers the next call.

use abi::limits::REPLY_SLOTS;
use abi::slot::{BODY_WORDS, Head, Heading, Kind, SlotCopy, WORDS, call_low, lap_of_reply};
use abi::{Corrupt, Endpoint, side};

use crate::side::{OwnSide, PeerSide};
use crate::sync::Ordering;

/// Where the number of its call stands in an entry.
const CALL: usize = 2;

const fn entry(call: u64) -> usize {
    side::REPLIES + (call % REPLY_SLOTS) as usize * WORDS
}

/// Publishes the reply to `call`, whose number is set here.
///
/// `carried`: the pair leads to a courier. Unlike a lane's slot, the entry may be under its eyes then: it may read an
/// older reply, which its client gave up, while this one replaces it. So the head is taken away first, and who reads
/// looks at it again. A client reads the entry of its current call alone, whose reply is written once: for it the line
/// need not change hands twice.
#[inline]
pub fn publish(own: &OwnSide, call: u64, message: &SlotCopy, carried: bool) {
    publish_body(own, call, message.heading(), carried, |at| message.body[at]);
}

/// As [`publish`], the words of the body from where they are.
#[inline(always)]
pub fn publish_body(own: &OwnSide, call: u64, heading: Heading, carried: bool, body: impl Fn(usize) -> u64) {
    let (words, at) = (own.words(), entry(call));
    let head = Head { lap: lap_of_reply(call), ..heading.head };
    let rest = [heading.source, call, Heading { call: call_low(call), ..heading }.type_word()];
    if carried {
        // Relaxed: ordered before the new body by its release stores.
        words.store(at, 0, Ordering::Relaxed);
    }
    // Pairs with: `read` body loads. Who sees a word of this body sees that the older head is gone.
    words.store_each::<{ WORDS - 1 }>(at + 1, Ordering::Release, |n| match rest.get(n) {
        Some(word) => *word,
        None => body(n - rest.len()),
    });
    // Pairs with: `read` first head load. The body is whole when the lap is right.
    words.store(at, head.to_word(), Ordering::Release);
}

/// The head of the reply to `call`, if it may be there. Cost: one load.
#[inline(always)]
pub fn front(peer: &PeerSide, call: u64) -> Option<u64> {
    // Relaxed: a hint; `read` loads again with acquire.
    let head = peer.words().load(entry(call), Ordering::Relaxed);
    (head as u32 == lap_of_reply(call)).then_some(head)
}

/// Whether the reply to `call` is published in our own ring.
pub fn is_published(own: &OwnSide, call: u64) -> bool {
    // Relaxed: our own word.
    let word = |at| own.words().load(entry(call) + at, Ordering::Relaxed);
    word(0) as u32 == lap_of_reply(call) && word(CALL) == call
}

/// The reply to `call`, if it is there. Nothing is marked: taking it is the client's affair.
///
/// Inlined, as a lane's slot is read.
#[inline(always)]
pub fn read(peer: &PeerSide, call: u64, source: Endpoint) -> Result<Option<SlotCopy>, Corrupt> {
    let (words, at) = (peer.words(), entry(call));
    // Pairs with: `publish_body` last head store.
    let first = words.load(at, Ordering::Acquire);
    if first as u32 != lap_of_reply(call) {
        return Ok(None);
    }
    // Pairs with: `publish_body` body stores. They also keep the second look at the head behind them.
    let [from, number, types] = words.load_all(at + 1, Ordering::Acquire);
    // Pairs with: as above.
    let body = words.load_all::<BODY_WORDS>(at + WORDS - BODY_WORDS, Ordering::Acquire);
    // Relaxed: ordered by the acquire loads of the body.
    if words.load(at, Ordering::Relaxed) != first {
        return Ok(None);
    }
    let heading = Heading::of_words(Head::from_word(first)?, from, types);
    if heading.head.kind != Kind::Reply || number != call || heading.call != call_low(call) {
        return Err(Corrupt::new("reply to another call", number));
    }
    if from != source.to_word() {
        return Err(Corrupt::new("reply of another source", from));
    }
    Ok(Some(SlotCopy::of(heading, call, body)))
}

/// The newest reply in the peer's ring to a call above `after`: a courier's look.
pub fn newest(peer: &PeerSide, after: u64, source: Endpoint) -> Result<Option<SlotCopy>, Corrupt> {
    let mut newest = None;
    let mut above = after;
    for index in 0..REPLY_SLOTS as usize {
        // Relaxed: a hint; `read` loads again with acquire.
        let call = peer.words().load(side::REPLIES + index * WORDS + CALL, Ordering::Relaxed);
        if call > above && call % REPLY_SLOTS == index as u64 {
            // One that is being replaced is found at the next look, for which its writer rings.
            newest = read(peer, call, source)?.or(newest);
            above = newest.map_or(above, |reply: SlotCopy| reply.sequence);
        }
    }
    Ok(newest)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::lane;
    use abi::slot::BODY_WORDS;
    use abi::{DcId, Generation, Slot};

    const SOURCE: Endpoint = Endpoint::new(DcId(1), Slot(3), Generation(9));

    fn answer(own: &OwnSide, call: u64) {
        let (head, source) = (lane::head(Kind::Reply, 0), SOURCE.to_word());
        let reply = SlotCopy { head, source, sequence: 0, kind: 1, call: 0, body: [call; BODY_WORDS] };
        publish(own, call, &reply, true);
    }

    fn read_call(own: &OwnSide, call: u64) -> Result<Option<u64>, Corrupt> {
        read(&own.as_peer(), call, SOURCE).map(|slot| slot.map(|slot| slot.sequence))
    }

    #[test]
    fn a_late_reply_does_not_answer_the_next_call() {
        let own = OwnSide::heap();
        answer(&own, 6);
        assert_eq!(read_call(&own, 7), Ok(None));
        assert_eq!(read_call(&own, 8), Ok(None), "the same entry");
        answer(&own, 7);
        assert_eq!((read_call(&own, 6), read_call(&own, 7)), (Ok(Some(6)), Ok(Some(7))));
        answer(&own, 8);
        assert_eq!((read_call(&own, 6), read_call(&own, 8)), (Ok(None), Ok(Some(8))));
    }

    #[test]
    fn a_reply_of_another_kind_call_or_source_is_corrupt() {
        let own = OwnSide::heap();
        for (word, value) in [(0, 7 | 1 << 32), (1, 5), (2, 6 + (1 << 32)), (3, 1 | 8 << 32)] {
            answer(&own, 6);
            own.words().store(entry(6) + word, value, Ordering::Relaxed);
            assert!(read_call(&own, 6).is_err(), "word {word}");
        }
    }

    #[test]
    fn a_courier_finds_the_newest_reply_it_has_not_carried() {
        let own = OwnSide::heap();
        let newest = |after| newest(&own.as_peer(), after, SOURCE).map(|slot| slot.map(|slot| slot.sequence));
        assert_eq!(newest(0), Ok(None));
        answer(&own, 4);
        answer(&own, 5);
        assert_eq!((newest(3), newest(4), newest(5)), (Ok(Some(5)), Ok(Some(5)), Ok(None)));
        answer(&own, 6);
        assert_eq!(newest(5), Ok(Some(6)));
        let late = (1 << 32) + 1;
        answer(&own, late);
        assert_eq!((newest(6), newest(late)), (Ok(Some(late)), Ok(None)), "numbers do not wrap");
    }
}
