//! Driver: the TCP proxy's `main`: from its options to a courier at work.

use std::time::{Duration, Instant};

use abi::NodeId;
use fabric::driver::{Credentials, Driver, DriverError};
use fabric::{Fabric, Time};
use shm::os::process::{self, StartError};

use crate::{ClusterKey, KeyError, ProxyOptions, TcpConfig, TcpError, TcpFabric};

/// Why a proxy ended.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("the socket to the daemon was not inherited: a proxy is started by its daemon, not by hand")]
    Link(#[source] StartError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Tcp(#[from] TcpError),
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// Carries for the daemon that started this process, until it says stop.
pub fn run(options: &ProxyOptions) -> Result<(), ProxyError> {
    run_over(options, |config, now| Ok(Box::new(TcpFabric::new(config, now)?)))
}

/// The same over another fabric, which is made of what a TCP fabric is told.
pub fn run_over(
    options: &ProxyOptions,
    make: impl FnOnce(TcpConfig, Time) -> Result<Box<dyn Fabric>, TcpError>,
) -> Result<(), ProxyError> {
    // Without this a process of the same user could read the key out of our memory.
    if let Err(errno) = process::refuse_tracing() {
        tracing::warn!(%errno, "the proxy can be traced by its own user");
    }
    // Refused, it goes on with the descriptors it may have.
    if let Err(errno) = process::raise_nofile() {
        tracing::warn!(%errno, "the limit of descriptors stays as it is");
    }
    let link = process::inherited(options.link_fd).map_err(ProxyError::Link)?;
    let key = options.key_file.as_deref().map(ClusterKey::load).transpose()?;
    let began = Instant::now();
    let config = TcpConfig {
        peers: options.peers.clone(),
        key,
        link_down_after: Duration::from_millis(options.link_down_after_ms),
        packing: options.compression,
        ..TcpConfig::new(options.node, options.incarnation, options.listen)
    };
    let fabric = make(config, began.elapsed())?;
    let peers: Vec<NodeId> = options.peers.iter().map(|(node, _)| *node).collect();
    tracing::info!(node = %options.node, listen = %options.listen, "proxy ready");
    let driver = Driver::new(link, Credentials { token: options.token }, fabric, &peers, began)?;
    driver.run()?;
    tracing::info!("told to stop");
    Ok(())
}
