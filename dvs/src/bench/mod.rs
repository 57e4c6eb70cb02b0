//! `dvs bench`: round trips, messages and bytes a second, in a running cluster or one of its own, beside the bare
//! limit that the same minutes measure.
//!
//! Ours and the bare limit take turns, so that what else the machine does hits both; the ratio is the middle one of
//! the turns. Key types: [`What`], [`Ground`]. Neighbours: `rtt`, `flow` (the measurements), `limit` (the bare one),
//! `chart`, `workers` (the programs that are measured).

mod chart;
mod flow;
mod limit;
mod rtt;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use node::config::ClusterNode;
use serde_json::{Value, json};

use crate::admin::Daemon;
use crate::cli::{BenchArgs, BenchCommand};
use crate::cluster::{Place, named};
use crate::dc::{Span, spans};
use crate::failure::{Exit, did_you_mean, failure};
use crate::output::Output;
use crate::workers::crew::{Post, Worker};
use crate::workers::echo::Waiting;
use crate::workers::stage::{Plan, Stage};
use crate::{interrupt, up};

/// The cluster that is started when none is named: its name, its DC's, and its nodes.
const PLAN: Plan = Plan { name: "bench", nodes: 2, address: None, second_dc: None, proxy: "tcp" };
/// The DC of a cluster of its own that floods, and its nodes: two more, whose proxies nobody else uses.
const FLOOD_DC: &str = "flood";
const FLOOD_NODES: u16 = 4;
/// How long its daemons and their link may take.
const UP_WITHIN: Duration = Duration::from_secs(20);
/// A turn: short, so that what else happens hits both sides and an interruption is soon heard; and so many at least.
const TURN_MAX: Duration = Duration::from_millis(150);
const TURNS_MIN: u32 = 5;
/// How much longer than a turn a worker may take to report it.
pub const REPORT_WITHIN: Duration = Duration::from_secs(60);

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum What {
    Rtt,
    Rate,
    Bw,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            What::Rtt => "rtt",
            What::Rate => "rate",
            What::Bw => "bw",
        }
    }

    fn sizes(self) -> &'static [usize] {
        match self {
            What::Rtt => &[64, 4096, 1 << 20],
            What::Rate => &[64],
            What::Bw => &[4096, 1 << 16, 1 << 20],
        }
    }
}

/// What a measurement works with.
pub struct Ground<'a> {
    pub what: What,
    place: &'a Place,
    dc: &'a str,
    pub flood: Option<Flooded<'a>>,
    /// Who asks or posts, and who answers or takes.
    pub near: &'a ClusterNode,
    pub far: &'a ClusterNode,
    logs: &'a Path,
    pub wait: Waiting,
    pub pairs: usize,
    pub turns: u32,
    pub turn: Duration,
    /// Of each pair, where all can have two of their own and are to spin.
    pub processors: Option<Vec<(usize, usize)>>,
    pub limit: limit::Limit,
}

/// Another DC, which is to flood in some of the turns.
pub struct Flooded<'a> {
    pub dc: &'a str,
    /// Two more of its nodes on this machine: there the same flood takes the same processors, and goes through other
    /// proxies.
    pub elsewhere: Option<[&'a ClusterNode; 2]>,
}

impl Ground<'_> {
    /// Starts a program for pair number `pair` on a node. Names are free in a cluster that others use too.
    pub fn start(&self, node: &ClusterNode, part: &str, pair: usize, role: &[String]) -> Result<Worker> {
        self.start_in(self.dc, node, part, pair, role)
    }

    pub fn start_in(
        &self,
        dc: &str,
        node: &ClusterNode,
        part: &str,
        pair: usize,
        role: &[String],
    ) -> Result<Worker> {
        let name = self.name(part, pair);
        let post = Post { place: self.place, dc, node: node.id.0, name: &name, logs: self.logs };
        Worker::start(&post, role)
    }

    pub fn name(&self, part: &str, pair: usize) -> String {
        format!("bench-{}-{part}-{pair}", std::process::id())
    }

    pub fn is_remote(&self) -> bool {
        self.near.id != self.far.id
    }
}

/// One measurement, start to end. Prints one object or one table.
pub fn run(command: &BenchCommand, dir: Option<&Path>, output: &Output) -> Result<()> {
    let (what, args) = match command {
        BenchCommand::Rtt(args) => (What::Rtt, args),
        BenchCommand::Rate(args) => (What::Rate, args),
        BenchCommand::Bw(args) => (What::Bw, args),
    };
    interrupt::note_signals()?;
    if let Some(file) = named(args.cluster.as_deref()) {
        let place = Place::load(&file, dir)?;
        let logs = tempfile::Builder::new().prefix("dvs-bench-").tempdir();
        let logs = logs.context("no place for the logs of what is measured")?;
        return measure(what, args, &place, logs.path(), output);
    }
    if let Some(option) = [("--dc", &args.dc), ("--node", &args.node), ("--to-node", &args.to_node)]
        .iter()
        .find_map(|(option, value)| value.as_ref().map(|_| *option))
    {
        let what = format!("{option} is of a running cluster, and none is named");
        return Err(failure(Exit::Config, what, "give --cluster FILE too, or leave it out"));
    }
    let plan = match args.flood {
        Some(_) => Plan { nodes: FLOOD_NODES, second_dc: Some(FLOOD_DC), ..PLAN },
        None => PLAN,
    };
    let mut stage = Stage::set(plan)?;
    stage.free_ports()?;
    let place = stage.place.clone();
    let nodes: Vec<&ClusterNode> = place.cluster.nodes.iter().collect();
    let launch = up::Launch { with_us: true, ..up::Launch::new(UP_WITHIN) };
    let mut started = up::start(&place, &nodes, &launch)?;
    measure(what, args, &place, stage.folder(), output)?;
    started.stop();
    Ok(())
}

fn measure(what: What, args: &BenchArgs, place: &Place, logs: &Path, output: &Output) -> Result<()> {
    let spans = spans(place);
    let (dc, near, far) = choose(place, &spans, args)?;
    let flood = flood_dc(place, &spans, what, args, dc, [near, far])?;
    let time = args.time;
    let turns =
        u32::try_from(time.as_nanos().div_ceil(TURN_MAX.as_nanos())).unwrap_or(u32::MAX).max(TURNS_MIN);
    let pairs = usize::from(args.pairs);
    let processors = processors(args.wait, pairs)?;
    for node in [near, far] {
        Daemon { place, node }.status()?;
    }
    let limit = limit::Limit::choose(near.id != far.id, far, pairs)?;
    let ground = Ground {
        what,
        place,
        dc: &dc.name,
        flood,
        near,
        far,
        logs,
        wait: args.wait,
        pairs,
        turns,
        turn: time / turns,
        processors,
        limit,
    };
    let sizes = if args.sizes.is_empty() { what.sizes() } else { &args.sizes };
    let results = match what {
        What::Rtt => rtt::measure(&ground, sizes, output)?,
        What::Rate | What::Bw => flow::measure(&ground, sizes, output)?,
    };
    let temporary = named(args.cluster.as_deref()).is_none();
    let text = |_: &Output| {
        let of = if temporary { "a cluster of its own" } else { "a running cluster" };
        format!("{}\n\n{}\n\n{}", heading(&ground, of), results.text, note(&ground))
    };
    output.answer(&to_json(&ground, place, args, results.json.clone()), text)
}

fn heading(ground: &Ground<'_>, of: &str) -> String {
    let s = if ground.pairs == 1 { "" } else { "s" };
    let way = if ground.is_remote() {
        format!("from node {} to node {}", ground.near.name, ground.far.name)
    } else {
        format!("on node {}", ground.near.name)
    };
    format!("{} pair{s} {way} in {of}, waiting: {}", ground.pairs, ground.wait.name())
}

fn note(ground: &Ground<'_>) -> String {
    match ground.limit.not_run() {
        Some(why) => format!("not run: {why}"),
        None => format!(
            "bare: {}\nOURS / BARE: the middle one of {} turns",
            ground.limit.explained(),
            ground.turns
        ),
    }
}

fn to_json(ground: &Ground<'_>, place: &Place, args: &BenchArgs, results: Vec<Value>) -> Value {
    json!({
        "ok": true,
        "bench": ground.what.name(),
        "cluster": place.cluster.name.as_str(),
        "temporary": named(args.cluster.as_deref()).is_none(),
        "dc": ground.dc,
        "from_node": ground.near.id.0,
        "to_node": ground.far.id.0,
        "remote": ground.is_remote(),
        "wait": ground.wait.name(),
        "pairs": ground.pairs,
        "seconds": args.time.as_secs_f64(),
        "turns": ground.turns,
        "pinned": ground.processors.is_some(),
        "bare": ground.limit.name(),
        "bare_pairs": ground.limit.pairs(),
        "not_run": ground.limit.not_run().into_iter().collect::<Vec<_>>(),
        "sizes": results,
    })
}

/// What a measurement came to: an object for each size, and the same for people.
pub struct Results {
    pub json: Vec<Value>,
    pub text: String,
}

/// DC and nodes: those that are named, else the first of this machine that fit.
fn choose<'a>(
    place: &'a Place,
    spans: &'a [Span],
    args: &BenchArgs,
) -> Result<(&'a Span, &'a ClusterNode, &'a ClusterNode)> {
    let here = place.nodes_here(&[])?;
    let spanned = |dc: &Span, node: &ClusterNode| dc.nodes.contains(&node.id);
    let near = args.node.as_deref().map(|asked| place.node(asked)).transpose()?;
    let far = args.to_node.as_deref().map(|asked| place.node(asked)).transpose()?;
    let asked = args.dc.as_deref().map(|asked| span(place, spans, asked)).transpose()?;
    let remote = args.remote || far.is_some();
    let fit = |dc: &'a Span| {
        let mut nodes = here.iter().copied().filter(|node| spanned(dc, node));
        let near = near.or_else(|| nodes.clone().find(|node| Some(*node) != far))?;
        let far = if remote { far.or_else(|| nodes.find(|node| *node != near))? } else { near };
        (spanned(dc, near) && spanned(dc, far) && remote == (near != far)).then_some((dc, near, far))
    };
    let dcs = asked.map_or_else(|| spans.iter().collect(), |dc| vec![dc]);
    dcs.into_iter().find_map(fit).ok_or_else(|| {
        let dc = asked.map_or("no DC".to_owned(), |dc| format!("DC {} does not", dc.name));
        let spans = if asked.is_some() { "span" } else { "spans" };
        let nodes = match (near, remote) {
            (Some(near), false) => format!("node {}", near.name),
            (None, false) => "a node of this machine".to_owned(),
            (_, true) => "two such nodes of this machine".to_owned(),
        };
        let what = format!("{dc} {spans} {nodes} in cluster {}", place.cluster.name);
        failure(
            Exit::Config,
            what,
            "name others with --dc, --node, --to-node; leave --cluster out for two of its own",
        )
    })
}

fn span<'a>(place: &Place, spans: &'a [Span], asked: &str) -> Result<&'a Span> {
    spans.iter().find(|span| span.name == asked).ok_or_else(|| {
        let mut names: Vec<String> = spans.iter().map(|span| span.name.clone()).collect();
        names.sort();
        let what = format!("cluster {} has no DC {asked:?}", place.cluster.name);
        failure(Exit::Config, what, did_you_mean(asked, &names))
    })
}

/// The DC that floods: another one over the same two nodes, and more if it has them.
fn flood_dc<'a>(
    place: &'a Place,
    spans: &'a [Span],
    what: What,
    args: &BenchArgs,
    dc: &Span,
    ends: [&ClusterNode; 2],
) -> Result<Option<Flooded<'a>>> {
    let Some(asked) = args.flood.as_deref() else { return Ok(None) };
    let flood = span(place, spans, asked)?;
    let fits = what == What::Rtt
        && ends[0].id != ends[1].id
        && flood.name != dc.name
        && ends.iter().all(|node| flood.nodes.contains(&node.id));
    if !fits {
        let what = format!("--flood {asked} is for `rtt --remote`, and another DC over the same nodes");
        return Err(failure(Exit::Config, what, "measure with `dvs bench rtt --remote --flood DC`"));
    }
    let here = place.nodes_here(&[])?;
    let others = here.iter().copied().filter(|n| flood.nodes.contains(&n.id));
    let others: Vec<_> = others.filter(|n| ends.iter().all(|end| end.id != n.id)).collect();
    let elsewhere = others.first_chunk().copied();
    Ok(Some(Flooded { dc: &flood.name, elsewhere }))
}

/// Two of their own for each pair that is to spin: with fewer, one would spin where the other ought to run.
fn processors(wait: Waiting, pairs: usize) -> Result<Option<Vec<(usize, usize)>>> {
    if wait != Waiting::Spin {
        return Ok(None);
    }
    let allowed = shm::os::process::cpus_allowed().context("which processors there are")?;
    if allowed.len() < 2 * pairs {
        let what = format!(
            "{} spinning processes need as many processors, and there are {}",
            2 * pairs,
            allowed.len()
        );
        return Err(failure(Exit::Config, what, "give fewer --pairs, or --wait adaptive"));
    }
    Ok(Some(allowed.chunks_exact(2).take(pairs).map(|two| (two[0], two[1])).collect()))
}

/// The middle one.
pub fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// To three digits behind the point.
pub fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
