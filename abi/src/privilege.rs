//! What an endpoint may do: its level, and the kinds of calls it may make to another. The daemons decide by the cluster
//! file, once for each pair, at its introduction; both ends of the pair keep to it. Why: `docs/adr/0011-privileges.md`.

use crate::slot::Kind;

/// How much an endpoint is trusted with. Zero, what a DC without rules has, is a server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u8)]
pub enum Level {
    /// May do everything in its DC, unless a rule says less.
    #[default]
    Server = 0,
    /// May `sendrec` to servers, unless a rule says otherwise.
    User = 1,
    /// As a server; a name for rules to tell it by.
    Proxy = 2,
    /// As a server; a name for rules to tell it by.
    Kernel = 3,
}

impl Level {
    pub const ALL: [Level; 4] = [Level::User, Level::Server, Level::Proxy, Level::Kernel];

    /// The two low bits of any word are a level.
    pub const fn from_bits(bits: u8) -> Level {
        match bits & 3 {
            0 => Level::Server,
            1 => Level::User,
            2 => Level::Proxy,
            _ => Level::Kernel,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Level::User => "user",
            Level::Server => "server",
            Level::Proxy => "proxy",
            Level::Kernel => "kernel",
        }
    }

    pub fn from_name(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name() == name)
    }
}

/// A set of kinds of calls, one direction of a pair. The bit of what goes on a lane is that of its [`Kind`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Kinds(u16);

impl Kinds {
    pub const NONE: Kinds = Kinds(0);
    pub const POST: Kinds = Kinds(1 << Kind::Post as u16);
    pub const SEND: Kinds = Kinds(1 << Kind::Send as u16);
    pub const SENDREC: Kinds = Kinds(1 << Kind::Request as u16);
    /// A request passed on, and whose it is.
    pub const RELAY: Kinds = Kinds(1 << Kind::Via as u16 | 1 << Kind::Relayed as u16);
    /// Not a call: a client tells a server that it waits for the answer to what another passed on. Goes with
    /// [`Kinds::SENDREC`], to whomever.
    pub const CONFIRM: Kinds = Kinds(1 << Kind::Confirm as u16);
    pub const NOTIFY: Kinds = Kinds(1 << 8);
    pub const WAKE: Kinds = Kinds(1 << 9);
    /// Grants, and copies through them.
    pub const COPY: Kinds = Kinds(1 << 10);

    /// The calls that a rule can name.
    pub const NAMED: [(&'static str, Kinds); 7] = [
        ("send", Kinds::SEND),
        ("post", Kinds::POST),
        ("sendrec", Kinds::SENDREC),
        ("notify", Kinds::NOTIFY),
        ("wake", Kinds::WAKE),
        ("relay", Kinds::RELAY),
        ("copy", Kinds::COPY),
    ];

    /// Every call, and what goes with them.
    pub const ALL: Kinds = {
        let (mut all, mut at) = (Kinds::CONFIRM, 0);
        while at < Kinds::NAMED.len() {
            all = all.and(Kinds::NAMED[at].1);
            at += 1;
        }
        all
    };

    /// Bits that mean nothing are dropped.
    pub const fn from_bits(bits: u16) -> Kinds {
        Kinds(bits & Kinds::ALL.0)
    }

    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Both together.
    #[must_use]
    pub const fn and(self, other: Kinds) -> Kinds {
        Kinds(self.0 | other.0)
    }

    pub const fn has(self, all_of: Kinds) -> bool {
        self.0 & all_of.0 == all_of.0
    }

    /// Whether a lane may carry a slot of this kind. Cost: a shift. A reply is in no set: it has a ring of its own.
    #[inline(always)]
    pub const fn carries(self, kind: Kind) -> bool {
        self.0 >> kind as u16 & 1 != 0
    }

    /// Whether any call may be made: to confirm is none.
    pub const fn has_calls(self) -> bool {
        self.0 & !Kinds::CONFIRM.0 != 0
    }

    pub fn from_name(name: &str) -> Option<Kinds> {
        Kinds::NAMED.iter().find(|(named, _)| *named == name).map(|(_, kinds)| *kinds)
    }
}

/// What the two ends of a pair may send each other, as one of them sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Allowed {
    pub to_peer: Kinds,
    pub from_peer: Kinds,
}

impl Allowed {
    pub const ALL: Allowed = Allowed { to_peer: Kinds::ALL, from_peer: Kinds::ALL };

    pub const fn to_word(self) -> u64 {
        self.to_peer.0 as u64 | (self.from_peer.0 as u64) << 16
    }

    pub const fn from_word(word: u64) -> Allowed {
        Allowed { to_peer: Kinds::from_bits(word as u16), from_peer: Kinds::from_bits((word >> 16) as u16) }
    }

    /// As the other end sees it.
    #[must_use]
    pub const fn turned(self) -> Allowed {
        Allowed { to_peer: self.from_peer, from_peer: self.to_peer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back_and_no_two_calls_share_a_bit() {
        let mut seen = Kinds::CONFIRM;
        for (name, kinds) in Kinds::NAMED {
            assert_eq!(Kinds::from_name(name), Some(kinds));
            assert_eq!(seen.bits() & kinds.bits(), 0, "{name}");
            seen = seen.and(kinds);
        }
        assert_eq!(seen, Kinds::ALL);
        assert_eq!(Kinds::from_name("reply"), None);
        for level in Level::ALL {
            assert_eq!(Level::from_name(level.name()), Some(level));
            assert_eq!(Level::from_bits(level as u8 | 0xfc), level);
        }
    }

    #[test]
    fn a_set_carries_the_slots_of_its_calls_and_no_reply() {
        let lane = [Kind::Post, Kind::Send, Kind::Request, Kind::Via, Kind::Relayed, Kind::Confirm];
        assert!(lane.into_iter().all(|kind| Kinds::ALL.carries(kind) && !Kinds::NONE.carries(kind)));
        assert!(!Kinds::ALL.carries(Kind::Reply));
        assert!(Kinds::SENDREC.carries(Kind::Request) && !Kinds::SENDREC.carries(Kind::Send));
        assert!(Kinds::RELAY.carries(Kind::Via) && Kinds::RELAY.carries(Kind::Relayed));
        assert!(!Kinds::CONFIRM.has_calls() && Kinds::WAKE.has_calls());
    }

    #[test]
    fn what_is_allowed_survives_its_word_and_strange_bits_are_dropped() {
        let allowed = Allowed { to_peer: Kinds::SENDREC.and(Kinds::CONFIRM), from_peer: Kinds::ALL };
        assert_eq!(Allowed::from_word(allowed.to_word()), allowed);
        assert_eq!(Allowed::from_word(u64::MAX), Allowed::ALL);
        assert_eq!(allowed.turned().turned(), allowed);
        assert_eq!(allowed.turned().from_peer, allowed.to_peer);
    }
}
