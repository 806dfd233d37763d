//! What the scaler knows of a task: the spec fixed by its first event, the target, and a record per worker index.
//!
//! Pure data: no clock, no I/O. Times are milliseconds since the Unix epoch.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch.
pub(crate) type Millis = i64;

/// What runs; fixed by the task's first event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Spec {
    /// Container image; ignored (and told) by the process driver.
    pub(crate) image: String,
    /// Program and its leading arguments. Empty only where nothing is to run.
    pub(crate) command: Vec<String>,
    pub(crate) args: Vec<String>,
    /// Never holds a name that begins with `OTTO_`.
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) repository: String,
    pub(crate) commit_sha: String,
    pub(crate) triggered_by: String,
    pub(crate) reason: String,
    /// As the event gave it.
    pub(crate) timestamp: String,
    /// Higher goes first. Default 0.
    pub(crate) priority: i32,
    /// Longest time one attempt may run; 0: no limit.
    pub(crate) timeout_seconds: u32,
    /// Attempts of the job itself (infrastructure failures have a bound of their own). At least 1.
    pub(crate) max_attempts: u32,
    pub(crate) resource_class: String,
    /// W3C trace context of the event.
    pub(crate) traceparent: Option<String>,
    /// Unknown fields of the event.
    pub(crate) metadata: BTreeMap<String, String>,
}

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Workers are wanted, wait or run.
    Live,
    /// Told to stop; its workers are being stopped. Becomes `Cancelled` when none is left.
    Cancelling,
    /// Terminal.
    Succeeded,
    /// Terminal: a worker failed and may not be tried again.
    Failed,
    /// Terminal.
    Cancelled,
}

impl Phase {
    pub(crate) fn is_terminal(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed | Phase::Cancelled)
    }
}

/// A task as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) task_id: String,
    /// Rises by one with every stored change; compared before each write.
    pub(crate) version: u64,
    pub(crate) spec: Arc<Spec>,
    /// Target number of workers.
    pub(crate) wanted: u32,
    pub(crate) phase: Phase,
    /// By index. Grows when `wanted` grows, never shrinks.
    pub(crate) workers: Vec<Worker>,
    pub(crate) created_at: Millis,
    /// Set with a terminal phase.
    pub(crate) ended_at: Option<Millis>,
    /// Id of the last stream entry that was applied; `None` for gRPC only.
    pub(crate) last_entry: Option<EntryId>,
    /// Why it failed, for people.
    pub(crate) error: Option<String>,
}

impl Record {
    /// Workers that are neither stopped nor being stopped: what is compared with `wanted`.
    pub(crate) fn active(&self) -> usize {
        self.workers.iter().filter(|w| !matches!(w.phase, WorkerPhase::Stopped | WorkerPhase::Stopping)).count()
    }

    /// Brings the workers up to `wanted`: new indexes first, then stopped ones from the lowest, each as a new attempt.
    /// Those that are still being stopped are waited for. Returns the indexes that are queued by it.
    pub(crate) fn fill(&mut self) -> Vec<u32> {
        let mut queued = Vec::new();
        let mut active = self.active();
        let wanted = self.wanted as usize;
        while self.workers.len() < wanted && active < wanted {
            let index = u32::try_from(self.workers.len()).unwrap_or(u32::MAX);
            self.workers.push(Worker::queued(index, 1));
            queued.push(index);
            active += 1;
        }
        for worker in &mut self.workers {
            if active >= wanted {
                break;
            }
            if worker.phase == WorkerPhase::Stopped {
                worker.keep_past(worker.ended_at.unwrap_or(self.created_at), None);
                worker.again(None);
                queued.push(worker.index);
                active += 1;
            }
        }
        queued
    }

    /// The worker with this index.
    pub(crate) fn worker(&self, index: u32) -> Option<&Worker> {
        self.workers.get(index as usize)
    }
}

/// One worker index of a task: its latest attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Worker {
    pub(crate) index: u32,
    /// From 1. Stored before the attempt is created.
    pub(crate) attempt: u32,
    pub(crate) phase: WorkerPhase,
    /// Attempts of the job that failed by its own fault so far.
    pub(crate) job_failures: u32,
    /// Attempts that failed by the infrastructure's fault so far.
    pub(crate) infrastructure_failures: u32,
    /// Since when one attempt after the other fails by the infrastructure's fault before its job begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failing_since: Option<Millis>,
    /// Not before this time may the attempt be created.
    pub(crate) not_before: Option<Millis>,
    pub(crate) created_at: Option<Millis>,
    pub(crate) started_at: Option<Millis>,
    pub(crate) ended_at: Option<Millis>,
    /// How the latest attempt that ended did; an earlier one while this one lives.
    pub(crate) outcome: Option<Outcome>,
    /// Why this attempt's job cannot begin yet, or the attempt not be created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) waiting: Option<Outcome>,
    /// What is wrong with this attempt, which lives as far as is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trouble: Option<Trouble>,
    /// Where it runs; empty for processes on this machine.
    pub(crate) node_name: String,
    /// Attempts before this one, oldest first: the last [`PAST`] of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) past: Vec<Past>,
}

/// Earlier attempts that a record tells of.
const PAST: usize = 4;

/// An earlier attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Past {
    pub(crate) attempt: u32,
    pub(crate) ended_at: Millis,
    pub(crate) outcome: Outcome,
    pub(crate) node_name: String,
    /// The next one was not to be created before this, if it followed by itself.
    pub(crate) retry_at: Option<Millis>,
}

impl Worker {
    /// An attempt that is to be created.
    pub(crate) fn queued(index: u32, attempt: u32) -> Self {
        Self {
            index,
            attempt,
            phase: WorkerPhase::Queued,
            job_failures: 0,
            infrastructure_failures: 0,
            failing_since: None,
            not_before: None,
            created_at: None,
            started_at: None,
            ended_at: None,
            outcome: None,
            waiting: None,
            trouble: None,
            node_name: String::new(),
            past: Vec::new(),
        }
    }

    /// Keeps how this attempt ended, which the next one follows.
    pub(crate) fn keep_past(&mut self, ended_at: Millis, retry_at: Option<Millis>) {
        let Some(outcome) = self.outcome.clone() else { return };
        self.past.push(Past { attempt: self.attempt, ended_at, outcome, node_name: self.node_name.clone(), retry_at });
        let surplus = self.past.len().saturating_sub(PAST);
        self.past.drain(..surplus);
    }

    /// The next attempt; the last outcome stays readable until this one ends.
    pub(crate) fn again(&mut self, not_before: Option<Millis>) {
        self.attempt += 1;
        self.phase = WorkerPhase::Queued;
        self.not_before = not_before;
        self.created_at = None;
        self.started_at = None;
        self.ended_at = None;
        self.waiting = None;
        self.trouble = None;
        self.node_name.clear();
    }
}

/// Where one attempt of one worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WorkerPhase {
    /// To be created when limits and `not_before` allow.
    Queued,
    /// Created; the job has not begun.
    Created,
    Running,
    /// Terminal for the attempt: succeeded.
    Succeeded,
    /// Terminal: failed for good.
    Failed,
    /// Told to stop, not gone yet.
    Stopping,
    /// Terminal for the attempt: stopped by scale down or cancel. Started again it is a new attempt.
    Stopped,
}

impl WorkerPhase {
    /// Counts against the limits and the target.
    pub(crate) fn is_live(self) -> bool {
        matches!(self, Self::Queued | Self::Created | Self::Running | Self::Stopping)
    }
}

/// What is wrong with an attempt that may live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trouble {
    pub(crate) why: Outcome,
    pub(crate) since: Millis,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) class: Class,
    /// 128+n if ended by signal n.
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    /// A sentence for people.
    pub(crate) message: String,
}

/// Why an attempt ended; the domain twin of `FailureClass`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Class {
    /// Exit code 0.
    Success,
    /// The job ended with another code, or by a signal not ours.
    Exited,
    OutOfMemory,
    Deadline,
    Stopped,
    /// Program or image missing or not runnable.
    Image,
    Unschedulable,
    Quota,
    Admission,
    Config,
    Volume,
    Evicted,
    Preempted,
    NodeLost,
    /// The agent died; nobody knows how the job ended.
    AgentLost,
    Infrastructure,
}

impl Class {
    /// As metrics and messages name it; the same as in stored records.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Exited => "exited",
            Self::OutOfMemory => "out_of_memory",
            Self::Deadline => "deadline",
            Self::Stopped => "stopped",
            Self::Image => "image",
            Self::Unschedulable => "unschedulable",
            Self::Quota => "quota",
            Self::Admission => "admission",
            Self::Config => "config",
            Self::Volume => "volume",
            Self::Evicted => "evicted",
            Self::Preempted => "preempted",
            Self::NodeLost => "node_lost",
            Self::AgentLost => "agent_lost",
            Self::Infrastructure => "infrastructure",
        }
    }
}

/// Id of a Redis stream entry, ordered as Redis orders it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct EntryId {
    pub(crate) millis: u64,
    pub(crate) sequence: u64,
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.millis, self.sequence)
    }
}

impl std::str::FromStr for EntryId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('-').and_then(|(millis, sequence)| {
            Some(EntryId { millis: millis.parse().ok()?, sequence: sequence.parse().ok()? })
        });
        parsed.ok_or_else(|| format!("`{text}` is not a stream entry id (accepted: MILLISECONDS-SEQUENCE)"))
    }
}
