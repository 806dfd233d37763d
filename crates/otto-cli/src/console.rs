//! What the command says beside its output: sentences and progress on stderr.
//!
//! A closed stderr is nobody's fault, so nothing here fails.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// A sentence on stderr. What servers say is shown on one line, without anything that a terminal would obey.
pub(crate) fn tell(sentence: impl Display) {
    let _ = writeln!(io::stderr().lock(), "otto: {}", plain(&sentence.to_string()));
}

/// The text without control characters.
pub(crate) fn plain(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for character in text.trim_end().chars() {
        match character {
            '\n' | '\t' => clean.push(' '),
            control if control.is_control() => clean.extend(control.escape_default()),
            other => clean.push(other),
        }
    }
    clean
}

/// A line on a terminal's stderr that is replaced and, before anything else is printed, removed.
#[derive(Debug)]
pub(crate) struct Progress {
    enabled: bool,
    shown: String,
    at: Option<Instant>,
}

/// A text that changes faster is shown this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

impl Progress {
    /// Shows nothing unless stderr is a terminal.
    pub(crate) fn new() -> Self {
        Self { enabled: io::stderr().is_terminal(), shown: String::new(), at: None }
    }

    /// Shows another text.
    pub(crate) fn set(&mut self, text: String) {
        let soon = self.at.is_some_and(|at| at.elapsed() < PROGRESS_EVERY);
        if self.enabled && text != self.shown && !soon {
            let text = plain(&text);
            let width = terminal_size::terminal_size_of(io::stderr()).map_or(80, |(width, _)| usize::from(width.0));
            let fitting: String = text.chars().take(width.saturating_sub(1)).collect();
            let _ = write!(io::stderr().lock(), "\r\x1b[K{fitting}");
            self.shown = text;
            self.at = Some(Instant::now());
        }
    }

    /// Removes it.
    pub(crate) fn clear(&mut self) {
        if !self.shown.is_empty() {
            self.shown.clear();
            self.at = None;
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_commands_no_terminal() {
        assert_eq!(plain("a\x1b[2Jb\nc\td\r\n"), "a\\u{1b}[2Jb c d");
        assert_eq!(plain("größer…"), "größer…");
    }
}
