//! From a creation to the removal, without faults.

use http::Method;

use super::*;

#[tokio::test]
async fn a_whole_life_takes_two_requests() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("life").await.unwrap();
    let mut driving = Driving::synced(&namespace).await;
    driving.create("t").await.unwrap();
    driving.told("t", created).await;
    let pod = pod_name("t");
    namespace.scheduled(&pod).await.unwrap();
    namespace.run_pod(&pod).await.unwrap();
    let seen = driving.told("t", |state| *state == State::Running).await;
    assert!(!seen.node_name.is_empty());
    assert!(seen.started_at.is_some());
    assert_eq!((&seen.key, &*driving.driver.worker_name(&seen.key)), (&key("t"), &*pod));
    assert!(driving.driver.remove(&key("t")).await.is_err(), "it runs");

    namespace.end_job(&pod, 3, "").await.unwrap();
    let seen = driving.told("t", ended).await;
    assert_eq!(class_of(&seen.state), Some(Class::Exited));
    let error = driving.driver.remove(&key("t")).await.unwrap_err().to_string();
    assert!(error.contains("not delivered"), "{error}");

    namespace.end_pod(&pod, 3, "").await.unwrap();
    eventually("it is drained", || async { driving.driver.remove(&key("t")).await.ok() }).await;
    driving.told("t", |state| *state == State::Gone).await;
    assert_eq!(driving.list().await, []);
    assert_eq!(namespace.list_pods().await.unwrap().len(), 0);

    let of_pod = eventually("its requests are logged", || async {
        let mut asked = namespace.audit().unwrap();
        asked.retain(|event| event.object_ref.name == pod);
        (asked.len() >= 2).then(|| asked.into_iter().map(|event| event.verb).collect::<Vec<_>>())
    });
    assert_eq!(of_pod.await, ["create", "delete"]);
}

#[tokio::test]
async fn the_same_launch_again_is_the_same_pod() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("same").await.unwrap();
    let driving = Driving::synced(&namespace).await;
    driving.create("t").await.unwrap();
    driving.create("t").await.unwrap();
    // A scaler that has just been started again, and has not looked yet.
    let again = Driving::start(&namespace.scaler_kubeconfig(None).await.unwrap()).await;
    again.checked().await;
    again.create("t").await.unwrap();
    let pods = namespace.list_pods().await.unwrap();
    assert_eq!(pods.len(), 1);
    let listed = again.list().await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].key, key("t"));
}

#[tokio::test]
async fn a_foreign_pod_of_our_name_is_told_and_left_alone() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("foreign").await.unwrap();
    let foreign = serde_json::json!({
        "metadata": { "name": pod_name("t") },
        "spec": { "containers": [{ "name": "c", "image": "busybox" }] },
    });
    namespace.create::<k8s_openapi::api::core::v1::Pod>(foreign).await.unwrap();
    let driving = Driving::synced(&namespace).await;
    let outcome = refused(driving.create("t").await);
    assert_eq!(outcome.class, Class::Config);
    assert!(outcome.message.contains(&pod_name("t")) && outcome.message.contains("not this worker's"), "{outcome:?}");
    driving.driver.stop(&key("t")).await.unwrap();
    driving.driver.remove(&key("t")).await.unwrap();
    assert_eq!(namespace.list_pods().await.unwrap().len(), 1);
    assert!(driving.list().await.is_empty());
}

#[tokio::test]
async fn stopping_gives_the_job_its_grace_period() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("stop").await.unwrap();
    let mut driving = Driving::synced(&namespace).await;
    driving.create("t").await.unwrap();
    let pod = pod_name("t");
    namespace.scheduled(&pod).await.unwrap();
    namespace.run_pod(&pod).await.unwrap();
    driving.told("t", |state| *state == State::Running).await;
    driving.driver.stop(&key("t")).await.unwrap();
    let found = namespace.pods().get(&pod).await.unwrap();
    let grace = found.metadata.deletion_grace_period_seconds.unwrap();
    assert_eq!(Some(grace), found.spec.unwrap().termination_grace_period_seconds);
    assert!(grace >= 10, "{grace}");
    // Again is no harm.
    driving.driver.stop(&key("t")).await.unwrap();
    namespace.end_pod(&pod, 143, "").await.unwrap();
    driving.told("t", ended).await;
    // It is removed when its name is free, not when that was asked for.
    let worker = key("t");
    let mut removal = Box::pin(driving.driver.remove(&worker));
    let third = eventually("it is asked for", || async {
        let events = namespace.audit().unwrap();
        let deleted = events.iter().filter(|event| event.verb == "delete" && event.stage == "ResponseComplete");
        (deleted.count() == 3).then_some(())
    });
    tokio::select! {
        () = third => {}
        removed = &mut removal => panic!("it is still there: {removed:?}"),
    }
    namespace.let_go(&pod).await.unwrap();
    removal.await.unwrap();
    driving.told("t", |state| *state == State::Gone).await;
    driving.driver.stop(&key("t")).await.unwrap();
    driving.driver.remove(&key("t")).await.unwrap();
}

#[tokio::test]
async fn pods_belong_to_the_anchor_and_to_a_new_one_when_it_was_deleted() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("anchor").await.unwrap();
    let driving = Driving::synced(&namespace).await;
    let anchors = namespace.api::<k8s_openapi::api::core::v1::ConfigMap>();
    let owner = async |task: &str| {
        let pod = namespace.pods().get(&pod_name(task)).await.unwrap();
        let owners = pod.metadata.owner_references.unwrap();
        assert_eq!(owners.len(), 1);
        assert_eq!((&*owners[0].kind, &*owners[0].name), ("ConfigMap", names::ANCHOR));
        owners[0].uid.clone()
    };
    driving.create("one").await.unwrap();
    let first = anchors.get(names::ANCHOR).await.unwrap().metadata.uid.unwrap();
    assert_eq!(owner("one").await, first);

    anchors.delete(names::ANCHOR, &kube::api::DeleteParams::default()).await.unwrap();
    // Seen by the watch: no request of ours asks for it.
    eventually("the anchor is known to be gone", || async { (!driving.driver.shared.anchor.is_known()).then_some(()) })
        .await;
    driving.create("two").await.unwrap();
    let second = anchors.get(names::ANCHOR).await.unwrap().metadata.uid.unwrap();
    assert_ne!(first, second);
    assert_eq!(owner("two").await, second);
    // What the old one owned is collected.
    let is_deleted = async |task: &str| {
        let pod = namespace.pods().get_opt(&pod_name(task)).await.unwrap();
        pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
    };
    eventually("the first is collected", || async { is_deleted("one").await.then_some(()) }).await;
    assert!(!is_deleted("two").await);
}

#[tokio::test]
async fn many_at_once_and_nothing_is_asked_while_nothing_happens() {
    const PODS: usize = 200;
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("many").await.unwrap();
    let proxy = FaultProxy::start(plane).await.unwrap();
    let kubeconfig = namespace.scaler_kubeconfig(Some(&proxy.url())).await.unwrap();
    let driving = Driving::start(&kubeconfig).await;
    driving.list().await;
    driving.checked().await;
    let creations = (0..PODS).map(|number| driving.creating(&format!("t{number}"))).collect::<Vec<_>>();
    for creation in creations {
        bounded(creation).await.unwrap().unwrap();
    }
    eventually("all are known", || async { (driving.list().await.len() == PODS).then_some(()) }).await;
    // One for each Pod, and one for their owner.
    assert_eq!(proxy.count(&Method::POST, "/pods?") - 1, PODS, "the dry run besides");
    assert_eq!(proxy.count(&Method::POST, "/configmaps?"), 1);
    // Watches apart, and looks into Pods that have said nothing for long: on a slow machine these have.
    let asked = || {
        let all = proxy.asked().into_iter().filter(|asked| !asked.is_watch() && !asked.path.ends_with("/events"));
        all.map(|asked| (asked.method, asked.path)).collect::<Vec<_>>()
    };
    let before = asked();
    driving.list().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(asked(), before);

    // A scaler that starts again knows them all with its first list, whether the server has streaming lists or not.
    let again = Driving::start(&kubeconfig).await;
    assert_eq!(again.list().await.len(), PODS);
}
