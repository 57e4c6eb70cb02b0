//! A few seeds, each twice; and the simulated network against the suite that every fabric passes.
#![forbid(unsafe_code)]

#[test]
fn ten_seeds_hold_every_invariant_and_run_the_same_twice() {
    for seed in 1..=10 {
        let (first, second) = (sim::run(seed, false), sim::run(seed, false));
        let replay = format!("replay: cargo run --release -p sim -- --seeds 1 --from {seed}");
        assert!(first.findings.is_empty(), "{:?}\n{}\n{replay}", first.findings, first.last_lines);
        assert_eq!(first.hash, second.hash, "{replay}");
    }
}
