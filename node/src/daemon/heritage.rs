//! Driver: what a successor takes over from a killed daemon: descriptors from the keeper, the core's state from the journal.
//! Nothing of it is taken on trust that can be looked at: a connection must still be its process's, a segment as long and as
//! sealed as the state says.
//!
//! Key types: [`Heritage`], [`Adopted`]. Neighbours: `journal`, `core::successor`, `keeper`.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use shm::os::fdpass;

use super::Driver;
use super::journal::{self, Past};
use crate::NodeError;
use crate::core::{ConnId, Core, Effect, Input};
use crate::keeper::{Keep, Key, Word};

/// How long the keeper may take to hand over all it has.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(30);

/// Descriptors that were kept.
pub(super) type Held = BTreeMap<Key, OwnedFd>;

/// A killed daemon's estate.
pub(super) struct Heritage {
    pub past: Past,
    pub held: Held,
}

/// A core as it was, and what it last asked for, which may not have been done.
pub(super) struct Adopted {
    pub core: Core,
    pub uncertain: Vec<Effect>,
}

/// Takes what the keeper has. `None`: nothing; this is the node's first daemon.
pub(super) fn receive(link: OwnedFd) -> Result<(Keep, Option<Heritage>), NodeError> {
    let lost = || NodeError::system("what the keeper holds")(Errno::PIPE);
    let mut held = Held::new();
    let mut bytes = [0; 64];
    loop {
        let got = fdpass::recv_with_fds_within(&link, &mut bytes, HAND_OVER_WITHIN);
        let (len, fds) = got.map_err(|_| lost())?;
        match (Word::from_bytes(&bytes[..len]), fds.into_iter().next()) {
            (Some(Word::Put(key)), Some(fd)) => drop(held.insert(key, fd)),
            (Some(Word::All), _) => break,
            _ => return Err(lost()),
        }
    }
    let keep = Keep::new(Some(link));
    let Some(journal) = held.get(&Key::Journal) else {
        // A first daemon that was killed before it ran may have left some.
        for key in held.keys() {
            keep.give_up(*key);
        }
        return Ok((keep, None));
    };
    let copy = journal.try_clone().map_err(|_| lost())?;
    let past =
        journal::read(copy).ok_or_else(|| NodeError::system("a journal of this version")(Errno::PROTO))?;
    Ok((keep, Some(Heritage { past, held })))
}

/// The state that the killed daemon had: that of its journal, told all that it was told since.
pub(super) fn retell(core: Core, inputs: Vec<(crate::core::Now, Input)>) -> Adopted {
    let (mut core, mut uncertain) = (core, Vec::new());
    for (now, input) in inputs {
        uncertain.clear();
        core.step(now, input, &mut uncertain);
    }
    Adopted { core, uncertain }
}

impl Driver {
    /// Goes on where the predecessor was killed. `gone`: connections that are nobody's any more; `fresh`: such as it had
    /// accepted and not told the core of; `lost`: memories that are not as they were.
    pub(super) fn succeed(
        &mut self,
        uncertain: Vec<Effect>,
        lost: Vec<u32>,
        gone: Vec<ConnId>,
        fresh: Vec<Input>,
    ) {
        let again = uncertain.into_iter().filter(Effect::bears_repeating).collect();
        self.carry_out(again);
        self.handle(Input::Succeeded { lost });
        for conn in gone {
            self.handle(Input::Disconnected { conn });
        }
        for input in fresh {
            self.handle(input);
        }
        let core = &self.core;
        tracing::warn!(successions = core.successions(), "this daemon has taken over from one that ended");
    }
}
