//! A line as entries of the method that carries text.

use std::collections::HashMap;

use otto_proto::block::LineRef;
use otto_proto::v1::{LogEntry, LogGap, LogLevel, LogSource};

/// Metadata of an entry whose bytes were not all UTF-8.
const LOSSY: &str = "otto.lossy";
/// Metadata of an entry whose line goes on in the next entry of its source.
const CONTINUED: &str = "otto.continued";
/// Metadata of an entry that stands for missing lines: `FIRST-LAST`, without LAST if it is not known.
const GAP: &str = "otto.gap";
/// Why they are missing, as the contract names it, in lower case.
const GAP_REASON: &str = "otto.gap_reason";

/// Who sends, and what the server takes.
pub(super) struct Form {
    pub(super) worker_id: String,
    pub(super) task_id: String,
    /// Bytes of a message; `None`: no limit.
    pub(super) most_bytes: Option<usize>,
    pub(super) with_metadata: bool,
}

impl Form {
    /// At least one entry; several if the line is longer than a message may be.
    pub(super) fn entries(&self, line: &LineRef<'_>) -> Vec<LogEntry> {
        let text = String::from_utf8_lossy(line.message());
        let lossy = matches!(text, std::borrow::Cow::Owned(_));
        let timestamp = rfc3339(line.attributes.time_unix_nanos);
        let mut entries = Vec::new();
        let mut rest = &text[..];
        loop {
            let (part, after) = rest.split_at(cut(rest, self.most_bytes.unwrap_or(usize::MAX)));
            let mut metadata = HashMap::new();
            if lossy {
                metadata.insert(LOSSY.to_owned(), "true".to_owned());
            }
            if self.with_metadata {
                if !after.is_empty() || line.unterminated() {
                    metadata.insert(CONTINUED.to_owned(), "true".to_owned());
                }
                metadata.extend(line.metadata.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
            }
            entries.push(LogEntry {
                worker_id: self.worker_id.clone(),
                task_id: self.task_id.clone(),
                timestamp: timestamp.clone(),
                level: level(line.attributes.level).to_owned(),
                source: if line.attributes.source == LogSource::Stderr { "stderr" } else { "stdout" }.to_owned(),
                message: part.to_owned(),
                metadata,
                sequence: None,
            });
            rest = after;
            if rest.is_empty() {
                return entries;
            }
        }
    }

    /// The entry that tells of missing lines, where there is no other way to tell.
    pub(super) fn gap(&self, gap: &LogGap, time_unix_nanos: i64) -> LogEntry {
        let (first, last) = (gap.first_sequence, gap.last_sequence);
        let (what, range) = match last {
            0 => (format!("lines from {first} on may be missing"), format!("{first}-")),
            _ if first == last => (format!("line {first} is missing"), format!("{first}-{last}")),
            _ => (format!("lines {first} to {last} are missing"), format!("{first}-{last}")),
        };
        let why = if gap.message.is_empty() { String::new() } else { format!(": {}", gap.message) };
        let mut message = format!("otto: {what}{why}");
        message.truncate(cut(&message, self.most_bytes.unwrap_or(usize::MAX)));
        let reason = gap.reason().as_str_name().to_ascii_lowercase();
        LogEntry {
            worker_id: self.worker_id.clone(),
            task_id: self.task_id.clone(),
            timestamp: rfc3339(time_unix_nanos),
            level: level(LogLevel::Warn).to_owned(),
            source: "stderr".to_owned(),
            message,
            metadata: HashMap::from([(GAP.to_owned(), range), (GAP_REASON.to_owned(), reason)]),
            sequence: None,
        }
    }
}

/// At `most` bytes or a little before, between characters; one character at least.
fn cut(text: &str, most: usize) -> usize {
    if text.len() <= most {
        return text.len();
    }
    let at = text.floor_char_boundary(most);
    if at > 0 { at } else { text.ceil_char_boundary(1) }
}

fn level(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Unspecified => "",
        LogLevel::Trace => "TRACE",
        LogLevel::Debug => "DEBUG",
        LogLevel::Info => "INFO",
        LogLevel::Warn => "WARN",
        LogLevel::Error => "ERROR",
        LogLevel::Fatal => "FATAL",
    }
}

/// With nanoseconds, UTC.
pub(crate) fn rfc3339(unix_nanos: i64) -> String {
    timestamp(unix_nanos).to_string()
}

/// The same as protobuf's type.
pub(crate) fn timestamp(unix_nanos: i64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: unix_nanos.div_euclid(1_000_000_000),
        nanos: unix_nanos.rem_euclid(1_000_000_000) as i32,
    }
}

#[cfg(test)]
mod tests {
    use otto_proto::block::{Attributes, Builder, DecodedBlock};

    use super::*;

    fn entries(line: &[u8], most_bytes: Option<usize>) -> Vec<LogEntry> {
        let mut builder = Builder::new();
        let attributes = Attributes {
            time_unix_nanos: 1_700_000_000_000_000_001,
            level: LogLevel::Error,
            source: LogSource::Stderr,
        };
        builder.push(line, attributes);
        let block = DecodedBlock::decode(&builder.finish(1, None).unwrap()).unwrap();
        let form = Form { worker_id: "w".into(), task_id: "t".into(), most_bytes, with_metadata: true };
        block.lines().flat_map(|line| form.entries(&line)).collect()
    }

    #[test]
    fn a_line_becomes_an_entry() {
        let entries = entries("grüße\n".as_bytes(), None);
        assert_eq!(entries.len(), 1);
        let entry = &entries[0];
        assert_eq!((entry.message.as_str(), entry.level.as_str(), entry.source.as_str()), ("grüße", "ERROR", "stderr"));
        assert_eq!(entry.timestamp, "2023-11-14T22:13:20.000000001Z");
        assert!(entry.metadata.is_empty() && entry.sequence.is_none());
    }

    #[test]
    fn bytes_that_are_no_text_are_marked() {
        let entries = entries(b"a\xffb\n", None);
        assert_eq!((entries[0].message.as_str(), entries[0].metadata["otto.lossy"].as_str()), ("a\u{fffd}b", "true"));
    }

    #[test]
    fn long_lines_are_split_between_characters() {
        let entries = entries("aé€😀b\n".as_bytes(), Some(4));
        let parts: Vec<_> = entries.iter().map(|entry| entry.message.as_str()).collect();
        assert_eq!(parts, ["aé", "€", "😀", "b"]);
        assert!(entries[..3].iter().all(|entry| entry.metadata.contains_key("otto.continued")));
        assert!(entries[3].metadata.is_empty());
    }

    #[test]
    fn a_gap_is_a_sentence() {
        let form = Form { worker_id: "w".into(), task_id: "t".into(), most_bytes: Some(61), with_metadata: false };
        let text = |first_sequence, last_sequence, message: &str| {
            let reason = otto_proto::v1::log_gap::Reason::SpoolFull.into();
            let entry = form.gap(&LogGap { first_sequence, last_sequence, reason, message: message.to_owned() }, 1);
            assert_eq!(entry.metadata["otto.gap_reason"], "spool_full");
            (entry.message, entry.metadata["otto.gap"].clone())
        };
        assert_eq!(text(5, 7, "full"), ("otto: lines 5 to 7 are missing: full".to_owned(), "5-7".to_owned()));
        assert_eq!(text(5, 5, ""), ("otto: line 5 is missing".to_owned(), "5-5".to_owned()));
        assert_eq!(text(8, 0, "x"), ("otto: lines from 8 on may be missing: x".to_owned(), "8-".to_owned()));
        assert_eq!(text(8, 0, &"ü".repeat(50)).0.len(), 60);
    }

    #[test]
    fn an_empty_line_is_an_entry_and_an_unterminated_one_goes_on() {
        assert_eq!(entries(b"\n", Some(10))[0].message, "");
        assert!(entries(b"50%", None)[0].metadata.contains_key("otto.continued"));
        assert_eq!(entries("€€\n".as_bytes(), Some(1)).len(), 2);
    }
}
