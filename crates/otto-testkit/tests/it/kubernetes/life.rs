//! The life of workers as Pods, from the event to what people and programs are told.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::DeleteParams;
use otto_proto::v1::log_query_service_client::LogQueryServiceClient;
use otto_proto::v1::ottoscaler_service_client::OttoscalerServiceClient;
use otto_proto::v1::{FailureClass, ListLogWorkersRequest, TaskState, WorkerPodStatus, WorkerStatusRequest};
use otto_testkit::{Fault, LogIngest, Rule, binary, eventually};
use serde_json::json;
use tokio::process::Command;

use super::cluster::{Cluster, Pods};
use crate::system::{STREAM, add};

/// A Pod template, as a flag.
pub(crate) fn template(dir: &tempfile::TempDir, template: &serde_json::Value) -> anyhow::Result<String> {
    let path = dir.path().join("template.yaml");
    std::fs::write(&path, template.to_string())?;
    Ok(path.display().to_string())
}

async fn rows(cluster: &Cluster, task_id: &str) -> anyhow::Result<Vec<WorkerPodStatus>> {
    let mut calls = OttoscalerServiceClient::new(cluster.scaler.channel().await?);
    let request = WorkerStatusRequest { task_id: task_id.to_owned(), ..WorkerStatusRequest::default() };
    Ok(calls.get_worker_status(request).await?.into_inner().workers)
}

/// Cancels a task as a stream event.
async fn cancel(cluster: &Cluster, task_id: &str) -> anyhow::Result<()> {
    let event = [("type", "scale_down"), ("task_id", task_id), ("pod_count", "0")];
    add(&mut cluster.redis.connect().await?, &event).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_becomes_pods_and_their_ends_are_told_everywhere() -> anyhow::Result<()> {
    let files = tempfile::tempdir()?;
    let logs = LogIngest::start(files.path(), &[]).await?;
    let url = logs.grpc_url();
    let cluster = Cluster::start_with_logs("told", Pods::ByHand, &url, &[]).await?;
    cluster.add("good", 2, &[("repository", "acme/shop")]).await?;
    cluster.add("bad", 1, &[]).await?;
    for index in 0..2 {
        let pod = cluster.pod("good", index, 1).await;
        cluster.namespace.run_pod(&pod).await?;
        cluster.namespace.end_pod(&pod, 0, "").await?;
    }
    let pod = cluster.pod("bad", 0, 1).await;
    cluster.namespace.run_pod(&pod).await?;
    cluster.until("bad", TaskState::Running).await;
    let said = json!({"exit_code": 3, "class": "exited", "message": "the job ended with exit code 3"}).to_string();
    // The job has ended; its agent is still sending its last lines.
    cluster.namespace.end_job(&pod, 3, &said).await?;
    let task = cluster.until("bad", TaskState::Failed).await;
    assert!(task.error_message.contains("exit code 3"), "{}", task.error_message);
    let task = cluster.until("good", TaskState::Succeeded).await;
    assert_eq!((task.succeeded_workers, task.repository.as_str()), (2, "acme/shop"));

    // To callers, …
    let row = rows(&cluster, "bad").await?.remove(0);
    assert_eq!((row.status.as_str(), row.failure_class()), ("failed", FailureClass::Exited));
    assert!(row.pod_name == pod && row.error_message.contains("exit code 3") && row.node_name.starts_with("node-"));
    // … at the command line, …
    let mut otto = Command::new(binary("otto")?);
    otto.args(["--scaler", &cluster.scaler.grpc_url(), "--log-server", &url, "--output", "json", "workers", "bad"]);
    let text = String::from_utf8(otto.kill_on_drop(true).output().await?.stdout)?;
    assert!(text.contains("exit code 3") && text.contains(&pod), "{text}");
    // … to programs, …
    let told = eventually("the stream of worker events tells the end", async || {
        let told = cluster.worker_events("bad").await.ok()?;
        told.iter().any(|event| event["type"] == "task_ended").then_some(told)
    })
    .await;
    let failed = told.iter().find(|event| event["type"] == "failed").expect("an event of the failure");
    assert_eq!((failed["exit_code"].as_str(), failed["failure_class"].as_str()), ("3", "exited"), "{failed:?}");
    assert_eq!(failed["worker_id"], pod);
    // … and where the log is.
    let queries = LogQueryServiceClient::new(logs.channel().await?);
    eventually("the log server knows the end", async || {
        let request = ListLogWorkersRequest { task_id: "bad".to_owned() };
        let events = queries.clone().list_log_workers(request).await.ok()?.into_inner().events;
        events.iter().any(|event| event.message.contains("exit code 3")).then_some(())
    })
    .await;
    cluster.check_launches(3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_cancelled_whatever_its_workers_do() -> anyhow::Result<()> {
    let cluster = Cluster::start("cancelled", Pods::ByHand, &["--max-workers", "3"]).await?;
    for task in ["pending", "pulling", "running"] {
        cluster.add(task, 1, &[]).await?;
        cluster.pod(task, 0, 1).await;
    }
    cluster.add("queued", 1, &[]).await?;
    let pulling = cluster.pod("pulling", 0, 1).await;
    let waiting = |name: &str, reason: &str| json!({"name": name, "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": reason}}});
    let statuses = json!([waiting("otto", "ContainerCreating"), waiting("job", "ImagePullBackOff")]);
    cluster.namespace.set_status(&pulling, json!({"containerStatuses": statuses})).await?;
    let running = cluster.pod("running", 0, 1).await;
    cluster.namespace.run_pod(&running).await?;
    cluster.until("running", TaskState::Running).await;
    cluster.until("queued", TaskState::Pending).await;

    cancel(&cluster, "queued").await?;
    cluster.until("queued", TaskState::Cancelled).await;
    for task in ["pending", "pulling", "running"] {
        cancel(&cluster, task).await?;
        let pod = cluster.pod(task, 0, 1).await;
        eventually(&format!("the Pod of {task} is told to go"), async || {
            let pod = cluster.namespace.pods().get(&pod).await.ok()?;
            pod.metadata.deletion_timestamp.map(|_| ())
        })
        .await;
        if task == "running" {
            // As a kubelet does: its end first, then it goes.
            let said = json!({"exit_code": 143, "class": "stopped", "message": "told to stop"}).to_string();
            cluster.namespace.end_pod(&pod, 143, &said).await?;
        }
        cluster.namespace.let_go(&pod).await?;
        cluster.until(task, TaskState::Cancelled).await;
    }
    assert_eq!(rows(&cluster, "running").await?[0].status, "failed");
    // None of them is tried again, and the queued one never was.
    cluster.add("marker", 1, &[]).await?;
    cluster.pod("marker", 0, 1).await;
    cluster.check_launches(4).await
}

/// A redelivered event, a repeated one, and a new scaler: what has run does not run again, though nothing is left of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_run_is_not_run_again_after_its_pod_is_gone() -> anyhow::Result<()> {
    let mut cluster = Cluster::start("once", Pods::Kwok, &[]).await?;
    cluster.add("task", 1, &[]).await?;
    cluster.until("task", TaskState::Succeeded).await;
    let pod = cluster.pod("task", 0, 1).await;
    cluster.namespace.let_go(&pod).await?;
    cluster.add("task", 1, &[]).await?;
    // The same entry once more: as if its acknowledgement had never come to Redis, before a fail-over.
    cluster.kill().await?;
    let mut redis = cluster.redis.connect().await?;
    redis::cmd("XGROUP").arg("SETID").arg(STREAM).arg("ottoscaler").arg("0").query_async::<()>(&mut redis).await?;
    cluster.scaler.restart().await?;
    cluster.add("marker", 1, &[]).await?;
    cluster.until("marker", TaskState::Succeeded).await;
    assert_eq!(cluster.task("task").await.map(|task| task.state()), Some(TaskState::Succeeded));
    cluster.check_launches(2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_pod_with_our_name_is_left_alone_and_told() -> anyhow::Result<()> {
    let cluster = Cluster::start("foreign", Pods::ByHand, &[]).await?;
    let held = cluster.proxy.add(Rule::create_pod(Fault::HoldBefore));
    cluster.add("task", 1, &[]).await?;
    held.reached(1).await;
    let asked = cluster.proxy.asked();
    let request = asked.iter().rfind(|asked| asked.method == http::Method::POST && asked.path.ends_with("/pods"));
    let body: serde_json::Value = serde_json::from_str(&request.expect("a creation").body)?;
    let name = body["metadata"]["name"].as_str().expect("a name").to_owned();
    let pod =
        json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "example.com/other:1"}]}});
    cluster.namespace.create::<k8s_openapi::api::core::v1::Pod>(pod).await?;
    held.remove();
    let task = cluster.until("task", TaskState::Failed).await;
    assert!(task.error_message.contains(&name) && task.error_message.contains("taken"), "{}", task.error_message);
    assert_eq!(rows(&cluster, "task").await?[0].failure_class(), FailureClass::Config);
    let left = cluster.namespace.list_pods().await?;
    assert!(left.len() == 1 && left[0].metadata.deletion_timestamp.is_none(), "{left:?}");
    // The foreign one.
    cluster.check_launches(1).await
}

/// Deleting the anchor deletes every worker: that was nobody's job's fault.
#[tokio::test(flavor = "multi_thread")]
async fn without_its_anchor_the_workers_go_and_come_again() -> anyhow::Result<()> {
    let cluster = Cluster::start("anchor", Pods::ByHand, &[]).await?;
    cluster.add("task", 1, &[("max_attempts", "1")]).await?;
    let first = cluster.pod("task", 0, 1).await;
    cluster.namespace.run_pod(&first).await?;
    cluster.until("task", TaskState::Running).await;
    let anchors = cluster.namespace.api::<ConfigMap>();
    let before = anchors.get("ottoscaler-anchor").await?.metadata.uid;
    anchors.delete("ottoscaler-anchor", &DeleteParams::background()).await?;
    eventually("the cluster collects the Pod", async || {
        cluster.namespace.pods().get(&first).await.ok()?.metadata.deletion_timestamp
    })
    .await;
    cluster.namespace.end_pod(&first, 143, "").await?;
    cluster.namespace.let_go(&first).await?;
    let second = cluster.pod("task", 0, 2).await;
    let owner = cluster.namespace.pods().get(&second).await?.metadata.owner_references.unwrap_or_default();
    let after = anchors.get("ottoscaler-anchor").await?.metadata.uid;
    assert!(after.is_some() && after != before && owner[0].uid == after.unwrap_or_default());
    cluster.namespace.end_pod(&second, 0, "").await?;
    cluster.until("task", TaskState::Succeeded).await;
    cluster.check_launches(2).await
}

/// What the cluster does to a worker costs its job no attempt; what it can never do is told at once.
#[tokio::test(flavor = "multi_thread")]
async fn evicted_workers_are_started_again_and_hopeless_ones_are_not() -> anyhow::Result<()> {
    let cluster = Cluster::start("classes", Pods::ByHand, &["--start-patience", "1s"]).await?;
    let pods = &cluster.namespace;
    cluster.add("evicted", 1, &[("max_attempts", "1")]).await?;
    let first = cluster.pod("evicted", 0, 1).await;
    pods.run_pod(&first).await?;
    let message = "The node was low on resource: memory.";
    pods.set_status(&first, json!({"phase": "Failed", "reason": "Evicted", "message": message})).await?;
    let second = cluster.pod("evicted", 0, 2).await;
    pods.end_pod(&second, 0, "").await?;
    cluster.until("evicted", TaskState::Succeeded).await;
    let evicted = eventually("the eviction is told", async || {
        let told = cluster.worker_events("evicted").await.ok()?;
        told.into_iter().find(|event| event.get("failure_class").is_some_and(|class| class == "evicted"))
    })
    .await;
    assert!(evicted["message"].contains("low on resource"), "{evicted:?}");

    for (task, reason, class) in
        [("no-image", "ErrImagePull", FailureClass::Image), ("bad-name", "InvalidImageName", FailureClass::Image)]
    {
        cluster.add(task, 1, &[]).await?;
        let pod = cluster.pod(task, 0, 1).await;
        let waiting = json!({"waiting": {"reason": reason, "message": "pull of example.com/job:1 failed"}});
        let status = |name: &str, state: &serde_json::Value| json!({"name": name, "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": state});
        let agent = status("otto", &json!({"running": {"startedAt": "2026-11-21T10:00:00Z"}}));
        pods.set_status(&pod, json!({"containerStatuses": [agent, status("job", &waiting)]})).await?;
        eventually(&format!("{task} is given up"), async || {
            pods.pods().get(&pod).await.ok()?.metadata.deletion_timestamp
        })
        .await;
        pods.let_go(&pod).await?;
        let task_told = cluster.until(task, TaskState::Failed).await;
        assert!(task_told.error_message.contains("example.com/job:1"), "{}", task_told.error_message);
        assert_eq!(rows(&cluster, task).await?[0].failure_class(), class);
    }
    cluster.check_launches(4).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_a_place_says_so_and_comes_when_there_is_one() -> anyhow::Result<()> {
    let cluster = Cluster::start("quota", Pods::Kwok, &[]).await?;
    let quota = json!({"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}});
    cluster.namespace.create::<k8s_openapi::api::core::v1::ResourceQuota>(quota).await?;
    let quotas = cluster.namespace.api::<k8s_openapi::api::core::v1::ResourceQuota>();
    cluster.namespace.refuses_pods().await;
    cluster.add("task", 1, &[]).await?;
    let row = eventually("it is told that there is no room", async || {
        let row = rows(&cluster, "task").await.ok()?.into_iter().next()?;
        (row.failure_class() == FailureClass::Quota).then_some(row)
    })
    .await;
    assert!(row.status == "pending" && row.error_message.contains("exceeded quota"), "{row:?}");
    quotas.delete("none", &DeleteParams::default()).await?;
    cluster.until("task", TaskState::Succeeded).await;
    cluster.check_launches(1).await
}

/// Nothing that matches: the scheduler itself says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_no_node_takes_is_given_up_in_time() -> anyhow::Result<()> {
    let files = tempfile::tempdir()?;
    let template = template(&files, &json!({"spec": {"nodeSelector": {"no": "such"}}}))?;
    // Long enough for the scheduler to look at it.
    let patience = ["--schedule-patience", "10s", "--infrastructure-retries", "0"];
    let flags = [&["--pod-template", &template][..], &patience].concat();
    let cluster = Cluster::start("unschedulable", Pods::Kwok, &flags).await?;
    cluster.add("task", 1, &[]).await?;
    let task = cluster.until("task", TaskState::Failed).await;
    assert!(task.error_message.contains("didn't match Pod's node affinity/selector"), "{}", task.error_message);
    assert_eq!(rows(&cluster, "task").await?[0].failure_class(), FailureClass::Unschedulable);
    Ok(())
}
