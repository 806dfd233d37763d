//! `otto tasks`, `workers`, `scale`, `cancel`, `delete`, `dead-letters`, `pipeline`.

use otto_proto::v1::scale_response::Status as ScaleStatus;
use otto_proto::v1::{
    DeadLetter, FailureClass, PipelineProgress, ScaleResponse, StageStatus, TaskState, WorkerPodStatus,
};
use tonic::Status;

use super::servers::*;

#[tokio::test]
async fn tasks_are_listed_over_all_pages() {
    let servers = Servers::start().await;
    servers.set(|state| {
        let mut failed = task("c", TaskState::Failed, 2);
        failed.error_message = "worker 1 failed: exit code 3".into();
        failed.failed_workers = 1;
        failed.succeeded_workers = 1;
        state.tasks = vec![task("a", TaskState::Running, 1), task("b", TaskState::Succeeded, 1), failed];
    });
    let said = servers.otto(&["tasks"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let rows: Vec<&str> = said.out.lines().collect();
    assert!(rows[0].starts_with("TASK  STATE      WORKERS"), "{said:?}");
    assert_eq!(rows.len(), 4, "{said:?}");
    assert!(rows[3].starts_with("c     failed") && rows[3].ends_with("worker 1 failed: exit code 3"), "{said:?}");
    assert!(rows[3].contains("1/2, 1 failed"), "{said:?}");
    let said = servers.otto(&["--output", "json", "tasks", "--limit", "1", "--state", "failed"]).await;
    let json: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&json["task_id"], &json["created_at"]), (&"c".into(), &"2023-11-14T22:13:20Z".into()));
}

#[tokio::test]
async fn workers_of_a_task_are_listed() {
    let servers = Servers::start().await;
    servers.set(|state| {
        state.tasks = vec![task("empty", TaskState::Succeeded, 0)];
        state.statuses = vec![WorkerPodStatus {
            pod_name: "otto-t-0-1".into(),
            task_id: "t".into(),
            status: "failed".into(),
            error_message: "killed for using too much memory".into(),
            failure_class: FailureClass::OutOfMemory.into(),
            started_at: "2026-01-31T12:00:00Z".into(),
            completed_at: "2026-01-31T12:01:01Z".into(),
            ..WorkerPodStatus::default()
        }];
    });
    let said = servers.otto(&["workers", "t"]).await;
    assert!(said.out.contains("otto-t-0-1  failed") && said.out.contains("1m01s"), "{said:?}");
    assert!(said.out.contains("killed for using too much memory (out of memory)"), "{said:?}");
    let said = servers.otto(&["workers", "t", "--output", "json"]).await;
    assert!(said.out.contains(r#""failure_class":"out_of_memory""#), "{said:?}");
    assert_eq!(servers.otto(&["workers", "empty"]).await.code, Some(0));
    let said = servers.otto(&["workers", "nobody"]).await;
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(said.err.contains("there is no task \"nobody\""), "{said:?}");
}

#[tokio::test]
async fn scale_goes_up_or_down() {
    let servers = Servers::start().await;
    servers.set(|state| {
        state.tasks = vec![task("t", TaskState::Running, 3), task("old", TaskState::Succeeded, 1)];
        let message = "the target is set".into();
        state.scale = Some(Ok(ScaleResponse { message, ..ScaleResponse::default() }));
    });
    let said = servers.otto(&["scale", "t", "5"]).await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "t: the target is set\n"), "{said:?}");
    servers.otto(&["scale", "t", "1"]).await;
    let (ups, downs) = servers.set(|state| (state.ups.clone(), state.downs.clone()));
    assert_eq!((ups.len(), ups[0].worker_count, downs.len(), downs[0].worker_count), (1, 5, 1, 1));
    assert_eq!(servers.otto(&["scale", "nobody", "5"]).await.code, Some(3));
    let said = servers.otto(&["scale", "old", "5"]).await;
    assert_eq!(said.code, Some(6), "{said:?}");
    assert!(said.err.contains("has ended (succeeded)"), "{said:?}");
}

#[tokio::test]
async fn cancel_asks_for_none_and_only_of_a_task_that_is_there() {
    let servers = Servers::start().await;
    servers.set(|state| {
        state.tasks = vec![task("t", TaskState::Running, 3)];
        let status = ScaleStatus::AlreadyProcessed.into();
        let message = "the task has ended: cancelled".into();
        state.scale = Some(Ok(ScaleResponse { status, message, ..ScaleResponse::default() }));
    });
    assert_eq!(servers.otto(&["cancel", "nobody"]).await.code, Some(3));
    let said = servers.otto(&["--output", "json", "cancel", "t"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.contains("\"already_processed\""), "{said:?}");
    let downs = servers.set(|state| state.downs.clone());
    assert_eq!((downs.len(), downs[0].task_id.as_str(), downs[0].worker_count), (1, "t", 0));
}

#[tokio::test]
async fn delete_says_why_not() {
    let servers = Servers::start().await;
    assert_eq!(servers.otto(&["delete", "t"]).await.code, Some(0));
    assert_eq!(servers.set(|state| state.deleted.clone()), ["t"]);
    servers.set(|state| state.delete = Some(Status::failed_precondition("the task is live; cancel it first")));
    let said = servers.otto(&["delete", "t"]).await;
    assert_eq!(said.code, Some(6), "{said:?}");
    assert!(said.err.contains("cancel it first"), "{said:?}");
}

#[tokio::test]
async fn dead_letters_are_listed_and_replayed() {
    let servers = Servers::start().await;
    servers.set(|state| {
        state.dead = vec![DeadLetter {
            id: "5-0".into(),
            entry_id: "4-0".into(),
            reason: "pod_count: \"many\" is no number\nof workers".into(),
            fields: [("job_id".to_owned(), "later".to_owned())].into(),
            dead_at: None,
        }];
    });
    let said = servers.otto(&["dead-letters", "list"]).await;
    assert!(said.out.contains("5-0  later") && said.out.contains("\"many\" is no number of workers"), "{said:?}");
    let said = servers.otto(&["dead-letters", "replay", "5-0"]).await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "7-0\n"), "{said:?}");
    assert_eq!(servers.set(|state| state.replayed.clone()), ["5-0"]);
}

#[tokio::test]
async fn a_pipeline_is_run_or_clearly_is_not() {
    let servers = Servers::start().await;
    let dir = tempfile::tempdir().unwrap();
    let toml = dir.path().join("pipeline.toml");
    let text = "name = \"p\"\n[[stages]]\nstage_id = \"build\"\ncommand = [\"make\"]\n\
                [[stages]]\nstage_id = \"test\"\nworker_count = 3\ndepends_on = [\"build\"]\ncommand = [\"make\", \"test\"]\n";
    std::fs::write(&toml, text).unwrap();
    let path = toml.to_str().unwrap();
    let said = servers.otto(&["pipeline", "run", path]).await;
    assert_eq!(said.code, Some(6), "{said:?}");
    assert!(said.err.contains("does not have this: this version runs no pipelines"), "{said:?}");
    let sent = servers.set(|state| state.pipelines.remove(0));
    assert!(sent.pipeline_id.starts_with("pipeline-") && sent.stages[1].depends_on == ["build"], "{sent:?}");
    assert_eq!((sent.stages[0].worker_count, sent.stages[1].worker_count), (1, 3));

    let step = |stage: &str, status: StageStatus, percent| PipelineProgress {
        stage_id: stage.into(),
        status: status.into(),
        progress_percentage: percent,
        ..PipelineProgress::default()
    };
    for (last, code) in [(StageStatus::StageCompleted, 0), (StageStatus::StageFailed, 1)] {
        let steps = vec![step("build", StageStatus::StageRunning, 0), step("", last, 100)];
        servers.set(|state| state.pipeline = Some(steps));
        let said = servers.otto(&["pipeline", "run", path]).await;
        assert_eq!(said.code, Some(code), "{said:?}");
        assert!(said.out.starts_with("  0 %  build running\n100 %  pipeline "), "{said:?}");
    }

    let json = dir.path().join("pipeline.json");
    std::fs::write(&json, r#"{"stages":[{"stage_id":"a","comand":["x"]}]}"#).unwrap();
    let said = servers.otto(&["pipeline", "run", json.to_str().unwrap()]).await;
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(
        said.err.contains("comand") && said.err.contains("command") && said.err.contains("pipeline.json"),
        "{said:?}"
    );
}
