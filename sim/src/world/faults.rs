//! What goes wrong: planned from the seed before anything happens, so that a fault does not move the others.

use std::time::Duration;

use abi::NodeId;
use node::core::{Input, Order};

use super::{Event, TROUBLE, World, home};
use crate::net::lock;
use crate::site::PROXY;

/// One fault.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    KillProgram {
        at: usize,
    },
    Cut {
        one: NodeId,
        other: NodeId,
        for_long: Duration,
    },
    Rejoin {
        one: NodeId,
        other: NodeId,
    },
    CutOneWay {
        from: NodeId,
        to: NodeId,
        for_long: Duration,
    },
    RejoinOneWay {
        from: NodeId,
        to: NodeId,
    },
    Flap {
        one: NodeId,
        other: NodeId,
    },
    PauseProgram {
        at: usize,
        for_long: Duration,
    },
    PauseProxy {
        node: usize,
        for_long: Duration,
    },
    ResumeProxy {
        node: usize,
        life: u64,
    },
    KillProxy {
        node: usize,
    },
    FreezeProxy {
        node: usize,
    },
    OrderRestart {
        node: usize,
    },
    /// In its next step, after so many of the things that it does.
    KillDaemon {
        node: usize,
        after: usize,
    },
    RestartNode {
        node: usize,
    },
}

impl World {
    pub(super) fn plan_faults(&mut self, nodes: u16) {
        let intensity = [2, 8, 20][self.dice.below(3) as usize];
        for _ in 0..intensity {
            let when = self.dice.us(30_000, TROUBLE.as_micros() as u64);
            let fault = self.any_fault(nodes);
            self.at(when, Event::Fault(fault));
        }
    }

    fn any_fault(&mut self, nodes: u16) -> Fault {
        let one = NodeId(self.dice.between(1, nodes as u64) as u16);
        let other = NodeId(one.0 % nodes + 1);
        let node = one.0 as usize - 1;
        match self.dice.below(100) {
            0..20 => Fault::KillProgram { at: self.dice.below(self.programs.len() as u64) as usize },
            20..26 => {
                let at = self.dice.below(self.programs.len() as u64) as usize;
                Fault::PauseProgram { at, for_long: self.dice.ms(1, 120) }
            }
            26..30 => Fault::PauseProxy { node, for_long: self.dice.ms(1, 300) },
            30..35 => Fault::CutOneWay { from: one, to: other, for_long: self.dice.ms(1, 300) },
            35..37 => Fault::CutOneWay { from: other, to: one, for_long: self.dice.ms(450, 900) },
            37..44 => Fault::Cut { one, other, for_long: self.dice.ms(1, 250) },
            44..48 => Fault::Cut { one, other, for_long: self.dice.ms(450, 900) },
            48..62 => Fault::Flap { one, other },
            62..78 => Fault::KillProxy { node },
            78..86 => Fault::KillDaemon { node, after: self.dice.below(64) as usize },
            86..91 => Fault::FreezeProxy { node },
            91..96 => Fault::OrderRestart { node },
            _ => Fault::RestartNode { node },
        }
    }

    pub(super) fn go_wrong(&mut self, fault: Fault) {
        let name = match fault {
            Fault::KillProgram { .. } => "program killed",
            Fault::Cut { for_long, .. } if for_long > super::NODE_DEAD_AFTER => "link cut for long",
            Fault::Cut { .. } => "link cut",
            Fault::Rejoin { .. } => "link rejoined",
            Fault::CutOneWay { .. } => "link cut one way",
            Fault::RejoinOneWay { .. } => "link rejoined, one way",
            Fault::Flap { .. } => "session lost",
            Fault::PauseProgram { .. } => "program stopped for a while",
            Fault::PauseProxy { .. } => "proxy stopped for a while",
            Fault::ResumeProxy { .. } => "proxy goes on",
            Fault::KillProxy { .. } => "proxy killed",
            Fault::FreezeProxy { .. } => "proxy frozen",
            Fault::OrderRestart { .. } => "proxy restarted by order",
            Fault::KillDaemon { .. } => "daemon killed",
            Fault::RestartNode { .. } => "node restarted",
        };
        *self.faults.entry(name).or_default() += 1;
        let at = match fault {
            Fault::KillProgram { at } | Fault::PauseProgram { at, .. } => {
                self.homes[self.programs[at].site].site.id
            }
            Fault::CutOneWay { from, .. } | Fault::RejoinOneWay { from, .. } => from,
            Fault::Cut { one, .. } | Fault::Rejoin { one, .. } | Fault::Flap { one, .. } => one,
            Fault::KillProxy { node }
            | Fault::FreezeProxy { node }
            | Fault::PauseProxy { node, .. }
            | Fault::ResumeProxy { node, .. }
            | Fault::OrderRestart { node }
            | Fault::KillDaemon { node, .. }
            | Fault::RestartNode { node } => self.homes[node].site.id,
        };
        self.trace.note(self.now, at, format_args!("FAULT {name}"));
        match fault {
            Fault::KillProgram { at } => {
                // A server that has not answered yet, if there is one and the planned one owes nothing.
                let owes = |n: &usize| self.programs[*n].owes();
                let at = if at % 2 == 0 { (0..self.programs.len()).find(owes).unwrap_or(at) } else { at };
                self.kill_program(at, true);
            }
            Fault::Cut { one, other, for_long } => {
                lock(&self.net).cut(one, other);
                self.at(for_long, Event::Fault(Fault::Rejoin { one, other }));
            }
            Fault::Rejoin { one, other } => lock(&self.net).heal(one, other),
            Fault::CutOneWay { from, to, for_long } => {
                lock(&self.net).cut_way(from, to);
                self.at(for_long, Event::Fault(Fault::RejoinOneWay { from, to }));
            }
            Fault::RejoinOneWay { from, to } => lock(&self.net).heal_way(from, to),
            Fault::Flap { one, other } => lock(&self.net).flap(one, other),
            Fault::PauseProgram { at, for_long } => self.programs[at].stopped_until = self.now + for_long,
            Fault::PauseProxy { node, for_long } => {
                if let Some(proxy) = self.homes[node].proxy.as_mut().filter(|proxy| !proxy.frozen) {
                    proxy.frozen = true;
                    let life = proxy.life;
                    self.at(for_long, Event::Fault(Fault::ResumeProxy { node, life }));
                }
            }
            Fault::ResumeProxy { node, life } => self.resume_proxy(node, life),
            Fault::KillProxy { node } => self.kill_proxy(node),
            Fault::FreezeProxy { node } => {
                if let Some(proxy) = &mut self.homes[node].proxy {
                    proxy.frozen = true;
                }
            }
            Fault::OrderRestart { node } => {
                let order = Input::Order(Order::RestartProxy { proxy: PROXY });
                self.homes[node].site.step(self.now, order);
            }
            Fault::KillDaemon { node, after } => self.homes[node].site.doom(after),
            Fault::RestartNode { node } => self.restart_node(node),
        }
    }

    /// A machine stops and comes back: processes, proxy, daemon and memory are gone.
    fn restart_node(&mut self, node: usize) {
        for at in 0..self.programs.len() {
            if self.programs[at].site == node {
                self.kill_program(at, false);
                self.programs[at].forget();
            }
        }
        drop(self.homes[node].proxy.take());
        self.ledger.vanished(self.homes[node].site.id);
        let ids: Vec<NodeId> = self.homes.iter().map(|h| h.site.id).collect();
        let old = &self.homes[node];
        let (id, life, proxy_lives, look) = (old.site.id, old.life + 1, old.proxy_lives, old.look);
        let mut next = home(self.now, &ids, id, life);
        (next.proxy_lives, next.look) = (proxy_lives, look + 1);
        self.homes[node] = next;
    }

    /// The end of all trouble.
    pub(super) fn heal(&mut self) {
        self.healing = true;
        self.mend_wires();
        self.trace.note(self.now, NodeId(1), format_args!("HEALED"));
    }

    /// No more losses and no cuts.
    pub(super) fn mend_wires(&mut self) {
        let ids: Vec<NodeId> = self.homes.iter().map(|h| h.site.id).collect();
        let mut net = lock(&self.net);
        net.temper.lose_one_in = 0;
        for one in &ids {
            ids.iter().filter(|other| *other > one).for_each(|other| net.heal(*one, *other));
            ids.iter().filter(|other| *other != one).for_each(|other| net.heal_way(*one, *other));
        }
    }
}
