//! Processes that die by the dozen, wherever they happen to be, leave nothing: no memory, no descriptor, no process.

use std::time::Duration;

use super::cluster::{Cluster, Plan};
use super::ground::Ground;
use super::program::Program;
use super::system::{Chance, Holdings, LONG, eventually, memory_files_kib};

const PROCESSES: u16 = 60;
/// At a time.
const TOGETHER: usize = 8;
/// A proxy's memory grows by whole segments, 2.3 MiB of sides and 4 MiB of pool, with the most it ever had to carry at
/// once, and stays so. Sixty leaked endpoints would be 120 descriptors and 32 MiB at the least.
const DESCRIPTORS_TOLERANCE: u64 = 6;
const MAPPED_TOLERANCE_KIB: u64 = 16 << 10;
const FILES_TOLERANCE_KIB: u64 = 24 << 10;
/// Longer than what a dead endpoint has published is kept for somebody who does not take it.
const KEPT_AT_MOST: Duration = Duration::from_secs(75);

#[test]
fn what_killed_processes_held_comes_back() {
    let plan = Plan::nodes(2).alone();
    let Some(ground) = Ground::take(plan.company) else { return };
    let mut cluster = Cluster::up_on(ground, plan);
    let mut chance = Chance::of_now();
    crowd(&cluster, &mut chance, 2 * TOGETHER as u16);
    cluster.everybody_is_forgotten(LONG);
    let cluster_processes = cluster.ground.processes();
    let held = holdings(&cluster);
    let files = memory_files_kib(&all(&cluster));
    assert!(files.is_none_or(|kib| kib > 1024), "pages and pools are memory files: {files:?} KiB");
    if files.is_none() {
        println!("not run: memory files: this user may not look at the descriptors of daemons");
    }

    crowd(&cluster, &mut chance, PROCESSES);

    cluster.everybody_is_forgotten(LONG);
    assert_eq!(cluster.ground.processes(), cluster_processes, "the same daemons and proxies run");
    let mut seen = Vec::new();
    eventually("descriptors and memory of daemons and proxies are as before", KEPT_AT_MOST, || {
        let now = holdings(&cluster);
        let same = |(now, then): (&Holdings, &Holdings)| {
            now.descriptors <= then.descriptors + DESCRIPTORS_TOLERANCE
                && now.mapped_kib <= then.mapped_kib + MAPPED_TOLERANCE_KIB
        };
        let all_same = now.iter().zip(&held).all(same);
        if seen != now {
            println!("held: {now:#?}, and before: {held:#?}");
            seen = now;
        }
        all_same
    });
    eventually("memory files are as before", LONG, || {
        memory_files_kib(&all(&cluster)) <= files.map(|kib| kib + FILES_TOLERANCE_KIB)
    });
    cluster.down();
    assert!(!cluster.ground.runtime_dir().exists(), "the runtime directory is gone");
}

/// Starts programs that talk to everybody, a few at a time, and kills each at a moment of chance. Two echoes go with
/// them, one on each node.
fn crowd(cluster: &Cluster, chance: &mut Chance, count: u16) {
    // Some are private: of their pairs nothing is left either.
    let mut echoes = [cluster.start(1, 0, "private echo"), cluster.start(2, 0, "echo")];
    for echo in &echoes {
        echo.endpoint();
    }
    let mut running: Vec<Program> = Vec::new();
    for n in 0..count {
        if running.len() == TOGETHER {
            // Some are killed before they are bound, some in the middle of a life.
            std::thread::sleep(chance.millis_below(120));
            kill(running.swap_remove(chance.below(TOGETHER as u64) as usize));
        }
        let private = if n % 3 == 0 { "private " } else { "" };
        let role = format!("{private}crowd {}", chance.below(1 << 40));
        running.push(cluster.start_anywhere(1 + n % 2, &role));
    }
    for program in running {
        std::thread::sleep(chance.millis_below(60));
        kill(program);
    }
    for echo in &mut echoes {
        echo.order("end");
        echo.ends_well();
    }
}

fn kill(mut program: Program) {
    program.kill();
    let wrong: Vec<String> =
        program.reports_so_far().into_iter().filter(|r| r.starts_with("wrong")).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Both daemons, their keepers, and both proxies.
fn all(cluster: &Cluster) -> Vec<u32> {
    let of_nodes = (1..=2).flat_map(|node| [cluster.daemon(node), cluster.keeper(node)]);
    of_nodes.chain(cluster.proxies_up()).collect()
}

fn holdings(cluster: &Cluster) -> Vec<Holdings> {
    all(cluster).into_iter().map(Holdings::of).collect()
}
