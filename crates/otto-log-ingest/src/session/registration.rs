//! `RegisterWorker`.

use std::time::Duration;

use otto_log_store::RunKey;
use otto_proto::v1::registration_response::Status;
use otto_proto::v1::{RegistrationResponse, WorkerRegistration};
use uuid::Uuid;

use super::{Context, End};

/// Longest worker and task id, bytes.
pub(crate) const MAX_ID: usize = 253;
/// Longest run id, bytes.
const MAX_RUN_ID: usize = 64;
/// Largest metadata of a worker, bytes.
const MAX_METADATA: usize = 64 << 10;

/// Makes the worker's run known, on disk. A registration without a `run_id` begins a new run.
pub(crate) async fn register(context: &Context, request: WorkerRegistration) -> Result<RegistrationResponse, End> {
    check("worker_id", &request.worker_id, MAX_ID, true)?;
    check("task_id", &request.task_id, MAX_ID, true)?;
    check("run_id", &request.run_id, MAX_RUN_ID, false)?;
    if prost::Message::encoded_len(&request) > MAX_METADATA {
        return Err(End::Invalid { field: "metadata", description: format!("at most {MAX_METADATA} bytes") });
    }
    if context.drain.is_cancelled() {
        return Err(End::draining());
    }
    let WorkerRegistration { worker_id, task_id, metadata, run_id, .. } = request;
    let session_id = Uuid::new_v4().to_string();
    if context.registry.check_room(&task_id, &worker_id).is_err() {
        tracing::warn!(limit = context.limits.max_workers, "too many workers are registered (--max-workers)");
        return Ok(RegistrationResponse {
            status: Status::ServerFull.into(),
            message: format!(
                "{} workers are registered (max-workers); try again later, with backoff",
                context.limits.max_workers
            ),
            session_id: String::new(),
            config: Some(context.logging_config()),
        });
    }
    let run_id = if run_id.is_empty() { Uuid::new_v4().to_string() } else { run_id };
    let key = RunKey { task_id, worker_id, run_id };
    let run = match tokio::time::timeout(Duration::from_secs(10), context.store.open_run(&key, metadata)).await {
        Ok(run) => run.map_err(|error| End::from_store(error, context.limits.disk_full_delay))?,
        Err(_) => {
            return Err(End::Unavailable {
                retry_after: context.limits.busy_delay,
                message: "the log server's disk is slow; try again".to_owned(),
            });
        }
    };
    if !run.finished {
        context.registry.register(key.task_id, key.worker_id, run.id);
    }
    let (status, message) = if run.created {
        (Status::Success, String::new())
    } else if run.finished {
        (Status::AlreadyRegistered, "the run is finished".to_owned())
    } else {
        (Status::AlreadyRegistered, format!("the run goes on at sequence {}", run.expected))
    };
    Ok(RegistrationResponse { status: status.into(), message, session_id, config: Some(context.logging_config()) })
}

fn check(field: &'static str, value: &str, longest: usize, required: bool) -> Result<(), End> {
    if required && value.is_empty() {
        return Err(End::Invalid { field, description: "must not be empty".to_owned() });
    }
    if value.len() > longest {
        return Err(End::Invalid { field, description: format!("has {} bytes; at most {longest}", value.len()) });
    }
    Ok(())
}
