//! What an event does to its task's record. Pure: the same inputs, the same decision.
//!
//! - `scale_up n`: at least n workers; `scale_down n`: at most n live ones, stopped from the highest index; 0 cancels.
//! - The first event fixes what runs. A later one that gives another value, is out of order, or is older than the
//!   retention of records can never be applied.
//! - A task that ended, or is being cancelled, takes no further event.
//! - `scale_down 0` of a task nobody knows makes a cancelled record, so that a `scale_up` which comes after it (a gRPC
//!   cancel overtakes events still in the stream; a producer may repeat one) starts nothing: a cancel always wins.
//!   `scale_down n` of such a task has nothing to lower and says so: keeping it as a cap for later would let a typing
//!   error in a task id starve an unrelated task days later.

use std::sync::Arc;

use std::collections::BTreeSet;

use crate::driver::kubernetes::image;
use crate::event::{Direction, GivenSpec, ScaleEvent};
use crate::task::{EntryId, Millis, Phase, Record, Spec, WorkerPhase};

/// What events leave open, and what they may ask for.
#[derive(Clone, Debug)]
pub(crate) struct Defaults {
    pub(crate) image: String,
    /// Empty: events must say.
    pub(crate) command: Vec<String>,
    /// 0: no limit.
    pub(crate) timeout_seconds: u32,
    /// At least 1.
    pub(crate) max_attempts: u32,
    /// Largest target number of workers of a task.
    pub(crate) max_count: u32,
    /// How long records of ended tasks are kept.
    pub(crate) retention: Millis,
    /// Workers are Pods; `None`: processes, which need no image and know no classes.
    pub(crate) pods: Option<Pods>,
}

/// What the Pods of workers can be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pods {
    /// Resource classes that events may name.
    pub(crate) classes: BTreeSet<String>,
}

/// Why an event can never be applied: goes with the dead letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Reason {
    /// A field has another value than the task's first event gave.
    #[error("`{field}` contradicts the task's first event: {detail}")]
    Contradicts {
        /// The event's field.
        field: &'static str,
        /// Both values, shortened.
        detail: String,
    },
    /// A later entry was applied to this task before.
    #[error("out of order: entry {entry} is older than {last}, which was applied to this task before")]
    OutOfOrder {
        /// This entry.
        entry: EntryId,
        /// Last one applied.
        last: EntryId,
    },
    /// Whether it was applied before cannot be known any more.
    #[error("entry {entry} is older than the retention of task records ({} s)", retention / 1000)]
    TooOld {
        /// This entry.
        entry: EntryId,
        /// Milliseconds.
        retention: Millis,
    },
    /// Nothing can be run from what the event says and leaves open.
    #[error("`{field}` {detail}")]
    Unusable {
        /// The event's field.
        field: &'static str,
        /// What is wrong and what is accepted.
        detail: String,
    },
    /// More workers than a task may have.
    #[error("`pod_count` is {count}; accepted: 0 to {maximum}")]
    TooMany {
        /// Wanted.
        count: u32,
        /// Configured.
        maximum: u32,
    },
    /// A scale_down to more than 0 of a task that does not exist.
    #[error("unknown task `{0}`: there is nothing to scale down")]
    UnknownTask(String),
    /// The task's record is damaged.
    #[error("the task's record cannot be read: {0}")]
    Unreadable(String),
}

/// What is to be done with an event.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "taken apart where it is made")]
pub(crate) enum Decision {
    /// Write this record (its version is the next one).
    Put {
        /// The task after the event.
        record: Record,
        /// Indexes that the event queues or stops.
        touched: Vec<u32>,
        /// Nothing but `last_entry` changed: the answer is "already processed".
        unchanged: bool,
    },
    /// Nothing is written; the entry is acknowledged.
    AlreadyProcessed,
    /// Nothing is written; the entry becomes a dead letter.
    Dead(Reason),
}

/// Decides; `now` is compared with the entry's time only.
pub(crate) fn apply(current: Option<&Record>, event: &ScaleEvent, defaults: &Defaults, now: Millis) -> Decision {
    if let Some(record) = current
        && (record.phase != Phase::Live || (event.entry.is_some() && record.last_entry == event.entry))
    {
        return Decision::AlreadyProcessed;
    }
    if let Some(reason) = refused(current, event, defaults, now) {
        return Decision::Dead(reason);
    }
    match (current, event.direction) {
        (None, Direction::Down) if event.count > 0 => Decision::Dead(Reason::UnknownTask(event.task_id.clone())),
        (None, direction) => created(event, direction, defaults, now),
        (Some(record), Direction::Up) => raised(record, event),
        (Some(record), Direction::Down) => lowered(record, event),
    }
}

fn refused(current: Option<&Record>, event: &ScaleEvent, defaults: &Defaults, now: Millis) -> Option<Reason> {
    if let Some(entry) = event.entry {
        if let Some(last) = current.and_then(|record| record.last_entry)
            && entry < last
        {
            return Some(Reason::OutOfOrder { entry, last });
        }
        if i64::try_from(entry.millis).unwrap_or(i64::MAX) < now.saturating_sub(defaults.retention) {
            return Some(Reason::TooOld { entry, retention: defaults.retention });
        }
    }
    if event.count > defaults.max_count {
        return Some(Reason::TooMany { count: event.count, maximum: defaults.max_count });
    }
    match current {
        Some(record) => contradiction(&record.spec, &event.spec),
        // Without workers, nothing need be possible: a cancel always is.
        None if event.count == 0 || event.direction == Direction::Down => None,
        None => defaults.pods.as_ref().and_then(|pods| unusable(&spec(&event.spec, defaults), pods)),
    }
}

/// What no Pod could ever run.
fn unusable(spec: &Spec, pods: &Pods) -> Option<Reason> {
    let unusable = |field, detail: String| Some(Reason::Unusable { field, detail });
    if spec.image.is_empty() {
        let accepted = format!("accepted: {}", image::ACCEPTED);
        return unusable("image", format!("is missing, and --worker-image names none ({accepted})"));
    }
    if let Err(problem) = image::check(&spec.image) {
        return unusable("image", format!("{} {problem} (accepted: {})", shortened(&spec.image), image::ACCEPTED));
    }
    if spec.command.is_empty() {
        let why = "the image's own entrypoint would need registry credentials";
        let accepted = r#"accepted: a JSON array of strings, like ["sh","-c","make"]"#;
        return unusable("command", format!("is missing, and --default-command names none: {why} ({accepted})"));
    }
    if !spec.resource_class.is_empty() && !pods.classes.contains(&spec.resource_class) {
        return unusable(
            "resource_class",
            unknown_class(&spec.resource_class, pods.classes.iter().map(String::as_str)),
        );
    }
    None
}

/// Says that a resource class is not known, and which are.
pub(crate) fn unknown_class<'a>(class: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let accepted = match known.is_empty() {
        true => "none: the Pod template (--pod-template) has no classes".to_owned(),
        false => format!("{}, or none", known.join(", ")),
    };
    format!("is {}, which the Pod template (--pod-template) does not have (accepted: {accepted})", shortened(&class))
}

fn contradiction(stored: &Spec, given: &GivenSpec) -> Option<Reason> {
    fn differs<T: PartialEq + std::fmt::Debug>(field: &'static str, stored: &T, given: Option<&T>) -> Option<Reason> {
        given.filter(|given| *given != stored).map(|given| Reason::Contradicts {
            field,
            detail: format!("it was {}, now {}", shortened(stored), shortened(given)),
        })
    }
    // Values of environment variables may be secrets: only the name of one that differs is told.
    let env = given.env.as_ref().filter(|env| **env != stored.env).map(|env| {
        let name = env.iter().find(|(name, value)| stored.env.get(*name) != Some(*value)).map(|(name, _)| name);
        let name = name.or_else(|| stored.env.keys().find(|name| !env.contains_key(*name)));
        let name = name.map_or("", String::as_str);
        Reason::Contradicts { field: "env", detail: format!("variable `{name}` differs") }
    });
    differs("image", &stored.image, given.image.as_ref())
        .or_else(|| differs("command", &stored.command, given.command.as_ref()))
        .or_else(|| differs("args", &stored.args, given.args.as_ref()))
        .or(env)
        .or_else(|| differs("priority", &stored.priority, given.priority.as_ref()))
        .or_else(|| differs("timeout_seconds", &stored.timeout_seconds, given.timeout_seconds.as_ref()))
        .or_else(|| differs("max_attempts", &stored.max_attempts, given.max_attempts.as_ref()))
        .or_else(|| differs("resource_class", &stored.resource_class, given.resource_class.as_ref()))
}

fn shortened(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn created(event: &ScaleEvent, direction: Direction, defaults: &Defaults, now: Millis) -> Decision {
    let cancelled = direction == Direction::Down;
    // No workers are wanted: there is nothing to wait for.
    let ended = cancelled || event.count == 0;
    let mut record = Record {
        task_id: event.task_id.clone(),
        version: 1,
        spec: Arc::new(spec(&event.spec, defaults)),
        wanted: event.count,
        phase: match (cancelled, ended) {
            (true, _) => Phase::Cancelled,
            (false, true) => Phase::Succeeded,
            (false, false) => Phase::Live,
        },
        workers: Vec::new(),
        created_at: now,
        ended_at: ended.then_some(now),
        last_entry: event.entry,
        error: cancelled.then(|| "cancelled before any worker was asked for".to_owned()),
    };
    let touched = record.fill();
    Decision::Put { record, touched, unchanged: false }
}

fn spec(given: &GivenSpec, defaults: &Defaults) -> Spec {
    let command = given.command.clone().filter(|command| !command.is_empty());
    Spec {
        image: given.image.clone().unwrap_or_else(|| defaults.image.clone()),
        command: command.unwrap_or_else(|| defaults.command.clone()),
        args: given.args.clone().unwrap_or_default(),
        env: given.env.clone().unwrap_or_default(),
        priority: given.priority.unwrap_or_default(),
        timeout_seconds: given.timeout_seconds.unwrap_or(defaults.timeout_seconds),
        max_attempts: given.max_attempts.unwrap_or(defaults.max_attempts).max(1),
        resource_class: given.resource_class.clone().unwrap_or_default(),
        repository: given.context.repository.clone(),
        commit_sha: given.context.commit_sha.clone(),
        triggered_by: given.context.triggered_by.clone(),
        reason: given.context.reason.clone(),
        timestamp: given.context.timestamp.clone(),
        traceparent: given.context.traceparent.clone(),
        metadata: given.context.metadata.clone(),
    }
}

/// The record with this entry noted, nothing else changed.
fn noted(record: &Record, event: &ScaleEvent) -> Record {
    let mut record = record.clone();
    record.version += 1;
    record.last_entry = event.entry.or(record.last_entry);
    record
}

/// A live task has the target already: only the entry is noted, so that an older one is recognised as out of order.
fn unchanged(record: &Record, event: &ScaleEvent) -> Decision {
    match event.entry {
        Some(_) => Decision::Put { record: noted(record, event), touched: Vec::new(), unchanged: true },
        None => Decision::AlreadyProcessed,
    }
}

fn raised(record: &Record, event: &ScaleEvent) -> Decision {
    if event.count <= record.wanted {
        return unchanged(record, event);
    }
    let mut record = noted(record, event);
    record.wanted = event.count;
    let touched = record.fill();
    Decision::Put { record, touched, unchanged: false }
}

fn lowered(record: &Record, event: &ScaleEvent) -> Decision {
    if event.count > 0 && event.count >= record.wanted {
        return unchanged(record, event);
    }
    let mut record = noted(record, event);
    record.wanted = event.count;
    if event.count == 0 {
        record.phase = Phase::Cancelling;
        let by =
            [&event.spec.context.reason, &event.spec.context.triggered_by].into_iter().find(|text| !text.is_empty());
        record.error = Some(by.map_or_else(|| "cancelled".to_owned(), |by| format!("cancelled: {by}")));
    }
    // One that has ended takes no place: what is still to be done is not stopped for it.
    let wanted = |phase| matches!(phase, WorkerPhase::Queued | WorkerPhase::Created | WorkerPhase::Running);
    let mut live = record.workers.iter().filter(|worker| wanted(worker.phase)).count();
    let mut touched = Vec::new();
    for worker in record.workers.iter_mut().rev() {
        if live <= event.count as usize {
            break;
        }
        if wanted(worker.phase) {
            worker.phase = WorkerPhase::Stopping;
            touched.push(worker.index);
            live -= 1;
        }
    }
    Decision::Put { record, touched, unchanged: false }
}

#[cfg(test)]
mod tests;
