//! `dvs dc`: DCs made, listed, grown, shrunk and stopped while the cluster runs.
//!
//! A change is one daemon's to make, which tells the others. The command returns when every daemon of this machine knows
//! of it. Neighbours: `node::core` (what is allowed), `show` (the other lists).

use std::path::Path;
use std::time::{Duration, Instant};

use abi::NodeId;
use anyhow::Result;
use node::admin::Request;
use node::config::ClusterNode;
use node::core::DcSpecView;
use serde_json::json;

use crate::admin::Daemon;
use crate::cli::{DcCommand, DcCreateArgs, Via, Where};
use crate::cluster::Place;
use crate::failure::{Exit, did_you_mean, failure};
use crate::interrupt;
use crate::output::{Output, Table};

/// How long other daemons of this machine may take to hear of a change.
const HEARD_WITHIN: Duration = Duration::from_secs(5);
const GLANCE: Duration = Duration::from_millis(10);

pub fn dc(command: DcCommand, dir: Option<&Path>, output: &Output) -> Result<()> {
    match command {
        DcCommand::Ls(place) => list(&Place::find(&place, dir)?, place.node.as_deref(), output),
        DcCommand::Create(args) => create(&args, dir, output),
        DcCommand::Grow(args) => {
            let place = find(&args.via, dir)?;
            let (name, nodes) = (args.name, ids(&place, &args.nodes)?);
            let daemon = member(&place, &args.via, &name, &[])?;
            change(&place, daemon, &Request::DcGrow { name, nodes }, "spans", output)
        }
        DcCommand::Shrink(args) => {
            let (what, force) = (args.what, args.force);
            let place = find(&what.via, dir)?;
            let (name, nodes) = (what.name, ids(&place, &what.nodes)?);
            // Who lives on a node, that node knows best.
            let daemon = member(&place, &what.via, &name, &nodes)?;
            change(&place, daemon, &Request::DcShrink { name, nodes, force }, "spans", output)
        }
        DcCommand::Stop(args) => {
            let place = find(&args.via, dir)?;
            let daemon = member(&place, &args.via, &args.name, &[])?;
            let request = Request::DcStop { name: args.name, force: args.force };
            change(&place, daemon, &request, "is stopped", output)
        }
    }
}

fn find(via: &Via, dir: Option<&Path>) -> Result<Place> {
    Place::find(&Where { cluster: via.cluster.clone(), node: via.node.clone() }, dir)
}

fn ids(place: &Place, nodes: &[String]) -> Result<Vec<u16>> {
    nodes.iter().map(|asked| place.node(asked).map(|node| node.id.0)).collect()
}

fn create(args: &DcCreateArgs, dir: Option<&Path>, output: &Output) -> Result<()> {
    let place = find(&args.via, dir)?;
    let nodes = ids(&place, &args.nodes)?;
    let answers = ask(&place, args.via.node.as_deref())?;
    let best = answers.iter().find(|(node, _)| nodes.contains(&node.id.0)).or(answers.first());
    let Some((node, _)) = best else { return Err(nobody(&place)) };
    if let Some(like) = &args.like {
        let known = || answers.iter().flat_map(|(_, dcs)| dcs);
        if !known().any(|d| d.state == "running" && d.name == *like) {
            return Err(unknown(&place, like, known()));
        }
    }
    let request = Request::DcCreate {
        name: args.name.clone(),
        nodes,
        slots_per_node: args.slots,
        uids: args.uid.iter().copied().collect(),
        like: args.like.clone(),
    };
    change(&place, Daemon { place: &place, node }, &request, "is made on", output)
}

/// A DC and its nodes.
pub struct Span {
    pub name: String,
    pub nodes: Vec<NodeId>,
}

/// The DCs as they are now; if no daemon is there to ask, as the cluster file has them.
pub fn spans(place: &Place) -> Vec<Span> {
    match ask(place, None) {
        Ok(answers) => newest(&answers)
            .into_iter()
            .map(|d| Span { name: d.name, nodes: d.nodes.iter().map(|n| NodeId(n.node)).collect() })
            .collect(),
        Err(_) => {
            let dcs = place.cluster.dcs.iter();
            dcs.map(|d| Span { name: d.name.as_str().to_owned(), nodes: d.nodes.clone() }).collect()
        }
    }
}

/// What each daemon that was asked knows; an error only if none answers.
fn ask<'a>(place: &'a Place, asked: Option<&str>) -> Result<Vec<(&'a ClusterNode, Vec<DcSpecView>)>> {
    let asked: Vec<String> = asked.map(str::to_owned).into_iter().collect();
    let (mut answers, mut first) = (Vec::new(), None);
    for node in place.nodes_here(&asked)? {
        match (Daemon { place, node }).dcs() {
            Ok(dcs) => answers.push((node, dcs)),
            Err(why) => drop(first.get_or_insert(why)),
        }
    }
    match first {
        Some(why) if answers.is_empty() => Err(why),
        _ => Ok(answers),
    }
}

fn nobody(place: &Place) -> anyhow::Error {
    let next = format!("start it with `dvs up {}`", place.cluster.file.display());
    failure(Exit::NotRunning, format!("no daemon of cluster {} answers", place.cluster.name), next)
}

/// The daemon to ask about a DC: of one of these nodes, else of a node of the DC, else any.
fn member<'a>(place: &'a Place, via: &Via, name: &str, best: &[u16]) -> Result<Daemon<'a>> {
    let answers = ask(place, via.node.as_deref())?;
    let running: Vec<(&ClusterNode, &DcSpecView)> = answers
        .iter()
        .flat_map(|(node, dcs)| dcs.iter().map(move |dc| (*node, dc)))
        .filter(|(_, dc)| dc.state == "running" && dc.name == name)
        .collect();
    if running.is_empty() {
        return Err(unknown(place, name, answers.iter().flat_map(|(_, dcs)| dcs)));
    }
    let named = running.iter().find(|(node, _)| best.contains(&node.id.0));
    let inside = || running.iter().find(|(node, dc)| dc.nodes.iter().any(|n| n.node == node.id.0));
    let (node, _) = named.or_else(inside).unwrap_or(&running[0]);
    Ok(Daemon { place, node })
}

/// There is no such DC, and what there is.
pub fn unknown<'a>(place: &Place, name: &str, known: impl Iterator<Item = &'a DcSpecView>) -> anyhow::Error {
    let mut names: Vec<String> = known.filter(|d| d.state == "running").map(|d| d.name.clone()).collect();
    names.sort();
    names.dedup();
    let what = format!("cluster {} has no DC {name:?}", place.cluster.name);
    failure(Exit::Config, what, did_you_mean(name, &names))
}

fn change(place: &Place, daemon: Daemon<'_>, request: &Request, did: &str, output: &Output) -> Result<()> {
    interrupt::note_signals()?;
    let dc = daemon.change(request)?;
    let silent = wait_for(place, &dc)?;
    let after = daemon.dcs()?.into_iter().find(|d| d.dc == dc.dc);
    if after.as_ref().is_some_and(|d| (d.revision, d.by) != (dc.revision, dc.by)) {
        let what = format!("DC {} was changed by somebody else at the same moment", dc.name);
        return Err(failure(Exit::Refused, what, "look at it with `dvs dc ls`, then repeat"));
    }
    let shown = after.unwrap_or(dc);
    let answer = json!({ "ok": true, "dc": shown, "not_heard_yet": silent });
    output.answer(&answer, |_| {
        let nodes: Vec<&str> = shown.nodes.iter().map(|n| n.name.as_str()).collect();
        let late = match silent.as_slice() {
            [] => String::new(),
            late => format!("\nnot heard of yet on {}: they are told when they are reached", late.join(", ")),
        };
        format!("DC {} (id {}) {did} {}", shown.name, shown.dc, nodes.join(", ")).trim_end().to_owned()
            + &late
    })
}

/// Until each daemon here that answers knows of this revision, or a later one; those that do not in time.
fn wait_for(place: &Place, dc: &DcSpecView) -> Result<Vec<String>> {
    let until = Instant::now() + HEARD_WITHIN;
    loop {
        interrupt::check()?;
        let knows = |known: &[DcSpecView]| {
            known.iter().any(|d| d.dc == dc.dc && (d.revision, d.by) >= (dc.revision, dc.by))
        };
        let answers = ask(place, None)?;
        let late: Vec<String> = answers
            .iter()
            .filter(|(_, known)| !knows(known))
            .map(|(node, _)| node.name.as_str().to_owned())
            .collect();
        if late.is_empty() || Instant::now() >= until {
            return Ok(late);
        }
        std::thread::sleep(GLANCE);
    }
}

/// The DCs that run, as who knows the latest of each says.
fn newest(answers: &[(&ClusterNode, Vec<DcSpecView>)]) -> Vec<DcSpecView> {
    let mut dcs: Vec<DcSpecView> = Vec::new();
    for (_, known) in answers {
        for dc in known {
            match dcs.iter_mut().find(|d| d.dc == dc.dc) {
                Some(there) if (there.revision, there.by) >= (dc.revision, dc.by) => {}
                Some(there) => *there = dc.clone(),
                None => dcs.push(dc.clone()),
            }
        }
    }
    dcs.retain(|d| d.state == "running");
    dcs.sort_by_key(|d| d.dc);
    dcs
}

fn list(place: &Place, asked: Option<&str>, output: &Output) -> Result<()> {
    let answers = ask(place, asked)?;
    let mut dcs = newest(&answers);
    for dc in &mut dcs {
        for node in &mut dc.nodes {
            node.endpoints = endpoints(&answers, dc.dc, node.node);
        }
    }
    output.answer(&json!({ "dcs": dcs }), |output| {
        let mut table = Table::new(&[
            ">DC",
            "NAME",
            "STATE",
            "FROM",
            ">RULES",
            ">NODE",
            "NODE NAME",
            "SLOTS",
            ">ENDPOINTS",
        ]);
        for dc in &dcs {
            let from = match dc.revision {
                0 => "cluster file".to_owned(),
                n => format!("revision {n} by {}", dc.by),
            };
            let rules = dc.rules.map_or_else(|| "none".to_owned(), |n| n.to_string());
            for node in &dc.nodes {
                let last = node.slot_first + node.slot_count.saturating_sub(1);
                table.row(vec![
                    dc.dc.to_string(),
                    dc.name.clone(),
                    dc.state.clone(),
                    from.clone(),
                    rules.clone(),
                    node.node.to_string(),
                    node.name.clone(),
                    format!("{}-{last}", node.slot_first),
                    node.endpoints.map_or_else(|| "-".to_owned(), |n| n.to_string()),
                ]);
            }
        }
        if table.is_empty() {
            "no DCs: `dvs dc create NAME` makes one".to_owned()
        } else {
            table.text(output)
        }
    })
}

/// How many live on a node: it knows best, then anybody of the DC.
fn endpoints(answers: &[(&ClusterNode, Vec<DcSpecView>)], dc: u16, node: u16) -> Option<usize> {
    let said = |known: &[DcSpecView]| {
        known.iter().find(|d| d.dc == dc)?.nodes.iter().find(|n| n.node == node)?.endpoints
    };
    let itself = answers.iter().find(|(n, _)| n.id.0 == node).and_then(|(_, known)| said(known));
    itself.or_else(|| answers.iter().find_map(|(_, known)| said(known)))
}
