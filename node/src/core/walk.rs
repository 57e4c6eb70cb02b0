//! Random walks through the core: sides and memories are conserved, whatever members, proxies and time do.

use std::collections::BTreeSet;

use abi::Endpoint;
use abi::courier::{FromProxy, LinkState};
use abi::limits::ORPHAN_KEEP_MS;
use abi::member::Request;

use super::tests::{FAR, World, far, ms};
use super::*;

/// A small generator of choices; the same seed makes the same walk.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}

fn walk(seed: u64) {
    let mut dice = Dice(seed);
    let mut world = World::up(Some(50));
    let mut bound: Vec<(ConnId, Endpoint)> = Vec::new();
    let mut gone: Vec<Endpoint> = Vec::new();
    for turn in 0..400 {
        let pick = dice.roll(bound.len().max(1));
        let one = bound.get(pick).copied();
        let remote = far(16 + dice.roll(4) as u16, 1 + dice.roll(2) as u32);
        match (dice.roll(12), one) {
            (0 | 1, _) if bound.len() < 12 && world.core.is_open(abi::DcId(1)) => {
                bound.extend(world.try_bind(None))
            }
            (2, Some((conn, own))) => {
                world.step(Input::Disconnected { conn });
                bound.retain(|(_, e)| *e != own);
                gone.push(own);
            }
            (3 | 4, Some((conn, _))) => {
                let to = bound[dice.roll(bound.len())].1;
                world.ask(conn, Request::Introduce { to });
            }
            (5, Some((conn, _))) => drop(world.ask(conn, Request::Introduce { to: remote })),
            (6, Some((conn, _))) => drop(world.ask(conn, Request::Pull)),
            (7, Some((conn, _))) => {
                let peer = gone.get(dice.roll(gone.len().max(1))).copied().unwrap_or(remote);
                world.ask(conn, Request::Recycled { peer });
            }
            (8, Some((_, local))) => world.said(FromProxy::RemoteOpen { local, remote, node: FAR }),
            // The other node, or an operator here, takes this one out of the DC, or lets it in again.
            (11, _) if dice.roll(4) == 0 => {
                match dice.roll(2) {
                    // Not heard when that node was declared dead.
                    0 => world.describe(50, &world.toggled()),
                    _ => world.toggle(),
                }
                if !world.main().spans(NodeId(1)) {
                    for (conn, endpoint) in bound.drain(..) {
                        world.step(Input::Disconnected { conn });
                        gone.push(endpoint);
                    }
                }
            }
            (9, _) => match dice.roll(6) {
                0 => {
                    world.step(Input::ProxyExited { proxy: 1 });
                    let now = world.now + ms(1500);
                    world.until(now);
                    world.link(50, LinkState::Up);
                }
                1 => world.said(FromProxy::Detached { local: one.map_or(far(0, 1), |o| o.1), remote }),
                // With an odd seed the proxy obeys throughout, and need not die for its sides to come back.
                2 => world.obeys = seed % 2 == 1 || !world.obeys,
                _ => world.directory(50, ChunkKind::Delta, &[(remote, dice.roll(2) == 0)]),
            },
            _ => {
                let now = world.now + ms(dice.roll(9000) as u64);
                world.until(now);
            }
        }
        let shared = world.core.sides_given_twice();
        assert_eq!(shared, 0, "seed {seed}, turn {turn}: a side is in two hands");
    }
    if !world.main().spans(NodeId(1)) {
        world.toggle();
    }
    world.obeys = true;
    if seed.is_multiple_of(2) {
        world.step(Input::ProxyExited { proxy: 1 });
    }
    for (conn, _) in bound {
        world.step(Input::Disconnected { conn });
    }
    let now = world.now + ms(ORPHAN_KEEP_MS + 5000);
    world.until(now);
    assert!(world.core.locals.is_empty() && world.core.opens.is_empty(), "seed {seed}");
    let of_proxy: BTreeSet<u32> = world.core.memories.keys().copied().collect();
    assert_eq!(of_proxy.len(), 1, "seed {seed}: only the proxy's memory is left");
    assert_eq!(world.memories, of_proxy, "seed {seed}: what the core forgot was dropped");
    assert!(world.core.memories.values().all(|m| m.used.is_empty()), "seed {seed}: its sides are free");
    assert!(world.core.orphans.is_empty() && world.core.conns.is_empty());
}

impl Core {
    /// Sides that are free and in use, or in use for two pairs.
    fn sides_given_twice(&self) -> usize {
        let mut wrong = 0;
        for local in self.locals.values() {
            let used: BTreeSet<_> = local.links.values().map(|l| l.own).collect();
            wrong += local.links.len() - used.len();
            wrong += self.memories.get(&local.memory).map_or(0, |m| m.free_among(&used));
        }
        for memory in self.memories.values() {
            let used: BTreeSet<_> = memory.used.values().copied().collect();
            wrong += memory.used.len() - used.len() + memory.free_among(&used);
        }
        wrong
    }
}

#[test]
fn sides_and_memories_are_conserved_whatever_happens() {
    for seed in 0..200 {
        walk(seed);
    }
}
