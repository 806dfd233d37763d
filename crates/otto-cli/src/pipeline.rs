//! `otto pipeline`.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use otto_proto::v1::{PipelineProgress, PipelineRequest, PipelineStage, RetryPolicy, StageStatus};
use serde::Deserialize;
use serde_json::json;

use crate::args::{Cli, Output, Pipeline};
use crate::console::plain;
use crate::exit::{Exit, Failure};

/// The file: PipelineRequest in TOML or JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    #[serde(default)]
    pipeline_id: String,
    #[serde(default)]
    name: String,
    stages: Vec<Stage>,
    #[serde(default)]
    repository: String,
    #[serde(default)]
    commit_sha: String,
    #[serde(default)]
    metadata: HashMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stage {
    stage_id: String,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    name: String,
    #[serde(default = "one")]
    worker_count: i32,
    #[serde(default)]
    depends_on: Vec<String>,
    #[serde(default)]
    config: HashMap<String, String>,
    #[serde(default)]
    image: String,
    command: Vec<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    timeout_seconds: i32,
    retry_policy: Option<Retry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Retry {
    max_attempts: i32,
    #[serde(default)]
    retry_delay_seconds: i32,
    #[serde(default)]
    retryable_failures: Vec<String>,
}

fn one() -> i32 {
    1
}

pub(crate) async fn run(cli: &Cli, action: &Pipeline) -> Result<Exit, Failure> {
    let Pipeline::Run { file } = action;
    let request = read(file).map_err(|error| Failure::Usage(format!("{error:#}")))?;
    let answer = cli.scaler_client()?.execute_pipeline(request).await.map_err(|status| cli.scaler_said(status))?;
    let mut progress = answer.into_inner();
    let mut last = StageStatus::StagePending;
    while let Some(step) = progress.message().await.map_err(|status| cli.scaler_said(status))? {
        print(cli, &step)?;
        if step.stage_id.is_empty() {
            last = step.status();
        }
    }
    Ok(if last == StageStatus::StageCompleted { Exit::Ok } else { Exit::TaskFailed })
}

fn read(path: &Path) -> anyhow::Result<PipelineRequest> {
    let shown = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("reading {shown}"))?;
    let parsed: Description = if text.trim_start().starts_with('{') {
        serde_json::from_str(&text).with_context(|| format!("{shown} is no pipeline"))?
    } else {
        toml::from_str(&text).with_context(|| format!("{shown} is no pipeline"))?
    };
    let stage = |stage: Stage| PipelineStage {
        stage_id: stage.stage_id,
        r#type: stage.kind,
        name: stage.name,
        worker_count: stage.worker_count,
        depends_on: stage.depends_on,
        config: stage.config,
        image: stage.image,
        command: stage.command,
        args: stage.args,
        timeout_seconds: stage.timeout_seconds,
        retry_policy: stage.retry_policy.map(|retry| RetryPolicy {
            max_attempts: retry.max_attempts,
            retry_delay_seconds: retry.retry_delay_seconds,
            retryable_failures: retry.retryable_failures,
        }),
    };
    let new_id = || format!("pipeline-{}", uuid::Uuid::new_v4().simple());
    Ok(PipelineRequest {
        pipeline_id: if parsed.pipeline_id.is_empty() { new_id() } else { parsed.pipeline_id },
        name: parsed.name,
        stages: parsed.stages.into_iter().map(stage).collect(),
        repository: parsed.repository,
        commit_sha: parsed.commit_sha,
        triggered_by: "otto".to_owned(),
        metadata: parsed.metadata,
    })
}

fn print(cli: &Cli, step: &PipelineProgress) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let status = step.status().as_str_name().trim_start_matches("STAGE_").to_lowercase();
    match cli.output {
        Output::Json => {
            let value = json!({
                "pipeline_id": step.pipeline_id,
                "stage_id": step.stage_id,
                "status": status,
                "message": step.message,
                "progress_percentage": step.progress_percentage,
                "workers": step.worker_pod_names,
                "error_message": step.error_message,
            });
            writeln!(out, "{value}")
        }
        Output::Table => {
            let stage = if step.stage_id.is_empty() { "pipeline" } else { &step.stage_id };
            let said: Vec<&str> = [&step.message, &step.error_message]
                .into_iter()
                .map(String::as_str)
                .filter(|text| !text.is_empty())
                .collect();
            let said = if said.is_empty() { String::new() } else { format!(": {}", said.join(": ")) };
            writeln!(out, "{:>3} %  {}", step.progress_percentage, plain(&format!("{stage} {status}{said}")))
        }
    }
}
