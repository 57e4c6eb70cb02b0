//! Where `unsafe` may stand and what it must say. The keyword in strings, comments and lint names does not count.

use super::scan::{Source, docs_above};
use super::{Tree, Violation};

/// Folders that may hold `unsafe`; all else forbids it to the compiler.
const ROOMS: &[&str] = &["shm/", "proxy-rdma/src/verbs/"];

/// How many lines above an unsafe block its reason may begin.
const REASON_REACH: usize = 6;

fn may_hold_unsafe(path: &str) -> bool {
    ROOMS.iter().any(|room| path.starts_with(room))
}

/// Rule `unsafe-rooms`.
pub fn check_rooms(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for source in tree.sources.iter().filter(|s| !may_hold_unsafe(&s.path)) {
        for token in source.tokens.iter().filter(|t| t.text == "unsafe") {
            found.push(Violation::at(
                source,
                token.line,
                "`unsafe` outside its room",
                "put a safe function for it in `shm` and call that",
            ));
        }
    }
    for root in tree.packages.iter().flat_map(|p| &p.roots).filter(|r| !may_hold_unsafe(r)) {
        let Some(source) = tree.sources.iter().find(|s| s.path == *root) else { continue };
        // What is forbidden cannot be allowed to a room within.
        let folder = root.rsplit_once('/').map_or("", |(folder, _)| folder);
        let has_room =
            ROOMS.iter().any(|room| room.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')));
        let words = if has_room { &["forbid", "deny"][..] } else { &["forbid"] };
        let says = |word: &&str| {
            let wanted = ["#", "!", "[", *word, "(", "unsafe_code", ")", "]"];
            (0..source.tokens.len()).any(|at| source.matches(at, &wanted))
        };
        if !words.iter().any(says) {
            found.push(Violation::of_file(
                root,
                "the crate does not forbid unsafe code",
                "write `#![forbid(unsafe_code)]` under its `//!` lines",
            ));
        }
    }
    found
}

/// Rule `unsafe-reasons`.
pub fn check_reasons(tree: &Tree) -> Vec<Violation> {
    tree.sources.iter().flat_map(reasons_missing).collect()
}

fn reasons_missing(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    for (at, token) in source.tokens.iter().enumerate().filter(|(_, t)| t.text == "unsafe") {
        let missing = match kind_of(source, at) {
            Kind::Block => {
                let said = source.comments_near(token.line, REASON_REACH).contains("SAFETY:");
                (!said)
                    .then_some(("an unsafe block without its reason", "write `// SAFETY: …` right above it"))
            }
            Kind::Declaration => {
                let said = docs_above(&source.lines, token.line).contains("# Safety");
                (!said).then_some((
                    "an unsafe declaration that does not say what its user must keep",
                    "add a `# Safety` section to its documentation",
                ))
            }
            Kind::Other => None,
        };
        if let Some((what, remedy)) = missing {
            found.push(Violation::at(source, token.line, what, remedy));
        }
    }
    found
}

enum Kind {
    /// A block, an `impl` or an `extern` block: it makes a promise.
    Block,
    /// A function or trait: it asks for one.
    Declaration,
    /// A function type, an attribute: nothing to say.
    Other,
}

fn kind_of(source: &Source, at: usize) -> Kind {
    let mut next = at + 1;
    if source.text(next) == "extern" {
        next += 1;
        while source.text(next).starts_with('"') {
            next += 1;
        }
    }
    match source.text(next) {
        "{" | "impl" => Kind::Block,
        // After `fn` a type goes on with its arguments, a declaration with its name.
        "fn" if source.text(next + 1) != "(" => Kind::Declaration,
        "trait" => Kind::Declaration,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Package, tree_of};
    use super::*;

    fn reasons(text: &str) -> usize {
        check_reasons(&tree_of(&[("shm/src/a.rs", text)])).len()
    }

    #[test]
    fn unsafe_outside_shm_is_seen_and_in_strings_is_not() {
        let bad = [("dvk/src/a.rs", "fn a() { unsafe { b() } }")];
        assert_eq!(check_rooms(&tree_of(&bad)).len(), 1);
        let good = [
            ("dvk/src/a.rs", "// unsafe\nfn a() { b(\"unsafe\"); }"),
            ("shm/tests/kill.rs", "fn a() { unsafe { b() } }"),
        ];
        assert_eq!(check_rooms(&tree_of(&good)), []);
    }

    #[test]
    fn a_crate_root_forbids_unsafe() {
        let tree = |text| {
            let mut tree = tree_of(&[("dvk/src/lib.rs", text)]);
            tree.packages.push(Package { roots: vec!["dvk/src/lib.rs".into()], ..Package::default() });
            check_rooms(&tree).len()
        };
        assert_eq!(tree("//! D.\n#![forbid(unsafe_code)]\n"), 0);
        assert_eq!(tree("//! D.\n#![deny(unsafe_code)]\n"), 1);
    }

    #[test]
    fn blocks_and_impls_need_a_reason() {
        assert_eq!(reasons("fn a() {\n unsafe { b() }\n}"), 1);
        assert_eq!(reasons("unsafe impl Send for A {}"), 1);
        assert_eq!(reasons("fn a() {\n // SAFETY: it is so.\n let x =\n unsafe { b() };\n}"), 0);
        assert_eq!(reasons("// SAFETY: 1. One.\n//  2. Two.\nunsafe impl Send for A {}"), 0);
    }

    #[test]
    fn a_long_reason_counts_from_its_beginning() {
        let long = format!("// SAFETY: 1. One.\n{}unsafe {{ b() }}", "// more.\n".repeat(9));
        assert_eq!(reasons(&long), 0);
        let far = format!("// SAFETY: 1. One.\n{}unsafe {{ b() }}", "more();\n".repeat(9));
        assert_eq!(reasons(&far), 1);
    }

    #[test]
    fn unsafe_functions_document_their_terms() {
        assert_eq!(reasons("/// A.\npub unsafe fn a() {}"), 1);
        assert_eq!(reasons("/// A.\n///\n/// # Safety\n/// Keep it.\n#[inline]\npub unsafe fn a() {}"), 0);
        assert_eq!(reasons("unsafe extern \"C\" fn a() {}"), 1);
    }

    #[test]
    fn function_types_and_attributes_say_nothing() {
        assert_eq!(
            reasons("type F = unsafe extern \"C\" fn(u8);\n#[unsafe(no_mangle)]\nfn a(f: unsafe fn()) {}"),
            0
        );
    }
}
