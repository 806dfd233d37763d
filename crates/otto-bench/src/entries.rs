//! One entry per message: the log server beside a server that only acknowledges.

use std::path::Path;
use std::pin::Pin;
use std::time::Instant;

use anyhow::bail;
use futures::{Stream, StreamExt};
use otto_proto::v1::log_streaming_service_client::LogStreamingServiceClient;
use otto_proto::v1::log_streaming_service_server::{LogStreamingService, LogStreamingServiceServer};
use otto_proto::v1::{
    LogBatchRequest, LogBatchResponse, LogEntry, LogResponse, RegistrationResponse, UploadLogsResponse,
    WorkerRegistration,
};
use otto_testkit::LogIngest;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

use crate::report::Report;
use crate::stats::median;

const ENTRIES: u64 = 500_000;
const RUNS: usize = 5;

pub(crate) async fn run(out: &Path) -> anyhow::Result<()> {
    let mut report = Report::new("entries");
    let mut echo = tokio::process::Command::new(std::env::current_exe()?)
        .arg("echo-server")
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let Some(stdout) = echo.stdout.take() else { bail!("no pipe") };
    let Some(address) = BufReader::new(stdout).lines().next_line().await? else { bail!("the echo server ended") };
    let dir = tempfile::tempdir()?;
    let logs = LogIngest::start(dir.path(), &[]).await?;
    let (mut echoed, mut stored, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..RUNS {
        let ceiling = send(&address, n).await?;
        let ours = send(&logs.grpc_url(), n).await?;
        echoed.push(ceiling);
        stored.push(ours);
        ratios.push(ours / ceiling);
    }
    report.row("StreamLogs, one entry per message, median of 5", median(stored), "lines/s", None);
    report.row("ceiling: a server that only acknowledges", median(echoed), "lines/s", None);
    report.row("ratio, median of 5 pairs", median(ratios), "", Some("≥ 0.7".into()));
    echo.kill().await?;
    report.write(out)
}

/// Lines a second until the last one is answered.
async fn send(url: &str, n: usize) -> anyhow::Result<f64> {
    let mut client = LogStreamingServiceClient::connect(url.to_owned()).await?;
    let worker_id = format!("entries-{n}");
    let registration =
        WorkerRegistration { worker_id: worker_id.clone(), task_id: "entries".into(), ..WorkerRegistration::default() };
    client.register_worker(registration).await?;
    let entry = LogEntry {
        worker_id,
        task_id: "entries".into(),
        timestamp: "2026-01-01T00:00:00.000000001Z".into(),
        level: "INFO".into(),
        source: "stdout".into(),
        message: "x".repeat(99),
        ..LogEntry::default()
    };
    let start = Instant::now();
    let entries = tokio_stream::iter(0..ENTRIES).map(move |_| entry.clone());
    let mut answers = client.stream_logs(entries).await?.into_inner();
    let mut count = 0;
    while let Some(answer) = answers.message().await? {
        count += 1;
        if answer.status != 0 {
            bail!("{answer:?}");
        }
        if count == ENTRIES {
            break;
        }
    }
    if count != ENTRIES {
        bail!("{count} of {ENTRIES} entries were answered");
    }
    Ok(ENTRIES as f64 / start.elapsed().as_secs_f64())
}

/// The ceiling: acknowledges each entry and keeps nothing.
pub(crate) async fn echo_server() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .add_service(LogStreamingServiceServer::new(Echo))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await?;
    Ok(())
}

struct Echo;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl LogStreamingService for Echo {
    type StreamLogsStream = Answers<LogResponse>;
    type StreamLogBatchesStream = Answers<LogBatchResponse>;

    async fn register_worker(&self, _: Request<WorkerRegistration>) -> Result<Response<RegistrationResponse>, Status> {
        Ok(Response::new(RegistrationResponse::default()))
    }

    async fn stream_logs(
        &self,
        request: Request<Streaming<LogEntry>>,
    ) -> Result<Response<Self::StreamLogsStream>, Status> {
        let mut sequence = 0;
        let answers = request.into_inner().map(move |entry| {
            entry?;
            sequence += 1;
            Ok(LogResponse { sequence, ..LogResponse::default() })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn stream_log_batches(
        &self,
        _: Request<Streaming<LogBatchRequest>>,
    ) -> Result<Response<Self::StreamLogBatchesStream>, Status> {
        Err(Status::unimplemented("only StreamLogs"))
    }

    async fn upload_logs(
        &self,
        _: Request<Streaming<LogBatchRequest>>,
    ) -> Result<Response<UploadLogsResponse>, Status> {
        Err(Status::unimplemented("only StreamLogs"))
    }
}
