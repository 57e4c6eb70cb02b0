//! The commands that the book shows, run as they stand there, page by page: each page in a folder of its own, its blocks
//! from the first to the last in one shell. What a command says is compared with what the page says it does.
//!
//! - `$ COMMAND`, with lines that begin with `> ` as its continuation; what follows, up to the next one, is what it says.
//! - `…` stands for anything within a line, and on a line of its own for any lines. Blank lines and runs of spaces count
//!   as nothing and one. A command of which the page shows nothing must say nothing and succeed.
//! - A block below `<!-- file: NAME -->` is that file, from there on.
//!
//! `DVS_BOOK_PAGE=first-program.md` runs one page alone.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::pages::{Page, pages, root};

/// The port of `dvs init`, for which each page gets one that is free.
const PORT: &str = "7701";
/// For one page; it may have to build a crate.
const BOUND: Duration = Duration::from_secs(180);

enum Step {
    File { name: String, text: String },
    Command { line: usize, command: String, said: Vec<String> },
}

fn steps(page: &Page) -> Vec<Step> {
    let mut steps = Vec::new();
    for block in page.blocks() {
        if let Some(name) = &block.file {
            let text = block.whole().unwrap_or_else(|why| panic!("{}:{}: {why}", page.name, block.line));
            steps.push(Step::File { name: name.clone(), text });
        }
        if !block.is("console") {
            continue;
        }
        for (line, text) in (block.line + 1..).zip(&block.lines) {
            match (text.strip_prefix("$ "), text.strip_prefix("> "), steps.last_mut()) {
                (Some(command), ..) => {
                    steps.push(Step::Command { line, command: command.to_owned(), said: Vec::new() });
                }
                (None, Some(more), Some(Step::Command { command, said, .. })) if said.is_empty() => {
                    *command += &format!("\n{more}");
                }
                (None, _, Some(Step::Command { said, .. })) => said.push(text.clone()),
                _ => panic!("{}:{line}: a console block begins with `$ COMMAND`", page.name),
            }
        }
    }
    steps
}

/// Whether `line` is what `pattern` says, `…` standing for anything.
fn is_like(line: &str, pattern: &str) -> bool {
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (line, pattern) = (squeeze(line), squeeze(pattern));
    let Some((first, rest)) = pattern.split_once('…') else { return line == pattern };
    let Some(mut left) = line.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('…').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(last)
}

/// Whether `lines` are what `patterns` say, a line of `…` standing for any lines.
fn are_like(lines: &[&str], patterns: &[&str]) -> bool {
    match patterns.split_first() {
        None => lines.is_empty(),
        Some((&"…", rest)) => (0..=lines.len()).any(|skip| are_like(&lines[skip..], rest)),
        Some((pattern, rest)) => {
            lines.split_first().is_some_and(|(line, more)| is_like(line, pattern) && are_like(more, rest))
        }
    }
}

/// A port that nobody has on any address of a cluster that `dvs init` writes.
fn free_port() -> u16 {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let first = TcpListener::bind("127.0.0.2:0").expect("a loopback address");
        let port = first.local_addr().expect("its address").port();
        let others = ["127.0.0.3", "127.0.0.4", "127.0.0.5"];
        // One of five digits is no part of a number that a page shows.
        if port > 9999 && others.iter().all(|address| TcpListener::bind((*address, port)).is_ok()) {
            return port;
        }
        assert!(Instant::now() < end, "no port is free on three loopback addresses");
    }
}

/// The script that a shell runs for a page: each command's output and exit code in a file.
fn script(page: &Page, steps: &[Step], folder: &Path, port: u16) -> String {
    let book = folder.join("book");
    let mut text = PRELUDE.to_owned();
    for (number, step) in steps.iter().enumerate() {
        let own = book.join(number.to_string());
        let own = own.display();
        match step {
            Step::File { name, text: content } => {
                assert!(!name.starts_with('/') && !name.contains(".."), "{}: {name}", page.name);
                fs::write(book.join(number.to_string()), content).expect("a file in our own folder");
                if let Some(of_crate) = name.strip_suffix("/Cargo.toml") {
                    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("book-{of_crate}"));
                    fs::create_dir_all(&target).expect("a folder below target");
                    let lock = root().join("Cargo.lock");
                    let (target, lock) = (target.display(), lock.display());
                    let _ = writeln!(text, "mkdir -p {of_crate}; ln -s {target} {of_crate}/target");
                    let _ = writeln!(text, "cp {lock} {of_crate}/");
                }
                let _ = writeln!(text, "mkdir -p \"$(dirname {name})\"; cp {own} {name}");
            }
            Step::Command { command, .. } => {
                let is_awaited = command.ends_with('&')
                    && (command.contains("dvs run") || command.contains("dvs receive"));
                let (before, after) =
                    if is_awaited { ("before=$(known)", "bound \"$before\"") } else { (":", ":") };
                let _ = writeln!(text, "exec > {own}.before 2>&1; {before}");
                let _ = writeln!(text, "exec > {own}.out 2>&1; (exit ${{code:-0}})\n{command}");
                let _ = writeln!(text, "code=$?; echo $code > {own}.code; exec > {own}.after 2>&1; {after}");
                if command.starts_with("dvs init") {
                    let _ = writeln!(text, "sed -i s/:{PORT}/:{port}/ *.toml");
                }
            }
        }
    }
    text
}

/// A person types slowly, a script does not: `bound` waits until every node knows of whoever was started.
const PRELUDE: &str = r#"
trap 'kill $(jobs -p) 2> /dev/null' EXIT
known() { dvs status --json | grep -o '"\(local\|remote\)":[0-9]*' | cut -d: -f2 | paste -sd+ | bc_; }
bc_() { read -r sum; echo $((sum)); }
bound() {
    nodes=$(dvs status --json | grep -o '"uptime_ms"' | wc -l)
    for _ in $(seq 600); do
        [ "$(known)" -ge $(($1 + nodes)) ] && return
        sleep 0.05
    done
    echo "nobody was bound"
}
"#;

/// Runs to the end or the bound.
fn finish(mut shell: Child) -> bool {
    let until = Instant::now() + BOUND;
    loop {
        if shell.try_wait().expect("a shell of ours").is_some() {
            return true;
        }
        if Instant::now() > until {
            let group = format!("-{}", shell.id());
            let _ = Command::new("kill").args(["-9", "--", &group]).status();
            let _ = shell.wait();
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn run(page: &Page, steps: &[Step]) -> Vec<String> {
    let home = tempfile::Builder::new().prefix("dvs-book-").tempdir_in("/tmp").expect("a folder in /tmp");
    let folder = home.path();
    fs::create_dir(folder.join("book")).expect("a folder in our own");
    std::os::unix::fs::symlink(root(), folder.join("dvs")).expect("a link in our own folder");
    let port = free_port();
    let programs = Path::new(env!("CARGO_BIN_EXE_dvs")).parent().expect("the folder of the program");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = vec![programs.to_owned(), programs.join("examples")];
    places.extend(std::env::split_paths(&path));
    fs::write(folder.join("book/script"), script(page, steps, folder, port)).expect("a script of ours");
    let shell = |script: &str| {
        let mut shell = Command::new("bash");
        shell.args(["--norc", script]).current_dir(folder).process_group(0);
        shell.env("PATH", std::env::join_paths(&places).expect("no colon in a path"));
        shell.env("DVS_RUNTIME_DIR", folder.join("run")).env("CARGO_NET_OFFLINE", "true");
        for name in ["DVS_CLUSTER", "RUST_LOG", "CARGO_TARGET_DIR", "DVS_BIN"] {
            shell.env_remove(name);
        }
        shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        shell
    };
    let in_time = finish(shell("book/script").spawn().expect("bash"));
    let mut wrong = judged(page, steps, folder, port);
    fs::write(folder.join("book/down"), "dvs down cluster.toml").expect("a script of ours");
    let left = shell("book/down").status().expect("bash").success();
    if !in_time {
        wrong.push(format!("{}: not done after {} s", page.name, BOUND.as_secs()));
    } else if left {
        wrong.push(format!("{}: its cluster still runs at its end: stop it with `dvs down`", page.name));
    }
    wrong
}

fn judged(page: &Page, steps: &[Step], folder: &Path, port: u16) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let Step::Command { line, command, said } = step else { continue };
        let read = |what: &str| {
            let bytes = fs::read(folder.join(format!("book/{number}.{what}"))).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace(&format!(":{port}"), &format!(":{PORT}"))
        };
        let (out, after) = (read("out"), read("after"));
        let lines: Vec<&str> = out.lines().filter(|l| !l.trim().is_empty()).collect();
        let patterns: Vec<&str> = said.iter().map(|l| l.trim()).filter(|l| !l.is_empty()).collect();
        let code = read("code");
        if !are_like(&lines, &patterns) || !after.is_empty() || (patterns.is_empty() && code.trim() != "0") {
            wrong.push(format!(
                "{}:{line}: `{command}` (exit code {}) says:\n{out}{after}--- and not:\n{}\n",
                page.name,
                code.trim(),
                said.join("\n")
            ));
        }
    }
    wrong
}

#[test]
fn every_command_says_what_the_page_says() {
    let name = "every_command_says_what_the_page_says";
    for program in ["bash", "cargo"] {
        if Command::new(program).arg("--version").stdout(Stdio::null()).status().is_err() {
            println!("not run: {name}: there is no {program}: install it");
            return;
        }
    }
    let only = std::env::var("DVS_BOOK_PAGE").ok();
    let mut commands = 0;
    let mut wrong = Vec::new();
    for page in pages().iter().filter(|page| only.as_ref().is_none_or(|only| *only == page.name)) {
        let steps = steps(page);
        let count = steps.iter().filter(|s| matches!(s, Step::Command { .. })).count();
        if count > 0 {
            let began = Instant::now();
            let said = run(page, &steps);
            println!("{}: {count} commands, {:.1} s", page.name, began.elapsed().as_secs_f64());
            for text in said {
                wrong
                    .push(format!("{text}repeat: DVS_BOOK_PAGE={} cargo test -p dvs --test book", page.name));
            }
        }
        commands += count;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(commands > 0, "no page shows a command");
}

#[test]
fn a_mark_stands_for_anything_and_other_text_for_itself() {
    assert!(is_like("bound  as 1:0.77", "bound as 1:…") && is_like("a b c", "a…c") && is_like("x", "…"));
    assert!(!is_like("abc", "a…b") && !is_like("abc", "ab") && !is_like("aba", "aba…a"));
    assert!(are_like(&["a", "b", "c"], &["a", "…"]) && are_like(&["a"], &["…", "a", "…"]));
    assert!(!are_like(&["a", "b"], &["a"]) && !are_like(&[], &["a"]) && !are_like(&["b"], &["…", "a"]));
}

#[test]
fn commands_and_what_they_say_are_told_apart() {
    let text = "```console\n$ for a in b\n> do c\nd\n$ e\n```\n";
    let page = Page { name: "x.md".into(), text: text.into() };
    let read: Vec<(usize, String, usize)> = steps(&page)
        .into_iter()
        .filter_map(|step| match step {
            Step::Command { line, command, said } => Some((line, command, said.len())),
            Step::File { .. } => None,
        })
        .collect();
    assert_eq!(read, [(2, "for a in b\ndo c".to_owned(), 1), (5, "e".to_owned(), 0)]);
}
