//! What a real API server says to the Pods.

use std::sync::Arc;

use http::Request;
use kube::Client;
use otto_testkit::{ControlPlane, Namespace};
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::driver::kubernetes::pod::Trial;

const MANUAL: &str = include_str!("../../../../../../../docs/operations/kubernetes-pods.md");
const MANIFEST: &str = include_str!("../../../../../../../k8s/base/scaler/pod-template.yaml");

async fn post(client: &Client, namespace: &str, query: &str, pod: &[u8]) -> Result<Value, kube::core::Status> {
    let request = Request::post(format!("/api/v1/namespaces/{namespace}/pods?fieldValidation=Strict{query}"));
    let request = request.header("content-type", "application/json").body(pod.to_vec()).unwrap();
    match client.request(request).await {
        Ok(pod) => Ok(pod),
        Err(kube::Error::Api(status)) => Err(*status),
        Err(error) => panic!("{error}"),
    }
}

async fn tried(namespace: &Namespace<'_>, trial: &Trial) -> Result<Value, kube::core::Status> {
    post(&namespace.client(), namespace.name(), "&dryRun=All", &trial.pod).await
}

/// What is said about a template: nothing, or why its Pods are refused.
async fn said(namespace: &Namespace<'_>, template: &str) -> String {
    let maker = maker(template);
    for trial in maker.trials().unwrap() {
        if let Err(status) = tried(namespace, &trial).await {
            let refusal = maker.refusal(&trial, &status);
            return refusal.map_or_else(|| panic!("not about the template: {status:?}"), |error| format!("{error:#}"));
        }
    }
    String::new()
}

#[tokio::test]
async fn a_pod_is_stored_as_it_was_made() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("pods").await.unwrap();
    let flags = ["--worker-token-audience", "otto"];
    let template = "metadata: {labels: {team: shop}}\nclasses: {big: {spec: {nodeSelector: {pool: big}}}}";
    let own = [("RUST_LOG", "debug"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:4317")];
    let maker = maker_of(&options(&flags), template, &own).unwrap();
    let made = maker.make(&launch(), UID).unwrap();
    let stored = post(&namespace.client(), namespace.name(), "", &made).await.unwrap();
    let made: Value = serde_json::from_slice(&made).unwrap();
    for field in ["name", "labels", "annotations"] {
        assert_eq!(stored["metadata"][field], made["metadata"][field]);
    }
    assert_eq!(stored["spec"]["activeDeadlineSeconds"], made["spec"]["activeDeadlineSeconds"]);
    for container in 0..2 {
        let (stored, made) = (&stored["spec"]["containers"][container], &made["spec"]["containers"][container]);
        for field in ["image", "command", "args", "lifecycle", "resources", "securityContext", "volumeMounts"] {
            // What we say nothing about has defaults.
            if !made[field].is_null() {
                assert_eq!(stored[field], made[field], "{field}");
            }
        }
        assert_eq!(stored["env"].as_array().unwrap().len(), made["env"].as_array().unwrap().len());
    }
    let seen: SeenPod = serde_json::from_value(stored).unwrap();
    assert_eq!(key_of(&seen.metadata), Some(launch().key));
    // No token of the service account, though it has one: nothing but our two volumes.
    assert_eq!(made["spec"]["volumes"].as_array().unwrap().len(), 2);
}

#[test]
fn whatever_is_launched_is_taken() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let plane = runtime.block_on(ControlPlane::shared()).unwrap();
    let namespace = runtime.block_on(plane.namespace("any")).unwrap();
    let client = namespace.client();
    let maker = maker("");
    let config = Config { cases: 64, failure_persistence: None, ..Config::default() };
    let tried = TestRunner::new(config).run(&launches(), |launch| {
        let pod = maker.make(&launch, UID).unwrap();
        let answer = runtime.block_on(post(&client, namespace.name(), "&dryRun=All", &pod));
        prop_assert!(answer.is_ok(), "{answer:?}");
        Ok(())
    });
    tried.unwrap();
}

#[tokio::test]
async fn pods_fit_where_only_restricted_ones_may_be() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("restricted").await.unwrap();
    namespace.label(json!({"pod-security.kubernetes.io/enforce": "restricted"})).await.unwrap();
    namespace.refuses_pods().await;
    let job = "spec: {containers: [{name: job, securityContext: {runAsNonRoot: true, capabilities: {drop: [ALL]}}}]}";
    assert_eq!(said(&namespace, job).await, "");
    let problem = said(&namespace, "").await;
    assert!(problem.contains("restricted") && problem.contains(r#"container "job""#), "{problem}");
    assert!(problem.contains("can be given in the template") && !problem.contains(r#""otto""#), "{problem}");
}

#[tokio::test]
async fn bad_templates_are_told_by_class_and_field() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("templates").await.unwrap();
    let job = |inner: &str| format!("spec: {{containers: [{{name: job, {inner}}}]}}");
    let class = |spec: &str| format!("classes: {{big: {{spec: {{{spec}}}}}}}");
    for (template, expected) in [
        (job("resource: {}"), vec!["`spec.containers[job].resource`: unknown field"]),
        (job("resources: {limit: {cpu: 1}}"), vec!["`spec.containers[job].resources.limit`: unknown field"]),
        (
            class("nodeSelectors: {a: b}, containers: [{name: x, image: i, tyt: true}]"),
            vec![
                "class `big`",
                "`spec.nodeSelectors` (in the file: `classes.big.spec.nodeSelectors`): unknown field",
                "`spec.containers[x].tyt` (in the file: `classes.big.spec.containers[x].tyt`): unknown field",
            ],
        ),
        (
            class("hostNetwork: 'yes'"),
            vec!["class `big`", "`spec.hostNetwork`", "classes.big.spec.hostNetwork", "accepted: bool"],
        ),
        (
            job("resources: {requests: {cpu: 2}, limits: {cpu: 1}}"),
            vec!["`spec.containers[job].resources.requests`", "must be less than or equal to cpu limit of 1"],
        ),
        (
            job("volumeMounts: [{name: nowhere, mountPath: /x}]"),
            vec!["`spec.containers[job].volumeMounts", "Not found"],
        ),
        ("spec: {containers: [{name: x}]}".to_owned(), vec!["`spec.containers[x].image`", "Required value"]),
        (
            "spec: {volumes: [{name: v, emptyDir: {}, hostPath: {path: /x}}]}".to_owned(),
            vec!["`spec.volumes[v]", "more than 1"],
        ),
        ("spec: {priorityClassName: none-such}".to_owned(), vec!["no PriorityClass with name none-such"]),
        ("spec: {serviceAccountName: none-such}".to_owned(), vec![r#"serviceaccount "none-such" not found"#]),
        ("metadata: {labels: {a: b c}}".to_owned(), vec!["`metadata.labels", "Invalid value"]),
    ] {
        let problem = said(&namespace, &template).await;
        for part in expected {
            assert!(problem.contains(part), "{template}: {problem}");
        }
    }
}

/// A used-up quota, a missing permission and a missing namespace are no template's fault.
#[tokio::test]
async fn other_refusals_are_not_the_templates() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("quota").await.unwrap();
    let maker = maker("");
    let trial = maker.trials().unwrap().remove(0);
    let nobody = plane.client_of("nobody").await.unwrap();
    let status = post(&nobody, namespace.name(), "&dryRun=All", &trial.pod).await.unwrap_err();
    assert!(maker.refusal(&trial, &status).is_none(), "{status:?}");
    let status = post(&namespace.client(), "none-such", "&dryRun=All", &trial.pod).await.unwrap_err();
    assert!(maker.refusal(&trial, &status).is_none(), "{status:?}");
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "0"}}});
    namespace.create::<k8s_openapi::api::core::v1::ResourceQuota>(quota).await.unwrap();
    let status = otto_testkit::eventually("the quota holds", || async { tried(&namespace, &trial).await.err() }).await;
    assert!(maker.refusal(&trial, &status).is_none(), "{status:?}");
}

/// The templates that people copy.
#[tokio::test]
async fn templates_of_manual_and_manifests_are_taken() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("manual").await.unwrap();
    for name in ["otto-worker"] {
        let account = json!({"metadata": {"name": name}});
        namespace.create::<k8s_openapi::api::core::v1::ServiceAccount>(account).await.unwrap();
    }
    // As the manifests have it.
    namespace.label(json!({"pod-security.kubernetes.io/enforce": "baseline"})).await.unwrap();
    namespace.refuses_pods().await;
    let blocks = MANUAL.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    // Not one of variables.
    let templates: Vec<&str> = blocks.filter(|block| !block.starts_with("- name: OTTO_")).collect();
    assert_eq!(templates.len(), 5);
    let (privileged, within): (Vec<_>, Vec<_>) = templates.into_iter().partition(|block| block.contains("privileged"));
    for template in within.into_iter().chain([MANIFEST]) {
        assert_eq!(said(&namespace, template).await, "", "{template}");
    }
    // The page says what that one needs.
    let [builder] = privileged[..] else { panic!("{privileged:?}") };
    let problem = said(&namespace, builder).await;
    assert!(problem.contains("baseline") && problem.contains("class `builder`"), "{problem}");
    namespace.label(json!({"pod-security.kubernetes.io/enforce": "privileged"})).await.unwrap();
    otto_testkit::eventually("it is taken", || async { said(&namespace, builder).await.is_empty().then_some(()) })
        .await;
    let gpu = maker(MANUAL.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap());
    let mut launch = launch();
    Arc::make_mut(&mut launch.spec).resource_class = "gpu".into();
    let pod = pod_of(&gpu, &launch);
    assert_eq!(pod["spec"]["initContainers"], json!([]));
    assert_eq!(pod["spec"]["containers"][1]["resources"]["limits"], json!({"memory": "4Gi", "nvidia.com/gpu": 1}));
}
