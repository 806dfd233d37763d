//! Invariant L: each worker is started exactly once, whatever is killed.

use std::collections::BTreeMap;
use std::fs;

use otto_proto::v1::{ListTasksRequest, TaskState};
use otto_testkit::eventually_progressing;

use crate::system::{STREAM, System, add, shell};

const EVENTS: usize = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_events_start_a_thousand_workers_though_the_scaler_is_killed() -> anyhow::Result<()> {
    let mut system = System::start(&["--max-workers", "32"]).await?;
    let starts = system.dir.path().join("starts");
    let script = shell(&format!("echo $OTTO_JOB_TASK_ID >> {}", starts.display()));
    let mut redis = system.redis.connect().await?;
    let count = || fs::read_to_string(&starts).unwrap_or_default().lines().count();

    for n in 0..EVENTS {
        add(&mut redis, &[("type", "scale_up"), ("task_id", &format!("task-{n}")), ("command", &script)]).await?;
    }
    // Killed where it hurts: as soon as it has begun, and in the middle of things, over and over.
    for part in 1..=6 {
        let at_least = EVENTS * part / 8;
        eventually_progressing(&format!("{at_least} workers have started"), || async {
            let count = count();
            (count >= at_least).then_some(()).ok_or(count)
        })
        .await;
        system.scaler.process.kill().await?;
        system.scaler.restart().await?;
    }
    system.scaler.until_ready().await?;

    let tasks = system.tasks().await?;
    let ended = eventually_progressing("every task has ended", || {
        let mut tasks = tasks.clone();
        async move {
            let mut all = Vec::new();
            let mut page_token = String::new();
            loop {
                let request = ListTasksRequest { page_size: 1_000, page_token, states: Vec::new() };
                let page = tasks.list_tasks(request).await.expect("ListTasks").into_inner();
                all.extend(page.tasks);
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            let live = |state| matches!(state, TaskState::Pending | TaskState::Running);
            let ended = all.iter().filter(|task| !live(task.state())).count();
            if (all.len(), ended) == (EVENTS, EVENTS) { Ok(all) } else { Err(ended) }
        }
    })
    .await;

    let mut started: BTreeMap<String, u32> = BTreeMap::new();
    for line in fs::read_to_string(&starts)?.lines() {
        *started.entry(line.to_owned()).or_default() += 1;
    }
    assert_eq!(started.len(), EVENTS, "tasks that started");
    let doubled: Vec<_> = started.iter().filter(|(_, times)| **times != 1).collect();
    assert!(doubled.is_empty(), "started more than once: {doubled:?}");
    let failed: Vec<_> = ended.iter().filter(|task| task.state() != TaskState::Succeeded).collect();
    assert!(failed.is_empty(), "not succeeded: {failed:?}");

    let pending: redis::Value = redis::cmd("XPENDING").arg(STREAM).arg("ottoscaler").query_async(&mut redis).await?;
    let redis::Value::Array(pending) = pending else { panic!("XPENDING answered {pending:?}") };
    assert_eq!(pending[0], redis::Value::Int(0), "entries read and never acknowledged");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_event_twice_runs_once() -> anyhow::Result<()> {
    let system = System::start(&[]).await?;
    let starts = system.dir.path().join("starts");
    let script = shell(&format!("echo $OTTO_JOB_WORKER_ID >> {}", starts.display()));
    let mut redis = system.redis.connect().await?;
    let event = [("type", "scale_up"), ("task_id", "twice"), ("pod_count", "2"), ("command", script.as_str())];
    add(&mut redis, &event).await?;
    add(&mut redis, &event).await?;
    system.ended("twice").await?;
    // Applied after the task has ended, too. A marker behind it tells when it has been looked at.
    add(&mut redis, &event).await?;
    add(&mut redis, &[("type", "scale_up"), ("task_id", "marker"), ("command", r#"["true"]"#)]).await?;
    system.ended("marker").await?;
    assert_eq!(fs::read_to_string(&starts)?.lines().count(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_may_go_away_and_come_back() -> anyhow::Result<()> {
    let mut system = System::start(&[]).await?;
    let mut redis = system.redis.connect().await?;
    add(&mut redis, &[("type", "scale_up"), ("task_id", "before"), ("command", r#"["true"]"#)]).await?;
    system.ended("before").await?;
    system.redis.kill().await?;
    system.redis.restart().await?;
    let mut redis = system.redis.connect().await?;
    add(&mut redis, &[("type", "scale_up"), ("task_id", "after"), ("command", r#"["true"]"#)]).await?;
    assert_eq!(system.ended("after").await?.state(), TaskState::Succeeded);
    Ok(())
}
