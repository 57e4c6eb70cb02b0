//! Private endpoints as processes: what their peers have mapped, and what is left when these are killed.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::cluster::{Cluster, Plan};
use super::program::Program;
use super::roles::whisper::secret;
use super::system::{LONG, eventually};

/// What a process can read of its own: each of its mappings, as text and as addresses.
fn mappings(program: &Program) -> Vec<(u64, u64, String)> {
    let text = std::fs::read_to_string(format!("/proc/{}/maps", program.pid())).expect("its maps");
    let parsed = text.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with('r')));
    parsed
        .filter_map(|line| {
            let (from, to) = line.split_once(' ')?.0.split_once('-')?;
            let address = |text| u64::from_str_radix(text, 16).ok();
            Some((address(from)?, address(to)?, line.to_owned()))
        })
        .collect()
}

/// In which mappings of a process these bytes stand; `None` where this system does not let us look.
fn found_in(program: &Program, secret: &[u8]) -> Option<Vec<String>> {
    let memory = File::open(format!("/proc/{}/mem", program.pid())).ok()?;
    let mut found = Vec::new();
    for (from, to, line) in mappings(program) {
        let mut bytes = vec![0; (to - from) as usize];
        // Some pages of the kernel's cannot be read so.
        if memory.read_exact_at(&mut bytes, from).is_err() {
            continue;
        }
        let first = secret[0];
        let mut starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == first).map(|(at, _)| at);
        if starts.any(|at| bytes[at..].starts_with(secret)) {
            found.push(line);
        }
    }
    Some(found)
}

fn shared(program: &Program) -> usize {
    mappings(program).iter().filter(|(_, _, line)| line.contains("/memfd:dvs-")).count()
}

/// One tells two others, on its own node and on another; each has mapped its own secret and not the other's.
#[test]
fn no_peer_of_a_private_endpoint_has_mapped_what_is_for_another() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let mut teller = cluster.start(1, 0, "private tell");
    teller.endpoint();
    let places = [(1, 1), (1, 2), (2, 1), (2, 2)];
    let mut hearers = places.map(|(node, number)| cluster.start(node, number, "hear"));
    for (number, (hearer, (node, slot))) in (1..).zip(hearers.iter().zip(places)) {
        hearer.endpoint();
        teller.order(&format!("{} {number}", cluster.slot(node, slot).0));
        teller.hears("told", LONG);
    }
    for (at, hearer) in hearers.iter().enumerate() {
        for number in 1..=places.len() {
            let Some(found) = found_in(hearer, &secret(number as u8)) else {
                println!(
                    "not run: no_peer_of_a_private_endpoint_has_mapped_what_is_for_another: no reading of others"
                );
                return;
            };
            if number == at + 1 {
                let mapped = found.iter().any(|line| line.contains("/memfd:dvs-"));
                assert!(mapped, "hearer {number} has what it was told mapped: {found:?}");
            } else {
                assert_eq!(found, [""; 0], "hearer {} has what {number} was told", at + 1);
            }
        }
    }
    for program in hearers.iter_mut().chain([&mut teller]) {
        program.order("end");
        program.ends_well();
    }
}

/// Peers on both nodes are told something and killed; then the private endpoint has mapped what it had before them.
#[test]
fn a_private_endpoint_unmaps_what_it_had_for_peers_that_were_killed() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let mut teller = cluster.start(1, 0, "private tell");
    teller.endpoint();
    let mut before = None;
    for round in 0..6u16 {
        let places = [(1, 1 + round % 2), (2, 1 + round % 2)];
        let mut hearers = places.map(|(node, number)| cluster.start(node, number, "hear"));
        for (hearer, (node, slot)) in hearers.iter().zip(places) {
            hearer.endpoint();
            teller.order(&format!("{} 7", cluster.slot(node, slot).0));
            teller.hears("told", LONG);
        }
        let with_peers = shared(&teller);
        for hearer in &mut hearers {
            hearer.kill();
        }
        let mut now = 0;
        eventually("the pairs' memory is unmapped", LONG, || {
            teller.order("look");
            teller.hears("looked", LONG);
            now = shared(&teller);
            // The first round grew the pool that is for nobody else, and stays. A side for the next peer is there or is made
            // at a later look.
            now < with_peers && before.is_none_or(|before: usize| now <= before + 1)
        });
        let pairs = cluster.endpoints(1).iter().find(|e| e.private).and_then(|e| e.pairs);
        if pairs == Some(0) {
            before.get_or_insert(now);
        }
    }
    assert!(before.is_some(), "all pairs have ended at least once");
    teller.order("end");
    teller.ends_well();
}
