//! Two rings in shared memory, one each way: a sequence word and a payload in each slot, the consumer's
//! progress published now and then, both sides spinning. Nothing is checked and nobody is protected: that is
//! the point.
//!
//! Key type: [`Rings`]. Neighbour: `bare` drives it.
#![expect(unsafe_code, reason = "slots are addressed without checks, as a bare ping-pong would")]

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::{BareError, Buffer, Echo, PingPong, Samples, Wire, ask, echo, start_echo};
use crate::map::{Access, Mapping};
use crate::os::memfd::segment_fd;
use crate::sync::{AtomicU64, Ordering, relax};

/// Where a ring's progress word lies, and where its slots begin.
const HEAD_AT: usize = 128;
const SLOTS_AT: usize = 4096;
/// How many turns of a spin pass between two looks at whether the other side lives.
const TURNS_PER_LOOK: u32 = 1 << 22;

/// The measuring side.
pub(super) fn measure(cfg: &PingPong, whole: bool) -> Result<Samples, BareError> {
    let shape = Shape::of(cfg.size_bytes.max(8));
    let (fd, _) = segment_fd("bare", 2 * shape.ring_bytes(), false).map_err(BareError::Map)?;
    let memory = map(&fd, shape)?;
    let echo = start_echo(cfg, if whole { "copy" } else { "desc" }, fd)?;
    let mut rings = Rings::new(memory, shape, 0, whole, Some(echo));
    let mut buffer = Buffer::new(shape.size_bytes, 2048);
    let samples = ask(cfg, &mut rings, buffer.bytes())?;
    rings.other.take().map_or(Ok(()), Echo::wait)?;
    Ok(samples)
}

/// The echo's side.
pub(super) fn serve(fd: OwnedFd, size_bytes: usize, whole: bool) -> Result<(), BareError> {
    let shape = Shape::of(size_bytes.max(8));
    let mut rings = Rings::new(map(&fd, shape)?, shape, 1, whole, None);
    echo(&mut rings, Buffer::new(shape.size_bytes, 2048).bytes())
}

fn map(fd: &OwnedFd, shape: Shape) -> Result<Arc<Mapping>, BareError> {
    Mapping::shared(fd.as_fd(), 0, 2 * shape.ring_bytes(), Access::ReadWrite).map_err(BareError::Map)
}

/// Few slots, so that they stay in the cache: one message is under way at a time.
#[derive(Clone, Copy)]
struct Shape {
    size_bytes: usize,
    stride: usize,
    slots: u64,
}

impl Shape {
    fn of(size_bytes: usize) -> Shape {
        let slots = match size_bytes {
            0..=1024 => 64,
            1025..=4096 => 16,
            _ => 2,
        };
        Shape { size_bytes, stride: (8 + size_bytes).next_multiple_of(64), slots }
    }

    fn ring_bytes(self) -> usize {
        (SLOTS_AT + self.stride * self.slots as usize).next_multiple_of(4096)
    }
}

/// One side's view of both rings.
struct Rings {
    out: NonNull<u8>,
    back: NonNull<u8>,
    shape: Shape,
    /// How many bytes of a message are copied.
    copied_bytes: usize,
    sent: u64,
    received: u64,
    /// The other's progress as last seen, and ours as last published.
    head_seen: u64,
    head_told: u64,
    other: Option<Echo>,
    _memory: Arc<Mapping>,
}

impl Rings {
    fn new(memory: Arc<Mapping>, shape: Shape, side: usize, whole: bool, other: Option<Echo>) -> Rings {
        let ring = |which: usize| {
            let span = memory.span(which * shape.ring_bytes(), shape.ring_bytes());
            span.expect("both rings are mapped").cast::<u8>()
        };
        let (out, back) = (ring(side), ring(1 - side));
        let copied_bytes = if whole { shape.size_bytes } else { 8 };
        let (sent, received, head_seen, head_told) = (0, 0, 0, 0);
        Rings { out, back, shape, copied_bytes, sent, received, head_seen, head_told, other, _memory: memory }
    }

    #[inline]
    fn slot(&self, ring: NonNull<u8>, number: u64) -> NonNull<u8> {
        let index = (number & (self.shape.slots - 1)) as usize;
        // SAFETY: 1. `index` is below the number of slots, so the slot is inside its ring, which is mapped.
        unsafe { ring.add(SLOTS_AT + index * self.shape.stride) }
    }

    /// Spins until `done`, looking now and then whether the other side still lives.
    #[inline]
    fn spin(&mut self, mut done: impl FnMut() -> bool) -> Result<(), BareError> {
        loop {
            for _ in 0..TURNS_PER_LOOK {
                if done() {
                    return Ok(());
                }
                relax();
            }
            if self.other.as_mut().is_some_and(Echo::ended) {
                return Err(BareError::EchoEnded);
            }
        }
    }
}

/// The word at `at`, a multiple of 8 bytes into a mapped ring.
#[inline]
fn word<'a>(at: NonNull<u8>) -> &'a AtomicU64 {
    // SAFETY: 1. Rings begin at a page, slots at multiples of 64, the head at 128: aligned.
    //         2. Mapped for as long as `Rings`, which outlives every use in this module.
    //         3. Both processes reach these words as atomics only.
    unsafe { at.cast::<AtomicU64>().as_ref() }
}

impl Wire for Rings {
    #[inline]
    fn send(&mut self, buffer: &mut [u8]) -> Result<(), BareError> {
        if self.sent - self.head_seen >= self.shape.slots {
            // SAFETY: 1. The head is inside the ring.
            let head = word(unsafe { self.out.add(HEAD_AT) });
            let (sent, slots) = (self.sent, self.shape.slots);
            let mut seen = self.head_seen;
            self.spin(|| {
                // Pairs with: `recv` head store. The slot has been read out.
                seen = head.load(Ordering::Acquire);
                sent - seen < slots
            })?;
            self.head_seen = seen;
        }
        let slot = self.slot(self.out, self.sent);
        let src = &buffer[..self.copied_bytes];
        // SAFETY: 1. A slot has its word and `size_bytes` behind it.
        let payload = unsafe { slot.add(8) };
        // SAFETY: 1. `copied_bytes` fit the slot. 2. The consumer has left it: its head said so.
        unsafe { payload.copy_from_nonoverlapping(NonNull::from(src).cast(), src.len()) };
        self.sent += 1;
        // Pairs with: `recv` sequence load.
        word(slot).store(self.sent, Ordering::Release);
        Ok(())
    }

    #[inline]
    fn recv(&mut self, buffer: &mut [u8]) -> Result<(), BareError> {
        let slot = self.slot(self.back, self.received);
        let (sequence, wanted) = (word(slot), self.received + 1);
        // Pairs with: `send` sequence store.
        self.spin(|| sequence.load(Ordering::Acquire) == wanted)?;
        let dst = &mut buffer[..self.copied_bytes];
        // SAFETY: 1. A slot has its word and `size_bytes` behind it.
        let payload = unsafe { slot.add(8) };
        // SAFETY: 1. `copied_bytes` fit slot and buffer. 2. The producer leaves the slot alone until our head
        //            passes it.
        unsafe { payload.copy_to_nonoverlapping(NonNull::from(&mut *dst).cast(), dst.len()) };
        self.received = wanted;
        if self.received - self.head_told >= (self.shape.slots / 8).max(1) {
            self.head_told = self.received;
            // SAFETY: 1. The head is inside the ring.
            let head = word(unsafe { self.back.add(HEAD_AT) });
            // Pairs with: `send` head load.
            head.store(self.received, Ordering::Release);
        }
        Ok(())
    }
}
