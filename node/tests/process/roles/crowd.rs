//! Programs that are no good neighbours: one of a crowd that talks to everybody and may be killed anywhere, and one that
//! posts as hard as it can to somebody who never takes.

use std::time::{Duration, Instant};

use abi::{Endpoint, Slot};
use dvk::{Binding, From, Loan, Message, PostError, SendrecError, Timeout, View};

use super::{Life, find, report};
use crate::process::cluster::SLOTS_PER_NODE;
use crate::process::system::Chance;

/// Loans and views that one of a crowd keeps.
const KEPT_MAX: usize = 12;
const LOAN_BYTES_MAX: u64 = 60_000;
const BRIEFLY: Timeout = Timeout::After(Duration::from_millis(5));

/// One of a crowd: what it holds and whom it knows.
struct One {
    me: Binding,
    chance: Chance,
    loans: Vec<Loan>,
    views: Vec<View>,
}

/// Does this and that with everybody in the DC until it is killed. What must never be is reported.
pub fn live(life: Life, seed: u64) {
    let Life { me, .. } = life;
    let mut one = One { me, chance: Chance::new(seed), loans: Vec::new(), views: Vec::new() };
    loop {
        one.act();
    }
}

impl One {
    fn act(&mut self) {
        let Some(peer) = self.somebody() else { return };
        match self.chance.below(8) {
            0 => self.keep_a_loan(),
            1 | 2 => self.post(peer),
            3 => self.call(peer),
            4 => drop(self.me.notify(peer, 1)),
            5 | 6 => self.take(),
            _ => {
                self.loans.truncate(KEPT_MAX / 2);
                self.views.truncate(KEPT_MAX / 2);
            }
        }
    }

    /// Anybody who is bound on either of two nodes.
    fn somebody(&mut self) -> Option<Endpoint> {
        let slot = Slot(self.chance.below(2 * u64::from(SLOTS_PER_NODE)) as u16);
        self.me.lookup(slot).filter(|e| *e != self.me.whoami())
    }

    fn loan(&mut self) -> Option<Loan> {
        let len = self.chance.below(LOAN_BYTES_MAX) as usize;
        self.me.loan(len).ok()
    }

    fn keep_a_loan(&mut self) {
        let loan = self.loan().filter(|_| self.loans.len() < KEPT_MAX);
        self.loans.extend(loan);
    }

    fn post(&mut self, peer: Endpoint) {
        let mut message = Message::new(1).inline(&[7; 40]);
        if let Some(loan) = self.loan() {
            message = message.with(loan);
        }
        if let Err(PostError::Corrupt(why)) = self.me.post(peer, message) {
            report(format_args!("wrong: post to {peer}: {why}"));
        }
    }

    /// Only an echo answers; with others the time is over soon.
    fn call(&mut self, peer: Endpoint) {
        let mut message = Message::new(2).inline(&[9; 16]);
        if let Some(loan) = self.loan() {
            message = message.with(loan);
        }
        match self.me.sendrec(peer, message, BRIEFLY) {
            Ok(mut reply) => self.keep(reply.take_view()),
            Err(SendrecError::Corrupt(why)) => report(format_args!("wrong: call of {peer}: {why}")),
            Err(_) => {}
        }
    }

    fn take(&mut self) {
        match self.me.receive(From::Any, BRIEFLY) {
            Ok(mut delivery) => self.keep(delivery.take_view()),
            Err(dvk::ReceiveError::Corrupt(why)) => report(format_args!("wrong: receive: {why}")),
            Err(_) => {}
        }
    }

    fn keep(&mut self, view: Option<View>) {
        self.views.extend(view.filter(|_| self.views.len() < KEPT_MAX));
    }
}

/// Posts to one endpoint for a while, loans of so many bytes (0: none), and reports how many found room.
pub fn press(life: Life, slot: Slot, during: Duration, loan_bytes: usize) {
    let Life { mut me, orders } = life;
    let to = find(&mut me, slot);
    orders.next();
    let (until, mut posted) = (Instant::now() + during, 0u64);
    while Instant::now() < until {
        let mut message = Message::new(3).inline(&[1; 64]);
        if loan_bytes > 0 {
            let Ok(mut loan) = me.loan(loan_bytes) else { continue };
            loan.fill(posted as u8);
            message = message.with(loan);
        }
        match me.post(to, message) {
            Ok(()) => posted += 1,
            // Hard: it does not wait for room, it only lets others run.
            Err(PostError::Full(_)) => std::thread::sleep(Duration::from_micros(50)),
            Err(why) => panic!("post {posted}: {why}"),
        }
    }
    report(format_args!("posted {posted}"));
    orders.next();
}
