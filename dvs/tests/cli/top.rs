//! `dvs top` over a cluster, in pipes and on a terminal; and who gets colours.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::OwnedFd;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use super::*;

/// A run on a terminal of its own.
struct OnTerminal {
    child: Child,
    keys: File,
    /// The program's side, to look at its modes.
    terminal: File,
    shown: std::sync::mpsc::Receiver<Vec<u8>>,
    all: Vec<u8>,
    /// What a reader sees: the program sends only what changes, so its bytes alone hold no whole texts.
    screen: vt100::Parser,
}

impl OnTerminal {
    fn start(mut command: Command) -> OnTerminal {
        let master: OwnedFd =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        grantpt(&master).expect("a terminal of ours");
        unlockpt(&master).expect("a terminal that opens");
        let name = ptsname(&master, Vec::new()).expect("its name").into_string().expect("a text");
        let terminal = File::options().read(true).write(true).open(name).expect("its other end");
        let size = Winsize { ws_row: ROWS.get(), ws_col: COLUMNS.get(), ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size).expect("a size");
        let end = || terminal.try_clone().expect("a copy");
        command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm-256color");
        let child = command.spawn().expect("the program");
        let mut screen = File::from(master.try_clone().expect("a copy"));
        let (give, shown) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // It ends with the last process that has the terminal open.
            while let Ok(len @ 1..) = screen.read(&mut bytes) {
                if give.send(bytes[..len].to_vec()).is_err() {
                    return;
                }
            }
        });
        let screen = vt100::Parser::new(ROWS, COLUMNS, 0);
        OnTerminal { child, keys: File::from(master), terminal, shown, all: Vec::new(), screen }
    }

    fn sent(&self, text: &str) -> bool {
        self.all.windows(text.len()).any(|part| part == text.as_bytes())
    }

    /// Takes what comes until this is so; `wanted` names it.
    fn take_until(&mut self, wanted: &str, so: impl Fn(&OnTerminal) -> bool) {
        let end = Instant::now() + BOUND;
        while !so(self) {
            let left = end.saturating_duration_since(Instant::now());
            let more = self.shown.recv_timeout(left).unwrap_or_else(|_| {
                panic!("{wanted:?} did not come; on the screen:\n{}", self.screen.screen().contents())
            });
            self.screen.process(&more);
            self.all.extend(more);
        }
    }

    /// Waits until a reader sees this.
    fn until(&mut self, text: &str) {
        self.take_until(text, |top| top.screen.screen().contents().contains(text));
    }

    /// Its code, or 0 minus the signal that ended it; by then all that it showed is here, and the terminal reads lines.
    fn ended(mut self) -> (i32, String) {
        let end = Instant::now() + BOUND;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                break status;
            }
            assert!(Instant::now() < end, "it goes on");
            std::thread::sleep(Duration::from_millis(10));
        };
        let modes = tcgetattr(&self.terminal).expect("its modes").local_modes;
        assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO), "left raw: {modes:?}");
        self.all.clear();
        // Written after all that the program wrote.
        self.terminal.write_all(b"<end>").expect("the terminal");
        let before = std::mem::take(&mut self.all);
        self.take_until("<end>", |top| top.sent("<end>"));
        let all = [before, std::mem::take(&mut self.all)].concat();
        (status.code().unwrap_or(-1), String::from_utf8_lossy(&all).into_owned())
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // It has ended by itself, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ROWS: NonZero<u16> = NonZero::new(30).unwrap();
const COLUMNS: NonZero<u16> = NonZero::new(100).unwrap();
const ENTERED: &str = "\x1b[?1049h";
const LEFT: &str = "\x1b[?1049l";
const CURSOR_BACK: &str = "\x1b[?25h";

fn coloured(text: &str) -> bool {
    // Only what ends with `m` is about colours and the like; all off is not.
    let sequences = text.split("\x1b[").skip(1);
    sequences.filter_map(|s| s.split_once('m').map(|(head, _)| head)).any(|head| {
        head.bytes().all(|b| b.is_ascii_digit() || b == b';')
            && !head.split(';').all(|number| matches!(number, "" | "0" | "39" | "49" | "59"))
    })
}

#[test]
fn one_screen_for_a_script_has_every_node_pane_and_endpoint() {
    let cluster = Cluster::up(2);
    let held = cluster
        .command(&["receive", "--dc", "main", "--node", "1", "--name", "kv"])
        .spawn()
        .expect("a receiver");
    until("the binding", || cluster.dvs(&["ps"]).fine().out.contains("kv"));
    // In a pipe it is as with `--once`.
    for args in [&["top", "--once", "--interval", "0.3"][..], &["top", "--interval", "0.3"]] {
        let text = cluster.dvs(args).fine().out;
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        let row = |begin: &[&str]| lines.iter().any(|l| l.starts_with(begin));
        assert!(text.starts_with("cluster test: 2 of 2 nodes answer"), "{text}");
        for begin in [
            &["1", "ada1", "up"][..],
            &["2", "ada2", "up"],
            &["ada1", "ada2", "up"],
            &["ada2", "ada1", "up"],
            &["2", "first", "ada1", "0"],
            &["tcp", "ada1", "up"],
            &["tcp", "ada2", "up"],
        ] {
            assert!(row(begin), "{begin:?} is missing in:\n{text}");
        }
        assert!(lines.iter().any(|l| l.get(1..5) == Some(&["kv", "main", "ada1", "bound"])), "{text}");
        assert!(!text.contains('\x1b'), "{text:?}");
    }
    let told = cluster.dvs(&["top", "--json", "--interval", "0.3"]).fine().json();
    assert_eq!((&told["endpoints"][0]["name"], &told["silent"]), (&"kv".into(), &serde_json::json!([])));
    assert!(told["rates"][1]["sent_per_s"].is_u64(), "{told}");
    // A node that does not answer is a line, and an error once nobody is left.
    cluster.kill("ada2");
    until("the daemon's end", || cluster.dvs(&["status", "--node", "2"]).code() == 4);
    let text = cluster.dvs(&["top", "--interval", "0.1"]).fine().out;
    assert!(text.contains("1 of 2 nodes answer") && text.contains("\nnode ada2: not answering\n"), "{text}");
    cluster.dvs(&["top", "--node", "2"]).refused(4, &["daemon of node ada2 is dead", "dvs up"]);
    interrupt_and_finish(held);
}

fn interrupt_and_finish(mut child: Child) {
    child.kill().expect("our child");
    finish(child);
}

#[test]
fn on_a_terminal_it_lives_until_a_key_or_a_signal_and_gives_the_terminal_back() {
    let cluster = Cluster::up(2);
    let mut top = OnTerminal::start(cluster.command(&["top", "--interval", "0.1"]));
    top.until("2 of 2 nodes answer");
    assert!(top.sent(ENTERED) && top.screen.screen().alternate_screen());
    let modes = tcgetattr(&top.terminal).expect("its modes").local_modes;
    assert!(!modes.intersects(LocalModes::ICANON | LocalModes::ECHO), "{modes:?}");
    top.keys.write_all(b"?").expect("a key");
    top.until("any key closes it");
    top.keys.write_all(b" ").expect("a key");
    // A daemon that ends while it is watched.
    cluster.kill("ada2");
    top.until("ada2: not answering");
    top.keys.write_all(b"q").expect("a key");
    let (code, rest) = top.ended();
    assert!(code == 0 && rest.contains(LEFT) && rest.contains(CURSOR_BACK), "{code} {rest:?}");
    let mut top = OnTerminal::start(cluster.command(&["top", "--node", "1"]));
    top.until("1 of 1 nodes answer");
    let told = Command::new("kill").args(["-TERM", &top.child.id().to_string()]).status().expect("kill");
    assert!(told.success());
    let (code, rest) = top.ended();
    let (before, after) = rest.split_once(LEFT).unwrap_or_else(|| panic!("not left: {rest:?}"));
    assert!(code == 130 && after.contains("interrupted") && !before.contains("interrupted"), "{rest:?}");
}

#[test]
fn colours_are_for_terminals_whose_user_wants_them() {
    let cluster = Cluster::up(1);
    let commands: [&[&str]; 4] = [&["--help"], &["status"], &["fly"], &["node", "start", "--help"]];
    for words in commands {
        let on_terminal = |no_color: &str| {
            let mut command = cluster.command(words);
            command.env("NO_COLOR", no_color);
            OnTerminal::start(command).ended().1
        };
        assert!(coloured(&on_terminal("")), "{words:?} on a terminal");
        assert!(!coloured(&on_terminal("1")), "{words:?} with NO_COLOR");
        let piped =
            finish(cluster.command(words).env("TERM", "xterm").env_remove("NO_COLOR").spawn().expect("dvs"));
        assert!(!coloured(&(piped.out + &piped.err)), "{words:?} in a pipe");
    }
    for (no_color, wanted) in [("", true), ("1", false)] {
        let mut command = cluster.command(&["top"]);
        command.env("NO_COLOR", no_color);
        let mut top = OnTerminal::start(command);
        top.until("help");
        let seen = String::from_utf8_lossy(&top.all).into_owned();
        assert_eq!(coloured(&seen), wanted, "NO_COLOR={no_color:?}: {seen:?}");
        top.keys.write_all(b"q").expect("a key");
        assert_eq!(top.ended().0, 0);
    }
}
