//! What was measured: one JSON object, or one table with what was shown.
//!
//! Key type: [`Report`]. A figure that was not measured is null, and `not_run` says why.

use serde_json::{Map, Value, json};

use crate::output::{Output, Table, bytes, count, nanoseconds};
use crate::workers::carry::Arrived;
use crate::workers::spread::Latency;
use crate::workers::stream::Tally;

/// Figures as they come in; what is `None` has not been measured.
#[derive(Default)]
pub struct Report {
    pub nodes: usize,
    pub messages: u64,
    pub local: Option<Latency>,
    pub local_block: Option<Latency>,
    pub remote: Option<Latency>,
    pub bare_shm: Option<Latency>,
    pub bare_tcp: Option<Latency>,
    pub loan_64: Option<Latency>,
    pub loan_1m: Option<Latency>,
    pub post_local_per_s: Option<u64>,
    pub post_remote_per_s: Option<u64>,
    pub file: Option<FileTrip>,
    pub stream: Option<StreamTrip>,
    /// Steps that could not be run here: what, and why.
    pub not_run: Vec<String>,
    pub seconds: f64,
}

pub struct FileTrip {
    pub path: String,
    pub arrived: Arrived,
    pub digest_ok: bool,
    pub seconds: f64,
}

pub struct StreamTrip {
    pub tally: Tally,
    pub proxy_kills: u64,
    /// The longest of: from the kill until its nodes' link was up again.
    pub proxy_back_ms_max: u64,
    pub seconds: f64,
}

impl StreamTrip {
    pub fn is_whole(&self, messages: u64) -> bool {
        let t = &self.tally;
        t.ended && t.received == messages && t.lost + t.duplicated + t.reordered + t.corrupted == 0
    }
}

impl FileTrip {
    fn megabytes_per_s(&self) -> f64 {
        self.arrived.bytes as f64 / 1e6 / self.seconds.max(1e-9)
    }
}

impl Report {
    /// All that was to be shown was shown.
    pub fn is_ok(&self) -> bool {
        let stream = self.stream.as_ref().is_some_and(|s| s.is_whole(self.messages));
        stream && self.file.as_ref().is_some_and(|f| f.digest_ok)
    }

    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        out.insert("ok".into(), json!(self.is_ok()));
        out.insert("nodes".into(), json!(self.nodes));
        out.insert("messages".into(), json!(self.messages));
        let tally = self.stream.as_ref().map(|s| s.tally);
        let mut put = |key: &str, value: Value| out.insert(key.to_owned(), value);
        put("lost", json!(tally.map(|t| t.lost)));
        put("duplicated", json!(tally.map(|t| t.duplicated)));
        put("reordered", json!(tally.map(|t| t.reordered)));
        put("corrupted", json!(tally.map(|t| t.corrupted)));
        put("proxy_kills", json!(self.stream.as_ref().map_or(0, |s| s.proxy_kills)));
        put("proxy_back_ms_max", json!(self.stream.as_ref().map(|s| s.proxy_back_ms_max)));
        put("stream_seconds", json!(self.stream.as_ref().map(|s| round(s.seconds))));
        put("file", json!(self.file.as_ref().map(|f| f.path.as_str())));
        put("file_bytes", json!(self.file.as_ref().map(|f| f.arrived.bytes)));
        put("file_megabytes_per_s", json!(self.file.as_ref().map(|f| round(f.megabytes_per_s()))));
        put("digest", json!(self.file.as_ref().map(|f| f.arrived.digest.as_str())));
        put("digest_ok", json!(self.file.as_ref().is_some_and(|f| f.digest_ok)));
        put("post_local_per_s", json!(self.post_local_per_s));
        put("post_remote_per_s", json!(self.post_remote_per_s));
        let latencies = [
            ("local", self.local),
            ("local_block", self.local_block),
            ("remote", self.remote),
            ("loan_64", self.loan_64),
            ("loan_1m", self.loan_1m),
            ("bare_shm", self.bare_shm),
            ("bare_tcp", self.bare_tcp),
        ];
        for (name, latency) in latencies {
            put(&format!("{name}_rtt_ns_p50"), json!(latency.map(|l| l.p50_ns)));
            put(&format!("{name}_rtt_ns_p99"), json!(latency.map(|l| l.p99_ns)));
            put(&format!("{name}_rtt_ns_p999"), json!(latency.map(|l| l.p999_ns)));
            put(&format!("{name}_rtt_per_s"), json!(latency.map(|l| l.per_second)));
        }
        put("not_run", json!(self.not_run));
        put("seconds", json!(round(self.seconds)));
        Value::Object(out)
    }

    pub fn to_text(&self, output: &Output) -> String {
        let mut table =
            Table::new(&["ROUND TRIP", ">p50", ">p99", ">p99.9", ">PER SECOND", "AGAINST THE BARE LIMIT"]);
        let rows = [
            ("one node, 64 B, spinning", self.local, self.bare_shm),
            ("  bare shared memory", self.bare_shm, None),
            ("one node, 64 B, sleeping", self.local_block, None),
            ("one node, loan of 64 B", self.loan_64, None),
            ("one node, loan of 1 MiB", self.loan_1m, self.loan_64),
            ("two nodes, 64 B, sleeping", self.remote, self.bare_tcp),
            ("  bare TCP, blocking", self.bare_tcp, None),
        ];
        for (what, latency, limit) in rows {
            let Some(l) = latency else { continue };
            let against = match (limit, what.contains("1 MiB")) {
                (Some(limit), true) => format!("{:.2} x the loan of 64 B", ratio(l, limit)),
                (Some(limit), false) => format!("{:.2} x", ratio(l, limit)),
                (None, _) => String::new(),
            };
            let times = [l.p50_ns, l.p99_ns, l.p999_ns].map(nanoseconds);
            let [p50, p99, p999] = times;
            table.row(vec![what.to_owned(), p50, p99, p999, count(l.per_second), against]);
        }
        let mut text = table.text(output) + "\n";
        for (what, rate) in
            [("on one node", self.post_local_per_s), ("to another node", self.post_remote_per_s)]
        {
            if let Some(rate) = rate {
                text += &format!("\nposted {what}: {} messages of 64 B a second", count(rate));
            }
        }
        text += &self.trips_text();
        for what in &self.not_run {
            text += &format!("\nnot run: {what}");
        }
        text + &format!("\n{:.1} s in all", self.seconds)
    }

    fn trips_text(&self) -> String {
        let mut text = String::new();
        if let Some(f) = &self.file {
            let verdict = if f.digest_ok { "the same digest" } else { "ANOTHER DIGEST" };
            let size = bytes(f.arrived.bytes);
            text += &format!(
                "\nfile: {size} over nodes 1, 2, 3 in loans, {verdict} there, {:.0} MB/s",
                f.megabytes_per_s()
            );
        }
        if let Some(s) = &self.stream {
            let t = &s.tally;
            text += &format!(
                "\nstream: {} messages to another node while proxies were killed {} times: {} lost, \
                 {} duplicated, {} reordered, {} corrupted; a link was back after {} ms at most",
                count(self.messages),
                s.proxy_kills,
                t.lost,
                t.duplicated,
                t.reordered,
                t.corrupted,
                s.proxy_back_ms_max,
            );
        }
        text
    }
}

fn ratio(one: Latency, other: Latency) -> f64 {
    one.p50_ns as f64 / (other.p50_ns as f64).max(1.0)
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_null_and_nothing_is_ok_without_proof() {
        let json = Report { messages: 10, ..Report::default() }.to_json();
        assert_eq!(json["ok"], json!(false));
        assert_eq!(json["local_rtt_ns_p50"], Value::Null);
        assert_eq!(json["lost"], Value::Null);
    }

    #[test]
    fn one_message_short_is_not_whole() {
        let tally = Tally { received: 9, ended: true, ..Tally::default() };
        let trip = StreamTrip { tally, proxy_kills: 2, proxy_back_ms_max: 1, seconds: 1.0 };
        assert!(trip.is_whole(9) && !trip.is_whole(10));
    }
}
