//! Tables for people that fit their terminal, JSON for programs.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::args::Output;
use crate::console::plain;

/// Whether colours are wanted on stdout (<https://no-color.org>).
pub(crate) fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// One row: cells for the table, an object for JSON.
pub(crate) struct Row {
    pub(crate) cells: Vec<String>,
    pub(crate) json: Value,
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    title: &'static str,
    narrow: Narrow,
}

/// What becomes of a column where the terminal is too narrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Narrow {
    /// It stays as it is: what it holds is typed again elsewhere.
    Kept,
    /// It is cut first.
    Elastic,
    /// It is left out after that, the lowest number first.
    Dropped(u8),
}

impl Column {
    pub(crate) const fn kept(title: &'static str) -> Self {
        Self { title, narrow: Narrow::Kept }
    }

    pub(crate) const fn elastic(title: &'static str) -> Self {
        Self { title, narrow: Narrow::Elastic }
    }

    pub(crate) const fn dropped(title: &'static str, order: u8) -> Self {
        Self { title, narrow: Narrow::Dropped(order) }
    }
}

/// Prints rows. On a terminal the table is made to fit; in a pipe nothing is left out.
pub(crate) fn print(form: Output, columns: &[Column], rows: &[Row]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if form == Output::Json {
        for row in rows {
            writeln!(out, "{}", row.json)?;
        }
        return out.flush();
    }
    let width = if io::stdout().is_terminal() { terminal_size::terminal_size_of(io::stdout()) } else { None };
    let text = table(columns, rows, width.map(|(width, _)| width.0.into()));
    out.write_all(text.as_bytes())?;
    out.flush()
}

const GAP: usize = 2;
/// An elastic column is left out rather than cut to less.
const LEAST: usize = 12;

fn table(columns: &[Column], rows: &[Row], terminal: Option<usize>) -> String {
    let titles: Vec<String> = columns.iter().map(|column| column.title.to_owned()).collect();
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| row.cells.iter().map(|cell| plain(cell)).collect::<Vec<_>>()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&titles).chain(&cells).collect();
    let natural = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.width()).max();
    let mut widths: Vec<Option<usize>> = (0..columns.len()).map(natural).collect();
    if let Some(terminal) = terminal {
        fit(columns, &mut widths, terminal);
    }
    let mut text = String::new();
    for line in lines {
        let mut shown = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            let Some(width) = *width else { continue };
            let cell = cut(cell, width);
            let pad = width.saturating_sub(cell.width()) + GAP;
            shown.push_str(&cell);
            shown.extend(std::iter::repeat_n(' ', pad));
        }
        text.push_str(shown.trim_end());
        text.push('\n');
    }
    text
}

/// Makes columns narrower, or leaves them out (`None`), until they fit.
fn fit(columns: &[Column], widths: &mut [Option<usize>], terminal: usize) {
    let over = |widths: &[Option<usize>]| {
        let shown = widths.iter().flatten().count();
        (widths.iter().flatten().sum::<usize>() + GAP * shown.saturating_sub(1)).saturating_sub(terminal)
    };
    let elastic = columns.iter().position(|column| column.narrow == Narrow::Elastic);
    let shrink = |widths: &mut [Option<usize>], least: usize| {
        let too_much = over(widths);
        if let Some(width) = elastic.and_then(|column| widths[column].as_mut()) {
            *width = width.saturating_sub(too_much).max(least.min(*width));
        }
    };
    let mut droppable: Vec<(u8, usize)> = columns
        .iter()
        .enumerate()
        .filter_map(|(index, column)| match column.narrow {
            Narrow::Dropped(order) => Some((order, index)),
            Narrow::Kept | Narrow::Elastic => None,
        })
        .collect();
    droppable.sort_unstable();
    // A message of some length is worth more than the columns that go first.
    let wanted = (terminal / 4).max(LEAST);
    for (_, column) in droppable {
        let mut tried = widths.to_vec();
        shrink(&mut tried, wanted);
        if over(&tried) == 0 {
            break;
        }
        widths[column] = None;
    }
    shrink(widths, LEAST);
    if over(widths) > 0
        && let Some(column) = elastic
    {
        widths[column] = None;
    }
}

/// At most so many columns of a terminal.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut cut = String::new();
    for character in text.chars() {
        if cut.width() + character.width().unwrap_or(0) + 1 > width {
            break;
        }
        cut.push(character);
    }
    cut.push('…');
    cut
}

/// 12345 → "12,345".
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let row = |cells: [&str; 3]| Row { cells: cells.map(str::to_owned).to_vec(), json: Value::Null };
        vec![row(["a", "running", "a rather long message\nof two lines"]), row(["bcd", "failed", ""])]
    }

    const COLUMNS: [Column; 3] = [Column::kept("TASK"), Column::dropped("STATE", 1), Column::elastic("MESSAGE")];

    #[test]
    fn a_table_fits_every_terminal() {
        let text = table(&COLUMNS, &rows(), Some(30));
        assert_eq!(text, "TASK  STATE    MESSAGE\na     running  a rather long …\nbcd   failed\n");
        // Too narrow for the message: first the others go, then it goes itself.
        assert_eq!(table(&COLUMNS, &rows(), Some(20)), "TASK  MESSAGE\na     a rather long…\nbcd\n");
        assert_eq!(table(&COLUMNS, &rows(), Some(10)), "TASK\na\nbcd\n");
        for width in 4..80 {
            let text = table(&COLUMNS, &rows(), Some(width));
            assert!(text.lines().all(|line| line.width() <= width), "{width}:\n{text}");
        }
    }

    #[test]
    fn wide_characters_take_two_columns() {
        let row = Row { cells: vec!["任務".into(), "x".into(), "\x1b[2J".into()], json: Value::Null };
        let text = table(&COLUMNS, &[row], None);
        assert_eq!(text, "TASK  STATE  MESSAGE\n任務  x      \\u{1b}[2J\n");
        assert_eq!(cut("任務任務", 5), "任務…");
    }

    #[test]
    fn a_table_in_a_pipe_is_not_cut() {
        assert!(table(&COLUMNS, &rows(), None).contains("a rather long message of two lines"));
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
