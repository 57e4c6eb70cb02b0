//! What two ends tell one another over their TCP session before it is one of RDMA: where their pairs are, and whether
//! they are connected. Both must be; otherwise the session stays one of TCP.
//!
//! Key type: [`Note`]. A note comes from an authenticated peer, and every byte of it is a claim all the same.

use abi::extent::Corrupt;

use crate::verbs::Address;

/// An address in bytes.
const ADDRESS_BYTES: usize = 32;
const HELLO: u8 = 1;
const VERDICT: u8 = 2;
/// The library's numbers for the sizes of packets.
const MTUS: std::ops::RangeInclusive<u32> = 1..=5;
const NUMBER_MAX: u32 = (1 << 24) - 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Note {
    /// The first: our ends of the pairs for messages and for extents; `None`: there is no device, or it has no room.
    Hello(Option<[Address; 2]>),
    /// The second: whether they are connected to the other's.
    Verdict(bool),
}

impl Note {
    pub fn to_bytes(self) -> Vec<u8> {
        match self {
            Note::Hello(None) => vec![HELLO, 0],
            Note::Hello(Some(ends)) => {
                let mut bytes = vec![HELLO, 1];
                ends.iter().for_each(|end| bytes.extend(address_to_bytes(end)));
                bytes
            }
            Note::Verdict(yes) => vec![VERDICT, u8::from(yes)],
        }
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Note, Corrupt> {
        let wrong = Corrupt::new("a note that is none", bytes.len() as u64);
        match *bytes {
            [HELLO, 0] => Ok(Note::Hello(None)),
            [HELLO, 1, ref ends @ ..] if ends.len() == 2 * ADDRESS_BYTES => {
                let (one, two) = ends.split_at(ADDRESS_BYTES);
                match (address_from_bytes(one), address_from_bytes(two)) {
                    (Some(one), Some(two)) => Ok(Note::Hello(Some([one, two]))),
                    _ => Err(wrong),
                }
            }
            [VERDICT, yes @ 0..=1] => Ok(Note::Verdict(yes == 1)),
            _ => Err(wrong),
        }
    }
}

/// `gid` 16, `number` 4, `first_packet` 4, `mtu` 4, `lid` 2, zero 2.
fn address_to_bytes(address: &Address) -> [u8; ADDRESS_BYTES] {
    let mut bytes = [0; ADDRESS_BYTES];
    bytes[..16].copy_from_slice(&address.gid);
    bytes[16..20].copy_from_slice(&address.number.to_le_bytes());
    bytes[20..24].copy_from_slice(&address.first_packet.to_le_bytes());
    bytes[24..28].copy_from_slice(&address.mtu.to_le_bytes());
    bytes[28..30].copy_from_slice(&address.lid.to_le_bytes());
    bytes
}

fn address_from_bytes(bytes: &[u8]) -> Option<Address> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let address = Address {
        gid: bytes.get(..16)?.try_into().ok()?,
        number: word(16)?,
        first_packet: word(20)?,
        mtu: word(24)?,
        lid: u16::from_le_bytes(bytes.get(28..30)?.try_into().ok()?),
    };
    let is_possible = address.number <= NUMBER_MAX
        && address.first_packet <= NUMBER_MAX
        && MTUS.contains(&address.mtu)
        && bytes.get(30..32)? == [0; 2];
    is_possible.then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Address = Address { gid: [7; 16], lid: 3, number: 0x0012_3456, first_packet: 9, mtu: 5 };

    #[test]
    fn notes_come_back_as_they_went() {
        let other = Address { mtu: 1, ..ADDRESS };
        for note in [
            Note::Hello(None),
            Note::Hello(Some([ADDRESS, other])),
            Note::Verdict(true),
            Note::Verdict(false),
        ] {
            assert_eq!(Note::from_bytes(&note.to_bytes()), Ok(note));
        }
    }

    #[test]
    fn what_is_no_note_is_refused() {
        let good = Note::Hello(Some([ADDRESS; 2])).to_bytes();
        for (at, byte) in [(0, 3), (1, 2), (2 + 19, 1), (2 + 24, 0), (2 + 24, 6), (2 + 30, 1)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert!(Note::from_bytes(&bad).is_err(), "byte {at} is {byte}");
        }
        for bad in [&good[..good.len() - 1], &[][..], &[HELLO][..], &[VERDICT, 2][..], &[HELLO, 0, 0][..]] {
            assert!(Note::from_bytes(bad).is_err(), "{bad:?}");
        }
    }
}
