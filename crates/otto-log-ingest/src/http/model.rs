//! What the API answers, as JSON. The messages of the gRPC interface with times as RFC 3339 and enums by name, and with
//! what a person wants to know in words.

mod line;
mod state;

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use otto_proto::v1::{
    FailureClass, FinishRun, LineGap, LogGap, LogRun, LogTask, LogWorker, WorkerEvent, WorkerMetadata, log_gap,
    worker_event,
};
use serde::Serialize;

pub(super) use line::Line;

/// RFC 3339 with nanoseconds; `None` for a time that cannot be written so.
pub(super) fn nanos(unix_nanos: i64) -> Option<String> {
    Timestamp::from_nanosecond(unix_nanos.into()).ok().map(|time| time.to_string())
}

fn time(stamp: Option<&prost_types::Timestamp>) -> Option<String> {
    let stamp = stamp?;
    Timestamp::new(stamp.seconds, stamp.nanos).ok().map(|time| time.to_string())
}

fn sorted(map: &HashMap<String, String>) -> BTreeMap<&str, &str> {
    map.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// A task.
#[derive(Serialize)]
pub(super) struct Task<'a> {
    task_id: &'a str,
    /// How it ended, as the scaler told; absent: live or not told.
    state: Option<&'a str>,
    first_seen_at: Option<String>,
    last_seen_at: Option<String>,
    workers: u32,
    lines: u64,
    bytes: u64,
    context: BTreeMap<&'a str, &'a str>,
}

impl<'a> From<&'a LogTask> for Task<'a> {
    fn from(task: &'a LogTask) -> Self {
        Self {
            task_id: &task.task_id,
            state: some(&task.task_state),
            first_seen_at: time(task.first_seen_at.as_ref()),
            last_seen_at: time(task.last_seen_at.as_ref()),
            workers: task.workers,
            lines: task.lines,
            bytes: task.bytes,
            context: sorted(&task.context),
        }
    }
}

/// Answer of `/api/v1/tasks`.
#[derive(Serialize)]
pub(super) struct TaskPage<'a> {
    pub(super) tasks: Vec<Task<'a>>,
    pub(super) next_page_token: Option<&'a str>,
}

/// Lines that are missing.
#[derive(Serialize)]
pub(super) struct Gap<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    worker_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<&'a str>,
    first_sequence: u64,
    /// Inclusive; absent: unknown.
    last_sequence: Option<u64>,
    reason: &'static str,
    message: &'a str,
}

impl<'a> From<&'a LogGap> for Gap<'a> {
    fn from(gap: &'a LogGap) -> Self {
        Self {
            worker_id: None,
            run_id: None,
            first_sequence: gap.first_sequence,
            last_sequence: Some(gap.last_sequence).filter(|last| *last != 0),
            reason: match gap.reason() {
                log_gap::Reason::Unspecified => "unspecified",
                log_gap::Reason::ServerLost => "server_lost",
                log_gap::Reason::SpoolFull => "spool_full",
                log_gap::Reason::AgentLost => "agent_lost",
                log_gap::Reason::Refused => "refused",
                log_gap::Reason::Damaged => "damaged",
                log_gap::Reason::Expired => "expired",
            },
            message: &gap.message,
        }
    }
}

impl<'a> Gap<'a> {
    /// A gap with the run it is in.
    pub(super) fn of(gap: &'a LineGap) -> Option<Self> {
        let inner = Self::from(gap.gap.as_ref()?);
        Some(Self { worker_id: Some(&gap.worker_id), run_id: Some(&gap.run_id), ..inner })
    }
}

#[derive(Serialize)]
struct Finish<'a> {
    last_sequence: u64,
    /// XXH3-128 of the lines' bytes, hexadecimal; absent: unknown.
    digest: Option<String>,
    exit_code: Option<i32>,
    signal: Option<i32>,
    ended_at: Option<String>,
    error_message: Option<&'a str>,
}

impl<'a> From<&'a FinishRun> for Finish<'a> {
    fn from(finish: &'a FinishRun) -> Self {
        let digest: String = finish.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            last_sequence: finish.last_sequence,
            digest: Some(digest).filter(|digest| !digest.is_empty()),
            exit_code: finish.exit_code,
            signal: finish.signal,
            ended_at: time(finish.ended_at.as_ref()),
            error_message: some(&finish.error_message),
        }
    }
}

/// A run's log and how complete it is.
#[derive(Serialize)]
struct Run<'a> {
    run_id: &'a str,
    lines: u64,
    bytes: u64,
    last_sequence: u64,
    gaps: Vec<Gap<'a>>,
    finish: Option<Finish<'a>>,
    connected: bool,
    first_time: Option<String>,
    last_time: Option<String>,
    complete: bool,
    /// Nothing more is expected: it has a finish, or its worker has ended without one.
    ended: bool,
    /// In words: "complete, 12,345 of 12,345 lines", or what is missing and why.
    summary: String,
}

impl<'a> Run<'a> {
    fn new(run: &'a LogRun, worker_ended: bool) -> Self {
        Self {
            run_id: &run.run_id,
            lines: run.lines,
            bytes: run.bytes,
            last_sequence: run.last_sequence,
            gaps: run.gaps.iter().map(Gap::from).collect(),
            finish: run.finish.as_ref().map(Finish::from),
            connected: run.connected,
            first_time: time(run.first_time.as_ref()),
            last_time: time(run.last_time.as_ref()),
            complete: run.complete,
            ended: run.finish.is_some() || (worker_ended && !run.connected),
            summary: state::run_summary(run, worker_ended),
        }
    }
}

#[derive(Serialize)]
struct Metadata<'a> {
    pod_name: Option<&'a str>,
    namespace: Option<&'a str>,
    node_name: Option<&'a str>,
    created_at: Option<&'a str>,
    labels: BTreeMap<&'a str, &'a str>,
}

impl<'a> From<&'a WorkerMetadata> for Metadata<'a> {
    fn from(metadata: &'a WorkerMetadata) -> Self {
        Self {
            pod_name: some(&metadata.pod_name),
            namespace: some(&metadata.namespace),
            node_name: some(&metadata.node_name),
            created_at: some(&metadata.created_at),
            labels: sorted(&metadata.labels),
        }
    }
}

/// A worker: how it is, as its events and its log tell, and its runs.
#[derive(Serialize)]
pub(super) struct Worker<'a> {
    worker_id: &'a str,
    /// As the scaler numbers it; absent: not told.
    index: Option<u32>,
    attempt: Option<u32>,
    state: &'static str,
    state_message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_class: Option<&'static str>,
    summary: String,
    metadata: Option<Metadata<'a>>,
    runs: Vec<Run<'a>>,
}

impl<'a> Worker<'a> {
    /// `events`: those of this worker, oldest first.
    pub(super) fn new(worker_id: &'a str, worker: Option<&'a LogWorker>, events: &[&'a WorkerEvent]) -> Self {
        let runs = worker.map_or(&[][..], |worker| &worker.runs);
        let told = state::of_worker(runs, events);
        let numbered = events.last();
        let runs: Vec<Run<'a>> = runs.iter().map(|run| Run::new(run, told.ended)).collect();
        Self {
            worker_id,
            index: numbered.map(|event| event.index),
            attempt: numbered.map(|event| event.attempt),
            state: told.name,
            summary: state::worker_summary(&runs.iter().map(|run| run.summary.as_str()).collect::<Vec<_>>(), &told),
            failure_class: told.class,
            state_message: told.message,
            metadata: worker.and_then(|worker| worker.metadata.as_ref()).map(Metadata::from),
            runs,
        }
    }
}

/// An event as it was told.
#[derive(Serialize)]
pub(super) struct Event<'a> {
    event_id: &'a str,
    worker_id: Option<&'a str>,
    index: u32,
    attempt: u32,
    #[serde(rename = "type")]
    kind: &'static str,
    time: Option<String>,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_class: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task_state: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_name: Option<&'a str>,
}

impl<'a> From<&'a WorkerEvent> for Event<'a> {
    fn from(event: &'a WorkerEvent) -> Self {
        use worker_event::Type;
        Self {
            event_id: &event.event_id,
            worker_id: some(&event.worker_id),
            index: event.index,
            attempt: event.attempt,
            kind: match event.r#type() {
                Type::Unspecified => "unspecified",
                Type::Queued => "queued",
                Type::Created => "created",
                Type::Started => "started",
                Type::Succeeded => "succeeded",
                Type::Failed => "failed",
                Type::Stopped => "stopped",
                Type::Waiting => "waiting",
                Type::Retrying => "retrying",
                Type::TaskEnded => "task_ended",
                Type::EventLost => "event_lost",
                Type::Troubled => "troubled",
            },
            time: time(event.time.as_ref()),
            message: &event.message,
            failure_class: failure_class(event.failure_class()),
            exit_code: event.exit_code,
            signal: event.signal,
            retry_at: time(event.retry_at.as_ref()),
            task_state: some(&event.task_state),
            node_name: some(&event.node_name),
        }
    }
}

fn failure_class(class: FailureClass) -> Option<&'static str> {
    Some(match class {
        FailureClass::Unspecified => return None,
        FailureClass::Exited => "exited",
        FailureClass::OutOfMemory => "out_of_memory",
        FailureClass::Deadline => "deadline",
        FailureClass::Stopped => "stopped",
        FailureClass::Image => "image",
        FailureClass::Unschedulable => "unschedulable",
        FailureClass::Quota => "quota",
        FailureClass::Admission => "admission",
        FailureClass::Config => "config",
        FailureClass::Volume => "volume",
        FailureClass::Evicted => "evicted",
        FailureClass::Preempted => "preempted",
        FailureClass::NodeLost => "node_lost",
        FailureClass::AgentLost => "agent_lost",
        FailureClass::Infrastructure => "infrastructure",
    })
}

/// Answer of `/api/v1/tasks/{task}/workers`.
#[derive(Serialize)]
pub(super) struct Workers<'a> {
    pub(super) task: Task<'a>,
    pub(super) workers: Vec<Worker<'a>>,
    pub(super) events: Vec<Event<'a>>,
}

/// Puts runs and events of a task together: workers with a log first as they were opened, then those only events tell of.
pub(super) fn workers<'a>(logs: &'a [LogWorker], events: &'a [WorkerEvent]) -> Vec<Worker<'a>> {
    let mut by_worker: HashMap<&str, Vec<&WorkerEvent>> = HashMap::new();
    let mut order: Vec<&str> = Vec::new();
    for event in events.iter().filter(|event| !event.worker_id.is_empty()) {
        let of = by_worker.entry(&event.worker_id).or_insert_with(|| {
            order.push(&event.worker_id);
            Vec::new()
        });
        of.push(event);
    }
    let known: HashMap<&str, &LogWorker> = logs.iter().map(|worker| (worker.worker_id.as_str(), worker)).collect();
    let only_events = order.into_iter().filter(|id| !known.contains_key(id));
    let mut all: Vec<Worker<'a>> = logs
        .iter()
        .map(|worker| worker.worker_id.as_str())
        .chain(only_events)
        .map(|id| Worker::new(id, known.get(id).copied(), by_worker.get(id).map_or(&[][..], Vec::as_slice)))
        .collect();
    // By number where the scaler gave one; the sort is stable, so the others keep their order, after these.
    all.sort_by_key(|worker| (worker.index.unwrap_or(u32::MAX), worker.attempt));
    all
}
