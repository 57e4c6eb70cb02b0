//! Prints the bare limits of this machine: round trips of two processes through shared memory and through
//! TCP.
//!
//! `cargo run --release -p shm --example bare -- [kind [size [cpu-here cpu-there]]]`, kind one of copy, desc,
//! tcp, all.

use shm::bare::{BareError, PingPong, Samples, serve_from_env, shm_copy, shm_desc, tcp};

type Measure = fn(&PingPong) -> Result<Samples, BareError>;

const KINDS: [(&str, Measure); 3] = [("copy", shm_copy), ("desc", shm_desc), ("tcp", tcp)];

fn main() -> Result<(), BareError> {
    serve_from_env();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| args.get(at).and_then(|a| a.parse::<usize>().ok());
    let kind = args.first().map_or("all", String::as_str);
    let mut cfg = PingPong::default();
    cfg.size_bytes = number(1).unwrap_or(cfg.size_bytes);
    cfg.cpu_here = number(2).or(cfg.cpu_here);
    cfg.cpu_there = number(3).or(cfg.cpu_there);
    for (name, measure) in KINDS.into_iter().filter(|(name, _)| kind == "all" || kind == *name) {
        let s = measure(&cfg)?;
        println!(
            "bare-{name} size={} n={} min={:.0} p50={:.0} p99={:.0} p999={:.0} mean={:.0} ns",
            cfg.size_bytes,
            s.sorted_ns().len(),
            s.quantile(0.0),
            s.p50(),
            s.p99(),
            s.p999(),
            s.mean()
        );
    }
    Ok(())
}
