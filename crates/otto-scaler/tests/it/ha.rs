//! Several replicas on one Redis and one namespace of a real API server: who leads, what the others do, and what happens
//! when the leader ends, is killed, or is frozen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use http::Method;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use otto_proto::v1::ottoscaler_service_client::OttoscalerServiceClient;
use otto_proto::v1::scale_response::Status as Outcome;
use otto_proto::v1::task_service_client::TaskServiceClient;
use otto_proto::v1::watch_workers_response::Kind;
use otto_proto::v1::{
    DeleteTaskRequest, GetTaskRequest, ListDeadLettersRequest, ListTasksRequest, TaskState, WatchWorkersRequest,
    WorkerStatusRequest,
};
use otto_testkit::{
    AuditEvent, ControlPlane, Fault, FaultProxy, Namespace, PodScaler, RedisServer, Rule, binary, eventually,
};
use rustix::process::Signal;
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt;

use crate::setup::{count, http};

/// So long that no test waits for its end: whoever leads after another was told so.
const LONG: [&str; 6] = ["--lease-duration", "120s", "--lease-renew-deadline", "80s", "--lease-retry", "200ms"];
/// What a loaded machine may take longer for a hand-over, which takes less than 2 s.
const NOISE: Duration = Duration::from_secs(3);
/// As short as a loaded machine allows: they are waited for.
const SHORT: [&str; 6] = ["--lease-duration", "12s", "--lease-renew-deadline", "8s", "--lease-retry", "200ms"];

/// Replicas, each with a directory of its own.
struct Replicas {
    all: Vec<(PodScaler, TempDir)>,
    namespace: Namespace<'static>,
    redis: Option<RedisServer>,
    flags: Vec<String>,
    kubeconfig: String,
}

impl Replicas {
    async fn start(name: &str, many: usize, with_redis: bool, flags: &[&str]) -> Self {
        let plane = ControlPlane::shared().await.unwrap();
        let namespace = plane.namespace(name).await.unwrap();
        let kubeconfig = namespace.scaler_kubeconfig(None).await.unwrap().display().to_string();
        let redis = if with_redis { Some(RedisServer::start().await.unwrap()) } else { None };
        let mut all: Vec<_> = [
            // Nobody listens on port 1.
            ["--log-server", "http://127.0.0.1:1"],
            ["--namespace", namespace.name()],
            ["--agent-image", "example.com/otto-worker:1"],
            ["--worker-image", "example.com/job:1"],
            ["--default-command", r#"["true"]"#],
        ]
        .concat();
        let url = redis.as_ref().map(RedisServer::url).unwrap_or_default();
        if with_redis {
            all.extend(["--redis-url", &url]);
        }
        all.extend(flags);
        let flags = all.into_iter().map(str::to_owned).collect();
        let mut replicas = Self { all: Vec::new(), namespace, redis, flags, kubeconfig };
        for _ in 0..many {
            replicas.one_more().await;
        }
        replicas
    }

    async fn one_more(&mut self) {
        self.one_more_with(&self.kubeconfig.clone()).await;
    }

    /// One that asks the API server through a proxy.
    async fn one_more_through(&mut self, proxy: &FaultProxy) {
        let kubeconfig = self.namespace.scaler_kubeconfig(Some(&proxy.url())).await.unwrap();
        self.one_more_with(&kubeconfig.display().to_string()).await;
    }

    async fn one_more_with(&mut self, kubeconfig: &str) {
        let dir = tempfile::tempdir().unwrap();
        let flags: Vec<_> = self.flags.iter().map(String::as_str).collect();
        let env = [("KUBECONFIG", kubeconfig), ("RUST_LOG", "info")];
        let mut scaler = PodScaler::start_with_env(dir.path(), &flags, &env).await.unwrap();
        if self.redis.is_some() {
            scaler.until_ready().await.unwrap();
        }
        self.all.push((scaler, dir));
    }

    fn scaler(&self, n: usize) -> &PodScaler {
        &self.all[n].0
    }

    async fn calls(&self, n: usize) -> OttoscalerServiceClient<Channel> {
        OttoscalerServiceClient::new(self.scaler(n).channel().await.unwrap())
    }

    async fn tasks(&self, n: usize) -> TaskServiceClient<Channel> {
        TaskServiceClient::new(self.scaler(n).channel().await.unwrap())
    }

    async fn lease(&self) -> Option<Lease> {
        self.namespace.api::<Lease>().get_opt("otto-scaler").await.unwrap()
    }

    /// Which of them has the Lease, other than `not`.
    async fn leader(&self, not: Option<usize>) -> usize {
        eventually("one of them leads", async || {
            let lease = self.lease().await?;
            let address = lease.metadata.annotations?.remove("ottoscaler.io/grpc-address")?;
            let leader = self.all.iter().position(|(scaler, _)| scaler.grpc_addr() == address)?;
            (Some(leader) != not).then_some(leader)
        })
        .await
    }

    /// As its metrics tell.
    async fn says_it_leads(&self, n: usize) -> bool {
        let metrics = http(&self.scaler(n).admin_url(), "/metrics").await.1;
        let leads = metrics.lines().find_map(|line| line.strip_prefix("otto_scaler_leader "));
        leads.unwrap_or_else(|| panic!("no otto_scaler_leader: {metrics}")) == "1"
    }

    /// Waits until it leads and is ready.
    async fn leads(&self, n: usize) {
        eventually("the leader leads and is ready", async || {
            let ready = http(&self.scaler(n).admin_url(), "/readyz").await.0 == 200;
            (ready && self.says_it_leads(n).await).then_some(())
        })
        .await;
    }

    async fn pod(&self, what: &str, begins: &str) {
        eventually(what, async || {
            let pods = self.namespace.list_pods().await.unwrap();
            pods.into_iter().find(|pod| pod.metadata.name.as_ref().is_some_and(|name| name.starts_with(begins)))
        })
        .await;
    }

    async fn add(&self, task_id: &str, workers: u32) {
        let mut connection = self.redis.as_ref().unwrap().connect().await.unwrap();
        let mut add = redis::cmd("XADD");
        add.arg("otto:scale:events").arg("*").arg("type").arg("scale_up").arg("task_id").arg(task_id);
        add.arg("pod_count").arg(workers).query_async::<String>(&mut connection).await.unwrap();
    }

    /// No Pod was ever created twice, by anybody, and no second attempt of a worker was made.
    fn nothing_doubled(&self) {
        let mut created = BTreeMap::<String, u32>::new();
        for event in self.namespace.audit().unwrap() {
            let made = event.verb == "create" && event.response_status.code == 201;
            // The template is tried out by dry runs.
            if made && event.object_ref.resource == "pods" && !event.request_uri.contains("dryRun") {
                *created.entry(event.object_ref.name.clone()).or_default() += 1;
            }
        }
        assert!(created.values().all(|times| *times == 1), "{created:?}");
    }

    fn log(&self, n: usize) -> String {
        self.scaler(n).process.log()
    }
}

/// The answer to a call that is passed on: where the leader did not answer in time, it is made again, as any client does.
async fn answered<T, F>(mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    eventually("an answer of the leader", || {
        let answer = call();
        async { Some(answer.await).filter(|answer| !is_unavailable(answer)) }
    })
    .await
    .map(Response::into_inner)
}

fn is_unavailable<T>(answer: &Result<T, Status>) -> bool {
    answer.as_ref().is_err_and(|status| status.code() == Code::Unavailable)
}

/// Each replica is ready and serves, whoever leads; what only the leader can do is passed on to it.
#[tokio::test(flavor = "multi_thread")]
async fn every_replica_serves() {
    let replicas = Replicas::start("every-replica", 2, true, &LONG).await;
    let leader = replicas.leader(None).await;
    let standby = 1 - leader;
    let holder = replicas.lease().await.unwrap().spec.unwrap().holder_identity.unwrap();
    eventually("the other is ready and says who leads", async || {
        let (ready, text) = http(&replicas.scaler(standby).admin_url(), "/readyz").await;
        (ready == 200 && text.contains(&format!("event stream: stands by; {holder} leads"))).then_some(())
    })
    .await;
    replicas.leads(leader).await;
    assert!(!replicas.says_it_leads(standby).await);
    let metrics = http(&replicas.scaler(leader).admin_url(), "/metrics").await.1;
    let taken = r#"otto_scaler_kubernetes_requests_total{method="POST",code="201"}"#;
    assert!(metrics.contains(taken), "{metrics}");

    // A call at the standby; the leader makes the Pods.
    let mut calls = replicas.calls(standby).await;
    let mut tasks = replicas.tasks(standby).await;
    let up = calls.scale_up(count("task", 2)).await.unwrap().into_inner();
    assert_eq!((up.status(), up.worker_pod_names.len()), (Outcome::Success, 2));
    let pods = replicas.namespace.pods_there(2).await;
    let mut names: Vec<_> = pods.into_iter().filter_map(|pod| pod.metadata.name).collect();
    names.sort();
    assert_eq!(names, up.worker_pod_names);
    let again = replicas.calls(leader).await.scale_up(count("task", 2)).await.unwrap().into_inner();
    assert_eq!((again.status(), &again.worker_pod_names), (Outcome::AlreadyProcessed, &up.worker_pod_names));
    let status = calls.scale_down(count("nobody", 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");

    // Reading there, and watching.
    for request in ["task", ""] {
        let request = WorkerStatusRequest { task_id: request.to_owned(), ..WorkerStatusRequest::default() };
        assert_eq!(calls.get_worker_status(request).await.unwrap().into_inner().total_count, 2);
    }
    let listed = tasks.list_tasks(ListTasksRequest::default()).await.unwrap().into_inner().tasks;
    assert_eq!(listed.iter().map(|task| task.task_id.as_str()).collect::<Vec<_>>(), ["task"]);
    assert!(
        tasks.list_dead_letters(ListDeadLettersRequest::default()).await.unwrap().into_inner().dead_letters.is_empty()
    );
    let watch = WatchWorkersRequest { task_id: "task".to_owned() };
    let mut watch = answered(async || tasks.clone().watch_workers(watch.clone()).await).await.unwrap();
    let first = watch.message().await.unwrap().unwrap().kind.unwrap();
    assert!(matches!(first, Kind::Event(event) if event.task_id == "task"));
    let delete = DeleteTaskRequest { task_id: "task".into() };
    let status = answered(async || tasks.clone().delete_task(delete.clone()).await).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.get_details_precondition_failure().is_some(), "details are passed on");
    let status = tasks.get_task(GetTaskRequest { task_id: "nobody".into() }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);

    calls.scale_down(count("task", 0)).await.unwrap();
    eventually("the Pods are told to go", async || {
        let pods = replicas.namespace.list_pods().await.unwrap();
        let mut told = true;
        for pod in pods {
            told &= pod.metadata.deletion_timestamp.is_some();
            if pod.metadata.deletion_timestamp.is_some() {
                let _ = replicas.namespace.let_go(&pod.metadata.name.unwrap()).await;
            }
        }
        told.then_some(())
    })
    .await;
    eventually("it is cancelled", async || {
        let task = tasks.clone().get_task(GetTaskRequest { task_id: "task".into() }).await.unwrap().into_inner();
        (task.state() == TaskState::Cancelled).then_some(())
    })
    .await;
    // The watch at the standby tells its end.
    let mut ended = false;
    while let Some(message) = watch.message().await.unwrap() {
        ended |= matches!(message.kind, Some(Kind::TaskEnded(_)));
    }
    assert!(ended);
    replicas.nothing_doubled();
}

/// From SIGTERM to the next leader's first Pod. The Lease lasts two minutes, so this is no expiry.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_told_to_end_hands_over() {
    let mut replicas = Replicas::start("hand-over", 3, true, &LONG).await;
    let leader = replicas.leader(None).await;
    let standby = (leader + 1) % 3;
    replicas.add("before", 1).await;
    replicas.pod("the leader works", "otto-before-").await;
    // A watcher there does not hold it up.
    let watch = WatchWorkersRequest { task_id: String::new() };
    let tasks = replicas.tasks(standby).await;
    let mut watch = answered(async || tasks.clone().watch_workers(watch.clone()).await).await.unwrap();
    watch.message().await.unwrap().unwrap();

    let told = Instant::now();
    replicas.scaler(leader).process.signal(Signal::TERM).unwrap();
    replicas.add("by-stream", 1).await;
    replicas.calls(standby).await.scale_up(count("by-call", 1)).await.unwrap();
    replicas.pod("the next leader works", "otto-by-stream-").await;
    replicas.pod("the next leader works", "otto-by-call-").await;
    let took = told.elapsed();
    println!("from SIGTERM to the next leader's Pods: {took:?}");
    // On a machine of its own it is a fraction of a second. The Lease, renewed every 40 s, would last 80 s or longer.
    assert!(took < Duration::from_secs(2) + NOISE, "{took:?}");
    let status = replicas.all[leader].0.process.wait().await.unwrap();
    assert!(status.success(), "{}", replicas.log(leader));
    assert_ne!(replicas.leader(Some(leader)).await, leader);
    // The one it was passed on to has ended, and so it says.
    let mut last = Ok(None);
    for _ in 0..1_000 {
        last = watch.message().await;
        if !matches!(last, Ok(Some(_))) {
            break;
        }
    }
    assert!(last.as_ref().is_err_and(|status| status.code() == Code::Unavailable), "{last:?}");
    replicas.nothing_doubled();
}

/// The API server holds back a creation: nobody waits for it. It comes when another leads, and finds the name taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_creation_does_not_hold_up_the_next_leader() {
    let mut replicas = Replicas::start("slow-creation", 0, true, &LONG).await;
    let proxy = FaultProxy::start(replicas.namespace.plane()).await.unwrap();
    replicas.one_more_through(&proxy).await;
    assert_eq!(replicas.leader(None).await, 0);
    replicas.one_more().await;
    let late = proxy.add(Rule::create_pod(Fault::Late));
    replicas.add("task", 2).await;
    late.reached(2).await;

    let told = Instant::now();
    replicas.scaler(0).process.signal(Signal::TERM).unwrap();
    assert_eq!(replicas.leader(Some(0)).await, 1);
    let took = told.elapsed();
    println!("from SIGTERM to the next leader: {took:?}");
    // Half a second for the creations, and what a busy machine takes besides.
    assert!(took < Duration::from_secs(2) + NOISE, "{took:?}: {}", replicas.log(0));
    let pods = replicas.namespace.pods_there(2).await;
    assert!(replicas.all[0].0.process.wait().await.unwrap().success(), "{}", replicas.log(0));
    let asked = creations(&replicas.namespace);
    late.release();
    eventually("what was late has come", async || (creations(&replicas.namespace) >= asked + 2).then_some(())).await;
    let uids = |pods: Vec<Pod>| pods.into_iter().map(|pod| pod.metadata.uid).collect::<BTreeSet<_>>();
    assert_eq!(uids(replicas.namespace.list_pods().await.unwrap()), uids(pods));
    replicas.nothing_doubled();
}

/// Requests to create Pods that were answered, whatever the answer.
fn creations(namespace: &Namespace<'_>) -> usize {
    let asked = namespace.audit().unwrap();
    let creation = |event: &&AuditEvent| {
        event.verb == "create" && event.object_ref.resource == "pods" && !event.request_uri.contains("dryRun")
    };
    asked.iter().filter(creation).count()
}

/// Killed in the middle of a burst: calls are taken meanwhile, and the next leader goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_killed_is_followed() {
    let mut replicas = Replicas::start("killed", 2, true, &SHORT).await;
    let leader = replicas.leader(None).await;
    let standby = 1 - leader;
    for n in 0..20 {
        replicas.add(&format!("burst-{n}"), 3).await;
    }
    replicas.pod("the burst has begun", "otto-burst-0-").await;
    replicas.all[leader].0.process.kill().await.unwrap();
    let mut calls = replicas.calls(standby).await;
    let up = calls.scale_up(count("meanwhile", 1)).await.unwrap().into_inner();
    assert_eq!(up.status(), Outcome::Success);
    // Without a leader, lists are those of the store.
    let listed = replicas.tasks(standby).await.list_tasks(ListTasksRequest::default()).await.unwrap().into_inner();
    assert!(listed.tasks.iter().any(|task| task.task_id == "meanwhile"));
    replicas.namespace.pods_there(61).await;
    assert_eq!(replicas.leader(Some(leader)).await, standby);
    // The one that was killed comes back, and stands by.
    replicas.all[leader].0.restart().await.unwrap();
    eventually("it stands by", async || {
        let (ready, text) = http(&replicas.scaler(leader).admin_url(), "/readyz").await;
        (ready == 200 && text.contains("stands by")).then_some(())
    })
    .await;
    replicas.nothing_doubled();
}

/// A killed leader that starts again in its data directory, as a container does in its Pod, knows that nobody else holds
/// the Lease that it held: it goes on at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_starts_again_in_its_place_leads_at_once() {
    let mut replicas = Replicas::start("same-place", 1, true, &LONG).await;
    replicas.add("before", 1).await;
    replicas.pod("the first task's Pod", "otto-before-").await;
    // Twice: the second of them was never the one that the Lease names, had it not led.
    for task in ["after", "later"] {
        replicas.all[0].0.process.kill().await.unwrap();
        replicas.all[0].0.restart().await.unwrap();
        replicas.add(task, 1).await;
        replicas.pod("the next task's Pod", &format!("otto-{task}-")).await;
    }
    replicas.nothing_doubled();
}

/// Frozen past its Lease, with events and calls under way, and thawed: it ends, and nothing is done twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_frozen_ends() {
    let mut replicas = Replicas::start("frozen", 2, true, &SHORT).await;
    let leader = replicas.leader(None).await;
    let standby = 1 - leader;
    for n in 0..20 {
        replicas.add(&format!("burst-{n}"), 3).await;
    }
    replicas.pod("the burst has begun", "otto-burst-0-").await;
    replicas.scaler(leader).process.signal(Signal::STOP).unwrap();
    let mut calls = replicas.calls(standby).await;
    calls.scale_up(count("meanwhile", 1)).await.unwrap();
    assert_eq!(replicas.leader(Some(leader)).await, standby);
    replicas.namespace.pods_there(61).await;
    // Something that the old leader knows otherwise.
    calls.scale_down(count("meanwhile", 0)).await.unwrap();
    replicas.scaler(leader).process.signal(Signal::CONT).unwrap();
    let status = replicas.all[leader].0.process.wait().await.unwrap();
    let log = replicas.log(leader);
    assert!(!status.success(), "{log}");
    assert!(
        log.contains("the leader election failed: the Lease `otto-scaler` in namespace") && log.contains("is lost"),
        "{log}"
    );
    // The new leader was not disturbed.
    replicas.add("after", 1).await;
    replicas.pod("the new leader works", "otto-after-").await;
    assert!(!replicas.log(standby).contains("the task store is away"), "{}", replicas.log(standby));
    replicas.nothing_doubled();
}

/// Without Redis the records are the leader's alone.
#[tokio::test(flavor = "multi_thread")]
async fn without_redis_the_others_say_who_leads() {
    let replicas = Replicas::start("no-redis", 2, false, &LONG).await;
    let leader = replicas.leader(None).await;
    let standby = 1 - leader;
    let holder = replicas.lease().await.unwrap().spec.unwrap().holder_identity.unwrap();
    eventually("the other says who leads", async || {
        let (ready, text) = http(&replicas.scaler(standby).admin_url(), "/readyz").await;
        assert_eq!(ready, 503, "{text}");
        text.contains(&holder).then_some(())
    })
    .await;
    let status = replicas.calls(standby).await.scale_up(count("t", 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains(&holder) && status.message().contains("--redis-url"), "{status}");
    assert!(status.get_details_retry_info().is_some());
    replicas.leads(leader).await;
    replicas.calls(leader).await.scale_up(count("t", 1)).await.unwrap();
    replicas.namespace.pods_there(1).await;
    // Reading is passed on.
    let tasks = replicas.tasks(standby).await;
    let listed = answered(async || tasks.clone().list_tasks(ListTasksRequest::default()).await).await.unwrap();
    assert_eq!(listed.tasks.len(), 1);
}

/// A leader that does not reach the API server ends before another one may lead.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_renew_ends() {
    let mut replicas = Replicas::start("cut-off", 0, true, &SHORT).await;
    let proxy = FaultProxy::start(replicas.namespace.plane()).await.unwrap();
    replicas.one_more_through(&proxy).await;
    assert_eq!(replicas.leader(None).await, 0);
    replicas.one_more().await;
    // One answer is lost, and the next is an error: no reason to end.
    let lost = proxy.add(Rule::of(Method::PUT, "/leases/", Fault::CutAfter).times(1));
    lost.reached(1).await;
    let busy = proxy.add(Rule::of(Method::PUT, "/leases/", Fault::Answer(503, None)).times(1));
    busy.reached(1).await;
    // One that never comes back is given up in time for another.
    let hung = proxy.add(Rule::of(Method::PUT, "/leases/", Fault::HoldBefore).times(1));
    hung.reached(1).await;
    let renewed = proxy.count(&Method::PUT, "/leases/") + 2;
    eventually("it is renewed twice", async || (proxy.count(&Method::PUT, "/leases/") >= renewed).then_some(())).await;
    replicas.add("before", 1).await;
    replicas.pod("it leads still", "otto-before-").await;
    assert_eq!(replicas.leader(None).await, 0);

    let _cut = proxy.add(Rule::all(Fault::CutBefore));
    let status = replicas.all[0].0.process.wait().await.unwrap();
    let log = replicas.log(0);
    assert!(!status.success() && log.contains("could not be renewed for 8s (--lease-renew-deadline)"), "{log}");
    replicas.add("after", 1).await;
    replicas.pod("the other leads", "otto-after-").await;
    replicas.nothing_doubled();
}

/// The way to the server is silent, as half-open connections are: who stands by notices by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_watch_hinders_nobody() {
    let mut replicas = Replicas::start("silent", 1, true, &SHORT).await;
    assert_eq!(replicas.leader(None).await, 0);
    let proxy = FaultProxy::start(replicas.namespace.plane()).await.unwrap();
    let _silent = proxy.add(Rule::leases(Fault::SilentWatch));
    replicas.one_more_through(&proxy).await;
    // It tries when it has heard nothing for the duration, is told otherwise by the server, and goes on standing by.
    eventually("it has tried", async || (proxy.count(&Method::PUT, "/leases/") >= 1).then_some(())).await;
    assert_eq!(replicas.leader(None).await, 0);
    replicas.all[0].0.process.kill().await.unwrap();
    replicas.add("after", 1).await;
    replicas.pod("it leads", "otto-after-").await;
    replicas.nothing_doubled();
}

/// A creation of an old leader reaches the server when another one leads: the Pod's name is taken.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_old_leader_sent_comes_late_and_does_nothing() {
    let mut replicas = Replicas::start("late", 0, true, &SHORT).await;
    let proxy = FaultProxy::start(replicas.namespace.plane()).await.unwrap();
    replicas.one_more_through(&proxy).await;
    assert_eq!(replicas.leader(None).await, 0);
    replicas.one_more().await;
    let late = proxy.add(Rule::create_pod(Fault::Late));
    replicas.add("task", 2).await;
    late.reached(2).await;
    replicas.scaler(0).process.signal(Signal::STOP).unwrap();
    let pods = replicas.namespace.pods_there(2).await;
    late.release();
    replicas.scaler(0).process.signal(Signal::CONT).unwrap();
    assert!(!replicas.all[0].0.process.wait().await.unwrap().success());
    let uids = |pods: Vec<Pod>| pods.into_iter().map(|pod| pod.metadata.uid).collect::<BTreeSet<_>>();
    assert_eq!(uids(replicas.namespace.list_pods().await.unwrap()), uids(pods));
    replicas.nothing_doubled();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_may_not_be_used_is_told() {
    let replicas = Replicas::start("forbidden", 0, true, &[]).await;
    let kubeconfig = replicas.namespace.plane().kubeconfig("nobody").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(binary("otto-scaler").unwrap());
    command.args(["--driver", "kubernetes", "--grpc-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"]);
    command.arg("--data-dir").arg(dir.path()).args(&replicas.flags).env("KUBECONFIG", kubeconfig).kill_on_drop(true);
    let output = tokio::time::timeout(otto_testkit::PATIENCE, command.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    let words = [
        "the Lease `otto-scaler` in namespace",
        replicas.namespace.name(),
        "get, watch, create and update",
        "forbidden",
    ];
    assert!(!output.status.success() && words.iter().all(|word| text.contains(word)), "{text}");
}
