//! How long an event takes to its first line before a reader, beside the same job in a Pod created by hand, as anybody
//! creates one: with the service account's token, whose volume the kubelet waits for as it does for ours.

use std::time::{Duration, Instant, SystemTime};

use futures::AsyncBufReadExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, LogParams, PostParams};
use otto_proto::v1::{ReadLogsRequest, TaskState};
use serde_json::json;

use crate::cluster::{Cluster, within};

const ROUNDS: usize = 7;
/// What Ottoscaler may add on a machine that does nothing else. On a loaded one a container more takes longer, as the bare
/// Pod's does.
const LIMIT: Duration = Duration::from_millis(250);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: cargo xtask test --kind"]
async fn an_event_is_a_line_before_a_reader_soon_after_a_bare_pod_would_be() -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    // In turns, so that what the machine does besides meets both.
    for round in 0..ROUNDS {
        bare.push(bare_pod(&cluster, &cluster.task_id(&format!("bare-{round}"))).await?);
        ours.push(event(&cluster, &cluster.task_id(&format!("soon-{round}"))).await?);
    }
    bare.sort();
    ours.sort();
    let (bare_median, ours_median) = (bare[ROUNDS / 2], ours[ROUNDS / 2]);
    let more = ours_median.saturating_sub(bare_median);
    println!("bare Pod, create to first line: {bare:?}");
    println!("event to first line at a reader: {ours:?}");
    println!("median {ours_median:?} against {bare_median:?}: {more:?} more (limit {LIMIT:?})");
    assert!(more <= LIMIT.max(bare_median), "{more:?} more than a bare Pod");
    Ok(())
}

/// From the request to the time the kubelet's log gives the first line.
async fn bare_pod(cluster: &Cluster, name: &str) -> anyhow::Result<Duration> {
    let pods = cluster.workers();
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "job", "image": cluster.job_image(), "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", "echo first"],
            }],
        },
    }))?;
    let start = SystemTime::now();
    pods.create(&PostParams::default(), &pod).await?;
    let log = LogParams { timestamps: true, ..LogParams::default() };
    let line = within("the bare Pod's line", async || {
        // Not before its container has begun.
        let mut lines = pods.log_stream(name, &log).await.ok()?.lines();
        futures::StreamExt::next(&mut lines).await?.ok()
    })
    .await?;
    let time = line.split(' ').next().unwrap_or_default();
    let printed = time.parse::<k8s_openapi::jiff::Timestamp>()?;
    pods.delete(name, &DeleteParams::default()).await?;
    Ok(SystemTime::from(printed).duration_since(start)?)
}

/// From the event to the line at somebody who follows the log.
async fn event(cluster: &Cluster, task: &str) -> anyhow::Result<Duration> {
    let mut logs = cluster.logs();
    let mut following =
        logs.tail_logs(ReadLogsRequest { task_id: task.to_owned(), ..ReadLogsRequest::default() }).await?.into_inner();
    let (start, began) = (Instant::now(), SystemTime::now());
    cluster.add(task, "echo first", &[]).await?;
    let took = loop {
        let part = following.message().await?;
        let part = part.ok_or_else(|| anyhow::anyhow!("the log ended without a line"))?;
        if let Some(line) = part.lines.first() {
            let took = start.elapsed();
            let printed = Duration::from_nanos(line.time_unix_nanos.unsigned_abs())
                .saturating_sub(began.duration_since(SystemTime::UNIX_EPOCH)?);
            println!("{task}: printed after {printed:?}, read after {took:?}");
            break took;
        }
    };
    assert_eq!(cluster.ended(task).await?.state(), TaskState::Succeeded);
    Ok(took)
}
