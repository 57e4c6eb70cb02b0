//! Which crate may depend on which. The table is the house's: arrows point down only. Neighbour: `ARCHITECTURE.md`,
//! which says the same to readers; change both or neither.

use super::{Package, Tree, Violation};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// Crate, and what it may need to build.
const ALLOWED: &[(&str, &[&str])] = &[
    ("abi", &[]),
    ("shm", &["abi"]),
    ("fabric", &["abi", "shm"]),
    ("proxy-tcp", &["fabric", "shm", "abi"]),
    ("proxy-rdma", &["proxy-tcp", "fabric", "shm", "abi"]),
    ("dpdk-sys", &[]),
    ("proxy-dpdk", &["fabric", "shm", "abi", "dpdk-sys"]),
    ("dvk", &["fabric", "shm", "abi"]),
    ("aio", &["dvk", "abi"]),
    ("rpc", &["dvk", "abi"]),
    ("libdvk", &["dvk", "abi"]),
    ("services", &["abi"]),
    ("node", &["fabric", "dvk", "services", "shm", "abi", "proxy-tcp"]),
    ("dvs", &["node", "rpc", "dvk", "proxy-tcp", "fabric", "shm", "abi"]),
    ("sim", &["node", "dvk", "services", "fabric", "shm", "abi"]),
    ("vos", &["dvk", "services", "abi"]),
    ("unikernel", &["dvk", "services", "abi"]),
    (
        "bench",
        &[
            "abi",
            "shm",
            "fabric",
            "proxy-tcp",
            "proxy-rdma",
            "dvk",
            "services",
            "node",
            "dvs",
            "sim",
            "libdvk",
        ],
    ),
    ("ci", &[]),
    ("rxe-guest", &[]),
];

fn allowed(name: &str) -> Option<&'static [&'static str]> {
    ALLOWED.iter().find(|(n, _)| *n == name).map(|(_, needs)| *needs)
}

/// Everything `name` may reach, itself excepted.
fn below(name: &str) -> BTreeSet<&'static str> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&str> = vec![name];
    while let Some(next) = open.pop() {
        for need in allowed(next).unwrap_or(&[]) {
            if found.insert(*need) {
                open.push(need);
            }
        }
    }
    found
}

/// The workspace's crates, from `cargo metadata --no-deps`.
pub fn packages(root: &Path, metadata: &Value) -> Vec<Package> {
    let empty = Vec::new();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let all = metadata["packages"].as_array().unwrap_or(&empty);
    let names: BTreeSet<&str> = all.iter().filter_map(|p| p["name"].as_str()).collect();
    let mut packages = Vec::new();
    for package in all {
        let mut found =
            Package { name: package["name"].as_str().unwrap_or_default().to_owned(), ..Package::default() };
        for need in list(&package["dependencies"]) {
            let name = need["name"].as_str().unwrap_or_default();
            if !names.contains(name) || need["path"].is_null() {
                continue;
            }
            let kind = need["kind"].as_str().unwrap_or("normal");
            if kind == "dev" { &mut found.dev_needs } else { &mut found.needs }.push(name.to_owned());
        }
        for target in list(&package["targets"]) {
            let is_root = list(&target["kind"]).iter().any(|k| {
                matches!(k.as_str(), Some("lib" | "bin" | "proc-macro" | "cdylib" | "staticlib" | "rlib"))
            });
            let path = target["src_path"].as_str().map(Path::new).and_then(|p| p.strip_prefix(root).ok());
            if let Some(path) = path.filter(|_| is_root) {
                found.roots.push(path.to_string_lossy().into_owned());
            }
        }
        packages.push(found);
    }
    packages
}

/// Rule `arrows`.
pub fn check(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for package in &tree.packages {
        let manifest = format!("{}/Cargo.toml", package.name);
        let Some(may) = allowed(&package.name) else {
            found.push(Violation::of_file(
                &manifest,
                format!("`{}` has no place in the house", package.name),
                "add it to the table in ci/src/tidy/arrows.rs and in ARCHITECTURE.md",
            ));
            continue;
        };
        for need in package.needs.iter().filter(|n| !may.contains(&n.as_str())) {
            found.push(Violation::of_file(
                &manifest,
                format!("`{}` must not depend on `{need}`", package.name),
                format!(
                    "remove it; allowed: {}",
                    if may.is_empty() { "none".into() } else { may.join(", ") }
                ),
            ));
        }
        for need in package.dev_needs.iter().filter(|n| points_up(&package.name, n)) {
            found.push(Violation::of_file(
                &manifest,
                format!("the tests of `{}` must not depend on `{need}`, which stands above it", package.name),
                "move the test to the upper crate",
            ));
        }
    }
    found
}

/// Whether a dev-dependency breaks the order: upwards, or between the kernel and a proxy, which never name each other.
fn points_up(name: &str, need: &str) -> bool {
    let is_proxy = |n: &str| n.starts_with("proxy-");
    let is_kernel = |n: &str| matches!(n, "dvk" | "services");
    let strangers = (is_kernel(name) && is_proxy(need)) || (is_proxy(name) && is_kernel(need));
    need == name || name == "ci" || strangers || below(need).contains(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(name: &str, needs: &[&str], dev_needs: &[&str]) -> Tree {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let package =
            Package { name: name.into(), needs: own(needs), dev_needs: own(dev_needs), ..Package::default() };
        Tree { packages: vec![package], ..Tree::default() }
    }

    #[test]
    fn arrows_down_pass() {
        assert_eq!(check(&tree("dvk", &["abi", "shm", "fabric"], &["shm"])), []);
        assert_eq!(check(&tree("ci", &[], &[])), []);
        assert_eq!(check(&tree("fabric", &[], &["shm"])), []);
    }

    #[test]
    fn arrows_up_fail() {
        assert_eq!(check(&tree("shm", &["dvk"], &[])).len(), 1);
        assert_eq!(check(&tree("shm", &[], &["dvk"])).len(), 1);
        assert_eq!(check(&tree("ci", &["abi"], &[])).len(), 1);
    }

    #[test]
    fn kernel_and_proxies_are_strangers_in_tests_too() {
        assert_eq!(check(&tree("dvk", &["proxy-tcp"], &[])).len(), 1);
        assert_eq!(check(&tree("dvk", &[], &["proxy-tcp"])).len(), 1);
        assert_eq!(check(&tree("proxy-tcp", &[], &["dvk"])).len(), 1);
    }

    #[test]
    fn a_crate_without_a_place_is_named() {
        assert!(check(&tree("newcomer", &[], &[]))[0].what.contains("newcomer"));
    }

    #[test]
    fn metadata_gives_needs_by_kind() {
        let metadata = serde_json::json!({"packages": [
            {"name": "abi", "dependencies": [], "targets": [{"kind": ["lib"], "src_path": "/w/abi/src/lib.rs"}]},
            {"name": "shm", "targets": [{"kind": ["test"], "src_path": "/w/shm/tests/kill.rs"}], "dependencies": [
                {"name": "abi", "kind": null, "path": "/w/abi"},
                {"name": "abi", "kind": "dev", "path": "/w/abi"},
                {"name": "libc", "kind": null, "path": null}]}]});
        let found = packages(Path::new("/w"), &metadata);
        assert_eq!(found[0].roots, ["abi/src/lib.rs"]);
        assert_eq!(
            (found[1].needs.clone(), found[1].dev_needs.clone()),
            (vec!["abi".into()], vec!["abi".into()])
        );
        assert!(found[1].roots.is_empty());
    }
}
