//! DCs that are made, grown, shrunk and stopped while real daemons, proxies and programs run.

use abi::Slot;
use serde_json::Value;

use super::cluster::{Cluster, Plan};
use super::program::Program;
use super::system::{Holdings, LONG, eventually};

const BATCH: &str = "batch";
const SLOTS: u16 = 64;

impl Cluster {
    fn dc(&self, words: &[&str]) -> Value {
        let file = self.file(1).to_string_lossy().into_owned();
        let line = [&["--json", "dc"], words, &["--cluster", &file]].concat();
        self.ground.dvs(line).json()
    }

    #[track_caller]
    fn dc_refused(&self, words: &[&str], code: i32, said: &[&str]) {
        let file = self.file(1).to_string_lossy().into_owned();
        self.ground.dvs([&["dc"], words, &["--cluster", &file]].concat()).refused(code, said);
    }

    fn in_batch(&self, node: u16, number: u16, role: &str) -> Program {
        let slot = Slot((node - 1) * SLOTS + number);
        let program = Program::start_in(&self.ground, &self.member_socket(node), BATCH, Some(slot), role);
        assert_eq!(program.endpoint().slot, slot);
        program
    }

    /// Endpoints by node, in the order of the nodes.
    fn in_dc(&self, name: &str) -> Option<Vec<(u64, u64)>> {
        let said = self.dc(&["ls"]);
        let dc = said["dcs"].as_array()?.iter().find(|d| d["name"] == name)?.clone();
        let of = |n: &Value| Some((n["node"].as_u64()?, n["endpoints"].as_u64()?));
        dc["nodes"].as_array()?.iter().map(of).collect()
    }
}

fn asked(program: &mut Program) -> u64 {
    program.order("stop");
    let count = program.says("asked", LONG).parse().expect("a count");
    program.ends_well();
    count
}

#[test]
fn a_dc_that_is_made_carries_between_nodes_grows_under_load_and_outlives_its_daemons() {
    let Some(cluster) = Cluster::up(Plan::nodes(3)) else { return };
    let file = cluster.file(1).to_string_lossy().into_owned();
    cluster.dc(&["create", BATCH, "--nodes", "n1,2", "--slots", "64"]);
    assert_eq!(cluster.in_dc(BATCH), Some(vec![(1, 0), (2, 0)]));
    let outside = ["run", "--cluster", &file, "--node", "3", "--dc", BATCH, "--", "true"];
    cluster.ground.dvs(outside).refused(3, &["does not span node 3", "dvs dc grow"]);
    let server = cluster.in_batch(2, 0, "echo");
    let mut near = cluster.in_batch(1, 0, &format!("ask {SLOTS}"));
    // What flows goes on while a node comes in, and each counted request is answered once and in order.
    cluster.dc(&["grow", BATCH, "n3"]);
    let mut far = cluster.in_batch(3, 0, &format!("ask {SLOTS}"));
    eventually("all three are counted", LONG, || cluster.in_dc(BATCH) == Some(vec![(1, 1), (2, 1), (3, 1)]));
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(asked(&mut far) > 1 && asked(&mut near) > 1);
    drop(server);

    let down = ["--json", "down", &file, "--node", "2"];
    cluster.ground.dvs(down).json();
    cluster.up_again(2);
    cluster.proxies_up();
    assert_eq!(cluster.in_dc(BATCH).map(|nodes| nodes.len()), Some(3), "its file says so");
    let _server = cluster.in_batch(2, 0, "echo");
    let mut near = cluster.in_batch(1, 1, &format!("ask-some {SLOTS} 10"));
    near.hears("asked 10", LONG);
    near.ends_well();
}

#[test]
fn a_node_that_was_down_hears_of_a_dc_when_it_comes_up() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let file = cluster.file(1).to_string_lossy().into_owned();
    cluster.ground.dvs(["--json", "down", &file, "--node", "2"]).json();
    eventually("node 1 sees that", LONG, || cluster.other(1).link != "up");
    cluster.dc_refused(&["create", BATCH, "--nodes", "1,2"], 5, &["node 2 is not up", "dvs up"]);
    cluster.dc(&["create", BATCH, "--slots", "64"]);
    cluster.up_again(2);
    eventually("node 2 has joined", LONG, || cluster.status(2).dcs.iter().any(|d| d.name == BATCH));
    let _server = cluster.in_batch(2, 0, "echo");
    let mut client = cluster.in_batch(1, 0, &format!("ask-some {SLOTS} 10"));
    client.hears("asked 10", LONG);
    client.ends_well();
}

#[test]
fn a_node_with_endpoints_leaves_only_by_force_and_their_peers_hear_of_their_deaths() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    cluster.dc(&["create", BATCH, "--slots", "64"]);
    let server = cluster.in_batch(1, 0, "mute 1");
    let mut taken = cluster.in_batch(2, 0, "call 0");
    taken.hears("calls", LONG);
    server.says("took", LONG);
    let mut listening = cluster.in_batch(2, 1, "wait-for 0");
    listening.hears("waits", LONG);
    let mut evicted = cluster.in_batch(1, 1, &format!("wait-for {SLOTS}"));
    evicted.hears("waits", LONG);

    let words = ["2 endpoints live on node 1: slot 0, slot 1", "dvs ps", "--force"];
    cluster.dc_refused(&["shrink", BATCH, "1"], 5, &words);
    cluster.dc_refused(&["stop", BATCH], 5, &["4 endpoints live in the DC", "--force"]);
    cluster.dc(&["shrink", BATCH, "1", "--force"]);

    taken.hears("DeadSource", LONG);
    listening.hears("DeadSource", LONG);
    evicted.hears("Unavailable(Refused(NoSuchDc))", LONG);
    for program in [&mut taken, &mut listening, &mut evicted] {
        program.ends_well();
    }
    drop(server);
    let file = cluster.file(1).to_string_lossy().into_owned();
    let bind = ["run", "--cluster", &file, "--node", "1", "--dc", BATCH, "--", "true"];
    cluster.ground.dvs(bind).refused(3, &["does not span node 1"]);
    cluster.dc_refused(&["shrink", BATCH, "2"], 5, &["without a node", "dvs dc stop"]);

    // It may come back, to the same slots and with other generations.
    cluster.dc(&["grow", BATCH, "1"]);
    let _server = cluster.in_batch(1, 0, "echo");
    let mut client = cluster.in_batch(2, 0, "ask-some 0 10");
    client.hears("asked 10", LONG);
    client.ends_well();
}

#[test]
fn a_dc_that_was_stopped_leaves_no_memory_and_no_descriptor() {
    let Some(cluster) = Cluster::up(Plan::nodes(2).alone()) else { return };
    let daemons: Vec<u32> = (1..=2).map(|node| cluster.daemon(node)).collect();
    let pids = [daemons, cluster.proxies_up()].concat();
    // One that polls has bells, which its peers and their proxies hold too.
    let round = |server| {
        cluster.dc(&["create", BATCH, "--slots", "64"]);
        let mut server = cluster.in_batch(2, 0, server);
        for node in 1..=2 {
            let mut client = cluster.in_batch(node, 1, &format!("ask-some {SLOTS} 20"));
            client.hears("asked 20", LONG);
            client.ends_well();
        }
        cluster.dc(&["stop", BATCH, "--force"]);
        server.kill();
        assert_eq!(cluster.in_dc(BATCH), None);
    };
    let held = || pids.iter().map(|pid| Holdings::of(*pid).descriptors).collect::<Vec<_>>();
    let settled = |than: &[u64]| held().iter().zip(than).all(|(now, then)| now <= then);
    let before = held();
    round("poll-echo");
    eventually("descriptors are as before the first", LONG, || settled(&before));
    let mapped = || pids.iter().map(|pid| Holdings::of(*pid).mapped_kib).collect::<Vec<_>>();
    let then = mapped();
    for server in ["echo", "poll-echo", "echo", "poll-echo"] {
        round(server);
    }
    eventually("descriptors are as before the others", LONG, || settled(&before));
    // A proxy's memory in a DC is more than six mebibytes: one that stayed would be seen.
    let grown = |(now, then): (&u64, &u64)| *now > then + (6 << 10);
    assert!(!mapped().iter().zip(&then).any(grown), "{:?} after {then:?}", mapped());
}

#[test]
fn wrong_wishes_are_refused_and_say_what_to_do() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    cluster.dc_refused(&["stop", "dd"], 3, &["no DC \"dd\"", "did you mean dc"]);
    cluster.dc_refused(&["grow", "dc", "n7"], 3, &["no node \"n7\""]);
    cluster.dc_refused(&["grow", "dc", "n2"], 5, &["node 2 is in the DC already"]);
    cluster.dc_refused(&["create", "dc"], 5, &["the name dc is taken", "dvs dc ls"]);
    cluster.dc_refused(&["create", "Big"], 5, &["\"Big\""]);
    cluster.dc_refused(&["create", "wide", "--slots", "4000"], 5, &["do not fit", "--slots 2048"]);
    cluster.dc_refused(&["shrink", "dc", "1", "2"], 5, &["without a node"]);
    // Other users reach the sockets from the moment that a DC lets one in.
    let mode = || {
        use std::os::unix::fs::PermissionsExt;
        let folder = cluster.ground.runtime_dir().join("n1");
        std::fs::metadata(folder).expect("the node's folder").permissions().mode() & 0o777
    };
    assert_eq!(mode(), 0o700);
    cluster.dc(&["create", "shared", "--slots", "64", "--uid", "54321"]);
    assert_eq!(mode(), 0o711);
    cluster.dc(&["shrink", "dc", "2"]);
    cluster.dc_refused(&["shrink", "dc", "2"], 5, &["node 2 is not in the DC", "its nodes are 1"]);
    // The cluster file's own DC too is as it was left, whatever the file says.
    assert_eq!(cluster.in_dc("dc"), Some(vec![(1, 0)]));
}

#[test]
fn what_daemons_and_proxies_log_is_shown_by_node_and_followed() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let file = cluster.file(1).to_string_lossy().into_owned();
    let logs = |more: &[&str]| cluster.ground.dvs([&["logs", "--cluster", &file], more].concat());
    let all = logs(&[]);
    assert_eq!(all.code, Some(0), "{all:#?}");
    assert!(all.out.contains("n1 daemon:") && all.out.contains("n2 daemon:"), "{all:#?}");
    assert!(!all.out.contains('\u{1b}'), "no colours: {all:#?}");
    let one = logs(&["n2", "--lines", "3"]);
    assert_eq!(one.out.lines().count(), 3, "{one:#?}");
    assert!(one.out.lines().all(|l| l.starts_with("n2 ")), "{one:#?}");
    logs(&["n9"]).refused(3, &["no node \"n9\""]);

    let mut command = cluster.ground.command();
    command.args(["logs", "--follow", "--lines", "0", "--cluster", &file]);
    let mut follower = command.stdout(std::process::Stdio::piped()).spawn().expect("dvs starts");
    let out = std::io::BufReader::new(follower.stdout.take().expect("a pipe"));
    let (told, joined) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = std::io::BufRead::lines(out).map_while(Result::ok);
        told.send(lines.find(|l| l.contains("has joined DC")))
    });
    cluster.dc(&["create", BATCH]);
    let joined = joined.recv_timeout(LONG);
    follower.kill().expect("our own child");
    follower.wait().expect("our own child");
    assert!(joined.is_ok_and(|line| line.is_some()));
}
