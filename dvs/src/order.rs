//! The commands that change something: `init`, `up`, `down`, `proxy restart`, `proxy stop`.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use node::admin::Request;
use serde_json::json;

use crate::admin::Daemon;
use crate::cli::{DownArgs, InitArgs, ProxyArgs, UpArgs};
use crate::cluster::Place;
use crate::failure::{Exit, did_you_mean, failure};
use crate::output::{Output, Table};
use crate::{down, init, interrupt, up};

pub fn init(args: &InitArgs, output: &Output) -> Result<()> {
    init::init(&args.cluster, args.nodes)?;
    let file = args.cluster.display().to_string();
    let text =
        format!("{file} is written: {} nodes on this machine, DC main\n  next: dvs up {file}", args.nodes);
    output.answer(&json!({ "ok": true, "file": file, "nodes": args.nodes }), |_| text)
}

pub fn up(args: &UpArgs, dir: Option<&Path>, output: &Output) -> Result<()> {
    interrupt::note_signals()?;
    let began = Instant::now();
    let place = Place::load(&args.cluster, dir)?;
    let nodes = place.nodes_here(&args.node)?;
    let launch = up::Launch::new(args.timeout);
    let started = up::start(&place, &nodes, &launch)?;
    let answer = up::Up {
        cluster: place.cluster.name.as_str().to_owned(),
        file: place.cluster.file.display().to_string(),
        nodes: started.keep(),
        milliseconds: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    output.answer(&answer, |output| {
        let mut table = Table::new(&[">NODE", "NAME", ">PID", "ADDRESS", "SOCKETS AND LOGS"]);
        for n in &answer.nodes {
            let (id, pid) = (n.node.to_string(), n.pid.to_string());
            table.row(vec![id, n.name.clone(), pid, n.address.clone(), n.directory.clone()]);
        }
        format!("cluster {} is up ({} ms)\n\n{}", answer.cluster, answer.milliseconds, table.text(output))
    })
}

pub fn down(args: &DownArgs, dir: Option<&Path>, output: &Output) -> Result<()> {
    interrupt::note_signals()?;
    let place = Place::load(&args.cluster, dir)?;
    let nodes = place.nodes_here(&args.node)?;
    let downs = down::stop(&place, &nodes, args.timeout)?;
    if let Some(left) = downs.iter().find(|d| d.outcome == "still running") {
        let pid = left.pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
        let what = format!("node {}{pid} is still running: it is not ours to kill", left.name);
        return Err(failure(Exit::Refused, what, "stop it as the user who started it"));
    }
    if downs.iter().all(|d| d.outcome == "was not running") {
        let what = format!("no node of cluster {} was running here", place.cluster.name);
        return Err(failure(Exit::NotRunning, what, "nothing to do; `dvs up` starts it"));
    }
    output.answer(&json!({ "ok": true, "nodes": downs }), |output| {
        let mut table = Table::new(&[">NODE", "NAME", "OUTCOME"]);
        for d in &downs {
            table.row(vec![d.node.to_string(), d.name.clone(), d.outcome.to_owned()]);
        }
        table.text(output)
    })
}

/// What to do to a proxy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    Restart,
    Stop,
}

pub fn proxy(args: &ProxyArgs, order: Proxy, dir: Option<&Path>, output: &Output) -> Result<()> {
    let place = Place::find(&args.place, dir)?;
    let node = place.one_node(args.place.node.as_deref())?;
    let daemon = Daemon { place: &place, node };
    let proxies = daemon.proxies()?;
    if !proxies.iter().any(|p| p.name == args.name) {
        let names: Vec<String> = proxies.into_iter().map(|p| p.name).collect();
        let what = format!("node {} has no proxy {:?}", node.name, args.name);
        return Err(failure(Exit::Config, what, did_you_mean(&args.name, &names)));
    }
    let name = args.name.clone();
    let (request, said) = match order {
        Proxy::Restart => (Request::ProxyRestart { name }, "is being restarted"),
        Proxy::Stop => (Request::ProxyStop { name }, "is being stopped; `dvs proxy restart` starts it again"),
    };
    daemon.order(&request)?;
    let answer = json!({ "ok": true, "node": node.id.0, "proxy": args.name });
    output.answer(&answer, |_| format!("proxy {} of node {} {said}", args.name, node.name))
}
