//! `otto submit`.

use std::collections::HashMap;
use std::io::{self, Write};

use otto_proto::v1::scale_response::Status as ScaleStatus;
use otto_proto::v1::{ScaleRequest, ScaleResponse};
use serde_json::json;

use crate::args::{Cli, Logs, Output, Submit};
use crate::console::tell;
use crate::exit::{Exit, Failure};
use crate::logs;

pub(crate) async fn run(cli: &Cli, options: &Submit) -> Result<Exit, Failure> {
    let task_id =
        options.task_id.clone().unwrap_or_else(|| format!("task-{}", &uuid::Uuid::new_v4().simple().to_string()[..16]));
    let request = request(options, &task_id)?;
    let answer = cli.scaler_client()?.scale_up(request).await.map_err(|status| cli.scaler_said(status))?.into_inner();
    if answer.status() == ScaleStatus::Failed {
        return Err(Failure::Usage(format!("task {task_id}: {}", answer.message)));
    }
    if options.follow {
        if answer.status() == ScaleStatus::AlreadyProcessed {
            tell(format!("task {task_id} was submitted before; this is its log"));
        } else if options.task_id.is_none() {
            tell(format!("task {task_id}"));
        }
        let wanted = Logs { task: task_id, follow: true, ..Logs::default() };
        let workers = usize::try_from(options.count).unwrap_or(usize::MAX);
        return logs::follow_to_result(cli, &wanted, workers).await;
    }
    print(cli, &task_id, &answer)?;
    Ok(Exit::Ok)
}

fn print(cli: &Cli, task_id: &str, answer: &ScaleResponse) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match cli.output {
        Output::Json => {
            let value = json!({
                "task_id": task_id,
                "status": answer.status().as_str_name().to_lowercase(),
                "message": answer.message,
                "workers": answer.worker_pod_names,
            });
            writeln!(out, "{value}")
        }
        Output::Table => {
            if answer.status() == ScaleStatus::AlreadyProcessed {
                tell(format!("it was submitted before: {}", answer.message));
            }
            writeln!(out, "{task_id}")
        }
    }
}

fn request(options: &Submit, task_id: &str) -> Result<ScaleRequest, Failure> {
    let worker_count =
        i32::try_from(options.count).map_err(|_| Failure::Usage(format!("--count {} is too large", options.count)))?;
    let mut config = HashMap::new();
    let mut set = |name: &str, value: String| config.insert(name.to_owned(), value);
    set("command", json!(options.command).to_string());
    if let Some(image) = &options.image {
        set("image", image.clone());
    }
    for (name, value) in &options.environment {
        set(&format!("env.{name}"), value.clone());
    }
    if let Some(timeout) = options.timeout {
        // Whole seconds on the wire; never shorter than asked.
        set("timeout_seconds", timeout.as_millis().div_ceil(1_000).to_string());
    }
    if let Some(attempts) = options.max_attempts {
        set("max_attempts", attempts.to_string());
    }
    if let Some(priority) = options.priority {
        set("priority", priority.to_string());
    }
    Ok(ScaleRequest {
        task_id: task_id.to_owned(),
        repository: options.repository.clone(),
        commit_sha: options.commit_sha.clone(),
        worker_count,
        build_config: config,
        triggered_by: "otto".to_owned(),
        reason: options.reason.clone(),
        metadata: std::env::var("TRACEPARENT").map(|value| ("traceparent".to_owned(), value)).into_iter().collect(),
    })
}
