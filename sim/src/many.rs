//! Driver: many seeds on all cores of the machine. Each runs on one thread alone, and what it comes to depends on the seed
//! alone; results are handed out in the order of the seeds.

use std::ops::Range;
use std::sync::mpsc;

/// Threads to run seeds on.
pub fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Runs every seed, and gives each result to `heed`, in order, until that says that it is enough.
pub fn each<T: Send>(
    seeds: Range<u64>,
    jobs: usize,
    run: impl Fn(u64) -> T + Sync,
    mut heed: impl FnMut(u64, T) -> bool,
) {
    std::thread::scope(|scope| {
        // A worker is at most a few seeds ahead: when it is enough, little was in vain.
        let workers: Vec<_> = (0..jobs as u64)
            .map(|worker| {
                let (say, hear) = mpsc::sync_channel(1);
                let (run, seeds) = (&run, seeds.clone());
                scope.spawn(move || {
                    for seed in seeds.skip(worker as usize).step_by(jobs) {
                        if say.send(run(seed)).is_err() {
                            return;
                        }
                    }
                });
                hear
            })
            .collect();
        for (seed, worker) in seeds.zip(workers.iter().cycle()) {
            let Ok(result) = worker.recv() else { return };
            if !heed(seed, result) {
                return;
            }
        }
    });
}
