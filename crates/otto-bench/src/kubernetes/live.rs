//! Ten thousand workers that live, and nothing happens; then one of them ends.

use std::path::Path;
use std::time::{Duration, Instant};

use otto_testkit::ControlPlane;
use redis::AsyncCommands;
use redis::streams::{StreamRangeReply, StreamReadOptions, StreamReadReply};

use super::pods::Pods;
use super::{LIMIT, add, requests, scaler};
use crate::report::Report;
use crate::stats::Sample;

/// Nothing happens for so long.
const IDLE: Duration = Duration::from_secs(30);
/// After the last Pod runs: what the scaler still notes down is not idleness.
const SETTLE: Duration = Duration::from_secs(5);
/// Pods that end one after another.
const ENDING: usize = 50;

pub(super) async fn run(plane: &ControlPlane, dir: &Path, report: &mut Report, count: usize) -> anyhow::Result<()> {
    // No kwok: nothing but the benchmark changes the Pods.
    let namespace = plane.namespace("live").await?;
    let mut driven = scaler(&namespace, dir, "ever", &[]).await?;
    let pods = Pods::watch(&namespace).await?;
    add(&mut driven.redis, (0..count).map(|n| format!("live-{n}"))).await?;
    pods.at_least(count, LIMIT).await?;
    drop(pods);
    let names: Vec<String> = namespace
        .pods()
        .list_metadata(&Default::default())
        .await?
        .items
        .into_iter()
        .filter_map(|pod| pod.metadata.name)
        .collect();
    for chunk in names.chunks(32) {
        futures::future::try_join_all(chunk.iter().map(|name| namespace.run_pod(name))).await?;
    }
    driven.settled().await?;
    tokio::time::sleep(SETTLE).await;
    let (before, asked) = (driven.scaler.process.cpu_seconds()?, requests(&namespace)?);
    tokio::time::sleep(IDLE).await;
    let busy = (driven.scaler.process.cpu_seconds()? - before) / IDLE.as_secs_f64() * 100.0;
    let mut asked_then = requests(&namespace)?;
    asked_then.retain(|what, n| asked.get(what) != Some(n));
    let of_pods: usize = asked_then.iter().filter(|(what, _)| what.starts_with("pods")).map(|(_, n)| n).sum();
    report.row(
        format!("{count} live workers: resident"),
        driven.scaler.process.resident_bytes()? as f64 / 1e6,
        "MB",
        Some("≤ 100".into()),
    );
    report.row(format!("{count} live workers: CPU while nothing happens"), busy, "% of a core", Some("≤ 2".into()));
    report.row(format!("requests about Pods in {} s of that", IDLE.as_secs()), of_pods as f64, "", Some("0".into()));

    driven.scaler.process.kill().await?;
    let start = Instant::now();
    driven.scaler.restart().await?;
    driven.ready().await?;
    report.row("restart to fully synced", start.elapsed().as_secs_f64(), "s", Some("≤ 5".into()));

    let mut noticed = Sample::default();
    for name in names.iter().take(ENDING) {
        let last: StreamRangeReply = driven.redis.xrevrange_count("otto:worker:events", "+", "-", 1).await?;
        let mut from = last.ids.into_iter().next().map_or_else(|| "0".to_owned(), |entry| entry.id);
        namespace.end_pod(name, 0, "").await?;
        let start = Instant::now();
        'noticed: loop {
            let options = StreamReadOptions::default().block(1_000);
            let reply: StreamReadReply =
                driven.redis.xread_options(&["otto:worker:events"], &[&from], &options).await?;
            for entry in reply.keys.into_iter().flat_map(|key| key.ids) {
                from.clone_from(&entry.id);
                let is = |field: &str, value: &str| {
                    entry.get::<String>(field).is_some_and(|found| found.eq_ignore_ascii_case(value))
                };
                if is("worker_id", name) && is("type", "succeeded") {
                    break 'noticed;
                }
            }
            anyhow::ensure!(start.elapsed() < Duration::from_secs(60), "{name} ended, and nobody was told");
        }
        noticed.push(start.elapsed().as_secs_f64() * 1e3);
    }
    report.row("a Pod's end until otto:worker:events tells it, p50", noticed.quantile(0.5), "ms", Some("≤ 50".into()));
    report.row("a Pod's end until otto:worker:events tells it, p99", noticed.quantile(0.99), "ms", None);
    Ok(())
}
