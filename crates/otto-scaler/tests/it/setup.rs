//! What the tests share: a scaler in a directory of its own, requests, and waiting for a state.

use std::path::Path;

use otto_proto::v1::ottoscaler_service_client::OttoscalerServiceClient;
use otto_proto::v1::task_service_client::TaskServiceClient;
use otto_proto::v1::{GetTaskRequest, ScaleRequest, Task, TaskState, WorkerPodStatus, WorkerStatusRequest};
use otto_testkit::{Scaler, eventually};
use tempfile::TempDir;
use tonic::transport::Channel;

/// A scaler that runs, and clients of it.
pub(crate) struct Fixture {
    pub(crate) scaler: Scaler,
    pub(crate) calls: OttoscalerServiceClient<Channel>,
    pub(crate) tasks: TaskServiceClient<Channel>,
    pub(crate) dir: TempDir,
}

impl Fixture {
    pub(crate) async fn start(extra: &[&str]) -> Fixture {
        let mut fixture = Self::start_unready(extra).await;
        fixture.scaler.until_ready().await.unwrap();
        fixture
    }

    /// One that may never be ready.
    pub(crate) async fn start_unready(extra: &[&str]) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        // Nobody listens on port 1.
        let mut flags = vec!["--log-server", "http://127.0.0.1:1", "--keep-ended", "0s", "--drain-limit", "0s"];
        flags.push("--worker-arg=--drain-timeout=200ms");
        flags.extend(extra);
        let scaler = Scaler::start(dir.path(), &flags).await.unwrap();
        let channel = scaler.channel().await.unwrap();
        let (calls, tasks) = (OttoscalerServiceClient::new(channel.clone()), TaskServiceClient::new(channel));
        Fixture { scaler, calls, tasks, dir }
    }

    /// Killed without a word, and started again on the same data.
    pub(crate) async fn kill_and_restart(&mut self) {
        self.scaler.process.kill().await.unwrap();
        self.scaler.restart().await.unwrap();
        self.scaler.until_ready().await.unwrap();
        let channel = self.scaler.channel().await.unwrap();
        self.calls = OttoscalerServiceClient::new(channel.clone());
        self.tasks = TaskServiceClient::new(channel);
    }

    pub(crate) async fn task(&self, task_id: &str) -> Task {
        self.tasks.clone().get_task(GetTaskRequest { task_id: task_id.to_owned() }).await.unwrap().into_inner()
    }

    pub(crate) async fn until_state(&self, task_id: &str, state: TaskState) -> Task {
        eventually(&format!("{task_id} is {state:?}"), || async {
            Some(self.task(task_id).await).filter(|task| task.state() == state)
        })
        .await
    }

    pub(crate) async fn rows(&self, task_id: &str) -> Vec<WorkerPodStatus> {
        let request = WorkerStatusRequest { task_id: task_id.to_owned(), ..WorkerStatusRequest::default() };
        self.calls.clone().get_worker_status(request).await.unwrap().into_inner().workers
    }

    pub(crate) async fn metric(&self, line: &str) -> bool {
        self.http("/metrics").await.1.lines().any(|text| text == line)
    }

    /// Status and body of a GET at the admin address.
    pub(crate) async fn http(&self, path: &str) -> (u16, String) {
        http(&self.scaler.admin_url(), path).await
    }
}

/// Status and body of a GET.
pub(crate) async fn http(url: &str, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = url.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// Runs a line of shell.
pub(crate) fn shell(task_id: &str, count: i32, script: &str) -> ScaleRequest {
    let command = serde_json::json!(["/bin/sh", "-c", script]).to_string();
    ScaleRequest {
        task_id: task_id.to_owned(),
        worker_count: count,
        build_config: [("command".to_owned(), command)].into(),
        ..ScaleRequest::default()
    }
}

pub(crate) fn count(task_id: &str, count: i32) -> ScaleRequest {
    ScaleRequest { task_id: task_id.to_owned(), worker_count: count, ..ScaleRequest::default() }
}

/// Lines of a file, sorted; none if it is not there.
pub(crate) fn lines(path: &Path) -> Vec<String> {
    let mut lines: Vec<_> = std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}
