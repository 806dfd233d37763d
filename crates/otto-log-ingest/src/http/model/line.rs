use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use otto_proto::v1::{LogLevel, LogLine, LogSource};
use serde::Serialize;

/// A line. `message` has no newline; where its bytes are not UTF-8, it has U+FFFD for what is not, and `message_base64`
/// has the bytes.
#[derive(Serialize)]
pub(crate) struct Line<'a> {
    worker_id: &'a str,
    run_id: &'a str,
    sequence: u64,
    time: Option<String>,
    level: Option<&'static str>,
    source: Option<&'static str>,
    message: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_base64: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unterminated: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<&'a str, &'a str>,
}

impl<'a> From<&'a LogLine> for Line<'a> {
    fn from(line: &'a LogLine) -> Self {
        let message = String::from_utf8_lossy(&line.message);
        let message_base64 = match message {
            Cow::Borrowed(_) => None,
            Cow::Owned(_) => Some(STANDARD.encode(&line.message)),
        };
        Self {
            worker_id: &line.worker_id,
            run_id: &line.run_id,
            sequence: line.sequence,
            time: super::nanos(line.time_unix_nanos),
            level: level(line.level()),
            source: source(line.source()),
            message,
            message_base64,
            unterminated: line.unterminated,
            metadata: super::sorted(&line.metadata),
        }
    }
}

fn level(level: LogLevel) -> Option<&'static str> {
    match level {
        LogLevel::Unspecified => None,
        LogLevel::Trace => Some("trace"),
        LogLevel::Debug => Some("debug"),
        LogLevel::Info => Some("info"),
        LogLevel::Warn => Some("warn"),
        LogLevel::Error => Some("error"),
        LogLevel::Fatal => Some("fatal"),
    }
}

fn source(source: LogSource) -> Option<&'static str> {
    match source {
        LogSource::Unspecified => None,
        LogSource::Stdout => Some("stdout"),
        LogSource::Stderr => Some("stderr"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_not_utf8_come_along() {
        let line = |message: &[u8]| LogLine {
            worker_id: "w".into(),
            run_id: "r".into(),
            sequence: 7,
            time_unix_nanos: 1_000_000_001,
            level: LogLevel::Warn.into(),
            source: LogSource::Stderr.into(),
            message: message.to_vec().into(),
            ..LogLine::default()
        };
        let json = |message: &[u8]| serde_json::to_value(Line::from(&line(message))).unwrap();
        let plain = serde_json::json!({
            "worker_id": "w", "run_id": "r", "sequence": 7, "time": "1970-01-01T00:00:01.000000001Z",
            "level": "warn", "source": "stderr", "message": "<b>ü\u{0}",
        });
        assert_eq!(json("<b>ü\0".as_bytes()), plain);
        let broken = json(b"a\xff\n");
        assert_eq!((&broken["message"], &broken["message_base64"]), (&"a\u{fffd}\n".into(), &"Yf8K".into()));
    }
}
