//! Tables for people that fit their terminal, JSON for programs.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use crate::args::Output;

/// Whether colours are wanted on stdout (<https://no-color.org>).
pub(crate) fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// One row: cells for the table, an object for JSON.
pub(crate) struct Row {
    pub(crate) cells: Vec<String>,
    pub(crate) json: Value,
}

/// Prints rows. On a terminal the column `elastic` is cut so that lines fit.
pub(crate) fn print(form: Output, header: &[&str], elastic: usize, rows: &[Row]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if form == Output::Json {
        for row in rows {
            writeln!(out, "{}", row.json)?;
        }
        return out.flush();
    }
    let width = io::stdout().is_terminal().then(|| terminal_size::terminal_size().map(|(width, _)| width.0.into()));
    let text = table(header, elastic, rows, width.flatten());
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn table(header: &[&str], elastic: usize, rows: &[Row], terminal: Option<usize>) -> String {
    const GAP: usize = 2;
    let mut widths: Vec<usize> = header.iter().map(|title| title.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(&row.cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
    if let (Some(terminal), Some(elastic_width)) = (terminal, widths.get(elastic).copied()) {
        let all: usize = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        let over = all.saturating_sub(terminal);
        widths[elastic] = elastic_width.saturating_sub(over).max(header[elastic].len().max(8));
    }
    let mut text = String::new();
    let titles = header.iter().map(ToString::to_string).collect::<Vec<_>>();
    for cells in std::iter::once(&titles).chain(rows.iter().map(|row| &row.cells)) {
        let mut line = String::new();
        for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let shown = if column == elastic { cut(cell, *width) } else { cell.clone() };
            line.push_str(&shown);
            let pad = width.saturating_sub(shown.chars().count()) + GAP;
            line.extend(std::iter::repeat_n(' ', pad));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The text on one line, at most so many characters.
fn cut(text: &str, width: usize) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.chars().count() <= width {
        return clean;
    }
    let mut cut: String = clean.chars().take(width.saturating_sub(1)).collect();
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

    #[test]
    fn a_table_fits_a_narrow_terminal() {
        let text = table(&["TASK", "STATE", "MESSAGE"], 2, &rows(), Some(30));
        assert_eq!(text, "TASK  STATE    MESSAGE\na     running  a rather long …\nbcd   failed\n");
        assert!(text.lines().all(|line| line.chars().count() <= 30));
    }

    #[test]
    fn a_table_in_a_pipe_is_not_cut() {
        assert!(table(&["TASK", "STATE", "MESSAGE"], 2, &rows(), None).contains("a rather long message of two lines"));
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
