//! `dvs check`: a cluster file and its key, looked at without starting anything.
//!
//! Key type: [`Checked`], what a good file describes. Neighbour: `cluster::unusable`, which says what is wrong with
//! a bad one, here as everywhere.

use anyhow::Result;
use node::config::Cluster;
use proxy_tcp::ClusterKey;
use serde::Serialize;

use crate::cli::CheckArgs;
use crate::cluster::Place;
use crate::failure::{Exit, failure};
use crate::output::{Output, Table};

/// What a good file describes.
#[derive(Serialize)]
struct Checked {
    ok: bool,
    file: String,
    cluster: String,
    key: Key,
    nodes: Vec<CheckedNode>,
    dcs: Vec<CheckedDc>,
    proxies: Vec<CheckedProxy>,
}

/// How the proxies of the nodes are to know one another.
#[derive(Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum Key {
    Good { file: String },
    NotThereYet { file: String },
    None,
}

#[derive(Serialize)]
struct CheckedNode {
    id: u16,
    name: String,
    address: String,
}

#[derive(Serialize)]
struct CheckedDc {
    id: u16,
    name: String,
    ranges: Vec<CheckedRange>,
}

#[derive(Serialize)]
struct CheckedRange {
    node: u16,
    first: u16,
    last: u16,
}

#[derive(Serialize)]
struct CheckedProxy {
    name: String,
    kind: String,
    nodes: Vec<u16>,
}

pub fn check(args: &CheckArgs, output: &Output) -> Result<()> {
    let cluster = Place::load(&args.cluster, None)?.cluster;
    let checked = Checked::of(&cluster, key(&cluster)?);
    output.answer(&checked, |output| checked.text(output))
}

/// A key that is not there is no mistake: the first `dvs up` makes it.
fn key(cluster: &Cluster) -> Result<Key> {
    let Some(path) = &cluster.key_file else { return Ok(Key::None) };
    let file = path.display().to_string();
    if !path.exists() {
        return Ok(Key::NotThereYet { file });
    }
    let next =
        "put the key of the cluster there, for nobody else to read; `dvs up` makes one where there is none";
    match ClusterKey::load(path) {
        Ok(_) => Ok(Key::Good { file }),
        Err(why) => Err(failure(Exit::Config, why.to_string(), next)),
    }
}

impl Checked {
    fn of(cluster: &Cluster, key: Key) -> Checked {
        let nodes = cluster.nodes.iter().map(|n| CheckedNode {
            id: n.id.0,
            name: n.name.to_string(),
            address: n.address.to_string(),
        });
        let dcs = cluster.dcs.iter().map(|dc| {
            let ranges = dc.ranges().map(|(node, range)| CheckedRange {
                node: node.0,
                first: range.first.0,
                last: range.first.0 + (range.count - 1),
            });
            CheckedDc { id: dc.id.0, name: dc.name.to_string(), ranges: ranges.collect() }
        });
        let proxies = cluster.proxies.iter().map(|p| CheckedProxy {
            name: p.name.clone(),
            kind: p.kind.clone(),
            nodes: p.nodes.iter().map(|n| n.0).collect(),
        });
        Checked {
            ok: true,
            file: cluster.file.display().to_string(),
            cluster: cluster.name.to_string(),
            key,
            nodes: nodes.collect(),
            dcs: dcs.collect(),
            proxies: proxies.collect(),
        }
    }

    fn text(&self, output: &Output) -> String {
        let mut nodes = Table::new(&[">NODE", "NAME", "ADDRESS"]);
        for n in &self.nodes {
            nodes.row(vec![n.id.to_string(), n.name.clone(), n.address.clone()]);
        }
        let mut dcs = Table::new(&[">DC", "NAME", ">NODE", "SLOTS"]);
        for dc in &self.dcs {
            for r in &dc.ranges {
                let slots = format!("{} to {}", r.first, r.last);
                dcs.row(vec![dc.id.to_string(), dc.name.clone(), r.node.to_string(), slots]);
            }
        }
        let mut proxies = Table::new(&["PROXY", "KIND", "NODES"]);
        for p in &self.proxies {
            let nodes: Vec<String> = p.nodes.iter().map(ToString::to_string).collect();
            proxies.row(vec![p.name.clone(), p.kind.clone(), nodes.join(", ")]);
        }
        let dcs = if dcs.is_empty() {
            "no DC: add a [[dc]] with id and name, or nobody can bind".to_owned()
        } else {
            dcs.text(output)
        };
        let key = match &self.key {
            Key::Good { file } => format!("key: {file}"),
            Key::NotThereYet { file } => format!("key: {file}, not there yet: the first `dvs up` makes it"),
            Key::None => {
                "key: none; only this machine can be trusted, and only it can reach the nodes".to_owned()
            }
        };
        let (nodes, proxies) = (nodes.text(output), proxies.text(output));
        format!("{} is good: cluster {}\n{key}\n\n{nodes}\n\n{dcs}\n\n{proxies}", self.file, self.cluster)
    }
}
