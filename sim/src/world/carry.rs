//! What passes between processes: the daemon's datagrams and rings, the proxy's words, wakes.

use std::time::Duration;

use node::core::{Input, Note};

use super::{Event, World};
use crate::courierman::{Courierman, Looked};
use crate::invariants::wakes;
use crate::net::{SimFabric, lock};
use crate::site::{Heard, Outward, PROXY};

impl World {
    /// After each event: what somebody left to be carried, who was rung. `None`: on every node.
    pub(super) fn carry(&mut self, touched: Option<usize>) {
        let nodes = touched.map_or(0..self.homes.len(), |node| node..node + 1);
        for node in nodes.clone() {
            self.carry_daemon(node);
            self.carry_proxy(node);
            self.tick_later(node);
        }
        for at in 0..self.programs.len() {
            let program = &self.programs[at];
            let rung = program.asleep && nodes.contains(&program.site);
            if rung && !self.homes[program.site].site.sleeps(program.slot.0 as usize) {
                self.programs[at].asleep = false;
                let after = self.dice.us(1, 40);
                self.wake_program(at, after);
            }
        }
    }

    /// Proxies for which the wires have something.
    pub(super) fn rouse_woken(&mut self) {
        let woken = lock(&self.net).take_woken();
        for id in woken {
            self.rouse_proxy(id.0 as usize - 1);
        }
    }

    fn carry_daemon(&mut self, node: usize) {
        // What is done for one of these may leave more.
        while !self.homes[node].site.out.is_empty() {
            for what in std::mem::take(&mut self.homes[node].site.out) {
                self.carry_one(node, what);
            }
        }
    }

    fn carry_one(&mut self, node: usize, what: Outward) {
        let home = &mut self.homes[node];
        match what {
            Outward::Ring { doorbell, source, pull } => {
                home.rings += 1;
                let life = home.life;
                let after = self.said_after(node);
                self.at(after, Event::Ring { node, doorbell, source, pull, life });
            }
            Outward::ToProxy(heard) => {
                let life = home.proxy_lives;
                let after = self.said_after(node);
                self.at(after, Event::ToProxy { node, life, heard });
            }
            Outward::StartProxy { incarnation } => {
                home.proxy_lives += 1;
                let (id, life) = (home.site.id, home.proxy_lives);
                let token = [life, 3];
                let peers = self.homes.iter().map(|h| h.site.id).filter(|other| *other != id).collect();
                let fabric = SimFabric::enter(&self.net, id, incarnation);
                let home = &mut self.homes[node];
                let proxy = Courierman::new(life, peers, fabric, home.site.doorbells.clone(), token);
                home.proxy = Some(proxy);
                let started = Input::ProxyStarted { proxy: PROXY, pid: 1, token };
                home.site.step(self.now, started);
                self.trace.note(
                    self.now,
                    id,
                    format_args!("proxy {life} starts, incarnation {}", incarnation.0),
                );
                self.rouse_proxy(node);
            }
            Outward::KillProxy => self.kill_proxy(node),
            Outward::Died => {
                let home = &mut self.homes[node];
                self.trace.note(self.now, home.site.id, format_args!("the daemon is killed, and succeeded"));
                drop(home.proxy.take());
            }
            Outward::Note(note) => self.heed(node, note),
        }
    }

    /// When the next thing that a daemon does reaches whom it is for: after the one before.
    fn said_after(&mut self, node: usize) -> Duration {
        let pause = self.dice.us(0, 15);
        let home = &mut self.homes[node];
        home.said_until = home.said_until.max(self.now) + pause;
        home.said_until - self.now
    }

    fn carry_proxy(&mut self, node: usize) {
        let home = &mut self.homes[node];
        let Some(proxy) = &mut home.proxy else { return };
        let life = proxy.life;
        for (message, tail) in std::mem::take(&mut proxy.said) {
            let pause = self.dice.us(1, 60);
            let home = &mut self.homes[node];
            home.heard_until = home.heard_until.max(self.now) + pause;
            let after = home.heard_until - self.now;
            self.at(after, Event::FromProxy { node, life, message, tail });
        }
        let rung = self.homes[node].proxy.as_ref().is_some_and(|proxy| proxy.asleep && proxy.is_rung());
        if rung {
            self.rouse_proxy(node);
        }
    }

    /// A proxy has something to look at: soon.
    pub(super) fn rouse_proxy(&mut self, node: usize) {
        let home = &mut self.homes[node];
        let Some(proxy) = &mut home.proxy else { return };
        proxy.asleep = false;
        home.look += 1;
        let (life, plan) = (proxy.life, home.look);
        let after = self.dice.us(1, 40);
        self.at(after, Event::Look { node, life, plan });
    }

    pub(super) fn look(&mut self, node: usize, life: u64, plan: u64) {
        let home = &mut self.homes[node];
        let Some(proxy) = home.proxy.as_mut().filter(|p| p.life == life && home.look == plan && !p.frozen)
        else {
            return;
        };
        let by_itself = std::mem::take(&mut proxy.asleep) && !proxy.is_rung();
        let (looked, found) = proxy.look(self.now, by_itself);
        if found && home.rings == 0 {
            let who = format!("the proxy of node {}", home.site.id);
            self.ledger.find("wakes", wakes::looked_again(&who, Some("slots to send")));
        }
        let who = home.site.id;
        if let Some(proxy) = home.proxy.as_ref().filter(|proxy| proxy.courier.totals().corrupt > 0) {
            let refused = proxy.refused.join("; ");
            self.ledger.find("corrupt", Some(format!("the proxy of node {who} refused {refused}")));
        }
        match looked {
            Looked::More => self.rouse_proxy(node),
            Looked::Asleep { rescan } => {
                let home = &mut self.homes[node];
                home.look += 1;
                let plan = home.look;
                if let Some(proxy) = &mut home.proxy {
                    proxy.asleep = true;
                }
                self.at(rescan, Event::Look { node, life, plan });
            }
        }
    }

    pub(super) fn hear(&mut self, node: usize, life: u64, heard: Heard) {
        let home = &mut self.homes[node];
        let id = home.site.id;
        let Some(proxy) = home.proxy.as_mut().filter(|p| p.life == life) else { return };
        if proxy.frozen {
            return proxy.unheard.push(heard);
        }
        match proxy.hear(heard) {
            Ok(()) => self.rouse_proxy(node),
            Err(why) => {
                self.ledger.find(
                    "nonsense",
                    Some(format!("the proxy of node {id} cannot follow its daemon: {why}")),
                );
            }
        }
    }

    /// A proxy that was stopped goes on.
    pub(super) fn resume_proxy(&mut self, node: usize, life: u64) {
        let Some(proxy) = self.homes[node].proxy.as_mut().filter(|proxy| proxy.life == life) else { return };
        proxy.frozen = false;
        for heard in std::mem::take(&mut proxy.unheard) {
            self.hear(node, life, heard);
        }
        self.rouse_proxy(node);
    }

    /// The proxy's process is gone, with its memory; its daemon hears of it later.
    pub(super) fn kill_proxy(&mut self, node: usize) {
        let home = &mut self.homes[node];
        if home.proxy.take().is_some() {
            self.trace.note(self.now, home.site.id, format_args!("the proxy is killed"));
            let (site, life, after) = (home.life, home.proxy_lives, self.dice.us(10, 3_000));
            self.at(after, Event::ProxyExited { node, site, life });
        }
    }

    /// What a daemon logs is what the oracle knows of its opinions.
    fn heed(&mut self, node: usize, note: Note) {
        let id = self.homes[node].site.id;
        self.trace.note(self.now, id, format_args!("{note}"));
        match note {
            Note::NodeDead { node: dead, incarnation } => {
                *self.faults.entry("node declared dead").or_default() += 1;
                self.ledger.buried.insert((id, dead, incarnation));
            }
            Note::Fenced { .. } => *self.faults.entry("node fenced").or_default() += 1,
            Note::ProxyStalled { .. } => *self.faults.entry("proxy stalled").or_default() += 1,
            Note::ProxyWrong { what, .. } => {
                self.ledger.find("nonsense", Some(format!("node {id} of its proxy: {what}")));
            }
            Note::Ended { endpoint } => {
                // Its process is told at its next word to the daemon; here it says none any more.
                if let Some(at) = self.programs.iter().position(|p| p.me() == Some(endpoint)) {
                    self.kill_program(at, true);
                }
            }
            Note::DirectoryNone { .. } | Note::DirectoryRefused { .. } => {
                self.ledger.find("nonsense", Some(format!("node {id}: {note}")));
            }
            Note::DcChanged { .. }
            | Note::DcJoined { .. }
            | Note::DcLeft { .. }
            | Note::DcNotMade { .. }
            | Note::DcRefused { .. }
            | Note::Bound { .. }
            | Note::Introduced { .. }
            | Note::Attached { .. }
            | Note::ProxyUp { .. }
            | Note::ProxyExited { .. }
            | Note::Link { .. } => {}
        }
    }
}
