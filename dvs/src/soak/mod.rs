//! `dvs soak`: all calls at random between programs on three nodes, while processes are killed and stopped at random, and a
//! running balance of what was accepted and what was delivered.
//!
//! Key type: `Soak`. Neighbours: `workers::soak` (the programs), `balance` (their books compared), `faults`.

mod balance;
mod faults;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use node::config::ClusterNode;
use serde::Serialize;

use crate::admin::Daemon;
use crate::cli::SoakArgs;
use crate::cluster::Place;
use crate::failure::{Exit, failure};
use crate::output::{Output, count, span};
use crate::workers::chance::Chance;
use crate::workers::crew::{Post, Worker};
use crate::workers::soak::Book;
use crate::workers::stage::{Plan, Stage};
use crate::{interrupt, up};
use balance::{Balance, Books};
use faults::Fault;

const NODES: u16 = 3;
const DC: &str = "soak";
const UP_WITHIN: Duration = Duration::from_secs(60);
/// A program answers between two calls, of which the slowest waits for a daemon that was stopped.
const TOLD_WITHIN: Duration = Duration::from_secs(60);
/// From the last call to the last delivery.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
/// Between two lines.
const SAID_EVERY: Duration = Duration::from_secs(5);
/// Between two faults.
const CALM_MS_MAX: u64 = 1_500;
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// One of the programs, and where it is.
struct Program {
    node: u16,
    place: u16,
    endpoint: String,
    worker: Worker,
}

struct Soak<'a> {
    stage: &'a Stage,
    chance: Chance,
    programs: Vec<Program>,
    lives: u64,
    faults: BTreeMap<Fault, u64>,
    /// What those did that have been killed, as far as they had told.
    past: Done,
    latest: Books,
}

/// Sums over programs.
#[derive(Clone, Default, Debug, Serialize)]
struct Done {
    accepted: u64,
    delivered: u64,
    done: BTreeMap<String, u64>,
    refused: BTreeMap<String, u64>,
}

impl Done {
    fn add(&mut self, book: &Book) {
        self.accepted += book.sent.values().map(|sent| sent.accepted).sum::<u64>();
        self.delivered += book.came.values().map(|came| came.taken).sum::<u64>();
        for (sums, counts) in [(&mut self.done, &book.done), (&mut self.refused, &book.refused)] {
            for (name, count) in counts {
                *sums.entry(name.clone()).or_insert(0) += count;
            }
        }
    }
}

/// What a soak answers.
#[derive(Serialize)]
struct Answer {
    ok: bool,
    seed: u64,
    seconds: f64,
    programs: usize,
    /// Between those who lived to the end.
    balance: Balance,
    lost: u64,
    /// Of all, those who were killed too, as far as they had told.
    #[serde(flatten)]
    all: Done,
    faults: BTreeMap<Fault, u64>,
    strange: Vec<String>,
}

pub fn run(args: &SoakArgs, output: &Output) -> Result<ExitCode> {
    interrupt::note_signals()?;
    let seed = args.seed.unwrap_or_else(|| RandomState::new().hash_one(std::process::id()) >> 16);
    let mut stage =
        Stage::set(Plan { name: DC, nodes: NODES, address: None, second_dc: None, proxy: "tcp" })?;
    stage.free_ports()?;
    let nodes: Vec<&ClusterNode> = stage.place.cluster.nodes.iter().collect();
    let launch = up::Launch { with_us: true, ..up::Launch::new(UP_WITHIN) };
    let mut started = up::start(&stage.place, &nodes, &launch)?;
    eprintln!("seed {seed}: `dvs soak --seed {seed}` makes the same choices again");
    let mut soak = Soak {
        stage: &stage,
        chance: Chance(seed),
        programs: Vec::new(),
        lives: 0,
        faults: BTreeMap::new(),
        past: Done::default(),
        latest: Books::new(),
    };
    let answer = soak.play(args, seed);
    drop(soak);
    started.stop();
    drop(started);
    let answer = match answer {
        Ok(answer) => answer,
        Err(why) if args.keep => {
            let kept = stage.keep();
            return Err(why.context(format!("the logs are in {}", kept.display())));
        }
        Err(why) => return Err(why),
    };
    output.answer(&answer, |_| text(&answer))?;
    if args.keep {
        eprintln!("the logs are in {}", stage.keep().display());
    }
    Ok(ExitCode::from(if answer.ok { 0 } else { Exit::Failed as u8 }))
}

impl Soak<'_> {
    fn play(&mut self, args: &SoakArgs, seed: u64) -> Result<Answer> {
        let began = Instant::now();
        for node in 1..=NODES {
            for place in 0..args.programs {
                self.start(node, place)?;
            }
        }
        self.introduce_all()?;
        let until = began + Duration::from_secs_f64(args.minutes * 60.0);
        let mut said = Instant::now();
        while Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            let calm = Duration::from_millis(self.chance.below(CALM_MS_MAX)).min(left);
            interrupt::sleep(calm)?;
            if !args.no_faults && Instant::now() < until {
                self.hurt()?;
            }
            if said.elapsed() >= SAID_EVERY {
                said = Instant::now();
                let balance = self.balance()?;
                eprintln!("{}", self.line(began, &balance));
                ensure_sound(&balance, &self.latest)?;
            }
        }
        let balance = self.settle()?;
        eprintln!("{}", self.line(began, &balance));
        let mut all = self.past.clone();
        self.latest.values().for_each(|book| all.add(book));
        let strange: Vec<String> = self
            .latest
            .iter()
            .flat_map(|(who, book)| book.strange.iter().map(move |s| format!("{who}: {s}")))
            .collect();
        Ok(Answer {
            ok: balance.is_settled() && strange.is_empty(),
            seed,
            seconds: began.elapsed().as_secs_f64(),
            programs: self.programs.len(),
            lost: balance.under_way,
            balance,
            all,
            faults: self.faults.clone(),
            strange,
        })
    }

    fn start(&mut self, node: u16, place: u16) -> Result<()> {
        self.lives += 1;
        let name = format!("soaker-{node}-{place}-{}", self.lives);
        let post = Post { place: &self.stage.place, dc: DC, node, name: &name, logs: self.stage.folder() };
        let role = ["soak".to_owned(), "--seed".to_owned(), self.chance.next().to_string()];
        let mut worker = Worker::start(&post, &role)?;
        let endpoint = worker.report::<String>(BACK_WITHIN)?;
        self.programs.push(Program { node, place, endpoint, worker });
        Ok(())
    }

    /// Tells each who there is.
    fn introduce_all(&mut self) -> Result<()> {
        let all: Vec<&str> = self.programs.iter().map(|p| p.endpoint.as_str()).collect();
        let order = format!("peers {}", all.join(" "));
        self.programs.iter_mut().try_for_each(|program| program.worker.order(&order))
    }

    fn hurt(&mut self) -> Result<()> {
        let fault = Fault::ALL[self.chance.below(Fault::ALL.len() as u64) as usize];
        let node = 1 + self.chance.below(u64::from(NODES)) as u16;
        let at = self.chance.below(self.programs.len() as u64) as usize;
        let pid = match fault {
            Fault::ProxyKilled | Fault::ProxyStopped => self.proxy(node)?,
            Fault::DaemonKilled | Fault::DaemonStopped => self.daemon(node)?.recorded_pid(),
            Fault::ProgramKilled | Fault::ProgramStopped => Some(self.programs[at].worker.pid()),
        };
        let Some(pid) = pid else { return Ok(()) };
        if !fault.strike(pid, &mut self.chance)? {
            return Ok(());
        }
        *self.faults.entry(fault).or_insert(0) += 1;
        match fault {
            Fault::ProgramKilled => {
                let ended = self.programs.swap_remove(at);
                if let Some(book) = self.latest.remove(&ended.endpoint) {
                    self.past.add(&book);
                }
                let (node, place) = (ended.node, ended.place);
                drop(ended);
                self.start(node, place)?;
                self.introduce_all()
            }
            Fault::DaemonKilled => self.is_back(node),
            _ => Ok(()),
        }
    }

    fn daemon(&self, node: u16) -> Result<Daemon<'_>> {
        let place: &Place = &self.stage.place;
        Ok(Daemon { place, node: place.node(&node.to_string())? })
    }

    fn proxy(&self, node: u16) -> Result<Option<u32>> {
        let proxies = self.daemon(node)?.proxies()?;
        Ok(proxies.into_iter().find(|proxy| proxy.state == "up").and_then(|proxy| proxy.pid))
    }

    /// Waits for a killed daemon's successor.
    fn is_back(&self, node: u16) -> Result<()> {
        let until = Instant::now() + BACK_WITHIN;
        while self.daemon(node)?.status().is_err() {
            if Instant::now() >= until {
                let what = format!("the daemon of node {node} was killed and has no successor");
                return Err(failure(Exit::Failed, what, "this is a fault of ours: --keep keeps its log"));
            }
            interrupt::sleep(Duration::from_millis(20))?;
        }
        Ok(())
    }

    /// The books of all.
    fn books(&mut self) -> Result<Books> {
        for program in &mut self.programs {
            program.worker.order("tell")?;
        }
        let told = |program: &mut Program| {
            Ok((program.endpoint.clone(), program.worker.report::<Book>(TOLD_WITHIN)?))
        };
        self.programs.iter_mut().map(told).collect()
    }

    fn balance(&mut self) -> Result<Balance> {
        let came = self.books()?;
        self.latest = self.books()?;
        Ok(Balance::of(&came, &self.latest))
    }

    /// Nobody begins anything any more: everything accepted must come.
    fn settle(&mut self) -> Result<Balance> {
        for program in &mut self.programs {
            program.worker.order("rest")?;
        }
        let until = Instant::now() + SETTLED_WITHIN;
        loop {
            self.latest = self.books()?;
            let balance = Balance::of_numbers(&self.latest);
            if balance.is_settled() || Instant::now() >= until {
                return Ok(balance);
            }
            interrupt::sleep(Duration::from_millis(200))?;
        }
    }

    fn line(&self, began: Instant, balance: &Balance) -> String {
        let mut all = self.past.clone();
        self.latest.values().for_each(|book| all.add(book));
        let faults: u64 = self.faults.values().sum();
        format!(
            "{:>8}  {} accepted of all; of the living: {} accepted, {} delivered, {} under way, {} unsure, {} doubled, \
             {} damaged; {faults} faults",
            span(began.elapsed().as_millis() as u64),
            count(all.accepted),
            count(balance.accepted),
            count(balance.delivered),
            count(balance.under_way),
            count(balance.unsure),
            balance.doubled + balance.out_of_turn,
            balance.damaged,
        )
    }
}

fn ensure_sound(balance: &Balance, books: &Books) -> Result<()> {
    let strange: Vec<&String> = books.values().flat_map(|book| &book.strange).collect();
    ensure!(
        balance.is_sound() && strange.is_empty(),
        failure(
            Exit::Failed,
            format!("the balance is broken: {balance:?} {strange:?}"),
            "this is a fault of ours: please report it with the seed; --keep keeps the logs"
        )
    );
    Ok(())
}

fn text(answer: &Answer) -> String {
    let balance = &answer.balance;
    let list = |counts: &BTreeMap<String, u64>| {
        let items: Vec<String> = counts.iter().map(|(name, n)| format!("{} {name}", count(*n))).collect();
        items.join(", ")
    };
    let faults: Vec<String> =
        answer.faults.iter().map(|(fault, n)| format!("{n} {}", fault.words())).collect();
    format!(
        "{} messages accepted and {} delivered in {:.0} s by {} programs and those that were killed.\n\
         Between those that lived to the end: {} accepted, {} delivered; {} lost, {} doubled, {} out of turn, {} damaged; of \
         {} nobody is sure; {} loans not home.\nWent well: {}.\nRefused: {}.\nFaults: {}.\n{}",
        count(answer.all.accepted),
        count(answer.all.delivered),
        answer.seconds,
        answer.programs,
        count(balance.accepted),
        count(balance.delivered),
        answer.lost,
        balance.doubled,
        balance.out_of_turn,
        balance.damaged,
        balance.unsure,
        balance.loans,
        list(&answer.all.done),
        list(&answer.all.refused),
        if faults.is_empty() { "none".to_owned() } else { faults.join(", ") },
        [&answer.strange[..], &balance.named[..]].concat().join("\n")
    )
}
