//! A server that is killed: what its clients and waiters hear, on its own node and on another.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::cluster::{Cluster, Plan};
use super::program::Program;
use super::system::LONG;

/// Where clients are: on the server's node, and on the other.
const NODES: [u16; 2] = [1, 2];

#[test]
fn the_death_of_a_killed_server_is_told_to_every_client_and_waiter() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let mut server = cluster.start(1, 0, "mute 2");
    let first = server.endpoint();
    let slot = cluster.slot(1, 0).0;
    let begin = |number: u16, role: &str, word: &str| -> Vec<Program> {
        let start = |node| {
            let program = cluster.start(node, number, &format!("{role} {slot}"));
            program.endpoint();
            program
        };
        let mut programs = NODES.map(start);
        for program in &mut programs {
            program.hears(word, LONG);
        }
        programs.into()
    };
    let mut taken = begin(1, "call", "calls");
    for _ in &taken {
        server.says("took", LONG);
    }
    let mut waiting = begin(2, "call", "calls");
    let mut listening = begin(3, "wait-for", "waits");
    // What they have sent, and that they wait, has reached the server.
    std::thread::sleep(Duration::from_millis(300));

    server.kill();

    for program in &mut taken {
        program.hears("DeadSource", LONG);
        program.ends_well();
    }
    for program in &mut waiting {
        program.hears("DeadDestination", LONG);
        program.ends_well();
    }
    for program in &mut listening {
        program.hears("DeadSource", LONG);
        program.ends_well();
    }
    let next = cluster.start(1, 0, "echo");
    let second = next.endpoint();
    assert_eq!(second.slot, first.slot);
    assert_ne!(second.generation, first.generation, "who is bound next is somebody else");
    for node in NODES {
        let mut client = cluster.start(node, 1, &format!("call {slot}"));
        client.endpoint();
        client.hears("calls", LONG);
        client.hears("Reply call", LONG);
    }
}

#[test]
fn who_polls_outlives_those_who_ring_it_and_is_mourned_as_any_other() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let mut server = cluster.start(1, 0, "poll-echo");
    server.endpoint();
    let slot = cluster.slot(1, 0).0;
    // Killed while they call, wherever that is: before a ring, in one, after one.
    for round in 0..6 {
        let mut killed = NODES.map(|node| {
            let program = cluster.start(node, 1, &format!("ask {slot}"));
            program.endpoint();
            program
        });
        std::thread::sleep(Duration::from_millis(20 + round * 7));
        for program in &mut killed {
            program.kill();
        }
    }
    let mut askers = NODES.map(|node| {
        let program = cluster.start(node, 2, &format!("ask-some {slot} 300"));
        program.endpoint();
        program
    });
    for program in &mut askers {
        program.hears("asked 300", LONG);
        program.ends_well();
    }
    let mut listening = NODES.map(|node| {
        let mut program = cluster.start(node, 3, &format!("wait-for {slot}"));
        program.endpoint();
        program.hears("waits", LONG);
        program
    });
    std::thread::sleep(Duration::from_millis(300));

    server.kill();

    for program in &mut listening {
        program.hears("DeadSource", LONG);
        program.ends_well();
    }
    let next = cluster.start(1, 0, "poll-echo");
    next.endpoint();
    for node in NODES {
        let mut client = cluster.start(node, 1, &format!("ask-some {slot} 100"));
        client.endpoint();
        client.hears("asked 100", LONG);
    }
}

#[test]
fn a_signal_ends_a_sleep_that_may_be_interrupted_and_withdraws_what_was_sent() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let server = cluster.start(1, 0, "mute 1");
    let mut taker = cluster.start(1, 1, "take-ordered");
    let granter = cluster.start(2, 0, "grants");
    for program in [&server, &taker, &granter] {
        program.endpoint();
    }
    let [mute, idle, far] = [(1, 0), (1, 1), (2, 0)].map(|(node, number)| cluster.slot(node, number).0);
    let mut program = cluster.start(1, 2, &format!("interrupted {mute} {idle} {far}"));
    program.endpoint();
    let thread = program.says("thread", LONG).parse().expect("a number");
    let mut interrupt = |word: &str| {
        program.hears(word, LONG);
        // Until it sleeps: a signal before that interrupts nothing. One more does no harm.
        let end = Instant::now() + LONG;
        loop {
            std::thread::sleep(Duration::from_millis(100));
            program.signal(thread, Signal::USR1);
            if let Some(said) = program.report_within(Duration::from_millis(100)) {
                assert_eq!(said, "as it should", "{word}");
                return;
            }
            assert!(Instant::now() < end, "{word}: not interrupted");
        }
    };
    for word in ["sleeps on", "receives", "calls who has taken it", "calls", "sends", "waits", "copies"] {
        interrupt(word);
    }
    program.ends_well();
    taker.order("take");
    taker.hears("took 2", LONG);
}

#[test]
fn a_copy_whose_far_courier_stops_in_the_middle_is_not_known_to_have_ended() {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let granter = cluster.start(2, 0, "grants");
    granter.endpoint();
    let mut copier = cluster.start(1, 0, &format!("copy-on {}", cluster.slot(2, 0).0));
    copier.endpoint();
    copier.hears("copies", LONG);
    // In the middle of one, or between two: the next is then under way for ever.
    std::thread::sleep(Duration::from_millis(30));
    // With its daemon, which would put another in its place.
    let far = [cluster.daemon(2), cluster.proxies_up()[1]];
    far.iter().for_each(|pid| cluster.signal(*pid, Signal::STOP));
    let said = copier.report_within(LONG);
    far.iter().for_each(|pid| cluster.signal(*pid, Signal::CONT));
    assert_eq!(said.as_deref(), Some("as it should"));
    copier.ends_well();
}

#[test]
fn what_a_dead_sender_said_is_delivered_once_whatever_becomes_of_proxies() {
    const MESSAGES: u64 = 100;
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let mut receiver = cluster.start(2, 0, &format!("take-some {MESSAGES}"));
    receiver.endpoint();
    let mut sender = cluster.start(1, 0, &format!("post-some {} {MESSAGES}", cluster.slot(2, 0).0));
    sender.endpoint();
    sender.ends_well();
    // Either the messages have arrived and are known to have, or the successors carry them: once in both cases.
    for victims in [&[0, 1][..], &[0][..], &[1][..]] {
        let pids = cluster.proxies_up();
        for victim in victims {
            cluster.signal(pids[*victim], Signal::KILL);
        }
    }
    receiver.hears("took all", LONG);
    for pid in cluster.proxies_up() {
        cluster.signal(pid, Signal::KILL);
    }
    cluster.proxies_up();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(receiver.reports_so_far(), Vec::<String>::new(), "something came twice");
}

#[test]
fn a_killed_process_is_told_to_its_warn_target_wherever_it_was() {
    // Whoever is bound in the second slot of either node is watched by the first slot of the first.
    const RULES: &str = "[[dc.privileges]]\nslots = \"1\"\nlevel = \"server\"\nwarn = 0\n\
                         [[dc.privileges]]\nslots = \"65\"\nlevel = \"user\"\nwarn = 0\n\
                         [[dc.privileges]]\nlevel = \"server\"\n";
    let Some(cluster) = Cluster::up(Plan::nodes(2).rules(RULES)) else { return };
    let mut watcher = cluster.start(1, 0, "watch 2");
    watcher.endpoint();
    let slot = cluster.slot(2, 1).0;
    let mut waiter = cluster.start(1, 2, &format!("wait-for {slot}"));
    waiter.endpoint();
    for node in NODES {
        let mut victim = cluster.start(node, 1, "idle");
        let endpoint = victim.endpoint();
        if node == 2 {
            // The watcher's node has heard of it, so it hears of its end.
            waiter.hears("waits", LONG);
        }
        victim.kill();
        watcher.hears(&format!("Warned {endpoint}"), LONG);
    }
    watcher.order("end");
    watcher.ends_well();
}
