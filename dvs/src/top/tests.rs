//! Screens to the letter, from made-up answers; rates; keys.

use std::time::Duration;

use node::core::{DcView, EndpointView, NodeView, ProxyView, Status};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::draw::{self, Styles};
use super::rows::{Cell, rows};
use super::state::{Answer, Key, PANES, Pane, Rates, Top};

const NAMES: [&str; 3] = ["ada", "bob", "eve"];

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn link(node: u16, up: bool) -> NodeView {
    NodeView {
        node,
        name: NAMES[usize::from(node) - 1].into(),
        link: if up { "up" } else { "cut" }.into(),
        since_ms: 61_000,
        incarnation: up.then_some(70 + u32::from(node)),
        dead: !up,
        proxy: Some(1),
    }
}

fn proxy(nodes: Vec<u16>, sent: u64) -> ProxyView {
    ProxyView {
        index: 1,
        name: "tcp".into(),
        kind: "tcp".into(),
        nodes,
        state: "up".into(),
        since_ms: 61_500,
        pid: Some(4242),
        restarts: 0,
        slots_sent: sent,
        slots_received: sent / 2,
        bytes_sent: sent * 1024,
        bytes_received: sent * 100,
        sessions: 1,
        corrupt: 0,
        pairs: 3,
        compression: "none".into(),
        packed_sessions: 0,
        plain_bytes: 0,
        packed_bytes: 0,
    }
}

fn endpoint(slot: u16, name: &str, node: u16) -> EndpointView {
    EndpointView {
        endpoint: format!("1:{slot}.5"),
        dc: 1,
        dc_name: "main".into(),
        slot,
        generation: 5,
        node,
        name: name.into(),
        state: "bound".into(),
        private: false,
        pid: Some(100 + u32::from(slot)),
        uid: Some(1000),
        pairs: Some(1),
        segments: Some(2),
        segment_bytes: Some(557_056),
        since_ms: Some(3_000),
    }
}

fn answer(node: u16, sent: u64) -> Answer {
    let others: Vec<u16> = (1..=3).filter(|other| *other != node).collect();
    let dc = |dc, name: &str| DcView {
        dc,
        name: name.into(),
        slot_first: 256 * (node - 1),
        slot_count: 256,
        nodes: vec![1, 2, 3],
        local: 4,
        remote: 3,
    };
    let status = Status {
        cluster: "lab".into(),
        node,
        name: NAMES[usize::from(node) - 1].into(),
        incarnation: 70 + u32::from(node),
        uptime_ms: 125_000,
        successions: 0,
        version: "1".into(),
        connections: 4,
        directory_version: 1,
        directory_refused: 0,
        nodes: others.iter().map(|other| link(*other, *other != 3)).collect(),
        dcs: vec![dc(1, "main")],
        proxies: vec![proxy(others, sent)],
    };
    let first = 256 * (node - 1);
    let endpoints = vec![
        endpoint(first, "", node),
        endpoint(first + 1, "kv", node),
        endpoint(first + 2, "a-name-of-the-greatest-length-32", node),
        endpoint(first + 3, "echo", node),
        // Known there, bound elsewhere.
        endpoint(999, "far", 3),
    ];
    Answer { status, endpoints }
}

/// Two nodes that answered twice, and one that does not any more.
fn lab() -> Top {
    let names: Vec<(u16, String)> = (1..).zip(NAMES).map(|(id, name)| (id, name.to_owned())).collect();
    let mut top = Top::new("lab", &names, at(1000));
    for (ms, sent) in [(0, 1_000), (1_000, 2_500)] {
        top.hear(0, at(ms), Ok(answer(1, sent)));
        top.hear(1, at(ms), Ok(answer(2, 4 * sent)));
        top.hear(2, at(ms), if ms == 0 { Ok(answer(3, 0)) } else { Err("gone".into()) });
    }
    top
}

fn screen(top: &mut Top, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw::draw(top, Styles::new(true), frame.buffer_mut())).unwrap();
    let buffer = terminal.backend().buffer();
    let cells: Vec<&str> = buffer.content().iter().map(|cell| cell.symbol()).collect();
    let lines = cells.chunks(usize::from(width)).map(|line| line.concat().trim_end().to_owned() + "\n");
    lines.collect()
}

/// The screen is what the file says, to the letter.
fn is(shown: &str, expected: &str) {
    assert!(shown == expected, "this is shown:\n{shown}\nand this is expected:\n{expected}");
}

fn press(top: &mut Top, keys: &[Key]) {
    for key in keys {
        assert!(top.press(*key), "{key:?} ended it");
    }
}

#[test]
fn a_small_terminal_shows_some_of_every_pane() {
    is(&screen(&mut lab(), 80, 24), include_str!("screens/80x24.txt"));
}

#[test]
fn a_large_terminal_shows_everything() {
    is(&screen(&mut lab(), 120, 40), include_str!("screens/120x40.txt"));
}

#[test]
fn a_chosen_pane_has_the_room_it_needs_sorted_and_scrolled() {
    let mut top = lab();
    press(&mut top, &[Key::Previous, Key::Sort, Key::Sort, Key::Turn, Key::Down, Key::Down, Key::Pause]);
    is(&screen(&mut top, 80, 22), include_str!("screens/chosen.txt"));
}

#[test]
fn a_terminal_that_is_too_small_says_what_it_needs() {
    is(
        &screen(&mut lab(), 59, 18),
        &format!("too small: 59x18\nmake it 60x18\nq quits\n{}", "\n".repeat(15)),
    );
    is(
        &screen(&mut lab(), 60, 17),
        &format!("too small: 60x17\nmake it 60x18\nq quits\n{}", "\n".repeat(14)),
    );
    is(&screen(&mut lab(), 5, 2), "too s\nmake\n");
    assert!(screen(&mut lab(), 60, 18).starts_with("cluster lab"));
}

#[test]
fn help_lies_over_the_panes_until_a_key_is_pressed() {
    let mut top = lab();
    press(&mut top, &[Key::Help]);
    is(&screen(&mut top, 80, 24), include_str!("screens/help.txt"));
    press(&mut top, &[Key::Escape]);
    is(&screen(&mut top, 80, 24), include_str!("screens/80x24.txt"));
    assert!(!top.press(Key::Escape) && !top.press(Key::Quit));
}

#[test]
fn plain_text_has_everything_and_nothing_else() {
    is(&format!("{}\n", draw::plain(&lab())), include_str!("screens/plain.txt"));
}

#[test]
fn without_colours_no_cell_has_a_style() {
    let styled = |colours| {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw::draw(&mut lab(), Styles::new(colours), frame.buffer_mut())).unwrap();
        let plain = ratatui::buffer::Cell::new(" ").style();
        terminal.backend().buffer().content().iter().filter(|c| c.style() != plain).count()
    };
    assert!(styled(true) > 0);
    assert_eq!(styled(false), 0);
}

fn rates_after(answers: &[(u64, Answer)]) -> Option<Rates> {
    let mut top = Top::new("lab", &[(1, "ada".into())], at(1000));
    for (ms, answer) in answers {
        top.hear(0, at(*ms), Ok(answer.clone()));
    }
    top.nodes[0].rates(1)
}

#[test]
fn a_rate_is_what_was_counted_within_two_seconds() {
    let sent = |answers: &[(u64, u64)]| {
        let answers: Vec<_> = answers.iter().map(|(ms, sent)| (*ms, answer(1, *sent))).collect();
        rates_after(&answers)
            .map(|r| (r.sent_per_s, r.bytes_sent_per_s, r.received_per_s, r.bytes_received_per_s))
    };
    assert_eq!(sent(&[(0, 0)]), None);
    assert_eq!(sent(&[(0, 0), (0, 10)]), None);
    assert_eq!(sent(&[(0, 0), (500, 10)]), Some((20, 20_480, 10, 2_000)));
    // What is two seconds ago counts, what lies before does not.
    assert_eq!(sent(&[(0, 0), (1_000, 1_000), (3_000, 1_002)]).map(|r| r.0), Some(1));
    assert_eq!(sent(&[(0, 0), (1_001, 1_000), (3_000, 1_500)]).map(|r| r.0), Some(500));
}

#[test]
fn another_process_or_a_smaller_count_begins_anew() {
    let mut other = answer(1, 5_000);
    other.status.proxies[0].pid = Some(7);
    assert_eq!(rates_after(&[(0, answer(1, 0)), (1_000, other.clone())]), None);
    let mut more = other.clone();
    more.status.proxies[0].slots_sent += 30;
    let rates = rates_after(&[(0, answer(1, 0)), (1_000, other.clone()), (2_000, more)]);
    assert_eq!(rates.map(|r| r.sent_per_s), Some(30));
    assert_eq!(rates_after(&[(0, answer(1, 10)), (1_000, answer(1, 9))]), None);
    let mut none = answer(1, 10);
    none.status.proxies[0].pid = None;
    assert_eq!(rates_after(&[(0, none.clone()), (1_000, none)]), None);
}

#[test]
fn a_node_that_answers_again_has_no_rate_from_before() {
    let mut top = lab();
    top.hear(0, at(2_000), Err("gone".into()));
    top.hear(0, at(3_000), Ok(answer(1, 9_000)));
    assert_eq!(top.nodes[0].rates(1), None);
}

#[test]
fn a_paused_screen_hears_nothing() {
    let mut top = lab();
    let before = screen(&mut top, 80, 24);
    press(&mut top, &[Key::Pause]);
    top.hear(0, at(2_000), Err("gone".into()));
    press(&mut top, &[Key::Pause]);
    assert_eq!(screen(&mut top, 80, 24), before);
}

#[test]
fn every_pane_is_reached_both_ways_and_every_column_sorts_it() {
    let mut top = lab();
    for pane in PANES {
        assert_eq!(top.pane, pane);
        while {
            press(&mut top, &[Key::Sort]);
            let sort = top.look().sort;
            assert_eq!(rows(&top, pane).len(), rows(&lab(), pane).len());
            sort.is_some()
        } {}
        assert_eq!(rows(&top, pane), rows(&lab(), pane));
        press(&mut top, &[Key::Next]);
    }
    assert_eq!(top.pane, Pane::Nodes);
    press(&mut top, &[Key::Previous, Key::Previous]);
    assert_eq!(top.pane, Pane::Proxies);
}

#[test]
fn numbers_are_sorted_as_numbers_the_largest_first_and_what_is_unknown_last() {
    let mut top = lab();
    // OUT/s of the nodes.
    press(&mut top, &[Key::Sort; 4]);
    let sent = rows(&top, Pane::Nodes).into_iter().map(|row| row.cells[3].clone()).collect::<Vec<_>>();
    assert_eq!(
        sent,
        [Cell::Number(6_000, "6 000".into()), Cell::Number(1_500, "1 500".into()), Cell::Nothing]
    );
}

#[test]
fn a_scroll_stops_at_the_last_row() {
    let mut top = lab();
    press(&mut top, &[Key::Previous]);
    press(&mut top, &[Key::Down; 50]);
    let _ = screen(&mut top, 80, 18);
    // Eight endpoints, one of them seen.
    assert_eq!(top.looks[Pane::Endpoints as usize].first, 7);
}

#[test]
fn what_a_daemon_says_steers_no_terminal() {
    let mut top = lab();
    let mut wild = answer(1, 2_500);
    wild.endpoints[0].name = "\x1b[2J".into();
    wild.status.proxies[0].state = "a\nb".into();
    top.hear(0, at(2_000), Ok(wild));
    let text = draw::plain(&top);
    assert!(!text.contains('\x1b') && text.contains("\\u{1b}[2J") && text.contains("a\\nb"), "{text}");
}
