//! The proxy of the test kit itself, with kubectl's own library's peer as its client.

use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use http::Method;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use otto_testkit::{ControlPlane, Fault, FaultProxy, Namespace, Rule};
use serde_json::json;

/// ConfigMaps seen through the proxy. No retries of the library's own.
async fn through(proxy: &FaultProxy, namespace: &Namespace<'_>) -> anyhow::Result<Api<ConfigMap>> {
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "get", "list"]}]);
    namespace.service_account("client", rules).await?;
    let file = namespace.kubeconfig("client", Some(&proxy.url())).await?;
    let file = Kubeconfig::read_from(file)?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    Ok(Api::namespaced(Client::try_from(config)?, namespace.name()))
}

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}})).expect("a ConfigMap")
}

fn code(result: kube::Result<ConfigMap>) -> u16 {
    match result {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(_) => 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_cut_answered_held_and_late_as_the_rules_say() -> anyhow::Result<()> {
    let plane = ControlPlane::shared().await?;
    let namespace = plane.namespace("proxy").await?;
    let proxy = FaultProxy::start(plane).await?;
    let maps = through(&proxy, &namespace).await?;
    let admin = namespace.api::<ConfigMap>();
    let create = |fault| Rule::of(Method::POST, "/configmaps", fault);
    let post = PostParams::default();
    let there = async |name: &str| admin.get_opt(name).await.map(|found| found.is_some());

    assert_eq!(code(maps.create(&post, &map("plain")).await), 200);
    assert!(there("plain").await?);

    let rule = proxy.add(create(Fault::CutBefore).times(1));
    assert_eq!(code(maps.create(&post, &map("cut")).await), 0);
    assert!(!there("cut").await?);
    assert_eq!(rule.hits(), 1);
    assert_eq!(code(maps.create(&post, &map("cut")).await), 200, "once only");

    let rule = proxy.add(create(Fault::CutAfter).containing("told-nobody"));
    assert_eq!(code(maps.create(&post, &map("other")).await), 200, "of others nothing is cut");
    assert_eq!(code(maps.create(&post, &map("told-nobody")).await), 0);
    assert!(there("told-nobody").await?, "the server did it");
    rule.remove();
    assert_eq!(code(maps.create(&post, &map("told-nobody")).await), 409);

    proxy.add(create(Fault::Answer(429, Some(1))).times(1)).reached(0).await;
    assert_eq!(code(maps.create(&post, &map("busy")).await), 429);
    assert!(!there("busy").await?);
    proxy.clear();
    proxy.add(create(Fault::AnswerAfter(500)).times(1)).reached(0).await;
    assert_eq!(code(maps.create(&post, &map("lied")).await), 500);
    assert!(there("lied").await?);
    proxy.clear();

    let held = proxy.add(create(Fault::HoldBefore));
    let waiting = tokio::spawn({
        let maps = maps.clone();
        async move { code(maps.create(&PostParams::default(), &map("held")).await) }
    });
    held.reached(1).await;
    assert!(!there("held").await?);
    held.remove();
    assert_eq!(waiting.await?, 200);

    let held = proxy.add(create(Fault::HoldAfter));
    let waiting = tokio::spawn({
        let maps = maps.clone();
        async move { code(maps.create(&PostParams::default(), &map("done")).await) }
    });
    held.reached(1).await;
    assert!(there("done").await? && !waiting.is_finished());
    held.remove();
    assert_eq!(waiting.await?, 200);

    // The client has gone, and what it asked for comes all the same.
    let late = proxy.add(create(Fault::Late));
    let waiting = tokio::spawn({
        let maps = maps.clone();
        async move { code(maps.create(&PostParams::default(), &map("late")).await) }
    });
    late.reached(1).await;
    waiting.abort();
    proxy.cut();
    assert!(!there("late").await?);
    late.remove();
    otto_testkit::eventually("what was late has come", || async { there("late").await.ok()?.then_some(()) }).await;

    let started = Instant::now();
    let _slow = proxy.add(Rule::all(Fault::Delay(Duration::from_millis(300))));
    maps.list(&ListParams::default()).await?;
    assert!(started.elapsed() >= Duration::from_millis(300));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn open_watches_are_failed_ended_and_cut() -> anyhow::Result<()> {
    let plane = ControlPlane::shared().await?;
    let namespace = plane.namespace("proxy-watch").await?;
    let proxy = FaultProxy::start(plane).await?;
    let maps = through(&proxy, &namespace).await?;
    let version = maps.list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
    let watch = async || maps.watch(&WatchParams::default(), &version).await.map(StreamExt::boxed);

    // Not allowed yet: the answer is passed on as it is.
    let refused = watch().await.err();
    assert!(matches!(&refused, Some(kube::Error::Api(status)) if status.code == 403), "{refused:?}");
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["watch"]}]);
    namespace.create::<k8s_openapi::api::rbac::v1::Role>(json!({"metadata": {"name": "w"}, "rules": rules})).await?;
    let binding = json!({
        "metadata": {"name": "w"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "w"},
        "subjects": [{"kind": "ServiceAccount", "name": "client"}],
    });
    namespace.create::<k8s_openapi::api::rbac::v1::RoleBinding>(binding).await?;
    let watch = async || otto_testkit::eventually("a watch may be opened", || async { watch().await.ok() }).await;

    let mut failed = watch().await;
    namespace.create::<ConfigMap>(json!({"metadata": {"name": "one"}})).await?;
    assert!(matches!(failed.try_next().await?, Some(WatchEvent::Added(_))));
    proxy.fail_watches(410);
    loop {
        match failed.try_next().await? {
            Some(WatchEvent::Error(status)) => break assert_eq!(status.code, 410),
            Some(WatchEvent::Added(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(failed.try_next().await?.is_none());

    let mut ended = watch().await;
    proxy.end_watches();
    while let Some(event) = ended.try_next().await? {
        assert!(matches!(event, WatchEvent::Added(_)), "{event:?}");
    }
    let mut cut = watch().await;
    proxy.cut();
    while let Some(event) = cut.next().await {
        if event.is_err() {
            break;
        }
    }

    let rule = proxy.add(Rule::watch(Fault::WatchError(410)));
    let mut refused = watch().await;
    assert!(matches!(refused.try_next().await?, Some(WatchEvent::Error(status)) if status.code == 410));
    rule.remove();
    let silent = proxy.add(Rule::watch(Fault::SilentWatch));
    let mut nothing = watch().await;
    assert!(tokio::time::timeout(Duration::from_millis(200), nothing.next()).await.is_err());
    silent.remove();
    Ok(())
}
