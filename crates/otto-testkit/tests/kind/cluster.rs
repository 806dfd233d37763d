//! The cluster that `cargo xtask test --kind` made, and how tests talk to it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use otto_proto::v1::log_query_service_client::LogQueryServiceClient;
use otto_proto::v1::task_service_client::TaskServiceClient;
use otto_proto::v1::{
    GetTaskRequest, ListLogWorkersRequest, ListLogWorkersResponse, LogRun, LogWorker, ReadLogsRequest, Task, TaskState,
    WorkerEvent, worker_event,
};
use redis::aio::MultiplexedConnection;
use serde::Deserialize;
use tokio::process::Command;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

const STREAM: &str = "otto:scale:events";
const OURS: &str = "ottoscaler";
const WORKERS: &str = "ottoscaler-workers";
/// A kubelet takes its time, and the machine may be loaded.
const PATIENCE: Duration = Duration::from_secs(180);

/// Presents the token.
#[derive(Clone)]
pub(crate) struct Token(MetadataValue<Ascii>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Authorized = InterceptedService<Channel, Token>;

/// What `cargo xtask test --kind` tells of the cluster.
#[derive(Debug, Deserialize)]
struct Facts {
    kubeconfig: PathBuf,
    token_file: PathBuf,
    scaler: String,
    logs: String,
    redis: String,
    job_image: String,
    otto: PathBuf,
    /// Name of the node's container.
    node: String,
}

/// A cluster in which everything runs.
pub(crate) struct Cluster {
    facts: Facts,
    client: Client,
    token: Token,
    redis: MultiplexedConnection,
    logs: Channel,
    tasks: Channel,
    /// Tells runs of the tests apart.
    run: u64,
}

impl Cluster {
    pub(crate) async fn connect() -> anyhow::Result<Self> {
        let path = std::env::var_os("OTTO_KIND").context("run these tests by `cargo xtask test --kind`")?;
        let facts: Facts = serde_json::from_slice(&std::fs::read(path)?)?;
        let kubeconfig = Kubeconfig::read_from(&facts.kubeconfig)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let token = std::fs::read_to_string(&facts.token_file)?;
        Ok(Self {
            client: Client::try_from(config)?,
            token: Token(format!("Bearer {}", token.trim()).parse()?),
            redis: redis::Client::open(facts.redis.as_str())?.get_multiplexed_async_connection().await?,
            logs: channel(&facts.logs)?,
            tasks: channel(&facts.scaler)?,
            run: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs(),
            facts,
        })
    }

    /// Name of a task: another one in each run, as a cluster may be kept for several.
    pub(crate) fn task_id(&self, name: &str) -> String {
        format!("{name}-{}", self.run)
    }

    /// The image with a shell that jobs run.
    pub(crate) fn job_image(&self) -> &str {
        &self.facts.job_image
    }

    /// The agent's image, as the scaler has it.
    pub(crate) async fn agent_image(&self) -> anyhow::Result<String> {
        let scaler = Api::<Deployment>::namespaced(self.client.clone(), OURS).get("otto-scaler").await?;
        let pod = scaler.spec.and_then(|spec| spec.template.spec).context("a Deployment without a Pod")?;
        let mut variables = pod.containers.into_iter().flat_map(|container| container.env.unwrap_or_default());
        let image = variables.find(|variable| variable.name == "OTTO_AGENT_IMAGE").and_then(|variable| variable.value);
        image.context("the scaler has no OTTO_AGENT_IMAGE")
    }

    /// Pods of workers.
    pub(crate) fn workers(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), WORKERS)
    }

    /// Pods of the scaler and the log server.
    pub(crate) fn servers(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), OURS)
    }

    pub(crate) fn logs(&self) -> LogQueryServiceClient<Authorized> {
        LogQueryServiceClient::with_interceptor(self.logs.clone(), self.token.clone())
    }

    pub(crate) fn tasks(&self) -> TaskServiceClient<Authorized> {
        TaskServiceClient::with_interceptor(self.tasks.clone(), self.token.clone())
    }

    /// Adds an event for a task that runs a shell script, or whatever `fields` say.
    pub(crate) async fn add(&self, task_id: &str, script: &str, fields: &[(&str, &str)]) -> anyhow::Result<()> {
        let command = serde_json::json!(["sh", "-c", script]).to_string();
        let mut event: BTreeMap<&str, &str> =
            [("type", "scale_up"), ("task_id", task_id), ("image", self.job_image()), ("command", &command)].into();
        event.extend(fields.iter().copied());
        let fields: Vec<_> = event.into_iter().collect();
        self.event(&fields).await
    }

    pub(crate) async fn event(&self, fields: &[(&str, &str)]) -> anyhow::Result<()> {
        let _: String =
            redis::cmd("XADD").arg(STREAM).arg("*").arg(fields).query_async(&mut self.redis.clone()).await?;
        Ok(())
    }

    pub(crate) async fn cancel(&self, task_id: &str) -> anyhow::Result<()> {
        self.event(&[("type", "scale_down"), ("task_id", task_id), ("pod_count", "0")]).await
    }

    /// A task; `None`: not known yet, or nobody could say.
    pub(crate) async fn task(&self, task_id: &str) -> Option<Task> {
        self.tasks()
            .get_task(GetTaskRequest { task_id: task_id.to_owned() })
            .await
            .ok()
            .map(tonic::Response::into_inner)
    }

    /// Waits until a task has ended.
    pub(crate) async fn ended(&self, task_id: &str) -> anyhow::Result<Task> {
        let task = within(&format!("task {task_id} has ended"), async || {
            let task = self.task(task_id).await?;
            (!matches!(task.state(), TaskState::Pending | TaskState::Running)).then_some(task)
        })
        .await;
        match task {
            Ok(task) => Ok(task),
            Err(error) => {
                bail!("{error}: {:?}, Pods {:?}", self.task(task_id).await, self.pods(task_id).await?)
            }
        }
    }

    /// The Pods of a task, by name.
    pub(crate) async fn pods(&self, task_id: &str) -> anyhow::Result<BTreeMap<String, Pod>> {
        let selector = kube::api::ListParams::default().labels(&format!("ottoscaler.io/task={task_id}"));
        let pods = self.workers().list(&selector).await?;
        Ok(pods.items.into_iter().map(|pod| (pod.metadata.name.clone().unwrap_or_default(), pod)).collect())
    }

    /// What the log server knows of a task.
    pub(crate) async fn log_workers(&self, task_id: &str) -> Option<ListLogWorkersResponse> {
        let request = ListLogWorkersRequest { task_id: task_id.to_owned() };
        self.logs().list_log_workers(request).await.ok().map(tonic::Response::into_inner)
    }

    /// Waits until the logs of so many workers are finished.
    pub(crate) async fn finished(&self, task_id: &str, workers: usize) -> anyhow::Result<Vec<LogWorker>> {
        within(&format!("the {workers} logs of {task_id} are finished"), async || {
            let found = self.log_workers(task_id).await?.workers;
            let finished = |run: &LogRun| run.finish.is_some();
            let all = found.iter().filter(|worker| !worker.runs.is_empty() && worker.runs.iter().all(finished)).count();
            (all == workers).then_some(found)
        })
        .await
    }

    /// The lines of a worker, as they were printed.
    pub(crate) async fn lines(&self, task_id: &str, worker_id: &str) -> anyhow::Result<Vec<String>> {
        let request = ReadLogsRequest {
            task_id: task_id.to_owned(),
            worker_id: worker_id.to_owned(),
            ..ReadLogsRequest::default()
        };
        let mut parts = self.logs().read_logs(request).await?.into_inner();
        let mut lines = Vec::new();
        while let Some(part) = parts.message().await? {
            lines.extend(part.lines.iter().map(|line| String::from_utf8_lossy(&line.message).into_owned()));
        }
        Ok(lines)
    }

    /// Waits until so many lines of a task are stored; returns how many there are.
    pub(crate) async fn stored(&self, task_id: &str, lines: u64) -> anyhow::Result<u64> {
        within(&format!("{lines} lines of {task_id} are stored"), async || {
            let workers = self.log_workers(task_id).await?.workers;
            let stored = workers.iter().flat_map(|worker| &worker.runs).map(|run| run.lines).sum();
            (stored >= lines).then_some(stored)
        })
        .await
    }

    /// Waits for a worker event of this kind where the log would be.
    pub(crate) async fn told(&self, task_id: &str, kind: worker_event::Type) -> anyhow::Result<WorkerEvent> {
        within(&format!("the log server knows of {kind:?} of {task_id}"), async || {
            let events = self.log_workers(task_id).await?.events;
            events.into_iter().find(|event| event.r#type() == kind)
        })
        .await
    }

    /// The name of the Pod that leads.
    pub(crate) async fn leader(&self) -> anyhow::Result<String> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), WORKERS);
        within("a scaler leads", async || {
            let holder = leases.get("otto-scaler").await.ok()?.spec?.holder_identity?;
            let (pod, _) = holder.split_once('_')?;
            self.servers().get_opt(pod).await.ok()??;
            Some(pod.to_owned())
        })
        .await
    }

    /// Takes the log server away (0), or brings it back (1).
    pub(crate) async fn scale_logs(&self, replicas: u32) -> anyhow::Result<()> {
        let sets: Api<StatefulSet> = Api::namespaced(self.client.clone(), OURS);
        let scale = Patch::Merge(serde_json::json!({ "spec": { "replicas": replicas } }));
        sets.patch_scale("otto-log-ingest", &PatchParams::default(), &scale).await?;
        within(&format!("{replicas} log servers are there"), async || {
            let status = sets.get("otto-log-ingest").await.ok()?.status?;
            let (there, ready) = (status.replicas, status.ready_replicas.unwrap_or(0));
            (there == ready && there.unsigned_abs() == replicas).then_some(())
        })
        .await
    }

    /// SIGKILL for the first process of a container, by its node.
    pub(crate) async fn kill(&self, pod: &str, container: &str) -> anyhow::Result<()> {
        let script = "id=$(crictl ps --quiet --name \"^$2\\$\" --label io.kubernetes.pod.name=\"$1\") && \
                      kill -9 \"$(crictl inspect --output go-template --template '{{.info.pid}}' \"$id\")\"";
        let mut kill = Command::new("docker");
        kill.args(["exec", &self.facts.node, "sh", "-c", script, "sh", pod, container]);
        let done = kill.kill_on_drop(true).output().await?;
        if !done.status.success() {
            bail!("killing {container} of {pod}: {}", String::from_utf8_lossy(&done.stderr));
        }
        Ok(())
    }

    /// Runs `otto` against the cluster.
    pub(crate) async fn otto(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(&self.facts.otto);
        command.args(["--scaler", &self.facts.scaler, "--log-server", &self.facts.logs]);
        command.arg("--auth-token-file").arg(&self.facts.token_file).args(arguments);
        Ok(command.kill_on_drop(true).output().await?)
    }
}

fn channel(url: &str) -> anyhow::Result<Channel> {
    // A node port lets connections to a Pod that is gone hang: those are asked for a sign of life.
    let endpoint = Endpoint::from_shared(url.to_owned())?
        .connect_timeout(Duration::from_secs(5))
        .timeout(Duration::from_secs(60))
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(4))
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_lazy())
}

/// Waits until `probe` gives a value.
pub(crate) async fn within<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut probe: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe().await {
            return Ok(value);
        }
        if start.elapsed() > PATIENCE {
            bail!("not within {PATIENCE:?}: {what}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether a Pod's container of this name runs.
pub(crate) fn runs(pod: &Pod, container: &str) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses
        .into_iter()
        .flatten()
        .any(|status| status.name == container && status.state.as_ref().is_some_and(|state| state.running.is_some()))
}

/// The phase of a Pod.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// `line 1` to `line n`: what [`printing`] prints.
pub(crate) fn numbered(lines: u64) -> Vec<String> {
    (1..=lines).map(|n| format!("line {n}")).collect()
}

/// A script that prints numbered lines, with a second's pause after each `pause_after` of them.
pub(crate) fn printing(lines: u64, pause_after: u64) -> String {
    format!(
        "i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; [ $((i%{pause_after})) -ne 0 ] || sleep 1; done"
    )
}

/// Lines without what the shell says of a child that a signal to the whole group has ended.
pub(crate) fn said(mut lines: Vec<String>) -> Vec<String> {
    lines.retain(|line| line != "Terminated");
    lines
}
