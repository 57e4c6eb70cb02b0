//! What a proxy process is started with: `--key value` pairs, made by the daemon and read by the proxy.
//!
//! Key type: [`ProxyOptions`]. Nothing secret is among them but the token, which is worth nothing without the socket it
//! comes with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use abi::{Incarnation, Name, NodeId};

use crate::pack::Packing;

/// Everything a TCP proxy must know before it talks to its daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProxyOptions {
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// Which of the node's proxies it is.
    pub proxy_index: u16,
    /// The node's name.
    pub name: Name,
    pub listen: SocketAddr,
    pub peers: Vec<(NodeId, SocketAddr)>,
    pub key_file: Option<PathBuf>,
    /// Number of the inherited descriptor: the socket to the daemon.
    pub link_fd: i32,
    /// What the proxy shows to the daemon.
    pub token: [u64; 2],
    pub link_down_after_ms: u64,
    /// How payload travels to nodes that want it so too.
    pub compression: Packing,
}

/// Why arguments are no options.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OptionsError {
    #[error("{option} is not an option of the TCP proxy")]
    Unknown { option: String },
    #[error("{option} is given twice")]
    Twice { option: String },
    #[error("{option} has no value behind it")]
    NoValue { option: String },
    #[error("{option} is missing")]
    Missing { option: &'static str },
    #[error("{option}: \"{value}\" is not a value for it")]
    Malformed { option: &'static str, value: String },
}

const NAMES: [&str; 11] = [
    "--node",
    "--incarnation",
    "--proxy-index",
    "--name",
    "--listen",
    "--peers",
    "--key-file",
    "--link-fd",
    "--token",
    "--link-down-after-ms",
    "--compression",
];

impl ProxyOptions {
    /// The arguments that [`ProxyOptions::parse`] reads. A key file whose path is not UTF-8 is changed by this.
    pub fn to_args(&self) -> Vec<String> {
        let peer = |(node, address): &(NodeId, SocketAddr)| format!("{node}={address}");
        let peers: Vec<String> = self.peers.iter().map(peer).collect();
        let [high, low] = self.token;
        let values = [
            Some(self.node.to_string()),
            Some(self.incarnation.0.to_string()),
            Some(self.proxy_index.to_string()),
            Some(self.name.as_str().to_owned()),
            Some(self.listen.to_string()),
            Some(peers.join(",")),
            self.key_file.as_ref().map(|path| path.to_string_lossy().into_owned()),
            Some(self.link_fd.to_string()),
            Some(format!("{high:016x}{low:016x}")),
            Some(self.link_down_after_ms.to_string()),
            Some(self.compression.name().to_owned()),
        ];
        let pair = |(name, value): (&str, Option<String>)| value.map(|value| [name.to_owned(), value]);
        NAMES.into_iter().zip(values).filter_map(pair).flatten().collect()
    }

    /// Reads arguments, without the program's name.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<ProxyOptions, OptionsError> {
        let mut values: [Option<String>; NAMES.len()] = Default::default();
        let mut args = args.into_iter();
        while let Some(option) = args.next() {
            let Some(at) = NAMES.iter().position(|name| *name == option) else {
                return Err(OptionsError::Unknown { option });
            };
            let Some(value) = args.next() else { return Err(OptionsError::NoValue { option }) };
            if values[at].replace(value).is_some() {
                return Err(OptionsError::Twice { option });
            }
        }
        Values(values).read()
    }
}

struct Values([Option<String>; NAMES.len()]);

impl Values {
    fn read(&self) -> Result<ProxyOptions, OptionsError> {
        Ok(ProxyOptions {
            node: NodeId(self.number("--node")?),
            incarnation: Incarnation(self.number("--incarnation")?),
            proxy_index: self.number("--proxy-index")?,
            name: self.value("--name", name)?,
            listen: self.number("--listen")?,
            peers: self.value("--peers", peers)?,
            key_file: self.raw("--key-file").map(PathBuf::from),
            link_fd: self.number("--link-fd")?,
            token: self.value("--token", token)?,
            link_down_after_ms: self.number("--link-down-after-ms")?,
            compression: self.value("--compression", Packing::from_name)?,
        })
    }

    fn raw(&self, option: &'static str) -> Option<&str> {
        let at = NAMES.iter().position(|name| *name == option)?;
        self.0[at].as_deref()
    }

    fn value<T>(&self, option: &'static str, read: impl Fn(&str) -> Option<T>) -> Result<T, OptionsError> {
        let value = self.raw(option).ok_or(OptionsError::Missing { option })?;
        read(value).ok_or_else(|| OptionsError::Malformed { option, value: value.to_owned() })
    }

    fn number<T: FromStr>(&self, option: &'static str) -> Result<T, OptionsError> {
        self.value(option, |text| text.parse().ok())
    }
}

fn name(text: &str) -> Option<Name> {
    if text.is_empty() { Some(Name::NONE) } else { Name::new(text).ok() }
}

fn peers(text: &str) -> Option<Vec<(NodeId, SocketAddr)>> {
    let peer = |text: &str| {
        let (node, address) = text.split_once('=')?;
        Some((NodeId(node.parse().ok()?), address.parse().ok()?))
    };
    text.split(',').filter(|part| !part.is_empty()).map(peer).collect()
}

fn token(text: &str) -> Option<[u64; 2]> {
    let half = |range| u64::from_str_radix(text.get(range)?, 16).ok();
    if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    Some([half(0..16)?, half(16..32)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ProxyOptions {
        ProxyOptions {
            node: NodeId(3),
            incarnation: Incarnation(77),
            proxy_index: 2,
            name: Name::new("ada-3").unwrap(),
            listen: "127.0.0.1:7003".parse().unwrap(),
            peers: vec![
                (NodeId(1), "10.0.0.1:7001".parse().unwrap()),
                (NodeId(2), "[::1]:7002".parse().unwrap()),
            ],
            key_file: Some(PathBuf::from("/etc/a key, with = and ,")),
            link_fd: 5,
            token: [u64::MAX, 7],
            link_down_after_ms: 2000,
            compression: Packing::Lz4,
        }
    }

    #[test]
    fn options_survive_their_arguments() {
        assert_eq!(ProxyOptions::parse(options().to_args()), Ok(options()));
        let alone = ProxyOptions { peers: Vec::new(), key_file: None, name: Name::NONE, ..options() };
        assert_eq!(ProxyOptions::parse(alone.to_args()), Ok(alone));
    }

    #[test]
    fn arguments_that_are_no_options_are_named() {
        let with = |change: &dyn Fn(&mut Vec<String>)| {
            let mut args = options().to_args();
            change(&mut args);
            ProxyOptions::parse(args).unwrap_err()
        };
        let unknown = OptionsError::Unknown { option: "--speed".into() };
        assert_eq!(with(&|a| a.push("--speed".into())), unknown);
        assert_eq!(with(&|a| a.push("--node".into())), OptionsError::NoValue { option: "--node".into() });
        assert_eq!(
            with(&|a| a.extend(["--node".into(), "3".into()])),
            OptionsError::Twice { option: "--node".into() }
        );
        assert_eq!(with(&|a| drop(a.drain(..2))), OptionsError::Missing { option: "--node" });
        assert!(matches!(with(&|a| a[1] = "70000".into()), OptionsError::Malformed { option: "--node", .. }));
        assert!(matches!(with(&|a| a[11] = "1-x".into()), OptionsError::Malformed { option: "--peers", .. }));
        assert!(matches!(
            with(&|a| a[21] = "zip".into()),
            OptionsError::Malformed { option: "--compression", .. }
        ));
        assert!(matches!(
            with(&|a| a[17] = "é".repeat(16)),
            OptionsError::Malformed { option: "--token", .. }
        ));
    }
}
