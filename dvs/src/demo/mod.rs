//! `dvs demo`: three nodes on this machine, measured, loaded and disturbed, and every claim counted.
//!
//! `workers` are its programs and what they stand on; the steps are here and in
//! `latency`, `journey` (the file) and `storm` (the stream while proxies are killed); `report` shows what
//! came of it.

mod journey;
mod latency;
mod netns;
mod progress;
mod report;
mod storm;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use node::config::ClusterNode;

use crate::cli::DemoArgs;
use crate::cluster::Place;
use crate::failure::Exit;
use crate::output::Output;
use crate::workers::crew::{Post, Worker};
use crate::workers::stage::{PORTS, Plan, Stage};
use crate::{interrupt, up};
use progress::Progress;
use report::Report;

/// The nodes, and the DC over all of them.
const NODES: u16 = 3;
const DC: &str = "demo";
/// Steps that are shown.
const STEPS: u64 = 8;
/// How long three daemons and their links may take.
const UP_WITHIN: Duration = Duration::from_secs(20);

/// What the steps work with.
pub struct Scene<'a> {
    pub place: &'a Place,
    pub logs: &'a std::path::Path,
    pub progress: Progress,
    pub report: Report,
    pub netns: bool,
}

impl Scene<'_> {
    /// Starts a program bound under `name` on a node.
    pub fn start(&self, node: u16, name: &str, role: &[&str]) -> Result<Worker> {
        let post = Post { place: self.place, dc: DC, node, name, logs: self.logs };
        let role: Vec<String> = role.iter().map(|word| (*word).to_owned()).collect();
        Worker::start(&post, &role)
    }
}

/// The whole demonstration. Prints one object or one table, and stops everything, whatever happens.
pub fn run(args: &DemoArgs, output: &Output) -> Result<ExitCode> {
    if args.netns {
        netns::enter(NODES)?;
    }
    interrupt::note_signals()?;
    let file = journey::choose(args.file.as_deref())?;
    let mut stage = Stage::set(plan(args))?;
    let report = match play(args, &mut stage, &file) {
        Ok(report) => report,
        Err(why) if args.keep => {
            let kept = stage.keep();
            return Err(why.context(format!(
                "the nodes are stopped; what they and the programs wrote is in {}",
                kept.display()
            )));
        }
        Err(why) => return Err(why),
    };
    let usage = if args.keep { how_to_use(&stage) } else { String::new() };
    if args.keep {
        stage.keep();
    }
    let text = |output: &Output| format!("{}\n{usage}", report.to_text(output));
    output.answer(&report.to_json(), text)?;
    if args.keep && output.json {
        eprintln!("{usage}");
    }
    Ok(ExitCode::from(if report.is_ok() { 0 } else { Exit::Failed as u8 }))
}

fn play(args: &DemoArgs, stage: &mut Stage, file: &std::path::Path) -> Result<Report> {
    let began = Instant::now();
    let mut progress = Progress::new(STEPS);
    progress.step("three nodes, one DC over them");
    stage.free_ports()?;
    let place = stage.place.clone();
    let nodes: Vec<&ClusterNode> = place.cluster.nodes.iter().collect();
    let mut started = up::start(&place, &nodes, &launch(args))?;
    progress.done("daemons and proxies run, every link is up");
    let report = Report { nodes: nodes.len(), messages: args.messages, ..Report::default() };
    let mut scene = Scene { place: &place, logs: stage.folder(), progress, report, netns: args.netns };
    latency::spinning(&mut scene)?;
    latency::sleeping(&mut scene)?;
    latency::loans(&mut scene)?;
    latency::posting(&mut scene)?;
    journey::travel(&mut scene, file)?;
    storm::weather(&mut scene)?;
    if args.keep {
        scene.progress.step("keep the nodes");
        started.keep();
        scene.progress.done("they stay up");
    } else {
        scene.progress.step("stop everything");
        started.stop();
        scene.progress.done("nothing is left running");
    }
    scene.report.seconds = began.elapsed().as_secs_f64();
    Ok(scene.report)
}

fn plan(args: &DemoArgs) -> Plan {
    let address: fn(u16) -> SocketAddr = |node| SocketAddr::from((netns::address(node), PORTS.start));
    let address = args.netns.then_some(address);
    Plan { name: DC, nodes: NODES, address, second_dc: None, proxy: args.proxy.name() }
}

fn launch(args: &DemoArgs) -> up::Launch {
    let prefix: fn(&ClusterNode) -> Vec<String> =
        if args.netns { |node| netns::prefix(node.id.0) } else { |_| Vec::new() };
    up::Launch { prefix, with_us: !args.keep, probe_ports: !args.netns, timeout: UP_WITHIN }
}

fn how_to_use(stage: &Stage) -> String {
    let own = std::env::current_exe().map_or_else(|_| "dvs".to_owned(), |path| path.display().to_string());
    let file = stage.place.cluster.file.display();
    let dir = stage.place.runtime_dir.as_deref().unwrap_or(stage.folder()).display();
    let cluster = format!("--cluster {file} --runtime-dir {dir}");
    format!(
        "\nThe cluster stays up:\n  {own} status {cluster}\n  {own} ps {cluster}\n  \
         {own} run {cluster} --dc {DC} --node 1 --name mine -- sleep 60\n  \
         {own} down {file} --runtime-dir {dir} --node 1 --node 2 --node 3 && rm -r {}",
        stage.folder().display()
    )
}
