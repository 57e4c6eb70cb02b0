//! What `send`, `notify` and `receive` have in common: whom they mean, how they find him in time, what is shown of
//! what came.
//!
//! Key types: [`Whom`], [`Shown`]. Neighbour: `seat`, where they are bound themselves.

use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;
use std::time::{Duration, Instant};

use abi::{Endpoint, Name, Slot};
use anyhow::Result;
use dvk::{Binding, Delivery, Timeout, Unavailable, View, What};
use serde::Serialize;

use crate::failure::{Exit, failure};
use crate::interrupt;
use crate::output::bytes;

/// How often the daemon is asked for a name that nobody has yet.
const NAME_GLANCE: Duration = Duration::from_millis(20);

/// An endpoint as people name it.
#[derive(Clone, Debug)]
pub enum Whom {
    Slot(Slot),
    Name(Name),
}

impl FromStr for Whom {
    type Err = String;

    /// What is a number is a slot.
    fn from_str(text: &str) -> Result<Whom, String> {
        let last = abi::limits::SLOTS_PER_DC - 1;
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            let slot = text.parse().ok().filter(|slot| *slot <= last);
            return slot.map(|s| Whom::Slot(Slot(s))).ok_or_else(|| format!("slots are 0 to {last}"));
        }
        Name::new(text).map(Whom::Name).map_err(|why| format!("no slot, which are 0 to {last}, and {why}"))
    }
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Whom::Slot(slot) => write!(f, "slot {}", slot.0),
            Whom::Name(name) => write!(f, "{name}"),
        }
    }
}

/// When the time is over; `None`: never.
#[derive(Clone, Copy)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// A span that leads beyond the clock is for ever.
    pub fn after(time: Option<Duration>) -> Deadline {
        Deadline(time.and_then(|time| Instant::now().checked_add(time)))
    }

    pub fn left(self) -> Timeout {
        self.0.map_or(Timeout::Forever, |at| at.saturating_duration_since(Instant::now()).into())
    }

    pub fn is_over(self) -> bool {
        self.0.is_some_and(|at| Instant::now() >= at)
    }

    /// As `left`, but not longer than an interruption may go unnoticed.
    pub fn glance(self) -> Timeout {
        match self.left() {
            Timeout::Zero => Timeout::Zero,
            Timeout::Forever => Timeout::After(interrupt::GLANCE),
            Timeout::After(left) => Timeout::After(left.min(interrupt::GLANCE)),
        }
    }
}

/// The endpoint that is meant, as soon as it is bound.
pub fn find(me: &mut Binding, whom: &Whom, dc: &str, deadline: Deadline) -> Result<Endpoint> {
    loop {
        interrupt::check()?;
        let found = match whom {
            Whom::Slot(slot) => me.wait_bind(*slot, deadline.glance()).ok(),
            Whom::Name(name) => me.lookup_name(name.as_str()).map_err(|why| daemon_lost(&why))?,
        };
        match found {
            Some(found) if found == me.whoami() => {
                let what = format!("{whom} is this command's own endpoint, {found}");
                return Err(failure(Exit::Config, what, "name another endpoint"));
            }
            Some(found) => return Ok(found),
            None if deadline.is_over() => {
                let what = format!("nobody is bound as {whom} in DC {dc}");
                let next = "`dvs ps` shows who is bound; give it longer with --timeout";
                return Err(failure(Exit::TimedOut, what, next));
            }
            None if matches!(whom, Whom::Name(_)) => std::thread::sleep(NAME_GLANCE),
            None => {}
        }
    }
}

/// The daemon that bound us could not be asked.
pub fn daemon_lost(why: &Unavailable) -> anyhow::Error {
    let exit = match why {
        Unavailable::NoDaemon(_) | Unavailable::Broken => Exit::NotRunning,
        Unavailable::Slow => Exit::TimedOut,
        Unavailable::Refused(_) | Unavailable::NoMemory => Exit::Refused,
    };
    failure(exit, why.to_string(), "`dvs status` shows how the nodes do")
}

/// A delivery as it is shown: one line, or one object.
#[derive(Serialize)]
pub struct Shown {
    source: String,
    slot: u16,
    /// `message`, `request`, `notification`, `wake-up`, `warning` or `reply`.
    what: &'static str,
    kind: u32,
    bits: Option<u32>,
    /// All bytes, of which these came inline and in a loan.
    bytes: usize,
    inline_bytes: usize,
    loan_bytes: usize,
    /// The bytes, if they are UTF-8; else they are in `hex`.
    text: Option<String>,
    hex: Option<String>,
}

impl Shown {
    pub fn of(delivery: &Delivery) -> Shown {
        let (what, bits) = match delivery.what() {
            What::Message => ("message", None),
            What::Request { .. } => ("request", None),
            What::Notification { bits } => ("notification", Some(bits)),
            What::Woken => ("wake-up", None),
            What::Warned => ("warning", None),
            What::Reply => ("reply", None),
        };
        let mut all = delivery.inline().to_vec();
        let inline_bytes = all.len();
        all.extend(delivery.view().map(View::to_vec).unwrap_or_default());
        let (bytes, source) = (all.len(), delivery.source());
        let (text, hex) = match String::from_utf8(all) {
            Ok(text) => (Some(text), None),
            Err(other) => (None, Some(hex(other.as_bytes()))),
        };
        Shown {
            source: source.to_string(),
            slot: source.slot.0,
            what,
            kind: delivery.kind(),
            bits,
            bytes,
            inline_bytes,
            loan_bytes: bytes - inline_bytes,
            text,
            hex,
        }
    }

    /// What it carries, as it is.
    pub fn payload(&self) -> &str {
        self.text.as_deref().or(self.hex.as_deref()).unwrap_or("")
    }

    pub fn line(&self) -> String {
        let (source, what) = (&self.source, self.what);
        if let Some(bits) = self.bits {
            return format!("{source}  {what}  bits {bits:#x}");
        }
        let form = if self.hex.is_some() { "hex " } else { "" };
        let size = bytes(self.bytes as u64);
        format!("{source}  {what}  kind {}  {size}  {form}{}", self.kind, one_line(self.payload()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Control characters escaped: a line stays one, and no sender steers the terminal.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_slot_and_anything_else_a_name() {
        assert!(matches!("4095".parse(), Ok(Whom::Slot(Slot(4095)))));
        assert!("4096".parse::<Whom>().is_err());
        assert!(matches!("7b".parse(), Ok(Whom::Name(name)) if name.as_str() == "7b"));
        assert!("K V".parse::<Whom>().is_err() && "".parse::<Whom>().is_err());
    }

    #[test]
    fn a_line_stays_one_line_and_steers_no_terminal() {
        assert_eq!(one_line("a\nb\x1b[2J ä"), "a\\nb\\u{1b}[2J ä");
        assert_eq!(hex(&[0, 0xff, 0x1a]), "00ff1a");
    }
}
