//! From XADD to the worker's first instruction, process driver.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::bail;
use otto_testkit::{LogIngest, RedisServer, Scaler};
use redis::aio::MultiplexedConnection;

use crate::report::Report;
use crate::stats::{Sample, now_nanos};

const SINGLE: usize = 200;
const BURST: usize = 1_000;

pub(crate) async fn run(out: &Path) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    // As Redis ships, and as in docker/compose.yaml.
    let redis = RedisServer::start_syncing("everysec").await?;
    let logs = LogIngest::start(dir.path(), &[]).await?;
    let (redis_url, log_url) = (redis.url(), logs.grpc_url());
    let flags = ["--redis-url", &redis_url, "--log-server", &log_url, "--max-workers", "64"];
    let _scaler = Scaler::start(dir.path(), &flags).await?;
    let mut connection = redis.connect().await?;
    let mut report = Report::new("start");

    let myself = std::env::current_exe()?.display().to_string();
    let mark = dir.path().join("single");
    let mut sample = Sample::default();
    let mut bare = Sample::default();
    for n in 0..SINGLE {
        let added = now_nanos();
        add(&mut connection, &format!("single-{n}"), &command(&myself, &mark)).await?;
        let begun = *wait_marks(&mark, n + 1).await?.last().unwrap_or(&0);
        sample.push(begun.saturating_sub(added) as f64 / 1e6);
        bare.push(spawn_bare(&myself, &dir.path().join("bare"), n + 1).await?);
    }
    report.row("XADD to first instruction, p50", sample.quantile(0.5), "ms", Some("≤ 10".into()));
    report.row("XADD to first instruction, p99", sample.quantile(0.99), "ms", Some("≤ 30".into()));
    report.row("ceiling: bare spawn of the same program, p50", bare.quantile(0.5), "ms", None);
    report.row("ceiling: bare spawn of the same program, p99", bare.quantile(0.99), "ms", None);

    let mark = dir.path().join("burst");
    let start = now_nanos();
    let command_text = command(&myself, &mark);
    let mut pipe = redis::pipe();
    for n in 0..BURST {
        let fields = [("type", "scale_up"), ("task_id", &format!("burst-{n}")), ("command", command_text.as_str())];
        pipe.cmd("XADD").arg("otto:scale:events").arg("*").arg(&fields).ignore();
    }
    let _: () = pipe.query_async(&mut connection).await?;
    let marks = wait_marks(&mark, BURST).await?;
    let seconds = (marks.iter().max().copied().unwrap_or(start) - start) as f64 / 1e9;
    report.row("1,000 events at once, workers started", BURST as f64 / seconds, "/s", Some("≥ 200".into()));
    let start = Instant::now();
    let bare = dir.path().join("bare-burst");
    for n in 0..BURST {
        spawn_bare(&myself, &bare, n + 1).await?;
    }
    report.row("ceiling: bare spawns one after another", BURST as f64 / start.elapsed().as_secs_f64(), "/s", None);
    report.write(out)
}

fn command(program: &str, mark: &Path) -> String {
    serde_json::json!([program, "job", "--mark", mark]).to_string()
}

async fn add(connection: &mut MultiplexedConnection, task: &str, command: &str) -> anyhow::Result<()> {
    let fields = [("type", "scale_up"), ("task_id", task), ("command", command)];
    let _: String = redis::cmd("XADD").arg("otto:scale:events").arg("*").arg(&fields).query_async(connection).await?;
    Ok(())
}

/// The times in a file once it has so many.
async fn wait_marks(path: &Path, count: usize) -> anyhow::Result<Vec<u64>> {
    let start = Instant::now();
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        let marks: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
        if marks.len() >= count && text.ends_with('\n') {
            return Ok(marks);
        }
        if start.elapsed() > Duration::from_secs(60) {
            bail!("{} of {count} workers started within 60 s", marks.len());
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
}

/// Milliseconds from before the spawn to the program's first instruction.
async fn spawn_bare(program: &str, mark: &Path, count: usize) -> anyhow::Result<f64> {
    let start = now_nanos();
    let mut child = Command::new(program).args(["job", "--mark"]).arg(mark).stdin(Stdio::null()).spawn()?;
    child.wait()?;
    let begun = *wait_marks(mark, count).await?.last().unwrap_or(&start);
    Ok(begun.saturating_sub(start) as f64 / 1e6)
}
