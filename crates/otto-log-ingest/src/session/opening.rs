//! How a stream of batches begins.

use std::time::Duration;

use otto_log_store::{Record, RunInfo, RunKey, StoreError};
use otto_proto::v1::log_gap::Reason;
use otto_proto::v1::{LogGap, OpenRun};

use super::{Context, End};
use crate::registry::Session;

/// Finds the run and takes it over from an older session.
pub(super) async fn enter(context: &Context, open: &OpenRun) -> Result<(Session, RunInfo), End> {
    for (field, value) in
        [("open.worker_id", &open.worker_id), ("open.task_id", &open.task_id), ("open.run_id", &open.run_id)]
    {
        if value.is_empty() {
            return Err(End::Invalid { field, description: "must not be empty".to_owned() });
        }
    }
    if open.first_available > i64::MAX as u64 {
        return Err(End::Invalid {
            field: "open.first_available",
            description: format!("is {}; accepted is at most 2^63 - 1", open.first_available),
        });
    }
    let unreadable = |error: otto_log_store::ReadError| End::Unavailable {
        retry_after: Duration::from_secs(1),
        message: error.to_string(),
    };
    let key = RunKey { task_id: open.task_id.clone(), worker_id: open.worker_id.clone(), run_id: open.run_id.clone() };
    let not_registered = || End::not_registered(&open.task_id, &open.worker_id);
    let known = context.store.find_run(&key).await.map_err(unreadable)?.ok_or_else(not_registered)?;
    let session = context.registry.enter(known.id).await;
    // Again: the older session may have stored more meanwhile.
    let run = context.store.run(known.id).await.map_err(unreadable)?.ok_or_else(not_registered)?;
    Ok((session, run))
}

/// The client no longer has what is expected: a gap says so, and the run goes on where the client can.
pub(super) async fn lost(context: &Context, run: &RunInfo, first_available: u64) -> Result<u64, End> {
    let gap = LogGap {
        first_sequence: run.expected,
        last_sequence: first_available - 1,
        reason: Reason::ServerLost.into(),
        message: "the log server lost these lines and the worker no longer has them".to_owned(),
    };
    tracing::warn!(
        task_id = run.key.task_id,
        worker_id = run.key.worker_id,
        first = gap.first_sequence,
        last = gap.last_sequence,
        "lines are missing: this server expects them, and the worker no longer has them"
    );
    loop {
        match context.store.append(run.id, Record::Gap(gap.clone())).await {
            Ok(expected) => return Ok(expected),
            Err(StoreError::Busy) => context.store.ready().await,
            Err(error) => return Err(End::from_store(error, context.limits.disk_full_delay)),
        }
    }
}
