//! `dvs init`: a cluster file to begin with.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use crate::failure::{Exit, failure};

/// The first port of the example; its nodes follow on addresses of their own.
const PORT: u16 = 7701;

/// What a DC may have, and this one has not.
const RULES: &str = r#"# Who may call whom. Without such rules everybody may do everything; with one, whoever fits none may call servers
# and no more. See docs/privileges.md.
# [[dc.privileges]]
# slots = "0-15"
# level = "server"
"#;

/// The text of a cluster file with a node at each address and one DC over all of them.
pub fn cluster_text(name: &str, dc: &str, addresses: &[SocketAddr], key_file: Option<&str>) -> String {
    let mut text = format!("name = \"{name}\"\n");
    if let Some(key) = key_file {
        text +=
            "# What all nodes know and nobody else: made by the first `dvs up`, copied elsewhere by you.\n";
        let _ = writeln!(text, "key_file = \"{key}\"");
    }
    for (id, address) in (1..).zip(addresses) {
        let _ = write!(text, "\n[[node]]\nid = {id}\nname = \"n{id}\"\naddress = \"{address}\"\n");
    }
    let _ = write!(text, "\n# A distributed container over all nodes.\n[[dc]]\nid = 1\nname = \"{dc}\"\n");
    text + RULES
}

/// Writes one; what is there stays.
pub fn init(file: &Path, nodes: u16) -> Result<()> {
    let addresses: Vec<SocketAddr> =
        (0..nodes).map(|n| SocketAddr::from(([127, 0, 0, 2 + n as u8], PORT))).collect();
    let text = cluster_text("local", "main", &addresses, Some("cluster.key"));
    let open = OpenOptions::new().write(true).create_new(true).open(file);
    open.and_then(|mut f| f.write_all(text.as_bytes())).map_err(|why| {
        let what = format!("{} was not written: {why}", file.display());
        let next = match why.kind() {
            ErrorKind::AlreadyExists => "use it, or give another name: `dvs init other.toml`",
            _ => "give a path in a folder of yours",
        };
        failure(Exit::Config, what, next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let addresses = [SocketAddr::from(([127, 0, 0, 2], 1)), SocketAddr::from(([127, 0, 0, 3], 1))];
        let text = cluster_text("x", "main", &addresses, Some("k"));
        let cluster = node::config::Cluster::parse(&text, Path::new("/tmp/c.toml")).unwrap();
        assert_eq!((cluster.nodes.len(), cluster.dcs.len(), cluster.proxies.len()), (2, 1, 1));
        assert_eq!(cluster.key_file.as_deref(), Some(Path::new("/tmp/k")));
        assert_eq!(cluster.dcs[0].rules.rules, None);
        let with_rules = text.replace("# [[", "[[").replace("# slots", "slots").replace("# level", "level");
        let cluster = node::config::Cluster::parse(&with_rules, Path::new("/tmp/c.toml")).unwrap();
        assert_eq!(cluster.dcs[0].rules.rules.as_ref().map(Vec::len), Some(1));
    }
}
