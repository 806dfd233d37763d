//! Logs as Server-Sent Events.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use otto_log_store::TaskWatch;
use otto_proto::v1::{ReadLogsRequest, ReadLogsResponse};
use tokio::time::Instant;

use super::Shared;
use super::frame::Frames;
use super::model::{Task, Worker};
use super::params::Params;
use super::path::{TaskPath, WorkerPath};
use super::problem::Problem;
use crate::query::{Mode, QueryError, Reading};

/// A comment is sent after so long without an event, so that both ends notice a dead connection.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Least time between two `status` events.
const STATUS_PAUSE: Duration = Duration::from_millis(250);

/// How long a stream that is resumed may take to find out that it is over.
const FIRST: Duration = Duration::from_millis(100);

const OF_TASK: &[&str] = &["tail", "after", "q", "regex", "level", "source", "since", "until"];
const OF_WORKER: &[&str] = &["run", "from", "tail", "after", "q", "regex", "level", "source", "since", "until"];

/// `GET /api/v1/tasks/{task}/logs/stream`
pub(super) async fn of_task(
    State(shared): State<Shared>,
    TaskPath(task_id): TaskPath,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let params = Params::read(&uri, OF_TASK)?;
    super::listing::known_task(&shared, &task_id).await?;
    let request = ReadLogsRequest { task_id, ..params.filter()? };
    open(shared, request, &params, &headers).await
}

/// `GET /api/v1/tasks/{task}/workers/{worker}/logs/stream`
pub(super) async fn of_worker(
    State(shared): State<Shared>,
    WorkerPath(task_id, worker_id): WorkerPath,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let params = Params::read(&uri, OF_WORKER)?;
    let run_id = params.one("run")?.unwrap_or_default().to_owned();
    super::worker_runs(&shared, &task_id, &worker_id, params.one("run")?).await?;
    let from_sequence = params.number("from", 0, u64::MAX)?.unwrap_or(0);
    let request = ReadLogsRequest { task_id, worker_id, run_id, from_sequence, ..params.filter()? };
    open(shared, request, &params, &headers).await
}

async fn open(
    shared: Shared,
    mut request: ReadLogsRequest,
    params: &Params,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let permit = shared.limits.streams()?;
    let resumed = headers.get("last-event-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
    let after = match resumed {
        Some(id) => Some(id),
        None => params.one("after")?,
    };
    match after {
        // What the client has seen says where to go on; where it had begun no longer matters.
        Some(token) => {
            request.resume_token = token.to_owned();
            request.from_sequence = 0;
        }
        None => request.tail_lines = params.number("tail", 1, 1 << 40)?.unwrap_or(0),
    }
    let watch = shared.app.store.watch_task(&request.task_id);
    let (task_id, worker_id) = (request.task_id.clone(), request.worker_id.clone());
    let mut reading = shared.app.query.read(request, Mode::Follow).await?;
    let mut frames = Frames::default();
    if resumed.is_some() && is_over(&mut reading, &mut frames).await? {
        // The one answer that keeps an EventSource from coming back.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let source = Source {
        shared,
        task_id,
        worker_id: Some(worker_id).filter(|id| !id.is_empty()),
        reading: Some(reading),
        frames,
        watch: Some(watch),
        status_due: None,
        status_after: Instant::now(),
        _permit: permit,
    };
    let body = Body::from_stream(stream::unfold(source, async |mut source| {
        let bytes = source.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), source))
    }));
    let mut response = (StatusCode::OK, body).into_response();
    let answer = response.headers_mut();
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    // Proxies that would collect the answer before they pass it on.
    answer.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// Whether nothing will ever come. What comes meanwhile is put among the frames.
async fn is_over(reading: &mut Reading, frames: &mut Frames) -> Result<bool, Problem> {
    let first = async {
        loop {
            match reading.next().await {
                None => return Ok(true),
                Some(part) => frames.part(&part?),
            }
            if !frames.is_empty() {
                return Ok(false);
            }
        }
    };
    // Dropping it loses nothing.
    tokio::time::timeout(FIRST, first).await.unwrap_or(Ok(false))
}

/// What a stream's body is made of. It reads on only when the client has taken what there was, so a client that stops
/// reading costs one part of a log and its place.
struct Source {
    shared: Shared,
    task_id: String,
    worker_id: Option<String>,
    reading: Option<Reading>,
    frames: Frames,
    watch: Option<TaskWatch>,
    /// When to tell the state, if it has changed.
    status_due: Option<Instant>,
    /// Not before this.
    status_after: Instant,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

/// Why the body goes on.
enum Woken {
    Part(Option<Result<ReadLogsResponse, QueryError>>),
    Changed(bool),
    Status,
    Idle,
    Draining,
}

impl Source {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.frames.take() {
                return Some(bytes);
            }
            let drain = self.shared.app.drain.clone();
            let reading = self.reading.as_mut()?;
            let (watch, due) = (self.watch.as_mut(), self.status_due);
            let woken = tokio::select! {
                biased;
                () = drain.cancelled() => Woken::Draining,
                () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => Woken::Status,
                part = reading.next() => Woken::Part(part),
                more = async { match watch { Some(watch) => watch.changed().await, None => std::future::pending().await } } => Woken::Changed(more),
                () = tokio::time::sleep(HEARTBEAT) => Woken::Idle,
            };
            match woken {
                Woken::Part(Some(Ok(part))) => self.frames.part(&part),
                Woken::Part(Some(Err(error))) => {
                    tracing::warn!(%error, task_id = self.task_id, "a log stream ends early");
                    self.end("error", Some(&error.to_string()), true);
                }
                Woken::Part(None) => {
                    let complete = self.reading.as_ref().is_none_or(Reading::is_complete);
                    self.status().await;
                    if complete {
                        self.end("complete", None, false);
                    } else {
                        // It may come back: so may the reader.
                        self.end("unfinished", Some("a worker has not finished its log, and is not connected"), true);
                    }
                }
                Woken::Changed(true) => self.status_due = Some(self.status_after.max(Instant::now())),
                Woken::Changed(false) => self.watch = None,
                Woken::Status => {
                    self.status_due = None;
                    self.status_after = Instant::now() + STATUS_PAUSE;
                    self.status().await;
                }
                Woken::Idle => self.frames.comment(),
                Woken::Draining => self.end("draining", None, true),
            }
        }
    }

    async fn status(&mut self) {
        let told = async {
            let task = super::listing::known_task(&self.shared, &self.task_id).await?;
            let Some(worker_id) = &self.worker_id else {
                return Ok(serde_json::json!({ "task": Task::from(&task) }));
            };
            let answer = self.shared.app.query.workers(&self.task_id).await?;
            let worker = answer.workers.iter().find(|worker| worker.worker_id == *worker_id);
            let events: Vec<_> = answer.events.iter().filter(|event| event.worker_id == *worker_id).collect();
            let worker = Worker::new(worker_id, worker, &events);
            Ok::<_, Problem>(serde_json::json!({ "task": Task::from(&task), "worker": worker }))
        };
        // Without one the stream is as good: the next change tells again.
        if let Ok(value) = told.await {
            self.frames.event("status", None, &value);
        }
    }

    fn end(&mut self, reason: &str, detail: Option<&str>, resume: bool) {
        self.reading = None;
        self.watch = None;
        self.status_due = None;
        self.frames.event("end", None, &serde_json::json!({ "reason": reason, "detail": detail, "resume": resume }));
    }
}
