//! Workers as Pods of a Kubernetes cluster.
//!
//! One Pod per (task, index, attempt), whose name is derived from these alone: creating it again answers 409, and our
//! labels say that it is the same one. A finished Pod stays for a while, so the name is taken long after a lost answer.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::bail;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc, watch as channel};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Driver, DriverError, Launch, Observed, Removal, WorkerKey};
use crate::leadership::Leadership;
use crate::task::Millis;

mod anchor;
mod calls;
mod classify;
mod cluster;
mod errors;
mod events;
mod feed;
pub(crate) mod image;
pub(crate) mod lease;
mod merge;
mod names;
mod pause;
mod pod;
mod preflight;
mod seen;
mod settings;
mod template;
mod watch;
mod workers;

pub(crate) use cluster::Cluster;
pub(crate) use settings::{Options, Settings, resource_classes};

use anchor::Anchor;
use pod::PodMaker;
use preflight::Checked;
use workers::Workers;

/// When the scaler ends, what was sent is given so long to be answered, so that it does not reach the server after the Lease
/// was given back. What is late all the same does no harm: the Pod's name is the same for whoever asks for it next.
const CALLS_END: Duration = Duration::from_millis(500);

/// A list waits so long for the first look at the cluster before it fails, and says why.
const LIST_WAITS: Duration = Duration::from_secs(3);

/// The start waits so long for an answer about the Pod template.
const FIRST_CHECK: Duration = Duration::from_secs(5);

/// Whether all workers that exist are known.
#[derive(Debug)]
struct Synced {
    /// Number of the look at the cluster that is wanted. It rises when what was seen before may be too old.
    wanted: u64,
    /// Number of the last look that was complete.
    seen: Option<u64>,
    /// Why there is none.
    why: String,
}

impl Synced {
    fn is_done(&self) -> bool {
        self.seen == Some(self.wanted)
    }
}

/// What all parts of the driver share.
#[derive(Debug)]
struct Shared {
    cluster: Cluster,
    leadership: Leadership,
    maker: PodMaker,
    anchor: Anchor,
    workers: Workers,
    synced: channel::Sender<Synced>,
    checked: channel::Sender<Checked>,
    /// Requests under way at once, creations and watches apart.
    calls: Semaphore,
    drain_limit: Duration,
    watched: OnceLock<()>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Shared {
    fn is_synced(&self) -> bool {
        self.synced.borrow().is_done()
    }

    async fn list(&self) -> anyhow::Result<Vec<Observed>> {
        let mut synced = self.synced.subscribe();
        let known = synced.wait_for(Synced::is_done);
        let waited = tokio::time::timeout(LIST_WAITS, known).await.is_ok_and(|known| known.is_ok());
        if !waited {
            let synced = self.synced.borrow();
            anyhow::ensure!(synced.is_done(), "{}", synced.why);
        }
        Ok(self.workers.all())
    }

    /// From now on only a look at the cluster counts that begins after this.
    fn look_anew(&self) {
        let why = format!("the API server {} has not told yet which workers exist now", self.cluster.url());
        self.synced.send_modify(|synced| {
            synced.wanted += 1;
            synced.why = why;
        });
    }
}

/// The driver `kubernetes`.
#[derive(Debug)]
pub(crate) struct KubernetesDriver {
    shared: Arc<Shared>,
}

impl KubernetesDriver {
    /// Begins to follow the cluster's workers; that goes on, and says why if it cannot, until `stop`. An API server that is
    /// away is no error: it is waited for.
    ///
    /// # Errors
    /// Names the setting at fault.
    pub(crate) async fn open(
        cluster: Cluster,
        options: Options,
        leadership: Leadership,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let maker = PodMaker::open(&options, cluster.namespace())?;
        if let Some(audience) = &options.settings.worker_token_audience {
            tracing::warn!(
                audience,
                "workers send tokens of their service account (--worker-token-audience), which otto-log-ingest refuses: their \
                 log server must be one of another make, that verifies them"
            );
        }
        let calls = options.settings.max_api_calls;
        anyhow::ensure!(calls > 0, "--max-api-calls: accepted: 1 or more");
        let waiting = format!("the API server {} has not told yet which workers exist", cluster.url());
        let shared = Arc::new(Shared {
            cluster,
            leadership,
            maker,
            anchor: Anchor::new(),
            workers: Workers::new(options.start_patience),
            synced: channel::Sender::new(Synced { wanted: 0, seen: None, why: waiting.clone() }),
            checked: channel::Sender::new(Checked::NotYet(waiting)),
            calls: Semaphore::new(calls.min(Semaphore::MAX_PERMITS)),
            drain_limit: options.drain_limit,
            watched: OnceLock::new(),
            stop: stop.clone(),
            tracker: TaskTracker::new(),
        });
        // A template that is wrong is told at once, if the server is there to say so.
        match tokio::time::timeout(FIRST_CHECK, preflight::once(&shared)).await {
            Ok(Checked::Refused(error)) => bail!(error),
            Ok(Checked::Good) => {
                shared.checked.send_replace(Checked::Good);
            }
            Ok(Checked::NotYet(_)) | Err(_) => {}
        }
        shared.tracker.spawn(watch::run(Arc::clone(&shared), stop));
        Ok(Self { shared })
    }
}

/// Milliseconds since the Unix epoch.
fn now() -> Millis {
    jiff::Timestamp::now().as_millisecond()
}

impl Driver for KubernetesDriver {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn worker_name(&self, key: &WorkerKey) -> String {
        super::name::worker_name(key)
    }

    fn list(&self) -> BoxFuture<'_, anyhow::Result<Vec<Observed>>> {
        self.shared.list().boxed()
    }

    fn create(&self, launch: Launch) -> BoxFuture<'_, Result<(), DriverError>> {
        async move { self.shared.create(&launch).await }.boxed()
    }

    fn stop<'a>(&'a self, key: &'a WorkerKey) -> BoxFuture<'a, anyhow::Result<()>> {
        self.shared.stop(key).boxed()
    }

    fn remove<'a>(&'a self, key: &'a WorkerKey) -> BoxFuture<'a, anyhow::Result<Removal>> {
        self.shared.remove(key).boxed()
    }

    fn watch(&self, changes: mpsc::Sender<Observed>) -> anyhow::Result<()> {
        let shared = &self.shared;
        if shared.watched.set(()).is_err() {
            bail!("the Kubernetes driver is watched already");
        }
        shared.workers.tell();
        // Who begins to lead concludes from what it does not see. What was seen until now may lag behind what the leader
        // before did, by as long as a silent watch goes unnoticed.
        shared.look_anew();
        shared.tracker.spawn(watch::tell(Arc::clone(shared), changes, shared.stop.clone()));
        Ok(())
    }

    fn ends_within(&self) -> Duration {
        CALLS_END
    }

    fn closed(&self) -> BoxFuture<'_, ()> {
        async {
            self.shared.tracker.close();
            self.shared.tracker.wait().await;
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests;
