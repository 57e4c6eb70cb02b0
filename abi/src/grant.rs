//! Grants: what one endpoint lets another read or write by `copy`, the table that says so, and the request and answer of
//! a copy in which another node takes part.
//!
//! Grants stand in a table in their owner's memory, one entry each, so that whoever copies looks the grant up itself and
//! sees at once that it was revoked. Who may map the segment behind it is the daemon's to say.

use crate::ids::{Endpoint, NodeId};
use crate::limits::GRANTS_MAX;

/// What a grant allows, and what its segment is good for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Access {
    /// The grantees read; the owner alone writes. Any number of grantees.
    Read = 1,
    /// The grantee writes, and reads. One grantee at a time.
    Write = 2,
}

impl Access {
    pub const fn from_word(word: u64) -> Option<Access> {
        match word {
            1 => Some(Access::Read),
            2 => Some(Access::Write),
            _ => None,
        }
    }
}

/// Words of an entry of the table.
pub const ENTRY_WORDS: usize = 8;
/// Entry: `generation * 2 + 1` while the grant lives, `generation * 2` otherwise. Written last by a grant and first by a
/// revocation.
pub const STATE: usize = 0;
/// Entry: the endpoint that may copy.
pub const GRANTEE: usize = 1;
/// Entry: 0..32 the segment, 32..40 [`Access`].
pub const SEGMENT: usize = 2;
/// Entry: where the range begins in the segment, and its length.
pub const OFFSET: usize = 3;
pub const LEN: usize = 4;
/// Bytes of a table.
pub const TABLE_BYTES: usize = GRANTS_MAX as usize * ENTRY_WORDS * 8;

/// A grant, as its owner gives it away: in a message, to whoever it is for. Nothing is secret about it: it is of no use to
/// any other endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Grant {
    pub owner: Endpoint,
    /// The segment of the owner's memory that holds its table.
    pub table: u32,
    pub index: u16,
    pub generation: u32,
    pub access: Access,
    pub len_bytes: u64,
}

impl Grant {
    /// Bytes of a grant in a message.
    pub const BYTES: usize = 32;

    pub fn to_bytes(&self) -> [u8; Grant::BYTES] {
        let mut out = [0; Grant::BYTES];
        let place = self.index as u64 | (self.access as u64) << 16 | (self.table as u64) << 32;
        let words = [self.owner.to_word(), place, self.generation as u64, self.len_bytes];
        for (word, bytes) in words.iter().zip(out.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// `None` for bytes that are no grant. Those that are may still be anybody's invention: `copy` looks.
    pub fn from_bytes(bytes: &[u8]) -> Option<Grant> {
        let bytes: &[u8; Grant::BYTES] = bytes.try_into().ok()?;
        let word = |at: usize| u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap_or([0; 8]));
        let place = word(1);
        Some(Grant {
            owner: Endpoint::from_word(word(0))?,
            table: (place >> 32) as u32,
            index: ((place as u16) < GRANTS_MAX).then_some(place as u16)?,
            generation: u32::try_from(word(2)).ok().filter(|g| *g <= GENERATION_MAX)?,
            access: Access::from_word(place >> 16 & 0xffff)?,
            len_bytes: word(3),
        })
    }

    /// What a copier names of the grant, in a request to couriers.
    pub const fn to_words(&self) -> [u64; 2] {
        [self.table as u64 | (self.index as u64) << 32, self.generation as u64]
    }
}

/// The largest generation of an entry: after that many grants the entry is not used again.
pub const GENERATION_MAX: u32 = u32::MAX >> 1;

/// The part of an entry's state that stands for a live grant of this generation.
pub const fn live(generation: u32) -> u64 {
    generation as u64 * 2 + 1
}

/// What a copier says of itself while it is in the middle of a step: see `side::COPYING`.
pub const fn marker(index: u16, generation: u32) -> u64 {
    (generation as u64) << 32 | (index as u64 + 1)
}

/// What a couriers' part in a copy is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Role {
    /// Bytes come from `node` into the grant of the pair's endpoint.
    Receive = 1,
    /// Bytes of the grant of the pair's endpoint go to `node`.
    Send = 2,
    /// Both grants are of endpoints of that node.
    Within = 3,
    /// Nothing more is to be done for the copy of this number or an earlier one.
    Cancel = 4,
}

impl Role {
    pub const fn from_word(word: u64) -> Option<Role> {
        match word {
            1 => Some(Role::Receive),
            2 => Some(Role::Send),
            3 => Some(Role::Within),
            4 => Some(Role::Cancel),
            _ => None,
        }
    }
}

/// A range that a copier names: of its own segment, or of a grant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// The segment, or the grant's table, and the grant's index: see [`Grant::to_words`].
    pub place: u64,
    /// The grant's generation; of an own segment [`OWN`].
    pub generation: u64,
    pub offset_bytes: u64,
}

/// The generation of a range that is not of a grant.
pub const OWN: u64 = u64::MAX;

impl Range {
    pub const fn own(segment: u32, offset_bytes: u64) -> Range {
        Range { place: segment as u64, generation: OWN, offset_bytes }
    }

    pub const fn granted(grant: &Grant, offset_bytes: u64) -> Range {
        let [place, generation] = grant.to_words();
        Range { place, generation, offset_bytes }
    }

    /// The table or the own segment.
    pub const fn segment(&self) -> u32 {
        self.place as u32
    }

    /// Index and generation, of a grant that there may be.
    pub fn grant(&self) -> Option<(u16, u32)> {
        let index = u16::try_from(self.place >> 32).ok().filter(|index| *index < GRANTS_MAX)?;
        let generation = u32::try_from(self.generation).ok().filter(|g| *g <= GENERATION_MAX)?;
        Some((index, generation))
    }
}

/// Words of a request.
pub const REQUEST_WORDS: usize = 11;
/// Bytes of a request in a record.
pub const REQUEST_BYTES: usize = REQUEST_WORDS * 8;

/// What a copier asks of couriers, of the pair with the endpoint whose grant is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyRequest {
    pub role: Role,
    /// Where the bytes come from, or go to. The copier's own node: the other range is there.
    pub node: NodeId,
    /// Of a copy between three nodes: the receiving end was ready once. If it no longer knows of this, it may not begin anew.
    pub begun: bool,
    pub len_bytes: u64,
    /// The range of the pair's endpoint.
    pub theirs: Range,
    /// The other range: `Within`: of `other`, at that node. Else, if `node` is the copier's own: in `memory` there.
    pub range: Range,
    /// `Within`: whose grant `range` is of. `Send` to a third node: the endpoint there. Else 0.
    pub other: u64,
    /// `Send` to a third node: the number of the copy in the pair with `other`. If `range` is at the copier's node: the
    /// memory it lies in.
    pub beside: u64,
}

impl CopyRequest {
    pub const fn to_words(&self) -> [u64; REQUEST_WORDS] {
        [
            self.role as u64 | (self.begun as u64) << 8 | (self.node.0 as u64) << 16,
            self.len_bytes,
            self.theirs.place,
            self.theirs.generation,
            self.theirs.offset_bytes,
            self.range.place,
            self.range.generation,
            self.range.offset_bytes,
            self.other,
            self.beside,
            0,
        ]
    }

    /// The claim of these words; `None`: no request, or none that makes sense.
    pub fn from_words(w: &[u64; REQUEST_WORDS]) -> Option<CopyRequest> {
        if w[1] > crate::limits::COPY_BYTES_MAX {
            return None;
        }
        Some(CopyRequest {
            role: Role::from_word(w[0] & 0xff)?,
            begun: w[0] >> 8 & 1 != 0,
            node: NodeId((w[0] >> 16) as u16),
            len_bytes: w[1],
            theirs: Range { place: w[2], generation: w[3], offset_bytes: w[4] },
            range: Range { place: w[5], generation: w[6], offset_bytes: w[7] },
            other: w[8],
            beside: w[9],
        })
    }
}

/// How far a copy is, as a courier answers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Status {
    /// The receiving end is ready for what a third node sends.
    Ready = 1,
    /// The bytes are there; of `Send`: they have left.
    Done = 2,
    /// No such grant, or not of this range, or revoked meanwhile.
    NoGrant = 3,
    /// A session was lost: begin anew.
    Again = 4,
    /// Nothing is written any more.
    Cancelled = 5,
    /// That node has no way to the other one.
    NoWay = 6,
}

impl Status {
    pub const fn from_word(word: u64) -> Option<Status> {
        match word {
            1 => Some(Status::Ready),
            2 => Some(Status::Done),
            3 => Some(Status::NoGrant),
            4 => Some(Status::Again),
            5 => Some(Status::Cancelled),
            6 => Some(Status::NoWay),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DcId, Generation, Slot};

    fn grant() -> Grant {
        let owner = Endpoint::new(DcId(1), Slot(2), Generation(3));
        Grant { owner, table: 9, index: 5, generation: 7, access: Access::Write, len_bytes: 1 << 30 }
    }

    #[test]
    fn a_grant_survives_its_bytes_and_others_are_none() {
        let bytes = grant().to_bytes();
        assert_eq!(Grant::from_bytes(&bytes), Some(grant()));
        assert_eq!(Grant::from_bytes(&bytes[..31]), None);
        assert_eq!(Grant::from_bytes(&[0xff; Grant::BYTES]), None);
        assert_eq!(Grant::from_bytes(&[0; Grant::BYTES]), None, "no access");
    }

    #[test]
    fn a_request_survives_its_words_and_is_bounded() {
        let request = CopyRequest {
            role: Role::Send,
            node: NodeId(77),
            begun: true,
            len_bytes: 1 << 30,
            theirs: Range::granted(&grant(), 5),
            range: Range::own(3, 4096),
            other: 8,
            beside: 9,
        };
        let mut words = request.to_words();
        assert_eq!(CopyRequest::from_words(&words), Some(request));
        assert_eq!(request.theirs.grant(), Some((5, 7)));
        assert_eq!((request.range.grant(), request.range.segment()), (None, 3));
        words[1] += 1;
        assert_eq!(CopyRequest::from_words(&words), None, "more than a copy may be");
        words[1] = 0;
        words[0] = 0;
        assert_eq!(CopyRequest::from_words(&words), None, "no role");
    }
}
