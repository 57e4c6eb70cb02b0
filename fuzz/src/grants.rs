//! Descriptors of extents, grants, and what stands in a table of grants that its owner may change at any time.

use std::collections::BTreeMap;

use abi::grant::{CopyRequest, ENTRY_WORDS, Grant, REQUEST_WORDS, Status, TABLE_BYTES};
use abi::limits::{GRANTS_MAX, LOAN_BYTES_MAX};
use abi::slot::{SlotCopy, WORDS};
use abi::{Claim, DcId, Endpoint, Generation, Slot};
use arbitrary::{Arbitrary, Unstructured};
use shm::grants::PeerGrants;
use shm::sync::Ordering;
use shm::words::OwnWords;

#[derive(Arbitrary, Debug)]
struct Input {
    claim: [u64; 3],
    segment_bytes: u64,
    slot: [u64; WORDS],
    request: [u64; REQUEST_WORDS],
    grant: [u8; Grant::BYTES],
    status: u64,
    /// Words of the table, by place.
    table: Vec<(u16, u64)>,
    index: u16,
    generation: u32,
    grantee: bool,
    at: u64,
    len: u64,
}

pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let claim = Claim::from_words(input.claim);
    assert_eq!(claim.to_words(), input.claim);
    if let Ok(range) = claim.check(input.segment_bytes) {
        assert!(range.start <= range.end && range.end as u64 <= input.segment_bytes, "{claim:?} {range:?}");
        assert!((range.end - range.start) as u64 <= LOAN_BYTES_MAX as u64);
    }
    if let Ok(slot) = SlotCopy::from_words(&input.slot) {
        let mut inline = [0; abi::limits::INLINE_BYTES_MAX];
        let len = slot.inline_into(&mut inline);
        assert!(len <= inline.len(), "no more than the body");
        assert_eq!(SlotCopy::from_words(&slot.to_words()), Ok(slot));
    }
    if let Some(grant) = Grant::from_bytes(&input.grant) {
        assert_eq!(Grant::from_bytes(&grant.to_bytes()), Some(grant));
        assert!(grant.index < GRANTS_MAX);
    }
    if let Some(request) = CopyRequest::from_words(&input.request) {
        assert_eq!(CopyRequest::from_words(&request.to_words()), Some(request));
        assert!(request.len_bytes <= abi::limits::COPY_BYTES_MAX);
    }
    let _ = Status::from_word(input.status);
    table(&input);
}

fn table(input: &Input) {
    let words = OwnWords::heap(TABLE_BYTES / 8);
    let mut placed = BTreeMap::new();
    for (at, word) in &input.table {
        // In the entry that is asked for, mostly.
        let entry = (input.index % GRANTS_MAX) as usize * ENTRY_WORDS;
        let at = if at & 0x100 == 0 {
            entry + *at as usize % ENTRY_WORDS
        } else {
            *at as usize % (TABLE_BYTES / 8)
        };
        words.store(at, *word, Ordering::Relaxed);
        placed.insert(at, *word);
    }
    let me = Endpoint::new(DcId(1), Slot(3), Generation(9));
    if input.grantee {
        let at = (input.index % GRANTS_MAX) as usize * ENTRY_WORDS + abi::grant::GRANTEE;
        words.store(at, me.to_word(), Ordering::Relaxed);
        placed.insert(at, me.to_word());
    }
    let grants = PeerGrants::new(words.as_peer());
    let Some(place) = grants.find(input.index, input.generation, me) else { return };
    let entry = input.index as usize * ENTRY_WORDS;
    let word = |at: usize| placed.get(&(entry + at)).copied().unwrap_or(0);
    assert_eq!(word(abi::grant::GRANTEE), me.to_word(), "nobody else's grant");
    assert_eq!(word(abi::grant::STATE), abi::grant::live(input.generation), "one that lives");
    if let Some(from) = place.at(input.at, input.len) {
        let end = from.checked_add(input.len).expect("an end that there is");
        let last = u128::from(word(abi::grant::OFFSET)) + u128::from(word(abi::grant::LEN));
        assert!(from >= word(abi::grant::OFFSET) && u128::from(end) <= last, "within what was granted");
    }
}
