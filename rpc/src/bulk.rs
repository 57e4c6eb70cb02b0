//! A large field of a service's arguments or result: [`Bulk`]. Its bytes are not encoded: they stay in the loan that they were
//! written into, and are read in place.
//!
//! Serde knows values, not messages. So a `Bulk` writes its length where it stands, and hands itself to a list of this
//! thread's that [`gathered`] keeps while a value is encoded; one that is read takes its range from what [`scattered`]
//! keeps. Neighbour: `codec`, which makes the one loan of it.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use dvk::{Loan, View};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes beside the arguments, or the result, of a call; up to `limits::EXTENT_BYTES_MAX` in all.
///
/// Made of a [`Loan`] that is the call's only one, the bytes are never copied: the receiver reads them where they are. Made of a
/// vector, or beside another one, they are copied once. Received, it is a view of the sender's memory: the sender may still
/// write there, so what must not change is copied out first, and while it is kept, so is the sender's loan.
pub struct Bulk(Rc<Bytes>);

enum Bytes {
    /// `None` once it was sent.
    Loan(RefCell<Option<Loan>>, usize),
    Vec(Vec<u8>),
    View {
        view: Rc<View>,
        from: usize,
        len: usize,
    },
}

impl Bulk {
    pub fn len(&self) -> usize {
        match &*self.0 {
            Bytes::Loan(_, len) | Bytes::View { len, .. } => *len,
            Bytes::Vec(bytes) => bytes.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether its bytes went away with a call: a loan is sent once.
    pub fn is_sent(&self) -> bool {
        matches!(&*self.0, Bytes::Loan(loan, _) if loan.borrow().is_none())
    }

    /// Copies bytes out, from `offset_bytes` on.
    ///
    /// # Panics
    /// If the range leaves it, or it was sent: a programmer's error, as with a slice.
    pub fn read_into(&self, offset_bytes: usize, out: &mut [u8]) {
        let end = offset_bytes.checked_add(out.len());
        let Some(end) = end.filter(|end| *end <= self.len()) else {
            panic!("{} bytes at {offset_bytes} of {}", out.len(), self.len());
        };
        match &*self.0 {
            Bytes::Vec(bytes) => out.copy_from_slice(&bytes[offset_bytes..end]),
            Bytes::View { view, from, .. } => view.read_into(from + offset_bytes, out),
            Bytes::Loan(loan, _) => match &*loan.borrow() {
                Some(loan) => out.copy_from_slice(&loan[offset_bytes..end]),
                None => panic!("its loan was sent"),
            },
        }
    }

    /// All bytes, copied. Panics as [`Bulk::read_into`].
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = vec![0; self.len()];
        self.read_into(0, &mut out);
        out
    }

    /// Its loan, if it is of one that was not sent.
    pub(crate) fn take_loan(&self) -> Option<Loan> {
        match &*self.0 {
            Bytes::Loan(loan, _) => loan.take(),
            _ => None,
        }
    }
}

impl From<Loan> for Bulk {
    fn from(loan: Loan) -> Bulk {
        let len = loan.len();
        Bulk(Rc::new(Bytes::Loan(RefCell::new(Some(loan)), len)))
    }
}

impl From<Vec<u8>> for Bulk {
    fn from(bytes: Vec<u8>) -> Bulk {
        Bulk(Rc::new(Bytes::Vec(bytes)))
    }
}

impl From<View> for Bulk {
    fn from(view: View) -> Bulk {
        let len = view.len();
        Bulk(Rc::new(Bytes::View { view: Rc::new(view), from: 0, len }))
    }
}

impl fmt::Debug for Bulk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bulk of {} bytes{}", self.len(), if self.is_sent() { ", sent" } else { "" })
    }
}

thread_local! {
    static OUT: RefCell<Option<Vec<Bulk>>> = const { RefCell::new(None) };
    static IN: RefCell<Option<In>> = const { RefCell::new(None) };
}

/// What the bulks of a value being read are cut from, in their order.
struct In {
    view: Rc<View>,
    next: usize,
    end: usize,
}

/// Takes down what a panic in somebody's `Serialize` would leave behind.
struct Clear;

impl Drop for Clear {
    fn drop(&mut self) {
        OUT.take();
        IN.take();
    }
}

/// Runs an encoding, and returns the bulks that it met, in their order.
pub(crate) fn gathered<T>(encode: impl FnOnce() -> T) -> (T, Vec<Bulk>) {
    let _clear = Clear;
    OUT.set(Some(Vec::new()));
    let done = encode();
    (done, OUT.take().unwrap_or_default())
}

/// Runs a decoding whose bulks are the first `end` bytes of a view, if there is one. The second value: whether it read all of them.
pub(crate) fn scattered<T>(from: Option<(View, usize)>, decode: impl FnOnce() -> T) -> (T, bool) {
    let _clear = Clear;
    IN.set(from.map(|(view, end)| In { view: Rc::new(view), next: 0, end }));
    let done = decode();
    let is_whole = IN.with_borrow(|rest| rest.as_ref().is_none_or(|rest| rest.next == rest.end));
    (done, is_whole)
}

impl Serialize for Bulk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let is_call = OUT.with_borrow_mut(|out| {
            let out = out.as_mut()?;
            out.push(Bulk(Rc::clone(&self.0)));
            Some(())
        });
        is_call.ok_or_else(|| S::Error::custom("a Bulk is no value: it goes with a call alone"))?;
        serializer.serialize_u64(self.len() as u64)
    }
}

impl<'de> Deserialize<'de> for Bulk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bulk, D::Error> {
        let len = u64::deserialize(deserializer)?;
        let cut = IN.with_borrow_mut(|rest| {
            let rest = rest.as_mut()?;
            let len = usize::try_from(len).ok().filter(|len| *len <= rest.end - rest.next)?;
            let from = rest.next;
            rest.next += len;
            Some(Bulk(Rc::new(Bytes::View { view: Rc::clone(&rest.view), from, len })))
        });
        cut.ok_or_else(|| D::Error::custom("more bytes than came along"))
    }
}
