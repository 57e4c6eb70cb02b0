//! A DC's rules as words, as part of its description. What is read is a claim: no bit of it may be left over.
//!
//! Neighbours: `privileges` (what rules mean), `spec` (the description).

use abi::limits::{RULE_WORDS_PER_DC_MAX, SLOTS_PER_DC};
use abi::{Kinds, Level, Name, Slot};

use super::{Destinations, Privileges, Range, Rule, Rules};

/// What the first word of a rule says of it: the level and the calls too.
const SLOTS: u64 = 1 << 2;
const NAME: u64 = 1 << 3;
const UID: u64 = 1 << 4;
const LISTED: u64 = 1 << 5;
const WARN: u64 = 1 << 6;
const CALLS_AT: u32 = 16;
const WARN_AT: u32 = 32;

impl Rules {
    /// The number of rules, and one more: 0 is a DC without rules. Then each.
    pub fn to_words(&self) -> Vec<u64> {
        let Some(rules) = &self.rules else { return vec![0] };
        let mut words = vec![rules.len() as u64 + 1];
        rules.iter().for_each(|rule| put_rule(rule, &mut words));
        words
    }

    /// `None` unless the words are all of some rules, and as their author would write them.
    pub fn from_words(words: &[u64]) -> Option<Rules> {
        if words.len() > RULE_WORDS_PER_DC_MAX {
            return None;
        }
        let mut rest = words.iter().copied();
        let rules = match rest.next()? {
            0 => None,
            count => Some((1..count).map(|_| rule(&mut rest)).collect::<Option<Vec<Rule>>>()?),
        };
        let rules = Rules { rules };
        (rules.to_words() == words).then_some(rules)
    }
}

fn put_rule(rule: &Rule, words: &mut Vec<u64>) {
    let Privileges { level, calls, to, warn } = &rule.privileges;
    let flag = |is: bool, bit| if is { bit } else { 0 };
    words.push(
        u64::from(*level as u8)
            | flag(rule.slots.is_some(), SLOTS)
            | flag(rule.name.is_some(), NAME)
            | flag(rule.uid.is_some(), UID)
            | flag(*to != Destinations::All, LISTED)
            | flag(warn.is_some(), WARN)
            | u64::from(calls.bits()) << CALLS_AT
            | warn.map_or(0, |slot| u64::from(slot.0) << WARN_AT),
    );
    words.extend(rule.slots.map(range_word));
    words.extend(rule.name.iter().flat_map(|name| name.to_words()));
    words.extend(rule.uid.map(u64::from));
    if let Destinations::Listed { levels, slots, names } = to {
        words.extend([levels.len() as u64, slots.len() as u64, names.len() as u64]);
        words.extend(levels.iter().map(|level| u64::from(*level as u8)));
        words.extend(slots.iter().map(|range| range_word(*range)));
        words.extend(names.iter().flat_map(|name| name.to_words()));
    }
}

fn range_word(range: Range) -> u64 {
    u64::from(range.first.0) | u64::from(range.count) << 16
}

fn rule(words: &mut impl Iterator<Item = u64>) -> Option<Rule> {
    let head = words.next()?;
    let has = |bit| head & bit != 0;
    let slots = if has(SLOTS) { Some(range(words)?) } else { None };
    let name = if has(NAME) { Some(name(words)?) } else { None };
    let uid = if has(UID) { Some(u32::try_from(words.next()?).ok()?) } else { None };
    let warn = Slot((head >> WARN_AT) as u16);
    let privileges = Privileges {
        level: Level::from_bits(head as u8),
        calls: Kinds::from_bits((head >> CALLS_AT) as u16),
        to: if has(LISTED) { destinations(words)? } else { Destinations::All },
        warn: has(WARN).then_some(warn).filter(|slot| slot.0 < SLOTS_PER_DC),
    };
    Some(Rule { slots, name, uid, privileges })
}

fn destinations(words: &mut impl Iterator<Item = u64>) -> Option<Destinations> {
    let (levels, slots, names) = (words.next()?, words.next()?, words.next()?);
    Some(Destinations::Listed {
        levels: (0..levels)
            .map(|_| words.next().map(|w| Level::from_bits(w as u8)))
            .collect::<Option<_>>()?,
        slots: (0..slots).map(|_| range(words)).collect::<Option<_>>()?,
        names: (0..names).map(|_| name(words)).collect::<Option<_>>()?,
    })
}

fn range(words: &mut impl Iterator<Item = u64>) -> Option<Range> {
    let word = words.next()?;
    let range = Range { first: Slot(word as u16), count: (word >> 16) as u16 };
    let end = u32::from(range.first.0) + u32::from(range.count);
    (range.count > 0 && end <= u32::from(SLOTS_PER_DC)).then_some(range)
}

fn name(words: &mut impl Iterator<Item = u64>) -> Option<Name> {
    let name = [words.next()?, words.next()?, words.next()?, words.next()?];
    Name::from_words(name).filter(|name| !name.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        let range = |first, count| Range { first: Slot(first), count };
        let kv = Name::new("kv").unwrap();
        let to = Destinations::Listed {
            levels: vec![Level::Server, Level::Kernel],
            slots: vec![range(0, 1), range(9, SLOTS_PER_DC - 9)],
            names: vec![kv],
        };
        let listed = Privileges { level: Level::Proxy, calls: Kinds::POST, to, warn: Some(Slot(7)) };
        Rules {
            rules: Some(vec![
                Rule { slots: Some(range(3, 4)), name: Some(kv), uid: Some(u32::MAX), privileges: listed },
                Rule { slots: None, name: None, uid: None, privileges: Privileges::of_level(Level::User) },
            ]),
        }
    }

    #[test]
    fn rules_survive_their_words_and_no_others_are_some() {
        for rules in [rules(), Rules { rules: None }, Rules { rules: Some(Vec::new()) }] {
            assert_eq!(Rules::from_words(&rules.to_words()), Some(rules));
        }
        let words = rules().to_words();
        assert_eq!(Rules::from_words(&[&words[..], &[0]].concat()), None);
        for len in 0..words.len() {
            assert_eq!(Rules::from_words(&words[..len]), None);
        }
        for bit in 0..words.len() * 64 {
            let mut flipped = words.clone();
            flipped[bit / 64] ^= 1 << (bit % 64);
            assert!(Rules::from_words(&flipped).is_none_or(|rules| rules.to_words() == flipped));
        }
    }

    #[test]
    fn so_many_words_are_read_and_not_one_more() {
        let one =
            Rule { slots: None, name: None, uid: None, privileges: Privileges::of_level(Level::Server) };
        let with = |count| Rules { rules: Some(vec![one.clone(); count]) };
        let most = with(RULE_WORDS_PER_DC_MAX - 1);
        assert_eq!(Rules::from_words(&most.to_words()), Some(most));
        assert_eq!(Rules::from_words(&with(RULE_WORDS_PER_DC_MAX).to_words()), None);
    }
}
