//! The rules of a DC in the cluster file, `[[dc.privileges]]`: whom each fits, what it gives. What the words mean is in
//! `docs/privileges.md`.
//!
//! Neighbours: `checks`, which calls [`rules`]; `core::Rules`, which they become.

use abi::{Kinds, Level, Slot};
use toml::Spanned;

use super::checks::{Wrong, checked_name, wrong};
use super::shape::RuleShape;
use crate::core::{Destinations, Privileges, Range, Rule, Rules};

/// `slots`: how many the DC has, on all its nodes.
pub(super) fn rules(shapes: Option<&[RuleShape]>, slots: u16) -> Result<Rules, Wrong> {
    let Some(shapes) = shapes else { return Ok(Rules { rules: None }) };
    let mut rules: Vec<Rule> = Vec::new();
    for shape in shapes {
        let fits_all = |rule: &Rule| rule.slots.is_none() && rule.name.is_none() && rule.uid.is_none();
        if rules.last().is_some_and(fits_all) {
            let what = "this rule comes after one that fits everybody: move it further up, or leave it out";
            return Err(wrong(&shape.level, what));
        }
        rules.push(rule(shape, slots)?);
    }
    Ok(Rules { rules: Some(rules) })
}

fn rule(shape: &RuleShape, slots: u16) -> Result<Rule, Wrong> {
    let mut privileges = Privileges::of_level(level(&shape.level)?);
    if let Some(calls) = &shape.calls {
        let each = calls.iter().map(call).collect::<Result<Vec<Kinds>, Wrong>>()?;
        privileges.calls = each.into_iter().fold(Kinds::NONE, Kinds::and);
    }
    if shape.to_levels.is_some() || shape.to_slots.is_some() || shape.to_names.is_some() {
        let all = |list: &Option<Vec<Spanned<String>>>| list.iter().flatten().cloned().collect::<Vec<_>>();
        privileges.to = Destinations::Listed {
            levels: all(&shape.to_levels).iter().map(level).collect::<Result<_, _>>()?,
            slots: all(&shape.to_slots).iter().map(|r| range(r, slots)).collect::<Result<_, _>>()?,
            names: all(&shape.to_names).iter().map(|n| checked_name(n, "name")).collect::<Result<_, _>>()?,
        };
    }
    if let Some(warn) = &shape.warn {
        if *warn.get_ref() >= slots {
            return Err(wrong(warn, beyond(*warn.get_ref(), slots)));
        }
        privileges.warn = Some(Slot(*warn.get_ref()));
    }
    Ok(Rule {
        slots: shape.slots.as_ref().map(|text| range(text, slots)).transpose()?,
        name: shape.name.as_ref().map(|name| checked_name(name, "name")).transpose()?,
        uid: shape.uid,
        privileges,
    })
}

fn level(text: &Spanned<String>) -> Result<Level, Wrong> {
    let what = || format!("level {:?} is unknown: use {}", text.get_ref(), list(Level::ALL.map(Level::name)));
    Level::from_name(text.get_ref()).ok_or_else(|| wrong(text, what()))
}

fn call(text: &Spanned<String>) -> Result<Kinds, Wrong> {
    let what = || match text.get_ref().as_str() {
        "reply" => "a reply to a request is always allowed: leave it out".to_owned(),
        other => format!("call {other:?} is unknown: use {}", list(Kinds::NAMED.map(|(name, _)| name))),
    };
    Kinds::from_name(text.get_ref()).ok_or_else(|| wrong(text, what()))
}

/// `"3"` or `"0-15"`, both ends included.
fn range(text: &Spanned<String>, slots: u16) -> Result<Range, Wrong> {
    let said = text.get_ref();
    let (first, last) = said.split_once('-').unwrap_or((said, said));
    let (Ok(first), Ok(last)) = (first.trim().parse::<u16>(), last.trim().parse::<u16>()) else {
        return Err(wrong(
            text,
            format!("slots {said:?}: write one, as \"3\", or the first and last, as \"0-15\""),
        ));
    };
    if last >= slots {
        return Err(wrong(text, beyond(last, slots)));
    }
    if first > last {
        return Err(wrong(text, format!("slots {said:?}: the first comes first, as \"{last}-{first}\"")));
    }
    Ok(Range { first: Slot(first), count: last - first + 1 })
}

fn beyond(slot: u16, slots: u16) -> String {
    format!("slot {slot}: this DC has the slots 0 to {}", slots - 1)
}

fn list<const N: usize>(words: [&str; N]) -> String {
    let (last, first) = words.split_last().unwrap_or((&"", &[]));
    format!("{} or {last}", first.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Cluster;

    #[test]
    fn the_example_of_the_documentation_means_what_it_says() {
        let text = include_str!("../../../docs/privileges.md");
        let (_, rest) = text.split_once("```toml\n").unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        let node = "[[node]]\nid = 1\nname = \"a\"\naddress = \"127.0.0.1:1\"\n";
        let file = format!("name = \"x\"\n{node}{example}");
        let cluster = Cluster::parse(&file, std::path::Path::new("c.toml")).unwrap();
        let rules = cluster.dcs[0].rules.rules.as_ref().unwrap();
        let [server, meter, rest] = &rules[..] else { panic!("{rules:?}") };
        assert_eq!(server.slots, Some(Range { first: Slot(0), count: 16 }));
        assert_eq!((server.uid, server.privileges.warn), (Some(1000), Some(Slot(0))));
        assert_eq!(meter.privileges.calls, Kinds::POST.and(Kinds::NOTIFY));
        let Destinations::Listed { levels, slots, names } = &meter.privileges.to else { panic!("all") };
        assert_eq!((&levels[..], slots.len(), names.len()), (&[Level::Kernel][..], 2, 1));
        assert_eq!(rest.privileges, Privileges::of_level(Level::User));
    }
}
