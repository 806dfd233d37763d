//! A scaler that is killed over and over in a burst of events.

use otto_proto::v1::TaskState;
use otto_testkit::{PATIENCE, eventually};

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
        eventually(&format!("{at_least} Pods were made"), async || {
            let made = cluster.namespace.audit().ok()?.iter().filter(|event| event.is_created_pod()).count();
            (made >= at_least).then_some(())
        })
        .await;
        cluster.kill_and_restart().await?;
    }
    let started = std::time::Instant::now();
    let ended = loop {
        let all = cluster.all_tasks().await?;
        let live = all.iter().filter(|task| matches!(task.state(), TaskState::Pending | TaskState::Running)).count();
        if all.len() == EVENTS && live == 0 {
            break all;
        }
        assert!(started.elapsed() < 2 * PATIENCE, "{live} of {} tasks have not ended", all.len());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    let failed: Vec<_> = ended.iter().filter(|task| task.state() != TaskState::Succeeded).collect();
    assert!(failed.is_empty(), "{failed:?}");
    cluster.check_launches(EVENTS).await
}
