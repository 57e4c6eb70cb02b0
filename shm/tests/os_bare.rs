//! The bare ping-pongs between two real processes: they run, end, and give figures that can be figures.

use std::time::Duration;

use shm::bare::{BareError, PingPong, Samples, serve_from_env, shm_copy, shm_desc, tcp};
use shm::os::process::cpus_allowed;

/// The echo is this test, run alone by the same program started anew.
#[test]
fn the_echo_side_of_the_ping_pongs() {
    serve_from_env();
}

fn short(size_bytes: usize) -> PingPong {
    let cpus = cpus_allowed().unwrap();
    PingPong {
        size_bytes,
        rounds: 200,
        time_max: Duration::from_secs(5),
        cpu_here: cpus.first().copied(),
        cpu_there: cpus.last().copied(),
        echo_args: ["the_echo_side_of_the_ping_pongs", "--exact", "--test-threads=1"].map(Into::into).into(),
        ..PingPong::default()
    }
}

fn plausible(samples: &Samples) {
    assert!(samples.sorted_ns().is_sorted());
    assert!(samples.quantile(0.0) > 10.0, "no round trip takes less than 10 ns");
    assert!(samples.p50() <= samples.p99() && samples.p99() <= samples.p999());
}

#[test]
fn messages_of_all_sizes_go_there_and_back_through_shared_memory() {
    for size in [8, 64, 1024, 4096, 1 << 20] {
        plausible(&shm_copy(&short(size)).unwrap());
    }
    plausible(&shm_desc(&short(1 << 20)).unwrap());
}

#[test]
fn messages_go_there_and_back_through_tcp() {
    plausible(&tcp(&short(64)).unwrap());
}

#[test]
fn an_echo_that_never_serves_is_an_error_not_a_hang() {
    let cfg = PingPong { echo_args: vec!["--list".into()], ..short(64) };
    assert_eq!(shm_copy(&cfg).err(), Some(BareError::EchoEnded));
}

#[test]
fn a_processor_that_does_not_exist_is_an_error() {
    let cfg = PingPong { cpu_here: Some(100_000), ..short(64) };
    assert!(matches!(shm_copy(&cfg), Err(BareError::Refused(_))));
}

#[test]
fn what_cannot_be_measured_is_named_by_what_there_is_none_of() {
    let huge = PingPong { size_bytes: 1 << 45, ..short(64) };
    assert!(matches!(shm_copy(&huge), Err(BareError::Map(_))));
    // Longer than any argument of a program may be.
    let not_started = PingPong { echo_args: vec!["x".repeat(1 << 20).into()], ..short(64) };
    assert!(matches!(shm_copy(&not_started), Err(BareError::Start(_))));
}
