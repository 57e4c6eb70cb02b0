//! `dvs status`, `dvs ps`, `dvs proxy ls`: what daemons know, merged into one answer.
//!
//! A node that does not answer is part of the answer; an error only when none does.

use anyhow::Result;
use node::core::{EndpointView, ProxyView, Status};
use serde::Serialize;

use crate::admin::Daemon;
use crate::cluster::Place;
use crate::output::{Output, Table, bytes, count, span};

/// A node that did not answer.
#[derive(Serialize)]
struct Silent {
    node: u16,
    name: String,
    error: String,
}

/// What each node that was asked answered.
struct Answers<T> {
    of: Vec<(u16, String, T)>,
    silent: Vec<Silent>,
}

impl<T> Answers<T> {
    fn ask(place: &Place, asked: Option<&str>, ask: impl Fn(Daemon<'_>) -> Result<T>) -> Result<Answers<T>> {
        let asked: Vec<String> = asked.map(str::to_owned).into_iter().collect();
        let mut answers = Answers { of: Vec::new(), silent: Vec::new() };
        let mut first = None;
        for node in place.nodes_here(&asked)? {
            let name = node.name.as_str().to_owned();
            match ask(Daemon { place, node }) {
                Ok(answer) => answers.of.push((node.id.0, name, answer)),
                Err(why) => {
                    answers.silent.push(Silent { node: node.id.0, name, error: why.to_string() });
                    first.get_or_insert(why);
                }
            }
        }
        match first {
            Some(why) if answers.of.is_empty() => Err(why),
            _ => Ok(answers),
        }
    }
}

fn silent_text(silent: &[Silent]) -> String {
    silent.iter().map(|s| format!("\nno answer: {}", s.error)).collect()
}

#[derive(Serialize)]
struct StatusAnswer {
    file: String,
    nodes: Vec<Status>,
    silent: Vec<Silent>,
}

pub fn status(place: &Place, node: Option<&str>, output: &Output) -> Result<()> {
    let answers = Answers::ask(place, node, |d| d.status())?;
    let nodes = answers.of.into_iter().map(|(_, _, status)| status).collect();
    let file = place.cluster.file.display().to_string();
    let answer = StatusAnswer { file, nodes, silent: answers.silent };
    output.answer(&answer, |output| status_text(&answer, output))
}

fn status_text(answer: &StatusAnswer, output: &Output) -> String {
    let mut nodes = Table::new(&["NODE", "NAME", "UP FOR", ">INCARNATION", ">MEMBERS", "LINKS"]);
    let mut dcs = Table::new(&["DC", "NAME", "NODE", "SLOTS", ">BOUND HERE", ">KNOWN ELSEWHERE"]);
    for s in &answer.nodes {
        let links =
            s.nodes.iter().map(|n| format!("{} {}{}", n.name, n.link, if n.dead { " (dead)" } else { "" }));
        let links = links.collect::<Vec<_>>().join(", ");
        let (up, incarnation, members) =
            (span(s.uptime_ms), s.incarnation.to_string(), s.connections.to_string());
        nodes.row(vec![s.node.to_string(), s.name.clone(), up, incarnation, members, links]);
        for dc in &s.dcs {
            let slots = format!("{}-{}", dc.slot_first, dc.slot_first + dc.slot_count.saturating_sub(1));
            let (here, elsewhere) = (dc.local.to_string(), dc.remote.to_string());
            dcs.row(vec![dc.dc.to_string(), dc.name.clone(), s.name.clone(), slots, here, elsewhere]);
        }
    }
    let of = |s: &Status| s.proxies.iter().map(|p| (s.name.clone(), p.clone())).collect::<Vec<_>>();
    let proxies: Vec<_> = answer.nodes.iter().flat_map(of).collect();
    let name = answer.nodes.first().map_or("", |s| s.cluster.as_str());
    let mut text = format!("cluster {name} ({})\n\n{}", answer.file, nodes.text(output));
    if !dcs.is_empty() {
        text += &format!("\n\n{}", dcs.text(output));
    }
    if !proxies.is_empty() {
        text += &format!("\n\n{}", proxies_text(&proxies, output));
    }
    text + &silent_text(&answer.silent)
}

#[derive(Serialize)]
struct PsAnswer {
    endpoints: Vec<EndpointView>,
    silent: Vec<Silent>,
}

/// Each node's own endpoints; of one node that was asked for, also those it knows elsewhere.
pub fn ps(place: &Place, node: Option<&str>, output: &Output) -> Result<()> {
    let answers = Answers::ask(place, node, |d| d.endpoints())?;
    let mut endpoints = Vec::new();
    for (id, _, known) in answers.of {
        endpoints.extend(known.into_iter().filter(|e| node.is_some() || e.node == id));
    }
    endpoints.sort_by_key(|e| (e.dc, e.slot, e.generation));
    let answer = PsAnswer { endpoints, silent: answers.silent };
    output.answer(&answer, |output| ps_text(&answer, output))
}

fn ps_text(answer: &PsAnswer, output: &Output) -> String {
    let columns =
        ["ENDPOINT", "DC", ">SLOT", "NAME", ">NODE", "STATE", ">PID", ">UID", ">PEERS", ">MEMORY", "FOR"];
    let mut table = Table::new(&columns);
    for e in &answer.endpoints {
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        table.row(vec![
            e.endpoint.clone(),
            e.dc_name.clone(),
            e.slot.to_string(),
            or_dash(Some(e.name.clone()).filter(|n| !n.is_empty())),
            e.node.to_string(),
            if e.private { format!("{}, private", e.state) } else { e.state.clone() },
            or_dash(e.pid.map(|v| v.to_string())),
            or_dash(e.uid.map(|v| v.to_string())),
            or_dash(e.pairs.map(|v| v.to_string())),
            or_dash(e.segment_bytes.map(bytes)),
            or_dash(e.since_ms.map(span)),
        ]);
    }
    let text = if table.is_empty() {
        "nobody is bound: `dvs run --dc DC --node NODE -- PROGRAM` binds one".to_owned()
    } else {
        table.text(output)
    };
    text + &silent_text(&answer.silent)
}

#[derive(Serialize)]
struct ProxiesAnswer {
    nodes: Vec<NodeProxies>,
    silent: Vec<Silent>,
}

#[derive(Serialize)]
struct NodeProxies {
    node: u16,
    name: String,
    proxies: Vec<ProxyView>,
}

pub fn proxies(place: &Place, node: Option<&str>, output: &Output) -> Result<()> {
    let answers = Answers::ask(place, node, |d| d.proxies())?;
    let of = |(node, name, proxies)| NodeProxies { node, name, proxies };
    let answer = ProxiesAnswer { nodes: answers.of.into_iter().map(of).collect(), silent: answers.silent };
    output.answer(&answer, |output| {
        let of = |n: &NodeProxies| n.proxies.iter().map(|p| (n.name.clone(), p.clone())).collect::<Vec<_>>();
        let rows: Vec<_> = answer.nodes.iter().flat_map(of).collect();
        let none = "no proxies: a cluster of one node needs none".to_owned();
        let text = if rows.is_empty() { none } else { proxies_text(&rows, output) };
        text + &silent_text(&answer.silent)
    })
}

/// The kind, and with how many of its nodes it packs, to which part.
fn kind_text(p: &ProxyView) -> String {
    if p.compression == "none" {
        return p.kind.clone();
    }
    let part = match p.plain_bytes {
        0 => String::new(),
        plain => format!(", to {} %", p.packed_bytes * 100 / plain),
    };
    format!("{}+{} ({} of {}{part})", p.kind, p.compression, p.packed_sessions, p.nodes.len())
}

fn proxies_text(rows: &[(String, ProxyView)], output: &Output) -> String {
    let columns =
        ["PROXY", "NODE", "KIND", "TO", "STATE", "FOR", ">PID", ">RESTARTS", ">PAIRS", ">SENT", ">RECEIVED"];
    let mut table = Table::new(&columns);
    for (node, p) in rows {
        let to: Vec<String> = p.nodes.iter().map(ToString::to_string).collect();
        let sent = format!("{} ({})", count(p.slots_sent), bytes(p.bytes_sent));
        let received = format!("{} ({})", count(p.slots_received), bytes(p.bytes_received));
        table.row(vec![
            p.name.clone(),
            node.clone(),
            kind_text(p),
            to.join(","),
            p.state.clone(),
            span(p.since_ms),
            p.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            p.restarts.to_string(),
            p.pairs.to_string(),
            sent,
            received,
        ]);
    }
    table.text(output)
}
