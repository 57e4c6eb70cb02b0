//! What happened, line by line: a hash of all of it, which two runs of one seed must share, and the last lines, one
//! column for each node.

use std::collections::VecDeque;
use std::fmt::Write as _;

use abi::NodeId;
use fabric::Time;

use crate::dice::mix;

/// Lines that are kept.
const KEPT: usize = 40;
const COLUMN: usize = 46;

/// The trace of one run.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    lines: VecDeque<(Time, NodeId, String)>,
    spare: String,
    /// Print each line as it comes.
    loud: bool,
}

impl Trace {
    pub fn new(loud: bool) -> Trace {
        Trace { loud, ..Trace::default() }
    }

    pub fn note(&mut self, at: Time, node: NodeId, what: std::fmt::Arguments<'_>) {
        let mut text = std::mem::take(&mut self.spare);
        text.clear();
        // A string takes whatever is written.
        let _ = text.write_fmt(what);
        let mut hash = mix(self.hash ^ at.as_nanos() as u64 ^ (node.0 as u64) << 48);
        for bytes in text.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            hash = mix(hash ^ u64::from_le_bytes(word));
        }
        self.hash = hash;
        if self.loud {
            println!("{:>11.6} n{} {text}", at.as_secs_f64(), node.0);
        }
        if self.lines.len() == KEPT {
            self.spare = self.lines.pop_front().map(|(_, _, old)| old).unwrap_or_default();
        }
        self.lines.push_back((at, node, text));
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The last lines, one column for each node.
    pub fn columns(&self, nodes: u16) -> String {
        let mut out = format!("{:>11}", "seconds");
        (1..=nodes).for_each(|n| out += &format!("  {:<COLUMN$}", format!("node {n}")));
        for (at, node, text) in &self.lines {
            out += &format!("\n{:>11.6}", at.as_secs_f64());
            for n in 1..=nodes {
                let cell: String =
                    if n == node.0 { text.chars().take(COLUMN).collect() } else { String::new() };
                out += &format!("  {cell:<COLUMN$}");
            }
            while out.ends_with(' ') {
                out.pop();
            }
        }
        out
    }
}
