//! The whole system in a folder of its own, and how tests talk to it.

use std::collections::BTreeMap;
use std::process::Output;

use anyhow::Context;
use otto_proto::v1::log_query_service_client::LogQueryServiceClient;
use otto_proto::v1::task_service_client::TaskServiceClient;
use otto_proto::v1::{GetTaskRequest, LogRun, LogWorker, ReadLogsRequest, Task, TaskState};
use otto_testkit::{LogIngest, RedisServer, Scaler, binary, eventually};
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::process::Command;
use tonic::Code;
use tonic::transport::Channel;

pub(crate) const STREAM: &str = "otto:scale:events";

/// Redis, log server and scaler. Dropped in the order of its fields: the scaler first.
pub(crate) struct System {
    pub(crate) scaler: Scaler,
    pub(crate) logs: LogIngest,
    pub(crate) redis: RedisServer,
    pub(crate) dir: TempDir,
}

impl System {
    pub(crate) async fn start(scaler_flags: &[&str]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let redis = RedisServer::start().await?;
        let logs = LogIngest::start(dir.path(), &[]).await?;
        let (redis_url, log_url) = (redis.url(), logs.grpc_url());
        let mut flags = vec!["--redis-url", &redis_url, "--log-server", &log_url];
        flags.extend(scaler_flags);
        // With something of its own to hand to its agents, which no job may see.
        let mut scaler = Scaler::start_with_env(dir.path(), &flags, &[("RUST_LOG", "info")]).await?;
        scaler.until_ready().await?;
        Ok(Self { scaler, logs, redis, dir })
    }

    pub(crate) async fn tasks(&self) -> anyhow::Result<TaskServiceClient<Channel>> {
        Ok(TaskServiceClient::new(self.scaler.channel().await?))
    }

    pub(crate) async fn queries(&self) -> anyhow::Result<LogQueryServiceClient<Channel>> {
        Ok(LogQueryServiceClient::new(self.logs.channel().await?))
    }

    /// Waits until a task has ended. A store that is away for the moment is asked again, as any client would.
    pub(crate) async fn ended(&self, task_id: &str) -> anyhow::Result<Task> {
        let tasks = self.tasks().await?;
        Ok(eventually(&format!("task {task_id} has ended"), || {
            let mut tasks = tasks.clone();
            async move {
                let task = match tasks.get_task(GetTaskRequest { task_id: task_id.to_owned() }).await {
                    Ok(task) => task.into_inner(),
                    Err(status) if matches!(status.code(), Code::NotFound | Code::Unavailable) => return None,
                    Err(status) => panic!("GetTask: {status}"),
                };
                let live = matches!(task.state(), TaskState::Pending | TaskState::Running | TaskState::Unspecified);
                (!live).then_some(task)
            }
        })
        .await)
    }

    /// Waits until every run of a task is finished, and returns its workers.
    pub(crate) async fn finished_workers(&self, task_id: &str, workers: usize) -> anyhow::Result<Vec<LogWorker>> {
        finished_workers(&self.logs, task_id, workers).await
    }

    pub(crate) async fn otto(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(binary("otto")?);
        command.args(["--scaler", &self.scaler.grpc_url(), "--log-server", &self.logs.grpc_url()]).args(arguments);
        Ok(command.kill_on_drop(true).output().await?)
    }
}

/// Waits until every run of a task is finished at a log server, and returns its workers.
pub(crate) async fn finished_workers(
    logs: &LogIngest,
    task_id: &str,
    workers: usize,
) -> anyhow::Result<Vec<LogWorker>> {
    let queries = LogQueryServiceClient::new(logs.channel().await?);
    Ok(eventually(&format!("the {workers} logs of {task_id} are finished"), || {
        let mut queries = queries.clone();
        async move {
            let request = otto_proto::v1::ListLogWorkersRequest { task_id: task_id.to_owned() };
            let found = queries.list_log_workers(request).await.ok()?.into_inner().workers;
            let finished = |run: &LogRun| run.finish.is_some();
            let all = found.iter().filter(|worker| !worker.runs.is_empty() && worker.runs.iter().all(finished)).count();
            (all == workers).then_some(found)
        }
    })
    .await)
}

/// Adds an event; returns its entry id.
pub(crate) async fn add(redis: &mut MultiplexedConnection, fields: &[(&str, &str)]) -> anyhow::Result<String> {
    redis::cmd("XADD").arg(STREAM).arg("*").arg(fields).query_async(redis).await.context("XADD")
}

/// Entries of a stream: id → fields.
pub(crate) async fn entries(
    redis: &mut MultiplexedConnection,
    stream: &str,
) -> anyhow::Result<Vec<(String, BTreeMap<String, Vec<u8>>)>> {
    Ok(redis::cmd("XRANGE").arg(stream).arg("-").arg("+").query_async(redis).await?)
}

/// All messages of a task's log, in order.
pub(crate) async fn messages(logs: &LogIngest, task_id: &str) -> anyhow::Result<Vec<String>> {
    let mut queries = LogQueryServiceClient::new(logs.channel().await?);
    let request = ReadLogsRequest { task_id: task_id.to_owned(), ..ReadLogsRequest::default() };
    let mut stream = queries.read_logs(request).await?.into_inner();
    let mut all = Vec::new();
    while let Some(part) = stream.message().await? {
        all.extend(part.lines.iter().map(|line| String::from_utf8_lossy(&line.message).into_owned()));
    }
    Ok(all)
}

/// JSON array of strings, as the event field `command` takes it.
pub(crate) fn shell(script: &str) -> String {
    serde_json::json!(["sh", "-c", script]).to_string()
}
