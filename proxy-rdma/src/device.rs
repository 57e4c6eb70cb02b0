//! Which device and which address of it, and how pairs behave.
//!
//! Key types: [`RdmaConfig`], [`Device`].

use std::net::IpAddr;
use std::sync::Arc;

use abi::NodeId;

use crate::verbs::{Channel, Context, Cq, Domain, Path, VerbsError, device_names};

/// The RoCE kind of address that leads through routers and is named after an IPv4 address begins so.
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
/// Completions that are not taken out yet, of all pairs.
const COMPLETIONS: u32 = 16 << 10;
/// Entries of a table of addresses that are looked at.
const GIDS_MAX: u32 = 256;

/// What a user may choose. By default all is found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RdmaConfig {
    pub device: Option<String>,
    pub port: u8,
    /// Which of the port's addresses.
    pub gid_index: Option<u8>,
    pub traffic_class: u8,
    pub service_level: u8,
    /// An answer is awaited for 4.096 us times two to this: 14 is 67 ms.
    pub timeout: u8,
    pub retries: u8,
    /// Where no device is named: one that has this address,
    pub address: Option<IpAddr>,
    /// or this one of those that are up, counted round. Nodes of one machine have different ones.
    pub turn: usize,
}

impl RdmaConfig {
    /// As a node that listens at this address chooses.
    pub fn of_node(node: NodeId, address: IpAddr) -> RdmaConfig {
        let turn = usize::from(node.0.saturating_sub(1));
        RdmaConfig { address: Some(address), turn, ..RdmaConfig::default() }
    }
}

impl Default for RdmaConfig {
    fn default() -> RdmaConfig {
        RdmaConfig {
            device: None,
            port: 1,
            gid_index: None,
            traffic_class: 0,
            service_level: 0,
            timeout: 14,
            retries: 7,
            address: None,
            turn: 0,
        }
    }
}

/// Why no device can be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(transparent)]
    Verbs(#[from] VerbsError),
    #[error("no RDMA device is up: there is {known}; `dvs rdma ls` shows their states")]
    NoneUp { known: String },
    #[error("port {port} of {device} has no address: give its network interface one")]
    NoGid { device: String, port: u8 },
}

/// An open device, as all pairs of a fabric use it.
pub struct Device {
    pub context: Arc<Context>,
    pub domain: Arc<Domain>,
    pub queue: Arc<Cq>,
    pub path: Path,
    pub gid: [u8; 16],
    pub lid: u16,
    pub mtu: u32,
    pub work_per_queue: u32,
}

impl Device {
    pub fn open(config: &RdmaConfig) -> Result<Device, DeviceError> {
        let context = match &config.device {
            Some(name) => Context::open(name)?,
            None => one_that_is_up(config)?,
        };
        let (port, limits) = (context.port(config.port)?, context.limits()?);
        let (gid_index, gid) = gid_of(&context, config, port.gids)?;
        let domain = Domain::new(&context)?;
        let channel = Channel::new(&context)?;
        let queue = Cq::new(&channel, COMPLETIONS.min(limits.completions_per_queue))?;
        let path = Path {
            port: config.port,
            gid_index,
            traffic_class: config.traffic_class,
            service_level: config.service_level,
            timeout: config.timeout,
            retries: config.retries,
            reads: limits.reads.min(16),
            reads_asked: limits.reads_asked.min(16),
        };
        let (lid, mtu, work_per_queue) = (port.lid, port.mtu, limits.work_per_queue);
        Ok(Device { context, domain, queue, path, gid, lid, mtu, work_per_queue })
    }
}

fn one_that_is_up(config: &RdmaConfig) -> Result<Arc<Context>, DeviceError> {
    let names = device_names()?;
    if names.is_empty() {
        return Err(VerbsError::NoDevices.into());
    }
    // One that cannot be opened is as good as none.
    let open = names.iter().filter_map(|name| Context::open(name).ok());
    let mut up: Vec<Arc<Context>> =
        open.filter(|context| context.port(config.port).is_ok_and(|port| port.is_active)).collect();
    if up.is_empty() {
        return Err(DeviceError::NoneUp { known: names.join(", ") });
    }
    let wanted = match config.address {
        Some(IpAddr::V4(ip)) => Some(ip.to_ipv6_mapped().octets()),
        Some(IpAddr::V6(ip)) => Some(ip.octets()),
        None => None,
    };
    let has_it = |context: &Arc<Context>| {
        let gids = 0..context.port(config.port).map_or(0, |port| port.gids.min(GIDS_MAX));
        wanted.is_some() && gids.into_iter().any(|at| context.gid(config.port, at).ok() == wanted)
    };
    let at = up.iter().position(has_it).unwrap_or(config.turn % up.len());
    Ok(up.swap_remove(at))
}

/// The address that is asked for; or one of an IPv4 address, which leads everywhere; or the first.
fn gid_of(context: &Context, config: &RdmaConfig, count: u32) -> Result<(u8, [u8; 16]), DeviceError> {
    if let Some(index) = config.gid_index {
        return Ok((index, context.gid(config.port, u32::from(index))?));
    }
    let there = (0..count.min(GIDS_MAX))
        .filter_map(|index| Some((u8::try_from(index).ok()?, context.gid(config.port, index).ok()?)));
    chosen(&there.collect::<Vec<_>>(), context.name(), config.port)
}

fn chosen(all: &[(u8, [u8; 16])], device: &str, port: u8) -> Result<(u8, [u8; 16]), DeviceError> {
    // Of two entries for one address the later is of RoCE v2.
    let mapped = all.iter().rev().find(|(_, gid)| gid[..12] == MAPPED);
    let none = || DeviceError::NoGid { device: device.to_owned(), port };
    mapped.or(all.first()).copied().ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_address_of_ipv4_is_chosen_else_the_first_else_none() {
        let (local, mut mapped) = ([0xfe; 16], [0; 16]);
        mapped[10..].copy_from_slice(&[0xff, 0xff, 10, 77, 0, 1]);
        let all = [(0, local), (1, local), (2, mapped), (3, mapped)];
        assert_eq!(chosen(&all, "rxe0", 1).expect("one"), (3, mapped));
        assert_eq!(chosen(&all[..2], "rxe0", 1).expect("one"), (0, local));
        let none = chosen(&[], "rxe0", 1).expect_err("none");
        assert!(matches!(none, DeviceError::NoGid { port: 1, .. }), "{none}");
    }
}
