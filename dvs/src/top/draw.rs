//! The screen of `dvs top`: five panes below one another, or plain text of all of them. Pure: it draws into a buffer.
//!
//! The pane with the mark gets the room it needs first, the others share the rest; each has one row at least. A
//! column that does not fit is left out, from the right.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};

use super::rows::{Row, headings, rows, title};
use super::state::{PANES, Pane, Top};
use crate::output::{bytes, count};

/// Title, headings and one row.
const PANE_LINES_MIN: usize = 3;
/// Head, note and keys.
const FRAME_LINES: usize = 3;
const HEIGHT_MIN: u16 = (PANES.len() * PANE_LINES_MIN + FRAME_LINES) as u16;
const WIDTH_MIN: u16 = 60;
/// Longer cells are cut on a screen.
const CELL_MAX: usize = 24;
const GAP: usize = 2;

const KEYS: &str = "q quit  tab pane  up/down rows  s sort  S turn  p pause  ? help";
const HELP: [&str; 14] = [
    "q, Esc, Ctrl-C    end",
    "Tab, right, left  the next pane, the one before",
    "up, down          scroll the rows of the pane",
    "s                 sort it by the next column",
    "S                 the other way round",
    "p                 pause, and go on",
    "?                 this; any key closes it",
    "",
    "OUT/s, IN/s: messages a second that a node's proxies sent",
    "to other nodes and received from them; B/s: their bytes.",
    "What stays on one node passes neither daemon nor proxy,",
    "and nobody counts it. A dash: not known, or not yet.",
    "INCARNATION: which life of the node; grows with each start.",
    "BOUND HERE, ELSEWHERE: endpoints of a DC, by node.",
];

/// How the parts look: all plain where colours are not wanted.
#[derive(Clone, Copy)]
pub struct Styles {
    title: Style,
    chosen: Style,
    heading: Style,
    bad: Style,
}

impl Styles {
    pub fn new(colours: bool) -> Styles {
        let plain = Style::new();
        if !colours {
            return Styles { title: plain, chosen: plain, heading: plain, bad: plain };
        }
        Styles {
            title: plain.fg(Color::Cyan),
            chosen: plain.fg(Color::Cyan).add_modifier(Modifier::BOLD),
            heading: plain.add_modifier(Modifier::BOLD),
            bad: plain.fg(Color::Red),
        }
    }
}

/// Draws all of it, and takes back a scroll that leads beyond the end.
pub fn draw(top: &mut Top, styles: Styles, buffer: &mut Buffer) {
    let area = buffer.area;
    let mut put = |y: usize, text: &str, style: Style| {
        if let Some(y) = u16::try_from(y).ok().filter(|y| *y < area.height) {
            buffer.set_stringn(area.x, area.y + y, text, usize::from(area.width), style);
        }
    };
    if area.width < WIDTH_MIN || area.height < HEIGHT_MIN {
        put(0, &format!("too small: {}x{}", area.width, area.height), styles.bad);
        put(1, &format!("make it {WIDTH_MIN}x{HEIGHT_MIN}"), Style::new());
        put(2, "q quits", Style::new());
        return;
    }
    put(0, &head(top), styles.heading);
    put(1, &silent(top).join(", "), styles.bad);
    let tables = PANES.map(|pane| rows(top, pane));
    let heights = share(usize::from(area.height) - FRAME_LINES, top.pane as usize, &tables);
    let mut y = 2;
    for ((pane, rows), height) in PANES.into_iter().zip(&tables).zip(heights) {
        let shown = height - 2;
        let look = &mut top.looks[pane as usize];
        look.first = look.first.min(rows.len().saturating_sub(shown));
        let first = look.first;
        let chosen = pane == top.pane;
        let line = rule(top, pane, rows.len(), (first, shown), usize::from(area.width));
        put(y, &line, if chosen { styles.chosen } else { styles.title });
        let part: Vec<&Row> = rows.iter().skip(first).take(shown).collect();
        let lines = lines(pane, &part, usize::from(area.width));
        put(y + 1, &lines[0], styles.heading);
        for (at, (line, row)) in lines[1..].iter().zip(part).enumerate() {
            put(y + 2 + at, line, if row.bad { styles.bad } else { Style::new() });
        }
        y += height;
    }
    put(usize::from(area.height) - 1, KEYS, Style::new());
    if top.help {
        draw_help(styles, buffer);
    }
}

/// Everything as text, whatever its size.
pub fn plain(top: &Top) -> String {
    let mut text = vec![head(top)];
    text.extend(silent(top));
    for pane in PANES {
        let rows = rows(top, pane);
        text.push(format!("\n{} ({})", title(pane), rows.len()));
        if !rows.is_empty() {
            text.extend(lines(pane, &rows.iter().collect::<Vec<_>>(), usize::MAX));
        }
    }
    text.join("\n")
}

fn head(top: &Top) -> String {
    let answering = top.nodes.iter().filter(|n| n.answer().is_some()).count();
    let total = top.total();
    let paused = if top.paused { "  PAUSED" } else { "" };
    format!(
        "cluster {}: {answering} of {} nodes answer  {} messages/s  {}/s  every {} s{paused}",
        top.cluster,
        top.nodes.len(),
        count(total.sent_per_s),
        bytes(total.bytes_sent_per_s),
        top.interval.as_secs_f64(),
    )
}

fn silent(top: &Top) -> Vec<String> {
    let silent = top.nodes.iter().filter(|n| matches!(n.last, Some(Err(_))));
    silent.map(|n| format!("node {}: not answering", n.name)).collect()
}

/// A line that opens a pane: its title, how much of it is seen, by what it is sorted.
fn rule(top: &Top, pane: Pane, count: usize, (first, shown): (usize, usize), width: usize) -> String {
    let mark = if pane == top.pane { '>' } else { '-' };
    let mut line = format!("{mark}{mark} {} ({count})", title(pane));
    if count > shown {
        line += &format!(", {} to {}", first + 1, first + shown);
    }
    let look = top.looks[pane as usize];
    if let Some(column) = look.sort {
        line += &format!(", by {}", headings(pane)[column].trim_start_matches('>'));
    }
    if look.turned {
        line += ", turned";
    }
    let rest = width.saturating_sub(line.chars().count() + 1);
    format!("{line} {}", "-".repeat(rest))
}

/// Lines for each pane: one row each, then what the chosen one needs, then the others in turn.
fn share(lines: usize, chosen: usize, tables: &[Vec<Row>; PANES.len()]) -> [usize; PANES.len()] {
    let mut heights = [PANE_LINES_MIN; PANES.len()];
    let wanted = |pane: usize| (tables[pane].len() + 2).max(PANE_LINES_MIN);
    let mut left = lines.saturating_sub(PANE_LINES_MIN * PANES.len());
    let first = (wanted(chosen) - heights[chosen]).min(left);
    heights[chosen] += first;
    left -= first;
    while left > 0 {
        let before = left;
        for (pane, height) in heights.iter_mut().enumerate() {
            if left > 0 && *height < wanted(pane) {
                *height += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    heights
}

/// The headings and a line for each row, with the columns that fit.
fn lines(pane: Pane, rows: &[&Row], width: usize) -> Vec<String> {
    let headings = headings(pane);
    let cell = |row: &Row, at: usize| {
        let text = row.cells[at].as_str();
        if width == usize::MAX || text.chars().count() <= CELL_MAX {
            return text.to_owned();
        }
        text.chars().take(CELL_MAX - 1).chain(['~']).collect()
    };
    let titles: Vec<String> = headings.iter().map(|h| h.trim_start_matches('>').to_owned()).collect();
    let mut table = vec![titles];
    table.extend(rows.iter().map(|row| (0..headings.len()).map(|at| cell(row, at)).collect()));
    let mut widths: Vec<usize> = Vec::new();
    let mut used = 0;
    for at in 0..headings.len() {
        let wide = table.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
        used += wide + if at == 0 { 0 } else { GAP };
        if used > width {
            break;
        }
        widths.push(wide);
    }
    let line = |row: &Vec<String>| {
        let mut out = String::new();
        for (at, wide) in widths.iter().enumerate() {
            out += if at == 0 { "" } else { "  " };
            let pad = " ".repeat(wide - row[at].chars().count());
            out += &if headings[at].starts_with('>') { pad + &row[at] } else { row[at].clone() + &pad };
        }
        out.trim_end().to_owned()
    };
    table.iter().map(line).collect()
}

fn draw_help(styles: Styles, buffer: &mut Buffer) {
    let area = buffer.area;
    let wide = HELP.iter().map(|l| l.len()).max().unwrap_or(0) + 2;
    let wide = u16::try_from(wide).unwrap_or(u16::MAX).min(area.width);
    let high = (HELP.len() as u16 + 2).min(area.height);
    let place = Rect::new(area.x + (area.width - wide) / 2, area.y + (area.height - high) / 2, wide, high);
    for y in place.top()..place.bottom() {
        buffer.set_string(place.x, y, " ".repeat(usize::from(wide)), styles.chosen);
    }
    let edge = "=".repeat(usize::from(wide));
    buffer.set_string(place.x, place.top(), &edge, styles.chosen);
    buffer.set_string(place.x, place.bottom() - 1, &edge, styles.chosen);
    for (y, line) in (place.top() + 1..place.bottom() - 1).zip(HELP) {
        buffer.set_stringn(place.x + 1, y, line, usize::from(wide) - 2, Style::new());
    }
}
