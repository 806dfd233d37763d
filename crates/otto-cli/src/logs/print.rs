//! Lines on stdout; gaps and events on stderr.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};

use base64::Engine;
use otto_proto::v1::worker_event::Type;
use otto_proto::v1::{FailureClass, LogLevel, LogLine, LogSource, ReadLogsResponse, WorkerEvent};
use serde_json::json;

use super::summary;
use crate::args::{Logs, Output};
use crate::classes;
use crate::console::{Progress, tell};
use crate::output::{colours, thousands};
use crate::times;

/// Prints what a log server sends. A line without an end is continued only by its own next part.
pub(super) struct Printer {
    form: Output,
    raw: bool,
    colours: bool,
    /// Of one worker only, so that nobody asks whose lines these are.
    one_worker: bool,
    workers: BTreeSet<String>,
    many: bool,
    /// Whose line has no end yet.
    open: Option<(String, i32)>,
    progress: Progress,
    printed: u64,
}

impl Printer {
    pub(super) fn new(form: Output, options: &Logs) -> Self {
        let one_worker = options.worker.is_some() || options.raw;
        let colours = colours() && !options.raw;
        let workers = BTreeSet::new();
        let progress = Progress::new();
        Self { form, raw: options.raw, colours, one_worker, workers, many: false, open: None, progress, printed: 0 }
    }

    /// How many workers there are, as far as is known at the start.
    pub(super) fn expect_workers(&mut self, count: usize) {
        self.many = count > 1;
    }

    pub(super) fn print(&mut self, part: &ReadLogsResponse) -> io::Result<()> {
        let told = part.skipped_lines > 0 || !part.gaps.is_empty() || part.events.iter().any(worth_telling);
        if told || (!part.lines.is_empty() && io::stdout().is_terminal()) {
            self.progress.clear();
        }
        for gap in part.gaps.iter().filter_map(|gap| Some((&gap.worker_id, gap.gap.as_ref()?))) {
            tell(format!("{}: {}", gap.0, summary::missing(gap.1)));
        }
        if part.skipped_lines > 0 {
            tell(format!(
                "too slow: {} lines were skipped here; `otto logs` shows them",
                thousands(part.skipped_lines)
            ));
        }
        for event in part.events.iter().filter(|event| worth_telling(event)) {
            tell(sentence(event));
        }
        let mut out = io::BufWriter::with_capacity(1 << 16, io::stdout().lock());
        for line in &part.lines {
            match (self.form, self.raw) {
                (Output::Json, false) => writeln!(out, "{}", as_json(line))?,
                _ => self.text(&mut out, line)?,
            }
        }
        out.flush()?;
        drop(out);
        self.printed += part.lines.len() as u64;
        // Where lines go to the same terminal, they are progress enough.
        if !io::stdout().is_terminal() {
            self.progress.set(format!("{} lines", thousands(self.printed)));
        } else if self.printed == 0
            && let Some(event) = part.events.last()
        {
            self.progress.set(event.message.clone());
        }
        Ok(())
    }

    /// Shows what is waited for, until something is printed.
    pub(super) fn progress(&mut self, text: String) {
        if self.printed == 0 {
            self.progress.set(text);
        }
    }

    /// Removes it, before something is told.
    pub(super) fn clear(&mut self) {
        self.progress.clear();
    }

    fn text(&mut self, out: &mut impl Write, line: &LogLine) -> io::Result<()> {
        if self.raw {
            out.write_all(&line.message)?;
            return if line.unterminated { Ok(()) } else { out.write_all(b"\n") };
        }
        let continues =
            self.open.as_ref().is_some_and(|(worker, source)| *worker == line.worker_id && *source == line.source);
        if self.open.is_some() && !continues {
            out.write_all(b"\n")?;
        }
        if !continues {
            self.prefix(out, line)?;
        }
        let stderr = self.colours && line.source() == LogSource::Stderr;
        if stderr {
            out.write_all(b"\x1b[33m")?;
        }
        out.write_all(&line.message)?;
        if stderr {
            out.write_all(b"\x1b[0m")?;
        }
        if line.unterminated {
            self.open = Some((line.worker_id.clone(), line.source));
            return Ok(());
        }
        self.open = None;
        out.write_all(b"\n")
    }

    fn prefix(&mut self, out: &mut impl Write, line: &LogLine) -> io::Result<()> {
        if self.one_worker {
            return Ok(());
        }
        if !self.workers.contains(&line.worker_id) {
            self.workers.insert(line.worker_id.clone());
            self.many |= self.workers.len() > 1;
        }
        if !self.many {
            return Ok(());
        }
        let name = short_name(&line.worker_id);
        if self.colours { write!(out, "\x1b[2m{name} |\x1b[0m ") } else { write!(out, "{name} | ") }
    }

    /// Leaves the terminal at the start of a line; bytes in a pipe stay as they were printed.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.progress.clear();
        if self.open.take().is_some() && io::stdout().is_terminal() {
            io::stdout().write_all(b"\n")?;
        }
        io::stdout().flush()
    }
}

/// `NAME-INDEX-ATTEMPT` → `INDEX`, or `INDEX.ATTEMPT` from the second on. Another's name stays as it is.
fn short_name(worker: &str) -> String {
    let mut parts = worker.rsplitn(3, '-');
    let numbers = (parts.next().map(str::parse::<u32>), parts.next().map(str::parse::<u32>));
    match numbers {
        (Some(Ok(1)), Some(Ok(index))) if parts.next().is_some() => format!("{index}"),
        (Some(Ok(attempt)), Some(Ok(index))) if parts.next().is_some() => format!("{index}.{attempt}"),
        _ => worker.to_owned(),
    }
}

/// What a reader of the log wants to know beside it.
fn worth_telling(event: &WorkerEvent) -> bool {
    !event.message.is_empty()
        && matches!(event.r#type(), Type::Waiting | Type::Failed | Type::Retrying | Type::EventLost | Type::Troubled)
}

/// `worker 0 waits (image): image acme/x:1 cannot be pulled: …`.
fn sentence(event: &WorkerEvent) -> String {
    let what = match event.r#type() {
        Type::Waiting => "waits",
        Type::Failed => "failed",
        Type::Retrying => "is tried again",
        Type::Troubled if event.failure_class() == FailureClass::Unspecified => "is well",
        Type::Troubled => "may be lost",
        _ => return event.message.clone(),
    };
    let about = classes::about(event.failure_class());
    format!("worker {} {what}{about}: {}", short_name(&event.worker_id), event.message)
}

fn as_json(line: &LogLine) -> serde_json::Value {
    let text = std::str::from_utf8(&line.message);
    let level = line.level().as_str_name().trim_start_matches("LOG_LEVEL_").to_lowercase();
    let mut value = json!({
        "worker_id": line.worker_id,
        "run_id": line.run_id,
        "sequence": line.sequence,
        "time": times::from_nanos(line.time_unix_nanos),
        "source": if line.source() == LogSource::Stderr { "stderr" } else { "stdout" },
        "message": String::from_utf8_lossy(&line.message),
    });
    if line.level() != LogLevel::Unspecified {
        value["level"] = level.into();
    }
    if text.is_err() {
        value["message_base64"] = base64::engine::general_purpose::STANDARD.encode(&line.message).into();
    }
    if line.unterminated {
        value["unterminated"] = true.into();
    }
    if !line.metadata.is_empty() {
        value["metadata"] = json!(line.metadata);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(worker: &str, source: LogSource, message: &str, unterminated: bool) -> LogLine {
        let message = message.as_bytes().to_vec().into();
        LogLine { worker_id: worker.into(), source: source.into(), message, unterminated, ..LogLine::default() }
    }

    #[test]
    fn parts_of_a_line_are_put_together_and_strangers_begin_their_own() {
        let mut printer = Printer::new(Output::Table, &Logs::default());
        printer.expect_workers(2);
        let mut out = Vec::new();
        for one in [
            line("otto-x-1234567890-0-1", LogSource::Stdout, "50 %", true),
            line("otto-x-1234567890-0-1", LogSource::Stdout, " done", false),
            line("otto-x-1234567890-0-1", LogSource::Stdout, "name? ", true),
            line("otto-x-1234567890-1-2", LogSource::Stdout, "other", false),
        ] {
            printer.text(&mut out, &one).unwrap();
        }
        assert_eq!(String::from_utf8(out).unwrap(), "0 | 50 % done\n0 | name? \n1.2 | other\n");
    }

    #[test]
    fn one_worker_needs_no_prefix() {
        let mut printer = Printer::new(Output::Table, &Logs::default());
        let mut out = Vec::new();
        printer.text(&mut out, &line("w", LogSource::Stdout, "fine", false)).unwrap();
        assert_eq!(out, b"fine\n");
    }
}
