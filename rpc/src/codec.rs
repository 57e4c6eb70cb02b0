//! Values as messages: inline where they fit, in a loan where they do not.

use std::fmt;

use dvk::{Binding, Delivery, LoanError, Message};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of arguments or of a result. More is refused before it is copied: whoever answers sets aside no more for one
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

pub(crate) fn encode<T: Serialize>(me: &mut Binding, kind: u32, value: &T) -> Result<Message, NotEncoded> {
    let mut inline = [0; abi::limits::INLINE_BYTES_MAX];
    if let Ok(bytes) = postcard::to_slice(value, &mut inline) {
        return Ok(Message::new(kind).inline(bytes));
    }
    let len_bytes = postcard::experimental::serialized_size(value).map_err(|_| NotEncoded::TooLong)?;
    if len_bytes > PAYLOAD_BYTES_MAX {
        return Err(NotEncoded::TooLong);
    }
    let mut loan = me.loan(len_bytes).map_err(NotEncoded::Loan)?;
    postcard::to_slice(value, &mut loan).map_err(|_| NotEncoded::TooLong)?;
    Ok(Message::new(kind).with(loan))
}

/// What came, copied out first: its sender can still write a loan.
pub(crate) fn decode<T: DeserializeOwned>(delivery: &Delivery) -> Result<T, Malformed> {
    match delivery.view() {
        Some(view) if view.len() > PAYLOAD_BYTES_MAX => Err(Malformed),
        Some(view) => whole(&view.to_vec()),
        None => whole(delivery.inline()),
    }
}

fn whole<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) | Err(_) => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_left_over_or_missing_are_malformed() {
        assert_eq!(whole::<(u8, bool)>(&[7, 1]), Ok((7, true)));
        assert_eq!(whole::<(u8, bool)>(&[7, 1, 0]), Err(Malformed));
        assert_eq!(whole::<(u8, bool)>(&[7]), Err(Malformed));
        assert_eq!(whole::<(u8, bool)>(&[7, 2]), Err(Malformed), "no bool");
        // A length of 4 GiB with nothing behind it.
        assert_eq!(whole::<Vec<u8>>(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Err(Malformed));
    }

    #[test]
    fn interfaces_of_other_names_are_others() {
        assert_ne!(interface("Store"), interface("Counter"));
        assert_eq!(interface("Store"), interface("Store"));
    }
}
