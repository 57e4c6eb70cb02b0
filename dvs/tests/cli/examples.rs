//! The example programs, run over a cluster as their heads say.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::{BOUND, Cluster, Ran, finish};

/// Built beside the program that is tested.
fn example(name: &str) -> String {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_dvs")).with_file_name("examples").join(name);
    // `cargo test` builds them; when it was asked for one test program alone, it does not.
    assert!(program.is_file(), "{} is not built: cargo build -p dvs --examples", program.display());
    program.to_str().expect("a path of text").to_owned()
}

/// Runs an example bound on a node.
fn start(cluster: &Cluster, node: &str, name: Option<&str>, words: &[&str], input: Stdio) -> Child {
    let program = example(words[0]);
    let mut args = vec!["run", "--dc", "main", "--node", node];
    args.extend(name.iter().flat_map(|name| ["--name", name]));
    args.extend(["--", &program]);
    args.extend(&words[1..]);
    cluster.command(&args).stdin(input).spawn().expect("an example")
}

fn run(cluster: &Cluster, node: &str, words: &[&str]) -> Ran {
    finish(start(cluster, node, None, words, Stdio::null()))
}

/// Waits until so many are bound.
fn bound(cluster: &Cluster, count: usize) {
    let end = Instant::now() + BOUND;
    loop {
        let said = cluster.dvs(&["ps", "--json"]).fine().json();
        let seen = said["endpoints"].as_array().map_or(0, Vec::len);
        if seen >= count {
            return;
        }
        assert!(Instant::now() < end, "{seen} of {count} bound: {said}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// An example that runs until it is killed.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail when it has ended by itself, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_key_value_server_answers_from_every_node() {
    let cluster = Cluster::up(2);
    let _server = Server(start(&cluster, "1", Some("kv"), &["kv", "serve"], Stdio::null()));
    bound(&cluster, 1);
    let long = "x".repeat(5000);
    assert_eq!(run(&cluster, "2", &["kv", "put", "colour", "blue"]).fine().out, "");
    assert_eq!(run(&cluster, "1", &["kv", "put", "colour", &long]).fine().out, "was blue\n");
    assert_eq!(run(&cluster, "2", &["kv", "get", "colour"]).fine().out, format!("{long}\n"));
    assert_eq!(run(&cluster, "2", &["kv", "keys"]).fine().out, "colour\n");
    assert_eq!(run(&cluster, "2", &["kv", "get", "shape"]).code(), 1);
    let wrong = run(&cluster, "2", &["kv", "take"]);
    assert!(wrong.code() != 0 && wrong.err.contains("usage: kv serve"), "{}", wrong.err);
}

#[test]
fn a_client_without_its_server_says_what_to_start() {
    let cluster = Cluster::up(1);
    let alone = run(&cluster, "1", &["kv", "get", "colour"]);
    assert!(alone.code() != 0 && alone.err.contains("start `kv serve`"), "{}", alone.err);
}

#[test]
fn a_pipeline_of_three_stages_turns_every_line_round_in_order() {
    let cluster = Cluster::up(3);
    let lines: Vec<String> = (0..3000).map(|n| format!("{n}-{}", "ab".repeat(n % 100))).collect();
    std::fs::write(cluster.path("in.txt"), lines.join("\n")).expect("a file in our own folder");
    let print = start(&cluster, "3", Some("print"), &["pipeline", "print"], Stdio::null());
    let turn = start(&cluster, "2", Some("turn"), &["pipeline", "turn", "print"], Stdio::null());
    let input = std::fs::File::open(cluster.path("in.txt")).expect("the file");
    let read = start(&cluster, "1", None, &["pipeline", "read", "turn"], input.into());
    // All at once: whoever prints waits for who reads what it prints.
    let [printed, ..] = [print, turn, read]
        .map(|stage| std::thread::spawn(|| finish(stage)))
        .map(|stage| stage.join().expect("a run that was bounded").fine().out);
    let turned = lines.iter().map(|line| line.chars().rev().collect::<String>());
    let wanted: Vec<String> = (1..).zip(turned).map(|(n, line)| format!("{n} {line}")).collect();
    assert_eq!(printed.lines().collect::<Vec<_>>(), wanted);
}

#[test]
fn scattered_tasks_are_gathered_from_all_nodes() {
    let cluster = Cluster::up(3);
    let names = ["worker-1", "worker-2", "worker-3"];
    let _workers: Vec<Server> = (1..)
        .zip(names)
        .map(|(node, name): (u8, &str)| {
            Server(start(&cluster, &node.to_string(), Some(name), &["scatter", "work"], Stdio::null()))
        })
        .collect();
    bound(&cluster, 3);
    let asked = run(&cluster, "1", &["scatter", "ask", "10000", "worker-1", "worker-2", "worker-3"]).fine();
    assert_eq!(asked.out.lines().last(), Some("1229 primes below 10000"), "{}", asked.out);
    let missing = run(&cluster, "2", &["scatter", "ask", "10", "worker-9"]);
    assert!(missing.code() != 0 && missing.err.contains("nobody is bound as worker-9"), "{}", missing.err);
}
