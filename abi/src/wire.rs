//! The frame on a byte stream between two nodes: a 32-byte header, then `len_bytes`. Little-endian, versioned,
//! length-limited, the header checksummed (CRC-32C). The payload's integrity is the transport's.
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..2 | magic `0x4456` |
//! | 2 | version |
//! | 3 | kind |
//! | 4..8 | payload bytes |
//! | 8..16 | token |
//! | 16..24 | argument |
//! | 24..28 | 0 |
//! | 28..32 | CRC-32C of bytes 0..28 |

use crate::extent::Corrupt;
use crate::limits::{BULK_BYTES_MAX, FRAME_BYTES_MAX, HEAD_BYTES_MAX};

/// "VD" on the wire.
pub const MAGIC: u16 = 0x4456;
/// Nodes of different versions do not talk.
pub const VERSION: u8 = 1;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 32;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// First on a connection, from its opener: who it is, and a challenge.
    Hello = 1,
    /// The answer: who, a challenge, and the proof for the opener's.
    Welcome = 2,
    /// The opener's proof.
    Proof = 3,
    /// The acceptor has checked the proof; messages may flow.
    Ready = 4,
    /// No: `arg` is a [`Refused`] code.
    Refused = 5,
    /// One message.
    Message = 16,
    /// A bulk message of `arg` bytes wants a buffer; payload: its head.
    Announce = 17,
    /// Send the announced bulk message `token`.
    Accept = 18,
    /// Forget the announced bulk message `token`.
    Refuse = 19,
    /// Bytes of the bulk message `token` from offset `arg` on.
    Bulk = 20,
    /// Nothing but a sign of life.
    Heartbeat = 21,
    /// The other end closes in good order.
    Bye = 22,
    /// One message as an LZ4 block, `arg` bytes when unpacked. Only where both ends offered it.
    PackedMessage = 23,
    /// As [`Kind::Bulk`], the bytes as an LZ4 block: `arg` is the offset, and above bit 32 their length when unpacked.
    PackedBulk = 24,
    /// `arg` bytes of bulk frames, as they were on the wire, have been taken in this session so far.
    BulkTaken = 25,
}

/// Why a handshake was refused: the `arg` of [`Kind::Refused`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Refused {
    Version = 1,
    Key = 2,
    Node = 3,
    /// The opener's incarnation was declared dead here.
    Fenced = 4,
}

impl Refused {
    pub const fn from_word(word: u64) -> Option<Refused> {
        match word {
            1 => Some(Refused::Version),
            2 => Some(Refused::Key),
            3 => Some(Refused::Node),
            4 => Some(Refused::Fenced),
            _ => None,
        }
    }
}

/// A checked header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub kind: Kind,
    pub len_bytes: u32,
    pub token: u64,
    pub arg: u64,
}

impl Header {
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..2].copy_from_slice(&MAGIC.to_le_bytes());
        out[2] = VERSION;
        out[3] = self.kind as u8;
        out[4..8].copy_from_slice(&self.len_bytes.to_le_bytes());
        out[8..16].copy_from_slice(&self.token.to_le_bytes());
        out[16..24].copy_from_slice(&self.arg.to_le_bytes());
        let sum = crc32c(&out[..28]);
        out[28..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// The claim of 32 bytes. A wrong version with a right checksum is [`HeaderError::Version`], so that the handshake
    /// can say so.
    pub fn check(bytes: &[u8; HEADER_BYTES]) -> Result<Header, HeaderError> {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or([0; 8]));
        let (first, last) = (word(0), word(24));
        if first as u16 != MAGIC {
            return Err(Corrupt::new("not a frame of ours", first as u16 as u64).into());
        }
        if (last >> 32) as u32 != crc32c(&bytes[..28]) {
            return Err(Corrupt::new("frame header checksum", last >> 32).into());
        }
        let version = (first >> 16) as u8;
        if version != VERSION {
            return Err(HeaderError::Version { theirs: version });
        }
        let kind = match (first >> 24) as u8 {
            1 => Kind::Hello,
            2 => Kind::Welcome,
            3 => Kind::Proof,
            4 => Kind::Ready,
            5 => Kind::Refused,
            16 => Kind::Message,
            17 => Kind::Announce,
            18 => Kind::Accept,
            19 => Kind::Refuse,
            20 => Kind::Bulk,
            21 => Kind::Heartbeat,
            22 => Kind::Bye,
            23 => Kind::PackedMessage,
            24 => Kind::PackedBulk,
            25 => Kind::BulkTaken,
            other => return Err(Corrupt::new("unknown frame kind", other as u64).into()),
        };
        let len_bytes = (first >> 32) as u32;
        let max = match kind {
            Kind::Message | Kind::PackedMessage | Kind::PackedBulk => FRAME_BYTES_MAX,
            Kind::Announce => HEAD_BYTES_MAX as u32,
            Kind::Bulk => BULK_BYTES_MAX,
            Kind::Hello | Kind::Welcome | Kind::Proof | Kind::Ready => 256,
            Kind::Refused | Kind::Accept | Kind::Refuse | Kind::Heartbeat | Kind::Bye | Kind::BulkTaken => 0,
        };
        if len_bytes > max {
            return Err(Corrupt::new("frame longer than its kind may be", len_bytes as u64).into());
        }
        if last as u32 != 0 {
            return Err(Corrupt::new("reserved header bytes", last & 0xffff_ffff).into());
        }
        Ok(Header { kind, len_bytes, token: word(8), arg: word(16) })
    }
}

/// Why 32 bytes are no header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderError {
    /// The other end speaks another version: bring both nodes to the same release.
    Version { theirs: u8 },
    /// The stream is broken or hostile: close the connection.
    Corrupt(Corrupt),
}

impl From<Corrupt> for HeaderError {
    fn from(c: Corrupt) -> Self {
        HeaderError::Corrupt(c)
    }
}

impl core::fmt::Display for HeaderError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            HeaderError::Version { theirs } => {
                write!(
                    f,
                    "the other node speaks wire version {theirs}, this one {VERSION}: install the same release on both"
                )
            }
            HeaderError::Corrupt(c) => c.fmt(f),
        }
    }
}

impl std::error::Error for HeaderError {}

const CRC_TABLES: [[u32; 256]; 8] = crc_tables();

const fn crc_tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 != 0 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut byte = 0;
    while byte < 256 {
        let mut table = 1;
        while table < 8 {
            let before = tables[table - 1][byte];
            tables[table][byte] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            table += 1;
        }
        byte += 1;
    }
    tables
}

/// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78), eight bytes at a time.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let x = u64::from_le_bytes(chunk.try_into().unwrap_or([0; 8])) ^ crc as u64;
        crc = (0..8).fold(0, |sum, i| sum ^ CRC_TABLES[7 - i][(x >> (8 * i)) as usize & 0xff]);
    }
    for &byte in chunks.remainder() {
        crc = crc >> 8 ^ CRC_TABLES[0][(crc as u8 ^ byte) as usize];
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa, "RFC 3720, B.4");
    }

    #[test]
    fn a_header_survives_its_bytes_and_no_bit_may_flip() {
        let header = Header { kind: Kind::Bulk, len_bytes: BULK_BYTES_MAX, token: 3, arg: u64::MAX };
        let bytes = header.to_bytes();
        assert_eq!(Header::check(&bytes), Ok(header));
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::check(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn another_version_is_told_apart_from_noise() {
        let mut bytes = Header { kind: Kind::Hello, len_bytes: 0, token: 0, arg: 0 }.to_bytes();
        bytes[2] = VERSION + 1;
        let sum = crc32c(&bytes[..28]);
        bytes[28..].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(Header::check(&bytes), Err(HeaderError::Version { theirs: VERSION + 1 }));
    }

    #[test]
    fn a_frame_one_byte_too_long_is_refused() {
        let long = Header { kind: Kind::Message, len_bytes: FRAME_BYTES_MAX + 1, token: 0, arg: 0 };
        assert!(matches!(Header::check(&long.to_bytes()), Err(HeaderError::Corrupt(_))));
    }
}
