//! The daemon of a node: reads the cluster file, makes endpoint memory, introduces endpoints to one another, watches
//! processes, starts and restarts proxies, tells other nodes who lives here, and answers the admin API. It is never on
//! the path of a message.
//!
//! [`core`] decides (pure: inputs in, effects out), [`daemon`] drives it (sockets, descriptors, processes, the clock),
//! [`config`] reads the cluster file, [`place`] keeps the runtime directory, [`admin`] is the client of the admin API.
#![forbid(unsafe_code)]

pub mod admin;
pub mod config;
pub mod core;
pub mod daemon;
mod error;
pub mod keeper;
pub mod place;

pub use config::{Cluster, ConfigError};
pub use daemon::start::{ProcessStarter, StartProxy, Started, rdma_program};
pub use daemon::thread::Daemon;
pub use daemon::{RunOptions, run};
pub use error::NodeError;
