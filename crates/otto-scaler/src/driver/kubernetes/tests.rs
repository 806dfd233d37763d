//! The driver against a real API server. The kubelet is played by the tests.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser;
use kube::config::{KubeConfigOptions, Kubeconfig};
use otto_testkit::{ControlPlane, FaultProxy, Namespace, PATIENCE, eventually};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::driver::{State, name};
use crate::task::{Class, Outcome, Spec};

mod answers;
mod faults;
mod life;

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

fn options(more: &[&str]) -> Options {
    let arguments = ["x", "--agent-image", "otto-worker:test"].iter().chain(more);
    Options {
        settings: Cli::parse_from(arguments).settings,
        log_server: "http://otto-log-ingest.test:50051".to_owned(),
        worker_image: String::new(),
        worker_args: Vec::new(),
        start_patience: Duration::from_secs(300),
        stop_grace: Duration::from_secs(10),
        drain_limit: Duration::from_secs(3_600),
    }
}

async fn cluster(kubeconfig: &Path) -> Cluster {
    let file = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    Cluster::of(config, &options(&[]).settings, Default::default()).unwrap()
}

/// A driver and what it tells.
struct Driving {
    driver: Arc<KubernetesDriver>,
    changes: mpsc::Receiver<Observed>,
    stop: CancellationToken,
}

impl Drop for Driving {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Driving {
    async fn open(kubeconfig: &Path, leadership: Leadership, options: Options) -> Self {
        let stop = CancellationToken::new();
        let cluster = cluster(kubeconfig).await;
        let driver = KubernetesDriver::open(cluster, options, leadership, stop.clone()).await.unwrap();
        let (sender, changes) = mpsc::channel(1);
        driver.watch(sender).unwrap();
        Self { driver: Arc::new(driver), changes, stop }
    }

    async fn start(kubeconfig: &Path) -> Self {
        Self::open(kubeconfig, Leadership::unlimited(), options(&[])).await
    }

    /// With rights as the manifests give them, and all workers known.
    async fn synced(namespace: &Namespace<'_>) -> Self {
        let driving = Self::start(&namespace.scaler_kubeconfig(None).await.unwrap()).await;
        driving.list().await;
        driving.checked().await;
        driving
    }

    /// Waits until the cluster has taken the template: nothing is created before.
    async fn checked(&self) {
        let checked = &self.driver.shared.checked;
        eventually("the template is taken", || async { (*checked.borrow() == Checked::Good).then_some(()) }).await;
    }

    async fn list(&self) -> Vec<Observed> {
        eventually("a list", || async { self.driver.list().await.ok() }).await
    }

    async fn create(&self, task: &str) -> Result<(), DriverError> {
        bounded(self.driver.create(launch(task))).await
    }

    /// A creation in the background.
    fn creating(&self, task: &str) -> tokio::task::JoinHandle<Result<(), DriverError>> {
        let (driver, launch) = (Arc::clone(&self.driver), launch(task));
        tokio::spawn(async move { driver.create(launch).await })
    }

    /// What is told next of this task, if it is that.
    async fn told(&mut self, task: &str, wanted: impl Fn(&State) -> bool) -> Observed {
        bounded(async {
            loop {
                let seen = self.changes.recv().await.unwrap();
                if seen.key.task_id == task && wanted(&seen.state) {
                    return seen;
                }
            }
        })
        .await
    }
}

/// Fails rather than hangs.
async fn bounded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

fn key(task: &str) -> WorkerKey {
    WorkerKey { task_id: task.to_owned(), index: 0, attempt: 1 }
}

fn pod_name(task: &str) -> String {
    name::worker_name(&key(task))
}

fn launch(task: &str) -> Launch {
    let spec = Spec { image: "busybox".to_owned(), command: vec!["true".to_owned()], ..Spec::default() };
    Launch { key: key(task), spec: spec.into(), traceparent: None }
}

fn created(state: &State) -> bool {
    matches!(state, State::Created { .. })
}

fn ended(state: &State) -> bool {
    matches!(state, State::Ended { .. })
}

fn class_of(state: &State) -> Option<Class> {
    match state {
        State::Ended { outcome, .. } => Some(outcome.class),
        _ => None,
    }
}

fn refused(result: Result<(), DriverError>) -> Outcome {
    match result {
        Err(DriverError::Refused(outcome)) => outcome,
        other => panic!("{other:?}"),
    }
}

fn busy(result: Result<(), DriverError>) -> (Class, String) {
    match result {
        Err(DriverError::Busy { class, message, .. }) => (class, message),
        other => panic!("{other:?}"),
    }
}
