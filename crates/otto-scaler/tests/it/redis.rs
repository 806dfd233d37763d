//! With a real Redis: events, dead letters, and Redis going away.

use otto_proto::v1::{ListDeadLettersRequest, ReplayDeadLetterRequest, TaskState};
use otto_testkit::{RedisServer, eventually};
use tonic::Code;
use tonic_types::StatusExt;

use crate::setup::{Fixture, count, lines, shell};

async fn add(redis: &RedisServer, fields: &[(&str, &str)]) -> String {
    let mut connection = redis.connect().await.unwrap();
    ::redis::cmd("XADD").arg("otto:scale:events").arg("*").arg(fields).query_async(&mut connection).await.unwrap()
}

#[tokio::test]
async fn events_run_and_bad_ones_are_kept() {
    let redis = RedisServer::start().await.unwrap();
    let url = redis.url();
    let mut f = Fixture::start(&["--redis-url", &url]).await;
    let out = f.dir.path().join("out");
    let command =
        serde_json::json!(["/bin/sh", "-c", format!("echo $OTTO_JOB_INDEX >> {}", out.display())]).to_string();
    let bad = add(&redis, &[("type", "scale_up"), ("pod_count", "many"), ("task_id", "bad")]).await;
    add(&redis, &[("type", "scale_up"), ("pod_count", "2"), ("task_id", "good"), ("command", &command)]).await;
    eventually("it is known", || async {
        let request = otto_proto::v1::GetTaskRequest { task_id: "good".into() };
        f.tasks.clone().get_task(request).await.ok()
    })
    .await;
    f.until_state("good", TaskState::Succeeded).await;
    assert_eq!(lines(&out), ["0", "1"]);
    let letters = eventually("there is a dead letter", || async {
        let letters = f.tasks.clone().list_dead_letters(ListDeadLettersRequest::default()).await.unwrap();
        Some(letters.into_inner().dead_letters).filter(|letters| !letters.is_empty())
    })
    .await;
    assert_eq!((letters.len(), letters[0].entry_id.as_str()), (1, bad.as_str()));
    assert!(letters[0].reason.contains("pod_count") && letters[0].reason.contains("many"), "{}", letters[0].reason);
    let replay = ReplayDeadLetterRequest { id: letters[0].id.clone() };
    let again = f.tasks.replay_dead_letter(replay).await.unwrap().into_inner().entry_id;
    assert_ne!(again, bad);
    let unknown = ReplayDeadLetterRequest { id: letters[0].id.clone() };
    assert_eq!(f.tasks.replay_dead_letter(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn redis_goes_away_and_comes_back() {
    let mut redis = RedisServer::start().await.unwrap();
    let url = redis.url();
    let mut f = Fixture::start(&["--redis-url", &url]).await;
    let go = f.dir.path().join("go");
    f.calls.scale_up(shell("t", 1, &format!("while [ ! -e {} ]; do sleep 0.05; done", go.display()))).await.unwrap();
    f.until_state("t", TaskState::Running).await;
    redis.kill().await.unwrap();
    let status = f.calls.scale_up(count("u", 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
    eventually("it says so", || async { (f.http("/readyz").await.0 == 503).then_some(()) }).await;
    assert_eq!(f.http("/livez").await.0, 200);
    // What is known is still told, and the job goes on to its end.
    assert_eq!(f.rows("t").await[0].status, "running");
    std::fs::write(&go, "").unwrap();
    eventually("its end is seen", || async { (f.rows("t").await[0].status == "succeeded").then_some(()) }).await;
    redis.restart().await.unwrap();
    eventually("it is ready again", || async { (f.http("/readyz").await.0 == 200).then_some(()) }).await;
    f.until_state("t", TaskState::Succeeded).await;
    f.calls.scale_up(shell("u", 1, "true")).await.unwrap();
    f.until_state("u", TaskState::Succeeded).await;
}

/// The owner is killed and comes back on its data, then ends: only then the other one goes on.
#[tokio::test]
async fn a_second_scaler_on_the_same_stream_stands_by() {
    let redis = RedisServer::start().await.unwrap();
    let url = redis.url();
    let mut one = Fixture::start(&["--redis-url", &url]).await;
    one.calls.scale_up(shell("first", 1, "true")).await.unwrap();
    let mut two = Fixture::start_unready(&["--redis-url", &url]).await;
    let stands_by = async |two: &Fixture| {
        eventually("the other stands by", async || {
            let (status, text) = two.http("/readyz").await;
            assert_eq!(status, 503, "{text}");
            (text.contains("another otto-scaler (") && text.contains("owns this stream")).then_some(())
        })
        .await;
    };
    stands_by(&two).await;
    assert_eq!(two.http("/livez").await.0, 200);
    let status = two.calls.scale_up(shell("refused", 1, "true")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");

    one.kill_and_restart().await;
    let out = one.dir.path().join("out");
    let command = serde_json::json!(["/bin/sh", "-c", format!("echo once >> {}", out.display())]).to_string();
    add(&redis, &[("type", "scale_up"), ("task_id", "event"), ("command", &command)]).await;
    eventually("the event is applied", || async {
        let request = otto_proto::v1::GetTaskRequest { task_id: "event".into() };
        one.tasks.clone().get_task(request).await.ok()
    })
    .await;
    one.until_state("event", TaskState::Succeeded).await;
    stands_by(&two).await;

    one.scaler.process.signal(rustix::process::Signal::TERM).unwrap();
    assert!(one.scaler.process.wait().await.unwrap().success());
    eventually("the other is ready", || async { (two.http("/readyz").await.0 == 200).then_some(()) }).await;
    two.calls.scale_up(shell("then", 1, "true")).await.unwrap();
    two.until_state("then", TaskState::Succeeded).await;
    two.until_state("event", TaskState::Succeeded).await;
    assert_eq!(lines(&out), ["once"]);
}
