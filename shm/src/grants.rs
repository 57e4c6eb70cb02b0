//! The table of grants, and how a copy and a revocation meet.
//!
//! A copier says in its own memory which grant it writes through (its marker), fences, and looks the grant up; whoever
//! revokes changes the entry, fences, and looks for the marker. So either the copier sees the change, or the revoker
//! sees the marker and waits, for a while, until it is gone. Who holds the pages longer than that writes into pages that
//! are no longer the owner's: it moves away from them. Checked with loom: `shm/tests/loom.rs`.

use abi::Endpoint;
use abi::grant::{self, Access, CopyRequest, GENERATION_MAX, REQUEST_WORDS, Status};
use abi::limits::GRANTS_MAX;
use abi::side::{COPY, COPY_ANSWER, COPYING};

use crate::lane::look_again;
use crate::mutant;
use crate::side::{OwnSide, PeerSide};
use crate::sync::{Ordering, fence};
use crate::words::{OwnWords, Words};

/// The range of a segment that a live grant is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub segment: u32,
    pub access: Access,
    pub offset_bytes: u64,
    pub len_bytes: u64,
}

impl Place {
    /// The offset in the segment of `len` bytes from `offset` of the grant on, if the grant has them.
    pub fn at(&self, offset: u64, len: u64) -> Option<u64> {
        let end = offset.checked_add(len).filter(|end| *end <= self.len_bytes)?;
        self.offset_bytes.checked_add(end)?;
        Some(if mutant!(CopyIgnoresTheOffset) { 0 } else { self.offset_bytes + offset })
    }
}

fn entry(index: u16) -> usize {
    index as usize * grant::ENTRY_WORDS
}

/// The table of the endpoint that grants.
pub struct OwnGrants {
    words: OwnWords,
}

impl OwnGrants {
    pub fn new(words: OwnWords) -> OwnGrants {
        OwnGrants { words }
    }

    /// Grants a range; returns the grant's generation. `None`: the entry has had all its generations.
    pub fn put(&self, index: u16, grantee: Endpoint, place: Place) -> Option<u32> {
        let at = entry(index);
        // Relaxed: our own word.
        let generation = (self.words.load(at + grant::STATE, Ordering::Relaxed) >> 1) as u32 + 1;
        if index >= GRANTS_MAX || generation > GENERATION_MAX {
            return None;
        }
        // Relaxed: released by the state below.
        self.words.store(at + grant::GRANTEE, grantee.to_word(), Ordering::Relaxed);
        // Relaxed: as above.
        self.words.store(at + grant::OFFSET, place.offset_bytes, Ordering::Relaxed);
        // Relaxed: as above.
        self.words.store(at + grant::LEN, place.len_bytes, Ordering::Relaxed);
        self.set_segment(index, place.segment, place.access);
        // Pairs with: `PeerGrants::find` STATE loads.
        self.words.store(at + grant::STATE, grant::live(generation), Ordering::Release);
        Some(generation)
    }

    /// The pages behind a live grant are another segment's now.
    pub fn set_segment(&self, index: u16, segment: u32, access: Access) {
        let word = segment as u64 | (access as u64) << 32;
        // Pairs with: `PeerGrants::find` SEGMENT load. What the segment holds was copied before.
        self.words.store(entry(index) + grant::SEGMENT, word, Ordering::Release);
    }

    /// Ends a grant. The marker of its grantee is to be looked at after this.
    pub fn end(&self, index: u16, generation: u32) {
        let at = entry(index) + grant::STATE;
        // Relaxed: our own word.
        if self.words.load(at, Ordering::Relaxed) == grant::live(generation) {
            // Relaxed: the fence below orders it before the look at the marker.
            self.words.store(at, grant::live(generation) - 1, Ordering::Relaxed);
        }
        look_again();
    }
}

/// The table of a peer. All that it says is a claim.
#[derive(Clone)]
pub struct PeerGrants {
    words: Words,
}

impl PeerGrants {
    /// Over `grant::TABLE_BYTES` of the peer's memory.
    pub fn new(words: Words) -> PeerGrants {
        PeerGrants { words }
    }

    /// Where the grant is, if it lives and is `grantee`'s. Cost: a cache line.
    pub fn find(&self, index: u16, generation: u32, grantee: Endpoint) -> Option<Place> {
        if index >= GRANTS_MAX {
            return None;
        }
        let at = entry(index);
        // Pairs with: `OwnGrants::put` STATE store.
        let state = self.words.load(at + grant::STATE, Ordering::Acquire);
        if state != grant::live(generation) && !mutant!(CopyIgnoresTheEnd) {
            return None;
        }
        // Relaxed: ordered by the acquire load of the state, and by the fence below.
        let load = |word| self.words.load(at + word, Ordering::Relaxed);
        let (whose, offset_bytes, len_bytes) = (load(grant::GRANTEE), load(grant::OFFSET), load(grant::LEN));
        // Pairs with: `OwnGrants::set_segment` SEGMENT store.
        let segment = self.words.load(at + grant::SEGMENT, Ordering::Acquire);
        // Pairs with: the release store of a later grant's state: what was read above is of this one if it still lives.
        fence(Ordering::Acquire);
        let is_its = whose == grantee.to_word() || mutant!(CopyIgnoresTheGrantee);
        // Relaxed: the fence above orders it behind the others.
        if self.words.load(at + grant::STATE, Ordering::Relaxed) != state || !is_its {
            return None;
        }
        let access = Access::from_word(segment >> 32)?;
        Some(Place { segment: segment as u32, access, offset_bytes, len_bytes })
    }
}

impl OwnSide {
    /// Says which grant of the peer is about to be written through; it must be looked up after this.
    pub fn begin_step(&self, marker: u64) {
        // Relaxed: the fence of `look_again` orders it before the look at the grant.
        self.words().store(COPYING, marker, Ordering::Relaxed);
        look_again();
    }

    /// The step is over: nothing of it is written any more.
    pub fn end_step(&self) {
        // Pairs with: `PeerSide::copying` COPYING load. What was written through the grant was written before.
        self.words().store(COPYING, 0, Ordering::Release);
    }

    /// Publishes a request to couriers under a new number. One at a time: the one before has ended.
    pub fn ask_copy(&self, request: &CopyRequest) -> u64 {
        let words = self.words();
        // Relaxed: our own word.
        let number = (words.load(COPY, Ordering::Relaxed) & !1) + 2;
        self.write_request(number, &request.to_words());
        number
    }

    /// Changes the request of this number: the receiving end was ready.
    pub fn ask_copy_again(&self, number: u64, request: &CopyRequest) {
        self.write_request(number, &request.to_words());
    }

    /// There is no request any more.
    pub fn end_copy(&self) {
        // Relaxed: our own word.
        let number = self.words().load(COPY, Ordering::Relaxed) & !1;
        self.write_request(number, &[0; REQUEST_WORDS]);
        look_again();
    }

    fn write_request(&self, number: u64, request: &[u64; REQUEST_WORDS]) {
        let words = self.words();
        // Relaxed: the fence orders it before the words.
        words.store(COPY, number - 1, Ordering::Relaxed);
        // Pairs with: the acquire fence of `PeerSide::copy_request`: who reads a word of these sees the odd number.
        fence(Ordering::Release);
        // Relaxed: released by the number.
        words.store_each::<REQUEST_WORDS>(COPY + 1, Ordering::Relaxed, |at| request[at]);
        // Pairs with: `PeerSide::copy_request` COPY load.
        words.store(COPY, number, Ordering::Release);
    }

    /// As a courier: answers the copy of this number.
    pub fn answer_copy(&self, number: u64, status: Status) {
        // Pairs with: `PeerSide::copy_answer` COPY_ANSWER load. The bytes were written before.
        self.words().store(COPY_ANSWER, number << 4 | status as u64, Ordering::Release);
    }
}

impl PeerSide {
    /// Which grant of ours the peer is writing through.
    pub fn copying(&self) -> u64 {
        // Pairs with: `OwnSide::end_step` COPYING store.
        self.words().load(COPYING, Ordering::Acquire)
    }

    /// The number of the copy that the peer asks for. Cost: one load.
    #[inline]
    pub fn copy_number(&self) -> u64 {
        // Pairs with: `OwnSide::ask_copy` COPY store.
        self.words().load(COPY, Ordering::Acquire)
    }

    /// The copy that the peer asks for. `None`: none, or it is just being written.
    pub fn copy_request(&self) -> Option<(u64, CopyRequest)> {
        let number = self.copy_number();
        if number == 0 || number & 1 != 0 {
            return None;
        }
        // Relaxed: ordered by the acquire load of the number, and by the fence below.
        let words = self.words().load_all::<REQUEST_WORDS>(COPY + 1, Ordering::Relaxed);
        // Pairs with: the release fence of `ask_copy`: who has read a word of a later request sees its odd number.
        fence(Ordering::Acquire);
        // Relaxed: the fence above orders it behind the words.
        let same = self.words().load(COPY, Ordering::Relaxed) == number;
        Some((number, CopyRequest::from_words(&words).filter(|_| same)?))
    }

    /// How the copy of this number is doing, as far as its couriers have said.
    #[inline]
    pub fn copy_answer(&self, number: u64) -> Option<Status> {
        // Pairs with: `OwnSide::answer_copy` COPY_ANSWER store.
        let answer = self.words().load(COPY_ANSWER, Ordering::Acquire);
        if answer >> 4 == number { Status::from_word(answer & 15) } else { None }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use abi::grant::{Range, Role};
    use abi::{DcId, Generation, NodeId, Slot};

    fn someone(slot: u16) -> Endpoint {
        Endpoint::new(DcId(1), Slot(slot), Generation(1))
    }

    fn table() -> (OwnGrants, PeerGrants) {
        let words = OwnWords::heap(grant::TABLE_BYTES / 8);
        let peer = PeerGrants::new(words.as_peer());
        (OwnGrants::new(words), peer)
    }

    const PLACE: Place = Place { segment: 4, access: Access::Read, offset_bytes: 4096, len_bytes: 100 };

    #[test]
    fn a_grant_is_found_by_its_grantee_until_it_ends_and_by_nobody_else() {
        let (own, peer) = table();
        let generation = own.put(3, someone(1), PLACE).unwrap();
        assert_eq!(peer.find(3, generation, someone(1)), Some(PLACE));
        assert_eq!(peer.find(3, generation, someone(2)), None, "another endpoint");
        assert_eq!(peer.find(4, generation, someone(1)), None, "another entry");
        assert_eq!(peer.find(GRANTS_MAX, generation, someone(1)), None, "beyond the table");
        own.end(3, generation);
        assert_eq!(peer.find(3, generation, someone(1)), None);
        let next = own.put(3, someone(1), PLACE).unwrap();
        assert_ne!(next, generation);
        assert_eq!(peer.find(3, generation, someone(1)), None, "an old generation");
        own.end(3, generation);
        assert!(peer.find(3, next, someone(1)).is_some(), "the end of an old one ends no new one");
    }

    #[test]
    fn a_range_ends_where_its_grant_does() {
        assert_eq!(PLACE.at(0, 100), Some(4096));
        assert_eq!(PLACE.at(100, 0), Some(4196));
        assert_eq!(PLACE.at(1, 100), None);
        assert_eq!(PLACE.at(u64::MAX, 1), None);
        let high = Place { offset_bytes: u64::MAX - 50, ..PLACE };
        assert_eq!(high.at(0, 100), None, "a claim that wraps");
    }

    #[test]
    fn a_request_is_read_whole_and_answered_by_its_number() {
        let (own, courier) = (OwnSide::heap(), OwnSide::heap());
        assert_eq!(own.as_peer().copy_request(), None);
        let request = CopyRequest {
            role: Role::Receive,
            node: NodeId(2),
            begun: false,
            len_bytes: 5,
            theirs: Range::own(1, 2),
            range: Range::own(3, 4),
            other: 5,
            beside: 6,
        };
        let number = own.ask_copy(&request);
        assert_eq!(own.as_peer().copy_request(), Some((number, request)));
        assert_eq!(courier.as_peer().copy_answer(number), None);
        courier.answer_copy(number, Status::Done);
        assert_eq!(courier.as_peer().copy_answer(number), Some(Status::Done));
        own.end_copy();
        assert_eq!(own.as_peer().copy_request(), None);
        assert!(own.ask_copy(&request) > number);
    }
}
