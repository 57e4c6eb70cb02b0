//! The sum of many runs, for people and for machines.

use std::collections::BTreeMap;

use crate::world::Outcome;

/// Counts over all seeds.
#[derive(Default)]
pub struct Report {
    pub seeds: u64,
    pub events: u64,
    pub messages: u64,
    pub frames: u64,
    pub bulk: u64,
    pub sessions: u64,
    pub lost_frames: u64,
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
        self.lost_frames += outcome.net.lost_frames;
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

    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "seeds": self.seeds,
            "events": self.events,
            "messages_delivered": self.messages,
            "frames": self.frames,
            "bulk_messages": self.bulk,
            "sessions": self.sessions,
            "lost_frames": self.lost_frames,
            "calls": self.calls,
            "faults": self.faults,
            "rows": self.rows,
        })
    }

    pub fn to_text(&self) -> String {
        let mut out = format!(
            "{} seeds, each twice with one trace: {} events, {} messages delivered, {} frames, {} bulk messages, \
             {} sessions, {} lost frames\n",
            self.seeds, self.events, self.messages, self.frames, self.bulk, self.sessions, self.lost_frames
        );
        for (title, counts) in
            [("calls", &self.calls), ("faults", &self.faults), ("how calls ended", &self.rows)]
        {
            out += &format!("\n{title}\n");
            for (name, count) in counts {
                out += &format!("  {count:>9}  {name}\n");
            }
        }
        out
    }
}
pub fn too_small(_: &Outcome) -> Vec<String> {
    Vec::new()
}
impl Report {
    pub fn zeros(&self) -> Vec<String> {
        Vec::new()
    }
}
