//! A job's lines through agent and gRPC to the synced store.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::bail;
use otto_proto::v1::ListLogWorkersRequest;
use otto_proto::v1::log_query_service_client::LogQueryServiceClient;
use otto_testkit::{LogIngest, Process, binary};

use crate::job::LINE;
use crate::report::Report;
use crate::stats::{median, now_nanos};

const RUNS: usize = 3;

pub(crate) async fn run(out: &Path, lines: u64) -> anyhow::Result<()> {
    let mut report = Report::new("path");
    let (mut rates, mut ratios, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    let (mut agent_cpu, mut server_cpu) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let floor = floor(lines)?;
        let once = once(lines).await?;
        ratios.push(once.lines_per_second / floor);
        rates.push(once.lines_per_second);
        agent_cpu.push(once.agent_cpu_per_million);
        server_cpu.push(once.server_cpu_per_million);
        floors.push(floor);
    }
    let goal = Some("≥ 1,000,000".into());
    report.row("job → agent → gRPC → fsynced store, median of 3", median(rates), "lines/s", goal);
    report.row("floor: cat > file, one fdatasync, median of 3", median(floors), "lines/s", None);
    report.row("of floor", median(ratios), "", None);
    report.row("CPU of the agent and its job", median(agent_cpu), "s per M lines", None);
    report.row("CPU of the log server", median(server_cpu), "s per M lines", None);
    report.write(out)
}

struct Once {
    lines_per_second: f64,
    agent_cpu_per_million: f64,
    server_cpu_per_million: f64,
}

async fn once(lines: u64) -> anyhow::Result<Once> {
    let dir = tempfile::tempdir()?;
    let logs = LogIngest::start(dir.path(), &[]).await?;
    let begun = dir.path().join("begun");
    let myself = std::env::current_exe()?.display().to_string();
    let url = logs.grpc_url();
    let (spool, begun_text, count) = (dir.path().join("spool"), begun.display().to_string(), lines.to_string());
    let arguments = [
        "run",
        "--log-server",
        &url,
        "--task-id",
        "bench",
        "--worker-id",
        "bench-0",
        "--spool-dir",
        spool.to_str().unwrap_or_default(),
        "--tee",
        "false",
        "--",
        &myself,
        "job",
        "--lines",
        &count,
        "--begun",
        &begun_text,
    ];
    let children_before = children_cpu();
    let mut agent = Process::start(&binary("otto-worker")?, arguments, &[], &dir.path().join("agent.log"))?;
    let status = agent.wait().await?;
    let end = now_nanos();
    if !status.success() {
        bail!("the agent ended with {status}: {}", agent.log_tail());
    }
    let agent_cpu = children_cpu() - children_before;
    let server_cpu = process_cpu(logs.process.pid().as_raw_nonzero().get())?;
    let mut queries = LogQueryServiceClient::new(logs.channel().await?);
    let workers = queries.list_log_workers(ListLogWorkersRequest { task_id: "bench".into() }).await?.into_inner();
    let stored = workers.workers.first().and_then(|worker| worker.runs.first()).map_or(0, |run| run.lines);
    if stored != lines {
        bail!("{stored} of {lines} lines are stored");
    }
    let start: u64 = fs::read_to_string(&begun)?.parse()?;
    let millions = lines as f64 / 1e6;
    Ok(Once {
        lines_per_second: lines as f64 / ((end - start) as f64 / 1e9),
        agent_cpu_per_million: agent_cpu / millions,
        server_cpu_per_million: server_cpu / millions,
    })
}

/// What this machine can do at best: the same job into `cat > file`, and one fdatasync.
fn floor(lines: u64) -> anyhow::Result<f64> {
    let dir = tempfile::tempdir()?;
    let begun = dir.path().join("begun");
    let mut job = Command::new(std::env::current_exe()?)
        .args(["job", "--lines", &lines.to_string(), "--begun"])
        .arg(&begun)
        .stdout(Stdio::piped())
        .spawn()?;
    let file = File::create(dir.path().join("out"))?;
    let Some(pipe) = job.stdout.take() else { bail!("no pipe") };
    let cat = Command::new("cat").stdin(pipe).stdout(file.try_clone()?).status()?;
    rustix::fs::fdatasync(file.as_fd())?;
    let end = now_nanos();
    job.wait()?;
    if !cat.success() || file.metadata()?.len() != lines * LINE as u64 {
        bail!("cat lost lines");
    }
    let start: u64 = fs::read_to_string(&begun)?.parse()?;
    Ok(lines as f64 / ((end - start) as f64 / 1e9))
}

/// User and system seconds of children that have ended.
fn children_cpu() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    stat_seconds(&text, 13)
}

/// User and system seconds of a process.
fn process_cpu(pid: i32) -> anyhow::Result<f64> {
    Ok(stat_seconds(&fs::read_to_string(format!("/proc/{pid}/stat"))?, 11))
}

/// Two neighbouring fields of /proc/PID/stat, counted after the program's name, in seconds.
fn stat_seconds(text: &str, first: usize) -> f64 {
    let fields = text.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    let ticks: u64 = fields.split(' ').skip(first).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}
