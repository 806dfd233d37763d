//! Times as people write and read them.

use jiff::{SignedDuration, Timestamp, Unit};

/// A point in time to read from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Since(pub(crate) Timestamp);

/// A duration back from now, or an RFC 3339 time.
pub(crate) fn parse_since(text: &str) -> Result<Since, String> {
    if let Ok(back) = otto_service::settings::parse_duration(text) {
        let back = SignedDuration::try_from(back).map_err(|error| error.to_string())?;
        return Timestamp::now().checked_sub(back).map(Since).map_err(|error| error.to_string());
    }
    let accepted = "accepted are a duration back (90s, 10m, 2h) and a time (2026-01-31T12:00:00Z)";
    text.parse().map(Since).map_err(|_| accepted.to_owned())
}

pub(crate) fn to_proto(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

pub(crate) fn from_proto(time: &prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}

/// RFC 3339 with milliseconds.
pub(crate) fn from_nanos(nanos: i64) -> String {
    match Timestamp::from_nanosecond(nanos.into()) {
        Ok(time) => time.round(Unit::Millisecond).unwrap_or(time).to_string(),
        Err(_) => String::new(),
    }
}

/// "3s", "12m", "5h", "8d".
pub(crate) fn short(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match seconds {
        0 if duration.as_millis() > 0 => format!("{}ms", duration.as_millis()),
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// How long from `start` to `end`, or until now. Empty if it has not begun.
pub(crate) fn span(start: Option<Timestamp>, end: Option<Timestamp>) -> String {
    start.map(|start| short(end.unwrap_or_else(Timestamp::now).duration_since(start))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_takes_both_forms_and_says_which() {
        assert_eq!(parse_since("2026-01-31T12:00:00Z").unwrap().0.as_second(), 1_769_860_800);
        let back = Timestamp::now().duration_since(parse_since("10m").unwrap().0);
        assert!((599..620).contains(&back.as_secs()), "{back}");
        assert!(parse_since("yesterday").unwrap_err().contains("10m"));
    }

    #[test]
    fn durations_are_short() {
        let texts = [0, 59, 61, 3_700, 90_000].map(|seconds| short(SignedDuration::from_secs(seconds)));
        assert_eq!(texts, ["0s", "59s", "1m01s", "1h01m", "1d01h"]);
        assert_eq!(short(SignedDuration::from_millis(250)), "250ms");
    }
}
