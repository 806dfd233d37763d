//! From an event to lines that are read, and to being told to stop.

use otto_proto::v1::{TaskState, worker_event::Type};

use crate::cluster::{Cluster, numbered, phase, printing, runs, said, within};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: cargo xtask test --kind"]
async fn an_event_ends_in_finished_pods_whose_every_line_is_stored() -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    let task = &cluster.task_id("plain");
    cluster.add(task, &printing(2_000, 5_000), &[("pod_count", "3"), ("repository", "acme/shop")]).await?;
    let ended = cluster.ended(task).await?;
    assert_eq!((ended.state(), ended.succeeded_workers), (TaskState::Succeeded, 3), "{}", ended.error_message);
    let workers = cluster.finished(task, 3).await?;
    for worker in &workers {
        assert!(worker.runs.len() == 1 && worker.runs[0].complete, "{worker:?}");
        assert_eq!(cluster.lines(task, &worker.worker_id).await?, numbered(2_000), "{}", worker.worker_id);
    }
    // One Pod each, named like its log, which ends by itself when all is sent.
    let pods = within("the Pods have ended", async || {
        let pods = cluster.pods(task).await.ok()?;
        pods.values().all(|pod| phase(pod) == "Succeeded").then_some(pods)
    })
    .await?;
    let names: Vec<_> = pods.keys().collect();
    let mut workers: Vec<_> = workers.iter().map(|worker| &worker.worker_id).collect();
    workers.sort();
    assert_eq!(names, workers);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: cargo xtask test --kind"]
async fn a_job_may_be_root_or_a_stranger_who_can_write_nothing() -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    for (class, user, writes) in [("root", "0", "yes"), ("readonly", "1000", "no")] {
        let task = &cluster.task_id(class);
        let who = "id -u; if (echo x > /tmp/written) 2> /dev/null; then echo yes; else echo no; fi";
        let script = format!("{who}; {}", printing(2_000, 5_000));
        cluster.add(task, &script, &[("resource_class", class)]).await?;
        let ended = cluster.ended(task).await?;
        assert_eq!(ended.state(), TaskState::Succeeded, "{class}: {}", ended.error_message);
        let workers = cluster.finished(task, 1).await?;
        assert!(workers[0].runs.len() == 1 && workers[0].runs[0].complete, "{workers:?}");
        let mut lines = cluster.lines(task, &workers[0].worker_id).await?;
        let printed = lines.split_off(2);
        assert_eq!(lines, [user, writes], "{class}");
        assert_eq!(printed, numbered(2_000), "{class}");
    }
    Ok(())
}

/// The agent's own image has one file, the agent: no shell, no libc, no user, not even a folder `/tmp`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: cargo xtask test --kind"]
async fn a_job_may_be_an_image_with_one_program_in_it() -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    let image = &cluster.agent_image().await?;
    for class in ["no", "root", "readonly"] {
        let task = &cluster.task_id(&format!("scratch-{class}"));
        let fields =
            [("image", image.as_str()), ("command", r#"["/otto-worker","--help"]"#), ("resource_class", class)];
        cluster.add(task, "", if class == "no" { &fields[..2] } else { &fields }).await?;
        let ended = cluster.ended(task).await?;
        assert_eq!(ended.state(), TaskState::Succeeded, "{class}: {}", ended.error_message);
        let workers = cluster.finished(task, 1).await?;
        assert!(workers[0].runs.len() == 1 && workers[0].runs[0].complete, "{workers:?}");
        let lines = cluster.lines(task, &workers[0].worker_id).await?;
        assert!(lines.iter().any(|line| line.contains("Usage: otto-worker")), "{class}: {lines:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: cargo xtask test --kind"]
async fn the_command_line_follows_a_job_and_ends_as_it_did() -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    let (task, image) = (&cluster.task_id("followed"), cluster.job_image());
    let script = "echo out of $OTTO_JOB_INDEX; env | grep '^OTTO_' | grep -v '^OTTO_JOB_'; exit 3";
    let said = cluster.otto(&["submit", "--task-id", task, "--image", image, "-f", "--", "sh", "-c", script]).await?;
    assert_eq!(said.status.code(), Some(1), "{}", String::from_utf8_lossy(&said.stderr));
    // Of the agent's settings and of services' variables, nothing reaches the job.
    assert_eq!(String::from_utf8_lossy(&said.stdout), "out of 0\n");
    let ended = cluster.ended(task).await?;
    assert!(ended.error_message.contains('3'), "{}", ended.error_message);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: cargo xtask test --kind"]
async fn a_running_job_is_told_to_stop_and_its_last_words_are_stored() -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    let task = &cluster.task_id("stopped");
    let script = "trap 'echo told to stop; exit 0' TERM; echo started; while :; do sleep 0.1; done";
    cluster.add(task, script, &[("pod_count", "2")]).await?;
    cluster.stored(task, 2).await?;
    within("two Pods are seen running", async || {
        let pods = cluster.pods(task).await.ok()?;
        (pods.len() == 2 && pods.values().all(|pod| runs(pod, "job"))).then_some(())
    })
    .await?;
    cluster.cancel(task).await?;
    assert_eq!(cluster.ended(task).await?.state(), TaskState::Cancelled);
    for worker in cluster.finished(task, 2).await? {
        assert_eq!(said(cluster.lines(task, &worker.worker_id).await?), ["started", "told to stop"]);
    }
    cluster.told(task, Type::Stopped).await?;
    within("the Pods are gone", async || cluster.pods(task).await.ok()?.is_empty().then_some(())).await
}
