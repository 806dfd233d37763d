//! What a watch sees of the Pods of a namespace, and when.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use kube::runtime::watcher::{self, Event, watcher};
use otto_testkit::Namespace;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Took;

#[derive(Default)]
struct Seen {
    /// By the Pod's own id, which is never used again.
    pods: HashMap<String, Times>,
    succeeded: usize,
    last_created: Option<Instant>,
    last_succeeded: Option<Instant>,
}

struct Times {
    task: String,
    created: Instant,
    succeeded: bool,
}

/// All Pods that were ever seen since the watch began; ends when it is dropped.
pub(super) struct Pods {
    seen: Arc<Mutex<Seen>>,
    changed: watch::Receiver<()>,
    watching: JoinHandle<()>,
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Pods {
    /// Begins to watch; what is there already counts, too.
    pub(super) async fn watch(namespace: &Namespace<'_>) -> anyhow::Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (notice, mut changed) = watch::channel(());
        let (into, api) = (Arc::clone(&seen), namespace.pods());
        let watching = tokio::spawn(async move {
            let mut events = watcher(api, watcher::Config::default().timeout(290)).boxed();
            while let Some(event) = events.next().await {
                let now = Instant::now();
                let mut seen = into.lock().unwrap_or_else(PoisonError::into_inner);
                match event {
                    Ok(Event::Apply(pod) | Event::InitApply(pod)) => seen.see(&pod, now),
                    Ok(Event::Delete(_) | Event::Init | Event::InitDone) => {}
                    Err(error) => eprintln!("the watch of the benchmark: {error}"),
                }
                drop(seen);
                notice.send_replace(());
            }
        });
        // The first word says that it has begun.
        changed.changed().await?;
        Ok(Self { seen, changed, watching })
    }

    async fn until<T>(&self, limit: Duration, done: impl Fn(&Seen) -> Option<T>) -> anyhow::Result<T> {
        let (mut changed, start) = (self.changed.clone(), Instant::now());
        loop {
            {
                let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(value) = done(&seen) {
                    return Ok(value);
                }
                if start.elapsed() > limit {
                    bail!("not within {limit:?}: {} Pods seen, {} succeeded", seen.pods.len(), seen.succeeded);
                }
            }
            let _ = tokio::time::timeout(Duration::from_secs(1), changed.changed()).await;
        }
    }

    /// When the Pod of a task was seen first.
    pub(super) async fn created(&self, task: &str) -> anyhow::Result<Instant> {
        let limit = Duration::from_secs(60);
        self.until(limit, |seen| seen.pods.values().find(|pod| pod.task == task).map(|pod| pod.created)).await
    }

    /// Waits for so many Pods.
    pub(super) async fn at_least(&self, count: usize, limit: Duration) -> anyhow::Result<()> {
        self.until(limit, |seen| (seen.pods.len() >= count).then_some(())).await
    }

    /// Seconds since `sent` until the last of so many was there, and had succeeded.
    pub(super) async fn all(&self, sent: Instant, count: usize, limit: Duration) -> anyhow::Result<Took> {
        self.until(limit, |seen| {
            let (created, succeeded) = (seen.last_created?, seen.last_succeeded?);
            (seen.succeeded >= count)
                .then(|| Took { exist: (created - sent).as_secs_f64(), done: (succeeded - sent).as_secs_f64() })
        })
        .await
    }

    pub(super) fn count(&self) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).pods.len()
    }

    /// Pods beyond one per task, and tasks without one.
    pub(super) fn surplus_and_missing(&self, tasks: impl Iterator<Item = String>) -> (usize, usize) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut of: HashMap<&str, usize> = HashMap::new();
        for pod in seen.pods.values() {
            *of.entry(&pod.task).or_default() += 1;
        }
        let (mut surplus, mut missing) = (seen.pods.len(), 0);
        for task in tasks {
            match of.get(task.as_str()) {
                Some(_) => surplus -= 1,
                None => missing += 1,
            }
        }
        (surplus, missing)
    }

    /// Deletes what is left in the namespace, and waits until it is empty.
    pub(super) async fn clear(self, namespace: &Namespace<'_>) -> anyhow::Result<()> {
        let (api, start) = (namespace.pods(), Instant::now());
        let now = DeleteParams::default().grace_period(0);
        loop {
            api.delete_collection(&now, &ListParams::default()).await?;
            if api.list_metadata(&ListParams::default().limit(1)).await?.items.is_empty() {
                return Ok(());
            }
            anyhow::ensure!(start.elapsed() < Duration::from_secs(300), "{} does not become empty", namespace.name());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Seen {
    fn see(&mut self, pod: &Pod, now: Instant) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Succeeded");
        let last_created = &mut self.last_created;
        let known = self.pods.entry(uid).or_insert_with(|| {
            *last_created = Some(now);
            let label = |labels: &std::collections::BTreeMap<String, String>| labels.get("ottoscaler.io/task").cloned();
            let task = pod.metadata.labels.as_ref().and_then(label).unwrap_or_default();
            Times { task, created: now, succeeded: false }
        });
        if ended && !known.succeeded {
            known.succeeded = true;
            self.succeeded += 1;
            self.last_succeeded = Some(now);
        }
    }
}
