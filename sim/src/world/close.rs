//! The end of a run: every invariant that speaks of the whole is asked, once all is healed and drained.

use abi::NodeId;

use super::{Outcome, World};
use crate::invariants::{calls_end, conservation, credits, deaths, directory, no_loss, notifications};
use crate::net::lock;

impl World {
    pub(super) fn close(mut self) -> Outcome {
        if self.ledger.findings.is_empty() {
            self.ask_all();
        }
        let messages =
            self.ledger.streams.values().map(|s| s.sent.iter().filter(|m| m.delivered).count() as u64).sum();
        Outcome {
            hash: self.trace.hash(),
            findings: self.ledger.findings,
            calls: self.calls,
            rows: self.rows,
            faults: self.faults,
            events: self.done,
            nodes: self.homes.len() as u64,
            endpoints: self.programs.len() as u64,
            messages,
            net: lock(&self.net).counts,
            last_lines: self.trace.columns(self.homes.len() as u16),
        }
    }

    fn ask_all(&mut self) {
        for at in 0..self.programs.len() {
            let Some(body) = &mut self.programs[at].body else { continue };
            let (me, waits) = (body.me, body.waits());
            self.ledger.find("calls end", calls_end::drained(me, waits));
        }
        self.ledger.find("no loss", no_loss::drained(&self.ledger));
        self.ledger.find("notifications", notifications::drained(&self.ledger));
        self.ledger.find("deaths", deaths::drained(&self.ledger));
        self.ledger.ask_all_quiet();
        for at in 0..self.programs.len() {
            let Some(body) = &mut self.programs[at].body else { continue };
            let (me, tally) = (body.me, body.audit());
            self.ledger.find("conservation", conservation::drained(&me, tally));
        }
        let all: Vec<_> = self.programs.iter().filter_map(|program| program.me()).collect();
        for at in 0..self.programs.len() {
            let Some(body) = &mut self.programs[at].body else { continue };
            let me = body.me;
            for other in all.iter().filter(|other| **other != me) {
                self.ledger.find("directory", directory::drained(me, body.core.lookup(other.slot), *other));
                if let Some(index) = body.core.find(*other) {
                    let has_room = body.core.has_room(index) == Ok(true);
                    self.ledger.find("credits", credits::drained(me, *other, has_room));
                }
            }
        }
        for home in &self.homes {
            let id: NodeId = home.site.id;
            let who = format!("the proxy of node {id}");
            if let Some(proxy) = &home.proxy {
                self.ledger.find("conservation", conservation::drained(&who, proxy.courier.audit()));
            }
            self.ledger.find("conservation", conservation::completed(&who, lock(&self.net).open(id)));
        }
        let unbound = self.programs.iter().filter(|p| p.body.is_none()).count();
        let unbound = (unbound > 0).then(|| format!("{unbound} programs could not bind again"));
        self.ledger.find("calls end", unbound);
    }
}
