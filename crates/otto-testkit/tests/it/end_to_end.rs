//! From an event to lines a person reads, and the life of tasks.

use otto_proto::v1::TaskState;
use otto_testkit::eventually;

use crate::system::{System, add, messages, shell};

#[tokio::test(flavor = "multi_thread")]
async fn an_event_becomes_workers_whose_lines_are_stored() -> anyhow::Result<()> {
    let system = System::start(&[]).await?;
    let mut redis = system.redis.connect().await?;
    let script = shell("echo out of $OTTO_JOB_INDEX; echo err of $OTTO_JOB_INDEX >&2; env | grep '^OTTO_' | sort");
    // The older form of the earlier system.
    let event = [
        ("type", "scale_up"),
        ("job_id", "hello"),
        ("target_replicas", "3"),
        ("command", &script),
        ("repository", "acme/shop"),
        ("color", "blue"),
    ];
    add(&mut redis, &event).await?;
    let task = system.ended("hello").await?;
    assert_eq!((task.state(), task.succeeded_workers), (TaskState::Succeeded, 3));
    assert_eq!(task.metadata.get("color").map(String::as_str), Some("blue"));
    let workers = system.finished_workers("hello", 3).await?;
    assert!(workers.iter().all(|worker| worker.runs[0].complete), "{workers:?}");
    let lines = messages(&system.logs, "hello").await?;
    for index in 0..3 {
        assert!(lines.contains(&format!("out of {index}")), "{lines:?}");
        assert!(lines.contains(&format!("err of {index}")), "{lines:?}");
    }
    assert!(lines.contains(&"OTTO_JOB_REPOSITORY=acme/shop".to_owned()), "{lines:?}");
    let foreign: Vec<_> =
        lines.iter().filter(|line| line.starts_with("OTTO_") && !line.starts_with("OTTO_JOB_")).collect();
    assert!(foreign.is_empty(), "the agent's own settings reach the job: {foreign:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_and_follow_ends_with_the_result_of_the_task() -> anyhow::Result<()> {
    let system = System::start(&[]).await?;
    let good = system.otto(&["submit", "--task-id", "good", "-f", "--", "sh", "-c", "echo fine"]).await?;
    assert_eq!(good.status.code(), Some(0), "{}", String::from_utf8_lossy(&good.stderr));
    assert_eq!(String::from_utf8_lossy(&good.stdout), "fine\n");
    let bad = system.otto(&["submit", "--task-id", "bad", "-f", "--", "sh", "-c", "echo broken; exit 3"]).await?;
    assert_eq!(bad.status.code(), Some(1), "{}", String::from_utf8_lossy(&bad.stderr));
    assert_eq!(String::from_utf8_lossy(&bad.stdout), "broken\n");
    let none = system.otto(&["logs", "nobody"]).await?;
    assert_eq!(none.status.code(), Some(3), "{}", String::from_utf8_lossy(&none.stderr));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_start_says_why_where_its_log_would_be() -> anyhow::Result<()> {
    let system = System::start(&[]).await?;
    let mut redis = system.redis.connect().await?;
    let command = r#"["/no/such/program"]"#;
    add(&mut redis, &[("type", "scale_up"), ("task_id", "missing"), ("command", command)]).await?;
    let task = system.ended("missing").await?;
    assert_eq!(task.state(), TaskState::Failed);
    assert!(task.error_message.contains("/no/such/program"), "{}", task.error_message);
    let queries = system.queries().await?;
    let told = eventually("the log server knows why", || {
        let mut queries = queries.clone();
        async move {
            let request = otto_proto::v1::ListLogWorkersRequest { task_id: "missing".to_owned() };
            let events = queries.list_log_workers(request).await.ok()?.into_inner().events;
            events.into_iter().map(|event| event.message).find(|message| message.contains("/no/such/program"))
        }
    })
    .await;
    assert!(told.len() > "/no/such/program".len(), "{told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn scale_down_stops_the_highest_and_cancel_stops_all() -> anyhow::Result<()> {
    let system = System::start(&[]).await?;
    let mut redis = system.redis.connect().await?;
    let script = shell("echo started; trap 'echo told to stop; exit 0' TERM; while :; do sleep 0.05; done");
    let up = [("type", "scale_up"), ("task_id", "long"), ("pod_count", "3"), ("command", script.as_str())];
    add(&mut redis, &up).await?;
    let running = |wanted: u32| {
        let tasks = system.tasks();
        async move {
            let mut tasks = tasks.await.expect("scaler");
            let task = tasks.get_task(otto_proto::v1::GetTaskRequest { task_id: "long".to_owned() }).await.ok()?;
            (task.into_inner().running_workers == wanted).then_some(())
        }
    };
    eventually("three workers run", || running(3)).await;
    add(&mut redis, &[("type", "scale_down"), ("task_id", "long"), ("pod_count", "1")]).await?;
    eventually("one worker runs", || running(1)).await;
    let rows = system.otto(&["--output", "json", "workers", "long"]).await?;
    let text = String::from_utf8_lossy(&rows.stdout);
    assert!(text.contains("-0-1"), "the lowest index goes on: {text}");
    let out = system.otto(&["cancel", "long"]).await?;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(system.ended("long").await?.state(), TaskState::Cancelled);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_tried_again_as_often_as_asked() -> anyhow::Result<()> {
    let system = System::start(&["--retry-backoff-min", "10ms"]).await?;
    let mut redis = system.redis.connect().await?;
    let script = shell("echo attempt $OTTO_JOB_ATTEMPT; [ $OTTO_JOB_ATTEMPT -ge 3 ]");
    let event = [("type", "scale_up"), ("task_id", "third"), ("max_attempts", "5"), ("command", script.as_str())];
    add(&mut redis, &event).await?;
    assert_eq!(system.ended("third").await?.state(), TaskState::Succeeded);
    system.finished_workers("third", 3).await?;
    let mut lines = messages(&system.logs, "third").await?;
    lines.sort();
    assert_eq!(lines, ["attempt 1", "attempt 2", "attempt 3"]);
    Ok(())
}
