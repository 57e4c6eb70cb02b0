//! Messages as they go out ([`Message`]) and as they come in ([`Delivery`], [`View`]).

use std::cell::Cell;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use abi::limits::{INLINE_BYTES_MAX, INLINE_BYTES_WITH_EXTENT_MAX};
use abi::slot::{BODY_WORDS, Head, Heading};
use abi::{Endpoint, slot};
use shm::map::Mapping;
use shm::pool::Loan;
use shm::{reply, returns};

use crate::peer::Path;

/// A message to send: a type of the user's, up to 96 bytes inline, and perhaps a loan.
///
/// Shape: inline bytes travel in the slot; with a loan 72 of them, the loan's bytes stay where they are.
#[derive(Default)]
pub struct Message {
    kind: u32,
    len: u8,
    inline: Inline,
    pub(crate) loan: Option<Loan>,
}

/// The bytes of a body, as the words of its slot.
#[derive(Clone, Copy)]
#[repr(align(8))]
pub(crate) struct Inline([u8; INLINE_BYTES_MAX]);

impl Default for Inline {
    #[inline]
    fn default() -> Self {
        Inline([0; INLINE_BYTES_MAX])
    }
}

impl Inline {
    #[inline(always)]
    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at * 8..at * 8 + 8].try_into().unwrap_or([0; 8]))
    }

    #[inline(always)]
    fn of_words(words: &[u64; BODY_WORDS]) -> Inline {
        let mut inline = Inline::default();
        for (place, word) in inline.0.as_chunks_mut().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        inline
    }
}

impl Message {
    /// A message of this type, without any bytes yet.
    #[inline]
    pub fn new(kind: u32) -> Message {
        Message { kind, ..Message::default() }
    }

    /// Sets the inline bytes.
    ///
    /// # Panics
    /// Beyond `limits::INLINE_BYTES_MAX` bytes, or `INLINE_BYTES_WITH_EXTENT_MAX` with a loan.
    #[inline]
    #[must_use]
    pub fn inline(mut self, bytes: &[u8]) -> Message {
        let room = if self.loan.is_some() { INLINE_BYTES_WITH_EXTENT_MAX } else { INLINE_BYTES_MAX };
        assert!(bytes.len() <= room, "{} inline bytes of at most {room}: use a loan", bytes.len());
        self.inline.0[..bytes.len()].copy_from_slice(bytes);
        self.len = bytes.len() as u8;
        self
    }

    /// Lets a loan travel along.
    ///
    /// # Panics
    /// If more than `limits::INLINE_BYTES_WITH_EXTENT_MAX` bytes are inline already.
    #[must_use]
    pub fn with(mut self, loan: Loan) -> Message {
        let room = INLINE_BYTES_WITH_EXTENT_MAX;
        assert!(self.len as usize <= room, "{} inline bytes of at most {room} beside a loan", self.len);
        self.loan = Some(loan);
        self
    }

    #[inline]
    pub fn kind(&self) -> u32 {
        self.kind
    }

    pub fn bytes(&self) -> &[u8] {
        &self.inline.0[..self.len as usize]
    }

    /// Takes the loan out again.
    pub fn into_loan(self) -> Option<Loan> {
        self.loan
    }

    /// What stands beside the body of its slot.
    #[inline(always)]
    pub(crate) fn heading(&self, kind: slot::Kind, flags: u8, source: Endpoint, call: u32) -> Heading {
        let flags = if self.loan.is_some() { flags | slot::EXTENT } else { flags };
        let head = Head { lap: 0, kind, flags, len: self.len.into() };
        Heading { head, source: source.to_word(), kind: self.kind, call }
    }

    /// A word of the body of a message without a loan. What is beyond the message's bytes is zero.
    #[inline(always)]
    pub(crate) fn word(&self, at: usize) -> u64 {
        self.inline.word(at)
    }

    /// The slot of a message with a loan, without its descriptor, lap and sequence.
    pub(crate) fn to_slot(&self, heading: Heading) -> slot::SlotCopy {
        let from = slot::BODY_WORDS - INLINE_BYTES_WITH_EXTENT_MAX / 8;
        let mut body = [0; slot::BODY_WORDS];
        body[from..].iter_mut().enumerate().for_each(|(at, word)| *word = self.inline.word(at));
        slot::SlotCopy::of(heading, 0, body)
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loan = self.loan.as_ref().map(|l| l.len());
        f.debug_struct("Message")
            .field("kind", &self.kind)
            .field("inline", &self.len)
            .field("loan", &loan)
            .finish()
    }
}

/// Whom a `receive` listens to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum From {
    Any,
    /// Only ever something from this endpoint.
    Endpoint(Endpoint),
}

/// What was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// A `post` or a `send`.
    Message,
    /// A `sendrec`: its client waits for `reply`. Dropped unanswered, it is answered with `Abandoned`.
    Request { call: u64 },
    /// Bits that were raised since the last time. Carries nothing else.
    Notification { bits: u32 },
    /// A `wake`: nothing came along, look at what you wait for besides messages.
    Woken,
    /// The source has ended, of which the cluster file makes our slot the warn target. Carries nothing else.
    Warned,
    /// The answer to our own `sendrec`.
    Reply,
}

/// A received message, request, notification or reply.
pub struct Delivery {
    source: Endpoint,
    what: What,
    kind: u32,
    /// The body as it came; the inline bytes are `len` from `from` on.
    body: Inline,
    from: u8,
    len: u8,
    view: Option<View>,
    owed: Option<Owed>,
    /// Who passed the request on to us.
    via: Option<Endpoint>,
}

impl Delivery {
    /// Of a slot that was read. Inlined, so that the words of the slot are written into the delivery alone.
    #[inline(always)]
    pub(crate) fn of_slot(
        source: Endpoint,
        what: What,
        message: &slot::SlotCopy,
        view: Option<View>,
        owed: Option<Owed>,
    ) -> Delivery {
        // Both are checked: a head that claims more than fits was refused when it was read.
        let with_extent = message.head.has(slot::EXTENT);
        let from = if with_extent { (INLINE_BYTES_MAX - INLINE_BYTES_WITH_EXTENT_MAX) as u8 } else { 0 };
        let len = message.head.len as u8;
        let body = Inline::of_words(&message.body);
        Delivery { source, what, kind: message.kind, body, from, len, view, owed, via: None }
    }

    pub(crate) fn passed_on_by(self, via: Endpoint) -> Delivery {
        Delivery { via: Some(via), ..self }
    }

    /// The message as it came, without its extent.
    pub(crate) fn to_message(&self) -> Message {
        Message::new(self.kind).inline(self.inline())
    }

    pub(crate) fn of_bits(source: Endpoint, bits: u32) -> Delivery {
        Delivery::empty(source, What::Notification { bits })
    }

    pub(crate) fn of_warning(ended: Endpoint) -> Delivery {
        Delivery::empty(ended, What::Warned)
    }

    pub(crate) fn of_wake(source: Endpoint) -> Delivery {
        Delivery::empty(source, What::Woken)
    }

    fn empty(source: Endpoint, what: What) -> Delivery {
        Delivery {
            source,
            what,
            kind: 0,
            body: Inline::default(),
            from: 0,
            len: 0,
            view: None,
            owed: None,
            via: None,
        }
    }

    /// The answer that its client waits for.
    pub(crate) fn owed(&self) -> Option<&Owed> {
        self.owed.as_ref()
    }

    /// Who sent it. Cannot be forged.
    #[inline]
    pub fn source(&self) -> Endpoint {
        self.source
    }

    #[inline]
    pub fn what(&self) -> What {
        self.what
    }

    /// Of a request that was passed on with `relay`: by whom. Its source is the client that waits for the answer.
    pub fn via(&self) -> Option<Endpoint> {
        self.via
    }

    /// The user's type of the message.
    pub fn kind(&self) -> u32 {
        self.kind
    }

    /// The inline bytes: copied, nobody can change them any more.
    #[inline]
    pub fn inline(&self) -> &[u8] {
        &self.body.0[self.from as usize..][..self.len as usize]
    }

    /// The extent that came along, read in place.
    pub fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// Takes the view out, to keep it longer than the delivery.
    pub fn take_view(&mut self) -> Option<View> {
        self.view.take()
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("source", &self.source)
            .field("what", &self.what)
            .field("kind", &self.kind)
            .field("inline", &self.len)
            .field("view", &self.view.as_ref().map(View::len))
            .finish()
    }
}

/// A received extent, read through a read-only mapping. Dropped, it goes home to its sender.
///
/// The sender can still write the bytes: what must not change is copied out first. Stays on its thread, as its binding.
pub struct View {
    map: Arc<Mapping>,
    range: Range<usize>,
    home: Home,
}

/// Where a received extent goes when it is no longer needed.
pub(crate) struct Home {
    pub(crate) path: Rc<Path>,
    pub(crate) token: u32,
    pub(crate) memory: u32,
    pub(crate) given: Cell<bool>,
}

impl Home {
    pub(crate) fn give(&self) {
        if !self.given.replace(true) && self.path.is_open() {
            returns::give(&self.path.own, self.token, self.memory);
            self.path.knock_for_returns();
        }
    }
}

/// The answer to a request that was received. Dropped unanswered, it tells the client.
pub(crate) struct Owed {
    path: Rc<Path>,
    call: u64,
    answered: Cell<bool>,
}

impl Owed {
    #[inline]
    pub(crate) fn new(path: Rc<Path>, call: u64) -> Owed {
        Owed { path, call, answered: Cell::new(false) }
    }

    pub(crate) fn call(&self) -> u64 {
        self.call
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.answered.get()
    }

    /// Nothing more is owed: a reply is published, or nobody waits for one.
    pub(crate) fn settle(&self) {
        self.answered.set(true);
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        let waits = || self.path.far.borrow().side.gave_up() < self.call;
        if self.is_answered() || !self.path.is_open() || !waits() {
            return;
        }
        let heading = Message::new(0).heading(slot::Kind::Reply, slot::ABANDONED, self.path.me, 0);
        // A courier may be looking, as far as is known here.
        reply::publish_body(&self.path.own, self.call, heading, true, |_| 0);
        self.path.knock();
    }
}

impl View {
    pub(crate) fn new(map: Arc<Mapping>, range: Range<usize>, home: Home) -> View {
        View { map, range, home }
    }

    pub fn len(&self) -> usize {
        self.range.len()
    }

    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Copies bytes out, from `offset_bytes` on.
    ///
    /// # Panics
    /// If the range leaves the view: a programmer's error, as with a slice.
    pub fn read_into(&self, offset_bytes: usize, out: &mut [u8]) {
        let end = offset_bytes.checked_add(out.len());
        assert!(
            end.is_some_and(|end| end <= self.len()),
            "{} bytes at {offset_bytes} of {}",
            out.len(),
            self.len()
        );
        if self.map.read_into(self.range.start + offset_bytes, out).is_err() {
            unreachable!("the range was checked against the mapping when the view was made");
        }
    }

    /// All bytes, copied.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = vec![0; self.len()];
        self.read_into(0, &mut out);
        out
    }

    /// Copies the front of the view into a loan, from memory to memory; returns how many bytes.
    pub fn copy_to(&self, loan: &mut Loan) -> usize {
        let len = self.len().min(loan.len());
        self.read_into(0, &mut loan[..len]);
        len
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.home.give();
    }
}
