//! The lives of this node's proxies: started, greeted, given memory, pinged, killed when they stall, started anew.

use abi::DcId;
use abi::courier::{FromProxy, ToProxy};
use abi::limits::PROXY_POOL_BYTES_MAX;
use abi::member::{SegmentKind, VERSION};

use super::effect::{Descriptor, Effect, Note};
use super::memory::{Memory, Owner};
use super::state::{PING_EVERY, PROXY_HELLO_WITHIN, ProxyStage, STALLED_AFTER};
use super::{Core, Now};

impl Core {
    pub(super) fn say(&mut self, proxy: u16, message: ToProxy, out: &mut Vec<Effect>) {
        self.say_with(proxy, message, Vec::new(), out);
    }

    pub(super) fn say_with(
        &mut self,
        proxy: u16,
        message: ToProxy,
        fds: Vec<Descriptor>,
        out: &mut Vec<Effect>,
    ) {
        if self.proxies.get(&proxy).is_some_and(|p| p.is_up()) {
            out.push(Effect::ToProxy { proxy, message, tail: Vec::new(), fds });
        }
    }

    pub(super) fn tick_proxies(&mut self, now: Now, out: &mut Vec<Effect>) {
        let indices: Vec<u16> = self.proxies.keys().copied().collect();
        for proxy in indices {
            let Some(there) = self.proxies.get_mut(&proxy) else { continue };
            match there.stage {
                ProxyStage::Waiting { at } if at <= now => {
                    there.stage = ProxyStage::Starting { by: now + PROXY_HELLO_WITHIN };
                    out.push(Effect::StartProxy { proxy, incarnation: self.incarnation });
                }
                ProxyStage::Starting { by } | ProxyStage::Stopping { by } if by <= now => {
                    self.kill_proxy(proxy, out);
                }
                ProxyStage::Up
                    if there.unanswered_since.is_some_and(|since| since + STALLED_AFTER <= now) =>
                {
                    out.push(Effect::Note(Note::ProxyStalled { proxy }));
                    self.kill_proxy(proxy, out);
                }
                ProxyStage::Up if there.next_ping <= now => {
                    there.ping += 1;
                    there.next_ping = now + PING_EVERY;
                    there.unanswered_since.get_or_insert(now);
                    let number = there.ping;
                    self.say(proxy, ToProxy::Ping { number }, out);
                }
                ProxyStage::Waiting { .. }
                | ProxyStage::Starting { .. }
                | ProxyStage::Stopping { .. }
                | ProxyStage::Up
                | ProxyStage::Killed
                | ProxyStage::Stopped => {}
            }
        }
    }

    pub(super) fn kill_proxy(&mut self, proxy: u16, out: &mut Vec<Effect>) {
        let Some(there) = self.proxies.get_mut(&proxy) else { return };
        if there.is_running() || matches!(there.stage, ProxyStage::Stopping { .. }) {
            there.stage = ProxyStage::Killed;
            out.push(Effect::KillProxy { proxy });
        }
    }

    pub(super) fn restart_proxy(&mut self, now: Now, proxy: u16, out: &mut Vec<Effect>) {
        let Some(there) = self.proxies.get_mut(&proxy) else { return };
        there.unwanted = false;
        if there.stage == ProxyStage::Stopped {
            there.stage = ProxyStage::Waiting { at: now };
        }
        self.kill_proxy(proxy, out);
    }

    pub(super) fn stop_proxy(&mut self, now: Now, proxy: u16, out: &mut Vec<Effect>) {
        let Some(there) = self.proxies.get_mut(&proxy) else { return };
        there.unwanted = true;
        match there.stage {
            ProxyStage::Up => {
                self.say(proxy, ToProxy::Stop, out);
                if let Some(there) = self.proxies.get_mut(&proxy) {
                    there.stage = ProxyStage::Stopping { by: now + STALLED_AFTER };
                }
            }
            ProxyStage::Starting { .. } => self.kill_proxy(proxy, out),
            ProxyStage::Waiting { .. } => there.stage = ProxyStage::Stopped,
            ProxyStage::Stopping { .. } | ProxyStage::Killed | ProxyStage::Stopped => {}
        }
    }

    /// The daemon ends: endpoints first, so that other nodes hear of it, then the proxies.
    pub(super) fn stop(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.stopping {
            return;
        }
        self.end_all(now, false, out);
        self.stopping = true;
        let indices: Vec<u16> = self.proxies.keys().copied().collect();
        for proxy in indices {
            self.stop_proxy(now, proxy, out);
        }
    }

    pub(super) fn end_all(&mut self, now: Now, fenced: bool, out: &mut Vec<Effect>) {
        let all: Vec<_> =
            self.locals.iter().filter(|(_, l)| !l.stage.is_dead()).map(|(e, l)| (*e, l.conn)).collect();
        for (endpoint, conn) in all {
            if let Some(conn) = conn.and_then(|c| self.conns.get_mut(&c)) {
                conn.fenced = fenced;
            }
            self.end_local(now, endpoint, out);
        }
    }

    /// After [`super::Order::Stop`]: nothing of this node runs any more.
    pub fn is_stopped(&self) -> bool {
        self.stopping && self.proxies.values().all(|p| p.stage == ProxyStage::Stopped)
    }

    pub(super) fn proxy_started(&mut self, now: Now, proxy: u16, pid: u32, token: [u64; 2]) {
        if let Some(there) = self.proxies.get_mut(&proxy) {
            there.pid = Some(pid);
            there.token = Some(token);
            there.since = now;
        }
    }

    pub(super) fn proxy_exited(&mut self, now: Now, proxy: u16, out: &mut Vec<Effect>) {
        let Some(there) = self.proxies.get_mut(&proxy) else { return };
        if matches!(there.stage, ProxyStage::Waiting { .. } | ProxyStage::Stopped) {
            return;
        }
        let at = there.restart_at(now);
        there.stage = if there.unwanted { ProxyStage::Stopped } else { ProxyStage::Waiting { at } };
        there.restarts += 1;
        there.since = now;
        there.pid = None;
        there.token = None;
        there.unanswered_since = None;
        let memories = std::mem::take(&mut there.memories).into_values();
        let private = std::mem::take(&mut there.private).into_values();
        let memories: Vec<u32> = memories.chain(private).collect();
        out.push(Effect::Note(Note::ProxyExited { proxy }));
        self.uncarry(now, proxy, out);
        for memory in memories {
            self.drop_memory(memory, out);
        }
        self.links_unknown(now, proxy, out);
        self.let_go_all(now, out);
    }

    pub(super) fn proxy_said(
        &mut self,
        now: Now,
        proxy: u16,
        message: Option<FromProxy>,
        tail: &[u8],
        out: &mut Vec<Effect>,
    ) {
        let stage = self.proxies.get(&proxy).map(|p| p.stage);
        let Some(message) = message else {
            return self.proxy_wrong(proxy, "bytes that are no message; killed", out);
        };
        match (stage, message) {
            (Some(ProxyStage::Starting { .. }), FromProxy::Hello { version, token }) => {
                self.proxy_hello(now, proxy, version, token, out);
            }
            (Some(ProxyStage::Starting { .. }), _) | (Some(ProxyStage::Up), FromProxy::Hello { .. }) => {
                self.proxy_wrong(proxy, "hello is the first message, and only that; killed", out);
            }
            (Some(ProxyStage::Up), message) => self.proxy_up_said(now, proxy, message, tail, out),
            // Late words of one that was told to end, or killed.
            (Some(_) | None, _) => {}
        }
    }

    fn proxy_wrong(&mut self, proxy: u16, what: &'static str, out: &mut Vec<Effect>) {
        out.push(Effect::Note(Note::ProxyWrong { proxy, what }));
        self.kill_proxy(proxy, out);
    }

    fn proxy_up_said(
        &mut self,
        now: Now,
        proxy: u16,
        message: FromProxy,
        tail: &[u8],
        out: &mut Vec<Effect>,
    ) {
        match message {
            FromProxy::Hello { .. } => {}
            FromProxy::Mapped { memory, index } => self.proxy_mapped(proxy, memory, index, out),
            FromProxy::NewSegment { memory, kind, len_bytes } => {
                self.proxy_new_segment(proxy, memory, kind, len_bytes, out);
            }
            FromProxy::WantSegment { memory, segment } => self.proxy_wants(proxy, memory, segment, out),
            FromProxy::RemoteOpen { local, remote, node } => {
                self.remote_open(proxy, local, remote, node, out)
            }
            FromProxy::Detached { local, remote } => self.detached(now, proxy, local, remote, out),
            FromProxy::NodeClosed { node } => self.node_closed(now, proxy, node, out),
            FromProxy::Link { node, incarnation, state } => {
                self.link_changed(now, proxy, node, incarnation, state, out);
            }
            FromProxy::Directory { node, incarnation } => {
                self.directory_said(now, proxy, node, incarnation, tail, out);
            }
            FromProxy::Fenced { by } => self.fenced(now, by, out),
            FromProxy::Pong { number, totals } => {
                if let Some(there) = self.proxies.get_mut(&proxy).filter(|p| number <= p.ping) {
                    there.unanswered_since = None;
                    there.totals = totals;
                }
            }
        }
    }

    fn proxy_hello(&mut self, now: Now, proxy: u16, version: u32, token: [u64; 2], out: &mut Vec<Effect>) {
        let Some(there) = self.proxies.get_mut(&proxy) else { return };
        if version != VERSION || there.token != Some(token) {
            return self.proxy_wrong(proxy, "hello of another version or with a wrong token; killed", out);
        }
        there.stage = ProxyStage::Up;
        there.next_ping = now;
        there.unanswered_since = None;
        let pid = there.pid.unwrap_or(0);
        out.push(Effect::Note(Note::ProxyUp { proxy, pid }));
        self.tell_dead_nodes(now, proxy, out);
        for dc in self.plan.dcs_of_proxy(proxy) {
            self.give_dc(proxy, dc, out);
        }
    }

    /// A memory that a proxy speaks of, if it is its own.
    fn memory_of(&mut self, proxy: u16, memory: u32) -> Option<&mut Memory> {
        let is_its = |m: &&mut Memory| matches!(m.owner, Owner::Proxy { proxy: of, .. } if of == proxy);
        self.memories.get_mut(&memory).filter(is_its)
    }

    fn proxy_mapped(&mut self, proxy: u16, memory: u32, index: u32, out: &mut Vec<Effect>) {
        // One that was given up meanwhile.
        let Some(there) = self.memory_of(proxy, memory) else { return };
        let segments = there.seal(Some(index));
        if segments.is_empty() {
            return self.proxy_wrong(proxy, "has mapped what it was not given; killed", out);
        }
        out.push(Effect::Seal { memory, segments });
    }

    /// Segments of a proxy's memory are sealed. `None`: they could not be.
    pub(super) fn proxy_sealed(
        &mut self,
        (proxy, dc): (u16, DcId),
        memory: u32,
        segments: Option<Vec<u32>>,
        out: &mut Vec<Effect>,
    ) {
        let Some(segments) = segments else {
            return self.proxy_wrong(proxy, "a segment of its was spoilt before the seal; killed", out);
        };
        for index in segments {
            self.say(proxy, ToProxy::Sealed { memory, index }, out);
        }
        self.carry_waiting(proxy, dc, out);
    }

    fn proxy_new_segment(
        &mut self,
        proxy: u16,
        memory: u32,
        kind: SegmentKind,
        len_bytes: u64,
        out: &mut Vec<Effect>,
    ) {
        if self.memory_of(proxy, memory).is_none() {
            return;
        }
        if self.add_segment(memory, kind, len_bytes, PROXY_POOL_BYTES_MAX, out).is_err() {
            out.push(Effect::Note(Note::ProxyWrong { proxy, what: "wants a segment beyond its limits" }));
        }
    }

    pub(super) fn proxy_segment_made(
        &mut self,
        proxy: u16,
        memory: u32,
        segment: u32,
        made: bool,
        out: &mut Vec<Effect>,
    ) {
        let Some(there) = self.memories.get_mut(&memory) else { return };
        let Some(made_one) = there.segments.get(&segment).copied() else { return };
        if made {
            let (kind, len_bytes) = (made_one.kind, made_one.len_bytes);
            let message = ToProxy::Segment { memory, index: segment, kind, len_bytes };
            return self.say_with(proxy, message, vec![Descriptor::Segment { memory, segment }], out);
        }
        if let (0..2, Owner::Proxy { only: Some(only), .. }) = (segment, there.owner) {
            return self.no_private_memory(proxy, only, memory, out);
        }
        if segment < 2 {
            return self.proxy_wrong(proxy, "there is no memory for it; killed", out);
        }
        there.segments.remove(&segment);
        out.push(Effect::Note(Note::ProxyWrong { proxy, what: "there is no memory for one more segment" }));
    }
}
