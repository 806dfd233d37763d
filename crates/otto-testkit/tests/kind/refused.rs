//! Workers that cannot begin: the reader of the log is told why, and cancelling works.

use otto_proto::v1::{FailureClass, TaskState, WorkerEvent, worker_event::Type};

use crate::cluster::{Cluster, within};

/// Cancels a task none of whose jobs has begun; nothing of it stays.
async fn cancel(cluster: &Cluster, task: &str) -> anyhow::Result<()> {
    cluster.cancel(task).await?;
    assert_eq!(cluster.ended(task).await?.state(), TaskState::Cancelled);
    within("no Pod stays", async || cluster.pods(task).await.ok()?.is_empty().then_some(())).await
}

async fn waiting(cluster: &Cluster, task: &str) -> anyhow::Result<WorkerEvent> {
    let event = cluster.told(task, Type::Waiting).await?;
    // Who asks for the task is told the same.
    within("the task says what it waits for", async || {
        let message = cluster.task(task).await?.error_message;
        (!message.is_empty()).then_some(())
    })
    .await?;
    Ok(event)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: cargo xtask test --kind"]
async fn an_image_that_cannot_be_pulled_is_told_where_the_log_would_be() -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    let task = &cluster.task_id("no-image");
    cluster.add(task, "true", &[("image", "registry.invalid/nobody/nothing:1")]).await?;
    let event = waiting(&cluster, task).await?;
    // The registry is not there: no fault of the image's name.
    assert_eq!(event.failure_class(), FailureClass::Infrastructure, "{event:?}");
    assert!(event.message.contains("registry.invalid/nobody/nothing:1"), "{}", event.message);
    cancel(&cluster, task).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: cargo xtask test --kind"]
async fn a_worker_that_no_node_takes_is_told_where_the_log_would_be() -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    let task = &cluster.task_id("no-node");
    cluster.add(task, "true", &[("resource_class", "nowhere")]).await?;
    let event = waiting(&cluster, task).await?;
    assert_eq!(event.failure_class(), FailureClass::Unschedulable, "{event:?}");
    assert!(event.message.contains("node"), "{}", event.message);
    cancel(&cluster, task).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: cargo xtask test --kind"]
async fn a_command_that_is_not_in_the_image_fails_with_its_name() -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    let task = &cluster.task_id("no-command");
    cluster.add(task, "", &[("command", r#"["/no/such/program"]"#)]).await?;
    let ended = cluster.ended(task).await?;
    assert_eq!(ended.state(), TaskState::Failed);
    assert!(ended.error_message.contains("/no/such/program"), "{}", ended.error_message);
    let event = cluster.told(task, Type::Failed).await?;
    assert_eq!(event.failure_class(), FailureClass::Image, "{event:?}");
    Ok(())
}
