//! What the tests share: fabrics on ports of the system's choice, a clock, and a relay that can break connections.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod raw;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use abi::{Incarnation, NodeId};
use fabric::{Completion, Fabric, Time};
use proxy_tcp::{ClusterKey, TcpConfig, TcpFabric};

pub fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Real time since the first call on this thread's clock was made.
pub fn clock() -> Box<dyn FnMut() -> Time> {
    let origin = Instant::now();
    Box::new(move || origin.elapsed())
}

pub fn key(byte: u8) -> Option<ClusterKey> {
    Some(ClusterKey::from_bytes([byte; 32]))
}

pub fn config(node: u16, listener: &TcpListener, peers: &[(u16, SocketAddr)]) -> TcpConfig {
    let peers = peers.iter().map(|(node, address)| (NodeId(*node), *address)).collect();
    let mut config = TcpConfig::new(NodeId(node), Incarnation(1), listener.local_addr().unwrap());
    (config.peers, config.key) = (peers, key(7));
    config
}

/// The fabrics of nodes 1 to `count`; `through` may lead a connection from the first to the second node elsewhere.
pub fn network(count: usize, through: impl Fn(SocketAddr) -> SocketAddr) -> Vec<TcpFabric> {
    configured_network(count, through, |_| {})
}

/// The same, each with `change` made to its configuration.
pub fn configured_network(
    count: usize,
    through: impl Fn(SocketAddr) -> SocketAddr,
    change: impl Fn(&mut TcpConfig),
) -> Vec<TcpFabric> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| listener()).collect();
    let addresses: Vec<SocketAddr> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
    let make = |(i, listener): (usize, TcpListener)| {
        let mut peers: Vec<_> = addresses.iter().enumerate().map(|(i, a)| (i as u16 + 1, *a)).collect();
        if i == 0 && count > 1 {
            peers[1].1 = through(peers[1].1);
        }
        peers.remove(i);
        let mut config = config(i as u16 + 1, &listener, &peers);
        change(&mut config);
        TcpFabric::with_listener(config, listener, Duration::ZERO).unwrap()
    };
    listeners.into_iter().enumerate().map(make).collect()
}

/// Polls all until `so`, and gives all completions of each.
pub fn poll_until(
    fabrics: &mut [&mut TcpFabric],
    now: &mut dyn FnMut() -> Time,
    mut so: impl FnMut(&[Vec<Completion>]) -> bool,
) -> Vec<Vec<Completion>> {
    let mut done: Vec<Vec<Completion>> = fabrics.iter().map(|_| Vec::new()).collect();
    let begin = now();
    while !so(&done) {
        assert!(now() < begin + Duration::from_secs(60), "does not come about: {done:?}");
        for (fabric, done) in fabrics.iter_mut().zip(&mut done) {
            done.reserve(32);
            fabric.poll(now(), done);
        }
    }
    done
}

pub fn is_up(done: &[Completion]) -> bool {
    done.iter().any(|c| matches!(c, Completion::Up { .. }))
}

pub fn is_lost(done: &[Completion]) -> bool {
    done.iter().any(|c| matches!(c, Completion::Lost { .. }))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    Hold,
    Kill,
    Stop,
}

/// Passes connections on to an address, until told otherwise.
pub struct Relay {
    pub address: SocketAddr,
    mode: Arc<Mutex<Mode>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Relay {
    pub fn to(target: SocketAddr) -> Relay {
        let listener = listener();
        let address = listener.local_addr().unwrap();
        let mode = Arc::new(Mutex::new(Mode::Pass));
        let told = Arc::clone(&mode);
        let thread = Some(std::thread::spawn(move || run(&listener, target, &told)));
        Relay { address, mode, thread }
    }

    /// Ends all connections there are.
    pub fn kill(&self) {
        *self.mode.lock().unwrap() = Mode::Kill;
        while *self.mode.lock().unwrap() == Mode::Kill {
            std::thread::yield_now();
        }
    }

    /// Passes no byte on from now on, and closes nothing.
    pub fn hold(&self) {
        *self.mode.lock().unwrap() = Mode::Hold;
    }

    pub fn pass(&self) {
        *self.mode.lock().unwrap() = Mode::Pass;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        *self.mode.lock().unwrap() = Mode::Stop;
        let _ = self.thread.take().unwrap().join();
    }
}

fn run(listener: &TcpListener, target: SocketAddr, mode: &Mutex<Mode>) {
    listener.set_nonblocking(true).unwrap();
    let mut ways: Vec<Way> = Vec::new();
    loop {
        let now = *mode.lock().unwrap();
        match now {
            Mode::Stop => return,
            Mode::Kill => {
                ways.clear();
                *mode.lock().unwrap() = Mode::Pass;
            }
            Mode::Hold => std::thread::sleep(Duration::from_millis(1)),
            Mode::Pass => {
                if let Ok((near, _)) = listener.accept()
                    && let Ok(far) = TcpStream::connect(target)
                {
                    let ends = [(&near, &far), (&far, &near)];
                    ways.extend(ends.map(|(a, b)| Way::new(a.try_clone().unwrap(), b.try_clone().unwrap())));
                }
                let busy = ways.iter_mut().filter_map(|way| way.step().then_some(())).count() > 0;
                ways.retain(|way| way.open);
                if !busy {
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
        }
    }
}

struct Way {
    from: TcpStream,
    to: TcpStream,
    buffer: Vec<u8>,
    open: bool,
}

impl Drop for Way {
    fn drop(&mut self) {
        let _ = self.to.shutdown(Shutdown::Both);
        let _ = self.from.shutdown(Shutdown::Both);
    }
}

impl Way {
    fn new(from: TcpStream, to: TcpStream) -> Way {
        [&from, &to].iter().for_each(|stream| {
            stream.set_nonblocking(true).unwrap();
            stream.set_nodelay(true).unwrap();
        });
        Way { from, to, buffer: Vec::new(), open: true }
    }

    fn step(&mut self) -> bool {
        let mut busy = false;
        if self.buffer.is_empty() {
            let mut bytes = [0; 65536];
            match self.from.read(&mut bytes) {
                Ok(0) => self.open = false,
                Ok(n) => self.buffer.extend_from_slice(&bytes[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.open = false,
            }
        }
        if !self.buffer.is_empty() {
            match self.to.write(&self.buffer) {
                Ok(n) => {
                    self.buffer.drain(..n);
                    busy = true;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.open = false,
            }
        }
        busy
    }
}
