//! From a cluster file to a running daemon, and back to nothing.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use abi::limits::LINK_DOWN_AFTER_MS;
use abi::{Incarnation, NodeId};
use proxy_tcp::options::ProxyOptions;
use rustix::io::Errno;
use shm::os::events::{Epoll, EventFd, Readiness};
use shm::os::fdpass::{self, PassError};

use super::admin::AdminServer;
use super::couriers::Couriers;
use super::heritage::{self, Adopted, Heritage};
use super::journal::{Head, Journal};
use super::logs::Logs;
use super::members::{Members, Regained};
use super::start::StartProxy;
use super::tokens::{Token, Watched};
use super::vault::Vault;
use super::{Driver, Hands};
use crate::NodeError;
use crate::config::{Cluster, ClusterNode};
use crate::core::{Core, Plan};
use crate::keeper::{Keep, Key, Word};
use crate::place::{Lock, NodePlace, Record, own_uid};

/// 2020-01-01, in seconds of the Unix clock: generations and incarnations count from here.
const YEAR_2020_S: u64 = 1_577_836_800;
/// Members that may wait for their connection to be taken.
const BACKLOG: i32 = 1024;
/// How long an ending daemon waits for the clock.
const CLOCK_WAIT: Duration = Duration::from_millis(1200);
/// The number at which a proxy finds its link.
const LINK_FD: i32 = 3;

/// The first number that no daemon of this process has used: tests start and stop them faster than the clock counts.
static LIVES: AtomicU32 = AtomicU32::new(0);

/// What to run.
pub struct RunOptions {
    pub cluster_file: PathBuf,
    /// The node's id or name.
    pub node: String,
    /// Where sockets and logs go, instead of the default place.
    pub runtime_dir: Option<PathBuf>,
    pub starter: Box<dyn StartProxy>,
    /// The way to the keeper that started this process; without one, nobody succeeds a daemon that is killed.
    pub keeper: Option<OwnedFd>,
}

/// Runs a node's daemon in this process until it is told to stop (SIGTERM, SIGINT, or the admin API).
///
/// The process should be this daemon's alone: it refuses tracing from now on and has its descriptor limit raised.
pub fn run(options: RunOptions) -> Result<(), NodeError> {
    shm::os::process::refuse_tracing().map_err(NodeError::system("to refuse tracing"))?;
    match shm::os::process::raise_nofile() {
        Ok((old, new)) => tracing::debug!(old, new, "limit of open descriptors"),
        Err(errno) => tracing::warn!("limit of open descriptors not raised: {errno}"),
    }
    let stop = Arc::new(EventFd::new().map_err(NodeError::system("an eventfd"))?);
    let mut house = House::build(options, Arc::clone(&stop))?;
    let signals = super::signals::ring_on_end(stop)?;
    let result = house.live();
    drop(signals);
    house.leave(true);
    result
}

/// A daemon with its files: made whole or not at all.
pub(super) struct House {
    driver: Driver,
    pub place: NodePlace,
    proxies: Vec<u16>,
}

impl House {
    pub fn build(options: RunOptions, stop: Arc<EventFd>) -> Result<House, NodeError> {
        match options.keeper.map(heritage::receive).transpose()? {
            Some((keep, Some(heritage))) => {
                House::inherit(RunOptions { keeper: None, ..options }, stop, keep, heritage)
            }
            Some((keep, None)) => House::found(RunOptions { keeper: None, ..options }, stop, keep),
            None => House::found(RunOptions { keeper: None, ..options }, stop, Keep::new(None)),
        }
    }

    /// A node's first daemon.
    fn found(options: RunOptions, stop: Arc<EventFd>, keep: Keep) -> Result<House, NodeError> {
        let (cluster, text) = Cluster::load_with_text(&options.cluster_file)?;
        let node = find(&cluster, &options.node)?;
        if let Some(key) = cluster.key_file.as_ref().filter(|_| cluster.nodes.len() > 1) {
            std::fs::metadata(key).map_err(NodeError::file("find the cluster key", key))?;
        }
        let place = NodePlace::of(&cluster, &node, options.runtime_dir.as_deref());
        place.make(cluster.foreign_uids(node.id, own_uid()))?;
        let (mut lock, before) = place.take_lock(node.name.as_str())?;
        place.clear();
        let kept = super::dcs::read_kept(&place.dcs_file())?;
        let mut plan = begin(&cluster, &node, before);
        super::dcs::let_pass(&place, &kept);
        let strange = plan.overlay(kept);
        if strange > 0 {
            tracing::warn!(
                "{strange} DCs made at run time name nodes that the cluster file has no more: left out"
            );
        }
        lock.kept_by(keep.pid());
        lock.record(Record { incarnation: plan.incarnation.0, generations: plan.generation_reserved })?;
        let proxies = plan.proxies.iter().map(|p| p.index).collect();
        let site = Site { cluster: &cluster, node: &node, place: &place, starter: options.starter, stop };
        match site.driver(plan, lock, Arc::new(keep), text) {
            Ok(driver) => Ok(House { driver, place, proxies }),
            Err(why) => {
                place.remove(&[], before.is_some());
                Err(why)
            }
        }
    }

    /// The successor of a daemon that was killed.
    fn inherit(
        options: RunOptions,
        stop: Arc<EventFd>,
        keep: Keep,
        heritage: Heritage,
    ) -> Result<House, NodeError> {
        let cluster = Cluster::parse(&heritage.past.head.cluster_text, &options.cluster_file)?;
        let node = find(&cluster, &options.node)?;
        let place = NodePlace::of(&cluster, &node, options.runtime_dir.as_deref());
        let site = Site { cluster: &cluster, node: &node, place: &place, starter: options.starter, stop };
        let driver = site.successor(heritage, Arc::new(keep))?;
        let proxies = driver.core.plan().proxies.iter().map(|p| p.index).collect();
        Ok(House { driver, place, proxies })
    }

    pub fn live(&mut self) -> Result<(), NodeError> {
        let plan = self.driver.core.plan();
        tracing::info!(
            node = plan.node.0,
            name = plan.node_name,
            cluster = plan.cluster,
            incarnation = self.driver.core.incarnation().0,
            "daemon runs at {}",
            self.place.node.display()
        );
        self.driver.run()
    }

    /// Nothing is left behind, but a record for a life that might begin before the clock has passed this one's numbers.
    /// In a process of its own it waits for the clock a moment first; in a thread `LIVES` is the record.
    pub fn leave(mut self, own_process: bool) {
        self.driver.hands.couriers.kill_all();
        let incarnation = self.driver.core.incarnation().0;
        let generations = self.driver.core.generation_max().saturating_add(1);
        let used = incarnation.saturating_add(1).max(generations);
        LIVES.fetch_max(used, Ordering::Relaxed);
        let waited = Instant::now();
        while own_process && seconds_since_2020() < used && waited.elapsed() < CLOCK_WAIT {
            std::thread::sleep(Duration::from_millis(20));
        }
        let record_stays = own_process && seconds_since_2020() < used;
        if record_stays && let Err(why) = self.driver.hands.lock.record(Record { incarnation, generations }) {
            tracing::error!("{why}");
        }
        self.place.remove(&self.proxies, record_stays);
        tracing::info!("daemon has ended");
    }
}

/// The numbers of this life: beyond those of all lives that are written down, or were led in this process.
fn begin(cluster: &Cluster, node: &ClusterNode, before: Option<Record>) -> Plan {
    // Relaxed: nothing but the number itself is shared.
    let clock = seconds_since_2020().max(LIVES.load(Ordering::Relaxed));
    let incarnation = before.map_or(clock, |b| clock.max(b.incarnation.saturating_add(1)));
    let generation_first = before.map_or(clock, |b| clock.max(b.generations));
    cluster.plan(node, Incarnation(incarnation), generation_first, own_uid())
}

/// Where and with what a daemon works, be it the first or a successor.
struct Site<'a> {
    cluster: &'a Cluster,
    node: &'a ClusterNode,
    place: &'a NodePlace,
    starter: Box<dyn StartProxy>,
    stop: Arc<EventFd>,
}

/// What a first daemon makes and a successor finds.
struct Estate {
    epoll: Epoll,
    keep: Arc<Keep>,
    vault: Vault,
    members: Members,
    admin: AdminServer,
    lock: Lock,
}

impl Site<'_> {
    fn driver(self, plan: Plan, lock: Lock, keep: Arc<Keep>, text: String) -> Result<Driver, NodeError> {
        let epoll = Epoll::new().map_err(NodeError::system("an epoll"))?;
        let mut vault = Vault::new(Arc::clone(&keep));
        for dc in plan.dcs.keys() {
            vault.add_dc(*dc)?;
        }
        for proxy in &plan.proxies {
            // In every DC: nodes behind the proxy may join it.
            for dc in plan.dcs.keys() {
                vault.add_bell(proxy.index, *dc)?;
            }
        }
        let listener = listen(&self.place.member_socket(), 0o666)?;
        let members = Members::new(listener, &epoll, Arc::clone(&keep))?;
        let admin = AdminServer::new(&self.place.admin_socket(), &epoll)?;
        set_mode(&self.place.admin_socket(), 0o600)?;
        keep.put(Key::Admin, admin.listener());
        keep.put(Key::Lock, &lock);
        let core = Core::new(Duration::ZERO, plan);
        let journal = Journal::begin(Head::new(text), &core, &keep);
        keep.say(Word::Up, &[]);
        self.assemble(core, journal, Estate { epoll, keep, vault, members, admin, lock })
    }

    fn successor(self, heritage: Heritage, keep: Arc<Keep>) -> Result<Driver, NodeError> {
        let Heritage { past, mut held } = heritage;
        let epoll = Epoll::new().map_err(NodeError::system("an epoll"))?;
        let mut take = |key| held.remove(&key).ok_or_else(|| NodeError::system("what was kept")(Errno::BADF));
        let (lock, admin, journal) = (take(Key::Lock)?, take(Key::Admin)?, take(Key::Journal)?);
        let mut lock = Lock::adopt(lock, self.place);
        lock.kept_by(keep.pid());
        let admin = AdminServer::over(admin.into(), &self.place.admin_socket(), &epoll)?;
        let journal = Journal::go_on(past.head, past.len, journal);
        let Adopted { core, uncertain } = heritage::retell(past.core, past.inputs);
        let holdings = core.holdings();
        let mut vault = Vault::new(Arc::clone(&keep));
        let lost = vault.regain(&mut held, &holdings)?;
        let Regained { members, gone, fresh } =
            Members::regain(&mut held, &holdings, &epoll, Arc::clone(&keep))?;
        // Nobody's any more.
        for key in held.keys() {
            keep.give_up(*key);
        }
        let mut driver = self.assemble(core, journal, Estate { epoll, keep, vault, members, admin, lock })?;
        let core = &driver.core;
        let record = Record { incarnation: core.incarnation().0, generations: core.generations_reserved() };
        driver.hands.lock.record(record)?;
        driver.succeed(uncertain, lost, gone, fresh);
        driver.hands.keep.say(Word::Up, &[]);
        Ok(driver)
    }

    fn assemble(self, core: Core, journal: Journal, estate: Estate) -> Result<Driver, NodeError> {
        let Estate { epoll, keep, vault, members, admin, lock } = estate;
        let token = Token { kind: Watched::Stop, id: 0 }.to_word();
        epoll.add(&*self.stop, token, Readiness::READ).map_err(NodeError::system("to watch an eventfd"))?;
        let plan = core.plan();
        let options = proxy_options(self.cluster, self.node, plan);
        let indices: Vec<u16> = plan.proxies.iter().map(|p| p.index).collect();
        let hands = Hands {
            epoll,
            keep,
            vault,
            members,
            couriers: Couriers::default(),
            admin,
            processes: BTreeMap::new(),
            starter: self.starter,
            options,
            stop: self.stop,
            lock,
            place: self.place.clone(),
            wires: self.cluster.proxies.iter().map(|p| p.nodes.clone()).collect(),
            throttle: super::logs::Throttle::default(),
        };
        Ok(Driver { core, journal, hands, logs: Logs::new(self.place.logs(&indices)) })
    }
}

fn find(cluster: &Cluster, asked: &str) -> Result<ClusterNode, NodeError> {
    cluster.node(asked).cloned().ok_or_else(|| NodeError::NoSuchNode {
        asked: asked.to_owned(),
        known: cluster.nodes.iter().map(|n| format!("{} ({})", n.id, n.name)).collect::<Vec<_>>().join(", "),
    })
}

fn proxy_options(cluster: &Cluster, node: &ClusterNode, plan: &Plan) -> BTreeMap<u16, ProxyOptions> {
    let addresses: BTreeMap<NodeId, _> = cluster.nodes.iter().map(|n| (n.id, n.address)).collect();
    let options = |proxy: &crate::core::ProxyPlan| ProxyOptions {
        node: node.id,
        incarnation: plan.incarnation,
        proxy_index: proxy.index,
        name: node.name,
        listen: node.address,
        peers: proxy.nodes.iter().filter_map(|n| Some((*n, *addresses.get(n)?))).collect(),
        key_file: cluster.key_file.clone(),
        link_fd: LINK_FD,
        token: [0; 2],
        link_down_after_ms: u64::try_from(cluster.link_down_after.as_millis()).unwrap_or(LINK_DOWN_AFTER_MS),
        compression: proxy.compression,
    };
    plan.proxies.iter().map(|proxy| (proxy.index, options(proxy))).collect()
}

fn listen(path: &Path, mode: u32) -> Result<std::os::fd::OwnedFd, NodeError> {
    let socket = fdpass::listen(path, BACKLOG).map_err(|why| match why {
        PassError::Refused(errno) => {
            NodeError::File { what: "listen at", path: path.to_owned(), source: errno.into() }
        }
        why => {
            NodeError::File { what: "listen at", path: path.to_owned(), source: std::io::Error::other(why) }
        }
    })?;
    set_mode(path, mode)?;
    Ok(socket)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), NodeError> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(NodeError::file("set the mode of", path))
}

fn seconds_since_2020() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // A clock before 2020 counts as its first second: never zero, which is no generation.
    u32::try_from(now.saturating_sub(YEAR_2020_S)).unwrap_or(u32::MAX).max(1)
}
