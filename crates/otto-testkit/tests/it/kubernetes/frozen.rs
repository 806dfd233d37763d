//! Two scalers, and a leader that is frozen with requests on their way.

use http::Method;
use otto_proto::v1::TaskState;
use otto_testkit::{Fault, FaultProxy, PodScaler, Rule, eventually};
use rustix::process::Signal;

use super::cluster::{Cluster, Pods, key_of};

/// As short as a loaded machine allows: it is waited for.
const LEASE: [&str; 4] = ["--lease-duration", "12s", "--lease-renew-deadline", "8s"];

/// A creation and a deletion of the old leader come to the API server when the new one has long done them, and its workers
/// have ended: nothing is made twice, and nothing is deleted that was made since.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_frozen_leader_sent_comes_too_late_and_does_no_harm() -> anyhow::Result<()> {
    let mut cluster = Cluster::start("frozen", Pods::ByHand, &LEASE).await?;
    let pods = &cluster.namespace;
    cluster.add("stopped", 1, &[]).await?;
    let stopped = cluster.pod("stopped", 0, 1).await;
    pods.run_pod(&stopped).await?;
    cluster.until("stopped", TaskState::Running).await;

    // The second one goes its own way to the API server.
    let way = FaultProxy::start(pods.plane()).await?;
    let token = pods.token("otto-scaler").await?;
    let name = format!("{}-second", pods.name());
    let kubeconfig = pods.plane().write_kubeconfig(&name, &way.url(), &token, pods.name())?;
    let files = tempfile::tempdir()?;
    let mut flags = cluster.flags.clone();
    flags.extend(LEASE.map(str::to_owned));
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let env = [("KUBECONFIG", kubeconfig.to_str().unwrap_or_default())];
    let second = PodScaler::start_with_env(files.path(), &flags, &env).await?;

    let create = cluster.proxy.add(Rule::create_pod(Fault::Late));
    let delete = cluster.proxy.add(Rule::delete_pod(Fault::Late));
    cluster.add("made", 1, &[]).await?;
    let down = [("type", "scale_down"), ("task_id", "stopped"), ("pod_count", "0")];
    crate::system::add(&mut cluster.redis.connect().await?, &down).await?;
    create.reached(1).await;
    delete.reached(1).await;
    cluster.scaler.process.signal(Signal::STOP)?;
    let asked = cluster.proxy.asked().len();

    // The second one takes over, and does both.
    let made = cluster.pod("made", 0, 1).await;
    eventually("the second one stops it", async || pods.pods().get(&stopped).await.ok()?.metadata.deletion_timestamp)
        .await;
    pods.let_go(&stopped).await?;
    pods.run_pod(&made).await?;
    pods.end_pod(&made, 0, "").await?;

    // Now the network delivers, and the old leader wakes up.
    create.release();
    delete.release();
    cluster.scaler.process.signal(Signal::CONT)?;
    let status = cluster.scaler.process.wait().await?;
    assert!(!status.success(), "{}", cluster.scaler.process.log_tail());
    let late = cluster.proxy.asked().split_off(asked);
    let writes: Vec<_> = late
        .iter()
        .filter(|asked| [Method::POST, Method::DELETE].contains(&asked.method) && asked.path.contains("/pods"))
        .collect();
    assert!(writes.is_empty(), "the old leader wrote after it was followed: {writes:?}");

    let old = std::mem::replace(&mut cluster.scaler, second);
    cluster.until("made", TaskState::Succeeded).await;
    cluster.until("stopped", TaskState::Cancelled).await;
    cluster.add("after", 1, &[]).await?;
    cluster.pod("after", 0, 1).await;
    let left: Vec<_> = cluster.namespace.list_pods().await?.iter().map(|pod| key_of(pod).0).collect();
    assert!(left.contains(&"made".to_owned()), "{left:?}");
    drop(old);
    cluster.check_launches(3).await
}
