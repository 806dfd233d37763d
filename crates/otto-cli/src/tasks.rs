//! `otto tasks`, `otto workers`, `otto delete`.

use jiff::Timestamp;
use otto_proto::v1::{DeleteTaskRequest, ListTasksRequest, Task, TaskState, WorkerPodStatus, WorkerStatusRequest};
use serde_json::json;

use crate::args::{Cli, Tasks};
use crate::classes;
use crate::console::tell;
use crate::exit::{Exit, Failure};
use crate::output::{self, Column, Row};
use crate::times;

const STATES: [(&str, TaskState); 5] = [
    ("pending", TaskState::Pending),
    ("running", TaskState::Running),
    ("succeeded", TaskState::Succeeded),
    ("failed", TaskState::Failed),
    ("cancelled", TaskState::Cancelled),
];

const TASKS: [Column; 6] = [
    Column::kept("TASK"),
    Column::kept("STATE"),
    Column::dropped("WORKERS", 3),
    Column::dropped("AGE", 2),
    Column::dropped("TOOK", 1),
    Column::elastic("MESSAGE"),
];
const WORKERS: [Column; 6] = [
    Column::kept("WORKER"),
    Column::kept("STATUS"),
    Column::dropped("AGE", 3),
    Column::dropped("TOOK", 2),
    Column::dropped("NODE", 1),
    Column::elastic("MESSAGE"),
];

pub(crate) fn parse_state(text: &str) -> Result<i32, String> {
    let known = STATES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    known
        .map(|(_, state)| (*state).into())
        .ok_or_else(|| "accepted are pending, running, succeeded, failed, cancelled".to_owned())
}

pub(crate) fn state_name(state: TaskState) -> &'static str {
    STATES.iter().find(|(_, known)| *known == state).map_or("unknown", |(name, _)| name)
}

pub(crate) async fn list(cli: &Cli, options: &Tasks) -> Result<Exit, Failure> {
    let mut client = cli.tasks_client()?;
    let mut rows = Vec::new();
    let mut page_token = String::new();
    while rows.len() < options.limit {
        let page_size = (options.limit - rows.len()).min(1_000) as u32;
        let request = ListTasksRequest { page_size, page_token, states: options.state.clone() };
        let page = client.list_tasks(request).await.map_err(|status| cli.scaler_said(status))?.into_inner();
        rows.extend(page.tasks.iter().map(task_row));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    output::print(cli.output, &TASKS, &rows)?;
    Ok(Exit::Ok)
}

fn task_row(task: &Task) -> Row {
    let created = task.created_at.as_ref().and_then(times::from_proto);
    let ended = task.ended_at.as_ref().and_then(times::from_proto);
    let state = state_name(task.state());
    let mut parts = vec![format!("{}/{}", task.succeeded_workers, task.wanted_workers)];
    for (count, name) in
        [(task.running_workers, "running"), (task.pending_workers, "pending"), (task.failed_workers, "failed")]
    {
        if count > 0 {
            parts.push(format!("{count} {name}"));
        }
    }
    let cells = vec![
        task.task_id.clone(),
        state.to_owned(),
        parts.join(", "),
        times::span(created, None),
        times::span(created, ended),
        task.error_message.clone(),
    ];
    let json = json!({
        "task_id": task.task_id,
        "state": state,
        "wanted_workers": task.wanted_workers,
        "pending_workers": task.pending_workers,
        "running_workers": task.running_workers,
        "succeeded_workers": task.succeeded_workers,
        "failed_workers": task.failed_workers,
        "image": task.image,
        "command": task.command,
        "args": task.args,
        "repository": task.repository,
        "commit_sha": task.commit_sha,
        "triggered_by": task.triggered_by,
        "reason": task.reason,
        "priority": task.priority,
        "created_at": created.map(|time| time.to_string()),
        "ended_at": ended.map(|time| time.to_string()),
        "error_message": task.error_message,
        "metadata": task.metadata,
    });
    Row { cells, json }
}

pub(crate) async fn workers(cli: &Cli, task: &str) -> Result<Exit, Failure> {
    let request = WorkerStatusRequest { task_id: task.to_owned(), ..WorkerStatusRequest::default() };
    let answer = cli.scaler_client()?.get_worker_status(request).await.map_err(|status| cli.scaler_said(status))?;
    let answer = answer.into_inner();
    if answer.workers.is_empty() {
        // A task without workers is no mistake; one that does not exist is.
        let request = otto_proto::v1::GetTaskRequest { task_id: task.to_owned() };
        cli.tasks_client()?.get_task(request).await.map_err(|status| cli.scaler_said(status))?;
    }
    let rows: Vec<_> = answer.workers.iter().map(worker_row).collect();
    output::print(cli.output, &WORKERS, &rows)?;
    Ok(Exit::Ok)
}

fn worker_row(worker: &WorkerPodStatus) -> Row {
    let time = |text: &str| text.parse::<Timestamp>().ok();
    let cells = vec![
        worker.pod_name.clone(),
        worker.status.clone(),
        times::span(time(&worker.created_at), None),
        times::span(time(&worker.started_at), time(&worker.completed_at)),
        worker.node_name.clone(),
        match worker.error_message.as_str() {
            "" => String::new(),
            message => format!("{message}{}", classes::about(worker.failure_class())),
        },
    ];
    let json = json!({
        "worker_id": worker.pod_name,
        "task_id": worker.task_id,
        "status": worker.status,
        "created_at": worker.created_at,
        "started_at": worker.started_at,
        "completed_at": worker.completed_at,
        "node_name": worker.node_name,
        "pod_ip": worker.pod_ip,
        "labels": worker.labels,
        "error_message": worker.error_message,
        "failure_class": classes::name(worker.failure_class()),
    });
    Row { cells, json }
}

pub(crate) async fn delete(cli: &Cli, task: &str) -> Result<Exit, Failure> {
    let request = DeleteTaskRequest { task_id: task.to_owned() };
    cli.tasks_client()?.delete_task(request).await.map_err(|status| cli.scaler_said(status))?;
    tell(format!("the scaler has forgotten {task}; its log stays until the log server's retention removes it"));
    Ok(Exit::Ok)
}
