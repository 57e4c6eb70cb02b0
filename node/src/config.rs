//! The cluster file: one TOML for all nodes. Read, checked against the limits, and cut into what one node's core needs.
//!
//! Key type: [`Cluster`]. Every complaint names the file, the line and the way out. Neighbours: `checks`, for what TOML
//! alone does not refuse; `shape`, for what may stand in it; `privileges`, for who may do what; `core::Plan`.

mod checks;
mod privileges;
mod shape;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use abi::{DcId, Incarnation, Name, NodeId, Slot};
use proxy_tcp::Packing;

use crate::core::{DcPlan, DcSpec, GENERATIONS_AT_ONCE, Plan, ProxyPlan, Range, Rules};
use shape::FileShape;
pub use shape::{SLOTS_PER_NODE, reference};

/// What to do about what the reader of TOML says, by a part of it. Without one of these it speaks for itself.
const REMEDIES: &[(&str, &str)] = &[
    ("missing field `node`", "add a [[node]] with id, name and address"),
    ("missing field", "add it to this table"),
    ("unknown field", "correct the word, or leave the line out"),
    ("duplicate key", "it is there already, further up: keep one"),
    ("map, expected a sequence", "write the heading with two brackets on each side, as in [[node]]"),
    ("expected a sequence", "write a list, as in [1, 2]"),
    ("expected u16", "write a whole number up to 65535, without quotes"),
    ("expected u32", "write a whole number, without quotes"),
    ("expected u64", "write a whole number, without quotes"),
    ("expected a string", "write it in quotes"),
];

/// Why a cluster file cannot be used: where, what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    pub file: PathBuf,
    /// Line and column, from 1; `None`: the file as a whole.
    pub at: Option<(usize, usize)>,
    pub what: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((line, column)) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl std::error::Error for ConfigError {}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNode {
    pub id: NodeId,
    pub name: Name,
    /// Where its proxies listen.
    pub address: SocketAddr,
}

/// A distributed container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterDc {
    pub id: DcId,
    pub name: Name,
    pub nodes: Vec<NodeId>,
    pub slots_per_node: u16,
    pub uids: BTreeSet<u32>,
    /// Who may call whom.
    pub rules: Rules,
}

/// A proxy that each of its nodes runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterProxy {
    pub name: String,
    pub kind: String,
    pub nodes: BTreeSet<NodeId>,
    /// How payload travels between its nodes.
    pub compression: Packing,
}

/// A whole cluster file, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The file, as an absolute path.
    pub file: PathBuf,
    pub name: Name,
    pub key_file: Option<PathBuf>,
    pub node_dead_after: Duration,
    pub link_down_after: Duration,
    pub nodes: Vec<ClusterNode>,
    pub dcs: Vec<ClusterDc>,
    pub proxies: Vec<ClusterProxy>,
}

impl Cluster {
    pub fn load(file: &Path) -> Result<Cluster, ConfigError> {
        Cluster::load_with_text(file).map(|(cluster, _)| cluster)
    }

    /// The cluster, and the text that says so.
    pub(crate) fn load_with_text(file: &Path) -> Result<(Cluster, String), ConfigError> {
        let unreadable = |e: std::io::Error| ConfigError {
            file: file.to_owned(),
            at: None,
            what: format!("cannot be read: {e}"),
        };
        let file = file.canonicalize().map_err(unreadable)?;
        let bytes = std::fs::read(&file).map_err(unreadable)?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let good = e.utf8_error().valid_up_to();
            let before = String::from_utf8_lossy(&e.as_bytes()[..good]);
            ConfigError {
                file: file.clone(),
                at: Some(line_and_column(&before, good)),
                what: "a byte that is not UTF-8: save the file as UTF-8 text".into(),
            }
        })?;
        Ok((Cluster::parse(&text, &file)?, text))
    }

    /// `file` is where the text came from: relative paths in it start there.
    pub fn parse(text: &str, file: &Path) -> Result<Cluster, ConfigError> {
        let complain = |at: Option<usize>, what: String| ConfigError {
            file: file.to_owned(),
            at: at.map(|offset| line_and_column(text, offset)),
            what,
        };
        let shape: FileShape = toml::from_str(text)
            .map_err(|e| complain(e.span().map(|s| s.start), with_remedy(e.message())))?;
        checks::check(shape, file).map_err(|w| complain(w.at, w.what))
    }

    /// A node by its id or name.
    pub fn node(&self, asked: &str) -> Option<&ClusterNode> {
        let id = asked.parse::<u16>().ok();
        self.nodes.iter().find(|n| Some(n.id.0) == id || n.name.as_str() == asked)
    }

    /// Users besides its own that a node's daemon must let in.
    pub fn foreign_uids(&self, node: NodeId, own: u32) -> bool {
        let here = self.dcs.iter().filter(|dc| dc.nodes.contains(&node));
        here.flat_map(|dc| &dc.uids).any(|uid| *uid != own && *uid != 0)
    }

    /// What one node's core needs.
    pub fn plan(
        &self,
        node: &ClusterNode,
        incarnation: Incarnation,
        generation_first: u32,
        owner: u32,
    ) -> Plan {
        let generation_reserved = generation_first.saturating_add(GENERATIONS_AT_ONCE);
        let here = self.dcs.iter().filter(|dc| dc.nodes.contains(&node.id));
        let proxies = (1..).zip(&self.proxies).filter(|(_, p)| p.nodes.contains(&node.id));
        Plan {
            cluster: self.name.as_str().to_owned(),
            node: node.id,
            node_name: node.name.as_str().to_owned(),
            incarnation,
            generation_first,
            generation_reserved,
            owner,
            node_dead_after: self.node_dead_after,
            node_names: self.nodes.iter().map(|n| (n.id, n.name.as_str().to_owned())).collect(),
            dcs: here.map(|dc| (dc.id, dc.plan())).collect(),
            file_rules: self.dcs.iter().map(|dc| (dc.name, dc.rules.clone())).collect(),
            specs: self.dcs.iter().map(|dc| (dc.id, dc.spec())).collect(),
            proxies: proxies
                .map(|(index, p)| ProxyPlan {
                    index,
                    name: p.name.clone(),
                    kind: p.kind.clone(),
                    compression: p.compression,
                    nodes: p.nodes.iter().copied().filter(|n| *n != node.id).collect(),
                })
                .filter(|p| !p.nodes.is_empty())
                .collect(),
        }
    }
}

impl ClusterDc {
    /// Which slots each of its nodes has: ranges follow one another in the order of the nodes.
    pub fn ranges(&self) -> impl Iterator<Item = (NodeId, Range)> {
        let count = self.slots_per_node;
        self.nodes.iter().zip(0..).map(move |(node, k)| (*node, Range { first: Slot(k * count), count }))
    }

    fn spec(&self) -> DcSpec {
        DcSpec::of_file(self.id, self.slots_per_node, &self.plan())
    }

    fn plan(&self) -> DcPlan {
        DcPlan {
            name: self.name,
            uids: self.uids.clone(),
            ranges: self.ranges().collect(),
            rules: self.rules.clone(),
        }
    }
}

fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line, column)
}

fn with_remedy(said: &str) -> String {
    match REMEDIES.iter().find(|(part, _)| said.contains(part)) {
        Some((_, remedy)) => format!("{said}: {remedy}"),
        None => said.to_owned(),
    }
}
