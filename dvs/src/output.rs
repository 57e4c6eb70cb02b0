//! What people and programs get to see: tables with headings for the one, one JSON object for the other.
//!
//! Key types: [`Output`], [`Table`]. `NO_COLOR` and pipes get no colours.

use std::io::{IsTerminal, Write};

use serde::Serialize;

/// How a command prints.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub json: bool,
    bold: bool,
}

/// `NO_COLOR`, when it is set to anything: <https://no-color.org>.
pub fn colours_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

impl Output {
    pub fn new(json: bool) -> Output {
        Output { json, bold: !json && colours_wanted() && std::io::stdout().is_terminal() }
    }

    /// The answer of a command: the object, or the text made from it.
    pub fn answer<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&Output) -> String,
    ) -> anyhow::Result<()> {
        let shown = if self.json { serde_json::to_string(value)? } else { text(self) };
        print(&shown);
        Ok(())
    }

    /// For a terminal that may show more than plain text.
    pub fn is_rich(&self) -> bool {
        self.bold
    }

    pub fn heading(&self, text: &str) -> String {
        if self.bold { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Prints a line; who closed our output does not want it any more, which is no error of ours. Whether anybody
/// still reads is for those who would print for ever.
pub fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()).is_ok()
}

/// Rows of cells under headings. A heading that begins with `>` has its column to the right.
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(headings: &[&'static str]) -> Table {
        Table { headings: headings.to_vec(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.headings.len());
        self.rows.push(cells);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn text(&self, output: &Output) -> String {
        let titles: Vec<&str> = self.headings.iter().map(|h| h.trim_start_matches('>')).collect();
        let width = |at: usize| {
            let cells = self.rows.iter().map(|row| row[at].chars().count());
            cells.max().unwrap_or(0).max(titles[at].chars().count())
        };
        let widths: Vec<usize> = (0..titles.len()).map(width).collect();
        let line = |cells: &[&str]| {
            let mut out = String::new();
            for (at, cell) in cells.iter().enumerate() {
                let pad = " ".repeat(widths[at] - cell.chars().count());
                let right = self.headings[at].starts_with('>');
                let gap = if at == 0 { "" } else { "  " };
                out += &if right { format!("{gap}{pad}{cell}") } else { format!("{gap}{cell}{pad}") };
            }
            out.trim_end().to_owned()
        };
        let mut lines = vec![output.heading(&line(&titles))];
        for row in &self.rows {
            lines.push(line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
        }
        lines.join("\n")
    }
}

/// A span for people: `3 ms`, `2 s`, `5 min`, `3 h`, `2 d`.
pub fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{} s", ms / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

/// Nanoseconds for people: below 10 µs as they are.
pub fn nanoseconds(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{:.1} us", ns as f64 / 1e3),
        _ => format!("{:.1} ms", ns as f64 / 1e6),
    }
}

/// Bytes for people, in powers of 1024.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A count with its thousands apart.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_on_both_sides() {
        let mut table = Table::new(&["name", ">n"]);
        table.row(vec!["a".into(), "100".into()]);
        table.row(vec!["long".into(), "7".into()]);
        let plain = Output { json: false, bold: false };
        assert_eq!(table.text(&plain), "name    n\na     100\nlong    7");
    }

    #[test]
    fn numbers_are_shown_for_people() {
        assert_eq!((span(999), span(1_000), span(120_000)), ("999 ms".into(), "1 s".into(), "2 min".into()));
        assert_eq!(
            (bytes(1023), bytes(1024), bytes(1 << 20)),
            ("1023 B".into(), "1.0 KiB".into(), "1.0 MiB".into())
        );
        assert_eq!(
            (count(999), count(1_000), count(1_234_567)),
            ("999".into(), "1 000".into(), "1 234 567".into())
        );
    }
}
