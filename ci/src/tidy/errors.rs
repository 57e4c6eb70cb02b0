//! Each way to fail is one that somebody has seen: every variant of an error type is named in a test.
//!
//! An error type is an enum outside of tests whose name ends in `Error`, or one of [`REFUSALS`], which are said in answers
//! and inside errors. A variant is named where test code says `Type::Variant`.

use super::scan::Source;
use super::{Tree, Violation};
use std::collections::BTreeSet;

/// Reasons that are errors by another name.
const REFUSALS: [&str; 4] = ["Refusal", "Refused", "Unavailable", "DcRefusal"];

/// Rule `errors-tested`.
pub fn check(tree: &Tree) -> Vec<Violation> {
    let named: BTreeSet<(&str, &str)> = tree.sources.iter().flat_map(named_in_tests).collect();
    let mut found = Vec::new();
    for source in tree.sources.iter().filter(|source| source.is_in_src()) {
        for (line, name, variant) in variants(source) {
            if !named.contains(&(name, variant)) {
                found.push(Violation::at(
                    source,
                    line,
                    format!("no test names `{name}::{variant}`"),
                    "provoke it in a test, or delete it if it cannot come about",
                ));
            }
        }
    }
    found
}

/// `Type::Variant` wherever test code says it.
fn named_in_tests(source: &Source) -> impl Iterator<Item = (&str, &str)> {
    source.tokens.windows(3).filter_map(|three| {
        let [name, colons, variant] = three else { return None };
        let is_named = colons.text == "::" && source.lines[variant.line].is_test;
        is_named.then_some((name.text.as_str(), variant.text.as_str()))
    })
}

/// The variants of the error types of a file: line, type, variant.
fn variants(source: &Source) -> Vec<(usize, &str, &str)> {
    let mut found = Vec::new();
    for at in 0..source.tokens.len() {
        let (name, open) = (source.text(at + 1), at + 2);
        let is_error = name.ends_with("Error") || REFUSALS.contains(&name);
        let is_enum = source.text(at) == "enum" && source.text(open) == "{";
        if !is_error || !is_enum || source.lines[source.tokens[at].line].is_test {
            continue;
        }
        found.extend(variants_of(source, open).into_iter().map(|i| {
            let variant = &source.tokens[i];
            (variant.line, name, variant.text.as_str())
        }));
    }
    found
}

/// The tokens that are variants, of the enum whose brace stands at `open`: the first identifier of each part.
fn variants_of(source: &Source, open: usize) -> Vec<usize> {
    let (mut found, mut depth, mut is_first) = (Vec::new(), 1, true);
    let mut at = open + 1;
    while at < source.tokens.len() && depth > 0 {
        match source.text(at) {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth -= 1,
            "," if depth == 1 => is_first = true,
            "#" => {}
            text if depth == 1 && is_first && text.starts_with(char::is_uppercase) => {
                found.push(at);
                is_first = false;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tree_of;
    use super::*;

    const ERRORS: &str = "//! x\n/// Why.\npub enum OpenError {\n    #[error(\"no {0}\")]\n    Gone(Path),\n    \
                          Full { at: u64, why: Reason },\n    Odd = 3,\n}\nenum Fine { Alone }\n";

    #[test]
    fn variants_that_no_test_names_are_found_and_others_are_not() {
        let tests = "use a::OpenError;\n#[test]\nfn t() { assert!(matches!(x, OpenError::Full { .. })); }\n";
        let tree = tree_of(&[("a/src/lib.rs", ERRORS), ("a/tests/t.rs", tests)]);
        let said: Vec<_> = check(&tree).into_iter().map(|v| (v.line, v.what)).collect();
        let missing = |line, variant| (line, format!("no test names `OpenError::{variant}`"));
        assert_eq!(said, [missing(5, "Gone"), missing(7, "Odd")]);
    }

    #[test]
    fn what_the_code_itself_names_is_not_tested_by_that() {
        let code = format!("{ERRORS}fn f() {{ g(OpenError::Gone, OpenError::Full, OpenError::Odd) }}\n");
        let tree = tree_of(&[("a/src/lib.rs", &code)]);
        assert_eq!(check(&tree).len(), 3);
        let tested = format!(
            "{ERRORS}#[cfg(test)]\nmod tests {{ fn f() {{ g(OpenError::Gone, OpenError::Full, OpenError::Odd) }} }}\n"
        );
        assert!(check(&tree_of(&[("a/src/lib.rs", &tested)])).is_empty());
    }
}
