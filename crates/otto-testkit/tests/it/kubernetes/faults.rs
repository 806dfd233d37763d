//! What networks, load balancers and busy API servers do to the scaler.

use std::time::Duration;

use futures::future::try_join_all;
use http::Method;
use otto_proto::v1::TaskState;
use otto_testkit::{Fault, FaultProxy, Rule, eventually};

use super::cluster::{Cluster, Pods};

/// Each fault hits the creation of one task's worker; all at the same time, as far as the pauses that a server asks for let
/// them.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_creations_each_worker_is_made_once() -> anyhow::Result<()> {
    let cluster = Cluster::start("creations", Pods::Kwok, &[]).await?;
    let faults = [
        ("cut", Fault::CutBefore, 3),
        ("cut-after", Fault::CutAfter, 2),
        ("busy", Fault::Answer(429, None), 2),
        ("broken", Fault::Answer(500, None), 2),
        ("broken-after", Fault::AnswerAfter(500), 2),
        ("bad-gateway", Fault::AnswerAfter(502), 1),
        ("unavailable", Fault::Answer(503, Some(1)), 1),
        ("late", Fault::AnswerAfter(504), 1),
        ("slow", Fault::Delay(Duration::from_secs(2)), 1),
    ];
    let rules: Vec<_> = faults
        .iter()
        .map(|(task, fault, times)| {
            let worker = format!("otto-{task}-");
            let rule = Rule::create_pod(fault.clone()).containing(&format!("\"{task}\"")).times(*times);
            (task, worker, *times, cluster.proxy.add(rule))
        })
        .collect();
    for (task, ..) in &rules {
        cluster.add(task, 1, &[]).await?;
    }
    for (task, worker, times, rule) in &rules {
        cluster.until(task, TaskState::Succeeded).await;
        // A Pod that the watch has shown is there: whose answer was lost need not ask again.
        assert!((1..=*times).contains(&rule.hits()), "{task}");
        let asked = cluster.proxy.asked();
        let tries = asked.iter().filter(|asked| asked.method == Method::POST && asked.body.contains(worker.as_str()));
        let tries = tries.count();
        assert!((1..=8).contains(&tries), "{task} was tried {tries} times");
    }
    cluster.check_launches(faults.len()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_for_a_pause_gets_it() -> anyhow::Result<()> {
    let cluster = Cluster::start("pause", Pods::Kwok, &[]).await?;
    let busy = cluster.proxy.add(Rule::create_pod(Fault::Answer(429, Some(2))).times(1));
    cluster.add("first", 1, &[]).await?;
    busy.reached(1).await;
    cluster.add("second", 1, &[]).await?;
    cluster.until("first", TaskState::Succeeded).await;
    cluster.until("second", TaskState::Succeeded).await;
    // The second one may have been on its way before the server had answered.
    let creations: Vec<_> = cluster
        .proxy
        .asked()
        .into_iter()
        .filter(|asked| asked.method == Method::POST && asked.body.contains("\"first\""))
        .map(|asked| asked.at)
        .collect();
    assert_eq!(creations.len(), 2);
    let paused = creations[1] - creations[0];
    assert!(paused >= Duration::from_secs(2), "{paused:?}");
    cluster.check_launches(2).await
}

/// Somebody says that the Pod is there, and it is not: it counts as a worker that was lost, and is made anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_without_a_pod_is_no_worker() -> anyhow::Result<()> {
    let cluster = Cluster::start("conflict", Pods::Kwok, &[]).await?;
    let _lie = cluster.proxy.add(Rule::create_pod(Fault::Answer(409, None)).times(1));
    cluster.add("task", 1, &[]).await?;
    cluster.until("task", TaskState::Succeeded).await;
    assert_eq!(cluster.proxy.count(&Method::POST, "/pods?") - cluster.proxy.count(&Method::POST, "dryRun"), 2);
    eventually("the second attempt is told", async || {
        let told = cluster.worker_events("task").await.ok()?;
        told.iter().any(|event| event.get("attempt").is_some_and(|attempt| attempt == "2")).then_some(())
    })
    .await;
    cluster.check_launches(1).await
}

/// Breaks what is open, and what comes next.
type Break = fn(&FaultProxy);

fn next_watches(proxy: &FaultProxy, fault: Fault, times: u32) {
    // It stays until all rules are cleared.
    let _ = proxy.add(Rule::watch_pods(fault).times(times));
    proxy.cut();
}

/// In groups, each with a scaler of its own: whoever is cut off often waits longer and longer.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_the_watch_nothing_is_missed() -> anyhow::Result<()> {
    let groups: [&[(&str, Break)]; 3] = [
        &[
            ("cut", FaultProxy::cut),
            ("ended", FaultProxy::end_watches),
            ("expired", |proxy| proxy.fail_watches(410)),
            ("failed", |proxy| proxy.fail_watches(500)),
        ],
        &[
            ("gone", |proxy| next_watches(proxy, Fault::Answer(410, None), 1)),
            ("gone-again", |proxy| next_watches(proxy, Fault::WatchError(410), 2)),
            ("refused", |proxy| next_watches(proxy, Fault::Answer(500, None), 2)),
            ("slow", |proxy| next_watches(proxy, Fault::SlowWatch(Duration::from_millis(300)), u32::MAX)),
        ],
        &[
            ("forbidden", |proxy| next_watches(proxy, Fault::Answer(403, None), 2)),
            ("busy", |proxy| next_watches(proxy, Fault::Answer(429, Some(1)), 1)),
            ("unreachable", |proxy| {
                let _ = proxy.add(Rule::all(Fault::CutBefore).times(5));
                proxy.cut();
            }),
        ],
    ];
    try_join_all(groups.map(broken_watches)).await?;
    Ok(())
}

async fn broken_watches(breaks: &[(&str, Break)]) -> anyhow::Result<()> {
    let cluster = Cluster::start("watch", Pods::ByHand, &[]).await?;
    let (proxy, pods) = (&cluster.proxy, &cluster.namespace);
    for (task, hurt) in breaks {
        cluster.add(task, 1, &[]).await?;
        let pod = cluster.pod(task, 0, 1).await;
        let before = proxy.asked().iter().filter(|asked| asked.is_watch()).count();
        hurt(proxy);
        pods.run_pod(&pod).await?;
        pods.end_pod(&pod, 0, "").await?;
        cluster.until(task, TaskState::Succeeded).await;
        let watches = proxy.asked().iter().filter(|asked| asked.is_watch()).count() - before;
        assert!(watches <= 20, "{task}: {watches} watches were begun");
        proxy.clear();
    }
    cluster.check_launches(breaks.len()).await
}

/// The whole life of a Pod passes while nobody looks.
#[tokio::test(flavor = "multi_thread")]
async fn what_ended_and_went_unseen_is_known_all_the_same() -> anyhow::Result<()> {
    let cluster = Cluster::start("unseen", Pods::ByHand, &[]).await?;
    let (proxy, pods) = (&cluster.proxy, &cluster.namespace);
    for task in ["resumed", "listed"] {
        cluster.add(task, 1, &[("max_attempts", "1")]).await?;
        let pod = cluster.pod(task, 0, 1).await;
        let blind = proxy.add(Rule::watch_pods(Fault::CutBefore));
        proxy.cut();
        blind.reached(1).await;
        pods.run_pod(&pod).await?;
        pods.end_pod(&pod, 0, "").await?;
        pods.let_go(&pod).await?;
        if task == "resumed" {
            blind.remove();
        } else {
            // Nobody can say any more how it ended.
            let gone = proxy.add(Rule::watch_pods(Fault::Answer(410, None)).times(1));
            blind.remove();
            gone.reached(1).await;
            // That was no fault of the job's, so it is tried again.
            let again = cluster.pod(task, 0, 2).await;
            pods.end_pod(&again, 0, "").await?;
        }
        cluster.until(task, TaskState::Succeeded).await;
    }
    cluster.check_launches(3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_waited_for_and_no_worker_is_given_up() -> anyhow::Result<()> {
    let mut cluster = Cluster::start("away", Pods::ByHand, &[]).await?;
    cluster.add("before", 1, &[]).await?;
    let before = cluster.pod("before", 0, 1).await;
    cluster.namespace.run_pod(&before).await?;
    cluster.until("before", TaskState::Running).await;

    // A new scaler that cannot list does not conclude that there are no workers.
    cluster.kill().await?;
    let away = cluster.proxy.add(Rule::all(Fault::CutBefore));
    cluster.scaler.restart().await?;
    cluster.add("meanwhile", 1, &[]).await?;
    away.reached(10).await;
    cluster.namespace.end_pod(&before, 0, "").await?;
    assert_eq!(cluster.namespace.list_pods().await?.len(), 1);
    away.remove();
    cluster.until("before", TaskState::Succeeded).await;
    let meanwhile = cluster.pod("meanwhile", 0, 1).await;

    // And one that knew them keeps them.
    let away = cluster.proxy.add(Rule::all(Fault::CutBefore));
    cluster.proxy.cut();
    away.reached(5).await;
    cluster.namespace.run_pod(&meanwhile).await?;
    away.remove();
    cluster.until("meanwhile", TaskState::Running).await;
    cluster.namespace.end_pod(&meanwhile, 0, "").await?;
    cluster.until("meanwhile", TaskState::Succeeded).await;
    cluster.check_launches(2).await
}

/// Two requests for a Pod's whole life, its creation and its removal; and none while nothing changes.
#[tokio::test(flavor = "multi_thread")]
async fn it_asks_for_no_more_than_it_needs() -> anyhow::Result<()> {
    const TASKS: usize = 20;
    const KEPT: usize = 5;
    let cluster = Cluster::start("modest", Pods::Kwok, &["--max-ended", &KEPT.to_string()]).await?;
    for n in 0..TASKS {
        cluster.add(&format!("task-{n}"), 1, &[]).await?;
    }
    eventually("all have ended, and the older ones are removed", async || {
        let ended = cluster.all_tasks().await.ok()?.iter().filter(|task| task.state() == TaskState::Succeeded).count();
        (ended == TASKS && cluster.namespace.list_pods().await.ok()?.len() == KEPT).then_some(())
    })
    .await;
    // What it begins with (a dry run, lists and watches) apart, and Leases, and looks into Pods that have said nothing for
    // long.
    let mut others = cluster.proxy.asked();
    others.retain(|asked| {
        let begins = asked.is_watch() || ["dryRun=", "limit="].iter().any(|part| asked.query.contains(part));
        !begins && !asked.path.contains("/leases") && !asked.path.ends_with("/events")
    });
    let count =
        |method: Method| others.iter().filter(|asked| asked.method == method && asked.path.contains("/pods")).count();
    // The anchor is made with the first Pod.
    let anchor = others.iter().filter(|asked| asked.path.ends_with("/configmaps")).count();
    assert_eq!((count(Method::POST), count(Method::DELETE), anchor), (TASKS, TASKS - KEPT, 1), "{others:?}");
    assert_eq!(others.len(), 2 * TASKS - KEPT + anchor, "{others:?}");

    let watches =
        cluster.proxy.asked().iter().filter(|asked| asked.is_watch() && asked.path.ends_with("/pods")).count();
    assert!(watches <= 4, "{watches} watches were begun");

    // The next renewal of the Lease says that time has passed.
    let before = cluster.proxy.asked().len();
    eventually("the Lease was renewed twice", async || {
        let asked = cluster.proxy.asked().split_off(before);
        let asked = asked.into_iter().filter(|asked| !asked.path.ends_with("/events"));
        let (leases, others): (Vec<_>, Vec<_>) = asked.partition(|asked| asked.path.contains("/leases"));
        assert!(others.is_empty(), "asked while nothing changed: {others:?}");
        (leases.len() >= 2).then_some(())
    })
    .await;
    Ok(())
}
