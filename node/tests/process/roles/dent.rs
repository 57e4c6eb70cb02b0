//! A relay in front of a node's own port: what the node says passes as it is, or with bytes changed, while it is told so.
//!
//! Key type: [`Dent`].

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::process::system::Chance;

const GLANCE: Duration = Duration::from_millis(20);

struct Told {
    target: Mutex<Option<SocketAddr>>,
    dents: AtomicBool,
    dented: AtomicU64,
    over: AtomicBool,
}

pub struct Dent {
    told: Arc<Told>,
}

impl Dent {
    /// Listens where the node is said to be.
    pub fn at(address: SocketAddr, seed: u64) -> Dent {
        let listener = TcpListener::bind(address).expect("the node's own address");
        let told = Arc::new(Told {
            target: Mutex::new(None),
            dents: AtomicBool::new(false),
            dented: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let ours = Arc::clone(&told);
        std::thread::spawn(move || accept(&listener, &ours, seed));
        Dent { told }
    }

    /// Where connections lead from now on.
    pub fn lead_to(&self, target: SocketAddr) {
        *self.told.target.lock().unwrap_or_else(PoisonError::into_inner) = Some(target);
    }

    pub fn set(&self, dents: bool) {
        // Relaxed: nothing else hangs on it.
        self.told.dents.store(dents, Ordering::Relaxed);
    }

    /// How many bytes have been changed.
    pub fn dented(&self) -> u64 {
        // Relaxed: a count.
        self.told.dented.load(Ordering::Relaxed)
    }
}

impl Drop for Dent {
    fn drop(&mut self) {
        // Relaxed: seen within a glance.
        self.told.over.store(true, Ordering::Relaxed);
    }
}

fn accept(listener: &TcpListener, told: &Arc<Told>, seed: u64) {
    for (n, near) in listener.incoming().enumerate() {
        // Relaxed: as above.
        if told.over.load(Ordering::Relaxed) {
            return;
        }
        let target = *told.target.lock().unwrap_or_else(PoisonError::into_inner);
        let (Ok(near), Some(target)) = (near, target) else { continue };
        let Ok(far) = TcpStream::connect(target) else { continue };
        for (from, to, dents) in [(&near, &far, false), (&far, &near, true)] {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
            // A message waits for no other.
            let _ = to.set_nodelay(true);
            let (told, chance) = (Arc::clone(told), Chance::new(seed ^ n as u64));
            std::thread::spawn(move || carry(from, to, dents.then_some(chance), &told));
        }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, mut chance: Option<Chance>, told: &Told) {
    let mut buffer = vec![0; 64 << 10];
    from.set_read_timeout(Some(GLANCE)).expect("a socket of ours");
    // Relaxed: as above.
    while !told.over.load(Ordering::Relaxed) {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                // Relaxed: as above.
                if let Some(chance) = chance.as_mut().filter(|_| told.dents.load(Ordering::Relaxed)) {
                    for _ in 0..chance.below(4) {
                        let at = chance.below(count as u64) as usize;
                        buffer[at] ^= 1 << chance.below(8);
                        // Relaxed: a count.
                        told.dented.fetch_add(1, Ordering::Relaxed);
                    }
                }
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            Err(why)
                if matches!(why.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
