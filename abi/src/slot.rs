//! The message slot: 128 bytes, 16 words, on a lane or in a reply ring.
//!
//! | word | bits | field |
//! | --- | --- | --- |
//! | 0 | 0..32 lap, 32..40 kind, 40..48 flags, 48..64 inline length | written last, with release |
//! | 1 | | source endpoint |
//! | 2 | | sequence number in its stream, from 0; of a reply: the number of its call |
//! | 3 | 0..32 type, 32..64 call | the user's type; the low half of the call's number |
//! | 4..16 | | body: 96 bytes, or an extent's descriptor (3 words) and 72 bytes |

use crate::extent::{Claim, Corrupt};
use crate::limits::{INLINE_BYTES_MAX, INLINE_BYTES_WITH_EXTENT_MAX, LANE_SLOTS, SLOT_BYTES};
use crate::privilege::Kinds;

/// Words of a slot.
pub const WORDS: usize = SLOT_BYTES / 8;
/// Words of a slot's body.
pub const BODY_WORDS: usize = INLINE_BYTES_MAX / 8;

/// What a slot asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// `post`: asynchronous.
    Post = 1,
    /// `send`: the sender waits until it is taken.
    Send = 2,
    /// `sendrec`: the sender waits for the reply with this call id.
    Request = 3,
    /// An answer, in a reply ring only.
    Reply = 4,
    /// The slot after this one is a request passed on. Body: its client's endpoint, and the number of its call.
    Via = 5,
    /// `relay`: a request passed on, as its client had sent it.
    Relayed = 6,
    /// Of a client: its call is owed by this lane's reader now. Body: who passed it on, the number of the call there, and its number here.
    Confirm = 7,
}

/// The sender may withdraw this slot: the receiver takes it by the `taking` protocol.
pub const WITHDRAWABLE: u8 = 1;
/// The sender has withdrawn the slot; it keeps its place and is skipped.
pub const WITHDRAWN: u8 = 2;
/// The body begins with an extent's descriptor.
pub const EXTENT: u8 = 4;
/// The sender waits for this slot's consumption: the receiver rings when it has taken it.
pub const TELL: u8 = 8;
/// In a reply ring: the server dropped the request without an answer.
pub const ABANDONED: u8 = 16;
/// In a reply ring: the request was passed on. Body: the endpoint that answers it.
pub const REDIRECT: u8 = 32;
const FLAGS_ALL: u8 = WITHDRAWABLE | WITHDRAWN | EXTENT | TELL | ABANDONED | REDIRECT;

/// The header's first word, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    pub lap: u32,
    pub kind: Kind,
    pub flags: u8,
    pub len: u16,
}

/// The lap that the slot of `sequence` carries: never 0, so that fresh memory is no message, also after it has wrapped.
#[inline]
pub const fn lap(sequence: u64) -> u32 {
    ((sequence / LANE_SLOTS) % u32::MAX as u64) as u32 + 1
}

/// The lap that the reply to `call` carries: never 0.
#[inline]
pub const fn lap_of_reply(call: u64) -> u32 {
    (call % u32::MAX as u64) as u32 + 1
}

/// What a slot has room for of a call's number: its low half.
#[inline]
pub const fn call_low(call: u64) -> u32 {
    call as u32
}

/// The whole number of a call from its low half and a number of the same client that is near: see `side::GAVE_UP`.
#[inline]
pub const fn call_of(low: u32, near: u64) -> u64 {
    near.wrapping_add_signed(low.wrapping_sub(call_low(near)) as i32 as i64)
}

/// Whether the head in this word has a flag, whatever else it claims.
#[inline]
pub const fn has_flag(head: u64, flag: u8) -> bool {
    (head >> 40) as u8 & flag != 0
}

/// Whether the head in this word is of a message that is handed out as it is: not of a reply, nor of what `relay` says.
#[inline]
pub const fn is_plain(head: u64) -> bool {
    (head >> 32) as u8 <= Kind::Request as u8
}

/// Whether the head in this word is of a kind that the lane may carry.
#[inline(always)]
pub const fn is_allowed(head: u64, allowed: Kinds) -> bool {
    let kind = (head >> 32) as u8;
    kind < 16 && allowed.bits() >> kind & 1 != 0
}

impl Head {
    #[inline]
    pub const fn to_word(self) -> u64 {
        self.lap as u64 | (self.kind as u64) << 32 | (self.flags as u64) << 40 | (self.len as u64) << 48
    }

    /// The claim of word 0, checked: a known kind, known flags, a length that fits the body.
    #[inline]
    pub const fn from_word(word: u64) -> Result<Self, Corrupt> {
        let kind = match (word >> 32) as u8 {
            1 => Kind::Post,
            2 => Kind::Send,
            3 => Kind::Request,
            4 => Kind::Reply,
            5 => Kind::Via,
            6 => Kind::Relayed,
            7 => Kind::Confirm,
            other => return Err(Corrupt::new("unknown message kind", other as u64)),
        };
        let (flags, len) = ((word >> 40) as u8, (word >> 48) as u16);
        if flags & !FLAGS_ALL != 0 {
            return Err(Corrupt::new("unknown message flags", flags as u64));
        }
        let max = if flags & EXTENT != 0 { INLINE_BYTES_WITH_EXTENT_MAX } else { INLINE_BYTES_MAX };
        if len as usize > max {
            return Err(Corrupt::new("inline length beyond the slot", len as u64));
        }
        Ok(Head { lap: word as u32, kind, flags, len })
    }

    #[inline]
    pub const fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// What stands in a slot beside its sequence and its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heading {
    pub head: Head,
    pub source: u64,
    pub kind: u32,
    pub call: u32,
}

impl Heading {
    /// From a checked head and the words of source, type and call.
    #[inline]
    pub const fn of_words(head: Head, source: u64, types: u64) -> Heading {
        Heading { head, source, kind: types as u32, call: (types >> 32) as u32 }
    }

    /// The word of type and call.
    #[inline]
    pub const fn type_word(&self) -> u64 {
        self.kind as u64 | (self.call as u64) << 32
    }
}

/// A slot copied out of shared memory or off the wire, head checked; the rest is still a claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotCopy {
    pub head: Head,
    pub source: u64,
    pub sequence: u64,
    pub kind: u32,
    pub call: u32,
    pub body: [u64; BODY_WORDS],
}

impl SlotCopy {
    #[inline]
    pub const fn of(heading: Heading, sequence: u64, body: [u64; BODY_WORDS]) -> SlotCopy {
        let Heading { head, source, kind, call } = heading;
        SlotCopy { head, source, sequence, kind, call, body }
    }

    #[inline]
    pub const fn heading(&self) -> Heading {
        Heading { head: self.head, source: self.source, kind: self.kind, call: self.call }
    }

    #[inline]
    pub fn to_words(&self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words[0] = self.head.to_word();
        words[1] = self.source;
        words[2] = self.sequence;
        words[3] = self.heading().type_word();
        words[4..].copy_from_slice(&self.body);
        words
    }

    #[inline]
    pub fn from_words(words: &[u64; WORDS]) -> Result<Self, Corrupt> {
        let mut body = [0; BODY_WORDS];
        body.copy_from_slice(&words[4..]);
        Ok(SlotCopy {
            head: Head::from_word(words[0])?,
            source: words[1],
            sequence: words[2],
            kind: words[3] as u32,
            call: (words[3] >> 32) as u32,
            body,
        })
    }

    /// The descriptor at the start of the body, when the head says there is one.
    #[inline]
    pub fn claim(&self) -> Option<Claim> {
        self.head.has(EXTENT).then(|| Claim::from_words([self.body[0], self.body[1], self.body[2]]))
    }

    pub fn set_claim(&mut self, claim: Claim) {
        self.body[..3].copy_from_slice(&claim.to_words());
    }

    /// Copies the inline bytes (without the descriptor) to the front of `out`; returns how many.
    #[inline]
    pub fn inline_into(&self, out: &mut [u8; INLINE_BYTES_MAX]) -> usize {
        let from = if self.head.has(EXTENT) { 3 } else { 0 };
        for (word, bytes) in self.body[from..].iter().zip(out.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        self.head.len as usize
    }

    /// Puts `bytes` after the descriptor, if the head has one, and sets the length. `bytes` must fit: see `limits`.
    #[inline]
    pub fn set_inline(&mut self, bytes: &[u8]) {
        let from = if self.head.has(EXTENT) { 3 } else { 0 };
        let room = (BODY_WORDS - from) * 8;
        assert!(bytes.len() <= room, "inline bytes beyond the slot: {} of {room}", bytes.len());
        let mut chunks = bytes.chunks_exact(8);
        let mut at = from;
        for chunk in &mut chunks {
            self.body[at] = u64::from_le_bytes(chunk.try_into().unwrap_or([0; 8]));
            at += 1;
        }
        let rest = chunks.remainder();
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.body[at] = u64::from_le_bytes(last);
        }
        self.head.len = bytes.len() as u16;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(flags: u8) -> SlotCopy {
        SlotCopy {
            head: Head { lap: lap(300), kind: Kind::Send, flags, len: 0 },
            source: 7,
            sequence: 300,
            kind: 5,
            call: 6,
            body: [0; BODY_WORDS],
        }
    }

    #[test]
    fn a_slot_survives_its_words_and_its_inline_bytes() {
        for len in [0, 1, 7, 8, 9, 95, 96] {
            let mut slot = sample(0);
            let bytes: Vec<u8> = (0..len as u8).collect();
            slot.set_inline(&bytes);
            let again = SlotCopy::from_words(&slot.to_words()).unwrap();
            assert_eq!(again, slot);
            let mut out = [0; INLINE_BYTES_MAX];
            let n = again.inline_into(&mut out);
            assert_eq!(&out[..n], &bytes[..]);
        }
    }

    #[test]
    fn a_descriptor_and_inline_bytes_live_in_one_body() {
        let mut slot = sample(EXTENT);
        let claim = Claim { segment: 3, token: 4, offset_bytes: 64, len_bytes: 1 << 20 };
        slot.set_claim(claim);
        slot.set_inline(&[9; 72]);
        assert_eq!(slot.claim(), Some(claim));
        let mut out = [0; INLINE_BYTES_MAX];
        assert_eq!(slot.inline_into(&mut out), 72);
        assert_eq!(&out[..72], &[9; 72]);
    }

    #[test]
    fn heads_that_break_the_layout_are_corrupt() {
        let good = Head { lap: 1, kind: Kind::Post, flags: 0, len: 96 }.to_word();
        assert!(Head::from_word(good).is_ok());
        assert!(Head::from_word(good + (1 << 48)).is_err(), "97 bytes inline");
        assert!(Head::from_word(good | (EXTENT as u64) << 40).is_err(), "96 bytes beside a descriptor");
        assert!(Head::from_word(good | 0x80 << 40).is_err(), "an unknown flag");
        assert!(Head::from_word(good & !(0xff << 32)).is_err(), "kind 0");
    }

    #[test]
    fn a_call_has_its_whole_number_from_one_that_is_near() {
        let half = 1 << 31;
        for near in [0, 1, u32::MAX as u64, 1 << 32, (1 << 40) + 7] {
            for call in [near, near + 1, near + half - 1, near.saturating_sub(half)] {
                assert_eq!(call_of(call_low(call), near), call, "near {near}");
            }
        }
        assert_eq!([0, u32::MAX as u64 - 1, u32::MAX as u64].map(lap_of_reply), [1, u32::MAX, 1]);
    }

    #[test]
    fn the_lap_changes_when_a_slot_is_used_again() {
        assert_eq!(lap(0), 1);
        assert_eq!(lap(LANE_SLOTS - 1), 1);
        assert_eq!(lap(LANE_SLOTS), 2);
        let last = LANE_SLOTS * u32::MAX as u64;
        assert_eq!((lap(last - 1), lap(last), lap(last + LANE_SLOTS)), (u32::MAX, 1, 2), "it wraps past 0");
    }
}
