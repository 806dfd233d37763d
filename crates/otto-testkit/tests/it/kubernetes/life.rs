//! The life of workers as Pods.

use otto_proto::v1::TaskState;

use super::cluster::{Cluster, Pods};

#[tokio::test(flavor = "multi_thread")]
async fn an_event_becomes_one_pod_and_its_end_the_tasks() -> anyhow::Result<()> {
    let cluster = Cluster::start("life", Pods::Kwok, &[]).await?;
    cluster.add("task", 1, &[]).await?;
    cluster.until("task", TaskState::Succeeded).await;
    for event in cluster.worker_events("task").await? {
        println!("{event:?}");
    }
    cluster.check_launches(1).await
}
