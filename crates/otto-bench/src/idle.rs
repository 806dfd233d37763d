//! Resident memory of programs that have nothing to do, and what they take on disk.

use std::path::Path;
use std::time::Duration;

use otto_testkit::{LogIngest, Process, RedisServer, Scaler, binary};

use crate::report::Report;

/// Long enough for what a program does at its start.
const SETTLE: Duration = Duration::from_secs(3);

pub(crate) async fn run(out: &Path) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let redis = RedisServer::start().await?;
    let logs = LogIngest::start(dir.path(), &[]).await?;
    let (redis_url, log_url) = (redis.url(), logs.grpc_url());
    let scaler = Scaler::start(dir.path(), &["--redis-url", &redis_url, "--log-server", &log_url]).await?;
    let spool = dir.path().join("spool").display().to_string();
    let arguments = [
        "run",
        "--log-server",
        &log_url,
        "--task-id",
        "idle",
        "--worker-id",
        "idle-0",
        "--spool-dir",
        &spool,
        "--",
        "sleep",
        "60",
    ];
    let mut agent = Process::start(&binary("otto-worker")?, arguments, &[], &dir.path().join("agent.log"))?;
    tokio::time::sleep(SETTLE).await;
    let mut report = Report::new("idle");
    for (name, process, goal) in
        [("otto-worker", &agent, 8), ("otto-log-ingest", &logs.process, 25), ("otto-scaler", &scaler.process, 20)]
    {
        let megabytes = process.resident_bytes()? as f64 / 1e6;
        report.row(format!("{name}, resident"), megabytes, "MB", Some(format!("≤ {goal}")));
    }
    agent.signal(rustix::process::Signal::TERM)?;
    agent.wait().await?;
    for name in ["otto-worker", "otto-log-ingest", "otto-scaler", "otto"] {
        let bytes = binary(name)?.metadata()?.len() as f64 / 1e6;
        report.row(format!("{name}, on disk (not static)"), bytes, "MB", None);
    }
    report.write(out)
}
