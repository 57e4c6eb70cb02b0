//! `send`, `notify` and `receive` between processes of a cluster.

use super::*;

/// On node 1 under the name `kv`, which others find.
fn receive(cluster: &Cluster, args: &[&str]) -> Child {
    let begin = ["receive", "--dc", "main", "--node", "1", "--name", "kv", "--timeout", "30"];
    cluster.command(&[&begin, args].concat()).spawn().unwrap()
}

fn send(cluster: &Cluster, node: &str, args: &[&str]) -> Ran {
    cluster.dvs(&[&["send", "--dc", "main", "--node", node, "--to", "kv"], args].concat())
}

/// One object a line.
fn lines(ran: &Ran) -> Vec<Value> {
    ran.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

fn nobody_is_bound(cluster: &Cluster) -> bool {
    cluster.dvs(&["ps", "--json"]).fine().json()["endpoints"].as_array().unwrap().is_empty()
}

#[test]
fn what_is_sent_and_posted_from_both_nodes_is_received_once_with_all_it_carried() {
    let cluster = Cluster::up(2);
    let receiver = receive(&cluster, &["--count", "4", "--json"]);
    send(&cluster, "1", &["--kind", "7", "from here"]).fine();
    send(&cluster, "2", &["--kind", "8", "--post", "from there"]).fine();
    // 96 bytes still travel in the message, one more does not.
    let (inline, loan) = ("x".repeat(96), "y".repeat(97));
    send(&cluster, "2", &[&inline]).fine();
    let sent = send(&cluster, "2", &["--json", &loan]).fine().json();
    assert_eq!((&sent["loan"], &sent["bytes"], &sent["how"]), (&true.into(), &97.into(), &"sent".into()));
    let received = finish(receiver).fine();
    let came: Vec<(&str, u64, u64, u64)> =
        vec![("from here", 7, 9, 0), ("from there", 8, 10, 0), (&inline, 0, 96, 0), (&loan, 0, 0, 97)];
    let number = |line: &Value, key: &str| line[key].as_u64().unwrap();
    let lines = lines(&received);
    let seen: Vec<_> = lines
        .iter()
        .map(|line| {
            assert_eq!(line["what"], "message", "{line}");
            let text = line["text"].as_str().unwrap();
            (text, number(line, "kind"), number(line, "inline_bytes"), number(line, "loan_bytes"))
        })
        .collect();
    assert_eq!(seen, came);
    assert_eq!(lines[3]["source"], sent["from"]);
    assert!(nobody_is_bound(&cluster));
}

#[test]
fn a_request_is_answered_by_an_echo_and_abandoned_without_one() {
    let cluster = Cluster::up(2);
    let echo = receive(&cluster, &["--echo", "--count", "2"]);
    let file = cluster.path("payload");
    // No text: it comes back in hex.
    std::fs::write(&file, [0xfe; 5_000]).unwrap();
    assert_eq!(
        send(&cluster, "2", &["--call", "--file", file.to_str().unwrap()]).fine().out.trim(),
        "fe".repeat(5_000)
    );
    let called = send(&cluster, "1", &["--call", "--kind", "5", "--json", "ping"]).fine().json();
    let reply = &called["reply"];
    assert_eq!(
        (&reply["text"], &reply["kind"], &reply["what"]),
        (&"ping".into(), &5.into(), &"reply".into())
    );
    let shown = finish(echo).fine().out;
    assert!(shown.lines().next().unwrap().contains("request  kind 0  4.9 KiB  hex fefe"), "{shown}");
    let mute = receive(&cluster, &["--count", "1", "--json"]);
    send(&cluster, "2", &["--call", "ping"]).refused(1, &["request to kv", "unanswered"]);
    assert_eq!(lines(&finish(mute).fine())[0]["answered"], false);
}

#[test]
fn standard_input_is_sent_whole() {
    let cluster = Cluster::up(1);
    let receiver = receive(&cluster, &["--count", "1", "--json"]);
    let mut command = cluster.command(&["send", "--dc", "main", "--node", "1", "--to", "kv", "-"]);
    let mut sender = command.stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut sender.stdin.take().unwrap(), "two\nlines\n".as_bytes()).unwrap();
    assert!(finish(sender).fine().out.starts_with("sent 10 B to 1:"));
    assert_eq!(lines(&finish(receiver).fine())[0]["text"], "two\nlines\n");
}

#[test]
fn notified_bits_arrive_from_the_same_and_from_another_node() {
    let cluster = Cluster::up(2);
    let receiver = receive(&cluster, &["--count", "2", "--json"]);
    for (node, bits) in [("1", "0x5"), ("2", "0b10")] {
        cluster.dvs(&["notify", "--dc", "main", "--node", node, "--to", "kv", "--bits", bits]).fine();
    }
    let came = lines(&finish(receiver).fine());
    let bits: Vec<_> =
        came.iter().map(|line| (line["what"].as_str().unwrap(), line["bits"].clone())).collect();
    assert_eq!(bits, [("notification", 5.into()), ("notification", 2.into())]);
    assert_eq!(
        cluster.dvs(&["notify", "--dc", "main", "--node", "1", "--to", "kv", "--bits", "0"]).code(),
        2
    );
}

#[test]
fn from_one_endpoint_nothing_of_another_is_received() {
    let cluster = Cluster::up(1);
    // Named in time: its sender is bound later, and stays until it is heard.
    let receiver = receive(&cluster, &["--from", "friend", "--count", "1", "--json"]);
    let mut stranger = cluster
        .command(&["send", "--dc", "main", "--node", "1", "--to", "kv", "--timeout", "40", "strange"])
        .spawn()
        .unwrap();
    send(&cluster, "1", &["--name", "friend", "--timeout", "40", "friendly"]).fine();
    assert_eq!(lines(&finish(receiver).fine())[0]["text"], "friendly");
    stranger.kill().unwrap();
    finish(stranger);
}

#[test]
fn whoever_is_not_there_in_time_is_named() {
    let cluster = Cluster::up(2);
    let send = |args: &[&str]| cluster.dvs(&[&["send", "--dc", "main", "--node", "2"], args].concat());
    send(&["--to", "kv", "--timeout", "0.2", "x"])
        .refused(6, &["nobody is bound as kv in DC main", "--timeout"]);
    send(&["--to", "9", "--timeout", "0", "x"]).refused(6, &["nobody is bound as slot 9"]);
    send(&["--to", "256", "--slot", "256", "x"]).refused(3, &["slot 256 is this command's own endpoint"]);
    send(&["--to", "9", "--file", "/no/such"]).refused(3, &["/no/such cannot be read"]);
    assert_eq!(send(&["--to", "4096", "x"]).code(), 2);
    assert_eq!(send(&["--to", "kv", "--timeout", "-1", "x"]).code(), 2);
    let quiet = cluster.dvs(&["receive", "--dc", "main", "--node", "1", "--timeout", "0.1", "--json"]);
    assert_eq!((quiet.code(), quiet.json()["exit"].clone()), (6, 6.into()));
    let bits = ["notify", "--dc", "main", "--node", "1", "--to", "kv", "--bits", "1", "--timeout", "0.1"];
    cluster.dvs(&bits).refused(6, &["nobody is bound as kv"]);
    // Bound, but never receiving: on one node the message is taken back for certain.
    let mut deaf = cluster
        .command(&["receive", "--dc", "main", "--node", "1", "--slot", "7", "--from", "nobody"])
        .spawn()
        .unwrap();
    let near = ["send", "--dc", "main", "--node", "1", "--to", "7", "--timeout", "1.5", "x"];
    cluster.dvs(&near).refused(6, &["the message to slot 7", "never be delivered"]);
    deaf.kill().unwrap();
    finish(deaf);
}

#[test]
fn an_interrupted_wait_ends_and_frees_the_slot() {
    let cluster = Cluster::up(1);
    let waiting = ["--dc", "main", "--node", "1", "--slot", "7"];
    let commands: [&[&str]; 3] = [
        &["receive"],
        &["send", "--to", "nobody", "--timeout", "50", "x"],
        &["notify", "--to", "nobody", "--timeout", "50", "--bits", "1"],
    ];
    for command in commands {
        let child = cluster.command(&[command, &waiting].concat()).spawn().unwrap();
        until("the binding", || !nobody_is_bound(&cluster));
        interrupt(&child);
        finish(child).refused(130, &["interrupted"]);
        until("the end of the binding", || nobody_is_bound(&cluster));
    }
    // While its message lies unreceived.
    let deaf = cluster
        .command(&["receive", "--dc", "main", "--node", "1", "--slot", "8", "--from", "kv"])
        .spawn()
        .unwrap();
    let sender = cluster
        .command(&[&["send", "--to", "8", "--call", "--timeout", "50", "x"], &waiting[..]].concat())
        .spawn()
        .unwrap();
    let peers = || {
        cluster.dvs(&["ps", "--json"]).fine().json()["endpoints"]
            .as_array()
            .unwrap()
            .iter()
            .any(|e| e["slot"] == 7 && e["pairs"] == 1)
    };
    until("the pair", peers);
    interrupt(&sender);
    finish(sender).refused(130, &["interrupted", "may still be delivered"]);
    interrupt(&deaf);
    finish(deaf).refused(130, &["interrupted"]);
}
