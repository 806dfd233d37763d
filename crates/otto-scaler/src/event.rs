//! A scaling event after validation, whatever way it came.

use crate::task::{EntryId, Spec};

pub(crate) mod parse;

/// Why an event, or a request, can never be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {reason}")]
pub(crate) struct Invalid {
    /// The field as the sender knows it: `pod_count`, `build_config.env.NAME`.
    pub(crate) field: String,
    /// What was wrong and what is accepted.
    pub(crate) reason: String,
}

/// What a caller wants of a task.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScaleEvent {
    pub(crate) task_id: String,
    pub(crate) direction: Direction,
    /// Target number of workers.
    pub(crate) count: u32,
    /// Fields that were given; the rest take the configuration's defaults when the task is new.
    pub(crate) spec: GivenSpec,
    /// The stream entry; `None`: it came by gRPC.
    pub(crate) entry: Option<EntryId>,
}

/// Which way the target moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// At least `count`.
    Up,
    /// At most `count`; 0 cancels.
    Down,
}

/// The spec as an event gave it: what is `None` was absent. A later event contradicts the task if it gives a field
/// another value than the stored spec has.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct GivenSpec {
    pub(crate) image: Option<String>,
    pub(crate) command: Option<Vec<String>>,
    pub(crate) args: Option<Vec<String>>,
    pub(crate) env: Option<std::collections::BTreeMap<String, String>>,
    pub(crate) priority: Option<i32>,
    pub(crate) timeout_seconds: Option<u32>,
    pub(crate) max_attempts: Option<u32>,
    pub(crate) resource_class: Option<String>,
    /// Context never contradicts: repository, commit_sha, triggered_by, reason, timestamp, traceparent and metadata of
    /// the first event are kept. Only these fields of it are used.
    pub(crate) context: Spec,
}
