//! `dvs rdma`: the RDMA devices of this machine, and one in software for those who have none.
//!
//! `devices` reads what there is. A device in software (soft-RoCE, the kernel's `rdma_rxe`) is made and removed by rdma(8)
//! of iproute2, as root.

pub mod devices;

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;
use serde_json::json;

use crate::cli::{RdmaCommand, SoftroceCommand};
use crate::failure::{Exit, failure};
use crate::output::{Output, Table};
use devices::Device;

/// How this program names the device that it makes on an interface.
const NAME: &str = "rxe_";
/// Without the second the first refuses to make a device, and does not ask for it.
const MODULES: [&str; 2] = ["rdma_rxe", "crc32_generic"];

pub fn rdma(command: RdmaCommand, output: &Output) -> Result<()> {
    match command {
        RdmaCommand::Ls => ls(output),
        RdmaCommand::Softroce(SoftroceCommand::Up { interface }) => up(interface, output),
        RdmaCommand::Softroce(SoftroceCommand::Down { interface }) => down(interface, output),
    }
}

fn all() -> Vec<Device> {
    devices::all(Path::new(devices::FOLDER))
}

fn ls(output: &Output) -> Result<()> {
    let found = all();
    output.answer(&json!({ "ok": true, "devices": found }), |output| text(&found, output))
}

fn text(found: &[Device], output: &Output) -> String {
    if found.is_empty() {
        return "no RDMA device here; `dvs doctor` says what to do".into();
    }
    let mut table = Table::new(&["DEVICE", ">PORT", "STATE", "BY", "INTERFACE", ">GID", "ADDRESS", "KIND"]);
    for device in found {
        let by = if device.is_software { "software" } else { "card" };
        let head = |first: bool| match first {
            true => vec![
                device.name.clone(),
                device.port.to_string(),
                device.state.clone(),
                by.to_owned(),
                device.interface.clone().unwrap_or_else(|| "-".into()),
            ],
            false => vec![String::new(); 5],
        };
        if device.gids.is_empty() {
            table.row([head(true), vec!["-".into(), "none".into(), String::new()]].concat());
        }
        for (at, gid) in device.gids.iter().enumerate() {
            let address = gid.ipv4().map_or_else(|| gid.gid.clone(), |ip| ip.to_string());
            table.row([head(at == 0), vec![gid.index.to_string(), address, gid.kind.clone()]].concat());
        }
    }
    table.text(output)
}

fn up(interface: Option<String>, output: &Output) -> Result<()> {
    let interface = interface.map_or_else(default_interface, Ok)?;
    if !Path::new("/sys/class/net").join(&interface).exists() {
        let next = format!("name one of: {}", interfaces().join(", "));
        return Err(failure(Exit::Refused, format!("there is no network interface {interface}"), next));
    }
    if let Some(there) = all().into_iter().find(|d| d.interface.as_ref() == Some(&interface)) {
        return told(&there, false, output);
    }
    must_be_root("up", &interface)?;
    load_module()?;
    let name = format!("{NAME}{interface}");
    link(&["add", &name, "type", "rxe", "netdev", &interface])?;
    match all().into_iter().find(|d| d.name == name) {
        Some(made) => told(&made, true, output),
        None => Err(failure(
            Exit::Failed,
            format!("{name} was made and is not there"),
            "in a network namespace? Such devices live in the first one: run this outside",
        )),
    }
}

fn told(device: &Device, made: bool, output: &Output) -> Result<()> {
    output.answer(&json!({ "ok": true, "made": made, "device": device }), |output| {
        let so = if made { "made" } else { "there already" };
        let on = device.interface.as_deref().unwrap_or("-");
        format!("{} on {on}: {so}\n{}", device.name, text(std::slice::from_ref(device), output))
    })
}

fn down(interface: Option<String>, output: &Output) -> Result<()> {
    let interface = interface.map_or_else(default_interface, Ok)?;
    let software = |d: &Device| d.is_software && d.interface.as_ref() == Some(&interface);
    let there: Vec<String> = all().into_iter().filter(software).map(|d| d.name).collect();
    if !there.is_empty() {
        must_be_root("down", &interface)?;
    }
    for name in &there {
        link(&["delete", name])?;
    }
    output.answer(&json!({ "ok": true, "removed": there }), |_| match &there[..] {
        [] => format!("no device in software on {interface}: nothing to remove"),
        some => format!("removed: {}", some.join(", ")),
    })
}

fn must_be_root(what: &str, interface: &str) -> Result<()> {
    if node::place::own_uid() == 0 {
        return Ok(());
    }
    let next = format!("sudo dvs rdma softroce {what} {interface}");
    Err(failure(Exit::Refused, "only root makes and removes RDMA devices", next))
}

/// Whether this kernel can make such devices, as far as it is known without trying.
pub fn kernel_has_softroce() -> bool {
    if Path::new("/sys/module/rdma_rxe").exists() {
        return true;
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    ["modules.dep", "modules.builtin"].iter().any(|list| {
        let path = Path::new("/lib/modules").join(&release).join(list);
        std::fs::read_to_string(path).is_ok_and(|text| text.contains("/rdma_rxe.ko"))
    })
}

fn load_module() -> Result<()> {
    let load = |module| {
        Command::new("modprobe")
            .arg(module)
            .stdin(Stdio::null())
            .output()
            .is_ok_and(|done| done.status.success())
    };
    // The second is of other names in some kernels, or built in.
    let loaded = MODULES.map(load);
    if loaded[0] || kernel_has_softroce() {
        return Ok(());
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    Err(failure(
        Exit::Refused,
        format!("this kernel ({release}) has no rdma_rxe"),
        "install its extra modules (Ubuntu: linux-modules-extra), or use the virtual machine of this project's source: \
         `cargo run -p ci -- rxe -- PROGRAM`",
    ))
}

fn link(arguments: &[&str]) -> Result<()> {
    let done = Command::new("rdma").arg("link").args(arguments).stdin(Stdio::null()).output();
    let done = done.map_err(|why| {
        failure(
            Exit::Refused,
            format!("cannot start rdma(8): {why}"),
            "install iproute2, of which it is a part",
        )
    })?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().replace('\n', " ");
    let next = "see what the kernel says: `dmesg | tail`; a network interface must be up";
    Err(failure(Exit::Failed, format!("`rdma link {}`: {said}", arguments.join(" ")), next))
}

/// The one that leads to the world.
fn default_interface() -> Result<String> {
    let table = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    of_default_route(&table).ok_or_else(|| {
        let next = format!("name one: {}", interfaces().join(", "));
        failure(Exit::Refused, "there is no default route that would say which interface to use", next)
    })
}

/// Source: proc(5), `/proc/net/route`: interface and destination are the first two columns.
fn of_default_route(table: &str) -> Option<String> {
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_whitespace();
        let interface = columns.next()?;
        (columns.next()? == "00000000").then(|| interface.to_owned())
    })
}

fn interfaces() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name != "lo");
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_names_an_interface() {
        let head = "Iface\tDestination\tGateway\n";
        let table = format!("{head}eth1\t0000000A\t00000000\nwlan0\t00000000\t0101A8C0\n");
        assert_eq!(of_default_route(&table).as_deref(), Some("wlan0"));
        assert_eq!(of_default_route(head), None);
    }

    #[test]
    fn a_port_has_a_row_for_each_address() {
        let gid = |index, gid: &str| devices::Gid { index, gid: gid.into(), kind: "RoCE v2".into() };
        let device = Device {
            name: "rxe0".into(),
            port: 1,
            is_software: true,
            state: "ACTIVE".into(),
            link_layer: "Ethernet".into(),
            interface: Some("eth0".into()),
            gids: vec![gid(0, "fe80::1"), gid(1, "::ffff:10.77.0.1")],
        };
        let shown = text(&[device], &Output::new(false));
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 3, "{shown}");
        assert!(lines[1].contains("rxe0") && lines[1].contains("software") && lines[1].contains("fe80::1"));
        assert!(lines[2].contains("10.77.0.1") && !lines[2].contains("rxe0"), "{shown}");
        assert!(text(&[], &Output::new(false)).contains("dvs doctor"));
    }
}
