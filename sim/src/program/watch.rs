//! Waits for the table of a DC to change, and the end of a binding by its own will.

use std::collections::VecDeque;

use abi::member::Request;
use abi::{Endpoint, Slot};
use dvk::core::Known;
use fabric::Time;

use super::{Body, Next, Scene, State};

/// What is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    Bind(Slot),
    Unbind(Endpoint),
}

impl Body {
    pub(super) fn watch_or_leave(&mut self, scene: &mut Scene<'_>, known: &mut VecDeque<Endpoint>) -> Next {
        let until = scene.now + scene.dice.us(0, 20_000);
        match scene.dice.below(12) {
            0 => self.unbind(scene),
            1..7 => {
                let Some(slot) = scene.dice.pick(scene.slots).copied() else { return self.think(scene) };
                scene.count("wait_bind");
                self.watching(scene, What::Bind(slot), until)
            }
            _ => {
                let Some(endpoint) = self.choose(scene, known) else { return self.think(scene) };
                scene.count("wait_unbind");
                self.watching(scene, What::Unbind(endpoint), until)
            }
        }
    }

    pub(super) fn watching(&mut self, scene: &mut Scene<'_>, what: What, until: Time) -> Next {
        match what {
            What::Bind(slot) if self.core.lookup(slot).is_some() => scene.row("wait_bind: bound"),
            What::Unbind(endpoint) if self.core.known(endpoint) != Known::Alive => {
                scene.told_dead(self.me, endpoint);
                scene.row("wait_unbind: ended");
            }
            What::Bind(_) | What::Unbind(_) if scene.now >= until => {
                scene.row("wait for the table: TimedOut")
            }
            What::Bind(_) | What::Unbind(_) => {
                self.state = State::Watching { what, until };
                return Next::At(scene.now + scene.dice.us(100, 2_000));
            }
        }
        self.think(scene)
    }

    /// Its daemon says that it has ended, and the world buries it.
    fn unbind(&mut self, scene: &mut Scene<'_>) -> Next {
        if scene.site.ask(scene.now, self.conn, Request::Unbind).is_ok() {
            scene.count("unbind");
        }
        self.think(scene)
    }
}
