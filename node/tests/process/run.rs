//! Programs that `dvs run` starts.

use super::cluster::{Cluster, DC, Plan};
use super::program::{Program, entry};
use super::system::LONG;

fn run(cluster: &Cluster, node: u16, number: u16, name: &str, role: &str) -> Program {
    let mut command = cluster.ground.command();
    command.arg("run").arg("--cluster").arg(cluster.file(node));
    command.args(["--node", &node.to_string(), "--dc", DC]);
    command.args(["--slot", &cluster.slot(node, number).0.to_string(), "--name", name, "--"]);
    command.args(entry());
    Program::spawn(&cluster.ground, command, role)
}

#[test]
fn a_program_that_is_run_is_bound_and_answers_another_node() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let mut server = run(&cluster, 2, 7, "kv", "echo");
    let endpoint = server.endpoint();
    assert_eq!(endpoint.slot, cluster.slot(2, 7));
    let here = |e: &node::core::EndpointView| (e.endpoint.clone(), e.name.clone(), e.state.clone(), e.pid);
    let listed: Vec<_> = cluster.endpoints(2).iter().map(here).collect();
    assert_eq!(listed, [(endpoint.to_string(), "kv".into(), "bound".into(), Some(server.pid()))]);
    let mut client = run(&cluster, 1, 3, "client", &format!("call {}", endpoint.slot.0));
    client.endpoint();
    client.hears("calls", LONG);
    client.hears("Reply call", LONG);
    client.ends_well();
    server.order("end");
    server.ends_well();
    cluster.everybody_is_forgotten(LONG);
}

#[test]
fn a_program_that_exits_without_taking_its_binding_unbinds() {
    let Some(cluster) = Cluster::up(Plan::nodes(1)) else { return };
    let slot = cluster.slot(1, 9).0.to_string();
    let file = cluster.file(1).as_os_str();
    let mut words =
        ["run", "--node", "1", "--dc", DC, "--slot", &slot, "--cluster"].map(std::ffi::OsStr::new).to_vec();
    words.extend([file, "--".as_ref(), "true".as_ref()]);
    // The same slot again and again: it is free as soon as its program has ended, or very soon after.
    for _ in 0..5 {
        let said = cluster.ground.dvs(&words);
        assert_eq!(said.code, Some(0), "{said:#?}");
        cluster.everybody_is_forgotten(LONG);
    }
}

#[test]
fn a_program_that_cannot_be_run_is_named() {
    let Some(cluster) = Cluster::up(Plan::nodes(1)) else { return };
    let ground = &cluster.ground;
    let file = cluster.file(1).to_string_lossy().into_owned();
    let text = ground.write("text", "no program").to_string_lossy().into_owned();
    let run = |more: &[&str]| {
        let words = ["run", "--cluster", &file, "--node", "1"];
        ground.dvs(words.iter().chain(more).copied().collect::<Vec<_>>())
    };
    run(&["--dc", DC, "--", "./no-such-program"]).refused(127, &["no program", "no-such-program"]);
    run(&["--dc", DC, "--", &text]).refused(126, &["not executed", "text"]);
    run(&["--dc", "other", "--", "true"]).refused(3, &["no DC", "other"]);
    run(&["--dc", DC, "--slot", "64", "--", "true"]).refused(3, &["slot 64", "0 to 63"]);
    let mut holder = cluster.start(1, 0, "idle");
    holder.endpoint();
    run(&["--dc", DC, "--slot", "0", "--", "true"]).refused(5, &["slot 0"]);
    holder.order("end");
    holder.ends_well();
    cluster.everybody_is_forgotten(LONG);
}
