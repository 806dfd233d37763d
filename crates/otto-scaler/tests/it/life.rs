//! Jobs from their start to their end, with the scaler killed in between.

use std::time::Duration;

use otto_proto::v1::watch_workers_response::Kind;
use otto_proto::v1::worker_event::Type;
use otto_proto::v1::{FailureClass, ScaleRequest, TaskState, WatchWorkersRequest};
use otto_testkit::eventually;

use crate::setup::{Fixture, count, lines, shell};

#[tokio::test]
async fn a_job_runs_once_per_index_and_is_watched() {
    let mut f = Fixture::start(&[]).await;
    let out = f.dir.path().join("out");
    let script = format!("echo $OTTO_JOB_INDEX $OTTO_JOB_ATTEMPT $OTTO_JOB_REPOSITORY $GREETING >> {}", out.display());
    let mut request = shell("t", 3, &script);
    request.repository = "r".into();
    request.build_config.insert("env.GREETING".into(), "hello".into());
    // Held up, so that the watch is there before the jobs.
    request.build_config.insert("command".into(), {
        let script = format!("while [ ! -e {0}.go ]; do sleep 0.02; done; {script}", out.display());
        serde_json::json!(["/bin/sh", "-c", script]).to_string()
    });
    let names = f.calls.scale_up(request).await.unwrap().into_inner().worker_pod_names;
    let watch = WatchWorkersRequest { task_id: "t".into() };
    let mut watch = f.tasks.watch_workers(watch).await.unwrap().into_inner();
    f.until_state("t", TaskState::Running).await;
    std::fs::write(format!("{}.go", out.display()), "").unwrap();
    let mut succeeded = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let ended = loop {
        match watch.message().await.unwrap().expect("it ends with the task's end").kind.unwrap() {
            Kind::Event(event) => {
                assert!(seen.insert(event.event_id.clone()), "told twice: {event:?}");
                assert_eq!(event.context.get("repository").map(String::as_str), Some("r"));
                if event.r#type() == Type::Succeeded {
                    succeeded.push(event.worker_id);
                }
            }
            Kind::TaskEnded(task) => break task,
            Kind::Skipped(count) => panic!("{count} skipped"),
        }
    };
    assert!(watch.message().await.unwrap().is_none());
    succeeded.sort();
    assert_eq!(succeeded, names);
    assert_eq!((ended.state(), ended.succeeded_workers), (TaskState::Succeeded, 3));
    assert_eq!(lines(&out), ["0 1 r hello", "1 1 r hello", "2 1 r hello"]);
}

#[tokio::test]
async fn failures_are_tried_again_as_often_as_they_may() {
    let mut f = Fixture::start(&["--retry-backoff-min", "20ms"]).await;
    let out = f.dir.path().join("out");
    let script = format!("echo $OTTO_JOB_ATTEMPT >> {}; exit 7", out.display());
    let mut request = shell("t", 1, &script);
    request.build_config.insert("max_attempts".into(), "3".into());
    f.calls.scale_up(request).await.unwrap();
    let task = f.until_state("t", TaskState::Failed).await;
    assert_eq!(lines(&out), ["1", "2", "3"]);
    assert!(task.error_message.contains('7'), "{}", task.error_message);
    assert!(f.metric(r#"otto_scaler_retries_total{class="exited"} 2"#).await);

    // What does not exist is not tried again.
    let missing = ScaleRequest {
        build_config: [
            ("command".to_owned(), r#"["/no/such/program"]"#.to_owned()),
            ("max_attempts".to_owned(), "3".to_owned()),
        ]
        .into(),
        ..count("missing", 1)
    };
    f.calls.scale_up(missing).await.unwrap();
    let task = f.until_state("missing", TaskState::Failed).await;
    assert!(task.error_message.contains("/no/such/program"), "{}", task.error_message);
    assert!(f.rows("missing").await[0].pod_name.ends_with("-1"));
}

#[tokio::test]
async fn a_deadline_ends_a_job() {
    let mut f = Fixture::start(&["--grace", "200ms"]).await;
    let mut request = shell("t", 1, "trap '' TERM; while :; do sleep 0.1; done");
    request.build_config.insert("timeout_seconds".into(), "1".into());
    f.calls.scale_up(request).await.unwrap();
    f.until_state("t", TaskState::Failed).await;
    let watch = WatchWorkersRequest { task_id: "t".into() };
    let mut watch = f.tasks.watch_workers(watch).await.unwrap().into_inner();
    let mut classes = Vec::new();
    while let Some(message) = watch.message().await.unwrap() {
        if let Some(Kind::Event(event)) = message.kind {
            classes.push(event.failure_class());
        }
    }
    assert!(classes.contains(&FailureClass::Deadline), "{classes:?}");
}

#[tokio::test]
async fn limits_and_scaling() {
    let mut f = Fixture::start(&["--max-workers", "3", "--max-workers-per-repository", "2"]).await;
    let mut first = shell("first", 4, "sleep 1000");
    first.repository = "r".into();
    f.calls.scale_up(first).await.unwrap();
    f.calls.scale_up(shell("second", 2, "sleep 1000")).await.unwrap();
    let running =
        async |f: &Fixture, task: &str| f.rows(task).await.iter().filter(|row| row.status == "running").count();
    eventually("all places are taken", || async {
        (running(&f, "first").await == 2 && running(&f, "second").await == 1).then_some(())
    })
    .await;
    // From the highest index: those that wait.
    let down = f.calls.scale_down(count("first", 2)).await.unwrap().into_inner();
    assert_eq!(down.processed_count, 2);
    assert!(down.worker_pod_names.iter().all(|name| name.ends_with("-2-1") || name.ends_with("-3-1")));
    // A cancelled task makes room.
    f.calls.scale_down(count("first", 0)).await.unwrap();
    f.until_state("first", TaskState::Cancelled).await;
    eventually("the other one starts", || async { (running(&f, "second").await == 2).then_some(()) }).await;
    f.calls.scale_down(count("second", 0)).await.unwrap();
    f.until_state("second", TaskState::Cancelled).await;
}

#[tokio::test]
async fn killed_again_and_again() {
    let mut f = Fixture::start(&["--max-workers", "20"]).await;
    let out = f.dir.path().join("out");
    let script = format!("echo $OTTO_JOB_WORKER_ID >> {}; sleep 0.1", out.display());
    let mut expected = Vec::new();
    for round in 0..6 {
        for task in 0..10 {
            let answer = f.calls.scale_up(shell(&format!("t-{round}-{task}"), 2, &script)).await.unwrap();
            expected.extend(answer.into_inner().worker_pod_names);
        }
        tokio::time::sleep(Duration::from_millis(20 * round)).await;
        f.kill_and_restart().await;
    }
    for round in 0..6 {
        for task in 0..10 {
            f.until_state(&format!("t-{round}-{task}"), TaskState::Succeeded).await;
        }
    }
    expected.sort();
    assert_eq!(lines(&out), expected);
}
