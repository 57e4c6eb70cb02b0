//! `dvs doctor` from outside.

mod support;

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{dvs, finish};

fn check(told: &Value, name: &str) -> Value {
    let checks = told["checks"].as_array().unwrap();
    checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no {name:?} in {told}")).clone()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn the_doctor_looks_at_all_of_it_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().to_str().unwrap();
    let told = dvs(&["doctor", "--json", "--runtime-dir", base]).fine().json();
    let names: Vec<&str> = told["checks"].as_array().unwrap().iter().map(|c| text(&c["name"])).collect();
    let all = [
        "kernel",
        "memory files",
        "processes watched",
        "runtime directory",
        "processors",
        "clock",
        "futex_waitv",
        "huge pages",
        "transparent huge pages",
        "open descriptors",
        "pinned memory",
        "/dev/shm",
        "memory file policy",
        "TCP on loopback",
        "io_uring",
        "namespaces without root",
        "RDMA",
        "DPDK",
    ];
    assert_eq!((names.as_slice(), &told["ok"]), (&all[..], &json!(true)), "{told}");
    for check in told["checks"].as_array().unwrap() {
        let is_yes = check["state"] == "yes";
        assert!(is_yes || check["needed"] == false, "{check}");
        assert_ne!(check["found"], "", "{check}");
        assert_eq!((check["costs"] == "", check["remedy"] == ""), (is_yes, is_yes), "{check}");
    }
    assert_eq!(std::fs::read_dir(base).unwrap().count(), 0, "something is left in {base}");
}

#[test]
fn what_the_doctor_finds_is_what_the_kernel_says() {
    let told = dvs(&["doctor", "--json"]).fine().json();
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    assert_eq!(check(&told, "kernel")["found"], format!("Linux {}", read("/proc/sys/kernel/osrelease")));
    let clock = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    assert!(text(&check(&told, "clock")["found"]).starts_with(&clock), "{clock}: {told}");
    let usable = std::thread::available_parallelism().unwrap().get();
    assert!(text(&check(&told, "processors")["found"]).starts_with(&format!("{usable} of ")), "{told}");
    let rdma = std::fs::read_dir("/sys/class/infiniband").is_ok_and(|mut devices| devices.next().is_some());
    assert_eq!(check(&told, "RDMA")["state"], if rdma { "yes" } else { "no" });
    if read("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages") == "0" {
        assert_eq!(check(&told, "huge pages")["state"], "no");
    }
    if read("/proc/sys/kernel/io_uring_disabled") == "2" {
        assert_eq!(check(&told, "io_uring")["state"], "no");
    }
}

#[test]
fn one_processor_and_few_descriptors_are_limits_with_a_way_out() {
    let limited = std::thread::spawn(|| {
        let first = shm::os::process::cpus_allowed().unwrap()[0];
        shm::os::process::pin_to(first).unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -n 64; exec \"$0\" doctor --json", env!("CARGO_BIN_EXE_dvs")]);
        shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(shell.spawn().unwrap())
    });
    let told = limited.join().unwrap().fine().json();
    let (processors, descriptors) = (check(&told, "processors"), check(&told, "open descriptors"));
    assert_eq!(
        (&processors["state"], &descriptors["state"]),
        (&json!("limited"), &json!("limited")),
        "{told}"
    );
    assert!(text(&processors["found"]).starts_with("1 of "), "{processors}");
    assert_eq!(descriptors["found"], "64, daemons raise it to 64");
    assert!(text(&descriptors["remedy"]).contains("ulimit -Hn"), "{descriptors}");
}

#[test]
fn a_loopback_that_is_down_and_forbidden_namespaces_are_found_by_trying() {
    let name = "a_loopback_that_is_down_and_forbidden_namespaces_are_found_by_trying";
    let inside = |script: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--net", "sh", "-c", script, env!("CARGO_BIN_EXE_dvs")]);
        unshare.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        unshare.spawn().map(finish)
    };
    let forbid = "echo 0 > /proc/sys/user/max_user_namespaces";
    if !inside(forbid).is_ok_and(|ran| ran.code() == 0) {
        println!("not run: {name}: there are no namespaces to be had");
        return;
    }
    let told = inside(&format!("{forbid}; exec \"$0\" doctor --json")).unwrap().fine().json();
    let (loopback, namespaces) = (check(&told, "TCP on loopback"), check(&told, "namespaces without root"));
    assert_eq!((&loopback["state"], &namespaces["state"]), (&json!("no"), &json!("limited")), "{told}");
    assert!(text(&loopback["remedy"]).contains("ip link set lo up"), "{loopback}");
    assert!(text(&namespaces["found"]).contains("user.max_user_namespaces is 0"), "{namespaces}");
}

#[test]
fn a_machine_on_which_nothing_can_run_is_refused_with_the_reason() {
    let ran = dvs(&["doctor", "--runtime-dir", "/etc/passwd"]);
    let row = ran.out.lines().find(|l| l.contains("runtime directory")).unwrap_or_default();
    assert!(row.starts_with("no ") && row.contains("Not a directory"), "{}", ran.out);
    assert!(ran.out.contains("costs: no daemon and no program runs"), "{}", ran.out);
    ran.refused(5, &["nothing can run on this machine: runtime directory", "--runtime-dir"]);
    let ran = dvs(&["doctor", "--json", "--runtime-dir", "/etc/passwd"]);
    assert_eq!((ran.code(), &ran.json()["ok"], ran.err.as_str()), (5, &json!(false), ""), "{}", ran.out);
    assert_eq!(check(&ran.json(), "runtime directory")["state"], "no");
}
