//! Workers as Pods of a Kubernetes cluster.
//!
//! One Pod per (task, index, attempt), whose name is derived from these alone: creating it again answers 409, and our
//! labels say that it is the same one. A finished Pod stays for a while, so the name is taken long after a lost answer.

use anyhow::bail;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Driver, DriverError, Launch, Observed, WorkerKey};
use crate::leadership::Leadership;

mod classify;
mod cluster;
mod errors;
pub(crate) mod lease;
mod names;
mod pause;
mod pod;
mod seen;
mod settings;

pub(crate) use cluster::Cluster;
pub(crate) use settings::{Options, Settings};

/// The driver `kubernetes`.
#[derive(Debug)]
pub(crate) struct KubernetesDriver {}

impl KubernetesDriver {
    /// Connects, makes sure of the anchor, and checks the Pod template by a dry run. `stop` ends the watch.
    ///
    /// # Errors
    /// Names the setting at fault, or what the API server refused and the permission that is missing.
    pub(crate) async fn open(
        _cluster: Cluster,
        _options: Options,
        _leadership: Leadership,
        _stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        bail!("--driver kubernetes: not in this build yet; accepted: process")
    }
}

impl Driver for KubernetesDriver {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn worker_name(&self, key: &WorkerKey) -> String {
        super::name::worker_name(key)
    }

    fn list(&self) -> BoxFuture<'_, anyhow::Result<Vec<Observed>>> {
        Box::pin(async { bail!("not in this build yet") })
    }

    fn create(&self, _launch: Launch) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(std::future::pending())
    }

    fn stop<'a>(&'a self, _key: &'a WorkerKey) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async { bail!("not in this build yet") })
    }

    fn remove<'a>(&'a self, _key: &'a WorkerKey) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async { bail!("not in this build yet") })
    }

    fn watch(&self, _changes: mpsc::Sender<Observed>) -> anyhow::Result<()> {
        bail!("not in this build yet")
    }

    fn closed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
