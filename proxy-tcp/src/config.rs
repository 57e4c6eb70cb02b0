//! What a [`crate::TcpFabric`] is told at its start, and why it may refuse to start.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use abi::limits::{HEARTBEAT_EVERY_MS, LINK_DOWN_AFTER_MS, NODES_MAX};
use abi::{Incarnation, NodeId};

use crate::key::ClusterKey;
use crate::pack::Packing;

/// Who this node is, who the others are, and how patient to be.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// Where the nodes with lower ids connect to.
    pub listen: SocketAddr,
    /// Every other node and where it listens.
    pub peers: Vec<(NodeId, SocketAddr)>,
    /// What all nodes of the cluster know. Without it only loopback addresses are listened on.
    pub key: Option<ClusterKey>,
    /// A peer that was not heard for this long is lost.
    pub link_down_after: Duration,
    /// How often a sign of life is sent when nothing else is.
    pub heartbeat_every: Duration,
    /// How payload travels to a peer that wants it so too.
    pub packing: Packing,
    /// What else this end can do over a session, for who carries over it: bits that both ends offer are agreed on. The lowest
    /// is that of packing.
    pub offers: u64,
}

impl TcpConfig {
    /// One without peers and key, with the usual patience.
    pub fn new(node: NodeId, incarnation: Incarnation, listen: SocketAddr) -> TcpConfig {
        TcpConfig {
            node,
            incarnation,
            listen,
            peers: Vec::new(),
            key: None,
            link_down_after: Duration::from_millis(LINK_DOWN_AFTER_MS),
            heartbeat_every: Duration::from_millis(HEARTBEAT_EVERY_MS),
            packing: Packing::None,
            offers: 0,
        }
    }

    /// Refuses what cannot work, or is not safe.
    pub fn check(&self) -> Result<(), TcpError> {
        let ids = || std::iter::once(self.node).chain(self.peers.iter().map(|(peer, _)| *peer));
        if let Some(node) = ids().find(|n| n.0 == 0 || n.0 > NODES_MAX) {
            return Err(TcpError::NoSuchNode { node });
        }
        let twice = |(i, (peer, _)): (usize, &(NodeId, _))| {
            let known = *peer == self.node || self.peers[..i].iter().any(|(other, _)| other == peer);
            known.then_some(*peer)
        };
        if let Some(node) = self.peers.iter().enumerate().find_map(twice) {
            return Err(TcpError::NodeTwice { node });
        }
        if self.key.is_none() && !self.listen.ip().is_loopback() {
            return Err(TcpError::NoKey { address: self.listen });
        }
        if !self.packing.is_built_in() {
            return Err(TcpError::NoPacking { name: self.packing.name() });
        }
        Ok(())
    }
}

/// Why there is no fabric.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    #[error(
        "refusing to listen on {address} without a cluster key: make one key file and give it to all nodes, or listen on a loopback address"
    )]
    NoKey { address: SocketAddr },
    #[error(
        "{address} is in use: stop the process that listens there, or give this node another port in the cluster file"
    )]
    InUse { address: SocketAddr },
    #[error("cannot listen on {address}: check that it is an address of this machine")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "this program was built without {name}: build it with the feature `{name}`, or set compression = \"none\" in the cluster file"
    )]
    NoPacking { name: &'static str },
    #[error("node id {node} is not between 1 and {NODES_MAX}")]
    NoSuchNode { node: NodeId },
    #[error("node {node} occurs twice: every node has an id of its own")]
    NodeTwice { node: NodeId },
    #[error("the system has no more descriptors for this process: raise its nofile limit")]
    Descriptors {
        #[source]
        source: std::io::Error,
    },
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read the cluster key {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot make the cluster key {}: it must not exist yet, in a directory that does", path.display())]
    Create {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the cluster key {} is readable by others (mode {mode:03o}): chmod 600 it", path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("the cluster key {} is not 64 hexadecimal digits: copy the whole file from another node", path.display())]
    Malformed { path: PathBuf },
}
