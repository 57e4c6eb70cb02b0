//! Values as messages: inline where they fit, in a loan where they do not. With [`Bulk`] fields the loan has their bytes, one
//! after the other, and the value is inline behind a word; where it does not fit there it is at the loan's end, and the
//! word is its length.

use std::fmt;

use abi::limits::{INLINE_BYTES_MAX, INLINE_BYTES_WITH_EXTENT_MAX};
use dvk::{Binding, Delivery, Loan, LoanError, Message, View};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bulk::{Bulk, gathered, scattered};

/// Bytes of arguments or of a result, its [`Bulk`] fields apart, which nobody copies. More is refused before it is copied: whoever answers sets aside no more for one
/// request than this.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// The bytes are not of the type that the interface names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not what the interface says: are both programs of one version?")
    }
}

impl std::error::Error for Malformed {}

/// Why a value became no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NotEncoded {
    /// Longer than `PAYLOAD_BYTES_MAX`, or of a type without a fixed form.
    TooLong,
    /// The loan of a bulk went with another call.
    Sent,
    Loan(LoanError),
}

/// The number by which an interface knows its own requests: a hash of its name (FNV-1a, folded to 16 bits).
pub const fn interface(name: &str) -> u16 {
    let bytes = name.as_bytes();
    let mut hash: u32 = 0x811c_9dc5;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    (hash ^ (hash >> 16)) as u16
}

/// The word before a value that has bulks.
const TAIL_BYTES: usize = size_of::<u32>();

pub(crate) fn encode<T: Serialize>(me: &mut Binding, kind: u32, value: &T) -> Result<Message, NotEncoded> {
    let mut inline = [0; INLINE_BYTES_MAX];
    let (encoded, bulks) = gathered(|| postcard::to_slice(value, &mut inline).map(|bytes| bytes.len()));
    match encoded {
        Ok(len) if bulks.is_empty() => return Ok(Message::new(kind).inline(&inline[..len])),
        _ => {}
    }
    let (len_bytes, bulks) = gathered(|| postcard::experimental::serialized_size(value));
    let len_bytes = len_bytes.map_err(|_| NotEncoded::TooLong)?;
    if len_bytes > PAYLOAD_BYTES_MAX {
        return Err(NotEncoded::TooLong);
    }
    if bulks.iter().any(Bulk::is_sent) {
        return Err(NotEncoded::Sent);
    }
    let put = |place: &mut [u8]| match gathered(|| postcard::to_slice(value, place).map(|_| ())).0 {
        Ok(()) => Ok(()),
        Err(_) => Err(NotEncoded::TooLong),
    };
    if bulks.is_empty() {
        let mut loan = me.loan(len_bytes).map_err(NotEncoded::Loan)?;
        put(&mut loan)?;
        return Ok(Message::new(kind).with(loan));
    }
    let mut inline = [0; INLINE_BYTES_WITH_EXTENT_MAX];
    if TAIL_BYTES + len_bytes <= inline.len() {
        let inline = &mut inline[..TAIL_BYTES + len_bytes];
        put(&mut inline[TAIL_BYTES..])?;
        return Ok(Message::new(kind).inline(inline).with(loan_of(me, &bulks, 0)?));
    }
    let tail = u32::try_from(len_bytes).map_err(|_| NotEncoded::TooLong)?;
    let mut loan = loan_of(me, &bulks, len_bytes)?;
    let from = loan.len() - len_bytes;
    put(&mut loan[from..])?;
    Ok(Message::new(kind).inline(&tail.to_le_bytes()).with(loan))
}

/// One loan with the bytes of all bulks, and room for so many more; the loan of the only one as it is.
fn loan_of(me: &mut Binding, bulks: &[Bulk], more: usize) -> Result<Loan, NotEncoded> {
    if let ([only], 0) = (bulks, more)
        && let Some(loan) = only.take_loan()
    {
        return Ok(loan);
    }
    let len = bulks.iter().try_fold(more, |sum, bulk| sum.checked_add(bulk.len()));
    let mut loan = me.loan(len.ok_or(NotEncoded::TooLong)?).map_err(NotEncoded::Loan)?;
    let mut at = 0;
    for bulk in bulks {
        bulk.read_into(0, &mut loan[at..at + bulk.len()]);
        at += bulk.len();
    }
    Ok(loan)
}

/// What came; all but bulks is copied out first: its sender can still write a loan.
pub(crate) fn decode<T: DeserializeOwned>(delivery: &mut Delivery) -> Result<T, Malformed> {
    match (delivery.take_view(), delivery.inline()) {
        (None, inline) => whole(None, inline),
        (Some(view), []) if view.len() <= PAYLOAD_BYTES_MAX => whole(None, &view.to_vec()),
        (Some(_), []) => Err(Malformed),
        (Some(view), inline) => {
            let (tail, inline) = inline.split_first_chunk::<TAIL_BYTES>().ok_or(Malformed)?;
            let tail = u32::from_le_bytes(*tail) as usize;
            let end = view.len().checked_sub(tail).ok_or(Malformed)?;
            match (tail, inline) {
                (0, inline) => whole(Some((view, end)), inline),
                (1..=PAYLOAD_BYTES_MAX, []) => {
                    let mut bytes = vec![0; tail];
                    view.read_into(end, &mut bytes);
                    whole(Some((view, end)), &bytes)
                }
                _ => Err(Malformed),
            }
        }
    }
}

fn whole<T: DeserializeOwned>(bulks: Option<(View, usize)>, bytes: &[u8]) -> Result<T, Malformed> {
    match scattered(bulks, || postcard::take_from_bytes(bytes)) {
        (Ok((value, [])), true) => Ok(value),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_left_over_or_missing_are_malformed() {
        assert_eq!(whole::<(u8, bool)>(None, &[7, 1]), Ok((7, true)));
        assert_eq!(whole::<(u8, bool)>(None, &[7, 1, 0]), Err(Malformed));
        assert_eq!(whole::<(u8, bool)>(None, &[7]), Err(Malformed));
        assert_eq!(whole::<(u8, bool)>(None, &[7, 2]), Err(Malformed), "no bool");
        // A length of 4 GiB with nothing behind it.
        assert_eq!(whole::<Vec<u8>>(None, &[0xff, 0xff, 0xff, 0xff, 0x0f]), Err(Malformed));
    }

    #[test]
    fn a_bulk_of_which_nothing_came_is_malformed_and_is_no_value_elsewhere() {
        assert!(whole::<(u8, Bulk)>(None, &[7, 0]).is_err());
        assert!(whole::<Bulk>(None, &[5]).is_err());
        assert!(postcard::to_slice(&Bulk::from(vec![1]), &mut [0; 16]).is_err());
    }

    #[test]
    fn interfaces_of_other_names_are_others() {
        assert_ne!(interface("Store"), interface("Counter"));
        assert_eq!(interface("Store"), interface("Store"));
    }
}
