//! Why a proxy does not carry: each way its `main` ends, and what it says then.

use std::net::TcpListener;
use std::os::fd::{AsFd, IntoRawFd};
use std::process::Command;
use std::time::Duration;

use abi::{Incarnation, Name, NodeId};
use fabric::driver::DriverError;
use proxy_tcp::process::{ProxyError, run};
use proxy_tcp::{KeyError, Packing, ProxyOptions, TcpConfig, TcpError, TcpFabric};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shm::os::fdpass::{self, PassError};

/// Options with a link that was inherited, as far as the proxy can tell, whose other end is closed.
fn options() -> ProxyOptions {
    let (_daemon, link) = fdpass::pair().expect("a pair of sockets");
    // A copy is not closed by exec, as little as what is inherited.
    let link_fd = rustix::io::dup(link.as_fd()).expect("a copy").into_raw_fd();
    ProxyOptions {
        node: NodeId(1),
        incarnation: Incarnation(1),
        proxy_index: 0,
        name: Name::new("n1").expect("a name"),
        listen: "127.0.0.1:0".parse().expect("an address"),
        peers: vec![(NodeId(2), "127.0.0.1:9".parse().expect("an address"))],
        key_file: None,
        link_fd,
        token: [1, 2],
        link_down_after_ms: 1000,
        compression: Packing::None,
    }
}

#[test]
fn a_proxy_started_by_hand_has_no_link() {
    let by_hand = ProxyOptions { link_fd: 60_000, ..options() };
    let why = run(&by_hand).expect_err("no link");
    assert!(matches!(why, ProxyError::Link(_)), "{why}");
    assert!(why.to_string().contains("started by its daemon, not by hand"), "{why}");
}

#[test]
fn a_key_that_is_not_there_is_named() {
    let keyless = ProxyOptions { key_file: Some("/no/such/key".into()), ..options() };
    let why = run(&keyless).expect_err("no key");
    assert!(matches!(why, ProxyError::Key(KeyError::Read { .. })), "{why}");
}

#[test]
fn an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = taken.local_addr().expect("its address");
    let why = run(&ProxyOptions { listen, ..options() }).expect_err("in use");
    assert!(matches!(why, ProxyError::Tcp(TcpError::InUse { address }) if address == listen), "{why}");
}

#[test]
fn a_daemon_that_is_gone_ends_it() {
    let why = run(&options()).expect_err("nobody to carry for");
    assert!(matches!(why, ProxyError::Driver(DriverError::Daemon(PassError::Closed))), "{why}");
}

/// Of a build without the feature: `cargo test -p proxy-tcp --no-default-features`.
#[cfg(not(feature = "lz4"))]
#[test]
fn a_build_that_cannot_pack_says_so() {
    let why = run(&ProxyOptions { compression: Packing::Lz4, ..options() }).expect_err("not built in");
    assert!(matches!(why, ProxyError::Tcp(TcpError::NoPacking { name: "lz4" })), "{why}");
}

const CHILD: &str = "PROXY_TEST_CHILD";

/// In a process of its own: the limit counts for all of it.
#[test]
fn a_process_without_descriptors_gets_no_fabric() {
    if std::env::var_os(CHILD).is_none() {
        let mut child = Command::new(std::env::current_exe().expect("this program"));
        child.args(["a_process_without_descriptors_gets_no_fabric", "--exact", "--test-threads=1"]);
        let done = child.env(CHILD, "1").output().expect("started");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let config = TcpConfig::new(NodeId(1), Incarnation(1), listener.local_addr().expect("its address"));
    let next = rustix::io::dup(&listener).expect("a copy").into_raw_fd();
    let limit = Rlimit { current: Some(next as u64 + 1), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).expect("lower than it was");
    let fabric = TcpFabric::with_listener(config, listener, Duration::ZERO).map(drop);
    assert!(matches!(fabric, Err(TcpError::Descriptors { .. })), "{fabric:?}");
}
