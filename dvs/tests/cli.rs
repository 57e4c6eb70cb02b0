//! The command line from outside: what it does, and what it says when something is wrong. Every run is
//! bounded in time, every cluster has a folder and ports of its own, and nothing is left running.

#[path = "cli/examples.rs"]
mod examples;
mod support;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{BOUND, Ran, command, dvs, finish};
use tempfile::TempDir;

#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/cp.rs"]
mod cp;
#[path = "cli/talk.rs"]
mod talk;
#[path = "cli/top.rs"]
mod top;

/// A cluster file in a folder of its own. Dropped, whatever runs of it is stopped.
struct Cluster {
    folder: TempDir,
    addresses: Vec<SocketAddr>,
}

impl Cluster {
    fn of(nodes: u8) -> Cluster {
        // Held until all are found, so that no two are the same.
        let held: Vec<TcpListener> = (0..nodes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<SocketAddr> = held.iter().map(|l| l.local_addr().unwrap()).collect();
        let folder = tempfile::Builder::new().prefix("dvs-cli-").tempdir_in("/tmp").unwrap();
        let mut text = "name = \"test\"\nkey_file = \"key\"\n".to_owned();
        for (id, address) in (1..).zip(&addresses) {
            text += &format!("[[node]]\nid = {id}\nname = \"ada{id}\"\naddress = \"{address}\"\n");
        }
        text += "[[dc]]\nid = 1\nname = \"main\"\n[[dc]]\nid = 2\nname = \"first\"\nnodes = [1]\n";
        std::fs::write(folder.path().join("cluster.toml"), text).unwrap();
        Cluster { folder, addresses }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self) -> String {
        self.path("cluster.toml").to_str().unwrap().to_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        command.env("DVS_RUNTIME_DIR", self.path("run")).env("DVS_CLUSTER", self.file());
        command
    }

    fn dvs(&self, args: &[&str]) -> Ran {
        finish(self.command(args).spawn().unwrap())
    }

    fn up(nodes: u8) -> Cluster {
        let cluster = Cluster::of(nodes);
        cluster.dvs(&["up", &cluster.file()]).fine();
        cluster
    }

    /// Kills what runs of a node: its keeper, so that there is no successor, then its daemon.
    fn kill(&self, node: &str) {
        let text = std::fs::read_to_string(self.path("run").join(node).join("daemon.pid")).unwrap();
        let pids: Vec<&str> = text.split_whitespace().collect();
        let killed = Command::new("kill").args(["-9", pids[3], pids[0]]).status().unwrap();
        assert!(killed.success());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let down = self.dvs(&["down", &self.file()]);
        if !std::thread::panicking() {
            assert!(matches!(down.code(), 0 | 4), "{}", down.err);
            // A node that may begin anew within the same second leaves the record that tells the two lives
            // apart.
            let left = files_below(&self.path("run"));
            let stays = |file: &PathBuf| file.ends_with("daemon.pid") || file.ends_with("dcs");
            assert!(left.iter().all(stays), "left behind: {left:?}");
        }
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.flat_map(|e| if e.path().is_dir() { files_below(&e.path()) } else { vec![e.path()] }).collect()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let bound = Instant::now() + BOUND;
    while !done() {
        assert!(Instant::now() < bound, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn every_command_explains_itself_with_examples_and_exit_codes() {
    let commands: [&[&str]; 23] = [
        &["demo"],
        &["init"],
        &["check"],
        &["doctor"],
        &["completions"],
        &["man"],
        &["up"],
        &["down"],
        &["node", "start"],
        &["status"],
        &["top"],
        &["ps"],
        &["proxy", "ls"],
        &["proxy", "restart"],
        &["proxy", "stop"],
        &["run"],
        &["cp"],
        &["send"],
        &["notify"],
        &["receive"],
        &["bench", "rtt"],
        &["bench", "rate"],
        &["bench", "bw"],
    ];
    for words in commands {
        let help = dvs(&[words, &["--help"]].concat()).fine();
        assert!(
            help.out.contains("Examples:") && help.out.contains("Exit codes:"),
            "{words:?}: {}",
            help.out
        );
    }
    let whole = dvs(&["--help"]).fine();
    assert!(whole.out.contains("dvs demo") && !whole.out.contains("node-daemon"), "{}", whole.out);
    assert_eq!(dvs(&["fly"]).code(), 2);
    assert_eq!(dvs(&["demo", "--messages", "0"]).code(), 2);
}

#[test]
fn a_missing_or_malformed_cluster_file_is_named_with_its_line() {
    dvs(&["up", "/no/such.toml"]).refused(3, &["/no/such.toml", "dvs init"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    std::fs::write(&file, "name = \"x\"\n[[node]]\nid = 0\nname = \"a\"\naddress = \"127.0.0.1:1\"\n")
        .unwrap();
    dvs(&["up", file.to_str().unwrap()]).refused(3, &["c.toml:3:"]);
    std::fs::write(&file, "name = ").unwrap();
    let json = dvs(&["status", "--json", "--cluster", file.to_str().unwrap()]);
    assert_eq!((json.code(), json.json()["ok"].clone()), (3, Value::Bool(false)));
    assert!(json.json()["error"].as_str().unwrap().contains("c.toml:1:"), "{}", json.out);
}

#[test]
fn init_writes_a_file_that_up_would_take_and_never_overwrites_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml").to_str().unwrap().to_owned();
    dvs(&["init", &file]).fine();
    dvs(&["init", &file]).refused(3, &["mine.toml"]);
    dvs(&["status", "--cluster", &file, "--runtime-dir", folder.path().join("r").to_str().unwrap()])
        .refused(4, &["is not running", "dvs up"]);
}

#[test]
fn a_cluster_comes_up_whole_shows_itself_and_goes_without_a_trace() {
    let cluster = Cluster::of(3);
    let up = cluster.dvs(&["up", "--json", &cluster.file()]).fine().json();
    assert_eq!(up["nodes"].as_array().unwrap().len(), 3);
    let key = std::fs::metadata(cluster.path("key")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&key) & 0o777, 0o600);
    let status = cluster.dvs(&["status", "--json"]).fine().json();
    for node in status["nodes"].as_array().unwrap() {
        assert!(node["nodes"].as_array().unwrap().iter().all(|far| far["link"] == "up"), "{node}");
    }
    assert!(cluster.dvs(&["status"]).fine().out.contains("ada2 up"));
    assert!(cluster.dvs(&["ps"]).fine().out.contains("nobody is bound"));
    let again = cluster.dvs(&["up", &cluster.file()]);
    again.refused(5, &["runs already", "dvs down"]);
    cluster.dvs(&["status"]).fine();
    assert!(cluster.dvs(&["down", &cluster.file()]).fine().out.contains("stopped"));
    cluster.dvs(&["down", &cluster.file()]).refused(4, &["was running"]);
    cluster.dvs(&["status"]).refused(4, &["not running"]);
}

#[test]
fn a_port_in_use_is_named_and_nothing_is_left_half_started() {
    let cluster = Cluster::of(2);
    let _held = TcpListener::bind(cluster.addresses[1]).unwrap();
    let address = cluster.addresses[1].to_string();
    cluster.dvs(&["up", &cluster.file()]).refused(5, &["port in use", "ada2", &address]);
    cluster.dvs(&["status"]).refused(4, &["not running"]);
}

#[test]
fn a_daemon_that_cannot_start_takes_the_others_with_it() {
    let cluster = Cluster::of(2);
    // A file where the second node's folder must be.
    std::fs::create_dir(cluster.path("run")).unwrap();
    std::fs::write(cluster.path("run").join("ada2"), "").unwrap();
    cluster.dvs(&["up", &cluster.file()]).refused(5, &["ada2", "not a directory"]);
    cluster.dvs(&["status"]).refused(4, &["not running"]);
    std::fs::remove_file(cluster.path("run").join("ada2")).unwrap();
    cluster.dvs(&["up", &cluster.file()]).fine();
}

#[test]
fn a_dead_daemon_is_told_from_one_that_was_never_started_and_can_be_started_again() {
    let cluster = Cluster::up(2);
    cluster.kill("ada2");
    until("the daemon's end", || cluster.dvs(&["status", "--node", "2"]).code() == 4);
    cluster.dvs(&["status", "--node", "ada2"]).refused(4, &["daemon of node ada2 is dead", "dvs up"]);
    let status = cluster.dvs(&["status"]).fine();
    assert!(status.out.contains("no answer: the daemon of node ada2"), "{}", status.out);
    cluster.dvs(&["run", "--dc", "main", "--node", "2", "--", "true"]).refused(4, &["ada2 does not answer"]);
    cluster.dvs(&["up", "--node", "2", &cluster.file()]).fine();
    cluster.dvs(&["status", "--node", "2"]).fine();
}

#[test]
fn unknown_names_get_the_known_ones() {
    let cluster = Cluster::up(2);
    cluster.dvs(&["status", "--node", "ada"]).refused(3, &["no node \"ada\"", "did you mean ada1"]);
    cluster.dvs(&["up", "--node", "7", &cluster.file()]).refused(3, &["no node \"7\"", "1 (ada1)"]);
    cluster
        .dvs(&["run", "--dc", "mian", "--node", "1", "--", "true"])
        .refused(3, &["no DC \"mian\"", "mean main"]);
    cluster
        .dvs(&["run", "--dc", "first", "--node", "2", "--", "true"])
        .refused(3, &["does not span", "nodes are 1"]);
    cluster.dvs(&["run", "--dc", "main", "--", "true"]).refused(3, &["ada1, ada2", "--node"]);
    cluster
        .dvs(&["proxy", "stop", "tpc", "--node", "1"])
        .refused(3, &["no proxy \"tpc\"", "did you mean tcp"]);
}

#[test]
fn a_program_runs_bound_and_its_slot_is_free_again_afterwards() {
    let cluster = Cluster::up(1);
    let script = "echo $DVK_DC $DVK_ENDPOINT ${#DVK_TOKEN}; test -S $DVK_SOCKET; exec sleep 60";
    let args =
        ["run", "--dc", "main", "--node", "1", "--slot", "7", "--name", "kv", "--", "sh", "-c", script];
    let mut held = cluster.command(&args).spawn().unwrap();
    let bound = || cluster.dvs(&["ps", "--json"]).fine().json()["endpoints"].as_array().unwrap().clone();
    until("the binding", || !bound().is_empty());
    let endpoint = bound().remove(0);
    assert_eq!((endpoint["slot"].clone(), endpoint["pid"].clone()), (7.into(), held.id().into()));
    let run = |options: &[&str]| {
        cluster.dvs(&[&["run", "--dc", "main", "--node", "1"], options, &["--", "true"]].concat())
    };
    run(&["--slot", "7"]).refused(5, &["in slot 7", "is bound", "leave --slot out"]);
    run(&["--name", "kv"]).refused(5, &["the name is bound", "another --name"]);
    run(&["--slot", "256"]).refused(3, &["slot 256", "0 to 255"]);
    assert_eq!(run(&["--slot", "4096"]).code(), 2);
    run(&["--name", "K V"]).refused(3, &["not a name"]);
    held.kill().unwrap();
    let ran = finish(held);
    let words: Vec<&str> = ran.out.split_whitespace().collect();
    assert!(matches!(words[..], ["main", e, "32"] if e.starts_with("1:7.")), "{}{}", ran.out, ran.err);
    until("the end of the binding", || bound().is_empty());
    run(&["--slot", "7"]).fine();
}

#[test]
fn a_program_that_does_not_exist_or_cannot_run_is_named() {
    let cluster = Cluster::up(1);
    let run = |program: &str| cluster.dvs(&["run", "--dc", "main", "--node", "1", "--", program]);
    run("no-such-program").refused(127, &["no-such-program"]);
    run("/etc/passwd").refused(126, &["/etc/passwd"]);
    assert_eq!(cluster.dvs(&["run", "--dc", "main", "--node", "1", "--", "sh", "-c", "exit 9"]).code(), 9);
}

#[test]
fn a_proxy_is_restarted_stopped_and_started_by_name() {
    let cluster = Cluster::up(2);
    let proxy = || {
        let listed = cluster.dvs(&["proxy", "ls", "--json", "--node", "1"]).fine().json();
        listed["nodes"][0]["proxies"][0].clone()
    };
    let before = proxy()["pid"].clone();
    cluster.dvs(&["proxy", "restart", "tcp", "--node", "1"]).fine();
    until("the restart", || proxy()["state"] == "up" && proxy()["pid"] != before);
    cluster.dvs(&["proxy", "stop", "tcp", "--node", "ada1", "--json"]).fine();
    until("the stop", || proxy()["state"] == "stopped" && proxy()["pid"].is_null());
    cluster.dvs(&["proxy", "restart", "tcp", "--node", "1"]).fine();
    until("the start", || proxy()["state"] == "up");
}

#[test]
fn the_foreground_node_says_what_it_does_and_ends_with_a_signal() {
    let cluster = Cluster::of(1);
    let node = cluster.command(&["node", "start", &cluster.file(), "--node", "1"]).spawn().unwrap();
    until("the daemon", || cluster.dvs(&["status"]).code() == 0);
    cluster.dvs(&["node", "start", &cluster.file(), "--node", "1"]).refused(5, &["runs already"]);
    let told = Command::new("kill").args(["-INT", &node.id().to_string()]).status().unwrap();
    assert!(told.success());
    let ran = finish(node).fine();
    assert!(ran.err.contains("daemon runs at"), "{}", ran.err);
}

fn demo(base: &Path, args: &[&str]) -> Child {
    let mut command = command(&["demo", "--messages", "20000", "--file", "/etc/passwd"]);
    command.args(args).env("TMPDIR", base).env_remove("XDG_RUNTIME_DIR").env_remove("HOME").spawn().unwrap()
}

/// Nobody's command line names the folder, and nothing is in it.
fn is_clean(base: &Path) -> bool {
    let name = base.to_str().unwrap().as_bytes();
    let mentions = |pid: &std::fs::DirEntry| {
        let line = std::fs::read(pid.path().join("cmdline")).unwrap_or_default();
        line.windows(name.len()).any(|part| part == name)
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    std::fs::read_dir(base).unwrap().next().is_none()
        && !processes.filter(|p| p.path().is_dir()).any(|p| mentions(&p))
}

#[test]
fn two_demonstrations_beside_one_another_show_it_all_and_leave_nothing() {
    let base = tempfile::Builder::new().prefix("dvs-demos-").tempdir_in("/tmp").unwrap();
    let both = [demo(base.path(), &["--json"]), demo(base.path(), &["--json"])];
    for ran in both.map(finish) {
        let json = ran.fine().json();
        let zero = ["lost", "duplicated", "reordered", "corrupted"].map(|key| json[key].clone());
        assert_eq!(zero, [0, 0, 0, 0].map(Value::from), "{json}");
        assert_eq!(
            (&json["ok"], &json["digest_ok"], &json["nodes"]),
            (&true.into(), &true.into(), &3.into()),
            "{json}"
        );
        assert_eq!((&json["messages"], &json["proxy_kills"]), (&20_000.into(), &2.into()), "{json}");
        for key in ["local_block_rtt_ns_p50", "remote_rtt_ns_p50", "bare_tcp_rtt_ns_p50", "file_bytes"] {
            assert!(json[key].as_u64().is_some_and(|ns| ns > 0), "{key} in {json}");
        }
    }
    until("the end of all processes", || is_clean(base.path()));
}

#[test]
fn an_interrupted_demonstration_leaves_nothing() {
    let base = tempfile::Builder::new().prefix("dvs-demos-").tempdir_in("/tmp").unwrap();
    let running = demo(base.path(), &[]);
    let begun =
        || std::fs::read_dir(base.path()).unwrap().flatten().any(|d| d.path().join("echo-spin.log").exists());
    until("its first program", || begun() || std::thread::available_parallelism().is_ok_and(|n| n.get() < 2));
    let told = Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap();
    assert!(told.success());
    finish(running).refused(130, &["interrupted"]);
    until("the end of all processes", || is_clean(base.path()));
}

#[test]
fn a_kept_demonstration_can_be_used_and_taken_down() {
    let base = tempfile::Builder::new().prefix("dvs-demos-").tempdir_in("/tmp").unwrap();
    let text = finish(demo(base.path(), &["--keep"])).fine().out;
    let line = |word: &str| {
        let line =
            text.lines().find(|l| l.contains(&format!("dvs {word} "))).unwrap_or_else(|| panic!("{text}"));
        let ran = Command::new("sh").args(["-c", line]).stdin(Stdio::null()).output().unwrap();
        assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    };
    assert!(line("status").contains("n1"));
    line("ps");
    line("down");
    until("the end of all processes", || is_clean(base.path()));
}

#[test]
fn a_demonstration_of_a_missing_file_names_it_before_anything_starts() {
    dvs(&["demo", "--file", "/no/such/file"]).refused(3, &["/no/such/file", "readable file"]);
    dvs(&["demo", "--file", "/etc"]).refused(3, &["/etc", "not a regular file"]);
}
