//! Pods that are deleted, evicted or out of memory on the way: what was printed is stored, and nothing runs twice.

use kube::api::{DeleteParams, EvictParams, ListParams, LogParams};
use otto_proto::v1::{FailureClass, TaskState, worker_event::Type};

use crate::cluster::{Cluster, numbered, phase, printing, runs, said, within};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: cargo xtask test --kind"]
async fn every_line_is_stored_when_the_log_server_is_deleted_on_the_way() -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    for (task, grace) in [("log-server-killed", 0), ("log-server-deleted", 30)] {
        let task = &cluster.task_id(task);
        cluster.add(task, &printing(3_000, 250), &[("pod_count", "2")]).await?;
        let before = cluster.stored(task, 600).await?;
        assert!(before < 6_000, "too late: all lines are stored");
        let delete = DeleteParams { grace_period_seconds: Some(grace), ..DeleteParams::default() };
        cluster.servers().delete("otto-log-ingest-0", &delete).await?;
        let ended = cluster.ended(task).await?;
        assert_eq!(ended.state(), TaskState::Succeeded, "{}", ended.error_message);
        for worker in cluster.finished(task, 2).await? {
            assert!(worker.runs.len() == 1 && worker.runs[0].complete, "{worker:?}");
            assert_eq!(cluster.lines(task, &worker.worker_id).await?, numbered(3_000), "{}", worker.worker_id);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: cargo xtask test --kind"]
async fn nothing_runs_twice_and_nothing_is_lost_when_the_leader_is_deleted_on_the_way() -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    for (task, grace) in [("leader-killed", 0), ("leader-deleted", 30)] {
        let task = &cluster.task_id(task);
        cluster.add(task, &printing(1_500, 250), &[("pod_count", "2")]).await?;
        cluster.stored(task, 200).await?;
        let leader = cluster.leader().await?;
        let delete = DeleteParams { grace_period_seconds: Some(grace), ..DeleteParams::default() };
        cluster.servers().delete(&leader, &delete).await?;
        // While nobody leads.
        let meanwhile = format!("{task}-meanwhile");
        cluster.add(&meanwhile, &printing(10, 100), &[("pod_count", "2")]).await?;
        for (task, lines) in [(task, 1_500), (&meanwhile, 10)] {
            let ended = cluster.ended(task).await?;
            assert_eq!((ended.state(), ended.succeeded_workers), (TaskState::Succeeded, 2), "{}", ended.error_message);
            let workers = cluster.finished(task, 2).await?;
            for worker in &workers {
                assert!(worker.runs.len() == 1 && worker.worker_id.ends_with("-1"), "started twice: {worker:?}");
                assert_eq!(cluster.lines(task, &worker.worker_id).await?, numbered(lines), "{}", worker.worker_id);
            }
            assert_eq!(cluster.pods(task).await?.len(), 2);
        }
        let next = within("another one leads", async || {
            let next = cluster.leader().await.ok()?;
            (next != leader).then_some(next)
        });
        next.await?;
        all_scalers_ready(&cluster).await?;
    }
    Ok(())
}

async fn all_scalers_ready(cluster: &Cluster) -> anyhow::Result<()> {
    let scalers = ListParams::default().labels("app.kubernetes.io/name=otto-scaler");
    within("three scalers are ready", async || {
        let pods = cluster.servers().list(&scalers).await.ok()?.items;
        let ready = |pod: &k8s_openapi::api::core::v1::Pod| {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        };
        (pods.len() == 3 && pods.iter().all(ready)).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: cargo xtask test --kind"]
async fn a_job_that_takes_too_much_memory_keeps_its_lines_and_is_told_so() -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    let task = &cluster.task_id("memory");
    // `dd` fills a buffer of this size, which is more than its class allows.
    let script = format!("{}; exec dd if=/dev/zero of=/dev/null bs=400M count=1", printing(500, 1_000));
    cluster.add(task, &script, &[("resource_class", "tight")]).await?;
    let ended = cluster.ended(task).await?;
    assert_eq!(ended.state(), TaskState::Failed);
    let event = cluster.told(task, Type::Failed).await?;
    assert_eq!(event.failure_class(), FailureClass::OutOfMemory, "{event:?}");
    assert!(event.message.contains("memory"), "{}", event.message);
    let workers = cluster.finished(task, 1).await?;
    assert_eq!(workers[0].runs.len(), 1, "{workers:?}");
    let lines = cluster.lines(task, &workers[0].worker_id).await?;
    assert_eq!(lines, numbered(500), "{event:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: cargo xtask test --kind"]
async fn what_a_killed_agent_had_not_sent_is_sent_by_the_drainer() -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    let task = &cluster.task_id("agent");
    // Nothing can be sent before the agent is killed: what comes afterwards is from its spool.
    cluster.scale_logs(0).await?;
    let script = format!("{}; echo last; while :; do sleep 0.1; done", printing(5_000, 10_000));
    cluster.add(task, &script, &[]).await?;
    let log = LogParams { container: Some("job".to_owned()), tail_lines: Some(1), ..LogParams::default() };
    let name = within("the job has printed all", async || {
        let name = cluster.pods(task).await.ok()?.into_keys().next()?;
        (cluster.workers().logs(&name, &log).await.ok()?.trim() == "last").then_some(name)
    })
    .await?;
    cluster.kill(&name, "job").await?;
    let ended = cluster.ended(task).await?;
    assert_eq!(ended.state(), TaskState::Failed);
    cluster.scale_logs(1).await?;
    let event = cluster.told(task, Type::Failed).await?;
    assert_eq!(event.failure_class(), FailureClass::AgentLost, "{event:?}");
    let finished = |pod: &k8s_openapi::api::core::v1::Pod| matches!(phase(pod), "Succeeded" | "Failed");
    within("the drainer is done", async || cluster.pods(task).await.ok()?.values().all(finished).then_some(())).await?;
    let mut expected = numbered(5_000);
    expected.push("last".to_owned());
    assert_eq!(cluster.lines(task, &name).await?, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: cargo xtask test --kind"]
async fn an_evicted_worker_keeps_its_lines_and_is_started_again() -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    let task = &cluster.task_id("evicted");
    // The first attempt goes on until it is told to stop.
    let script = format!(
        "{}; [ $OTTO_JOB_ATTEMPT -gt 1 ] && exit 0; trap 'echo last words; exit 1' TERM; echo waiting; \
         while :; do sleep 0.1; done",
        printing(300, 1_000)
    );
    cluster.add(task, &script, &[]).await?;
    cluster.stored(task, 301).await?;
    let first = cluster.pods(task).await?.into_keys().next().unwrap_or_default();
    cluster.workers().evict(&first, &EvictParams::default()).await?;
    let ended = cluster.ended(task).await?;
    assert_eq!(ended.state(), TaskState::Succeeded, "{}", ended.error_message);
    let event = cluster.told(task, Type::Retrying).await?;
    assert_eq!(event.failure_class(), FailureClass::Evicted, "{event:?}");
    let workers = cluster.finished(task, 2).await?;
    let second = workers.iter().find(|worker| worker.worker_id != first).map(|worker| worker.worker_id.clone());
    let mut expected = numbered(300);
    assert_eq!(cluster.lines(task, &second.unwrap_or_default()).await?, expected);
    expected.extend(["waiting".to_owned(), "last words".to_owned()]);
    assert_eq!(said(cluster.lines(task, &first).await?), expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: cargo xtask test --kind"]
async fn a_worker_that_somebody_deletes_is_not_taken_for_one_that_succeeded() -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    let task = &cluster.task_id("deleted");
    cluster.add(task, "echo started; while :; do sleep 0.1; done", &[]).await?;
    cluster.stored(task, 1).await?;
    let name = within("its Pod is seen running", async || {
        let (name, pod) = cluster.pods(task).await.ok()?.into_iter().next()?;
        runs(&pod, "job").then_some(name)
    })
    .await?;
    // `kubectl logs` shows what the job printed.
    let log = LogParams { container: Some("job".to_owned()), ..LogParams::default() };
    assert!(cluster.workers().logs(&name, &log).await?.contains("started"));
    cluster.workers().delete(&name, &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await?;
    let event = within("its end is told, or another attempt", async || {
        let events = cluster.log_workers(task).await?.events;
        events.into_iter().find(|event| matches!(event.r#type(), Type::Failed | Type::Retrying))
    })
    .await?;
    assert_ne!(event.failure_class(), FailureClass::Unspecified, "{event:?}");
    cluster.cancel(task).await?;
    let ended = cluster.ended(task).await?;
    assert!(matches!(ended.state(), TaskState::Failed | TaskState::Cancelled), "{ended:?}");
    Ok(())
}
