//! A link that is cut: for a while, and for longer than a node may be away.
//!
//! Key type: [`Relay`]. It stands where node 2 is said to be in node 1's cluster file; the lower node connects to the
//! higher, so all that the two say passes here.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::cluster::{Cluster, Plan, SOON};
use super::ground::{Company, Ground, addresses};
use super::system::{LONG, eventually};

const GLANCE: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// Nothing passes, in neither direction; nobody is told.
    Cut,
    Over,
}

/// Carries bytes between two nodes, as long as it is told to.
struct Relay {
    address: SocketAddr,
    way: Arc<Mutex<Way>>,
    thread: Option<JoinHandle<()>>,
}

fn now(way: &Mutex<Way>) -> Way {
    *way.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Relay {
    fn to(target: SocketAddr) -> Relay {
        let address = addresses(1)[0];
        let listener = TcpListener::bind(address).expect("an address that was free");
        listener.set_nonblocking(true).expect("a socket of ours");
        let way = Arc::new(Mutex::new(Way::Open));
        let ours = Arc::clone(&way);
        let thread = std::thread::spawn(move || accept(&listener, target, &ours));
        Relay { address, way, thread: Some(thread) }
    }

    fn set(&self, to: Way) {
        *self.way.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.set(Way::Over);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the relay failed");
        }
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, way: &Arc<Mutex<Way>>) {
    let mut carriers: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let is = now(way);
        if is == Way::Over {
            break;
        }
        match listener.accept() {
            // Behind a cut nobody is there: what connects gets no further.
            Ok((near, _)) if is == Way::Open => {
                let Ok(far) = TcpStream::connect(target) else { continue };
                let both = [(&near, &far), (&far, &near)];
                carriers.extend(both.map(|(from, to)| {
                    let (from, to) =
                        (from.try_clone().expect("a descriptor"), to.try_clone().expect("a descriptor"));
                    let way = Arc::clone(way);
                    std::thread::spawn(move || carry(&from, &to, &way))
                }));
            }
            Ok(_) => {}
            Err(_) => std::thread::sleep(GLANCE),
        }
    }
    for carrier in carriers {
        carrier.join().expect("a carrier does not fail");
    }
}

fn carry(mut from: &TcpStream, mut to: &TcpStream, way: &Mutex<Way>) {
    let mut buffer = vec![0; 64 << 10];
    from.set_read_timeout(Some(GLANCE)).expect("a socket of ours");
    loop {
        match now(way) {
            Way::Over => break,
            Way::Open => {}
            Way::Cut => {
                std::thread::sleep(GLANCE);
                continue;
            }
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                // What was on its way when the cut came waits here with the rest.
                while now(way) == Way::Cut {
                    std::thread::sleep(GLANCE);
                }
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    // One that is closed already is as good.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Two nodes and the relay between them.
fn apart(node_dead_after_ms: u64) -> Option<(Relay, Cluster)> {
    let ground = Ground::take(Company::Others)?;
    let plan = Plan::nodes(2).dead_after_ms(node_dead_after_ms);
    let real = addresses(2);
    let relay = Relay::to(real[1]);
    let of_one = ground.write("one.toml", &plan.text(&[real[0], relay.address]));
    let of_two = ground.write("two.toml", &plan.text(&real));
    let cluster = Cluster::up_each(ground, vec![of_one, of_two]);
    cluster.proxies_up();
    Some((relay, cluster))
}

#[track_caller]
fn both_see(cluster: &Cluster, link: &str, within: Duration) {
    eventually(&format!("both nodes see the link {link}"), within, || {
        (1..=2).all(|node| cluster.other(node).link == link)
    });
}

#[test]
fn a_link_that_is_cut_for_a_while_is_shown_and_loses_nothing() {
    let Some((relay, cluster)) = apart(20_000) else { return };
    let mut into = cluster.start(2, 0, "stream-in 3 20000");
    let mut out = cluster.start(1, 0, &format!("stream-out {} 3 20000", cluster.slot(2, 0).0));
    let ends = (out.endpoint(), into.endpoint());
    out.order("go");
    into.hears("lap 0", LONG);
    out.order("go");
    std::thread::sleep(Duration::from_millis(5));
    relay.set(Way::Cut);
    both_see(&cluster, "cut", SOON);
    std::thread::sleep(Duration::from_secs(3));
    assert!(!cluster.other(1).dead && !cluster.other(2).dead, "neither is declared dead");

    relay.set(Way::Open);

    both_see(&cluster, "up", LONG);
    into.hears("lap 1", LONG);
    out.order("go");
    into.hears("lap 2", LONG);
    into.hears("whole", LONG);
    for lap in 0..3 {
        out.hears(&format!("lap {lap}"), LONG);
    }
    out.hears("home", LONG);
    assert_eq!(ends.0.slot, cluster.slot(1, 0));
}

#[test]
fn a_node_that_is_away_too_long_is_dead_and_comes_back_as_another() {
    let Some((relay, cluster)) = apart(1_000) else { return };
    let server = cluster.start(2, 0, "mute 1");
    server.endpoint();
    let slot = cluster.slot(2, 0).0;
    let [mut taken, waiting] = [1, 2].map(|number| {
        let mut program = cluster.start(1, number, &format!("call {slot}"));
        program.endpoint();
        program.hears("calls", LONG);
        if number == 1 {
            server.says("took", LONG);
        }
        program
    });
    let mut listening = cluster.start(1, 3, &format!("wait-for {slot}"));
    listening.endpoint();
    listening.hears("waits", LONG);
    std::thread::sleep(Duration::from_millis(300));
    let before = [1, 2].map(|node| cluster.status(node).incarnation);

    relay.set(Way::Cut);

    taken.hears("DeadSource", SOON);
    let fate = waiting.report(SOON);
    assert!(fate == "DeliveryUnknown" || fate == "DeadSource", "it had left, and nobody knows more: {fate}");
    listening.hears("DeadSource", SOON);
    eventually("each node has declared the other dead", SOON, || {
        cluster.other(1).dead && cluster.other(2).dead
    });

    relay.set(Way::Open);

    eventually("a node that was declared dead has another incarnation", LONG, || {
        let after = [1, 2].map(|node| cluster.status(node).incarnation);
        after != before && (1..=2).all(|node| !cluster.other(node).dead && cluster.other(node).link == "up")
    });
    drop(server);
    let bind = |node, number, role: &str| {
        let program = cluster.start(node, number, role);
        program.endpoint();
        program
    };
    let _servers = [bind(2, 5, "echo"), bind(1, 5, "echo")];
    for (node, server) in [(1, cluster.slot(2, 5).0), (2, cluster.slot(1, 5).0)] {
        let mut asker = bind(node, 6, &format!("ask-some {server} 50"));
        asker.hears("asked 50", LONG);
        asker.ends_well();
    }
}
