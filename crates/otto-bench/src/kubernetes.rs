//! Events into Pods on a real API server with nodes of kwok, beside a client that only creates Pods.
//!
//! Both have the same rights, the same audit log, the same wire format (JSON) and the same number of requests in flight;
//! both are seen by the same kind of watch.

mod live;
mod pods;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::stream::{self, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use otto_testkit::{ControlPlane, ControlPlaneOptions, Namespace, PodScaler, RedisServer};
use redis::aio::MultiplexedConnection;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::report::Report;
use crate::stats::{Sample, median};
use pods::Pods;

/// Single events, and single creations between them.
const SINGLE: usize = 150;
/// Between two of the same kind: 5 a second.
const EVERY: Duration = Duration::from_millis(200);
/// Creations in flight at once; also the scaler's default with this driver.
const PARALLEL: usize = 32;
const PAIRS: usize = 5;
/// Patience with a burst.
const LIMIT: Duration = Duration::from_secs(300);

/// What is measured, and how much of it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Scale {
    /// Only these; may be repeated. Default: all.
    #[arg(long)]
    part: Vec<Part>,
    /// Events of a burst.
    #[arg(long, default_value_t = 5_000)]
    pods: usize,
    /// Workers that live at once.
    #[arg(long, default_value_t = 10_000)]
    live: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// From an event to its Pod.
    Single,
    /// Many events at once.
    Burst,
    /// A kill in a burst.
    Killed,
    /// Many workers, and nothing happens.
    Live,
}

pub(crate) async fn run(out: &Path, scale: Scale) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let room = scale.pods.max(scale.live) * 4;
    let plane =
        ControlPlane::start(ControlPlaneOptions { nodes: 20, pods_per_node: room / 20, ..Default::default() }).await?;
    let mut report = Report::new("kubernetes");
    let wanted = |part| scale.part.is_empty() || scale.part.contains(&part);
    if wanted(Part::Single) {
        single(&plane, dir.path(), &mut report).await?;
    }
    if wanted(Part::Burst) {
        burst(&plane, dir.path(), &mut report, scale.pods).await?;
    }
    if wanted(Part::Killed) {
        killed(&plane, dir.path(), &mut report, scale.pods.min(1_000)).await?;
    }
    if wanted(Part::Live) {
        live::run(&plane, dir.path(), &mut report, scale.live).await?;
    }
    report.write(out)
}

/// A scaler that drives Pods in a namespace.
struct Driven {
    scaler: PodScaler,
    /// The stream that it reads.
    redis: MultiplexedConnection,
    _server: RedisServer,
}

/// Starts one. `runs_for`: how long its Pods run.
async fn scaler(namespace: &Namespace<'_>, dir: &Path, runs_for: &str, flags: &[&str]) -> anyhow::Result<Driven> {
    let dir = dir.join(namespace.name());
    std::fs::create_dir_all(&dir)?;
    let server = RedisServer::start_syncing("everysec").await?;
    let template = dir.join("template.yaml");
    std::fs::write(&template, json!({"metadata": {"annotations": {"otto-test/runs-for": runs_for}}}).to_string())?;
    let (url, template) = (server.url(), template.display().to_string());
    let kubeconfig = namespace.scaler_kubeconfig(None).await?.display().to_string();
    let mut all = vec![
        "--redis-url",
        &url,
        // Nothing is there: worker events wait, as they would for a log server that is away.
        "--log-server=http://127.0.0.1:1",
        "--namespace",
        namespace.name(),
        "--agent-image=otto-worker:1",
        "--worker-image=worker:1",
        r#"--default-command=["true"]"#,
        "--max-workers=100000",
        "--pod-template",
        &template,
    ];
    all.extend(flags);
    let scaler = PodScaler::start_with_env(&dir, &all, &[("KUBECONFIG", &kubeconfig)]).await?;
    let redis = server.connect().await?;
    Ok(Driven { scaler, redis, _server: server })
}

/// Adds events of these tasks, one write.
async fn add(redis: &mut MultiplexedConnection, tasks: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let mut pipe = redis::pipe();
    for task in tasks {
        let fields = [("type", "scale_up"), ("pod_count", "1"), ("task_id", task.as_str())];
        pipe.cmd("XADD").arg("otto:scale:events").arg("*").arg(&fields).ignore();
    }
    Ok(pipe.query_async(redis).await?)
}

/// The client that only creates, with the scaler's rights.
async fn bare_client(namespace: &Namespace<'_>) -> anyhow::Result<Api<Pod>> {
    let file = Kubeconfig::read_from(namespace.scaler_kubeconfig(None).await?)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Api::namespaced(Client::try_from(config)?, namespace.name()))
}

/// As small as a Pod can be.
fn bare_pod(name: &str, runs_for: &str) -> anyhow::Result<Pod> {
    Ok(serde_json::from_value(json!({
        "metadata": {
            "name": name,
            "labels": {"ottoscaler.io/task": name},
            "annotations": {"otto-test/runs-for": runs_for},
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "containers": [{"name": "main", "image": "worker:1", "command": ["true"]}],
        },
    }))?)
}

async fn single(plane: &ControlPlane, dir: &Path, report: &mut Report) -> anyhow::Result<()> {
    let (ours, theirs) = (plane.kwok_namespace("single").await?, plane.kwok_namespace("single-bare").await?);
    let mut driven = scaler(&ours, dir, "1s", &[]).await?;
    let (ours, bare) = (Pods::watch(&ours).await?, bare_client(&theirs).await?);
    let theirs = Pods::watch(&theirs).await?;
    let (mut events, mut creates) = (Sample::default(), Sample::default());
    let begun = tokio::time::Instant::now();
    for n in 0..SINGLE as u32 {
        tokio::time::sleep_until(begun + EVERY * n).await;
        let name = format!("single-{n}");
        let sent = Instant::now();
        add(&mut driven.redis, std::iter::once(name.clone())).await?;
        events.push((ours.created(&name).await? - sent).as_secs_f64() * 1e3);
        tokio::time::sleep_until(begun + EVERY * n + EVERY / 2).await;
        let sent = Instant::now();
        bare.create(&PostParams::default(), &bare_pod(&name, "1s")?).await?;
        creates.push((theirs.created(&name).await? - sent).as_secs_f64() * 1e3);
    }
    let (p50, p99) = (creates.quantile(0.5), creates.quantile(0.99));
    report.row("XADD to Pod, 5/s, p50", events.quantile(0.5), "ms", Some(format!("≤ {:.1}", p50 + 3.0)));
    report.row("XADD to Pod, 5/s, p99", events.quantile(0.99), "ms", Some(format!("≤ {:.1}", p99 * 1.5)));
    report.row("ceiling: bare create, p50", p50, "ms", None);
    report.row("ceiling: bare create, p99", p99, "ms", None);
    Ok(())
}

/// Seconds until all Pods were there, and until all had succeeded.
#[derive(Clone, Copy, Default)]
struct Took {
    exist: f64,
    done: f64,
}

/// Who makes Pods in a burst.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Maker {
    Scaler,
    /// The bare client, of Pods as the scaler's: the agent, its volume, and so on.
    Same,
    /// The bare client, of Pods as small as they can be.
    Small,
}

const MAKERS: [Maker; 3] = [Maker::Scaler, Maker::Same, Maker::Small];

async fn burst(plane: &ControlPlane, dir: &Path, report: &mut Report, count: usize) -> anyhow::Result<()> {
    let (ours, theirs) = (plane.kwok_namespace("burst").await?, plane.kwok_namespace("burst-bare").await?);
    let mut driven = scaler(&ours, dir, "1s", &[]).await?;
    let bare = bare_client(&theirs).await?;
    let same = same_pod(&ours, &theirs, &mut driven).await?;
    let mut rounds: Vec<[Took; 3]> = Vec::new();
    let (mut seconds, made_before) = (0.0, requests(&ours)?.get("pods create").copied().unwrap_or_default());
    for round in 0..PAIRS {
        let mut took = [Took::default(); 3];
        // Whoever is first in one round is last in the next.
        for turn in 0..MAKERS.len() {
            let turn = (turn + round) % MAKERS.len();
            let prefix = format!("burst-{round}");
            took[turn] = match MAKERS[turn] {
                Maker::Scaler => {
                    let before = driven.scaler.process.cpu_seconds()?;
                    let took = ours_at_once(&ours, &mut driven, &prefix, count).await?;
                    seconds += driven.scaler.process.cpu_seconds()? - before;
                    took
                }
                Maker::Same => {
                    bare_at_once(&theirs, &bare, count, |n| same.named(&format!("{prefix}-same-{n}"))).await?
                }
                Maker::Small => {
                    bare_at_once(&theirs, &bare, count, |n| bare_pod(&format!("{prefix}-small-{n}"), "1s")).await?
                }
            };
        }
        let text = |took: Took| format!("{:.2} s, {:.2} s", took.exist, took.done);
        eprintln!(
            "burst {} of {PAIRS}: exist and have succeeded after {} (bare client {}; with the smallest Pods {})",
            round + 1,
            text(took[0]),
            text(took[1]),
            text(took[2])
        );
        rounds.push(took);
    }
    let of = |pick: fn(&[Took; 3]) -> f64| median(rounds.iter().map(pick).collect());
    let name = format!("{count} events at once");
    report.row(format!("{name}, all Pods exist"), of(|took| took[0].exist), "s", None);
    report.row(format!("{name}, all have succeeded"), of(|took| took[0].done), "s", None);
    report.row("ceiling: bare client, same Pods, all exist", of(|took| took[1].exist), "s", None);
    report.row("ceiling: bare client, same Pods, all have succeeded", of(|took| took[1].done), "s", None);
    report.row("bare client, smallest Pods, all exist", of(|took| took[2].exist), "s", None);
    report.row("bare client, smallest Pods, all have succeeded", of(|took| took[2].done), "s", None);
    let exist = of(|took| took[0].exist / took[1].exist);
    report.row("exist, ratio to the bare client", exist, "", Some("≤ 1.2".into()));
    let done = of(|took| took[0].done / took[1].done);
    report.row("have succeeded, ratio to the bare client", done, "", Some("≤ 1.15".into()));
    report.row("exist, ratio to the smallest Pods", of(|took| took[0].exist / took[2].exist), "", None);
    report.row("have succeeded, ratio to the smallest Pods", of(|took| took[0].done / took[2].done), "", None);
    let thousands = (count * PAIRS) as f64 / 1e3;
    report.row("scaler's CPU per 1,000 Pods", seconds / thousands, "s", Some("≤ 0.8".into()));
    let requests = requests(&ours)?;
    let pods: usize = requests.iter().filter(|(what, _)| what.starts_with("pods")).map(|(_, n)| n).sum();
    report.row(
        "scaler's requests per Pod, watches apart",
        (pods - made_before) as f64 / (count * PAIRS) as f64,
        "",
        Some("≤ 2".into()),
    );
    for (what, n) in requests {
        report.row(format!("of these: {what}"), n as f64, "", None);
    }
    Ok(())
}

/// A Pod as the scaler makes them.
struct SamePod(Pod);

impl SamePod {
    fn named(&self, name: &str) -> anyhow::Result<Pod> {
        let mut pod = self.0.clone();
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.labels.get_or_insert_default().insert("ottoscaler.io/task".to_owned(), name.to_owned());
        Ok(pod)
    }
}

/// Lets the scaler make one, and takes away what the API server added.
async fn same_pod(ours: &Namespace<'_>, theirs: &Namespace<'_>, driven: &mut Driven) -> anyhow::Result<SamePod> {
    let pods = Pods::watch(ours).await?;
    add(&mut driven.redis, std::iter::once("the-first".to_owned())).await?;
    pods.at_least(1, LIMIT).await?;
    let made = ours.list_pods().await?.into_iter().next().context("the scaler's Pod is gone")?;
    pods.clear(ours).await?;
    let mut pod = serde_json::to_value(made)?;
    let remove = |object: &mut serde_json::Value, names: &[&str]| {
        let object = object.as_object_mut().into_iter();
        object.for_each(|object| object.retain(|name, _| !names.contains(&name.as_str())));
    };
    remove(&mut pod, &["status"]);
    let added = ["creationTimestamp", "generation", "managedFields", "namespace", "resourceVersion", "uid"];
    remove(&mut pod["metadata"], &added);
    let added = ["dnsPolicy", "nodeName", "preemptionPolicy", "priority", "schedulerName", "serviceAccount"];
    remove(&mut pod["spec"], &added);
    remove(&mut pod["spec"], &["serviceAccountName", "tolerations"]);
    for container in pod["spec"]["containers"].as_array_mut().into_iter().flatten() {
        remove(container, &["imagePullPolicy", "terminationMessagePath"]);
    }
    // An owner that is not there would be the end of it.
    let anchor = serde_json::from_value(json!({"metadata": {"name": "ottoscaler-anchor"}}))?;
    let anchor = theirs.api::<ConfigMap>().create(&PostParams::default(), &anchor).await?;
    pod["metadata"]["ownerReferences"][0]["uid"] = json!(anchor.metadata.uid);
    Ok(SamePod(serde_json::from_value(pod)?))
}

/// Requests in a namespace by what they were, watches and dry runs apart.
fn requests(namespace: &Namespace<'_>) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for event in namespace.audit()? {
        if event.stage == "ResponseComplete" && event.verb != "watch" && !event.request_uri.contains("dryRun") {
            *counts.entry(format!("{} {}", event.object_ref.resource, event.verb)).or_default() += 1;
        }
    }
    Ok(counts)
}

async fn ours_at_once(
    namespace: &Namespace<'_>,
    driven: &mut Driven,
    prefix: &str,
    count: usize,
) -> anyhow::Result<Took> {
    let pods = Pods::watch(namespace).await?;
    let sent = Instant::now();
    add(&mut driven.redis, (0..count).map(|n| format!("{prefix}-{n}"))).await?;
    let took = pods.all(sent, count, LIMIT).await.context("the scaler's Pods")?;
    pods.clear(namespace).await?;
    Ok(took)
}

async fn bare_at_once(
    namespace: &Namespace<'_>,
    api: &Api<Pod>,
    count: usize,
    make: impl Fn(usize) -> anyhow::Result<Pod>,
) -> anyhow::Result<Took> {
    let pods = Pods::watch(namespace).await?;
    let (sent, make) = (Instant::now(), &make);
    let creations = stream::iter(0..count).map(|n| async move {
        let pod = make(n)?;
        api.create(&PostParams::default(), &pod).await?;
        anyhow::Ok(())
    });
    creations.buffer_unordered(PARALLEL).try_collect::<()>().await?;
    let took = pods.all(sent, count, LIMIT).await.context("the bare client's Pods")?;
    pods.clear(namespace).await?;
    Ok(took)
}

async fn killed(plane: &ControlPlane, dir: &Path, report: &mut Report, count: usize) -> anyhow::Result<()> {
    let namespace = plane.kwok_namespace("killed").await?;
    let mut driven = scaler(&namespace, dir, "ever", &[]).await?;
    let pods = Pods::watch(&namespace).await?;
    add(&mut driven.redis, (0..count).map(|n| format!("killed-{n}"))).await?;
    pods.at_least(count * 3 / 10, LIMIT).await?;
    driven.scaler.process.kill().await?;
    let there = pods.count();
    driven.scaler.restart().await?;
    pods.at_least(count, LIMIT).await?;
    // Everything is settled when its event is: then nothing more would come.
    driven.settled().await?;
    let (surplus, missing) = pods.surplus_and_missing((0..count).map(|n| format!("killed-{n}")));
    report.row(format!("kill -9 in a burst of {count}: Pods there at the kill"), there as f64, "", None);
    report.row("kill -9 in a burst: surplus Pods", surplus as f64, "", Some("0".into()));
    report.row("kill -9 in a burst: events without a Pod", missing as f64, "", Some("0".into()));
    Ok(())
}

impl Driven {
    async fn ask(&self, path: &str) -> anyhow::Result<String> {
        let mut connection = TcpStream::connect(self.scaler.admin_url().trim_start_matches("http://")).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Waits until it leads, knows all workers and reads events.
    async fn ready(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let leads = self.ask("/metrics").await?.contains("\notto_scaler_leader 1\n");
            let answer = self.ask("/readyz").await?;
            if leads && answer.starts_with("HTTP/1.1 200") {
                return Ok(());
            }
            anyhow::ensure!(start.elapsed() < LIMIT, "the scaler does not become ready: {answer}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until no entry of the stream is pending or unread.
    async fn settled(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            // How many, the lowest, the highest, and whose.
            let (pending, ..): (usize, redis::Value, redis::Value, redis::Value) =
                redis::cmd("XPENDING").arg("otto:scale:events").arg("ottoscaler").query_async(&mut self.redis).await?;
            if pending == 0 {
                return Ok(());
            }
            anyhow::ensure!(start.elapsed() < LIMIT, "{pending} events are still pending");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
