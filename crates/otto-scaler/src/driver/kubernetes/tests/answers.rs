//! What the cluster says no to, and how that is told.

use k8s_openapi::api::core::v1::{ResourceQuota, ServiceAccount};
use otto_testkit::{Fault, Rule, Webhook};
use serde_json::json;

use super::*;

#[tokio::test]
async fn a_used_up_quota_is_waited_for() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("quota").await.unwrap();
    let quota = json!({ "metadata": { "name": "few" }, "spec": { "hard": { "pods": "1" } } });
    namespace.create::<ResourceQuota>(quota).await.unwrap();
    let driving = Driving::synced(&namespace).await;
    driving.create("one").await.unwrap();
    namespace.refuses_pods().await;
    let (class, message) = busy(driving.create("two").await);
    assert_eq!(class, Class::Quota);
    assert!(message.contains("exceeded quota: few"), "{message}");
    // The first is there all the same when it is asked for again.
    driving.create("one").await.unwrap();
}

#[tokio::test]
async fn what_the_namespace_does_not_admit_ends_the_start() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("admission").await.unwrap();
    let bad = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(bad.path(), "spec: {hostNetwork: true}").unwrap();
    namespace.label(json!({ "pod-security.kubernetes.io/enforce": "restricted" })).await.unwrap();
    namespace.refuses_pods().await;
    let kubeconfig = namespace.scaler_kubeconfig(None).await.unwrap();
    let options = options(&["--pod-template", bad.path().to_str().unwrap()]);
    let opened =
        KubernetesDriver::open(cluster(&kubeconfig).await, options, Leadership::unlimited(), CancellationToken::new());
    let error = format!("{:#}", opened.await.unwrap_err());
    assert!(error.contains("PodSecurity") && error.contains(bad.path().to_str().unwrap()), "{error}");
}

/// All classes that are wrong are told together. A service account that is named is waited for a moment.
#[tokio::test]
async fn classes_that_are_wrong_end_the_start_together() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("classes").await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let template = json!({ "spec": { "serviceAccountName": "comes-soon" }, "classes": {
        "fine": {},
        "nobodys": { "spec": { "serviceAccountName": "no-such-account" } },
        "urgent": { "spec": { "priorityClassName": "no-such-class" } },
    } });
    std::fs::write(file.path(), template.to_string()).unwrap();
    let kubeconfig = namespace.scaler_kubeconfig(None).await.unwrap();
    let options = options(&["--pod-template", file.path().to_str().unwrap()]);
    let opening =
        KubernetesDriver::open(cluster(&kubeconfig).await, options, Leadership::unlimited(), CancellationToken::new());
    let making = namespace.create::<ServiceAccount>(json!({ "metadata": { "name": "comes-soon" } }));
    let (opened, made) = tokio::join!(opening, async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        making.await
    });
    made.unwrap();
    let error = format!("{:#}", opened.unwrap_err());
    for words in ["class `nobodys`", "no-such-account", "class `urgent`", "no-such-class"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    assert!(!error.contains("comes-soon") && !error.contains("fine"), "{error}");
}

/// Somebody's webhook changes a label by which Pods are known: the start says so.
#[tokio::test]
async fn a_webhook_that_changes_what_is_ours_ends_the_start() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("webhook").await.unwrap();
    let _webhook = Webhook::labels_pods(&namespace, "ottoscaler.io/index", "7").await.unwrap();
    let kubeconfig = namespace.scaler_kubeconfig(None).await.unwrap();
    let (cluster, leadership) = (cluster(&kubeconfig).await, Leadership::unlimited());
    let opened = KubernetesDriver::open(cluster, options(&[]), leadership, CancellationToken::new()).await;
    let error = format!("{:#}", opened.unwrap_err());
    assert!(error.contains("the label ottoscaler.io/index is `7` instead of `0`"), "{error}");
    assert!(error.contains("mutating webhook"), "{error}");
}

/// It was installed later: what it made of a worker's Pod is deleted, and nothing runs that nobody knows.
#[tokio::test]
async fn a_pod_that_a_webhook_changed_is_taken_back() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("changed").await.unwrap();
    let proxy = FaultProxy::start(plane).await.unwrap();
    let driving = Driving::start(&namespace.scaler_kubeconfig(Some(&proxy.url())).await.unwrap()).await;
    driving.checked().await;
    let _webhook = Webhook::labels_pods(&namespace, "app.kubernetes.io/managed-by", "somebody").await.unwrap();
    let busy = proxy.add(Rule::delete_pod(Fault::Answer(503, None)).times(1));
    let outcome = refused(driving.create("t").await);
    assert_eq!((outcome.class, busy.hits()), (Class::Admission, 1));
    let words = "the label app.kubernetes.io/managed-by is `somebody` instead of `ottoscaler`";
    assert!(outcome.message.contains(words), "{}", outcome.message);
    for pod in namespace.list_pods().await.unwrap() {
        assert!(pod.metadata.deletion_timestamp.is_some(), "{pod:?}");
    }
    assert_eq!(namespace.audit().unwrap().iter().filter(|event| event.is_created_pod()).count(), 1);
}

#[tokio::test]
async fn an_image_that_cannot_be_is_refused() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("refused").await.unwrap();
    let driving = Driving::synced(&namespace).await;
    let mut launch = launch("t");
    // Nothing of ours finds fault with it, the API server does.
    Arc::make_mut(&mut launch.spec).env.insert("A".to_owned(), "x".repeat(1_600_000));
    let outcome = refused(bounded(driving.driver.create(launch)).await);
    assert_eq!(outcome.class, Class::Config);
    assert_eq!(namespace.list_pods().await.unwrap().len(), 0);
}

/// A driver of somebody without rights: what it says of them.
#[tokio::test]
async fn a_missing_right_is_named() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("rights").await.unwrap();
    namespace
        .service_account(
            "weak",
            json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch", "create"] }]),
        )
        .await
        .unwrap();
    let driving = Driving::start(&namespace.kubeconfig("weak", None).await.unwrap()).await;
    driving.list().await;
    driving.checked().await;
    let (class, message) = busy(driving.create("t").await);
    assert_eq!(class, Class::Infrastructure);
    let place = format!("may not create configmaps in the namespace {}", namespace.name());
    assert!(message.contains(&place) && message.contains("grant it the verb create"), "{message}");

    namespace.service_account("blind", json!([])).await.unwrap();
    let driving = Driving::start(&namespace.kubeconfig("blind", None).await.unwrap()).await;
    let error = eventually("why there is no list", || async {
        let error = driving.driver.list().await.unwrap_err().to_string();
        error.contains("may not").then_some(error)
    })
    .await;
    // A streaming list is a watch.
    assert!(error.contains("may not watch pods") && error.contains("watch on pods"), "{error}");
    let (_, message) = busy(driving.create("t").await);
    assert!(message.contains("may not create pods"), "{message}");
}

#[tokio::test]
async fn a_namespace_that_is_not_there_is_named_with_its_flag() {
    let plane = ControlPlane::shared().await.unwrap();
    let kubeconfig = plane.write_kubeconfig("nowhere", &plane.url(), "token-of-admin", "nowhere").unwrap();
    let driving = Driving::start(&kubeconfig).await;
    let (class, message) = eventually("an answer about it", || async {
        let (class, message) = busy(driving.create("t").await);
        message.contains("--namespace").then_some((class, message))
    })
    .await;
    assert_eq!(class, Class::Infrastructure);
    assert!(message.contains("there is no namespace nowhere"), "{message}");
}

#[tokio::test]
async fn wrong_credentials_are_told() {
    let plane = ControlPlane::shared().await.unwrap();
    let kubeconfig = plane.write_kubeconfig("stranger", &plane.url(), "nobodys-token", "default").unwrap();
    let driving = Driving::start(&kubeconfig).await;
    let error = eventually("why there is no list", || async {
        let error = driving.driver.list().await.unwrap_err().to_string();
        error.contains("credentials").then_some(error)
    })
    .await;
    assert!(error.contains(&plane.url()) && error.contains("401"), "{error}");
}

#[test]
fn namespaces_are_checked_before_anything_is_asked() {
    let config = || kube::Config::new("https://127.0.0.1:1".parse().unwrap());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    for bad in ["", "A", "a.b", "-a", "a-", &"a".repeat(64)] {
        let argument = format!("--namespace={bad}");
        let error = Cluster::of(config(), &options(&[&argument]).settings, Default::default()).unwrap_err().to_string();
        assert!(error.contains("--namespace") && error.contains("accepted"), "{error}");
    }
    assert_eq!(
        Cluster::of(config(), &options(&["--namespace=a-1"]).settings, Default::default()).unwrap().namespace(),
        "a-1"
    );
}
