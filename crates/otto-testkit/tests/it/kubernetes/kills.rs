//! The scaler is killed at every step of an event's way.

use futures::{StreamExt, stream};
use otto_proto::v1::TaskState;
use otto_testkit::{Fault, Rule, eventually};

use super::cluster::{Cluster, Pods};
use super::redis_gate::Hold;

/// Where the scaler is when it is killed.
#[derive(Clone, Debug)]
enum At {
    /// Redis has this command (a record with this text), or not yet.
    Record(Hold, &'static str),
    /// The API server has this request, or not yet; or gets it when its sender is dead.
    Create(Fault),
    /// The same, of what stops a worker.
    Delete(Fault),
}

const NEW: &str = r#""phase":"live""#;
const ENDED: &str = r#""phase":"succeeded""#;
const CANCELLING: &str = r#""phase":"cancelling""#;

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_step_it_starts_each_worker_once_and_forgets_none() {
    let steps = [
        At::Record(Hold::Command, NEW),
        At::Record(Hold::Answer, NEW),
        At::Create(Fault::HoldBefore),
        At::Create(Fault::HoldAfter),
        At::Create(Fault::Late),
        At::Record(Hold::Command, ENDED),
        At::Record(Hold::Answer, ENDED),
        At::Record(Hold::Command, CANCELLING),
        At::Record(Hold::Answer, CANCELLING),
        At::Delete(Fault::HoldBefore),
        At::Delete(Fault::HoldAfter),
        At::Delete(Fault::Late),
    ];
    stream::iter(steps)
        .for_each_concurrent(3, async |step| {
            let name = format!("{step:?}");
            if let Err(error) = killed_at(step).await {
                panic!("{name}: {error:#}");
            }
            println!("{name}: fine");
        })
        .await;
}

async fn killed_at(step: At) -> anyhow::Result<()> {
    let mut cluster = Cluster::start("killed", Pods::ByHand, &[]).await?;
    let cancelled = matches!(step, At::Delete(_) | At::Record(_, CANCELLING));
    let hold = match &step {
        At::Record(what, text) => {
            cluster.gate.hold(*what, text);
            None
        }
        At::Create(fault) => Some(cluster.proxy.add(Rule::create_pod(fault.clone()))),
        At::Delete(fault) => Some(cluster.proxy.add(Rule::delete_pod(fault.clone()))),
    };
    cluster.add("task", 1, &[]).await?;
    if cancelled || matches!(step, At::Record(_, ENDED)) {
        let pod = cluster.pod("task", 0, 1).await;
        cluster.namespace.run_pod(&pod).await?;
        if cancelled {
            crate::system::add(
                &mut cluster.redis.connect().await?,
                &[("type", "scale_down"), ("task_id", "task"), ("pod_count", "0")],
            )
            .await?;
        } else {
            cluster.namespace.end_pod(&pod, 0, "").await?;
        }
    }
    match &hold {
        Some(hold) => hold.reached(1).await,
        None => cluster.gate.reached().await,
    }
    cluster.kill().await?;
    cluster.gate.open();
    let late = matches!(step, At::Create(Fault::Late) | At::Delete(Fault::Late));
    if let (Some(hold), false) = (&hold, late) {
        hold.remove();
    }
    if late {
        // The next scaler's own requests pass; that of the dead one comes later.
        cluster.proxy.clear();
    }
    cluster.scaler.restart().await?;

    if cancelled {
        eventually("the Pod is told to go", async || {
            let pods = cluster.namespace.list_pods().await.ok()?;
            pods.iter().all(|pod| pod.metadata.deletion_timestamp.is_some()).then_some(())
        })
        .await;
        for pod in cluster.namespace.list_pods().await? {
            cluster.namespace.let_go(pod.metadata.name.as_deref().unwrap_or_default()).await?;
        }
        cluster.until("task", TaskState::Cancelled).await;
    } else {
        let pod = cluster.pod("task", 0, 1).await;
        if !matches!(step, At::Record(_, ENDED)) {
            cluster.namespace.run_pod(&pod).await?;
            cluster.namespace.end_pod(&pod, 0, "").await?;
        }
        cluster.until("task", TaskState::Succeeded).await;
    }
    if let (Some(hold), true) = (&hold, late) {
        hold.release();
        // What is late is there when the server has answered it: a creation with 409, a deletion with 404 or 409.
        eventually("what was late has been answered", async || {
            let all = cluster.namespace.audit().ok()?;
            all.iter()
                .any(|event| event.object_ref.resource == "pods" && event.response_status.code >= 400)
                .then_some(())
        })
        .await;
    }
    // A marker behind it all: what comes now is done, so nothing of before is still under way.
    cluster.add("marker", 1, &[]).await?;
    cluster.pod("marker", 0, 1).await;
    cluster.check_launches(2).await
}

/// What is left of an ended worker is removed: by a scaler that is killed while it does, and the event comes once more.
#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_cleans_up_it_runs_nothing_again() -> anyhow::Result<()> {
    for fault in [Fault::HoldBefore, Fault::HoldAfter, Fault::Late] {
        let mut cluster = Cluster::start("removing", Pods::Kwok, &["--max-ended", "1"]).await?;
        cluster.add("first", 1, &[]).await?;
        cluster.until("first", TaskState::Succeeded).await;
        let hold = cluster.proxy.add(Rule::delete_pod(fault.clone()).times(1));
        cluster.add("second", 1, &[]).await?;
        hold.reached(1).await;
        cluster.kill().await?;
        cluster.scaler.restart().await?;
        // Which of them is the older one is not known if they ended in the same second.
        for task in ["first", "second"] {
            cluster.add(task, 1, &[]).await?;
        }
        eventually(&format!("{fault:?}: the older Pod is removed"), async || {
            (cluster.namespace.list_pods().await.ok()?.len() == 1).then_some(())
        })
        .await;
        hold.release();
        cluster.add("marker", 1, &[]).await?;
        cluster.until("marker", TaskState::Succeeded).await;
        for task in ["first", "second"] {
            assert_eq!(cluster.task(task).await.map(|task| task.state()), Some(TaskState::Succeeded), "{fault:?}");
        }
        cluster.check_launches(3).await?;
    }
    Ok(())
}
