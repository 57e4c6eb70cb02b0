//! Where a command binds: DC, node, slot and name, checked before the daemon is asked, and what its refusal means.
//!
//! Key type: [`Seat`]. Neighbours: `run` (binds for a program), `send`, `notify`, `receive` (bind for themselves).

use std::path::PathBuf;

use abi::Slot;
use abi::member::Refusal;
use anyhow::Result;
use dvk::{BindError, BindOptions, Binding, Unavailable};
use node::config::{ClusterDc, ClusterNode};
use node::core::{DcSpecView, Range};

use crate::admin::Daemon;
use crate::cli::SeatArgs;
use crate::cluster::Place;
use crate::dc::unknown;
use crate::failure::{Exit, failure};

/// Where to bind, and as whom.
pub struct Seat {
    pub socket: PathBuf,
    pub options: BindOptions,
    asked: SeatArgs,
    node: abi::Name,
    /// The cluster's.
    file: PathBuf,
}

impl Seat {
    pub fn choose(place: &Place, asked: &SeatArgs) -> Result<Seat> {
        let node = place.one_node(asked.place.node.as_deref())?;
        let range = match (Daemon { place, node }).dcs() {
            Ok(dcs) => range_now(place, &asked.dc, node, &dcs)?,
            // Nobody to ask: the file says what would be, and who binds hears that nobody answers.
            Err(_) => range(place.dc(&asked.dc)?, node)?,
        };
        if let Some(name) = &asked.name {
            abi::Name::new(name).map_err(|why| {
                failure(Exit::Config, format!("--name {name:?} is {why}"), "choose another")
            })?;
        }
        if let Some(name) = asked.name.as_ref().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
            let what = format!("--name {name} would be taken for a slot");
            return Err(failure(Exit::Config, what, "choose one with a letter in it"));
        }
        if let Some(slot) = asked.slot.filter(|slot| !range.contains(Slot(*slot))) {
            let (first, last) = (range.first.0, range.first.0 + range.count - 1);
            let what = format!(
                "slot {slot} of DC {} is not node {}'s: it has {first} to {last}",
                asked.dc, node.name
            );
            return Err(failure(
                Exit::Config,
                what,
                "choose one of these, leave --slot out, or run it on another node",
            ));
        }
        let socket = place.files(node).member_socket();
        let mut options = BindOptions::new(&socket, &asked.dc).private(asked.private);
        if let Some(slot) = asked.slot {
            options = options.slot(Slot(slot));
        }
        if let Some(name) = &asked.name {
            options = options.name(name);
        }
        Ok(Seat { socket, options, asked: asked.clone(), node: node.name, file: place.cluster.file.clone() })
    }

    /// Binds this process there.
    pub fn bind(&self) -> Result<Binding> {
        Binding::bind(&self.options).map_err(|why| self.refused(why))
    }

    pub fn refused(&self, why: BindError) -> anyhow::Error {
        let (dc, node) = (&self.asked.dc, self.node);
        let slot = self.asked.slot.map_or(String::new(), |slot| format!(" in slot {slot}"));
        let what = format!("not bound in DC {dc} on node {node}{slot}: {why}");
        match why {
            BindError::Unavailable(Unavailable::NoDaemon(errno)) => failure(
                Exit::NotRunning,
                format!(
                    "node {node} does not answer at {}: {}",
                    self.socket.display(),
                    std::io::Error::from_raw_os_error(errno.0)
                ),
                format!("start it with `dvs up {} --node {node}`", self.file.display()),
            ),
            BindError::Unavailable(Unavailable::Refused(Refusal::SlotTaken)) => failure(
                Exit::Refused,
                what,
                format!("`dvs ps --node {node}` shows who has it; leave --slot out for a free one"),
            ),
            BindError::Unavailable(Unavailable::Refused(Refusal::NameTaken)) => failure(
                Exit::Refused,
                what,
                format!("`dvs ps --node {node}` shows who has the name; give another --name"),
            ),
            _ => failure(Exit::Refused, what, format!("`dvs status --node {node}` shows how the node does")),
        }
    }
}

/// The slots of a node in a DC as its daemon knows it: DCs change while a cluster runs.
fn range_now(place: &Place, asked: &str, node: &ClusterNode, dcs: &[DcSpecView]) -> Result<Range> {
    let running = |d: &&DcSpecView| d.state == "running" && d.name == asked;
    let dc = dcs.iter().find(running).ok_or_else(|| unknown(place, asked, dcs.iter()))?;
    let share = dc.nodes.iter().find(|n| n.node == node.id.0).ok_or_else(|| {
        let ids: Vec<String> = dc.nodes.iter().map(|n| n.node.to_string()).collect();
        let what = format!("DC {asked} does not span node {} ({})", node.id, node.name);
        let next =
            format!("its nodes are {}: run it there, or `dvs dc grow {asked} {}`", ids.join(", "), node.name);
        failure(Exit::Config, what, next)
    })?;
    Ok(Range { first: Slot(share.slot_first), count: share.slot_count })
}

/// The slots of a node in a DC as the cluster file has it.
fn range(dc: &ClusterDc, node: &ClusterNode) -> Result<Range> {
    let found = dc.ranges().find(|(id, _)| *id == node.id);
    let (_, range) = found.ok_or_else(|| {
        let ids: Vec<String> = dc.nodes.iter().map(ToString::to_string).collect();
        let what = format!("DC {} does not span node {} ({})", dc.name, node.id, node.name);
        failure(
            Exit::Config,
            what,
            format!("its nodes are {}: run it there, or list the node in the DC", ids.join(", ")),
        )
    })?;
    Ok(range)
}
