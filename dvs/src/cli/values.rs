//! How values on the command line are read: spans, bits, slots.

use std::time::Duration;

const LINES_MAX: u32 = 100_000;

/// A span in seconds, with or without a fraction.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let time = text.parse().ok().and_then(|number: f64| Duration::try_from_secs_f64(number).ok());
    time.ok_or_else(|| "not a span: give seconds from 0 on, such as 2 or 0.5".to_owned())
}

/// How long something goes on.
pub fn minutes(text: &str) -> Result<f64, String> {
    let most = 7.0 * 24.0 * 60.0;
    let number = text.parse().ok().filter(|number: &f64| *number > 0.0 && *number <= most);
    number.ok_or_else(|| format!("give a number above 0 and up to {most}, such as 10 or 0.5"))
}

/// How often something is looked at.
pub fn interval(text: &str) -> Result<Duration, String> {
    let bounds = Duration::from_millis(100)..=Duration::from_secs(3600);
    let time = seconds(text)?;
    bounds.contains(&time).then_some(time).ok_or("give 0.1 to 3600 seconds".to_owned())
}

/// Notification bits, decimal, hexadecimal or binary.
pub fn bits(text: &str) -> Result<u32, String> {
    let read = match (text.strip_prefix("0x"), text.strip_prefix("0b")) {
        (Some(digits), _) => u32::from_str_radix(digits, 16),
        (_, Some(digits)) => u32::from_str_radix(digits, 2),
        _ => text.parse(),
    };
    match read {
        Ok(0) => Err("no bit is set: give a number other than 0".to_owned()),
        Ok(bits) => Ok(bits),
        Err(_) => Err("not 32 bits: give a number such as 5, 0x5 or 0b101".to_owned()),
    }
}

/// A slot of a DC.
pub fn slot(text: &str) -> Result<u16, String> {
    let last = abi::limits::SLOTS_PER_DC - 1;
    text.parse().ok().filter(|slot| *slot <= last).ok_or_else(|| format!("slots are 0 to {last}"))
}

pub fn at_least_one(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "give a number from 1 on".to_owned())
}

/// How many slots a node has in a DC.
pub fn slots(text: &str) -> Result<u16, String> {
    let most = abi::limits::SLOTS_PER_DC;
    let count = text.parse().ok().filter(|count| (1..=most).contains(count));
    count.ok_or_else(|| format!("give a number from 1 to {most}"))
}

pub fn uid(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "a user is a number, as `id -u NAME` prints it".to_owned())
}

/// Lines of a log.
pub fn lines(text: &str) -> Result<u32, String> {
    let count = text.parse().ok().filter(|count| *count <= LINES_MAX);
    count.ok_or_else(|| format!("give a number up to {LINES_MAX}"))
}

/// Kinds of proxies, as a cluster file names them.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyKind {
    /// Kernel TCP
    Tcp,
    /// RDMA, by the program proxy-rdma
    Rdma,
    /// RDMA where both ends can, TCP otherwise
    Auto,
}

impl ProxyKind {
    pub fn name(self) -> &'static str {
        match self {
            ProxyKind::Tcp => "tcp",
            ProxyKind::Rdma => "rdma",
            ProxyKind::Auto => "auto",
        }
    }
}
