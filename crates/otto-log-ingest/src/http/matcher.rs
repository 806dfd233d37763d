//! Which lines of a log are wanted.

use otto_log_store::Filter;
use otto_proto::block::LineRef;
use otto_proto::v1::ReadLogsRequest;
use regex::bytes::Regex;

use super::problem::Problem;

/// A compiled filter. Matches what a line holds without its newline.
pub(super) struct Matcher {
    /// For the store: blocks without a wanted line are not read at all.
    pub(super) store: Filter,
    contains: Option<memchr::memmem::Finder<'static>>,
    regex: Option<Regex>,
}

impl Matcher {
    /// Of a request whose parts were checked by [`super::params::Params::filter`].
    pub(super) fn new(request: &ReadLogsRequest) -> Result<Self, Problem> {
        let mask = |numbers: &[i32]| numbers.iter().fold(0u32, |mask, number| mask | 1 << number.clamp(&0, &31));
        let nanos = |stamp: &prost_types::Timestamp| {
            stamp.seconds.saturating_mul(1_000_000_000).saturating_add(stamp.nanos.into())
        };
        let regex =
            match request.regex.as_str() {
                "" => None,
                pattern => Some(Regex::new(pattern).map_err(|error| {
                    Problem::parameter("regex", &error.to_string(), "syntax of https://docs.rs/regex")
                })?),
            };
        Ok(Self {
            store: Filter {
                level_mask: mask(&request.levels),
                source_mask: mask(&request.sources),
                since_unix_nanos: request.since.as_ref().map(nanos),
                until_unix_nanos: request.until.as_ref().map(nanos),
            },
            contains: Some(request.contains.as_bytes())
                .filter(|text| !text.is_empty())
                .map(|text| memchr::memmem::Finder::new(text).into_owned()),
            regex,
        })
    }

    /// Whether a line is wanted.
    pub(super) fn wants(&self, line: &LineRef<'_>) -> bool {
        let Filter { level_mask, source_mask, since_unix_nanos, until_unix_nanos } = self.store;
        let attributes = line.attributes;
        (level_mask == 0 || level_mask & (1 << attributes.level as u32) != 0)
            && (source_mask == 0 || source_mask & (1 << attributes.source as u32) != 0)
            && since_unix_nanos.is_none_or(|since| attributes.time_unix_nanos >= since)
            && until_unix_nanos.is_none_or(|until| attributes.time_unix_nanos < until)
            && self.contains.as_ref().is_none_or(|text| text.find(line.message()).is_some())
            && self.regex.as_ref().is_none_or(|regex| regex.is_match(line.message()))
    }
}
