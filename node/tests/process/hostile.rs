//! Garbage and floods at everything that listens: daemon and proxy go on, and serve others meanwhile.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use abi::Name;
use abi::member::{Request, VERSION};
use abi::wire::{Header, Kind};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use shm::os::fdpass;

use super::cluster::{Cluster, DC, Plan};
use super::system::{Chance, LONG};

const DURING: Duration = Duration::from_secs(2);
const CONNECTIONS: usize = 100;
const MEMBER_BYTES: usize = 128;
const BRIEFLY: Duration = Duration::from_millis(50);

/// Throws at a cluster of two while calls go on from node to node; all processes must be the same afterwards.
fn withstands(throw: impl FnOnce(&Cluster, &mut Chance)) {
    let Some(cluster) = Cluster::up(Plan::nodes(2)) else { return };
    let mut chance = Chance::of_now();
    let before = (cluster.ground.processes(), cluster.proxies_up());
    let servers = [cluster.start(2, 0, "echo"), cluster.start(1, 0, "echo")];
    let mut askers = [
        cluster.start(1, 1, &format!("ask {}", cluster.slot(2, 0).0)),
        cluster.start(1, 2, &format!("ask {}", cluster.slot(1, 0).0)),
    ];
    for program in servers.iter().chain(&askers) {
        program.endpoint();
    }

    throw(&cluster, &mut chance);

    for asker in &mut askers {
        asker.order("stop");
        let asked: u64 = asker.says("asked", LONG).parse().expect("a number");
        println!("{asked} calls meanwhile");
        assert!(asked >= 100, "only {asked} calls were answered meanwhile");
    }
    let mut late = cluster.start_anywhere(1, &format!("ask-some {} 20", cluster.slot(2, 0).0));
    late.endpoint();
    late.hears("asked 20", LONG);
    drop(late);
    assert_eq!(
        (cluster.ground.processes(), cluster.proxies_up()),
        before,
        "daemons and proxies are the same"
    );
    drop(askers);
    drop(servers);
    cluster.everybody_is_forgotten(LONG);
}

fn garbage(chance: &mut Chance, len: u64) -> Vec<u8> {
    (0..len).map(|_| chance.below(256) as u8).collect()
}

/// A member's datagram; false: the daemon has closed the connection.
fn tell(socket: &OwnedFd, bytes: &[u8]) -> bool {
    let sent = send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    matches!(sent, Ok(_) | Err(Errno::AGAIN | Errno::MSGSIZE | Errno::NOBUFS))
}

fn hello(path: &Path) -> OwnedFd {
    let socket = fdpass::connect(path).expect("the daemon listens");
    let words = Request::Hello { version: VERSION, dc: Name::new(DC).expect("a name") }.to_words();
    tell(&socket, &words.map(u64::to_le_bytes).concat());
    socket
}

#[test]
fn garbage_datagrams_from_members_harm_nobody_else() {
    withstands(|cluster, chance| {
        let path = cluster.member_socket(1);
        let until = Instant::now() + DURING;
        while Instant::now() < until {
            let socket =
                if chance.below(2) == 0 { hello(&path) } else { fdpass::connect(&path).expect("it listens") };
            for _ in 0..chance.below(40) {
                let bytes = match chance.below(3) {
                    // Any length, any bytes.
                    0 => {
                        let len = chance.below(400);
                        garbage(chance, len)
                    }
                    // A request by its first word, with anything in it.
                    1 => request(chance, 1 << 63),
                    _ => request(chance, 200),
                };
                if !tell(&socket, &bytes) {
                    break;
                }
            }
            let own = socket.as_fd();
            let many: Vec<_> = (0..chance.below(17)).map(|_| own).collect();
            // Descriptors nobody asked for; it may have hung up already.
            let _ = fdpass::send_with_fds(&socket, &[0; MEMBER_BYTES], &many);
        }
    });
}

fn request(chance: &mut Chance, below: u64) -> Vec<u8> {
    let mut bytes = chance.below(16).to_le_bytes().to_vec();
    while bytes.len() < MEMBER_BYTES {
        bytes.extend(chance.below(below).to_le_bytes());
    }
    bytes
}

#[test]
fn a_flood_of_members_that_never_read_harms_nobody_else() {
    withstands(|cluster, _| {
        let path = cluster.member_socket(1);
        let mut sockets: Vec<OwnedFd> = (0..CONNECTIONS).map(|_| hello(&path)).collect();
        let pull = Request::Pull.to_words().map(u64::to_le_bytes).concat();
        let until = Instant::now() + DURING;
        while Instant::now() < until {
            for socket in &mut sockets {
                if !tell(socket, &pull) {
                    *socket = hello(&path);
                }
            }
        }
    });
}

#[test]
fn garbage_at_the_admin_socket_harms_nobody_else() {
    withstands(|cluster, chance| {
        let path = cluster.admin_socket(1);
        let until = Instant::now() + DURING;
        let mut silent = Vec::new();
        while Instant::now() < until {
            // One that finds no room in line is as well.
            let Ok(mut stream) = UnixStream::connect(&path) else { continue };
            stream.set_write_timeout(Some(BRIEFLY)).expect("a socket of ours");
            let bytes = match chance.below(5) {
                0 => {
                    let len = chance.below(5_000);
                    garbage(chance, len)
                }
                1 => b"{\"request\":\"status\"}\n".repeat(1_000),
                2 => b"{\"request\":\"proxy_stop\",\"name\":\"no such\"}\n{}\n[[[[\n\"\\u0000\"\n".to_vec(),
                3 => vec![b'['; 200_000],
                _ => b"{\"request\":\"sta".to_vec(),
            };
            // It may have hung up already.
            let _ = stream.write_all(&bytes);
            if silent.len() < CONNECTIONS {
                silent.push(stream);
            }
        }
        drop(silent);
        assert_eq!(cluster.status(1).node, 1, "it still answers");
    });
}

#[test]
fn garbage_at_the_port_harms_nobody_else() {
    withstands(|cluster, chance| {
        let config = node::Cluster::load(cluster.file(1)).expect("the file that is in use");
        let ports: Vec<SocketAddr> = config.nodes.iter().map(|n| n.address).collect();
        let until = Instant::now() + DURING;
        let mut silent = Vec::new();
        while Instant::now() < until {
            let port = ports[chance.below(2) as usize];
            let Ok(mut stream) = TcpStream::connect_timeout(&port, BRIEFLY) else { continue };
            stream.set_write_timeout(Some(BRIEFLY)).expect("a socket of ours");
            let bytes = match chance.below(4) {
                0 => {
                    let len = chance.below(20_000);
                    garbage(chance, len)
                }
                1 => header(chance, Kind::Hello),
                2 => header(chance, Kind::Message),
                _ => b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            };
            // It may have hung up already.
            let _ = stream.write_all(&bytes);
            if silent.len() < CONNECTIONS && chance.below(4) == 0 {
                silent.push(stream);
            }
        }
    });
}

/// A frame of this version with a length that is a lie.
fn header(chance: &mut Chance, kind: Kind) -> Vec<u8> {
    let (token, arg) = (1 + chance.below(3), chance.below(1 << 40));
    let mut bytes = Header { kind, len_bytes: chance.below(60_000) as u32, token, arg }.to_bytes().to_vec();
    let len = chance.below(3_000);
    bytes.extend(garbage(chance, len));
    bytes
}
