//! From before a line's printing to the moment a reader has it, acknowledged on disk.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use otto_proto::v1::ReadLogsRequest;
use otto_proto::v1::log_query_service_client::LogQueryServiceClient;
use otto_testkit::{LogIngest, Process, binary};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::job::MARK;
use crate::report::Report;
use crate::stats::{Sample, now_nanos, sync_file, sync_once};

const TASK: &str = "tail";
const WORKER: &str = "tail-0";

pub(crate) async fn run(out: &Path, rate: u64, seconds: u64) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let logs = LogIngest::start(dir.path(), &[]).await?;
    let myself = std::env::current_exe()?.display().to_string();
    let (url, spool) = (logs.grpc_url(), dir.path().join("spool").display().to_string());
    let (rate_text, seconds_text) = (rate.to_string(), seconds.to_string());
    let arguments = [
        "run",
        "--log-server",
        &url,
        "--task-id",
        TASK,
        "--worker-id",
        WORKER,
        "--spool-dir",
        &spool,
        "--tee",
        "false",
        "--",
        &myself,
        "job",
        "--rate",
        &rate_text,
        "--seconds",
        &seconds_text,
    ];
    let mut agent = Process::start(&binary("otto-worker")?, arguments, &[], &dir.path().join("agent.log"))?;
    let lines = rate * seconds;
    let grpc = tokio::spawn(read_grpc(logs.grpc_url(), lines));
    let sse = tokio::spawn(read_sse(logs.http_url(), lines));
    let mut syncs = Sample::default();
    let mut probe = sync_file(dir.path())?;
    while !(grpc.is_finished() && sse.is_finished()) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        syncs.push(sync_once(&mut probe)?);
        if agent.check_running().is_err() {
            break;
        }
    }
    let limit = Duration::from_secs(30);
    let grpc = tokio::time::timeout(limit, grpc).await???;
    let sse = tokio::time::timeout(limit, sse).await???;
    agent.wait().await?;

    let mut report = Report::new("tail");
    let sync = syncs.quantile(0.99);
    report.row("fdatasync of 4 KiB in this run, p50", syncs.quantile(0.5), "ms", None);
    report.row("fdatasync of 4 KiB in this run, p99", sync, "ms", None);
    for (name, sample) in [("gRPC", grpc), ("SSE", sse)] {
        if sample.len() as u64 != lines {
            bail!("the {name} reader saw {} of {lines} lines", sample.len());
        }
        report.row(format!("printed → seen by {name}, p50"), sample.quantile(0.5), "ms", Some("≤ 2".into()));
        let goal = format!("≤ {:.2}: 2 + 2 × fdatasync p99", 2.0 + 2.0 * sync);
        report.row(format!("printed → seen by {name}, p99"), sample.quantile(0.99), "ms", Some(goal));
    }
    report.write(out)
}

async fn read_grpc(url: String, lines: u64) -> anyhow::Result<Sample> {
    let mut client = LogQueryServiceClient::connect(url).await?;
    let request = ReadLogsRequest { task_id: TASK.into(), ..ReadLogsRequest::default() };
    let mut stream = loop {
        // The task is unknown until its agent has registered.
        match client.tail_logs(request.clone()).await {
            Ok(stream) => break stream.into_inner(),
            Err(status) if status.code() == tonic::Code::NotFound => tokio::time::sleep(Duration::from_millis(2)).await,
            Err(status) => bail!(status),
        }
    };
    let mut sample = Sample::default();
    while (sample.len() as u64) < lines {
        let Some(part) = stream.message().await? else { bail!("the stream ended early") };
        let now = now_nanos();
        for line in &part.lines {
            take_times(&line.message, now, &mut sample);
        }
    }
    Ok(sample)
}

async fn read_sse(url: String, lines: u64) -> anyhow::Result<Sample> {
    let address = url.trim_start_matches("http://").to_owned();
    let request = format!(
        "GET /api/v1/tasks/{TASK}/logs/stream HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n\r\n"
    );
    'again: loop {
        let mut socket = TcpStream::connect(&address).await?;
        socket.write_all(request.as_bytes()).await?;
        let mut sample = Sample::default();
        let mut buffer = vec![0; 1 << 16];
        let mut kept = Vec::new();
        let mut first = true;
        while (sample.len() as u64) < lines {
            let count = socket.read(&mut buffer).await?;
            let now = now_nanos();
            if count == 0 {
                bail!("the stream ended early");
            }
            if first && !buffer.starts_with(b"HTTP/1.1 200") {
                tokio::time::sleep(Duration::from_millis(2)).await;
                continue 'again;
            }
            first = false;
            kept.extend_from_slice(&buffer[..count]);
            let done = take_times(&kept, now, &mut sample);
            kept.drain(..done);
        }
        return Ok(sample);
    }
}

/// Adds now minus every marked time in `text`; returns how far it has looked.
fn take_times(text: &[u8], now: u64, sample: &mut Sample) -> usize {
    let mut done = 0;
    while let Some(start) = text[done..].iter().position(|byte| *byte == MARK).map(|at| done + at) {
        let Some(length) = text[start + 1..].iter().position(|byte| *byte == MARK) else { return start };
        let digits = std::str::from_utf8(&text[start + 1..start + 1 + length]).unwrap_or_default();
        if let Ok(printed) = digits.parse::<u64>() {
            sample.push(now.saturating_sub(printed) as f64 / 1e6);
        }
        done = start + length + 2;
    }
    text.len()
}
