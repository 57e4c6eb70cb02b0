//! What a soak breaks, at random: proxies, daemons and programs are killed and stopped.
//!
//! Key types: [`Fault`].

use std::time::Duration;

use anyhow::Result;
use rustix::process::{Signal, pidfd_send_signal};
use serde::Serialize;
use shm::os::peer::pidfd_open;

use crate::interrupt;
use crate::workers::chance::Chance;

/// A stop is so long at most: longer than a proxy may be silent.
const STOP_MS_MAX: u64 = 2_000;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    ProxyKilled,
    DaemonKilled,
    ProgramKilled,
    ProxyStopped,
    DaemonStopped,
    ProgramStopped,
}

impl Fault {
    pub const ALL: [Fault; 6] = [
        Fault::ProxyKilled,
        Fault::DaemonKilled,
        Fault::ProgramKilled,
        Fault::ProxyStopped,
        Fault::DaemonStopped,
        Fault::ProgramStopped,
    ];

    pub fn words(self) -> &'static str {
        match self {
            Fault::ProxyKilled => "proxies killed",
            Fault::DaemonKilled => "daemons killed",
            Fault::ProgramKilled => "programs killed",
            Fault::ProxyStopped => "proxies stopped",
            Fault::DaemonStopped => "daemons stopped",
            Fault::ProgramStopped => "programs stopped",
        }
    }

    pub fn kills(self) -> bool {
        matches!(self, Fault::ProxyKilled | Fault::DaemonKilled | Fault::ProgramKilled)
    }

    /// Does it to a process; false: that has ended already.
    pub fn strike(self, pid: u32, chance: &mut Chance) -> Result<bool> {
        let Ok(pinned) = pidfd_open(pid) else { return Ok(false) };
        if self.kills() {
            return Ok(pidfd_send_signal(&pinned, Signal::KILL).is_ok());
        }
        if pidfd_send_signal(&pinned, Signal::STOP).is_err() {
            return Ok(false);
        }
        let slept = interrupt::sleep(Duration::from_millis(chance.below(STOP_MS_MAX)));
        // One that was replaced since has been killed.
        let _ = pidfd_send_signal(&pinned, Signal::CONT);
        slept.map(|()| true)
    }
}
