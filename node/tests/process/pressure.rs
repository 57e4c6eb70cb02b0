//! A receiver that never takes: proxies do not fill up for it.

use std::time::Duration;

use super::cluster::{Cluster, Plan};
use super::system::{Holdings, LONG};

const SENDERS: u16 = 2;
const DURING: Duration = Duration::from_secs(5);
const PROXY_RESIDENT_KIB_MAX: u64 = 64 << 10;

#[test]
fn posts_to_a_receiver_that_never_takes_leave_proxies_small() {
    press(0);
}

#[test]
fn loans_to_a_receiver_that_never_takes_leave_proxies_small() {
    press(64 << 10);
}

fn press(loan_bytes: usize) {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let receiver = cluster.start(2, 0, "idle");
    receiver.endpoint();
    let (to, during) = (cluster.slot(2, 0).0, DURING.as_millis());
    let role = format!("press {to} {during} {loan_bytes}");
    let mut senders: Vec<_> = (0..SENDERS).map(|n| cluster.start(1, n, &role)).collect();
    for sender in &mut senders {
        sender.endpoint();
        sender.order("go");
    }
    for sender in &senders {
        let posted: u64 = sender.says("posted", DURING + LONG).parse().expect("a number");
        assert!(posted >= abi::limits::LANE_SLOTS / 2, "only {posted} found room: nothing was pressed");
        println!("{posted} posts found room");
    }
    for (node, pid) in (1..).zip(cluster.proxies_up()) {
        let held = Holdings::of(pid);
        println!("the proxy of node {node}: {held:?}");
        assert!(held.resident_kib < PROXY_RESIDENT_KIB_MAX, "node {node}: {held:?}");
    }
}
