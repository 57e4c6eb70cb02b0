//! Proxies that are killed and proxies that are stopped, in the middle of a counted stream.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::cluster::{Cluster, Plan, SOON};
use super::program::Program;
use super::system::{Chance, LONG, eventually};

const LAPS: u64 = 10;
const LAP_MESSAGES: u64 = 20_000;

/// A stream from node 1 to node 2, and calls from node 2 to node 1.
struct Traffic {
    out: Program,
    into: Program,
    echo: Program,
    ask: Program,
}

impl Traffic {
    fn begin(cluster: &Cluster, laps: u64, lap_messages: u64) -> Traffic {
        Traffic::begin_as("", cluster, laps, lap_messages)
    }

    /// `how`: before every role.
    fn begin_as(how: &str, cluster: &Cluster, laps: u64, lap_messages: u64) -> Traffic {
        let into = cluster.start(2, 0, &format!("{how}stream-in {laps} {lap_messages}"));
        let (to, server) = (cluster.slot(2, 0).0, cluster.slot(1, 1).0);
        let out = cluster.start(1, 0, &format!("{how}stream-out {to} {laps} {lap_messages}"));
        let echo = cluster.start(1, 1, &format!("{how}echo"));
        let ask = cluster.start(2, 1, &format!("{how}ask {server}"));
        for program in [&into, &out, &echo, &ask] {
            program.endpoint();
        }
        Traffic { out, into, echo, ask }
    }

    fn go(&mut self) {
        self.out.order("go");
    }

    #[track_caller]
    fn lap_is_over(&mut self, lap: u64) {
        self.into.hears(&format!("lap {lap}"), LONG);
        self.out.hears(&format!("lap {lap}"), LONG);
    }

    /// Everything has arrived once, and everything lent is home.
    #[track_caller]
    fn came_whole(mut self) {
        self.into.hears("whole", LONG);
        self.out.hears("home", LONG);
        self.ask.order("stop");
        let asked: u64 = self.ask.says("asked", LONG).parse().expect("a number");
        assert!(asked > 0);
        println!("{} messages, {asked} calls", LAPS * LAP_MESSAGES);
        self.ask.ends_well();
        for program in [&mut self.into, &mut self.out, &mut self.echo] {
            program.order("end");
            program.ends_well();
        }
    }
}

#[test]
fn a_killed_proxy_loses_nothing() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    kill_proxies(&cluster, Traffic::begin(&cluster, LAPS, LAP_MESSAGES));
}

#[test]
fn a_killed_proxy_loses_nothing_of_private_endpoints() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    kill_proxies(&cluster, Traffic::begin_as("private ", &cluster, LAPS, LAP_MESSAGES));
}

fn kill_proxies(cluster: &Cluster, mut traffic: Traffic) {
    let mut chance = Chance::of_now();
    let mut kills = 0;
    for lap in 0..LAPS {
        let pids = cluster.proxies_up();
        traffic.go();
        std::thread::sleep(chance.millis_below(25));
        // One side, the other, both.
        let victims = match lap % 3 {
            0 => &pids[..1],
            1 => &pids[1..],
            _ => &pids[..],
        };
        for pid in victims {
            cluster.signal(*pid, Signal::KILL);
            kills += 1;
        }
        traffic.lap_is_over(lap);
    }
    let restarts: u64 = (1..=2).flat_map(|node| cluster.proxies(node)).map(|p| p.restarts).sum();
    assert_eq!(restarts, kills, "each kill was one restart, and nothing else was");
    for node in 1..=2 {
        assert!(!cluster.other(node).dead, "a node without a proxy for a moment is not dead");
    }
    traffic.came_whole();
}

#[test]
fn a_stopped_proxy_is_replaced_after_a_second_and_is_not_a_dead_node() {
    const LAPS: u64 = 4;
    let Some(cluster) = Cluster::up(Plan::nodes(2).dead_after_ms(6_000)) else { return };
    let mut traffic = Traffic::begin(&cluster, LAPS, 5_000);
    for lap in 0..LAPS {
        let pids = cluster.proxies_up();
        let node = 1 + (lap % 2) as u16;
        let stopped = pids[usize::from(node) - 1];
        traffic.go();
        cluster.signal(stopped, Signal::STOP);
        let began = Instant::now();
        eventually("the stopped proxy has a successor", SOON, || {
            assert!(!cluster.other(1).dead && !cluster.other(2).dead, "a stopped proxy is not a dead node");
            cluster.proxy(node).is_some_and(|pid| pid != stopped)
        });
        let took = began.elapsed();
        // It may have answered a ping right before: a second from then, and not before.
        assert!(took >= Duration::from_millis(900), "replaced after {} ms already", took.as_millis());
        traffic.lap_is_over(lap);
    }
    for node in 1..=2 {
        assert!(!cluster.other(node).dead);
    }
    traffic.came_whole();
}
