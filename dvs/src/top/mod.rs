//! `dvs top`: nodes, links, DCs, proxies and endpoints of this machine's cluster, and how much goes between them, live.
//!
//! Driver: asks each daemon on a thread of its own, so that one that hangs holds up nobody else; reads keys, and owns
//! the terminal, which it gives back whatever happens. `state`, `rows` and `draw` are pure.

mod draw;
mod rows;
mod state;
#[cfg(test)]
mod tests;

use std::io::{IsTerminal, Stdout, stdout};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use node::core::{EndpointView, Status};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::crossterm::{cursor, execute};
use serde::Serialize;

use crate::admin::Daemon;
use crate::cli::TopArgs;
use crate::cluster::Place;
use crate::failure::{Exit, failure};
use crate::interrupt::{self, GLANCE};
use crate::output::{Output, colours_wanted};
use draw::Styles;
use state::{Answer, Key, Rates, Top};

/// What a daemon said, or why not: of which node, and when.
struct Said {
    node: usize,
    at: Duration,
    answer: Result<Answer>,
}

pub fn top(args: &TopArgs, dir: Option<&Path>, output: &Output) -> Result<()> {
    interrupt::note_signals()?;
    let place = Place::find(&args.place, dir)?;
    let asked: Vec<String> = args.place.node.iter().cloned().collect();
    let nodes = place.nodes_here(&asked)?;
    let names: Vec<(u16, String)> = nodes.iter().map(|n| (n.id.0, n.name.as_str().to_owned())).collect();
    let mut top = Top::new(place.cluster.name.as_str(), &names, args.interval);
    let said = ask_all(&place, &nodes, args.interval);
    hear_round(&mut top, &said)?;
    if args.once || output.json || !stdout().is_terminal() {
        // Rates need two.
        hear_round(&mut top, &said)?;
        return output.answer(&Shown::of(&top), |_| draw::plain(&top));
    }
    live(&mut top, &said)
}

/// One thread for each node; it ends when nobody listens to it.
fn ask_all(place: &Place, nodes: &[&node::config::ClusterNode], interval: Duration) -> Receiver<Said> {
    let (give, take) = channel();
    let began = Instant::now();
    for (at, node) in nodes.iter().enumerate() {
        let (place, node, give) = (place.clone(), (*node).clone(), give.clone());
        std::thread::spawn(move || {
            ask_one(Daemon { place: &place, node: &node }, at, began, interval, &give)
        });
    }
    take
}

fn ask_one(daemon: Daemon<'_>, node: usize, began: Instant, interval: Duration, give: &Sender<Said>) {
    let mut next = Instant::now();
    loop {
        let answer = daemon.status().and_then(|status| Ok(Answer { status, endpoints: daemon.endpoints()? }));
        if give.send(Said { node, at: began.elapsed(), answer }).is_err() {
            return;
        }
        // After a daemon that took long its next turn comes an interval later, not at once.
        next = (next + interval).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// One answer from every node; the error of the first node in order if none has any.
fn hear_round(top: &mut Top, said: &Receiver<Said>) -> Result<()> {
    let mut missing: Vec<usize> = (0..top.nodes.len()).collect();
    let mut first: Option<(usize, anyhow::Error)> = None;
    while !missing.is_empty() {
        interrupt::check()?;
        match said.recv_timeout(GLANCE) {
            Ok(Said { node, at, answer }) => {
                missing.retain(|waited| *waited != node);
                top.hear(node, at, answer.as_ref().map(Clone::clone).map_err(ToString::to_string));
                if let Err(why) = answer
                    && first.as_ref().is_none_or(|(other, _)| node < *other)
                {
                    first = Some((node, why));
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("nobody asks the daemons any more"),
        }
    }
    match first {
        Some((_, why)) if top.nodes.iter().all(|n| n.answer().is_none()) => Err(why),
        _ => Ok(()),
    }
}

fn live(top: &mut Top, said: &Receiver<Said>) -> Result<()> {
    let styles = Styles::new(colours_wanted());
    let mut screen = Screen::open().map_err(|why| {
        failure(
            Exit::Failed,
            format!("the terminal cannot be used: {why}"),
            "`dvs top --once` prints plain text",
        )
    })?;
    let mut changed = true;
    loop {
        interrupt::check()?;
        while let Ok(Said { node, at, answer }) = said.try_recv() {
            top.hear(node, at, answer.map_err(|why| why.to_string()));
            changed = true;
        }
        if std::mem::take(&mut changed) {
            let drawn = screen.terminal.draw(|frame| draw::draw(top, styles, frame.buffer_mut()));
            drawn.context("the screen cannot be drawn")?;
        }
        if event::poll(GLANCE).context("keys cannot be read")? {
            // Keys, and another size of the terminal.
            changed = true;
            let pressed = event::read().context("keys cannot be read")?;
            if pressed.as_key_event().and_then(key).is_some_and(|key| !top.press(key)) {
                return Ok(());
            }
        }
    }
}

fn key(pressed: KeyEvent) -> Option<Key> {
    if pressed.kind == KeyEventKind::Release {
        return None;
    }
    match pressed.code {
        KeyCode::Char('c') if pressed.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Quit),
        KeyCode::Char('q') => Some(Key::Quit),
        KeyCode::Esc => Some(Key::Escape),
        KeyCode::Tab | KeyCode::Right => Some(Key::Next),
        KeyCode::BackTab | KeyCode::Left => Some(Key::Previous),
        KeyCode::Up => Some(Key::Up),
        KeyCode::Down => Some(Key::Down),
        KeyCode::Char('s') => Some(Key::Sort),
        KeyCode::Char('S') => Some(Key::Turn),
        KeyCode::Char('p') => Some(Key::Pause),
        KeyCode::Char('?') => Some(Key::Help),
        _ => None,
    }
}

/// The terminal while it is ours.
struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    fn open() -> std::io::Result<Screen> {
        // A panic speaks to the terminal as it was before.
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |why| {
            give_back();
            before(why);
        }));
        enable_raw_mode()?;
        let opened = execute!(stdout(), EnterAlternateScreen, cursor::Hide)
            .and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        match opened {
            Ok(terminal) => Ok(Screen { terminal }),
            Err(why) => {
                give_back();
                Err(why)
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    // A terminal that is gone needs nothing.
    let _ = disable_raw_mode();
    let _ = execute!(stdout(), LeaveAlternateScreen, cursor::Show);
}

/// What `--json` gives.
#[derive(Serialize)]
struct Shown<'a> {
    cluster: &'a str,
    nodes: Vec<&'a Status>,
    endpoints: Vec<&'a EndpointView>,
    rates: Vec<ProxyRates<'a>>,
    silent: Vec<Silent<'a>>,
}

#[derive(Serialize)]
struct ProxyRates<'a> {
    node: u16,
    proxy: &'a str,
    /// None: it has just begun.
    #[serde(flatten)]
    rates: Option<Rates>,
}

#[derive(Serialize)]
struct Silent<'a> {
    node: u16,
    name: &'a str,
    error: &'a str,
}

impl Shown<'_> {
    fn of(top: &Top) -> Shown<'_> {
        let mut shown = Shown {
            cluster: &top.cluster,
            nodes: Vec::new(),
            endpoints: Vec::new(),
            rates: Vec::new(),
            silent: Vec::new(),
        };
        for node in &top.nodes {
            match &node.last {
                Some(Ok(answer)) => {
                    shown.nodes.push(&answer.status);
                    shown.endpoints.extend(answer.endpoints.iter().filter(|e| e.node == node.id));
                    shown.rates.extend(answer.status.proxies.iter().map(|p| ProxyRates {
                        node: node.id,
                        proxy: &p.name,
                        rates: node.rates(p.index),
                    }));
                }
                Some(Err(error)) => shown.silent.push(Silent { node: node.id, name: &node.name, error }),
                None => {}
            }
        }
        shown
    }
}
