//! What is known of runs, as readers see it.

use std::collections::HashMap;

use otto_log_store::{RunInfo, TaskInfo};
use otto_proto::v1::{LogRun, LogTask, LogWorker};
use prost_types::Timestamp;

use crate::registry::Registry;

/// Runs grouped by worker: workers in the order of their first run, runs in the order of their start.
pub(super) fn workers(runs: Vec<RunInfo>, registry: &Registry) -> Vec<LogWorker> {
    let mut workers: Vec<LogWorker> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    for info in runs {
        let position = *index.entry(info.key.worker_id.clone()).or_insert_with(|| {
            workers.push(LogWorker { worker_id: info.key.worker_id.clone(), ..LogWorker::default() });
            workers.len() - 1
        });
        let worker = &mut workers[position];
        if info.metadata.is_some() {
            worker.metadata.clone_from(&info.metadata);
        }
        worker.runs.push(run(info, registry));
    }
    workers
}

fn run(info: RunInfo, registry: &Registry) -> LogRun {
    LogRun {
        complete: info.is_complete(),
        connected: registry.is_connected(info.id),
        lines: info.lines,
        bytes: info.bytes,
        last_sequence: info.expected.saturating_sub(1),
        first_time: info.first_time_unix_nanos.map(timestamp),
        last_time: info.last_time_unix_nanos.map(timestamp),
        run_id: info.key.run_id,
        gaps: info.gaps,
        finish: info.finish,
    }
}

pub(super) fn task(info: TaskInfo) -> LogTask {
    LogTask {
        first_seen_at: Some(timestamp(info.first_seen_unix_nanos)),
        last_seen_at: Some(timestamp(info.last_seen_unix_nanos)),
        task_id: info.task_id,
        workers: info.workers,
        lines: info.lines,
        bytes: info.bytes,
        task_state: info.task_state,
        context: info.context,
    }
}

fn timestamp(unix_nanos: i64) -> Timestamp {
    Timestamp {
        seconds: unix_nanos.div_euclid(1_000_000_000),
        nanos: i32::try_from(unix_nanos.rem_euclid(1_000_000_000)).unwrap_or(0),
    }
}
