//! The job's bytes, exactly: the text of all lines in order, with ranges.

mod measure;
mod range;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use otto_log_store::{Cursor, Filter, From, Item, RunInfo};
use otto_proto::v1::LogSource;
use xxhash_rust::xxh3::Xxh3;

use super::Shared;
use super::params::Params;
use super::path::WorkerPath;
use super::problem::Problem;
use measure::Measured;
pub(super) use measure::Measures;
use range::{Asked, Span};

/// One run, measured: what the body is made of.
struct Part {
    run: RunInfo,
    measured: Arc<Measured>,
}

/// `GET /api/v1/tasks/{task}/workers/{worker}/logs/raw`
///
/// All runs of the worker in order, or one (`run`). What is stored when the answer begins is what it holds.
pub(super) async fn raw(
    State(shared): State<Shared>,
    WorkerPath(task_id, worker_id): WorkerPath,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["run", "source"])?;
    let source = params.raw_source()?;
    let permit = shared.limits.downloads()?;
    let runs = super::worker_runs(&shared, &task_id, &worker_id, params.one("run")?).await?;

    let mut parts = Vec::with_capacity(runs.len());
    let measuring = shared.limits.measuring().await?;
    for run in runs {
        let measured = shared.measures.measure(&shared.app.store, &run, source).await?;
        parts.push(Part { run, measured });
    }
    drop(measuring);
    let length: u64 = parts.iter().map(|part| part.measured.bytes).sum();
    let tag = entity_tag(&parts, source);
    let asked = if range::holds(headers.get(header::IF_RANGE), &tag) { headers.get(header::RANGE) } else { None };
    let (status, span) = match range::ask(asked, length) {
        Asked::Whole => (StatusCode::OK, Span { start: 0, end: length }),
        Asked::Part(span) => (StatusCode::PARTIAL_CONTENT, span),
        Asked::Unsatisfiable => {
            let problem = Problem::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                format!("the range begins after the end of the log, which has {length} bytes"),
            );
            return Err(problem.with_header(header::CONTENT_RANGE, text(&format!("bytes */{length}"))));
        }
    };

    // As they are known to be since they were measured: read from the first to the last line.
    let (mut complete, mut missing) = (true, 0);
    for part in &parts {
        let run = shared.app.store.run(part.run.id).await?;
        let run = run.as_ref().unwrap_or(&part.run);
        complete &= run.is_complete();
        missing += run.missing_lines;
    }
    let reader = Reader { shared: shared.clone(), parts, source, span, at: 0, part: 0, cursor: None, _permit: permit };
    let body = Body::from_stream(stream::try_unfold(reader, async |mut reader| {
        Ok::<_, std::io::Error>(reader.next().await?.map(|bytes| (bytes, reader)))
    }));
    let mut response = (status, body).into_response();
    let answer = response.headers_mut();
    // Never text/html, whatever the job printed; the browser is told to keep it, not to show it.
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    answer.insert(header::CONTENT_DISPOSITION, attachment(&worker_id));
    answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    answer.insert(header::CONTENT_LENGTH, HeaderValue::from(span.end - span.start));
    answer.insert(header::ETAG, text(&tag));
    if status == StatusCode::PARTIAL_CONTENT {
        let last = span.end.saturating_sub(1);
        answer.insert(header::CONTENT_RANGE, text(&format!("bytes {}-{last}/{length}", span.start)));
    }
    answer.insert("otto-log-complete", HeaderValue::from_static(if complete { "true" } else { "false" }));
    answer.insert("otto-missing-lines", HeaderValue::from(missing));
    Ok(response)
}

/// Changes with every line that is added and every one that is removed.
fn entity_tag(parts: &[Part], source: Option<LogSource>) -> String {
    let mut hash = Xxh3::new();
    for part in parts {
        hash.update(part.run.key.run_id.as_bytes());
        for number in [part.run.id.0, part.run.expected, part.run.lines, part.measured.bytes] {
            hash.update(&number.to_le_bytes());
        }
    }
    hash.update(&[source.map_or(0, |source| source as u8)]);
    format!("\"{:032x}\"", hash.digest128())
}

fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static(""))
}

/// RFC 6266: a plain name for old clients, the exact one percent-encoded.
fn attachment(worker_id: &str) -> HeaderValue {
    let plain: String =
        worker_id.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
    let exact: String = worker_id
        .bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"-_.".contains(&b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect();
    text(&format!("attachment; filename=\"{plain}.log\"; filename*=UTF-8''{exact}.log"))
}

/// Reads the bytes of a span, a block at a time, as fast as they are taken.
struct Reader {
    shared: Shared,
    parts: Vec<Part>,
    source: Option<LogSource>,
    span: Span,
    /// Offset of what comes next, over all parts.
    at: u64,
    part: usize,
    cursor: Option<Cursor>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Reader {
    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        while self.at < self.span.end {
            let Some(part) = self.parts.get(self.part) else { return Err(changed()) };
            let mut cursor = match self.cursor.take() {
                Some(cursor) => cursor,
                None => {
                    // Runs and blocks before the span are passed over unread.
                    let bytes = part.measured.bytes;
                    if self.at + bytes <= self.span.start {
                        self.at += bytes;
                        self.part += 1;
                        continue;
                    }
                    let (offset, sequence) = part.measured.before(self.span.start.saturating_sub(self.at));
                    self.at += offset;
                    open(&self.shared.app.store, &part.run, self.source, sequence)
                }
            };
            let measured_to = part.measured.end_sequence;
            let part_end: u64 = self.parts[..=self.part].iter().map(|part| part.measured.bytes).sum();
            let item = tokio::select! {
                item = cursor.next() => item.map_err(std::io::Error::other)?,
                () = self.shared.app.drain.cancelled() => return Err(std::io::Error::other("the log server is ending")),
            };
            let chunk = match item {
                Some(Item::Block(block)) if block.from < measured_to => text_of(&block, self.source, measured_to),
                Some(Item::Gap(_)) => {
                    self.cursor = Some(cursor);
                    continue;
                }
                Some(Item::Block(_) | Item::Finish(_)) | None if self.at == part_end => {
                    self.part += 1;
                    continue;
                }
                // Retention took what had been measured: the length promised can no longer be kept.
                Some(Item::Block(_) | Item::Finish(_)) | None => return Err(changed()),
            };
            let start = self.at;
            self.at += chunk.len() as u64;
            self.cursor = Some(cursor);
            let from = self.span.start.saturating_sub(start).min(chunk.len() as u64) as usize;
            let to = (self.span.end - start).min(chunk.len() as u64) as usize;
            if from < to {
                return Ok(Some(chunk.slice(from..to)));
            }
        }
        Ok(None)
    }
}

fn changed() -> std::io::Error {
    std::io::Error::other("lines were removed while they were read")
}

/// A cursor over the lines of a source.
fn open(store: &otto_log_store::Store, run: &RunInfo, source: Option<LogSource>, sequence: u64) -> Cursor {
    let source_mask = source.map_or(0, |source| 1 << source as u32);
    store.cursor(run.id, From::Sequence(sequence)).with_filter(Filter { source_mask, ..Filter::default() })
}

/// Bytes of a block's lines of a source, those before `until` only.
fn text_of(block: &otto_log_store::Block, source: Option<LogSource>, until: u64) -> Bytes {
    let decoded = &block.decoded;
    let whole = decoded.first_sequence() + u64::from(decoded.line_count()) <= until;
    if source.is_none() && whole {
        let start = block.lines().next().map_or(decoded.text().len(), |line| line.offset);
        return decoded.text().slice(start..);
    }
    let mut text = Vec::new();
    for line in block.lines().take_while(|line| line.sequence < until) {
        if source.is_none_or(|source| line.attributes.source == source) {
            text.extend_from_slice(line.bytes);
        }
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_never_breaks_out_of_its_header() {
        let value = attachment("a/b \"ü\r\n");
        assert_eq!(
            value.to_str().unwrap(),
            "attachment; filename=\"a_b_____.log\"; filename*=UTF-8''a%2Fb%20%22%C3%BC%0D%0A.log"
        );
    }
}
