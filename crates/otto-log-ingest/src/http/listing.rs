//! Tasks and their workers.

use axum::extract::State;
use axum::response::Response;
use http::Uri;
use otto_proto::v1::LogTask;

use super::Shared;
use super::model::{self, Event, Task, TaskPage, Workers};
use super::params::Params;
use super::path::TaskPath;
use super::problem::Problem;
use super::reply::json;

/// `GET /api/v1/tasks`
pub(super) async fn tasks(State(shared): State<Shared>, uri: Uri) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["page_size", "page_token"])?;
    let size = params.number("page_size", 1, 1000)?.unwrap_or(100);
    let token = params.one("page_token")?.unwrap_or_default();
    let answer = shared.app.query.tasks(u32::try_from(size).unwrap_or(1000), token).await?;
    json(&TaskPage {
        tasks: answer.tasks.iter().map(Task::from).collect(),
        next_page_token: Some(answer.next_page_token.as_str()).filter(|token| !token.is_empty()),
    })
}

/// `GET /api/v1/tasks/{task}/workers`
pub(super) async fn workers(
    State(shared): State<Shared>,
    TaskPath(task_id): TaskPath,
    uri: Uri,
) -> Result<Response, Problem> {
    Params::read(&uri, &[])?;
    let task = known_task(&shared, &task_id).await?;
    let answer = shared.app.query.workers(&task_id).await?;
    json(&Workers {
        task: Task::from(&task),
        workers: model::workers(&answer.workers, &answer.events),
        events: answer.events.iter().map(Event::from).collect(),
    })
}

/// The task, or 404.
pub(super) async fn known_task(shared: &Shared, task_id: &str) -> Result<LogTask, Problem> {
    let task = shared.app.store.task(task_id).await?.ok_or_else(|| Problem::not_found(format!("task {task_id:?}")))?;
    let stamp = |nanos: i64| prost_types::Timestamp {
        seconds: nanos.div_euclid(1_000_000_000),
        nanos: i32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or_default(),
    };
    Ok(LogTask {
        task_id: task.task_id,
        first_seen_at: Some(stamp(task.first_seen_unix_nanos)),
        last_seen_at: Some(stamp(task.last_seen_unix_nanos)),
        workers: task.workers,
        lines: task.lines,
        bytes: task.bytes,
        task_state: task.task_state,
        context: task.context,
    })
}
