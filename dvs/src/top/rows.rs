//! The tables of `dvs top`: what stands in each pane, in which order. Key type: [`Row`].

use std::cmp::Ordering;

use node::core::Status;

use super::state::{Look, Pane, Rates, Top, Watched};
use crate::output::{bytes, count, span};
use crate::talk::one_line;

/// What stands in a column of a row. Numbers are ordered as such, however they are shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cell {
    Text(String),
    Number(u64, String),
    Nothing,
}

impl Cell {
    /// What a daemon says steers no terminal.
    fn text(text: &str) -> Cell {
        Cell::Text(one_line(text))
    }

    fn number(number: impl Into<u64>) -> Cell {
        let number = number.into();
        Cell::Number(number, number.to_string())
    }

    fn shown(number: Option<u64>, how: fn(u64) -> String) -> Cell {
        number.map_or(Cell::Nothing, |number| Cell::Number(number, how(number)))
    }

    pub fn as_str(&self) -> &str {
        match self {
            Cell::Text(text) | Cell::Number(_, text) => text,
            Cell::Nothing => "-",
        }
    }

    /// Texts from A to Z, numbers from the largest, nothing at the end.
    fn before(&self, other: &Cell) -> Ordering {
        match (self, other) {
            (Cell::Text(a), Cell::Text(b)) => a.cmp(b),
            (Cell::Number(a, _), Cell::Number(b, _)) => b.cmp(a),
            (Cell::Text(_), _) | (_, Cell::Nothing) => Ordering::Less,
            (_, Cell::Text(_)) | (Cell::Nothing, _) => Ordering::Greater,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    pub cells: Vec<Cell>,
    /// Something is wrong with it.
    pub bad: bool,
}

pub fn title(pane: Pane) -> &'static str {
    match pane {
        Pane::Nodes => "Nodes",
        Pane::Links => "Links",
        Pane::Dcs => "DCs",
        Pane::Proxies => "Proxies",
        Pane::Endpoints => "Endpoints",
    }
}

/// One that begins with `>` has its column to the right. What matters most stands first: a narrow screen leaves out
/// the last.
pub fn headings(pane: Pane) -> &'static [&'static str] {
    match pane {
        Pane::Nodes => &[
            "NODE",
            "NAME",
            "STATE",
            ">OUT/s",
            ">IN/s",
            ">OUT B/s",
            ">IN B/s",
            ">MEMBERS",
            ">UP FOR",
            ">INCARNATION",
        ],
        Pane::Links => &["NODE", "TO", "STATE", ">FOR", ">PROXY", ">INCARNATION"],
        Pane::Dcs => &["DC", "NAME", "NODE", ">BOUND HERE", ">ELSEWHERE", ">SLOTS"],
        Pane::Proxies => &[
            "PROXY",
            "NODE",
            "STATE",
            ">OUT/s",
            ">IN/s",
            ">OUT B/s",
            ">IN B/s",
            ">PID",
            ">FOR",
            ">RESTARTS",
            ">PAIRS",
            ">TO",
        ],
        Pane::Endpoints => {
            &["ENDPOINT", "NAME", "DC", "NODE", "STATE", ">PID", ">PEERS", ">MEMORY", ">FOR", ">UID"]
        }
    }
}

/// The rows of a pane, in the order that was asked for.
pub fn rows(top: &Top, pane: Pane) -> Vec<Row> {
    let mut rows: Vec<Row> = match pane {
        Pane::Nodes => top.nodes.iter().map(node).collect(),
        Pane::Links => of_each(top, links),
        Pane::Dcs => of_each(top, dcs),
        Pane::Proxies => of_each(top, proxies),
        Pane::Endpoints => of_each(top, endpoints),
    };
    let Look { sort, turned, .. } = top.looks[pane as usize];
    if let Some(column) = sort {
        rows.sort_by(|a, b| a.cells[column].before(&b.cells[column]));
    }
    if turned {
        rows.reverse();
    }
    rows
}

fn of_each(top: &Top, of: fn(&Watched, &Status) -> Vec<Row>) -> Vec<Row> {
    let answering = top.nodes.iter().filter_map(|n| Some((n, &n.answer()?.status)));
    answering.flat_map(|(node, status)| of(node, status)).collect()
}

fn rates(rates: Option<Rates>) -> [Cell; 4] {
    [
        Cell::shown(rates.map(|r| r.sent_per_s), count),
        Cell::shown(rates.map(|r| r.received_per_s), count),
        Cell::shown(rates.map(|r| r.bytes_sent_per_s), bytes),
        Cell::shown(rates.map(|r| r.bytes_received_per_s), bytes),
    ]
}

fn node(node: &Watched) -> Row {
    let mut cells = vec![Cell::number(node.id), Cell::text(&node.name)];
    let Some(Ok(answer)) = &node.last else {
        let state = if node.last.is_some() { "not answering" } else { "asked" };
        cells.push(Cell::text(state));
        cells.resize(headings(Pane::Nodes).len(), Cell::Nothing);
        return Row { cells, bad: node.last.is_some() };
    };
    let status = &answer.status;
    let all = status.proxies.iter().filter_map(|p| node.rates(p.index)).reduce(Rates::and);
    cells.push(Cell::text("up"));
    cells.extend(rates(all));
    cells.push(Cell::number(status.connections as u64));
    cells.push(Cell::shown(Some(status.uptime_ms), span));
    cells.push(Cell::number(status.incarnation));
    Row { cells, bad: false }
}

fn links(node: &Watched, status: &Status) -> Vec<Row> {
    let row = |link: &node::core::NodeView| {
        let state = if link.dead { format!("{} (dead)", link.link) } else { link.link.clone() };
        let proxy = status.proxies.iter().find(|p| Some(p.index) == link.proxy);
        Row {
            bad: link.dead || link.link != "up",
            cells: vec![
                Cell::text(&node.name),
                Cell::text(&link.name),
                Cell::text(&state),
                Cell::shown(Some(link.since_ms), span),
                proxy.map_or(Cell::Nothing, |p| Cell::text(&p.name)),
                link.incarnation.map_or(Cell::Nothing, Cell::number),
            ],
        }
    };
    status.nodes.iter().map(row).collect()
}

fn dcs(node: &Watched, status: &Status) -> Vec<Row> {
    let row = |dc: &node::core::DcView| {
        let last = u32::from(dc.slot_first) + u32::from(dc.slot_count).saturating_sub(1);
        Row {
            bad: false,
            cells: vec![
                Cell::number(dc.dc),
                Cell::text(&dc.name),
                Cell::text(&node.name),
                Cell::number(dc.local as u64),
                Cell::number(dc.remote as u64),
                Cell::Text(format!("{}-{last}", dc.slot_first)),
            ],
        }
    };
    status.dcs.iter().map(row).collect()
}

fn proxies(node: &Watched, status: &Status) -> Vec<Row> {
    let row = |p: &node::core::ProxyView| {
        let mut cells = vec![Cell::text(&p.name), Cell::text(&node.name), Cell::text(&p.state)];
        cells.extend(rates(node.rates(p.index)));
        cells.extend([
            p.pid.map_or(Cell::Nothing, Cell::number),
            Cell::shown(Some(p.since_ms), span),
            Cell::number(p.restarts),
            Cell::number(p.pairs),
            Cell::Text(p.nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
        ]);
        Row { cells, bad: p.state != "up" }
    };
    status.proxies.iter().map(row).collect()
}

/// The node's own: what it knows elsewhere is shown by those that have it.
fn endpoints(node: &Watched, _: &Status) -> Vec<Row> {
    let row = |e: &node::core::EndpointView| Row {
        bad: e.state == "dead",
        cells: vec![
            Cell::text(&e.endpoint),
            if e.name.is_empty() { Cell::Nothing } else { Cell::text(&e.name) },
            Cell::text(&e.dc_name),
            Cell::text(&node.name),
            if e.private { Cell::Text(format!("{}, private", e.state)) } else { Cell::text(&e.state) },
            e.pid.map_or(Cell::Nothing, Cell::number),
            e.pairs.map_or(Cell::Nothing, |pairs| Cell::number(pairs as u64)),
            Cell::shown(e.segment_bytes, bytes),
            Cell::shown(e.since_ms, span),
            e.uid.map_or(Cell::Nothing, Cell::number),
        ],
    };
    let all = node.answer().into_iter().flat_map(|a| &a.endpoints);
    all.filter(|e| e.node == node.id).map(row).collect()
}
