//! The sum of many runs, for people and for machines, and what it must not lack: every call in every run, and over all runs
//! every kind of fault, every row of the table of deaths (IPC, "Death and loss") and every way in which a call ends.

use std::collections::BTreeMap;

use crate::world::{ENDPOINTS_MIN, EVENTS_MIN, NODES_MIN, Outcome};

/// What every run calls.
pub const CALLS: &[&str] = &[
    "bind",
    "unbind",
    "wait_bind",
    "wait_unbind",
    "send",
    "post",
    "receive",
    "receive from one",
    "receive_request",
    "sendrec",
    "reply",
    "relay",
    "notify",
    "wake",
    "loan",
    "grant",
    "revoke",
    "copy",
];

/// Of calls, the kinds that some run makes.
const KINDS_OF_CALLS: &[&str] = &[
    "post, local",
    "post, remote",
    "send, local",
    "send, remote",
    "sendrec, local",
    "sendrec, remote",
    "notify, local",
    "notify, remote",
    "wake, local",
    "wake, remote",
    "copy, local",
    "copy, to or from another node",
    "copy, within another node",
    "copy, between two other nodes",
    "request dropped",
    "request that was passed on",
    "call followed",
];

const LOST: &str = "packet lost, and its session with it";
const RESENT: &str = "packet lost and sent again";
const DOUBLED: &str = "packet doubled";
const OVERTOOK: &str = "packet overtaken";

const FAULTS: &[&str] = &[
    "program killed",
    "program stopped for a while",
    "proxy killed",
    "proxy frozen",
    "proxy stopped for a while",
    "proxy stalled",
    "proxy restarted by order",
    "daemon killed",
    "node restarted",
    "node declared dead",
    "node fenced",
    "link cut",
    "link cut for long",
    "link cut one way",
    "session lost",
    LOST,
    RESENT,
    DOUBLED,
    OVERTOOK,
];

/// The rows of the table of deaths, each with how it shows. Nobody breaks the protocol here: that one is `shm`'s and
/// `fabric`'s to test.
const DEATHS: &[(&str, &[&str])] = &[
    (
        "a destination ends before it takes",
        &[
            "send: DeadDestination, local",
            "send: DeadDestination, remote",
            "sendrec: DeadDestination, local",
            "sendrec: DeadDestination, remote",
        ],
    ),
    ("a server ends after it took", &["sendrec: DeadSource, local", "sendrec: DeadSource, remote"]),
    ("whoever is waited for ends", &["receive: DeadSource, local", "receive: DeadSource, remote"]),
    (
        "a sender ends after it published",
        &["delivered from a dead sender, local", "delivered from a dead sender, remote"],
    ),
    ("a node is declared dead", &["send: DeliveryUnknown", "sendrec: DeliveryUnknown"]),
    ("two call each other", &["sendrec: Deadlock"]),
    ("a notifier ends", &["notifier ended with bits that nobody had seen"]),
    ("a granter ends", &["copy: DeadSource"]),
];

/// Other ends of calls that some run must have seen.
const ENDS: &[&str] = &[
    "send: taken",
    "send: TimedOut",
    "send: TimedOutTaken",
    "send: TimedOutUnknown",
    "send: WouldBlock",
    "sendrec: reply",
    "sendrec: reply of another server",
    "sendrec: Abandoned",
    "sendrec: TimedOut",
    "sendrec: TimedOutTaken",
    "sendrec: TimedOutUnknown",
    "sendrec: WouldBlock",
    "lane full",
    "room came",
    "reply to one that waits no more",
    "copy: done",
    "copy: NoGrant",
    "copy: TimedOut",
    "revoke: pages moved",
    "wait_bind: bound",
    "wait_unbind: ended",
];

/// Whether a call was made, of whatever kind.
pub fn has_called(calls: &BTreeMap<&'static str, u64>, call: &str) -> bool {
    let is_it =
        |made: &str| made == call || made.strip_prefix(call).is_some_and(|rest| rest.starts_with(','));
    calls.keys().any(|made| is_it(made))
}

/// What a run lacks.
pub fn too_small(outcome: &Outcome) -> Vec<String> {
    let sizes = [
        ("nodes", outcome.nodes, NODES_MIN),
        ("endpoints", outcome.endpoints, ENDPOINTS_MIN),
        ("events", outcome.events, EVENTS_MIN),
    ];
    let small = sizes.iter().filter(|(_, has, least)| has < least);
    let small = small.map(|(what, has, least)| format!("size: {has} {what} of at least {least}"));
    let calls = CALLS.iter().filter(|call| !has_called(&outcome.calls, call));
    small.chain(calls.map(|call| format!("size: nobody called {call}"))).collect()
}

/// Counts over all seeds.
#[derive(Default)]
pub struct Report {
    pub seeds: u64,
    pub events: u64,
    pub messages: u64,
    pub frames: u64,
    pub bulk: u64,
    pub sessions: u64,
    pub least_events: u64,
    pub least_nodes: u64,
    pub least_endpoints: u64,
    pub calls: BTreeMap<&'static str, u64>,
    pub rows: BTreeMap<&'static str, u64>,
    pub faults: BTreeMap<&'static str, u64>,
}

impl Report {
    pub fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.events += outcome.events;
        self.messages += outcome.messages;
        self.frames += outcome.net.frames;
        self.bulk += outcome.net.bulk;
        self.sessions += outcome.net.sessions;
        let least = |least: &mut u64, of: u64| *least = if self.seeds == 1 { of } else { (*least).min(of) };
        least(&mut self.least_events, outcome.events);
        least(&mut self.least_nodes, outcome.nodes);
        least(&mut self.least_endpoints, outcome.endpoints);
        let net = outcome.net;
        let wire =
            [(LOST, net.lost_frames), (RESENT, net.resent), (DOUBLED, net.doubled), (OVERTOOK, net.overtook)];
        for (name, count) in wire {
            *self.faults.entry(name).or_default() += count;
        }
        let sums = [
            (&mut self.calls, &outcome.calls),
            (&mut self.rows, &outcome.rows),
            (&mut self.faults, &outcome.faults),
        ];
        for (sum, counts) in sums {
            for (name, count) in counts {
                *sum.entry(name).or_default() += count;
            }
        }
    }

    /// How often each row of the table of deaths was reached.
    fn deaths(&self) -> BTreeMap<&'static str, u64> {
        let count = |ends: &[&str]| ends.iter().filter_map(|end| self.rows.get(end)).sum();
        DEATHS.iter().map(|(row, ends)| (*row, count(ends))).collect()
    }

    /// What none of many runs has reached, and some should have.
    pub fn zeros(&self) -> Vec<&'static str> {
        let is_zero =
            |counts: &BTreeMap<&'static str, u64>, name: &str| counts.get(name).is_none_or(|n| *n == 0);
        let ends = DEATHS.iter().flat_map(|(_, ends)| ends.iter()).chain(ENDS);
        let ends = ends.filter(|end| is_zero(&self.rows, end));
        let calls = KINDS_OF_CALLS.iter().filter(|call| is_zero(&self.calls, call));
        let faults = FAULTS.iter().filter(|fault| is_zero(&self.faults, fault));
        calls.chain(faults).chain(ends).copied().collect()
    }

    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "seeds": self.seeds,
            "events": self.events,
            "messages_delivered": self.messages,
            "frames": self.frames,
            "bulk_messages": self.bulk,
            "sessions": self.sessions,
            "least": {
                "nodes": self.least_nodes,
                "endpoints": self.least_endpoints,
                "events": self.least_events,
            },
            "calls": self.calls,
            "faults": self.faults,
            "deaths": self.deaths(),
            "ends": self.rows,
        })
    }

    pub fn to_text(&self) -> String {
        let mut out = format!(
            "{} seeds, each twice with one trace: {} events, {} messages delivered, {} frames, {} bulk messages, \
             {} sessions; \
             at least {} nodes, {} endpoints and {} events each\n",
            self.seeds,
            self.events,
            self.messages,
            self.frames,
            self.bulk,
            self.sessions,
            self.least_nodes,
            self.least_endpoints,
            self.least_events,
        );
        for (title, counts) in [
            ("calls", &self.calls),
            ("faults", &self.faults),
            ("rows of the table of deaths", &self.deaths()),
            ("how calls ended", &self.rows),
        ] {
            out += &format!("\n{title}\n");
            for (name, count) in counts {
                out += &format!("  {count:>9}  {name}\n");
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_of_any_kind_counts_and_its_namesake_does_not() {
        let calls = BTreeMap::from([("receive_request", 1), ("send, local", 1)]);
        assert!(has_called(&calls, "send") && has_called(&calls, "receive_request"));
        assert!(!has_called(&calls, "receive") && !has_called(&calls, "sendrec"));
    }

    #[test]
    fn what_nobody_reached_is_named() {
        let mut report = Report::default();
        let all = report.zeros();
        let of_deaths: usize = DEATHS.iter().map(|(_, ends)| ends.len()).sum();
        assert_eq!(all.len(), KINDS_OF_CALLS.len() + FAULTS.len() + ENDS.len() + of_deaths);
        report.rows.insert("sendrec: Deadlock", 1);
        assert!(all.contains(&"sendrec: Deadlock") && !report.zeros().contains(&"sendrec: Deadlock"));
        assert_eq!(report.deaths()["two call each other"], 1);
    }
}
