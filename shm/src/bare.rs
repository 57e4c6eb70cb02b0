//! The bare limits the product is measured against: what two processes of this machine can do with nothing in
//! between.
//!
//! [`shm_copy`]: a ring in shared memory, the payload copied in and copied out; [`shm_desc`]: only its first
//! word; [`tcp`]: blocking sockets. One side runs here, on a thread of its own; the other is this same
//! program started anew, so every caller's `main` begins with [`serve_from_env`]. Key types: [`PingPong`],
//! [`Samples`]. Neighbours: `os::process`, `map`.

mod clock;
mod ring;
mod stream;

use std::ffi::OsString;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;

use crate::map::MapError;
use crate::os::process::{Start, StartError, inherited, pin_to, spawn};
pub use clock::Clock;

/// Names the echo's part in its environment; whoever sees it serves and exits.
const ENV: &str = "DVK_BARE";
/// Where the echo finds its descriptor.
const FD: i32 = 3;
/// The request that ends the echo.
const STOP: u64 = u64::MAX;

/// One measurement: a request there, the same bytes back, one at a time.
#[derive(Clone, Debug)]
pub struct PingPong {
    /// Bytes of a message, at least 8.
    pub size_bytes: usize,
    /// Round trips at most; a tenth more go before and do not count.
    pub rounds: usize,
    /// No sample is taken after so long.
    pub time_max: Duration,
    /// Where this side runs, and where the echo; `None`: where the system likes.
    pub cpu_here: Option<usize>,
    pub cpu_there: Option<usize>,
    /// Where the echo listens, for [`tcp`]; port zero takes a free one.
    pub address: SocketAddr,
    /// Arguments with which this program, started anew, reaches [`serve_from_env`]. None are needed when
    /// `main` begins with it.
    pub echo_args: Vec<OsString>,
}

impl Default for PingPong {
    fn default() -> PingPong {
        PingPong {
            size_bytes: 64,
            rounds: 200_000,
            time_max: Duration::from_secs(1),
            cpu_here: Some(0),
            cpu_there: Some(1),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            echo_args: Vec::new(),
        }
    }
}

/// Why there are no figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BareError {
    /// The shared ring could not be made. Free memory, then retry.
    Map(MapError),
    /// The echo could not be started. Fix what the reason names.
    Start(StartError),
    /// A socket failed, or a thread could not be bound to its processor. Fix address or processor.
    Refused(Errno),
    /// The echo ended early: does `main` begin with `serve_from_env`? See what it printed.
    EchoEnded,
}

impl fmt::Display for BareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BareError::Map(why) => write!(f, "ring: {why}"),
            BareError::Start(why) => write!(f, "echo: {why}"),
            BareError::Refused(errno) => write!(f, "refused: {errno}"),
            BareError::EchoEnded => f.write_str("the echo process ended early"),
        }
    }
}

impl std::error::Error for BareError {}

/// Round-trip times, ascending.
#[derive(Clone, Debug)]
pub struct Samples {
    sorted_ns: Vec<f64>,
}

impl Samples {
    /// Nanoseconds, ascending; never empty.
    pub fn sorted_ns(&self) -> &[f64] {
        &self.sorted_ns
    }

    /// The time that `fraction` of the samples did not exceed.
    pub fn quantile(&self, fraction: f64) -> f64 {
        let last = (self.sorted_ns.len() - 1) as f64;
        self.sorted_ns[(last * fraction.clamp(0.0, 1.0)) as usize]
    }

    pub fn p50(&self) -> f64 {
        self.quantile(0.5)
    }

    pub fn p99(&self) -> f64 {
        self.quantile(0.99)
    }

    pub fn p999(&self) -> f64 {
        self.quantile(0.999)
    }

    pub fn mean(&self) -> f64 {
        self.sorted_ns.iter().sum::<f64>() / self.sorted_ns.len() as f64
    }
}

/// Round trips through two rings in shared memory, each message copied in and copied out, both sides
/// spinning.
pub fn shm_copy(cfg: &PingPong) -> Result<Samples, BareError> {
    on_a_thread(|| ring::measure(cfg, true))
}

/// The same rings, but only a message's first word moves: what a descriptor costs, whatever it describes.
pub fn shm_desc(cfg: &PingPong) -> Result<Samples, BareError> {
    on_a_thread(|| ring::measure(cfg, false))
}

/// Round trips over one TCP connection, blocking reads, no delay for small segments.
pub fn tcp(cfg: &PingPong) -> Result<Samples, BareError> {
    on_a_thread(|| stream::measure(cfg))
}

/// If this process was started to be an echo, serves until told to stop and exits; otherwise returns at once.
/// Call it first in `main`.
pub fn serve_from_env() {
    let Some(part) = std::env::var_os(ENV) else { return };
    let served = part.to_str().ok_or(BareError::EchoEnded).and_then(serve);
    if let Err(error) = served {
        eprintln!("bare echo: {error}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

/// Serves one part: its kind, the size of a message, and the processor ("-" for any).
fn serve(part: &str) -> Result<(), BareError> {
    let mut words = part.split(':');
    let (kind, size, cpu) = (words.next(), words.next(), words.next());
    let size_bytes = size.and_then(|s| s.parse().ok()).ok_or(BareError::EchoEnded)?;
    pin(cpu.and_then(|c| c.parse().ok()))?;
    let fd = inherited(FD).map_err(BareError::Start)?;
    match kind {
        Some("copy") => ring::serve(fd, size_bytes, true),
        Some("desc") => ring::serve(fd, size_bytes, false),
        Some("tcp") => stream::serve(&TcpListener::from(fd), size_bytes),
        _ => Err(BareError::EchoEnded),
    }
}

/// Starts the echo. It dies with the thread that calls this.
fn start_echo(cfg: &PingPong, kind: &str, fd: OwnedFd) -> Result<Echo, BareError> {
    let refused = |e: std::io::Error| BareError::Refused(Errno::from_io_error(&e).unwrap_or(Errno::NOENT));
    let cpu = cfg.cpu_there.map_or("-".to_owned(), |cpu| cpu.to_string());
    let mut command = Command::new(std::env::current_exe().map_err(refused)?);
    command.args(&cfg.echo_args).env(ENV, format!("{kind}:{}:{cpu}", cfg.size_bytes));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // A group of its own: Ctrl-C is ours to notice, between two measurements.
    let start = Start { fds: vec![(fd, FD)], own_group: true, dies_with_us: true };
    spawn(command, start).map(Echo).map_err(BareError::Start)
}

/// The other process; ended with us whatever happens.
struct Echo(Child);

impl Echo {
    fn ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    fn wait(mut self) -> Result<(), BareError> {
        match self.0.wait() {
            Ok(status) if status.success() => Ok(()),
            _ => Err(BareError::EchoEnded),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // Both fail when it has been waited for, which is the good case.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A transport, as both sides see it.
trait Wire {
    /// Sends the message in `buffer`.
    fn send(&mut self, buffer: &mut [u8]) -> Result<(), BareError>;
    /// Receives one into `buffer`.
    fn recv(&mut self, buffer: &mut [u8]) -> Result<(), BareError>;
}

/// Round trips until enough; the first tenth warms up. Then tells the echo to stop.
fn ask<W: Wire>(cfg: &PingPong, wire: &mut W, buffer: &mut [u8]) -> Result<Samples, BareError> {
    pin(cfg.cpu_here)?;
    let clock = Clock::calibrate();
    let limit = clock.ticks(cfg.time_max);
    let mut samples = vec![0u32; cfg.rounds.max(1)];
    let began = clock.now();
    for round in 0..cfg.rounds as u64 / 10 {
        trip(wire, buffer, round)?;
        if clock.now() - began > limit / 5 {
            break;
        }
    }
    let (mut taken, began) = (0, clock.now());
    let mut before = began;
    while taken < samples.len() {
        trip(wire, buffer, taken as u64)?;
        let now = clock.now();
        samples[taken] = (now - before).min(u64::from(u32::MAX)) as u32;
        taken += 1;
        before = now;
        if now - began > limit {
            break;
        }
    }
    set_number(buffer, STOP);
    wire.send(buffer)?;
    samples.truncate(taken);
    samples.sort_unstable();
    Ok(Samples { sorted_ns: samples.into_iter().map(|ticks| clock.ns(u64::from(ticks))).collect() })
}

#[inline]
fn trip<W: Wire>(wire: &mut W, buffer: &mut [u8], number: u64) -> Result<(), BareError> {
    set_number(buffer, number);
    wire.send(buffer)?;
    wire.recv(buffer)
}

/// Sends everything back until told to stop.
fn echo<W: Wire>(wire: &mut W, buffer: &mut [u8]) -> Result<(), BareError> {
    loop {
        wire.recv(buffer)?;
        if number(buffer) == STOP {
            return Ok(());
        }
        wire.send(buffer)?;
    }
}

fn set_number(buffer: &mut [u8], number: u64) {
    buffer[..8].copy_from_slice(&number.to_ne_bytes());
}

fn number(buffer: &[u8]) -> u64 {
    u64::from_ne_bytes(buffer[..8].try_into().expect("eight bytes"))
}

fn pin(cpu: Option<usize>) -> Result<(), BareError> {
    cpu.map_or(Ok(()), pin_to).map_err(BareError::Refused)
}

/// Runs where being bound to a processor, and being somebody's parent, ends with the measurement.
fn on_a_thread(measure: impl FnOnce() -> Result<Samples, BareError> + Send) -> Result<Samples, BareError> {
    std::thread::scope(|s| s.spawn(measure).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A private buffer of `size_bytes` that begins `offset_bytes` behind a page's start: large copies are slow
/// when source and target lie close modulo a page, so ring payloads and buffers are kept half a page apart.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    size_bytes: usize,
}

impl Buffer {
    fn new(size_bytes: usize, offset_bytes: usize) -> Buffer {
        let bytes = vec![7u8; size_bytes + 2 * 4096];
        let start = bytes.as_ptr().align_offset(4096) + offset_bytes;
        Buffer { bytes, start, size_bytes }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.size_bytes]
    }
}
