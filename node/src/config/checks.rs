//! What a cluster file may say that is TOML and yet makes no cluster: ids and names twice, limits, addresses, routes.
//!
//! Key type: [`Wrong`]: a complaint and the place it is about. Neighbour: `shape`, which is checked here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use abi::limits::{
    DCS_MAX, LINK_DOWN_AFTER_MS, NODE_DEAD_AFTER_MS, NODES_MAX, PROXIES_PER_NODE_MAX, RULE_WORDS_PER_DC_MAX,
    SLOTS_PER_DC, UIDS_PER_DC_MAX,
};
use abi::{DcId, Name, NodeId};
use proxy_tcp::Packing;
use toml::Spanned;

use super::shape::{DcShape, FileShape, MS_MAX, MS_MIN, NodeShape, ProxyShape, SLOTS_PER_NODE};
use super::{Cluster, ClusterDc, ClusterNode, ClusterProxy, privileges};

/// A complaint about a place in the text.
pub(super) struct Wrong {
    pub at: Option<usize>,
    pub what: String,
}

pub(super) fn wrong<T>(place: &Spanned<T>, what: impl Into<String>) -> Wrong {
    Wrong { at: Some(place.span().start), what: what.into() }
}

/// The cluster that a file describes, or the first thing that is wrong with it.
pub(super) fn check(shape: FileShape, file: &Path) -> Result<Cluster, Wrong> {
    let name = checked_name(&shape.name, "cluster name")?;
    let node_dead_after =
        checked_ms(shape.node_dead_after_ms.as_ref(), "node_dead_after_ms", NODE_DEAD_AFTER_MS)?;
    let link_down_after =
        checked_ms(shape.link_down_after_ms.as_ref(), "link_down_after_ms", LINK_DOWN_AFTER_MS)?;
    let nodes = check_nodes(&shape.node)?;
    check_key(&shape, &nodes)?;
    let ids: BTreeSet<NodeId> = nodes.iter().map(|n| n.id).collect();
    let dcs = check_dcs(&shape.dc, &nodes)?;
    let proxies = check_proxies(&shape.proxy, &ids)?;
    check_routes(&shape.proxy, &dcs, &proxies)?;
    let folder = file.parent().unwrap_or(Path::new("."));
    Ok(Cluster {
        file: file.to_owned(),
        name,
        key_file: shape.key_file.map(|key| folder.join(key)),
        node_dead_after,
        link_down_after,
        nodes,
        dcs,
        proxies,
    })
}

pub(super) fn checked_name(name: &Spanned<String>, of: &str) -> Result<Name, Wrong> {
    Name::new(name.get_ref()).map_err(|e| wrong(name, format!("{of} {:?} is {e}", name.get_ref())))
}

fn checked_ms(ms: Option<&Spanned<u64>>, field: &str, default: u64) -> Result<Duration, Wrong> {
    match ms {
        None => Ok(Duration::from_millis(default)),
        Some(ms) if (MS_MIN..=MS_MAX).contains(ms.get_ref()) => Ok(Duration::from_millis(*ms.get_ref())),
        Some(ms) => {
            Err(wrong(ms, format!("{field} is {}: use {MS_MIN} to {MS_MAX} (an hour)", ms.get_ref())))
        }
    }
}

fn check_nodes(shapes: &Spanned<Vec<NodeShape>>) -> Result<Vec<ClusterNode>, Wrong> {
    let (mut ids, mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut nodes = Vec::new();
    if shapes.get_ref().is_empty() {
        return Err(wrong(shapes, "there is no node: add a [[node]] with id, name and address"));
    }
    for shape in shapes.get_ref() {
        let id = *shape.id.get_ref();
        if !(1..=NODES_MAX).contains(&id) {
            return Err(wrong(&shape.id, format!("node id {id}: ids are 1 to {NODES_MAX} (NODES_MAX)")));
        }
        let name = checked_name(&shape.name, "node name")?;
        if name.as_str().starts_with('.') {
            return Err(wrong(
                &shape.name,
                format!("node name {name} begins with a dot: it names a directory too"),
            ));
        }
        let text = shape.address.get_ref();
        let address: SocketAddr = text.parse().map_err(|_| {
            wrong(&shape.address, format!("address {text:?} is not IP:PORT, for example \"127.0.0.2:7701\""))
        })?;
        if address.port() == 0 {
            return Err(wrong(
                &shape.address,
                format!("address {text:?} has no port: other nodes must know it"),
            ));
        }
        if address.ip().is_unspecified() {
            let what = format!(
                "address {text:?} is every address of a machine and leads to none: give the one other nodes call"
            );
            return Err(wrong(&shape.address, what));
        }
        if !ids.insert(id) {
            return Err(wrong(&shape.id, format!("node id {id} is there twice: give each node its own")));
        }
        if !names.insert(name) {
            return Err(wrong(
                &shape.name,
                format!("node name {name} is there twice: give each node its own"),
            ));
        }
        if !addresses.insert(address) {
            let what =
                format!("address {address} is there twice: give each node an address or port of its own");
            return Err(wrong(&shape.address, what));
        }
        nodes.push(ClusterNode { id: NodeId(id), name, address });
    }
    Ok(nodes)
}

/// A proxy refuses to listen where others could speak for a node.
fn check_key(shape: &FileShape, nodes: &[ClusterNode]) -> Result<(), Wrong> {
    if shape.key_file.is_some() || nodes.len() < 2 {
        return Ok(());
    }
    let both = shape.node.get_ref().iter().zip(nodes);
    match both.into_iter().find(|(_, node)| !node.address.ip().is_loopback()) {
        None => Ok(()),
        Some((at, node)) => Err(wrong(
            &at.address,
            format!(
                "address {} is open to others and there is no key: add key_file = \"cluster.key\" at the top",
                node.address
            ),
        )),
    }
}

fn check_dcs(shapes: &[DcShape], nodes: &[ClusterNode]) -> Result<Vec<ClusterDc>, Wrong> {
    let (mut ids, mut names) = (BTreeSet::new(), BTreeSet::new());
    let all: BTreeSet<NodeId> = nodes.iter().map(|n| n.id).collect();
    let mut dcs = Vec::new();
    for shape in shapes {
        let id = *shape.id.get_ref();
        if !(1..=DCS_MAX).contains(&id) {
            return Err(wrong(&shape.id, format!("DC id {id}: ids are 1 to {DCS_MAX} (DCS_MAX)")));
        }
        let name = checked_name(&shape.name, "DC name")?;
        if !ids.insert(id) {
            return Err(wrong(&shape.id, format!("DC id {id} is there twice: give each DC its own")));
        }
        if !names.insert(name) {
            return Err(wrong(&shape.name, format!("DC name {name} is there twice: give each DC its own")));
        }
        let members = match &shape.nodes {
            Some(list) => node_list(list, &all, &format!("DC {name}"))?,
            None => nodes.iter().map(|n| n.id).collect(),
        };
        let slots_per_node = check_slots(shape, members.len())?;
        let uids = shape.uids.clone();
        if uids.len() > UIDS_PER_DC_MAX {
            let what =
                format!("DC {name} lets in more than {UIDS_PER_DC_MAX} users (UIDS_PER_DC_MAX): name fewer");
            return Err(wrong(&shape.name, what));
        }
        let rules = privileges::rules(shape.privileges.as_deref(), members.len() as u16 * slots_per_node)?;
        if rules.to_words().len() > RULE_WORDS_PER_DC_MAX {
            let what = format!(
                "the rules of DC {name} come to more than {RULE_WORDS_PER_DC_MAX} words (RULE_WORDS_PER_DC_MAX): \
                 use fewer, or ranges of slots instead of names"
            );
            return Err(wrong(&shape.name, what));
        }
        dcs.push(ClusterDc { id: DcId(id), name, nodes: members, slots_per_node, uids, rules });
    }
    Ok(dcs)
}

fn check_slots(shape: &DcShape, nodes: usize) -> Result<u16, Wrong> {
    let per_node = shape.slots_per_node.as_ref().map_or(SLOTS_PER_NODE, |s| *s.get_ref());
    let place = |what: String| match &shape.slots_per_node {
        Some(given) => wrong(given, what),
        None => wrong(&shape.id, what),
    };
    if per_node == 0 {
        return Err(place("slots_per_node is 0: nobody could bind".into()));
    }
    if nodes * usize::from(per_node) > usize::from(SLOTS_PER_DC) {
        return Err(place(format!(
            "{nodes} nodes with {per_node} slots each are more than the {SLOTS_PER_DC} slots of a DC (SLOTS_PER_DC): \
             use slots_per_node = {} or less",
            usize::from(SLOTS_PER_DC) / nodes.max(1),
        )));
    }
    Ok(per_node)
}

fn node_list(
    list: &Spanned<Vec<Spanned<u16>>>,
    all: &BTreeSet<NodeId>,
    of: &str,
) -> Result<Vec<NodeId>, Wrong> {
    let mut nodes = Vec::new();
    if list.get_ref().is_empty() {
        return Err(wrong(list, format!("{of} has no nodes: list the ids of some")));
    }
    for id in list.get_ref() {
        let node = NodeId(*id.get_ref());
        if !all.contains(&node) {
            return Err(wrong(
                id,
                format!("{of} names node {node}, which is not in the file: add a [[node]] for it"),
            ));
        }
        if nodes.contains(&node) {
            return Err(wrong(id, format!("{of} names node {node} twice")));
        }
        nodes.push(node);
    }
    Ok(nodes)
}

fn check_proxies(shapes: &[ProxyShape], all: &BTreeSet<NodeId>) -> Result<Vec<ClusterProxy>, Wrong> {
    if shapes.is_empty() {
        return Ok(vec![ClusterProxy {
            name: "tcp".into(),
            kind: "tcp".into(),
            nodes: all.clone(),
            compression: Packing::None,
        }]);
    }
    let (mut names, mut listens) = (BTreeSet::new(), BTreeMap::new());
    let mut proxies = Vec::new();
    for shape in shapes {
        if proxies.len() + 1 >= usize::from(PROXIES_PER_NODE_MAX) {
            let what = format!("more than {} proxies (PROXIES_PER_NODE_MAX)", PROXIES_PER_NODE_MAX - 1);
            return Err(wrong(&shape.name, what));
        }
        let name = checked_name(&shape.name, "proxy name")?;
        if !names.insert(name) {
            return Err(wrong(&shape.name, format!("proxy name {name} is there twice: give each its own")));
        }
        let kind = shape.kind.get_ref().as_str();
        check_kind(kind).map_err(|what| wrong(&shape.kind, what))?;
        let nodes: BTreeSet<NodeId> = match &shape.nodes {
            Some(list) => node_list(list, all, &format!("proxy {name}"))?.into_iter().collect(),
            None => all.clone(),
        };
        for node in &nodes {
            if let Some(other) = listens.insert(*node, name) {
                let what = format!(
                    "proxies {other} and {name} would listen at the same address on node {node}: give them different \
                     `nodes`"
                );
                return Err(wrong(&shape.name, what));
            }
        }
        let compression = check_compression(shape.compression.as_ref())?;
        let (name, kind) = (name.as_str().to_owned(), kind.to_owned());
        proxies.push(ClusterProxy { name, kind, nodes, compression });
    }
    Ok(proxies)
}

fn check_kind(kind: &str) -> Result<(), String> {
    const USE: &str = "use kind = \"tcp\", \"rdma\" or \"auto\"";
    match kind {
        "tcp" | "rdma" | "auto" => Ok(()),
        "dpdk" => Err(format!("proxy kind {kind:?} is not there yet: {USE}")),
        _ => Err(format!("proxy kind {kind:?} is unknown: {USE}")),
    }
}

fn check_compression(asked: Option<&Spanned<String>>) -> Result<Packing, Wrong> {
    let Some(asked) = asked else { return Ok(Packing::None) };
    let name = asked.get_ref();
    match Packing::from_name(name) {
        Some(packing) if packing.is_built_in() => Ok(packing),
        Some(_) => Err(wrong(
            asked,
            format!(
                "compression = {name:?}: this program was built without it: build it with the feature `{name}`, or use \
                 \"none\""
            ),
        )),
        None => Err(wrong(asked, format!("compression {name:?} is unknown: use \"none\" or \"lz4\""))),
    }
}

/// Every two nodes that share a DC must share a proxy.
fn check_routes(shapes: &[ProxyShape], dcs: &[ClusterDc], proxies: &[ClusterProxy]) -> Result<(), Wrong> {
    for dc in dcs {
        for (k, a) in dc.nodes.iter().enumerate() {
            for b in &dc.nodes[k + 1..] {
                if !proxies.iter().any(|p| p.nodes.contains(a) && p.nodes.contains(b)) {
                    let what = format!(
                        "nodes {a} and {b} share DC {} and no proxy: list both in one proxy's `nodes`, or none",
                        dc.name
                    );
                    return Err(Wrong { at: shapes.first().map(|s| s.name.span().start), what });
                }
            }
        }
    }
    Ok(())
}
