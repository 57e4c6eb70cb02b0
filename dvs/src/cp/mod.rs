//! `dvs cp`: files and folders between nodes, through the DC: what is asked by `rpc`, blocks by grants and `copy`.
//!
//! `wire` is what the ends say to one another, `end` and `disk` work on files at hand, `remote` and `serve` are the two
//! halves of an end that is not, `carry` copies from any end to any other, `launch` starts the other end.

mod bar;
mod carry;
mod disk;
mod end;
mod launch;
mod remote;
mod serve;
#[cfg(test)]
mod tests;
mod wire;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use abi::{Endpoint, NodeId};
use anyhow::{Context, Result};
use dvk::{Binding, Wait};
use node::config::ClusterNode;
use serde::Serialize;

use crate::cli::{CpArgs, SeatArgs};
use crate::cluster::Place;
use crate::failure::{self, Exit, failure};
use crate::interrupt;
use crate::output::{Output, bytes};
use crate::seat::Seat;
use crate::talk::daemon_lost;
use bar::Bar;
use carry::{Carrier, Copied, Job};
use end::{Base, End};
use launch::Helper;
use remote::Remote;
use wire::Said;

/// How long a name may take to come from another node.
const FOUND_WITHIN: Duration = Duration::from_secs(2);

/// What a `cp` answers.
#[derive(Serialize)]
struct Answer {
    ok: bool,
    #[serde(flatten)]
    copied: Copied,
    seconds: f64,
}

pub use serve::work;

pub fn cp(place: &Place, args: CpArgs, output: &Output) -> Result<()> {
    interrupt::note_signals()?;
    if let Some(folder) = &args.serve {
        return lend(place, &args, folder);
    }
    let route = Route::choose(place, &args)?;
    let bar = Bar::new(output.json);
    let (place, shown) = (place.clone(), bar.clone());
    let began = Instant::now();
    // Calls and disks wait where nobody looks for a signal; what has arrived is kept, wherever it is cut.
    let copied = interrupt::unless(move || perform(&place, &args, &route, &shown));
    bar.end();
    let copied = copied.map_err(cut)?;
    let answer = Answer { ok: true, copied, seconds: began.elapsed().as_secs_f64() };
    output.answer(&answer, |_| text(&answer))
}

/// The other end, and the two paths.
struct Route {
    node: String,
    id: NodeId,
    name: abi::Name,
    here: bool,
    far: Vec<u8>,
    near: Vec<u8>,
    /// From the far node to this one.
    fetch: bool,
}

impl Route {
    fn choose(place: &Place, args: &CpArgs) -> Result<Route> {
        let (Some(source), Some(target)) = (&args.source, &args.target) else {
            return Err(failure(Exit::Config, "SRC and DST are needed", "see `dvs cp --help`"));
        };
        let (far, near, fetch) = match (far(source), far(target)) {
            (Some(far), None) => (far, target, true),
            (None, Some(far)) => (far, source, false),
            (both, _) => {
                let what = if both.is_some() { "both SRC and DST are" } else { "neither SRC nor DST is" };
                let next = "give one of them as NODE:PATH, the other as a path of this node, such as ./name";
                return Err(failure(Exit::Config, format!("{what} on another node"), next));
            }
        };
        let node = place.node(far.0)?;
        let here = is_here(place, node);
        let (far, near) = (far.1.to_vec(), near.as_bytes().to_vec());
        Ok(Route { node: node.id.to_string(), id: node.id, name: node.name, here, far, near, fetch })
    }
}

/// `NODE:PATH`: what has a slash before its first colon is a path.
fn far(text: &OsStr) -> Option<(&str, &[u8])> {
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|b| matches!(b, b':' | b'/'))?;
    let node = std::str::from_utf8(&bytes[..at]).ok()?;
    (bytes[at] == b':' && !node.is_empty()).then_some((node, &bytes[at + 1..]))
}

fn is_here(place: &Place, node: &ClusterNode) -> bool {
    place.nodes_here(&[]).is_ok_and(|here| here.contains(&node))
}

/// The name under which a node's files are served by default.
fn served_name(node: NodeId) -> String {
    format!("cp-{node}")
}

fn perform(place: &Place, args: &CpArgs, route: &Route, bar: &Bar) -> Result<Copied> {
    let mut me = Seat::choose(place, &args.seat)?.bind()?;
    me.set_wait(Wait::Block);
    let mut helper = None;
    let server = if route.here && args.via.is_none() {
        let client = me.whoami();
        helper = Some(start(place, args, route, client)?);
        helper.as_ref().map(|helper: &Helper| helper.endpoint).context("it was started")?
    } else {
        find(&mut me, args, route)?
    };
    let copied = exchange(&mut me, server, args, route, bar);
    drop(helper);
    me.unbind().map_err(|why| daemon_lost(&why))?;
    copied
}

fn exchange(me: &mut Binding, server: Endpoint, args: &CpArgs, route: &Route, bar: &Bar) -> Result<Copied> {
    let mut far = Remote::meet(me, server, route.name)?;
    let mut near = End::new(Base::Anywhere);
    let copied = Copied::default();
    let done = if route.fetch {
        let job = Job { source: &route.far, target: &route.near, folders: args.recursive };
        Carrier { from: &mut far, to: &mut near, bar, copied }.run(&job)
    } else {
        let job = Job { source: &route.near, target: &route.far, folders: args.recursive };
        Carrier { from: &mut near, to: &mut far, bar, copied }.run(&job)
    };
    done.map_err(failed)
}

/// Whoever is asked must be able to bind there: if not, this says why as every command does.
fn start(place: &Place, args: &CpArgs, route: &Route, client: Endpoint) -> Result<Helper> {
    let mut there = SeatArgs { slot: None, name: None, ..args.seat.clone() };
    there.place.node = Some(route.node.clone());
    Seat::choose(place, &there)?.bind()?.unbind().map_err(|why| daemon_lost(&why))?;
    Helper::start(place, &args.seat.dc, &route.node, client)
}

/// Whoever serves the files of the other node.
fn find(me: &mut Binding, args: &CpArgs, route: &Route) -> Result<Endpoint> {
    let name = args.via.clone().unwrap_or_else(|| served_name(route.id));
    let until = Instant::now() + FOUND_WITHIN;
    let found = loop {
        match me.lookup_name(&name).map_err(|why| daemon_lost(&why))? {
            Some(found) => break Some(found),
            None if Instant::now() >= until => break None,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let named = if args.via.is_some() { format!(" --name {name}") } else { String::new() };
    let serve = format!("dvs cp --dc {} --node {} --serve FOLDER{named}", args.seat.dc, route.name);
    let Some(found) = found else {
        let what = format!("nobody serves the files of node {} in DC {} as {name}", route.name, args.seat.dc);
        return Err(failure(Exit::Refused, what, format!("run `{serve}` there")));
    };
    // A name is first come, first served: its node is not.
    match me.whereabouts(found.slot) {
        Some(there) if there.endpoint == found && there.node == route.id => Ok(found),
        _ => {
            let what = format!("{name} is bound, but not on node {}", route.name);
            Err(failure(Exit::Refused, what, format!("name another with --via, or run `{serve}` there")))
        }
    }
}

/// `dvs cp --serve`.
fn lend(place: &Place, args: &CpArgs, folder: &Path) -> Result<()> {
    let refused = |why: String| {
        let what = format!("--serve {}: {why}", folder.display());
        failure(Exit::Config, what, "name a folder that you may read")
    };
    let whole = folder.canonicalize().map_err(|why| refused(why.to_string()))?;
    if !whole.is_dir() {
        return Err(refused("not a folder".to_owned()));
    }
    let mut seat = args.seat.clone();
    let node = place.one_node(seat.place.node.as_deref())?;
    seat.name.get_or_insert_with(|| served_name(node.id));
    let (seat, name) = (Seat::choose(place, &seat)?, seat.name.unwrap_or_default());
    let ended = interrupt::unless(move || {
        let mut me = seat.bind()?;
        eprintln!(
            "serves {} as {name}, to all in the DC, to be read and written: Ctrl-C ends it",
            whole.display()
        );
        serve::lend(&mut me, &whole)
    });
    match ended {
        Err(why) if failure::of(&why).is_some_and(|f| f.exit == Exit::Interrupted) => Ok(()),
        ended => ended,
    }
}

fn failed(said: Said) -> anyhow::Error {
    failure(if said.wrong { Exit::Config } else { Exit::Failed }, said.what, said.next)
}

/// Cut short, what has arrived is there.
fn cut(why: anyhow::Error) -> anyhow::Error {
    if failure::of(&why).is_some_and(|f| f.exit == Exit::Interrupted) {
        let next = "run the same command again: what has arrived is kept";
        return failure(Exit::Interrupted, "interrupted", next);
    }
    why
}

fn text(answer: &Answer) -> String {
    let copied = &answer.copied;
    let rate = copied.carried_bytes as f64 / 1e6 / answer.seconds.max(1e-9);
    let plural = |n: u64, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
    let mut text = format!("{}, {}", plural(copied.files, "file"), bytes(copied.bytes));
    for (n, one) in [(copied.folders, "folder"), (copied.links, "link")] {
        if n > 0 {
            text += &format!(", {}", plural(n, one));
        }
    }
    text += &format!("; {} carried in {:.1} s, {rate:.0} MB/s", bytes(copied.carried_bytes), answer.seconds);
    for (n, what) in [(copied.resumed_bytes, "were there from before")] {
        if n > 0 {
            text += &format!("; {} {what}", bytes(n));
        }
    }
    for (n, what) in [(copied.unchanged, "unchanged"), (copied.left_out, "partial left out")] {
        if n > 0 {
            text += &format!("; {} {what}", plural(n, "file"));
        }
    }
    text
}
