//! What couriers tell one another: a 32-byte record, then what its kind says. Little-endian.
//!
//! Every record is about the side that `source` (an endpoint of the sending node) keeps for `destination` (one of the
//! receiving node). Records are idempotent: after a lost session all that may be missing is said again.

use crate::extent::Corrupt;
use crate::ids::{Endpoint, Pair};
use crate::limits::LANE_SLOTS;

/// Bytes of a record without its body.
pub const BYTES: usize = 32;

/// What follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// `source` wants to talk to `destination`. Repeated at every session. No body.
    Open = 1,
    /// The pair is attached at the far end. No body; `Words` follows.
    Opened = 2,
    /// No such endpoint. `arg`: the refusal's code.
    Refused = 3,
    /// `count` slots of 128 bytes from sequence `arg` on.
    Slots = 4,
    /// The control words: [`WORDS_BYTES`] of body.
    Words = 5,
    /// The raised counters, all of them: [`RAISED_BYTES`] of body.
    Raised = 6,
    /// One reply slot; `arg`: its call id.
    Reply = 7,
    /// The slot of sequence `arg` was withdrawn by its sender.
    Withdraw = 8,
    /// The endpoint ended. `arg`: `side::END_DEAD`; `count` unused; body: final, consumed, as words.
    Ended = 9,
    /// Announces the extent of the slot of sequence `arg`.
    SlotExtent = 10,
    /// Announces the extent of the reply to call `arg`.
    ReplyExtent = 11,
    /// Bytes from daemon to daemon; no pair.
    Directory = 12,
    /// The pair is forgotten here: one of its ends has ended, and all that was to be taken here is taken. No body.
    Closed = 13,
    /// `source` asks for a copy; `arg`: its number; body: `grant::CopyRequest`.
    Copy = 14,
    /// Announces bytes of a copy that `source` asked of `destination`; `arg`: its number. Body: from where on.
    CopyData = 15,
    /// How the copy `arg` that `destination` asked for is doing here. Body: `grant::Status`.
    CopyState = 16,
}

/// Body of `Words`: consumed, outcome, reply taken, gave up.
pub const WORDS_BYTES: usize = 4 * 8;
/// Body of `Raised`.
pub const RAISED_BYTES: usize = crate::side::RAISED_WORDS * 8;
/// Body of `Ended`.
pub const ENDED_BYTES: usize = 2 * 8;

/// A checked record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    pub kind: Kind,
    pub count: u16,
    /// `None` for `Directory`.
    pub pair: Option<Pair>,
    pub arg: u64,
}

impl Record {
    pub const fn of(kind: Kind, pair: Pair, arg: u64) -> Record {
        Record { kind, count: 0, pair: Some(pair), arg }
    }

    pub fn to_bytes(&self) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        out[0] = self.kind as u8;
        out[2..4].copy_from_slice(&self.count.to_le_bytes());
        if let Some(pair) = self.pair {
            out[8..16].copy_from_slice(&pair.source.to_word().to_le_bytes());
            out[16..24].copy_from_slice(&pair.destination.to_word().to_le_bytes());
        }
        out[24..32].copy_from_slice(&self.arg.to_le_bytes());
        out
    }

    /// The claim of a record's first 32 bytes, with the body's length checked against the kind.
    pub fn check(bytes: &[u8]) -> Result<Record, Corrupt> {
        let word = |at: usize| -> Result<u64, Corrupt> {
            let eight = bytes.get(at..at + 8).ok_or(Corrupt::new("record too short", bytes.len() as u64))?;
            Ok(u64::from_le_bytes(eight.try_into().unwrap_or([0; 8])))
        };
        let first = word(0)?;
        let (source, destination, arg) = (word(8)?, word(16)?, word(24)?);
        let kind = match first as u8 {
            1 => Kind::Open,
            2 => Kind::Opened,
            3 => Kind::Refused,
            4 => Kind::Slots,
            5 => Kind::Words,
            6 => Kind::Raised,
            7 => Kind::Reply,
            8 => Kind::Withdraw,
            9 => Kind::Ended,
            10 => Kind::SlotExtent,
            11 => Kind::ReplyExtent,
            12 => Kind::Directory,
            13 => Kind::Closed,
            14 => Kind::Copy,
            15 => Kind::CopyData,
            16 => Kind::CopyState,
            other => return Err(Corrupt::new("unknown record", other as u64)),
        };
        let count = (first >> 16) as u16;
        let body = bytes.len() - BYTES;
        let want = match kind {
            Kind::Slots if count as u64 > LANE_SLOTS => {
                return Err(Corrupt::new("more slots than a lane has", count as u64));
            }
            Kind::Slots => count as usize * crate::limits::SLOT_BYTES,
            Kind::Words => WORDS_BYTES,
            Kind::Raised => RAISED_BYTES,
            Kind::Reply => crate::limits::SLOT_BYTES,
            Kind::Ended => ENDED_BYTES,
            Kind::Directory => body,
            Kind::Copy => crate::grant::REQUEST_BYTES,
            Kind::CopyData | Kind::CopyState => 8,
            _ => 0,
        };
        if body != want {
            return Err(Corrupt::new("record body of a wrong length", body as u64));
        }
        let pair = if kind == Kind::Directory {
            None
        } else {
            let end = |word| Endpoint::from_word(word).ok_or(Corrupt::new("record of no endpoint", word));
            let pair = Pair { source: end(source)?, destination: end(destination)? };
            if pair.source.dc != pair.destination.dc {
                return Err(Corrupt::new("record across two DCs", destination));
            }
            Some(pair)
        };
        Ok(Record { kind, count, pair, arg })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DcId, Generation, Slot};

    fn pair() -> Pair {
        let end = |slot| Endpoint::new(DcId(1), Slot(slot), Generation(4));
        Pair { source: end(1), destination: end(2) }
    }

    #[test]
    fn a_record_survives_its_bytes() {
        let mut bytes =
            Record { kind: Kind::Slots, count: 2, pair: Some(pair()), arg: 77 }.to_bytes().to_vec();
        bytes.extend([0; 256]);
        let record = Record::check(&bytes).unwrap();
        assert_eq!((record.kind, record.count, record.pair, record.arg), (Kind::Slots, 2, Some(pair()), 77));
        bytes.pop();
        assert!(Record::check(&bytes).is_err(), "one byte less than two slots");
    }

    #[test]
    fn records_that_break_the_layout_are_corrupt() {
        assert!(Record::check(&[]).is_err());
        assert!(Record::check(&[200; BYTES]).is_err());
        let mut across = Record::of(Kind::Open, pair(), 0).to_bytes();
        assert!(Record::check(&across).is_ok());
        across[22] = 9;
        assert!(Record::check(&across).is_err(), "two DCs");
    }
}
