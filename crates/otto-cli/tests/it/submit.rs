//! `otto submit`, with and without `-f`.

use std::collections::BTreeMap;
use std::sync::Arc;

use otto_proto::v1::scale_response::Status as ScaleStatus;
use otto_proto::v1::worker_event::Type;
use otto_proto::v1::{FailureClass, ReadLogsResponse, ScaleResponse, TaskState, WorkerEvent};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::Notify;

use super::servers::*;

#[tokio::test]
async fn everything_is_sent_and_the_tasks_name_printed() {
    let servers = Servers::start().await;
    let mut command = servers.command(&[
        "submit",
        "-n",
        "3",
        "--image",
        "busybox",
        "--task-id",
        "build-1",
        "-e",
        "A=1",
        "--env",
        "B=x=y",
        "--timeout",
        "1500ms",
        "--max-attempts",
        "2",
        "--priority",
        "-5",
        "--repository",
        "acme/shop",
        "--",
        "make",
        "-j",
        "test",
    ]);
    command.env("TRACEPARENT", "00-1-2-01");
    let said = run(command).await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "build-1\n"), "{said:?}");
    let request = servers.set(|state| state.ups.remove(0));
    assert_eq!((request.task_id.as_str(), request.worker_count), ("build-1", 3));
    assert_eq!((request.repository.as_str(), request.triggered_by.as_str()), ("acme/shop", "otto"));
    assert_eq!(request.metadata["traceparent"], "00-1-2-01");
    let config: BTreeMap<&str, &str> = request.build_config.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expected = [
        ("command", r#"["make","-j","test"]"#),
        ("env.A", "1"),
        ("env.B", "x=y"),
        ("image", "busybox"),
        ("max_attempts", "2"),
        ("priority", "-5"),
        ("timeout_seconds", "2"),
    ];
    assert_eq!(config, BTreeMap::from(expected));
}

#[tokio::test]
async fn a_task_without_a_name_gets_one() {
    let servers = Servers::start().await;
    let said = servers.otto(&["submit", "true"]).await;
    let sent = servers.set(|state| state.ups[0].task_id.clone());
    assert!(sent.starts_with("task-") && said.out == format!("{sent}\n"), "{said:?}");
    let said = servers.otto(&["--output", "json", "submit", "true"]).await;
    let json: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((json["status"].as_str(), json["task_id"].is_string()), (Some("success"), true), "{json}");
}

#[tokio::test]
async fn what_the_scaler_refuses_is_a_sentence() {
    let servers = Servers::start().await;
    let refused = tonic::Status::invalid_argument("worker_count: 2000 is more than --max-count (1000)");
    servers.set(|state| state.scale = Some(Err(refused)));
    let said = servers.otto(&["submit", "-n", "2000", "true"]).await;
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("worker_count: 2000 is more") && said.err.contains(&servers.url()), "{said:?}");
    servers.set(|state| state.scale = Some(Err(tonic::Status::unavailable("task store is not available: refused"))));
    let said = servers.otto(&["submit", "true"]).await;
    assert_eq!(said.code, Some(4), "{said:?}");
    assert!(said.err.contains("not available: task store is not available"), "{said:?}");
}

fn ending(servers: &Servers, state: TaskState, why: &str) -> Arc<Notify> {
    let notify = Arc::new(Notify::new());
    let mut ended = task("t", state, 1);
    ended.error_message = why.to_owned();
    servers.set(|state| {
        state.tasks = vec![task("t", TaskState::Running, 1)];
        state.ending = Some((Arc::clone(&notify), ended));
    });
    notify
}

#[tokio::test]
async fn following_ends_with_the_result_of_the_task() {
    let servers = Servers::start().await;
    for (state, why, code) in
        [(TaskState::Succeeded, "", 0), (TaskState::Failed, "exit code 3", 1), (TaskState::Cancelled, "", 1)]
    {
        ending(&servers, state, why).notify_one();
        let steps = vec![Step::Part(lines("otto-t-1-0-1", 1..=2)), status(vec![complete("otto-t-1-0-1", 2)])];
        servers.set(|state| state.streams = vec![steps].into());
        let said = servers.otto(&["submit", "--task-id", "t", "-f", "true"]).await;
        assert_eq!((said.code, said.out.as_str()), (Some(code), "line 1\nline 2\n"), "{said:?}");
        assert!(said.err.contains("complete, 2 of 2 lines"), "{said:?}");
        assert!(said.err.contains(why), "{said:?}");
        assert_eq!(said.err.contains("task t failed"), state == TaskState::Failed, "{said:?}");
    }
}

#[tokio::test]
async fn several_workers_are_told_apart_from_the_first_line_on() {
    let servers = Servers::start().await;
    ending(&servers, TaskState::Succeeded, "").notify_one();
    let (a, b) = ("otto-t-1234567890-0-1", "otto-t-1234567890-1-2");
    let mut part = lines(a, 1..=1);
    part.lines.push(line(b, 1, b"other"));
    let steps = vec![Step::Part(part), status(vec![complete(a, 1), complete(b, 1)])];
    servers.set(|state| state.streams = vec![steps].into());
    let said = servers.otto(&["submit", "--task-id", "t", "-n", "2", "-f", "true"]).await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "0 | line 1\n1.2 | other\n"), "{said:?}");
    assert!(said.err.contains("complete, 2 of 2 lines of 2 logs"), "{said:?}");
}

#[tokio::test]
async fn an_incomplete_log_of_a_task_that_succeeded_is_not_success() {
    let servers = Servers::start().await;
    ending(&servers, TaskState::Succeeded, "").notify_one();
    let mut lossy = complete("w", 2);
    lossy.runs[0].complete = false;
    lossy.runs[0].lines = 1;
    let steps = vec![Step::Part(lines("w", 1..=1)), status(vec![lossy])];
    servers.set(|state| state.streams = vec![steps].into());
    let said = servers.otto(&["submit", "--task-id", "t", "-f", "true"]).await;
    assert_eq!(said.code, Some(5), "{said:?}");
    assert!(said.err.contains("w: 1 of 2 lines"), "{said:?}");
}

#[tokio::test]
async fn what_hinders_a_worker_is_told() {
    let servers = Servers::start().await;
    let ending = ending(&servers, TaskState::Failed, "worker 0 failed");
    let event = WorkerEvent {
        event_id: "e".into(),
        r#type: Type::Waiting.into(),
        worker_id: "otto-t-0-2".into(),
        message: "image cannot be pulled:\x1b[2J no such image".into(),
        failure_class: FailureClass::Image.into(),
        ..WorkerEvent::default()
    };
    let part = ReadLogsResponse { events: vec![event], ..ReadLogsResponse::default() };
    servers.set(|state| state.streams = vec![vec![Step::Part(part), status(vec![complete("w", 0)])]].into());
    ending.notify_one();
    let said = servers.otto(&["submit", "--task-id", "t", "-f", "true"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("worker 0.2 waits (image): image cannot be pulled"), "{said:?}");
    assert!(!said.err.contains('\x1b'), "{said:?}");
}

#[tokio::test]
async fn submitting_again_follows_the_task_that_is_there() {
    let servers = Servers::start().await;
    ending(&servers, TaskState::Succeeded, "").notify_one();
    servers.set(|state| {
        let status = ScaleStatus::AlreadyProcessed.into();
        state.scale = Some(Ok(ScaleResponse { status, message: "had this target".into(), ..ScaleResponse::default() }));
        state.streams = vec![vec![Step::Part(lines("w", 1..=1)), status_step()]].into();
    });
    let said = servers.otto(&["submit", "--task-id", "t", "-f", "true"]).await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "line 1\n"), "{said:?}");
    assert!(said.err.contains("submitted before"), "{said:?}");
}

fn status_step() -> Step {
    status(vec![complete("w", 1)])
}

#[tokio::test]
async fn ctrl_c_leaves_the_task_alone_and_says_so() {
    let servers = Servers::start().await;
    ending(&servers, TaskState::Succeeded, "");
    servers.set(|state| state.streams = vec![vec![Step::Part(lines("w", 1..=1)), Step::Hang]].into());
    let child = start(servers.command(&["submit", "--task-id", "t", "-f", "true"]));
    eventually("it follows", || servers.set(|state| !state.reads.is_empty())).await;
    let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    let status = |field: &str| {
        let text = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
        text.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim().to_owned()
    };
    eventually("it listens for signals, and waits", || {
        let caught = u64::from_str_radix(&status("SigCgt:"), 16).unwrap();
        caught & (1 << (Signal::INT.as_raw() - 1)) != 0 && status("State:").starts_with('S')
    })
    .await;
    kill_process(pid, Signal::INT).unwrap();
    let said = end(child).await;
    assert_eq!(said.code, Some(130), "{said:?}");
    assert!(said.err.contains("otto cancel t"), "{said:?}");
    assert!(servers.set(|state| state.downs.is_empty()));
}
