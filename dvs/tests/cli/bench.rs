//! `bench`: that it measures what it says, in whichever cluster, and leaves nothing. No figure is held against a
//! bound: machines differ, and so do their minutes.

use super::*;

/// Without a cluster: everything it makes is below `base`.
fn alone(base: &Path, args: &[&str]) -> Child {
    let mut command = command(&[&["bench"], args].concat());
    command.env("TMPDIR", base).env_remove("XDG_RUNTIME_DIR").spawn().unwrap()
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("dvs-benches-").tempdir_in("/tmp").unwrap()
}

/// A positive whole number.
fn some(value: &Value) -> u64 {
    value.as_u64().filter(|n| *n > 0).unwrap_or_else(|| panic!("{value} is no count"))
}

/// A bare limit is there, unless the machine has too few processors for it: then it is said.
fn ratio_is_of(json: &Value, ratio: &Value) {
    if json["not_run"].as_array().unwrap().is_empty() {
        assert!(ratio.as_f64().is_some_and(|r| r > 0.0) && some(&json["bare_pairs"]) > 0, "{json}");
    } else {
        assert!(ratio.is_null() && json["bare_pairs"] == 0, "{json}");
    }
}

#[test]
fn round_trips_are_measured_in_a_cluster_of_its_own_that_is_gone_afterwards() {
    let base = folder();
    let args = ["rtt", "--json", "--time", "0.2", "--sizes", "8,96,97,65536", "--wait", "block"];
    let json = finish(alone(base.path(), &args)).fine().json();
    let settings = ["ok", "temporary", "remote", "pinned"].map(|key| json[key].as_bool().unwrap());
    assert_eq!(settings, [true, true, false, false]);
    assert_eq!(
        (&json["bench"], &json["wait"], &json["bare"]),
        (&"rtt".into(), &"block".into(), &"shm_copy".into())
    );
    assert_eq!((&json["pairs"], &json["seconds"]), (&1.into(), &0.2.into()));
    let sizes = json["sizes"].as_array().unwrap();
    let shape: Vec<_> =
        sizes.iter().map(|s| (some(&s["size_bytes"]), s["loan"].as_bool().unwrap())).collect();
    assert_eq!(shape, [(8, false), (96, false), (97, true), (65_536, true)]);
    for size in sizes {
        let ours = &size["ours"];
        let order = ["p50_ns", "p99_ns", "p999_ns", "max_ns"].map(|key| some(&ours[key]));
        assert!(order.is_sorted(), "{size}");
        let counted: u64 =
            size["histogram"].as_array().unwrap().iter().map(|row| row["count"].as_u64().unwrap()).sum();
        assert_eq!(counted, some(&ours["rounds"]), "{size}");
        ratio_is_of(&json, &size["ratio"]);
    }
    until("the end of all processes", || is_clean(base.path()));
}

#[test]
fn messages_and_bytes_are_counted_between_nodes_of_a_running_cluster_which_stays() {
    let cluster = Cluster::up(2);
    let bench = |what: &str, args: &[&str]| {
        cluster.dvs(&[&["bench", what, "--json", "--time", "0.2"], args].concat()).fine().json()
    };
    let rate = bench("rate", &["--remote", "--pairs", "2", "--sizes", "64,97"]);
    assert_eq!((&rate["temporary"], &rate["remote"]), (&false.into(), &true.into()));
    assert_eq!((&rate["from_node"], &rate["to_node"], &rate["dc"]), (&1.into(), &2.into(), &"main".into()));
    assert_eq!((&rate["bare"], &rate["bare_pairs"], &rate["pairs"]), (&"tcp".into(), &2.into(), &2.into()));
    let bw = bench("bw", &["--node", "ada2", "--sizes", "64,4096", "--wait", "block"]);
    assert_eq!((&bw["from_node"], &bw["to_node"], &bw["remote"]), (&2.into(), &2.into(), &false.into()));
    for (json, loans) in [(&rate, [false, true]), (&bw, [true, true])] {
        for (size, loan) in json["sizes"].as_array().unwrap().iter().zip(loans) {
            assert_eq!(size["loan"], loan, "{size}");
            assert_eq!(some(&size["bytes"]), some(&size["messages"]) * some(&size["size_bytes"]), "{size}");
            assert!(some(&size["bytes_per_s"]) >= some(&size["messages_per_s"]), "{size}");
            ratio_is_of(json, &size["ratio"]);
        }
    }
    // All its programs are gone, the cluster is not.
    until("the end of its bindings", || {
        cluster.dvs(&["ps", "--json"]).fine().json()["endpoints"].as_array().unwrap().is_empty()
    });
    cluster.dvs(&["status"]).fine();
}

#[test]
fn a_table_has_every_size_and_a_plain_histogram_where_nobody_watches() {
    let base = folder();
    let ran =
        finish(alone(base.path(), &["rtt", "--time", "0.1", "--sizes", "64,4096", "--wait", "block"])).fine();
    for words in
        ["ROUND TRIP", "p99.9", "OURS / BARE", "64 B ", "4.0 KiB in loans", " - ", "  #", "on node n1"]
    {
        assert!(ran.out.contains(words), "{words:?} is missing in: {}", ran.out);
    }
    assert!(!ran.out.contains('█') && !ran.out.contains('\x1b'), "{}", ran.out);
}

#[test]
fn what_cannot_be_measured_is_refused_by_name() {
    let cluster = Cluster::of(2);
    let bench = |args: &[&str]| cluster.dvs(&[&["bench", "rtt", "--time", "0.1"], args].concat());
    bench(&[]).refused(4, &["ada1 is not running", "dvs up"]);
    bench(&["--dc", "first", "--remote"]).refused(3, &["DC first", "two such nodes"]);
    bench(&["--node", "1", "--to-node", "ada1"]).refused(3, &["no DC spans two such nodes"]);
    bench(&["--dc", "frist"]).refused(3, &["no DC \"frist\"", "mean first"]);
    bench(&["--node", "9"]).refused(3, &["no node \"9\""]);
    bench(&["--wait", "spin", "--pairs", "64"]).refused(3, &["128 spinning processes", "--pairs"]);
    dvs(&["bench", "bw", "--node", "1"]).refused(3, &["--node", "none is named", "--cluster"]);
    for wrong in [&["--sizes", "7"][..], &["--time", "0"], &["--pairs", "0"], &["--local", "--remote"]] {
        assert_eq!(bench(wrong).code(), 2, "{wrong:?}");
    }
}

#[test]
fn an_interrupted_measurement_leaves_nothing() {
    let base = folder();
    let running = alone(base.path(), &["rate", "--time", "600"]);
    let begun = || {
        let folders = std::fs::read_dir(base.path()).unwrap().flatten();
        folders.flat_map(|d| files_below(&d.path())).any(|file| file.to_string_lossy().contains("-out-0.log"))
    };
    until("its first program", begun);
    let told = Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap();
    assert!(told.success());
    finish(running).refused(130, &["interrupted"]);
    until("the end of all processes", || is_clean(base.path()));
}
