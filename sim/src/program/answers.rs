//! What a program does with requests: answers, drops, passes on.

use abi::Endpoint;
use dvk::core::PeerIndex;
use dvk::{Message, RelayError};

use super::verbs::STAMP_BYTES;
use super::{Body, Owed, Scene};
use crate::dice::mix;
use crate::invariants::payload::pattern;

impl Body {
    /// Answers the oldest request that is owed.
    pub(super) fn answer(&mut self, scene: &mut Scene<'_>) {
        let Some(owed) = self.owed.pop_front() else { return };
        let client = owed.request.source();
        if scene.missing.is_none() && scene.dice.one_in(12) {
            scene.count("request dropped");
            return;
        }
        if !scene.healing
            && (scene.missing == Some("relay") || scene.dice.one_in(4))
            && let Some(next) = self.successor(scene, client)
        {
            return self.pass_on(scene, owed, next);
        }
        let value = mix(owed.number ^ self.me.to_word());
        let loan = if scene.dice.below(10) < 3 { self.loan(scene) } else { None };
        let extent_bytes = loan.as_ref().map_or(u32::MAX, |loan| loan.len() as u32);
        let mut inline = [0; STAMP_BYTES];
        inline[..8].copy_from_slice(&owed.number.to_le_bytes());
        inline[8..16].copy_from_slice(&value.to_le_bytes());
        inline[16..].copy_from_slice(&extent_bytes.to_le_bytes());
        let message = Message::new(1);
        let message = match loan {
            Some(mut loan) => {
                let len_bytes = loan.len();
                loan.copy_from_slice(&pattern(self.me, client, owed.number, len_bytes));
                message.with(loan).inline(&inline)
            }
            None => message.inline(&inline),
        };
        scene.count("reply");
        match self.core.reply(&owed.request, message) {
            Ok(()) => {
                let stream = scene.ledger.stream(client, owed.origin);
                if let Some(sent) = stream.sent.get_mut(owed.number as usize) {
                    sent.replied = Some(value);
                }
            }
            Err(dvk::ReplyError::NotWaiting) => scene.row("reply to one that waits no more"),
            // The client waits: the request is still owed.
            Err(dvk::ReplyError::Full) => self.owed.push_back(owed),
            Err(_) => {}
        }
    }

    /// Somebody to pass a request on to: upwards only, as calls without an end, so that no two wait for one another for ever.
    fn successor(&mut self, scene: &mut Scene<'_>, client: Endpoint) -> Option<(Endpoint, PeerIndex)> {
        let (own, slot) = (self.me.slot, scene.dice.pick(scene.slots).copied());
        let whoever = if scene.missing.is_some() { scene.slots } else { &[] };
        slot.iter().chain(whoever).filter(|slot| **slot > own).find_map(|slot| {
            let to = self.core.lookup(*slot).filter(|to| *to != client)?;
            Some((to, self.core.find(to).or_else(|| self.meet(scene, to))?))
        })
    }

    fn pass_on(&mut self, scene: &mut Scene<'_>, owed: Owed, (to, index): (Endpoint, PeerIndex)) {
        let client = owed.request.source();
        let _ = self.core.pull(&mut Body::hands(&mut self.home, self.conn, scene));
        let loan = if scene.dice.below(10) < 3 { self.loan(scene) } else { None };
        let message = self.stamped(scene, (client, to, owed.origin), owed.number, loan);
        scene.count("relay");
        match self.core.relay(&owed.request, index, message) {
            Ok(()) => scene.ledger.passed((client, owed.origin), owed.number, self.me, to),
            Err(RelayError::NotWaiting) => scene.row("relay for one that waits no more"),
            Err(RelayError::Corrupt(why)) => {
                scene.ledger.find("corrupt", Some(format!("{} passing on to {to}: {why}", self.me)));
            }
            Err(why) => {
                if why == RelayError::DeadDestination {
                    scene.told_dead(self.me, to);
                    scene.row("relay to a dead one");
                }
                // The request is still owed.
                self.owed.push_back(owed);
            }
        }
    }
}
