//! Questions to daemons, each with its answer's type and an error that names the node.

use std::time::Duration;

use anyhow::Result;
use node::admin::{CallError, Request, call, call_as};
use node::config::ClusterNode;
use node::core::{DcSpecView, EndpointView, ProxyView, Status};
use serde::Deserialize;

use crate::cluster::Place;
use crate::failure::{Exit, failure};

/// How long a daemon that lives may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// One node's daemon.
#[derive(Clone, Copy)]
pub struct Daemon<'a> {
    pub place: &'a Place,
    pub node: &'a ClusterNode,
}

#[derive(Deserialize)]
struct Endpoints {
    endpoints: Vec<EndpointView>,
}

#[derive(Deserialize)]
struct Proxies {
    proxies: Vec<ProxyView>,
}

#[derive(Deserialize)]
struct Dcs {
    dcs: Vec<DcSpecView>,
}

#[derive(Deserialize)]
struct Changed {
    dc: DcSpecView,
}

impl Daemon<'_> {
    pub fn status(&self) -> Result<Status> {
        self.ask(&Request::Status)
    }

    pub fn endpoints(&self) -> Result<Vec<EndpointView>> {
        self.ask(&Request::Ps).map(|e: Endpoints| e.endpoints)
    }

    pub fn proxies(&self) -> Result<Vec<ProxyView>> {
        self.ask(&Request::Proxies).map(|p: Proxies| p.proxies)
    }

    pub fn dcs(&self) -> Result<Vec<DcSpecView>> {
        self.ask(&Request::Dcs).map(|d: Dcs| d.dcs)
    }

    /// A change of a DC, answered with what it is from now on.
    pub fn change(&self, request: &Request) -> Result<DcSpecView> {
        self.ask(request).map(|c: Changed| c.dc)
    }

    /// An order, answered when it has been taken.
    pub fn order(&self, request: &Request) -> Result<()> {
        let socket = self.place.files(self.node).admin_socket();
        call(&socket, request, ANSWER_WITHIN).map(|_| ()).map_err(|why| self.explain(&why))
    }

    /// Whether somebody answers at all.
    pub fn answers(&self) -> bool {
        self.status().is_ok()
    }

    /// The process that holds the node's lock file, as it says itself.
    pub fn recorded_pid(&self) -> Option<u32> {
        let text = std::fs::read_to_string(self.place.files(self.node).lock()).ok()?;
        text.split_whitespace().next()?.parse().ok()
    }

    fn ask<T: for<'a> Deserialize<'a>>(&self, request: &Request) -> Result<T> {
        let socket = self.place.files(self.node).admin_socket();
        call_as(&socket, request, ANSWER_WITHIN).map_err(|why| self.explain(&why))
    }

    fn explain(&self, why: &CallError) -> anyhow::Error {
        let (node, file) = (self.node.name, self.place.cluster.file.display());
        let up = format!("start it with `dvs up {file} --node {node}`");
        match why {
            CallError::NotRunning { path } => {
                let what = format!("node {node} is not running: nobody listens at {}", path.display());
                failure(Exit::NotRunning, what, up)
            }
            CallError::Dead { path } => {
                let what =
                    format!("the daemon of node {node} is dead: only {} is left of it", path.display());
                failure(Exit::NotRunning, what, up)
            }
            CallError::TimedOut { timeout } => {
                let pid = self.recorded_pid().map_or_else(String::new, |pid| format!(" (process {pid})"));
                let what =
                    format!("the daemon of node {node}{pid} did not answer within {} s", timeout.as_secs());
                let log = self.place.files(self.node).log();
                failure(
                    Exit::NotRunning,
                    what,
                    format!("look at {}; `dvs down {file}` ends it", log.display()),
                )
            }
            CallError::Refused { error, hint } => {
                failure(Exit::Refused, format!("node {node}: {error}"), hint.clone())
            }
            CallError::Io { path, source } => failure(
                Exit::NotRunning,
                format!("node {node} cannot be asked at {}: {source}", path.display()),
                format!("give the --runtime-dir that it was started with, or {up}"),
            ),
            CallError::Garbled { .. } => failure(
                Exit::Failed,
                format!("node {node}: {why}"),
                "are `dvs` and the daemon of one version?",
            ),
        }
    }
}
