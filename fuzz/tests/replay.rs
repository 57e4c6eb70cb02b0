//! The corpus again, and noise, with any compiler: what was found once is not found twice.

use std::path::Path;

/// Inputs of noise for each target.
const NOISE: u64 = 2000;

fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let len = next() % 1500;
    (0..len).map(|_| (next() >> 32) as u8).collect()
}

#[test]
fn the_corpus_finds_nothing() {
    for (target, run) in fuzz::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        let mut count = 0;
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|why| panic!("{}: {why}", folder.display())) {
            let path = entry.expect("an entry of a folder").path();
            println!("{}", path.display());
            run(&std::fs::read(&path).expect("a file of the corpus"));
            count += 1;
        }
        assert!(count > 0, "{target} has a corpus");
    }
}

#[test]
fn noise_finds_nothing() {
    for (target, run) in fuzz::TARGETS {
        for seed in 0..NOISE {
            println!("{target} {seed}");
            run(&noise(seed));
        }
    }
}
