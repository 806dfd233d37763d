//! `otto scale` and `otto cancel`.

use std::io::{self, Write};

use otto_proto::v1::scale_response::Status as ScaleStatus;
use otto_proto::v1::{GetTaskRequest, ScaleRequest, ScaleResponse};
use serde_json::json;

use crate::args::{Cli, Output};
use crate::exit::{Exit, Failure};
use crate::tasks::state_name;

pub(crate) async fn scale(cli: &Cli, task: &str, workers: u32) -> Result<Exit, Failure> {
    let request = GetTaskRequest { task_id: task.to_owned() };
    let known = cli.tasks_client()?.get_task(request).await.map_err(|status| cli.scaler_said(status))?.into_inner();
    let count =
        i32::try_from(workers).map_err(|_| Failure::Usage(format!("{workers} workers are more than can be")))?;
    if known.ended_at.is_some() {
        let state = state_name(known.state());
        return Err(Failure::Refused(format!(
            "task {task} has ended ({state}); submit it under another name to run it again"
        )));
    }
    let triggered_by = "otto".to_owned();
    let request =
        ScaleRequest { task_id: task.to_owned(), worker_count: count, triggered_by, ..ScaleRequest::default() };
    let mut client = cli.scaler_client()?;
    let answer =
        if workers > known.wanted_workers { client.scale_up(request).await } else { client.scale_down(request).await };
    report(cli, task, answer.map_err(|status| cli.scaler_said(status))?.into_inner())
}

pub(crate) async fn cancel(cli: &Cli, task: &str) -> Result<Exit, Failure> {
    // Asked for first, so that a mistyped name is not taken for a task to come.
    let known = GetTaskRequest { task_id: task.to_owned() };
    cli.tasks_client()?.get_task(known).await.map_err(|status| cli.scaler_said(status))?;
    let request = ScaleRequest { task_id: task.to_owned(), triggered_by: "otto".to_owned(), ..ScaleRequest::default() };
    let answer = cli.scaler_client()?.scale_down(request).await.map_err(|status| cli.scaler_said(status))?;
    report(cli, task, answer.into_inner())
}

fn report(cli: &Cli, task: &str, answer: ScaleResponse) -> Result<Exit, Failure> {
    let status = answer.status();
    let mut out = io::stdout().lock();
    match cli.output {
        Output::Json => {
            let status = status.as_str_name().to_lowercase();
            let value = json!({ "task_id": task, "status": status, "message": answer.message });
            writeln!(out, "{value}")?;
        }
        Output::Table => writeln!(out, "{task}: {}", answer.message)?,
    }
    Ok(if status == ScaleStatus::Failed { Exit::Refused } else { Exit::Ok })
}
