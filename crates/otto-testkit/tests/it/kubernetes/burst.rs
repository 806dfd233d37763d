//! A scaler that is killed over and over in a burst of events.

use otto_proto::v1::TaskState;
use otto_testkit::eventually_progressing;

use super::cluster::{Cluster, Pods};

const EVENTS: usize = 300;

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_a_burst_it_makes_no_pod_too_many_and_none_too_few() -> anyhow::Result<()> {
    let mut cluster = Cluster::start("burst", Pods::Kwok, &["--max-workers", "50"]).await?;
    for n in 0..EVENTS {
        cluster.add(&format!("task-{n}"), 1, &[]).await?;
    }
    for part in 1..=4 {
        let at_least = EVENTS * part / 6;
        eventually_progressing(&format!("{at_least} Pods were made"), async || {
            let audit = cluster.namespace.audit().map_err(|_| 0_usize)?;
            let made = audit.iter().filter(|event| event.is_created_pod()).count();
            (made >= at_least).then_some(()).ok_or(made)
        })
        .await;
        cluster.kill_and_restart().await?;
    }
    let ended = eventually_progressing("every task has ended", async || {
        // The new scaler may not lead yet.
        let all = cluster.all_tasks().await.map_err(|_| 0_usize)?;
        let live = all.iter().filter(|task| matches!(task.state(), TaskState::Pending | TaskState::Running)).count();
        if (all.len(), live) == (EVENTS, 0) { Ok(all) } else { Err(all.len() - live) }
    })
    .await;
    let failed: Vec<_> = ended.iter().filter(|task| task.state() != TaskState::Succeeded).collect();
    assert!(failed.is_empty(), "{failed:?}");
    cluster.check_launches(EVENTS).await
}
