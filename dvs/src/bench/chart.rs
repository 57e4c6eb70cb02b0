//! Bars for rows of a spread: blocks on a terminal, plain signs elsewhere.

use crate::output::{count, nanoseconds};
use crate::workers::spread::Row;

/// The longest bar.
const WIDTH: usize = 40;
/// A cell's eighths, from one to all of them.
const EIGHTHS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];

/// A line for each row.
pub fn chart(rows: &[Row], blocks: bool) -> String {
    let most = rows.iter().map(|row| row.count).max().unwrap_or(0).max(1);
    let cells: Vec<[String; 3]> =
        rows.iter().map(|row| [nanoseconds(row.from_ns), nanoseconds(row.to_ns), count(row.count)]).collect();
    let width = |at: usize| cells.iter().map(|c| c[at].chars().count()).max().unwrap_or(0);
    let (from, to, number) = (width(0), width(1), width(2));
    let line = |(row, cell): (&Row, &[String; 3])| {
        let bar = bar(row.count, most, blocks);
        format!("  {:>from$} - {:>to$}  {:>number$}  {bar}", cell[0], cell[1], cell[2]).trim_end().to_owned()
    };
    rows.iter().zip(&cells).map(line).collect::<Vec<_>>().join("\n")
}

/// As long as its part of the longest; something is seen of everything that is not zero.
fn bar(part: u64, most: u64, blocks: bool) -> String {
    let length = part as f64 / most as f64 * WIDTH as f64;
    if !blocks {
        return "#".repeat((length.round() as usize).max(usize::from(part > 0)));
    }
    let eighths = ((length * 8.0).round() as usize).max(usize::from(part > 0));
    let whole = EIGHTHS[7].to_string().repeat(eighths / 8);
    let rest = (eighths % 8).checked_sub(1).map(|at| EIGHTHS[at]);
    whole + &rest.map(String::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_part_and_never_nothing_for_something() {
        assert_eq!(bar(0, 100, true), "");
        assert_eq!(bar(1, 1_000_000, true), "▏");
        assert_eq!((bar(1, 1_000_000, false), bar(0, 9, false)), ("#".into(), String::new()));
        assert_eq!(bar(100, 100, true), "█".repeat(WIDTH));
        assert_eq!(bar(50, 100, false), "#".repeat(WIDTH / 2));
        // 21 of 320 eighths: two cells and five eighths.
        assert_eq!(bar(21, 320, true), "██▋");
    }

    #[test]
    fn columns_of_a_chart_line_up() {
        let row = |from_ns, to_ns, count| Row { from_ns, to_ns, count };
        let text = chart(&[row(100, 9_999, 1_000), row(9_999, 12_345_678, 0)], false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], format!("   100 ns - 9999 ns  1 000  {}", "#".repeat(WIDTH)));
        assert_eq!(lines[1], "  9999 ns - 12.3 ms      0");
    }
}
