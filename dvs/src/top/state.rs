//! What `dvs top` knows and how answers and keys change it: a core that is told the time. Key type: [`Top`].
//!
//! Rates are differences of what proxies have counted since their start. A daemon hears their totals four times a
//! second, so a rate is taken over two seconds at least, where there is so much past. Neighbours: `rows` makes tables
//! of it, `draw` a screen.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use node::core::{EndpointView, ProxyView, Status};
use serde::Serialize;

use super::rows;

/// Over how long a rate is taken, unless the interval is longer.
const WINDOW: Duration = Duration::from_secs(2);
/// So many past answers are kept of a proxy; with intervals that are shorter than a fifth of a second less than the
/// window.
const PAST_MAX: usize = 16;

/// What a node said when it was asked.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: Status,
    pub endpoints: Vec<EndpointView>,
}

/// Messages and bytes a second of one proxy, or of all of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Rates {
    pub sent_per_s: u64,
    pub received_per_s: u64,
    pub bytes_sent_per_s: u64,
    pub bytes_received_per_s: u64,
}

impl Rates {
    pub fn and(self, other: Rates) -> Rates {
        Rates {
            sent_per_s: self.sent_per_s.saturating_add(other.sent_per_s),
            received_per_s: self.received_per_s.saturating_add(other.received_per_s),
            bytes_sent_per_s: self.bytes_sent_per_s.saturating_add(other.bytes_sent_per_s),
            bytes_received_per_s: self.bytes_received_per_s.saturating_add(other.bytes_received_per_s),
        }
    }
}

/// A proxy's totals at one time, of one process.
#[derive(Clone, Copy, Debug)]
struct Counted {
    at: Duration,
    pid: Option<u32>,
    totals: [u64; 4],
}

impl Counted {
    fn of(at: Duration, p: &ProxyView) -> Counted {
        let totals = [p.slots_sent, p.slots_received, p.bytes_sent, p.bytes_received];
        Counted { at, pid: p.pid, totals }
    }

    /// None: another process counts now, or no time has passed.
    fn rates_since(&self, before: &Counted) -> Option<Rates> {
        let seconds = self.at.checked_sub(before.at).filter(|d| !d.is_zero())?.as_secs_f64();
        if self.pid != before.pid || self.pid.is_none() {
            return None;
        }
        let mut rates = [0; 4];
        for (rate, (now, then)) in rates.iter_mut().zip(self.totals.iter().zip(before.totals)) {
            *rate = (now.checked_sub(then)? as f64 / seconds).round() as u64;
        }
        let [sent_per_s, received_per_s, bytes_sent_per_s, bytes_received_per_s] = rates;
        Some(Rates { sent_per_s, received_per_s, bytes_sent_per_s, bytes_received_per_s })
    }
}

/// A node that is asked again and again.
#[derive(Debug)]
pub struct Watched {
    pub id: u16,
    pub name: String,
    /// The last answer; an error if the last question got none.
    pub last: Option<Result<Answer, String>>,
    past: BTreeMap<u16, VecDeque<Counted>>,
}

impl Watched {
    pub fn answer(&self) -> Option<&Answer> {
        self.last.as_ref()?.as_ref().ok()
    }

    pub fn rates(&self, proxy: u16) -> Option<Rates> {
        let past = self.past.get(&proxy)?;
        past.back()?.rates_since(past.front()?)
    }

    fn hear(&mut self, at: Duration, said: Result<Answer, String>, window: Duration) {
        match &said {
            Ok(answer) => {
                self.past.retain(|index, _| answer.status.proxies.iter().any(|p| p.index == *index));
                for proxy in &answer.status.proxies {
                    let counted = Counted::of(at, proxy);
                    let past = self.past.entry(proxy.index).or_default();
                    if past.back().is_some_and(|last| counted.rates_since(last).is_none()) {
                        past.clear();
                    }
                    past.push_back(counted);
                    // The oldest is the last one that is as old as the window, or older.
                    while past.len() > PAST_MAX || past.get(1).is_some_and(|c| c.at + window <= at) {
                        past.pop_front();
                    }
                }
            }
            Err(_) => self.past.clear(),
        }
        self.last = Some(said);
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pane {
    Nodes,
    Links,
    Dcs,
    Proxies,
    Endpoints,
}

pub const PANES: [Pane; 5] = [Pane::Nodes, Pane::Links, Pane::Dcs, Pane::Proxies, Pane::Endpoints];

/// How one pane is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Look {
    /// By which column; as the daemons list them without one.
    pub sort: Option<usize>,
    /// The other way round.
    pub turned: bool,
    /// The first row that is shown.
    pub first: usize,
}

/// What a key asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    Quit,
    /// Out of the help, or out of all.
    Escape,
    Next,
    Previous,
    Up,
    Down,
    Sort,
    Turn,
    Pause,
    Help,
}

#[derive(Debug)]
pub struct Top {
    pub cluster: String,
    pub interval: Duration,
    pub nodes: Vec<Watched>,
    pub pane: Pane,
    pub looks: [Look; PANES.len()],
    pub paused: bool,
    pub help: bool,
}

impl Top {
    pub fn new(cluster: &str, nodes: &[(u16, String)], interval: Duration) -> Top {
        let watched = |(id, name): &(u16, String)| Watched {
            id: *id,
            name: name.clone(),
            last: None,
            past: BTreeMap::new(),
        };
        Top {
            cluster: cluster.to_owned(),
            interval,
            nodes: nodes.iter().map(watched).collect(),
            pane: Pane::Nodes,
            looks: [Look::default(); PANES.len()],
            paused: false,
            help: false,
        }
    }

    /// A node's answer, or why there is none. While paused nothing changes.
    pub fn hear(&mut self, node: usize, at: Duration, said: Result<Answer, String>) {
        let window = WINDOW.max(self.interval);
        if let Some(node) = self.nodes.get_mut(node).filter(|_| !self.paused) {
            node.hear(at, said, window);
        }
    }

    /// All proxies of all nodes that answer.
    pub fn total(&self) -> Rates {
        let of = |n: &Watched| {
            n.past.keys().filter_map(|proxy| n.rates(*proxy)).fold(Rates::default(), Rates::and)
        };
        self.nodes.iter().map(of).fold(Rates::default(), Rates::and)
    }

    pub fn look(&mut self) -> &mut Look {
        &mut self.looks[self.pane as usize]
    }

    /// False: it is to end.
    pub fn press(&mut self, key: Key) -> bool {
        if key == Key::Quit || (key == Key::Escape && !self.help) {
            return false;
        }
        if std::mem::take(&mut self.help) {
            return true;
        }
        let at = self.pane as usize;
        match key {
            Key::Quit | Key::Escape => {}
            Key::Next => self.pane = PANES[(at + 1) % PANES.len()],
            Key::Previous => self.pane = PANES[(at + PANES.len() - 1) % PANES.len()],
            Key::Up => self.look().first = self.look().first.saturating_sub(1),
            // `draw` takes back what leads beyond the end.
            Key::Down => self.look().first += 1,
            Key::Sort => {
                let columns = rows::headings(self.pane).len();
                let look = self.look();
                look.sort = look.sort.map_or(Some(0), |column| Some(column + 1)).filter(|c| *c < columns);
                look.turned = false;
            }
            Key::Turn => self.look().turned = !self.look().turned,
            Key::Pause => self.paused = !self.paused,
            Key::Help => self.help = true,
        }
        true
    }
}
