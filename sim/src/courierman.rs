//! The proxy of a node: the real courier over the simulated fabric, with the simulated daemon's datagrams as its ears.
//! It does what `fabric::driver` does, one look at a time.

use abi::courier::{FromProxy, ToProxy};
use abi::limits::{RESCAN_FIRST_MS, RESCAN_MAX_MS};
use abi::member::{SegmentKind, VERSION};
use abi::{DcId, NodeId, doorbell};
use fabric::courier::{Courier, Output};
use fabric::{Armed, Fabric, Time};
use shm::doorbell::Doorbells;
use shm::map::Mapping;
use std::time::Duration;

use crate::net::SimFabric;
use crate::site::Heard;

/// One life of a proxy.
pub struct Courierman {
    pub life: u64,
    pub courier: Courier,
    fabric: SimFabric,
    doorbells: Doorbells,
    bells: Vec<(DcId, usize)>,
    pub asleep: bool,
    /// It was stopped: it does nothing, and its daemon notices.
    pub frozen: bool,
    /// What its daemon said meanwhile.
    pub unheard: Vec<Heard>,
    rescan: Duration,
    /// What it has said to the daemon.
    pub said: Vec<(FromProxy, Vec<u8>)>,
    /// What it has refused as against the protocol, in words.
    pub refused: Vec<String>,
}

/// What a look came to.
pub enum Looked {
    /// There is more to do at once.
    More,
    /// It sleeps until it is rung, or this long.
    Asleep { rescan: Duration },
}

impl Courierman {
    pub fn new(
        life: u64,
        peers: Vec<NodeId>,
        mut fabric: SimFabric,
        doorbells: Doorbells,
        token: [u64; 2],
    ) -> Courierman {
        let mut courier = Courier::new(peers);
        // Fewer than a process has: they run out more often here.
        let buffers = Mapping::heap(Courier::buffer_bytes(&fabric).div_ceil(4).next_multiple_of(4096));
        courier.lend_buffers(buffers, &mut fabric);
        Courierman {
            life,
            courier,
            fabric,
            doorbells,
            bells: Vec::new(),
            asleep: false,
            frozen: false,
            unheard: Vec::new(),
            rescan: Duration::from_millis(RESCAN_FIRST_MS),
            said: vec![(FromProxy::Hello { version: VERSION, token }, Vec::new())],
            refused: Vec::new(),
        }
    }

    /// A datagram of the daemon's. Returns whether it may go on.
    pub fn hear(&mut self, heard: Heard) -> Result<(), &'static str> {
        let Heard { message, tail, map } = heard;
        let fabric = &mut self.fabric;
        match message {
            ToProxy::Dc { dc, doorbell, memory } => {
                self.courier.add_dc(dc, memory, self.doorbells.clone());
                self.bells.push((dc, doorbell as usize));
            }
            ToProxy::Memory { memory, .. } => self.courier.add_memory(memory),
            ToProxy::ForgetMemory { memory } => self.courier.forget_memory(memory, fabric),
            ToProxy::Segment { memory, index, kind, .. } => {
                let map = map.ok_or("a segment without memory")?;
                self.courier.add_segment(memory, index, kind, map);
                self.said.push((FromProxy::Mapped { memory, index }, Vec::new()));
            }
            ToProxy::Sealed { memory, index } => self.courier.segment_sealed(memory, index, fabric),
            ToProxy::Attach { attach } => {
                let map = map.ok_or("a side without memory")?;
                if !self.courier.attach(&attach, map, fabric) {
                    return Err("attached what it has already, or was never given");
                }
            }
            ToProxy::PeerSegment { memory, segment, .. } => {
                let map = map.ok_or("a segment without memory")?;
                self.courier.add_peer_segment(memory, segment, map, fabric);
            }
            ToProxy::ForgetSegment { memory, segment } => {
                self.courier.forget_segment(memory, segment, fabric);
            }
            ToProxy::LocalEnded { endpoint } => self.courier.local_ended(endpoint),
            ToProxy::Refuse { local, remote, why } => self.courier.refuse(local, remote, why),
            ToProxy::Detach { local, remote } => self.courier.detach(local, remote, fabric),
            ToProxy::NodeDead { node, incarnation } => self.courier.node_dead(node, incarnation, fabric),
            ToProxy::Directory { node } => self.courier.send_directory((node.0 != 0).then_some(node), &tail),
            ToProxy::Ping { number } => {
                let totals = self.courier.totals();
                self.said.push((FromProxy::Pong { number, totals }, Vec::new()));
            }
            // Nobody polls here.
            ToProxy::Bell { .. } => {}
            ToProxy::Stop => return Err("told to stop"),
            ToProxy::DropDc { dc } => {
                self.courier.drop_dc(dc, fabric);
                self.bells.retain(|(of, _)| *of != dc);
            }
        }
        Ok(())
    }

    /// One round of the driver's loop. `by_itself`: nobody rang, its pause is over; then says whether it had to.
    pub fn look(&mut self, now: Time, by_itself: bool) -> (Looked, bool) {
        for (_, bell) in &self.bells {
            self.doorbells.awake(*bell);
        }
        let before = self.courier.totals().slots_sent;
        if by_itself {
            self.courier.suspect_all();
            self.rescan = (self.rescan * 2).min(Duration::from_millis(RESCAN_MAX_MS));
        } else {
            self.rescan = Duration::from_millis(RESCAN_FIRST_MS);
        }
        for (dc, bell) in &self.bells {
            let (dc, courier) = (*dc, &mut self.courier);
            self.doorbells.drain(*bell, |slot| courier.hint(dc, slot));
        }
        let more = self.courier.step(now, &mut self.fabric);
        self.report();
        let found = by_itself && self.courier.totals().slots_sent != before;
        if more {
            return (Looked::More, found);
        }
        for (_, bell) in &self.bells {
            self.doorbells.doze(*bell, doorbell::ON_EVENTFD);
        }
        let rung = self.bells.iter().any(|(_, bell)| self.doorbells.has_hints(*bell));
        if rung || self.fabric.arm() == Armed::MoreToDo {
            return (Looked::More, found);
        }
        (Looked::Asleep { rescan: self.rescan }, found)
    }

    /// Somebody has rung a proxy that sleeps.
    pub fn is_rung(&self) -> bool {
        self.bells.iter().any(|(_, bell)| {
            // Relaxed: one thread.
            self.doorbells.sleep_word(*bell).load(shm::sync::Ordering::Relaxed) == doorbell::AWAKE
        })
    }

    fn report(&mut self) {
        let mut outputs = Vec::new();
        self.courier.take_outputs(&mut outputs);
        for output in outputs {
            let mut bytes = Vec::new();
            let message = match output {
                Output::RemoteOpen { local, remote, node } => FromProxy::RemoteOpen { local, remote, node },
                Output::WantSegment { memory, segment } => FromProxy::WantSegment { memory, segment },
                Output::NewPoolSegment { memory, len_bytes } => {
                    FromProxy::NewSegment { memory, kind: SegmentKind::Pool, len_bytes }
                }
                Output::Directory { node, incarnation, bytes: text } => {
                    bytes = text;
                    FromProxy::Directory { node, incarnation }
                }
                Output::Link { node, incarnation, state } => FromProxy::Link { node, incarnation, state },
                Output::NodeClosed { node } => FromProxy::NodeClosed { node },
                Output::Detached { local, remote } => FromProxy::Detached { local, remote },
                Output::Fenced { by } => FromProxy::Fenced { by },
                Output::Condemned { pair, why } => {
                    self.refused.push(format!("{} with {}: {why}", pair.source, pair.destination));
                    continue;
                }
                Output::BadRecord { node, why } => {
                    self.refused.push(format!("a record of node {node}: {why}"));
                    continue;
                }
            };
            self.said.push((message, bytes));
        }
    }
}
