//! Attackers that keep no rule of memory, protocol or wire, among others who talk to them and to each other: processes bound
//! in the DC, and a node that knows the cluster's key.
//!
//! Nobody panics, hangs or takes one for another; nothing between those others is lost. `ATTACK_ROUNDS` says how often an
//! attacker begins anew; the seed is printed, and `ATTACK_SEED` takes one. Neighbours: `roles::attacker` and `roles::foreign`
//! (what they do), `roles::friend` (whom they do it to).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use abi::Slot;

use super::cluster::{Cluster, Plan};
use super::ground::{Company, Ground, addresses};
use super::program::{Program, entry_of};
use super::roles::{OTHER_DC, SOCKET, acts, wire_acts};
use super::system::{LONG, eventually};

/// `nobody`, who may bind in the DC.
const STRANGER: u32 = 65534;
const ROUNDS_BRIEF: u64 = 60;
/// From so many rounds on, each act and each refusal below must have come up.
const ROUNDS_THOROUGH: u64 = 1000;
/// A round takes some milliseconds; on a machine that does much else, more.
const ROUND_MAX: Duration = Duration::from_millis(400);

/// What must have been said to somebody, when members attack.
const REFUSALS_OF_MEMBERS: &[&str] = &[
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

/// The same when a node attacks.
const REFUSALS_OF_NODES: &[&str] = &[
    "unknown record",
    "record body of a wrong length",
    "a record of another node's endpoint",
    "a slot out of its sequence",
    "a slot of another source",
    "a reply on a lane",
    "a slot beyond the lane",
    "a reply that is none",
    "a reply of another source",
    "an extent that never came",
    "extent longer than the largest loan",
    "an announcement that announces nothing",
    "a copy that is none",
    "a copy of what nobody granted",
    "a copy in no state",
    "a directory text out of order",
    "unknown message kind",
    "unknown message flags",
    "a directory that is none",
    "directory entries that are not its own",
    "bytes changed: some",
    "link: lost",
];

#[test]
fn attackers_of_the_same_user_harm_nobody_else() {
    members(None, rounds() / 4);
}

#[test]
fn attackers_of_another_user_harm_nobody_else() {
    if !rustix::process::getuid().is_root() {
        println!("not run: attack by another user: only root starts programs of other users");
        return;
    }
    members(Some(STRANGER), rounds());
}

#[test]
fn a_node_that_keeps_no_rule_harms_nobody_else() {
    let seed = seed();
    let rounds = rounds().max(4);
    let Some(ground) = Ground::take(Company::Alone) else { return };
    let text = Plan::nodes(3).dead_after_ms(3_000).text(&addresses(3));
    // Two files, so that each node is started and stopped by itself: nobody starts the third.
    let files = ["one.toml", "two.toml"].map(|name| ground.write(name, &text));
    let cluster = Cluster::up_each(ground, files.to_vec());
    let foes = [cluster.slot(3, 8), cluster.slot(3, 9)];
    let scene = Scene::of(cluster, &foes, seed);
    let role =
        format!("foreign {} {seed} {rounds} {} {}", files[0].display(), list(&foes), list(&scene.slots));
    let own = std::env::current_exe().expect("where this program is");
    let mut foreign = scene.attacker(&own, None, &role);
    foreign.hears("attacks", LONG);
    let counts = scene.attacked(vec![foreign], rounds);
    judge(&counts, rounds, wire_acts::ACTS.iter().map(|(name, _)| *name), REFUSALS_OF_NODES);
}

fn members(uid: Option<u32>, rounds: u64) {
    let seed = seed();
    let rounds = rounds.max(4);
    let Some(ground) = Ground::take(Company::Alone) else { return };
    let program = open_copy(&ground);
    let cluster = Cluster::up_on(ground, Plan::nodes(2).rules("uids = [65534]\n"));
    cluster.proxies_up();
    let foes = [cluster.slot(1, 8), cluster.slot(1, 9)];
    let scene = Scene::of(cluster, &foes, seed);
    let mut attackers = Vec::new();
    for (n, foe) in foes.iter().enumerate() {
        let seed = seed.rotate_left(7 + n as u32);
        let role = format!("attack {} {seed} {rounds} {}", foe.0, list(&scene.slots));
        let attacker = scene.attacker(&program, uid, &role);
        let as_uid: u32 = attacker.says("attacks as uid", LONG).parse().expect("a number");
        assert_eq!(as_uid, uid.unwrap_or_else(|| rustix::process::getuid().as_raw()));
        attackers.push(attacker);
    }
    let counts = scene.attacked(attackers, rounds);
    judge(&counts, 2 * rounds, acts::ACTS.iter().map(|(name, _)| *name), REFUSALS_OF_MEMBERS);
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
fn open_copy(ground: &Ground) -> PathBuf {
    let own = std::env::current_exe().expect("where this program is");
    let copy = ground.folder().join("attacker");
    std::fs::copy(own, &copy).expect("room for a copy");
    for (path, mode) in [(ground.folder(), 0o711), (copy.as_path(), 0o755)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("our own files");
    }
    copy
}

fn list(slots: &[Slot]) -> String {
    slots.iter().map(|slot| slot.0.to_string()).collect::<Vec<_>>().join(",")
}

/// Two nodes, friends who talk to each other and to the attackers, and two who only talk to each other.
struct Scene {
    cluster: Cluster,
    before: (Vec<u32>, Vec<u32>),
    slots: Vec<Slot>,
    friends: Vec<Program>,
    asker: Program,
    echo: Program,
}

impl Scene {
    fn of(cluster: Cluster, foes: &[Slot], seed: u64) -> Scene {
        let before = (cluster.ground.processes(), proxies(&cluster));
        let places = [(1, 0), (1, 1), (2, 0)];
        let slots: Vec<_> = places.iter().map(|(node, number)| cluster.slot(*node, *number)).collect();
        let mut friends = Vec::new();
        for (n, (node, number)) in places.into_iter().enumerate() {
            let others: Vec<_> = slots.iter().copied().filter(|slot| *slot != slots[n]).collect();
            let role = format!("friend {} {} {}", seed ^ n as u64, list(&others), list(foes));
            friends.push(cluster.start(node, number, &role));
        }
        for friend in &friends {
            friend.endpoint();
        }
        // They wait for each answer as long as it takes.
        let echo = cluster.start(2, 1, "echo");
        let asker = cluster.start(1, 2, &format!("ask {}", cluster.slot(2, 1).0));
        echo.endpoint();
        asker.endpoint();
        Scene { cluster, before, slots, friends, asker, echo }
    }

    fn attacker(&self, program: &Path, uid: Option<u32>, role: &str) -> Program {
        let words = entry_of(program);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env(SOCKET, self.cluster.member_socket(1)).env_remove(OTHER_DC);
        command.current_dir("/");
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        Program::spawn(&self.cluster.ground, command, role)
    }

    /// Lets them attack, and says what was counted.
    fn attacked(self, mut attackers: Vec<Program>, rounds: u64) -> BTreeMap<String, u64> {
        let Scene { cluster, before, mut friends, mut asker, echo, .. } = self;
        let mut counts = BTreeMap::new();
        attackers.iter_mut().for_each(|attacker| attacker.order("attack"));
        let begun = Instant::now();
        for attacker in &attackers {
            add(&mut counts, &attacker.says("tally", ROUND_MAX * rounds as u32 + LONG));
        }
        println!("{rounds} rounds each in {:.1} s", begun.elapsed().as_secs_f64());
        friends.iter_mut().for_each(|friend| friend.order("stop"));
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
            refused(&cluster, node, &mut counts);
        }
        assert_eq!(
            (cluster.ground.processes(), proxies(&cluster)),
            before,
            "daemons and proxies are the same"
        );
        cluster.everybody_is_forgotten(LONG * 3);
        counts
    }
}

/// The proxies of both nodes, once they are at work.
fn proxies(cluster: &Cluster) -> Vec<u32> {
    let mut pids = Vec::new();
    eventually("proxies are up", LONG, || {
        pids = (1..=2).filter_map(|node| cluster.proxy(node)).collect();
        pids.len() == 2
    });
    pids
}

/// What a node's daemon and proxy have said of what they refused.
fn refused(cluster: &Cluster, node: u16, counts: &mut BTreeMap<String, u64>) {
    let mut count = |who: &str, what: &str| {
        *counts.entry(format!("{who} of node {node}: {what}")).or_default() += 1;
    };
    let log = |name: &str| {
        let log = cluster.ground.runtime_dir().join(format!("n{node}/{name}"));
        std::fs::read_to_string(log).expect("its log")
    };
    for line in log("proxy-1.log").lines() {
        if let Some((_, why)) = line.split_once("the peer broke the protocol: ") {
            count("refused by the proxy", why.split(" (").next().unwrap_or(why));
        }
    }
    for line in log("daemon.log").lines() {
        match line {
            _ if line.contains("as its directory is none") => {
                count("refused by the daemon", "a directory that is none");
            }
            _ if line.contains("refused: not its slots") => {
                count("refused by the daemon", "directory entries that are not its own");
            }
            _ => {}
        }
    }
}

/// Adds `what=count;...`.
fn add(counts: &mut BTreeMap<String, u64>, text: &str) {
    for entry in text.split(';').filter(|entry| !entry.is_empty()) {
        let (what, count) = entry.rsplit_once('=').expect("a name and a count");
        *counts.entry(what.to_owned()).or_default() += count.parse::<u64>().expect("a count");
    }
}

/// Prints the table; none may be missing if there was time for all.
fn judge<'a>(
    counts: &BTreeMap<String, u64>,
    rounds: u64,
    acts: impl Iterator<Item = &'a str>,
    refusals: &'a [&'a str],
) {
    let table = counts.iter().fold(String::new(), |mut table, (what, count)| {
        writeln!(table, "{count:>9} {what}").expect("a string");
        table
    });
    println!("{table}");
    if rounds < ROUNDS_THOROUGH {
        return;
    }
    let is_there = |name: &str| counts.keys().any(|what| what.ends_with(name));
    let missing: Vec<_> = acts.chain(refusals.iter().copied()).filter(|name| !is_there(name)).collect();
    assert!(missing.is_empty(), "never seen: {missing:?}");
}
