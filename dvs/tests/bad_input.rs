//! Wrong uses, as somebody makes them who has just begun, and all that is said about each, to the letter.
//!
//! The files in `bad_input/` are the tables: a line `$ dvs …`, what it prints, and its exit code in brackets. What
//! differs from machine to machine and from run to run is named instead. Neighbours: `check.rs`, for cluster files;
//! `node/tests/conformance/misuse.rs`, for programs.

mod support;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use support::{BOUND, Ran, command, dvs, finish};
use tempfile::TempDir;

const CLUSTER: &str = r#"name = "lab"
[[node]]
id = 1
name = "ada"
address = "ADDRESS1"
[[node]]
id = 2
name = "bob"
address = "ADDRESS2"
[[dc]]
id = 1
name = "main"
[[dc]]
id = 2
name = "first"
nodes = [1]
"#;

/// A folder with a cluster file and a few others, where somebody stands and types. Dropped, what runs is stopped.
struct Desk {
    folder: TempDir,
    addresses: [String; 2],
}

impl Desk {
    fn new() -> Desk {
        let folder = tempfile::Builder::new().prefix("dvs-bad-").tempdir_in("/tmp").unwrap();
        let held = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = held.map(|l| l.local_addr().unwrap().to_string());
        let desk = Desk { folder, addresses };
        let text = CLUSTER.replace("ADDRESS1", &desk.addresses[0]).replace("ADDRESS2", &desk.addresses[1]);
        desk.write("cluster.toml", &text);
        desk.write("note.txt", "a note\n");
        std::fs::create_dir(desk.path("folder")).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn command(&self, words: &[String]) -> Command {
        let mut command = command(&words.iter().map(String::as_str).collect::<Vec<_>>());
        command.current_dir(self.folder.path()).env("XDG_RUNTIME_DIR", self.folder.path());
        command
    }

    fn dvs(&self, line: &str) -> Ran {
        finish(self.command(&words(line)).spawn().unwrap())
    }

    /// What a run said, with names for what is of this machine and this run.
    fn said(&self, ran: &Ran) -> String {
        let mut text = format!("{}{}", ran.out, ran.err);
        text = text.replace(self.folder.path().to_str().unwrap(), "FOLDER");
        for (number, address) in (1..).zip(&self.addresses) {
            text = text.replace(address, &format!("ADDRESS{number}"));
        }
        for (before, name) in
            [("process ", "PID"), ("dvs-lab-", "HASH"), ("1:0.", "G"), ("1:7.", "G"), ("1:8.", "G")]
        {
            text = named(&text, before, name);
        }
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        format!("{}\n[{}]\n", lines.join("\n"), ran.code())
    }

    /// Everything in the table is said, and nothing else.
    fn says(&self, table: &str) {
        let lines: Vec<&str> = table.lines().filter_map(|line| line.strip_prefix("$ dvs")).collect();
        assert!(!lines.is_empty());
        let said: String =
            lines.iter().map(|line| format!("$ dvs{line}\n{}\n", self.said(&self.dvs(line)))).collect();
        if said.trim_end() != table.trim_end() {
            let first = said.lines().zip(table.lines()).position(|(a, b)| a != b);
            let line = first.map_or("its end".to_owned(), |at| format!("line {}", at + 1));
            panic!("it differs at {line} from what is said now:\n<<<\n{said}>>>");
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let down = self.dvs("down cluster.toml");
        if !std::thread::panicking() {
            assert!(matches!(down.code(), 0 | 4), "{}", down.err);
        }
    }
}

/// The digits and small letters after each `before` become `name`.
fn named(text: &str, before: &str, name: &str) -> String {
    let mut parts = text.split(before);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_hexdigit());
        out += before;
        out += if rest.len() == part.len() { "" } else { name };
        out += rest;
    }
    out
}

/// As a shell parts them, with single quotes only.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    for c in line.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[test]
fn a_line_is_parted_as_a_shell_parts_it() {
    assert_eq!(words(" run '' 'a b' c"), ["run", "", "a b", "c"]);
    assert_eq!(named("process 12, 1:0.9f", "process ", "PID"), "process PID, 1:0.9f");
}

#[test]
fn wrong_words_are_explained_before_anything_is_started() {
    Desk::new().says(include_str!("bad_input/words.txt"));
}

#[test]
fn whoever_asks_for_what_does_not_run_hears_how_to_start_it() {
    Desk::new().says(include_str!("bad_input/stopped.txt"));
}

#[test]
fn what_a_running_cluster_refuses_comes_with_the_way_out() {
    let desk = Desk::new();
    desk.dvs("up cluster.toml").fine();
    let receiver = desk.command(&words("receive --dc main --node 1 --slot 7 --name kv")).spawn().unwrap();
    let receiver = Ended(receiver);
    let end = Instant::now() + BOUND;
    // Seen by both nodes.
    while !["1", "2"].iter().all(|node| desk.dvs(&format!("ps --node {node}")).out.contains("kv")) {
        assert!(Instant::now() < end, "the receiver is not bound");
        std::thread::sleep(Duration::from_millis(20));
    }
    desk.says(include_str!("bad_input/running.txt"));
    drop(receiver);
}

/// A process that is ended with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn mistakes_in_a_cluster_file_are_named_to_the_letter() {
    let good = CLUSTER.replace("ADDRESS1", "127.0.0.2:7701").replace("ADDRESS2", "127.0.0.3:7701");
    let changed = |from: &str, to: &str| {
        assert!(good.contains(from), "{from:?} is not in the good file");
        good.replacen(from, to, 1)
    };
    let wrong: &[(String, &str)] = &[
        (String::new(), "1:1: missing field `name`: add it to this table"),
        ("[[node]]\n".into(), "1:1: missing field `id`: add it to this table"),
        (
            changed("\"lab\"", "\"My Lab\""),
            "1:8: cluster name \"My Lab\" is not a name: use 1 to 32 of the characters a-z 0-9 - _ .",
        ),
        (
            changed("\"lab\"", "\"\""),
            "1:8: cluster name \"\" is not a name: use 1 to 32 of the characters a-z 0-9 - _ .",
        ),
        (changed("id = 1", "id = 0"), "3:6: node id 0: ids are 1 to 1024 (NODES_MAX)"),
        (
            changed("id = 1", "id = -1"),
            "3:6: invalid value: integer `-1`, expected u16: write a whole number up to 65535, without quotes",
        ),
        (
            changed("id = 1", "id = 70000"),
            "3:6: invalid value: integer `70000`, expected u16: write a whole number up to 65535, without quotes",
        ),
        (
            changed("id = 1", "id = 1.5"),
            "3:6: invalid type: floating point `1.5`, expected u16: write a whole number up to 65535, without quotes",
        ),
        (
            changed("\"ada\"", "\"ada lovelace\""),
            "4:8: node name \"ada lovelace\" is not a name: use 1 to 32 of the characters a-z 0-9 - _ .",
        ),
        (
            changed("127.0.0.2:7701", "127.0.0.2"),
            "5:11: address \"127.0.0.2\" is not IP:PORT, for example \"127.0.0.2:7701\"",
        ),
        (
            changed("127.0.0.2:7701", "127.0.0.2:0"),
            "5:11: address \"127.0.0.2:0\" has no port: other nodes must know it",
        ),
        (
            changed("127.0.0.2:7701", "127.0.0.2:99999"),
            "5:11: address \"127.0.0.2:99999\" is not IP:PORT, for example \"127.0.0.2:7701\"",
        ),
        (changed("\"main\"", "\"first\""), "15:8: DC name first is there twice: give each DC its own"),
        (
            changed("\"main\"", "\"Main\""),
            "12:8: DC name \"Main\" is not a name: use 1 to 32 of the characters a-z 0-9 - _ .",
        ),
        (changed("nodes = [1]", "nodes = []"), "16:9: DC first has no nodes: list the ids of some"),
        (
            changed("nodes = [1]", "nodes = 1"),
            "16:9: invalid type: integer `1`, expected a sequence: write a list, as in [1, 2]",
        ),
        (
            changed("nodes = [1]", "nodes = [\"ada\"]"),
            "16:10: invalid type: string \"ada\", expected u16: write a whole number up to 65535, without quotes",
        ),
        (
            changed("nodes = [1]", "uids = [-1]"),
            "16:9: invalid value: integer `-1`, expected u32: write a whole number, without quotes",
        ),
        (
            changed("nodes = [1]", "slots_per_node = -5"),
            "16:18: invalid value: integer `-5`, expected u16: write a whole number up to 65535, without quotes",
        ),
        (
            format!("link_down_after_ms = 99999999\n{good}"),
            "1:22: link_down_after_ms is 99999999: use 100 to 3600000 (an hour)",
        ),
        (
            format!("node_dead_after_ms = \"1 s\"\n{good}"),
            "1:22: invalid type: string \"1 s\", expected u64: write a whole number, without quotes",
        ),
        (
            format!("key = \"cluster.key\"\n{good}"),
            "1:1: unknown field `key`, expected one of `name`, `key_file`, `node_dead_after_ms`, `link_down_after_ms`, `node`, `dc`, `proxy`: correct the word, or leave the line out",
        ),
        (
            format!("{good}[nodes]\n"),
            "17:2: unknown field `nodes`, expected one of `name`, `key_file`, `node_dead_after_ms`, `link_down_after_ms`, `node`, `dc`, `proxy`: correct the word, or leave the line out",
        ),
        (
            format!("{good}[[proxy]]\nname = \"p\"\nkind = \"TCP\"\n"),
            "19:8: proxy kind \"TCP\" is unknown: use kind = \"tcp\", \"rdma\" or \"auto\"",
        ),
        (
            format!("{good}[[proxy]]\nname = \"p\"\nkind = \"tcp\"\nnodes = [1, 3]\n"),
            "20:13: proxy p names node 3, which is not in the file: add a [[node]] for it",
        ),
        (
            format!("{good}[[proxy]]\nname = \"\"\nkind = \"tcp\"\n"),
            "18:8: proxy name \"\" is not a name: use 1 to 32 of the characters a-z 0-9 - _ .",
        ),
    ];
    let desk = Desk::new();
    let (mut said, mut expected) = (String::new(), String::new());
    for (text, message) in wrong {
        desk.write("wrong.toml", text);
        let ran = desk.dvs("check wrong.toml");
        assert_eq!(ran.code(), 3, "{text}\n{}", ran.err);
        assert!(ran.err.contains("\n  next: "), "{}", ran.err);
        let line = ran.err.lines().next().unwrap_or_default().to_owned();
        said += &format!("{}\n", line.rsplit_once("wrong.toml:").map_or(line.as_str(), |(_, rest)| rest));
        expected += &format!("{message}\n");
    }
    assert!(said == expected, "this is said:\n{said}\nand this is expected:\n{expected}");
}

#[test]
fn programs_hear_the_same_as_people() {
    let words = ["check", "/no/such.toml"];
    let told = dvs(&[&["--json"], &words[..]].concat()).json();
    let (what, next) = (told["error"].as_str().unwrap(), told["next"].as_str().unwrap());
    dvs(&words).refused(3, &[what, next]);
}
