//! Query parameters: each known by name, given once, and refused with what is accepted.

use std::time::Duration;

use axum::extract::Query;
use http::Uri;
use jiff::Timestamp;
use otto_proto::v1::{LogLevel, LogSource, ReadLogsRequest};
use regex::bytes::RegexBuilder;

use super::problem::Problem;

/// Most characters of `q` and `regex`.
const MAX_PATTERN: usize = 1_000;
/// Most bytes of a compiled regular expression.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// The parameters of one request.
#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Reads them; one that is not in `accepted` is refused.
    pub(super) fn read(uri: &Uri, accepted: &[&str]) -> Result<Self, Problem> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| Problem::new(http::StatusCode::BAD_REQUEST, error.to_string()))?;
        if let Some((name, _)) = pairs.iter().find(|(name, _)| !accepted.contains(&name.as_str())) {
            let list = if accepted.is_empty() { "none".to_owned() } else { accepted.join(", ") };
            return Err(Problem::parameter(
                name.chars().take(100).collect::<String>(),
                "there is no such parameter",
                list,
            ));
        }
        Ok(Self(pairs))
    }

    /// The value of a parameter that may be given once. An empty value counts as absent.
    pub(super) fn one(&self, name: &'static str) -> Result<Option<&str>, Problem> {
        let mut values = self.0.iter().filter(|(given, _)| given == name).map(|(_, value)| value.as_str());
        let first = values.next();
        if values.next().is_some() {
            return Err(Problem::parameter(name, "it is given more than once", "one value"));
        }
        Ok(first.filter(|value| !value.is_empty()))
    }

    /// The values of a parameter that may be repeated or hold several, separated by commas.
    fn list(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(given, _)| given == name)
            .flat_map(|(_, value)| value.split(','))
            .map(str::trim)
            .filter(|value| !value.is_empty())
    }

    /// A whole number in a range.
    pub(super) fn number(&self, name: &'static str, least: u64, most: u64) -> Result<Option<u64>, Problem> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        match text.parse() {
            Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => {
                let accepted = if most >= i64::MAX as u64 {
                    format!("a whole number of at least {least}")
                } else {
                    format!("a whole number from {least} to {most}")
                };
                Err(Problem::parameter(name, &format!("{} is not one", quoted(text)), accepted))
            }
        }
    }

    /// A time: RFC 3339, or how long ago ("15m").
    fn time(&self, name: &'static str) -> Result<Option<prost_types::Timestamp>, Problem> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        // "+" of a zone's offset is a space unless it was encoded.
        let parsed = text.replace(' ', "+").parse::<Timestamp>().ok().or_else(|| {
            let ago: Duration = humantime::parse_duration(text).ok()?;
            Timestamp::now().checked_sub(jiff::SignedDuration::try_from(ago).ok()?).ok()
        });
        match parsed {
            Some(time) => {
                Ok(Some(prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }))
            }
            None => Err(Problem::parameter(
                name,
                &format!("{} is not a time", quoted(text)),
                "RFC 3339 (2026-01-31T12:00:00Z) or how long ago (15m, 2h, 1day)",
            )),
        }
    }

    /// What lines are wanted: `q`, `regex`, `level`, `source`, `since`, `until`.
    pub(super) fn filter(&self) -> Result<ReadLogsRequest, Problem> {
        let mut levels = Vec::new();
        for name in self.list("level") {
            levels.push(level(name).ok_or_else(|| {
                Problem::parameter(
                    "level",
                    &format!("{} is not a level", quoted(name)),
                    "trace, debug, info, warn, error, fatal, none (lines without a level); several separated by commas",
                )
            })?);
        }
        let mut sources = Vec::new();
        for name in self.list("source") {
            sources.push(source(name).ok_or_else(|| {
                Problem::parameter("source", &format!("{} is not a source", quoted(name)), "stdout, stderr")
            })?);
        }
        for name in ["q", "regex"] {
            if self.one(name)?.is_some_and(|text| text.chars().count() > MAX_PATTERN) {
                return Err(Problem::parameter(name, "it is too long", format!("at most {MAX_PATTERN} characters")));
            }
        }
        let regex = self.one("regex")?.unwrap_or_default();
        if let Err(error) = RegexBuilder::new(regex).size_limit(MAX_REGEX_BYTES).build() {
            let wrong = match error {
                regex::Error::CompiledTooBig(_) => "it is too large when compiled".to_owned(),
                other => other.to_string(),
            };
            return Err(Problem::parameter(
                "regex",
                &wrong,
                "syntax of https://docs.rs/regex (no look-around, no back-references)",
            ));
        }
        Ok(ReadLogsRequest {
            levels,
            sources,
            contains: self.one("q")?.unwrap_or_default().to_owned(),
            regex: regex.to_owned(),
            since: self.time("since")?,
            until: self.time("until")?,
            ..ReadLogsRequest::default()
        })
    }

    /// The one source of the raw bytes; `None`: all.
    pub(super) fn raw_source(&self) -> Result<Option<LogSource>, Problem> {
        match self.one("source")? {
            None => Ok(None),
            Some("stdout") => Ok(Some(LogSource::Stdout)),
            Some("stderr") => Ok(Some(LogSource::Stderr)),
            Some(other) => {
                Err(Problem::parameter("source", &format!("{} is not a source", quoted(other)), "stdout or stderr"))
            }
        }
    }
}

fn level(name: &str) -> Option<i32> {
    let level = match name.to_ascii_lowercase().as_str() {
        "none" => LogLevel::Unspecified,
        "trace" => LogLevel::Trace,
        "debug" => LogLevel::Debug,
        "info" => LogLevel::Info,
        "warn" | "warning" => LogLevel::Warn,
        "error" => LogLevel::Error,
        "fatal" => LogLevel::Fatal,
        _ => return None,
    };
    Some(level.into())
}

fn source(name: &str) -> Option<i32> {
    match name.to_ascii_lowercase().as_str() {
        "stdout" => Some(LogSource::Stdout.into()),
        "stderr" => Some(LogSource::Stderr.into()),
        _ => None,
    }
}

fn quoted(text: &str) -> String {
    let short: String = text.chars().take(100).collect();
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<ReadLogsRequest, Problem> {
        let uri = format!("/x?{query}").parse().unwrap();
        Params::read(&uri, &["level", "source", "q", "regex", "since", "until"])?.filter()
    }

    fn refused(query: &str) -> String {
        serde_json::to_string(read(query).unwrap_err().details()).unwrap()
    }

    #[test]
    fn a_refusal_names_the_parameter_and_what_is_accepted() {
        for (query, name, accepted) in [
            ("lvl=info", "lvl", "level, source, q"),
            ("level=loud", "level", "fatal"),
            ("source=stdin", "source", "stdout, stderr"),
            ("regex=%28", "regex", "look-around"),
            ("since=yesterday", "since", "RFC 3339"),
            ("q=a&q=b", "q", "one value"),
        ] {
            let text = refused(query);
            assert!(text.contains(&format!("\"parameter\":\"{name}\"")) && text.contains(accepted), "{query}: {text}");
        }
        assert!(refused(&format!("q={}", "x".repeat(1001))).contains("1000 characters"));
    }

    #[test]
    fn values_are_read() {
        let filter =
            read("level=WARN,error&level=none&source=stderr&q=a%20b&regex=(?i)x&since=2026-01-31T12:00:00%2B01:00")
                .unwrap();
        assert_eq!(filter.levels, [4, 5, 0]);
        assert_eq!(filter.sources, [2]);
        assert_eq!((filter.contains.as_str(), filter.regex.as_str()), ("a b", "(?i)x"));
        assert_eq!(filter.since.unwrap().seconds, 1_769_857_200);
        assert_eq!(read("since=2026-01-31T12:00:00+01:00").unwrap().since.unwrap().seconds, 1_769_857_200);
        let ago = read("since=1h").unwrap().since.unwrap().seconds;
        assert!((Timestamp::now().as_second() - 3600 - ago).abs() < 5);
        assert_eq!(read("level=&q=").unwrap(), ReadLogsRequest::default());
    }
}
