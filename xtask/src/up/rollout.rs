//! Waiting until everything runs as applied.

use std::collections::HashMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::Value;

use super::cluster::Cluster;
use super::why;
use crate::interrupt::Interrupt;
use crate::tools;

const WITHIN: Duration = Duration::from_secs(300);
/// When nothing has changed for so long, warnings about Pods are looked for.
const SILENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A program that ended so often while we wait does not come up by waiting.
const RESTARTS: u64 = 3;

/// Waits for every Deployment and StatefulSet of the namespace, and tells what changes.
///
/// # Errors
/// Why a Pod does not become ready: its conditions, its last words, its events.
pub(super) fn wait(cluster: &Cluster, interrupt: &Interrupt) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut told = String::new();
    let mut silent_since = start;
    let mut warned = Vec::new();
    let mut before = HashMap::new();
    loop {
        let all = cluster.get(&["deployments,statefulsets,pods", "--namespace=ottoscaler"])?;
        let items = all["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let sets: Vec<_> = items.iter().filter(|item| item["kind"] != "Pod").map(Progress::of).collect();
        let pods: Vec<_> = items.iter().filter(|item| item["kind"] == "Pod").collect();
        let state = line(&sets, &pods);
        if state != told {
            eprintln!("xtask: {state}");
            told = state;
            silent_since = Instant::now();
        }
        if !sets.is_empty() && sets.iter().all(Progress::done) {
            return Ok(());
        }
        let hopeless = pods.iter().any(|pod| {
            let now = restarts(pod);
            now >= *before.entry(pod["metadata"]["uid"].to_string()).or_insert(now) + RESTARTS
        });
        if hopeless || start.elapsed() > WITHIN {
            let waiting: Vec<_> = sets.iter().filter(|set| !set.done()).map(|set| set.name.as_str()).collect();
            let what = if hopeless { "it ends again and again".to_owned() } else { format!("not within {WITHIN:?}") };
            bail!("{} did not come up ({what}):\n{}", waiting.join(", "), why::of_pods(cluster, &pods));
        }
        if silent_since.elapsed() > SILENCE {
            silent_since = Instant::now();
            for warning in why::warnings(cluster, &pods)
                .into_iter()
                .filter(|warning| !warned.contains(warning))
                .collect::<Vec<_>>()
            {
                eprintln!("xtask: {warning}");
                warned.push(warning);
            }
        }
        interrupt.pause(LOOK_EVERY)?;
    }
}

/// Deletes StatefulSets of an earlier `up` that cannot become what is applied now, because the field that differs is fixed:
/// without their Pods and volumes, which the new ones adopt.
pub(super) fn let_go(cluster: &Cluster) -> anyhow::Result<()> {
    let all = cluster.get(&["statefulsets", "--namespace=ottoscaler"])?;
    for set in all["items"].as_array().into_iter().flatten().filter(|set| is_ordered(set)) {
        let name = set["metadata"]["name"].as_str().unwrap_or_default();
        // Others are somebody else's.
        if !OURS.contains(&name) {
            continue;
        }
        eprintln!("xtask: {name} is made again: its podManagementPolicy cannot be changed; its Pods stay");
        let mut delete = cluster.kubectl();
        delete.args(["delete", "statefulset", name, "--namespace=ottoscaler", "--cascade=orphan"]);
        tools::run(delete.stdout(Stdio::null()))?;
    }
    Ok(())
}

/// The StatefulSets of the dev overlay.
const OURS: [&str; 2] = ["otto-log-ingest", "otto-redis"];

fn is_ordered(set: &Value) -> bool {
    set["spec"]["podManagementPolicy"] != "Parallel"
}

fn line(sets: &[Progress], pods: &[&Value]) -> String {
    let mut parts: Vec<_> =
        sets.iter().map(|set| format!("{} {}/{}", set.name, set.updated_ready(), set.wanted)).collect();
    parts.extend(pods.iter().filter_map(|pod| why::short(pod)));
    parts.join(", ")
}

fn restarts(pod: &Value) -> u64 {
    let containers = pod["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let bad = containers.iter().filter(|container| container["ready"] != true);
    bad.filter_map(|container| container["restartCount"].as_u64()).max().unwrap_or(0)
}

/// How far a Deployment or StatefulSet is.
struct Progress {
    name: String,
    wanted: u64,
    ready: u64,
    updated: u64,
    total: u64,
    /// Its controller has seen what was applied.
    observed: bool,
}

impl Progress {
    fn of(set: &Value) -> Self {
        let (spec, status) = (&set["spec"], &set["status"]);
        let number = |name: &str| status[name].as_u64().unwrap_or(0);
        let updated = match status["updateRevision"].as_str() {
            // A StatefulSet that has nothing to update leaves the number out.
            Some(revision) if status["currentRevision"] == revision => number("replicas"),
            _ => number("updatedReplicas"),
        };
        Self {
            name: set["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            wanted: spec["replicas"].as_u64().unwrap_or(1),
            ready: number("readyReplicas"),
            updated,
            total: number("replicas"),
            observed: number("observedGeneration") >= set["metadata"]["generation"].as_u64().unwrap_or(0),
        }
    }

    fn updated_ready(&self) -> u64 {
        if self.observed { self.ready.min(self.updated) } else { 0 }
    }

    fn done(&self) -> bool {
        self.observed && self.ready == self.wanted && self.updated == self.wanted && self.total == self.wanted
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(generation: u64, status: Value) -> Progress {
        Progress::of(
            &json!({"metadata": {"name": "x", "generation": generation}, "spec": {"replicas": 3}, "status": status}),
        )
    }

    #[test]
    fn a_rollout_is_done_when_all_replicas_are_new_and_ready() {
        let new = json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "readyReplicas": 3});
        assert!(set(2, new.clone()).done());
        assert!(!set(3, new).done(), "not seen yet");
        assert!(
            !set(2, json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 3, "readyReplicas": 3})).done()
        );
        assert!(
            !set(2, json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1, "readyReplicas": 3})).done()
        );
        assert!(!set(2, json!({"observedGeneration": 2})).done());
        let settled = json!({"observedGeneration": 1, "replicas": 3, "readyReplicas": 3, "currentRevision": "a", "updateRevision": "a"});
        assert!(set(1, settled).done());
    }
}
