//! A spool that is full.

use std::time::Duration;

use otto_proto::v1::{LogLevel, log_gap};

use crate::agent::{Setup, eventually, stderr};
use crate::container;
use crate::server::Server;

fn files_bytes(setup: &Setup) -> u64 {
    let runs = std::fs::read_dir(setup.spool()).into_iter().flatten().flatten();
    let files = runs.flat_map(|run| std::fs::read_dir(run.path()).into_iter().flatten().flatten());
    files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}

#[tokio::test]
async fn the_job_waits() {
    let mut server = Server::absent().await;
    let setup = Setup::new(&server.url()).flags(&[
        "--tee",
        "false",
        "--compression",
        "none",
        "--spool-bytes",
        "1MiB",
        "--drain-timeout",
        "20s",
    ]);
    let agent = setup.start_script("seq 1 500000; touch done");
    eventually("the spool is full", || (files_bytes(&setup) > 400_000).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(files_bytes(&setup) <= 1 << 20);
    assert!(!setup.path("done").exists(), "the job did not wait");
    server.appear().await;
    let output = agent.output().await;
    assert!(output.status.success());
    assert!(stderr(&output).contains("--on-full block"), "{}", stderr(&output));
    let run = server.complete().await;
    assert_eq!(run.lines.len(), 500_000);
    assert!(run.lines.iter().all(|line| line.bytes == format!("{}\n", line.sequence).as_bytes()));
}

#[tokio::test]
async fn a_job_that_waits_can_be_stopped_and_what_it_printed_is_kept() {
    let mut server = Server::absent().await;
    let setup = Setup::new(&server.url()).flags(&["--tee", "false", "--compression", "none", "--spool-bytes", "1MiB"]);
    // Of the agent, not of the drain.
    let setup = setup.run_flags(&["--drain-timeout", "300ms"]);
    let agent = setup.start_script("seq 1 500000; touch done");
    eventually("the spool is full", || (files_bytes(&setup) > 400_000).then_some(())).await;
    agent.signal(rustix::process::Signal::TERM);
    let output = agent.output().await;
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    assert!(files_bytes(&setup) <= 1 << 20);
    server.appear().await;
    assert!(setup.env("OTTO_DRAIN_TIMEOUT", "60s").drain().await.status.success());
    let run = server.complete().await;
    let text = String::from_utf8(run.text(None)).unwrap();
    let whole: String = (1..=500_000).map(|number| format!("{number}\n")).collect();
    assert!(whole.starts_with(&text) && text.len() > 400_000);
}

#[tokio::test]
async fn lines_are_dropped_and_the_gap_is_told() {
    let mut server = Server::absent().await;
    let flags = [
        "--tee",
        "false",
        "--compression",
        "none",
        "--spool-bytes",
        "1MiB",
        "--on-full",
        "drop",
        "--drain-timeout",
        "20s",
    ];
    let setup = Setup::new(&server.url()).flags(&flags);
    let agent = setup
        .start_script("seq 1 500000; echo important >&2; printf unended >&2; touch done; while [ ! -e go ]; do sleep 0.01; done; echo end");
    eventually("the job goes on", || setup.path("done").exists().then_some(())).await;
    assert!(files_bytes(&setup) <= 1 << 20);
    server.appear().await;
    eventually("the spool is sent", || (files_bytes(&setup) < 300_000).then_some(())).await;
    std::fs::write(setup.path("go"), "").unwrap();
    let output = agent.output().await;
    assert!(output.status.success());
    assert!(stderr(&output).contains("were dropped"), "{}", stderr(&output));
    let run = server.complete().await;
    // Lines below level error first.
    let messages = run.messages();
    assert!(messages.contains(&"important".to_owned()) && messages.contains(&"unended".to_owned()));
    assert!(messages.contains(&"end".to_owned()));
    assert_eq!(run.lines.iter().filter(|line| line.level == LogLevel::Error).count(), 2);
    let missing: u64 = run.gaps.iter().map(|gap| gap.last_sequence - gap.first_sequence + 1).sum();
    assert!(run.gaps.iter().all(|gap| gap.reason() == log_gap::Reason::SpoolFull));
    assert!(missing > 0);
    assert_eq!(missing + run.lines.len() as u64, 500_003);
}

/// The disk is full of what the log server has: that is no reason to wait.
#[tokio::test]
async fn a_disk_that_is_full_of_what_was_acknowledged_has_room() {
    let server = Server::start().await;
    let setup = Setup::new(&server.url()).flags(&["--tee", "false", "--compression", "none"]);
    std::fs::create_dir(setup.spool()).unwrap();
    let mut wrapper = container::unshare(&["-m"]);
    let mount = format!("mount -t tmpfs -o size=3m none {} && exec \"$@\"", setup.spool().display());
    wrapper.extend(["sh".to_owned(), "-c".to_owned(), mount, "sh".to_owned()]);
    let setup = setup.wrapper(&wrapper);
    let output = setup.run_script("seq 1 1000000").await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(server.complete().await.lines.len(), 1_000_000);
}
