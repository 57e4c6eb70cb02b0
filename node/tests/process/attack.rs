//! Attackers bound in the DC, that keep no rule of memory or protocol, among others who talk to them and to each other.
//!
//! Nobody panics, hangs or takes one for another; nothing between those others is lost. `ATTACK_ROUNDS` says how often each of
//! two attackers binds anew; the seed is printed, and `ATTACK_SEED` takes one. Neighbours: `roles::attacker`, `roles::friend`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use super::cluster::{Cluster, Plan};
use super::ground::{Company, Ground};
use super::program::{Program, entry_of};
use super::roles::acts::ACTS;
use super::roles::{OTHER_DC, SOCKET};
use super::system::LONG;

/// `nobody`, who may bind in the DC.
const STRANGER: u32 = 65534;
const ROUNDS_BRIEF: u64 = 60;
/// From so many rounds of both attackers on, each act and each refusal below must have come up.
const ROUNDS_THOROUGH: u64 = 1000;
/// A round takes some milliseconds; on a machine that does much else, more.
const ROUND_MAX: Duration = Duration::from_millis(300);

/// What must have been said to somebody, beside the names of the acts.
const REFUSALS: &[&str] = &[
    "more consumed than was published",
    "slot of another sequence",
    "slot of another source",
    "reply on a lane",
    "unknown message kind",
    "unknown message flags",
    "inline length beyond the slot",
    "extent outside its segment",
    "extent longer than the largest loan",
    "an extent in a segment that there is not",
    "an extent returned that is not out",
    "more extents returned than can be out",
    "reply of another source",
    "reply to another call",
    "a request passed on for nobody",
    "a request passed on without its client",
    "a hole in a lane that has ended",
    "an extent that never came",
    "a copy of what nobody granted",
    "introduce: not ready",
    "copy: NoGrant",
    "copy: DeadSource",
    "send: TimedOut",
    "send: DeadDestination",
    "sendrec: TimedOut",
    "sendrec: DeadSource",
    "sendrec: Abandoned",
    "receive of one: DeadSource",
    "write: PERM",
    "truncate: PERM",
    "punch: PERM",
    "map writable: refused",
    "seal of what was spoilt: BadRequest",
    "nonsense: BadRequest",
    "nonsense: NoSuchEndpoint",
];

#[test]
fn attackers_of_the_same_user_harm_nobody_else() {
    let rounds = rounds();
    let Some(ground) = Ground::take(Company::Alone) else { return };
    attack(ground, None, rounds / 4);
}

#[test]
fn attackers_of_another_user_harm_nobody_else() {
    if !rustix::process::getuid().is_root() {
        println!("not run: attack by another user: only root starts programs of other users");
        return;
    }
    let rounds = rounds();
    let Some(ground) = Ground::take(Company::Alone) else { return };
    attack(ground, Some(STRANGER), rounds);
}

fn rounds() -> u64 {
    std::env::var("ATTACK_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS_BRIEF)
}

fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let given = std::env::var("ATTACK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or(now.as_nanos() as u64);
    println!("ATTACK_SEED={seed}");
    seed
}

/// A copy of this executable that anybody may start.
fn open_copy(ground: &Ground) -> std::path::PathBuf {
    let own = std::env::current_exe().expect("where this program is");
    let copy = ground.folder().join("attacker");
    std::fs::copy(own, &copy).expect("room for a copy");
    for (path, mode) in [(ground.folder(), 0o711), (copy.as_path(), 0o755)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("our own files");
    }
    copy
}

fn attack(ground: Ground, uid: Option<u32>, rounds: u64) {
    let seed = seed();
    let rounds = rounds.max(4);
    let program = open_copy(&ground);
    let plan = Plan::nodes(2).rules("uids = [65534]\n");
    let cluster = Cluster::up_on(ground, plan);
    cluster.proxies_up();
    let before = (cluster.ground.processes(), cluster.proxies_up());
    let places = [(1, 0), (1, 1), (2, 0)];
    let foes = [cluster.slot(1, 8), cluster.slot(1, 9)];
    let text = |slots: &[abi::Slot]| slots.iter().map(|s| s.0.to_string()).collect::<Vec<_>>().join(",");
    let slots: Vec<_> = places.iter().map(|(node, number)| cluster.slot(*node, *number)).collect();
    let mut friends = Vec::new();
    for (n, (node, number)) in places.into_iter().enumerate() {
        let others: Vec<_> = slots.iter().copied().filter(|slot| *slot != slots[n]).collect();
        let role = format!("friend {} {} {}", seed ^ n as u64, text(&others), text(&foes));
        friends.push(cluster.start(node, number, &role));
    }
    for friend in &friends {
        friend.endpoint();
    }
    // Strangers to it all, who wait for each answer as long as it takes.
    let echo = cluster.start(2, 1, "echo");
    let mut asker = cluster.start(1, 2, &format!("ask {}", cluster.slot(2, 1).0));
    (echo.endpoint(), asker.endpoint());

    let mut attackers: Vec<Program> = Vec::new();
    for (n, foe) in foes.iter().enumerate() {
        let words = entry_of(&program);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env(SOCKET, cluster.member_socket(1)).env_remove(OTHER_DC).current_dir("/");
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        let role = format!("attack {} {} {rounds} {}", foe.0, seed.rotate_left(7 + n as u32), text(&slots));
        attackers.push(Program::spawn(&cluster.ground, command, &role));
    }
    let mut counts = BTreeMap::new();
    for attacker in &mut attackers {
        let as_uid: u32 = attacker.says("attacks as uid", LONG).parse().expect("a number");
        assert_eq!(as_uid, uid.unwrap_or_else(|| rustix::process::getuid().as_raw()));
        attacker.order("attack");
    }
    let begun = Instant::now();
    for attacker in &mut attackers {
        add(&mut counts, &attacker.says("tally", ROUND_MAX * rounds as u32 + LONG));
    }
    println!("{rounds} rounds each in {:.1} s", begun.elapsed().as_secs_f64());
    for friend in &mut friends {
        friend.order("stop");
    }
    for friend in &friends {
        let got: u64 = friend.says("streams", LONG * 2).parse().expect("a number");
        assert!(got >= rounds, "only {got} messages came from friends: they were not at work");
        println!("{got} messages between friends");
        add(&mut counts, &friend.says("outcomes", LONG));
    }
    asker.order("stop");
    println!("{} calls of strangers", asker.says("asked", LONG));
    drop((attackers, friends, asker, echo));
    for node in 1..=2 {
        refused_by_proxy(&cluster, node, &mut counts);
    }
    assert_eq!(
        (cluster.ground.processes(), cluster.proxies_up()),
        before,
        "daemons and proxies are the same"
    );
    cluster.everybody_is_forgotten(LONG * 3);
    let table = counts.iter().fold(String::new(), |mut table, (what, count)| {
        writeln!(table, "{count:>9} {what}").expect("a string");
        table
    });
    println!("{table}");
    if 2 * rounds >= ROUNDS_THOROUGH {
        let acts = ACTS.iter().map(|(name, _)| *name);
        let is_there = |name: &str| counts.keys().any(|what| what.ends_with(name));
        let missing: Vec<_> = acts.chain(REFUSALS.iter().copied()).filter(|name| !is_there(name)).collect();
        assert!(missing.is_empty(), "never seen: {missing:?}");
    }
}

/// What a proxy has said of pairs that it closed.
fn refused_by_proxy(cluster: &Cluster, node: u16, counts: &mut BTreeMap<String, u64>) {
    let log = cluster.ground.runtime_dir().join(format!("n{node}/proxy-1.log"));
    let log = std::fs::read_to_string(log).expect("its log");
    for line in log.lines() {
        let Some((_, why)) = line.split_once("the peer broke the protocol: ") else { continue };
        let why = why.split(" (").next().unwrap_or(why);
        *counts.entry(format!("closed by the proxy of node {node}: {why}")).or_default() += 1;
    }
}

/// Adds `what=count;...`.
fn add(counts: &mut BTreeMap<String, u64>, text: &str) {
    for entry in text.split(';').filter(|entry| !entry.is_empty()) {
        let (what, count) = entry.rsplit_once('=').expect("a name and a count");
        *counts.entry(what.to_owned()).or_default() += count.parse::<u64>().expect("a count");
    }
}
