//! What endpoints may do: the cluster file's rules, whom they fit, and what that makes of a pair. Decided once for each
//! pair, where it is introduced. Why: `docs/adr/0011-privileges.md`.
//!
//! Key types: [`Rules`], [`Privileges`]. Neighbours: `config::privileges`, which reads them; `pairs` and `routes`, which ask.

use abi::member::{Refusal, Reply};
use abi::{Allowed, DcId, Endpoint, Kinds, Level, Name, Slot};
use serde::{Deserialize, Serialize};

use super::effect::Effect;
use super::members::{refuse, reply};
use super::pairs::ring;
use super::plan::Range;
use super::{ConnId, Core};

/// What rules know an endpoint by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    pub slot: Slot,
    pub name: Name,
    pub uid: u32,
}

/// One rule: whom it fits, and what it gives them. What it does not name it does not ask for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rule {
    pub slots: Option<Range>,
    pub name: Option<Name>,
    pub uid: Option<u32>,
    pub privileges: Privileges,
}

/// What an endpoint may do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Privileges {
    pub level: Level,
    pub calls: Kinds,
    pub to: Destinations,
    /// Whoever is bound in this slot hears of its end.
    pub warn: Option<Slot>,
}

/// Whom an endpoint may call: everybody, or whoever is in one of the lists.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Destinations {
    All,
    Listed { levels: Vec<Level>, slots: Vec<Range>, names: Vec<Name> },
}

/// A DC's rules, in the order of the file: the first that fits decides.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Rules {
    /// `None`: the file says nothing of privileges, and everybody is a server.
    pub rules: Option<Vec<Rule>>,
}

impl Privileges {
    /// What a level may do unless a rule says otherwise.
    pub fn of_level(level: Level) -> Privileges {
        match level {
            Level::User => Privileges {
                level,
                calls: Kinds::SENDREC,
                to: Destinations::Listed { levels: vec![Level::Server], slots: vec![], names: vec![] },
                warn: None,
            },
            Level::Server | Level::Proxy | Level::Kernel => {
                Privileges { level, calls: Kinds::ALL, to: Destinations::All, warn: None }
            }
        }
    }

    /// What its holder may send to that endpoint. A call that is passed on leads anywhere, so who may call may confirm.
    fn towards(&self, other: &Identity, level: Level) -> Kinds {
        let may = match &self.to {
            Destinations::All => true,
            Destinations::Listed { levels, slots, names } => {
                levels.contains(&level)
                    || slots.iter().any(|range| range.contains(other.slot))
                    || names.contains(&other.name)
            }
        };
        let confirms = if self.calls.has(Kinds::SENDREC) { Kinds::CONFIRM } else { Kinds::NONE };
        if may { self.calls.and(confirms) } else { confirms }
    }
}

impl Rule {
    fn fits(&self, who: &Identity) -> bool {
        self.slots.is_none_or(|range| range.contains(who.slot))
            && self.name.is_none_or(|name| name == who.name)
            && self.uid.is_none_or(|uid| uid == who.uid)
    }
}

impl Rules {
    pub fn of(&self, who: &Identity) -> Privileges {
        match &self.rules {
            None => Privileges::of_level(Level::Server),
            Some(rules) => match rules.iter().find(|rule| rule.fits(who)) {
                Some(rule) => rule.privileges.clone(),
                None => Privileges::of_level(Level::User),
            },
        }
    }

    /// What two endpoints may send each other, as the first sees it.
    pub fn between(&self, own: &Identity, peer: &Identity) -> Allowed {
        if self.rules.is_none() {
            return Allowed::ALL;
        }
        let (ours, theirs) = (self.of(own), self.of(peer));
        Allowed { to_peer: ours.towards(peer, theirs.level), from_peer: theirs.towards(own, ours.level) }
    }

    /// Whether it must be known who an endpoint is, and its slot is not enough.
    pub fn ask_who(&self) -> bool {
        let by_name = |to: &Destinations| match to {
            Destinations::All => false,
            Destinations::Listed { names, .. } => !names.is_empty(),
        };
        self.rules
            .iter()
            .flatten()
            .any(|rule| rule.name.is_some() || rule.uid.is_some() || by_name(&rule.privileges.to))
    }
}

impl Core {
    pub(super) fn rules(&self, dc: DcId) -> Option<&Rules> {
        self.plan.dcs.get(&dc).map(|plan| &plan.rules)
    }

    /// Who an endpoint is, as far as it can be known here: one of another node by what its daemon said of it.
    /// `None`: nothing was said of this generation, or no longer is known, and a rule asks for it.
    pub(super) fn identity(&self, endpoint: Endpoint) -> Option<Identity> {
        let slot = endpoint.slot;
        if let Some(local) = self.locals.get(&endpoint) {
            return Some(Identity { slot, name: local.name, uid: local.process.uid });
        }
        let remote = self.dcs.get(&endpoint.dc)?.remotes.get(&slot);
        match remote.filter(|remote| remote.generation == endpoint.generation) {
            Some(remote) => Some(Identity { slot, name: remote.name, uid: remote.uid }),
            None if self.rules(endpoint.dc)?.ask_who() => None,
            None => Some(Identity { slot, name: Name::NONE, uid: 0 }),
        }
    }

    pub(super) fn level(&self, dc: DcId, who: &Identity) -> Level {
        self.rules(dc).map_or_else(Level::default, |rules| rules.of(who).level)
    }

    /// What two endpoints may send each other, as `own` sees it.
    pub(super) fn allowed(&self, own: Endpoint, peer: Endpoint) -> Option<Allowed> {
        let (ours, theirs) = (self.identity(own)?, self.identity(peer)?);
        Some(self.rules(own.dc)?.between(&ours, &theirs))
    }

    /// What a pair that `own` asks for may carry. To `follow` a call of its own, to confirm is enough.
    pub(super) fn permitted(&self, own: Endpoint, to: Endpoint, follow: bool) -> Result<Allowed, Refusal> {
        let allowed = self.allowed(own, to).ok_or(Refusal::NoSuchEndpoint)?;
        let calls = allowed.to_peer.has_calls() || allowed.from_peer.has_calls();
        let answer = follow && allowed.to_peer.has(Kinds::CONFIRM);
        if calls || answer { Ok(allowed) } else { Err(Refusal::NotPermitted) }
    }

    pub(super) fn privileges(&self, conn: ConnId, own: Endpoint, out: &mut Vec<Effect>) {
        let known = self.identity(own).and_then(|who| Some(self.rules(own.dc)?.of(&who)));
        match known {
            Some(Privileges { level, calls, warn, .. }) => {
                reply(conn, Reply::Privileges { level, calls, warn }, out);
            }
            None => refuse(conn, Refusal::NoSuchEndpoint, out),
        }
    }

    /// An endpoint has ended, here or elsewhere: if its warn target's slot is one of ours, that hears of it, or its next
    /// holder does.
    pub(super) fn warn_of(&mut self, endpoint: Endpoint, who: &Identity, out: &mut Vec<Effect>) {
        let Some(target) = self.rules(endpoint.dc).and_then(|rules| rules.of(who).warn) else { return };
        if !self.plan.own_range(endpoint.dc).is_some_and(|range| range.contains(target)) {
            return;
        }
        let Some(dc) = self.dcs.get_mut(&endpoint.dc) else { return };
        dc.warnings.insert(endpoint.slot, (target, endpoint));
        if let Some(holder) = dc.slots.get(&target).and_then(|slot| slot.holder) {
            self.hint_warnings(holder, out);
        }
    }

    /// Rings an endpoint if somebody's end waits to be told to it.
    pub(super) fn hint_warnings(&self, own: Endpoint, out: &mut Vec<Effect>) {
        let waits = |dc: &super::state::Dc| dc.warnings.values().any(|(target, _)| *target == own.slot);
        if self.dcs.get(&own.dc).is_some_and(waits) {
            out.push(ring(own, None, true));
        }
    }

    /// The next ended endpoint that `own` is to hear of.
    pub(super) fn next_warning(&mut self, own: Endpoint) -> Option<Endpoint> {
        let dc = self.dcs.get_mut(&own.dc)?;
        let (slot, (_, endpoint)) = dc.warnings.iter().find(|(_, (target, _))| *target == own.slot)?;
        let (slot, endpoint) = (*slot, *endpoint);
        dc.warnings.remove(&slot);
        Some(endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(slot: u16, name: &str, uid: u32) -> Identity {
        let name = if name.is_empty() { Name::NONE } else { Name::new(name).unwrap() };
        Identity { slot: Slot(slot), name, uid }
    }

    fn rule(level: Level) -> Rule {
        Rule { slots: None, name: None, uid: None, privileges: Privileges::of_level(level) }
    }

    fn servers_below(count: u16) -> Rule {
        Rule { slots: Some(Range { first: Slot(0), count }), ..rule(Level::Server) }
    }

    #[test]
    fn without_rules_everybody_is_a_server_and_with_some_whoever_fits_none_is_a_user() {
        let one = who(9, "", 5);
        assert_eq!(Rules::default().of(&one), Privileges::of_level(Level::Server));
        assert_eq!(Rules::default().between(&one, &who(1, "", 5)), Allowed::ALL);
        let rules = Rules { rules: Some(vec![servers_below(9)]) };
        assert_eq!(rules.of(&one).level, Level::User);
        assert_eq!(rules.of(&who(8, "", 5)).level, Level::Server);
    }

    #[test]
    fn a_user_may_call_servers_and_nobody_else_and_servers_may_do_everything() {
        let rules = Rules { rules: Some(vec![servers_below(2)]) };
        let (server, user, other) = (who(0, "", 5), who(2, "", 5), who(3, "", 5));
        let between = rules.between(&user, &server);
        assert_eq!(between.to_peer, Kinds::SENDREC.and(Kinds::CONFIRM));
        assert_eq!(between.from_peer, Kinds::ALL);
        assert_eq!(rules.between(&server, &user), between.turned());
        let users = rules.between(&user, &other);
        assert_eq!((users.to_peer, users.from_peer), (Kinds::CONFIRM, Kinds::CONFIRM));
    }

    #[test]
    fn the_first_rule_that_fits_in_all_that_it_names_decides() {
        let named = Rule { name: Some(Name::new("kv").unwrap()), uid: Some(7), ..rule(Level::Kernel) };
        let rules = Rules { rules: Some(vec![named, servers_below(2)]) };
        assert_eq!(rules.of(&who(0, "kv", 7)).level, Level::Kernel);
        assert_eq!(rules.of(&who(0, "kv", 8)).level, Level::Server, "the name alone is not enough");
        assert_eq!(rules.of(&who(5, "kv", 8)).level, Level::User);
        assert!(rules.ask_who() && !Rules { rules: Some(vec![servers_below(2)]) }.ask_who());
    }

    #[test]
    fn destinations_are_levels_slots_and_names() {
        let mut privileges = Privileges::of_level(Level::Server);
        privileges.calls = Kinds::POST;
        privileges.to = Destinations::Listed {
            levels: vec![Level::Kernel],
            slots: vec![Range { first: Slot(4), count: 2 }],
            names: vec![Name::new("log").unwrap()],
        };
        assert_eq!(privileges.towards(&who(9, "", 0), Level::Kernel), Kinds::POST);
        assert_eq!(privileges.towards(&who(5, "", 0), Level::User), Kinds::POST);
        assert_eq!(privileges.towards(&who(6, "", 0), Level::User), Kinds::NONE, "no calls, no confirming");
        assert_eq!(privileges.towards(&who(9, "log", 0), Level::User), Kinds::POST);
    }
}
