//! Invariants A and C: what was printed is stored once, in order, byte for byte, though the log server is killed.

use std::fmt::Write;

use otto_proto::v1::ListLogWorkersRequest;
use otto_proto::v1::log_query_service_client::LogQueryServiceClient;
use otto_testkit::{LogIngest, Process, binary, eventually_progressing};
use tokio::process::Command;

use crate::system::finished_workers;

const LINES: u64 = 1_000_000;
/// After so many the job waits until it may go on: while the server is killed, it has not ended.
const BEFORE: u64 = 900_000;

/// Waits until so many lines are stored.
async fn stored(logs: &LogIngest, at_least: u64) -> anyhow::Result<()> {
    let queries = LogQueryServiceClient::new(logs.channel().await?);
    eventually_progressing(&format!("{at_least} lines are stored"), || {
        let mut queries = queries.clone();
        async move {
            let request = ListLogWorkersRequest { task_id: "million".to_owned() };
            let workers = queries.list_log_workers(request).await.map_err(|_| 0_usize)?.into_inner().workers;
            let lines = workers.first().and_then(|worker| worker.runs.first()).map_or(0, |run| run.lines);
            if lines >= at_least { Ok(()) } else { Err(lines as usize) }
        }
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_lines_survive_a_log_server_that_is_killed() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut logs = LogIngest::start(dir.path(), &[]).await?;
    let url = logs.grpc_url();
    let (spool, go) = (dir.path().join("spool"), dir.path().join("go"));
    let print = |first, last| format!("seq -f 'line %07.0f of a million' {first} {last}");
    let wait = format!("while [ ! -e {} ]; do sleep 0.01; done", go.display());
    let script = format!("{}; {wait}; {}", print(1, BEFORE), print(BEFORE + 1, LINES));
    let mut agent = Process::start(
        &binary("otto-worker")?,
        [
            "run",
            "--log-server",
            &url,
            "--task-id",
            "million",
            "--worker-id",
            "w-0",
            "--spool-dir",
            spool.to_str().expect("UTF-8"),
            // Small: the job is slowed when the server is away, so that it is killed in the middle.
            "--spool-bytes",
            "4MiB",
            "--tee",
            "false",
            "--",
            "sh",
            "-c",
            &script,
        ],
        &[],
        &dir.path().join("agent.log"),
    )?;
    for part in 1..=4 {
        stored(&logs, LINES * part / 6).await?;
        agent.check_running().expect("the job has not ended when the server is killed");
        logs.process.kill().await?;
        logs.restart().await?;
    }
    std::fs::write(&go, "")?;
    stored(&logs, LINES).await?;
    let status = agent.wait().await?;
    assert!(status.success(), "{status}: {}", agent.log_tail());

    let workers = finished_workers(&logs, "million", 1).await?;
    let run = &workers[0].runs[0];
    assert_eq!((workers[0].runs.len(), run.lines, run.complete, run.gaps.len()), (1, LINES, true, 0));

    let mut expected = String::new();
    for n in 1..=LINES {
        writeln!(expected, "line {n:07} of a million")?;
    }
    let arguments = ["--log-server", &logs.grpc_url(), "logs", "million", "--raw"];
    let raw = Command::new(binary("otto")?).args(arguments).output().await?;
    assert!(raw.status.success(), "otto logs --raw: {}", String::from_utf8_lossy(&raw.stderr));
    assert!(raw.stdout == expected.as_bytes(), "what is stored is not what was printed");
    let digest = {
        let mut digest = otto_proto::digest::Digest::new();
        digest.update(expected.as_bytes());
        digest.finish()
    };
    assert_eq!(run.finish.as_ref().map(|finish| finish.digest.as_ref()), Some(&digest[..]));
    Ok(())
}
