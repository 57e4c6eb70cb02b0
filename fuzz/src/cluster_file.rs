//! The cluster file, and what is made of one that is accepted.

use std::path::Path;

use abi::{Incarnation, Slot};
use node::Cluster;

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let cluster = match Cluster::parse(text, Path::new("cluster.toml")) {
        Ok(cluster) => cluster,
        Err(why) => {
            let said = why.to_string();
            assert!(said.contains("cluster.toml"), "a complaint says where: {said}");
            return;
        }
    };
    for node in &cluster.nodes {
        assert!(node.id.0 != 0, "a node has a number");
        let plan = cluster.plan(node, Incarnation(1), 1, 0);
        assert_eq!(plan.node, node.id);
        for dc in plan.dcs.values() {
            let mut taken: Vec<(Slot, u16)> = dc.ranges.values().map(|r| (r.first, r.count)).collect();
            taken.sort();
            let apart = taken.windows(2).all(|two| two[0].0.0 + two[0].1 <= two[1].0.0);
            assert!(apart, "a slot is one node's: {taken:?}");
            let last = taken.last().map_or(0, |(first, count)| u32::from(first.0) + u32::from(*count));
            assert!(last <= u32::from(abi::limits::SLOTS_PER_DC), "slots that there are: {taken:?}");
        }
    }
}
