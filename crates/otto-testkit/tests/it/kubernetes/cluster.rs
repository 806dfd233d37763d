//! A scaler with the Kubernetes driver, all it needs, and what tests ask of it.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use otto_proto::v1::task_service_client::TaskServiceClient;
use otto_proto::v1::{GetTaskRequest, ListTasksRequest, Task, TaskState};
use otto_testkit::{ControlPlane, FaultProxy, Namespace, PodHistory, PodScaler, RedisServer, eventually};
use redis::aio::MultiplexedConnection;
use serde_json::json;
use tempfile::TempDir;
use tonic::Code;
use tonic::transport::Channel;

use super::redis_gate::RedisGate;
use crate::system::STREAM;

/// Who plays the Pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pods {
    ByHand,
    Kwok,
}

/// Dropped in the order of its fields: the scaler first.
pub(crate) struct Cluster {
    pub(crate) scaler: PodScaler,
    pub(crate) proxy: FaultProxy,
    pub(crate) gate: RedisGate,
    pub(crate) redis: RedisServer,
    pub(crate) namespace: Namespace<'static>,
    /// Those that every scaler here has.
    pub(crate) flags: Vec<String>,
    history: PodHistory,
    _dir: TempDir,
}

impl Cluster {
    /// With nobody listening where the log server should be.
    pub(crate) async fn start(name: &str, pods: Pods, flags: &[&str]) -> anyhow::Result<Self> {
        Self::start_with_logs(name, pods, "http://127.0.0.1:1", flags).await
    }

    pub(crate) async fn start_with_logs(name: &str, pods: Pods, logs: &str, flags: &[&str]) -> anyhow::Result<Self> {
        let setup = Setup::new(name, pods).await?;
        let kubeconfig = setup.namespace.scaler_kubeconfig(Some(&setup.proxy.url())).await?;
        let mut cluster = setup.start(&kubeconfig, logs, flags).await?;
        cluster.scaler.until_ready().await?;
        Ok(cluster)
    }

    /// SIGKILL. The Lease is given up for it: that it runs out is tested elsewhere, and takes its time.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        self.scaler.process.kill().await?;
        let leases = self.namespace.api::<Lease>();
        if leases.get_opt("otto-scaler").await?.is_some() {
            let free = Patch::Merge(json!({"spec": {"holderIdentity": "", "leaseDurationSeconds": 1}}));
            leases.patch("otto-scaler", &PatchParams::default(), &free).await?;
        }
        Ok(())
    }

    /// Killed, and started again on the same addresses.
    pub(crate) async fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.kill().await?;
        self.scaler.restart().await?;
        self.scaler.until_ready().await
    }

    /// Adds an event for workers of a task; further fields may follow.
    pub(crate) async fn add(&self, task_id: &str, workers: u32, more: &[(&str, &str)]) -> anyhow::Result<()> {
        let workers = workers.to_string();
        let mut fields = vec![
            ("type", "scale_up"),
            ("task_id", task_id),
            ("pod_count", &workers),
            ("image", "example.com/job:1"),
            ("command", r#"["true"]"#),
        ];
        fields.extend(more);
        crate::system::add(&mut self.redis.connect().await?, &fields).await?;
        Ok(())
    }

    pub(crate) async fn tasks(&self) -> anyhow::Result<TaskServiceClient<Channel>> {
        Ok(TaskServiceClient::new(self.scaler.channel().await?))
    }

    /// A task as the scaler tells it; `None`: it knows none, or cannot say now.
    pub(crate) async fn task(&self, task_id: &str) -> Option<Task> {
        let mut tasks = self.tasks().await.ok()?;
        match tasks.get_task(GetTaskRequest { task_id: task_id.to_owned() }).await {
            Ok(task) => Some(task.into_inner()),
            Err(status) if matches!(status.code(), Code::NotFound | Code::Unavailable) => None,
            Err(status) => panic!("GetTask: {status}"),
        }
    }

    pub(crate) async fn until(&self, task_id: &str, state: TaskState) -> Task {
        eventually(&format!("{task_id} is {state:?} ({})", self.namespace.name()), async || {
            self.task(task_id).await.filter(|task| task.state() == state)
        })
        .await
    }

    pub(crate) async fn all_tasks(&self) -> anyhow::Result<Vec<Task>> {
        let mut tasks = self.tasks().await?;
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListTasksRequest { page_size: 1_000, page_token, states: Vec::new() };
            let page = tasks.list_tasks(request).await?.into_inner();
            all.extend(page.tasks);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// Waits for the Pod of a worker that has a node.
    pub(crate) async fn pod(&self, task_id: &str, index: u32, attempt: u32) -> String {
        eventually(&format!("the Pod of {task_id}-{index}-{attempt} ({})", self.namespace.name()), async || {
            let pods = self.namespace.list_pods().await.ok()?;
            let pod = pods.into_iter().find(|pod| key_of(pod) == (task_id.to_owned(), index, attempt))?;
            pod.spec?.node_name?;
            pod.metadata.name
        })
        .await
    }

    /// Invariant L: no worker ever had two Pods, and there were so many workers. What the API server
    /// showed and wrote down, not what the scaler says.
    pub(crate) async fn check_launches(&self, workers: usize) -> anyhow::Result<()> {
        let name = self.namespace.name();
        let audit = self.namespace.audit()?;
        let pods = self.history.all().await?;
        let twice: Vec<_> = pods.iter().filter(|(_, uids)| uids.len() > 1).collect();
        assert!(twice.is_empty(), "workers with more than one Pod in {name}: {twice:?}");
        let mut created = BTreeMap::<String, u32>::new();
        for event in audit.iter().filter(|event| event.is_created_pod()) {
            *created.entry(event.object_ref.name.clone()).or_default() += 1;
        }
        let twice: Vec<_> = created.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "created more than once in {name}: {twice:?}");
        assert_eq!(pods.len(), workers, "Pods in {name}: {:?}", pods.keys());
        let unknown: Vec<_> = created.keys().filter(|name| !pods.contains_key(*name)).collect();
        assert!(unknown.is_empty(), "created and never seen in {name}: {unknown:?}");
        // And no event is left between its reader and its task.
        eventually("every event is acknowledged", async || {
            let mut redis = self.redis.connect().await.ok()?;
            let pending: redis::Value =
                redis::cmd("XPENDING").arg(STREAM).arg("ottoscaler").query_async(&mut redis).await.ok()?;
            let redis::Value::Array(pending) = pending else { return None };
            (pending.first() == Some(&redis::Value::Int(0))).then_some(())
        })
        .await;
        Ok(())
    }

    /// What the scaler told programs, oldest first: type, failure class, message of one task's worker events.
    pub(crate) async fn worker_events(&self, task_id: &str) -> anyhow::Result<Vec<BTreeMap<String, String>>> {
        let mut redis: MultiplexedConnection = self.redis.connect().await?;
        let entries = crate::system::entries(&mut redis, "otto:worker:events").await?;
        let text = |fields: BTreeMap<String, Vec<u8>>| {
            fields.into_iter().map(|(name, value)| (name, String::from_utf8_lossy(&value).into_owned())).collect()
        };
        let all = entries.into_iter().map(|(_, fields)| text(fields));
        Ok(all.filter(|fields: &BTreeMap<_, _>| fields.get("task_id").is_some_and(|id| id == task_id)).collect())
    }
}

/// What a scaler needs, before there is one.
pub(crate) struct Setup {
    /// The namespace that the scaler is told.
    pub(crate) workers: String,
    pub(crate) proxy: FaultProxy,
    pub(crate) gate: RedisGate,
    pub(crate) redis: RedisServer,
    pub(crate) namespace: Namespace<'static>,
    pub(crate) dir: TempDir,
}

impl Setup {
    pub(crate) async fn new(name: &str, pods: Pods) -> anyhow::Result<Self> {
        let plane = ControlPlane::shared().await?;
        let namespace = match pods {
            Pods::ByHand => plane.namespace(name).await?,
            Pods::Kwok => plane.kwok_namespace(name).await?,
        };
        let redis = RedisServer::start().await?;
        let gate = RedisGate::start(redis.port()).await?;
        let (workers, proxy) = (namespace.name().to_owned(), FaultProxy::start(plane).await?);
        Ok(Self { workers, proxy, gate, redis, namespace, dir: tempfile::tempdir()? })
    }

    /// The flags that every scaler of these tests has.
    pub(crate) fn flags(&self, logs: &str) -> Vec<String> {
        [
            ["--redis-url", &self.gate.url()],
            ["--log-server", logs],
            ["--namespace", &self.workers],
            ["--agent-image", "example.com/otto-worker:1"],
            ["--lease-retry", "200ms"],
            ["--retry-backoff-min", "10ms"],
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect()
    }

    pub(crate) async fn start(self, kubeconfig: &Path, logs: &str, flags: &[&str]) -> anyhow::Result<Cluster> {
        let own = self.flags(logs);
        let mut all = own.clone();
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        let env = [("KUBECONFIG", kubeconfig.to_str().unwrap_or_default()), ("RUST_LOG", "info")];
        let history = self.namespace.history().await?;
        let scaler = PodScaler::start_with_env(self.dir.path(), &all, &env).await?;
        let Self { proxy, gate, redis, namespace, dir, .. } = self;
        Ok(Cluster { scaler, proxy, gate, redis, namespace, flags: own, history, _dir: dir })
    }
}

/// Task, index and attempt of a Pod.
pub(crate) fn key_of(pod: &Pod) -> (String, u32, u32) {
    let label =
        |name: &str| pod.metadata.labels.as_ref().and_then(|labels| labels.get(name)).cloned().unwrap_or_default();
    let annotations = pod.metadata.annotations.as_ref();
    let task = annotations.and_then(|all| all.get("ottoscaler.io/task-id")).cloned().unwrap_or_default();
    let number = |name: &str| label(name).parse().unwrap_or(u32::MAX);
    (task, number("ottoscaler.io/index"), number("ottoscaler.io/attempt"))
}
