//! The machine's network and its RDMA devices (soft-RoCE, the kernel's `rdma_rxe`).
//!
//! Such devices live in the first network namespace alone. Two of them on one machine talk to each other only if rules of
//! routing send what one local address has for the other over the wire between them: on the loopback it would be lost.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

const PAIR: &str = "link set lo up
link add v0 address 02:00:00:00:00:01 mtu 4200 type veth peer name v1 address 02:00:00:00:00:02 mtu 4200
addr add 10.77.0.1/24 dev v0
addr add 10.77.0.2/24 dev v1
";
const PAIR_ROUTES: &str = "link set v0 up
link set v1 up
neigh replace 10.77.0.2 lladdr 02:00:00:00:00:02 dev v0 nud permanent
neigh replace 10.77.0.1 lladdr 02:00:00:00:00:01 dev v1 nud permanent
route add 10.77.0.2 dev v0 src 10.77.0.1 table 100
route add 10.77.0.1 dev v1 src 10.77.0.2 table 101
rule add pref 10 iif v0 lookup local
rule add pref 11 iif v1 lookup local
rule add pref 20 from 10.77.0.1 to 10.77.0.2 lookup 100
rule add pref 21 from 10.77.0.2 to 10.77.0.1 lookup 101
rule add pref 22 oif v0 lookup 100
rule add pref 23 oif v1 lookup 101
rule add pref 100 lookup local
rule del pref 0
";

/// `pair`: rxe0 at 10.77.0.1 and rxe1 at 10.77.0.2, with a veth between; `nic ADDRESS/LENGTH`: rxe0 on the emulated network
/// card; `none`.
pub fn make(net: &str) -> Result<()> {
    match net.split_whitespace().collect::<Vec<_>>()[..] {
        ["none"] => Ok(()),
        ["pair"] => pair(),
        ["nic", address] => nic(address),
        _ => bail!("no network is called {net:?}"),
    }
}

fn pair() -> Result<()> {
    ip(PAIR)?;
    for end in ["v0", "v1"] {
        set(&format!("/proc/sys/net/ipv4/conf/{end}/accept_local"), "1")?;
        set(&format!("/proc/sys/net/ipv4/conf/{end}/rp_filter"), "0")?;
    }
    set("/proc/sys/net/ipv4/conf/all/rp_filter", "0")?;
    ip(PAIR_ROUTES)?;
    device("rxe0", "v0")?;
    device("rxe1", "v1")
}

fn nic(address: &str) -> Result<()> {
    let cards = fs::read_dir("/sys/class/net").context("no network")?.flatten();
    let card = cards.filter(|card| card.path().join("device").exists()).map(|card| card.file_name());
    let card = card.min().context("no network card")?;
    let card = card.to_str().context("a card's name")?;
    ip(&format!("link set lo up\naddr add {address} dev {card}\nlink set {card} up\n"))?;
    device("rxe0", card)
}

fn device(name: &str, on: &str) -> Result<()> {
    let mut rdma = host("rdma");
    let made = rdma.args(["link", "add", name, "type", "rxe", "netdev", on]).status();
    let made = made.context("cannot start `rdma`")?;
    ensure!(made.success(), "no device {name} on {on}: {made}");
    Ok(())
}

fn ip(lines: &str) -> Result<()> {
    let mut ip =
        host("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("cannot start `ip`")?;
    if let Some(mut input) = ip.stdin.take() {
        input.write_all(lines.as_bytes()).context("`ip` does not listen")?;
    }
    let done = ip.wait().context("`ip` is lost")?;
    ensure!(done.success(), "`ip`: {done}");
    Ok(())
}

/// A program of the host.
fn host(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

pub fn set(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("cannot set {path}"))
}
