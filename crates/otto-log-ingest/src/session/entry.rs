//! What the texts of a `LogEntry` mean. Pure.

use otto_proto::v1::{LogLevel, LogSource};

/// Key of a line's metadata that holds a timestamp nobody could read, as it was sent (its first 64 bytes). The line
/// has the time of its arrival then.
pub(crate) const INVALID_TIMESTAMP: &str = "otto.invalid_timestamp";

/// "trace", "debug", "info", "warn", "error", "fatal" in any case; anything else is no level.
pub(crate) fn level(text: &str) -> LogLevel {
    const LEVELS: [(&str, LogLevel); 6] = [
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("warn", LogLevel::Warn),
        ("error", LogLevel::Error),
        ("trace", LogLevel::Trace),
        ("fatal", LogLevel::Fatal),
    ];
    LEVELS.iter().find(|(name, _)| text.eq_ignore_ascii_case(name)).map_or(LogLevel::Unspecified, |(_, level)| *level)
}

/// "stdout" or "stderr" in any case; empty is stdout; anything else is no known source.
pub(crate) fn source(text: &str) -> LogSource {
    if text.is_empty() || text.eq_ignore_ascii_case("stdout") {
        LogSource::Stdout
    } else if text.eq_ignore_ascii_case("stderr") {
        LogSource::Stderr
    } else {
        LogSource::Unspecified
    }
}

/// Reads RFC 3339 timestamps. Neighbouring lines share their second, which is read once.
#[derive(Debug, Default)]
pub(crate) struct Timestamps {
    /// `2026-01-02T03:04:05` of the last one that ended with Z, and its nanoseconds since the Unix epoch.
    second: Option<([u8; 19], i64)>,
}

impl Timestamps {
    /// Nanoseconds since the Unix epoch; `None` if it is no timestamp between the years 1678 and 2261.
    pub(crate) fn read(&mut self, text: &str) -> Option<i64> {
        let bytes = text.as_bytes();
        if let Some((prefix, base)) = &self.second
            && let Some(rest) = bytes.strip_prefix(prefix)
            && let Some(fraction) = fraction(rest)
        {
            return base.checked_add(fraction);
        }
        let timestamp: jiff::Timestamp = text.parse().ok()?;
        let nanos = i64::try_from(timestamp.as_nanosecond()).ok()?;
        self.second = bytes
            .first_chunk()
            .zip(bytes.get(19..).and_then(fraction))
            .and_then(|(prefix, fraction)| Some((*prefix, nanos.checked_sub(fraction)?)));
        Some(nanos)
    }
}

/// Nanoseconds of `.123456789Z`, with 1 to 9 digits, or of `Z`.
fn fraction(rest: &[u8]) -> Option<i64> {
    let digits = match rest {
        b"Z" => return Some(0),
        [b'.', digits @ .., b'Z'] if (1..=9).contains(&digits.len()) => digits,
        _ => return None,
    };
    let mut nanos = 0;
    for digit in digits {
        nanos = nanos * 10 + i64::from(digit.is_ascii_digit().then(|| digit - b'0')?);
    }
    Some(nanos * 10i64.pow(9 - digits.len() as u32))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn levels_and_sources_know_no_case() {
        for (text, level_wanted) in [
            ("INFO", LogLevel::Info),
            ("Warn", LogLevel::Warn),
            ("fatal", LogLevel::Fatal),
            ("loud", LogLevel::Unspecified),
            ("", LogLevel::Unspecified),
        ] {
            assert_eq!(level(text), level_wanted, "{text}");
        }
        for (text, wanted) in [
            ("", LogSource::Stdout),
            ("STDOUT", LogSource::Stdout),
            ("StdErr", LogSource::Stderr),
            ("tty", LogSource::Unspecified),
        ] {
            assert_eq!(source(text), wanted, "{text}");
        }
    }

    #[test]
    fn timestamps() {
        let mut read = Timestamps::default();
        assert_eq!(read.read("1970-01-01T00:00:01Z"), Some(1_000_000_000));
        assert_eq!(read.read("1970-01-01T00:00:01.5Z"), Some(1_500_000_000));
        assert_eq!(read.read("1970-01-01T00:00:01.000000007Z"), Some(1_000_000_007));
        assert_eq!(read.read("1970-01-01T01:00:01+01:00"), Some(1_000_000_000));
        // Before 1970 the fraction still counts upwards.
        assert_eq!(read.read("1969-12-31T23:59:59.25Z"), Some(-750_000_000));
        assert_eq!(read.read("1969-12-31T23:59:59.75Z"), Some(-250_000_000));
        for bad in [
            "",
            "yesterday",
            "1970-01-01T00:00:01",
            "1970-01-01T00:00:01.Z",
            "9999-01-01T00:00:00Z",
            "1970-01-01T00:00:01.12x4Z",
        ] {
            assert_eq!(read.read(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn the_short_way_agrees_with_the_long_one(seconds in -5_000_000_000i64..5_000_000_000, nanos in 0..1_000_000_000i32, digits in 0..=9usize) {
            let text = jiff::Timestamp::new(seconds, 0).unwrap().to_string();
            let fraction = format!(".{nanos:09}");
            let text = if digits == 0 { text } else { text.replace('Z', &format!("{}Z", &fraction[..=digits])) };
            let long: jiff::Timestamp = text.parse().unwrap();
            let mut read = Timestamps::default();
            let first = read.read(&text);
            prop_assert_eq!(first.map(i128::from), Some(long.as_nanosecond()));
            prop_assert_eq!(read.read(&text), first);
        }
    }
}
