//! What the admin API shows: plain values, cut from the core's state.

use serde::{Deserialize, Serialize};

use super::state::{ProxyStage, Stage};
use super::{Core, DcSpec, Now};

/// The node at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub cluster: String,
    pub node: u16,
    pub name: String,
    pub incarnation: u32,
    pub uptime_ms: u64,
    /// How many daemons that were killed have been succeeded since.
    #[serde(default)]
    pub successions: u32,
    pub version: String,
    pub connections: usize,
    pub directory_version: u64,
    /// Entries of other nodes' directories that were refused.
    pub directory_refused: u64,
    pub nodes: Vec<NodeView>,
    pub dcs: Vec<DcView>,
    pub proxies: Vec<ProxyView>,
}

/// Another node, as seen from this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    pub node: u16,
    pub name: String,
    pub link: String,
    pub since_ms: u64,
    pub incarnation: Option<u32>,
    /// Its present incarnation was declared dead here.
    pub dead: bool,
    pub proxy: Option<u16>,
}

/// A DC on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DcView {
    pub dc: u16,
    pub name: String,
    pub slot_first: u16,
    pub slot_count: u16,
    pub nodes: Vec<u16>,
    /// Endpoints bound here, and known elsewhere.
    pub local: usize,
    pub remote: usize,
}

/// A DC as it is agreed upon, whether this node is part of it or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DcSpecView {
    pub dc: u16,
    pub name: String,
    /// `running`, or `stopped` while it is remembered.
    pub state: String,
    /// 0: as the cluster file has it.
    pub revision: u32,
    /// The node that made this revision.
    pub by: u16,
    pub slots_per_node: u16,
    pub uids: Vec<u32>,
    /// How many rules say who may call whom; `null`: none do, and everybody is a server.
    pub rules: Option<usize>,
    pub nodes: Vec<DcNodeView>,
}

/// A node of a DC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DcNodeView {
    pub node: u16,
    pub name: String,
    pub slot_first: u16,
    pub slot_count: u16,
    /// Endpoints there, as far as the node that was asked knows.
    pub endpoints: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyView {
    pub index: u16,
    pub name: String,
    pub kind: String,
    pub nodes: Vec<u16>,
    pub state: String,
    pub since_ms: u64,
    pub pid: Option<u32>,
    pub restarts: u64,
    pub slots_sent: u64,
    pub slots_received: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub sessions: u64,
    pub corrupt: u64,
    pub pairs: u64,
    /// As the cluster file says; and how many sessions pack, because the other end wants it too.
    pub compression: String,
    pub packed_sessions: u64,
    /// Bytes of payload that might have been packed, and what they took on the wire.
    pub plain_bytes: u64,
    pub packed_bytes: u64,
}

/// One endpoint, here or elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    pub endpoint: String,
    pub dc: u16,
    pub dc_name: String,
    pub slot: u16,
    pub generation: u32,
    pub node: u16,
    pub name: String,
    pub state: String,
    /// It has memory for each peer apart.
    pub private: bool,
    /// Of a local endpoint.
    pub pid: Option<u32>,
    pub uid: Option<u32>,
    pub pairs: Option<usize>,
    pub segments: Option<usize>,
    pub segment_bytes: Option<u64>,
    pub since_ms: Option<u64>,
}

fn ms(now: Now, since: Now) -> u64 {
    u64::try_from(now.saturating_sub(since).as_millis()).unwrap_or(u64::MAX)
}

impl Core {
    pub fn status(&self, now: Now) -> Status {
        Status {
            cluster: self.plan.cluster.clone(),
            node: self.plan.node.0,
            name: self.plan.node_name.clone(),
            incarnation: self.incarnation.0,
            uptime_ms: ms(now, self.started),
            successions: self.successions,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            connections: self.conns.len(),
            directory_version: self.version,
            directory_refused: self.refused_entries,
            nodes: self.node_views(now),
            dcs: self.dc_views(),
            proxies: self.proxy_views(now),
        }
    }

    fn node_views(&self, now: Now) -> Vec<NodeView> {
        let view = |(id, node): (&abi::NodeId, &super::state::Node)| NodeView {
            node: id.0,
            name: self.plan.node_names.get(id).cloned().unwrap_or_default(),
            link: node.state.name().to_owned(),
            since_ms: ms(now, node.since),
            incarnation: node.incarnation.map(|i| i.0),
            dead: node.is_dead(),
            proxy: self.plan.route(*id),
        };
        self.nodes.iter().map(view).collect()
    }

    fn dc_views(&self) -> Vec<DcView> {
        let mut views = Vec::new();
        for (id, plan) in &self.plan.dcs {
            let (Some(range), Some(dc)) = (self.plan.own_range(*id), self.dcs.get(id)) else { continue };
            views.push(DcView {
                dc: id.0,
                name: plan.name.as_str().to_owned(),
                slot_first: range.first.0,
                slot_count: range.count,
                nodes: plan.ranges.keys().map(|n| n.0).collect(),
                local: dc.slots.values().filter(|s| s.holder.is_some()).count(),
                remote: dc.remotes.values().filter(|r| r.alive).count(),
            });
        }
        views
    }

    /// Every DC that is known.
    pub fn dc_specs(&self) -> Vec<DcSpecView> {
        self.specs.values().map(|spec| self.spec_view(spec)).collect()
    }

    pub fn spec_view(&self, spec: &DcSpec) -> DcSpecView {
        let node = |share: &super::Share| DcNodeView {
            node: share.node.0,
            name: self.plan.node_names.get(&share.node).cloned().unwrap_or_default(),
            slot_first: share.range.first.0,
            slot_count: share.range.count,
            endpoints: self.endpoints_on(spec.id, share.node).map(|there| there.len()),
        };
        DcSpecView {
            dc: spec.id.0,
            name: spec.name.as_str().to_owned(),
            state: if spec.ended { "stopped" } else { "running" }.to_owned(),
            revision: spec.revision,
            by: spec.by.0,
            slots_per_node: spec.slots_per_node,
            uids: spec.uids.iter().copied().collect(),
            rules: self.plan.of(spec).rules.rules.map(|rules| rules.len()),
            nodes: spec.shares.iter().filter(|s| !s.left && !spec.ended).map(node).collect(),
        }
    }

    pub fn proxy_views(&self, now: Now) -> Vec<ProxyView> {
        let mut views = Vec::new();
        for plan in &self.plan.proxies {
            let Some(proxy) = self.proxies.get(&plan.index) else { continue };
            let state = match proxy.stage {
                ProxyStage::Waiting { .. } => "dead",
                ProxyStage::Starting { .. } => "starting",
                ProxyStage::Up => "up",
                ProxyStage::Stopping { .. } | ProxyStage::Killed => "stopping",
                ProxyStage::Stopped => "stopped",
            };
            let t = proxy.totals;
            views.push(ProxyView {
                index: plan.index,
                name: plan.name.clone(),
                kind: plan.kind.clone(),
                nodes: plan.nodes.iter().map(|n| n.0).collect(),
                state: state.to_owned(),
                since_ms: ms(now, proxy.since),
                pid: proxy.pid,
                restarts: proxy.restarts,
                slots_sent: t.slots_sent,
                slots_received: t.slots_received,
                bytes_sent: t.bytes_sent,
                bytes_received: t.bytes_received,
                sessions: t.sessions,
                corrupt: t.corrupt,
                pairs: t.pairs,
                compression: plan.compression.name().to_owned(),
                packed_sessions: t.packed.sessions,
                plain_bytes: t.packed.plain_bytes,
                packed_bytes: t.packed.wire_bytes,
            });
        }
        views
    }

    /// Every endpoint that is known and lives, and the dead ones of this node whose memory is still kept.
    pub fn endpoints(&self, now: Now) -> Vec<EndpointView> {
        let mut views: Vec<EndpointView> =
            self.locals.keys().filter_map(|e| self.local_view(now, *e)).collect();
        for (id, dc) in &self.dcs {
            for (slot, remote) in dc.remotes.iter().filter(|(_, r)| r.alive) {
                let endpoint = abi::Endpoint::new(*id, *slot, remote.generation);
                let view = self.view(endpoint, remote.node.0, remote.name, "bound");
                views.push(EndpointView { private: remote.private, ..view });
            }
        }
        views.sort_by_key(|v| (v.dc, v.slot, v.generation));
        views
    }

    fn local_view(&self, now: Now, endpoint: abi::Endpoint) -> Option<EndpointView> {
        let local = self.locals.get(&endpoint)?;
        let state = match local.stage {
            Stage::Making { .. } | Stage::Mapping { .. } => "binding",
            Stage::Reserved => "reserved",
            Stage::Ready => "bound",
            Stage::Dead { .. } => "dead",
        };
        let segments = self.memories.get(&local.memory).map(|m| &m.segments);
        Some(EndpointView {
            private: local.private,
            pid: Some(local.process.pid),
            uid: Some(local.process.uid),
            pairs: Some(local.links.len()),
            segments: segments.map(|s| s.len()),
            segment_bytes: segments.map(|s| s.values().map(|s| s.len_bytes).sum()),
            since_ms: Some(ms(now, local.since)),
            ..self.view(endpoint, self.plan.node.0, local.name, state)
        })
    }

    fn view(&self, endpoint: abi::Endpoint, node: u16, name: abi::Name, state: &str) -> EndpointView {
        EndpointView {
            endpoint: endpoint.to_string(),
            dc: endpoint.dc.0,
            dc_name: self.plan.dcs.get(&endpoint.dc).map_or("", |d| d.name.as_str()).to_owned(),
            slot: endpoint.slot.0,
            generation: endpoint.generation.0,
            node,
            name: name.as_str().to_owned(),
            state: state.to_owned(),
            private: false,
            pid: None,
            uid: None,
            pairs: None,
            segments: None,
            segment_bytes: None,
            since_ms: None,
        }
    }

    /// The index of a proxy of this node by its name.
    pub fn proxy_named(&self, name: &str) -> Option<u16> {
        self.plan.proxies.iter().find(|p| p.name == name).map(|p| p.index)
    }
}
