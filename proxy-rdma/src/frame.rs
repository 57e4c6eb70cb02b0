//! What is sent by the pair for messages: a header of [`abi::wire`], then a message, or the announcement of a bulk
//! message: where its bytes are to be read, and its head.
//!
//! Key types: [`Frame`], [`Source`]. Every byte is a claim.

use abi::extent::Corrupt;
use abi::limits::{FRAME_BYTES_MAX, HEAD_BYTES_MAX, LOAN_BYTES_MAX, PIECES_MAX};
use abi::wire::{HEADER_BYTES, Header, HeaderError, Kind};

use crate::verbs::Remote;

/// Before the sources of an announcement: how many there are.
const COUNT_BYTES: usize = 8;
const SOURCE_BYTES: usize = 16;
/// The longest frame.
pub const BYTES_MAX: usize = HEADER_BYTES + FRAME_BYTES_MAX as usize;

const _: () = assert!(COUNT_BYTES + PIECES_MAX * SOURCE_BYTES + HEAD_BYTES_MAX <= FRAME_BYTES_MAX as usize);

/// Bytes that the other end lets us read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    pub remote: Remote,
    pub len_bytes: u32,
}

/// A frame that has come. Places are offsets into it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    Message {
        at: usize,
        len_bytes: u32,
    },
    Announce {
        token: u64,
        bulk_bytes: u64,
        sources: Vec<Source>,
        head_at: usize,
        head_bytes: u32,
    },
    /// The bulk message was read.
    Taken {
        token: u64,
    },
    /// It is not wanted.
    Refuse {
        token: u64,
    },
}

/// The header of a message of so many bytes.
pub fn message(len_bytes: usize) -> [u8; HEADER_BYTES] {
    Header { kind: Kind::Message, len_bytes: len_bytes as u32, token: 0, arg: 0 }.to_bytes()
}

/// Word of a bulk message: read, or refused.
pub fn answer(token: u64, taken: bool) -> [u8; HEADER_BYTES] {
    let kind = if taken { Kind::BulkTaken } else { Kind::Refuse };
    Header { kind, len_bytes: 0, token, arg: 0 }.to_bytes()
}

/// A whole announcement.
pub fn announce(token: u64, sources: &[Source], head: &[u8]) -> Vec<u8> {
    let payload = COUNT_BYTES + sources.len() * SOURCE_BYTES + head.len();
    let arg = sources.iter().map(|source| u64::from(source.len_bytes)).sum();
    let header = Header { kind: Kind::Announce, len_bytes: payload as u32, token, arg };
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload);
    bytes.extend(header.to_bytes());
    bytes.extend((sources.len() as u64).to_le_bytes());
    for source in sources {
        bytes.extend(source.remote.address.to_le_bytes());
        bytes.extend(source.len_bytes.to_le_bytes());
        bytes.extend(source.remote.key.to_le_bytes());
    }
    bytes.extend(head);
    bytes
}

impl Frame {
    /// `len_bytes` have come, of which `bytes` are the first: at least those of an announcement without its head.
    pub fn check(bytes: &[u8], len_bytes: u32) -> Result<Frame, Corrupt> {
        let short = Corrupt::new("a frame shorter than its header says", u64::from(len_bytes));
        let header = match Header::check(bytes.first_chunk().ok_or(short)?) {
            Ok(header) => header,
            Err(HeaderError::Corrupt(corrupt)) => return Err(corrupt),
            Err(HeaderError::Version { theirs }) => {
                return Err(Corrupt::new("another wire version within a session", u64::from(theirs)));
            }
        };
        if len_bytes as usize != HEADER_BYTES + header.len_bytes as usize {
            return Err(short);
        }
        let token = header.token;
        match header.kind {
            Kind::Message => Ok(Frame::Message { at: HEADER_BYTES, len_bytes: header.len_bytes }),
            Kind::BulkTaken => Ok(Frame::Taken { token }),
            Kind::Refuse => Ok(Frame::Refuse { token }),
            Kind::Announce => announced(&header, &bytes[HEADER_BYTES..]),
            other => Err(Corrupt::new("a frame that no message is", other as u64)),
        }
    }
}

fn announced(header: &Header, payload: &[u8]) -> Result<Frame, Corrupt> {
    let wrong = |why| Corrupt::new(why, header.arg);
    let word = |at: usize| payload.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let half = |at: usize| payload.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let count = word(0).ok_or(wrong("an announcement without sources"))?;
    if count > PIECES_MAX as u64 {
        return Err(Corrupt::new("more sources than a bulk message has", count));
    }
    let count = count as usize;
    let head_at = COUNT_BYTES + count * SOURCE_BYTES;
    let head_bytes = (header.len_bytes as usize).checked_sub(head_at);
    let head_bytes = head_bytes.filter(|bytes| *bytes <= HEAD_BYTES_MAX);
    let head_bytes = head_bytes.ok_or(wrong("a head that is too long, or not there"))? as u32;
    let source = |n: usize| {
        let at = COUNT_BYTES + n * SOURCE_BYTES;
        let (address, len_bytes, key) = (word(at)?, half(at + 8)?, half(at + 12)?);
        Some(Source { remote: Remote { address, key }, len_bytes })
    };
    let sources: Option<Vec<Source>> = (0..count).map(source).collect();
    let sources = sources.ok_or(wrong("an announcement without its sources"))?;
    let bulk_bytes: u64 = sources.iter().map(|source| u64::from(source.len_bytes)).sum();
    if bulk_bytes != header.arg || bulk_bytes > u64::from(LOAN_BYTES_MAX) {
        return Err(wrong("bulk message of another length, or longer than the largest loan"));
    }
    Ok(Frame::Announce {
        token: header.token,
        bulk_bytes,
        sources,
        head_at: HEADER_BYTES + head_at,
        head_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Source = Source { remote: Remote { address: 0x7000_1234, key: 77 }, len_bytes: 5000 };

    fn check(bytes: &[u8]) -> Result<Frame, Corrupt> {
        Frame::check(bytes, bytes.len() as u32)
    }

    #[test]
    fn frames_come_back_as_they_went() {
        let whole = [&message(5)[..], b"hello"].concat();
        assert_eq!(check(&whole), Ok(Frame::Message { at: HEADER_BYTES, len_bytes: 5 }));
        assert_eq!(check(&answer(9, true)), Ok(Frame::Taken { token: 9 }));
        assert_eq!(check(&answer(8, false)), Ok(Frame::Refuse { token: 8 }));
        let sources = vec![SOURCE, Source { len_bytes: 0, ..SOURCE }];
        let whole = announce(3, &sources, b"head");
        let head_at = whole.len() - 4;
        let expected = Frame::Announce { token: 3, bulk_bytes: 5000, sources, head_at, head_bytes: 4 };
        assert_eq!(check(&whole), Ok(expected));
        let none = announce(3, &[], b"");
        assert!(matches!(check(&none), Ok(Frame::Announce { bulk_bytes: 0, head_bytes: 0, .. })));
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let whole = announce(3, &[SOURCE], b"head");
        assert!(Frame::check(&whole, whole.len() as u32 - 1).is_err(), "shorter than it says");
        assert!(check(&whole[..20]).is_err(), "no header");
        let count = |count: u64| {
            let mut bad = whole.clone();
            bad[HEADER_BYTES..HEADER_BYTES + 8].copy_from_slice(&count.to_le_bytes());
            bad
        };
        assert!(check(&count(u64::MAX)).is_err());
        assert!(check(&count(3)).is_err(), "more than are there");
        let mut longer = whole.clone();
        longer[HEADER_BYTES + 16..HEADER_BYTES + 20].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(check(&longer).is_err(), "another length than is announced");
        let long = Source { len_bytes: LOAN_BYTES_MAX + 1, ..SOURCE };
        assert!(check(&announce(3, &[long], b"")).is_err(), "longer than any loan");
        assert!(check(&announce(3, &[SOURCE], &[0; HEAD_BYTES_MAX + 1])).is_err(), "a head too long");
        let stray = Header { kind: Kind::Heartbeat, len_bytes: 0, token: 0, arg: 0 }.to_bytes();
        assert!(check(&stray).is_err());
    }
}
