//! A worker's Pod as two processes: what the job's agent had spooled when it was killed is stored once, and what is missing
//! is said.

use std::path::Path;

use anyhow::Context;
use otto_proto::v1::log_gap::Reason;
use otto_testkit::{LogIngest, Process, binary, eventually};
use rustix::process::Signal;
use tokio::process::Command;

use crate::system::finished_workers;

const LINES: u64 = 200_000;

/// Whether a segment of a spool holds this text. (Blocks are not compressed here.)
fn is_spooled(spool: &Path, text: &str) -> bool {
    let runs = std::fs::read_dir(spool).into_iter().flatten().flatten();
    let files = runs.flat_map(|run| std::fs::read_dir(run.path()).into_iter().flatten().flatten());
    let mut segments = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "seg"));
    segments.any(|file| {
        std::fs::read(file.path()).is_ok_and(|bytes| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_while_the_log_server_is_away_loses_nothing_it_had_spooled() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut logs = LogIngest::start(dir.path(), &[]).await?;
    let url = logs.grpc_url();
    let volume = dir.path().join("otto");
    std::fs::create_dir(&volume)?;
    let (bin, run, spool) = (volume.join("bin"), volume.join("run"), volume.join("run/spool"));
    let (run_text, spool_text) = (run.to_str().context("UTF-8")?, spool.to_str().context("UTF-8")?);
    let all = dir.path().join("all");
    let ids = ["--task-id", "killed", "--worker-id", "w-0", "--run-dir", run_text, "--spool-dir", spool_text];
    let shared = [&ids[..], &["--log-server", &url]].concat();

    // The first container.
    let agent_image = binary("otto-worker")?;
    let mut drainer = Process::start(
        &agent_image,
        [&["drain", "--wait"][..], &shared].concat(),
        &[],
        &dir.path().join("drainer.log"),
    )?;
    let installed = Command::new(&agent_image).arg("install").arg(&bin).status().await?;
    assert!(installed.success());
    // The second one, by the program that was installed for it. It prints in the middle of everything.
    let half = LINES / 2;
    let script = format!(
        "seq {half}; while [ ! -e {0}.go ]; do sleep 0.01; done; seq {1} {LINES}; touch {0}; exec sleep 1000",
        all.display(),
        half + 1
    );
    let run_flags = ["--tee", "false", "--batch-bytes", "16KiB", "--compression", "none", "--exit-file", "/dev/null"];
    let mut agent = Process::start(
        &bin.join("otto-worker"),
        [&["run"][..], &shared, &run_flags, &["--", "sh", "-c", &script]].concat(),
        &[],
        &dir.path().join("agent.log"),
    )?;
    let queries = otto_proto::v1::log_query_service_client::LogQueryServiceClient::new(logs.channel().await?);
    eventually("the first half is stored", || {
        let mut queries = queries.clone();
        async move {
            let request = otto_proto::v1::ListLogWorkersRequest { task_id: "killed".to_owned() };
            let workers = queries.list_log_workers(request).await.ok()?.into_inner().workers;
            (workers.first()?.runs.first()?.lines >= half).then_some(())
        }
    })
    .await;
    logs.process.kill().await?;
    std::fs::write(all.with_extension("go"), "")?;
    eventually("all is printed", || async { all.exists().then_some(()) }).await;
    let last = format!("{LINES}\n");
    eventually("and spooled", || async { is_spooled(&spool, &last).then_some(()) }).await;
    agent.signal(Signal::KILL)?;
    let _ = agent.wait().await?;
    eventually("the end is noted", || async { run.join("exit.json").exists().then_some(()) }).await;
    drainer.check_running().expect("the log server is away");
    logs.restart().await?;
    let status = drainer.wait().await?;
    assert!(status.success(), "{status}: {}", drainer.log_tail());
    assert!(run.join("drained").exists());

    let workers = finished_workers(&logs, "killed", 1).await?;
    let stored = &workers[0].runs[0];
    // All of it; only what may have come after it is unknown.
    assert_eq!((workers[0].runs.len(), stored.lines, stored.complete), (1, LINES, false));
    let gap = &stored.gaps[0];
    assert_eq!(
        (stored.gaps.len(), gap.reason(), gap.first_sequence, gap.last_sequence),
        (1, Reason::AgentLost, LINES + 1, 0)
    );
    let finish = stored.finish.as_ref().context("an end")?;
    assert!(finish.exit_code.is_none() && finish.error_message.contains("nobody knows"), "{finish:?}");
    let logs_command = ["--log-server", &url, "logs", "killed"];
    let raw = Command::new(binary("otto")?).args(logs_command).arg("--raw").output().await?;
    let expected: String = (1..=LINES).map(|number| format!("{number}\n")).collect();
    assert!(raw.stdout == expected.as_bytes(), "what is stored is not what was printed");
    let read = Command::new(binary("otto")?).args(logs_command).args(["--tail", "3"]).output().await?;
    let text = [read.stdout, read.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("killed") && text.contains(&LINES.to_string()), "a reader is told: {text}");
    Ok(())
}
