//! `dvs check` from outside: what is wrong with a cluster file, to the letter, and what is in a good one.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use support::dvs;
use tempfile::TempDir;

const GOOD: &str = r#"name = "lab"
[[node]]
id = 1
name = "ada"
address = "127.0.0.2:7701"
[[node]]
id = 2
name = "bob"
address = "127.0.0.3:7701"
[[dc]]
id = 1
name = "main"
"#;

fn written(folder: &TempDir, text: impl AsRef<[u8]>) -> PathBuf {
    // The program names the file as it is, not as a link leads to it.
    let file = folder.path().canonicalize().unwrap().join("lab.toml");
    std::fs::write(&file, text).unwrap();
    file
}

fn str(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_mistake_is_named_to_the_letter_with_line_and_column() {
    let changed = |from: &str, to: &str| {
        assert!(GOOD.contains(from), "{from:?} is not in the good file");
        GOOD.replacen(from, to, 1)
    };
    let more = |lines: &str| format!("{GOOD}{lines}\n");
    let rule = |lines: &str| more(&format!("[[dc.privileges]]\n{lines}"));
    let wrong: [(String, usize, usize, &str); 36] = [
        ("name = ".into(), 1, 8, "string values must be quoted, expected literal string"),
        (changed("[[dc]]", "[[dc]"), 10, 6, "unclosed array table, expected `]`"),
        (more("oops"), 13, 5, "key with no value, expected `=`"),
        ("name = \"lab\"\n".into(), 1, 1, "missing field `node`: add a [[node]] with id, name and address"),
        (changed("name = \"bob\"\n", ""), 6, 1, "missing field `name`: add it to this table"),
        (
            changed("name = \"bob\"", "nmae = \"bob\""),
            8,
            1,
            "unknown field `nmae`, expected one of `id`, `name`, `address`: correct the word, or leave the line out",
        ),
        (more("id = 3"), 13, 1, "duplicate key: it is there already, further up: keep one"),
        (changed("\"lab\"", "7"), 1, 8, "invalid type: integer `7`, expected a string: write it in quotes"),
        (
            changed("id = 2", "id = \"two\""),
            7,
            6,
            "invalid type: string \"two\", expected u16: write a whole number up to 65535, without quotes",
        ),
        (
            changed("[[dc]]", "[dc]"),
            10,
            1,
            "invalid type: map, expected a sequence: write the heading with two brackets on each side, as in [[node]]",
        ),
        (changed("id = 2", "id = 1"), 7, 6, "node id 1 is there twice: give each node its own"),
        (changed("id = 2", "id = 1025"), 7, 6, "node id 1025: ids are 1 to 1024 (NODES_MAX)"),
        (changed("\"bob\"", "\"ada\""), 8, 8, "node name ada is there twice: give each node its own"),
        (
            changed("127.0.0.3", "127.0.0.2"),
            9,
            11,
            "address 127.0.0.2:7701 is there twice: give each node an address or port of its own",
        ),
        (
            changed("127.0.0.3:7701", "bob:7701"),
            9,
            11,
            "address \"bob:7701\" is not IP:PORT, for example \"127.0.0.2:7701\"",
        ),
        (
            changed("127.0.0.3:7701", "0.0.0.0:7701"),
            9,
            11,
            "address \"0.0.0.0:7701\" is every address of a machine and leads to none: give the one other nodes call",
        ),
        (
            changed("127.0.0.3:7701", "10.0.0.3:7701"),
            9,
            11,
            "address 10.0.0.3:7701 is open to others and there is no key: add key_file = \"cluster.key\" at the top",
        ),
        (
            more("nodes = [1, 9]"),
            13,
            13,
            "DC main names node 9, which is not in the file: add a [[node]] for it",
        ),
        (more("nodes = [2, 2]"), 13, 13, "DC main names node 2 twice"),
        (
            more("slots_per_node = 2049"),
            13,
            18,
            "2 nodes with 2049 slots each are more than the 4096 slots of a DC (SLOTS_PER_DC): \
             use slots_per_node = 2048 or less",
        ),
        (more("slots_per_node = 0"), 13, 18, "slots_per_node is 0: nobody could bind"),
        (rule("level = \"admin\""), 14, 9, "level \"admin\" is unknown: use user, server, proxy or kernel"),
        (rule("slots = \"0-3\""), 13, 1, "missing field `level`: add it to this table"),
        (
            rule("level = \"user\"\ncalls = [\"post\", \"call\"]"),
            15,
            18,
            "call \"call\" is unknown: use send, post, sendrec, notify, wake, relay or copy",
        ),
        (
            rule("level = \"user\"\ncalls = [\"reply\"]"),
            15,
            10,
            "a reply to a request is always allowed: leave it out",
        ),
        (
            rule("level = \"user\"\nslots = \"few\""),
            15,
            9,
            "slots \"few\": write one, as \"3\", or the first and last, as \"0-15\"",
        ),
        (
            rule("level = \"user\"\nslots = \"9-3\""),
            15,
            9,
            "slots \"9-3\": the first comes first, as \"3-9\"",
        ),
        (rule("level = \"user\"\nslots = \"0-512\""), 15, 9, "slot 512: this DC has the slots 0 to 511"),
        (rule("level = \"user\"\nwarn = 512"), 15, 8, "slot 512: this DC has the slots 0 to 511"),
        (
            rule("level = \"user\"\nto_levels = [\"god\"]"),
            15,
            14,
            "level \"god\" is unknown: use user, server, proxy or kernel",
        ),
        (
            rule("level = \"user\"\n[[dc.privileges]]\nlevel = \"server\""),
            16,
            9,
            "this rule comes after one that fits everybody: move it further up, or leave it out",
        ),
        (more("[[dc]]\nid = 1\nname = \"b\""), 14, 6, "DC id 1 is there twice: give each DC its own"),
        (
            more("[[proxy]]\nname = \"p\"\nkind = \"pigeon\""),
            15,
            8,
            "proxy kind \"pigeon\" is unknown: use kind = \"tcp\", \"rdma\" or \"auto\"",
        ),
        (
            more("[[proxy]]\nname = \"p\"\nkind = \"tcp\"\n[[proxy]]\nname = \"q\"\nkind = \"tcp\""),
            17,
            8,
            "proxies p and q would listen at the same address on node 1: \
             give them different `nodes`",
        ),
        (
            more("[[proxy]]\nname = \"p\"\nkind = \"tcp\"\nnodes = [1]"),
            14,
            8,
            "nodes 1 and 2 share DC main and no proxy: list both in one proxy's `nodes`, or none",
        ),
        (
            format!("node_dead_after_ms = 99\n{GOOD}"),
            1,
            22,
            "node_dead_after_ms is 99: use 100 to 3600000 (an hour)",
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (text, line, column, message) in wrong {
        let file = written(&folder, &text);
        let ran = dvs(&["check", str(&file)]);
        let said = ran.err.lines().next().unwrap_or_default();
        assert_eq!(said, format!("dvs: {}:{line}:{column}: {message}", str(&file)), "{text}");
        ran.refused(3, &["correct that line"]);
    }
}

#[test]
fn a_byte_that_is_no_text_has_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(&folder, b"# \xc3\xa9\nname = \"\xff\"\n");
    dvs(&["check", str(&file)]).refused(3, &[":2:9: a byte that is not UTF-8: save the file as UTF-8 text"]);
}

#[test]
fn programs_get_the_place_of_a_mistake_in_fields_from_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(&folder, GOOD.replacen("id = 2", "id = 1", 1));
    let file = str(&file);
    let commands: [&[&str]; 6] = [
        &["check", file],
        &["up", file],
        &["down", file],
        &["node", "start", file, "--node", "1"],
        &["status", "--cluster", file],
        &["run", "--cluster", file, "--dc", "main", "--", "true"],
    ];
    for words in commands {
        let ran = dvs(&[&["--json"], words].concat());
        assert_eq!(ran.code(), 3, "{words:?}: {}{}", ran.out, ran.err);
        let told = ran.json();
        let place = ["file", "line", "column"].map(|key| told[key].clone());
        assert_eq!(place, [json!(file), json!(7), json!(6)], "{words:?}: {told}");
    }
}

#[test]
fn a_file_that_is_not_there_has_no_line() {
    let ran = dvs(&["check", "--json", "/no/such.toml"]);
    assert_eq!((ran.code(), &ran.json()["line"]), (3, &json!(null)), "{}", ran.out);
    dvs(&["check", "/no/such.toml"]).refused(3, &["dvs: /no/such.toml: cannot be read", "dvs init"]);
}

#[test]
fn a_good_file_is_summed_up_for_people_and_programs() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(&folder, format!("{GOOD}nodes = [2, 1]\nslots_per_node = 100\n"));
    let text = dvs(&["check", str(&file)]).fine().out;
    for line in ["   2  bob   127.0.0.3:7701", " 1  main     2  0 to 99", " 1  main     1  100 to 199"] {
        assert!(text.lines().any(|l| l == line), "{line:?} is missing in:\n{text}");
    }
    let told = dvs(&["check", "--json", str(&file)]).fine().json();
    let dcs = json!([{ "id": 1, "name": "main", "ranges": [
        { "node": 2, "first": 0, "last": 99 }, { "node": 1, "first": 100, "last": 199 },
    ] }]);
    assert_eq!((&told["dcs"], &told["key"]["state"]), (&dcs, &json!("none")), "{told}");
    assert_eq!(told["proxies"], json!([{ "name": "tcp", "kind": "tcp", "nodes": [1, 2] }]), "{told}");
}

#[test]
fn the_key_is_looked_at_where_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(&folder, format!("key_file = \"k\"\n{GOOD}"));
    let key = file.with_file_name("k");
    let state = || dvs(&["check", "--json", str(&file)]).fine().json()["key"]["state"].clone();
    assert_eq!(state(), "not_there_yet");
    std::fs::write(&key, "short").unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    dvs(&["check", str(&file)]).refused(3, &[str(&key), "readable by others (mode 644): chmod 600 it"]);
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    dvs(&["check", str(&file)]).refused(3, &[str(&key), "is not 64 hexadecimal digits"]);
    std::fs::write(&key, "5".repeat(64)).unwrap();
    assert_eq!(state(), "good");
}
