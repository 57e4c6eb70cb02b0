//! The admin socket: one JSON request a line, one JSON answer a line. Key type: [`AdminServer`].

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde_json::{Value, json};
use shm::os::events::{Epoll, Readiness};

use super::Driver;
use super::tokens::{Token, Watched};
use crate::NodeError;
use crate::admin::{LINE_BYTES_MAX, Request};
use crate::core::{Input, Order};

/// Connections open at once.
const CONNECTIONS_MAX: usize = 64;
/// Connections that wait to be accepted.
const LINE_MAX: i32 = 16;
const READ_BYTES: usize = 16 << 10;

struct AdminConn {
    stream: UnixStream,
    asked: Vec<u8>,
    answer: Vec<u8>,
    /// The other end has nothing more to ask.
    ended: bool,
}

pub(super) struct AdminServer {
    listener: UnixListener,
    open: BTreeMap<u64, AdminConn>,
    next: u64,
}

impl AdminServer {
    pub fn new(path: &Path, epoll: &Epoll) -> Result<AdminServer, NodeError> {
        let listener = UnixListener::bind(path).map_err(NodeError::file("listen at", path))?;
        AdminServer::over(listener, path, epoll)
    }

    /// With a predecessor's socket: who connected meanwhile waits in its line.
    pub fn over(listener: UnixListener, path: &Path, epoll: &Epoll) -> Result<AdminServer, NodeError> {
        listener.set_nonblocking(true).map_err(NodeError::file("listen at", path))?;
        // A short line: who asks waits behind a few others, however many there are.
        rustix::net::listen(&listener, LINE_MAX).map_err(|e| NodeError::file("listen at", path)(e.into()))?;
        epoll
            .add(&listener, Token { kind: Watched::Admin, id: 0 }.to_word(), Readiness::READ)
            .map_err(NodeError::system("to watch the admin socket"))?;
        Ok(AdminServer { listener, open: BTreeMap::new(), next: 1 })
    }

    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub fn accept(&mut self, epoll: &Epoll) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        if self.open.len() >= CONNECTIONS_MAX || stream.set_nonblocking(true).is_err() {
            return;
        }
        let id = self.next;
        self.next += 1;
        if epoll.add(&stream, token(id), Readiness::READ).is_ok() {
            let conn = AdminConn { stream, asked: Vec::new(), answer: Vec::new(), ended: false };
            self.open.insert(id, conn);
        }
    }

    /// Whole lines that have come; `None`: the connection is over.
    fn read(&mut self, id: u64) -> Option<Vec<Vec<u8>>> {
        let conn = self.open.get_mut(&id)?;
        let mut bytes = [0; READ_BYTES];
        loop {
            match conn.stream.read(&mut bytes) {
                Ok(0) => {
                    conn.ended = true;
                    break;
                }
                Ok(len) => conn.asked.extend_from_slice(&bytes[..len]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return None,
            }
            if conn.asked.len() > LINE_BYTES_MAX {
                break;
            }
        }
        let mut lines = Vec::new();
        while let Some(end) = conn.asked.iter().position(|b| *b == b'\n') {
            let rest = conn.asked.split_off(end + 1);
            lines.push(std::mem::replace(&mut conn.asked, rest));
        }
        if conn.asked.len() > LINE_BYTES_MAX {
            conn.ended = true;
            conn.asked.clear();
            lines.push(vec![b' '; LINE_BYTES_MAX + 1]);
        }
        Some(lines)
    }

    fn say(&mut self, id: u64, answer: &Value) {
        if let Some(conn) = self.open.get_mut(&id) {
            conn.answer.extend_from_slice(answer.to_string().as_bytes());
            conn.answer.push(b'\n');
        }
    }

    /// Sends what can be sent; false: nobody is there to read it.
    fn send(&mut self, id: u64) -> bool {
        let Some(conn) = self.open.get_mut(&id) else { return false };
        while !conn.answer.is_empty() {
            match conn.stream.write(&conn.answer) {
                Ok(len) => drop(conn.answer.drain(..len)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        true
    }

    /// Sends what can be sent, and watches for what is next; false: the connection is over.
    fn flush(&mut self, id: u64, epoll: &Epoll) -> bool {
        if !self.send(id) {
            return false;
        }
        let Some(conn) = self.open.get_mut(&id) else { return false };
        if conn.answer.is_empty() && conn.ended {
            return false;
        }
        // One that does not read its answers is not read either.
        let interest = if conn.answer.is_empty() { Readiness::READ } else { Readiness::WRITE };
        epoll.modify(&conn.stream, token(id), interest).is_ok()
    }

    /// Last words: whoever asked to stop hears that it is done.
    pub fn flush_all(&mut self) {
        for conn in self.open.values_mut() {
            let _ = conn.stream.write(&conn.answer);
        }
    }
}

fn token(id: u64) -> u64 {
    Token { kind: Watched::AdminConn, id }.to_word()
}

impl Driver {
    pub(super) fn admin_ready(&mut self, id: u64) {
        let Some(lines) = self.hands.admin.read(id) else {
            self.hands.admin.open.remove(&id);
            return;
        };
        for line in lines {
            let answer = self.answer(&line);
            self.hands.admin.say(id, &answer);
            // A flood of requests ends with who made it: nobody waits behind answers that nobody reads.
            if !self.hands.admin.send(id) {
                break;
            }
        }
        if !self.hands.admin.flush(id, &self.hands.epoll) {
            self.hands.admin.open.remove(&id);
        }
    }

    fn answer(&mut self, line: &[u8]) -> Value {
        if line.len() > LINE_BYTES_MAX {
            return refusal(
                "the request is too long",
                &format!("send one line of at most {LINE_BYTES_MAX} bytes"),
            );
        }
        let request = match serde_json::from_slice::<Request>(line) {
            Ok(request) => request,
            Err(e) => {
                let hint = "send {\"request\": NAME} with status, ps, proxies, proxy_restart, proxy_stop, dcs, \
                     dc_create, dc_grow, dc_shrink, dc_stop or stop";
                return refusal(&format!("not a request: {e}"), hint);
            }
        };
        let now = self.now();
        match request {
            Request::Status => json!(self.core.status(now)),
            Request::Ps => json!({ "endpoints": self.core.endpoints(now) }),
            Request::Proxies => json!({ "proxies": self.core.proxy_views(now) }),
            Request::Dcs => json!({ "dcs": self.core.dc_specs() }),
            Request::DcCreate { .. }
            | Request::DcGrow { .. }
            | Request::DcShrink { .. }
            | Request::DcStop { .. } => self.answer_dc(&request),
            Request::ProxyRestart { name } => self.order(&name, |proxy| Order::RestartProxy { proxy }),
            Request::ProxyStop { name } => self.order(&name, |proxy| Order::StopProxy { proxy }),
            Request::Stop => {
                self.handle(Input::Order(Order::Stop));
                json!({ "done": true })
            }
        }
    }

    fn order(&mut self, name: &str, order: impl Fn(u16) -> Order) -> Value {
        let Some(proxy) = self.core.proxy_named(name) else {
            let known: Vec<&str> = self.core.plan().proxies.iter().map(|p| p.name.as_str()).collect();
            return refusal(
                &format!("no proxy is named {name:?}"),
                &format!("there are: {}", known.join(", ")),
            );
        };
        self.handle(Input::Order(order(proxy)));
        json!({ "done": true })
    }
}

pub(super) fn refusal(error: &str, hint: &str) -> Value {
    json!({ "error": error, "hint": hint })
}
