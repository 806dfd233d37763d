use std::collections::HashMap;

use otto_proto::v1::{FinishRun, LogBlock, LogGap, WorkerMetadata};

/// What identifies a run: a stream of lines numbered from 1 without holes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunKey {
    /// The task the worker belongs to, 1 to 1,024 bytes.
    pub task_id: String,
    /// Pod or run-directory name, 1 to 1,024 bytes.
    pub worker_id: String,
    /// Random, chosen by the agent (or by the server for agents that know of no runs); at most 1,024 bytes.
    pub run_id: String,
}

/// Short name of a run inside one store. Rises with the order in which runs were opened first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(pub u64);

/// Answer of [`Store::open_run`](crate::Store::open_run).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunState {
    /// Short name of the run.
    pub id: RunId,
    /// Sequence the next record must begin at; 1 for a new run.
    pub expected: u64,
    /// The run has its Finish; nothing more can be appended.
    pub finished: bool,
    /// The run did not exist before this call.
    pub created: bool,
}

/// What can be appended to a run. Each must begin at the run's expected sequence.
#[derive(Clone, Debug)]
pub enum Record {
    /// Lines, stored as they came.
    Block(LogBlock),
    /// Lines that will never come. The next expected sequence is `last_sequence + 1`; with `last_sequence` 0 (end
    /// unknown) it stays as it was.
    Gap(LogGap),
    /// The end of the run; `last_sequence` must be the expected sequence - 1.
    Finish(FinishRun),
}

/// A run as it is stored now.
#[derive(Clone, Debug, PartialEq)]
pub struct RunInfo {
    /// Short name of the run.
    pub id: RunId,
    /// What identifies it.
    pub key: RunKey,
    /// As given last when it was opened.
    pub metadata: Option<WorkerMetadata>,
    /// Sequence the next record must begin at. The highest sequence known is one less.
    pub expected: u64,
    /// Lines stored and readable.
    pub lines: u64,
    /// Bytes of their payloads before compression (text and columns).
    pub bytes: u64,
    /// What is missing, in order: at most 1,000 of them (a reader meets all). One with reason EXPIRED comes first if
    /// retention removed the beginning.
    pub gaps: Vec<LogGap>,
    /// Lines inside gaps, EXPIRED included.
    pub missing_lines: u64,
    /// The last record is a gap without an end, at `expected`. It tells a repeated one even where `gaps` is full.
    pub open_gap: bool,
    /// How it ended; `None`: not ended, or ended without telling.
    pub finish: Option<FinishRun>,
    /// Smallest time of its lines, nanoseconds since the Unix epoch.
    pub first_time_unix_nanos: Option<i64>,
    /// Largest time of its lines.
    pub last_time_unix_nanos: Option<i64>,
    /// When it was opened first, by the store's clock.
    pub opened_at_unix_nanos: i64,
    /// When it was last opened or appended to, by the store's clock.
    pub active_at_unix_nanos: i64,
}

impl RunInfo {
    /// It is finished and no line is missing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.finish.as_ref().is_some_and(|finish| finish.last_sequence == self.lines) && self.gaps.is_empty()
    }
}

/// A task as it is stored now: everything that has its `task_id`.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskInfo {
    /// As workers and scaler call it.
    pub task_id: String,
    /// When the first run was opened or the first event stored, by the store's clock.
    pub first_seen_unix_nanos: i64,
    /// When it last changed.
    pub last_seen_unix_nanos: i64,
    /// Different worker ids among its runs.
    pub workers: u32,
    /// Runs stored.
    pub runs: u32,
    /// Lines stored and readable.
    pub lines: u64,
    /// Bytes of their payloads before compression.
    pub bytes: u64,
    /// `task_state` of the latest TYPE_TASK_ENDED event; empty: live, or not told.
    pub task_state: String,
    /// Context of the task's events: repository, commit_sha, triggered_by, reason.
    pub context: HashMap<String, String>,
}

/// Some tasks, newest (by first sight) first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskPage {
    /// At most as many as were asked for.
    pub tasks: Vec<TaskInfo>,
    /// Give it to the next call; `None`: there are no more.
    pub next: Option<u64>,
}

/// Bounds of [`Stats::sync_counts`], seconds: 64 microseconds to 2 seconds.
pub const SYNC_BOUNDS_SECONDS: [f64; 16] = [
    0.000_064, 0.000_128, 0.000_256, 0.000_512, 0.001_024, 0.002_048, 0.004_096, 0.008_192, 0.016_384, 0.032_768,
    0.065_536, 0.131_072, 0.262_144, 0.524_288, 1.048_576, 2.097_152,
];

/// Counters and sizes since the store was opened, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of all segment files.
    pub segment_bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// Bytes of the index file.
    pub index_bytes: u64,
    /// Records waiting to be written.
    pub queued_records: u64,
    /// Their bytes.
    pub queued_bytes: u64,
    /// Records written and on disk.
    pub records: u64,
    /// Lines in them.
    pub lines: u64,
    /// Bytes written to segments, headers included.
    pub written_bytes: u64,
    /// Group commits (one fdatasync each).
    pub commits: u64,
    /// Time spent in fdatasync, nanoseconds.
    pub sync_nanos: u64,
    /// Group commits by the time of their fdatasync: up to each of [`SYNC_BOUNDS_SECONDS`], and above.
    pub sync_counts: [u64; SYNC_BOUNDS_SECONDS.len() + 1],
    /// Places where stored bytes were found damaged.
    pub damaged: u64,
    /// Segments removed by retention.
    pub expired_segments: u64,
    /// Segments whose small blocks were merged.
    pub merged_segments: u64,
}
