//! Faults, wrapped around a fabric and never built in: [`Lossy`], [`Delayed`], [`Cut`].
//!
//! A fabric promises order and reliability within a session, so what a wire loses shows as a lost session, at both ends.
//! Both ends of a wire are wrapped and share a [`Switch`]. All chance is a seeded [`Dice`]: the same seed and the same
//! calls give the same faults.

mod breaker;
mod delayed;
mod switch;

use std::sync::Arc;

use abi::{Incarnation, NodeId};
use shm::map::Mapping;

use crate::{Armed, Caps, Completion, Desc, Fabric, Piece, RegionKey, Time, Waiter};
use breaker::Breaker;

pub use delayed::Delayed;
pub use switch::Switch;

/// A small generator of numbers that look random (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub const fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number from 0 to `most`, both included.
    pub fn up_to(&mut self, most: u64) -> u64 {
        if most == u64::MAX { self.roll() } else { self.roll() % (most + 1) }
    }
}

/// One end of wires that a [`Switch`] can cut. While two nodes are cut nothing crosses between them; the session ends
/// once, at both ends, and another begins after the healing.
pub struct Cut<F> {
    breaker: Breaker<F>,
}

impl<F: Fabric> Cut<F> {
    /// Wraps the end of `node`; every other end of the network must be wrapped with the same switch.
    pub fn new(inner: F, node: NodeId, switch: &Switch) -> Cut<F> {
        Cut { breaker: Breaker::new(inner, node, switch) }
    }
}

/// One end of wires that lose things: now and then a posted batch's rest, and with it the session.
pub struct Lossy<F> {
    breaker: Breaker<F>,
    dice: Dice,
    one_in: u64,
}

impl<F: Fabric> Lossy<F> {
    /// Wraps the end of `node`; every other end of the network must be wrapped with the same switch. One in `one_in`
    /// posted batches is cut short.
    pub fn new(inner: F, node: NodeId, switch: &Switch, seed: u64, one_in: u64) -> Lossy<F> {
        assert!(one_in > 0, "one batch in how many");
        Lossy {
            breaker: Breaker::new(inner, node, switch),
            dice: Dice::new(seed ^ (node.0 as u64) << 32),
            one_in,
        }
    }

    fn post(&mut self, peer: NodeId, batch: &[Desc<'_>]) -> usize {
        if batch.is_empty() || !self.breaker.is_up(peer) || self.dice.up_to(self.one_in - 1) != 0 {
            return self.breaker.post_send(peer, batch);
        }
        let kept = self.dice.up_to(batch.len() as u64 - 1) as usize;
        let taken = self.breaker.post_send(peer, &batch[..kept]);
        if taken < kept {
            return taken;
        }
        kept + self.breaker.lose(peer, &batch[kept..])
    }
}

/// Implements [`Fabric`] by a breaker, but for how it posts.
macro_rules! fabric_by_breaker {
    ($name:ident, $post:expr) => {
        impl<F: Fabric> Fabric for $name<F> {
            fn caps(&self) -> Caps {
                self.breaker.inner.caps()
            }

            fn attach(&mut self, map: &Arc<Mapping>) -> RegionKey {
                self.breaker.inner.attach(map)
            }

            fn detach(&mut self, region: RegionKey) {
                self.breaker.detach(region);
            }

            fn post_send(&mut self, peer: NodeId, batch: &[Desc<'_>]) -> usize {
                $post(self, peer, batch)
            }

            fn post_recv(&mut self, free: &[Piece]) -> usize {
                self.breaker.inner.post_recv(free)
            }

            fn accept(&mut self, peer: NodeId, token: u64, into: Piece) {
                self.breaker.accept(peer, token, into);
            }

            fn refuse(&mut self, peer: NodeId, token: u64) {
                self.breaker.refuse(peer, token);
            }

            fn poll(&mut self, now: Time, done: &mut Vec<Completion>) {
                self.breaker.poll(now, done);
            }

            fn waiter(&self) -> Waiter<'_> {
                self.breaker.waiter()
            }

            fn arm(&mut self) -> Armed {
                self.breaker.arm()
            }

            fn deadline(&self) -> Option<Time> {
                self.breaker.inner.deadline()
            }

            fn fence(&mut self, peer: NodeId, incarnation: Incarnation) {
                self.breaker.inner.fence(peer, incarnation);
            }
        }
    };
}

fabric_by_breaker!(Cut, |cut: &mut Cut<F>, peer, batch| cut.breaker.post_send(peer, batch));
fabric_by_breaker!(Lossy, |lossy: &mut Lossy<F>, peer, batch| lossy.post(peer, batch));
