//! The admin socket, the runtime directory, the lock, and what is wrong with cluster files.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use node::admin::{CallError, Request, call, call_as};
use node::core::Status;
use node::{Cluster, Daemon, NodeError};
use serde_json::Value;

use crate::client::{ALONE, Member, NoProxies, PATIENCE, alone, options};

fn raw(socket: &Path, line: &[u8]) -> Value {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(line).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap()
}

#[test]
fn status_and_ps_show_what_is() {
    let house = alone();
    let member = Member::bind(house.daemon.member_socket(), None, "kv");
    let socket = house.daemon.admin_socket();
    let status: Status = call_as(&socket, &Request::Status, PATIENCE).unwrap();
    assert_eq!((status.cluster.as_str(), status.node, status.name.as_str()), ("lab", 1, "n1"));
    assert_eq!((status.dcs[0].slot_count, status.dcs[0].local, status.connections), (8, 1, 1));
    assert!(status.nodes.is_empty() && status.proxies.is_empty() && status.incarnation > 0);
    let ps = call(&socket, &Request::Ps, PATIENCE).unwrap();
    let row = &ps["endpoints"][0];
    assert_eq!(row["endpoint"], member.endpoint.to_string());
    assert_eq!((&row["name"], &row["state"]), (&Value::from("kv"), &Value::from("bound")));
    assert_eq!(row["pid"], std::process::id());
}

#[test]
fn malformed_requests_get_an_error_and_a_hint() {
    let house = alone();
    let socket = house.daemon.admin_socket();
    let long = [vec![b'x'; 70 << 10], vec![b'\n']].concat();
    let bad: [&[u8]; 6] = [
        b"\n",
        b"nonsense\n",
        b"{\"request\":\"dance\"}\n",
        b"{\"request\":\"proxy_stop\"}\n",
        b"\xff\xfe\n",
        &long,
    ];
    for line in bad {
        let answer = raw(&socket, line);
        assert!(answer["error"].is_string() && answer["hint"].is_string(), "{answer}");
    }
    let why = call(&socket, &Request::ProxyStop { name: "udp".into() }, PATIENCE).unwrap_err();
    assert!(why.to_string().contains("\"udp\""), "{why}");
    assert_eq!(raw(&socket, b"{\"request\":\"status\"}\n")["node"], 1);
}

#[test]
fn a_daemon_leaves_nothing_behind() {
    let house = alone();
    let place = house.daemon.place().clone();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&place.node), mode(&place.admin_socket()), mode(&place.member_socket())),
        (0o700, 0o600, 0o666)
    );
    let member = Member::bind(house.daemon.member_socket(), None, "");
    house.daemon.stop().unwrap();
    assert!(!place.cluster.exists());
    assert_eq!(member.client.entry(member.endpoint.slot).state, abi::table::State::Dead);
    let why = call(&place.admin_socket(), &Request::Status, PATIENCE).unwrap_err();
    assert!(matches!(why, CallError::NotRunning { .. }), "{why}");
}

#[test]
fn the_admin_socket_of_a_killed_daemon_is_told_apart_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), ALONE, Box::new(NoProxies));
    let node = folder.path().join("run/n1");
    std::fs::create_dir_all(&node).unwrap();
    drop(std::os::unix::net::UnixListener::bind(node.join("admin.sock")).unwrap());
    let why = call(&node.join("admin.sock"), &Request::Status, PATIENCE).unwrap_err();
    assert!(matches!(why, CallError::Dead { .. }), "{why}");
    for path in [folder.path().join("run"), node.clone()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    let daemon = Daemon::in_thread(options).unwrap();
    call(&daemon.admin_socket(), &Request::Status, PATIENCE).unwrap();
    let asked = call(&daemon.admin_socket(), &Request::Stop, PATIENCE).unwrap();
    assert_eq!(asked["done"], true);
    daemon.stop().unwrap();
}

#[test]
fn a_killed_daemons_successor_uses_no_number_again() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), ALONE, Box::new(NoProxies));
    let node = folder.path().join("run/n1");
    std::fs::create_dir_all(&node).unwrap();
    for path in [folder.path().join("run"), node.clone()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    std::fs::write(node.join("daemon.pid"), "4711 4000000000 4000000500\n").unwrap();
    let daemon = Daemon::in_thread(options).unwrap();
    let status: Status = call_as(&daemon.admin_socket(), &Request::Status, PATIENCE).unwrap();
    assert_eq!(status.incarnation, 4_000_000_001);
    assert_eq!(Member::bind(daemon.member_socket(), None, "").endpoint.generation.0, 4_000_000_500);
}

#[test]
fn a_second_daemon_of_the_same_node_is_refused() {
    let house = alone();
    let again = options(house.folder.path(), ALONE, Box::new(NoProxies));
    let Err(why) = Daemon::in_thread(again) else { panic!("two daemons") };
    assert!(
        matches!(&why, NodeError::RunsAlready { pid, .. } if *pid == std::process::id().to_string()),
        "{why}"
    );
    Member::bind(house.daemon.member_socket(), None, "");
}

#[test]
fn a_directory_that_others_may_write_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), ALONE, Box::new(NoProxies));
    let run = folder.path().join("run");
    std::fs::create_dir(&run).unwrap();
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o777)).unwrap();
    let Err(why) = Daemon::in_thread(options) else { panic!("accepted") };
    assert!(matches!(why, NodeError::Place { .. }), "{why}");
    assert!(why.to_string().contains("others may write"), "{why}");
}

#[test]
fn a_daemon_does_not_start_on_a_cluster_file_that_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let Err(why) = Daemon::in_thread(options(folder.path(), "name = \n", Box::new(NoProxies))) else {
        panic!("accepted")
    };
    assert!(matches!(why, NodeError::Config(_)), "{why}");
}

#[test]
fn a_place_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), ALONE, Box::new(NoProxies));
    options.runtime_dir = Some(folder.path().join("cluster.toml/run"));
    let Err(why) = Daemon::in_thread(options) else { panic!("made inside a file") };
    assert!(matches!(&why, NodeError::File { what: "make", .. }), "{why}");
}

#[test]
fn an_answer_that_does_not_come_or_is_none_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let ask = |patience| call(&socket, &Request::Status, patience).unwrap_err();
    let why = ask(Duration::from_millis(50));
    assert!(matches!(why, CallError::TimedOut { .. }), "{why}");
    let liar = std::thread::spawn(move || {
        // The one that gave up waits in the queue before.
        let _gave_up = listener.accept().unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        BufReader::new(&stream).read_line(&mut String::new()).unwrap();
        stream.write_all(b"certainly\n").unwrap();
    });
    let why = ask(PATIENCE);
    assert!(matches!(why, CallError::Garbled { .. }), "{why}");
    liar.join().unwrap();
    let long = folder.path().join("x".repeat(120));
    let why = call(&long, &Request::Status, PATIENCE).unwrap_err();
    assert!(matches!(why, CallError::Io { .. }), "{why}");
}

#[test]
fn an_unknown_node_is_named_with_those_that_are() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), ALONE, Box::new(NoProxies));
    options.node = "n9".into();
    let Err(why) = Daemon::in_thread(options) else { panic!("accepted") };
    assert!(matches!(why, NodeError::NoSuchNode { .. }), "{why}");
    assert_eq!(why.to_string(), "the cluster file has no node n9: it has 1 (n1)");
}

const NODES: &str = "name = \"lab\"\n[[node]]\nid = 1\nname = \"n1\"\naddress = \"127.0.0.2:7701\"\n\
                     [[node]]\nid = 2\nname = \"n2\"\naddress = \"127.0.0.3:7701\"\n";

#[test]
fn what_is_wrong_with_a_cluster_file_is_said_with_its_line() {
    let node = |id: &str, name: &str, address: &str| {
        format!("{NODES}[[node]]\nid = {id}\nname = \"{name}\"\naddress = \"{address}\"\n")
    };
    let dc = |rest: &str| format!("{NODES}[[dc]]\nid = 1\nname = \"main\"\n{rest}\n");
    let proxy = |rest: &str| format!("{NODES}[[dc]]\nid = 1\nname = \"main\"\n[[proxy]]\n{rest}\n");
    let bad = [
        ("name = \n".into(), ":1:"),
        ("name = \"lab\"\n".into(), "missing field `node`"),
        ("name = \"lab\"\nnode = []\n".into(), "there is no node"),
        ("name = \"Lab\"\n".to_owned() + &NODES[13..], ":1:8: cluster name \"Lab\""),
        (format!("colour = 1\n{NODES}"), "unknown field `colour`"),
        (node("2", "n3", "127.0.0.4:1"), ":11:6: node id 2 is there twice"),
        (node("0", "n3", "127.0.0.4:1"), "NODES_MAX"),
        (node("1025", "n3", "127.0.0.4:1"), "NODES_MAX"),
        (node("70000", "n3", "127.0.0.4:1"), ":11:"),
        (node("3", "n2", "127.0.0.4:1"), ":12:8: node name n2 is there twice"),
        (node("3", "..", "127.0.0.4:1"), "begins with a dot"),
        (node("3", "a/b", "127.0.0.4:1"), "not a name"),
        (node("3", "n3", "127.0.0.3:7701"), ":13:11: address 127.0.0.3:7701 is there twice"),
        (node("3", "n3", "elsewhere"), "is not IP:PORT"),
        (node("3", "n3", "127.0.0.4:0"), "no port"),
        (dc("nodes = [1, 9]"), ":13:13: DC main names node 9, which is not in the file"),
        (dc("nodes = [1, 1]"), "names node 1 twice"),
        (dc("nodes = []"), "has no nodes"),
        (dc("slots_per_node = 0"), "nobody could bind"),
        (dc("slots_per_node = 2049"), "SLOTS_PER_DC"),
        (dc("[[dc]]\nid = 1\nname = \"other\""), "DC id 1 is there twice"),
        (dc("[[dc]]\nid = 2\nname = \"main\""), "DC name main is there twice"),
        (dc("[[dc]]\nid = 1025\nname = \"other\""), "DCS_MAX"),
        (proxy("name = \"fast\"\nkind = \"dpdk\""), "kind \"dpdk\" is not there yet"),
        (proxy("name = \"fast\"\nkind = \"pigeon\""), "kind \"pigeon\" is unknown"),
        (proxy("name = \"t\"\nkind = \"tcp\"\nnodes = [1]"), "share DC main and no proxy"),
        (
            proxy("name = \"t\"\nkind = \"tcp\"\n[[proxy]]\nname = \"u\"\nkind = \"tcp\""),
            "same address on node",
        ),
        (format!("node_dead_after_ms = 5\n{NODES}"), ":1:22: node_dead_after_ms is 5"),
    ];
    for (text, expected) in bad {
        let why = Cluster::parse(&text, Path::new("lab.toml")).expect_err(&text).to_string();
        assert!(
            why.starts_with("lab.toml") && why.contains(expected),
            "{why:?} does not say {expected:?}\n{text}"
        );
    }
}

#[test]
fn a_good_cluster_file_gives_each_node_its_slots() {
    let text = format!(
        "key_file = \"lab.key\"\n{NODES}[[dc]]\nid = 1\nname = \"main\"\nnodes = [2, 1]\nuids = [1000]\n"
    );
    let cluster = Cluster::parse(&text, Path::new("/etc/dvs/lab.toml")).unwrap();
    assert_eq!(cluster.key_file.as_deref(), Some(Path::new("/etc/dvs/lab.key")));
    let node = cluster.node("2").unwrap();
    assert_eq!(cluster.node("n2"), Some(node));
    let plan = cluster.plan(node, abi::Incarnation(1), 1, 0);
    let range = plan.own_range(abi::DcId(1)).unwrap();
    assert_eq!((range.first.0, range.count), (0, 256), "first in the DC's list");
    assert_eq!(plan.node_of(abi::DcId(1), abi::Slot(256)), Some(abi::NodeId(1)));
    assert_eq!((plan.route(abi::NodeId(1)), plan.route(abi::NodeId(2))), (Some(1), None));
    assert!(plan.may_bind(abi::DcId(1), 1000) && !plan.may_bind(abi::DcId(1), 1001));
}
