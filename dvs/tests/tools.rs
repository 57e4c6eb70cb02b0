//! `dvs doctor`, `dvs completions` and `dvs man` from outside.

mod support;

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{Ran, command, dvs, finish};

const HIDDEN: [&str; 3] = ["node-daemon", "demo-worker", "proxy-tcp"];

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

#[test]
fn every_shell_gets_all_commands_but_the_hidden_ones() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = dvs(&["completions", shell]).fine().out;
        for word in ["doctor", "restart", "runtime-dir"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
        for word in HIDDEN {
            assert!(!script.contains(word), "{shell}: {word}");
        }
        let told = dvs(&["--json", "completions", shell]).fine().json();
        assert_eq!((&told["shell"], text(&told["script"]).trim_end()), (&json!(shell), script.trim_end()));
    }
    let unknown = dvs(&["completions", "tcsh"]);
    assert_eq!(unknown.code(), 2);
    assert!(unknown.err.contains("bash, elvish, fish, powershell, zsh"), "{}", unknown.err);
}

#[test]
fn bash_completes_commands_with_the_script() {
    if Command::new("bash").arg("--version").output().is_err() {
        println!("not run: bash_completes_commands_with_the_script: there is no bash");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("dvs.bash");
    std::fs::write(&script, dvs(&["completions", "bash"]).fine().out).unwrap();
    let completed = |words: &str, last: &str, before: &str| {
        let count = words.split(' ').count() - 1;
        let line = format!(
            "source {}; COMP_WORDS=({words}); COMP_CWORD={count}; _dvs dvs {last} {before}; echo ${{COMPREPLY[@]}}",
            script.display()
        );
        let ran = Command::new("bash").args(["--norc", "-c", &line]).output().unwrap();
        String::from_utf8(ran.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(completed("dvs d", "d", "dvs"), "demo doctor down dc");
    assert_eq!(completed("dvs proxy r", "r", "proxy"), "restart");
}

#[test]
fn the_manual_says_what_the_help_says() {
    let page = dvs(&["man"]).fine().out;
    let heads: Vec<&str> = page.lines().filter_map(|l| l.strip_prefix(".SH ")).collect();
    let wanted = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "SUBCOMMANDS", "EXAMPLES", "\"EXIT CODES\""];
    assert_eq!(heads, wanted, "{page}");
    assert!(page.contains("\n.nf\n  dvs demo "), "{page}");
    assert!(HIDDEN.iter().all(|word| !page.replace('\\', "").contains(word)), "{page}");
    let told = dvs(&["man", "--json"]).fine().json();
    assert_eq!(text(&told["page"]).trim_end(), page.trim_end());
}

#[test]
fn a_folder_gets_a_manual_page_for_each_command_and_none_for_the_hidden_ones() {
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("share/man1");
    let told = dvs(&["man", "--json", into.to_str().unwrap()]).fine().json();
    let mut names: Vec<String> =
        std::fs::read_dir(&into).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(told["files"].as_array().unwrap().len(), names.len(), "{told}");
    let commands = [
        "-bench-bw",
        "-bench-rate",
        "-bench-rtt",
        "-bench",
        "-check",
        "-completions",
        "-cp",
        "-dc-create",
        "-dc-grow",
        "-dc-ls",
        "-dc-shrink",
        "-dc-stop",
        "-dc",
        "-demo",
        "-doctor",
        "-down",
        "-init",
        "-logs",
        "-man",
        "-node-start",
        "-node",
        "-notify",
        "-proxy-ls",
        "-proxy-restart",
        "-proxy-stop",
        "-proxy",
        "-ps",
        "-rdma-ls",
        "-rdma-softroce-down",
        "-rdma-softroce-up",
        "-rdma-softroce",
        "-rdma",
        "-receive",
        "-run",
        "-send",
        "-soak",
        "-status",
        "-top",
        "-up",
        "",
    ];
    assert_eq!(names, commands.map(|c| format!("dvs{c}.1")));
    for name in &names {
        let page = std::fs::read_to_string(into.join(name)).unwrap();
        let title = name.trim_end_matches(".1");
        assert!(page.contains(&format!("\n.TH {title} 1 \"\" \"dvs ")), "{name}: {page}");
    }
    let up = std::fs::read_to_string(into.join("dvs-up.1")).unwrap().replace('\\', "");
    assert!(up.contains("--timeout") && up.contains("\n  dvs up cluster.toml --node 1 --node 2\n"), "{up}");
}

#[test]
fn manual_pages_that_cannot_be_written_are_named() {
    let refused: Ran = finish(command(&["man", "/etc/passwd/man1"]).spawn().unwrap());
    refused.refused(5, &["/etc/passwd/man1 was not written", "a folder of yours"]);
}
