//! The process of a proxy of kind `rdma` or `auto`, which a daemon starts with the options of any proxy.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::process::ExitCode;

use proxy_rdma::{RdmaConfig, RdmaFabric};
use proxy_tcp::ProxyOptions;
use tracing_subscriber::EnvFilter;

const HELP: &str = "proxy-rdma: carries between nodes by RDMA, and by TCP where there is none.

It is started by a node's daemon for a proxy of kind `rdma` or `auto` in the cluster file, not by hand; it must lie beside `dvs` or
on PATH. `dvs rdma ls` lists the devices of this machine.

Examples:
  dvs demo --proxy rdma
  RUST_LOG=debug dvs up cluster.toml      the daemons' proxies say more, in `dvs logs`";

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|one| one.to_string_lossy().into_owned()).collect();
    if arguments.iter().any(|one| one == "--help" || one == "-h") || arguments.is_empty() {
        println!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    let options = match ProxyOptions::parse(arguments) {
        Ok(options) => options,
        Err(why) => return complain(&format!("{why}; see --help")),
    };
    let ended = proxy_tcp::process::run_over(&options, |tcp, now| {
        let config = RdmaConfig::of_node(options.node, options.listen.ip());
        Ok(Box::new(RdmaFabric::new(tcp, &config, now)?))
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => complain(&why.to_string()),
    }
}

fn complain(why: &str) -> ExitCode {
    eprintln!("proxy-rdma: {why}");
    ExitCode::FAILURE
}
