use std::sync::Arc;

use otto_log_store::Filter;
use otto_proto::block::LineRef;
use otto_proto::v1::{LogLevel, LogSource, ReadLogsRequest};
use regex::bytes::{Regex, RegexBuilder};

use super::QueryError;
use super::token::Token;

/// Longest text or expression to search for, bytes.
const MAX_PATTERN: usize = 4096;
/// Memory of a compiled expression, and of its cache, bytes.
const REGEX_BYTES: usize = 1 << 20;
/// Most lines that can be asked for from the end.
pub(super) const MAX_TAIL: u64 = 100_000;

/// A request that makes sense.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) task_id: String,
    pub(super) worker_id: Option<String>,
    pub(super) run_id: Option<String>,
    /// First sequence of the newest (or named) run.
    pub(super) from_sequence: Option<u64>,
    pub(super) tail_lines: Option<usize>,
    pub(super) limit: Option<u64>,
    pub(super) token: Option<Token>,
    pub(super) matcher: Arc<Matcher>,
}

impl Wanted {
    pub(super) fn new(request: ReadLogsRequest) -> Result<Self, QueryError> {
        let invalid =
            |field, description: &str| Err(QueryError::Invalid { field, description: description.to_owned() });
        if request.task_id.is_empty() {
            return invalid("task_id", "must not be empty");
        }
        if request.worker_id.is_empty() && !request.run_id.is_empty() {
            return invalid("run_id", "needs worker_id");
        }
        if request.worker_id.is_empty() && request.from_sequence > 0 {
            return invalid("from_sequence", "needs worker_id: a sequence counts the lines of one run");
        }
        if request.from_sequence > 0 && request.tail_lines > 0 {
            return invalid("tail_lines", "cannot be combined with from_sequence");
        }
        if request.tail_lines > MAX_TAIL {
            return invalid("tail_lines", "at most 100,000");
        }
        let matcher = Arc::new(Matcher::new(&request)?);
        let non_empty = |text: String| Some(text).filter(|text| !text.is_empty());
        let token = match request.resume_token.as_str() {
            "" => None,
            text => match Token::decode(text, &request.task_id, &request.worker_id, &request.run_id) {
                Some(token) => Some(token),
                None => {
                    return invalid(
                        "resume_token",
                        "is not one that this server gave for the same task, worker and run",
                    );
                }
            },
        };
        Ok(Self {
            worker_id: non_empty(request.worker_id),
            run_id: non_empty(request.run_id),
            task_id: request.task_id,
            from_sequence: Some(request.from_sequence).filter(|sequence| *sequence > 0),
            tail_lines: usize::try_from(request.tail_lines).ok().filter(|lines| *lines > 0),
            limit: Some(request.limit).filter(|limit| *limit > 0),
            token,
            matcher,
        })
    }
}

/// Which lines are wanted.
#[derive(Debug)]
pub(crate) struct Matcher {
    filter: Filter,
    contains: Option<memchr::memmem::Finder<'static>>,
    regex: Option<Regex>,
}

impl Matcher {
    /// Of the filters of a request.
    pub(crate) fn new(request: &ReadLogsRequest) -> Result<Self, QueryError> {
        let invalid = |field, description: String| QueryError::Invalid { field, description };
        let mut filter = Filter::default();
        for level in &request.levels {
            let level = LogLevel::try_from(*level)
                .map_err(|_| invalid("levels", format!("{level} is no level; accepted are 0 to 6")))?;
            filter.level_mask |= 1 << (level as u32);
        }
        for source in &request.sources {
            let source = LogSource::try_from(*source)
                .map_err(|_| invalid("sources", format!("{source} is no source; accepted are 0 to 2")))?;
            filter.source_mask |= 1 << (source as u32);
        }
        filter.since_unix_nanos = request.since.map(nanos);
        filter.until_unix_nanos = request.until.map(nanos);
        for (field, text) in [("contains", &request.contains), ("regex", &request.regex)] {
            if text.len() > MAX_PATTERN {
                return Err(invalid(field, format!("at most {MAX_PATTERN} bytes")));
            }
        }
        let contains = (!request.contains.is_empty())
            .then(|| memchr::memmem::Finder::new(request.contains.as_bytes()).into_owned());
        let regex = if request.regex.is_empty() {
            None
        } else {
            let regex = RegexBuilder::new(&request.regex)
                .size_limit(REGEX_BYTES)
                .dfa_size_limit(REGEX_BYTES)
                .nest_limit(100)
                .build()
                .map_err(|error| invalid("regex", error.to_string()))?;
            Some(regex)
        };
        Ok(Self { filter, contains, regex })
    }

    /// For the store, which passes over blocks without a wanted line.
    pub(crate) fn filter(&self) -> Filter {
        self.filter
    }

    /// Whether all lines are wanted.
    pub(super) fn is_open(&self) -> bool {
        self.filter == Filter::default() && self.contains.is_none() && self.regex.is_none()
    }

    /// Whether the text of lines is looked at.
    pub(super) fn searches(&self) -> bool {
        self.contains.is_some() || self.regex.is_some()
    }

    /// Whether a line is wanted.
    pub(crate) fn matches(&self, line: &LineRef<'_>) -> bool {
        let Filter { level_mask, source_mask, since_unix_nanos, until_unix_nanos } = self.filter;
        let attributes = &line.attributes;
        (level_mask == 0 || level_mask & (1 << (attributes.level as u32)) != 0)
            && (source_mask == 0 || source_mask & (1 << (attributes.source as u32)) != 0)
            && since_unix_nanos.is_none_or(|since| attributes.time_unix_nanos >= since)
            && until_unix_nanos.is_none_or(|until| attributes.time_unix_nanos < until)
            && self.contains.as_ref().is_none_or(|finder| finder.find(line.message()).is_some())
            && self.regex.as_ref().is_none_or(|regex| regex.is_match(line.message()))
    }
}

/// Nanoseconds since the Unix epoch; what lies outside their range is its end.
fn nanos(time: prost_types::Timestamp) -> i64 {
    time.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(time.nanos))
}

#[cfg(test)]
mod tests {
    use otto_proto::block::{Attributes, Builder, DecodedBlock};

    use super::*;

    fn request() -> ReadLogsRequest {
        ReadLogsRequest { task_id: "t".to_owned(), ..ReadLogsRequest::default() }
    }

    #[test]
    fn filters() {
        let mut builder = Builder::new();
        for (n, (level, source, text)) in [
            (LogLevel::Info, LogSource::Stdout, &b"plain\n"[..]),
            (LogLevel::Error, LogSource::Stderr, b"disk \xff full\n"),
            (LogLevel::Unspecified, LogSource::Stdout, b"last"),
        ]
        .into_iter()
        .enumerate()
        {
            builder.push(text, Attributes { time_unix_nanos: n as i64 * 1_000_000_000, level, source });
        }
        let block = DecodedBlock::decode(&builder.finish(1, None).unwrap()).unwrap();
        let found = |change: fn(&mut ReadLogsRequest)| {
            let mut request = request();
            change(&mut request);
            let wanted = Wanted::new(request).unwrap();
            block.lines().filter(|line| wanted.matcher.matches(line)).map(|line| line.sequence).collect::<Vec<_>>()
        };
        let second = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        assert_eq!(second(1).map(nanos), Some(1_000_000_000));
        assert_eq!(found(|_| {}), [1, 2, 3]);
        assert_eq!(found(|r| r.levels = vec![3, 5]), [1, 2]);
        assert_eq!(found(|r| r.levels = vec![0]), [3]);
        assert_eq!(found(|r| r.sources = vec![2]), [2]);
        assert_eq!(found(|r| r.contains = "la".to_owned()), [1, 3]);
        assert_eq!(found(|r| r.regex = "^(?:plain|last)$".to_owned()), [1, 3]);
        assert_eq!(found(|r| r.regex = r"(?-u)\xff".to_owned()), [2]);
        assert_eq!(found(|r| r.since = Some(prost_types::Timestamp { seconds: 1, nanos: 0 })), [2, 3]);
        assert_eq!(found(|r| r.until = Some(prost_types::Timestamp { seconds: 1, nanos: 0 })), [1]);
        assert_eq!(
            found(|r| {
                r.contains = "l".to_owned();
                r.regex = "^p".to_owned();
            }),
            [1]
        );
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        type Change = fn(&mut ReadLogsRequest);
        let cases: [(&str, Change); 9] = [
            ("task_id", |r| r.task_id.clear()),
            ("run_id", |r| r.run_id = "r".to_owned()),
            ("from_sequence", |r| r.from_sequence = 2),
            ("tail_lines", |r| r.tail_lines = MAX_TAIL + 1),
            ("levels", |r| r.levels = vec![99]),
            ("sources", |r| r.sources = vec![-1]),
            ("regex", |r| r.regex = "(".to_owned()),
            ("regex", |r| r.regex = r"(\w{1000}){1000}".to_owned()),
            ("resume_token", |r| r.resume_token = "garbage".to_owned()),
        ];
        for (wanted, change) in cases {
            let mut request = request();
            change(&mut request);
            let Err(QueryError::Invalid { field, .. }) = Wanted::new(request) else { panic!("{wanted}") };
            assert_eq!(field, wanted);
        }
    }
}
