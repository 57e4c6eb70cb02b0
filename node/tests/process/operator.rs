//! What an operator can get wrong, and clusters side by side.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::Path;

use rustix::process::Signal;

use super::cluster::{Cluster, Plan};
use super::ground::{Company, Ground, addresses};
use super::system::{LONG, eventually, works_for};

fn up(ground: &Ground, file: &Path) -> super::ground::Said {
    ground.dvs([OsStr::new("up"), file.as_os_str()])
}

#[test]
fn two_clusters_with_the_same_names_do_not_disturb_each_other() {
    let Some(mut one) = Cluster::up(Plan::nodes(2)) else { return };
    let Some(other) = Cluster::up(Plan::nodes(2)) else { return };
    let ask = |cluster: &Cluster| {
        let server = cluster.start(2, 0, "echo");
        let asker = cluster.start(1, 0, &format!("ask {}", cluster.slot(2, 0).0));
        let ends = [server.endpoint().to_string(), asker.endpoint().to_string()];
        (server, asker, ends)
    };
    let (_server_of_one, mut asker_of_one, _) = ask(&one);
    let (_server, mut asker, mut ends) = ask(&other);
    let untouched = other.proxies_up();
    for pid in one.proxies_up() {
        one.signal(pid, Signal::KILL);
    }
    one.proxies_up();
    asker_of_one.order("stop");
    assert!(asker_of_one.says("asked", LONG) != "0");
    one.down();
    assert_eq!(other.proxies_up(), untouched, "its proxies are the same");
    let mut bound: Vec<String> = (1..=2).flat_map(|node| own_endpoints(&other, node)).collect();
    bound.sort();
    ends.sort();
    assert_eq!(bound, ends, "its endpoints are the same");
    asker.order("stop");
    assert!(asker.says("asked", LONG) != "0");
    asker.ends_well();
}

fn own_endpoints(cluster: &Cluster, node: u16) -> Vec<String> {
    cluster.endpoints(node).into_iter().filter(|e| e.node == node).map(|e| e.endpoint).collect()
}

#[test]
fn a_second_daemon_for_a_node_is_refused() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let (ground, file) = (&cluster.ground, cluster.file(1));
    let daemon = cluster.daemon(1);
    let pid = daemon.to_string();
    up(ground, file).refused(5, &["n1", "runs already", &pid]);
    let start = ["node", "start", "--node", "1"].map(OsStr::new);
    ground.dvs(start.into_iter().chain([file.as_os_str()])).refused(5, &["n1", "already", &pid]);
    assert_eq!(cluster.daemon(1), daemon);
    cluster.proxies_up();
}

#[test]
fn a_port_in_use_is_said_and_nothing_stays_half_started() {
    let Some(ground) = Ground::take(Company::Others) else { return };
    let plan = Plan::nodes(3);
    let addresses = addresses(3);
    let file = ground.write("cluster.toml", &plan.text(&addresses));
    let taken = TcpListener::bind(addresses[2]).expect("an address that was free");
    let address = addresses[2].to_string();
    up(&ground, &file).refused(5, &["port in use", "n3", &address]);
    ground.is_clean();
    drop(taken);
    ground.dvs([OsStr::new("--json"), OsStr::new("up"), file.as_os_str()]).json();
    ground.dvs([OsStr::new("--json"), OsStr::new("down"), file.as_os_str()]).json();
    ground.is_clean();
}

#[test]
fn a_node_with_a_wrong_key_is_named_and_both_daemons_stay() {
    let Some(ground) = Ground::take(Company::Others) else { return };
    let text = Plan::nodes(2).text(&addresses(2));
    let files = ["one", "two"].map(|name| {
        let own_key = text.replace("cluster.key", &format!("{name}.key"));
        ground.write(&format!("{name}.toml"), &own_key)
    });
    let cluster = Cluster::up_each(ground, files.into());
    eventually("both nodes show the wrong key", LONG, || {
        (1..=2).all(|node| cluster.other(node).link == "wrong cluster key")
    });
    let said =
        cluster.ground.dvs([OsStr::new("status"), OsStr::new("--cluster"), cluster.file(1).as_os_str()]);
    assert!(said.out.contains("n2 wrong cluster key"), "{said:#?}");
    for node in 1..=2 {
        let pid = cluster.daemon(node);
        let server = cluster.start(node, 0, "echo");
        server.endpoint();
        let mut client = cluster.start(node, 1, &format!("ask-some {} 10", cluster.slot(node, 0).0));
        client.endpoint();
        client.hears("asked 10", LONG);
        assert!(works_for(pid, cluster.ground.folder()), "the daemon of node {node} runs");
    }
}

/// What is wrong, the file, the line it is in, and words that must be said.
const WRONG: &[(&str, &str, usize, &[&str])] = &[
    ("no toml", "name = \"x\"\n[[node]\n", 2, &[]),
    ("an unknown field", "name = \"x\"\ncolour = 3\n[[node]]\n", 2, &["colour"]),
    (
        "a wrong type",
        "name = \"x\"\n[[node]]\nid = \"one\"\nname = \"n\"\naddress = \"127.0.0.1:1\"\n",
        3,
        &[],
    ),
    (
        "a node out of range",
        "name = \"x\"\n[[node]]\nid = 0\nname = \"n\"\naddress = \"127.0.0.1:1\"\n",
        3,
        &["1 to 1024"],
    ),
    ("no address", "name = \"x\"\n[[node]]\nid = 1\nname = \"n\"\naddress = \"here\"\n", 5, &["IP:PORT"]),
    (
        "a node twice",
        "name = \"x\"\n[[node]]\nid = 1\nname = \"a\"\naddress = \"127.0.0.1:1\"\n\
         [[node]]\nid = 1\nname = \"b\"\naddress = \"127.0.0.1:2\"\n",
        7,
        &["twice"],
    ),
    (
        "a DC with a node that is not there",
        "name = \"x\"\n[[node]]\nid = 1\nname = \"a\"\naddress = \"127.0.0.1:1\"\n[[dc]]\nid = 1\nname = \"d\"\nnodes = [1, 2]\n",
        9,
        &["node 2", "[[node]]"],
    ),
    (
        "more slots than there are",
        "name = \"x\"\n[[node]]\nid = 1\nname = \"a\"\naddress = \"127.0.0.1:1\"\n[[dc]]\nid = 1\nname = \"d\"\nslots_per_node = 5000\n",
        9,
        &["4096", "slots_per_node"],
    ),
    (
        "a transport that is not there",
        "name = \"x\"\n[[node]]\nid = 1\nname = \"a\"\naddress = \"127.0.0.1:1\"\n[[proxy]]\nname = \"p\"\nkind = \"pigeon\"\n",
        8,
        &["pigeon", "tcp"],
    ),
];

#[test]
fn a_malformed_cluster_file_is_refused_with_the_line_and_a_way_out() {
    let Some(ground) = Ground::take(Company::Others) else { return };
    for (what, text, line, words) in WRONG {
        let file = ground.write("wrong.toml", text);
        let said = up(&ground, &file);
        println!("{what}: {}", said.err.trim());
        let place = format!("wrong.toml:{line}:");
        said.refused(3, &[&place]);
        said.refused(3, words);
    }
    let nowhere = ground.folder().join("nowhere.toml");
    up(&ground, &nowhere).refused(3, &["nowhere.toml", "dvs init"]);
    ground.is_clean();
}
