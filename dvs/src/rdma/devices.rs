//! The RDMA devices of this machine, as the kernel shows them in files: no library is needed to look at them.
//!
//! Key types: [`Device`], [`Gid`]. Source: Linux, `Documentation/ABI/stable/sysfs-class-infiniband`.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Where the kernel shows them.
pub const FOLDER: &str = "/sys/class/infiniband";
/// What an entry of a table of addresses is that holds none.
const NO_GID: &str = "0000:0000:0000:0000:0000:0000:0000:0000";

/// A port of a device: what one sends by.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Device {
    pub name: String,
    pub port: u8,
    /// Soft-RoCE, or another that a network card does not know of.
    pub is_software: bool,
    /// `ACTIVE` when it can be used.
    pub state: String,
    /// `Ethernet` or `InfiniBand`.
    pub link_layer: String,
    /// The network interface that it is on; none for InfiniBand.
    pub interface: Option<String>,
    pub gids: Vec<Gid>,
}

/// An address of a port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Gid {
    pub index: u32,
    /// As the kernel writes it; the last 32 bits of one of RoCE over IPv4 are that address.
    pub gid: String,
    /// `RoCE v2`, `IB/RoCE v1`.
    pub kind: String,
}

impl Device {
    pub fn is_active(&self) -> bool {
        self.state == "ACTIVE"
    }
}

impl Gid {
    /// The IPv4 address in it, if it is of one.
    pub fn ipv4(&self) -> Option<std::net::Ipv4Addr> {
        self.gid.parse::<std::net::Ipv6Addr>().ok()?.to_ipv4_mapped()
    }
}

/// All ports of all devices, by name.
pub fn all(folder: &Path) -> Vec<Device> {
    let mut found = Vec::new();
    for name in names_in(folder) {
        let device = folder.join(&name);
        for port in names_in(&device.join("ports")) {
            let Ok(number) = port.parse() else { continue };
            found.push(device_of(&name, &device, number));
        }
    }
    found
}

fn device_of(name: &str, device: &Path, port: u8) -> Device {
    let folder = device.join("ports").join(port.to_string());
    let text = |path: PathBuf| read(&path).unwrap_or_default();
    let state = text(folder.join("state"));
    let indexes = names_in(&folder.join("gids"));
    let mut gids: Vec<Gid> = indexes.iter().filter_map(|index| gid_of(&folder, index)).collect();
    gids.sort_by_key(|gid| gid.index);
    // Only a device in software names what it sits on; one of a card has the card for a parent.
    let parent = read(&device.join("parent"));
    let on_card = || names_in(&device.join("device/net")).into_iter().next();
    Device {
        name: name.to_owned(),
        port,
        is_software: parent.is_some(),
        // "4: ACTIVE".
        state: state.rsplit(": ").next().unwrap_or_default().to_owned(),
        link_layer: text(folder.join("link_layer")),
        interface: parent.or_else(on_card),
        gids,
    }
}

fn gid_of(port: &Path, index: &str) -> Option<Gid> {
    let gid = read(&port.join("gids").join(index))?;
    if gid == NO_GID {
        return None;
    }
    let kind = read(&port.join("gid_attrs/types").join(index)).unwrap_or_default();
    Some(Gid { index: index.parse().ok()?, gid, kind })
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    #[test]
    fn ports_are_read_with_their_addresses_and_what_they_sit_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |path: &str| folder.path().join(path);
        write(at("rxe0/parent"), "eth0\n");
        write(at("rxe0/ports/1/state"), "4: ACTIVE\n");
        write(at("rxe0/ports/1/link_layer"), "Ethernet\n");
        write(at("rxe0/ports/1/gids/0"), "fe80:0000:0000:0000:0000:00ff:fe00:0001\n");
        write(at("rxe0/ports/1/gids/10"), "0000:0000:0000:0000:0000:ffff:0a4d:0001\n");
        write(at("rxe0/ports/1/gids/2"), &format!("{NO_GID}\n"));
        write(at("rxe0/ports/1/gid_attrs/types/10"), "RoCE v2\n");
        write(at("mlx5_0/device/net/ens1/mtu"), "1500\n");
        write(at("mlx5_0/ports/1/state"), "1: DOWN\n");
        let found = all(folder.path());
        let [card, software] = &found[..] else { panic!("{found:?}") };
        assert_eq!((card.name.as_str(), card.is_software, card.is_active()), ("mlx5_0", false, false));
        assert_eq!(card.interface.as_deref(), Some("ens1"));
        assert!(software.is_software && software.is_active());
        assert_eq!(software.interface.as_deref(), Some("eth0"));
        let indexes: Vec<u32> = software.gids.iter().map(|gid| gid.index).collect();
        assert_eq!(indexes, [0, 10], "in the order of numbers, without those that are none");
        assert_eq!(software.gids[0].ipv4(), None);
        assert_eq!(software.gids[1].ipv4(), Some(std::net::Ipv4Addr::new(10, 77, 0, 1)));
        assert_eq!(software.gids[1].kind, "RoCE v2");
        assert_eq!(all(&at("nowhere")), []);
    }
}
