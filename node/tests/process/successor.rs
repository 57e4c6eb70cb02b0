//! Daemons that are killed: the keeper starts a successor, and nobody who is bound has to do anything.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use abi::Name;
use abi::member::{NUMBER, Request, VERSION};
use rustix::process::Signal;
use shm::os::fdpass;

use super::cluster::{Cluster, DC, Plan};
use super::system::{Chance, LONG, eventually};

/// How long a daemon is killed again and again.
const STORM: Duration = Duration::from_secs(4);

impl Cluster {
    /// Kills a daemon, and waits for its successor.
    fn succeed(&self, node: u16) {
        let before = self.daemon(node);
        self.signal(before, Signal::KILL);
        self.has_successor(node, before);
    }

    fn has_successor(&self, node: u16, before: u32) {
        eventually("a successor runs", LONG, || {
            let path = self.ground.runtime_dir().join(format!("n{node}/daemon.pid"));
            // It is being written.
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let pid = text.split_whitespace().next().and_then(|word| word.parse::<u32>().ok());
            text.ends_with('\n') && pid.is_some_and(|pid| pid != before)
        });
    }

    /// Kills a daemon with its keeper stopped: for `during`, the node has none.
    fn without_daemon<T>(&self, node: u16, during: impl FnOnce() -> T) -> T {
        let (keeper, daemon) = (self.keeper(node), self.daemon(node));
        self.signal(keeper, Signal::STOP);
        self.signal(daemon, Signal::KILL);
        let done = during();
        self.signal(keeper, Signal::CONT);
        self.has_successor(node, daemon);
        done
    }

    fn endpoint_is(&self, node: u16, endpoint: &str) -> bool {
        self.endpoints(node).iter().any(|e| e.endpoint == endpoint && e.state == "bound")
    }
}

#[test]
fn calls_go_on_over_any_number_of_killed_daemons() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let servers =
        [cluster.start(2, 0, "echo"), cluster.start(1, 0, "private echo"), cluster.start(1, 1, "poll-echo")];
    let ask = |node, number, of: (u16, u16)| {
        cluster.start(node, number, &format!("ask {}", cluster.slot(of.0, of.1).0))
    };
    let mut askers =
        [ask(1, 2, (2, 0)), ask(2, 3, (1, 0)), ask(1, 4, (1, 0)), ask(2, 5, (1, 1)), ask(1, 6, (1, 1))];
    let endpoints: Vec<String> =
        servers.iter().chain(&askers).map(|program| program.endpoint().to_string()).collect();
    let processes = cluster.ground.processes().len();

    for _ in 0..6 {
        cluster.succeed(1);
        cluster.succeed(2);
    }

    let bound: Vec<String> =
        [1, 2].iter().flat_map(|node| cluster.endpoints(*node)).map(|e| e.endpoint).collect();
    assert!(
        endpoints.iter().all(|endpoint| bound.contains(endpoint)),
        "{endpoints:?} are bound in {bound:?}"
    );
    cluster.proxies_up();
    for asker in &mut askers {
        asker.order("stop");
        let asked: u64 = asker.says("asked", LONG).parse().expect("a number");
        println!("{asked} calls meanwhile");
    }
    eventually("as many processes run", LONG, || cluster.ground.processes().len() == processes);
    for node in [1, 2] {
        assert_eq!(cluster.status(node).successions, 6, "each was succeeded");
    }
    drop((askers, servers));
    cluster.everybody_is_forgotten(LONG);
}

#[test]
fn who_comes_and_goes_does_so_whenever_its_daemon_is_killed() {
    let Some(cluster) = Cluster::up(Plan::nodes(1)) else { return };
    let server = cluster.start(1, 0, "echo");
    // Before others take whatever slot is free.
    server.endpoint();
    let mut chance = Chance::of_now();
    let mut programs =
        [(); 2].map(|()| cluster.start_anywhere(1, &format!("rebind {}", cluster.slot(1, 0).0)));
    for program in &programs {
        program.endpoint();
    }
    let until = Instant::now() + STORM;
    let mut kills = 0;
    while Instant::now() < until {
        // Longer than a life that counts as failed would have to be, now and then.
        std::thread::sleep(Duration::from_micros(if kills % 8 == 7 {
            1_100_000
        } else {
            chance.below(20_000)
        }));
        cluster.succeed(1);
        kills += 1;
    }
    println!("{kills} daemons killed");
    for program in &mut programs {
        program.order("stop");
        let rounds: u64 = program.says("bound", LONG).parse().expect("a number");
        println!("bound {rounds} times");
        assert!(rounds > 0);
    }
    drop((programs, server));
    cluster.everybody_is_forgotten(LONG);
}

#[test]
fn who_does_nothing_stays_bound_and_what_it_is_sent_is_there() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let mut still = cluster.start(2, 0, "take-ordered");
    let endpoint = still.endpoint().to_string();
    // It runs no instruction until its daemon has been succeeded.
    still.signal(still.pid() as i32, Signal::STOP);
    cluster.succeed(2);
    assert!(cluster.endpoint_is(2, &endpoint), "{endpoint} is bound");
    let mut posting = cluster.start(1, 0, &format!("post-some {} 1", cluster.slot(2, 0).0));
    posting.endpoint();
    cluster.succeed(2);
    still.signal(still.pid() as i32, Signal::CONT);
    still.order("take");
    still.hears("took 0", LONG);
    posting.ends_well();
}

#[test]
fn who_dies_or_ends_while_there_is_no_daemon_is_mourned_by_the_next() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let mut killed = cluster.start(1, 0, "idle");
    let mut ending = cluster.start(1, 1, "idle");
    let mut waiting = [(1, 2, 0), (2, 3, 0), (1, 4, 1), (2, 5, 1)].map(|(node, number, of)| {
        let program = cluster.start(node, number, &format!("wait-for {}", cluster.slot(1, of).0));
        program.endpoint();
        program
    });
    for program in &mut waiting {
        program.hears("waits", LONG);
    }
    std::thread::sleep(Duration::from_millis(200));
    cluster.without_daemon(1, || {
        killed.kill();
        ending.order("stop");
        ending.ends_well();
    });
    for program in &mut waiting {
        program.hears("DeadSource", LONG);
        program.ends_well();
    }
    let next = cluster.start(1, 0, "echo");
    next.endpoint();
}

#[test]
fn who_binds_or_asks_while_there_is_no_daemon_is_answered_by_the_next() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let (mut asker, status) = cluster.without_daemon(1, || {
        let asker = cluster.start(1, 1, &format!("ask-some {} 20", cluster.slot(2, 0).0));
        let file = cluster.file(1).to_owned();
        let mut command = cluster.ground.command();
        command.args(["--json", "status", "--node", "1", "--cluster"]).arg(file);
        let status = command.stdout(std::process::Stdio::null()).spawn().expect("dvs starts");
        std::thread::sleep(Duration::from_millis(300));
        assert!(asker.report_within(Duration::ZERO).is_none(), "nobody has bound it");
        (asker, status)
    });
    let server = cluster.start(2, 0, "echo");
    server.endpoint();
    asker.endpoint();
    asker.hears("asked 20", LONG);
    let mut status = status;
    assert!(status.wait().expect("our own child").success(), "status was answered");
}

#[test]
fn dcs_that_were_made_are_there_after_a_succession() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    cluster.ask(1, &["dc", "create", "late"]).json();
    cluster.succeed(1);
    cluster.ask(1, &["dc", "create", "later"]).json();
    cluster.succeed(1);
    let names = |node| cluster.ask(node, &["dc", "ls"]).out;
    eventually("both nodes know both", LONG, || {
        [1, 2].iter().all(|node| names(*node).contains("\"late\"") && names(*node).contains("\"later\""))
    });
}

#[test]
fn a_forged_memory_that_is_presented_is_nobodys() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let victim = cluster.start(1, 0, "echo");
    let endpoint = victim.endpoint().to_string();
    let forged = tempfile::tempfile().expect("a file");
    cluster.without_daemon(1, || {
        // As a keeper would hand it over, by whoever may connect.
        let socket = fdpass::connect(&cluster.member_socket(1)).expect("the socket is kept");
        let mut hello = Request::Hello { version: VERSION, dc: Name::new(DC).expect("a name") }.to_words();
        hello[NUMBER] = 1;
        let bytes = hello.map(u64::to_le_bytes).concat();
        fdpass::send_with_fds(&socket, &bytes, &[forged.as_fd(), forged.as_fd()]).expect("room");
        for code in 1..=5u64 {
            let put = [code, 8, 1, 0, 0].map(u64::to_le_bytes).concat();
            fdpass::send_with_fds(&socket, &put, &[forged.as_fd()]).expect("room");
        }
    });
    let mut client = cluster.start(2, 1, &format!("ask-some {} 20", cluster.slot(1, 0).0));
    client.endpoint();
    client.hears("asked 20", LONG);
    assert!(cluster.endpoint_is(1, &endpoint), "{endpoint} is bound");
}

#[test]
fn a_node_goes_on_without_its_keeper_and_ends_with_its_daemon() {
    let Some(mut cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let server = cluster.start(1, 0, "echo");
    server.endpoint();
    cluster.signal(cluster.keeper(1), Signal::KILL);
    let mut client = cluster.start(2, 1, &format!("ask-some {} 20", cluster.slot(1, 0).0));
    client.endpoint();
    client.hears("asked 20", LONG);
    let mut late = cluster.start(1, 2, &format!("ask-some {} 20", cluster.slot(1, 0).0));
    late.endpoint();
    late.hears("asked 20", LONG);
    drop((server, client, late));
    cluster.down();
}
