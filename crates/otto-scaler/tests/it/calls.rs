//! The gRPC interface: answers, refusals, health, and the end of the program.

use otto_proto::v1::scale_response::Status;
use otto_proto::v1::{
    DeleteTaskRequest, GetTaskRequest, ListDeadLettersRequest, ListTasksRequest, PipelineRequest, TaskState,
    WatchWorkersRequest, WorkerStatusRequest,
};
use otto_testkit::{PATIENCE, binary, eventually};
use rustix::process::Signal;
use tonic::Code;
use tonic_types::StatusExt;

use crate::setup::{Fixture, count, shell};

#[tokio::test]
async fn bad_requests_name_the_field() {
    let mut f = Fixture::start(&["--max-count", "5"]).await;
    let field = |status: &tonic::Status| {
        let violations = status.get_details_bad_request().unwrap().field_violations;
        (status.code(), violations[0].field.clone())
    };
    let status = f.calls.scale_up(count("", 1)).await.unwrap_err();
    assert_eq!(field(&status), (Code::InvalidArgument, "task_id".to_owned()));
    let status = f.calls.scale_up(count("t", -1)).await.unwrap_err();
    assert_eq!(field(&status), (Code::InvalidArgument, "worker_count".to_owned()));
    let status = f.calls.scale_up(count("t", 6)).await.unwrap_err();
    assert_eq!(field(&status), (Code::InvalidArgument, "worker_count".to_owned()));
    let mut request = count("t", 1);
    request.build_config.insert("colour".into(), "red".into());
    let status = f.calls.scale_up(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("colour"), "{status}");

    let filter = WorkerStatusRequest { status_filter: "sleeping".into(), ..WorkerStatusRequest::default() };
    let status = f.calls.get_worker_status(filter).await.unwrap_err();
    assert_eq!(field(&status), (Code::InvalidArgument, "status_filter".to_owned()));
    let nobody = WorkerStatusRequest { task_id: "nobody".into(), ..WorkerStatusRequest::default() };
    assert_eq!(f.calls.get_worker_status(nobody).await.unwrap().into_inner().total_count, 0);

    let status = f.calls.scale_down(count("nobody", 2)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let status = f.calls.execute_pipeline(PipelineRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    let status = f.tasks.get_task(GetTaskRequest { task_id: "nobody".into() }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let status = f.tasks.list_dead_letters(ListDeadLettersRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let page = ListTasksRequest { page_token: "x".into(), ..ListTasksRequest::default() };
    assert_eq!(f.tasks.list_tasks(page).await.unwrap_err().code(), Code::InvalidArgument);
    let watch = WatchWorkersRequest { task_id: "nobody".into() };
    assert_eq!(f.tasks.watch_workers(watch).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn contradictions_are_refused_and_repeats_recognised() {
    let mut f = Fixture::start(&[]).await;
    let first = f.calls.scale_up(shell("t", 1, "sleep 100")).await.unwrap().into_inner();
    assert_eq!((first.status(), first.processed_count), (Status::Success, 1));
    let again = f.calls.scale_up(shell("t", 1, "sleep 100")).await.unwrap().into_inner();
    assert_eq!((again.status(), &again.worker_pod_names), (Status::AlreadyProcessed, &first.worker_pod_names));
    let status = f.calls.scale_up(shell("t", 2, "sleep 200")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("`command` contradicts"), "{status}");
    let none = f.calls.scale_up(count("none", 0)).await.unwrap().into_inner();
    assert_eq!((none.status(), none.completed_at.is_empty()), (Status::Success, false));
    assert_eq!(f.task("none").await.state(), TaskState::Succeeded);

    // A cancel that comes before its task wins.
    let early = f.calls.scale_down(count("early", 0)).await.unwrap().into_inner();
    assert_eq!(early.status(), Status::Success);
    let late = f.calls.scale_up(shell("early", 1, "true")).await.unwrap().into_inner();
    assert_eq!((late.status(), late.processed_count), (Status::AlreadyProcessed, 0));

    let status = f.tasks.delete_task(DeleteTaskRequest { task_id: "t".into() }).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    f.calls.scale_down(count("t", 0)).await.unwrap();
    f.until_state("t", TaskState::Cancelled).await;
    let rows = f.rows("t").await;
    assert_eq!((rows[0].status.as_str(), rows[0].error_message.as_str()), ("failed", "cancelled"));

    // Pages, newest first.
    let mut seen = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListTasksRequest { page_size: 2, page_token, ..ListTasksRequest::default() };
        let page = f.tasks.list_tasks(request).await.unwrap().into_inner();
        seen.extend(page.tasks.into_iter().map(|task| task.task_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["early", "none", "t"]);
    let cancelled = ListTasksRequest { states: vec![TaskState::Cancelled.into()], ..ListTasksRequest::default() };
    assert_eq!(f.tasks.list_tasks(cancelled).await.unwrap().into_inner().tasks.len(), 2);

    eventually("the task can be deleted", || async {
        f.tasks.clone().delete_task(DeleteTaskRequest { task_id: "t".into() }).await.ok()
    })
    .await;
    assert_eq!(f.tasks.get_task(GetTaskRequest { task_id: "t".into() }).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn health_probes_and_the_end() {
    let mut f = Fixture::start(&["--drain-timeout", "10m"]).await;
    assert_eq!(f.http("/livez").await.0, 200);
    eventually("it is ready", || async { (f.http("/readyz").await.0 == 200).then_some(()) }).await;
    let metrics = f.http("/metrics").await.1;
    assert!(metrics.contains("otto_scaler_live_tasks 0"), "{metrics}");
    f.calls.scale_up(shell("t", 1, "sleep 1000")).await.unwrap();
    f.until_state("t", TaskState::Running).await;
    assert!(f.metric(r#"otto_scaler_events_total{result="applied"} 1"#).await);
    assert!(f.metric(r#"otto_scaler_workers{state="running"} 1"#).await);
    assert!(f.metric("otto_scaler_start_seconds_count 1").await);
    // A watcher does not hold up the drain, and the job outlives the scaler.
    let mut watch = f.tasks.watch_workers(WatchWorkersRequest::default()).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    f.scaler.process.signal(Signal::TERM).unwrap();
    let status = f.scaler.process.wait().await.unwrap();
    assert!(status.success(), "{}", f.scaler.process.log_tail());
    f.scaler.restart().await.unwrap();
    let channel = f.scaler.channel().await.unwrap();
    f.calls = otto_proto::v1::ottoscaler_service_client::OttoscalerServiceClient::new(channel.clone());
    f.tasks = otto_proto::v1::task_service_client::TaskServiceClient::new(channel);
    f.until_state("t", TaskState::Running).await;
    f.calls.scale_down(count("t", 0)).await.unwrap();
    f.until_state("t", TaskState::Cancelled).await;
}

#[tokio::test]
async fn a_bad_start_names_the_cause() {
    let f = Fixture::start(&[]).await;
    let data = f.dir.path().join("scaler-data");
    let other = tempfile::tempdir().unwrap();
    let other = other.path().to_str().unwrap();
    let free = ["--grpc-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"];
    let worker = binary("otto-worker").unwrap();
    for (flags, expected) in [
        (vec!["--driver", "kubernetes", "--data-dir", other], vec!["--driver kubernetes"]),
        (vec!["--data-dir", data.to_str().unwrap()], vec!["--data-dir", "another process"]),
        (vec!["--data-dir", other, "--grpc-addr", f.scaler.grpc_addr()], vec!["--grpc-addr", f.scaler.grpc_addr()]),
        (vec!["--data-dir", "/dev/null/x"], vec!["--data-dir", "/dev/null/x"]),
        (vec!["--data-dir", other, "--worker-binary", "/nowhere"], vec!["--worker-binary", "/nowhere"]),
        (vec!["--data-dir", other, "--redis-url", "http://x"], vec!["--redis-url", "redis://"]),
        (vec!["--data-dir", other, "--grpc-addr", "0.0.0.0:0"], vec!["--auth-token-file", "--insecure-no-auth"]),
    ] {
        let mut args = vec!["--worker-binary", worker.to_str().unwrap()];
        if !flags.contains(&"--grpc-addr") {
            args.extend(&free[..2]);
        }
        args.extend(&free[2..]);
        if flags.contains(&"--worker-binary") {
            args.drain(..2);
        }
        args.extend(&flags);
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_otto-scaler"));
        // No cluster is to be found.
        for name in ["KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"] {
            command.env_remove(name);
        }
        let output = command.args(&args).env("HOME", other).kill_on_drop(true).output();
        let output = tokio::time::timeout(PATIENCE, output).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && !text.contains("panicked"), "{flags:?}: {text}");
        for word in expected {
            assert!(text.contains(word), "{flags:?}: {text}");
        }
    }
}
